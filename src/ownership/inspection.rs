//! Queries about the delivery of all shards of this router, for metrics and the admin API.

use std::{collections::BTreeMap, sync::Arc};

use super::{OwnedTrigger, Shards, past::PastCounts, shards::lock};
use crate::{
    delivery::{Engine, RetainedTrigger, TriggerView, UnsettledEvents},
    log::{BrokerName, LogError, LogName, Shard},
};

impl Shards {
    /// Number of shards that this router owns.
    pub fn owned_count(&self) -> usize {
        self.owned().len()
    }

    /// All Triggers, by namespace and name.
    pub fn triggers(&self) -> Vec<OwnedTrigger> {
        OwnedTrigger::group(self.parts())
    }

    /// Views of all Triggers; one for each partition of a broker with several.
    pub fn parts(&self) -> Vec<TriggerView> {
        self.of_each(|engine| Vec::clone(&engine.triggers()))
    }

    /// Of some Triggers, the one that holds most of the log, as [`Engine::holds_most`] of the shard with the largest
    /// broker.
    pub fn holds_most(&self, is_asked_for: impl Fn(&TriggerView) -> bool) -> Option<TriggerView> {
        let most = self.of_each(|engine| engine.holds_most(&is_asked_for).into_iter().collect());
        most.into_iter().max_by_key(|view| view.log.retained())
    }

    /// Deleted Triggers whose checkpoints are retained.
    pub fn retained_triggers(&self) -> Vec<RetainedTrigger> {
        self.of_each(Engine::retained_triggers)
    }

    /// As [`Engine::retained_count`], of all shards that this router owns.
    pub fn retained_count(&self) -> usize {
        self.owned()
            .values()
            .map(|owned| owned.engine.retained_count())
            .sum()
    }

    /// As [`Engine::dropped_with_trigger`], of all shards that this router owned since startup.
    pub fn dropped_with_trigger(&self) -> u64 {
        self.counts().dropped_with_trigger
    }

    /// As [`Engine::dead_letters_expired`], of all shards that this router owned since startup.
    pub fn dead_letters_expired(&self) -> u64 {
        self.counts().dead_letters_expired
    }

    /// As [`Engine::dropped_when_full`], of all shards that this router owned since startup.
    pub fn dropped_when_full(&self) -> BTreeMap<BrokerName, u64> {
        self.counts().dropped_when_full
    }

    /// As [`Engine::unsettled_events`]; `None` if another router has the broker.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub async fn unsettled_events(&self, broker: &BrokerName) -> Result<Option<UnsettledEvents>, LogError> {
        match self.engine_of(broker) {
            Some(engine) => engine.unsettled_events(broker).await,
            None => Ok(None),
        }
    }

    fn counts(&self) -> PastCounts {
        let mut counts = lock(&self.past).clone();
        for owned in self.owned().values() {
            counts.add(&owned.engine);
        }
        counts
    }

    /// Brokers that have dead letters, with their number.
    pub fn dead_letter_brokers(&self) -> Vec<(BrokerName, u64)> {
        let mut brokers = self.of_each(Engine::dead_letter_brokers);
        brokers.sort();
        brokers
    }

    /// The logs that have records, and the bytes of their retained payloads, as last seen. Each log is with the owner of
    /// its broker's shard, also if others own partitions of it.
    pub fn usage(&self) -> Vec<(LogName, u64)> {
        let owned = self.owned();
        let mut usage = self.logs().usage();
        usage.retain(|(name, _)| owned.contains_key(&Shard::of(name.broker(), self.count)));
        usage
    }

    fn of_each<T>(&self, ask: impl Fn(&Engine) -> Vec<T>) -> Vec<T> {
        let owned = self.owned();
        let engines = owned.values().map(|owned| Arc::clone(&owned.engine));
        engines.flat_map(|engine| ask(&engine)).collect()
    }
}
