//! The embedded event log: one directory, one process, [fjall](https://fjall-rs.github.io) as the storage.
//!
//! # What it promises
//! - An append is answered after an fsync, and the appends that wait meanwhile share the next one.
//! - After `kill -9` at any moment every acknowledged record is there. What is not whole at the end of the journal
//!   was never acknowledged, and is dropped. Records that are missing otherwise are found when the log is opened
//!   ([`LogError::Damaged`]) or read, never skipped.
//! - A disk that fails to read is no damage: the read is tried again, and then is [`LogError::Unavailable`]. Damaged is
//!   what is wrong twice, the second time from the disk.
//! - A full disk is refused before the storage sees it ([`LogError::Full`]) and heals by itself once there is
//!   space; any other failure of a write or an fsync closes the log for good ([`LogError::Failed`]).
//! - Memory is bounded, whatever the number of records and brokers: see `memory.rs`.
//!
//! # The layout, and why
//! One keyspace a broker, keyed by offset. The keys of a keyspace are then written in ascending order, so its
//! tables never overlap: nothing is rewritten by a compaction (but many small tables are merged once), and trimming
//! drops whole tables instead of writing a tombstone for every record. (With one keyspace for all brokers both would be lost, and a broker that
//! is never read would keep the space of the others.) The price, memory by keyspace, is bounded by writing the
//! largest memtable to a table once all of them together exceed a few MiB.
//!
//! ```text
//! {directory}/lock           held while the log is open
//! {directory}/acknowledged   how many records were acknowledged, ever (`acknowledged.rs`)
//! {directory}/store/         the storage library's files (`layout.rs`, `store.rs`, `versions.rs`)
//! ```
//!
//! # The parts
//! The committer is one thread and the only writer of records (`committer.rs`); another one tidies up after it
//! (`keeper.rs`). Readers take recent records from memory (`tail.rs`) and older ones from the storage, on a few
//! threads and in turns (`reads.rs`). A log that is damaged is read without the storage library (`survey.rs`, `raw.rs`),
//! and what can be read written to a new one (`salvage.rs`). Where each broker begins and ends is in memory (`broker.rs`, `brokers.rs`).
//!
//! # What it does not do
//! - Beside the retained payloads the volume holds up to three or four journals of 64 MiB and, for each broker, the
//!   newest table even if it is trimmed. A volume of less than 512 MiB may be full of journals and then not heal.
//! - A broker's keyspace is never removed, and there can be 900 of them.
//! - The tests kill processes, not machines: that a disk keeps what it said it has synced is taken for granted.

mod acknowledged;
mod broker;
mod brokers;
mod committer;
mod fail_points;
mod journal;
mod keeper;
mod layout;
mod memory;
mod raw;
mod reads;
mod salvage;
#[cfg(test)]
mod salvage_tests;
mod saves;
mod store;
mod survey;
mod tail;
#[cfg(test)]
mod tests;
mod versions;

pub use salvage::salvage;
pub use survey::{BrokerReport, Report, check};

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use fjall::Keyspace;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::{
    acknowledged::Acknowledged,
    broker::{Broker, lock},
    brokers::Brokers,
    committer::{Committer, Purpose, Request},
    reads::{Origin, Readers},
    saves::Saves,
    store::{Found, ReadError, Store},
    tail::Tail,
};
use super::{
    Append, Bounds, Capacity, CheckpointChange, CheckpointKey, Checkpoints, Epoch, Log, LogError, LogName,
    LogProvider, Offset, ReadLimit, Record,
};

const MIB: u64 = 1024 * 1024;
/// How many requests wait for the committer before those who ask have to wait.
const QUEUE: usize = 1024;
/// The queue's bytes are counted in units of this size.
const PERMIT_BYTES: usize = 1024;

