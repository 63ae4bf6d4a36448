//! A Trigger's transform in a manifest.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes made to each event just before it is sent. Filters, dead letters and other Triggers see the original event.
/// Values may contain ${EXPRESSION}, a CEL expression as in a cel filter, such as ${event.source} or
/// ${data.order.id}; $${ stands for the text ${. An event for which an expression fails becomes a dead letter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransformSpec {
    /// Changes of context attributes and extensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<TransformAttributes>,

    /// New data: a template of any JSON value. A string that is exactly one ${EXPRESSION} becomes the value of the
    /// expression, with its JSON type; in a longer string, the value is inserted as text. Names of members are taken
    /// as they are. The datacontenttype becomes application/json unless attributes.set says otherwise. For example:
    ///   data:
    ///     id: ${data.order.id}
    ///     total: ${data.order.total}
    ///     skus: ${data.order.lines.map(l, l.sku)}
    ///     note: order ${data.order.id} of ${event.source}
    /// Default: the data stays as it is, byte for byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::any_json")]
    pub data: Option<Value>,
}

/// Changes of context attributes and extensions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.set) || has(self.remove)", "at least one of set and remove must be set"))]
pub struct TransformAttributes {
    /// Attributes to set, with their values, for example type: com.example.order.v2, or region: ${event.source}. All
    /// but specversion, traceparent, tracestate and names that begin with weir can be set. An extension that is
    /// exactly one ${EXPRESSION} may be a Boolean or an integer of 32 bits; every other value is text. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 4096}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$') && name != 'data')", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['specversion', 'traceparent', 'tracestate'] || name.startsWith('weir'))", "specversion, traceparent, tracestate and names that begin with weir cannot be set")
    )]
    pub set: BTreeMap<String, String>,

    /// Optional attributes and extensions to remove. Those that an event does not have are ignored. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$') && name != 'data')", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['id', 'source', 'type', 'specversion', 'traceparent', 'tracestate'] || name.startsWith('weir'))", "id, source, type, specversion, traceparent, tracestate and names that begin with weir cannot be removed")
    )]
    pub remove: Vec<String>,
}
