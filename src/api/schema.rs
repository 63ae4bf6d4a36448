//! Parts of the OpenAPI schema that the derive macros cannot express.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use super::headers::{RESERVED_HEADERS, RESERVED_PREFIXES};

/// Any JSON value.
pub(super) fn any_json(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-preserve-unknown-fields": true})
}

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

/// An optional size in bytes, in the format of Kubernetes quantities: `512Mi`, `10Gi`, `2G`.
pub(super) fn optional_size(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 20,
        "nullable": true,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[0-9]{1,12}(k|M|G|T|Ki|Mi|Gi|Ti)?$')",
            "message": "must be a size, such as 512Mi or 10Gi",
        }],
    })
}

/// Group and version of a kind that is not part of Kubernetes' core, such as `serving.knative.dev/v1`.
pub(super) fn api_version(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 253,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/v[a-z0-9]+$')",
            "message": "must be GROUP/VERSION, such as serving.knative.dev/v1; for a Service of Kubernetes itself, use service",
        }],
    })
}

/// An optional [`api_version`].
pub(super) fn optional_api_version(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = api_version(generator);
    schema.insert("nullable".to_owned(), Value::Bool(true));
    schema
}

/// Patterns of a URI's host and port, in CEL.
const HOST: &str = r"([^\\[\\]/?#@:]+|\\[[0-9A-Fa-f:.]+\\])";
const PORT: &str = "0*([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";

/// An absolute `https` URI, like [`optional_http_uri`].
pub(super) fn https_uri(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 2048,
        "x-kubernetes-validations": [{
            "rule": format!("self.matches('^https://{HOST}(:({PORT})?)?([/?][^#]*)?$')"),
            "message": "must be an absolute https URI with a host; a port must be from 1 to 65535, and a user name or a \
                        fragment is not allowed",
        }],
    })
}

/// An optional absolute `http` or `https` URI. Rejects what the controller would reject, as far as a pattern can
/// express it.
pub(super) fn optional_http_uri(_: &mut SchemaGenerator) -> Schema {
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

/// Conditions, merged by `type` when several managers write them, as Kubernetes describes them. Its own schemas come
/// only with a feature that generates one for each of its types.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "items": {
            "description": "Condition contains details for one aspect of the current state of this API Resource.",
            "type": "object",
            "properties": {
                "lastTransitionTime": {
                    "description": "lastTransitionTime is the last time the condition transitioned from one status to another. This should be \
                                    when the underlying condition changed.  If that is not known, then using the time when the API field \
                                    changed is acceptable.",
                    "type": "string",
                    "format": "date-time",
                },
                "message": {
                    "description": "message is a human readable message indicating details about the transition. This may be an empty string.",
                    "type": "string",
                },
                "observedGeneration": {
                    "description": "observedGeneration represents the .metadata.generation that the condition was set based upon. For \
                                    instance, if .metadata.generation is currently 12, but the .status.conditions[x].observedGeneration is \
                                    9, the condition is out of date with respect to the current state of the instance.",
                    "type": "integer",
                    "format": "int64",
                },
                "reason": {
                    "description": "reason contains a programmatic identifier indicating the reason for the condition's last transition. \
                                    Producers of specific condition types may define expected values and meanings for this field, and \
                                    whether the values are considered a guaranteed API. The value should be a CamelCase string. This field \
                                    may not be empty.",
                    "type": "string",
                },
                "status": {
                    "description": "status of the condition, one of True, False, Unknown.",
                    "type": "string",
                },
                "type": {
                    "description": "type of condition in CamelCase or in foo.example.com/CamelCase.",
                    "type": "string",
                },
            },
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        },
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
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
