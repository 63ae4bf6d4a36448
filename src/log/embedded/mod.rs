//! The embedded event log: one directory, one process, [fjall](https://fjall-rs.github.io) as the storage.
//!
//! # Guarantees
//! - An append is answered after an fsync; appends that wait meanwhile share the next one.
//! - After `kill -9` at any moment every acknowledged record is there. An incomplete end of the journal was never
//!   acknowledged, and is dropped. Records missing otherwise are detected when the log is opened
//!   ([`LogError::Damaged`]) or read, never skipped.
//! - A disk that fails to read is not damage: the read is retried, and then fails with [`LogError::Unavailable`].
//!   Damage is what is wrong twice, the second time from the disk.
//! - A full disk is rejected before the storage sees it ([`LogError::Full`]) and heals by itself once there is
//!   space; any other failure of a write or an fsync closes the log for good ([`LogError::Failed`]).
//! - A namespace that has used up its share of the log is rejected ([`LogError::Quota`]), and no other
//!   (`shares.rs`).
//! - Memory is bounded, whatever the number of records and brokers: see `memory.rs`.
//!
//! # Layout
//! The first 800 logs have a keyspace each, keyed by offset. Keys of a keyspace are then written in ascending order,
//! so its tables never overlap: no compaction rewrites anything (except that many small tables are merged once), and
//! trimming drops whole tables instead of writing a tombstone for each record. The price is memory per keyspace; it
//! is bounded by writing the largest memtable to a table once all of them together exceed a few MiB.
//!
//! The storage library takes no more than 1000 keyspaces. So all further logs share 32 of them, keyed by log and
//! offset. Their tables overlap and have to be merged, and trimmed records are dropped on the way (`compaction.rs`).
//!
//! A log that has no records left and that nobody wants gives its place back (`places.rs`).
//!
//! ```text
//! {directory}/lock           held while the log is open
//! {directory}/acknowledged   how many records were acknowledged, ever (`acknowledged.rs`)
//! {directory}/store/         the storage library's files (`layout.rs`, `store.rs`, `versions.rs`)
//! ```
//!
//! # Reading order
//! `open.rs` serves appends, reads and saves. The committer is one thread and the only writer of records
//! (`request.rs`, `saves.rs`, `commit.rs`, `committer.rs`); another thread cleans up after it (`keeper.rs`,
//! `compaction.rs`). `places.rs` gives the logs their keyspaces, and `shares.rs` divides the log among namespaces.
//! `ids.rs` remembers the ids of events that must not be stored twice.
//! Readers take recent records from memory (`tail.rs`) and older ones from the storage, on a few threads and in turns
//! (`reads.rs`). `broker.rs` and `brokers.rs` hold in memory where each broker begins and ends. A damaged log is read
//! without the storage library (`survey.rs`, `raw.rs`), and `salvage.rs` writes what is readable to a new one.
//!
//! # Limits
//! - Beside the retained payloads the volume holds up to three or four journals of 64 MiB and, for each broker,
//!   the newest table even if it is trimmed. A volume of less than 512 MiB may fill up with journals and then not
//!   heal.
//! - In shared keyspaces there can be as much trimmed as retained. As much as the largest of them takes has to be
//!   free on the volume, beside the reserve, for new events.
//! - There can be 32,768 brokers with events, each with dead letters.
//! - Opening looks up both ends of each log.
//! - The tests kill processes, not machines: they assume that a disk keeps what it reported as synced.

mod acknowledged;
mod broker;
mod brokers;
mod commit;
mod committer;
mod compaction;
mod directory;
mod fail_points;
mod id_map;
mod ids;
#[cfg(test)]
mod ids_tests;
mod journal;
mod keeper;
mod layout;
mod lock;
mod memory;
mod open;
mod options;
mod places;
mod raw;
mod reads;
mod request;
mod retained_from;
mod salvage;
#[cfg(test)]
mod salvage_tests;
mod saves;
mod shared;
#[cfg(test)]
mod shared_tests;
mod shares;
mod store;
mod survey;
mod tail;
#[cfg(test)]
mod tests;
mod versions;

pub use options::EmbeddedOptions;
pub use salvage::salvage;
pub use survey::{BrokerReport, Report, check};

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, watch};

