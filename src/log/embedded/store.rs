//! The storage library (fjall) as the log uses it: opening, setting up, reading, and dropping trimmed records.
//! Everything here blocks.
//!
//! Facts found in its sources that this relies on:
//! - A failed write poisons the database, and what it left in the journal is cut off by the next opening. The
//!   database cannot recover from ENOSPC, so a full disk has to be rejected before it sees one
//!   ([`super::committer`]).
//! - The values of a commit are checksummed in the journal, and blocks of tables including their headers, and all
//!   of that is verified on reading. Replaying a journal, however, stops silently at an entry that it cannot
//!   parse: see [`super::acknowledged`] and [`Store::check`].
//! - The list of a keyspace's tables has a checksum that is not verified: see [`super::versions`].
//! - On opening, a journal entry is replayed only if its sequence number is above the highest one in the
//!   keyspace's tables, and a journal is deleted only when all of its keyspaces have tables above it. Dropping
//!   *all* tables of a keyspace would therefore bring records back and pin journals for good, so the newest table
//!   always stays ([`reclaim`]), and a shared keyspace has a mark that is never dropped ([`super::layout::MARK`]).
//! - While it opens, each keyspace takes a place in a queue of 1000 that nobody empties yet.
//! - Its thread compacts a keyspace after each table that it writes, and writes no other table meanwhile. On a full
//!   disk that would fail, and with it the database. So its strategy does nothing where tables overlap, which is in
//!   the shared keyspaces, and these are compacted elsewhere ([`super::compaction`]).
//! - Journals and tables are compressed with an algorithm whose output may change between versions; a journal's
//!   checksum covers the recomputed output. Journals are therefore not compressed.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use fjall::{
    AbstractTree, CompressionType, Database, JournalRecoveryError, Keyspace, KeyspaceCreateOptions,
    PersistMode,
    compaction::Leveled,
    config::{BlockSizePolicy, CompressionPolicy, FilterPolicy, PinningPolicy, RestartIntervalPolicy},
};

use super::{
    fail_points, journal,
    layout::{
        self, FIRST_FORMAT, FORMAT, FORMAT_KEY, GIVEN_BACK_KEY, GivenBack, RecordHeader, RecordKey,
        Registered,
    },
    lock::lock,
    retained_from::RetainedFrom,
    tail::TailRead,
    versions,
};
use crate::log::{LogError, LogRecord, ReadLimit};

pub(super) const FOLDER: &str = "store";
const FOLDER_IN_CREATION: &str = "store.new";

/// Block cache: only lagging readers use it, and they read ahead.
const BLOCK_CACHE: u64 = 2 * MIB;
const CACHED_FILES: usize = 64;
/// Number of tables at which a keyspace's tables are merged, and the average size below which they are, in bytes:
/// every table takes memory as well.
const MERGE_TABLES: usize = 24;
const SMALL_TABLE: u64 = MIB / 4;
const MERGED_TABLE: u64 = 4 * MIB;
pub(super) const MIB: u64 = 1024 * 1024;

pub(super) struct Store {
    directory: PathBuf,
    database: Database,
    pub(super) meta: Keyspace,
    pub(super) cursors: Keyspace,
    /// Format of the store when it was opened.
    pub(super) format: u32,
    /// Keyspaces with records.
    events: Mutex<EventsKeyspaces>,
    /// First retained record of each log in a shared keyspace.
    pub(super) retained_from: Arc<RetainedFrom>,
}

/// Keyspaces with records.
#[derive(Default)]
struct EventsKeyspaces {
    all: Vec<Keyspace>,
    /// Those of many logs, by number.
    shared: BTreeMap<u32, Keyspace>,
}

/// Where a log's records are.
#[derive(Clone)]
pub(super) struct BrokerKeyspace {
    pub(super) id: u32,
    pub(super) events: Keyspace,
}

impl BrokerKeyspace {
    /// Key of the record at an offset.
    pub(super) fn key(&self, offset: u64) -> RecordKey {
        RecordKey::new(self.id, offset)
    }
}

/// State of a broker in an opened store.
pub(super) struct StoredBroker {
    pub(super) name: String,
    pub(super) events: Keyspace,
    pub(super) registered: Registered,
    pub(super) next: u64,
    pub(super) bytes_before_next: u64,
    pub(super) last_accepted_millis: i64,
}

