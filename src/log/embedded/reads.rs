//! Reads the storage on dedicated threads, in turns, and retries failed reads.
//!
//! - **Threads.** Reads block, and so do name lookups and files elsewhere. The runtime's blocking threads are
//!   shared by all of these; the log has [`THREADS`] that nobody else can fill.
//! - **Turns.** At most [`OF_BROKER`] reads of one broker and [`OF_NAMESPACE`] of one namespace wait for a thread
//!   or have one. Others wait at their broker, then at their namespace. So a thousand Triggers catching up are
//!   never ahead of another namespace by more than a few reads, and no namespace has all threads.
//! - **Disk errors** are transient or get repaired: they are retried a few times after a pause, and then reported
//!   as [`ReadError::Unavailable`], never as damage.
//! - **Wrong bytes** are read once more, from the disk: the operating system's cached copy is dropped first. (The
//!   storage library caches only blocks with the right checksum.) Only what is wrong twice is damaged.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fjall::{AbstractTree, Keyspace};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{layout::RecordKey, lock::lock, store::ReadError};
use crate::log::LogError;

const THREADS: usize = 4;
const OF_BROKER: usize = 2;
/// Fewer than the threads.
const OF_NAMESPACE: usize = 3;
/// Maximum jobs that wait for a thread; more wait before.
const QUEUE: usize = 4096;

/// Backoff between attempts of a read.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(25),
    Duration::from_millis(125),
    Duration::from_millis(625),
];

/// Timeout of one attempt, from asking for a turn on. A hanging disk counts as unreadable for now.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Interval between log lines about failing reads.
const TELL_EVERY: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The reader threads. They end after this is dropped and their jobs are done.
pub(super) struct Readers {
    jobs: Option<mpsc::SyncSender<Job>>,
    /// Free places in the queue of jobs.
    queue: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
    /// Failed attempts to read the disk.
    errors: AtomicU64,
    told: Mutex<Option<Instant>>,
}

/// Turns of a broker's reads.
pub(super) struct Turns {
    of_broker: Arc<Semaphore>,
    of_namespace: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new(of_namespace: Arc<Semaphore>) -> Self {
        Self {
            of_broker: Arc::new(Semaphore::new(OF_BROKER)),
            of_namespace,
        }
    }

    /// Turns shared by the brokers of a namespace.
    pub(super) fn of_namespace() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(OF_NAMESPACE))
    }

    /// Waits at the broker first, so that few reads of each broker wait at the namespace.
    async fn take(&self) -> Option<[OwnedSemaphorePermit; 2]> {
        let of_broker = self.of_broker.clone().acquire_owned().await.ok()?;
        let of_namespace = self.of_namespace.clone().acquire_owned().await.ok()?;
        Some([of_broker, of_namespace])
    }
}

/// Location of the bytes that a read needs.
#[derive(Clone)]
pub(super) struct ReadRange {
    pub(super) keyspace: Keyspace,
    /// Range of keys to read; `None` for the whole keyspace.
    pub(super) keys: Option<(RecordKey, RecordKey)>,
}

