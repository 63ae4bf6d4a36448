//! Events that their Sink never takes: they hold nobody but themselves and their key.

use std::{collections::BTreeSet, time::Duration};

use super::{LocalRouter, Setup, all_arrive, is_long, mapped, producers::post_event, trigger};
use crate::support::{Answer, Consumer, PATIENCE, Received, eventually};

/// A Sink that answers 503 to events whose key begins with `bad`, and takes the others.
fn picky() -> Consumer {
    let consumer = Consumer::start();
    consumer.answer_by(|message| Answer::status(if is_bad(message) { 503 } else { 204 }));
    consumer
}

fn is_bad(message: &Received) -> bool {
    message.header("ce-partitionkey").unwrap().starts_with("bad")
}

fn post(
    router: &LocalRouter,
    ids: impl Iterator<Item = usize>,
    key: impl Fn(usize) -> String,
) -> BTreeSet<String> {
    ids.map(|number| {
        let key = key(number);
        let id = format!("{key}-{number}");
        assert_eq!(post_event(&router.url(), &id, &key, "").unwrap().status, 202);
        id
    })
    .collect()
}

#[test]
fn one_poison_event_does_not_starve_its_trigger() {
    let consumer = picky();
    let manifest = trigger("picky", "ordering: ByKey");
    let router = Setup::new(&manifest, &[mapped("picky", &consumer)]).start();
    post(&router, 0..1, |_| "bad".to_owned());
    // With these pauses as many attempts as in hours with those of the default.
    consumer.wait_for(if is_long() { 200 } else { 20 });
    let good = post(&router, 0..50, |number| format!("good{number}"));
    all_good_arrive(&consumer, &good);
    are_pending(&router, 1);
}

#[test]
fn many_poison_events_in_a_row_do_not_starve_their_trigger() {
    let consumer = picky();
    let manifest = trigger("picky", "ordering: ByKey");
    let router = Setup::new(&manifest, &[mapped("picky", &consumer)]).start();
    post(&router, 0..12, |number| format!("bad{number}"));
    consumer.wait_for(12);
    let good = post(&router, 0..50, |number| format!("good{number}"));
    all_good_arrive(&consumer, &good);
    are_pending(&router, 12);
}

#[test]
fn events_behind_a_failing_one_of_their_key_hold_no_others() {
    let consumer = picky();
    let manifest = trigger("picky", "ordering: ByKey");
    let mut router = Setup::new(&manifest, &[mapped("picky", &consumer)]).start();
    // More than were ever unsettled at once in a window.
    let waiting = if is_long() { 100_000 } else { 1_500 };
    let mut bad = post(&router, 0..waiting, |_| "bad".to_owned());
    let before = router.process.resident_memory();
    let mut good = post(&router, 0..20, |_| "good".to_owned());
    all_good_arrive(&consumer, &good);
    are_pending(&router, waiting);
    let grown = router.process.resident_memory().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "{grown} bytes");

    // Also across a crash, and once the Sink takes them all, in order.
    router.kill_and_restart();
    good.extend(post(&router, 20..40, |_| "good".to_owned()));
    all_good_arrive(&consumer, &good);
    consumer.answer(Answer::status(204));
    bad.extend(good);
    all_arrive(&consumer, &bad);
    let mut order: Vec<usize> = Vec::new();
    consumer.look(|received| {
        let bad = received.iter().filter(|message| is_bad(message));
        order.extend(bad.map(number_of));
    });
    order.dedup();
    assert_eq!(order, (0..waiting).collect::<Vec<_>>());
    router.wait_until_all_are("picky", "delivered", bad.len());
}

/// Waits until so many are: an event has arrived a moment before it is settled.
#[track_caller]
fn are_pending(router: &LocalRouter, expected: usize) {
    eventually(PATIENCE, || match router.accounting("picky")["pending"] {
        pending if pending == expected as u64 => Ok(()),
        pending => Err(format!("{pending} are pending")),
    });
}

fn number_of(message: &Received) -> usize {
    let id = message.header("ce-id").unwrap();
    id.split_once('-').unwrap().1.parse().unwrap()
}

/// Waits until the good ones have arrived; a minute is short beside the day that a Sink's outage was taken for.
#[track_caller]
fn all_good_arrive(consumer: &Consumer, good: &BTreeSet<String>) {
    consumer.wait_until(PATIENCE.max(Duration::from_secs(60)), |received| {
        let arrived: BTreeSet<_> = received
            .iter()
            .filter_map(|message| message.header("ce-id"))
            .collect();
        good.iter().all(|id| arrived.contains(id.as_str()))
    });
}
