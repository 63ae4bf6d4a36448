//! Checkpoints: small values by key, durable beside the records that they point into.

use std::fmt;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{BrokerName, LogError};

const IDENTITY: &str = "trigger:";
const DEAD_LETTERS: &str = "dead-letters:";
const RUNNING_TIME: &str = "running-time";
const REVISION: &str = "routing-revision";
const TRIM_POINT: &str = "trim-point:";
const LAST_RUN: &str = "last-run:";

/// Key of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckpointKey {
    /// Progress of the Trigger with this UID through its broker's log.
    Trigger(String),
    /// Owner of the checkpoint stored under a Trigger's UID, and the time of its deletion.
    Identity(String),
    /// Dead letters of a broker that were redriven or dropped and still have records.
    DeadLetters(BrokerName),
    /// Total time that routers have run on this data.
    RunningTime,
    /// Revision of the newest routing configuration that a router on a shared log applies.
    Revision,
    /// Offset below which the shard's partition of a broker needs no events any more.
    TrimPoint(BrokerName),
    /// Last scheduled time of the Source with this UID.
    LastRun(String),
}

impl CheckpointKey {
    /// Parses the form that [`fmt::Display`] writes, which is the key in the storage.
    pub fn from_key(key: &str) -> Self {
        if key == RUNNING_TIME {
            Self::RunningTime
        } else if key == REVISION {
            Self::Revision
        } else if let Some(broker) = key.strip_prefix(TRIM_POINT) {
            Self::TrimPoint(broker.into())
        } else if let Some(uid) = key.strip_prefix(LAST_RUN) {
            Self::LastRun(uid.to_owned())
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
    /// Writes the key in the storage. No UID of a Trigger has the prefix of another kind.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trigger(uid) => f.write_str(uid),
            Self::Identity(uid) => write!(f, "{IDENTITY}{uid}"),
            Self::DeadLetters(broker) => write!(f, "{DEAD_LETTERS}{broker}"),
            Self::RunningTime => f.write_str(RUNNING_TIME),
            Self::Revision => f.write_str(REVISION),
            Self::TrimPoint(broker) => write!(f, "{TRIM_POINT}{broker}"),
            Self::LastRun(uid) => write!(f, "{LAST_RUN}{uid}"),
        }
    }
}

/// Change of a checkpoint: `Some` stores a value, `None` removes it.
pub type CheckpointChange = (CheckpointKey, Option<Bytes>);

/// The epoch of an owner of checkpoints. Once another router takes over with a later epoch, saves of earlier ones fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Checkpoints of one owner.
pub trait Checkpoints: Send + Sync + 'static {
    /// Loads every stored checkpoint of the shard.
    ///
    /// # Errors
    /// As [`Log::read`](super::Log::read).
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>>;

    /// Loads one checkpoint, if it is stored. A save that has not returned yet may be invisible.
    ///
    /// # Errors
    /// As [`Log::read`](super::Log::read).
    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>>;

    /// Stores changes as one transaction. Of several values waiting under one key only the newest is stored;
    /// appends never wait for checkpoints. A saved value survives a crash of the process at once, and one of the
    /// machine from the next append or [`LogProvider::sync`](super::LogProvider::sync) on.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another owner has taken over; otherwise as [`Log::append`](super::Log::append).
    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>>;

    /// Stores changes for a namespace, as [`Checkpoints::save`]. Where checkpoints wait to be stored, namespaces take
    /// turns.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    fn save_for<'a>(
        &'a self,
        namespace: &'a str,
        changes: Vec<CheckpointChange>,
    ) -> BoxFuture<'a, Result<(), LogError>> {
        let _ = namespace;
        self.save(changes)
    }
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
            (CheckpointKey::Revision, "routing-revision"),
            (
                CheckpointKey::TrimPoint("shop/orders".into()),
                "trim-point:shop/orders",
            ),
            (CheckpointKey::LastRun("uid-1".into()), "last-run:uid-1"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(CheckpointKey::from_key(text), key);
        }
    }
}
