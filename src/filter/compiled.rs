//! A Trigger's filters, validated and compiled.

use std::collections::BTreeMap;

use super::{
    Explanation, Expression, ReadAttribute, Requirement, Subject, cel,
    error::{CompileError, CompileProblem},
    fuel::{BUDGET, Fuel, Overrun, PART},
    limits::MAX_DEPTH,
    sizes::Sizes,
    sql::{self, Type},
};
use crate::cloudevents::Event;

/// Filter expressions that must all match. An empty list matches every event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledFilter {
    clauses: Vec<Clause>,
    size: usize,
}

/// Budget of an explanation, in multiples of [`BUDGET`]. An explanation re-evaluates each part for every enclosing
/// part.
const EXPLAINING: u64 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Clause {
    /// Every term matches.
    Terms(StringMatch, Vec<Term>),
    All(Vec<Clause>),
    Any(Vec<Clause>),
    Not(Box<Clause>),
    Sql(sql::SqlExpression),
    Cel(cel::CelExpression),
}

/// Result of evaluating a filter on an event.
#[derive(Debug)]
pub enum Decision<'a> {
    /// The event matches.
    Pass,
    /// The event does not match.
    Skip,
    /// The event does not match, and an expression failed during evaluation.
    Failed(Error<'a>),
}

/// An evaluation error.
#[derive(Debug, thiserror::Error)]
pub enum Error<'a> {
    /// In a `sql` expression.
    #[error("sql: {0}")]
    Sql(sql::SqlFailure<'a>),
    /// In a `cel` expression.
    #[error("cel: {0}")]
    Cel(cel::CelFailure),
    /// The filters together exceed [`BUDGET`] steps for the event.
    #[error("{Overrun}")]
    TooExpensive,
}

/// The dialects that compare attributes with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringMatch {
    Exact,
    Prefix,
    Suffix,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    attribute: Box<str>,
    value: Box<str>,
}

impl Error<'_> {
    /// Describes the error like `Display`, but never shows values of the event.
    fn without_data(&self) -> String {
        match self {
            Self::Sql(failure) => format!("sql: {}", failure.problem.without_data()),
            Self::Cel(_) | Self::TooExpensive => self.to_string(),
        }
    }
}

impl CompiledFilter {
    /// Compiles a Trigger's list of filters.
    ///
    /// # Errors
    /// The first invalid expression, with its path in the list.
    pub fn compile(expressions: &[Expression]) -> Result<Self, CompileError> {
        let at = |problem| CompileError {
            path: "filters".to_owned(),
            problem,
        };
        Sizes::check(expressions).map_err(at)?;
        let mut sizes = Sizes::default();
        let clauses = clauses("filters", expressions, 0, &mut sizes)?;
        let size = sizes.bytes();
        Ok(Self { clauses, size })
    }

    /// Approximate size in bytes. The same on every machine.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether the event matches every expression in the list.
    pub fn matches(&self, event: &Event) -> bool {
        matches!(self.decide(&Subject::new(event)), Decision::Pass)
    }

    /// As [`CompiledFilter::matches`], where it matters that an expression fails.
    ///
    /// # Errors
    /// Why an expression fails for the event, without values of the event.
    pub fn try_matches(&self, event: &Event) -> Result<bool, String> {
        match self.decide(&Subject::new(event)) {
            Decision::Pass => Ok(true),
            Decision::Skip => Ok(false),
            Decision::Failed(error) => Err(error.without_data()),
        }
    }

