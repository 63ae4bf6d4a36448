//! Stats of a Trigger's delivery, for metrics and the admin endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use super::{progress::Progress, reply::ReplyOutcome};
use crate::{filter, log::Offset};

/// Points for an event whose filters exceed their budget; every other event subtracts one.
const OVERRUN: u32 = 16;

/// Points at which a Trigger is set aside: 16 such events in a row, or more if other events come in between.
const SET_ASIDE: u32 = 16 * OVERRUN;

/// Stats of one Trigger, written by its dispatcher. They are consistent with each other at rest.
#[derive(Debug, Default)]
pub struct TriggerStats {
    matched: AtomicU64,
    delivered: AtomicU64,
    expired: AtomicU64,
    dead_lettered: AtomicU64,
    dropped: AtomicU64,
    pending: AtomicU64,
    next: AtomicU64,
    redriven: AtomicU64,
    attempts: AtomicU64,
    failed_attempts: AtomicU64,
    postponed: AtomicU64,
    attempts_microseconds: AtomicU64,
    in_flight: AtomicU64,
    missed: AtomicU64,
    replies_stored: AtomicU64,
    replies_beyond_max_hops: AtomicU64,
    replies_beyond_max_descendants: AtomicU64,
    replies_invalid: AtomicU64,
    stopped: AtomicBool,
    full: AtomicBool,
    resumed: AtomicBool,
    filter_errors: AtomicU64,
    filter_overruns: AtomicU64,
    filter_error: ArcSwapOption<String>,
    overrun_points: AtomicU32,
    set_aside: AtomicBool,
    generation: AtomicI64,
}

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        impl TriggerStats {
            $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.load(Relaxed) })*
        }
    };
}

figures! {
    /// Events wanted since the Trigger was created.
    matched,
    /// Events that the Sink accepted.
    delivered,
    /// Events that expired before they could be delivered.
    expired,
    /// Events that became dead letters.
    dead_lettered,
    /// Events that were dropped.
    dropped,
    /// Events of `matched` that were dead letters before.
    redriven,
    /// Events wanted and not yet settled.
    pending,
    /// Attempts since the router started.
    attempts,
    /// Failed attempts since the router started.
    failed_attempts,
    /// Attempts postponed since the router started, for lack of memory or a connection.
    postponed,
    /// Attempts in flight.
    in_flight,
    /// Events missed since the router started: removed from the log before the Trigger evaluated them, or
    /// unreadable.
    missed,
    /// Events stored from the Sink's replies since the router started.
    replies_stored,
    /// Replies not stored since the router started because too many deliveries led to them.
    replies_beyond_max_hops,
    /// Replies not stored since the router started because too many events descended from one.
    replies_beyond_max_descendants,
    /// Invalid or oversized replies since the router started.
    replies_invalid,
    /// Events missed since the router started because a filter failed.
    filter_errors,
    /// Those of them whose filters exceeded their budget.
    filter_overruns,
}

impl TriggerStats {
    /// Next offset that the Trigger evaluates.
    pub fn next(&self) -> Offset {
        Offset(self.next.load(Relaxed))
    }

    /// Whether delivery has stopped because the log failed or has an unreadable record: events wait, and the
    /// router has to be restarted once the log is whole.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Marks the log as readable.
    pub(super) fn read(&self) {
        self.stopped.store(false, Relaxed);
    }

