//! A Sink that keeps failing is seen in its Trigger's status, until it answers again.

use serde_json::Value;

use crate::{
    cluster::{Weir, post_binary, trigger},
    controller::{condition, events},
    support::{Answer, Consumer, ControlPlane, PATIENCE, eventually},
};

const TYPE: &str = "SinkAnswering";

fn await_outage_in_metrics(weir: &Weir) {
    eventually(PATIENCE, || {
        let metrics = weir.metrics();
        let is_down = |line: &str| {
            line.starts_with("weir_trigger_sink_down{")
                && line.contains("\"failing\"")
                && line.ends_with(" 1")
        };
        if metrics.lines().any(is_down) {
            Ok(())
        } else {
            Err(metrics)
        }
    });
}

#[test]
fn a_sink_that_keeps_failing_is_seen_in_status_until_it_answers() {
    let plane = ControlPlane::start();
    let mut weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("outage");
    let [failing, fine] = [(); 2].map(|()| Consumer::start());
    let delivery = ", delivery: {backoffDelay: 50ms, backoffMax: 200ms}";
    let to = |consumer: &Consumer| format!("{{uri: '{}'}}", consumer.url());
    kubectl.apply(
        &[
            trigger("failing", "[]", &to(&failing), delivery),
            trigger("fine", "[]", &to(&fine), delivery),
        ]
        .concat(),
    );
    let names = ["trigger/failing", "trigger/fine"];
    for name in names {
        kubectl.wait_ready(name);
        assert_eq!(
            condition(&kubectl, name, TYPE),
            Value::Null,
            "nothing was sent yet"
        );
    }
    post_binary(&weir.broker(kubectl.namespace()), "0", "t", "{}");
    for name in names {
        kubectl.wait_condition(name, TYPE);
    }

    failing.answer(Answer::status(503).body("\u{1b}[31mover\nloaded"));
    let broker = weir.broker(kubectl.namespace());
    for id in ["1", "2", "3"] {
        post_binary(&broker, id, "t", "{}");
    }
    kubectl.wait_condition("trigger/failing", "SinkAnswering=False");
    let down = condition(&kubectl, "trigger/failing", TYPE);
    assert_eq!(
        (&down["reason"], &down["observedGeneration"]),
        (&"SinkDown".into(), &1.into())
    );
    let message = down["message"].as_str().unwrap();
    assert!(
        message.contains("503 Service Unavailable: [31mover loaded"),
        "{message}"
    );
    assert_eq!(condition(&kubectl, "trigger/failing", "Ready")["status"], "True");
    assert_eq!(condition(&kubectl, "trigger/fine", TYPE)["status"], "True");

    // A restart of either makes nobody say that all is well.
    weir.kill_and_restart_router();
    await_outage_in_metrics(&weir);
    weir.kill_and_restart_controller(&plane);
    kubectl.apply(&trigger("new", "[]", &to(&fine), delivery));
    kubectl.wait_ready("trigger/new");
    post_binary(&weir.broker(kubectl.namespace()), "4", "t", "{}");
    kubectl.wait_condition("trigger/new", TYPE);
    let still = condition(&kubectl, "trigger/failing", TYPE);
    assert_eq!(
        (&still["status"], &still["lastTransitionTime"]),
        (&"False".into(), &down["lastTransitionTime"])
    );

    failing.answer(Answer::status(204));
    kubectl.wait_condition("trigger/failing", TYPE);
    failing.wait_until(PATIENCE, |received| {
        let delivered = |id| {
            received
                .iter()
                .filter(|message| message.header("ce-id") == Some(id))
                .count()
                > 1
        };
        ["1", "2", "3"].into_iter().all(delivered)
    });
    let told = |name: &str| -> Vec<_> {
        let of_sink = |(reason, _): &(String, u64)| matches!(&**reason, "SinkDown" | "Answering");
        events(&kubectl, name).into_iter().filter(of_sink).collect()
    };
    eventually(PATIENCE, || match told("failing") {
        told if told == [("Answering".to_owned(), 1), ("SinkDown".to_owned(), 1)] => Ok(()),
        told => Err(format!("{told:?}")),
    });
    assert_eq!(told("fine"), []);
}

#[test]
fn another_sink_is_tried_at_once() {
    let plane = ControlPlane::start();
    let weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("moved");
    let [failing, other] = [(); 2].map(|()| Consumer::start());
    // Longer than any test waits.
    failing.answer(Answer::status(503).header("retry-after", "3600"));
    let delivery = ", delivery: {retryDuration: 6h, backoffDelay: 1h, backoffMax: 1h, retryAfterMax: 1h}";
    let to = |consumer: &Consumer| {
        trigger(
            "failing",
            "[]",
            &format!("{{uri: '{}'}}", consumer.url()),
            delivery,
        )
    };
    kubectl.apply(&to(&failing));
    kubectl.wait_ready("trigger/failing");
    let broker = weir.broker(kubectl.namespace());
    let ids: Vec<_> = (0..12).map(|id| id.to_string()).collect();
    for id in &ids {
        post_binary(&broker, id, "t", "{}");
    }
    kubectl.wait_condition("trigger/failing", "SinkAnswering=False");
    kubectl.apply(&to(&other));
    other.wait_for(ids.len());
    kubectl.wait_condition("trigger/failing", TYPE);
}
