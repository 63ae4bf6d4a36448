//! Runs the conformance suite, and tests what only the embedded log guarantees: shared fsyncs, full disks,
//! crashes, damage.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{acknowledged::Acknowledged, store::MIB, *};
use crate::log::conformance::{self, ALL, ByKey as _, Tested, at, payloads};

/// A log in a temporary directory. Without a tail cache every read goes to the storage.
struct Directory {
    directory: TempDir,
    tail_cache_bytes: usize,
    own_keyspaces: u32,
}

impl Directory {
    fn new(tail_cache_bytes: usize) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            tail_cache_bytes,
            own_keyspaces: 800,
        }
    }

    /// So many logs have a keyspace of their own.
    fn with_own_keyspaces(self, own_keyspaces: u32) -> Self {
        Self {
            own_keyspaces,
            ..self
        }
    }
}

impl Tested for Directory {
    type Logs = EmbeddedLog;

    async fn open(&self) -> EmbeddedLog {
        let options = EmbeddedOptions {
            tail_cache_bytes: self.tail_cache_bytes,
            own_keyspaces: self.own_keyspaces,
            ..Default::default()
        };
        EmbeddedLog::open(self.directory.path(), options).unwrap()
    }

    fn settle(&self, log: &EmbeddedLog) {
        flush(log);
        rewrite(log);
    }
}

mod from_memory {
    use super::Directory;
    crate::log::conformance::conformance!(Directory::new(4 * 1024 * 1024));
}

mod from_storage {
    use super::Directory;
    crate::log::conformance::conformance!(Directory::new(0));
}

mod in_shared_keyspaces_from_memory {
    use super::Directory;
    crate::log::conformance::conformance!(Directory::new(4 * 1024 * 1024).with_own_keyspaces(0));
}

mod in_shared_keyspaces_from_storage {
    use super::Directory;
    crate::log::conformance::conformance!(Directory::new(0).with_own_keyspaces(0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn behaves_like_the_model(
        steps in conformance::steps(60),
        tail_cache_bytes in 0..20_000_usize,
        own_keyspaces in 0..4_u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let directory = Directory::new(tail_cache_bytes).with_own_keyspaces(own_keyspaces);
        runtime.block_on(conformance::behaves_like_the_model(directory, steps));
    }
}

pub(super) fn open(directory: &Path) -> Result<EmbeddedLog, LogError> {
    EmbeddedLog::open(directory, EmbeddedOptions::default())
}

/// Opens a log in which so many logs have a keyspace of their own.
pub(super) fn open_with_own_keyspaces(directory: &Path, own_keyspaces: u32) -> Result<EmbeddedLog, LogError> {
    let options = EmbeddedOptions {
        own_keyspaces,
        ..EmbeddedOptions::default()
    };
    EmbeddedLog::open(directory, options)
}

/// Removes trimmed records from all shared keyspaces.
pub(super) fn rewrite(log: &EmbeddedLog) {
    let store = &log.0.shared.store;
    for number in 0..layout::SHARED_KEYSPACES {
        if let Some(keyspace) = store.shared_keyspace(number) {
            assert!(compaction::rewrite(&keyspace, store.past(), 0, |_| true).unwrap());
        }
    }
}

/// Writes everything in memory to tables.
pub(super) fn flush(log: &EmbeddedLog) {
    for keyspace in log.0.shared.store.events() {
        keyspace.rotate_memtable_and_wait().unwrap();
    }
    log.0.shared.store.meta.rotate_memtable_and_wait().unwrap();
}

#[tokio::test]
async fn appends_that_wait_share_one_fsync() {
    let directory = tempfile::tempdir().unwrap();
    // The first append stops at the query for free space until all others wait.
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let free_space = Box::new(move |_: &Path| {
        let _ = wait.lock().unwrap().recv();
        Ok(u64::MAX)
    });
    let log = EmbeddedLog::open_with(directory.path(), EmbeddedOptions::default(), free_space).unwrap();
    let appends: Vec<_> = (0..100)
        .map(|_| log.append("n/b", payloads(&["record"]), at(0)))
        .collect();
    let mut appends = futures::future::join_all(appends);
    assert!(futures::poll!(&mut appends).is_pending());
    drop(go);
    for answer in appends.await {
        answer.unwrap();
    }
    assert_eq!(log.fsyncs(), 1);
    assert_eq!(log.bounds("n/b").next, Offset(100));
}

#[tokio::test]
async fn cursors_alone_cost_no_fsync() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    log.save(vec![("k".into(), Some("v".into()))]).await.unwrap();
    assert_eq!(log.fsyncs(), 0);
    log.sync().await.unwrap();
    assert_eq!(log.fsyncs(), 1);
}

/// Counts commits by stopping each at the query for free space.
#[tokio::test]
async fn a_flood_of_cursors_keeps_no_append_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let free_space = Box::new(move |_: &Path| {
        let _ = wait.lock().unwrap().recv();
        Ok(u64::MAX / 2)
    });
    let log = EmbeddedLog::open_with(directory.path(), EmbeddedOptions::default(), free_space).unwrap();
    let value = |number| Bytes::from(random(30_000, number));
    let saves: Vec<_> = (0..1000)
        .map(|number| log.save(vec![(format!("k{number}"), Some(value(number)))]))
        .collect();
    let mut saves = futures::future::join_all(saves);
    assert!(futures::poll!(&mut saves).is_pending());
    for number in 0..5 {
        let mut append = log.append("n/b", payloads(&["record"]), at(0));
        assert!(futures::poll!(&mut append).is_pending());
        // The commit of cursors in flight, and the append's own.
        for _ in 0..2 {
            go.send(()).unwrap();
        }
        assert_eq!(append.await.unwrap(), Offset(number));
    }
    assert!(log.0.shared.saves.since().is_some(), "they are not saved yet");
    assert!(futures::poll!(&mut saves).is_pending());
    drop(go);
    for saved in saves.await {
        saved.unwrap();
    }
    assert_eq!(log.stored().await.unwrap().len(), 1000);
}

