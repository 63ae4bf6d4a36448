//! A Trigger's delivery as others see it.

use std::sync::Arc;

use super::{Hold, SinkHealth, TriggerStats};
use crate::log::{BrokerName, Log};

/// A Trigger's delivery as seen from outside.
#[derive(Clone, Debug)]
pub struct TriggerView {
    /// The Trigger's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The log of its broker's events.
    pub log: Arc<dyn Log>,
    /// Its figures.
    pub stats: Arc<TriggerStats>,
    /// The part of the logs that it holds.
    pub hold: Arc<Hold>,
    /// The health of its Sink.
    pub sink: Arc<SinkHealth>,
}

impl TriggerView {
    /// Its broker.
    pub fn broker(&self) -> &BrokerName {
        self.log.name().broker()
    }

    /// Number of events of its broker that the Trigger has not looked at yet, as far as is known.
    pub fn backlog(&self) -> u64 {
        let end = self.log.cached_bounds().next;
        end.0.saturating_sub(self.stats.next().0)
    }
}
