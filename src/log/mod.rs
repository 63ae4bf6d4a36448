//! Logs by name: the durable, append-only records of accepted events and of dead letters, and the checkpoints of those
//! who read them.
//!
//! A [`LogProvider`] opens the [`Log`] of a [`LogName`] and the [`Checkpoints`] of an owner; [`embedded`] is the provider
//! that keeps them on the router's volume. A record is opaque here: [`crate::cloudevents`] knows what is in it. Every
//! provider passes the suite in `conformance.rs`; tests of other rooms use the one in `memory.rs`.
//!
//! # How a replicated log fits
//! NATS JetStream, as the log of several routers, needs no other traits:
//!
//! | here | there |
//! | --- | --- |
//! | [`LogProvider::open`] | a stream a broker, made on the first append; one partition first, later a part of the [`LogName`] |
//! | [`Log::append`] | an atomic batch; the key of the partition and the message id become fields of [`Append`] |
//! | [`Offset`] | the stream's sequence less one; gaps are possible once there are several partitions |
//! | [`Log::bounds`], [`Log::cached_bounds`] | the stream's state: asked for, and as of the last answer |
//! | [`Log::follow`] | what the owner's consumer has seen |
//! | [`Log::offset_at`], [`Log::trim`] | by the server's time; a purge by sequence |
//! | [`LogProvider::checkpoints`] with an [`Epoch`] | a batch that the server accepts only while `own` has this sequence |
//! | [`LogError::Unavailable`], [`Full`](LogError::Full), [`Limit`](LogError::Limit), [`Fenced`](LogError::Fenced) | NATS away, the stream full, the message too large, another owner |
//! | [`LogProvider::capacity`] | `None`: what a stream may hold is the server's business |

mod checkpoint;
pub mod embedded;
mod error;
mod name;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod memory;

pub use checkpoint::{CheckpointChange, CheckpointKey, Checkpoints, Epoch};
pub use error::LogError;
pub use name::{BrokerName, LogName};

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A position in one log. The first record has offset 0; offsets have no gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `count` records later.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its position in the log.
    pub offset: Offset,
    /// The time of its append, to the millisecond.
    pub accepted: Timestamp,
    /// The appended payload.
    pub payload: Bytes,
}

/// The retained part of a log: the records from `first` up to, not including, `next`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest retained record; equal to `next` when there is none.
    pub first: Offset,
    /// The offset of the next record.
    pub next: Offset,
}

/// Maximum size of one [`Log::read`]. At least one record is returned, however large, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// Number of records.
    pub records: usize,
    /// Sum of the payloads' lengths, in bytes.
    pub bytes: usize,
}

/// Records to append together.
#[derive(Clone, Debug)]
pub struct Append {
    /// Their payloads, in order.
    pub payloads: Vec<Bytes>,
    /// When they were accepted.
    pub accepted: Timestamp,
}

/// Opens logs.
pub trait LogProvider: Send + Sync + 'static {
    /// The log of this name. It exists from its first append on; until then it is empty.
    fn open(&self, name: &LogName) -> Arc<dyn Log>;

    /// The checkpoints, for their owner since this epoch.
    fn checkpoints(&self, epoch: Epoch) -> Arc<dyn Checkpoints>;

    /// The logs that have records, and the bytes of their retained payloads, as far as is known.
    fn usage(&self) -> Vec<(LogName, u64)>;

    /// The room of a provider that all logs share, if it has such.
    fn capacity(&self) -> Option<&dyn Capacity> {
        None
    }

    /// Makes everything that was written durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// Number of attempts to read that failed for a reason that may pass, since the start.
    fn read_errors(&self) -> u64 {
        0
    }

    /// Resolves with the reason once the storage has failed and the process has to end.
    fn failed(&self) -> BoxFuture<'_, LogError>;
}

/// One log. Offsets that were trimmed are gone for good: reading from below [`Bounds::first`] begins there.
pub trait Log: Send + Sync + 'static {
    /// Its name.
    fn name(&self) -> &LogName;

    /// Appends records in order, as one commit: all of them or none. Returns the offset of the first, once all are
    /// durable. Concurrent calls share one fsync.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room (nothing was stored; later calls may succeed); [`LogError::Limit`] when
    /// it is more than the log can ever take; [`LogError::Unavailable`] when the log is away (the records may have been
    /// stored); [`LogError::Failed`] when the storage failed: it is not used again, and the process has to end.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Offset, LogError>>;

    /// Reads durable records from `from` on, in order of their offsets; empty at the end of the log.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when it could not be read for now, after a few attempts; [`LogError::Damaged`] when
    /// what is stored is not what was written.
    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, LogError>>;

    /// The retained part; both offsets are 0 for a log that has had no record.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when it cannot be told for now.
    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, LogError>>;

    /// [`Log::bounds`] as last seen, for metrics and log lines.
    fn cached_bounds(&self) -> Bounds;

    /// The bytes of the retained payloads as last seen: this log's part of [`LogProvider::usage`].
    fn retained(&self) -> u64;

    /// The offset of the first retained record that was accepted at `time` or later, else the end of the log.
    ///
    /// # Errors
    /// As [`Log::read`].
    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>>;

    /// Follows the end of the log ([`Bounds::next`]) as it grows.
    fn follow(&self) -> watch::Receiver<Offset>;

    /// Removes the records below `before`. Durable with the next commit at the latest; their space is given back in the
    /// background.
    ///
    /// # Errors
    /// As [`Log::append`].
    fn trim(&self, before: Offset) -> BoxFuture<'_, Result<(), LogError>>;
}

impl fmt::Debug for dyn Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Log").field(self.name()).finish()
    }
}

/// The room that all logs of one provider share, with a reserve for settling what is stored.
pub trait Capacity: Send + Sync {
    /// The bytes of retained payloads at which the logs are full.
    fn capacity(&self) -> u64;

    /// The bytes of the payloads that all logs retain.
    fn retained(&self) -> u64;

    /// As [`Log::append`], for what settling an event needs: a dead letter, or a reply. It may also use the reserve,
    /// which new events may not, so that full logs can still be emptied.
    ///
    /// # Errors
    /// As [`Log::append`].
    fn append_to_settle<'a>(
        &'a self,
        log: &'a LogName,
        append: Append,
    ) -> BoxFuture<'a, Result<Offset, LogError>>;
}
