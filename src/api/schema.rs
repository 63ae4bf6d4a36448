//! Pieces of OpenAPI schema that the derive cannot express.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::sink::{RESERVED_HEADERS, RESERVED_PREFIXES};

/// A duration as Kubernetes users write it, where the field may be left out: `500ms`, `30s`, `1h30m`. The number of
/// digits is bounded because kube's duration panics on one that the standard library's cannot hold.
pub(super) fn optional_duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 32,
        "nullable": true,
        "x-kubernetes-validations": [{
            "rule": r"self.matches('^([0-9]{1,8}([.][0-9]{1,8})?(ms|s|m|h))+$')",
            "message": "must be a duration with the units ms, s, m or h, such as 500ms, 30s, 1h30m, or 168h for a week",
        }],
    })
}

/// The same, where zero makes no sense. `duration()` of CEL fails for what Go cannot hold, and digits do not.
pub(super) fn optional_positive_duration(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = optional_duration(generator);
    let longer_than_zero = serde_json::json!({
        "rule": "self.matches('[1-9]') || !self.matches('[0-9]')",
        "message": "must be longer than zero, such as 500ms or 30s; leave it out for the default",
    });
    if let Some(Value::Array(rules)) = schema.get_mut("x-kubernetes-validations") {
        rules.push(longer_than_zero);
    }
    schema
}

/// An absolute `http` or `https` URI, where the field may be left out. What the compiler refuses is refused here too
/// as far as a pattern can tell.
pub(super) fn optional_http_uri(_: &mut SchemaGenerator) -> Schema {
    const HOST: &str = r"([^\\[\\]/?#@:]+|\\[[0-9A-Fa-f:.]+\\])";
    const PORT: &str =
        "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 2048,
        "nullable": true,
        "x-kubernetes-validations": [{
            "rule": format!("self.matches('^https?://{HOST}(:({PORT})?)?([/?][^#]*)?$')"),
            "message": "must be an absolute http or https URI with a host; a port must be from 1 to 65535, and a user name \
                        or a fragment is not allowed",
        }],
    })
}

/// The conditions, merged by `type` when several managers write them.
pub(super) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema =
        generator.subschema_for::<Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>>();
    schema.insert("x-kubernetes-list-type".to_owned(), "map".into());
    schema.insert(
        "x-kubernetes-list-map-keys".to_owned(),
        serde_json::json!(["type"]),
    );
    schema
}

/// The name of a header that a Sink may set: a token of HTTP, and none of the reserved ones.
pub(super) fn header_name(_: &mut SchemaGenerator) -> Schema {
    let prefixes = RESERVED_PREFIXES.iter().map(|prefix| format!("{prefix}.*"));
    let names = RESERVED_HEADERS.iter().map(|&name| name.to_owned());
    let reserved: Vec<_> = prefixes.chain(names).collect();
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "pattern": r"^[-!#$%&'*+.^_`|~0-9A-Za-z]+$",
        "x-kubernetes-validations": [{
            "rule": format!("!self.matches('(?i)^({})$')", reserved.join("|")),
            "message": "is a header that Weir or HTTP itself sets",
        }],
    })
}