/// How an [`EmbeddedLog`] uses its volume and its memory.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The log is full when the retained payloads of all brokers add up to this; for new events a little earlier, so
    /// that there is room for what settling the others needs.
    pub max_bytes: u64,
    /// How much of the volume stays free. What would leave less, once everything in memory is written out, is
    /// refused as [`LogError::Full`].
    pub reserve_bytes: u64,
    /// The most recent records that are kept in memory for the readers that have caught up.
    pub tail_cache_bytes: usize,
    /// How many bytes of payload wait for a commit before those who append have to wait.
    pub queue_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            max_bytes: 8 * 1024 * MIB,
            reserve_bytes: 32 * MIB,
            tail_cache_bytes: 4 * 1024 * 1024,
            queue_bytes: 4 * 1024 * 1024,
        }
    }
}

/// The logs in a local directory. Dropping the last of it and of the logs that it opened waits for what is queued, and
/// makes it durable.
pub struct EmbeddedLog(Arc<Open>);

/// What is open of a directory.
struct Open {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    queue: Arc<Semaphore>,
    /// The committer, then the keeper, which ends when the committer has.
    threads: Vec<JoinHandle<()>>,
    readers: Readers,
    /// Freed last, after everything that uses the directory.
    _lock: fs::File,
}

type FreeSpace = Box<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// What the committer and the readers share.
struct Shared {
    directory: PathBuf,
    options: EmbeddedOptions,
    /// How many bytes may be retained: as many as the options say, or fewer where the volume is smaller.
    capacity: u64,
    store: Store,
    brokers: Brokers,
    tail: Mutex<Tail>,
    failure: watch::Sender<Option<LogError>>,
    fsyncs: AtomicU64,
    /// The payloads' bytes that all brokers retain, as of the last commit.
    retained: AtomicU64,
    saves: Saves,
    free_space: FreeSpace,
}