#[tokio::test]
async fn of_cursors_that_wait_the_newest_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let free_space = Box::new(move |_: &Path| {
        let _ = wait.lock().unwrap().recv();
        Ok(u64::MAX / 2)
    });
    let log = EmbeddedLog::open_with(directory.path(), EmbeddedOptions::default(), free_space).unwrap();
    let mut append = log.append("n/b", payloads(&["record"]), at(0));
    assert!(futures::poll!(&mut append).is_pending());
    let saves: Vec<_> = (0..1000)
        .map(|number| log.save(vec![("k".into(), Some(Bytes::from(number.to_string())))]))
        .collect();
    let mut saves = futures::future::join_all(saves);
    assert!(futures::poll!(&mut saves).is_pending());
    // One commit for the append, one for all cursors.
    go.send(()).unwrap();
    go.send(()).unwrap();
    append.await.unwrap();
    for saved in saves.await {
        saved.unwrap();
    }
    assert_eq!(log.stored().await.unwrap(), [("k".to_owned(), "999".into())]);
}

/// Far more commits than the queue of the storage library's thread is long, while it writes a large table.
#[tokio::test]
async fn a_storm_of_small_commits_does_not_stop_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    for round in 0..8_u32 {
        let records = (0..8).map(|n| random(1_000_000, 8 * round + n).into()).collect();
        log.append("n/b", records, at(0)).await.unwrap();
        for number in 0..4000_u32 {
            let value = Bytes::from(random(700, number));
            log.save(vec![("k".into(), Some(value))]).await.unwrap();
        }
    }
    assert_eq!(log.bounds("n/b").next, Offset(64));
    assert_eq!(log.stored().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_second_opening_is_refused_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let refused = open(directory.path()).err().unwrap();
    assert!(matches!(&refused, LogError::Open { path, .. } if path == directory.path()));
    assert!(
        refused.to_string().contains("another process has it open"),
        "{refused}"
    );
    log.close().await.unwrap();
    open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_creation_that_a_crash_cut_short_is_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("store.new/keyspaces")).unwrap();
    fs::write(directory.path().join("store.new/0.jnl"), "half").unwrap();
    open(directory.path())
        .unwrap()
        .append("n/b", payloads(&["a"]), at(0))
        .await
        .unwrap();
    assert_eq!(open(directory.path()).unwrap().bounds("n/b").next, Offset(1));
}

#[tokio::test]
async fn another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    log.0
        .shared
        .store
        .meta
        .insert(layout::FORMAT_KEY, 99_u32.to_be_bytes())
        .unwrap();
    log.close().await.unwrap();
    let refused = open(directory.path()).err().unwrap().to_string();
    assert!(refused.contains("format 99"), "{refused}");
}

