//! A Trigger as this router delivers it: with the figures of all partitions of its broker that the router owns.

use std::sync::Arc;

use crate::{
    delivery::{Outage, TriggerStats, TriggerView},
    log::BrokerName,
};

/// Delivery of one Trigger by this router. It has at least one part.
#[derive(Clone, Debug)]
pub struct OwnedTrigger {
    first: TriggerView,
    /// Of the other partitions.
    others: Vec<TriggerView>,
}

impl OwnedTrigger {
    /// Groups views by Trigger, ordered by namespace and name.
    pub(super) fn group(mut views: Vec<TriggerView>) -> Vec<Self> {
        let order = |a: &TriggerView, b: &TriggerView| {
            (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid))
        };
        views.sort_by(order);
        let mut triggers: Vec<Self> = Vec::with_capacity(views.len());
        for view in views {
            match triggers.last_mut() {
                Some(trigger) if trigger.first.uid == view.uid => trigger.others.push(view),
                _ => triggers.push(Self {
                    first: view,
                    others: Vec::new(),
                }),
            }
        }
        triggers
    }

    /// UID of the Trigger.
    pub fn uid(&self) -> &str {
        &self.first.uid
    }

    /// Namespace of the Trigger.
    pub fn namespace(&self) -> &str {
        &self.first.namespace
    }

    /// Name of the Trigger.
    pub fn name(&self) -> &str {
        &self.first.name
    }

    /// Broker of the Trigger.
    pub fn broker(&self) -> &BrokerName {
        self.first.broker()
    }

    /// The delivery of each partition.
    pub fn parts(&self) -> impl Iterator<Item = &TriggerView> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Sum of a figure over all parts.
    pub fn sum(&self, figure: impl Fn(&TriggerStats) -> u64) -> u64 {
        self.parts().map(|part| figure(&part.stats)).sum()
    }

    /// Whether the predicate holds for any part.
    pub fn any(&self, predicate: impl Fn(&TriggerStats) -> bool) -> bool {
        self.parts().any(|part| predicate(&part.stats))
    }

    /// Approximate number of events that it has not evaluated yet; see [`TriggerView::backlog`].
    pub fn backlog(&self) -> u64 {
        self.parts().map(TriggerView::backlog).sum()
    }

    /// The longest outage of its Sink, if there is any.
    pub fn outage(&self) -> Option<Arc<Outage>> {
        let outages = self.parts().filter_map(|part| part.sink.outage());
        outages.min_by_key(|outage| outage.since)
    }

    /// Whether the Sink has not answered since the router started or the Sink changed.
    pub fn is_unproven(&self) -> bool {
        self.parts().all(|part| part.sink.is_unproven())
    }

    /// Whether other routers may deliver other partitions.
    pub fn is_partitioned(&self) -> bool {
        self.first.log.partition().of > 1
    }
}
