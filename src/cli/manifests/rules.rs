//! The CEL rules of a schema (`x-kubernetes-validations`), evaluated as the API server does when an object is created:
//! each on the value that it stands at, after the defaults. A rule that compares with `oldSelf` does not apply then.
//!
//! The CEL library is the one that filters stand on. Two functions that it has only together with crates that nothing
//! else needs are here, as far as our schemas use them: `matches` and `duration`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use cel::{Context, ExecutionError, Program, Value as CelValue, extractors::This, objects::Key};
use regex::Regex;
use serde_json::Value;

/// The rules of a schema and of what is in it, compiled.
pub struct Rules {
    root: SchemaRules,
    context: Context<'static, 'static>,
}

/// A broken rule.
pub struct Broken {
    /// Where, below the value that was checked: `filters[0].exact`, or nothing for the value itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// The rules at one place of a schema, and those below it.
#[derive(Default)]
struct SchemaRules {
    rules: Vec<Rule>,
    properties: BTreeMap<String, Self>,
    additional: Option<Box<Self>>,
    items: Option<Box<Self>>,
}

struct Rule {
    text: String,
    message: Option<String>,
    /// The error is a mistake in our own schemas, which a test finds.
    program: Result<Program, String>,
}

impl Rules {
    pub fn of(schema: &Value) -> Self {
        let mut context = Context::default();
        let patterns = Mutex::<HashMap<String, Option<Regex>>>::default();
        let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
            let mut patterns = patterns.lock().unwrap_or_else(PoisonError::into_inner);
            patterns
                .entry(pattern.to_string())
                .or_insert_with(|| Regex::new(&pattern).ok())
                .as_ref()
                .map(|pattern| pattern.is_match(&text))
                .ok_or_else(|| ExecutionError::function_error("matches", format!("{pattern} is not valid")))
        };
        let duration = |text: Arc<String>| {
            nanoseconds(&text)
                .ok_or_else(|| ExecutionError::function_error("duration", format!("{text:?} is not valid")))
        };
        let added = [
            context.add_function("matches", matches),
            context.add_function("duration", duration),
        ];
        debug_assert!(added.iter().all(Result::is_ok), "{added:?}");
        Self {
            root: SchemaRules::of(schema),
            context,
        }
    }

    /// The rules that a value breaks, whose defaults are filled in.
    pub fn broken_by(&self, value: &Value) -> Vec<Broken> {
        let mut broken = Vec::new();
        self.root.check(value, String::new(), &self.context, &mut broken);
        broken
    }
}

#[cfg(test)]
impl Rules {
    /// What is wrong with the rules themselves: their syntax, or a function that is not there.
    pub fn mistakes(&self) -> Vec<String> {
        const FUNCTIONS: &[&str] = &["duration", "int", "matches", "size", "startsWith", "string"];
        let known = |name: &str| FUNCTIONS.contains(&name) || !name.chars().all(char::is_alphabetic);
        let mut mistakes = Vec::new();
        let mut places = vec![&self.root];
        while let Some(place) = places.pop() {
            for rule in &place.rules {
                match &rule.program {
                    Err(error) => mistakes.push(format!("{}: {error}", rule.text)),
                    Ok(program) => {
                        let references = program.references();
                        let unknown = references.functions().into_iter().filter(|name| !known(name));
                        mistakes.extend(unknown.map(|name| format!("{}: {name} is not known", rule.text)));
                    }
                }
            }
            places.extend(place.properties.values());
            places.extend(
                place
                    .additional
                    .as_deref()
                    .into_iter()
                    .chain(place.items.as_deref()),
            );
        }
        mistakes
    }
}