use self::{
    broker::OpenLog,
    brokers::Brokers,
    committer::Committer,
    ids::IdIndex,
    lock::lock,
    open::{Open, PERMIT_BYTES},
    places::Places,
    reads::Readers,
    request::{Purpose, Request},
    saves::Saves,
    shared::{FreeSpace, Shared},
    shares::{Shares, namespace_of},
    store::{Store, StoredBroker},
    tail::Tail,
};
use super::{
    Append, Appended, BrokerName, Capacity, CheckpointChange, CheckpointKey, Checkpoints, KeepIds, Log,
    LogBounds, LogError, LogName, LogProvider, LogRecord, NamespaceShare, Offset, Ownership, Partition,
    ReadLimit, RememberedIds,
};

/// Capacity of the committer's queue, in requests.
const QUEUE: usize = 1024;

/// The logs in a local directory. Dropping the last handle of it and of its logs drains the queue and makes
/// everything durable.
pub struct EmbeddedLog(Arc<Open>);

impl EmbeddedLog {
    /// Opens the log in `directory`, or creates it there. Blocks: replays the journal of what is not yet in
    /// tables.
    ///
    /// # Errors
    /// [`LogError::Open`] if the directory is unusable, another process has it open, or another version wrote it;
    /// [`LogError::Damaged`] if acknowledged records are missing or what is there cannot be read.
    pub fn open(directory: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, LogError> {
        Self::open_with(directory.as_ref(), options, Box::new(directory::free_space))
    }

    /// Returns the names of all logs that had a record and were not given back.
    pub fn names(&self) -> Vec<LogName> {
        let stored = self.0.logs().filter(|broker| broker.is_stored());
        let mut names: Vec<_> = stored.map(|broker| LogName::from_key(&broker.name)).collect();
        names.sort();
        names
    }

    fn open_with(
        directory: &Path,
        options: EmbeddedOptions,
        free_space: FreeSpace,
    ) -> Result<Self, LogError> {
        let failed = |detail: String| LogError::Open {
            path: directory.to_owned(),
            detail,
        };
        let lock = directory::lock_directory(directory)?;
        let store = Store::open(directory)?;
        let found = store.brokers()?;
        let (given_back, free) = store.given_back()?;
        let divided = (options.places, options.share_percent);
        let mut places = Places::new(divided, options.own_keyspaces, free, given_back);
        let ever = found.iter().map(|broker| {
            places.found(broker.registered.id);
            broker.next - broker.registered.start
        });
        let records = ever.sum::<u64>() + given_back.records;
        let acknowledged = directory::check_acknowledged(directory, records)?;
        let retained = found.iter().map(StoredBroker::bytes).sum();
        let capacity = directory::capacity(&options, retained, directory::free_space(directory).ok());
        let mut shares = Shares::new(capacity, options.share_percent);
        for broker in &found {
            shares.found(namespace_of(&broker.name), broker.bytes());
        }
        if capacity < options.max_bytes {
            tracing::warn!(
                directory = %directory.display(),
                wanted = options.max_bytes,
                capacity,
                "the volume has less room than --log-size, so the event log will be full earlier. Enlarge the volume or lower --log-size"
            );
        }

        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            tail: Mutex::new(Tail::new(options.tail_cache_bytes)),
            shares: Mutex::new(shares),
            saves: Saves::default(),
            brokers: Brokers::new(found, given_back),
            failure: watch::Sender::new(None),
            fsyncs: AtomicU64::new(0),
            options,
            store,
            free_space,
            trimmed: Default::default(),
            largest_keyspace: AtomicU64::new(0),
            short_of_places: Mutex::default(),
            remembered: Mutex::default(),
        });
        let brokers = shared.brokers.all();
        let names: BTreeSet<_> = brokers
            .iter()
            .filter(|broker| layout::broker_of_ids(&broker.name).is_none())
            .map(|broker| LogName::from_key(&broker.name).broker().clone())
            .collect();
        for broker in &names {
            places.count(broker.namespace(), shared.brokers.places_of(broker));
        }
        places
            .short()
            .clone_into(&mut lock::lock(&shared.short_of_places));
        shared.find_trimmed();
        let mut ids = IdIndex::new(shared.options.max_ids);
        for log in &brokers {
            ids.load(&shared.store, log)
                .map_err(|error| shared.read_error(&log.name, error))?;
        }
        shared.set_remembered(ids.remembered());
        // A crash may have happened between a trim and dropping its tables.
        for broker in brokers {
            if let Some(stored) = broker.stored().filter(|stored| !layout::is_shared(stored.id)) {
                store::reclaim(&stored.events, broker.state().first).map_err(|e| failed(e.to_string()))?;
            }
        }
        let (requests, receiver) = mpsc::channel(QUEUE);
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.into()).spawn(run);
            thread.map_err(|e| failed(format!("its threads cannot be started: {e}")))
        };
        let readers = Readers::start(spawn)?;
        let (keeper, run) = keeper::keeper(shared.clone());
        let keeper_thread = spawn("log-keeper", Box::new(run))?;
        // Tables that were not merged before the log was closed.
        keeper.tidy_all_shared(&shared.store);
        let committer = Committer::new(shared.clone(), acknowledged, keeper, places, ids, records);
        let committer_thread = spawn("log-committer", Box::new(move || committer.run(receiver)))?;
        let queue = Arc::new(Semaphore::new(shared.options.queue_bytes.div_ceil(PERMIT_BYTES)));
        Ok(Self(Arc::new(Open {
            shared,
            requests: Some(requests),
            queue,
            threads: vec![committer_thread, keeper_thread],
            readers,
            _lock: lock,
        })))
    }

    /// Whether `directory` contains a log.
    #[must_use]
    pub fn exists_in(directory: &Path) -> bool {
        directory.join(store::FOLDER).exists()
    }

    /// Makes everything durable and closes the log.
    ///
    /// # Errors
    /// [`LogError::Failed`] if that failed; the log is closed nevertheless.
    pub async fn close(self) -> Result<(), LogError> {
        let synced = self.sync().await;
        // Dropping joins the threads, which blocks.
        let closed = tokio::task::spawn_blocking(move || drop(self)).await;
        synced.and(closed.map_err(|e| LogError::Failed(format!("closing it failed: {e}"))))
    }

    /// Number of fsyncs of commits since the log was opened.
    #[must_use]
    pub fn fsyncs(&self) -> u64 {
        self.0.shared.fsyncs.load(Ordering::Relaxed)
    }
}

