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
    /// Numbers for brokers that have none yet, in place of the default.
    wanted: Mutex<BTreeMap<BrokerName, u16>>,
    /// Held while numbers are decided: many shards may have the same new brokers.
    pub(super) deciding: tokio::sync::Mutex<()>,
}

impl KnownPartitions {
    pub(super) fn get(&self, broker: &BrokerName) -> Option<u16> {
        locked(&self.known).get(broker).copied()
    }

    pub(super) fn insert(&self, broker: &BrokerName, partitions: u16) {
        locked(&self.known).insert(broker.clone(), partitions);
    }

    /// Replaces the numbers for brokers that have none yet.
    pub(super) fn want(&self, wanted: BTreeMap<BrokerName, u16>) {
        *locked(&self.wanted) = wanted;
    }

    pub(super) fn wanted(&self, broker: &BrokerName) -> Option<u16> {
        locked(&self.wanted).get(broker).copied()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No panic under a lock leaves a map half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
