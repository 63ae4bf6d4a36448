//! The numbers of partitions of brokers that this router knows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::log::BrokerName;

/// Numbers of partitions, by broker. They never change.
#[derive(Default)]
pub(super) struct KnownPartitions {
    known: Mutex<BTreeMap<BrokerName, u16>>,
    /// Held while numbers are decided: many shards may have the same new brokers.
    pub(super) deciding: tokio::sync::Mutex<()>,
}

impl KnownPartitions {
    pub(super) fn get(&self, broker: &BrokerName) -> Option<u16> {
        self.lock().get(broker).copied()
    }

    pub(super) fn insert(&self, broker: &BrokerName, partitions: u16) {
        self.lock().insert(broker.clone(), partitions);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BrokerName, u16>> {
        // No panic under the lock leaves the map half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
