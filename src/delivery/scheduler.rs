//! Decides one Trigger's next step: which event to attempt, when to retry, when to give up, and where dead letters go.
//! Pure: events, times and jitter come in, steps come out, and nothing here waits.
//!
//! An event is *fresh* until its first attempt; afterwards it is settled or waits for a retry. Fresh events and
//! retries alternate, and retries leave part of the concurrency to fresh events. So an event that the Sink would
//! accept is attempted soon, however many others keep failing. A waiting event is an offset and, once it has failed,
//! its attempts; only the next few fresh events are held in memory. The dispatcher performs the steps.

#[cfg(test)]
mod model;
mod outcomes;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use super::{
    backoff,
    breaker::Breaker,
    dead_letter::DeadLetter,
    ending::Ending,
    lanes::Lanes,
    letters::{LetterSent, LetterStep, LetterStored, PendingLetters},
    position::EventPosition,
    progress::{FailedAttempts, Progress},
    rate::{TokenBucket, TokenRate},
    settlement::Settlement,
    throttle::Throttle,
};
use crate::{
    log::{Offset, Partition},
    routing::{Delivery, Ordering},
};

/// Maximum bytes of fresh events in memory, unless a single one is larger. Others are read again from the log.
const MAX_FRESH_BYTES: usize = 256 * 1024;

/// Maximum fresh events in memory, as a multiple of the concurrency.
const FRESH_PER_ATTEMPT: usize = 2;

/// Maximum bytes of state for waiting events. Beyond it the Trigger takes no new events until some settle.
const MAX_STATE_BYTES: usize = 8 * 1024 * 1024;

/// Fresh events probed for each retry: an event that has already failed says less about whether the Sink is up.
const FRESH_PROBES: u32 = 3;

/// Approximate bytes of state for a failed event: an entry in a map and one in a set.
const TRIED_BYTES: usize = 128;

/// Maximum unsettled redriven dead letters of a Trigger.
const MAX_REDRIVEN: usize = 1024;

/// Consecutive failed attempts after which the Sink is reported as down.
const FAILURES_WHEN_DOWN: u32 = 10;

/// Delivery policy of a Trigger.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) delivery: Delivery,
    /// The part of the broker's events that is scheduled here, with its share of the concurrency and the rate.
    pub(super) partition: Partition,
    /// Whether events are attempted; otherwise they wait.
    pub(super) is_deliverable: bool,
}

/// Next step of a Trigger.
#[derive(Debug)]
pub(super) enum SchedulerStep<E> {
    /// Attempt an event; report the result by [`Scheduler::ended`].
    Attempt(Launch<E>),
    /// Send a dead letter to the dead-letter Sink; report the result by [`Scheduler::letter_sent`].
    SendLetter {
        position: EventPosition,
        letter: DeadLetter,
        number: u32,
    },
    /// Store a dead letter in the log; report the result by [`Scheduler::letter_stored`].
    StoreLetter {
        position: EventPosition,
        letter: DeadLetter,
    },
    /// Do nothing before this time, or before something happens.
    Wait(Option<Instant>),
}

/// An attempt to start.
#[derive(Debug)]
pub(super) struct Launch<E> {
    pub(super) position: EventPosition,
    /// The event, if it is in memory.
    pub(super) event: Option<E>,
    /// Number of the attempt, from 1.
    pub(super) number: u32,
}

/// Fate of an event whose attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Settled,
    /// It waits for a retry.
    Waits,
    /// It becomes a dead letter, by [`Scheduler::dead_letter`].
    GivenUp {
        attempts: u32,
        reason: &'static str,
    },
}

struct QueuedEvent<E> {
    position: EventPosition,
    event: Option<E>,
    bytes: usize,
}

/// An attempt in flight.
#[derive(Clone, Copy)]
struct Flight {
    began: Instant,
    is_retry: bool,
    /// Generation of the Sink it goes to.
    sink: u32,
}

pub(super) struct Scheduler<E> {
    policy: Policy,
    progress: Progress,
    fresh: VecDeque<QueuedEvent<E>>,
    fresh_bytes: usize,
    lanes: Lanes,
    retries: BTreeSet<(Instant, EventPosition)>,
    in_flight: HashMap<EventPosition, Flight>,
    retries_in_flight: usize,
    /// Fresh events attempted since the last retry.
    fresh_in_a_row: u32,
    letters: PendingLetters,
    breaker: Breaker,
    /// Failed attempts since the last success, of any event.
    failures: u32,
    /// Events that failed for the first time since the last success.
    suspects: Vec<EventPosition>,
    bucket: TokenBucket,
    throttle: Throttle,
    /// Whether the Sink has asked since its last success for a pause long enough to be reported.
    asked_for_long_pause: bool,
    sink: u32,
}