#[tokio::test]
async fn a_namespace_at_its_share_is_refused_alone_and_goes_on_after_a_trim() {
    let directory = tempfile::tempdir().unwrap();
    // 3,100 bytes are divided, and 100 are the reserve for settling.
    let options = EmbeddedOptions {
        max_bytes: 3200,
        ..Default::default()
    };
    let log = EmbeddedLog::open(directory.path(), options.clone()).unwrap();
    let append = async |log: &EmbeddedLog, broker: &str, length| {
        log.append(broker, vec![vec![1; length].into()], at(0)).await
    };
    append(&log, "n/b", 1000).await.unwrap();
    assert!(matches!(append(&log, "n/b", 551).await, Err(LogError::Quota(_))));
    assert_eq!(append(&log, "n/b", 550).await.unwrap(), Offset(1));
    let refused = append(&log, "n/other", 1).await.unwrap_err().to_string();
    assert!(refused.contains("namespace n holds 1550 bytes"), "{refused}");
    append(&log, "m/b", 100).await.unwrap();
    assert!(matches!(append(&log, "m/b", 1451).await, Err(LogError::Full(_))));

    let settle = async |key, length| log.settle(key, vec![vec![1; length].into()], at(0)).await;
    assert!(matches!(
        settle("n/b.dead-letters", 101).await,
        Err(LogError::Quota(_))
    ));
    settle("n/b.dead-letters", 60).await.unwrap();
    for key in ["n/b.dead-letters", "n/b"] {
        assert!(matches!(settle(key, 30).await, Err(LogError::Quota(_))), "{key}");
    }
    let share = |log: &EmbeddedLog| {
        let shares = log.shares().into_iter();
        let mut held: Vec<_> = shares.map(|share| (share.namespace, share.held)).collect();
        held.sort();
        held
    };
    let held = |namespace: &str, bytes| (namespace.to_owned(), bytes);
    assert_eq!(share(&log), [held("m", 100), held("n", 1610)]);
    assert_eq!(Capacity::retained(&log), 1710);
    drop(log);

    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    assert_eq!(share(&log), [held("m", 100), held("n", 1610)]);
    assert!(matches!(append(&log, "n/b", 1).await, Err(LogError::Quota(_))));
    log.save(vec![("k".into(), Some("v".into()))]).await.unwrap();
    log.trim("n/b", Offset(1)).await.unwrap();
    assert_eq!(append(&log, "n/b", 890).await.unwrap(), Offset(2));
}

#[tokio::test]
async fn a_full_disk_refuses_before_the_storage_sees_it_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let free = Arc::new(AtomicU64::new(u64::MAX / 2));
    let reported = free.clone();
    let free_space = Box::new(move |_: &Path| Ok(reported.load(Ordering::Relaxed)));
    let reserve_bytes = 1_000_000;
    let options = EmbeddedOptions {
        reserve_bytes,
        ..Default::default()
    };
    let log = EmbeddedLog::open_with(directory.path(), options, free_space).unwrap();
    let append = async || log.append("n/b", payloads(&["a"]), at(0)).await;
    let save = async || log.save(vec![("k".into(), Some("v".into()))]).await;
    append().await.unwrap();

    free.store(900_000, Ordering::Relaxed);
    let refused = append().await.unwrap_err();
    assert!(
        matches!(refused, LogError::Full(_)) && refused.to_string().contains("900000 bytes left"),
        "{refused}"
    );
    save().await.unwrap();
    free.store(400_000, Ordering::Relaxed);
    assert!(matches!(save().await, Err(LogError::Full(_))));
    log.trim("n/b", Offset(1)).await.unwrap();
    free.store(2_000_000, Ordering::Relaxed);
    assert_eq!(append().await.unwrap(), Offset(1));
    save().await.unwrap();
}

