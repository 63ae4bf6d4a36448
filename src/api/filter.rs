//! Filters in a manifest: the dialects of the CloudEvents Subscriptions API, and CEL.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Maximum nesting depth of `all`, `any` and `not`. A Kubernetes schema cannot be recursive, so the schema is
/// expanded to this depth.
pub const NESTED_FILTERS: usize = 3;

/// Maximum number of children of `all` and `any`, and of entries in a map of attributes.
const MAX_CHILDREN: usize = 32;

/// Maximum length of a `sql` or `cel` expression, in characters.
pub const MAX_EXPRESSION: usize = 4096;

/// A filter, in exactly one dialect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Filter {
    /// Every named attribute equals its value.
    Exact(BTreeMap<String, String>),
    /// Every named attribute starts with its value.
    Prefix(BTreeMap<String, String>),
    /// Every named attribute ends with its value.
    Suffix(BTreeMap<String, String>),
    /// Every child matches.
    All(Vec<Filter>),
    /// At least one child matches.
    Any(Vec<Filter>),
    /// The child does not match.
    Not(Box<Filter>),
    /// The CESQL expression evaluates to true, without an error.
    Sql(String),
    /// The CEL expression evaluates to true, without an error.
    Cel(String),
}

impl JsonSchema for Filter {
    fn schema_name() -> Cow<'static, str> {
        "Filter".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = expression(NESTED_FILTERS);
        schema.insert(
            "x-kubernetes-validations".to_owned(),
            json!([{
                "rule": "[has(self.exact), has(self.prefix), has(self.suffix), has(self.all), has(self.any), \
                         has(self.not), has(self.sql), has(self.cel)].filter(set, set).size() == 1",
                "message": "a filter has exactly one of: exact, prefix, suffix, all, any, not, sql, cel \
                            (to combine several, list them separately or use all or any)",
            }]),
        );
        schema
    }
}

fn expression(depth: usize) -> Schema {
    let mut properties = Map::new();
    for (dialect, verb) in [
        ("exact", "equals"),
        ("prefix", "starts with"),
        ("suffix", "ends with"),
    ] {
        properties.insert(dialect.to_owned(), attributes(dialect, verb, depth));
    }
    properties.insert("sql".to_owned(), sql(depth));
    properties.insert("cel".to_owned(), cel(depth));
    if depth > 0 {
        let child = expression(depth - 1);
        properties.insert(
            "all".to_owned(),
            children("Matches if every one of these filters matches.", &child),
        );
        properties.insert(
            "any".to_owned(),
            children("Matches if at least one of these filters matches.", &child),
        );
        let mut not = child;
        not.insert(
            "description".to_owned(),
            "Matches if this filter does not match.".into(),
        );
        properties.insert("not".to_owned(), not.into());
    }
    json_schema!({
        "type": "object",
        "description": "A filter in exactly one dialect: one of the CloudEvents Subscriptions API, or CEL.",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": properties,
    })
}

fn sql(depth: usize) -> Value {
    // The schema repeats this description some forty times: only the outermost, which is read first, has the full
    // text.
    let more = if depth == NESTED_FILTERS {
        " Supported: attributes, 'strings', integers, TRUE and FALSE; = != < <= > >=, + - * / %, AND, OR, XOR, NOT, \
         LIKE with % and _, IN (...), EXISTS; and the functions ABS, BOOL, CONCAT, CONCAT_WS, INT, LEFT, LENGTH, \
         LOWER, RIGHT, STRING, SUBSTRING, TRIM, UPPER. A missing attribute is an error, and an event for which the \
         expression fails does not match: test with EXISTS first. Mixing AND, OR and XOR requires \
         parentheses. The Trigger's status reports the column of a syntax error."
    } else {
        ""
    };
    json!({
        "type": "string",
        "description": format!(
            "Matches if this CESQL expression (CloudEvents SQL 1.0) is true, for example \
             sql: \"type LIKE 'com.example.%' AND (NOT EXISTS priority OR priority > 5)\".{more}"
        ),
        "minLength": 1,
        "maxLength": MAX_EXPRESSION,
    })
}

fn cel(depth: usize) -> Value {
    let more = if depth == NESTED_FILTERS {
        " The variables are event, whose fields are the attributes, such as event.type, and event.data, and data, which \
         is short for event.data: the data of an event whose content type is JSON. Supported: has(event.field), startsWith, endsWith, contains, \
         matches('regular expression'), lowerAscii, upperAscii, trim, size, string, int, uint, double, bool, \
         timestamp, value in list, cidr('10.0.0.0/8').containsIP(text), and exists, all, exists_one, map and filter, as \
         in data.items.exists(i, i.sku == 'X'). A missing \
         field or a type mismatch is an error, and an event for which the expression fails does not match: test \
         with has first. The Trigger's status reports errors in the expression."
    } else {
        ""
    };
    json!({
        "type": "string",
        "description": format!(
            "Matches if this CEL expression is true, for example \
             cel: \"event.type.startsWith('com.example.') && event.data.amount > 100\".{more}"
        ),
        "minLength": 1,
        "maxLength": MAX_EXPRESSION,
    })
}

fn attributes(dialect: &str, verb: &str, depth: usize) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": format!(
            "Matches if every attribute named here {verb} its value, for example \
             {dialect}: {{type: com.example.order.created}}. Names are CloudEvents attributes or extensions; \
             values are case-sensitive. An event that lacks the attribute does not match."
        ),
        "minProperties": 1,
        "maxProperties": MAX_CHILDREN,
        "additionalProperties": { "type": "string", "minLength": 1, "maxLength": 1024 },
    });
    // The API server multiplies the estimated cost of a rule by the sizes of the lists around it, so deeper levels
    // have no budget for this one. There the controller reports the error.
    if depth + 1 >= NESTED_FILTERS {
        schema["x-kubernetes-validations"] = json!([{
            "rule": "self.all(name, name.matches('^[a-z0-9]+$'))",
            "message": "attribute names are lower-case letters and digits, such as type, source or myextension",
        }]);
    }
    schema
}

fn children(description: &str, child: &Schema) -> Value {
    json!({
        "type": "array",
        "description": description,
        "minItems": 1,
        "maxItems": MAX_CHILDREN,
        "items": child,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_is_one_key() {
        let filter: Filter = serde_json::from_value(
            json!({"all": [{"exact": {"type": "a"}}, {"not": {"prefix": {"source": "/"}}}]}),
        )
        .unwrap();
        let Filter::All(children) = filter else {
            panic!("{filter:?}")
        };
        assert_eq!(children.len(), 2);
        assert_eq!(
            serde_json::from_value::<Filter>(json!({"sql": "EXISTS subject"})).unwrap(),
            Filter::Sql("EXISTS subject".to_owned())
        );
        assert_eq!(
            serde_json::from_value::<Filter>(json!({"cel": "has(event.subject)"})).unwrap(),
            Filter::Cel("has(event.subject)".to_owned())
        );
        assert!(serde_json::from_value::<Filter>(json!({"exact": {}, "prefix": {}})).is_err());
        assert!(serde_json::from_value::<Filter>(json!({"exactly": {}})).is_err());
    }
}
