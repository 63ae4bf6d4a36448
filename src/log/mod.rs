//! Durable, append-only logs by name: a broker's accepted events and dead letters, and the checkpoints of those
//! who read them.
//!
//! A [`LogProvider`] opens the [`Log`] of a [`LogName`] and the [`Checkpoints`] of an owner. A record is opaque
//! here; [`crate::cloudevents`] knows its content.
//!
//! Reading order: this file has the traits, `name.rs` the names of logs, `checkpoint.rs` the checkpoints, `shard.rs` who
//! may change them, `partition.rs` how the events of a broker are divided, `error.rs` what can fail, `health.rs` the
//! health of servers. [`embedded`] is the provider on the router's volume, [`jetstream`] the one of several routers; their headers continue the tour. `conformance.rs` is the
//! test suite that every provider passes, `memory.rs` the provider for other modules' tests.
//!
//! # The traits and JetStream
//! What the operations are on NATS JetStream, the log of several routers:
//!
//! | here | there |
//! | --- | --- |
//! | [`LogProvider::open`] | a stream for each log, created by the first append |
//! | [`Log::append`] | a message, or an atomic batch, with an id for retries |
//! | [`Offset`] | the stream's sequence minus one |
//! | [`Log::read`] | a batched direct get, from any replica |
//! | [`Log::bounds`], [`Log::cached_bounds`] | the stream's state: queried, and as of the last answer |
//! | [`Log::follow`] | what this router has appended, what others tell, and a regular look |
//! | [`Log::offset_at`] | a search by halves, by the times in the records |
//! | [`Log::trim`] | a purge by sequence |
//! | [`LogProvider::checkpoints`] of an [`Ownership`] | a batch that the server accepts only while `weir.st.own.SHARD` has the sequence of its epoch |
//! | [`LogError::Unavailable`], [`Full`](LogError::Full), [`TooLarge`](LogError::TooLarge), [`Fenced`](LogError::Fenced) | NATS away, the stream full, the message too large, another owner |
//! | [`LogProvider::capacity`] | `None`: the server manages the capacity of its streams |

mod checkpoint;
pub mod embedded;
mod error;
mod health;
mod identity;
pub mod jetstream;
mod name;
mod offset;
mod partition;
mod record;
mod shard;

#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
pub(crate) mod memory;

pub use checkpoint::{CheckpointChange, CheckpointKey, Checkpoints, Epoch};
pub use error::LogError;
pub use health::{LogHealth, StreamHealth};
pub use identity::{EventIdentity, IdWindow, KeepIds, RememberedIds, Unique};
pub use name::{BrokerName, LogName};
pub use offset::Offset;
pub use partition::Partition;
pub use shard::{Ownership, Shard};

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;

/// Time for which [`Log::append_once`] remembers an id, at least.
pub const REMEMBERED: Duration = Duration::from_secs(30);

/// One stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// Position in the log.
    pub offset: Offset,
    /// Time of the append, to the millisecond.
    pub accepted: Timestamp,
    /// Appended payload.
    pub payload: Bytes,
}

/// The retained part of a log: the records from `first` up to, not including, `next`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// Oldest retained record; equal to `next` if there is none.
    pub first: Offset,
    /// Offset of the next record.
    pub next: Offset,
}

/// Maximum size of one [`Log::read`]. It returns at least one record, however large, if there is one.
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
    /// Payloads, in order.
    pub payloads: Vec<Bytes>,
    /// Time of acceptance.
    pub accepted: Timestamp,
    /// Identities of the records, if those that are repeats are not to be stored.
    pub unique: Option<Unique>,
}

impl Append {
    /// Bytes of all payloads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.payloads.iter().map(|payload| payload.len() as u64).sum()
    }
}

/// Result of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record that was stored; the end of the log if none was.
    pub first: Offset,
    /// Number of records that were not stored, because they are repeats of records that are durable by now.
    pub repeats: usize,
}