#[tokio::test]
async fn the_space_of_trimmed_records_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    for _ in 0..3 {
        let records = (0..200).map(|n: u32| random(5000, n).into()).collect();
        log.append("n/b", records, at(0)).await.unwrap();
        flush(&log);
    }
    let events = log
        .0
        .shared
        .brokers
        .get("n/b")
        .unwrap()
        .stored()
        .unwrap()
        .events
        .path()
        .join("tables");
    let on_disk = || {
        let tables = fs::read_dir(&events).unwrap();
        tables
            .map(|table| table.unwrap().metadata().unwrap().len())
            .sum::<u64>()
    };
    assert!(on_disk() > 3_000_000);
    log.trim("n/b", Offset(399)).await.unwrap();
    // Closing waits for background work.
    log.close().await.unwrap();
    assert!((2_000_000..3_000_000).contains(&on_disk()));
    let log = open(directory.path()).unwrap();
    log.trim("n/b", Offset(600)).await.unwrap();
    log.close().await.unwrap();
    assert!(on_disk() < 1_500_000, "only the newest table stays");
    let log = open(directory.path()).unwrap();
    assert_eq!(
        log.bounds("n/b"),
        LogBounds {
            first: Offset(600),
            next: Offset(600)
        }
    );
    assert_eq!(
        log.append("n/b", payloads(&["a"]), at(0)).await.unwrap(),
        Offset(600)
    );
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_small_tables_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    for round in 0..40 {
        log.append("n/b", vec![random(3000, round).into()], at(0))
            .await
            .unwrap();
        flush(&log);
    }
    let broker = log.0.shared.brokers.get("n/b").unwrap();
    assert!(broker.stored().unwrap().events.table_count() >= 40);
    store::merge_small_tables(&broker.stored().unwrap().events, broker.state().bytes()).unwrap();
    assert_eq!(broker.stored().unwrap().events.table_count(), 1);
    drop(broker);
    log.append("n/b", payloads(&["last"]), at(0)).await.unwrap();
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 41);
    log.close().await.unwrap();
    let log = open(directory.path()).unwrap();
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 41);
}

#[tokio::test]
async fn tables_that_hold_much_are_not_merged_however_small_they_are_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    for _ in 0..40 {
        log.append("n/b", vec![vec![b'x'; 300_000].into()], at(0))
            .await
            .unwrap();
        flush(&log);
    }
    let broker = log.0.shared.brokers.get("n/b").unwrap();
    let events = &broker.stored().unwrap().events;
    assert!(events.disk_space() < 1_000_000, "{}", events.disk_space());
    store::merge_small_tables(events, broker.state().bytes()).unwrap();
    assert!(events.table_count() >= 40);
}

#[tokio::test]
async fn brokers_that_were_only_named_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    log.append("n/kept", payloads(&["a"]), at(0)).await.unwrap();
    let mut watched = log.follow("n/watched");
    for number in 0..10_000 {
        let name = format!("n/b{number}");
        drop(log.follow(&name));
        assert_eq!(log.append(&name, vec![], at(0)).await.unwrap(), Offset(0));
        assert_eq!(log.bounds(&name), LogBounds::default());
    }
    let count = log.0.shared.brokers.count();
    assert!(count < 2 * 64 + 2, "{count} are remembered");
    log.append("n/watched", payloads(&["a"]), at(0)).await.unwrap();
    assert_eq!(*watched.borrow_and_update(), Offset(1));
    assert_eq!(log.read("n/kept", Offset(0), ALL).await.unwrap().len(), 1);
}

#[tokio::test]
async fn many_brokers_do_not_multiply_the_memory() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let mut most = 0;
    for round in 0..20 {
        let append = async |broker: u32| {
            let name = format!("n/b{broker}");
            log.append(&name, vec![random(20_000, round).into()], at(0))
                .await
                .unwrap();
        };
        futures::future::join_all((0..50).map(append)).await;
        most = most.max(log.0.shared.store.unflushed());
    }
    assert!(most < 24 * MIB, "{most} bytes are in memory");
    for broker in 0..50 {
        assert_eq!(
            log.read(&format!("n/b{broker}"), Offset(0), ALL)
                .await
                .unwrap()
                .len(),
            20
        );
    }
}

#[tokio::test]
async fn a_failure_closes_the_log_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicU64::new(0));
    let asked = broken.clone();
    let free_space = Box::new(move |_: &Path| match asked.load(Ordering::Relaxed) {
        0 => Ok(u64::MAX / 2),
        _ => panic!("the test breaks the committer"),
    });
    let log = EmbeddedLog::open_with(directory.path(), EmbeddedOptions::default(), free_space).unwrap();
    log.append("n/b", payloads(&["a"]), at(0)).await.unwrap();
    assert!(futures::poll!(log.failed()).is_pending());
    broken.store(1, Ordering::Relaxed);
    let append = || log.append("n/b", payloads(&["b"]), at(0));
    assert!(matches!(append().await, Err(LogError::Failed(_))));
    assert!(matches!(log.failed().await, LogError::Failed(_)));
    broken.store(0, Ordering::Relaxed);
    assert!(matches!(append().await, Err(LogError::Failed(_))));
    assert!(matches!(log.save(vec![]).await, Err(LogError::Failed(_))));
    assert!(matches!(
        log.trim("n/b", Offset(1)).await,
        Err(LogError::Failed(_))
    ));
    assert!(matches!(log.sync().await, Err(LogError::Failed(_))));
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 1);
}

