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
    cel,
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
#[x_kube(validation = ("has(self.service) != has(self.uri)", "exactly one of service and uri must be set"))]
pub struct SinkSpec {
    /// A Service of the Sink's own namespace. Exactly one of service and uri is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// An absolute http or https URI outside the cluster. What is inside the cluster is named by service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = ("self.matches('^https?://[^/?#@]+([/?#].*)?$')", "must be an absolute http or https URI with a host and without user information"))]
    pub uri: Option<String>,

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

/// How a Service is spoken to.
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
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub match_labels: std::collections::BTreeMap<String, String>,
}

/// What the controller found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the destination is resolved. Its reason and message say what to do where it is not.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Where events are posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}