impl EmbeddedLog {
    /// Opens the log in `directory`, or creates it there. Blocks: reads the journal of what is not yet in tables.
    ///
    /// # Errors
    /// [`LogError::Open`] when the directory cannot be used, another process has it open, or another version
    /// wrote it; [`LogError::Damaged`] when records that were acknowledged are missing or what is there cannot
    /// be read.
    pub fn open(directory: impl AsRef<Path>, options: EmbeddedOptions) -> Result<Self, LogError> {
        Self::open_with(directory.as_ref(), options, Box::new(free_space))
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
        let lock = lock_directory(directory)?;
        let store = Store::open(directory)?;
        let found = store.brokers()?;
        let next_id = found
            .iter()
            .map(|broker| broker.registered.id + 1)
            .max()
            .unwrap_or(0);
        let records = found.iter().map(|broker| broker.next).sum();
        let acknowledged = check_acknowledged(directory, records)?;
        let retained = found.iter().map(Found::bytes).sum();
        let capacity = capacity(&options, retained, self::free_space(directory).ok());
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
            retained: AtomicU64::new(retained),
            saves: Saves::default(),
            brokers: Brokers::new(found),
            capacity,
            failure: watch::Sender::new(None),
            fsyncs: AtomicU64::new(0),
            options,
            store,
            free_space,
        });
        // A crash may have come between a trim and the dropping of its tables.
        for broker in shared.brokers.all() {
            if let Some(stored) = broker.stored() {
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
        let committer = Committer::new(shared.clone(), acknowledged, keeper, next_id);
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

    /// Whether there is a log in `directory`.
    #[must_use]
    pub fn exists_in(directory: &Path) -> bool {
        directory.join(store::FOLDER).exists()
    }

    /// Makes everything durable and closes the log.
    ///
    /// # Errors
    /// [`LogError::Failed`] when that failed; the log is closed nevertheless.
    pub async fn close(self) -> Result<(), LogError> {
        let synced = self.sync().await;
        // The thread is waited for.
        let closed = tokio::task::spawn_blocking(move || drop(self)).await;
        synced.and(closed.map_err(|e| LogError::Failed(format!("closing it failed: {e}"))))
    }

    /// How many fsyncs made commits durable since the log was opened.
    #[must_use]
    pub fn fsyncs(&self) -> u64 {
        self.0.shared.fsyncs.load(Ordering::Relaxed)
    }
}

impl Open {
    async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.requests.as_ref()?.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        // A request that comes into the queue just as the committer goes is neither answered nor dropped, but the
        // committer goes only after it has said why.
        tokio::select! {
            biased;
            Some(answer) = answered => answer,
            failure = self.shared.failed() => Err(failure),
        }
    }

    async fn save(&self, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        let changes = changes.into_iter().map(|(key, value)| (key.to_string(), value));
        let changes = changes.collect();
        if self.shared.saves.add(changes, reply)
            && let Some(requests) = &self.requests
        {
            // If the queue is full, the committer is about to take from it, and looks for cursors after that. If it is
            // closed, the log has failed.
            if requests.try_send(Request::Saves).is_err() {
                self.shared.saves.heard();
            }
        }
        tokio::select! {
            biased;
            Ok(answer) = answer => answer,
            failure = self.shared.failed() => Err(failure),
        }
    }

    async fn append_for(
        &self,
        purpose: Purpose,
        broker: Arc<Broker>,
        Append { payloads, accepted }: Append,
    ) -> Result<Offset, LogError> {
        if payloads.is_empty() {
            // No reason to keep a broker.
            return Ok(broker.bounds().next);
        }
        let length: usize = payloads.iter().map(Bytes::len).sum();
        // A log that is full says so at once, without a turn of the committer.
        let retained = self.shared.retained.load(Ordering::Relaxed);
        self.shared.options.check_room(purpose, retained, length as u64)?;
        let all = self.shared.options.queue_bytes.div_ceil(PERMIT_BYTES);
        // What is larger than the queue takes all of it.
        let permits = u32::try_from((length / PERMIT_BYTES + 1).min(all)).unwrap_or(u32::MAX);
        let permit = self.queue.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| LogError::Failed("it is closed".into()))?;
        let accepted_millis = layout::millis(accepted);
        self.request(|reply| Request::Append {
            purpose,
            broker,
            payloads,
            accepted_millis,
            reply,
            permit,
        })
        .await
    }

    fn cursors_error(&self, error: ReadError) -> LogError {
        match error {
            ReadError::Missing(_) => store::damaged(&self.shared.directory, "a cursor is missing"),
            ReadError::Damaged(detail) => {
                store::damaged(&self.shared.directory, format!("cursors: {detail}"))
            }
            ReadError::Unavailable(detail) => LogError::Unavailable(format!("cursors: {detail}")),
        }
    }

    /// Reads a broker's records between these offsets from the storage.
    async fn read_storage<T: Send + 'static>(
        &self,
        broker: &Broker,
        keyspace: &Keyspace,
        (from, to): (Offset, Offset),
        read: impl FnOnce(&Store) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, ReadError> {
        let origin = Origin {
            keyspace: keyspace.clone(),
            offsets: Some((from.0, to.0)),
        };
        let is_trimmed = |offset| offset < broker.bounds().first.0;
        let shared = self.shared.clone();
        let read = move || read(&shared.store);
        self.readers
            .read(Some(&broker.turns), origin, is_trimmed, read)
            .await
    }

    async fn read_records(
        &self,
        broker: &Broker,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        let name = &*broker.name;
        loop {
            let Bounds { first, next } = broker.bounds();
            let from = from.max(first);
            let Some(stored) = broker.stored().filter(|_| from < next) else {
                return Ok(Vec::new());
            };
            if let Some(records) = lock(&self.shared.tail).read(name, from, next, limit) {
                return Ok(records);
            }
            let events = stored.events.clone();
            let read = move |store: &Store| store.read(&events, from.0, next.0, limit);
            match self
                .read_storage(broker, &stored.events, (from, next), read)
                .await
            {
                Ok(records) => return Ok(records),
                // Trimmed while it was being read: begin again where the log begins now.
                Err(ReadError::Missing(offset)) if offset < broker.bounds().first.0 => {}
                Err(e) => return Err(self.shared.read_error(name, e)),
            }
        }
    }

    async fn find_time(&self, broker: &Arc<Broker>, time: Timestamp) -> Result<Offset, LogError> {
        let Some(stored) = broker.stored() else {
            return Ok(Offset(0));
        };
        let (bounds, millis) = (broker.bounds(), layout::millis(time));
        let (events, searched) = (stored.events.clone(), broker.clone());
        let search = move |store: &Store| {
            let (mut low, mut high) = (bounds.first.0, bounds.next.0);
            while low < high {
                let middle = low + (high - low) / 2;
                match store.header(&events, middle) {
                    Ok(header) if header.accepted_millis >= millis => high = middle,
                    Ok(_) => low = middle + 1,
                    // Trimmed while it was being searched.
                    Err(ReadError::Missing(_)) if middle < searched.bounds().first.0 => low = middle + 1,
                    Err(e) => return Err(e),
                }
            }
            Ok(Offset(low))
        };
        let range = (bounds.first, bounds.next);
        let found = self.read_storage(broker, &stored.events, range, search).await;
        let found = found.map_err(|e| self.shared.read_error(&broker.name, e))?;
        Ok(found.max(broker.bounds().first))
    }

    async fn trim_records(&self, broker: &Arc<Broker>, before: Offset) -> Result<(), LogError> {
        let Some(stored) = broker.stored() else {
            return Ok(());
        };
        // Only what is durable is trimmed: nobody can have settled more.
        let state = broker.state();
        let before = before.min(Offset(state.next));
        // Read here, so that the disk keeps no commit waiting.
        let bytes_before = if before.0 == state.next {
            state.bytes_before_next
        } else if before.0 <= state.first {
            state.bytes_before_first
        } else {
            let events = stored.events.clone();
            let read = move |store: &Store| store.header(&events, before.0);
            let range = (before, before.plus(1));
            match self.read_storage(broker, &stored.events, range, read).await {
                Ok(header) => header.bytes_before,
                // Trimmed further meanwhile.
                Err(ReadError::Missing(_)) if before < broker.bounds().first => return Ok(()),
                Err(e) => return Err(self.shared.read_error(&broker.name, e)),
            }
        };
        self.request(|reply| Request::Trim {
            broker: broker.clone(),
            before,
            bytes_before,
            reply,
        })
        .await
    }

    /// Reads cursors from the storage.
    async fn read_cursors<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, LogError> {
        let origin = Origin {
            keyspace: self.shared.store.cursors.clone(),
            offsets: None,
        };
        let shared = self.shared.clone();
        let read = move || read(&shared.store);
        let cursors = self.readers.read(None, origin, |_| false, read).await;
        cursors.map_err(|error| self.cursors_error(error))
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

    /// The directory has one owner for good, so nobody is ever fenced.
    fn checkpoints(&self, _: Epoch) -> Arc<dyn Checkpoints> {
        Arc::new(StoredCheckpoints(self.0.clone()))
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let brokers = self.0.shared.brokers.all().into_iter();
        let mut usage: Vec<_> = brokers
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
        self.0.shared.capacity
    }

    fn retained(&self) -> u64 {
        self.0.shared.retained.load(Ordering::Relaxed)
    }

    fn append_to_settle<'a>(
        &'a self,
        log: &'a LogName,
        append: Append,
    ) -> BoxFuture<'a, Result<Offset, LogError>> {
        let broker = self.0.shared.brokers.get_or_new(&log.to_string());
        Box::pin(self.0.append_for(Purpose::Settling, broker, append))
    }
}

