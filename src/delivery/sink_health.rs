//! Health of a Trigger's Sink, for statuses, metrics and explanations.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

/// The outage of a Sink that keeps failing or has asked for a long pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Start of the outage.
    pub since: Timestamp,
    /// Result of the last attempt, for people.
    pub detail: String,
}

/// Health of one Trigger's Sink, written by its dispatcher.
#[derive(Debug, Default)]
pub struct SinkHealth {
    answered: AtomicBool,
    outage: ArcSwapOption<Outage>,
}

impl SinkHealth {
    /// The current outage, if any.
    pub fn outage(&self) -> Option<Arc<Outage>> {
        self.outage.load_full()
    }

    /// Whether the Sink has not answered since the router started or the Sink changed.
    pub fn is_unproven(&self) -> bool {
        !self.answered.load(Relaxed)
    }

    pub(super) fn answered(&self) {
        self.answered.store(true, Relaxed);
    }

    /// Starts an outage, or updates the detail of the current one.
    pub(super) fn down(&self, now: Timestamp, detail: &str) {
        let since = self.outage().map_or(now, |outage| outage.since);
        let detail = detail.to_owned();
        self.outage.store(Some(Arc::new(Outage { since, detail })));
    }

    pub(super) fn up(&self) {
        self.outage.store(None);
    }

    /// Resets the health, because the Trigger has another Sink.
    pub(super) fn changed(&self) {
        self.answered.store(false, Relaxed);
        self.up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_outage_keeps_its_start_and_the_last_error() {
        let sink = SinkHealth::default();
        assert_eq!(sink.outage(), None);
        sink.down(at("2026-01-01T00:00:00Z"), "503");
        sink.down(at("2026-01-01T00:01:00Z"), "refused");
        let outage = sink.outage().unwrap();
        assert_eq!(
            (outage.since, &*outage.detail),
            (at("2026-01-01T00:00:00Z"), "refused")
        );
        sink.up();
        sink.down(at("2026-01-01T00:02:00Z"), "503");
        assert_eq!(sink.outage().unwrap().since, at("2026-01-01T00:02:00Z"));
    }

    #[test]
    fn a_sink_is_unproven_until_it_has_answered() {
        let sink = SinkHealth::default();
        assert!(sink.is_unproven(), "nothing was attempted");
        sink.answered();
        assert!(!sink.is_unproven());
        sink.down(at("2026-01-01T00:00:00Z"), "503");
        sink.changed();
        assert!(sink.is_unproven() && sink.outage().is_none());
    }
}
