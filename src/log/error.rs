//! Errors of logs.

use std::path::PathBuf;

use jiff::Timestamp;

/// Errors of a log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room until records are removed.
    #[error("the event log is full: {0}")]
    Full(String),
    /// There is no room for this namespace until records of its own are removed.
    #[error("no room in the event log: {0}")]
    Quota(String),
    /// There is no room for another broker of this namespace until one of its brokers is gone.
    #[error("no room for another broker: {0}")]
    TooManyBrokers(String),
    /// There is no room for new events of this broker until some of its events are settled.
    #[error("no room for the broker: {0}")]
    BrokerQuota(String),
    /// A limit of the log is reached that removing records does not change.
    #[error("a limit of the event log is reached: {0}")]
    Limit(String),
    /// A record or a batch exceeds the maximum size, even for an empty log.
    #[error("too large for the event log: {0}")]
    TooLarge(String),
    /// A record has the key of another one that is remembered, and is not a repeat of it. Nothing was stored.
    #[error("another event with its source and id was stored at {accepted}")]
    Conflict {
        /// Index of the record among those to append.
        index: usize,
        /// Time of acceptance of the other record.
        accepted: Timestamp,
    },
    /// The storage failed. It is not used again, because its state after a failed fsync is unknown.
    #[error("the event log failed and is closed: {0}")]
    Failed(String),
    /// The disk or the server returned an error or did not respond. Stored records may be intact and must not be
    /// treated as lost. Retry later.
    #[error("the event log is unavailable at the moment: {0}")]
    Unavailable(String),
    /// Another owner has taken over. Checkpoints of this one are no longer stored.
    #[error("this router no longer owns the log: {0}")]
    Fenced(String),
    /// A record was damaged in two reads from the storage.
    #[error("the event log in {path} is damaged: {detail}")]
    Damaged {
        /// Directory of the log, or the URLs of the servers followed by the stream.
        path: PathBuf,
        /// Description of the damage.
        detail: String,
    },
    /// The log cannot be opened.
    #[error("cannot open the event log in {path}: {detail}")]
    Open {
        /// Directory of the log, or the URLs of its servers.
        path: PathBuf,
        /// The cause, and how to fix it.
        detail: String,
    },
}