/// Incompressible bytes, the same for the same seed.
fn random(length: usize, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

// ---- Crashes

/// Directory that the child of the tests below writes to, the number of logs with a keyspace of their own, the number
/// of brokers, and the fail point at which it is killed, with the number of times that it passes before.
const CHILD_DIRECTORY: &str = "WEIR_TEST_LOG_DIRECTORY";
const CHILD_OWN_KEYSPACES: &str = "WEIR_TEST_LOG_OWN_KEYSPACES";
const CHILD_BROKERS: &str = "WEIR_TEST_LOG_BROKERS";
const CHILD_KILLED_AT: &str = "WEIR_TEST_LOG_KILLED_AT";

/// Not a test of its own: the child that [`survives_kill`] kills.
#[tokio::test]
#[ignore = "it is run by another test, as a child"]
async fn child_appends_until_it_is_killed() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let number = |name| std::env::var(name).unwrap().parse::<u32>().unwrap();
    let (own_keyspaces, brokers) = (number(CHILD_OWN_KEYSPACES), number(CHILD_BROKERS));
    #[cfg(feature = "failpoints")]
    if let Ok(killed_at) = std::env::var(CHILD_KILLED_AT) {
        let (point, passes) = killed_at.split_once('=').unwrap();
        let passes = match passes {
            "0" => String::new(),
            passes => format!("{passes}*off->"),
        };
        fail::cfg(point, &format!("{passes}return(kill)")).unwrap();
    }
    let log = open_with_own_keyspaces(Path::new(&directory), own_keyspaces).unwrap();
    let work = async |worker: u32| {
        for round in worker.. {
            let name = format!("n/b{}", round % brokers);
            let payload = random(3000, worker);
            let offset = log.append(&name, vec![payload.into()], at(0)).await.unwrap();
            println!("\nacknowledged {name} {offset}");
            if offset.0 % 50 == 49 {
                log.trim(&name, Offset(offset.0 - 40)).await.unwrap();
            }
            log.save(vec![(name.clone(), Some(offset.to_string().into()))])
                .await
                .unwrap();
            println!("\nsaved {name} {offset}");
        }
    };
    // Brokers that come and go.
    let churn = async {
        for round in 0_u32.. {
            let key = format!("n/gone{}", round % 7);
            let (name, records) = (LogName::from_key(&key), vec![random(3000, round).into(); 3]);
            let offset = log.append(&key, records, at(0)).await.unwrap();
            println!("\nacknowledged {key} {}", offset.plus(2));
            if round % 3 > 0 {
                log.trim(&key, log.bounds(&key).next).await.unwrap();
                assert_eq!(log.give_back(&[name]).await.unwrap(), 1);
            }
        }
    };
    futures::join!(futures::future::join_all((0..8).map(work)), churn);
}

