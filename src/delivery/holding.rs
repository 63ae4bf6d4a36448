//! Which Triggers hold what in the logs, by broker: made anew with each configuration, and asked for every trim.

use std::{collections::HashMap, sync::Arc};

use super::{TriggerStats, TriggerView};
use crate::log::{Bounds, BrokerName, Offset};

/// The figures of the Triggers of each broker.
#[derive(Debug, Default)]
pub(super) struct Holding(HashMap<BrokerName, Vec<Arc<TriggerStats>>>);

impl Holding {
    pub(super) fn new<'a>(triggers: impl Iterator<Item = &'a TriggerView>) -> Self {
        let mut of_broker = HashMap::<_, Vec<_>>::new();
        for trigger in triggers {
            of_broker
                .entry(trigger.broker().clone())
                .or_default()
                .push(trigger.stats.clone());
        }
        Self(of_broker)
    }

    /// The same with what further Triggers hold.
    pub(super) fn with<'a>(&self, further: impl Iterator<Item = &'a TriggerView>) -> Self {
        let mut all = Self(self.0.clone());
        for (broker, stats) in Self::new(further).0 {
            all.0.entry(broker).or_default().extend(stats);
        }
        all
    }

    /// The first event that some Trigger has not settled; the end of the log if there is none.
    pub(super) fn unsettled(&self, broker: &BrokerName, bounds: Bounds) -> Offset {
        let low = self.of(broker).map(TriggerStats::low).min();
        low.unwrap_or(bounds.next).min(bounds.next)
    }

    /// The first dead letter that is being delivered again.
    pub(super) fn redriven(&self, broker: &BrokerName) -> Option<Offset> {
        self.of(broker).filter_map(TriggerStats::low_dead_letter).min()
    }

    fn of(&self, broker: &BrokerName) -> impl Iterator<Item = &TriggerStats> {
        self.0.get(broker).into_iter().flatten().map(|stats| &**stats)
    }
}