impl Readers {
    pub(super) fn start(
        spawn: impl Fn(&str, Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>, LogError>,
    ) -> Result<Self, LogError> {
        let (jobs, waiting) = mpsc::sync_channel::<Job>(QUEUE);
        let waiting = Arc::new(Mutex::new(waiting));
        let threads = (0..THREADS).map(|_| {
            let waiting = waiting.clone();
            let run = move || {
                loop {
                    let Ok(job) = lock(&waiting).recv() else { return };
                    job();
                }
            };
            spawn("log-reader", Box::new(run))
        });
        Ok(Self {
            threads: threads.collect::<Result<_, _>>()?,
            jobs: Some(jobs),
            queue: Arc::new(Semaphore::new(QUEUE)),
            errors: AtomicU64::new(0),
            told: Mutex::default(),
        })
    }

    /// Number of failed attempts to read the disk.
    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// Reads, with retries. A [`ReadError::Missing`] that `is_trimmed` explains is returned at once.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        turns: Option<&Turns>,
        origin: ReadRange,
        is_trimmed: impl Fn(u64) -> bool,
        read: impl FnOnce() -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, ReadError> {
        let mut pauses = PAUSES.iter();
        let mut was_wrong = false;
        loop {
            let (again, origin, from_disk) = (read.clone(), origin.clone(), was_wrong);
            let attempt = move || {
                if from_disk {
                    forget_cached(&origin)?;
                }
                again()
            };
            match self.attempt(turns, attempt).await {
                Err(ReadError::Unavailable(error)) => {
                    self.count(&error);
                    match pauses.next() {
                        Some(pause) => tokio::time::sleep(*pause).await,
                        None => return Err(ReadError::Unavailable(error)),
                    }
                }
                Err(ReadError::Missing(offset)) if is_trimmed(offset) => {
                    return Err(ReadError::Missing(offset));
                }
                Err(error @ (ReadError::Missing(_) | ReadError::Damaged(_))) => {
                    if was_wrong {
                        return Err(error);
                    }
                    was_wrong = true;
                }
                Ok(read) => return Ok(read),
            }
        }
    }

    async fn attempt<T: Send + 'static>(
        &self,
        turns: Option<&Turns>,
        read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let unavailable = |reason: &str| ReadError::Unavailable(reason.to_owned());
        let attempt = async {
            let permits = match turns {
                Some(turns) => Some(turns.take().await.ok_or_else(|| unavailable("it is closed"))?),
                None => None,
            };
            let place = self.queue.clone().acquire_owned().await;
            let place = place.map_err(|_| unavailable("it is closed"))?;
            let (reply, answer) = oneshot::channel();
            let job = Box::new(move || {
                drop(place);
                // Held until the thread is free again, even if nobody waits for the answer any more.
                let _permits = permits;
                if reply.is_closed() {
                    return;
                }
                // The library can panic on a damaged file.
                let read = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                    Err(ReadError::Damaged(
                        "the storage library panicked while it read its files".into(),
                    ))
                });
                let _ = reply.send(read);
            });
            let sent = self.jobs.as_ref().map(|jobs| jobs.try_send(job));
            match sent {
                Some(Ok(())) => answer.await.unwrap_or_else(|_| Err(unavailable("it is closed"))),
                Some(Err(_)) | None => Err(unavailable("too many reads wait for the disk")),
            }
        };
        tokio::time::timeout(TIMEOUT, attempt).await.unwrap_or_else(|_| {
            let seconds = TIMEOUT.as_secs();
            Err(unavailable(&format!(
                "the disk has not answered for {seconds} seconds"
            )))
        })
    }

    fn count(&self, error: &str) {
        let errors = self.errors.fetch_add(1, Relaxed) + 1;
        let now = Instant::now();
        let mut told = lock(&self.told);
        if told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY) {
            *told = Some(now);
            tracing::warn!(
                error,
                errors,
                "the event log's disk failed to read; it is tried again"
            );
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Jobs catch their panics.
            let _ = thread.join();
        }
    }
}

/// Makes the next read of the tables go to the disk, and reports a disk that cannot be read. Such a disk otherwise
/// looks like damage: a read that fails half-way returns what it got so far, as at the end of a truncated file.
fn forget_cached(origin: &ReadRange) -> Result<(), ReadError> {
    for table in origin.keyspace.tree.current_version().iter_tables() {
        let range = &table.metadata.key_range;
        let is_read = origin.keys.is_none_or(|(from, to)| {
            range.max().as_ref() >= from.as_ref() && range.min().as_ref() < to.as_ref()
        });
        if is_read {
            read_through(&table.path).map_err(|e| ReadError::of_io(&e))?;
        }
    }
    Ok(())
}