/// Kills a child that writes, or lets it be killed at fail points, and checks that everything that it acknowledged is
/// there.
async fn survives_kill(own_keyspaces: u32, brokers: u32, killed_at: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = HashMap::<String, u64>::new();
    for round in 1..=killed_at.len().max(4) {
        let killed_at = killed_at.get(round - 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "log::embedded::tests::child_appends_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD_DIRECTORY, directory.path())
            .env(CHILD_OWN_KEYSPACES, own_keyspaces.to_string())
            .env(CHILD_BROKERS, brokers.to_string())
            .envs(killed_at.map(|killed_at| (CHILD_KILLED_AT, killed_at)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let mut saved = HashMap::<String, u64>::new();
        let mut note = |line: String| {
            let words: Vec<&str> = line.split(' ').collect();
            let [what @ ("acknowledged" | "saved"), broker, offset] = words[..] else {
                return 0;
            };
            // The kill may cut the last line; what was not printed whole was not acknowledged to us.
            let Ok(offset) = offset.parse::<u64>() else {
                return 0;
            };
            let noted = if what == "saved" {
                &mut saved
            } else {
                &mut acknowledged
            };
            let highest = noted.entry(broker.to_owned()).or_default();
            *highest = offset.max(*highest);
            1
        };
        let enough = if killed_at.is_some() { 100_000 } else { 400 * round };
        while seen < enough
            && let Some(line) = lines.next()
        {
            seen += note(line.unwrap());
        }
        assert_eq!(seen < enough, killed_at.is_some(), "{killed_at:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(line);
        }

        let report = check(directory.path()).unwrap();
        assert!(report.is_whole(), "{report:?}");
        let log = open_with_own_keyspaces(directory.path(), own_keyspaces).unwrap();
        for (broker, highest) in &acknowledged {
            let LogBounds { first, next } = log.bounds(broker);
            // This is so for logs that were given back, too.
            assert!(
                next.0 > *highest,
                "{broker}: {highest} was acknowledged, the log ends at {next}"
            );
            let mut from = first;
            while from < next {
                let limit = ReadLimit {
                    records: 100,
                    bytes: usize::MAX,
                };
                let records = log.read(broker, from, limit).await.unwrap();
                assert_eq!(records[0].offset, from);
                assert!(records.iter().all(|record| record.payload.len() == 3000));
                from = from.plus(records.len() as u64);
            }
        }
        let stored: HashMap<_, _> = log.stored().await.unwrap().into_iter().collect();
        assert!(!saved.is_empty() && saved.keys().all(|key| stored.contains_key(key)));
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill() {
    survives_kill(800, 3, &[]).await;
}

#[tokio::test]
async fn what_was_acknowledged_in_shared_keyspaces_survives_kill() {
    survives_kill(4, 40, &[]).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_kill_while_places_are_given_back_loses_nothing() {
    let points = [
        "log-before-give-back=0",
        "log-after-give-back=3",
        "log-before-give-back=7",
        "log-after-give-back=11",
    ];
    survives_kill(2, 3, &points).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_kill_while_shared_keyspaces_are_compacted_loses_nothing() {
    let points = [
        "log-before-compaction=0",
        "log-after-compaction=0",
        "log-before-compaction=1",
        "log-after-compaction=2",
    ];
    survives_kill(0, 2, &points).await;
}

/// Copies a log's directory, with journals stripped of the zeros that pad them.
pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "jnl")
        {
            fs::write(target, written(&entry.path())).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A journal without the zeros at its end; the last byte of an entry is not zero.
pub(super) fn written(journal: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::open(journal).unwrap().read_to_end(&mut bytes).unwrap();
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(end);
    bytes
}

/// Removes all that is in the journal.
pub(super) fn empty_journal(directory: &Path) {
    let journal = File::options().write(true).open(journal(directory)).unwrap();
    journal.set_len(0).unwrap();
}

pub(super) fn journal(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "jnl"))
        .max()
        .unwrap()
}

pub(super) async fn numbered(log: &EmbeddedLog, broker: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let offset = log
            .append(broker, payloads(&[&format!("record {number}")]), at(0))
            .await
            .unwrap();
        assert_eq!(offset.0, number);
    }
}

/// Allowed outcomes of a damaged copy: an error on opening or on reading, or everything still there.
async fn says_so_or_has_everything(directory: &Path, brokers: &[&str], records: u64) -> bool {
    let log = match open(directory) {
        Ok(log) => log,
        Err(LogError::Damaged { path, .. } | LogError::Open { path, .. }) => {
            assert_eq!(path, directory);
            return false;
        }
        Err(other) => panic!("{other}"),
    };
    for broker in brokers {
        assert_eq!(
            log.bounds(broker),
            LogBounds {
                first: Offset(0),
                next: Offset(records)
            }
        );
        let read = match log.read(broker, Offset(0), ALL).await {
            Ok(read) => read,
            Err(LogError::Damaged { path, .. }) => {
                assert_eq!(path, directory);
                return false;
            }
            Err(other) => panic!("{other}"),
        };
        assert_eq!(read.len() as u64, records);
        for (number, record) in read.iter().enumerate() {
            assert_eq!(record.payload, format!("record {number}"));
        }
    }
    true
}

#[tokio::test]
async fn a_write_that_a_crash_tore_is_dropped_silently() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/b", 0..5).await;
    let before = tempfile::tempdir().unwrap();
    copy(directory.path(), before.path());
    let whole = written(&journal(directory.path())).len();
    numbered(&log, "n/b", 5..6).await;
    let torn = written(&journal(directory.path()));
    assert!(torn.len() > whole + 10);
    for length in (whole..torn.len()).step_by(7) {
        let copied = tempfile::tempdir().unwrap();
        copy(before.path(), copied.path());
        fs::write(journal(copied.path()), &torn[..length]).unwrap();
        assert!(says_so_or_has_everything(copied.path(), &["n/b"], 5).await);
        let log = open(copied.path()).unwrap();
        numbered(&log, "n/b", 5..7).await;
        log.close().await.unwrap();
        assert!(says_so_or_has_everything(copied.path(), &["n/b"], 7).await);
    }
}

/// Stores this number as the acknowledged records.
fn note_acknowledged(directory: &Path, records: u64) {
    let (mut acknowledged, _) = Acknowledged::open(directory).unwrap();
    acknowledged.write(records).unwrap();
    acknowledged.write(records).unwrap();
}

/// Overwrites these pages of the journal with zeros or another byte.
fn overwrite(directory: &Path, pages: std::ops::Range<usize>, byte: u8) {
    let journal = File::options().write(true).open(journal(directory)).unwrap();
    let bytes = vec![byte; pages.len() * 4096];
    journal.write_all_at(&bytes, pages.start as u64 * 4096).unwrap();
}

#[tokio::test]
async fn a_commit_that_lacks_a_page_is_cut_off_unless_it_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/b", 0..5).await;
    let begins = written(&journal(directory.path())).len();
    log.append("n/b", vec![random(40_000, 1).into()], at(0))
        .await
        .unwrap();
    let ends = written(&journal(directory.path())).len();
    log.close().await.unwrap();
    let pages = begins.div_ceil(4096)..ends / 4096;
    assert!(pages.len() > 5, "{pages:?}");

    for page in pages.clone() {
        for hole in [page..page + 1, page..pages.end] {
            let copied = tempfile::tempdir().unwrap();
            copy(directory.path(), copied.path());
            overwrite(copied.path(), hole, 0);
            // Missing, and acknowledged.
            let lacking = tempfile::tempdir().unwrap();
            copy(copied.path(), lacking.path());
            let refused = open(lacking.path()).err().unwrap().to_string();
            assert!(
                refused.contains("6 records were acknowledged and only 5 are left"),
                "{refused}"
            );
            // Missing, but never acknowledged.
            note_acknowledged(copied.path(), 5);
            assert!(says_so_or_has_everything(copied.path(), &["n/b"], 5).await);
            let log = open(copied.path()).unwrap();
            numbered(&log, "n/b", 5..7).await;
            log.close().await.unwrap();
            assert!(says_so_or_has_everything(copied.path(), &["n/b"], 7).await);
        }
    }
    // Damage that is not a hole.
    note_acknowledged(directory.path(), 5);
    overwrite(directory.path(), pages.start..pages.start + 1, 1);
    let refused = open(directory.path()).err().unwrap().to_string();
    assert!(refused.contains("ChecksumMismatch"), "{refused}");
}

#[tokio::test]
async fn a_commit_that_lacks_a_page_is_refused_where_whole_ones_follow() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    log.append("n/b", vec![random(40_000, 1).into()], at(0))
        .await
        .unwrap();
    numbered(&log, "n/b", 1..2).await;
    log.close().await.unwrap();
    overwrite(directory.path(), 2..3, 0);
    note_acknowledged(directory.path(), 0);
    for _ in 0..2 {
        let refused = open(directory.path()).err().unwrap().to_string();
        assert!(refused.contains("ChecksumMismatch"), "{refused}");
    }
}

#[tokio::test]
async fn a_journal_that_was_cut_off_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/b", 0..20).await;
    let length = written(&journal(directory.path())).len();
    for length in (0..length).step_by(97) {
        let copied = tempfile::tempdir().unwrap();
        copy(directory.path(), copied.path());
        File::options()
            .write(true)
            .open(journal(copied.path()))
            .unwrap()
            .set_len(length as u64)
            .unwrap();
        let refused = open(copied.path()).err().unwrap();
        assert!(matches!(refused, LogError::Damaged { .. }), "{length}: {refused}");
        // It reports this again, until someone decides to go on without what is lost.
        let refused = open(copied.path()).err().unwrap().to_string();
        assert!(refused.contains("20 records were acknowledged"), "{refused}");
        fs::remove_file(copied.path().join("acknowledged")).unwrap();
        open(copied.path()).unwrap();
    }
}

