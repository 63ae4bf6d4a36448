//! Targets: destinations prepared for posting. Targets with the same trust and the same client certificate share
//! connections, and those with the same client credentials share tokens.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use hyper_rustls::ConfigBuilderExt as _;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use ring::digest::{self, SHA256_OUTPUT_LEN};
use rustls::{ClientConfig, RootCertStore, client::Resumption, sign::SingleCertAndKey};

use super::{
    addresses::{Addresses, NamedBy},
    connector::{ConnectionContext, Connector, HttpClient, Permitted},
    hidden::HiddenValues,
    names::Names,
    oauth2::{InvalidClientCredentials, TokenRequest},
    signature::Signer,
    token_source::{AccessToken, TokenSource},
};
use crate::{
    cloudevents::Mode,
    destination::client_error::ClientError,
    http_url::{self, HttpUrlError},
    memory::Pool,
    routing::{
        Authorities, AuthoritiesDigest, ClientCertificate, ClientCredentials, ContentMode, Header,
        HttpEndpoint, InvalidSigningKey, PlainHeader, ServiceAccountToken,
    },
    trust::{self, ClientCertificateError, TrustError},
};

/// Time after which idle connections are closed, at the latest twice as long. Shorter than an attempt waits for a
/// connection, so that idle ones do not starve another Sink.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Maximum idle connections to one Sink: the default concurrency of a Trigger.
const POOL_SIZE: usize = 32;

/// Maximum size of an answer's head, and read-ahead of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Maximum header fields of an answer.
const MAX_HEADERS: usize = 1024;

/// Default limit of open connections.
const SOCKETS: usize = 512;

/// Creates targets from destinations. Targets of a namespace that trust the same authorities share connections.
#[derive(Clone)]
pub(super) struct Targets {
    addresses: Arc<Addresses>,
    permitted: Permissions,
    names: Names,
    sockets: Pool,
    public: Arc<ClientConfig>,
    /// A client lives as long as one of its targets.
    clients: Arc<Mutex<HashMap<Sharing, Weak<HttpClient>>>>,
    /// A source of tokens lives as long as one of its targets.
    token_sources: Arc<Mutex<TokenSources>>,
}

/// The sources of tokens, by how the token endpoint is reached and the client.
type TokenSources = HashMap<(Sharing, CredentialsDigest), Weak<TokenSource>>;

/// Key under which targets share connections. A connection belongs to whom it was authenticated as.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sharing {
    namespace: Arc<str>,
    named_by: NamedBy,
    /// `None` for the machine's authorities.
    authorities: Option<AuthoritiesDigest>,
    client_certificate: Option<CredentialsDigest>,
}

/// SHA-256 of a client's certificate and its key, or of client credentials.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct CredentialsDigest([u8; SHA256_OUTPUT_LEN]);

/// A prepared endpoint.
#[derive(Clone)]
pub struct HttpTarget {
    uri: Uri,
    /// Content mode that the Sink asks for; `None` for that of each event.
    mode: Option<Mode>,
    pub(super) namespace: Arc<str>,
    named_by: NamedBy,
    client: Arc<HttpClient>,
    /// Whether a client certificate is presented.
    authenticates: bool,
    headers: Arc<[(HeaderName, HeaderValue)]>,
    plain_headers: Arc<[(HeaderName, HeaderValue)]>,
    signer: Arc<Signer>,
    token: Option<Arc<SentToken>>,
    token_source: Option<Arc<TokenSource>>,
    /// Token of the authorization server for this attempt.
    access_token: Option<Arc<AccessToken>>,
    /// Secret parts of the headers.
    secrets: HiddenValues,
}

/// A token of a ServiceAccount, as the value of `authorization`. A renewed one is equal: it is the same credential.
struct SentToken {
    account: String,
    audience: String,
    value: HeaderValue,
}

/// One value for each way in which a destination is named.
#[derive(Clone)]
struct ByName<T> {
    uri: T,
    service: T,
    operator: T,
}

