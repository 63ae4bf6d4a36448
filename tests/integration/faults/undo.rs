//! What is taken away by mistake, and put back: a manifest that is empty for a moment, a Trigger that is deleted and
//! created anew, a router that is killed meanwhile. And a deleted Trigger rejects no producer.

use std::{thread, time::Duration};

use super::{LocalRouter, Producers, Setup, all_arrive, mapped, trigger};
use crate::support::{Answer, Consumer, PATIENCE, eventually};

const BACKLOG: u32 = 50;

/// A router whose Trigger `any` has a Sink that fails, beside one that nothing happens to.
fn start(setup: impl FnOnce(Setup) -> Setup) -> (LocalRouter, Consumer, Consumer) {
    let [any, other] = [(); 2].map(|()| Consumer::start());
    any.answer(Answer::status(503));
    let manifests = [trigger("any", ""), trigger("other", "")].concat();
    let services = [mapped("any", &any), mapped("other", &other)];
    (setup(Setup::new(&manifests, &services)).start(), any, other)
}

fn post_backlog(router: &LocalRouter) {
    assert_eq!(router.post_batch("t", 0..BACKLOG).status, 202);
    eventually(PATIENCE, || {
        match router.metric(&["weir_trigger_events_pending", "trigger=\"any\""]) {
            Some(pending) if pending == u64::from(BACKLOG) => Ok(()),
            pending => Err(format!("{pending:?} are pending")),
        }
    });
}

/// Everything from 0 up to `end` arrives at `any`, and the accounting is right.
#[track_caller]
fn check_all_arrive(router: &LocalRouter, any: &Consumer, end: u32) {
    any.answer(Answer::status(204));
    router.wait_until_all_are("any", "delivered", end as usize);
    let mut ids: Vec<u32> = any
        .received()
        .iter()
        .map(|message| {
            let event: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
            event["id"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (0..end).collect::<Vec<_>>());
    assert_eq!(
        router.metric(&["weir_events_dropped_with_trigger_total"]),
        Some(0)
    );
}

#[track_caller]
fn wait_until_kept(router: &LocalRouter, count: u64) {
    eventually(PATIENCE, || match router.metric(&["weir_triggers_kept"]) {
        Some(kept) if kept == count => Ok(()),
        kept => Err(format!("{kept:?} checkpoints are kept, not {count}")),
    });
}

#[test]
fn a_manifest_that_is_empty_while_an_editor_saves_it_takes_nothing_away() {
    let (router, any, _) = start(|setup| setup);
    post_backlog(&router);
    let applied = router.times_applied();
    for content in ["", &trigger("other", "")[..40]] {
        router.change(content);
        // As long as the editor takes.
        thread::sleep(Duration::from_millis(400));
        router.change(&[trigger("any", ""), trigger("other", "")].concat());
    }
    // What changes acts at once, and nothing else was applied before it.
    let changed = [trigger("any", "timeout: 20s"), trigger("other", "")].concat();
    router.apply(&changed);
    assert_eq!(router.times_applied(), applied + 1);
    check_all_arrive(&router, &any, BACKLOG);
    let lines = router.process.lines();
    assert!(!lines.iter().any(|line| line.contains("Trigger deleted")));
}

#[test]
fn a_trigger_that_is_deleted_and_created_anew_goes_on_also_after_a_kill() {
    let (mut router, any, other) = start(|setup| setup);
    post_backlog(&router);
    router.apply(&trigger("other", ""));
    wait_until_kept(&router, 1);
    assert_eq!(router.post_batch("t", BACKLOG..2 * BACKLOG).status, 202);
    router.kill_and_restart();
    wait_until_kept(&router, 1);
    let explained = router.weir(&["explain", "shop/default", "--id", "0"]);
    let explained = explained.run().unwrap();
    assert!(
        explained.contains("Trigger shop/any was deleted") && explained.contains("50 events pending"),
        "{explained}"
    );
    assert_eq!(router.post_batch("t", 2 * BACKLOG..3 * BACKLOG).status, 202);
    router.apply(&[trigger("any", ""), trigger("other", "")].concat());
    check_all_arrive(&router, &any, 3 * BACKLOG);
    wait_until_kept(&router, 0);
    router.wait_until_all_are("other", "delivered", 3 * BACKLOG as usize);
    assert!(other.received().len() >= 3 * BACKLOG as usize);
}

#[test]
fn a_deleted_trigger_is_given_up_at_once_where_none_is_kept() {
    let (router, _, _) = start(|setup| setup.argument("--keep-deleted-triggers=0s"));
    post_backlog(&router);
    router.apply(&trigger("other", ""));
    let dropped = router.metric(&["weir_events_dropped_with_trigger_total"]);
    assert_eq!(dropped, Some(u64::from(BACKLOG)));
    assert_eq!(router.metric(&["weir_triggers_kept"]), Some(0));
}

#[test]
fn a_full_log_refuses_nobody_for_a_deleted_trigger() {
    let (router, _, other) = start(|setup| {
        setup
            .argument("--log-size=2MiB")
            .argument("--retention-size=1KiB")
    });
    let producers = Producers::with_data(&router.url(), 8 * 1024);
    eventually(PATIENCE, || match producers.refused_with(507) {
        0 => Err(format!("{} were accepted", producers.count())),
        _ => Ok(()),
    });
    drop(producers.finish());
    router.apply(&trigger("other", ""));
    // Until it is gone, probes of its Sink make it look at more.
    let gone = router
        .process
        .wait_for_line(PATIENCE, |line| line.contains("Trigger deleted"));
    let pending = gone.split_once("pending=").unwrap().1;
    let waits = pending.split(' ').next().unwrap().parse().ok();
    assert_eq!(router.metric(&["weir_triggers_kept"]), Some(1));
    assert_eq!(
        router.metric(&["weir_events_dropped_with_trigger_total"]),
        Some(0)
    );

    // There is room for them once the checkpoint is discarded, without rejecting an event.
    let producers = Producers::with_data(&router.url(), 8 * 1024);
    producers.wait_for_more(100);
    assert_eq!(producers.refused_with(507), 0);
    all_arrive(&other, &producers.finish());
    assert_eq!(router.metric(&["weir_triggers_kept"]), Some(0));
    assert_eq!(router.metric(&["weir_events_dropped_with_trigger_total"]), waits);
    let told = |line: &str| {
        line.contains("discarded the checkpoint") && line.contains("room is needed in the event log")
    };
    router.process.wait_for_line(PATIENCE, told);
}
