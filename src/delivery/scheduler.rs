//! Decides what one Trigger does next: which event is attempted, when one is tried again, when one is given up, and what
//! becomes of dead letters. Pure: events, times and jitter come in, steps come out, and nothing here waits.
//!
//! An event is *fresh* until its first attempt, then it is settled or waits for a retry. Fresh events and retries take
//! turns, and retries leave a part of the concurrency to fresh ones, so that however many events keep failing, one that
//! the Sink would take is attempted soon. What waits is a place in the log and, once it has failed, its attempts; only the
//! next few fresh events are held in memory. The dispatcher performs the steps.

#[cfg(test)]
mod model;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    backoff,
    breaker::{Blame, Breaker},
    dead_letter::DeadLetter,
    lanes::Lanes,
    letters::{Letters, Sending},
    place::Place,
    progress::{Attempts, Progress},
    rate::Bucket,
    stats::Settlement,
    throttle::Throttle,
};
use crate::{
    log::Offset,
    routing::{Delivery, Ordering},
};

/// Memory that fresh events hold at most, in bytes, unless one alone is larger. The others are read again.
const MAX_FRESH_BYTES: usize = 256 * 1024;

/// Fresh events that wait in memory at most, as a multiple of the concurrency.
const FRESH_PER_ATTEMPT: usize = 2;

/// Memory that waiting events take at most, in bytes. A Trigger that has more takes no new events until some settle.
const MAX_STATE_BYTES: usize = 8 * 1024 * 1024;

/// Fresh events that are probed for each retry: one that has failed is less likely to show that the Sink is up.
const FRESH_PROBES: u32 = 3;

/// Memory that an event that has failed takes, in bytes, roughly: an entry in a map and one in a set.
const TRIED_BYTES: usize = 128;

/// Redriven dead letters of a Trigger that are unsettled at most.
const MAX_REDRIVEN: usize = 1024;

/// The pause before an attempt that the router could not make, for want of a socket or of memory, is made.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Within which time the events that failed while the Sink was down are tried once it is up.
const AFTER_OUTAGE: Duration = Duration::from_secs(1);

/// Failed attempts in a row after which people are told that the Sink is down.
const FAILURES_TOLD: u32 = 10;

/// The pause that a Sink asks for after which people are told that it is down.
const PAUSE_TOLD: Duration = Duration::from_secs(30);

/// The events of one outage that are tried as soon as it ends, at most.
const MAX_SUSPECTS: usize = 4096;

/// How a Trigger delivers.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) delivery: Delivery,
    /// Whether events are attempted, or have to wait.
    pub(super) is_deliverable: bool,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Step<E> {
    /// Attempt an event, and tell with [`Scheduler::ended`].
    Attempt(Launch<E>),
    /// Send a dead letter to the dead-letter Sink, and tell with [`Scheduler::letter_sent`].
    SendLetter {
        place: Place,
        letter: DeadLetter,
        number: u32,
    },
    /// Keep a dead letter in the log, and tell with [`Scheduler::letter_kept`].
    KeepLetter { place: Place, letter: DeadLetter },
    /// Nothing before this time, or before something happens.
    Wait(Option<Instant>),
}

/// An attempt that begins.
#[derive(Debug)]
pub(super) struct Launch<E> {
    pub(super) place: Place,
    /// The event, if it is in memory.
    pub(super) event: Option<E>,
    /// Which attempt it is, from 1 on.
    pub(super) number: u32,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The Sink has the event.
    Delivered,
    /// The Sink refused the event for good.
    Refused,
    /// Another attempt may succeed. Nobody is to blame when it is the router's log that has no room for the reply.
    Failed {
        blame: Option<Blame>,
        retry_after: Option<Duration>,
    },
    /// The event had expired.
    Expired,
    /// The event cannot be had any more.
    Gone,
    /// No attempt was made: the router has no socket, no memory or no access to the log for now.
    Busy,
}

/// What becomes of an event whose attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Settled,
    /// It is tried again.
    Waits,
    /// It is to become a dead letter, by [`Scheduler::bury`].
    GivenUp {
        attempts: u32,
        reason: &'static str,
    },
}

struct Item<E> {
    place: Place,
    event: Option<E>,
    bytes: usize,
}