type Permissions = ByName<Arc<Permitted>>;

/// Why a destination is unusable. The controller rejects all of these.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The URI is invalid.
    #[error("invalid URI: it {0}")]
    Uri(#[from] HttpUrlError),
    /// The authorities' certificates are invalid.
    #[error("invalid certificate authorities: {0}")]
    Authorities(#[from] TrustError),
    /// The configuration lacks the authorities.
    #[error("certificate authorities missing from the configuration: upgrade the controller to this version")]
    UnknownAuthorities,
    /// The header cannot be sent.
    #[error("invalid header {0:?}")]
    Header(String),
    /// A key cannot be used.
    #[error("a key of the signature {0}")]
    SigningKey(#[from] InvalidSigningKey),
    /// The client certificate cannot be used.
    #[error("invalid client certificate: {0}")]
    ClientCertificate(#[from] ClientCertificateError),
    /// The client credentials cannot be used.
    #[error("invalid client credentials: {0}")]
    ClientCredentials(#[from] InvalidClientCredentials),
}

impl Targets {
    pub(super) fn new(addresses: Addresses) -> Result<Self, ClientError> {
        let permitted = |named_by| Arc::new(Permitted::new(addresses.of(named_by), named_by));
        let permitted = ByName {
            uri: permitted(NamedBy::Uri),
            service: permitted(NamedBy::Service),
            operator: permitted(NamedBy::Operator),
        };
        Ok(Self {
            public: Arc::new(public_tls()?),
            names: Names::of_system().map_err(|error| ClientError::Names(error.to_string()))?,
            sockets: Pool::new(SOCKETS),
            clients: Arc::default(),
            token_sources: Arc::default(),
            permitted,
            addresses: Arc::new(addresses),
        })
    }

    /// Sets the pool of open connections.
    pub(super) fn with_sockets(self, sockets: Pool) -> Self {
        Self { sockets, ..self }
    }

    /// Logs how many lines were suppressed since the last line of their kind, once their interval is over.
    pub(super) fn log_suppressed(&self, now: Instant) {
        let ByName {
            uri,
            service,
            operator,
        } = &self.permitted;
        for permitted in [uri, service, operator] {
            permitted.log_suppressed(now);
        }
    }

    /// Creates a target. `namespace` is the Trigger's; `authorities` are those of the destination's configuration.
    pub(super) fn target(
        &self,
        namespace: &str,
        endpoint: &HttpEndpoint,
        authorities: &Authorities,
    ) -> Result<HttpTarget, TargetError> {
        let HttpEndpoint {
            uri,
            service: _,
            content_mode,
            ca_certs,
            headers,
            plain_headers,
            signing_keys,
            client_certificate,
            service_account_token,
            client_credentials,
        } = endpoint;
        let client_certificate = client_certificate.as_ref();
        let sharing = Sharing {
            namespace: namespace.into(),
            named_by: self.addresses.named_by(endpoint),
            authorities: ca_certs.clone(),
            client_certificate: client_certificate.map(CredentialsDigest::of_certificate),
        };
        let token_source = client_credentials.as_ref();
        let token_source = token_source.map(|client| self.token_source(&sharing, authorities, client));
        Ok(HttpTarget {
            uri: http_url::parse(uri)?,
            mode: mode(*content_mode),
            namespace: sharing.namespace.clone(),
            named_by: sharing.named_by,
            authenticates: client_certificate.is_some(),
            client: self.client(sharing, authorities, client_certificate)?,
            headers: headers.iter().map(secret_header).collect::<Result<_, _>>()?,
            plain_headers: plain_headers
                .iter()
                .map(|PlainHeader { name, value }| header(name, value))
                .collect::<Result<_, _>>()?,
            signer: Arc::new(Signer::new(signing_keys)?),
            token: service_account_token.as_ref().map(SentToken::new).transpose()?,
            token_source: token_source.transpose()?,
            access_token: None,
            secrets: secrets_in(headers, service_account_token.as_ref()),
        })
    }

    fn client(
        &self,
        sharing: Sharing,
        authorities: &Authorities,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Arc<HttpClient>, TargetError> {
        // No panic under the lock leaves it half changed.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&sharing).and_then(Weak::upgrade) {
            return Ok(client);
        }
        let mut tls = match &sharing.authorities {
            Some(digest) => {
                let pem = authorities.get(digest).ok_or(TargetError::UnknownAuthorities)?;
                tls(trust::authorities(pem)?)
            }
            None => ClientConfig::clone(&self.public),
        };
        if let Some(certificate) = certificate {
            authenticate(&mut tls, certificate)?;
        }
        let origin = ConnectionContext {
            permitted: self.permitted.of(sharing.named_by).clone(),
            names: self.names.clone(),
            sockets: self.sockets.clone(),
            namespace: sharing.namespace.clone(),
        };
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_SIZE)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(MAX_HEAD)
            .http1_max_headers(MAX_HEADERS)
            .build(Connector::new(origin, tls));
        let client = Arc::new(client);
        clients.retain(|_, client| client.strong_count() > 0);
        clients.insert(sharing, Arc::downgrade(&client));
        Ok(client)
    }

    /// Returns the source of tokens for client credentials. The token endpoint is reached like a `uri`, trusts the
    /// destination's authorities, and is presented no certificate.
    fn token_source(
        &self,
        destination: &Sharing,
        authorities: &Authorities,
        credentials: &ClientCredentials,
    ) -> Result<Arc<TokenSource>, TargetError> {
        let sharing = Sharing {
            named_by: NamedBy::Uri,
            client_certificate: None,
            ..destination.clone()
        };
        let key = (sharing.clone(), CredentialsDigest::of_client(credentials));
        // No panic under the lock leaves it half changed.
        let mut sources = self.token_sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(&key).and_then(Weak::upgrade) {
            return Ok(source);
        }
        let request = TokenRequest::new(credentials)?;
        let client = self.client(sharing, authorities, None)?;
        let source = Arc::new(TokenSource::new(request, client));
        sources.retain(|_, source| source.strong_count() > 0);
        sources.insert(key, Arc::downgrade(&source));
        Ok(source)
    }
}

impl<T> ByName<T> {
    fn of(&self, named_by: NamedBy) -> &T {
        match named_by {
            NamedBy::Uri => &self.uri,
            NamedBy::Service => &self.service,
            NamedBy::Operator => &self.operator,
        }
    }
}

impl HttpTarget {
    /// URI that events are posted to.
    pub(in crate::destination) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Content mode that the Sink asks for; `None` for that of each event.
    pub(super) fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Whether credentials are sent to the Sink.
    pub(super) fn sends_credentials(&self) -> bool {
        self.authenticates
            || self.token.is_some()
            || self.token_source.is_some()
            || !self.headers.is_empty()
            || !self.signer.is_empty()
    }

    /// The source of the tokens that attempts need.
    pub(super) fn token_source(&self) -> Option<&TokenSource> {
        self.token_source.as_deref()
    }

    /// The target of an attempt with this token.
    pub(super) fn with_token(&self, token: Arc<AccessToken>) -> Self {
        Self {
            access_token: Some(token),
            ..self.clone()
        }
    }

    /// Tells the source of tokens that the Sink rejected the token of this attempt.
    pub(super) fn token_rejected(&self) {
        if let (Some(source), Some(token)) = (&self.token_source, &self.access_token) {
            source.rejected(token);
        }
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    pub(super) fn http(&self) -> &HttpClient {
        &self.client
    }

    /// Sets the Sink's headers beside the event's.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in self.headers.iter().chain(&*self.plain_headers) {
            headers.insert(name, value.clone());
        }
        if let Some(token) = &self.token {
            headers.insert(header::AUTHORIZATION, token.value.clone());
        }
        if let Some(token) = &self.access_token {
            headers.insert(header::AUTHORIZATION, token.header.clone());
        }
    }

    /// Length of the longest secret, in bytes. A truncated text may end with a part of one.
    pub(super) fn longest_secret(&self) -> usize {
        let token = self.access_token.as_ref();
        let token = token.map(|token| token.hidden.longest());
        self.secrets.longest().max(token.unwrap_or_default())
    }

    /// Replaces secret values in the text of an answer, since a Sink may echo its request. Values of fewer than four
    /// bytes stay.
    pub(super) fn hide_secrets(&self, text: String) -> String {
        let text = match &self.access_token {
            Some(token) => token.hidden.hide(text),
            None => text,
        };
        self.secrets.hide(text)
    }
}

impl PartialEq for HttpTarget {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            uri,
            // Another content mode does not make it another Sink.
            mode: _,
            namespace,
            named_by,
            client,
            // Clients with another certificate are other clients.
            authenticates: _,
            headers,
            plain_headers,
            signer,
            token,
            token_source,
            // Another token of the same source is the same credential.
            access_token: _,
            // Derived from the headers and the token.
            secrets: _,
        } = self;
        *uri == other.uri
            && *namespace == other.namespace
            && *named_by == other.named_by
            && Arc::ptr_eq(client, &other.client)
            && *headers == other.headers
            && *plain_headers == other.plain_headers
            && *signer == other.signer
            && *token == other.token
            && token_source.as_ref().map(Arc::as_ptr) == other.token_source.as_ref().map(Arc::as_ptr)
    }
}

