//! Routers that share a log in NATS JetStream: they divide the work, and others take over when one ends. No acknowledged
//! event is lost.

mod faults;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::{
    faults::{Producers, all_arrive, check_order_of_acknowledged, kills, post_event},
    support::{Answer, Consumer, LocalRouter, Nats, Process, Setup, eventually, mapped},
};
use http::Method;

/// Timeout of a takeover, longer than the time to live of a lease.
const TAKEOVER: Duration = Duration::from_secs(60);
/// Number of shards of an installation.
const SHARDS: u64 = 24;
/// Number of brokers, each with a Trigger.
const BROKERS: usize = 12;

/// Number of partitions of each broker in tests with several: not a multiple of the number of routers.
const PARTITIONS: usize = 4;

/// Three routers on the same log, and one consumer of all events.
struct Routers<N = Nats> {
    nats: N,
    /// Partitions of each broker.
    partitions: usize,
    routers: Vec<LocalRouter>,
    consumer: Consumer,
}

/// The Trigger of a broker, in order by key.
fn trigger(broker: usize) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: t{broker}, namespace: shop}}\n\
         spec:\n  broker: b{broker}\n  sink: {{service: {{name: all}}}}\n  \
         delivery: {{ordering: ByKey, backoffDelay: 20ms, backoffMax: 200ms}}\n"
    )
}

impl Routers {
    /// With this many partitions per broker.
    fn start(partitions: usize) -> Self {
        Self::with(partitions, "")
    }

    /// With further manifests.
    fn with(partitions: usize, manifests: &str) -> Self {
        let nats = Nats::start();
        let url = nats.url();
        Self::on(nats, &url, 1, partitions, manifests)
    }
}

impl<N> Routers<N> {
    /// Starts routers on these servers, with so many replicas of each stream and partitions of each broker, and with
    /// further manifests.
    fn on(nats: N, urls: &str, replicas: u8, partitions: usize, manifests: &str) -> Self {
        let consumer = Consumer::start();
        let triggers: String = (0..BROKERS).map(trigger).collect();
        let manifest = triggers + manifests;
        let start = |_| {
            Setup::new(&manifest, &[mapped("all", &consumer)])
                .argument("--log=jetstream")
                .argument(format!("--nats={urls}"))
                .argument(format!("--nats-replicas={replicas}"))
                .argument(format!("--nats-partitions={partitions}"))
                .argument("--nats-stream-size=64MiB")
                .argument("--nats-dead-letter-stream-size=16MiB")
                .argument("--retention-size=1MiB")
                .start()
        };
        let routers = Self {
            routers: (0..3).map(start).collect(),
            nats,
            partitions,
            consumer,
        };
        routers.await_division(&[0, 1, 2]);
        routers
    }

    /// Starts producers, each with a key of its own: one for each broker, or two if it has several partitions. A producer
    /// whose event was not accepted continues at another router.
    fn produce(&self) -> Producers {
        let addresses: Vec<_> = self
            .routers
            .iter()
            .map(|router| router.url().replace("default", ""))
            .collect();
        let keys = BROKERS * self.partitions.min(2);
        let next: Vec<_> = (0..keys).map(AtomicUsize::new).collect();
        Producers::by(keys, move |key, id| {
            let number: usize = key.trim_start_matches('k').parse().unwrap();
            let (broker, router) = (number % BROKERS, &next[number]);
            let address = &addresses[router.load(Ordering::Relaxed) % addresses.len()];
            let answer = post_event(&format!("{address}b{broker}"), id, key, vec![b'x'; 512]);
            if !answer.as_ref().is_ok_and(|response| response.status == 202) {
                router.fetch_add(1, Ordering::Relaxed);
            }
            answer
        })
    }

    /// Waits until these routers own all shards, in equal parts.
    #[track_caller]
    fn await_division(&self, routers: &[usize]) {
        let part = SHARDS / routers.len() as u64;
        eventually(TAKEOVER, || {
            let owned: Vec<_> = routers
                .iter()
                .map(|router| self.routers[*router].metric(&["weir_router_shards"]))
                .collect();
            let is_divided = owned.iter().all(|owned| *owned == Some(part));
            is_divided
                .then_some(())
                .ok_or(format!("{owned:?} shards are owned"))
        });
    }

