//! A Trigger's filters, checked and ready to be evaluated.

use std::collections::BTreeMap;

use super::{
    Explanation, Expression, Requirement, Seen, Subject, cel,
    fuel::{BUDGET, Fuel, Overrun, PART},
    limits::{MAX_PARTS, MAX_SIZE, MAX_TEXT, Sizes},
    sql::{self, ParseError, Type},
};
use crate::cloudevents::Event;

/// How deep expressions may be nested, so that neither compiling nor evaluating can exhaust the stack.
const MAX_DEPTH: usize = 16;

/// A list of filter expressions that must all hold; an empty list lets every event pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    clauses: Vec<Clause>,
    size: usize,
}

/// How many budgets an explanation may take: it evaluates a part again for every part that it is in.
const EXPLAINING: u64 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Clause {
    /// Every term holds.
    Terms(Comparison, Vec<Term>),
    All(Vec<Clause>),
    Any(Vec<Clause>),
    Not(Box<Clause>),
    Sql(sql::Expression),
    Cel(cel::Expression),
}

/// What a filter says of an event.
#[derive(Debug)]
pub enum Decision<'a> {
    /// It passes.
    Pass,
    /// It does not.
    Skip,
    /// It does not, and an expression on the way there had no value.
    Failed(Error<'a>),
}

/// Why an expression has no value for an event.
#[derive(Debug, thiserror::Error)]
pub enum Error<'a> {
    /// A `sql` expression.
    #[error("sql: {0}")]
    Sql(sql::Failure<'a>),
    /// A `cel` expression.
    #[error("cel: {0}")]
    Cel(cel::Failure),
    /// The filters together take more than [`BUDGET`] steps for the event.
    #[error("{Overrun}")]
    TooExpensive,
}

/// The dialects that compare attributes with values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Exact,
    Prefix,
    Suffix,
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
    /// No CEL expression, or one that may not be a filter.
    #[error(transparent)]
    Cel(#[from] cel::ParseError),
    /// A CESQL expression that no event can pass, since its value is no Boolean.
    #[error("gives a value of type {0}, which lets no event pass: compare it with something")]
    NotBoolean(Type),
    /// Too much text.
    #[error("have more than {MAX_TEXT} bytes of names, values and expressions: make several Triggers of it")]
    TooMuchText,
    /// Too many parts.
    #[error(
        "have more than {MAX_PARTS} parts (attributes that are compared, operators, calls and constants) with this one: \
         make several Triggers of it"
    )]
    TooManyParts,
    /// Too large when compiled.
    #[error(
        "take more than {MAX_SIZE} bytes compiled with this one: use fewer or smaller regular expressions, or make \
         several Triggers of it"
    )]
    TooLarge,
}

impl Filter {
    /// Compiles a Trigger's list of filters.
    ///
    /// # Errors
    /// The first expression that the Subscriptions API calls invalid, with its place in the list.
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

    /// How many bytes it takes, about; the same on every machine.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether every expression of the list holds for the event.
    pub fn matches(&self, event: &Event) -> bool {
        matches!(self.decide(&Subject::new(event)), Decision::Pass)
    }

    /// Whether every expression of the list holds for the event, and if not, whether that is for an error: the last
    /// one that there was.
    pub fn decide<'a>(&'a self, subject: &'a Subject<'_>) -> Decision<'a> {
        let (fuel, mut failed) = (Fuel::new(), None);
        let passes = self.passes(subject, &fuel, &mut failed);
        subject.took(fuel.spent());
        match failed {
            // Whatever came of it: a part of it was not evaluated.
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

    /// What became of every expression of the list for the event, and why. All of them hold where the event passes;
    /// of filters that are too expensive for it that alone is said.
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

    /// What every event has that passes. A table finds a Trigger by it.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        all(&self.clauses)
    }
}

fn all(clauses: &[Clause]) -> Requirement<'_> {
    Requirement::All(clauses.iter().map(Clause::requirement).collect())
}

impl Clause {
    /// An expression without a value does not hold, and leaves its error in `failed`.
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

impl Comparison {
    /// A missing attribute makes the comparison false.
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
            saw: vec![Seen::new(attribute, event)],
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
        Expression::Exact(map) => terms(path, Comparison::Exact, map),
        Expression::Prefix(map) => terms(path, Comparison::Prefix, map),
        Expression::Suffix(map) => terms(path, Comparison::Suffix, map),
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
            let expression = cel::Expression::parse(text).map_err(|error| CompileError {
                path: format!("{path}.cel"),
                problem: error.into(),
            })?;
            add(".cel", expression.parts(), text.len(), expression.patterns())?;
            Ok(Clause::Cel(expression))
        }
    }
}

fn sql(text: &str) -> Result<sql::Expression, CompileProblem> {
    let expression = sql::Expression::parse(text)?;
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

fn terms(path: &str, comparison: Comparison, map: &BTreeMap<String, String>) -> Result<Clause, CompileError> {
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
        filter::{IndexTerm, Outcome, Text},
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
    fn the_expressions_in_the_docs_compile() {
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
                Outcome::Holds => "+",
                Outcome::Fails => "-",
                Outcome::NotReached => "?",
            };
            into.push(format!("{}{mark} {explanation}", "  ".repeat(depth)));
            lines(&explanation.clauses, depth + 1, into);
        }
    }

    #[test]
    fn every_clause_tells_what_it_saw() {
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
                    "- sql type > 5: 'com.example.order.created' is no Integer",
                    "- sql priority: 7 is of type Integer, and no Boolean",
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
    fn an_explanation_is_plain_data() {
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

    /// `a=` a value, `a^` a prefix, `&` and `|` between what is nested; `*` where nothing is known.
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
    fn only_what_every_match_has_is_required() {
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
            // '07' is 7 if x is an Integer, 'TRUE' is true if it is a Boolean; '2026-11' is neither.
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
    fn a_cover_is_as_cheap_as_can_be() {
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
