//! Model test of the scheduler. Runs it against simulated Sinks in simulated time and checks its invariants:
//! nothing is lost or delivered twice, keys keep their order, bounds hold, the accounting adds up at every step,
//! and an event that its Sink would accept is delivered within a stated time.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::destination::Blame;
use crate::{
    delivery::{breaker, progress::SettlementCounts},
    routing::{RateLimit, Retry},
};

/// The Sink's answer to one event, every time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Good,
    /// 503.
    Unavailable,
    /// No connection.
    Unreachable,
    /// 500.
    Broken,
    /// No answer within the timeout.
    Hangs,
    /// 400.
    Rejected,
    /// 503 this often, then success.
    Recovers(u32),
    /// 503 with a pause of three seconds.
    Pauses,
    /// 429.
    TooFast,
}

#[derive(Clone, Debug)]
struct Scenario {
    events: Vec<(Nature, Option<u8>)>,
    concurrency: u32,
    by_key: bool,
    rate: Option<u32>,
    retries: Option<u32>,
    /// Time for which the log has no room for dead letters.
    no_room: u64,
    dead_letter_sink: bool,
    jitter: Vec<u8>,
    /// Crashes: after so many steps the process is killed, and resumes from the checkpoint saved so many steps
    /// earlier.
    crashes: Vec<(usize, usize)>,
}

const TIMEOUT: Duration = Duration::from_secs(5);
const ROUND_TRIP: Duration = Duration::from_millis(10);
/// Pause between two attempts after a 429.
const SLOWEST_PACE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(3);

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        4 => Just(Nature::Good),
        2 => Just(Nature::Unavailable),
        1 => Just(Nature::Unreachable),
        2 => Just(Nature::Broken),
        1 => Just(Nature::Hangs),
        1 => Just(Nature::Rejected),
        1 => Just(Nature::Pauses),
        1 => Just(Nature::TooFast),
        1 => (1_u32..4).prop_map(Nature::Recovers),
    ]
}

prop_compose! {
    fn scenario()(
        events in prop::collection::vec((nature(), prop::option::of(0_u8..4)), 1..80),
        concurrency in 1_u32..6,
        by_key in any::<bool>(),
        rate in prop::option::weighted(0.2, 5_u32..50),
        retries in prop::option::weighted(0.3, 0_u32..5),
        no_room in prop_oneof![3 => Just(0_u64), 1 => 1_u64..30],
        dead_letter_sink in any::<bool>(),
        jitter in prop::collection::vec(any::<u8>(), 1..20),
        crashes in prop::collection::vec((1_usize..200, 0_usize..20), 0..3),
    ) -> Scenario {
        Scenario { events, concurrency, by_key, rate, retries, no_room, dead_letter_sink, jitter, crashes }
    }
}

