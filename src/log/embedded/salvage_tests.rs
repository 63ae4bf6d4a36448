//! Checks and salvages logs with damage anywhere: the report is right, and what is intact is kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    tests::{copy, flush, numbered, open, written},
    *,
};
use crate::log::conformance::{ALL, ByKey as _, at, payloads};

const BROKERS: [&str; 2] = ["n/a", "n/b"];
const RECORDS: u64 = 12;

/// A log with tables, a journal and cursors. The first broker's head is trimmed.
async fn log(directory: &Path) {
    let log = open(directory).unwrap();
    for part in 0..3 {
        for broker in BROKERS {
            numbered(&log, broker, part * 4..part * 4 + 4).await;
        }
        let cursors = BROKERS.map(|broker| (broker.to_owned(), Some(part.to_string().into())));
        log.save(cursors.to_vec()).await.unwrap();
        if part < 2 {
            flush(&log);
            log.0.shared.store.cursors.rotate_memtable_and_wait().unwrap();
        }
    }
    log.trim(BROKERS[0], Offset(2)).await.unwrap();
    log.close().await.unwrap();
}

pub(super) fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            files.extend(super::salvage_tests::files(&entry.path()));
        } else {
            files.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// Content of a log as a router reads it: the non-empty records of each broker, by offset, and the cursors. `None`
/// if it cannot be opened or read.
async fn what_a_router_finds(directory: &Path) -> Option<(BTreeMap<(String, u64), Bytes>, usize)> {
    let log = open(directory).ok()?;
    let mut records = BTreeMap::new();
    for (name, _) in log.used() {
        for record in log.read(&name, Offset(0), ALL).await.ok()? {
            if !record.payload.is_empty() {
                // The name may be lost.
                let name = match &*name {
                    "weir-salvage/events-0" => BROKERS[0],
                    "weir-salvage/events-1" => BROKERS[1],
                    name => name,
                };
                records.insert((name.to_owned(), record.offset.0), record.payload);
            }
        }
    }
    Some((records, log.stored().await.ok()?.len()))
}

fn all_records() -> BTreeMap<(String, u64), Bytes> {
    let of = |broker: &str, from| {
        let broker = broker.to_owned();
        (from..RECORDS).map(move |offset| ((broker.clone(), offset), format!("record {offset}").into()))
    };
    of(BROKERS[0], 2).chain(of(BROKERS[1], 0)).collect()
}

/// Checks and salvages; returns the number of lost records.
async fn check_and_salvage(directory: &Path, what: &str) -> u64 {
    let before = files(directory);
    let report = check(directory).unwrap();
    let target = tempfile::tempdir().unwrap();
    let out = target.path().join("out");
    let salvaged = salvage(directory, &out).unwrap();
    assert!(files(directory) == before, "{what}: the log was changed");
    assert_eq!(report.to_string(), salvaged.to_string(), "{what}");

    let (found, _) = what_a_router_finds(&out).await.unwrap();
    let all = all_records();
    // Trimmed records may come back, if the commit that trimmed them is lost.
    for ((_, offset), payload) in &found {
        assert_eq!(*payload, format!("record {offset}"), "{what}");
    }
    let missing = all.keys().filter(|place| !found.contains_key(*place)).count() as u64;
    assert_eq!(report.lost_records(), missing, "{what}: {report}");
    // The new log goes on, and reports that it is intact.
    let checked = check(&out).unwrap();
    assert!(checked.is_whole(), "{what}: {checked}");
    let log = open(&out).unwrap();
    log.append(BROKERS[1], payloads(&["more"]), at(0)).await.unwrap();
    log.close().await.unwrap();

    // If everything is reported intact, a router reads all of it. It may still change what it opens.
    let found = what_a_router_finds(directory).await;
    if report.is_whole() {
        let (found, cursors) =
            found.unwrap_or_else(|| panic!("{what}: a router rejects what is said to be whole"));
        assert!(all.keys().all(|place| found.contains_key(place)), "{what}");
        assert_eq!(cursors, 2, "{what}");
    }
    missing
}

#[tokio::test]
async fn a_whole_log_is_whole_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    log(directory.path()).await;
    let report = check(directory.path()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!(
        report.to_string(),
        "n/a: 10 records at offsets 2 to 11, whole\nn/b: 12 records at offsets 0 to 11, whole\n2 cursors\n"
    );
    assert_eq!(check_and_salvage(directory.path(), "whole").await, 0);
}

#[tokio::test]
async fn a_log_that_is_open_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    let refused = check(directory.path()).unwrap_err().to_string();
    assert!(refused.contains("another process has it open"), "{refused}");
    drop(log);
    let target = directory.path().join("exists");
    fs::create_dir(&target).unwrap();
    let refused = salvage(directory.path(), &target).unwrap_err().to_string();
    assert!(refused.contains("it exists"), "{refused}");
    let nothing = check(directory.path().join("nothing")).unwrap_err();
    assert!(matches!(nothing, LogError::Open { .. }), "{nothing}");
}

