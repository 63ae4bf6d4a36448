//! All brokers that have records, are watched, or are about to get their first record. Others are forgotten:
//! producers and resources can name any number of brokers.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use tokio::sync::Semaphore;

use super::{broker::OpenLog, reads::Turns, shares::namespace_of, store::StoredBroker};

/// Minimum number of new brokers before looking for ones to forget; more if the last look left more.
const LOOK_AFTER: usize = 64;

pub(super) struct Brokers(RwLock<BrokersState>);

#[derive(Default)]
struct BrokersState {
    by_name: HashMap<Arc<str>, Arc<OpenLog>>,
    /// State shared by the brokers of a namespace while there are any.
    namespaces: HashMap<Box<str>, Weak<Semaphore>>,
    /// New brokers since the last look, and how many it left.
    new: usize,
    left: usize,
}

impl Brokers {
    pub(super) fn new(found: Vec<StoredBroker>) -> Self {
        let mut state = BrokersState::default();
        for found in found {
            let turns = state.turns(&found.name);
            let broker = Arc::new(OpenLog::found(found, turns));
            state.by_name.insert(broker.name.clone(), broker);
        }
        Self(RwLock::new(state))
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<OpenLog>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.by_name.get(name).cloned()
    }

    pub(super) fn get_or_new(&self, name: &str) -> Arc<OpenLog> {
        if let Some(broker) = self.get(name) {
            return broker;
        }
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(broker) = state.by_name.get(name) {
            return broker.clone();
        }
        if state.new >= LOOK_AFTER.max(state.left) {
            state.forget_unused();
        }
        state.new += 1;
        let broker = Arc::new(OpenLog::new(name, state.turns(name)));
        state.by_name.insert(broker.name.clone(), broker.clone());
        broker
    }

    pub(super) fn all(&self) -> Vec<Arc<OpenLog>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.by_name.values().cloned().collect()
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.read().unwrap().by_name.len()
    }
}

impl BrokersState {
    fn turns(&mut self, broker: &str) -> Turns {
        let namespace = namespace_of(broker);
        if let Some(shared) = self.namespaces.get(namespace).and_then(Weak::upgrade) {
            return Turns::new(shared);
        }
        let shared = Turns::of_namespace();
        self.namespaces.insert(namespace.into(), Arc::downgrade(&shared));
        Turns::new(shared)
    }

    /// A broker in use is held or watched by whoever took it from here under the lock.
    fn forget_unused(&mut self) {
        self.by_name.retain(|_, broker| {
            broker.stored().is_some() || broker.is_watched() || Arc::strong_count(broker) > 1
        });
        self.namespaces.retain(|_, shared| shared.strong_count() > 0);
        (self.new, self.left) = (0, self.by_name.len());
    }
}
