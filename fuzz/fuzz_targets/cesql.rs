//! A CESQL expression: it is rejected with a column, or means one thing however it is asked.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use weir::{
    cloudevents::{Event, EventBuilder, Value},
    filter::{
        self, ClauseOutcome, CompiledFilter, Explanation, IndexTerm, Text,
        sql::{Scalar, SqlExpression},
    },
};

static EVENTS: LazyLock<Vec<Event>> = LazyLock::new(|| {
    let rich: [(&str, Value); 10] = [
        ("subject", "Grüezi €".into()),
        ("time", "2026-11-24T08:00:00Z".into()),
        ("n", 7.into()),
        ("min", i32::MIN.into()),
        ("max", i32::MAX.into()),
        ("b", true.into()),
        ("f", false.into()),
        ("d", "007".into()),
        ("e", "".into()),
        ("t", "TRUE".into()),
    ];
    vec![event(&[]), event(&rich)]
});

fn event(extensions: &[(&str, Value)]) -> Event {
    let mut builder = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/shop/orders")
        .attribute("type", "com.example.order.created");
    for (name, value) in extensions {
        builder = builder.attribute(*name, value.clone());
    }
    builder.build().expect("it is a valid event")
}

fuzz_target!(|text: &str| -> Corpus {
    let expression = match SqlExpression::parse(text) {
        Ok(expression) => expression,
        Err(error) => {
            assert!((1..=text.chars().count() + 1).contains(&error.column), "{error}");
            return Corpus::Keep;
        }
    };
    assert_eq!(expression.text(), text);
    for event in EVENTS.iter() {
        check(&expression, event);
    }
    Corpus::Keep
});

fn check(expression: &SqlExpression, event: &Event) {
    let evaluation = expression.evaluate(event);
    let holds = evaluation.error.is_none() && evaluation.value == Scalar::Boolean(true);
    assert_eq!(expression.holds(event), holds);

    let explanation = expression.explain(event);
    assert_eq!(explanation.holds(), holds, "{explanation:?}");
    check_explanation(&explanation);

    if let (Some(r#type), None) = (expression.r#type(), &evaluation.error) {
        assert_eq!(evaluation.value.r#type(), r#type);
    }
    if holds {
        let requirement = expression.requirement();
        if let Some(cover) = requirement.cheapest_cover(&|_| 1) {
            assert!(cover.terms.iter().any(|term| has(event, term)), "{cover:?}");
        }
    }
    let text = expression.text().to_owned();
    if let Ok(filter) = CompiledFilter::compile(&[filter::Expression::Sql(text)]) {
        assert_eq!(filter.matches(event), holds);
    } else {
        assert!(!holds, "what can hold is a filter");
    }
}

fn has(event: &Event, IndexTerm { attribute, text }: &IndexTerm) -> bool {
    event.attribute(attribute).is_some_and(|value| match text {
        Text::Exact(text) => value.canonical() == *text,
        Text::Prefix(text) => value.canonical().starts_with(&**text),
    })
}

/// What failed does not hold, and what was not reached comes last and has nothing to say.
fn check_explanation(explanation: &Explanation) {
    let _ = explanation.to_string();
    assert!(!(explanation.holds() && explanation.error.is_some()));
    let not_reached = |clause: &Explanation| clause.outcome == ClauseOutcome::NotReached;
    assert!(
        explanation.clauses.is_sorted_by_key(not_reached),
        "{explanation:?}"
    );
    for clause in &explanation.clauses {
        if not_reached(clause) {
            assert!(clause.error.is_none() && clause.saw.is_empty() && clause.clauses.is_empty());
        }
        check_explanation(clause);
    }
}
