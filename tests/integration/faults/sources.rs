//! Kills of routers whose Sources produce events: webhooks under load, and a schedule each second.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{LocalRouter, Producers, Setup, all_arrive, id_of, kills, mapped, trigger};
use crate::support::{Consumer, PATIENCE, Received, ReservedPort, Response, eventually, get, try_post};

/// A webhook that takes the id of an event from a header.
const WEBHOOK: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: hooks, namespace: shop}
stringData: {key: s3cret}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: hook, namespace: shop}
spec:
  webhook:
    verification: {token: {secrets: [{secretKeyRef: {name: hooks, key: key}}]}}
    event: {attributes: {id: "${request.headers['x-id']}"}}
"#;

const SCHEDULE: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: clock, namespace: shop}
spec: {cron: {schedule: "* * * * * *", type: tick, catchUp: All}}
"#;

/// How often a sender tries to have one request accepted: longer than a router takes to be back.
const TRIES: usize = 10_000;

/// A sender that repeats each request, with its id, until it is accepted.
fn sender(url: String, tries: Arc<AtomicUsize>) -> Producers {
    Producers::by(4, move |_, id| {
        let headers = [
            ("authorization", "Bearer s3cret"),
            ("content-type", "text/plain"),
            ("x-id", id),
        ];
        let post = || -> Result<Response, String> {
            tries.fetch_add(1, Ordering::Relaxed);
            try_post(&url, &headers, "data")
        };
        for _ in 0..TRIES {
            match post() {
                Ok(response) if response.status == 202 => return Ok(response),
                // The router is down; it is back in a moment.
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
        post()
    })
}

/// A figure of a router, or 0.
fn figure(router: &LocalRouter, parts: &[&str]) -> u64 {
    router.metric(parts).unwrap_or_default()
}

/// Events that a Trigger has matched, once all of them are delivered and nothing waits.
#[track_caller]
fn delivered(router: &LocalRouter, trigger: &str) -> u64 {
    eventually(PATIENCE, || {
        let figures = router.accounting(trigger);
        match figures["pending"] == 0 && figures["matched"] == figures["delivered"] {
            true => Ok(figures["matched"]),
            false => Err(format!("{figures:?}")),
        }
    })
}

#[test]
fn no_accepted_request_of_a_webhook_is_lost_when_the_router_is_killed_again_and_again() {
    let (consumer, port) = (Consumer::start(), ReservedPort::new());
    let manifests = WEBHOOK.to_owned() + &trigger("all", "");
    let mut router = Setup::new(&manifests, &[mapped("all", &consumer)])
        .argument(format!("--listen-hooks={}", port.address()))
        .start();
    let tries = Arc::<AtomicUsize>::default();
    let sender = sender(format!("http://{}/shop/hook", port.address()), tries.clone());
    for round in 0..kills() {
        // Some way into the work, at another moment each time.
        sender.wait_for_more(20 + (round as usize * 37) % 150);
        router.kill_and_restart();
    }
    // The last router counts exactly what the sender saw.
    let resting = sender.rest();
    router.kill_and_restart();
    let before = sender.count();
    drop(resting);
    sender.wait_for_more(100);
    let resting = sender.rest();
    let of_last = (sender.count() - before) as u64;
    let accepted = figure(&router, &["weir_webhook_requests_total", "result=\"accepted\""]);
    let produced = figure(&router, &["weir_source_events_produced_total", "source=\"hook\""]);
    drop(resting);
    // Those that the sender ended with are accepted, too.
    let acknowledged = sender.finish();
    assert_eq!((accepted, produced), (of_last, of_last));

    let arrivals = all_arrive(&consumer, &acknowledged);
    assert_eq!(arrivals.events(), acknowledged.len(), "an id that nobody sent");
    let stored = delivered(&router, "all");
    let repeats = stored - acknowledged.len() as u64;
    let unanswered = tries.load(Ordering::Relaxed) - acknowledged.len();
    assert!(
        repeats <= unanswered as u64,
        "{repeats} repeats, {unanswered} tries"
    );
    // At most one request of each of the four threads was stored and not answered, at each kill.
    let possible = 4 * u64::from(kills() + 1);
    assert!(repeats <= possible, "{repeats} repeats");
    eprintln!(
        "webhook: {} kills, {} accepted, 0 lost, {repeats} stored again with their id, {} deliveries repeated",
        kills() + 1,
        acknowledged.len(),
        consumer.received().len() as u64 - stored,
    );
}

/// The ids of each scheduled time that have arrived, by Unix second, with the number of deliveries.
fn ticks(received: &[Received]) -> BTreeMap<i64, (BTreeSet<String>, usize)> {
    let mut ticks = BTreeMap::<_, (BTreeSet<_>, usize)>::new();
    for event in received {
        let time: jiff::Timestamp = event.header("ce-time").unwrap().parse().unwrap();
        let (ids, deliveries) = ticks.entry(time.as_second()).or_default();
        ids.insert(id_of(event));
        *deliveries += 1;
    }
    ticks
}

/// The scheduled times that a router has logged as produced.
fn logged(lines: &[String]) -> BTreeSet<i64> {
    let of_produced = lines.iter().filter(|line| line.contains("produced an event"));
    of_produced
        .map(|line| {
            let (_, rest) = line.split_once("scheduled").expect("the line has the time");
            let time = rest.trim_start_matches(|character: char| !character.is_ascii_digit());
            let end = time.find('Z').expect("the time is in UTC");
            time[..=end].parse::<jiff::Timestamp>().unwrap().as_second()
        })
        .collect()
}

#[test]
fn each_scheduled_time_has_one_event_when_the_router_is_killed_again_and_again() {
    let consumer = Consumer::start();
    let manifests = SCHEDULE.to_owned() + &trigger("all", "");
    let mut router = Setup::new(&manifests, &[mapped("all", &consumer)])
        .variable("WEIR_LOG", "info,weir::source=debug")
        .start();
    consumer.wait_for(1);
    let (mut told, mut missed) = (BTreeSet::new(), 0);
    for _ in 0..kills() {
        // At another part of a second each time, sometimes just when an event is due.
        let wait = Duration::from_millis(fastrand::u64(100..1800));
        let since = Instant::now();
        eventually(PATIENCE, || match since.elapsed() {
            passed if passed >= wait => Ok(()),
            passed => Err(format!("{passed:?} have passed")),
        });
        missed += figure(&router, &["weir_source_times_missed_total", "source=\"clock\""]);
        router.process.kill();
        told.extend(logged(&router.process.output()));
        router.restart();
    }
    let restarted = jiff::Timestamp::now().as_second();
    let received = consumer.wait_until(PATIENCE, |received| {
        ticks(received)
            .last_key_value()
            .is_some_and(|(last, _)| *last >= restarted + 3)
    });
    missed += figure(&router, &["weir_source_times_missed_total", "source=\"clock\""]);
    assert_eq!(missed, 0);
    let ticks = ticks(&received);
    let (first, last) = (*ticks.keys().next().unwrap(), *ticks.keys().next_back().unwrap());
    let absent: Vec<_> = (first..=last).filter(|time| !ticks.contains_key(time)).collect();
    assert!(absent.is_empty(), "there is no event of {absent:?}");
    for (time, (ids, _)) in &ticks {
        assert_eq!(ids.len(), 1, "{time}: {ids:?}");
    }
    // The last router counts exactly what it logs.
    let produced = eventually(PATIENCE, || {
        let page = get(&router.admin("/metrics")).text();
        let line = page
            .lines()
            .find(|line| line.starts_with("weir_source_events_produced_total{"));
        let counted: usize = line
            .and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_default();
        match logged(&router.process.lines()).len() {
            logged if logged == counted => Ok(logged),
            logged => Err(format!("{counted} are counted and {logged} logged")),
        }
    });
    // An event whose router was killed before it logged that it was stored may have been stored again.
    told.extend(logged(&router.process.lines()));
    let untold = ticks.keys().filter(|time| !told.contains(time)).count();
    assert!(untold <= kills() as usize, "{untold} are not logged");
    let (stored, times) = (delivered(&router, "all"), ticks.len());
    let repeats = ticks.values().filter(|(_, deliveries)| *deliveries > 1).count();
    assert!(repeats <= 2 * kills() as usize, "{repeats} were repeated");
    eprintln!(
        "schedule: {} kills, {times} scheduled times, 0 missing, {stored} stored, {repeats} delivered again with their id; \
         the last router produced {produced}",
        kills(),
    );
}
