//! Random faults of routers and of a cluster of NATS servers, one after another, under load.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    thread::sleep,
    time::{Duration, Instant},
};

use fastrand::Rng;

use super::{BROKERS, PARTITIONS, Routers, TAKEOVER};
use crate::{
    faults::{id_of, is_long, kills},
    support::{NatsCluster, eventually},
};

/// Number of faults after which everything is checked.
const BATCH: usize = 10;
/// Time for which a router is paused in the long form.
const PAUSE: Duration = Duration::from_secs(30);
/// Time for which NATS is away in the long form.
const AWAY: Duration = Duration::from_secs(60);
/// Maximum time between a delivery whose checkpoint is lost and the fault. Checkpoints are saved more often, but servers
/// that recover, on a busy machine, take some seconds to store one.
const UNSAVED: Duration = Duration::from_secs(10);
/// Maximum time for which a router delivers without being able to save: until it gives up its shards, plus some seconds.
const LEASE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A router is killed.
    Router,
    /// The server that leads a stream is killed.
    Leader,
    /// All servers are killed.
    Servers,
    /// A server is killed, and loses its data.
    Wipe,
    /// A router is paused until others have taken over, and resumed.
    Pause,
    /// All servers are killed, and stay away for longer than a lease.
    Away,
    /// The server that leads a stream is paused until another one leads it, and resumed.
    Stall,
    /// A server loses its power, and what it has not synced.
    Power,
    /// All servers lose their power.
    Blackout,
}

/// Each kind, with its share of the faults after the first of each.
const KINDS: [(Kind, usize); 9] = [
    (Kind::Router, 8),
    (Kind::Leader, 8),
    (Kind::Servers, 4),
    (Kind::Wipe, 4),
    (Kind::Pause, 2),
    (Kind::Away, 1),
    (Kind::Stall, 4),
    (Kind::Power, 4),
    (Kind::Blackout, 3),
];
/// The kinds of the short form: no two that are alike.
const SHORT: [Kind; 6] = [
    Kind::Router,
    Kind::Leader,
    Kind::Wipe,
    Kind::Pause,
    Kind::Away,
    Kind::Blackout,
];

/// A fault, with all choices made.
#[derive(Clone, Debug)]
struct Fault {
    kind: Kind,
    /// Number of events to be acknowledged before it.
    after: usize,
    router: usize,
    server: usize,
    broker: usize,
    /// Whether what was killed stays away until others have taken over.
    lasts: bool,
    /// Whether everything recovers before the next fault.
    recovers: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            after,
            router,
            server,
            broker,
            lasts,
            recovers,
        } = self;
        write!(
            f,
            "{kind:?} after {after} events; router {router}, server {server}, broker {broker}, lasts: {lasts}, \
             recovers: {recovers}"
        )
    }
}

/// Plans the faults of the short or the long form: first one of each kind, then random ones.
fn plan(rng: &mut Rng, can_lose_power: bool) -> Vec<Fault> {
    let is_possible = |kind: &Kind| can_lose_power || !matches!(kind, Kind::Power | Kind::Blackout);
    let shares: Vec<_> = KINDS
        .iter()
        .flat_map(|(kind, share)| vec![*kind; *share])
        .filter(is_possible)
        .collect();
    let mut first: Vec<_> = match is_long() {
        true => KINDS.iter().map(|(kind, _)| *kind).filter(is_possible).collect(),
        false => SHORT.iter().copied().filter(is_possible).collect(),
    };
    rng.shuffle(&mut first);
    let faults = if is_long() { kills() as usize } else { first.len() };
    let mut first = first.into_iter();
    (0..faults)
        .map(|_| Fault {
            kind: first.next().unwrap_or_else(|| shares[rng.usize(..shares.len())]),
            after: rng.usize(20..300),
            router: rng.usize(..3),
            server: rng.usize(..3),
            broker: rng.usize(..BROKERS),
            lasts: rng.bool(),
            recovers: rng.bool(),
        })
        .collect()
}

/// What was done, and when: each moment at which something was killed, paused, resumed or started again.
#[derive(Default)]
struct History {
    moments: Vec<(Kind, Instant)>,
    /// Periods in which no events were posted.
    rests: Vec<(Instant, Instant)>,
}

