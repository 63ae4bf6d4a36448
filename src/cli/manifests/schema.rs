//! Checks values against the schemas of the custom resource definitions, with the same results as the API server:
//! rejects unknown fields like `kubectl apply`, fills in defaults, and evaluates the CEL rules.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use regex::Regex;
use serde_json::Value;

use super::{
    Issue, Position,
    document::{DocumentNode, Tree},
    rules::{Broken, Rules, with_defaults},
};

/// The schema of a kind's `spec`, prepared for checking.
pub struct Schema {
    spec: Value,
    rules: Rules,
    patterns: RefCell<HashMap<String, Option<Regex>>>,
}

/// Path of a value in its manifest, such as `spec.filters[0].exact`.
struct Path<'a> {
    above: Option<&'a Self>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Member(&'a str),
    Item(usize),
}

impl Path<'_> {
    fn member<'a>(&'a self, name: &'a str) -> Path<'a> {
        Path {
            above: Some(self),
            segment: Segment::Member(name),
        }
    }

    fn item(&self, index: usize) -> Path<'_> {
        Path {
            above: Some(self),
            segment: Segment::Item(index),
        }
    }
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(above) = self.above {
            above.fmt(f)?;
        }
        match self.segment {
            Segment::Member(name) if self.above.is_none() => f.write_str(name),
            Segment::Member(name) => write!(f, ".{name}"),
            Segment::Item(index) => write!(f, "[{index}]"),
        }
    }
}

impl Schema {
    /// Returns the schema of a definition's first version. Weir's own definitions always have one.
    pub fn of(definition: &CustomResourceDefinition) -> Option<Self> {
        let schema = definition
            .spec
            .versions
            .first()?
            .schema
            .as_ref()?
            .open_api_v3_schema
            .as_ref()?;
        let spec = serde_json::to_value(schema)
            .ok()?
            .pointer_mut("/properties/spec")?
            .take();
        Some(Self {
            rules: Rules::of(&spec),
            spec,
            patterns: RefCell::default(),
        })
    }

    /// Checks a `spec` and returns it with defaults filled in. Appends errors to `findings`.
    pub fn check(&self, spec: &DocumentNode, position: Position, findings: &mut Vec<Issue>) -> Value {
        let path = Path {
            above: None,
            segment: Segment::Member("spec"),
        };
        let before = findings.len();
        self.value(&self.spec, spec, position, &path, findings);
        let value = with_defaults(&self.spec, &spec.to_json());
        // Like the API server, evaluates rules only on structurally valid values.
        if findings.len() == before {
            for Broken { path: below, message } in self.rules.broken_by(&value) {
                let place = if below.is_empty() {
                    position
                } else {
                    spec.locate(&below)
                };
                let separator = if below.is_empty() || below.starts_with('[') {
                    ""
                } else {
                    "."
                };
                findings.push(Issue {
                    position: place,
                    message: format!("spec{separator}{below}: {message}"),
                });
            }
        }
        value
    }

    fn value(
        &self,
        schema: &Value,
        node: &DocumentNode,
        key: Position,
        path: &Path<'_>,
        findings: &mut Vec<Issue>,
    ) {
        let mut refuse = |position: Position, message: String| {
            findings.push(Issue {
                position,
                message: format!("{path}: {message}"),
            });
        };
        let text_of = |name: &str| schema.get(name).and_then(Value::as_str);
        let number_of = |name: &str| schema.get(name).and_then(Value::as_f64);
        let count_of = |name: &str| schema.get(name).and_then(Value::as_u64);
        let is_set = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);