/// An attempt under way.
#[derive(Clone, Copy)]
struct Flight {
    began: Instant,
    is_retry: bool,
    /// Which Sink it goes to, counted.
    sink: u32,
}

pub(super) struct Scheduler<E> {
    policy: Policy,
    progress: Progress,
    fresh: VecDeque<Item<E>>,
    fresh_bytes: usize,
    lanes: Lanes,
    retries: BTreeSet<(Instant, Place)>,
    in_flight: HashMap<Place, Flight>,
    retries_in_flight: usize,
    /// Fresh events that were attempted since the last retry.
    fresh_in_a_row: u32,
    letters: Letters,
    breaker: Breaker,
    /// Attempts that failed since the last success, of whichever events.
    failures: u32,
    /// What failed for the first time since the last success.
    suspects: Vec<Place>,
    bucket: Bucket,
    throttle: Throttle,
    /// Whether the Sink has since its last success asked for a pause of which people are told.
    asked_for_long_pause: bool,
    sink: u32,
}

impl<E> Scheduler<E> {
    /// Goes on from `progress`. What had failed is tried again after a pause; the rest is offered again.
    pub(super) fn new(
        progress: Progress,
        policy: Policy,
        now: Instant,
        mut jitter: impl FnMut() -> f64,
    ) -> Self {
        let mut scheduler = Self {
            policy,
            progress,
            fresh: VecDeque::new(),
            fresh_bytes: 0,
            lanes: Lanes::default(),
            retries: BTreeSet::new(),
            in_flight: HashMap::new(),
            retries_in_flight: 0,
            fresh_in_a_row: 0,
            letters: Letters::default(),
            breaker: Breaker::default(),
            failures: 0,
            suspects: Vec::new(),
            bucket: Bucket::default(),
            throttle: Throttle::new(now),
            asked_for_long_pause: false,
            sink: 0,
        };
        if !scheduler.is_by_key() {
            let tried: Vec<_> = scheduler.progress.tried_places().collect();
            for (place, attempts) in tried {
                scheduler.resume(place, attempts, now, jitter());
            }
        }
        scheduler
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What was outstanding at the start and has to be offered again, in order. With order by key that is everything: only
    /// the events tell their keys.
    pub(super) fn to_recover(&self) -> Vec<Place> {
        let by_key = self.is_by_key();
        let outstanding = self.progress.outstanding();
        outstanding
            .filter(|&place| by_key || self.progress.attempts(place).is_none())
            .collect()
    }

    /// Whether more events are to be offered. The memory for what waits is bounded.
    pub(super) fn wants_more(&self) -> bool {
        self.policy.is_deliverable && self.room() > 0 && !self.is_full()
    }

    /// How many events may be offered at once.
    pub(super) fn room(&self) -> usize {
        (self.concurrency() * FRESH_PER_ATTEMPT).saturating_sub(self.fresh.len())
    }

    /// Whether so much waits that no more events are taken.
    pub(super) fn is_full(&self) -> bool {
        self.state_bytes() >= MAX_STATE_BYTES || self.letters.is_full()
    }

    /// Memory that waiting events take, in bytes, roughly.
    pub(super) fn state_bytes(&self) -> usize {
        self.progress.tried() * TRIED_BYTES + self.lanes.bytes()
    }

    /// Everything below `next` was offered or is not wanted.
    pub(super) fn advance(&mut self, next: Offset) {
        self.progress.advance(next);
    }

    /// An event that the Trigger wants, of this size in memory. What is offered a second time is not counted again.
    pub(super) fn offer(
        &mut self,
        place: Place,
        key: Option<Box<str>>,
        event: Option<(E, usize)>,
        now: Instant,
        jitter: f64,
    ) {
        if let Place::Log(offset) = place
            && offset >= self.progress.next()
        {
            self.progress.matched(offset);
        }
        if !self.progress.is_outstanding(place) || self.in_flight.contains_key(&place) {
            return;
        }
        let key = key.filter(|_| self.is_by_key());
        if key.is_some_and(|key| !self.lanes.enter(key, place)) {
            return;
        }
        match self.progress.attempts(place) {
            Some(attempts) => self.resume(place, attempts, now, jitter),
            None => self.push_fresh(place, event),
        }
    }

    /// An outstanding event was removed from the log.
    pub(super) fn removed(&mut self, place: Place, now: Instant) {
        self.settle(place, Settlement::Dropped, now);
    }

    /// How many dead letters may be redriven now.
    pub(super) fn redrive_room(&self) -> usize {
        MAX_REDRIVEN.saturating_sub(self.progress.pending_redriven())
    }

    /// The progress as it will be once these dead letters are redriven.
    pub(super) fn with_redriven(&self, letters: impl Iterator<Item = Offset>) -> Progress {
        let mut progress = self.progress.clone();
        letters.for_each(|letter| progress.redriven(letter));
        progress
    }

    /// The dead letter is wanted again, which is durable.
    pub(super) fn redriven(&mut self, letter: Offset, key: Option<Box<str>>, now: Instant) {
        self.progress.redriven(letter);
        self.offer(Place::DeadLetter(letter), key, None, now, 0.0);
    }

    /// The Trigger delivers by this from now on.
    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Events go to another Sink from now on. The pauses were earned by the one before.
    pub(super) fn sink_changed(&mut self, now: Instant) {
        self.sink = self.sink.wrapping_add(1);
        self.breaker = Breaker::default();
        self.throttle = Throttle::new(now);
        self.asked_for_long_pause = false;
        self.failures = 0;
        self.suspects.clear();
        self.retries = self.retries.iter().map(|&(_, place)| (now, place)).collect();
    }

    /// Whether people are told that the Sink is down: it is only probed, has taken none of the last attempts, be they of
    /// few events, or has asked for a long pause.
    pub(super) fn is_sink_down(&self) -> bool {
        self.breaker.is_open() || self.failures >= FAILURES_TOLD || self.asked_for_long_pause
    }

    /// Attempts under way.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What to do next. A step that is not [`Step::Wait`] has begun.
    pub(super) fn next(&mut self, now: Instant) -> Step<E> {
        let for_letters = match self.next_letter(now) {
            Step::Wait(at) => at,
            step => return step,
        };
        match self.attempt(now) {
            Ok(launch) => Step::Attempt(launch),
            Err(at) => Step::Wait([at, for_letters].into_iter().flatten().min()),
        }
    }

    /// The same for dead letters only.
    pub(super) fn next_letter(&mut self, now: Instant) -> Step<E> {
        match self.letters.next(now) {
            Sending::Send {
                place,
                letter,
                number,
            } => Step::SendLetter {
                place,
                letter,
                number,
            },
            Sending::Keep { place, letter } => Step::KeepLetter { place, letter },
            Sending::Wait(at) => Step::Wait(at),
        }
    }

    /// The next attempt, or when to look again.
    fn attempt(&mut self, now: Instant) -> Result<Launch<E>, Option<Instant>> {
        if !self.policy.is_deliverable || self.in_flight.len() >= self.concurrency() || self.letters.is_full()
        {
            return Err(None);
        }
        let delivery = &self.policy.delivery;
        let pause = |rounds| backoff::ceiling(delivery, rounds);
        let Some(by_breaker) = self.breaker.permits(now, self.in_flight.len(), pause) else {
            return Err(None);
        };
        let by_rate = delivery
            .rate_limit
            .map_or(now, |limit| self.bucket.permits(limit, now));
        let due = self.retries.first().map(|&(at, _)| at);
        if self.fresh.is_empty() && due.is_none() {
            return Err(None);
        }
        let permitted = by_breaker.max(by_rate).max(self.throttle.permits(now));
        if permitted > now {
            return Err(Some(permitted));
        }
        let Some((item, is_retry)) = self.pick(now) else {
            return Err(due.filter(|_| self.may_retry()));
        };
        if let Some(limit) = self.policy.delivery.rate_limit {
            self.bucket.take(limit, now);
        }
        self.breaker.begin();
        self.throttle.begin(now);
        self.fresh_in_a_row = if is_retry {
            0
        } else {
            self.fresh_in_a_row.saturating_add(1)
        };
        self.retries_in_flight += usize::from(is_retry);
        let flight = Flight {
            began: now,
            is_retry,
            sink: self.sink,
        };
        self.in_flight.insert(item.place, flight);
        let failed = self
            .progress
            .attempts(item.place)
            .map_or(0, |attempts| attempts.failed);
        Ok(Launch {
            place: item.place,
            event: item.event,
            number: failed.saturating_add(1),
        })
    }

    /// A retry that is due or a fresh event, in turns; whether it is a retry.
    fn pick(&mut self, now: Instant) -> Option<(Item<E>, bool)> {
        let is_due = self.may_retry() && self.retries.first().is_some_and(|&(at, _)| at <= now);
        let turns = if self.breaker.is_open() { FRESH_PROBES } else { 1 };
        if !is_due || (self.fresh_in_a_row < turns && !self.fresh.is_empty()) {
            let item = self.fresh.pop_front()?;
            self.fresh_bytes -= item.bytes;
            return Some((item, false));
        }
        let (_, place) = self.retries.pop_first()?;
        let item = Item {
            place,
            event: None,
            bytes: 0,
        };
        Some((item, true))
    }

    /// Whether retries leave enough of the concurrency to fresh events.
    fn may_retry(&self) -> bool {
        let concurrency = self.concurrency();
        let reserved = (concurrency / 4).max(1);
        self.retries_in_flight < concurrency.saturating_sub(reserved).max(1)
    }

    /// An attempt has ended.
    pub(super) fn ended(&mut self, place: Place, ending: Ending, now: Instant, jitter: f64) -> Fate {
        let flight = self.in_flight.remove(&place);
        self.retries_in_flight -= usize::from(flight.is_some_and(|flight| flight.is_retry));
        let began = flight.map_or(now, |flight| flight.began);
        let is_of_this_sink = flight.is_some_and(|flight| flight.sink == self.sink);
        match ending {
            Ending::Delivered | Ending::Refused if is_of_this_sink => {
                self.throttle.taken(now);
                self.sink_answered(now, jitter);
            }
            _ => {}
        }
        match ending {
            Ending::Delivered => self.settle(place, Settlement::Delivered, now),
            Ending::Expired => self.settle(place, Settlement::Expired, now),
            Ending::Gone => self.settle(place, Settlement::Dropped, now),
            Ending::Busy => {
                self.retries
                    .insert((now + BUSY_PAUSE.mul_f64(0.5 + jitter / 2.0), place));
                Fate::Waits
            }
            Ending::Refused => Fate::GivenUp {
                attempts: self.progress.failed(place, began).failed,
                reason: "refused",
            },
            Ending::Failed { blame, retry_after } => {
                if let Some(blame) = blame.filter(|_| is_of_this_sink) {
                    self.sink_failed(place, blame, retry_after, began, now);
                }
                self.failed(place, began, retry_after, now, jitter)
            }
        }
    }

    fn failed(
        &mut self,
        place: Place,
        began: Instant,
        retry_after: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> Fate {
        let attempts = self.progress.failed(place, began);
        let delivery = &self.policy.delivery;
        if backoff::exhausted(delivery, attempts.failed, attempts.elapsed(now)) {
            return Fate::GivenUp {
                attempts: attempts.failed,
                reason: "retries exhausted",
            };
        }
        let pause = backoff::pause(delivery, attempts.failed, retry_after, jitter);
        self.retries.insert((now + pause, place));
        Fate::Waits
    }

    fn sink_failed(
        &mut self,
        place: Place,
        blame: Blame,
        retry_after: Option<Duration>,
        began: Instant,
        now: Instant,
    ) {
        self.failures = self.failures.saturating_add(1);
        let delivery = &self.policy.delivery;
        let is_further_evidence = self.progress.attempts(place).is_none();
        // An event that fails again is no further evidence.
        if is_further_evidence {
            self.breaker
                .failed(blame, now, |rounds| backoff::ceiling(delivery, rounds));
            if self.suspects.len() < MAX_SUSPECTS {
                self.suspects.push(place);
            }
        }
        if blame == Blame::TooFast {
            self.throttle.too_fast(began, now);
        }
        // An event that keeps failing while others pass asks for itself alone, unless it is told of the rate.
        let asks_for_all = match blame {
            Blame::TooFast => true,
            Blame::Unavailable => is_further_evidence || self.breaker.is_open(),
            Blame::Silent | Blame::Event => false,
        };
        let asked = retry_after.map(|asked| asked.min(delivery.retry_after_max));
        if let Some(asked) = asked.filter(|asked| asks_for_all && !asked.is_zero()) {
            self.throttle.hold(now + asked, now);
            self.asked_for_long_pause |= asked >= PAUSE_TOLD;
        }
    }

    /// Once an outage is over, what failed in it is tried again soon.
    fn sink_answered(&mut self, now: Instant, jitter: f64) {
        self.failures = 0;
        self.asked_for_long_pause = false;
        let suspects = std::mem::take(&mut self.suspects);
        if !self.breaker.answered(now) {
            return;
        }
        let suspects: BTreeSet<_> = suspects.into_iter().collect();
        let soon = now + AFTER_OUTAGE.mul_f64(jitter);
        let waiting = std::mem::take(&mut self.retries).into_iter();
        self.retries = waiting
            .map(|(at, place)| {
                if suspects.contains(&place) {
                    (at.min(soon), place)
                } else {
                    (at, place)
                }
            })
            .collect();
    }

    /// The event becomes a dead letter: it goes to the dead-letter Sink, or is kept.
    pub(super) fn bury(&mut self, place: Place, letter: DeadLetter, has_sink: bool, now: Instant) {
        self.letters.bury(place, letter, has_sink, now);
    }

    /// A dead letter was sent to the dead-letter Sink.
    pub(super) fn letter_sent(&mut self, place: Place, sent: LetterSent, now: Instant, jitter: f64) {
        match sent {
            LetterSent::Taken => drop(self.settle(place, Settlement::DeadLettered, now)),
            LetterSent::Gone => drop(self.settle(place, Settlement::Dropped, now)),
            sent => self.letters.sent(place, sent, &self.policy.delivery, now, jitter),
        }
    }

    /// A dead letter was kept in the log, or found no room.
    pub(super) fn letter_kept(&mut self, place: Place, kept: LetterKept, now: Instant) {
        match kept {
            LetterKept::Stored => drop(self.settle(place, Settlement::DeadLettered, now)),
            LetterKept::Gone => drop(self.settle(place, Settlement::Dropped, now)),
            LetterKept::NoRoom => {
                let is_first = self.is_first_unsettled(place);
                self.letters.found_no_room(place, is_first, now);
            }
        }
    }

    fn settle(&mut self, place: Place, settlement: Settlement, now: Instant) -> Fate {
        self.progress.settle(place, settlement);
        self.letters.forget(place);
        if let Some(next) = self.lanes.leave(place) {
            self.push_fresh(next, None);
        }
        // The room that is kept for settling is for the first unsettled event.
        self.letters.hurry(Place::Log(self.progress.low().events), now);
        Fate::Settled
    }

    fn is_first_unsettled(&self, place: Place) -> bool {
        place == Place::Log(self.progress.low().events)
    }

    fn resume(&mut self, place: Place, attempts: Attempts, now: Instant, jitter: f64) {
        let pause = backoff::pause(&self.policy.delivery, attempts.failed, None, jitter);
        self.retries.insert((now + pause, place));
    }

    fn push_fresh(&mut self, place: Place, event: Option<(E, usize)>) {
        let event =
            event.filter(|(_, bytes)| self.fresh_bytes == 0 || self.fresh_bytes + bytes <= MAX_FRESH_BYTES);
        let (event, bytes) = event.map_or((None, 0), |(event, bytes)| (Some(event), bytes));
        self.fresh_bytes += bytes;
        self.fresh.push_back(Item { place, event, bytes });
    }

    fn is_by_key(&self) -> bool {
        self.policy.delivery.ordering == Ordering::ByKey
    }

    fn concurrency(&self) -> usize {
        self.policy.delivery.concurrency.max(1) as usize
    }
}

/// What came of sending a dead letter to the dead-letter Sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LetterSent {
    Taken,
    /// There is no dead-letter Sink any more.
    NoSink,
    /// It was refused for good.
    Refused(String),
    /// Another attempt may succeed.
    Failed {
        detail: String,
        retry_after: Option<Duration>,
    },
    /// No attempt was made: the router has no socket, no memory or no access to the log for now.
    Busy,
    /// The event cannot be had any more.
    Gone,
}

/// What came of keeping a dead letter in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LetterKept {
    Stored,
    /// The log has no room for it, or is away for now.
    NoRoom,
    /// The event cannot be had any more.
    Gone,
}