impl LogProvider for EmbeddedLog {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        Arc::new(OneLog {
            broker: self.0.shared.brokers.get_or_new(&name.to_string()),
            open: self.0.clone(),
            name: name.clone(),
        })
    }

    /// The directory has a single owner, so nobody is ever fenced.
    fn checkpoints(&self, _: Ownership) -> Arc<dyn Checkpoints> {
        Arc::new(StoredCheckpoints(self.0.clone()))
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let mut usage: Vec<_> = self
            .0
            .logs()
            .map(|broker| (LogName::from_key(&broker.name), broker.state()))
            .filter(|(_, state)| state.first < state.next)
            .map(|(name, state)| (name, state.bytes()))
            .collect();
        usage.sort();
        usage
    }

    fn capacity(&self) -> Option<&dyn Capacity> {
        Some(self)
    }

    fn remembered_ids(&self) -> Vec<(BrokerName, RememberedIds)> {
        let remembered = lock(&self.0.shared.remembered);
        let remembered = remembered.iter();
        remembered
            .map(|(broker, ids)| ((&**broker).into(), *ids))
            .collect()
    }

    fn forget_ids(
        &self,
        kept: Vec<(BrokerName, KeepIds)>,
        now: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<Vec<BrokerName>, LogError>> {
        Box::pin(self.0.forget_ids(kept, now))
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(self.0.request(|reply| Request::Sync { reply }))
    }

    fn read_errors(&self) -> u64 {
        self.0.readers.errors()
    }

    fn failed(&self) -> BoxFuture<'_, LogError> {
        Box::pin(self.0.shared.failed())
    }
}

impl Capacity for EmbeddedLog {
    fn capacity(&self) -> u64 {
        lock(&self.0.shared.shares).capacity()
    }

    fn retained(&self) -> u64 {
        lock(&self.0.shared.shares).retained()
    }