fn read_through(path: &Path) -> std::io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Left for the next read to report.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    // Only advice: if it is ignored, the second read gets the same bytes.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let mut buffer = vec![0; 64 * 1024];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(()),
            read => at += read as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::PathBuf,
        sync::atomic::{AtomicU32, AtomicUsize},
    };

    use super::*;
    use crate::log::{
        LogProvider as _, Offset,
        conformance::{ALL, ByKey as _, at, payloads},
        embedded::{EmbeddedLog, EmbeddedOptions},
    };

    /// Long enough for a busy machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn open(directory: &tempfile::TempDir) -> EmbeddedLog {
        let options = EmbeddedOptions {
            tail_cache_bytes: 0,
            ..EmbeddedOptions::default()
        };
        EmbeddedLog::open(directory.path(), options).unwrap()
    }

    fn origin(log: &EmbeddedLog) -> ReadRange {
        ReadRange {
            keyspace: log.0.shared.store.cursors.clone(),
            keys: None,
        }
    }

    /// Result of a read whose first attempts end in these outcomes, with the number of attempts and of those that
    /// count as disk errors.
    async fn read(outcomes: &'static [&'static str]) -> (Result<u32, ReadError>, u32, u64) {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let attempts = Arc::new(AtomicU32::new(0));
        let counted = attempts.clone();
        let attempt = move || {
            let number = counted.fetch_add(1, Relaxed);
            match outcomes.get(number as usize) {
                None => Ok(number),
                Some(&"wrong") => Err(ReadError::Damaged("wrong".into())),
                Some(&"missing") => Err(ReadError::Missing(7)),
                Some(&"panic") => panic!("the test breaks the storage library"),
                Some(error) => Err(ReadError::Unavailable((*error).to_owned())),
            }
        };
        let result = log.0.readers.read(None, origin(&log), |_| false, attempt).await;
        (result, attempts.load(Relaxed), log.0.readers.errors())
    }

    #[tokio::test]
    async fn an_error_of_the_disk_is_tried_again() {
        assert!(matches!(read(&["EIO"]).await, (Ok(1), 2, 1)));
        assert!(matches!(read(&["EIO"; 4]).await, (Ok(4), 5, 4)));
        assert!(matches!(
            read(&["EIO"; 9]).await,
            (Err(ReadError::Unavailable(_)), 5, 5)
        ));
    }

    #[tokio::test]
    async fn only_what_is_wrong_twice_is_damaged() {
        for wrong in ["wrong", "missing", "panic"] {
            let once = read(Box::leak(Box::new([wrong]))).await;
            assert!(matches!(once, (Ok(1), 2, 0)), "{wrong}: {once:?}");
            let around_an_error = read(Box::leak(Box::new([wrong, "EIO"]))).await;
            assert!(
                matches!(around_an_error, (Ok(2), 3, 1)),
                "{wrong}: {around_an_error:?}"
            );
        }
        assert!(matches!(
            read(&["wrong"; 9]).await,
            (Err(ReadError::Damaged(_)), 2, 0)
        ));
        assert!(matches!(
            read(&["panic"; 9]).await,
            (Err(ReadError::Damaged(_)), 2, 0)
        ));
        assert!(matches!(
            read(&["missing"; 9]).await,
            (Err(ReadError::Missing(7)), 2, 0)
        ));
    }

    #[tokio::test]
    async fn what_was_trimmed_is_not_looked_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let missing = || Err::<(), _>(ReadError::Missing(3));
        let read = log
            .0
            .readers
            .read(None, origin(&log), |offset| offset == 3, missing)
            .await;
        assert!(matches!(read, Err(ReadError::Missing(3))));
    }

    /// A log whose records are in a truncated table. Opening it looked at the first and the last record only.
    /// Returns the table and its original content.
    async fn cut_off(directory: &tempfile::TempDir) -> (EmbeddedLog, PathBuf, Vec<u8>) {
        let log = open(directory);
        let mut random = fastrand::Rng::with_seed(1);
        let records = (0..300).map(|_| (0..1000).map(|_| random.u8(..)).collect());
        log.append("n/b", records.collect(), at(0)).await.unwrap();
        let broker = log.0.shared.brokers.get("n/b").unwrap();
        broker
            .stored()
            .unwrap()
            .events
            .rotate_memtable_and_wait()
            .unwrap();
        drop(broker);
        log.close().await.unwrap();

        let log = open(directory);
        let broker = log.0.shared.brokers.get("n/b").unwrap();
        let version = broker.stored().unwrap().events.tree.current_version();
        let table = version.iter_tables().next().unwrap().path.to_path_buf();
        drop(version);
        let whole = std::fs::read(&table).unwrap();
        File::options()
            .write(true)
            .open(&table)
            .unwrap()
            .set_len(20_000)
            .unwrap();
        (log, table, whole)
    }

    #[tokio::test]
    async fn a_table_that_is_cut_off_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let (log, ..) = cut_off(&directory).await;
        let error = log.read("n/b", Offset(0), ALL).await.unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    }

    /// A read that the disk ends half-way looks like a truncated file.
    #[tokio::test]
    async fn a_disk_that_reads_in_part_is_no_damage_and_heals() {
        let directory = tempfile::tempdir().unwrap();
        let (log, table, whole) = cut_off(&directory).await;
        // A folder cannot be read as a file: a system error, whichever user runs the test.
        let aside = table.with_extension("aside");
        std::fs::rename(&table, &aside).unwrap();
        std::fs::create_dir(&table).unwrap();
        let is_away = |error: LogError| {
            let text = error.to_string();
            assert!(matches!(error, LogError::Unavailable(_)), "{text}");
            assert!(text.contains("broker n/b"), "{text}");
        };
        is_away(log.read("n/b", Offset(0), ALL).await.unwrap_err());
        is_away(log.trim("n/b", Offset(150)).await.unwrap_err());
        is_away(log.offset_at("n/b", at(1)).await.unwrap_err());
        assert!(log.read_errors() > 3);
        log.append("n/b", payloads(&["more"]), at(0)).await.unwrap();

        std::fs::remove_dir(&table).unwrap();
        std::fs::write(&aside, whole).unwrap();
        std::fs::rename(&aside, &table).unwrap();
        assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 301);
        log.trim("n/b", Offset(150)).await.unwrap();
        assert_eq!(log.bounds("n/b").first, Offset(150));
    }

    /// Many readers of many brokers of one namespace wait for a hanging disk, and another namespace reads.
    #[tokio::test]
    async fn a_namespace_never_has_all_threads() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(open(&directory));
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let under_way = Arc::new(AtomicUsize::new(0));
        let mut reading = tokio::task::JoinSet::new();
        for number in 0..200 {
            let (log, hangs, under_way) = (log.clone(), hangs.clone(), under_way.clone());
            reading.spawn(async move {
                let broker = log
                    .0
                    .shared
                    .brokers
                    .get_or_new(&format!("greedy/b{}", number % 10));
                let hang = move || {
                    under_way.fetch_add(1, Relaxed);
                    let _ = lock(&hangs).recv();
                    Ok(())
                };
                log.0
                    .readers
                    .read(Some(&broker.turns), origin(&log), |_| false, hang)
                    .await
            });
        }
        let all_under_way = async {
            while under_way.load(Relaxed) < OF_NAMESPACE {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, all_under_way).await.unwrap();
        let other = log.0.shared.brokers.get_or_new("modest/b");
        for _ in 0..20 {
            let read = log
                .0
                .readers
                .read(Some(&other.turns), origin(&log), |_| false, || Ok(()));
            tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
        }
        assert_eq!(under_way.load(Relaxed), OF_NAMESPACE, "none has ended");
        drop(release);
        while let Some(read) = reading.join_next().await {
            read.unwrap().unwrap();
        }
    }

    /// As when name lookups hang.
    #[test]
    fn the_runtimes_threads_for_blocking_work_are_not_needed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (release, hangs) = mpsc::channel::<()>();
        runtime.block_on(async {
            tokio::task::spawn_blocking(move || {
                let _ = hangs.recv();
            });
            let directory = tempfile::tempdir().unwrap();
            let log = open(&directory);
            log.append("n/b", payloads(&["a"]), at(0)).await.unwrap();
            let read = log.read("n/b", Offset(0), ALL);
            assert_eq!(
                tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap().len(),
                1
            );
            assert_eq!(log.stored().await.unwrap(), []);
            drop(release);
        });
    }
}
