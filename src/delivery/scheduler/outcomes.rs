//! Applies the result of an attempt to the event and to the health of its Sink. Pure.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    super::{backoff, ending::Ending, position::EventPosition, settlement::Settlement},
    Fate, Scheduler,
};
use crate::destination::Blame;

/// Window in which events that failed during an outage are retried once the Sink is up.
const AFTER_OUTAGE: Duration = Duration::from_secs(1);

/// Minimum pause asked for by a Sink at which it is reported as down.
const LONG_PAUSE: Duration = Duration::from_secs(30);

/// Maximum events of one outage that are retried as soon as it ends.
const MAX_SUSPECTS: usize = 4096;

impl<E> Scheduler<E> {
    /// Records the end of an attempt.
    pub(in crate::delivery) fn ended(
        &mut self,
        position: EventPosition,
        ending: Ending,
        now: Instant,
        jitter: f64,
    ) -> Fate {
        let flight = self.in_flight.remove(&position);
        self.retries_in_flight -= usize::from(flight.is_some_and(|flight| flight.is_retry));
        let began = flight.map_or(now, |flight| flight.began);
        let is_of_this_sink = flight.is_some_and(|flight| flight.sink == self.sink);
        match ending {
            Ending::Delivered | Ending::Rejected if is_of_this_sink => {
                self.throttle.taken(now);
                self.sink_answered(now, jitter);
            }
            _ => {}
        }
        match ending {
            Ending::Delivered => self.settle(position, Settlement::Delivered, now),
            Ending::Expired => self.settle(position, Settlement::Expired, now),
            Ending::Gone => self.settle(position, Settlement::Dropped, now),
            Ending::Busy => {
                self.retries.insert((now + backoff::busy(jitter), position));
                Fate::Waits
            }
            Ending::Untransformed => Fate::GivenUp {
                attempts: self
                    .progress
                    .attempts(position)
                    .map_or(0, |attempts| attempts.failed),
                reason: "transform failed",
            },
            Ending::Rejected => Fate::GivenUp {
                attempts: self.progress.failed(position, began).failed,
                reason: "refused",
            },
            Ending::Failed { blame, retry_after } => {
                if let Some(blame) = blame.filter(|_| is_of_this_sink) {
                    self.sink_failed(position, blame, retry_after, began, now);
                }
                self.failed(position, began, retry_after, now, jitter)
            }
        }
    }

    fn failed(
        &mut self,
        position: EventPosition,
        began: Instant,
        retry_after: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> Fate {
        let attempts = self.progress.failed(position, began);
        let delivery = &self.policy.delivery;
        let Some(pause) = backoff::retry(delivery, attempts, retry_after, now, jitter) else {
            return Fate::GivenUp {
                attempts: attempts.failed,
                reason: "retries exhausted",
            };
        };
        self.retries.insert((now + pause, position));
        Fate::Waits
    }

    fn sink_failed(
        &mut self,
        position: EventPosition,
        blame: Blame,
        retry_after: Option<Duration>,
        began: Instant,
        now: Instant,
    ) {
        self.failures = self.failures.saturating_add(1);
        let delivery = &self.policy.delivery;
        let is_further_evidence = self.progress.attempts(position).is_none();
        // A repeated failure of the same event is no further evidence against the Sink.
        if is_further_evidence {
            self.breaker
                .failed(blame, now, |rounds| backoff::ceiling(delivery, rounds));
            if self.suspects.len() < MAX_SUSPECTS {
                self.suspects.push(position);
            }
        }
        if blame == Blame::TooFast {
            self.throttle.too_fast(began, now);
        }
        // While others succeed, a pause asked for by one event applies to it alone, unless it is about the rate.
        let asks_for_all = match blame {
            Blame::TooFast => true,
            Blame::Unavailable => is_further_evidence || self.breaker.is_open(),
            Blame::Silent | Blame::Event => false,
        };
        let asked = retry_after.map(|asked| asked.min(delivery.retry_after_max));
        if let Some(asked) = asked.filter(|asked| asks_for_all && !asked.is_zero()) {
            self.throttle.hold(now + asked, now);
            self.asked_for_long_pause |= asked >= LONG_PAUSE;
        }
    }

    /// After an outage, soon retries the events that failed during it.
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
            .map(|(at, position)| {
                if suspects.contains(&position) {
                    (at.min(soon), position)
                } else {
                    (at, position)
                }
            })
            .collect();
    }
}
