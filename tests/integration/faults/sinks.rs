//! Sinks that are slow, hostile or dead: they change nothing for another Trigger, and nothing is lost for them.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use super::{
    LocalRouter, Producers, Setup, all_arrive, arrivals::id_of, is_long, mapped, producers::post_event,
    trigger,
};
use crate::support::{Answer, Consumer, Received, post};

const MIB: u64 = 1024 * 1024;
/// More than a router in these tests takes, built for debugging, and less than the answers that it does not keep.
const MEMORY: u64 = 256 * MIB;

#[test]
fn hostile_answers_change_nothing_for_others_and_are_accounted_for() {
    let [live, dripping, huge, redirecting, elsewhere, closing, breaking] =
        [(); 7].map(|()| Consumer::start());
    let every = Duration::from_millis(50);
    dripping.answer(Answer::Drip { every });
    huge.answer(Answer::status(200).body(vec![b'x'; 10 * MIB as usize]));
    redirecting.answer(Answer::status(302).header("location", &elsewhere.url()));
    closing.answer(Answer::status(200).header("connection", "close").body("taken"));
    breaking.answer(Answer::BreakOff);
    let sinks = [
        ("live", &live),
        ("dripping", &dripping),
        ("huge", &huge),
        ("redirecting", &redirecting),
        ("closing", &closing),
        ("breaking", &breaking),
    ];
    // The live one has time enough on a machine that has other things to do.
    let timeout = |name| if name == "live" { "" } else { "timeout: 500ms" };
    let manifests = sinks.map(|(name, _)| trigger(name, timeout(name))).concat();
    let router = Setup::new(&manifests, &sinks.map(|(name, consumer)| mapped(name, consumer))).start();

    let producers = Producers::start(&router.url());
    producers.wait_for_more(1500);
    let acknowledged = producers.finish();
    assert_eq!(all_arrive(&live, &acknowledged).repeats(), 0);
    let memory = router.process.resident_memory();

    // An answer counts by its status, however it goes on, and however the connection ends.
    for (name, consumer) in [("huge", &huge), ("closing", &closing), ("breaking", &breaking)] {
        all_arrive(consumer, &acknowledged);
        router.wait_until_all_are(name, "delivered", acknowledged.len());
    }
    let memory = memory.max(router.process.resident_memory());
    router.wait_until_all_are("redirecting", "dead_lettered", acknowledged.len());
    assert_eq!(elsewhere.received().len(), 0, "a redirect is not followed");
    // An answer that does not end in time is none.
    assert_eq!(router.accounting("dripping")["delivered"], 0);
    dripping.answer(Answer::status(204));
    all_arrive(&dripping, &acknowledged);
    router.wait_until_all_are("dripping", "delivered", acknowledged.len());
    let memory = memory.max(router.process.resident_memory());
    assert!(memory < MEMORY, "the router holds {memory} bytes");
    eprintln!("hostile answers: the router held {} MiB at most", memory / MIB);
}

#[test]
fn a_dead_sink_with_many_events_waiting_holds_nobody_else_and_gets_all_of_them() {
    let events = if is_long() { 100_000 } else { 20_000 };
    let [live, dead] = [(); 2].map(|()| Consumer::start());
    let manifests = trigger("live", "") + &trigger("dead", "timeout: 1s");
    let router = Setup::new(&manifests, &[mapped("live", &live), mapped("dead", &dead)]).start();

    let (mut acknowledged, without) = probe(&router, &live, "without");
    all_arrive(&dead, &acknowledged);
    router.wait_until_all_are("dead", "delivered", acknowledged.len());
    let answered = acknowledged.len();

    dead.answer(Answer::Hang);
    let began = Instant::now();
    acknowledged.extend(post_batches(&router, events));
    all_arrive(&live, &acknowledged);
    let took = began.elapsed();
    let (probes, with) = probe(&router, &live, "with");
    acknowledged.extend(probes);
    router.wait_until_all_are("live", "delivered", acknowledged.len());
    let figures = router.accounting("dead");
    assert_eq!(figures["delivered"], answered as u64);
    assert!(figures["pending"] <= 1024, "the window is bounded: {figures:?}");
    let memory = router.process.resident_memory();
    assert!(memory < MEMORY, "the router holds {memory} bytes");

    let healed = Instant::now();
    dead.answer(Answer::status(204));
    let arrivals = all_arrive(&dead, &acknowledged);
    router.wait_until_all_are("dead", "delivered", acknowledged.len());
    eprintln!(
        "a dead Sink with {events} events waiting: the live one had them in {took:.1?}, its 99th percentile of delay \
         is {with:.1?} and was {without:.1?} without; the router held {} MiB; once healed the dead one had them in \
         {:.1?}, {} of them repeats of what it had not answered",
        memory / MIB,
        healed.elapsed(),
        arrivals.repeats()
    );
}

/// Posts small events in batches; gives their ids.
fn post_batches(router: &LocalRouter, events: usize) -> BTreeSet<String> {
    const BATCH: usize = 500;
    let ids: Vec<String> = (0..events).map(|number| format!("batched-{number}")).collect();
    for batch in ids.chunks(BATCH) {
        let batch: Vec<_> = batch
            .iter()
            .map(|id| serde_json::json!({"specversion": "1.0", "id": id, "source": "/p", "type": "t"}))
            .collect();
        let body = serde_json::to_vec(&batch).unwrap();
        let headers = [("content-type", "application/cloudevents-batch+json")];
        assert_eq!(post(&router.url(), &headers, body).status, 202);
    }
    ids.into_iter().collect()
}

/// Posts events one after another; gives their ids and the 99th percentile of the time from posting to arrival.
fn probe(router: &LocalRouter, consumer: &Consumer, prefix: &str) -> (BTreeSet<String>, Duration) {
    let mut posted = HashMap::new();
    for number in 0..300 {
        let id = format!("{prefix}-{number}");
        posted.insert(id.clone(), Instant::now());
        assert_eq!(post_event(&router.url(), &id, "k", "").unwrap().status, 202);
    }
    let ids: BTreeSet<String> = posted.keys().cloned().collect();
    all_arrive(consumer, &ids);
    let mut delays: Vec<Duration> = consumer.look(|received| {
        let delay = |message: &Received| Some(message.at - *posted.get(&id_of(message))?);
        received.iter().filter_map(delay).collect()
    });
    delays.sort();
    (ids, delays[delays.len() * 99 / 100])
}
