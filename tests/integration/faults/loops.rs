//! Sinks, dead-letter Sinks and replies that lead back to a broker: they end, and what was stored is accounted for.

use std::time::Duration;

use super::{LocalRouter, Setup, mapped};
use crate::support::{Answer, Consumer, PATIENCE, eventually};

/// How many deliveries may lead to an event.
const MAX_HOPS: u64 = 32;
/// How many events may follow from one.
const MAX_DESCENDANTS: u64 = 4096;
/// A loop that doubles makes thousands of events.
const LONG: Duration = Duration::from_secs(240);

/// The manifest of a Trigger that takes everything and delivers it to this URI.
pub(super) fn leading_to(name: &str, uri: &str, delivery: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{uri: '{uri}'}}\n  delivery: {{backoffDelay: 20ms, backoffMax: 200ms{delivery}}}\n"
    )
}

/// A router whose Triggers are made with the URL of its own broker.
fn router(manifests: impl Fn(&str) -> String) -> LocalRouter {
    // It has no port of its own before it is started, and is not started without a Trigger.
    let router = Setup::new(&leading_to("first", "http://127.0.0.1:9/", ""), &[]).start();
    router.apply(&manifests(&router.url()));
    router
}

/// What was matched, delivered and dead-lettered once nothing is pending.
fn at_rest(router: &LocalRouter, triggers: &[&str], patience: Duration) -> [u64; 3] {
    eventually(patience, || {
        let figures: Vec<_> = triggers.iter().map(|name| router.accounting(name)).collect();
        let sum = |name| figures.iter().map(|figures| figures[name]).sum();
        match (sum("matched"), sum("pending")) {
            (matched, 0) if matched > 0 => Ok([matched, sum("delivered"), sum("dead_lettered")]),
            _ => Err(format!("{figures:?}")),
        }
    })
}

#[test]
fn a_sink_that_leads_back_to_its_broker_ends() {
    let router = router(|broker| leading_to("back", broker, ""));
    assert_eq!(router.post("t", "1", &[]).status, 202);
    let expected = [MAX_HOPS + 1, MAX_HOPS, 1];
    eventually(PATIENCE, || match at_rest(&router, &["back"], PATIENCE) {
        figures if figures == expected => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    let refused = ["weir_requests_rejected_total", "reason=\"too_many_hops\""];
    assert_eq!(router.metric(&refused), Some(1), "and it is final");
    router
        .process
        .wait_for_line(PATIENCE, |line| line.contains("looks like a loop"));
    // Whoever sends the event anew begins anew; whoever passes it on does not.
    let passed_on = router.post("t", "2", &[("weir-hops", "33")]);
    assert_eq!(passed_on.status, 422, "{}", passed_on.text());
    assert!(passed_on.text().contains("too_many_hops"), "{}", passed_on.text());
}

#[test]
fn two_sinks_that_lead_back_end_although_they_double_the_events() {
    let router = router(|broker| leading_to("one", broker, "") + &leading_to("two", broker, ""));
    assert_eq!(router.post("t", "1", &[]).status, 202);
    let expected = [2 * (MAX_DESCENDANTS + 1), MAX_DESCENDANTS, MAX_DESCENDANTS + 2];
    eventually(LONG, || match at_rest(&router, &["one", "two"], LONG) {
        figures if figures == expected => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
}

#[test]
fn a_dead_letter_sink_that_leads_back_ends() {
    let refusing = Consumer::start();
    refusing.answer(Answer::status(400));
    let router = router(|broker| {
        let dead_letters = format!(", deadLetterSink: {{uri: '{broker}'}}");
        leading_to("refused", &refusing.url(), &dead_letters)
    });
    assert_eq!(router.post("t", "1", &[]).status, 202);
    let expected = [MAX_HOPS + 1, 0, MAX_HOPS + 1];
    eventually(PATIENCE, || match at_rest(&router, &["refused"], PATIENCE) {
        figures if figures == expected => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    assert_eq!(
        router.metric(&["weir_dead_letters{"]),
        Some(1),
        "the last is kept"
    );
    assert_eq!(refusing.received().len() as u64, MAX_HOPS + 1);
}

#[test]
fn replies_that_lead_to_replies_have_a_number() {
    const BATCH: u64 = 100;
    let replying = Consumer::start();
    let event = r#"{"specversion":"1.0","source":"/r","type":"t","id":"r"}"#;
    let batch = format!("[{}]", vec![event; BATCH as usize].join(","));
    replying.answer(
        Answer::status(200)
            .header("content-type", "application/cloudevents-batch+json")
            .body(batch),
    );
    let manifest = super::trigger("replying", "");
    let router = Setup::new(&manifest, &[mapped("replying", &replying)]).start();
    assert_eq!(router.post("t", "1", &[]).status, 202);
    let stored = MAX_DESCENDANTS / BATCH * BATCH;
    let expected = [stored + 1, stored + 1, 0];
    eventually(LONG, || match at_rest(&router, &["replying"], LONG) {
        figures if figures == expected => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    let replies = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        router.metric(&["weir_trigger_replies_total", "trigger=\"replying\"", &outcome])
    };
    assert_eq!(replies("stored"), Some(stored));
    assert_eq!(
        replies("beyond_max_descendants"),
        Some(stored + 1 - stored / BATCH),
        "each that was not stored is counted"
    );
}
