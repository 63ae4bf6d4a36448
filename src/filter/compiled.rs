//! A Trigger's filters, checked and ready to be evaluated.

use std::collections::BTreeMap;

use super::{
    Expression,
    sql::{self, ParseError, Type},
};
use crate::cloudevents::Event;

/// How deep expressions may be nested, so that neither compiling nor evaluating can exhaust the stack.
const MAX_DEPTH: usize = 16;

/// A list of filter expressions that must all hold; an empty list lets every event pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<Clause>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Clause {
    Exact(Vec<Term>),
    Prefix(Vec<Term>),
    Suffix(Vec<Term>),
    All(Vec<Clause>),
    Any(Vec<Clause>),
    Not(Box<Clause>),
    Sql(sql::Expression),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    attribute: Box<str>,
    value: Box<str>,
}

/// Why filters cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct CompileError {
    /// Where in the list, for example `filters[1].all[0].exact`.
    pub path: String,
    /// What is wrong there.
    pub problem: CompileProblem,
}

/// What is wrong with one expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileProblem {
    /// `exact`, `prefix` or `suffix` without an entry.
    #[error("names no attribute: at least one is needed")]
    NoAttribute,
    /// `all` or `any` without a child.
    #[error("has no filter in it: at least one is needed")]
    NoChild,
    /// No attribute can have this name.
    #[error(
        "{0:?} is no attribute name: names are lower-case letters and digits, and data is not an attribute"
    )]
    AttributeName(String),
    /// An empty value.
    #[error("the value for attribute {0} is empty: leave the attribute out instead")]
    EmptyValue(String),
    /// Nested too deep.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No CESQL expression.
    #[error(transparent)]
    Sql(#[from] ParseError),
    /// A CESQL expression that no event can pass, since its value is no Boolean.
    #[error("gives a value of type {0}, which lets no event pass: compare it with something")]
    NotBoolean(Type),
}

impl Filter {
    /// Compiles a Trigger's list of filters.
    ///
    /// # Errors
    /// The first expression that the Subscriptions API calls invalid, with its place in the list.
    pub fn compile(expressions: &[Expression]) -> Result<Self, CompileError> {
        clauses("filters", expressions, 0).map(Self)
    }

    /// Whether every expression of the list holds for the event.
    pub fn matches(&self, event: &Event) -> bool {
        self.0.iter().all(|clause| clause.holds(event))
    }

    /// Pairs of attribute and value of which every matching event has all. A table finds a Trigger by one of them.
    pub fn required_values(&self) -> Vec<(&str, &str)> {
        let mut required = Vec::new();
        for clause in &self.0 {
            clause.collect_required(&mut required);
        }
        required
    }
}

impl Clause {
    fn holds(&self, event: &Event) -> bool {
        match self {
            Self::Exact(terms) => terms
                .iter()
                .all(|term| term.compare(event, |actual, value| actual == value)),
            Self::Prefix(terms) => terms
                .iter()
                .all(|term| term.compare(event, |actual, value| actual.starts_with(value))),
            Self::Suffix(terms) => terms
                .iter()
                .all(|term| term.compare(event, |actual, value| actual.ends_with(value))),
            Self::All(children) => children.iter().all(|child| child.holds(event)),
            Self::Any(children) => children.iter().any(|child| child.holds(event)),
            Self::Not(child) => !child.holds(event),
            Self::Sql(expression) => expression.holds(event),
        }
    }

    fn collect_required<'a>(&'a self, required: &mut Vec<(&'a str, &'a str)>) {
        match self {
            Self::Exact(terms) => required.extend(terms.iter().map(|term| (&*term.attribute, &*term.value))),
            Self::All(children) => children.iter().for_each(|child| child.collect_required(required)),
            Self::Any(children) => {
                if let [only] = children.as_slice() {
                    only.collect_required(required);
                }
            }
            Self::Sql(expression) => required.extend(expression.required_values()),
            Self::Prefix(_) | Self::Suffix(_) | Self::Not(_) => {}
        }
    }
}

impl Term {
    /// A missing attribute makes the comparison false.
    fn compare(&self, event: &Event, holds: impl Fn(&str, &str) -> bool) -> bool {
        event
            .attribute(&self.attribute)
            .is_some_and(|actual| holds(&actual.canonical(), &self.value))
    }
}