#[tokio::test]
async fn flipped_bits_in_the_journal_are_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/a", 0..6).await;
    numbered(&log, "n/b", 0..6).await;
    flip_everywhere(directory.path(), &journal(directory.path()), 13).await;
}

#[tokio::test]
async fn flipped_bits_in_a_table_are_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/a", 0..6).await;
    numbered(&log, "n/b", 0..6).await;
    flush(&log);
    log.sync().await.unwrap();
    let events = log
        .0
        .shared
        .brokers
        .get("n/a")
        .unwrap()
        .stored()
        .unwrap()
        .events
        .path()
        .to_owned();
    log.close().await.unwrap();
    for folder in [events.join("tables"), events] {
        for file in fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
        {
            flip_everywhere(directory.path(), &file, 23).await;
        }
    }
}

/// The library uses such a list unchecked; too large a number in it would end the process.
#[tokio::test]
async fn a_flipped_bit_in_a_list_of_tables_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/a", 0..6).await;
    flush(&log);
    log.close().await.unwrap();
    let keyspaces = fs::read_dir(directory.path().join("store/keyspaces")).unwrap();
    let mut lists = 0;
    for keyspace in keyspaces.map(|entry| entry.unwrap().path()) {
        let current = fs::read(keyspace.join("current")).unwrap();
        let number = u64::from_le_bytes(current[..8].try_into().unwrap());
        let list = keyspace.join(format!("v{number}"));
        for at in (0..fs::metadata(&list).unwrap().len()).step_by(11) {
            let mut flipped = fs::read(&list).unwrap();
            flipped[at as usize] ^= 1 << (at % 8);
            let copied = tempfile::tempdir().unwrap();
            copy(directory.path(), copied.path());
            let target = copied.path().join(list.strip_prefix(directory.path()).unwrap());
            fs::write(&target, flipped).unwrap();
            let refused = open(copied.path()).err().unwrap().to_string();
            let target = target.display().to_string();
            assert!(
                refused.contains(&target) && refused.contains("damaged"),
                "{refused}"
            );
        }
        lists += 1;
    }
    assert!(lists >= 3, "{lists}");
}