/// Opens logs and checkpoints.
pub trait LogProvider: Send + Sync + 'static {
    /// Opens the log of this name. It exists from its first append on; until then it is empty.
    fn open(&self, name: &LogName) -> Arc<dyn Log>;

    /// Opens the checkpoints of a shard for its owner.
    fn checkpoints(&self, ownership: Ownership) -> Arc<dyn Checkpoints>;

    /// The logs that have records, and the bytes of their retained payloads, as last seen. A provider may add what
    /// it stores with each record.
    fn usage(&self) -> Vec<(LogName, u64)>;

    /// The capacity shared by all logs, if the provider has one.
    fn capacity(&self) -> Option<&dyn Capacity> {
        None
    }

    /// The ids that each broker with deduplication remembers, as last seen, if the provider knows.
    fn remembered_ids(&self) -> Vec<(BrokerName, RememberedIds)> {
        Vec::new()
    }

    /// Whether ids are remembered only while the records that they came with are retained.
    fn remembers_by_records(&self) -> bool {
        false
    }

    /// Forgets ids of these brokers that are not kept: those beyond the size of the window, and with the time `now` those
    /// beyond its age. Other brokers forget nothing. A call forgets some thousand ids, so that appends do not wait for it;
    /// returns the brokers that have more to forget.
    ///
    /// # Errors
    /// [`LogError::Failed`] if the storage failed.
    fn forget_ids(
        &self,
        kept: Vec<(BrokerName, KeepIds)>,
        now: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<Vec<BrokerName>, LogError>> {
        let _ = (kept, now);
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Makes everything written durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// Number of read attempts since the start that failed for a transient reason.
    fn read_errors(&self) -> u64 {
        0
    }

    /// The health of the servers that keep the logs, if there are any.
    fn health(&self) -> Option<LogHealth> {
        None
    }

    /// Resolves with the reason once the storage has failed and the process has to exit.
    fn failed(&self) -> BoxFuture<'_, LogError>;
}

/// One log. Trimmed offsets are gone for good: a read from below [`LogBounds::first`] begins there.
pub trait Log: Send + Sync + 'static {
    /// Name of the log.
    fn name(&self) -> &LogName;

    /// The partition that this handle is for. Reads return the records of all partitions; see [`Partition::has`].
    fn partition(&self) -> Partition;

    /// Appends records in order, as one commit: all of them or none. Returns the offset of the first once all are
    /// durable. Concurrent calls share one fsync.
    ///
    /// With [`Append::unique`], leaves out records whose key is remembered, and remembers the keys of the others in the
    /// same commit.
    ///
    /// # Errors
    /// [`LogError::Conflict`] if a remembered key has another digest; [`LogError::Full`] and [`LogError::Quota`] if there is no room (nothing was stored; later calls may succeed);
    /// [`LogError::TooLarge`] and [`LogError::Limit`]
    /// if it exceeds what the log can ever take; [`LogError::Unavailable`] if the log is unavailable (the records
    /// may have been stored); [`LogError::Failed`] if the storage failed: it is not used again, and the process
    /// has to exit.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, LogError>>;

    /// Bytes of the payloads that an append would store at present: those that are no repeats. Nothing is stored.
    ///
    /// # Errors
    /// [`LogError::Failed`] if the storage failed.
    fn bytes_to_store<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, Result<u64, LogError>> {
        Box::pin(async move { Ok(append.bytes()) })
    }

    /// Appends one record for the owner of the log's shard. Of calls with the same `id`, by this and earlier owners, a log
    /// that routers share stores only the first, if the others follow within [`REMEMBERED`]; all return its offset.
    ///
    /// # Errors
    /// As [`Log::append`], and [`LogError::Fenced`] if this router may own no shards at present.
    fn append_once<'a>(&'a self, id: &'a str, append: Append) -> BoxFuture<'a, Result<Appended, LogError>> {
        // A log of one router has one owner, which appends each record once.
        let _ = id;
        self.append(append)
    }

    /// Reads durable records from `from` on, in offset order; empty at the end of the log. There may be fewer than the
    /// limit allows.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if it cannot be read for now, after a few attempts; [`LogError::Damaged`] if what
    /// is stored is not what was written.
    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<LogRecord>, LogError>>;

    /// Returns the bounds of the retained part; both offsets are those of the first record to come for a log that has
    /// none, which is 0 unless an earlier log of a broker was given back.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if they are unknown for now.
    fn bounds(&self) -> BoxFuture<'_, Result<LogBounds, LogError>>;

    /// Returns [`Log::bounds`] as last seen, for metrics and log lines.
    fn cached_bounds(&self) -> LogBounds;

    /// First offset that the log ever had, or has had since it was given back; of a log without records, that of the
    /// first one. The offsets below are of no event.
    fn start(&self) -> Offset {
        Offset(0)
    }

    /// Bytes of the retained payloads as last seen: this log's part of [`LogProvider::usage`].
    fn retained(&self) -> u64;

    /// Finds the first retained record accepted at `time` or later, else the end of the log.
    ///
    /// # Errors
    /// As [`Log::read`].
    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>>;

    /// Watches the end of the log ([`LogBounds::next`]) as it grows.
    fn follow(&self) -> watch::Receiver<Offset>;

    /// Whether everything below the first record is removed; otherwise another [`Log::trim`] may remove it.
    fn is_trimmed(&self) -> bool {
        true
    }

    /// Removes the records below `before`. Durable with the next commit at the latest; their space is reclaimed in
    /// the background.
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

/// What a namespace holds of the logs, and how much it may hold. All in bytes of payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceShare {
    /// Name of the namespace.
    pub namespace: String,
    /// Events and dead letters of all its brokers.
    pub held: u64,
    /// Size at which new events are rejected. It depends on what other namespaces hold; at least `guaranteed`, if there are
    /// not too many namespaces.
    pub limit: u64,
    /// What a namespace may hold whatever the others hold.
    pub guaranteed: u64,
}

