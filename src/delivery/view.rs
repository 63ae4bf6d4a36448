//! A view of a Trigger's delivery for metrics, the API and the trimmer.

use std::sync::Arc;

use super::{Hold, SinkHealth, TriggerStats};
use crate::log::{BrokerName, Log};

/// Handles to the state of a Trigger's delivery.
#[derive(Clone, Debug)]
pub struct TriggerView {
    /// UID of the Trigger.
    pub uid: String,
    /// Namespace of the Trigger.
    pub namespace: String,
    /// Name of the Trigger.
    pub name: String,
    /// Log of its broker's events.
    pub log: Arc<dyn Log>,
    /// Stats.
    pub stats: Arc<TriggerStats>,
    /// Hold on the logs.
    pub hold: Arc<Hold>,
    /// Health of its Sink.
    pub sink: Arc<SinkHealth>,
}

impl TriggerView {
    /// Broker of the Trigger.
    pub fn broker(&self) -> &BrokerName {
        self.log.name().broker()
    }

    /// Its hold, with the broker whose logs it holds.
    pub(super) fn hold_on_broker(&self) -> (&BrokerName, &Arc<Hold>) {
        (self.broker(), &self.hold)
    }

    /// Number of events that the log retains for the Trigger: from its first unsettled one on, as last saved.
    pub fn held(&self) -> u64 {
        let bounds = self.log.cached_bounds();
        bounds.next.0.saturating_sub(self.hold.low().max(bounds.first).0)
    }

    /// Approximate number of events of its broker that the Trigger has not evaluated yet. If the broker has several
    /// partitions, they are assumed to be of the same size.
    pub fn backlog(&self) -> u64 {
        let end = self.log.cached_bounds().next;
        let behind = end.0.saturating_sub(self.stats.next().0);
        behind.div_ceil(u64::from(self.log.partition().of.max(1)))
    }
}