/// Work in flight, by its end.
#[derive(Clone, Debug)]
enum Ends {
    Attempt(Ending),
    Sent(LetterSent),
    Stored(LetterStored),
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    scheduler: Scheduler<u64>,
    start: Instant,
    now: Instant,
    in_flight: BTreeMap<(Instant, EventPosition), Ends>,
    offered: u64,
    to_recover: VecDeque<EventPosition>,
    tries: BTreeMap<u64, u32>,
    delivered: BTreeMap<u64, Instant>,
    deliveries: Vec<u64>,
    given_up: BTreeSet<u64>,
    jitter: usize,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let start = Instant::now();
        Self {
            scenario,
            scheduler: Scheduler::new(Progress::starting_at(Offset(0)), policy(scenario), start, || 0.5),
            start,
            now: start,
            in_flight: BTreeMap::new(),
            offered: 0,
            to_recover: VecDeque::new(),
            tries: BTreeMap::new(),
            delivered: BTreeMap::new(),
            deliveries: Vec::new(),
            given_up: BTreeSet::new(),
            jitter: 0,
        }
    }

    fn jitter(&mut self) -> f64 {
        self.jitter += 1;
        f64::from(self.scenario.jitter[self.jitter % self.scenario.jitter.len()]) / 255.0
    }

    fn key(&self, offset: u64) -> Option<Box<str>> {
        let key = self.scenario.events[usize::try_from(offset).unwrap()].1?;
        Some(key.to_string().into())
    }

    /// Offers as many events as there is room for, as a feed does.
    fn feed(&mut self) {
        while self.scheduler.wants_more() {
            let position = if let Some(position) = self.to_recover.pop_front() {
                position
            } else if (self.offered as usize) < self.scenario.events.len() {
                let offset = self.offered.max(self.scheduler.progress().next().0);
                self.offered = offset + 1;
                EventPosition::Log(Offset(offset))
            } else {
                return;
            };
            let EventPosition::Log(Offset(offset)) = position else {
                unreachable!()
            };
            let (key, jitter) = (self.key(offset), self.jitter());
            self.scheduler
                .offer(position, key, Some((offset, 10)), self.now, jitter);
        }
    }

    fn begin(&mut self) -> Option<Instant> {
        loop {
            match self.scheduler.next(self.now) {
                SchedulerStep::Attempt(launch) => {
                    let EventPosition::Log(Offset(offset)) = launch.position else {
                        unreachable!()
                    };
                    assert!(launch.event.is_none_or(|event| event == offset));
                    assert!(
                        !self
                            .in_flight
                            .keys()
                            .any(|&(_, position)| position == launch.position),
                        "{offset} is in flight twice"
                    );
                    let tries = self.tries.entry(offset).or_default();
                    *tries += 1;
                    let failed = |blame| Ending::Failed {
                        blame: Some(blame),
                        retry_after: None,
                    };
                    let asking = |pause| Ending::Failed {
                        blame: Some(Blame::Unavailable),
                        retry_after: Some(pause),
                    };
                    let unavailable = failed(Blame::Unavailable);
                    let (ending, took) = match self.scenario.events[offset as usize].0 {
                        Nature::Good => (Ending::Delivered, ROUND_TRIP),
                        Nature::Unavailable => (unavailable, ROUND_TRIP),
                        Nature::TooFast => (failed(Blame::TooFast), ROUND_TRIP),
                        Nature::Pauses => (asking(PAUSE), ROUND_TRIP),
                        Nature::Unreachable => (failed(Blame::Silent), ROUND_TRIP),
                        Nature::Hangs => (failed(Blame::Silent), TIMEOUT),
                        Nature::Broken => (failed(Blame::Event), ROUND_TRIP),
                        Nature::Rejected => (Ending::Rejected, ROUND_TRIP),
                        Nature::Recovers(after) if *tries <= after => (unavailable, ROUND_TRIP),
                        Nature::Recovers(_) => (Ending::Delivered, ROUND_TRIP),
                    };
                    self.in_flight
                        .insert((self.now + took, launch.position), Ends::Attempt(ending));
                    assert!(self.scheduler.in_flight() <= self.scenario.concurrency as usize);
                    if self.scenario.by_key {
                        self.check_keys_in_flight();
                    }
                }
                SchedulerStep::SendLetter { position, .. } => {
                    let failed = Ending::Failed {
                        blame: Some(Blame::Unavailable),
                        retry_after: None,
                    };
                    let taken = self.jitter() < 0.5;
                    let sent = LetterSent {
                        ending: Some(if taken { Ending::Delivered } else { failed }),
                        detail: "503".to_owned(),
                    };
                    self.in_flight
                        .insert((self.now + ROUND_TRIP, position), Ends::Sent(sent));
                }
                SchedulerStep::StoreLetter { position, .. } => {
                    let has_room = self.now >= self.start + Duration::from_secs(self.scenario.no_room);
                    let stored = if has_room {
                        LetterStored::Stored
                    } else {
                        LetterStored::NoRoom
                    };
                    self.in_flight
                        .insert((self.now + ROUND_TRIP, position), Ends::Stored(stored));
                }
                SchedulerStep::Wait(at) => return at,
            }
        }
    }

    fn check_keys_in_flight(&self) {
        let mut keys = BTreeSet::new();
        for ((_, position), ends) in &self.in_flight {
            if let (EventPosition::Log(Offset(offset)), Ends::Attempt(_)) = (position, ends)
                && let Some(key) = self.key(*offset)
            {
                assert!(keys.insert(key.clone()), "two events of key {key} are in flight");
            }
        }
    }

    fn end(&mut self, position: EventPosition, ends: Ends) {
        let (now, jitter) = (self.now, self.jitter());
        let EventPosition::Log(Offset(offset)) = position else {
            unreachable!()
        };
        match ends {
            Ends::Attempt(ending) => {
                let fate = self.scheduler.ended(position, ending, now, jitter);
                if ending == Ending::Delivered {
                    assert_eq!(fate, Fate::Settled);
                    self.delivered.entry(offset).or_insert(now);
                    self.deliveries.push(offset);
                }
                if let Fate::GivenUp { attempts, .. } = fate {
                    assert!(attempts > 0);
                    self.given_up.insert(offset);
                    let has_sink = self.scenario.dead_letter_sink;
                    self.scheduler
                        .dead_letter(position, DeadLetter::for_test(), has_sink, now);
                }
            }
            Ends::Sent(sent) => self.scheduler.letter_sent(position, sent, now, jitter),
            Ends::Stored(stored) => self.scheduler.letter_stored(position, stored, now),
        }
    }

    fn check_accounting(&self) {
        let SettlementCounts {
            matched,
            delivered,
            expired,
            dead_lettered,
            dropped,
            redriven,
        } = self.scheduler.progress().counts();
        let pending = self.scheduler.progress().pending() as u64;
        assert_eq!(matched, delivered + expired + dead_lettered + dropped + pending);
        assert_eq!((expired, dropped, redriven), (0, 0, 0));
        assert!(self.scheduler.state_bytes() < MAX_STATE_BYTES);
    }

    /// Restarts from a saved checkpoint, read later.
    fn crash(&mut self, saved: &[u8]) {
        let progress = Progress::decode(saved, self.now).unwrap();
        self.offered = progress.next().0;
        self.scheduler = Scheduler::new(progress, policy(self.scenario), self.now, || 0.5);
        self.to_recover = self.scheduler.to_recover().into();
        self.in_flight.clear();
    }

    /// Runs until nothing is left to do, or until `until`.
    fn run(&mut self, until: Instant) {
        let mut saved = VecDeque::from([self.scheduler.progress().encode("a/b", self.now)]);
        let mut crashes: VecDeque<_> = self.scenario.crashes.clone().into();
        for step in 1.. {
            self.feed();
            let wake = self.begin();
            self.check_accounting();
            let ends = self.in_flight.first_key_value().map(|(&(at, _), _)| at);
            let Some(at) = [ends, wake].into_iter().flatten().min() else {
                return;
            };
            if at > until {
                return;
            }
            assert!(at >= self.now);
            // No busy loop: time advances where nothing ends.
            assert!(ends.is_some_and(|ends| ends <= at) || at > self.now, "busy loop");
            self.now = at;
            if ends == Some(at)
                && let Some(((_, position), ends)) = self.in_flight.pop_first()
            {
                self.end(position, ends);
            }
            saved.push_back(self.scheduler.progress().encode("a/b", self.now));
            if saved.len() > 20 {
                saved.pop_front();
            }
            if crashes.front().is_some_and(|&(after, _)| step >= after) {
                let (_, before) = crashes.pop_front().unwrap();
                let saved = saved[saved.len().saturating_sub(before + 1)].clone();
                self.crash(&saved);
            }
        }
    }
}

