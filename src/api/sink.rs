//! A Sink: a named, reusable destination.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DeliverySpec;

/// A named, reusable destination: a Service of the Sink's namespace or a URI, with how to deliver to it and
/// which other namespaces may use it.
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
    doc = "A Sink is a named, reusable destination of events: a Service of its own namespace or a URI, with how to deliver to it and which other namespaces may use it. Triggers name it in spec.sink.ref.",
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
    validation = ("has(self.service) != has(self.uri)", "exactly one of service and uri must be set"),
    validation = ("!has(self.caCerts) || (has(self.uri) && self.uri.startsWith('https:')) || (has(self.service) && has(self.service.scheme) && self.service.scheme == 'https')", "caCerts is for https alone: begin uri with https://, or set service.scheme to https"),
    validation = ("!has(self.authorization) || !has(self.headers) || !self.headers.exists(header, header.name.matches('(?i)^authorization$'))", "the header authorization is set by authorization; name it in one of the two")
)]
pub struct SinkSpec {
    /// A Service of the Sink's own namespace. Exactly one of service and uri is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// An absolute http or https URI outside the cluster. What is inside the cluster is named by service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_http_uri")]
    pub uri: Option<String>,

    /// The certificates of the authorities that are trusted to have signed this Sink's certificate, in PEM, one or
    /// more: instead of the public ones. For https. Default: the authorities that the routers' image trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32_768))]
    pub ca_certs: Option<String>,

    /// What Weir shows this Sink of itself with each event. What is secret stands in Secrets of the Sink's own
    /// namespace, which has to let the controller read them (the Sink's status says how), and a changed Secret is
    /// taken over within a minute. To a uri it is sent over https only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,

    /// Headers that each request to this Sink has besides the event's, such as an API key. None that Weir or HTTP
    /// itself sets: ce-*, content-*, host, user-agent, traceparent and the like. As with authorization, the values
    /// stand in Secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<Header>,

    /// The mode in which events are sent: AsReceived keeps binary or structured as the producer sent it (an event
    /// of a batch leaves structured), Binary and Structured convert. Default: AsReceived.
    #[serde(default)]
    pub content_mode: ContentMode,

    /// How events are delivered to this Sink, where a Trigger does not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliverySpec>,

    /// Which other namespaces' Triggers may name this Sink. The Sink's own namespace always may. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<NamespaceSelector>,
}

/// How Weir shows a Sink who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// A token that is sent as "Authorization: Bearer TOKEN".
    pub bearer_token: SecretValue,
}

/// A header of each request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name, such as X-Api-Key. Upper and lower case are the same.
    #[schemars(schema_with = "super::schema::header_name")]
    pub name: String,

    /// Where its value stands.
    pub value_from: SecretValue,
}

/// Where a secret value stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretValue {
    /// A key of a Secret of the Sink's own namespace. A line break at the end of the value does not count.
    pub secret_key_ref: SecretKeyRef,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// The key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Whether a Sink may not set this header: Weir or HTTP itself does, or it says how the next server is spoken to.
/// `authorization` may be set where [`SinkSpec::authorization`] is not.
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || RESERVED_HEADERS.contains(&name.as_str())
}

/// What the names of reserved headers begin with.
pub(super) const RESERVED_PREFIXES: &[&str] = &["ce-", "content-", "proxy-"];

/// The other reserved headers.
pub(super) const RESERVED_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "expect",
    "host",
    "keep-alive",
    "prefer",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// A Service and where on it events are posted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTarget {
    /// The Service's name.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// The Service's port, by number or by name. May be left out if the Service has just one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ServicePort>,

    /// The path that events are posted to. Default: /.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/[^\s#]*$"))]
    pub path: Option<String>,

    /// http or https. Default: http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
}

/// A port of a Service, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ServicePort {
    /// Its number, 1 to 65535.
    Number(u16),
    /// Its name.
    Name(String),
}

impl JsonSchema for ServicePort {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ServicePort".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [{
                // Without type(), which kube's client-side CEL does not know.
                "rule": "string(self).matches('^[0-9]+$') ? int(self) >= 1 && int(self) <= 65535 \
                         : string(self).size() <= 15 && string(self).matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                "message": "a port is a number from 1 to 65535 or the name of one of the Service's ports",
            }],
        })
    }
}

/// How a Service is spoken to: http, or https, its certificate being for the Service's name. Default: http.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain HTTP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The mode in which events are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ContentMode {
    /// As the producer sent it.
    #[default]
    AsReceived,
    /// HTTP binary mode: attributes in headers, data in the body.
    Binary,
    /// HTTP structured mode: the whole event as JSON in the body.
    Structured,
}

/// Which other namespaces may name this Sink: those listed and those whose labels match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.names) || has(self.matchLabels)", "at least one of names and matchLabels must be set"))]
pub struct NamespaceSelector {
    /// Namespaces by name; "*" is every namespace.
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

/// What the controller found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the destination is resolved, and its credentials are known. Its reason and message say what to do where it is not.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Where events are posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_weir_or_http_sets_are_reserved() {
        for name in [
            "ce-id",
            "CE-Id",
            "Content-Type",
            "content-length",
            "HOST",
            "te",
            "Proxy-Authorization",
            "Prefer",
        ] {
            assert!(is_reserved_header(name), "{name}");
        }
        for name in ["authorization", "x-api-key", "cookie", "ce", "hosts", "accept"] {
            assert!(!is_reserved_header(name), "{name}");
        }
    }
}
