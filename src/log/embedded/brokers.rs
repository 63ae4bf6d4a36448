//! All brokers that have records, are watched, or are about to get their first record. Others are forgotten:
//! producers and resources can name any number of brokers.
//!
//! A log without records is at the offset where its first one will be. That is at or above the end of every log
//! that was given back, so an offset kept from an earlier log of the same name never points into a later one.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, Weak},
};

use tokio::sync::Semaphore;

use super::{
    broker::OpenLog,
    layout::{self, GivenBack},
    places::BrokerPlaces,
    reads::Turns,
    shares::namespace_of,
    store::StoredBroker,
};
use crate::log::{BrokerName, LogName};

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
    given_back: GivenBack,
}

impl Brokers {
    pub(super) fn new(found: Vec<StoredBroker>, given_back: GivenBack) -> Self {
        let mut state = BrokersState {
            given_back,
            ..BrokersState::default()
        };
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
        let start = match (LogName::from_key(name), layout::broker_of_ids(name)) {
            (LogName::Events(_), None) => state.given_back.events_from,
            (LogName::DeadLetters(_), _) | (_, Some(_)) => state.given_back.letters_from,
        };
        let broker = Arc::new(OpenLog::new(name, state.turns(name), start));
        state.by_name.insert(broker.name.clone(), broker.clone());
        broker
    }

    pub(super) fn all(&self) -> Vec<Arc<OpenLog>> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        state.by_name.values().cloned().collect()
    }

    /// Makes logs that are opened from now on begin beyond these.
    pub(super) fn begin_beyond(&self, given_back: GivenBack) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.given_back = given_back;
    }

    /// Which logs of a broker have a place.
    pub(super) fn places_of(&self, broker: &BrokerName) -> BrokerPlaces {
        let is_stored = |log: LogName| self.get(&log.to_string()).is_some_and(|log| log.is_stored());
        BrokerPlaces {
            events: is_stored(LogName::Events(broker.clone())),
            letters: is_stored(LogName::DeadLetters(broker.clone())),
        }
    }

    /// How a log counts among the places. That of a broker's ids takes none of those, since there is no more than one
    /// for each log of events; and its offsets are like those of dead letters.
    pub(super) fn place_of(&self, log: &str) -> (LogName, BrokerPlaces) {
        match layout::broker_of_ids(log) {
            Some(broker) => (LogName::DeadLetters(broker.into()), BrokerPlaces::ALL),
            None => {
                let log = LogName::from_key(log);
                let places = self.places_of(log.broker());
                (log, places)
            }
        }
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
        self.by_name
            .retain(|_, broker| broker.is_stored() || broker.is_watched() || Arc::strong_count(broker) > 1);
        self.namespaces.retain(|_, shared| shared.strong_count() > 0);
        (self.new, self.left) = (0, self.by_name.len());
    }
}
