//! The event log: the durable, append-only record of accepted events, by broker.
//!
//! The ingress appends and waits; delivery reads. A record is opaque here: what is in it is the business of
//! [`crate::cloudevents`]. Beside the records the log keeps the Triggers' cursors, small values by key, so that
//! they are durable in the same place and the same order as what they point into.
//!
//! Every implementation passes the one suite in `conformance.rs`.

pub mod embedded;
mod room;

#[cfg(test)]
pub(crate) mod conformance;

pub use room::{MakeRoom, append_new};

use std::{fmt, path::PathBuf};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A position in one broker's log. The first record of a broker has offset 0; offsets have no gaps.
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
    /// Where it stands in its broker's log.
    pub offset: Offset,
    /// When it was accepted, to the millisecond.
    pub accepted: Timestamp,
    /// What was appended.
    pub payload: Bytes,
}

/// What a broker's log holds: the records from `first` up to, not including, `next`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The oldest record that is retained; equal to `next` when there is none.
    pub first: Offset,
    /// The offset that the next record will get.
    pub next: Offset,
}

/// How much one [`EventLog::read`] returns at most. At least one record is returned, however large, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// The number of records.
    pub records: usize,
    /// The sum of the payloads' lengths, in bytes.
    pub bytes: usize,
}

/// A change to the cursors: `Some` stores a value under a key, `None` removes it.
pub type CursorChange = (String, Option<Bytes>);

/// The durable record of accepted events. `broker` is always `namespace/name`.
///
/// Offsets that were trimmed are gone for good: reading from below `first` begins at `first`.
pub trait EventLog: Send + Sync + 'static {
    /// Appends records in order, as one commit: all of them or none. Returns the first one's offset, and only
    /// when all of them are durable. Concurrent calls share one fsync.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room (nothing was stored; later calls may succeed); [`LogError::Limit`]
    /// when it is more than the log can ever take;
    /// [`LogError::Failed`] when the storage failed: it is not used again, and the process has to end.
    fn append<'a>(
        &'a self,
        broker: &'a str,
        payloads: Vec<Bytes>,
        accepted: Timestamp,
    ) -> BoxFuture<'a, Result<Offset, LogError>>;

    /// As [`EventLog::append`], for what settling an event needs: a dead letter, or a reply. It may also use a part of
    /// the room that new events may not, so that a full log can still be emptied.
    ///
    /// # Errors
    /// As [`EventLog::append`].
    fn append_to_settle<'a>(
        &'a self,
        broker: &'a str,
        payloads: Vec<Bytes>,
        accepted: Timestamp,
    ) -> BoxFuture<'a, Result<Offset, LogError>>;

    /// Reads durable records from `from` on, in order of their offsets; empty at the end of the log.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when it could not be read for now, after a few attempts; [`LogError::Damaged`] when
    /// what is stored is not what was written.
    fn read<'a>(
        &'a self,
        broker: &'a str,
        from: Offset,
        limit: ReadLimit,
    ) -> BoxFuture<'a, Result<Vec<Record>, LogError>>;

    /// What is retained of a broker's log; both offsets are 0 for a broker that has had no event.
    fn bounds(&self, broker: &str) -> Bounds;

    /// The first retained record that was accepted at `time` or later, else the end of the log.
    ///
    /// # Errors
    /// As [`EventLog::read`].
    fn offset_at<'a>(&'a self, broker: &'a str, time: Timestamp) -> BoxFuture<'a, Result<Offset, LogError>>;

    /// Sees the end of a broker's log (`Bounds::next`) grow.
    fn watch(&self, broker: &str) -> watch::Receiver<Offset>;

    /// Removes the records below `before`. Durable with the next commit at the latest; their space is given
    /// back in the background.
    fn trim<'a>(&'a self, broker: &'a str, before: Offset) -> BoxFuture<'a, Result<(), LogError>>;

    /// The brokers that have records, and the bytes that their retained payloads take.
    fn usage(&self) -> Vec<(String, u64)>;

    /// The sum of [`EventLog::usage`].
    fn retained(&self) -> u64 {
        self.usage().iter().map(|(_, bytes)| bytes).sum()
    }

    /// A broker's part of [`EventLog::usage`].
    fn retained_of(&self, broker: &str) -> u64 {
        let usage = self.usage();
        let of_broker = usage.iter().find(|(key, _)| key == broker);
        of_broker.map_or(0, |(_, bytes)| *bytes)
    }

    /// The sum of [`EventLog::usage`], in bytes, at which the log is full.
    fn capacity(&self) -> u64;

    /// Every stored cursor, by key.
    fn cursors(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, LogError>>;

    /// The cursor stored under this key. What was asked to be stored before and is not yet need not be seen.
    fn cursor<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        Box::pin(async move {
            let cursors = self.cursors().await?;
            Ok(cursors
                .into_iter()
                .find_map(|(stored, value)| (stored == key).then_some(value)))
        })
    }

    /// Stores cursors as one commit. Of values for one key that wait to be stored only the newest is; no append waits
    /// for cursors. What is stored survives the process at once and the machine with the next append or
    /// [`EventLog::sync`].
    fn save_cursors(&self, changes: Vec<CursorChange>) -> BoxFuture<'_, Result<(), LogError>>;

    /// Makes everything that was written durable.
    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>>;

    /// How many attempts to read failed for a reason that may pass, since the log was opened.
    fn read_errors(&self) -> u64 {
        0
    }

    /// Resolves with the reason once the storage has failed and the process has to end.
    fn failed(&self) -> BoxFuture<'_, LogError>;
}

/// Why the event log did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room for more records until some are removed.
    #[error("the event log is full: {0}")]
    Full(String),
    /// The log does not take this, and would not if it were empty.
    #[error("the event log does not take it: {0}")]
    Limit(String),
    /// The storage failed. It is not used again: what a failed fsync left behind is unknown.
    #[error("the event log failed and is closed: {0}")]
    Failed(String),
    /// It could not be read just now: the disk gave an error or no answer. What is stored may be whole, and nobody may
    /// act as if it were gone: wait, and read again.
    #[error("the event log cannot be read at the moment: {0}")]
    Unavailable(String),
    /// What was read is not what was written, read from the disk twice.
    #[error("the event log in {path} is damaged: {detail}")]
    Damaged {
        /// The log's directory.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The log cannot be opened.
    #[error("cannot open the event log in {path}: {detail}")]
    Open {
        /// The log's directory.
        path: PathBuf,
        /// What stood in the way, and what to do.
        detail: String,
    },
}
