//! State shared by the committer, the keeper and the readers.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use super::{
    EmbeddedOptions,
    brokers::Brokers,
    directory,
    layout::SHARED_KEYSPACES,
    lock::lock,
    places::ShortOfPlaces,
    request::Purpose,
    saves::Saves,
    shares::{Shares, Shortfall, namespace_of},
    store::{self, ReadError, Store},
    tail::Tail,
};
use crate::log::{LogError, RememberedIds};

/// Returns the free bytes of a volume.
pub(super) type FreeSpace = Box<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// State shared by the committer and the readers.
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) options: EmbeddedOptions,
    pub(super) store: Store,
    pub(super) brokers: Brokers,
    pub(super) tail: Mutex<Tail>,
    pub(super) failure: watch::Sender<Option<LogError>>,
    pub(super) fsyncs: AtomicU64,
    /// Payload bytes by namespace: what is retained, and what is about to be.
    pub(super) shares: Mutex<Shares>,
    pub(super) saves: Saves,
    pub(super) free_space: FreeSpace,
    /// Bytes trimmed from each shared keyspace that may still be in its tables.
    pub(super) trimmed: [AtomicU64; SHARED_KEYSPACES as usize],
    /// Bytes of the largest shared keyspace, which have to be free to rewrite it.
    pub(super) largest_keyspace: AtomicU64,
    /// Who is about to run out of places of logs.
    pub(super) short_of_places: Mutex<ShortOfPlaces>,
    /// What brokers with deduplication remember.
    pub(super) remembered: Mutex<BTreeMap<Arc<str>, RememberedIds>>,
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

    /// Checks whether a broker may store `length` more bytes.
    pub(super) fn check_room(&self, purpose: Purpose, broker: &str, length: u64) -> Result<(), LogError> {
        let namespace = namespace_of(broker);
        let shares = lock(&self.shares);
        let checked = shares.check(namespace, purpose, length);
        checked.map_err(|refusal| refused(refusal, namespace, &shares))
    }

    /// Charges a broker's namespace for `length` more bytes.
    pub(super) fn take_room(&self, purpose: Purpose, broker: &str, length: u64) -> Result<(), LogError> {
        let namespace = namespace_of(broker);
        let mut shares = lock(&self.shares);
        let taken = shares.take(namespace, purpose, length);
        taken.map_err(|refusal| refused(refusal, namespace, &shares))
    }

    /// Notes that `length` bytes of a broker are about to be removed.
    pub(super) fn give_back_room(&self, broker: &str, length: u64) {
        lock(&self.shares).give_back(namespace_of(broker), length);
    }

    /// Adapts the capacity to a volume that has become larger, of which `free` bytes are left.
    pub(super) fn adapt_capacity(&self, free: u64) {
        let mut shares = lock(&self.shares);
        let (before, retained) = (shares.capacity(), shares.retained());
        let capacity = directory::capacity(&self.options, retained, Some(free));
        // Not for each file that the storage library has deleted.
        if capacity > before + before / 16 {
            shares.resize(capacity);
        }
    }

    /// Estimates after opening what was trimmed from the shared keyspaces and is still in their tables.
    pub(super) fn find_trimmed(&self) {
        let mut retained = [0; SHARED_KEYSPACES as usize];
        for broker in self.brokers.all() {
            if let Some(number) = broker.shared_keyspace() {
                retained[number as usize] += broker.state().bytes();
            }
        }
        for (number, keyspace) in self.store.shared_keyspaces() {
            let number = number as usize;
            if let (Some(trimmed), Some(retained)) = (self.trimmed.get(number), retained.get(number)) {
                trimmed.store(keyspace.disk_space().saturating_sub(*retained), Ordering::Relaxed);
            }
        }
        self.measure_keyspaces();
    }

    /// Notes the size of the largest shared keyspace.
    pub(super) fn measure_keyspaces(&self) {
        let keyspaces = self.store.shared_keyspaces().into_values();
        let largest = keyspaces.map(|keyspace| keyspace.disk_space()).max();
        self.largest_keyspace
            .store(largest.unwrap_or(0), Ordering::Relaxed);
    }

    /// Notes what brokers with deduplication remember.
    pub(super) fn set_remembered(&self, remembered: BTreeMap<Arc<str>, RememberedIds>) {
        *lock(&self.remembered) = remembered;
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

fn refused(refusal: Shortfall, namespace: &str, shares: &Shares) -> LogError {
    match refusal {
        Shortfall::Share { held, limit } => LogError::Quota(format!(
            "namespace {namespace} holds {held} bytes of the event log, and its share is {limit} at present; let its \
             events be delivered, delete Triggers that are not needed, or redrive or drop its dead letters"
        )),
        Shortfall::Log => LogError::Full(format!(
            "{} of {} bytes are held by events that Triggers have not settled and by dead letters; let them be delivered, delete a \
             Trigger, or raise --log-size",
            shares.retained(),
            shares.capacity()
        )),
    }
}
