//! A share of the log that is full: what is settled goes first; then new events are rejected, or the oldest are dropped.

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, eventually};

const TRIGGER: &str = "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: t, namespace: shop}\nspec:\n  \
     sink: {service: {name: web}}\n  delivery: {backoffDelay: 20ms, backoffMax: 100ms}\n";

/// About 1 KiB of event.
fn post(router: &LocalRouter, id: u32) -> u16 {
    let padding = "x".repeat(900);
    router
        .post("t", &id.to_string(), &[("ce-padding", &padding)])
        .status
        .as_u16()
}

#[test]
fn settled_events_make_room_and_unsettled_ones_are_not_dropped() {
    let consumer = Consumer::start();
    let router = LocalRouter::start_with(TRIGGER, &[("web", &consumer)], &["--log-size=512KiB"]);
    // Four times as much as there is room for, and all of it is retained by age and size.
    for id in 0..1000 {
        eventually(PATIENCE, || match post(&router, id) {
            202 => Ok(()),
            // Delivery is a moment behind.
            status => Err(format!("{status} for event {id}")),
        });
    }
    consumer.wait_for(1000);

    consumer.answer(Answer::status(503));
    let mut accepted = 0;
    let refusal = loop {
        let padding = "x".repeat(900);
        let response = router.post("t", &format!("kept-{accepted}"), &[("ce-padding", &padding)]);
        if response.status != 202 {
            break response;
        }
        accepted += 1;
        assert!(accepted < 1000, "it is never full");
    };
    assert_eq!(refusal.status, 507);
    assert!(refusal.text().contains("\"quota\""), "{}", refusal.text());
    assert!(accepted > 100, "{accepted}");

    consumer.answer(Answer::status(204));
    let kept = |id: u32| format!("kept-{id}");
    consumer.wait_until(PATIENCE, |received| {
        (0..accepted).all(|id| {
            received
                .iter()
                .any(|message| message.header("ce-id") == Some(&kept(id)))
        })
    });
    eventually(PATIENCE, || match post(&router, 2000) {
        202 => Ok(()),
        status => Err(format!("{status} though all is delivered")),
    });
    assert_eq!(router.metric(&["weir_events_dropped_when_full_total"]), Some(0));
    assert_eq!(router.metric(&["weir_trigger_events_missed_total"]), Some(0));
    assert_eq!(router.accounting("t")["dropped"], 0);
}

#[test]
fn a_log_that_is_full_of_what_becomes_dead_letters_empties_itself() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(503));
    let arguments = ["--log-size=256KiB", "--dead-letter-size=8KiB"];
    let router = LocalRouter::start_with(TRIGGER, &[("web", &consumer)], &arguments);
    let mut accepted = 0;
    while post(&router, accepted) == 202 {
        accepted += 1;
        assert!(accepted < 1000, "it is never full");
    }
    // Each of them needs room in the dead-letter log before it is settled.
    consumer.answer(Answer::status(400));
    eventually(PATIENCE * 4, || {
        let figures = router.accounting("t");
        if figures["dead_lettered"] == u64::from(accepted) {
            Ok(())
        } else {
            Err(format!("{figures:?} of {accepted}"))
        }
    });
    eventually(PATIENCE, || match post(&router, accepted) {
        202 => Ok(()),
        status => Err(format!("{status} though all is settled")),
    });
}

#[test]
fn the_oldest_events_are_dropped_where_the_operator_chose_that() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(503));
    let arguments = ["--log-size=1MiB", "--when-full=drop-oldest"];
    let router = LocalRouter::start_with(TRIGGER, &[("web", &consumer)], &arguments);
    for id in 0..3000 {
        assert_eq!(post(&router, id), 202);
    }
    router
        .process
        .wait_for_line(PATIENCE, |line| line.contains("dropped the oldest events"));
    let dropped = router.metric(&["weir_events_dropped_when_full_total", "broker=\"default\""]);
    let dropped = dropped.expect("it is counted");
    assert!((1500..3000).contains(&dropped), "{dropped}");

    consumer.answer(Answer::status(204));
    consumer.wait_until(PATIENCE, |received| {
        received
            .iter()
            .any(|message| message.header("ce-id") == Some("2999"))
    });
    eventually(PATIENCE, || {
        let figures = router.accounting("t");
        let missed = router.metric(&["weir_trigger_events_missed_total"]).unwrap();
        // Every event is delivered, dropped after it had matched, or was gone before it could match.
        if figures["pending"] == 0 && figures["delivered"] + figures["dropped"] + missed == 3000 {
            assert!(figures["delivered"] >= 3000 - dropped, "{figures:?}");
            assert!(figures["dropped"] > 0, "{figures:?}, {missed} missed");
            Ok(())
        } else {
            Err(format!("{figures:?}, {missed} missed, {dropped} dropped"))
        }
    });
}