impl<E> Scheduler<E> {
    /// Resumes from `progress`. Failed events are retried after a pause; the rest have to be offered again.
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
            letters: PendingLetters::default(),
            breaker: Breaker::default(),
            failures: 0,
            suspects: Vec::new(),
            bucket: TokenBucket::default(),
            throttle: Throttle::new(now),
            asked_for_long_pause: false,
            sink: 0,
        };
        if !scheduler.is_by_key() {
            let tried: Vec<_> = scheduler.progress.tried_positions().collect();
            for (position, attempts) in tried {
                scheduler.resume(position, attempts, now, jitter());
            }
        }
        scheduler
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Outstanding events at startup that have to be offered again, in order. With order by key these are all of them,
    /// since keys are known only from the events.
    pub(super) fn to_recover(&self) -> Vec<EventPosition> {
        let by_key = self.is_by_key();
        let outstanding = self.progress.outstanding();
        outstanding
            .filter(|&position| by_key || self.progress.attempts(position).is_none())
            .collect()
    }

    /// Whether more events may be offered. State for waiting events is bounded.
    pub(super) fn wants_more(&self) -> bool {
        self.policy.is_deliverable && self.room() > 0 && !self.is_full()
    }

    /// Number of events that may be offered at once.
    pub(super) fn room(&self) -> usize {
        (self.concurrency() * FRESH_PER_ATTEMPT).saturating_sub(self.fresh.len())
    }

    /// Whether the state for waiting events is full, so that no more are taken.
    pub(super) fn is_full(&self) -> bool {
        self.state_bytes() >= MAX_STATE_BYTES || self.letters.is_full()
    }

    /// Approximate bytes of state for waiting events.
    pub(super) fn state_bytes(&self) -> usize {
        self.progress.tried() * TRIED_BYTES + self.lanes.bytes()
    }

    /// Marks everything below `next` as offered or not wanted.
    pub(super) fn advance(&mut self, next: Offset) {
        self.progress.advance(next);
    }

    /// Offers a wanted event of this size in memory. An event offered twice is counted once.
    pub(super) fn offer(
        &mut self,
        position: EventPosition,
        key: Option<Box<str>>,
        event: Option<(E, usize)>,
        now: Instant,
        jitter: f64,
    ) {
        if let EventPosition::Log(offset) = position
            && offset >= self.progress.next()
        {
            self.progress.matched(offset);
        }
        if !self.progress.is_outstanding(position) || self.in_flight.contains_key(&position) {
            return;
        }
        let key = key.filter(|_| self.is_by_key());
        if key.is_some_and(|key| !self.lanes.enter(key, position)) {
            return;
        }
        match self.progress.attempts(position) {
            Some(attempts) => self.resume(position, attempts, now, jitter),
            None => self.push_fresh(position, event),
        }
    }

    /// Settles an outstanding event that was removed from the log.
    pub(super) fn removed(&mut self, position: EventPosition, now: Instant) {
        self.settle(position, Settlement::Dropped, now);
    }

    /// Number of dead letters that may be redriven now.
    pub(super) fn redrive_room(&self) -> usize {
        MAX_REDRIVEN.saturating_sub(self.progress.pending_redriven())
    }

    /// The progress as it will be once these dead letters are redriven.
    pub(super) fn with_redriven(&self, letters: impl Iterator<Item = Offset>) -> Progress {
        let mut progress = self.progress.clone();
        letters.for_each(|letter| progress.redriven(letter));
        progress
    }

    /// Adds a redriven dead letter, which the saved checkpoint already includes.
    pub(super) fn redriven(&mut self, letter: Offset, key: Option<Box<str>>, now: Instant) {
        self.progress.redriven(letter);
        self.offer(EventPosition::DeadLetter(letter), key, None, now, 0.0);
    }

    /// Replaces the delivery policy.
    pub(super) fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Resets breaker, throttle and backoff, because the Trigger has another Sink.
    pub(super) fn sink_changed(&mut self, now: Instant) {
        self.sink = self.sink.wrapping_add(1);
        self.breaker = Breaker::default();
        self.throttle = Throttle::new(now);
        self.asked_for_long_pause = false;
        self.failures = 0;
        self.suspects.clear();
        self.retries = self
            .retries
            .iter()
            .map(|&(_, position)| (now, position))
            .collect();
    }

    /// Whether the Sink is reported as down: its circuit breaker is open, the last attempts all failed (even of a
    /// single event), or it has asked for a long pause.
    pub(super) fn is_sink_down(&self) -> bool {
        self.breaker.is_open() || self.failures >= FAILURES_WHEN_DOWN || self.asked_for_long_pause
    }

    /// Attempts in flight.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Next step. Any step but [`SchedulerStep::Wait`] counts as begun.
    pub(super) fn next(&mut self, now: Instant) -> SchedulerStep<E> {
        let for_letters = match self.next_letter(now) {
            SchedulerStep::Wait(at) => at,
            step => return step,
        };
        match self.attempt(now) {
            Ok(launch) => SchedulerStep::Attempt(launch),
            Err(at) => SchedulerStep::Wait([at, for_letters].into_iter().flatten().min()),
        }
    }

    /// Next step for dead letters only.
    pub(super) fn next_letter(&mut self, now: Instant) -> SchedulerStep<E> {
        match self.letters.next(now) {
            LetterStep::Send {
                position,
                letter,
                number,
            } => SchedulerStep::SendLetter {
                position,
                letter,
                number,
            },
            LetterStep::Store { position, letter } => SchedulerStep::StoreLetter { position, letter },
            LetterStep::Wait(at) => SchedulerStep::Wait(at),
        }
    }

    /// Next attempt, or the time of the next one, if known.
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
        let rate = delivery
            .rate_limit
            .map(|limit| TokenRate::of_partition(limit, self.policy.partition));
        let by_rate = rate.map_or(now, |rate| self.bucket.permits(rate, 1, now));
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
        if let Some(rate) = rate {
            self.bucket.take(rate, 1, now);
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
        self.in_flight.insert(item.position, flight);
        let failed = self
            .progress
            .attempts(item.position)
            .map_or(0, |attempts| attempts.failed);
        Ok(Launch {
            position: item.position,
            event: item.event,
            number: failed.saturating_add(1),
        })
    }

    /// Picks a due retry or a fresh event, alternating; also returns whether it is a retry.
    fn pick(&mut self, now: Instant) -> Option<(QueuedEvent<E>, bool)> {
        let is_due = self.may_retry() && self.retries.first().is_some_and(|&(at, _)| at <= now);
        let turns = if self.breaker.is_open() { FRESH_PROBES } else { 1 };
        if !is_due || (self.fresh_in_a_row < turns && !self.fresh.is_empty()) {
            let item = self.fresh.pop_front()?;
            self.fresh_bytes -= item.bytes;
            return Some((item, false));
        }
        let (_, position) = self.retries.pop_first()?;
        let item = QueuedEvent {
            position,
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

    /// Turns the event into a dead letter, to be sent to the dead-letter Sink or stored in the log.
    pub(super) fn dead_letter(
        &mut self,
        position: EventPosition,
        letter: DeadLetter,
        has_sink: bool,
        now: Instant,
    ) {
        self.letters.add(position, letter, has_sink, now);
    }

    /// Records the result of sending a dead letter to the dead-letter Sink.
    pub(super) fn letter_sent(
        &mut self,
        position: EventPosition,
        sent: LetterSent,
        now: Instant,
        jitter: f64,
    ) {
        match sent.ending {
            Some(Ending::Delivered) => drop(self.settle(position, Settlement::DeadLettered, now)),
            Some(Ending::Gone) => drop(self.settle(position, Settlement::Dropped, now)),
            _ => self
                .letters
                .sent(position, sent, &self.policy.delivery, now, jitter),
        }
    }

    /// Records the result of storing a dead letter in the log.
    pub(super) fn letter_stored(&mut self, position: EventPosition, stored: LetterStored, now: Instant) {
        match stored {
            LetterStored::Stored => drop(self.settle(position, Settlement::DeadLettered, now)),
            LetterStored::Gone => drop(self.settle(position, Settlement::Dropped, now)),
            LetterStored::NoRoom => {
                let is_first = self.is_first_unsettled(position);
                self.letters.no_room_for(position, is_first, now);
            }
        }
    }

    fn settle(&mut self, position: EventPosition, settlement: Settlement, now: Instant) -> Fate {
        self.progress.settle(position, settlement);
        self.letters.forget(position);
        if let Some(next) = self.lanes.leave(position) {
            self.push_fresh(next, None);
        }
        // Only the first unsettled event may use the log's reserve.
        self.letters
            .retry_now(EventPosition::Log(self.progress.low().events), now);
        Fate::Settled
    }

    fn is_first_unsettled(&self, position: EventPosition) -> bool {
        position == EventPosition::Log(self.progress.low().events)
    }

    fn resume(&mut self, position: EventPosition, attempts: FailedAttempts, now: Instant, jitter: f64) {
        let pause = backoff::pause(&self.policy.delivery, attempts.failed, None, jitter);
        self.retries.insert((now + pause, position));
    }

    fn push_fresh(&mut self, position: EventPosition, event: Option<(E, usize)>) {
        let event =
            event.filter(|(_, bytes)| self.fresh_bytes == 0 || self.fresh_bytes + bytes <= MAX_FRESH_BYTES);
        let (event, bytes) = event.map_or((None, 0), |(event, bytes)| (Some(event), bytes));
        self.fresh_bytes += bytes;
        self.fresh.push_back(QueuedEvent {
            position,
            event,
            bytes,
        });
    }

    fn is_by_key(&self) -> bool {
        self.policy.delivery.ordering == Ordering::ByKey
    }

    fn concurrency(&self) -> usize {
        self.policy.partition.share(self.policy.delivery.concurrency) as usize
    }
}
