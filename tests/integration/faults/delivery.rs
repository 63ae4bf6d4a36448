//! Sinks that fail, and what a Trigger says of its delivery.

use std::time::Duration;

use super::{LocalRouter, Producers, Setup, all_arrive, mapped, producers::post_event, trigger};
use crate::support::{Answer, Consumer, PATIENCE, Received, eventually};

#[test]
fn a_sink_that_hangs_or_resets_holds_nobody_else_and_catches_up() {
    let [hanging, resetting, live] = [(); 3].map(|()| Consumer::start());
    hanging.answer(Answer::Hang);
    resetting.answer(Answer::Reset);
    let manifests = trigger("hanging", "timeout: 500ms") + &trigger("resetting", "") + &trigger("live", "");
    let services = [
        mapped("hanging", &hanging),
        mapped("resetting", &resetting),
        mapped("live", &live),
    ];
    let router = Setup::new(&manifests, &services).start();
    let producers = Producers::start(&router.url());
    // More than a Trigger's window, so that the dead ones fall behind the shared reader.
    eventually(Duration::from_secs(60), || {
        let count = producers.count();
        if count >= 2500 {
            Ok(())
        } else {
            Err(count.to_string())
        }
    });
    let acknowledged = producers.finish();
    assert_eq!(all_arrive(&live, &acknowledged).repeats(), 0);
    for name in ["hanging", "resetting"] {
        let figures = router.accounting(name);
        assert_eq!(figures["delivered"], 0);
        assert!(figures["pending"] <= 1024, "the window is bounded: {figures:?}");
    }
    hanging.answer(Answer::status(204));
    resetting.answer(Answer::status(200));
    all_arrive(&hanging, &acknowledged);
    all_arrive(&resetting, &acknowledged);
}

/// Posts events one after another, with a `partitionkey` each.
fn post_keyed(router: &LocalRouter, keys: &[&str]) {
    for (number, key) in keys.iter().enumerate() {
        let answer = post_event(&router.url(), &number.to_string(), key, "");
        assert_eq!(answer.unwrap().status, 202);
    }
}

fn key_of(message: &Received) -> &str {
    message.header("ce-partitionkey").unwrap()
}

#[test]
fn events_of_one_key_stay_in_order_and_a_failing_key_holds_only_itself() {
    let consumer = Consumer::start();
    let manifest = trigger("keyed", "ordering: ByKey");
    let mut router = Setup::new(&manifest, &[mapped("keyed", &consumer)]).start();
    // Key a fails until further notice; b and c go on.
    consumer.answer_by(|message| Answer::status(if key_of(message) == "a" { 503 } else { 204 }));
    let keys: Vec<&str> = ["a", "b", "c"].into_iter().cycle().take(60).collect();
    post_keyed(&router, &keys);
    consumer.wait_until(PATIENCE, |received| {
        received.iter().filter(|message| key_of(message) != "a").count() >= 40
    });
    let ids = |key: &str| -> Vec<u32> {
        let of_key = |message: &&Received| key_of(message) == key;
        consumer
            .received()
            .iter()
            .filter(of_key)
            .map(|message| message.header("ce-id").unwrap().parse().unwrap())
            .collect()
    };
    for (key, first) in [("b", 1), ("c", 2)] {
        assert_eq!(ids(key), (0..20).map(|n| first + 3 * n).collect::<Vec<_>>());
    }
    assert!(
        ids("a").iter().all(|&id| id == 0),
        "the first of its key holds the others: {:?}",
        ids("a")
    );
    // Also across a crash.
    router.kill_and_restart();
    consumer.answer(Answer::status(204));
    consumer.wait_until(PATIENCE, |received| {
        received
            .iter()
            .any(|message| message.header("ce-id") == Some("57"))
    });
    let mut order = ids("a");
    order.dedup();
    assert_eq!(order, (0..20).map(|n| 3 * n).collect::<Vec<_>>());
    router.accounting("keyed");
}

#[test]
fn a_sink_gets_no_more_at_once_and_in_a_time_than_its_trigger_says() {
    let [single, limited] = [(); 2].map(|()| Consumer::start());
    single.answer(Answer::status(204).after(Duration::from_millis(5)));
    let manifests =
        trigger("single", "concurrency: 1") + &trigger("limited", "rateLimit: {perSecond: 20, burst: 1}");
    let services = [mapped("single", &single), mapped("limited", &limited)];
    let router = Setup::new(&manifests, &services).start();
    post_keyed(&router, &["k"; 31]);
    single.wait_for(31);
    assert_eq!(single.most_in_flight(), 1);
    let received = limited.wait_for(31);
    let took = received[30].at - received[0].at;
    assert!(
        took >= Duration::from_millis(1400),
        "30 more at 20 a second took {took:?}"
    );
}
