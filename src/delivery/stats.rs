//! What can be seen of a Trigger's delivery from outside, for metrics and the admin endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use super::{progress::Progress, reply::Reply};
use crate::{filter, log::Offset};

/// How an event ended for a Trigger that wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The Sink has it.
    Delivered,
    /// Its `expirytime` had passed.
    Expired,
    /// Delivery ended without success; the event is kept as a dead letter.
    DeadLettered,
    /// Its record could not be read, or was removed from the full log.
    Dropped,
}

/// Points for an event for which the filters took more than their budget; each other event takes one away.
const OVERRUN: u32 = 16;

/// With so many points a Trigger is set aside: 16 such events in a row, or fewer good ones than 16 for each of them.
const SET_ASIDE: u32 = 16 * OVERRUN;

/// Figures of one Trigger, written by its dispatcher. They are consistent with each other at rest.
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
    put_off: AtomicU64,
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
    /// Events that the Trigger wanted since it was created.
    matched,
    /// Events that its Sink took.
    delivered,
    /// Events that expired before they could be delivered.
    expired,
    /// Events that became dead letters.
    dead_lettered,
    /// Events that were given up.
    dropped,
    /// Events that were dead letters and are wanted again, of those that matched.
    redriven,
    /// Events that it wants and that are not settled.
    pending,
    /// Attempts since the router started.
    attempts,
    /// Attempts since the router started that did not deliver.
    failed_attempts,
    /// Attempts since the router started that it put off, having no memory or no connection for them.
    put_off,
    /// Attempts under way.
    in_flight,
    /// Events since the router started that the Trigger could not look at: they were removed from the log before, or
    /// their records cannot be read.
    missed,
    /// Events that the Sink replied with and that were stored, since the router started.
    replies_stored,
    /// Replies since the router started that were not stored because too many deliveries led to them.
    replies_beyond_max_hops,
    /// Replies since the router started that were not stored because too many events had followed from one.
    replies_beyond_max_descendants,
    /// Replies since the router started that were no valid events, or too large.
    replies_invalid,
    /// Events since the router started that the Trigger did not get because a filter ended in an error.
    filter_errors,
    /// Those of them for which the filters took more than their budget.
    filter_overruns,
}

impl TriggerStats {
    /// What the Trigger looks at next.
    pub fn next(&self) -> Offset {
        Offset(self.next.load(Relaxed))
    }

    /// Whether its delivery has ended because the log failed or a record in it cannot be read: its events wait, and
    /// the router has to be started again once the log is whole.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// The log can be read.
    pub(super) fn read(&self) {
        self.stopped.store(false, Relaxed);
    }

    /// Whether so many events wait, for retries or for others of their key, that the Trigger takes no new ones.
    pub fn is_full(&self) -> bool {
        self.full.load(Relaxed)
    }

    pub(super) fn show_full(&self, full: bool) {
        self.full.store(full, Relaxed);
    }

    /// Whether the Trigger was gone, or another was that had its name, and it went on from there since the router started.
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

    /// How long the attempts since the router started took, all together.
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

    pub(super) fn attempt_put_off(&self) {
        self.put_off.fetch_add(1, Relaxed);
    }

    pub(super) fn count_missed(&self, events: u64) {
        self.missed.fetch_add(events, Relaxed);
    }

    pub(super) fn replied(&self, reply: &Reply) {
        match reply {
            Reply::Stored(events) => self.replies_stored.fetch_add(*events as u64, Relaxed),
            Reply::BeyondMaxHops => self.replies_beyond_max_hops.fetch_add(1, Relaxed),
            Reply::BeyondMaxDescendants => self.replies_beyond_max_descendants.fetch_add(1, Relaxed),
            Reply::Invalid(_) => self.replies_invalid.fetch_add(1, Relaxed),
        };
    }

    /// The last error in which a filter ended, for a person. It tells types and names, not the event's data.
    pub fn filter_error(&self) -> Option<Arc<String>> {
        self.filter_error.load_full()
    }

    pub(super) fn filter_failed(&self, error: &filter::Error<'_>) {
        self.filter_errors.fetch_add(1, Relaxed);
        self.filter_error.store(Some(Arc::new(error.to_string())));
        if !matches!(error, filter::Error::TooExpensive) {
            return self.filter_held();
        }
        self.filter_overruns.fetch_add(1, Relaxed);
        let points = self.overrun_points.fetch_add(OVERRUN, Relaxed) + OVERRUN;
        if points >= SET_ASIDE {
            self.set_aside.store(true, Relaxed);
        }
    }

    /// The filters kept within their budget for an event.
    pub(super) fn filter_held(&self) {
        // Most filters never have a point.
        if self.overrun_points.load(Relaxed) > 0 {
            let less = |points: u32| points.checked_sub(1);
            // Fails where another event has taken the last one.
            let _ = self.overrun_points.fetch_update(Relaxed, Relaxed, less);
        }
    }

    /// Whether the filters took more than their budget so often that they are not evaluated any more: events wait
    /// until the Trigger's spec changes.
    pub fn is_set_aside(&self) -> bool {
        self.set_aside.load(Relaxed)
    }

    /// The generation of the Trigger that the filters are of.
    pub fn generation(&self) -> i64 {
        self.generation.load(Relaxed)
    }

    /// What was known is about another filter.
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
    fn attempts_add_up_how_long_they_took() {
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
    fn filters_that_keep_taking_too_much_are_set_aside_until_they_change() {
        let stats = TriggerStats::default();
        let overrun = || stats.filter_failed(&filter::Error::TooExpensive);
        for _ in 0..100 {
            overrun();
            (0..16).for_each(|_| stats.filter_held());
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