fn policy(scenario: &Scenario) -> Policy {
    Policy {
        delivery: Delivery {
            concurrency: scenario.concurrency,
            timeout: TIMEOUT,
            retry: Retry {
                attempts: scenario.retries,
                duration: Some(Duration::from_secs(3600)),
            },
            ordering: if scenario.by_key {
                Ordering::ByKey
            } else {
                Ordering::None
            },
            rate_limit: scenario.rate.map(|rate| RateLimit {
                per_second: NonZeroU32::new(rate).unwrap(),
                burst: NonZeroU32::MIN,
            }),
            ..Delivery::default()
        },
        partition: Partition::WHOLE,
        is_deliverable: true,
    }
}

/// Latest time by which every event that the Sink accepts at once is delivered. In the worst case each event gets
/// its turn by a probe, with the longest pause before it, after the longest attempts of retries before it, at the
/// slowest pace.
fn latest(scenario: &Scenario) -> Duration {
    let turns = u32::try_from(scenario.events.len()).unwrap() + 20;
    let probes =
        turns * (breaker::SILENT.pause / breaker::SILENT.width * 2 + 2 * TIMEOUT + PAUSE + 2 * SLOWEST_PACE);
    probes + 3 * breaker::SILENT.pause + Duration::from_secs(scenario.no_room + 60)
}