impl StoredBroker {
    /// Bytes of the retained payloads.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_before_next
            .saturating_sub(self.registered.bytes_before_first)
    }
}

/// Reasons why records could not be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// A record is missing: it was trimmed just now, or the store is damaged.
    Missing(u64),
    /// The storage library rejects the data, or returned an impossible result.
    Damaged(String),
    /// The disk returned an error or did not answer. This says nothing about what is stored.
    Unavailable(String),
}

impl ReadError {
    fn of(error: &fjall::Error) -> Self {
        match io_error(error) {
            Some(io) => Self::of_io(io),
            None => Self::Damaged(error.to_string()),
        }
    }

    /// Classifies an I/O error: one reported by the system is the disk's, except for a missing file. Others are
    /// the library's: the file is too short, or its content is wrong.
    pub(super) fn of_io(error: &io::Error) -> Self {
        if error.raw_os_error().is_some() && error.kind() != io::ErrorKind::NotFound {
            Self::Unavailable(error.to_string())
        } else {
            Self::Damaged(error.to_string())
        }
    }
}

fn io_error(error: &fjall::Error) -> Option<&io::Error> {
    match error {
        fjall::Error::Io(e) | fjall::Error::Storage(fjall::LsmError::Io(e)) => Some(e),
        _ => None,
    }
}

impl Store {
    /// Opens the store in `directory`, or creates it. The caller holds the directory's lock.
    pub(super) fn open(directory: &Path) -> Result<Self, LogError> {
        let folder = directory.join(FOLDER);
        let exists = folder
            .try_exists()
            .map_err(|e| cannot_open(directory, &folder, &e))?;
        if !exists {
            Self::create(directory, &folder)?;
        }
        check_lists(directory, &folder)?;
        // The library can panic on a damaged file.
        catch_unwind(|| Self::open_folder(directory, &folder)).unwrap_or_else(|_| {
            Err(damaged(
                directory,
                "the storage library panicked while it read its files",
            ))
        })
    }

    /// Creates the store under another name and renames it, because the library cannot open one that a crash left
    /// half made.
    fn create(directory: &Path, folder: &Path) -> Result<(), LogError> {
        let aside = directory.join(FOLDER_IN_CREATION);
        let created = || -> Result<(), fjall::Error> {
            if aside.try_exists()? {
                fs::remove_dir_all(&aside)?;
            }
            let database = builder(&aside, &Arc::default()).open()?;
            let meta = database.keyspace("meta", small_keyspace)?;
            database.keyspace("cursors", small_keyspace)?;
            meta.insert(FORMAT_KEY, FIRST_FORMAT.to_be_bytes())?;
            // Into a table: a journal that is damaged later must not make the store look like no store.
            meta.rotate_memtable_and_wait()?;
            database.persist(PersistMode::SyncAll)?;
            drop((meta, database));
            fs::rename(&aside, folder)?;
            fs::File::open(directory)?.sync_all()?;
            Ok(())
        };
        created().map_err(|e| cannot_open(directory, &aside, &e))
    }

    fn open_folder(directory: &Path, folder: &Path) -> Result<Self, LogError> {
        let retained_from = Arc::<RetainedFrom>::default();
        let database = open_database(directory, folder, &retained_from)?;
        for name in ["meta", "cursors"] {
            if !database.keyspace_exists(name) {
                return Err(damaged(directory, format!("its keyspace `{name}` is missing")));
            }
        }
        let open = |name| {
            database
                .keyspace(name, small_keyspace)
                .map_err(|e| open_error(directory, folder, e))
        };
        let (meta, cursors) = (open("meta")?, open("cursors")?);
        let format = meta
            .get(FORMAT_KEY)
            .map_err(|e| open_error(directory, folder, e))?;
        let format = format
            .as_deref()
            .and_then(|format| format.try_into().ok())
            .map(u32::from_be_bytes);
        let format = match format {
            Some(format @ FIRST_FORMAT..=FORMAT) => format,
            Some(other) => {
                return Err(LogError::Open {
                    path: directory.to_owned(),
                    detail: format!(
                        "it has format {other}, this version reads formats up to {FORMAT}; run the version that wrote it"
                    ),
                });
            }
            None => return Err(damaged(directory, "its format version is missing")),
        };
        let mut events = EventsKeyspaces::default();
        for name in database.list_keyspace_names() {
            if layout::holds_records(&name) {
                let opened = database.keyspace(&name, events_keyspace);
                events
                    .all
                    .push(opened.map_err(|e| open_error(directory, folder, e))?);
            }
        }
        for keyspace in &events.all {
            if let Some(Ok(number)) = keyspace
                .name()
                .strip_prefix(layout::SHARED_PREFIX)
                .map(str::parse)
            {
                events.shared.insert(number, keyspace.clone());
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            meta,
            cursors,
            format,
            events: Mutex::new(events),
            retained_from,
            database,
        })
    }

