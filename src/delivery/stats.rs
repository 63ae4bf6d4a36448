//! What can be seen of a Trigger's delivery from outside, for metrics and the admin endpoint.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::progress::Progress;
use crate::log::Offset;

/// How an event ended for a Trigger that wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The Sink has it.
    Delivered,
    /// Its `expirytime` had passed.
    Expired,
    /// Delivery ended without success; the event is kept as a dead letter.
    DeadLettered,
    /// It was given up with its Trigger, or its record could not be read.
    Dropped,
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
    low: AtomicU64,
    attempts: AtomicU64,
    failed_attempts: AtomicU64,
    in_flight: AtomicU64,
    sink_down: AtomicBool,
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
    /// Events that it wants and that are not settled.
    pending,
    /// Attempts since the router started.
    attempts,
    /// Attempts since the router started that did not deliver.
    failed_attempts,
    /// Attempts under way.
    in_flight,
}

impl TriggerStats {
    /// What the Trigger looks at next.
    pub fn next(&self) -> Offset {
        Offset(self.next.load(Relaxed))
    }

    /// The first offset that it had not settled when its progress was last saved: nothing from here on is trimmed.
    pub fn low(&self) -> Offset {
        Offset(self.low.load(Relaxed))
    }

    /// Whether its Sink fails so steadily that it is only probed.
    pub fn sink_down(&self) -> bool {
        self.sink_down.load(Relaxed)
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
    }

    /// Progress up to here is saved.
    pub(super) fn show_low(&self, low: Offset) {
        self.low.store(low.0, Relaxed);
    }

    pub(super) fn attempt_began(&self) {
        self.attempts.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn attempt_ended(&self, delivered: bool) {
        self.in_flight.fetch_sub(1, Relaxed);
        self.failed_attempts.fetch_add(u64::from(!delivered), Relaxed);
    }

    pub(super) fn show_sink_down(&self, down: bool) {
        self.sink_down.store(down, Relaxed);
    }
}
