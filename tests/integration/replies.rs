//! A Sink that answers with an event: it is stored in the broker, and matched like any other.

use std::time::Duration;

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, Received, eventually};

fn trigger(name: &str, r#type: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         filters: [{{exact: {{type: {type}}}}}]\n  sink: {{service: {{name: {name}}}}}\n  \
         delivery: {{backoffDelay: 20ms, backoffMax: 100ms}}\n"
    )
}

/// An answer with an event in binary mode, whose id is that of the request with `-reply`.
fn reply(request: &Received, status: u16, r#type: &str) -> Answer {
    Answer::status(status)
        .header("ce-specversion", "1.0")
        .header("ce-id", &format!("{}-reply", request.header("ce-id").unwrap()))
        .header("ce-source", "/replier")
        .header("ce-type", r#type)
        .header("ce-unknown", "kept%20so")
        .header("content-type", "text/plain")
        .body("the reply")
}

fn replies(router: &LocalRouter, outcome: &str) -> u64 {
    let outcome = format!("outcome=\"{outcome}\"");
    router
        .metric(&["weir_trigger_replies_total", "trigger=\"ask\"", &outcome])
        .unwrap()
}

#[test]
fn a_reply_is_matched_by_the_triggers_of_the_broker() {
    let [ask, answers] = [(); 2].map(|()| Consumer::start());
    ask.answer_by(|request| match request.header("ce-id").unwrap() {
        "structured" => Answer::status(201)
            .header("content-type", "application/cloudevents+json")
            .body(r#"{"specversion":"1.0","id":"s-reply","source":"/r","type":"answer","data":1.10}"#),
        "accepted" => reply(request, 202, "answer"),
        "plain" => Answer::status(200)
            .header("content-type", "text/plain")
            .body("just text"),
        "invalid" => Answer::status(200)
            .header("ce-specversion", "1.0")
            .header("ce-id", "i-reply"),
        "coded" => reply(request, 200, "answer").header("content-encoding", "gzip"),
        "huge" => reply(request, 200, "answer").body("x".repeat(2 * 1024 * 1024)),
        _ => reply(request, 200, "answer"),
    });
    let router = LocalRouter::start(
        &(trigger("ask", "question") + &trigger("answers", "answer")),
        &[("ask", &ask), ("answers", &answers)],
    );
    for id in [
        "accepted",
        "plain",
        "invalid",
        "coded",
        "huge",
        "binary",
        "structured",
    ] {
        assert_eq!(router.post("question", id, &[]).status, 202);
    }
    assert!(
        ask.wait_for(7)
            .iter()
            .all(|request| request.header("prefer") == Some("reply"))
    );
    let received = answers.wait_for(2);
    let binary = received
        .iter()
        .find(|request| request.header("ce-id") == Some("binary-reply"))
        .unwrap();
    assert_eq!(binary.body, "the reply");
    assert_eq!(
        ["ce-unknown", "content-type", "ce-weirhops"].map(|name| binary.header(name)),
        [Some("kept%20so"), Some("text/plain"), Some("1")]
    );
    let structured = received
        .iter()
        .find(|request| request.header("ce-id").is_none())
        .unwrap();
    let text = String::from_utf8(structured.body.to_vec()).unwrap();
    assert!(
        text.contains(r#""data":1.10"#) && text.contains(r#""weirhops":"1""#),
        "{text}"
    );
    eventually(PATIENCE, || {
        let counted = ["stored", "invalid", "beyond_max_hops"].map(|outcome| replies(&router, outcome));
        let figures = (counted, router.accounting("ask")["delivered"]);
        if figures == ([2, 3, 0], 7) {
            Ok(())
        } else {
            Err(format!("{figures:?}"))
        }
    });
    assert_eq!(
        answers.received().len(),
        2,
        "a 202, a text, no valid event, a coded and a large one are no replies"
    );
}

#[test]
fn a_loop_of_replies_ends() {
    let ask = Consumer::start();
    ask.answer_by(|request| reply(request, 200, "question"));
    let router = LocalRouter::start(&trigger("ask", "question"), &[("ask", &ask)]);
    assert_eq!(router.post("question", "first", &[]).status, 202);
    eventually(PATIENCE, || {
        let counted = ["stored", "beyond_max_hops"].map(|outcome| replies(&router, outcome));
        if counted == [32, 1] {
            Ok(())
        } else {
            Err(format!("{counted:?}"))
        }
    });
    router
        .process
        .wait_for_line(PATIENCE, |line| line.contains("looks like a loop"));
    assert_eq!(router.accounting("ask")["delivered"], 33);
    assert_eq!(ask.received().len(), 33);
}

#[test]
fn a_delivery_is_repeated_until_its_reply_is_stored() {
    let ask = Consumer::start();
    ask.answer(Answer::status(503));
    // Once 64 KiB are stored the log is full; the reply is larger than what is left.
    let mut router = LocalRouter::start_with(
        &trigger("ask", "question"),
        &[("ask", &ask)],
        &["--log-size=64KiB", "--retention-size=1KiB"],
    );
    assert_eq!(router.post("question", "first", &[]).status, 202);
    ask.answer_by(|request| reply(request, 200, "answer").body("x".repeat(100 * 1024)));
    let times = ask.received().len();
    ask.wait_until(PATIENCE, |received| received.len() > times + 3);
    assert_eq!(router.accounting("ask")["pending"], 1);
    router.kill_and_restart();
    ask.answer_by(|request| reply(request, 200, "answer"));
    eventually(
        Duration::from_secs(30),
        || match router.accounting("ask")["delivered"] {
            1 => Ok(()),
            other => Err(format!("{other} delivered")),
        },
    );
    assert_eq!(replies(&router, "stored"), 1);
}