/// One log of the directory.
struct OneLog {
    open: Arc<Open>,
    broker: Arc<Broker>,
    name: LogName,
}

impl Log for OneLog {
    fn name(&self) -> &LogName {
        &self.name
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Offset, LogError>> {
        let broker = self.broker.clone();
        Box::pin(self.open.append_for(Purpose::NewEvents, broker, append))
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, LogError>> {
        Box::pin(self.open.read_records(&self.broker, from, limit))
    }

    fn bounds(&self) -> BoxFuture<'_, Result<Bounds, LogError>> {
        Box::pin(async { Ok(self.broker.bounds()) })
    }

    fn cached_bounds(&self) -> Bounds {
        self.broker.bounds()
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
        Box::pin(self.0.save(changes))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // The committer ends when nobody can ask it any more.
        self.requests = None;
        for thread in self.threads.drain(..) {
            // If it panicked it has said so, and nobody is left to be told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Closes the log for good.
    fn fail(&self, reason: String) {
        tracing::error!(path = %self.directory.display(), "the event log failed and is closed: {reason}");
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(LogError::Failed(reason));
            first
        });
    }

    async fn failed(&self) -> LogError {
        let mut failure = self.failure.subscribe();
        match failure
            .wait_for(Option::is_some)
            .await
            .map(|failure| failure.clone())
        {
            Ok(Some(failure)) => failure,
            // Cannot be: the sender lives as long as `self`.
            Ok(None) | Err(_) => LogError::Failed("it is closed".into()),
        }
    }

    fn count_fsync(&self) {
        self.fsyncs.fetch_add(1, Ordering::Relaxed);
    }
}

/// Makes the directory this process's own.
fn lock_directory(directory: &Path) -> Result<fs::File, LogError> {
    let opened = fs::create_dir_all(directory).and_then(|()| {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("lock"))
    });
    let lock = opened.map_err(|e| LogError::Open {
        path: directory.to_owned(),
        detail: e.to_string(),
    })?;
    take_lock(directory, lock)
}