/// Flips a bit in every `step`th byte of a file, each in a copy of its own.
async fn flip_everywhere(directory: &Path, file: &Path, step: usize) {
    let bytes = if file.extension().is_some() {
        written(file)
    } else {
        fs::read(file).unwrap()
    };
    let mut found = 0;
    for at in (0..bytes.len()).step_by(step) {
        let copied = tempfile::tempdir().unwrap();
        copy(directory, copied.path());
        let target = copied.path().join(file.strip_prefix(directory).unwrap());
        let flipped = File::options().write(true).open(target).unwrap();
        flipped
            .write_all_at(&[bytes[at] ^ (1 << (at % 8))], at as u64)
            .unwrap();
        if !says_so_or_has_everything(copied.path(), &["n/a", "n/b"], 6).await {
            found += 1;
        }
    }
    eprintln!(
        "{}: {found} of {} flips were found out, the others changed nothing",
        file.display(),
        bytes.len().div_ceil(step)
    );
}

/// A data directory written by the version before checksums of records: with tables, a journal, a trimmed log,
/// dead letters and checkpoints.
#[tokio::test]
async fn a_directory_of_an_earlier_version_opens() {
    let directory = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/log-records-1");
    let copied = Command::new("cp")
        .arg("-R")
        .arg(fixture.join("."))
        .arg(directory.path())
        .status();
    assert!(copied.unwrap().success());
    for _ in 0..2 {
        let log = open(directory.path()).unwrap();
        assert_eq!(log.0.shared.store.format, layout::FIRST_FORMAT);
        assert_eq!(log.bounds("shop/orders").first, Offset(2));
        let records = log.read("shop/orders", Offset(0), ALL).await.unwrap();
        let texts = records.iter().map(|record| &*record.payload).take(6);
        assert!(
            texts.eq((2..8).map(|n| format!("event {n}").into_bytes())),
            "{records:?}"
        );
        assert_eq!(records[0].accepted, at(2));
        let letters = log
            .read("shop/orders.dead-letters", Offset(0), ALL)
            .await
            .unwrap();
        assert_eq!(letters[0].payload, b"letter".as_slice());
        let stored = log.stored().await.unwrap();
        let keys: Vec<_> = stored.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            ["dead-letters:shop/orders", "running-time", "trigger:uid", "uid"]
        );
        // New records lie beside the old ones.
        log.append("shop/orders", payloads(&["new"]), at(9))
            .await
            .unwrap();
        flush(&log);
    }
    assert!(check(directory.path()).unwrap().is_whole());
}