impl History {
    fn note(&mut self, kind: Kind) {
        self.moments.push((kind, Instant::now()));
    }

    /// The fault that explains a repeat: the first delivery was shortly before it, or less than a lease after it.
    fn explains(&self, first: Instant, again: Instant) -> Option<Distance> {
        let moments = self.moments.iter().map(|(_, moment)| *moment);
        let distances = moments.filter(|moment| *moment <= again).filter_map(|moment| {
            let (before, after) = (
                moment.saturating_duration_since(first),
                first.saturating_duration_since(moment),
            );
            match before > Duration::ZERO {
                true => (before <= UNSAVED).then_some((before, Distance::Before(before))),
                false => (after <= LEASE).then_some((after, Distance::After(after))),
            }
        });
        Some(distances.min_by_key(|(time, _)| *time)?.1)
    }
}

/// Time between a delivery and a fault.
#[derive(Clone, Copy)]
enum Distance {
    /// The delivery was before the fault.
    Before(Duration),
    After(Duration),
}

impl Routers<NatsCluster> {
    /// Lets a fault happen, and undoes it.
    fn suffer(&mut self, fault: &Fault, history: &mut History) {
        let kind = fault.kind;
        match kind {
            Kind::Router => {
                history.note(kind);
                self.routers[fault.router].process.kill();
                if fault.lasts {
                    self.await_takeover_from(fault.router);
                }
                self.routers[fault.router].restart();
                history.note(kind);
            }
            Kind::Leader => {
                let (stream, leader) = self.leader(fault);
                history.note(kind);
                self.nats.kill(leader);
                if fault.lasts {
                    self.nats.leader(&stream);
                }
                self.nats.start_again(leader);
                history.note(kind);
            }
            Kind::Stall => {
                let (stream, leader) = self.leader(fault);
                history.note(kind);
                self.nats.pause(leader);
                self.nats.leader(&stream);
                self.nats.resume(leader);
                history.note(kind);
            }
            Kind::Servers => {
                history.note(kind);
                self.kill_servers();
                self.start_servers();
                history.note(kind);
            }
            Kind::Wipe => {
                // The other two must have everything, and this one must have it again before another may fail.
                self.nats.wait_until_current();
                history.note(kind);
                self.nats.kill(fault.server);
                self.nats.wipe(fault.server);
                self.nats.start_again(fault.server);
                history.note(kind);
                self.nats.wait_until_current();
            }
            Kind::Pause => {
                history.note(kind);
                let began = Instant::now();
                self.routers[fault.router].process.signal("STOP");
                self.await_takeover_from(fault.router);
                if is_long() {
                    sleep(PAUSE.saturating_sub(began.elapsed()));
                }
                history.note(kind);
                self.routers[fault.router].process.signal("CONT");
            }
            Kind::Away => {
                self.await_division(&[0, 1, 2]);
                history.note(kind);
                let began = Instant::now();
                let before: Vec<_> = (0..3).map(|router| self.times_given_up(router)).collect();
                self.kill_servers();
                for (router, before) in before.into_iter().enumerate() {
                    eventually(TAKEOVER, || match self.times_given_up(router) {
                        times if times > before => Ok(()),
                        _ => Err(format!("router {router} does not give up its shards")),
                    });
                }
                if is_long() {
                    sleep(AWAY.saturating_sub(began.elapsed()));
                }
                self.start_servers();
                history.note(kind);
            }
            Kind::Power => {
                history.note(kind);
                self.nats.cut_power([fault.server]);
                self.nats.start_again(fault.server);
                history.note(kind);
            }
            Kind::Blackout => {
                history.note(kind);
                self.nats.cut_power(self.nats.servers());
                self.start_servers();
                history.note(kind);
            }
        }
    }

    fn kill_servers(&mut self) {
        for server in self.nats.servers() {
            self.nats.kill(server);
        }
    }

    fn start_servers(&mut self) {
        for server in self.nats.servers() {
            self.nats.start_again(server);
        }
    }

    /// A stream, often the one with the leases and the checkpoints, and the server that leads it.
    fn leader(&self, fault: &Fault) -> (String, usize) {
        let stream = match fault.broker {
            0..4 => "weir_state".to_owned(),
            broker => format!("weir_shop_b{broker}"),
        };
        let leader = self.nats.leader(&stream);
        eprintln!("  server-{leader} leads {stream}");
        (stream, leader)
    }