        if is_set("x-kubernetes-int-or-string") {
            if !matches!(&node.tree, Tree::String(_)) && !is_integer(node) {
                refuse(
                    node.position,
                    format!("must be an integer or a string, not {}", node.kind()),
                );
            }
            return;
        }
        let fits = match text_of("type") {
            Some("object") => matches!(node.tree, Tree::Map(_)),
            Some("array") => matches!(node.tree, Tree::List(_)),
            Some("string") => matches!(node.tree, Tree::String(_)),
            Some("boolean") => matches!(node.tree, Tree::Bool(_)),
            Some("integer") => is_integer(node),
            Some("number") => matches!(node.tree, Tree::Number(_)),
            _ => true,
        };
        if !fits {
            let wanted = text_of("type").map_or("another type", described);
            let hint = match (&node.tree, text_of("type")) {
                (Tree::Bool(_) | Tree::Number(_), Some("string")) => "; put it in quotes",
                _ => "",
            };
            // An absent value has no position of its own.
            let place = if node.is_null() { key } else { node.position };
            refuse(place, format!("must be {wanted}, not {}{hint}", node.kind()));
            return;
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
            && !allowed.contains(&node.to_json())
        {
            let allowed: Vec<_> = allowed
                .iter()
                .filter(|value| !value.is_null())
                .map(plain)
                .collect();
            refuse(
                node.position,
                format!(
                    "must be one of {}, not {}",
                    allowed.join(", "),
                    plain(&node.to_json())
                ),
            );
        }
        match &node.tree {
            Tree::Null | Tree::Bool(_) => {}
            Tree::Number(number) => {
                let number = number.as_f64().unwrap_or_default();
                if let Some(minimum) = number_of("minimum").filter(|minimum| number < *minimum) {
                    refuse(node.position, format!("must be {minimum} or more"));
                }
                if let Some(maximum) = number_of("maximum").filter(|maximum| number > *maximum) {
                    refuse(node.position, format!("must be {maximum} or less"));
                }
            }
            Tree::String(text) => {
                let length = text.chars().count() as u64;
                if count_of("minLength").is_some_and(|minimum| length < minimum) {
                    refuse(node.position, "must not be empty".to_owned());
                } else if let Some(maximum) = count_of("maxLength").filter(|maximum| length > *maximum) {
                    refuse(
                        node.position,
                        format!("must have at most {maximum} characters, not {length}"),
                    );
                } else if let Some(pattern) =
                    text_of("pattern").filter(|pattern| !self.matches(pattern, text))
                {
                    refuse(node.position, format!("{text:?} must match {pattern}"));
                }
            }
            Tree::List(items) => {
                let count = items.len() as u64;
                if count_of("minItems").is_some_and(|minimum| count < minimum) {
                    refuse(node.position, "must have at least one item".to_owned());
                }
                if let Some(maximum) = count_of("maxItems").filter(|maximum| count > *maximum) {
                    refuse(
                        node.position,
                        format!("must have at most {maximum} items, not {count}"),
                    );
                }
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.value(schema, item, item.position, &path.item(index), findings);
                    }
                }
            }
            Tree::Map(entries) => {
                let entries: Vec<_> = entries.iter().filter(|(_, value)| !value.is_null()).collect();
                let count = entries.len() as u64;
                if let Some(minimum) = count_of("minProperties").filter(|minimum| count < *minimum) {
                    refuse(key, format!("must have at least {minimum} of its fields"));
                }
                let properties = schema.get("properties").and_then(Value::as_object);
                if let Some(maximum) = count_of("maxProperties").filter(|maximum| count > *maximum)
                    // If the fields have names and there is a rule, the rule gives the better message.
                    && (properties.is_none() || schema.get("x-kubernetes-validations").is_none())
                {
                    let what = if properties.is_some() {
                        "of its fields"
                    } else {
                        "entries"
                    };
                    refuse(key, format!("must have at most {maximum} {what}, not {count}"));
                }
                let required = schema
                    .get("required")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                for name in required.filter_map(Value::as_str) {
                    let has_default = properties
                        .and_then(|properties| properties.get(name))
                        .is_some_and(|schema| schema.get("default").is_some());
                    if node.get(name).is_none() && !has_default {
                        refuse(key, format!("{name} is missing"));
                    }
                }
                let additional = schema
                    .get("additionalProperties")
                    .filter(|schema| schema.is_object());
                for (key, value) in entries {
                    let path = path.member(&key.name);
                    if let Some(schema) = properties
                        .and_then(|properties| properties.get(&key.name))
                        .or(additional)
                    {
                        self.value(schema, value, key.position, &path, findings);
                    } else if !is_set("x-kubernetes-preserve-unknown-fields") {
                        let known = properties.into_iter().flat_map(|properties| properties.keys());
                        let message =
                            format!("{path}: {}", unknown_field(&key.name, known.map(String::as_str)));
                        findings.push(Issue {
                            position: key.position,
                            message,
                        });
                    }
                }
            }
        }
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        let mut patterns = self.patterns.borrow_mut();
        let pattern = patterns
            .entry(pattern.to_owned())
            .or_insert_with(|| Regex::new(pattern).ok());
        pattern.as_ref().is_none_or(|pattern| pattern.is_match(text))
    }
}