    /// Waits until all acknowledged events have arrived in order, and the accounting adds up. Returns the repeats.
    #[track_caller]
    fn check(&self, producers: &Producers) -> usize {
        assert_eq!(
            producers.refused_with(507),
            0,
            "the servers are too small for this test"
        );
        let _rest = producers.rest();
        let acknowledged = producers.acknowledged();
        let mut arrivals = all_arrive(&self.consumer, &acknowledged);
        eventually(TAKEOVER, || {
            arrivals.catch_up(&self.consumer);
            let delivered = self.delivered()?;
            match arrivals.events() as u64 {
                events if events == delivered => Ok(()),
                events => Err(format!(
                    "{events} events arrived, and {delivered} count as delivered"
                )),
            }
        });
        check_order_of_acknowledged(&self.consumer, &acknowledged);
        for router in &self.routers {
            let lines = router.process.lines();
            let lost = lines
                .iter()
                .find(|line| line.contains("lost acknowledged records"));
            assert_eq!(lost, None);
        }
        eprintln!(
            "{} acknowledged, 0 lost, {} repeats",
            acknowledged.len(),
            arrivals.repeats()
        );
        arrivals.repeats()
    }

    /// The Triggers with their figures, as a router tells for all.
    fn triggers(&self, router: usize) -> Result<Vec<serde_json::Value>, String> {
        let answer = self.routers[router].try_ask(Method::GET, "/v1/triggers", "")?;
        let list: serde_json::Value =
            serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
        let items = list["items"].as_array().cloned();
        items.ok_or_else(|| list.to_string())
    }

    /// Number of events that all Triggers have delivered, and nothing else.
    fn delivered(&self) -> Result<u64, String> {
        let mut sum = 0;
        for trigger in self.triggers(0)? {
            let figure = |name: &str| trigger[name].as_u64().unwrap();
            if figure("matched") != figure("delivered") + figure("pending") {
                return Err(trigger.to_string());
            }
            sum += figure("delivered");
        }
        Ok(sum)
    }
}

#[test]
fn routers_take_over_the_shards_of_one_that_is_killed() {
    check_takeover(1);
}

#[test]
fn routers_take_over_the_partitions_of_one_that_is_killed() {
    check_takeover(PARTITIONS);
}

fn check_takeover(partitions: usize) {
    let mut routers = Routers::start(partitions);
    let producers = routers.produce();
    for kill in 0..kills().min(20) as usize / 2 {
        let killed = kill % 3;
        producers.wait_for_more(100 + (kill * 37) % 150);
        routers.routers[killed].process.kill();
        let began = Instant::now();
        let others: Vec<_> = (0..3).filter(|router| *router != killed).collect();
        routers.await_division(&others);
        eprintln!("taken over after {:?}", began.elapsed());
        routers.routers[killed].restart();
        routers.await_division(&[0, 1, 2]);
    }
    producers.wait_for_more(100);
    routers.check(&producers);
}

#[test]
fn a_rolling_update_hands_over_without_repeats() {
    check_rolling_update(1);
}

#[test]
fn a_rolling_update_hands_partitions_over_without_repeats() {
    check_rolling_update(PARTITIONS);
}

fn check_rolling_update(partitions: usize) {
    let mut routers = Routers::start(partitions);
    let producers = routers.produce();
    for replaced in 0..3 {
        producers.wait_for_more(100);
        let began = Instant::now();
        routers.routers[replaced].process.terminate();
        eprintln!("handed over after {:?}", began.elapsed());
        producers.wait_for_more(100);
        routers.routers[replaced].restart();
        routers.await_division(&[0, 1, 2]);
    }
    producers.wait_for_more(100);
    assert_eq!(routers.check(&producers), 0);
}