    /// Evaluates every expression in the list. If the event does not match, also reports the last error, if any.
    pub fn decide<'a>(&'a self, subject: &'a Subject<'_>) -> Decision<'a> {
        let (fuel, mut failed) = (Fuel::new(), None);
        let passes = self.passes(subject, &fuel, &mut failed);
        subject.took(fuel.spent());
        match failed {
            // Whatever the result: a part was not evaluated.
            _ if fuel.is_used_up() => Decision::Failed(Error::TooExpensive),
            _ if passes => Decision::Pass,
            None => Decision::Skip,
            Some(error) => Decision::Failed(error),
        }
    }

    fn passes<'a>(&'a self, subject: &'a Subject<'_>, fuel: &Fuel, failed: &mut Option<Error<'a>>) -> bool {
        self.clauses
            .iter()
            .all(|clause| clause.holds(subject, fuel, failed))
    }

    /// Explains the result of every expression in the list. For a matching event, all of them hold. If the filters
    /// are too expensive for it, reports only that.
    #[must_use]
    pub fn explain(&self, event: &Event) -> Vec<Explanation> {
        let subject = Subject::new(event);
        if let Decision::Failed(error @ Error::TooExpensive) = self.decide(&subject) {
            return vec![Explanation {
                error: Some(error.to_string()),
                ..Explanation::new("filters", false)
            }];
        }
        let fuel = Fuel::of(EXPLAINING * BUDGET);
        let clauses = self.clauses.iter();
        clauses.map(|clause| clause.explain(&subject, &fuel)).collect()
    }

    /// Returns a condition that every matching event satisfies, for a table's index.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        all(&self.clauses)
    }
}

fn all(clauses: &[Clause]) -> Requirement<'_> {
    Requirement::All(clauses.iter().map(Clause::requirement).collect())
}

impl Clause {
    /// Evaluates the node. A failing expression counts as false, and its error is stored in `failed`.
    fn holds<'a>(&'a self, subject: &'a Subject<'_>, fuel: &Fuel, failed: &mut Option<Error<'a>>) -> bool {
        let event = subject.event();
        let result = match self {
            Self::Terms(comparison, terms) => {
                return terms.iter().all(|term| comparison.holds(term, event, fuel));
            }
            Self::All(children) => return children.iter().all(|child| child.holds(subject, fuel, failed)),
            Self::Any(children) => return children.iter().any(|child| child.holds(subject, fuel, failed)),
            Self::Not(child) => return !child.holds(subject, fuel, failed),
            Self::Sql(expression) => expression.decide(event, fuel).map_err(Error::Sql),
            Self::Cel(expression) => expression.decide(subject, fuel).map_err(Error::Cel),
        };
        result.unwrap_or_else(|error| {
            *failed = Some(error);
            false
        })
    }

    fn explain(&self, subject: &Subject<'_>, fuel: &Fuel) -> Explanation {
        let event = subject.event();
        let explain = |clause: &Self| clause.explain(subject, fuel);
        let nested = |dialect, clauses| Explanation {
            clauses,
            ..Explanation::new(dialect, self.holds(subject, fuel, &mut None))
        };
        match self {
            Self::Terms(comparison, terms) => match terms.as_slice() {
                [only] => comparison.explain(only, event, fuel),
                terms => {
                    let terms = terms.iter().map(|term| comparison.explain(term, event, fuel));
                    nested(comparison.name(), terms.collect())
                }
            },
            Self::All(children) => nested("all", children.iter().map(explain).collect()),
            Self::Any(children) => nested("any", children.iter().map(explain).collect()),
            Self::Not(child) => nested("not", vec![explain(child)]),
            Self::Sql(expression) => expression.explain_within(event, fuel),
            Self::Cel(expression) => expression.explain_within(subject, fuel),
        }
    }

    fn requirement(&self) -> Requirement<'_> {
        match self {
            Self::Terms(comparison, terms) => {
                Requirement::All(terms.iter().map(|term| comparison.requirement(term)).collect())
            }
            Self::All(children) => all(children),
            Self::Any(children) => Requirement::Any(children.iter().map(Self::requirement).collect()),
            Self::Not(_) => Requirement::UNKNOWN,
            Self::Sql(expression) => expression.requirement(),
            Self::Cel(expression) => expression.requirement(),
        }
    }
}

