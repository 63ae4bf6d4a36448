//! Checkpoints: small values by key, durable beside the records that they point into.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{BrokerName, LogError};

const IDENTITY: &str = "trigger:";
const DEAD_LETTERS: &str = "dead-letters:";
const RUNNING_TIME: &str = "running-time";

/// Names one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointKey {
    /// How far the Trigger with this UID has settled its broker's log.
    Trigger(String),
    /// Whose checkpoint is stored under a Trigger's UID, and since when the Trigger is gone.
    Identity(String),
    /// Dead letters of a broker that were redriven or dropped and still have their records.
    DeadLetters(BrokerName),
    /// How long routers have run on this data.
    RunningTime,
}

impl CheckpointKey {
    /// Reads the form that [`fmt::Display`] writes, which is the key in the storage.
    pub fn from_key(key: &str) -> Self {
        if key == RUNNING_TIME {
            Self::RunningTime
        } else if let Some(uid) = key.strip_prefix(IDENTITY) {
            Self::Identity(uid.to_owned())
        } else if let Some(broker) = key.strip_prefix(DEAD_LETTERS) {
            Self::DeadLetters(broker.into())
        } else {
            Self::Trigger(key.to_owned())
        }
    }
}

impl fmt::Display for CheckpointKey {
    /// The key in the storage. No UID of a Trigger has a prefix of the others.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trigger(uid) => f.write_str(uid),
            Self::Identity(uid) => write!(f, "{IDENTITY}{uid}"),
            Self::DeadLetters(broker) => write!(f, "{DEAD_LETTERS}{broker}"),
            Self::RunningTime => f.write_str(RUNNING_TIME),
        }
    }
}

/// A change to a checkpoint: `Some` stores a value, `None` removes it.
pub type CheckpointChange = (CheckpointKey, Option<Bytes>);

/// The right to change checkpoints. It is lost to whoever takes it at a later epoch, as when another router takes over a
/// partition. The embedded log has one owner for good, at epoch 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// The checkpoints of one owner.
pub trait Checkpoints: Send + Sync + 'static {
    /// Every stored checkpoint.
    ///
    /// # Errors
    /// As [`Log::read`](super::Log::read).
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>>;

    /// One checkpoint, if it is stored. A save that has not returned yet need not be seen.
    ///
    /// # Errors
    /// As [`Log::read`](super::Log::read).
    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>>;

    /// Stores changes as one transaction. Of several values that wait under one key only the newest is stored; no append
    /// waits for checkpoints. A saved value survives the process at once, and the machine with the next append or
    /// [`LogProvider::sync`](super::LogProvider::sync).
    ///
    /// # Errors
    /// [`LogError::Fenced`] when another owner has taken over; otherwise as [`Log::append`](super::Log::append).
    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        for (key, text) in [
            (CheckpointKey::Trigger("uid-1".into()), "uid-1"),
            (CheckpointKey::Identity("uid-1".into()), "trigger:uid-1"),
            (
                CheckpointKey::DeadLetters("shop/orders".into()),
                "dead-letters:shop/orders",
            ),
            (CheckpointKey::RunningTime, "running-time"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(CheckpointKey::from_key(text), key);
        }
    }
}