/// Keeps a router from opening a log that is only read. Makes no file: without one no router has ever opened it.
fn lock_existing(directory: &Path) -> Result<Option<fs::File>, LogError> {
    match fs::File::open(directory.join("lock")) {
        Ok(lock) => take_lock(directory, lock).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LogError::Open {
            path: directory.to_owned(),
            detail: format!("its lock: {e}"),
        }),
    }
}

fn take_lock(directory: &Path, lock: fs::File) -> Result<fs::File, LogError> {
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(store::in_use(directory)),
        Err(fs::TryLockError::Error(e)) => Err(LogError::Open {
            path: directory.to_owned(),
            detail: format!("it cannot be locked: {e}"),
        }),
    }
}

/// Compares what the store holds with what was acknowledged.
fn check_acknowledged(directory: &Path, records: u64) -> Result<Acknowledged, LogError> {
    let file = directory.join(acknowledged::FILE_NAME);
    let accept = format!(
        "restore the volume from a copy, or remove {} to go on without them",
        file.display()
    );
    let (mut acknowledged, number) = Acknowledged::open(directory).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => store::damaged(directory, format!("{}: {e}; {accept}", file.display())),
        _ => LogError::Open {
            path: directory.to_owned(),
            detail: format!("{}: {e}", file.display()),
        },
    })?;
    match number {
        Some(number) if number > records => {
            return Err(store::damaged(
                directory,
                format!(
                    "{number} records were acknowledged and only {records} are left: the end of the journal is lost \
                     or unreadable; {accept}"
                ),
            ));
        }
        None if records > 0 => {
            let path = file.display();
            tracing::warn!(%path, "the count of acknowledged records is missing, {records} records are taken as all");
        }
        _ => {}
    }
    let noted = acknowledged.write(records).and_then(|()| acknowledged.sync());
    let noted = noted.and_then(|()| fs::File::open(directory)?.sync_all());
    noted.map_err(|e| LogError::Open {
        path: directory.to_owned(),
        detail: format!("{}: {e}", file.display()),
    })?;
    Ok(acknowledged)
}

/// How many bytes may be retained in a volume of which so many are free besides.
fn capacity(options: &EmbeddedOptions, retained: u64, free: Option<u64>) -> u64 {
    let of_volume = free.map_or(u64::MAX, |free| {
        retained
            .saturating_add(free)
            .saturating_sub(options.reserve_bytes)
    });
    options.max_bytes.min(of_volume)
}

/// What an unprivileged process can still write to the volume.
fn free_space(directory: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(directory)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}
