//! Destinations of events: a Sink, an object with a URL in its status, a Service, or a URI.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Destination of events: exactly one of `ref`, `service` and `uri`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.ref), has(self.service), has(self.uri)].filter(set, set).size() == 1", "exactly one of ref, service and uri must be set"))]
pub struct Destination {
    /// Sink, in the Trigger's namespace or in another one that allows it; or, with apiVersion and kind, another object
    /// in the Trigger's namespace that has a URL in its status, such as a Knative Service.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "ref")]
    pub reference: Option<DestinationRef>,

    /// Service in the Trigger's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// Absolute http or https URI outside the cluster. Use service or ref for destinations inside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_http_uri")]
    pub uri: Option<String>,
}

/// A reference to a Sink or to another addressable object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.apiVersion) == has(self.kind)", "apiVersion and kind must be set together; without them, ref is a Sink"))]
pub struct DestinationRef {
    /// Group and version of an addressable object: one with a URL in its status, at status.address.url, such as
    /// serving.knative.dev/v1. Default: weir.dev/v1alpha1, a Sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_api_version")]
    pub api_version: Option<String>,

    /// Kind of the object, such as Service of serving.knative.dev/v1. The controller must be granted access to the kind
    /// (the status shows how). Default: Sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: Option<String>,

    /// Name of the Sink or of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// Namespace of the Sink. A namespace other than the Trigger's must be allowed by the Sink's allowedNamespaces.
    /// Another kind of object must be in the Trigger's namespace. Default: the Trigger's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
}

/// A reference to an object in the same namespace that has a URL in its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressableRef {
    /// Group and version of the object, such as serving.knative.dev/v1.
    #[schemars(schema_with = "super::schema::api_version")]
    pub api_version: String,

    /// Kind of the object, such as Service of serving.knative.dev/v1. The controller must be granted access to the kind
    /// (the Sink's status shows how).
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: String,

    /// Name of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// A Service, and where to post events to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceTarget {
    /// Name of the Service. One of type ExternalName needs the operator's permission.
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