    /// Returns what is left of the logs that gave their places back, and the keyspaces that they left.
    pub(super) fn given_back(&self) -> Result<(GivenBack, BTreeMap<u32, u64>), LogError> {
        let unreadable = |e| self.unreadable(&e);
        let given_back = match self.meta.get(GIVEN_BACK_KEY).map_err(unreadable)? {
            Some(value) => GivenBack::parse(&value)
                .ok_or_else(|| self.damaged("its entry `given-back` cannot be read"))?,
            None => GivenBack::default(),
        };
        let free = self.meta.prefix(layout::FREE_PREFIX).map(|entry| {
            let (key, value) = entry.into_inner().map_err(|e| self.unreadable(&e))?;
            layout::parse_free(&key, &value)
                .ok_or_else(|| self.damaged("the entry of a free keyspace cannot be read"))
        });
        Ok((given_back, free.collect::<Result<_, _>>()?))
    }

    /// Returns every registered broker, checked.
    pub(super) fn brokers(&self) -> Result<Vec<StoredBroker>, LogError> {
        catch_unwind(AssertUnwindSafe(|| {
            self.meta
                .prefix(layout::BROKER_PREFIX)
                .map(|entry| {
                    let (key, value) = entry.into_inner().map_err(|e| self.unreadable(&e))?;
                    let name = std::str::from_utf8(&key[layout::BROKER_PREFIX.len()..])
                        .map_err(|_| self.damaged("a broker's name is not UTF-8"))?;
                    let registered = Registered::parse(&value)
                        .ok_or_else(|| self.damaged(format!("the entry of broker {name} cannot be read")))?;
                    self.check(name, registered)
                })
                .collect()
        }))
        .unwrap_or_else(|_| Err(self.damaged("the storage library panicked while it read its files")))
    }

    /// Finds the end of a broker's records and checks that none is missing after the first retained one, as far as
    /// possible without reading them: by both ends and the number of stored records.
    fn check(&self, name: &str, registered: Registered) -> Result<StoredBroker, LogError> {
        let keyspace = layout::keyspace_of(registered.id);
        if !self.database.keyspace_exists(&keyspace) {
            return Err(self.damaged(format!(
                "the records of broker {name} (keyspace `{keyspace}`) are missing"
            )));
        }
        let events = self.keyspace(registered.id).map_err(|e| self.unreadable(&e))?;
        if layout::is_shared(registered.id) {
            self.retained_from.set(registered.id, registered.first);
        }
        let of_log = |first| layout::keys_from(registered.id, first);
        let mut found = StoredBroker {
            name: name.to_owned(),
            events: events.clone(),
            registered,
            next: registered.first,
            bytes_before_next: registered.bytes_before_first,
            last_accepted_millis: registered.last_accepted_millis,
        };
        let Some(highest) = events.range(of_log(registered.first)).next_back() else {
            return Ok(found);
        };
        let (key, value) = highest.into_inner().map_err(|e| self.unreadable(&e))?;
        let highest = layout::parse_key(registered.id, &key).map_err(|e| self.damaged(e))?;
        let (header, payload) = layout::parse_value(highest, &value).map_err(|e| self.damaged(e))?;
        found.next = highest + 1;
        found.bytes_before_next = header.bytes_before + payload.len() as u64;
        found.last_accepted_millis = header.accepted_millis;
        // A keyspace of its own may still have trimmed records, and those of an earlier log. A shared one tells
        // nothing by its number of records.
        let is_own = !layout::is_shared(registered.id);
        let from = if is_own {
            registered.start
        } else {
            registered.first
        };
        let lowest = events.range(of_log(from)).next();
        let lowest = lowest
            .map(|lowest| lowest.key())
            .transpose()
            .map_err(|e| self.unreadable(&e))?;
        let lowest = lowest.map_or(Ok(u64::MAX), |key| layout::parse_key(registered.id, &key));
        let lowest = lowest.map_err(|e| self.damaged(e))?;
        let stored = events.approximate_len() as u64;
        if lowest > registered.first || (is_own && stored < found.next - lowest) {
            return Err(self.damaged(format!(
                "broker {name} has {stored} records at offsets {lowest} to {highest}, and should have every one \
                 from {}; restore the volume from a copy",
                registered.first
            )));
        }
        Ok(found)
    }

