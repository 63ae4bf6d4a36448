//! Destinations in the routing configuration: one type for each kind. Pure.

use serde::{Deserialize, Serialize};

use super::{AuthoritiesDigest, Secret, SigningKey};

/// A resolved destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "HttpEndpoint", into = "HttpEndpoint")]
pub enum Destination {
    /// An HTTP endpoint. In JSON its fields are at the top level.
    Http(HttpEndpoint),
}

impl Destination {
    /// Returns the URI, which identifies the destination to users.
    pub fn uri(&self) -> &str {
        let Self::Http(endpoint) = self;
        &endpoint.uri
    }

    /// Whether it contains secret values.
    pub fn has_secrets(&self) -> bool {
        let Self::Http(endpoint) = self;
        !endpoint.headers.is_empty()
            || !endpoint.signing_keys.is_empty()
            || endpoint.client_certificate.is_some()
            || endpoint.service_account_token.is_some()
            || endpoint.client_credentials.is_some()
    }

    /// Clears the secret values.
    pub(super) fn clear_secrets(&mut self) {
        let Self::Http(endpoint) = self;
        let headers = endpoint.headers.iter_mut().map(|header| &mut header.value);
        let keys = endpoint.signing_keys.iter_mut().map(|key| &mut key.value);
        let pair = endpoint.client_certificate.as_mut();
        let pair = pair.map(|pair| [&mut pair.certificate, &mut pair.key]);
        let token = endpoint.service_account_token.as_mut();
        let token = token.map(|token| &mut token.value);
        let client = endpoint.client_credentials.as_mut();
        let client = client.map(|client| [&mut client.id, &mut client.secret]);
        let pairs = pair.into_iter().chain(client).flatten();
        for secret in headers.chain(keys).chain(pairs).chain(token) {
            *secret = Secret::default();
        }
    }
}

impl From<HttpEndpoint> for Destination {
    fn from(endpoint: HttpEndpoint) -> Self {
        Self::Http(endpoint)
    }
}

impl From<Destination> for HttpEndpoint {
    fn from(destination: Destination) -> Self {
        let Destination::Http(endpoint) = destination;
        endpoint
    }
}

/// An HTTP endpoint that events are posted to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpEndpoint {
    /// Absolute `http` or `https` URI.
    pub uri: String,
    /// The Service behind the URI, if any, so that a router outside the cluster can use a different address.
    pub service: Option<ServiceName>,
    /// Content mode requested by the Sink.
    pub content_mode: ContentMode,
    /// Authorities trusted instead of the public ones, from
    /// [`Configuration::authorities`](super::Configuration::authorities).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certs: Option<AuthoritiesDigest>,
    /// Additional headers of each request, with secret values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// Additional headers of each request whose values are not secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain_headers: Vec<PlainHeader>,
    /// Keys that each request is signed with, by the Standard Webhooks specification.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signing_keys: Vec<SigningKey>,
    /// Certificate that is presented to the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
    /// Token that is sent as `Authorization: Bearer TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,
    /// Client of an authorization server, whose tokens are sent as `Authorization: Bearer TOKEN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_credentials: Option<ClientCredentials>,
}

impl HttpEndpoint {
    /// An endpoint without further settings.
    pub fn new(uri: String, service: Option<ServiceName>) -> Self {
        Self {
            uri,
            service,
            content_mode: ContentMode::AsReceived,
            ca_certs: None,
            headers: Vec::new(),
            plain_headers: Vec::new(),
            signing_keys: Vec::new(),
            client_certificate: None,
            service_account_token: None,
            client_credentials: None,
        }
    }
}

/// A header with a secret value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name, in lower case.
    pub name: String,
    /// Value.
    pub value: Secret,
    /// Opaque version that changes with the value and reveals nothing about it. Revisions are derived from it: they
    /// are logged and shown in metrics, and a hash of the value could be used to guess it.
    pub version: String,
}

/// A header whose value is not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlainHeader {
    /// Name, in lower case.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A certificate of a TLS client, with its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCertificate {
    /// The certificate, followed by those of intermediate authorities, in PEM. Not secret, but as long as the key is.
    pub certificate: Secret,
    /// Its private key, in PEM.
    pub key: Secret,
    /// Opaque version that changes with either and reveals nothing about the key.
    pub version: String,
}

/// A token of a ServiceAccount. The controller renews it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountToken {
    /// Name of the ServiceAccount.
    pub account: String,
    /// Audience.
    pub audience: String,
    /// The token.
    pub value: Secret,
    /// Opaque version that changes with the value and reveals nothing about it.
    pub version: String,
}

/// A client of an OAuth 2.0 authorization server, by the client credentials grant (RFC 6749, section 4.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientCredentials {
    /// Absolute `https` URI of the token endpoint.
    pub token_url: String,
    /// Identifier of the client. It may come from a Secret.
    pub id: Secret,
    /// Secret of the client.
    pub secret: Secret,
    /// Opaque version that changes with the identifier and the secret and reveals nothing about the secret.
    pub version: String,
    /// Scopes to request; empty for the server's default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Audience to request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// Name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Content mode of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContentMode {
    /// Binary or structured, as received. Events from a batch are sent structured.
    #[default]
    AsReceived,
    /// HTTP binary mode.
    Binary,
    /// HTTP structured mode in the JSON event format.
    Structured,
}

#[cfg(test)]
impl Destination {
    /// An HTTP endpoint without further settings.
    pub fn to_uri(uri: &str) -> Self {
        Self::Http(HttpEndpoint::new(uri.to_owned(), None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_destination_of_earlier_version_without_credentials() {
        let text = r#"{"uri":"http://a/","service":null,"contentMode":"AsReceived"}"#;
        let destination: Destination = serde_json::from_str(text).unwrap();
        let Destination::Http(endpoint) = &destination;
        assert_eq!(*endpoint, HttpEndpoint::new("http://a/".to_owned(), None));
        assert_eq!(serde_json::to_string(&destination).unwrap(), text);
    }

    #[test]
    fn rejects_unknown_kinds_and_fields() {
        for (text, part) in [
            (r#"{"topic":"orders"}"#, "unknown field `topic`"),
            (
                r#"{"uri":"http://a/","service":null,"contentMode":"AsReceived","audience":"a"}"#,
                "unknown field `audience`",
            ),
        ] {
            let error = serde_json::from_str::<Destination>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
