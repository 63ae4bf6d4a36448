//! A broker with deduplication stores what is sent again once, and tells producers of an id that is used twice.

use serde_json::Value;

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, Response, eventually, post};

const BROKER: &str = "---\napiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {name: default, namespace: shop}\n\
                      spec: {deduplication: {window: 10m, events: 1000}}\n";

fn trigger(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: all}}}}\n  delivery: {{retry: 0}}\n{spec}"
    )
}

fn deduplicated(router: &LocalRouter, result: &str) -> Option<u64> {
    let result = format!("result=\"{result}\"");
    router.metric(&[
        "weir_broker_events_deduplicated_total",
        "broker=\"default\"",
        &result,
    ])
}

/// Posts a batch of events with these ids and data.
fn post_batch(router: &LocalRouter, events: &[(&str, u32)]) -> Response {
    let event = |(id, data): &(&str, u32)| {
        format!(r#"{{"specversion":"1.0","source":"/p","type":"t","id":"{id}","data":{data}}}"#)
    };
    let events: Vec<_> = events.iter().map(event).collect();
    let headers = [("content-type", "application/cloudevents-batch+json")];
    post(&router.url(), &headers, format!("[{}]", events.join(",")))
}

#[track_caller]
fn assert_conflict(answer: &Response, id_at: Option<u64>) {
    let text = answer.text();
    assert_eq!(answer.status, 422, "{text}");
    let problem: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(problem["reason"], "conflicting_event", "{text}");
    assert!(text.contains("was stored at 20"), "{text}");
    assert!(id_at.is_none_or(|at| text.contains(&at.to_string())), "{text}");
}

#[test]
fn repeats_are_stored_once_and_conflicts_are_told() {
    let consumer = Consumer::start();
    let manifests = BROKER.to_owned() + &trigger("all", "");
    let mut router = LocalRouter::start(&manifests, &[("all", &consumer)]);
    assert_eq!(deduplicated(&router, "repeat"), Some(0));
    for time in ["2026-12-01T00:00:00Z", "2026-12-01T00:00:09Z"] {
        assert_eq!(router.post("t", "1", &[("ce-time", time)]).status, 202);
    }
    assert_conflict(&router.post("other", "1", &[]), None);
    assert_eq!(
        [deduplicated(&router, "repeat"), deduplicated(&router, "conflict")],
        [Some(1), Some(1)]
    );
    assert_eq!(router.metric(&["weir_events_accepted_total"]), Some(1));

    // A batch is stored whole, without its repeats, or not at all.
    assert_eq!(post_batch(&router, &[("2", 1), ("3", 1), ("2", 1)]).status, 202);
    assert_eq!(post_batch(&router, &[("3", 1), ("4", 1)]).status, 202);
    assert_conflict(&post_batch(&router, &[("5", 1), ("3", 2)]), Some(1));
    assert_conflict(&post_batch(&router, &[("5", 1), ("5", 2)]), Some(1));
    assert_eq!(router.metric(&["weir_events_accepted_total"]), Some(4));
    router.wait_until_all_are("all", "delivered", 4);
    assert_eq!(router.metric(&["weir_broker_deduplication_ids"]), Some(4));

    router.kill_and_restart();
    for id in ["1", "2", "3", "4"] {
        let answer = match id {
            "1" => router.post("t", id, &[]),
            id => post_batch(&router, &[(id, 1)]),
        };
        assert_eq!(answer.status, 202);
    }
    assert_eq!(deduplicated(&router, "repeat"), Some(4));
    assert_eq!(router.post("t", "5", &[]).status, 202);
    router.wait_until_all_are("all", "delivered", 5);

    // A Trigger that starts in the past gets what is stored, and nothing else.
    router.apply(&(manifests.clone() + &trigger("replay", "  start: Earliest\n")));
    router.wait_until_all_are("replay", "delivered", 5);
    router.wait_until_all_are("all", "delivered", 5);

    // Without deduplication the same event is another one.
    router.apply(&trigger("all", ""));
    assert_eq!(router.post("t", "5", &[]).status, 202);
    router.wait_until_all_are("all", "delivered", 6);
    assert_eq!(deduplicated(&router, "repeat"), None);
}

/// A producer whose 202 got lost sends again, whether there is room by now or not.
#[test]
fn repeats_need_no_room_within_the_quota() {
    for when_full in ["Reject", "DropOldest"] {
        let quota = format!("spec: {{whenFull: {when_full}, quota: {{bytes: 1Ki}}, ");
        let manifests = BROKER.replace("spec: {", &quota) + &trigger("all", "  suspend: true\n");
        let router = LocalRouter::start(&manifests, &[]);
        let dropped = || router.metric(&["weir_events_dropped_when_full_total"]).unwrap();
        let post = |id: u64| router.post("t", &id.to_string(), &[]).status;
        let mut stored = 0;
        while dropped() == 0 && post(stored) == 202 {
            stored += 1;
        }
        assert!(stored > 1, "{when_full}");
        let before = dropped();
        for id in 0..stored {
            assert_eq!(post(id), 202, "{when_full}: {id} of {stored}");
        }
        assert_eq!(deduplicated(&router, "repeat"), Some(stored), "{when_full}");
        assert_eq!(dropped(), before);
    }
}

#[test]
fn redriven_events_are_no_repeats() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(422));
    let router = LocalRouter::start(&(BROKER.to_owned() + &trigger("all", "")), &[("all", &consumer)]);
    for _ in 0..2 {
        assert_eq!(router.post("t", "1", &[]).status, 202);
    }
    router.wait_until_all_are("all", "dead_lettered", 1);
    consumer.answer(Answer::status(204));
    let arguments = ["dead-letters", "redrive", "shop/default", "--all"];
    let mut redrive = router.weir(&arguments).quiet().start();
    assert!(redrive.wait_for_exit(PATIENCE).success());
    eventually(PATIENCE, || match router.accounting("all") {
        figures if figures["delivered"] == 1 && figures["dead_lettered"] == 1 => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    assert_eq!(consumer.received().len(), 2);
}

/// The second delivery of an event has the same reply; another event with the id of a stored one is no reply.
#[test]
fn replies_are_deduplicated_by_their_own_ids() {
    let consumer = Consumer::start();
    consumer.answer_by(|request| match request.header("ce-type") {
        Some("question") => Answer::status(200)
            .header("ce-specversion", "1.0")
            .header("ce-source", "/replier")
            .header("ce-id", "the-reply")
            .header("ce-type", "answer"),
        Some("echo") => Answer::status(200)
            .header("ce-specversion", "1.0")
            .header("ce-source", "/p")
            .header("ce-id", request.header("ce-id").unwrap())
            .header("ce-type", "echoed"),
        _ => Answer::status(204),
    });
    let router = LocalRouter::start(&(BROKER.to_owned() + &trigger("all", "")), &[("all", &consumer)]);
    for id in ["1", "2"] {
        assert_eq!(router.post("question", id, &[]).status, 202);
    }
    assert_eq!(router.post("echo", "3", &[]).status, 202);
    router.wait_until_all_are("all", "delivered", 4);
    assert_eq!(
        [deduplicated(&router, "repeat"), deduplicated(&router, "conflict")],
        [Some(1), Some(1)]
    );
    let invalid = router.metric(&["weir_trigger_replies_total", "outcome=\"invalid\""]);
    assert_eq!(invalid, Some(1));
}