    /// Opens the keyspace of a log's records; creates it durably if it does not exist.
    pub(super) fn keyspace(&self, id: u32) -> fjall::Result<Keyspace> {
        let shared = layout::shared_keyspace_of(id);
        let mut events = lock(&self.events);
        if let Some(opened) = shared.and_then(|number| events.shared.get(&number)) {
            return Ok(opened.clone());
        }
        let options = match shared {
            Some(_) => shared_keyspace,
            None => events_keyspace,
        };
        let opened = self.database.keyspace(&layout::keyspace_of(id), options)?;
        if !events.all.contains(&opened) {
            events.all.push(opened.clone());
        }
        events
            .shared
            .extend(shared.map(|number| (number, opened.clone())));
        Ok(opened)
    }

    /// All keyspaces with records.
    pub(super) fn events(&self) -> Vec<Keyspace> {
        lock(&self.events).all.clone()
    }

    /// A shared keyspace, if it exists.
    pub(super) fn shared_keyspace(&self, number: u32) -> Option<Keyspace> {
        lock(&self.events).shared.get(&number).cloned()
    }

    /// The shared keyspaces that exist, by number.
    pub(super) fn shared_keyspaces(&self) -> BTreeMap<u32, Keyspace> {
        lock(&self.events).shared.clone()
    }

    /// The sequence number below which no older version of a key is read any more.
    pub(super) fn past(&self) -> fjall::SeqNo {
        self.database.visible_seqno()
    }

    pub(super) fn batch(&self) -> fjall::OwnedWriteBatch {
        // The commit hands its data to the operating system; the fsync is a separate step.
        self.database.batch().durability(Some(PersistMode::Buffer))
    }

