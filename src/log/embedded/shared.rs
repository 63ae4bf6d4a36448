//! State shared by the committer, the keeper and the readers.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use super::{
    EmbeddedOptions,
    brokers::Brokers,
    saves::Saves,
    store::{self, ReadError, Store},
    tail::Tail,
};
use crate::log::LogError;

/// Returns the free bytes of a volume.
pub(super) type FreeSpace = Box<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// State shared by the committer and the readers.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) options: EmbeddedOptions,
    /// Bytes that may be retained: the configured maximum, or less on a smaller volume.
    pub(super) capacity: u64,
    pub(super) store: Store,
    pub(super) brokers: Brokers,
    pub(super) tail: Mutex<Tail>,
    pub(super) failure: watch::Sender<Option<LogError>>,
    pub(super) fsyncs: AtomicU64,
    /// Retained payload bytes of all brokers, as of the last commit.
    pub(super) retained: AtomicU64,
    pub(super) saves: Saves,
    pub(super) free_space: FreeSpace,
}

impl Shared {
    /// Closes the log for good.
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(path = %self.directory.display(), "the event log failed and is closed: {reason}");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(LogError::Failed(reason));
            first
        });
    }

    pub(super) async fn failed(&self) -> LogError {
        let mut failure = self.failure.subscribe();
        match failure
            .wait_for(Option::is_some)
            .await
            .map(|failure| failure.clone())
        {
            Ok(Some(failure)) => failure,
            // Unreachable: the sender lives as long as `self`.
            Ok(None) | Err(_) => LogError::Failed("it is closed".into()),
        }
    }

    pub(super) fn count_fsync(&self) {
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_error(&self, broker: &str, error: ReadError) -> LogError {
        let detail = match error {
            ReadError::Missing(offset) => {
                format!("broker {broker}: the record at offset {offset} is missing")
            }
            ReadError::Damaged(detail) => format!("broker {broker}: {detail}"),
            ReadError::Unavailable(detail) => {
                return LogError::Unavailable(format!("broker {broker}: {detail}"));
            }
        };
        store::damaged(&self.directory, detail)
    }
}