impl fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTarget")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

fn mode(mode: ContentMode) -> Option<Mode> {
    match mode {
        ContentMode::Binary => Some(Mode::Binary),
        ContentMode::Structured => Some(Mode::Structured),
        ContentMode::AsReceived => None,
    }
}

fn secret_header(secret: &Header) -> Result<(HeaderName, HeaderValue), TargetError> {
    let (name, mut value) = header(&secret.name, secret.value.reveal())?;
    value.set_sensitive(true);
    Ok((name, value))
}

impl SentToken {
    fn new(token: &ServiceAccountToken) -> Result<Arc<Self>, TargetError> {
        let ServiceAccountToken {
            account,
            audience,
            value,
            version: _,
        } = token;
        let value = format!("Bearer {}", value.reveal());
        let (_, mut value) = header(header::AUTHORIZATION.as_str(), &value)?;
        value.set_sensitive(true);
        Ok(Arc::new(Self {
            account: account.clone(),
            audience: audience.clone(),
            value,
        }))
    }
}

impl PartialEq for SentToken {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            account,
            audience,
            value: _,
        } = self;
        (account, audience) == (&other.account, &other.audience)
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), TargetError> {
    let parsed = (
        HeaderName::from_bytes(name.as_bytes()),
        HeaderValue::from_str(value),
    );
    let (Ok(name), Ok(value)) = parsed else {
        return Err(TargetError::Header(name.to_owned()));
    };
    Ok((name, value))
}