    /// Makes everything committed durable.
    ///
    /// The library's thread syncs the journal, too, and the kernel reports an error only once: if the thread got
    /// it, this sync succeeds. So the thread's health is checked afterwards. That is no proof: the library marks
    /// the failure only after it has released the journal and written a log line.
    pub(super) fn sync(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::SyncAll)?;
        self.is_alive()
    }

    /// Fails if the library's background thread has failed.
    pub(super) fn is_alive(&self) -> fjall::Result<()> {
        self.database.persist(PersistMode::Buffer)
    }

    /// Bytes in memory that still have to be written to tables.
    pub(super) fn unflushed(&self) -> u64 {
        self.database.write_buffer_size()
    }

    pub(super) fn outstanding_flushes(&self) -> usize {
        self.database.outstanding_flushes()
    }

    pub(super) fn journals(&self) -> usize {
        self.database.journal_count()
    }

    /// Keyspaces that do not belong to a broker.
    pub(super) fn others(&self) -> impl Iterator<Item = &Keyspace> {
        [&self.meta, &self.cursors].into_iter()
    }

    /// Reads records from `from` up to, not including, `to`, within the limit.
    pub(super) fn read(
        &self,
        stored: &BrokerKeyspace,
        from: u64,
        to: u64,
        limit: ReadLimit,
    ) -> Result<Vec<LogRecord>, ReadError> {
        fail_points::pass("log-read").map_err(|e| ReadError::of_io(&e))?;
        let mut taken = TailRead::new(limit);
        let mut expected = from;
        for entry in stored.events.range(stored.key(from)..stored.key(to)) {
            let (key, value) = entry.into_inner().map_err(|e| ReadError::of(&e))?;
            let offset = layout::parse_key(stored.id, &key).map_err(ReadError::Damaged)?;
            if offset != expected {
                return Err(ReadError::Missing(expected));
            }
            let record = layout::parse_record(offset, &value)
                .map_err(|e| ReadError::Damaged(format!("offset {offset}: {e}")))?;
            if !taken.has_room(record.payload.len()) {
                return Ok(taken.records);
            }
            taken.push(record);
            expected += 1;
        }
        if expected == to {
            Ok(taken.records)
        } else {
            Err(ReadError::Missing(expected))
        }
    }

    /// Reads one record's header.
    pub(super) fn header(&self, stored: &BrokerKeyspace, offset: u64) -> Result<RecordHeader, ReadError> {
        fail_points::pass("log-read").map_err(|e| ReadError::of_io(&e))?;
        let value = stored
            .events
            .get(stored.key(offset))
            .map_err(|e| ReadError::of(&e))?;
        let value = value.ok_or(ReadError::Missing(offset))?;
        let parsed = layout::parse_value(offset, &value).map(|(header, _)| header);
        parsed.map_err(|e| ReadError::Damaged(format!("offset {offset}: {e}")))
    }

    pub(super) fn cursors(&self) -> Result<Vec<(String, Bytes)>, ReadError> {
        let entries = self.cursors.range::<&[u8], _>(..);
        entries
            .map(|entry| {
                let (key, value) = entry.into_inner().map_err(|e| ReadError::of(&e))?;
                let key = String::from_utf8(key.to_vec())
                    .map_err(|_| ReadError::Damaged("a cursor's key is not UTF-8".into()))?;
                Ok((key, Bytes::copy_from_slice(&value)))
            })
            .collect()
    }

    pub(super) fn cursor(&self, key: &str) -> Result<Option<Bytes>, ReadError> {
        let value = self.cursors.get(key);
        let value = value.map_err(|e| ReadError::Damaged(e.to_string()))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn unreadable(&self, error: &fjall::Error) -> LogError {
        match ReadError::of(error) {
            ReadError::Unavailable(error) => LogError::Open {
                path: self.directory.clone(),
                detail: format!("its files cannot be read: {error}"),
            },
            ReadError::Missing(_) | ReadError::Damaged(_) => self.damaged(error.to_string()),
        }
    }

    fn damaged(&self, detail: impl Into<String>) -> LogError {
        damaged(&self.directory, detail)
    }
}

/// Deletes the tables of a keyspace of one log that lie entirely below `first`, except the newest one. It writes no
/// tombstones: records of a broker are written in offset order, so tables never overlap.
///
/// The caller has made `first` durable; otherwise a crash could leave a log without its head.
pub(super) fn reclaim(events: &Keyspace, first: u64) -> fjall::Result<bool> {
    let version = events.tree.current_version();
    let Some(newest) = version
        .iter_tables()
        .max_by_key(|table| table.get_highest_seqno())
    else {
        return Ok(false);
    };
    let first = first.to_be_bytes();
    let below = first.as_slice().min(newest.metadata.key_range.min());
    if !version
        .iter_tables()
        .any(|table| table.metadata.key_range.max().as_ref() < below)
    {
        return Ok(false);
    }
    fail_points::pass("log-before-drop")?;
    events.tree.drop_range(..below)?;
    fail_points::pass("log-after-drop")?;
    drop(version);
    forget_past(events)?;
    Ok(true)
}

/// Merges a keyspace's tables when they are many and small. All are merged at once, and meanwhile the library
/// writes no table of any keyspace. So their size is judged by the uncompressed `retained` bytes in them, which
/// determine how long the merge takes.
pub(super) fn merge_small_tables(keyspace: &Keyspace, retained: u64) -> fjall::Result<()> {
    let tables = keyspace.table_count();
    if tables < MERGE_TABLES || retained > tables as u64 * SMALL_TABLE {
        return Ok(());
    }
    // With 0 as the oldest snapshot nothing is dropped, so the highest sequence number stays the same.
    keyspace.tree.major_compact(MERGED_TABLE, 0)?;
    forget_past(keyspace)
}