fn clauses(path: &str, expressions: &[Expression], depth: usize) -> Result<Vec<Clause>, CompileError> {
    expressions
        .iter()
        .enumerate()
        .map(|(index, expression)| clause(&format!("{path}[{index}]"), expression, depth))
        .collect()
}

fn clause(path: &str, expression: &Expression, depth: usize) -> Result<Clause, CompileError> {
    if depth > MAX_DEPTH {
        return Err(CompileError {
            path: path.to_owned(),
            problem: CompileProblem::TooDeep,
        });
    }
    match expression {
        Expression::Exact(map) => terms(format!("{path}.exact"), map).map(Clause::Exact),
        Expression::Prefix(map) => terms(format!("{path}.prefix"), map).map(Clause::Prefix),
        Expression::Suffix(map) => terms(format!("{path}.suffix"), map).map(Clause::Suffix),
        Expression::All(list) => children(format!("{path}.all"), list, depth).map(Clause::All),
        Expression::Any(list) => children(format!("{path}.any"), list, depth).map(Clause::Any),
        Expression::Not(child) => {
            clause(&format!("{path}.not"), child, depth + 1).map(|child| Clause::Not(Box::new(child)))
        }
        Expression::Sql(text) => sql(text).map(Clause::Sql).map_err(|problem| CompileError {
            path: format!("{path}.sql"),
            problem,
        }),
    }
}

fn sql(text: &str) -> Result<sql::Expression, CompileProblem> {
    let expression = sql::Expression::parse(text)?;
    match expression.r#type() {
        Some(r#type @ (Type::Integer | Type::String)) => Err(CompileProblem::NotBoolean(r#type)),
        Some(Type::Boolean) | None => Ok(expression),
    }
}

fn children(path: String, list: &[Expression], depth: usize) -> Result<Vec<Clause>, CompileError> {
    if list.is_empty() {
        return Err(CompileError {
            path,
            problem: CompileProblem::NoChild,
        });
    }
    clauses(&path, list, depth + 1)
}

