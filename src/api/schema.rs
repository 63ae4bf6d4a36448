//! Parts of the OpenAPI schema that the derive macros cannot express.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::headers::{RESERVED_HEADERS, RESERVED_PREFIXES};

/// An optional duration in the Kubernetes format: `500ms`, `30s`, `1h30m`. The number of digits is bounded because
/// kube's duration panics on values that `std::time::Duration` cannot hold.
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

/// An optional duration greater than zero. The rule tests the digits, since CEL's `duration()` fails for durations
/// that Go cannot represent.
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

/// An optional absolute `http` or `https` URI. Rejects what the controller would reject, as far as a pattern can
/// express it.
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

/// Conditions, merged by `type` when several managers write them.
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

/// Name of a header that a Sink may set: an HTTP token that is not reserved.
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
            "message": "is a reserved header, set by Weir or by HTTP itself",
        }],
    })
}