/// Error message for an unknown field, suggesting the most similar known one.
pub fn unknown_field<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: BTreeSet<_> = known.collect();
    let nearest = known
        .iter()
        .map(|known| (distance(&name.to_lowercase(), &known.to_lowercase()), known))
        .min()
        .filter(|(distance, _)| *distance <= 1 + name.chars().count() / 4);
    match nearest {
        Some((_, nearest)) => format!("unknown field; did you mean {nearest}?"),
        None if known.is_empty() => "unknown field".to_owned(),
        None => format!(
            "unknown field; there are {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Edit distance: the number of letters to change, add or remove.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(&b) {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = *cell;
            left = substituted.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

fn is_integer(node: &DocumentNode) -> bool {
    match &node.tree {
        Tree::Number(number) => {
            !number.is_f64() || number.as_f64().is_some_and(|number| number.fract() == 0.0)
        }
        Tree::Null | Tree::Bool(_) | Tree::String(_) | Tree::List(_) | Tree::Map(_) => false,
    }
}

fn described(r#type: &str) -> &str {
    match r#type {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "an integer",
        "number" => "a number",
        other => other,
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::custom_resource_definitions;

    #[test]
    fn checks_every_keyword_in_the_schemas() {
        const KNOWN: &[&str] = &[
            "type",
            "enum",
            "pattern",
            "minLength",
            "maxLength",
            "minimum",
            "maximum",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "required",
            "properties",
            "additionalProperties",
            "items",
            "default",
            "description",
            "nullable",
            "x-kubernetes-int-or-string",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-validations",
            // Redundant: enforced by the type and its bounds.
            "format",
        ];
        fn walk(schema: &Value, path: &str) {
            for (keyword, value) in schema.as_object().unwrap() {
                assert!(
                    KNOWN.contains(&keyword.as_str()),
                    "{path}: {keyword} is not checked"
                );
                match keyword.as_str() {
                    "properties" => {
                        for (name, schema) in value.as_object().unwrap() {
                            walk(schema, &format!("{path}.{name}"));
                        }
                    }
                    "items" | "additionalProperties" => walk(value, &format!("{path}[]")),
                    "pattern" => drop(Regex::new(value.as_str().unwrap()).unwrap()),
                    _ => {}
                }
            }
        }
        for definition in custom_resource_definitions() {
            let schema = Schema::of(&definition).unwrap();
            walk(&schema.spec, "spec");
            assert_eq!(schema.rules.mistakes(), [""; 0]);
        }
    }

    #[test]
    fn suggests_the_intended_field() {
        let known = ["sink", "broker", "filters", "suspend"];
        for (name, answer) in [
            ("sinc", "did you mean sink?"),
            ("filter", "did you mean filters?"),
            ("Broker", "did you mean broker?"),
            ("x", "there are broker, filters, sink, suspend"),
        ] {
            let message = unknown_field(name, known.into_iter());
            assert!(message.ends_with(answer), "{name}: {message}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
    }
}
