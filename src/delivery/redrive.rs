//! State shared by the dead-letter logs and the dispatchers, which keeps a letter from being owned by both.

use std::{
    collections::HashMap,
    sync::Arc,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{offsets::OffsetSet, taking::TakingGuard};
use crate::log::{BrokerName, CheckpointChange, CheckpointKey, LogError, LogName, LogProvider, Offset};

/// Asks a dispatcher to redrive dead letters.
pub(super) struct Redrive {
    pub(super) letters: Vec<RedrivenLetter>,
    pub(super) taken: Arc<TakenLetters>,
    /// Held until the letters are taken or left, even if the requester has stopped waiting, so that nobody else takes
    /// them meanwhile.
    pub(super) taking: Arc<TakingGuard>,
    /// Number of letters taken, always the first ones; durable by then.
    pub(super) answer: oneshot::Sender<Result<usize, LogError>>,
}

/// A dead letter to redrive.
pub(super) struct RedrivenLetter {
    /// Offset in the dead-letter log.
    pub(super) offset: Offset,
    /// `partitionkey` of the event.
    pub(super) key: Option<Box<str>>,
}

/// Letters that were redriven or dropped and still have records in the dead-letter logs. Durable, as a checkpoint
/// for each broker.
#[derive(Debug, Default)]
pub(super) struct TakenLetters(Mutex<HashMap<BrokerName, OffsetSet>>);

impl TakenLetters {
    /// Restores the stored set of a broker.
    pub(super) fn restore(&self, broker: BrokerName, stored: &Bytes) -> Result<(), serde_json::Error> {
        let set = serde_json::from_slice(stored)?;
        self.lock().insert(broker, set);
        Ok(())
    }

    /// The change to store so that letters are taken out.
    pub(super) fn change(
        &self,
        broker: &BrokerName,
        letters: impl Iterator<Item = Offset>,
    ) -> CheckpointChange {
        let mut set = self.lock().get(broker).cloned().unwrap_or_default();
        letters.for_each(|letter| set.insert(letter));
        stored(broker, &set)
    }

    /// Takes letters out, once the change is stored.
    pub(super) fn take(&self, broker: &BrokerName, letters: impl Iterator<Item = Offset>) {
        let mut sets = self.lock();
        let set = sets.entry(broker.clone()).or_default();
        letters.for_each(|letter| set.insert(letter));
    }

    /// Forgets letters below `offset`, once their records are trimmed.
    pub(super) fn forget_below(&self, broker: &BrokerName, offset: Offset) {
        if let Some(set) = self.lock().get_mut(broker) {
            set.forget_below(offset);
        }
    }

    /// Whether letters of a broker were taken, perhaps before they were trimmed.
    pub(super) fn has_any(&self, broker: &BrokerName) -> bool {
        self.lock().contains_key(broker)
    }

    /// Forgets all letters of a broker.
    pub(super) fn forget(&self, broker: &BrokerName) {
        self.lock().remove(broker);
    }

    /// Removes offsets outside a broker's dead-letter log. Returns the changes to store for logs whose end was
    /// lost, as other letters will get those offsets.
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn keep_within(
        &self,
        logs: &dyn LogProvider,
    ) -> Result<Vec<CheckpointChange>, LogError> {
        let mut changes = Vec::new();
        let brokers: Vec<_> = self.lock().keys().cloned().collect();
        for broker in brokers {
            let bounds = logs.open(&LogName::DeadLetters(broker.clone())).bounds().await?;
            let mut sets = self.lock();
            let Some(set) = sets.get_mut(&broker) else {
                continue;
            };
            set.forget_below(bounds.first);
            if set.forget_from(bounds.next) {
                tracing::warn!(
                    %broker, end = %bounds.next,
                    "the dead-letter log has lost its tail; redriven or dropped dead letters in it are forgotten"
                );
                changes.push(stored(&broker, set));
            }
        }
        Ok(changes)
    }

    pub(super) fn contains(&self, broker: &BrokerName, letter: Offset) -> bool {
        self.lock().get(broker).is_some_and(|set| set.contains(letter))
    }

    /// First letter from this one on that is not taken.
    pub(super) fn first_kept(&self, broker: &BrokerName, from: Offset) -> Offset {
        self.lock().get(broker).map_or(from, |set| set.first_absent(from))
    }

    /// Number of taken letters from this one on.
    pub(super) fn count_from(&self, broker: &BrokerName, from: Offset) -> u64 {
        self.lock().get(broker).map_or(0, |set| set.count_from(from))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BrokerName, OffsetSet>> {
        // No panic under the lock leaves a set half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stored(broker: &BrokerName, set: &OffsetSet) -> CheckpointChange {
    // A list of numbers always serialises.
    let stored = serde_json::to_vec(set).unwrap_or_default();
    (CheckpointKey::DeadLetters(broker.clone()), Some(stored.into()))
}
