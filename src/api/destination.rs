//! Destinations of events: a Sink, a Service, or a URI.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Destination of events: exactly one of `ref`, `service` and `uri`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.ref), has(self.service), has(self.uri)].filter(set, set).size() == 1", "exactly one of ref, service and uri must be set"))]
pub struct Destination {
    /// Sink, in the Trigger's namespace or in another one that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "ref")]
    pub sink: Option<SinkRef>,

    /// Service in the Trigger's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// Absolute http or https URI outside the cluster. Use service or ref for destinations inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_http_uri")]
    pub uri: Option<String>,
}

/// A reference to a Sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkRef {
    /// Name of the Sink.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Namespace of the Sink. A namespace other than the Trigger's must be allowed by the Sink's allowedNamespaces.
    /// Default: the Trigger's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
}

/// A Service, and where to post events to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTarget {
    /// Name of the Service.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Port of the Service, by number or by name. Optional if the Service has only one port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<ServicePort>,

    /// Path that events are posted to. Default: /.
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
    /// Port number, 1 to 65535.
    Number(u16),
    /// Port name.
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
                // Avoids `type()`, which kube's client-side CEL does not support.
                "rule": "string(self).matches('^[0-9]+$') ? int(self) >= 1 && int(self) <= 65535 \
                         : string(self).size() <= 15 && string(self).matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
                "message": "a port is a number from 1 to 65535 or the name of one of the Service's ports",
            }],
        })
    }
}

/// Scheme of requests to the Service: http, or https with a certificate for the Service's name. Default: http.
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
    /// The scheme in a URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}