    fn shares(&self) -> Vec<NamespaceShare> {
        lock(&self.0.shared.shares).all()
    }

    fn bytes_ever(&self, log: &LogName) -> u64 {
        let broker = self.0.shared.brokers.get_or_new(&log.to_string());
        broker.state().bytes_before_next
    }

    fn bytes_below<'a>(&'a self, log: &'a LogName, offset: Offset) -> BoxFuture<'a, Result<u64, LogError>> {
        Box::pin(async move {
            let broker = self.0.shared.brokers.get_or_new(&log.to_string());
            let below = self.0.bytes_below(&broker, offset).await?;
            Ok(below.unwrap_or_else(|| broker.state().bytes_before_first))
        })
    }

    fn append_to_settle<'a>(
        &'a self,
        log: &'a LogName,
        append: Append,
    ) -> BoxFuture<'a, Result<Appended, LogError>> {
        let broker = self.0.shared.brokers.get_or_new(&log.to_string());
        let purpose = match log {
            LogName::Events(_) => Purpose::Replies,
            LogName::DeadLetters(_) => Purpose::DeadLetter,
        };
        Box::pin(self.0.append_for(purpose, broker, append))
    }

    fn empty_logs(&self) -> Vec<LogName> {
        let is_empty = |state: broker::LogState| state.first == state.next;
        let empty = self
            .0
            .logs()
            .filter(|broker| broker.is_stored() && is_empty(broker.state()));
        empty.map(|broker| LogName::from_key(&broker.name)).collect()
    }

    fn is_short_of_places(&self, namespace: &str) -> bool {
        lock::lock(&self.0.shared.short_of_places).has(namespace)
    }

    fn give_back<'a>(&'a self, logs: &'a [LogName]) -> BoxFuture<'a, Result<usize, LogError>> {
        let logs = logs
            .iter()
            .filter_map(|log| self.0.shared.brokers.get(&log.to_string()));
        let logs = logs.collect();
        Box::pin(self.0.request(|reply| Request::GiveBack { logs, reply }))
    }
}

/// One log of the directory.
struct OneLog {
    open: Arc<Open>,
    broker: Arc<OpenLog>,
    name: LogName,
}

impl Log for OneLog {
    fn name(&self) -> &LogName {
        &self.name
    }

    fn partition(&self) -> Partition {
        Partition::WHOLE
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, LogError>> {
        let broker = self.broker.clone();
        Box::pin(self.open.append_for(Purpose::NewEvents, broker, append))
    }

    fn bytes_to_store<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, Result<u64, LogError>> {
        Box::pin(self.open.bytes_to_store(self.broker.clone(), append))
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<LogRecord>, LogError>> {
        Box::pin(self.open.read_records(&self.broker, from, limit))
    }

    fn bounds(&self) -> BoxFuture<'_, Result<LogBounds, LogError>> {
        Box::pin(async { Ok(self.broker.bounds()) })
    }

    fn cached_bounds(&self) -> LogBounds {
        self.broker.bounds()
    }

    fn start(&self) -> Offset {
        Offset(self.broker.state().start)
    }

    fn retained(&self) -> u64 {
        self.broker.state().bytes()
    }

    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>> {
        Box::pin(self.open.find_time(&self.broker, time))
    }

    fn follow(&self) -> watch::Receiver<Offset> {
        self.broker.watch()
    }

    fn trim(&self, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(self.open.trim_records(&self.broker, before))
    }
}

struct StoredCheckpoints(Arc<Open>);

impl Checkpoints for StoredCheckpoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        Box::pin(async {
            let stored = self.0.read_cursors(Store::cursors).await?;
            let keyed = stored.into_iter();
            Ok(keyed
                .map(|(key, value)| (CheckpointKey::from_key(&key), value))
                .collect())
        })
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        let key = key.to_string();
        Box::pin(self.0.read_cursors(move |store| store.cursor(&key)))
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        self.save_for("", changes)
    }

    fn save_for<'a>(
        &'a self,
        namespace: &'a str,
        changes: Vec<CheckpointChange>,
    ) -> BoxFuture<'a, Result<(), LogError>> {
        Box::pin(self.0.save(namespace, changes))
    }
}