/// A paused router does not notice that its lease has expired. What it saves afterwards is fenced.
#[test]
fn a_router_that_was_paused_rejoins() {
    let routers = Routers::start(1);
    let producers = routers.produce();
    producers.wait_for_more(100);
    routers.routers[0].process.signal("STOP");
    routers.await_division(&[1, 2]);
    producers.wait_for_more(100);
    routers.routers[0].process.signal("CONT");
    routers.await_division(&[0, 1, 2]);
    producers.wait_for_more(100);
    routers.check(&producers);
}

#[test]
fn no_event_is_lost_while_nats_is_unavailable() {
    let mut routers = Routers::start(PARTITIONS);
    let producers = routers.produce();
    producers.wait_for_more(100);
    routers.nats.kill();
    for router in &routers.routers {
        router
            .process
            .wait_for_line(TAKEOVER, |line| line.contains("gives up its shards"));
    }
    assert_eq!(routers.routers[0].post("t", "0", &[]).status, 503);
    routers.nats.start_again();
    producers.wait_for_more(100);
    routers.await_division(&[0, 1, 2]);
    routers.check(&producers);
}

/// The router must not wait for another configuration than the one that it already has.
#[test]
fn a_restarted_router_delivers_although_others_have_applied_another_configuration() {
    let mut routers = Routers::start(PARTITIONS);
    let producers = routers.produce();
    producers.wait_for_more(100);
    routers.routers[0].process.terminate();
    let manifest: String = (0..BROKERS).map(trigger).collect();
    for router in [1, 2] {
        let other = manifest.replace("backoffMax: 200ms", "backoffMax: 300ms");
        routers.routers[router].apply(&other);
    }
    routers.routers[0].restart();
    routers.await_division(&[0, 1, 2]);
    producers.wait_for_more(100);
    routers.check(&producers);
}

/// A command of `weir` with this router, and what it prints.
#[track_caller]
fn weir(router: &LocalRouter, arguments: &[&str]) -> String {
    router.weir(arguments).quiet().run().unwrap()
}

#[test]
fn any_router_answers_for_all() {
    check_any_router(1);
}

#[test]
fn any_router_answers_for_all_partitions() {
    check_any_router(PARTITIONS);
}

fn check_any_router(partitions: usize) {
    let routers = Routers::start(partitions);
    routers.consumer.answer(Answer::status(422));
    for broker in 0..BROKERS {
        let url = routers.routers[0].url().replace("default", &format!("b{broker}"));
        assert_eq!(
            post_event(&url, &format!("0-{broker}"), &format!("k{broker}"), "data")
                .unwrap()
                .status,
            202
        );
    }
    for (number, router) in routers.routers.iter().enumerate() {
        eventually(TAKEOVER, || {
            let list = weir(router, &["dead-letters", "list"]);
            match list.matches("shop/b").count() {
                BROKERS => Ok(()),
                _ => Err(list),
            }
        });
        let triggers = routers.triggers(number).unwrap();
        let names = triggers.iter().map(|item| item["name"].as_str().unwrap());
        let mut expected: Vec<_> = (0..BROKERS).map(|broker| format!("t{broker}")).collect();
        expected.sort();
        assert_eq!(names.collect::<Vec<_>>(), expected);
        for broker in 0..BROKERS {
            let (broker, id) = (format!("shop/b{broker}"), format!("0-{broker}"));
            let letters = weir(router, &["dead-letters", "list", &broker, "-o", "json"]);
            assert!(letters.contains(&id), "{letters}");
            let explained = weir(router, &["explain", &broker, "--id", &id]);
            assert!(explained.contains("dead letter"), "{explained}");
        }
    }
    routers.consumer.answer(Answer::status(204));
    for broker in 0..BROKERS {
        weir(
            &routers.routers[broker % 3],
            &["dead-letters", "redrive", &format!("shop/b{broker}"), "--all"],
        );
    }
    eventually(TAKEOVER, || {
        match weir(&routers.routers[1], &["dead-letters", "list"]) {
            list if list.contains("shop/b") => Err(list),
            _ => Ok(()),
        }
    });
    eventually(TAKEOVER, || {
        let is_settled = |trigger: &serde_json::Value| {
            let figure = |name: &str| trigger[name].as_u64().unwrap();
            (figure("deadLettered"), figure("delivered"), figure("pending")) == (1, 1, 0)
        };
        let triggers = routers.triggers(2)?;
        match triggers.len() == BROKERS && triggers.iter().all(is_settled) {
            true => Ok(()),
            false => Err(format!("{triggers:?}")),
        }
    });
}