    /// Whether the Trigger takes no new events because too many wait for retries or for others of their key.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    pub(super) fn show_full(&self, full: bool) {
        self.full.store(full, Relaxed);
    }

    /// Whether the Trigger has resumed, since the router started, from the checkpoint of a deleted one: its own or
    /// another of its name.
    pub fn is_resumed(&self) -> bool {
        self.resumed.load(Relaxed)
    }

    pub(super) fn resumed(&self) {
        self.resumed.store(true, Relaxed);
    }

    pub(super) fn show(&self, progress: &Progress) {
        let counts = progress.counts();
        self.matched.store(counts.matched, Relaxed);
        self.delivered.store(counts.delivered, Relaxed);
        self.expired.store(counts.expired, Relaxed);
        self.dead_lettered.store(counts.dead_lettered, Relaxed);
        self.dropped.store(counts.dropped, Relaxed);
        self.pending.store(progress.pending() as u64, Relaxed);
        self.next.store(progress.next().0, Relaxed);
        self.redriven.store(counts.redriven, Relaxed);
    }

    /// Total duration of the attempts since the router started.
    pub fn attempts_took(&self) -> Duration {
        Duration::from_micros(self.attempts_microseconds.load(Relaxed))
    }

    pub(super) fn attempt_began(&self) {
        self.attempts.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn attempt_ended(&self, delivered: bool, took: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.attempts_microseconds.fetch_add(microseconds, Relaxed);
        self.failed_attempts.fetch_add(u64::from(!delivered), Relaxed);
    }

    pub(super) fn attempt_postponed(&self) {
        self.postponed.fetch_add(1, Relaxed);
    }

    pub(super) fn count_missed(&self, events: u64) {
        self.missed.fetch_add(events, Relaxed);
    }

    pub(super) fn replied(&self, reply: &ReplyOutcome) {
        match reply {
            ReplyOutcome::Stored(events) => self.replies_stored.fetch_add(*events as u64, Relaxed),
            ReplyOutcome::BeyondMaxHops => self.replies_beyond_max_hops.fetch_add(1, Relaxed),
            ReplyOutcome::BeyondMaxDescendants => self.replies_beyond_max_descendants.fetch_add(1, Relaxed),
            ReplyOutcome::Invalid(_) => self.replies_invalid.fetch_add(1, Relaxed),
        };
    }

    /// Last error of a filter, for people. It names types and attributes, but no data of the event.
    pub fn filter_error(&self) -> Option<Arc<String>> {
        self.filter_error.load_full()
    }

    pub(super) fn filter_failed(&self, error: &filter::Error<'_>) {
        self.filter_errors.fetch_add(1, Relaxed);
        self.filter_error.store(Some(Arc::new(error.to_string())));
        if !matches!(error, filter::Error::TooExpensive) {
            return self.filter_within_budget();
        }
        self.filter_overruns.fetch_add(1, Relaxed);
        let points = self.overrun_points.fetch_add(OVERRUN, Relaxed) + OVERRUN;
        if points >= SET_ASIDE {
            self.set_aside.store(true, Relaxed);
        }
    }

    /// Counts an event whose filters stayed within their budget.
    pub(super) fn filter_within_budget(&self) {
        // Most Triggers never have any points.
        if self.overrun_points.load(Relaxed) > 0 {
            let less = |points: u32| points.checked_sub(1);
            // Fails when another event has taken the last point.
            let _ = self.overrun_points.fetch_update(Relaxed, Relaxed, less);
        }
    }

    /// Whether the filters exceeded their budget so often that they are no longer evaluated: events wait until the
    /// Trigger's spec changes.
    pub fn is_set_aside(&self) -> bool {
        self.set_aside.load(Relaxed)
    }

    /// Generation of the Trigger that the filters belong to.
    pub fn generation(&self) -> i64 {
        self.generation.load(Relaxed)
    }

    /// Resets what was known about the previous filters.
    pub(super) fn filter_changed(&self, generation: i64) {
        self.generation.store(generation, Relaxed);
        self.filter_error.store(None);
        self.overrun_points.store(0, Relaxed);
        self.set_aside.store(false, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_attempts_add_up() {
        let stats = TriggerStats::default();
        for (delivered, milliseconds) in [(true, 1500), (false, 20)] {
            stats.attempt_began();
            stats.attempt_ended(delivered, Duration::from_millis(milliseconds));
        }
        assert_eq!(stats.attempts_took(), Duration::from_millis(1520));
        assert_eq!(
            (stats.attempts(), stats.failed_attempts(), stats.in_flight()),
            (2, 1, 0)
        );
    }

    #[test]
    fn filters_over_their_budget_are_set_aside_until_they_change() {
        let stats = TriggerStats::default();
        let overrun = || stats.filter_failed(&filter::Error::TooExpensive);
        for _ in 0..100 {
            overrun();
            (0..16).for_each(|_| stats.filter_within_budget());
        }
        assert!(!stats.is_set_aside(), "one in 17");
        (0..15).for_each(|_| overrun());
        assert!(!stats.is_set_aside());
        overrun();
        assert!(stats.is_set_aside());
        assert_eq!((stats.filter_errors(), stats.filter_overruns()), (116, 116));
        stats.filter_changed(2);
        assert!(!stats.is_set_aside() && stats.filter_error().is_none());
        overrun();
        assert!(!stats.is_set_aside());
    }
}
