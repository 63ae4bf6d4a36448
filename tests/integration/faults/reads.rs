//! A disk that fails to read: what was acknowledged waits until it can be read again, and nothing is given up.

use std::path::Path;

use super::{LocalRouter, Setup, mapped, producers::post_event, trigger};
use crate::support::{Answer, Consumer, PATIENCE, Scratch, eventually};
use http::Method;

const EVENTS: usize = 50;

/// The data of a router whose Trigger has its events still before it. After a restart none of them is in memory.
fn waiting_events() -> Scratch {
    let data = Scratch::new();
    let suspended = trigger("any", "").replace("spec:", "spec:\n  suspend: true");
    let mut router = Setup::new(&suspended, &[]).data(data.path()).start();
    for id in 0..EVENTS {
        let answer = post_event(&router.url(), &id.to_string(), "k", vec![b'x'; 2000]);
        assert_eq!(answer.unwrap().status, 202);
    }
    router.process.terminate();
    data
}

/// A router on these data that delivers, with a disk that reads as the fail point says.
fn start(data: &Path, consumer: &Consumer, reads: &str) -> LocalRouter {
    Setup::new(&trigger("any", ""), &[mapped("any", consumer)])
        .data(data)
        .fail_points(&format!("log-read={reads}"))
        .start()
}

fn read_errors(router: &LocalRouter) -> u64 {
    router.metric(&["weir_log_read_errors_total"]).unwrap()
}

/// All were delivered, and nothing else is counted.
#[track_caller]
fn check_delivered(router: &LocalRouter) {
    router.wait_until_all_are("any", "delivered", EVENTS);
    assert_eq!(router.metric(&["weir_trigger_events_missed_total"]), Some(0));
    assert_eq!(router.metric(&["weir_trigger_stopped{"]), Some(0));
}

#[test]
fn an_error_that_passes_gives_no_event_up() {
    // The disk gives errors once or a few times, or other bytes than it has once.
    for (reads, errors) in [
        ("1*return(EIO)", 1),
        ("2*off->3*return(EIO)", 3),
        ("1*return(wrong)", 0),
        ("1*return(wrong)->1*return(EIO)", 1),
    ] {
        let (data, consumer) = (waiting_events(), Consumer::start());
        // The first attempts fail, and their events are read again.
        consumer.answer(Answer::status(503));
        let router = start(data.path(), &consumer, reads);
        consumer.wait_for(3);
        consumer.answer(Answer::status(204));
        check_delivered(&router);
        assert_eq!(read_errors(&router), errors, "{reads}");
    }
}

#[test]
fn an_error_that_lasts_is_said_and_gives_no_event_up() {
    let (data, consumer) = (waiting_events(), Consumer::start());
    let mut router = start(data.path(), &consumer, "return(EIO)");
    eventually(PATIENCE, || match read_errors(&router) {
        0..5 => Err("the reads are not tried again".to_owned()),
        _ => Ok(()),
    });
    let told =
        |line: &str| line.contains("the event log's disk failed to read") && line.contains("os error 5");
    router.process.wait_for_line(PATIENCE, told);
    let asked = router.ask(Method::GET, "/v1/explain/shop/default/events?id=1", "");
    assert_eq!(asked.status, 503, "{}", asked.text());
    assert_eq!(asked.json()["reason"], "log_unavailable");
    assert_eq!(router.accounting("any")["dropped"], 0);
    assert_eq!(router.metric(&["weir_trigger_events_missed_total"]), Some(0));
    // Events still come in.
    let answer = post_event(&router.url(), "more", "k", "");
    assert_eq!(answer.unwrap().status, 202);
    consumer.look(|received| {
        assert!(
            received
                .iter()
                .all(|message| message.header("ce-id") == Some("more"))
        )
    });

    router.kill_and_restart();
    router.wait_until_all_are("any", "delivered", EVENTS + 1);
}

/// The Trigger waits for a disk that does not read for a while, and goes on without a restart.
#[test]
fn an_error_that_lasts_for_a_while_is_waited_for() {
    let (data, consumer) = (waiting_events(), Consumer::start());
    let router = start(data.path(), &consumer, "40*return(EIO)->off");
    check_delivered(&router);
    assert!(read_errors(&router) >= 40);
}