/// One broker is delivered by all routers, and its log is trimmed once all of them have settled its events.
#[test]
fn all_routers_deliver_a_broker_with_several_partitions() {
    const EVENTS: u64 = 600;
    let mut routers = Routers::start(24);
    let url = routers.routers[0].url().replace("default", "b0");
    let data = bytes::Bytes::from(vec![b'x'; 8 * 1024]);
    for number in 0..EVENTS {
        let key = format!("k{}", number % 30);
        let answer = post_event(&url, &format!("0-{number}"), &key, data.clone()).unwrap();
        assert_eq!(answer.status, 202);
    }
    for router in 0..3 {
        eventually(TAKEOVER, || {
            let triggers = routers.triggers(router)?;
            let trigger = triggers.iter().find(|trigger| trigger["name"] == "t0");
            let trigger = trigger.ok_or("t0 is missing")?;
            match (trigger["matched"].as_u64(), trigger["delivered"].as_u64()) {
                (Some(EVENTS), Some(EVENTS)) => Ok(()),
                _ => Err(trigger.to_string()),
            }
        });
    }
    let delivered = |router: &LocalRouter, partition: usize| {
        let series = "weir_trigger_events_settled_total";
        let partition = format!("partition=\"{partition}\"");
        let of_partition = [series, "trigger=\"t0\"", "outcome=\"delivered\"", &partition];
        router.metric(&of_partition)
    };
    let mut of_each = [0; 3];
    for partition in 0..24 {
        let delivered = routers.routers.iter().map(|router| delivered(router, partition));
        let delivered: Vec<_> = delivered.collect();
        let owners = delivered.iter().flatten().count();
        assert_eq!(
            owners, 1,
            "partition {partition} is delivered by {owners} routers"
        );
        for (sum, delivered) in of_each.iter_mut().zip(delivered) {
            *sum += delivered.unwrap_or_default();
        }
    }
    assert!(of_each.iter().all(|events| *events > 0), "{of_each:?}");
    assert_eq!(of_each.iter().sum::<u64>(), EVENTS);
    for number in 0..6 {
        let id = format!("0-{}", EVENTS - 1 - number);
        let explained = weir(&routers.routers[1], &["explain", "shop/b0", "--id", &id]);
        assert!(explained.contains("settled"), "{explained}");
    }
    await_trimmed(&routers);

    // New owners know what is trimmed, and new Triggers begin at what is retained.
    routers.routers[0].process.kill();
    routers.await_division(&[1, 2]);
    let manifest: String = (0..BROKERS).map(trigger).collect();
    let replaying = trigger(0)
        .replace("name: t0", "name: replay")
        .replace("spec:\n", "spec:\n  start: Earliest\n");
    for router in [1, 2] {
        routers.routers[router].apply(&(manifest.clone() + &replaying));
    }
    eventually(TAKEOVER, || {
        let triggers = routers.triggers(1)?;
        let trigger = triggers.iter().find(|trigger| trigger["name"] == "replay");
        let trigger = trigger.ok_or("the Trigger is missing")?;
        let figure = |name: &str| trigger[name].as_u64().unwrap();
        let is_done = figure("backlog") == 0 && figure("matched") == figure("delivered");
        match is_done && figure("matched") > 0 && figure("matched") < EVENTS {
            true => Ok(()),
            false => Err(trigger.to_string()),
        }
    });
}

/// Waits until about as much of a broker is retained as `--retention-size` allows.
#[track_caller]
fn await_trimmed(routers: &Routers) {
    eventually(TAKEOVER, || {
        let retained = routers.routers.iter();
        let retained: u64 = retained
            .filter_map(|router| router.metric(&["weir_log_retained_bytes", "broker=\"b0\""]))
            .sum();
        match retained {
            1..2_000_000 => Ok(()),
            _ => Err(format!("{retained} bytes are retained")),
        }
    });
}

