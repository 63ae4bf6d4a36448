//! Why a log did not do what was asked.

use std::path::PathBuf;

/// Why a log did not do what was asked.
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
    /// The log is away for now: the disk or the server gave an error or no answer. What is stored may be whole, and
    /// nobody may act as if it were gone: wait, and try again.
    #[error("the event log cannot be reached at the moment: {0}")]
    Unavailable(String),
    /// Another owner has taken over, so this one's checkpoints are no longer stored.
    #[error("another router has taken over: {0}")]
    Fenced(String),
    /// A record is not what was written, read from the storage twice.
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