/// Values to hide: the token, the headers' values and, for `authorization`, also the part after the scheme.
fn secrets_in(headers: &[Header], token: Option<&ServiceAccountToken>) -> HiddenValues {
    let parts = headers.iter().flat_map(|header| {
        let value = header.value.reveal().trim();
        let credentials = (header.name == header::AUTHORIZATION.as_str())
            .then(|| value.split_once(' '))
            .flatten()
            .map(|(_scheme, credentials)| credentials.trim_start());
        std::iter::once(value).chain(credentials)
    });
    let token = token.map(|token| token.value.reveal());
    HiddenValues::new(parts.chain(token))
}

/// TLS that trusts this machine's authorities.
fn public_tls() -> Result<ClientConfig, ClientError> {
    match ClientConfig::builder().with_native_roots() {
        Ok(config) => Ok(config.with_no_client_auth()),
        // An image without authorities: each attempt at an https Sink then fails with a TLS error.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(tls(RootCertStore::empty())),
        Err(error) => Err(ClientError::Roots(error)),
    }
}

impl CredentialsDigest {
    fn of_certificate(certificate: &ClientCertificate) -> Self {
        Self::of([certificate.certificate.reveal(), certificate.key.reveal()])
    }

    fn of_client(client: &ClientCredentials) -> Self {
        let ClientCredentials {
            token_url,
            id,
            secret,
            // The same values are the same client.
            version: _,
            scopes,
            audience,
        } = client;
        let parts = [token_url.as_str(), id.reveal(), secret.reveal()];
        let count = scopes.len().to_string();
        let parts = parts.into_iter().chain([count.as_str()]);
        Self::of(
            parts
                .chain(scopes.iter().map(String::as_str))
                .chain(audience.as_deref()),
        )
    }

    fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

/// Presents a certificate to servers that ask for one.
fn authenticate(tls: &mut ClientConfig, certificate: &ClientCertificate) -> Result<(), TargetError> {
    let ClientCertificate { certificate, key, .. } = certificate;
    let certified = trust::client_certificate(certificate.reveal(), key.reveal())?;
    tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
    // A resumed session would be that of the client which began it.
    tls.resumption = Resumption::default();
    Ok(())
}

fn tls(trusted: RootCertStore) -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(trusted)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{ServiceName, SigningKey};

    fn secret(name: &str, value: &str) -> Header {
        Header {
            name: name.to_owned(),
            value: value.to_owned().into(),
            version: String::new(),
        }
    }

    fn destination(service: Option<ServiceName>, headers: &[(&str, &str)]) -> HttpEndpoint {
        HttpEndpoint {
            headers: headers.iter().map(|(name, value)| secret(name, value)).collect(),
            ..HttpEndpoint::new("https://example.com/".to_owned(), service)
        }
    }

    fn hide(headers: &[(&str, &str)], text: &str) -> String {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = targets.target("shop", &destination(None, headers), &Authorities::default());
        target.unwrap().hide_secrets(text.to_owned())
    }

    #[test]
    fn only_mapped_services_may_be_at_any_address() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let name = |name: &str| ServiceName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let addresses = Addresses {
            mapped: [name("mapped")].into(),
            ..Addresses::any()
        };
        let targets = Targets::new(addresses).unwrap();
        let table = [
            (None, NamedBy::Uri),
            (Some("mapped"), NamedBy::Operator),
            (Some("other"), NamedBy::Service),
        ];
        for (service, named_by) in table {
            let target = targets.target(
                "shop",
                &destination(service.map(name), &[]),
                &Authorities::default(),
            );
            let target = target.unwrap();
            assert_eq!(target.named_by, named_by, "{service:?}");
        }
    }

    #[test]
    fn targets_with_the_same_authorities_share_connections() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let [ours, theirs] = ["ours", "theirs"].map(|name| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]);
            made.unwrap().cert.pem()
        });
        let authorities: Authorities = [&*ours, &*theirs].into_iter().collect();
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |pem: &str, authorities: &Authorities| {
            let ca_certs = Some(AuthoritiesDigest::of(pem));
            let destination = HttpEndpoint {
                ca_certs,
                ..destination(None, &[])
            };
            targets.target("shop", &destination, authorities)
        };
        let first = target(&ours, &authorities).unwrap();
        assert_eq!(target(&ours, &authorities).unwrap(), first);
        assert_ne!(target(&theirs, &authorities).unwrap(), first);
        let unknown = target("-----BEGIN CERTIFICATE-----", &authorities);
        assert!(matches!(unknown, Err(TargetError::UnknownAuthorities)));
    }

    #[test]
    fn plain_headers_are_sent_but_are_no_credentials() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |value: &str| {
            let plain = PlainHeader {
                name: "x-tenant".to_owned(),
                value: value.to_owned(),
            };
            let endpoint = HttpEndpoint {
                plain_headers: vec![plain],
                ..destination(None, &[])
            };
            targets.target("shop", &endpoint, &Authorities::default())
        };
        let blue = target("blue team").unwrap();
        let mut headers = HeaderMap::new();
        blue.set_headers(&mut headers);
        assert_eq!(headers["x-tenant"], "blue team");
        assert!(!blue.sends_credentials());
        assert_eq!(blue.hide_secrets("blue team".to_owned()), "blue team");
        assert_eq!(target("blue team").unwrap(), blue);
        assert_ne!(target("green").unwrap(), blue);
        assert!(matches!(target("a\nb"), Err(TargetError::Header(_))));
    }

    #[test]
    fn another_signing_key_is_another_credential() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |key: &str, version: &str| {
            let key = SigningKey {
                value: key.to_owned().into(),
                version: version.to_owned(),
            };
            let endpoint = HttpEndpoint {
                signing_keys: vec![key],
                ..destination(None, &[])
            };
            targets.target("shop", &endpoint, &Authorities::default())
        };
        let (one, two) = (
            format!("whsec_{}", "A".repeat(32)),
            format!("whsec_{}", "B".repeat(32)),
        );
        let signed = target(&one, "1").unwrap();
        assert!(signed.sends_credentials());
        assert_eq!(target(&one, "2").unwrap(), signed);
        assert_ne!(target(&two, "1").unwrap(), signed);
        let error = target("whsec_x", "1").unwrap_err().to_string();
        assert!(
            error.starts_with("a key of the signature is not a signing key"),
            "{error}"
        );
    }

    #[test]
    fn targets_with_other_client_certificates_share_no_connections() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let pair = |name: &str| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            (made.cert.pem(), made.signing_key.serialize_pem())
        };
        let (ours, theirs) = (pair("ours"), pair("theirs"));
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |pair: Option<(&str, &str)>| {
            let client_certificate = pair.map(|(certificate, key)| ClientCertificate {
                certificate: certificate.to_owned().into(),
                key: key.to_owned().into(),
                version: String::new(),
            });
            let endpoint = HttpEndpoint {
                client_certificate,
                ..destination(None, &[])
            };
            targets.target("shop", &endpoint, &Authorities::default())
        };
        let with = |(certificate, key): &(String, String)| target(Some((certificate, key))).unwrap();
        let (first, second, bare) = (with(&ours), with(&theirs), target(None).unwrap());
        assert_eq!(with(&ours), first);
        for (one, other) in [(&first, &second), (&first, &bare), (&second, &bare)] {
            assert!(!Arc::ptr_eq(&one.client, &other.client));
            assert_ne!(one, other);
        }
        assert!(first.sends_credentials() && !bare.sends_credentials());
        let mixed = target(Some((&ours.0, &theirs.1)));
        assert!(matches!(
            mixed,
            Err(TargetError::ClientCertificate(ClientCertificateError::Mismatch))
        ));
    }

    #[test]
    fn a_certificate_leaves_shared_settings_alone() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let made = rcgen::generate_simple_self_signed(["ours".to_owned()]).unwrap();
        let certificate = ClientCertificate {
            certificate: made.cert.pem().into(),
            key: made.signing_key.serialize_pem().into(),
            version: String::new(),
        };
        let shared = tls(RootCertStore::empty());
        let mut ours = shared.clone();
        authenticate(&mut ours, &certificate).unwrap();
        assert!(ours.client_auth_cert_resolver.has_certs());
        assert!(!shared.client_auth_cert_resolver.has_certs());
    }

    #[test]
    fn renewed_token_is_the_same_credential() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |audience: &str, token: &str| {
            let token = ServiceAccountToken {
                account: "sender".to_owned(),
                audience: audience.to_owned(),
                value: token.to_owned().into(),
                version: token.to_owned(),
            };
            let endpoint = HttpEndpoint {
                service_account_token: Some(token),
                ..destination(None, &[])
            };
            targets
                .target("shop", &endpoint, &Authorities::default())
                .unwrap()
        };
        let (first, second) = (target("a", "t0ken-1"), target("a", "t0ken-2"));
        assert_eq!(first, second);
        assert_ne!(first, target("b", "t0ken-1"));
        assert!(first.sends_credentials());
        let mut headers = HeaderMap::new();
        second.set_headers(&mut headers);
        assert_eq!(headers["authorization"], "Bearer t0ken-2");
        assert!(headers["authorization"].is_sensitive());
        assert_eq!(second.hide_secrets("no: t0ken-2".to_owned()), "no: [secret]");
    }

    #[test]
    fn targets_with_the_same_client_credentials_share_tokens() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |uri: &str, secret: &str, scopes: &[&str], audience: Option<&str>| {
            let client = ClientCredentials {
                token_url: "https://id.example.com/token".to_owned(),
                id: "weir".to_owned().into(),
                secret: secret.to_owned().into(),
                version: String::new(),
                scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
                audience: audience.map(str::to_owned),
            };
            let endpoint = HttpEndpoint {
                client_credentials: Some(client),
                ..HttpEndpoint::new(uri.to_owned(), None)
            };
            targets
                .target("shop", &endpoint, &Authorities::default())
                .unwrap()
        };
        let first = target("https://a/", "s3cr3t", &[], None);
        assert!(first.sends_credentials());
        assert_eq!(target("https://a/", "s3cr3t", &[], None), first);
        let source = |target: &HttpTarget| Arc::as_ptr(target.token_source.as_ref().unwrap());
        let elsewhere = target("https://b/", "s3cr3t", &[], None);
        assert_eq!(source(&elsewhere), source(&first));
        for other in [
            target("https://a/", "other", &[], None),
            target("https://a/", "s3cr3t", &["a"], None),
            target("https://a/", "s3cr3t", &[], Some("a")),
        ] {
            assert_ne!(other, first);
            assert_ne!(source(&other), source(&first));
        }
        // A source ends with its targets.
        drop((first, elsewhere));
        drop(target("https://a/", "another", &[], None));
        let sources = targets.token_sources.lock().unwrap();
        assert!(
            sources
                .values()
                .filter(|source| source.strong_count() > 0)
                .count()
                == 0
        );
    }

    #[test]
    fn hides_sent_secrets_in_answers() {
        type Headers = &'static [(&'static str, &'static str)];
        let table: &[(Headers, &str, &str)] = &[
            (&[], "Bearer abcd", "Bearer abcd"),
            (
                &[("authorization", "Bearer t0ken")],
                "no: Bearer t0ken",
                "no: [secret]",
            ),
            (
                &[("authorization", "Bearer t0ken")],
                "no: \"t0ken\"",
                "no: \"[secret]\"",
            ),
            (&[("authorization", "bearer t0ken")], "t0ken", "[secret]"),
            (&[("authorization", "Basic dTpw")], "dTpw", "[secret]"),
            (&[("authorization", "ApiKey  k3y1 k3y2")], "k3y1 k3y2", "[secret]"),
            (&[("authorization", "t0ken")], "t0ken", "[secret]"),
            (&[("x-api-key", "Basic k3y")], "Basic k3y, k3y", "[secret], k3y"),
            // One value is the prefix of the other.
            (
                &[("a", "k3y1"), ("b", "k3y1-and-more")],
                "k3y1-and-more, k3y1",
                "[secret], [secret]",
            ),
            // Too short to be distinguished from other text.
            (&[("a", "abc"), ("b", "a"), ("c", "")], "an abc", "an abc"),
            (&[("authorization", "Key abc")], "abc, Key abc", "abc, [secret]"),
        ];
        for (headers, text, hidden) in table {
            assert_eq!(hide(headers, text), *hidden, "{headers:?}");
        }
    }
}
