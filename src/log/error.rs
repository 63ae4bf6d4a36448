//! Errors of logs.

use std::path::PathBuf;

/// Errors of a log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// There is no room for more records until some are removed.
    #[error("the event log is full: {0}")]
    Full(String),
    /// The log cannot take this, even if it were empty.
    #[error("the event log does not take it: {0}")]
    Limit(String),
    /// A record or a batch is larger than the log ever takes.
    #[error("it is too large for the event log: {0}")]
    TooLarge(String),
    /// The storage failed. It is not used again: the state after a failed fsync is unknown.
    #[error("the event log failed and is closed: {0}")]
    Failed(String),
    /// The log is unavailable for now: the disk or the server returned an error or did not answer. Stored records
    /// may be intact and must not be treated as gone: wait, and retry.
    #[error("the event log cannot be reached at the moment: {0}")]
    Unavailable(String),
    /// Fenced: another owner has taken over, and this one's checkpoints are no longer stored.
    #[error("this router no longer owns the log: {0}")]
    Fenced(String),
    /// A record is not what was written, as read from the storage twice.
    #[error("the event log in {path} is damaged: {detail}")]
    Damaged {
        /// Directory of the log, or its stream behind the URLs of the servers.
        path: PathBuf,
        /// The damage.
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
