//! A Sink: a named, reusable destination.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AddressableRef, DeliverySpec, ServiceTarget};

/// A named, reusable destination: a Service or an addressable object of the Sink's namespace, or a URI, with its delivery
/// settings and the other namespaces that may use it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Sink",
    plural = "sinks",
    shortname = "snk",
    category = "weir",
    category = "eventing",
    namespaced,
    status = "SinkStatus",
    derive = "PartialEq",
    doc = "A Sink is a named, reusable destination of events: a Service or an addressable object in its own namespace, or a URI, with its delivery settings and the other namespaces that may use it. Triggers reference it in spec.sink.ref.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "URI", type_ = "string", json_path = ".status.uri"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("[has(self.ref), has(self.service), has(self.uri)].filter(set, set).size() == 1", "exactly one of ref, service and uri must be set"),
    validation = ("!has(self.caCerts) || has(self.ref) || (has(self.uri) && self.uri.startsWith('https:')) || (has(self.service) && has(self.service.scheme) && self.service.scheme == 'https') || (has(self.authorization) && has(self.authorization.oauth2))", "caCerts requires https: use an https:// uri, or set service.scheme to https"),
    validation = ("!has(self.tls) || has(self.ref) || (has(self.uri) && self.uri.startsWith('https:')) || (has(self.service) && has(self.service.scheme) && self.service.scheme == 'https')", "tls requires https: use an https:// uri, or set service.scheme to https"),
    validation = ("!has(self.authorization) || !has(self.headers) || !self.headers.exists(header, header.name.matches('(?i)^authorization$'))", "authorization already sets the Authorization header: remove it from headers, or remove authorization"),
    validation = ("!has(self.signature) || !has(self.headers) || !self.headers.exists(header, header.name.matches('(?i)^webhook-(id|timestamp|signature)$'))", "signature already sets webhook-id, webhook-timestamp and webhook-signature: remove them from headers, or remove signature")
)]
pub struct SinkSpec {
    /// Object in the Sink's own namespace that has a URL in its status, at status.address.url, such as a Knative
    /// Service. Exactly one of ref, service and uri must be set.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "ref")]
    pub reference: Option<AddressableRef>,

    /// Service in the Sink's own namespace. Exactly one of ref, service and uri must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// Absolute http or https URI outside the cluster. Use service or ref for destinations inside the cluster. Exactly
    /// one of ref, service and uri must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_http_uri")]
    pub uri: Option<String>,

    /// Certificates of the authorities trusted to sign this Sink's certificate, and that of the token endpoint in
    /// authorization.oauth2: one or more, in PEM. They replace the public authorities. Requires https, of the Sink or
    /// of the token endpoint. Default: those in the status of the object in ref, else the authorities in the routers'
    /// image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32_768))]
    pub ca_certs: Option<String>,

    /// How Weir authenticates in TLS. Requires https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SinkTls>,

    /// Credentials that Weir sends to this Sink with each event. Secret values are read from Secrets in the Sink's
    /// own namespace; the controller must be granted access to them (the Sink's status shows how). A changed Secret
    /// takes effect within a minute. Credentials are sent to a uri over https only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,

    /// Additional headers of each request to this Sink, such as an API key. Reserved headers are rejected: those
    /// set by Weir or by HTTP itself, such as ce-*, weir-*, content-*, host, user-agent and traceparent. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<Header>,

    /// Signature of each request, by which the Sink can verify the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,

    /// Content mode of the requests. AsReceived keeps the mode in which the producer sent the event; an event from
    /// a batch is sent structured. Binary and Structured convert. Default: AsReceived.
    #[serde(default)]
    pub content_mode: ContentMode,

    /// Delivery settings of this Sink. A Trigger can override them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliverySpec>,

    /// Other namespaces whose Triggers may reference this Sink. Triggers in the Sink's own namespace always may.
    /// Default: no other namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<NamespaceSelector>,
}

/// How Weir authenticates in TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkTls {
    /// Certificate that Weir presents to the Sink (mutual TLS).
    pub client_certificate: ClientCertificate,
}

/// Certificate of a TLS client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// Name of a Secret of type kubernetes.io/tls in the Sink's own namespace, with the certificate in tls.crt and
    /// its private key in tls.key. The controller must be granted access to it, as for authorization.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub secret_name: String,
}

/// Credentials that Weir sends to a Sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.bearerToken), has(self.serviceAccountToken), has(self.oauth2)].filter(set, set).size() == 1", "exactly one of bearerToken, serviceAccountToken and oauth2 must be set"))]
pub struct Authorization {
    /// Token from a Secret, sent as "Authorization: Bearer TOKEN".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token: Option<SecretValue>,

