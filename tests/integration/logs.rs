//! What a router logs of single events.

use serde_json::Value;

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, Process};

const MANIFEST: &str = "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: billing, namespace: shop}\n\
                        spec:\n  sink: {service: {name: billing}}\n";

/// The lines with this message.
fn lines(router: &LocalRouter, message: &str) -> Vec<Value> {
    let lines = router.process.lines();
    let json = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    json.filter(|line| line["message"] == message).collect()
}

#[test]
fn a_line_about_an_event_names_it_and_many_are_not_a_flood() {
    let billing = Consumer::start();
    billing.answer(Answer::status(400).body("no"));
    let router = LocalRouter::start_with(MANIFEST, &[("billing", &billing)], &["--log-format=json"]);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let sent = 200;
    for id in 0..sent {
        let id = format!("{id}{}", "x".repeat(300));
        assert_eq!(router.post("order", &id, &[("traceparent", parent)]).status, 202);
    }
    router.wait_until_all_are("billing", "dead_lettered", sent);
    let said = lines(&router, "an event became a dead letter");
    assert!(
        !said.is_empty() && said.len() < sent,
        "{} lines for {sent} events",
        said.len()
    );
    let line = &said[0];
    let expected = [
        ("level", "WARN"),
        ("trigger", "shop/billing"),
        ("broker", "shop/default"),
        ("event_source", "/p"),
        ("event_type", "order"),
        ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("error", "400 Bad Request: no"),
        ("reason", "refused"),
    ];
    for (field, value) in expected {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(line["event_id"].as_str().map(str::len), Some(256));
    assert_eq!((&line["attempts"], &line["status"]), (&1.into(), &400.into()));
}

#[test]
fn each_delivery_can_be_logged() {
    let billing = Consumer::start();
    let arguments = ["--log-format=json", "--log-level=info,weir::delivery=debug"];
    let router = LocalRouter::start_with(MANIFEST, &[("billing", &billing)], &arguments);
    assert_eq!(router.post("order", "1", &[]).status, 202);
    router
        .process
        .wait_for_line(PATIENCE, |line| line.contains("an event was delivered"));
    let said = lines(&router, "an event was delivered");
    assert_eq!(
        (&said[0]["event_id"], &said[0]["status"]),
        (&"1".into(), &204.into())
    );
    assert_eq!(said[0].get("trace_id"), None);
}

#[test]
fn why_a_process_ends_is_logged_as_everything_else() {
    let arguments = ["router", "--data=/dev/null/weir", "--log-format=json"];
    let said = Process::weir(arguments).run().unwrap_err();
    let line = said.strip_prefix("exit status: 1: ").unwrap_or(&said);
    let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(
        (&line["level"], &line["message"]),
        (&"ERROR".into(), &"the process exits with an error".into())
    );
    let error = line["error"].as_str().unwrap_or_default();
    assert!(error.contains("/dev/null/weir"), "{line}");
}

#[test]
fn a_level_that_is_none_is_refused_and_silences_nothing() {
    let said = Process::weir(["run", ".", "--log-level=verbose"])
        .run()
        .unwrap_err();
    assert!(said.contains("\"verbose\" is not one of error"), "{said}");
}