/// Flips some bits of each of these files, each in a copy of its own; returns the number of lost records of each
/// flip.
async fn flip(directory: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> Vec<u64> {
    let mut lost = Vec::new();
    for (file, bytes) in files {
        let is_journal = file.extension().is_some_and(|extension| extension == "jnl");
        let end = if is_journal {
            written(file).len()
        } else {
            bytes.len()
        };
        let step = if is_journal { end / 12 } else { end / 2 };
        // At other places in each.
        for place in (lost.len() % 7..end).step_by(step.max(13)) {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (place % 8);
            let copied = tempfile::tempdir().unwrap();
            copy(directory, copied.path());
            fs::write(copied.path().join(file.strip_prefix(directory).unwrap()), flipped).unwrap();
            let what = format!("byte {place} of {}", file.display());
            lost.push(check_and_salvage(copied.path(), &what).await);
        }
    }
    lost
}

/// Flips bits anywhere in the store.
#[tokio::test]
async fn flipped_bits_are_named_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    log(directory.path()).await;
    let files = files(&directory.path().join("store"));
    let lost = flip(directory.path(), &files).await;
    eprintln!("records that each flip lost: {lost:?}");
    // Records in tables are in the journal, too.
    assert!(lost.len() > 40 && lost.iter().all(|lost| *lost <= 4), "{lost:?}");
}

#[tokio::test]
async fn flipped_bits_in_tables_lose_what_is_in_their_block() {
    let directory = tempfile::tempdir().unwrap();
    log(directory.path()).await;
    let log = open(directory.path()).unwrap();
    flush(&log);
    log.0.shared.store.cursors.rotate_memtable_and_wait().unwrap();
    log.close().await.unwrap();
    tests::empty_journal(directory.path());

    let mut files = files(&directory.path().join("store/keyspaces"));
    files.retain(|path, _| path.parent().is_some_and(|folder| folder.ends_with("tables")));
    let lost = flip(directory.path(), &files).await;
    eprintln!("records that each flip lost: {lost:?}");
    assert!(lost.contains(&0) && lost.contains(&4), "{lost:?}");
    assert!(lost.iter().all(|lost| *lost <= 4), "{lost:?}");
}

#[tokio::test]
async fn a_record_in_the_middle_of_the_journal_is_lost_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    numbered(&log, "n/b", 0..9).await;
    log.close().await.unwrap();
    let journal = tests::journal(directory.path());
    let mut bytes = fs::read(&journal).unwrap();
    let place = bytes.windows(8).position(|window| window == b"record 4").unwrap();
    bytes[place] ^= 1;
    fs::write(&journal, bytes).unwrap();
    let refused = open(directory.path()).err().unwrap();
    assert!(matches!(refused, LogError::Damaged { .. }), "{refused}");

    let report = check(directory.path()).unwrap();
    let lost = &report.brokers[0].lost;
    assert!(lost.len() == 1 && lost[0] == (4..5), "{lost:?}");
    assert_eq!(report.damage.len(), 1, "{report}");
    let target = tempfile::tempdir().unwrap();
    let out = target.path().join("log");
    salvage(directory.path(), &out).unwrap();
    let log = open(&out).unwrap();
    let records = log.read("n/b", Offset(0), ALL).await.unwrap();
    let payloads: Vec<_> = records.iter().map(|record| &*record.payload).collect();
    assert_eq!(payloads.len(), 9);
    assert_eq!(
        (payloads[3], payloads[4], payloads[5]),
        (&b"record 3"[..], &b""[..], &b"record 5"[..])
    );
}
