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
    support::{Answer, Consumer, LocalRouter, Nats, Process, Setup, eventually, get, mapped},
};

/// Timeout of a takeover, longer than the time to live of a lease.
const TAKEOVER: Duration = Duration::from_secs(60);
/// Number of shards of an installation.
const SHARDS: u64 = 24;
/// Number of brokers, each with a Trigger.
const BROKERS: usize = 12;

/// Three routers on the same log, and one consumer of all events.
struct Routers<N = Nats> {
    nats: N,
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
    fn start() -> Self {
        Self::with("")
    }

    /// With further manifests.
    fn with(manifests: &str) -> Self {
        let nats = Nats::start();
        let url = nats.url();
        Self::on(nats, &url, 1, manifests)
    }
}

impl<N> Routers<N> {
    /// Starts routers on these servers, with so many replicas of each stream, and with further manifests.
    fn on(nats: N, urls: &str, replicas: u8, manifests: &str) -> Self {
        let consumer = Consumer::start();
        let triggers: String = (0..BROKERS).map(trigger).collect();
        let manifest = triggers + manifests;
        let start = |_| {
            Setup::new(&manifest, &[mapped("all", &consumer)])
                .argument("--log=jetstream")
                .argument(format!("--nats={urls}"))
                .argument(format!("--nats-replicas={replicas}"))
                .argument("--nats-stream-size=64MiB")
                .argument("--nats-dead-letter-stream-size=16MiB")
                .argument("--retention-size=1MiB")
                .start()
        };
        let routers = Self {
            routers: (0..3).map(start).collect(),
            nats,
            consumer,
        };
        routers.await_division(&[0, 1, 2]);
        routers
    }

    /// Starts producers, each with a key and a broker of its own. A producer whose event was not accepted continues at
    /// another router.
    fn produce(&self) -> Producers {
        let addresses: Vec<_> = self
            .routers
            .iter()
            .map(|router| router.url().replace("default", ""))
            .collect();
        let next: Vec<_> = (0..BROKERS).map(AtomicUsize::new).collect();
        Producers::by(BROKERS, move |key, id| {
            let broker = key.trim_start_matches('k');
            let router = &next[broker.parse::<usize>().unwrap()];
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
            let delivered: u64 = (0..BROKERS)
                .map(|broker| self.delivered(&format!("t{broker}")))
                .sum();
            match arrivals.events() as u64 {
                events if events == delivered => Ok(()),
                events => Err(format!(
                    "{events} events arrived, and {delivered} count as delivered"
                )),
            }
        });
        check_order_of_acknowledged(&self.consumer, &acknowledged);
        eprintln!(
            "{} acknowledged, 0 lost, {} repeats",
            acknowledged.len(),
            arrivals.repeats()
        );
        arrivals.repeats()
    }

    /// The router that delivers a Trigger's events.
    #[track_caller]
    fn owner(&self, trigger: &str) -> &LocalRouter {
        let of = format!("trigger=\"{trigger}\"");
        eventually(TAKEOVER, || {
            let owns = |router: &&LocalRouter| {
                router
                    .metric(&["weir_trigger_events_matched_total", &of])
                    .is_some()
            };
            self.routers
                .iter()
                .find(owns)
                .ok_or(format!("nobody delivers {trigger}"))
        })
    }

    /// Number of events that a Trigger has delivered, and nothing else, as its owner tells.
    #[track_caller]
    fn delivered(&self, trigger: &str) -> u64 {
        let accounting = self.owner(trigger).accounting(trigger);
        assert_eq!(
            accounting["matched"],
            accounting["delivered"] + accounting["pending"]
        );
        accounting["delivered"]
    }
}

#[test]
fn routers_take_over_the_shards_of_one_that_is_killed() {
    let mut routers = Routers::start();
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
    let mut routers = Routers::start();
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
    let routers = Routers::start();
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
    let mut routers = Routers::start();
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
    let mut routers = Routers::start();
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
    let address = format!("--router={}", router.admin(""));
    let all = arguments.iter().copied().chain([address.as_str()]);
    Process::weir(all).quiet().run().unwrap()
}

#[test]
fn any_router_answers_for_all() {
    let routers = Routers::start();
    routers.consumer.answer(Answer::status(422));
    for broker in 0..BROKERS {
        let url = routers.routers[0].url().replace("default", &format!("b{broker}"));
        assert_eq!(
            post_event(&url, &format!("0-{broker}"), "k", "data")
                .unwrap()
                .status,
            202
        );
    }
    for router in &routers.routers {
        eventually(TAKEOVER, || {
            let list = weir(router, &["dead-letters", "list"]);
            match list.matches("shop/b").count() {
                BROKERS => Ok(()),
                _ => Err(list),
            }
        });
        let triggers: serde_json::Value =
            serde_json::from_slice(&get(&router.admin("/v1/triggers")).body).unwrap();
        let names = triggers["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap());
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
    for broker in 0..BROKERS {
        let trigger = format!("t{broker}");
        let accounting = routers.owner(&trigger).accounting(&trigger);
        let settled = (
            accounting["dead_lettered"],
            accounting["delivered"],
            accounting["pending"],
        );
        assert_eq!(settled, (1, 1, 0));
    }
}

/// Each scheduled time has one event, also those at which the owner of the Source is dead.
#[test]
fn a_schedule_has_each_of_its_events_once() {
    let clock: String = (0..6)
        .map(|broker| {
            format!(
                "---\napiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {{name: clock{broker}, namespace: shop}}\n\
                 spec: {{broker: b{broker}, cron: {{schedule: '* * * * * *', type: tick}}}}\n"
            )
        })
        .collect();
    let mut routers = Routers::with(&clock);
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