    fn times_given_up(&self, router: usize) -> usize {
        let lines = self.routers[router].process.lines();
        let gives_up = |line: &&String| line.contains("gives up its shards");
        lines.iter().filter(gives_up).count()
    }

    fn await_takeover_from(&self, router: usize) {
        let others: Vec<_> = (0..3).filter(|other| *other != router).collect();
        self.await_division(&others);
    }

    /// Checks that each repeat is explained by a fault. Returns the longest times between a delivery that was repeated
    /// and the nearest fault: a later one, and an earlier one.
    fn check_repeats(&self, history: &History) -> (Duration, Duration) {
        let mut last = HashMap::new();
        let mut longest = (Duration::ZERO, Duration::ZERO);
        self.consumer.look(|received| {
            for message in received {
                let id = id_of(message);
                let Some(before) = last.insert(id.clone(), message.at) else {
                    continue;
                };
                match history.explains(before, message.at) {
                    Some(Distance::Before(time)) => longest.0 = longest.0.max(time),
                    Some(Distance::After(time)) => longest.1 = longest.1.max(time),
                    None => panic!(
                        "{id} was delivered again after {:?}, without a fault",
                        message.at - before
                    ),
                }
            }
        });
        longest
    }

    /// Longest time without a delivery of a broker, by the kind of the fault with which it began.
    fn longest_gaps(&self, history: &History) -> BTreeMap<Kind, Duration> {
        let (mut gaps, mut last) = (BTreeMap::new(), HashMap::new());
        self.consumer.look(|received| {
            for message in received {
                let key = message.header("ce-partitionkey").unwrap().to_owned();
                let Some(before) = last.insert(key, message.at) else {
                    continue;
                };
                let rested = |(_, end): &(Instant, Instant)| before <= *end && *end <= message.at;
                let moments = || history.moments.iter().filter(|(_, moment)| *moment <= message.at);
                let fault = moments().find(|(_, moment)| *moment >= before);
                if let Some((kind, _)) = fault.or(moments().next_back())
                    && !history.rests.iter().any(rested)
                {
                    let longest = gaps.entry(*kind).or_insert(Duration::ZERO);
                    *longest = (*longest).max(message.at - before);
                }
            }
        });
        gaps
    }
}

/// `WEIR_SEED` repeats a sequence of faults.
#[test]
fn no_acknowledged_event_is_lost_by_random_faults_of_routers_and_servers() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut rng = Rng::with_seed(seed.unwrap_or_else(|| fastrand::u64(..)));
    eprintln!("WEIR_SEED={}", rng.get_seed());
    let nats = NatsCluster::start();
    let plan = plan(&mut rng, nats.can_lose_power());
    let urls = nats.urls();
    let partitions = if rng.bool() { 1 } else { PARTITIONS };
    eprintln!("{partitions} partitions of each broker");
    let mut routers = Routers::on(nats, &urls, 3, partitions, "");
    let producers = routers.produce();
    let (began, mut history, mut counts) = (Instant::now(), History::default(), BTreeMap::new());
    for (batch, part) in plan.chunks(BATCH).enumerate() {
        for (number, fault) in part.iter().enumerate() {
            producers.wait_for_more(fault.after);
            eprintln!(
                "{:?} fault {}: {fault}",
                began.elapsed(),
                batch * BATCH + number + 1
            );
            *counts.entry(fault.kind).or_insert(0) += 1;
            routers.suffer(fault, &mut history);
            if fault.recovers {
                producers.wait_for_more(100);
                routers.await_division(&[0, 1, 2]);
                eprintln!("{:?}   recovered", began.elapsed());
            }
        }
        producers.wait_for_more(100);
        let rest = Instant::now();
        routers.await_division(&[0, 1, 2]);
        routers.check(&producers);
        history.rests.push((rest, Instant::now()));
        let (before, after) = routers.check_repeats(&history);
        eprintln!("repeats are of deliveries up to {before:?} before a fault and {after:?} after one");
    }
    eprintln!("faults: {counts:?}");
    eprintln!("longest gaps: {:?}", routers.longest_gaps(&history));
}