/// The library keeps superseded versions, and with them the files of dropped tables, for snapshots of the past.
/// There are none here: every read is of the latest version, and pins it while it runs.
pub(super) fn forget_past(keyspace: &Keyspace) -> fjall::Result<()> {
    let mut versions = keyspace.tree.get_version_history_lock();
    Ok(versions.maintenance(keyspace.path(), fjall::SeqNo::MAX)?)
}

/// Opens the database, without a commit that never reached the disk completely.
fn open_database(
    directory: &Path,
    folder: &Path,
    retained_from: &Arc<RetainedFrom>,
) -> Result<Database, LogError> {
    let mut opened = builder(folder, retained_from).open();
    if let Err(fjall::Error::JournalRecovery(JournalRecoveryError::ChecksumMismatch)) = opened
        && let Some(journal) =
            journal::cut_torn_end(folder).map_err(|e| cannot_open(directory, folder, &e))?
    {
        let path = journal.display();
        tracing::warn!(%path, "the last commit was written only in part, and is cut off");
        opened = builder(folder, retained_from).open();
    }
    opened.map_err(|e| open_error(directory, folder, e))
}

fn builder(folder: &Path, retained_from: &Arc<RetainedFrom>) -> fjall::DatabaseBuilder<Database> {
    let retained_from = retained_from.clone();
    let filter_of = move |keyspace: &str| -> Option<Arc<dyn fjall::compaction::filter::Factory>> {
        let is_shared = keyspace.starts_with(layout::SHARED_PREFIX);
        is_shared.then(|| retained_from.clone() as _)
    };
    Database::builder(folder)
        .with_compaction_filter_factories(Arc::new(filter_of))
        .cache_size(BLOCK_CACHE)
        .max_cached_files(Some(CACHED_FILES))
        .worker_threads(1)
        // Decided in `memory.rs`.
        .max_journaling_size(u64::MAX)
        .journal_compression(CompressionType::None)
}

fn small_keyspace() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        // Decided in `memory.rs`.
        .max_memtable_size(u64::MAX)
        .index_block_pinning_policy(PinningPolicy::all(false))
        .filter_block_pinning_policy(PinningPolicy::all(false))
}

/// Records are read in long ranges and rarely one by one: large blocks, no filters, nothing pinned.
fn events_keyspace() -> KeyspaceCreateOptions {
    small_keyspace()
        .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
        .data_block_restart_interval_policy(RestartIntervalPolicy::all(16))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        .filter_policy(FilterPolicy::disabled())
}

/// As a keyspace of one log, but the library merges no tables of it.
fn shared_keyspace() -> KeyspaceCreateOptions {
    let never = Leveled::default()
        .with_l0_threshold(u8::MAX)
        .with_table_target_size(1 << 40);
    events_keyspace().compaction_strategy(Arc::new(never))
}

pub(super) fn damaged(directory: &Path, detail: impl Into<String>) -> LogError {
    LogError::Damaged {
        path: directory.to_owned(),
        detail: detail.into(),
    }
}

fn check_lists(directory: &Path, folder: &Path) -> Result<(), LogError> {
    match versions::find_damaged(folder) {
        Ok(None) => Ok(()),
        Ok(Some(list)) => Err(damaged(
            directory,
            format!(
                "{} is not what was written; restore the volume from a copy",
                list.display()
            ),
        )),
        Err(e) => Err(cannot_open(directory, folder, &e)),
    }
}

fn cannot_open(directory: &Path, what: &Path, error: &dyn std::error::Error) -> LogError {
    LogError::Open {
        path: directory.to_owned(),
        detail: format!("{}: {error}", what.display()),
    }
}

fn open_error(directory: &Path, folder: &Path, error: fjall::Error) -> LogError {
    match error {
        fjall::Error::Locked => in_use(directory),
        fjall::Error::Io(e) => cannot_open(directory, folder, &e),
        fjall::Error::Storage(fjall::LsmError::Io(e)) => cannot_open(directory, folder, &e),
        other => damaged(directory, other.to_string()),
    }
}

pub(super) fn in_use(directory: &Path) -> LogError {
    LogError::Open {
        path: directory.to_owned(),
        detail: "another process has it open; a log belongs to one router, give each its own volume".into(),
    }
}