impl NamespaceShare {
    /// Bytes beyond the limit.
    pub fn excess(&self) -> u64 {
        self.held.saturating_sub(self.limit.max(self.guaranteed))
    }
}

/// The capacity that all logs of a provider share, with a reserve for settling stored events.
pub trait Capacity: Send + Sync {
    /// Bytes of retained payloads at which the logs are full.
    fn capacity(&self) -> u64;

    /// Bytes of the payloads that all logs retain.
    fn retained(&self) -> u64;

    /// The shares of namespaces that hold anything.
    fn shares(&self) -> Vec<NamespaceShare>;

    /// Bytes of the payloads of all records that a log ever had.
    fn bytes_ever(&self, log: &LogName) -> u64;

    /// Bytes of the payloads of all records that a log ever had below an offset. What is trimmed counts as below.
    ///
    /// # Errors
    /// As [`Log::read`].
    fn bytes_below<'a>(&'a self, log: &'a LogName, offset: Offset) -> BoxFuture<'a, Result<u64, LogError>>;

    /// Appends what settles an event: a dead letter or a reply. Unlike [`Log::append`] it may use the reserve, so
    /// that full logs can still be emptied.
    ///
    /// # Errors
    /// As [`Log::append`].
    fn append_to_settle<'a>(
        &'a self,
        log: &'a LogName,
        append: Append,
    ) -> BoxFuture<'a, Result<Appended, LogError>>;

    /// Logs without retained records that take one of a limited number of places.
    fn empty_logs(&self) -> Vec<LogName> {
        Vec::new()
    }

    /// Whether most places that a namespace may have are taken.
    fn is_short_of_places(&self, namespace: &str) -> bool {
        let _without_places = namespace;
        false
    }

    /// Gives back the places of those of these logs that have no retained records; returns how many did. Such a log
    /// takes a place again with its next record, at an offset that no log of its name had before.
    ///
    /// # Errors
    /// [`LogError::Failed`] if the storage failed.
    fn give_back<'a>(&'a self, logs: &'a [LogName]) -> BoxFuture<'a, Result<usize, LogError>> {
        let _ = logs;
        Box::pin(async { Ok(0) })
    }
}