fn terms(path: String, map: &BTreeMap<String, String>) -> Result<Vec<Term>, CompileError> {
    let fail = |problem| {
        Err(CompileError {
            path: path.clone(),
            problem,
        })
    };
    if map.is_empty() {
        return fail(CompileProblem::NoAttribute);
    }
    let mut terms = Vec::with_capacity(map.len());
    for (attribute, value) in map {
        let named = !attribute.is_empty()
            && attribute
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !named || attribute == "data" {
            return fail(CompileProblem::AttributeName(attribute.clone()));
        }
        if value.is_empty() {
            return fail(CompileProblem::EmptyValue(attribute.clone()));
        }
        terms.push(Term {
            attribute: attribute.as_str().into(),
            value: value.as_str().into(),
        });
    }
    Ok(terms)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cloudevents::EventBuilder;

    fn event() -> Event {
        EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/shop/orders")
            .attribute("type", "com.example.order.created")
            .attribute("priority", 7)
            .attribute("urgent", true)
            .build()
            .unwrap()
    }

    fn filter(expressions: serde_json::Value) -> Result<Filter, CompileError> {
        Filter::compile(&serde_json::from_value::<Vec<Expression>>(expressions).unwrap())
    }

    #[test]
    fn dialects_of_the_subscriptions_api() {
        let table = [
            (json!([]), true),
            (json!([{"exact": {"type": "com.example.order.created"}}]), true),
            (
                json!([{"exact": {"type": "com.example.order.created", "source": "/shop/orders"}}]),
                true,
            ),
            (
                json!([{"exact": {"type": "com.example.order.created", "source": "/shop"}}]),
                false,
            ),
            (json!([{"exact": {"type": "COM.example.order.created"}}]), false),
            (json!([{"exact": {"missing": "x"}}]), false),
            (json!([{"prefix": {"missing": "x"}}]), false),
            (json!([{"suffix": {"missing": "x"}}]), false),
            (json!([{"not": {"exact": {"missing": "x"}}}]), true),
            (json!([{"prefix": {"type": "com.example."}}]), true),
            (json!([{"prefix": {"type": "example."}}]), false),
            (
                json!([{"suffix": {"type": ".created", "source": "orders"}}]),
                true,
            ),
            (json!([{"suffix": {"type": ".deleted"}}]), false),
            (json!([{"exact": {"priority": "7", "urgent": "true"}}]), true),
            (json!([{"exact": {"specversion": "1.0"}}]), true),
            (
                json!([{"any": [{"exact": {"type": "x"}}, {"suffix": {"source": "orders"}}]}]),
                true,
            ),
            (
                json!([{"all": [{"exact": {"type": "x"}}, {"suffix": {"source": "orders"}}]}]),
                false,
            ),
            (
                json!([{"prefix": {"type": "com."}}, {"exact": {"id": "2"}}]),
                false,
            ),
            (
                json!([{"not": {"all": [{"exact": {"id": "1"}}, {"not": {"exact": {"id": "2"}}}]}}]),
                false,
            ),
            (
                json!([{"sql": "type LIKE 'com.example.%' AND priority > 5"}]),
                true,
            ),
            (json!([{"sql": "priority > 7"}]), false),
            (json!([{"sql": "urgent"}]), true),
            (json!([{"sql": "type"}]), false),
            (json!([{"sql": "missing != 'x'"}]), false),
            (json!([{"not": {"sql": "missing != 'x'"}}]), true),
            (
                json!([{"exact": {"id": "1"}}, {"any": [{"sql": "FALSE"}, {"sql": "EXISTS id"}]}]),
                true,
            ),
        ];
        for (expressions, expected) in table {
            assert_eq!(
                filter(expressions.clone()).unwrap().matches(&event()),
                expected,
                "{expressions}"
            );
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let table = [
            (json!([{"exact": {}}]), "filters[0].exact: names no attribute"),
            (
                json!([{"exact": {"a": "b"}}, {"all": []}]),
                "filters[1].all: has no filter",
            ),
            (
                json!([{"any": [{"prefix": {"Type": "b"}}]}]),
                "filters[0].any[0].prefix: \"Type\" is no attribute name",
            ),
            (
                json!([{"not": {"suffix": {"data": "b"}}}]),
                "filters[0].not.suffix: \"data\" is no attribute name",
            ),
            (
                json!([{"exact": {"type": ""}}]),
                "filters[0].exact: the value for attribute type is empty",
            ),
            (
                json!([{"any": [{"sql": "TRUE"}, {"sql": "type = 'a' AND"}]}]),
                "filters[0].any[1].sql: column 15: expected a value",
            ),
            (json!([{"sql": ""}]), "filters[0].sql: column 1: expected a value"),
            (
                json!([{"sql": "LENGTH(type)"}]),
                "filters[0].sql: gives a value of type Integer, which lets no event pass",
            ),
        ];
        for (expressions, expected) in table {
            let message = filter(expressions).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let mut nested = Expression::Exact([("a".to_owned(), "b".to_owned())].into());
        for _ in 0..=MAX_DEPTH {
            nested = Expression::Not(Box::new(nested));
        }
        assert_eq!(
            Filter::compile(&[nested]).unwrap_err().problem,
            CompileProblem::TooDeep
        );
    }

    #[test]
    fn only_what_every_match_has_is_required() {
        let table = [
            (json!([]), vec![]),
            (
                json!([{"exact": {"type": "a"}}, {"all": [{"exact": {"source": "b"}}]}]),
                vec![("type", "a"), ("source", "b")],
            ),
            (json!([{"any": [{"exact": {"type": "a"}}]}]), vec![("type", "a")]),
            (
                json!([{"any": [{"exact": {"type": "a"}}, {"exact": {"type": "b"}}]}]),
                vec![],
            ),
            (
                json!([{"not": {"exact": {"type": "a"}}}, {"prefix": {"type": "a"}}]),
                vec![],
            ),
            (
                json!([{"sql": "TYPE = 'a' AND (x LIKE 'b%' AND source = \"it's\") AND subject = ''"}]),
                vec![("type", "a"), ("source", "it's"), ("subject", "")],
            ),
            (json!([{"any": [{"sql": "(type = 'a')"}]}]), vec![("type", "a")]),
            (json!([{"sql": "type = 'a' OR type = 'b'"}]), vec![]),
            (
                json!([{"sql": "NOT (type = 'a')"}, {"sql": "type != 'a'"}]),
                vec![],
            ),
            (
                json!([{"sql": "'7' = x AND x = 7 AND x IN ('7') AND x = y AND TRUE = (x = 'a')"}]),
                vec![],
            ),
        ];
        for (expressions, expected) in table {
            assert_eq!(filter(expressions).unwrap().required_values(), expected);
        }
    }
}
