//! What can be seen of a Trigger's delivery from outside, for metrics and the admin endpoint.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::{
    place::Place,
    progress::{Low, Progress},
    reply::Reply,
};
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

/// Stands for no offset.
const NONE: u64 = u64::MAX;

/// A Sink fails so steadily that it is only probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When it was taken to be down.
    pub since: Timestamp,
    /// What came of the last attempt, for a person.
    pub detail: String,
}

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
    first_unsettled: AtomicU64,
    low: AtomicU64,
    low_dead_letter: AtomicU64,
    redriven: AtomicU64,
    attempts: AtomicU64,
    failed_attempts: AtomicU64,
    attempts_microseconds: AtomicU64,
    in_flight: AtomicU64,
    missed: AtomicU64,
    replies_stored: AtomicU64,
    replies_beyond_max_hops: AtomicU64,
    replies_invalid: AtomicU64,
    stopped: AtomicBool,
    resumed: AtomicBool,
    filter_errors: AtomicU64,
    filter_error: ArcSwapOption<String>,
    sink_answered: AtomicBool,
    outage: ArcSwapOption<Outage>,
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
    /// Attempts under way.
    in_flight,
    /// Events since the router started that the Trigger could not look at: they were removed from the log before, or
    /// their records cannot be read.
    missed,
    /// Events that the Sink replied with and that were stored, since the router started.
    replies_stored,
    /// Replies since the router started that were not stored because too many replies led to them.
    replies_beyond_max_hops,
    /// Replies since the router started that were no valid events, or too large.
    replies_invalid,
    /// Events since the router started that the Trigger did not get because a filter ended in an error.
    filter_errors,
}

impl TriggerStats {
    /// What the Trigger looks at next.
    pub fn next(&self) -> Offset {
        Offset(self.next.load(Relaxed))
    }

    /// Whether this is the first event that is not settled: nothing behind it can be removed before it is.
    pub(super) fn is_first_unsettled(&self, place: Place) -> bool {
        matches!(place, Place::Log(Offset(offset)) if offset == self.first_unsettled.load(Relaxed))
    }

    /// The first offset that it had not settled when its progress was last saved: nothing from here on is trimmed.
    pub fn low(&self) -> Offset {
        Offset(self.low.load(Relaxed))
    }

    /// The first dead letter that was being delivered again then: nothing from here on is trimmed.
    pub fn low_dead_letter(&self) -> Option<Offset> {
        let offset = self.low_dead_letter.load(Relaxed);
        (offset != NONE).then_some(Offset(offset))
    }

    /// Whether its delivery has ended because the log failed or a record in it cannot be read: its events wait, and
    /// the router has to be started again once the log is whole.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whether the Trigger was gone, or another was that had its name, and it went on from there since the router started.
    pub fn is_resumed(&self) -> bool {
        self.resumed.load(Relaxed)
    }

    pub(super) fn resumed(&self) {
        self.resumed.store(true, Relaxed);
    }

    /// Its Sink's outage, while that lasts.
    pub fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.load_full()
    }

    /// Whether events wait for a Sink that has not answered yet, since the router started or the Sink is another.
    pub fn is_sink_unproven(&self) -> bool {
        self.pending() > 0 && !self.sink_answered.load(Relaxed)
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
        self.first_unsettled.store(progress.low().events.0, Relaxed);
    }

    /// Progress is saved, but for what is unsettled in it.
    pub(super) fn show_low(&self, low: Low) {
        self.low.store(low.events.0, Relaxed);
        let dead_letters = low.dead_letters.map_or(NONE, |offset| offset.0);
        self.low_dead_letter.store(dead_letters, Relaxed);
    }

    /// Dead letters are wanted again, though that is not saved yet.
    pub(super) fn hold_dead_letters(&self, low: Low) {
        let dead_letters = low.dead_letters.map_or(NONE, |offset| offset.0);
        self.low_dead_letter.fetch_min(dead_letters, Relaxed);
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

    pub(super) fn count_missed(&self, events: u64) {
        self.missed.fetch_add(events, Relaxed);
    }

    pub(super) fn replied(&self, reply: &Reply) {
        match reply {
            Reply::Stored(events) => self.replies_stored.fetch_add(*events as u64, Relaxed),
            Reply::BeyondMaxHops => self.replies_beyond_max_hops.fetch_add(1, Relaxed),
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
    }

    /// What was known is about another filter.
    pub(super) fn filter_changed(&self) {
        self.filter_error.store(None);
    }

    pub(super) fn sink_answered(&self) {
        self.sink_answered.store(true, Relaxed);
    }

    /// The Sink is down, or still is.
    pub(super) fn outage_goes_on(&self, now: Timestamp, detail: &str) {
        let since = self.outage().map_or(now, |outage| outage.since);
        let detail = detail.to_owned();
        self.outage.store(Some(Arc::new(Outage { since, detail })));
    }

    pub(super) fn outage_ended(&self) {
        self.outage.store(None);
    }

    /// What was known is about another Sink.
    pub(super) fn sink_changed(&self) {
        self.sink_answered.store(false, Relaxed);
        self.outage_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_outage_keeps_its_beginning_and_tells_the_last_error() {
        let stats = TriggerStats::default();
        assert_eq!(stats.outage(), None);
        stats.outage_goes_on(at("2026-01-01T00:00:00Z"), "503");
        stats.outage_goes_on(at("2026-01-01T00:01:00Z"), "refused");
        let outage = stats.outage().unwrap();
        assert_eq!(
            (outage.since, &*outage.detail),
            (at("2026-01-01T00:00:00Z"), "refused")
        );
        stats.outage_ended();
        stats.outage_goes_on(at("2026-01-01T00:02:00Z"), "503");
        assert_eq!(stats.outage().unwrap().since, at("2026-01-01T00:02:00Z"));
    }

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
    fn a_sink_is_unproven_while_events_wait_and_it_has_not_answered() {
        let stats = TriggerStats::default();
        assert!(!stats.is_sink_unproven(), "nothing waits");
        let mut progress = Progress::starting_at(Offset(0));
        progress.matched(Offset(0));
        stats.show(&progress);
        assert!(stats.is_sink_unproven());
        stats.sink_answered();
        assert!(!stats.is_sink_unproven());
        stats.outage_goes_on(at("2026-01-01T00:00:00Z"), "503");
        stats.sink_changed();
        assert!(stats.is_sink_unproven() && stats.outage().is_none());
    }
}