impl SchemaRules {
    fn of(schema: &Value) -> Self {
        let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        let properties = schema.get("properties").and_then(Value::as_object);
        let below = |name| {
            schema
                .get(name)
                .filter(|schema| schema.is_object())
                .map(|schema| Box::new(Self::of(schema)))
        };
        Self {
            rules: rules.into_iter().flatten().filter_map(Rule::of).collect(),
            properties: properties
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Self::of(schema)))
                .collect(),
            additional: below("additionalProperties"),
            items: below("items"),
        }
    }

    fn check(&self, value: &Value, path: String, context: &Context<'_, '_>, broken: &mut Vec<Broken>) {
        if !self.rules.is_empty() {
            let mut scope = context.new_inner_scope();
            scope.add_variable_from_value("self", in_cel(value));
            let messages = self.rules.iter().filter_map(|rule| rule.broken_in(&scope));
            broken.extend(messages.map(|message| Broken {
                path: path.clone(),
                message,
            }));
        }
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    let Some(place) = self.properties.get(name).or(self.additional.as_deref()) else {
                        continue;
                    };
                    let separator = if path.is_empty() { "" } else { "." };
                    place.check(member, format!("{path}{separator}{name}"), context, broken);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(place) = &self.items {
                        place.check(item, format!("{path}[{index}]"), context, broken);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

impl Rule {
    /// `None` for one that compares with what was there before.
    fn of(rule: &Value) -> Option<Self> {
        let text = rule.get("rule").and_then(Value::as_str)?;
        let program = Program::compile(text).map_err(|error| error.to_string());
        if program
            .as_ref()
            .is_ok_and(|program| program.references().has_variable("oldSelf"))
        {
            return None;
        }
        Some(Self {
            text: text.to_owned(),
            message: rule.get("message").and_then(Value::as_str).map(str::to_owned),
            program,
        })
    }

    /// What to say, where it does not hold or cannot be evaluated.
    fn broken_in(&self, scope: &Context<'_, '_>) -> Option<String> {
        let result = match &self.program {
            Ok(program) => program.execute(scope).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match result {
            Ok(CelValue::Bool(true)) => None,
            Ok(CelValue::Bool(false)) => Some(
                self.message
                    .clone()
                    .unwrap_or_else(|| format!("failed rule: {}", self.text)),
            ),
            Ok(_) => Some(format!("the rule gives no boolean (rule: {})", self.text)),
            Err(error) => Some(format!("rule evaluation error: {error} (rule: {})", self.text)),
        }
    }
}

/// A value with the defaults of its schema filled in.
pub fn with_defaults(schema: &Value, value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = schema
                .get("additionalProperties")
                .filter(|schema| schema.is_object());
            let mut filled = members.clone();
            for (name, member) in &mut filled {
                if let Some(schema) = properties
                    .and_then(|properties| properties.get(name))
                    .or(additional)
                {
                    *member = with_defaults(schema, member);
                }
            }
            for (name, schema) in properties.into_iter().flatten() {
                if let Some(default) = schema.get("default")
                    && !filled.contains_key(name)
                {
                    filled.insert(name.clone(), default.clone());
                }
            }
            Value::Object(filled)
        }
        Value::Array(items) => match schema.get("items") {
            Some(schema) => items.iter().map(|item| with_defaults(schema, item)).collect(),
            None => value.clone(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// Numbers without a fraction are integers, as they are in a schema's rules.
fn in_cel(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(value) => CelValue::Bool(*value),
        Value::Number(number) => number.as_i64().map_or_else(
            || CelValue::Float(number.as_f64().unwrap_or_default()),
            CelValue::Int,
        ),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(in_cel).collect::<Vec<_>>().into(),
        Value::Object(members) => members
            .iter()
            .map(|(name, member)| (Key::from(name.as_str()), in_cel(member)))
            .collect::<HashMap<_, _>>()
            .into(),
    }
}

/// How long a duration is that is written as Go does, without a sign: `1h30m`, `1.5s`. `None` if it is written otherwise, or too long.
fn nanoseconds(text: &str) -> Option<i64> {
    const UNITS: [(&str, i64); 4] = [
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let mut rest = text;
    let mut sum = 0_i64;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (name, unit) = UNITS.iter().find(|(name, _)| after.starts_with(name))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let mut length = whole.parse::<i64>().ok()?.checked_mul(*unit)?;
        let mut digit = *unit;
        for c in fraction.chars() {
            digit /= 10;
            length = length.checked_add(digit * i64::from(c.to_digit(10)?))?;
        }
        sum = sum.checked_add(length)?;
        rest = &after[name.len()..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn broken(rule: &str, value: &Value) -> Vec<String> {
        let schema = json!({"x-kubernetes-validations": [{"rule": rule, "message": "broken"}]});
        let broken = Rules::of(&schema).broken_by(value);
        broken.into_iter().map(|broken| broken.message).collect()
    }

    #[test]
    fn a_rule_holds_or_says_its_message() {
        for (rule, value) in [
            ("self > 1", json!(2)),
            ("self > 1.5", json!(2.5)),
            ("self.matches('^[a-z]+$')", json!("abc")),
            ("has(self.a) && !has(self.b)", json!({"a": null})),
            (
                "[has(self.a), has(self.b)].filter(set, set).size() == 1",
                json!({"b": 1}),
            ),
            ("self.all(name, name in ['a', 'b'])", json!({"a": 1, "b": 2})),
            ("self.exists(name, name == 'b')", json!(["a", "b"])),
            ("string(self) == '80' && int(self) == 80", json!(80)),
            ("string(self) == '80' && int(self) == 80", json!("80")),
            (
                "duration(self.a) <= duration(self.b)",
                json!({"a": "90s", "b": "1.5m"}),
            ),
        ] {
            assert!(
                broken(rule, &value).is_empty(),
                "{rule}: {:?}",
                broken(rule, &value)
            );
            assert_eq!(broken(&format!("!({rule})"), &value), ["broken"], "{rule}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_evaluated_is_a_finding() {
        for (rule, value) in [
            ("self >", json!(1)),
            ("self + 1", json!(1)),
            ("self.matches('(')", json!("")),
            ("duration(self) > duration('1s')", json!("soon")),
            ("self.isSorted()", json!([1])),
        ] {
            let found = broken(rule, &value);
            assert!(
                matches!(&*found, [one] if one.contains(rule)),
                "{rule}: {found:?}"
            );
        }
    }

    #[test]
    fn rules_apply_wherever_they_stand() {
        let small = json!({"x-kubernetes-validations": [{"rule": "self < 3", "message": "small"}]});
        let schema = json!({
            "properties": {"list": {"items": small}, "map": {"additionalProperties": small}},
            "x-kubernetes-validations": [{"rule": "self == oldSelf"}, {"rule": "has(self.map)"}],
        });
        let rules = Rules::of(&schema);
        let found = |value: Value| {
            let broken = rules.broken_by(&value).into_iter();
            broken
                .map(|Broken { path, message }| format!("{path}: {message}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(json!({"map": {}})), [""; 0]);
        assert_eq!(
            found(json!({"list": [1, 3]})),
            [": failed rule: has(self.map)", "list[1]: small"]
        );
        assert_eq!(found(json!({"map": {"a": 1, "b": 4}})), ["map.b: small"]);
    }

    #[test]
    fn defaults_are_filled_in_where_something_is_missing() {
        let schema = json!({"properties": {
            "a": {"default": 1},
            "b": {"properties": {"c": {"default": "d"}}},
            "e": {"items": {"properties": {"f": {"default": true}}}},
        }});
        let filled = |value: Value| with_defaults(&schema, &value);
        assert_eq!(filled(json!({})), json!({"a": 1}));
        assert_eq!(
            filled(json!({"a": 2, "b": {}, "e": [{}, {"f": false}]})),
            json!({"a": 2, "b": {"c": "d"}, "e": [{"f": true}, {"f": false}]})
        );
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("1ms", Some(1_000_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1.5s250ms", Some(1_750_000_000)),
            ("0.12345678s", Some(123_456_780)),
            ("", None),
            ("1", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("99999999h", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text}");
        }
    }
}
