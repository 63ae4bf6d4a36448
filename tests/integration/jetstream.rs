//! Routers with a log in NATS JetStream: one delivers, and another takes over when it ends. No acknowledged event is
//! lost.

use std::time::{Duration, Instant};

use crate::{
    faults::{Producers, all_arrive, check_order_by_key},
    support::{Answer, Consumer, LocalRouter, Nats, Process, Setup, eventually, mapped},
};

/// Timeout of a takeover, longer than the time to live of a lease.
const TAKEOVER: Duration = Duration::from_secs(60);

/// Two routers with the same address, on which one listens at a time. Producers reach them as through a Service.
struct Routers {
    nats: Nats,
    routers: [LocalRouter; 2],
    consumer: Consumer,
}

impl Routers {
    fn start() -> Self {
        let (nats, consumer) = (Nats::start(), Consumer::start());
        let manifest = "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: keyed, namespace: shop}\n\
                        spec:\n  sink: {service: {name: keyed}}\n  \
                        delivery: {ordering: ByKey, backoffDelay: 20ms, backoffMax: 200ms}\n";
        let setup = || {
            Setup::new(manifest, &[mapped("keyed", &consumer)])
                .argument("--log=jetstream")
                .argument(format!("--nats={}", nats.url()))
                .argument("--nats-replicas=1")
        };
        let first = setup().start();
        let second = setup().on_the_port_of(&first).launch();
        second
            .process
            .wait_for_line(TAKEOVER, |line| line.contains("standing by"));
        Self {
            routers: [first, second],
            nats,
            consumer,
        }
    }

    /// Waits until a router delivers: it has applied this many configurations.
    #[track_caller]
    fn await_delivery(&self, router: usize, times: usize) {
        eventually(TAKEOVER, || match self.routers[router].times_applied() {
            applied if applied >= times => Ok(()),
            applied => Err(format!("router {router} has applied {applied} configurations")),
        });
    }

    /// Waits until all acknowledged events have arrived in order, and the accounting of a router adds up.
    #[track_caller]
    fn check(&self, router: usize, producers: Producers) -> usize {
        let acknowledged = producers.finish();
        let mut arrivals = all_arrive(&self.consumer, &acknowledged);
        let router = &self.routers[router];
        let stored = router.accounting("keyed")["matched"];
        eventually(TAKEOVER, || {
            arrivals.catch_up(&self.consumer);
            match arrivals.events() as u64 {
                events if events >= stored => Ok(()),
                events => Err(format!("{events} of {stored} arrived")),
            }
        });
        router.wait_until_all_are("keyed", "delivered", arrivals.events());
        check_order_by_key(&self.consumer);
        eprintln!(
            "{} acknowledged, 0 lost, {} repeats",
            acknowledged.len(),
            arrivals.repeats()
        );
        arrivals.repeats()
    }
}

#[test]
fn a_router_takes_over_when_another_is_killed() {
    let mut routers = Routers::start();
    let producers = Producers::start(&routers.routers[0].url());
    for killed in [0, 1, 0] {
        let other = 1 - killed;
        producers.wait_for_more(100);
        let before = routers.routers[other].times_applied();
        routers.routers[killed].process.kill();
        let began = Instant::now();
        routers.await_delivery(other, before + 1);
        eprintln!("takeover after {:?}", began.elapsed());
        routers.routers[killed].relaunch("");
    }
    producers.wait_for_more(100);
    routers.check(1, producers);
}

#[test]
fn a_router_that_shuts_down_hands_over_without_repeats() {
    let mut routers = Routers::start();
    let producers = Producers::start(&routers.routers[0].url());
    producers.wait_for_more(100);
    routers.routers[0].process.terminate();
    let began = Instant::now();
    routers.await_delivery(1, 1);
    eprintln!("handed over after {:?}", began.elapsed());
    producers.wait_for_more(100);
    assert_eq!(routers.check(1, producers), 0);
}

#[test]
fn no_event_is_lost_while_nats_is_unavailable() {
    let mut routers = Routers::start();
    let producers = Producers::start(&routers.routers[0].url());
    producers.wait_for_more(100);
    routers.nats.kill();
    // No router can hold the lease.
    routers.routers[0]
        .process
        .wait_for_line(TAKEOVER, |line| line.contains("no longer holds the lease"));
    routers.nats.start_again();
    producers.wait_for_more(100);
    let delivers = eventually(TAKEOVER, || {
        let delivers = |router: &usize| {
            let lines = routers.routers[*router].process.lines();
            let last = lines
                .iter()
                .rfind(|line| line.contains("configuration applied") || line.contains("standing by"));
            last.is_some_and(|line| line.contains("configuration applied"))
        };
        [0, 1]
            .into_iter()
            .find(delivers)
            .ok_or("none delivers".to_owned())
    });
    routers.check(delivers, producers);
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
