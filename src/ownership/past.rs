//! Counts of engines that have ended, so that the counters of a router never decrease.

use std::collections::BTreeMap;

use crate::{delivery::Engine, log::BrokerName};

/// Sums since the router started.
#[derive(Clone, Debug, Default)]
pub(super) struct PastCounts {
    pub(super) dropped_with_trigger: u64,
    pub(super) dead_letters_expired: u64,
    pub(super) dropped_when_full: BTreeMap<BrokerName, u64>,
}

impl PastCounts {
    /// Adds the counts of an engine.
    pub(super) fn add(&mut self, engine: &Engine) {
        self.dropped_with_trigger += engine.dropped_with_trigger();
        self.dead_letters_expired += engine.dead_letters_expired();
        for (broker, count) in engine.dropped_when_full() {
            *self.dropped_when_full.entry(broker).or_default() += count;
        }
    }
}
