//! JSON merge patches (RFC 7396).

use serde_json::{Map, Value};

/// Returns the patch that makes one value of the other. It cannot express a member that is null.
pub(super) fn merge_patch(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else {
        return after.clone();
    };
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    let mut patch: Map<String, Value> = removed.map(|name| (name.clone(), Value::Null)).collect();
    for (name, value) in after {
        match before.get(name) {
            Some(same) if same == value => {}
            Some(other) => drop(patch.insert(name.clone(), merge_patch(other, value))),
            None => drop(patch.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn has_what_differs() {
        for (before, after, expected) in [
            (json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3}), json!({"b": 3})),
            (json!({"a": 1, "b": 2}), json!({"b": 2}), json!({"a": null})),
            (
                json!({"s": {"x": 1, "y": [1, 2]}}),
                json!({"s": {"x": 1, "y": [1]}, "n": {"z": 1}}),
                json!({"s": {"y": [1]}, "n": {"z": 1}}),
            ),
            (json!({"a": {"b": 1}}), json!({"a": 5}), json!({"a": 5})),
            (json!({"a": 5}), json!({"a": {"b": 1}}), json!({"a": {"b": 1}})),
            (json!({"a": 1}), json!({"a": 1}), json!({})),
        ] {
            assert_eq!(merge_patch(&before, &after), expected, "{before} {after}");
        }
    }
}