impl StringMatch {
    /// Compares the attribute. A missing attribute compares as false.
    fn holds(self, term: &Term, event: &Event, fuel: &Fuel) -> bool {
        let Some(actual) = event.attribute(&term.attribute) else {
            return false;
        };
        let actual = actual.canonical();
        if fuel.spend(PART + term.value.len() as u64 / 4).is_err() {
            return false;
        }
        match self {
            Self::Exact => *actual == *term.value,
            Self::Prefix => actual.starts_with(&*term.value),
            Self::Suffix => actual.ends_with(&*term.value),
        }
    }

    fn requirement(self, term: &Term) -> Requirement<'_> {
        let Term { attribute, value } = term;
        match self {
            Self::Exact => Requirement::exact(attribute, &**value),
            Self::Prefix => Requirement::prefix(attribute, &**value),
            Self::Suffix => Requirement::UNKNOWN,
        }
    }

    fn explain(self, term: &Term, event: &Event, fuel: &Fuel) -> Explanation {
        let Term { attribute, value } = term;
        let clause = format!("{} {attribute} = {value:?}", self.name());
        Explanation {
            saw: vec![ReadAttribute::new(attribute, event)],
            ..Explanation::new(clause, self.holds(term, event, fuel))
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
        }
    }
}

fn clauses(
    path: &str,
    expressions: &[Expression],
    depth: usize,
    sizes: &mut Sizes,
) -> Result<Vec<Clause>, CompileError> {
    expressions
        .iter()
        .enumerate()
        .map(|(index, expression)| clause(&format!("{path}[{index}]"), expression, depth, sizes))
        .collect()
}

fn clause(
    path: &str,
    expression: &Expression,
    depth: usize,
    sizes: &mut Sizes,
) -> Result<Clause, CompileError> {
    let mut add = |place: &str, parts, text, bytes| {
        sizes.add(parts, text, bytes).map_err(|problem| CompileError {
            path: format!("{path}{place}"),
            problem,
        })
    };
    if depth > MAX_DEPTH {
        return Err(CompileError {
            path: path.to_owned(),
            problem: CompileProblem::TooDeep,
        });
    }
    match expression {
        Expression::Exact(map) | Expression::Prefix(map) | Expression::Suffix(map) => {
            let text = map.iter().map(|(name, value)| name.len() + value.len()).sum();
            add("", map.len() + 1, text, 0)?;
        }
        Expression::All(_) | Expression::Any(_) | Expression::Not(_) => add("", 1, 0, 0)?,
        Expression::Sql(_) | Expression::Cel(_) => {}
    }
    match expression {
        Expression::Exact(map) => terms(path, StringMatch::Exact, map),
        Expression::Prefix(map) => terms(path, StringMatch::Prefix, map),
        Expression::Suffix(map) => terms(path, StringMatch::Suffix, map),
        Expression::All(list) => children(format!("{path}.all"), list, depth, sizes).map(Clause::All),
        Expression::Any(list) => children(format!("{path}.any"), list, depth, sizes).map(Clause::Any),
        Expression::Not(child) => {
            clause(&format!("{path}.not"), child, depth + 1, sizes).map(|child| Clause::Not(Box::new(child)))
        }
        Expression::Sql(text) => {
            let expression = sql(text).map_err(|problem| CompileError {
                path: format!("{path}.sql"),
                problem,
            })?;
            add(".sql", expression.parts(), text.len(), expression.patterns())?;
            Ok(Clause::Sql(expression))
        }
        Expression::Cel(text) => {
            let expression = cel::CelExpression::parse(text).map_err(|error| CompileError {
                path: format!("{path}.cel"),
                problem: error.into(),
            })?;
            add(".cel", expression.parts(), text.len(), expression.patterns())?;
            Ok(Clause::Cel(expression))
        }
    }
}

