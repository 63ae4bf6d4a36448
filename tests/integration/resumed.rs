//! A Trigger that is deleted and re-created, as GitOps tools do: the new one, with another UID, resumes from the old one's
//! checkpoint.

use crate::{
    cluster::{Weir, post_binary, trigger},
    controller::{condition, events},
    support::{Answer, Consumer, ControlPlane, PATIENCE, eventually},
};

#[test]
fn a_trigger_that_is_created_anew_has_its_backlog_and_says_so() {
    let plane = ControlPlane::start();
    let weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("anew");
    let consumer = Consumer::start();
    consumer.answer(Answer::status(503));
    let delivery = ", delivery: {backoffDelay: 50ms, backoffMax: 200ms}";
    let manifest = trigger("t", "[]", &format!("{{uri: '{}'}}", consumer.url()), delivery);
    kubectl.apply(&manifest);
    kubectl.wait_ready("trigger/t");
    let broker = weir.broker(kubectl.namespace());
    let ids: Vec<_> = (0..50).map(|id| id.to_string()).collect();
    for id in &ids[..40] {
        post_binary(&broker, id, "t", "{}");
    }
    consumer.wait_for(1);
    kubectl.run(["delete", "trigger/t"]);
    let is_kept = |count| {
        eventually(PATIENCE, || {
            let line = format!("weir_triggers_kept {count}");
            let metrics = weir.metrics();
            metrics
                .lines()
                .any(|found| found == line)
                .then_some(())
                .ok_or(metrics)
        });
    };
    is_kept(1);
    for id in &ids[40..] {
        post_binary(&broker, id, "t", "{}");
    }
    kubectl.apply(&manifest);
    kubectl.wait_ready("trigger/t");
    is_kept(0);
    consumer.answer(Answer::status(204));
    consumer.wait_until(PATIENCE, |received| {
        ids.iter()
            .all(|id| received.iter().any(|message| message.header("ce-id") == Some(id)))
    });
    kubectl.wait_condition("trigger/t", "Resumed");
    assert_eq!(
        condition(&kubectl, "trigger/t", "Resumed")["reason"],
        "PlaceTakenUp"
    );
    eventually(PATIENCE, || {
        let told = events(&kubectl, "t");
        let is_told = told.iter().any(|(reason, _)| reason == "PlaceTakenUp");
        is_told.then_some(()).ok_or(format!("{told:?}"))
    });

    // A start that is set is where it begins, and what waits for the deleted one is given up.
    consumer.answer(Answer::status(503));
    post_binary(&broker, "waits", "t", "{}");
    kubectl.run(["delete", "trigger/t"]);
    is_kept(1);
    kubectl.apply(&manifest.replace(", delivery:", ", start: Latest, delivery:"));
    kubectl.wait_ready("trigger/t");
    is_kept(0);
    let metrics = weir.metrics();
    let dropped = "weir_events_dropped_with_trigger_total 1";
    assert!(metrics.lines().any(|line| line == dropped), "{metrics}");
}