/// Each scheduled time has one event, also those at which the owner of the Source is dead.
#[test]
fn a_schedule_has_each_of_its_events_once() {
    let clock: String = (0..6)
        .map(|broker| {
            format!(
                "---\napiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {{name: clock{broker}, namespace: shop}}\n\
                 spec: {{broker: b{broker}, cron: {{schedule: '* * * * * *', type: tick, catchUp: {catch_up}}}}}\n",
                catch_up = ["None", "All"][broker % 2],
            )
        })
        .collect();
    let mut routers = Routers::with(1, &clock);
    let stored = |routers: &Routers| routers.consumer.received().len();
    let wait_for_more = |routers: &Routers, events: usize| {
        let before = stored(routers);
        eventually(TAKEOVER, || match stored(routers) - before {
            more if more >= events => Ok(()),
            more => Err(format!("{more} events have arrived")),
        });
    };
    wait_for_more(&routers, 12);
    routers.routers[0].process.kill();
    routers.await_division(&[1, 2]);
    wait_for_more(&routers, 12);
    routers.routers[1].process.terminate();
    wait_for_more(&routers, 24);

    // By Source, the scheduled times, in Unix seconds.
    let mut times = BTreeMap::<String, Vec<u64>>::new();
    for message in routers.consumer.received() {
        let id = message.header("ce-id").unwrap();
        let (source, time) = id.rsplit_once('-').unwrap();
        times
            .entry(source.to_owned())
            .or_default()
            .push(time.parse().unwrap());
    }
    assert_eq!(times.len(), 6);
    let matched: u64 = (0..6)
        .map(|broker| format!("t{broker}"))
        .map(|trigger| routers.routers[2].accounting(&trigger)["matched"])
        .sum();
    let mut distinct = 0;
    for (source, mut times) in times {
        times.sort_unstable();
        times.dedup();
        let (first, last) = (times[0], times[times.len() - 1]);
        assert_eq!(
            last - first + 1,
            times.len() as u64,
            "{source} has gaps: {times:?}"
        );
        distinct += times.len() as u64;
    }
    // The Sources go on meanwhile.
    assert!(
        matched <= distinct + 12,
        "{matched} events are stored for {distinct} scheduled times"
    );
}

#[test]
fn a_router_resumes_in_jetstream_with_its_copied_log() {
    let (nats, consumer) = (Nats::start(), Consumer::start());
    let manifest = "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: all, namespace: shop}\n\
                    spec:\n  sink: {service: {name: all}}\n  delivery: {backoffDelay: 20ms, backoffMax: 200ms}\n";
    let setup = || Setup::new(manifest, &[mapped("all", &consumer)]);
    let mut before = setup().start();
    for id in 0..20 {
        assert_eq!(before.post("t", &id.to_string(), &[]).status, 202);
    }
    consumer.wait_for(20);
    consumer.answer(Answer::status(503));
    for id in 20..40 {
        assert_eq!(before.post("t", &id.to_string(), &[]).status, 202);
    }
    before.process.terminate();

    let url = format!("--nats={}", nats.url());
    let data = before.data().display().to_string();
    let copied = Process::weir(["log", "copy", &data, &url, "--nats-replicas=1"]).run();
    let copied = copied.unwrap();
    assert!(
        copied.contains("shop/default: 40 records, from offset 0"),
        "{copied}"
    );
    let again = Process::weir(["log", "copy", &data, &url, "--nats-replicas=1"]).run();
    let again = again.unwrap_err();
    assert!(again.contains("an event log was copied there before"), "{again}");

    consumer.answer(Answer::status(204));
    let tried = consumer.received().len();
    let after = setup()
        .argument("--log=jetstream")
        .argument(url)
        .argument("--nats-replicas=1")
        .start();
    after.wait_until_all_are("all", "delivered", 40);
    let arrived = &consumer.received()[tried..];
    let mut ids: Vec<u32> = arrived
        .iter()
        .map(|message| message.header("ce-id").unwrap().parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(
        ids,
        (20..40).collect::<Vec<_>>(),
        "exactly the undelivered events arrive"
    );
}