fn sql(text: &str) -> Result<sql::SqlExpression, CompileProblem> {
    let expression = sql::SqlExpression::parse(text)?;
    match expression.r#type() {
        Some(r#type @ (Type::Integer | Type::String)) => Err(CompileProblem::NotBoolean(r#type)),
        Some(Type::Boolean) | None => Ok(expression),
    }
}

fn children(
    path: String,
    list: &[Expression],
    depth: usize,
    sizes: &mut Sizes,
) -> Result<Vec<Clause>, CompileError> {
    if list.is_empty() {
        return Err(CompileError {
            path,
            problem: CompileProblem::NoChild,
        });
    }
    clauses(&path, list, depth + 1, sizes)
}

fn terms(
    path: &str,
    comparison: StringMatch,
    map: &BTreeMap<String, String>,
) -> Result<Clause, CompileError> {
    let fail = |problem| {
        Err(CompileError {
            path: format!("{path}.{}", comparison.name()),
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
    Ok(Clause::Terms(comparison, terms))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        filter::{ClauseOutcome, IndexTerm, Text},
    };

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

    fn filter(expressions: serde_json::Value) -> Result<CompiledFilter, CompileError> {
        CompiledFilter::compile(&serde_json::from_value::<Vec<Expression>>(expressions).unwrap())
    }

    #[test]
    fn evaluates_the_dialects_of_the_subscriptions_api() {
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
    fn compile_errors_name_the_path() {
        let table = [
            (json!([{"exact": {}}]), "filters[0].exact: has no attribute"),
            (
                json!([{"exact": {"a": "b"}}, {"all": []}]),
                "filters[1].all: contains no filter",
            ),
            (
                json!([{"any": [{"prefix": {"Type": "b"}}]}]),
                "filters[0].any[0].prefix: \"Type\" is not a valid attribute name",
            ),
            (
                json!([{"not": {"suffix": {"data": "b"}}}]),
                "filters[0].not.suffix: \"data\" is not a valid attribute name",
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
                "filters[0].sql: expected Boolean, got Integer, which never matches",
            ),
        ];
        for (expressions, expected) in table {
            let message = filter(expressions).unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn bounds_nesting() {
        let mut nested = Expression::Exact([("a".to_owned(), "b".to_owned())].into());
        for _ in 0..=MAX_DEPTH {
            nested = Expression::Not(Box::new(nested));
        }
        assert_eq!(
            CompiledFilter::compile(&[nested]).unwrap_err().problem,
            CompileProblem::TooDeep
        );
    }

    #[test]
    fn expressions_in_the_docs_compile() {
        let page = include_str!("../../docs/filters.md");
        let mut count = 0;
        for dialect in ["sql", "cel"] {
            for (at, opening) in page.match_indices(&format!("`{dialect}: \"")) {
                let text = page[at + opening.len()..].split('"').next().unwrap();
                let compiled = filter(json!([{dialect: text}]));
                assert!(compiled.is_ok(), "{text}: {compiled:?}");
                count += 1;
            }
        }
        assert!(count >= 16, "{count}");
    }

    fn lines(explanations: &[Explanation], depth: usize, into: &mut Vec<String>) {
        for explanation in explanations {
            let mark = match explanation.outcome {
                ClauseOutcome::Holds => "+",
                ClauseOutcome::Fails => "-",
                ClauseOutcome::NotReached => "?",
            };
            into.push(format!("{}{mark} {explanation}", "  ".repeat(depth)));
            lines(&explanation.clauses, depth + 1, into);
        }
    }

    #[test]
    fn explanation_shows_the_attributes_each_clause_read() {
        let table = [
            (json!([]), vec![]),
            (
                json!([{"exact": {"type": "a"}}]),
                vec![r#"- exact type = "a": the event has "com.example.order.created""#],
            ),
            (
                json!([{"prefix": {"priority": "7", "subject": "x"}}]),
                vec![
                    "- prefix",
                    r#"  + prefix priority = "7": the event has "7""#,
                    r#"  - prefix subject = "x": the event has no subject"#,
                ],
            ),
            (
                json!([{"any": [{"not": {"suffix": {"source": "s"}}}, {"all": [{"exact": {"id": "1"}}]}]}]),
                vec![
                    "+ any",
                    "  - not",
                    r#"    + suffix source = "s": the event has "/shop/orders""#,
                    "  + all",
                    r#"    + exact id = "1": the event has "1""#,
                ],
            ),
            (
                json!([{"sql": " priority>5 "}, {"sql": "priority + 1\n> LENGTH(source)"}]),
                vec![
                    r#"+ sql priority>5: the event has "7""#,
                    r#"- sql priority + 1 > LENGTH(source): the event has priority "7", source "/shop/orders""#,
                ],
            ),
            (
                json!([{"sql": "(type LIKE '%.created' AND NOT (priority IN (1, id))) AND subject = 'x' AND urgent"}]),
                vec![
                    "- sql (type LIKE '%.created' AND NOT (priority IN (1, id))) AND subject = 'x' AND urgent",
                    "  + (type LIKE '%.created' AND NOT (priority IN (1, id)))",
                    r#"    + type LIKE '%.created': the event has "com.example.order.created""#,
                    "    + NOT (priority IN (1, id))",
                    r#"      - (priority IN (1, id)): the event has priority "7", id "1""#,
                    "  - subject = 'x': the event has no attribute subject",
                    "  ? urgent",
                ],
            ),
            (
                json!([{"sql": "EXISTS subject OR urgent OR missing"}, {"sql": "TRUE XOR EXISTS id"}]),
                vec![
                    "+ sql EXISTS subject OR urgent OR missing",
                    "  - EXISTS subject: the event has no subject",
                    r#"  + urgent: the event has "true""#,
                    "  ? missing",
                    "- sql TRUE XOR EXISTS id",
                    "  + TRUE",
                    r#"  + EXISTS id: the event has "1""#,
                ],
            ),
            (
                json!([{"sql": "type > 5"}, {"sql": "priority"}]),
                vec![
                    "- sql type > 5: 'com.example.order.created' cannot be cast to Integer",
                    "- sql priority: expected Boolean, got Integer 7",
                ],
            ),
        ];
        for (expressions, expected) in table {
            let mut found = Vec::new();
            lines(
                &filter(expressions.clone()).unwrap().explain(&event()),
                0,
                &mut found,
            );
            assert_eq!(found, expected, "{expressions}");
        }
    }

    #[test]
    fn explanation_serializes_as_plain_data() {
        let explanations = filter(json!([{"not": {"sql": "subject = 'x'"}}, {"exact": {"id": "1"}}]))
            .unwrap()
            .explain(&event());
        assert_eq!(
            serde_json::to_value(explanations).unwrap(),
            json!([
                {"clause": "not", "outcome": "holds", "clauses": [{
                    "clause": "sql subject = 'x'", "outcome": "fails",
                    "saw": [{"attribute": "subject", "value": null}],
                    "error": "the event has no attribute subject",
                }]},
                {"clause": "exact id = \"1\"", "outcome": "holds", "saw": [{"attribute": "id", "value": "1"}]},
            ])
        );
    }

    /// Formats a requirement: `a=` for a value, `a^` for a prefix, `&` and `|` for nesting, `*` for unknown.
    fn written(requirement: &Requirement) -> String {
        let joined = |parts: &[Requirement], by: &str| {
            let parts: Vec<_> = parts.iter().map(written).filter(|part| part != "*").collect();
            match parts.as_slice() {
                [] => "*".to_owned(),
                [only] => only.clone(),
                parts => format!("({})", parts.join(by)),
            }
        };
        match requirement {
            Requirement::Term(IndexTerm { attribute, text }) => match text {
                Text::Exact(value) => format!("{attribute}={value}"),
                Text::Prefix(prefix) => format!("{attribute}^{prefix}"),
            },
            Requirement::All(parts) => joined(parts, "&"),
            Requirement::Any(parts) if parts.iter().any(|part| written(part) == "*") => "*".to_owned(),
            Requirement::Any(parts) => joined(parts, "|"),
        }
    }

    #[test]
    fn requirement_holds_for_every_match() {
        let table = [
            (json!([]), "*"),
            (
                json!([{"exact": {"type": "a"}}, {"all": [{"prefix": {"source": "b", "x": "c"}}]}]),
                "(type=a&(source^b&x^c))",
            ),
            (
                json!([{"any": [{"exact": {"type": "a"}}, {"prefix": {"type": "b"}}]}]),
                "(type=a|type^b)",
            ),
            (
                json!([{"any": [{"exact": {"type": "a"}}, {"suffix": {"type": "b"}}]}]),
                "*",
            ),
            (json!([{"not": {"exact": {"type": "a"}}}]), "*"),
            (
                json!([{"sql": "TYPE = 'a' AND (x LIKE 'b%' AND source = \"it's\") AND subject = ''"}]),
                "(type=a&(x^b&source=it's)&subject=)",
            ),
            (
                json!([{"sql": "type = 'a' OR (x LIKE 'b_' AND y > 5) OR x IN ('c', 'd')"}]),
                "(type=a|x^b|(x=c|x=d))",
            ),
            (
                json!([{"sql": "x LIKE 'a\\%b' OR x LIKE 'c\\_d%e'"}]),
                "(x=a%b|x^c_d)",
            ),
            (json!([{"sql": "NOT (type = 'a')"}, {"sql": "type != 'a'"}]), "*"),
            (
                json!([{"sql": "x LIKE '%a' AND x LIKE '_a' AND x NOT LIKE 'a' AND x NOT IN ('a')"}]),
                "*",
            ),
            (
                json!([{"sql": "'7' = x AND x = 7 AND x = y AND TRUE = (x = 'a')"}]),
                "*",
            ),
            // '07' equals 7 if x is an Integer, and 'TRUE' equals true if it is a Boolean; '2026-11' is neither.
            (
                json!([{"sql": "x IN ('a', '07') OR x IN ('a', 'TRUE') OR x IN ('a', y)"}]),
                "*",
            ),
            (json!([{"sql": "x IN ('2026-11', '7a')"}]), "(x=2026-11|x=7a)"),
            (json!([{"sql": "type = 'a' XOR x = 'b'"}]), "*"),
        ];
        for (expressions, expected) in table {
            assert_eq!(
                written(&filter(expressions.clone()).unwrap().requirement()),
                expected,
                "{expressions}"
            );
        }
    }

    #[test]
    fn cover_is_the_cheapest_possible() {
        let cost = |term: &IndexTerm| term.attribute.len();
        let table = [
            (json!([]), None),
            (json!([{"suffix": {"a": "b"}}]), None),
            (json!([{"exact": {"aaa": "x", "bb": "x"}}]), Some("bb")),
            (
                json!([{"any": [{"exact": {"aaa": "x"}}, {"suffix": {"b": "x"}}]}]),
                None,
            ),
            (
                json!([{"exact": {"aaa": "x"}}, {"any": [{"prefix": {"bb": "x"}}, {"exact": {"cc": "x"}}]}]),
                Some("aaa"),
            ),
            (
                json!([{"exact": {"aaa": "x"}}, {"any": [{"prefix": {"b": "x", "ddd": "x"}}, {"exact": {"c": "x"}}]}]),
                Some("b c"),
            ),
        ];
        for (expressions, expected) in table {
            let filter = filter(expressions).unwrap();
            let requirement = filter.requirement();
            let attributes = requirement.cheapest_cover(&cost).map(|cover| {
                let attributes: Vec<_> = cover.terms.iter().map(|term| term.attribute).collect();
                attributes.join(" ")
            });
            assert_eq!(attributes.as_deref(), expected);
        }
    }
}