    /// Token of a ServiceAccount, sent as "Authorization: Bearer TOKEN". The controller requests and renews it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,

    /// Token of an OAuth 2.0 authorization server, sent as "Authorization: Bearer TOKEN". Routers request it with the
    /// client credentials grant (RFC 6749, section 4.4), and renew it before it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<Box<ClientCredentials>>,
}

/// Token of a ServiceAccount, as Kubernetes issues it: a JWT that is valid for one audience.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!self.audience.startsWith('https://kubernetes.default.svc')", "audience is the API server: a token for it must not be sent to a Sink"))]
pub struct ServiceAccountToken {
    /// Name of a ServiceAccount in the Sink's own namespace. The controller must be granted to create tokens of it (the
    /// Sink's status shows how). Use one that exists for this purpose only and has no permissions.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub service_account_name: String,

    /// Audience of the token: the name that the Sink expects in it, such as its URL.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[!-~]+$"))]
    pub audience: String,
}

/// Client of an OAuth 2.0 authorization server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.clientId) != has(self.clientIdFrom)", "exactly one of clientId and clientIdFrom must be set"))]
pub struct ClientCredentials {
    /// Absolute https URI of the token endpoint, outside the cluster. Routers may reach the same addresses as for a
    /// Sink's uri, trust the Sink's caCerts, and follow no redirects.
    #[schemars(schema_with = "super::schema::https_uri")]
    pub token_url: String,

    /// Identifier of the client. Exactly one of clientId and clientIdFrom must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[ -~]+$"))]
    pub client_id: Option<String>,

    /// Key of a Secret with the identifier of the client. Exactly one of clientId and clientIdFrom must be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_from: Option<SecretValue>,

    /// Secret of the client. It is sent to the token endpoint by HTTP basic authentication, and to nobody else.
    pub client_secret: SecretValue,

    /// Scopes to request. Default: those that the authorization server grants the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(min = 1, max = 256), regex(pattern = r"^[!#-\[\]-~]+$"))
    )]
    pub scopes: Vec<String>,

    /// Value of the parameter audience, which some authorization servers require.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^[!-~]+$"))]
    pub audience: Option<String>,
}

/// Signature of each request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Signature {
    /// Signature by the Standard Webhooks specification (www.standardwebhooks.com), in the headers webhook-id,
    /// webhook-timestamp and webhook-signature. It covers the body: in binary mode the data, in structured mode the
    /// whole event.
    pub standard_webhooks: StandardWebhooks,
}

/// Keys of Standard Webhooks signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandardWebhooks {
    /// Keys: whsec_ followed by the base64 of 24 to 64 random bytes. While a key is replaced, list the old and the
    /// new one: each request is then signed with both, and the Sink may verify either.
    #[schemars(length(min = 1, max = 2))]
    pub keys: Vec<SecretValue>,
}

/// An additional request header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.value) != has(self.valueFrom)", "exactly one of value and valueFrom must be set"),
    validation = ("!has(self.value) || !self.name.matches('(?i)^authorization$')", "everyone who can read the Sink can read value: set Authorization by valueFrom")
)]
pub struct Header {
    /// Name of the header, such as X-Api-Key. Case-insensitive.
    #[schemars(schema_with = "super::schema::header_name")]
    pub name: String,

    /// Value: printable ASCII characters, at most 8192. Everyone who can read the Sink can read it. Exactly one of
    /// value and valueFrom must be set; Authorization can be set only by valueFrom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8192), regex(pattern = r"^[!-~]([\t -~]*[!-~])?$"))]
    pub value: Option<String>,

    /// Source of a secret value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<SecretValue>,
}

/// Source of a secret value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretValue {
    /// Key of a Secret in the same namespace. A trailing line break in the value is removed.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Key in the Secret's data.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Content mode of the requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ContentMode {
    /// The mode in which the producer sent the event.
    #[default]
    AsReceived,
    /// HTTP binary mode: attributes in headers, data in the body.
    Binary,
    /// HTTP structured mode: the whole event as JSON in the body.
    Structured,
}

/// Other namespaces that may reference a Sink: the listed ones and those with matching labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.names) || has(self.matchLabels)", "at least one of names and matchLabels must be set"))]
pub struct NamespaceSelector {
    /// Names of namespaces; "*" matches every namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
        )
    )]
    pub names: Vec<String>,

    /// Namespaces that have all of these labels.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

/// Status reported by the controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the destination and its credentials are resolved. If not, reason and message say what to do.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// URI that events are posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}