proptest! {
    #[test]
    fn good_events_are_delivered_in_time(scenario in scenario()) {
        let mut simulation = Simulation::new(&scenario);
        let until = simulation.start + latest(&scenario);
        simulation.run(until);
        for (offset, &(nature, key)) in scenario.events.iter().enumerate() {
            // With order by key, events behind an unsettled one wait for it.
            let waits = scenario.by_key && key.is_some() && scenario.events[..offset]
                .iter()
                .any(|(before, of_key)| *of_key == key && !matches!(before, Nature::Good));
            if nature == Nature::Good && !waits {
                prop_assert!(
                    simulation.delivered.contains_key(&(offset as u64)),
                    "{offset} was not delivered within {:?}: {:?}", latest(&scenario), simulation.delivered
                );
            }
        }
    }

    #[test]
    fn every_event_is_settled_once_and_in_order(scenario in scenario()) {
        let mut simulation = Simulation::new(&scenario);
        // Beyond every retry duration.
        let until = simulation.start + Duration::from_secs(100 * 3600);
        simulation.run(until);
        let counts = simulation.scheduler.progress().counts();
        prop_assert_eq!(counts.matched, scenario.events.len() as u64);
        prop_assert_eq!(simulation.scheduler.progress().pending(), 0);
        prop_assert_eq!((simulation.scheduler.lanes.bytes(), simulation.scheduler.retries.len()), (0, 0));
        for (offset, &(nature, _)) in scenario.events.iter().enumerate() {
            if nature == Nature::Good {
                prop_assert!(simulation.delivered.contains_key(&(offset as u64)), "{offset} is lost");
            }
        }
        let mut deliveries = simulation.deliveries.clone();
        deliveries.sort_unstable();
        deliveries.dedup();
        if scenario.crashes.is_empty() {
            prop_assert_eq!(deliveries.len(), simulation.deliveries.len(), "repeats without a crash");
            prop_assert_eq!(counts.delivered, deliveries.len() as u64);
        }
        if scenario.by_key {
            let mut last = BTreeMap::new();
            let mut seen = BTreeSet::new();
            // A crash may undo giving up an event, and deliver it after those that had waited for it.
            let deliveries = simulation.deliveries.iter().filter(|offset| !simulation.given_up.contains(offset));
            for &offset in deliveries.filter(|&&offset| seen.insert(offset)) {
                if let Some(key) = simulation.key(offset) {
                    let before = last.insert(key, offset);
                    prop_assert!(before.is_none_or(|before| before < offset), "{offset} after {before:?}");
                }
            }
        }
    }
}

fn scenario_of(events: Vec<(Nature, Option<u8>)>, by_key: bool) -> Scenario {
    Scenario {
        events,
        concurrency: 32,
        by_key,
        rate: None,
        retries: None,
        no_room: 0,
        dead_letter_sink: false,
        jitter: vec![128],
        crashes: Vec::new(),
    }
}

/// Time until all good events were delivered.
fn took(scenario: &Scenario) -> Duration {
    let mut simulation = Simulation::new(scenario);
    simulation.run(simulation.start + Duration::from_secs(600));
    let good = scenario
        .events
        .iter()
        .filter(|(nature, _)| *nature == Nature::Good)
        .count();
    assert_eq!(simulation.delivered.len(), good);
    let last = simulation.delivered.values().max().copied();
    last.unwrap_or(simulation.start) - simulation.start
}

#[test]
fn good_events_are_delivered_within_seconds_whatever_the_share_of_bad_ones() {
    for bad in [Nature::Unavailable, Nature::Broken] {
        for (share, most) in [(1, 2), (12, 10), (50, 20), (90, 60)] {
            let events = (0..400).map(|number| {
                let nature = if number % 100 < share { bad } else { Nature::Good };
                (nature, Some(u8::try_from(number % 200).unwrap()))
            });
            let took = took(&scenario_of(events.collect(), true));
            assert!(took < Duration::from_secs(most), "{share} % {bad:?}: {took:?}");
        }
    }
}

#[test]
fn events_behind_a_failing_one_of_their_key_block_no_other_key() {
    let mut events = vec![(Nature::Unavailable, Some(0))];
    events.extend([(Nature::Good, Some(0)); 20_000]);
    events.extend([(Nature::Good, Some(1)); 20]);
    let scenario = scenario_of(events, true);
    let mut simulation = Simulation::new(&scenario);
    simulation.run(simulation.start + Duration::from_secs(5));
    assert_eq!(simulation.delivered.len(), 20);
    assert_eq!(simulation.scheduler.progress().pending(), 20_001);
    assert!(simulation.scheduler.state_bytes() < 50_000);
}
