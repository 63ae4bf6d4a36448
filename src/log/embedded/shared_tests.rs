//! Tests of logs in shared keyspaces, and of places given back.

use std::{collections::BTreeMap, fs, path::Path};

use fjall::AbstractTree as _;
use proptest::prelude::*;

use super::{
    tests::{copy, empty_journal, flush, journal, open, open_with_own_keyspaces, rewrite, written},
    *,
};
use crate::log::conformance::{ALL, ByKey as _, at, payloads};

async fn give_back(log: &EmbeddedLog, keys: &[&str]) -> usize {
    let names: Vec<_> = keys.iter().map(|key| LogName::from_key(key)).collect();
    log.give_back(&names).await.unwrap()
}

fn id_of(log: &EmbeddedLog, key: &str) -> u32 {
    log.0.shared.brokers.get(key).unwrap().stored().unwrap().id
}

fn format_of(log: &EmbeddedLog) -> u32 {
    let format = log.0.shared.store.meta.get(layout::FORMAT_KEY).unwrap().unwrap();
    u32::from_be_bytes((*format).try_into().unwrap())
}

#[tokio::test]
async fn the_format_is_raised_by_what_earlier_versions_cannot_read() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 1).unwrap();
    log.append("n/a", payloads(&["a"]), at(0)).await.unwrap();
    log.trim("n/a", Offset(1)).await.unwrap();
    assert_eq!(format_of(&log), layout::FIRST_FORMAT);
    log.append("n/b", payloads(&["a"]), at(0)).await.unwrap();
    assert!(layout::is_shared(id_of(&log, "n/b")));
    assert_eq!(format_of(&log), layout::SHARED_FORMAT);
    drop(log);
    open(directory.path()).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path()).unwrap();
    log.append("n/a", payloads(&["a"]), at(0)).await.unwrap();
    log.trim("n/a", Offset(1)).await.unwrap();
    assert_eq!(give_back(&log, &["n/a"]).await, 1);
    assert_eq!(format_of(&log), layout::SHARED_FORMAT);
}

#[tokio::test]
async fn only_empty_logs_are_given_back_and_offsets_never_recur() {
    for own_keyspaces in [0, 800] {
        let directory = tempfile::tempdir().unwrap();
        let open = || open_with_own_keyspaces(directory.path(), own_keyspaces).unwrap();
        let log = open();
        log.append("n/a", payloads(&["0", "1", "2"]), at(0))
            .await
            .unwrap();
        log.append("n/other", payloads(&["0"]), at(0)).await.unwrap();
        log.append("n/a.dead-letters", payloads(&["0"]), at(0))
            .await
            .unwrap();
        assert_eq!(log.empty_logs(), []);
        assert_eq!(give_back(&log, &["n/a", "n/unknown"]).await, 0);
        let mut watched = log.follow("n/a");
        log.trim("n/a", Offset(3)).await.unwrap();
        assert_eq!(log.empty_logs(), [LogName::from_key("n/a")]);
        assert_eq!(give_back(&log, &["n/a", "n/other"]).await, 1);
        assert_eq!(log.empty_logs(), []);

        // Whoever has the log sees it go on.
        let bounds = |first, next| LogBounds {
            first: Offset(first),
            next: Offset(next),
        };
        assert_eq!(log.bounds("n/a"), bounds(3, 3));
        assert_eq!(log.read("n/a", Offset(0), ALL).await.unwrap(), []);
        assert_eq!(log.offset_at("n/a", at(0)).await.unwrap(), Offset(3));
        log.trim("n/a", Offset(2)).await.unwrap();
        assert_eq!(
            log.append("n/a", payloads(&["3"]), at(0)).await.unwrap(),
            Offset(3)
        );
        assert_eq!(*watched.borrow_and_update(), Offset(4));
        log.trim("n/a", Offset(4)).await.unwrap();
        assert_eq!(give_back(&log, &["n/a"]).await, 1);
        drop(watched);
        drop(log);

        // Later logs of any name begin beyond it, and dead letters have numbers of their own.
        let log = open();
        for broker in ["n/a", "n/new"] {
            assert_eq!(log.bounds(broker), bounds(4, 4));
            assert_eq!(
                log.append(broker, payloads(&["4"]), at(0)).await.unwrap(),
                Offset(4)
            );
            assert_eq!(log.read(broker, Offset(0), ALL).await.unwrap().len(), 1);
        }
        assert_eq!(log.bounds("n/new.dead-letters"), bounds(0, 0));
        assert_eq!(log.bounds("n/other"), bounds(0, 1));
        log.close().await.unwrap();
        let report = check(directory.path()).unwrap();
        assert!(report.is_whole(), "{report}");
        let log = open();
        assert_eq!(log.bounds("n/a"), bounds(4, 5));
    }
}

#[tokio::test]
async fn what_was_given_back_is_no_damage_after_a_crash_tore_a_commit() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    log.append("n/gone", payloads(&["0", "1"]), at(0)).await.unwrap();
    log.trim("n/gone", Offset(2)).await.unwrap();
    assert_eq!(give_back(&log, &["n/gone"]).await, 1);
    log.append("n/stays", payloads(&["0"]), at(0)).await.unwrap();
    let whole = written(&journal(directory.path())).len();
    let before = tempfile::tempdir().unwrap();
    copy(directory.path(), before.path());
    log.append("n/stays", payloads(&["torn"]), at(0)).await.unwrap();
    let torn = written(&journal(directory.path()));
    fs::write(journal(before.path()), &torn[..whole + 20]).unwrap();
    let report = check(before.path()).unwrap();
    assert!(report.is_whole(), "{report}");
    assert_eq!(report.brokers.len(), 1, "{report}");
}

#[tokio::test]
async fn a_keyspace_of_its_own_is_reused() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let log = open_with_own_keyspaces(directory.path(), 2).unwrap();
        log.append("n/stays", payloads(&["a"]), at(0)).await.unwrap();
        for broker in 0..3 {
            let key = format!("n/b{round}-{broker}");
            log.append(&key, payloads(&["0", "1"]), at(0)).await.unwrap();
            assert_eq!(id_of(&log, &key), 1);
            if broker % 2 == 0 {
                flush(&log);
            }
            assert_eq!(log.read(&key, Offset(0), ALL).await.unwrap().len(), 2);
            log.trim(&key, log.bounds(&key).next).await.unwrap();
            assert_eq!(give_back(&log, &[&key]).await, 1);
        }
        assert_eq!(
            log.read("n/stays", Offset(0), ALL).await.unwrap().len(),
            round + 1
        );
        log.close().await.unwrap();
        let report = check(directory.path()).unwrap();
        assert!(report.is_whole(), "{report}");
        assert_eq!(report.brokers.len(), 1, "{report}");
    }
}

#[tokio::test]
async fn brokers_that_come_and_go_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 10).unwrap();
    log.append("n/stays", payloads(&["a"]), at(0)).await.unwrap();
    for round in 0..20 {
        let keys: Vec<_> = (0..100)
            .map(|broker| format!("preview-{round}-{broker}/b"))
            .collect();
        let come = keys
            .iter()
            .map(|key| log.append(key, vec![vec![1; 2000].into()], at(0)));
        for offset in futures::future::join_all(come).await {
            offset.unwrap();
        }
        let gone = keys.iter().map(|key| log.trim(key, log.bounds(key).next));
        for trimmed in futures::future::join_all(gone).await {
            trimmed.unwrap();
        }
        let keys: Vec<_> = keys.iter().map(String::as_str).collect();
        assert_eq!(give_back(&log, &keys).await, 100);
    }
    assert_eq!(log.names(), [LogName::from_key("n/stays")]);
    let count = log.0.shared.brokers.count();
    assert!(count < 400, "{count} are remembered");
    flush(&log);
    rewrite(&log);
    let shared = (0..layout::SHARED_KEYSPACES).filter_map(|n| log.0.shared.store.shared_keyspace(n));
    let left: u64 = shared.map(|keyspace| keyspace.disk_space()).sum();
    assert!(left < 200_000, "{left} bytes are left");
    assert_eq!(log.0.shared.store.meta.prefix("broker/").count(), 1);
}

fn tables_of(log: &EmbeddedLog, key: &str) -> usize {
    log.0
        .shared
        .brokers
        .get(key)
        .unwrap()
        .stored()
        .unwrap()
        .events
        .table_count()
}

#[tokio::test]
async fn the_space_of_trimmed_records_in_shared_keyspaces_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..4 {
        let records = (0..400).map(|_| (0..5000).map(|_| random.u8(..)).collect());
        log.append("n/b", records.collect(), at(0)).await.unwrap();
        flush(&log);
    }
    let number = layout::shared_keyspace_of(id_of(&log, "n/b")).unwrap();
    let keyspace = log.0.shared.store.shared_keyspace(number).unwrap();
    let before = keyspace.disk_space();
    assert!(before > 8_000_000, "{before}");
    log.trim("n/b", Offset(1500)).await.unwrap();
    // Closing waits for the keeper.
    drop(keyspace);
    log.close().await.unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    let keyspace = log.0.shared.store.shared_keyspace(number).unwrap();
    let after = keyspace.disk_space();
    assert!(after < 1_000_000, "{after} of {before} bytes are left");
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 100);
    assert!(tables_of(&log, "n/b") > 0);
}

/// The storage library deletes a journal once everything in it is in tables, by the newest one of each keyspace.
#[tokio::test]
async fn a_shared_keyspace_without_records_pins_no_journal() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 1).unwrap();
    log.append("n/own", payloads(&["a"]), at(0)).await.unwrap();
    log.append("n/shared", vec![vec![7; 100_000].into()], at(0))
        .await
        .unwrap();
    flush(&log);
    log.trim("n/shared", Offset(1)).await.unwrap();
    give_back(&log, &["n/shared"]).await;
    rewrite(&log);
    let keyspace = log.0.shared.store.shared_keyspace(0).unwrap();
    let newest = || keyspace.tree.get_highest_persisted_seqno();
    let before = newest();
    assert!(before.is_some());
    rewrite(&log);
    assert_eq!(newest(), before);
    assert!(keyspace.disk_space() < 10_000);
}

async fn two_of_each(directory: &Path) -> EmbeddedLog {
    let log = open_with_own_keyspaces(directory, 1).unwrap();
    for part in 0..3_u64 {
        for broker in ["n/own", "n/a", "n/b"] {
            for number in part * 4..part * 4 + 4 {
                let text = format!("{broker} {number}");
                log.append(broker, payloads(&[&text]), at(0)).await.unwrap();
            }
        }
        if part < 2 {
            flush(&log);
        }
    }
    log.trim("n/a", Offset(2)).await.unwrap();
    log
}

#[tokio::test]
async fn logs_in_shared_keyspaces_are_checked_and_salvaged() {
    let directory = tempfile::tempdir().unwrap();
    let log = two_of_each(directory.path()).await;
    log.append("n/gone", payloads(&["0", "1"]), at(0)).await.unwrap();
    log.trim("n/gone", Offset(2)).await.unwrap();
    give_back(&log, &["n/gone"]).await;
    log.append("n/later", payloads(&["2"]), at(0)).await.unwrap();
    log.close().await.unwrap();
    let report = check(directory.path()).unwrap();
    let whole = "n/a: 10 records at offsets 2 to 11, whole\nn/b: 12 records at offsets 0 to 11, whole\n\
                 n/later: 1 records at offset 2, whole\nn/own: 12 records at offsets 0 to 11, whole\n0 cursors\n";
    assert_eq!(report.to_string(), whole);

    let target = tempfile::tempdir().unwrap();
    let out = target.path().join("out");
    assert_eq!(salvage(directory.path(), &out).unwrap().to_string(), whole);
    let log = open(&out).unwrap();
    for (broker, first) in [("n/own", 0), ("n/a", 2), ("n/b", 0)] {
        let records = log.read(broker, Offset(0), ALL).await.unwrap();
        let texts: Vec<_> = records.iter().map(|record| record.payload.to_vec()).collect();
        let expected: Vec<_> = (first..12)
            .map(|n| format!("{broker} {n}").into_bytes())
            .collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(
        log.bounds("n/new").next,
        Offset(2),
        "offsets do not recur in the new log either"
    );
}

/// Flips bits in the tables of a shared keyspace: what is lost is of the logs in that block, and named.
#[tokio::test]
async fn flipped_bits_in_shared_tables_are_named_and_the_rest_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let log = two_of_each(directory.path()).await;
    flush(&log);
    log.close().await.unwrap();
    empty_journal(directory.path());
    let tables: Vec<_> = {
        let log = open(directory.path()).unwrap();
        let stored = log.0.shared.brokers.get("n/b").unwrap().stored().unwrap();
        let version = stored.events.tree.current_version();
        version
            .iter_tables()
            .map(|table| table.path.to_path_buf())
            .collect()
    };
    let mut losses = Vec::new();
    for table in tables {
        let bytes = fs::read(&table).unwrap();
        for place in (3..bytes.len()).step_by(101) {
            let copied = tempfile::tempdir().unwrap();
            super::tests::copy(directory.path(), copied.path());
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << (place % 8);
            fs::write(
                copied.path().join(table.strip_prefix(directory.path()).unwrap()),
                flipped,
            )
            .unwrap();
            let report = check(copied.path()).unwrap();
            let out = copied.path().join("out");
            assert_eq!(
                salvage(copied.path(), &out).unwrap().to_string(),
                report.to_string()
            );
            assert!(!report.damage.is_empty(), "{report}");
            let log = open(&out).unwrap();
            let mut found = 0;
            for broker in ["n/own", "n/a", "n/b"] {
                let records = log.read(broker, Offset(0), ALL).await.unwrap();
                for record in records.iter().filter(|record| !record.payload.is_empty()) {
                    assert_eq!(record.payload, format!("{broker} {}", record.offset));
                    found += 1;
                }
            }
            // Trimmed records may come back.
            assert!(
                report.lost_records() >= 34_u64.saturating_sub(found),
                "{report}, found {found}"
            );
            losses.push(report.lost_records());
        }
    }
    eprintln!("records that each flip lost: {losses:?}");
    assert!(losses.iter().any(|lost| *lost > 0));
}

#[derive(Clone, Debug)]
enum PlaceStep {
    Append(usize, usize),
    Trim(usize, u64),
    GiveBack(Vec<usize>),
    Flush,
    Rewrite,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<PlaceStep>> {
    let broker = 0..6_usize;
    let step = prop_oneof![
        6 => (broker.clone(), 1..4_usize).prop_map(|(broker, records)| PlaceStep::Append(broker, records)),
        4 => (broker.clone(), 0..5_u64).prop_map(|(broker, left)| PlaceStep::Trim(broker, left)),
        4 => prop::collection::vec(broker, 1..4).prop_map(PlaceStep::GiveBack),
        1 => Just(PlaceStep::Flush),
        1 => Just(PlaceStep::Rewrite),
        2 => Just(PlaceStep::Restart),
    ];
    prop::collection::vec(step, 1..60)
}

/// PlaceModel of a log: its retained records, and the end of all earlier ones.
#[derive(Default)]
struct PlaceModel {
    retained: BTreeMap<u64, Bytes>,
    end: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_is_given_back_no_record_is_lost_or_recurs(
        steps in steps(),
        own_keyspaces in 0..4_u32,
        tail_cache_bytes in 0..4000_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(behaves_like_the_model(steps, own_keyspaces, tail_cache_bytes));
    }
}

async fn behaves_like_the_model(steps: Vec<PlaceStep>, own_keyspaces: u32, tail_cache_bytes: usize) {
    const KEYS: [&str; 6] = ["n/a", "n/b", "m/a", "n/a.dead-letters", "m/a.dead-letters", "o/c"];
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let options = EmbeddedOptions {
            own_keyspaces,
            tail_cache_bytes,
            ..EmbeddedOptions::default()
        };
        EmbeddedLog::open(directory.path(), options).unwrap()
    };
    let mut models: [PlaceModel; 6] = Default::default();
    let mut log = open();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            PlaceStep::Append(broker, records) => {
                let payload = Bytes::from(format!("{number}").into_bytes().repeat(30));
                let first = log
                    .append(KEYS[broker], vec![payload.clone(); records], at(0))
                    .await
                    .unwrap();
                let model = &mut models[broker];
                assert!(first.0 >= model.end, "{first} recurs");
                if let Some((last, _)) = model.retained.last_key_value() {
                    assert_eq!(first.0, last + 1);
                }
                model.end = first.0 + records as u64;
                model
                    .retained
                    .extend((first.0..model.end).map(|offset| (offset, payload.clone())));
            }
            PlaceStep::Trim(broker, left) => {
                let before = log.bounds(KEYS[broker]).next.0.saturating_sub(left);
                log.trim(KEYS[broker], Offset(before)).await.unwrap();
                models[broker].retained.retain(|offset, _| *offset >= before);
            }
            PlaceStep::GiveBack(brokers) => {
                let keys: Vec<_> = brokers.iter().map(|broker| KEYS[*broker]).collect();
                give_back(&log, &keys).await;
                for broker in brokers
                    .iter()
                    .filter(|broker| models[**broker].retained.is_empty())
                {
                    let log = log.0.shared.brokers.get(KEYS[*broker]);
                    assert!(log.is_none_or(|log| !log.is_stored()));
                }
            }
            PlaceStep::Flush => flush(&log),
            PlaceStep::Rewrite => rewrite(&log),
            PlaceStep::Restart => {
                drop(log);
                let report = check(directory.path()).unwrap();
                assert!(report.is_whole(), "{report}");
                log = open();
            }
        }
        for (key, model) in KEYS.into_iter().zip(&models) {
            let records = log.read(key, Offset(0), ALL).await.unwrap();
            let read: BTreeMap<_, _> = records
                .into_iter()
                .map(|record| (record.offset.0, record.payload))
                .collect();
            assert!(read == model.retained, "{key}: {:?}", read.keys());
            assert!(log.bounds(key).next.0 >= model.end);
        }
    }
}

/// Writes so many tables of one shared keyspace that it takes no more records.
async fn with_tables_to_merge(directory: &Path) -> EmbeddedLog {
    let log = open_with_own_keyspaces(directory, 0).unwrap();
    for _ in 0..25 {
        log.append("n/a", payloads(&["a"]), at(0)).await.unwrap();
        flush(&log);
        if compaction::is_overdue(&log.0.shared.store.shared_keyspace(0).unwrap()) {
            return log;
        }
    }
    panic!("the tables were merged already");
}

#[tokio::test]
async fn a_keyspace_whose_tables_are_not_merged_rejects_records_alone() {
    let directory = tempfile::tempdir().unwrap();
    let log = with_tables_to_merge(directory.path()).await;
    let refused = log.append("n/a", payloads(&["a"]), at(0)).await;
    assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
    log.append("n/b", payloads(&["a"]), at(0)).await.unwrap();
    log.save(vec![("t".to_owned(), Some("1".into()))]).await.unwrap();
    let mut appended = log.bounds("n/a").next.0;
    while appended < 80 {
        match log.append("n/a", payloads(&["a"]), at(0)).await {
            Ok(_) => appended += 1,
            // Merged by the keeper, which was asked.
            Err(LogError::Unavailable(_)) => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
        flush(&log);
    }
    assert_eq!(log.read("n/a", Offset(0), ALL).await.unwrap().len(), 80);
}

#[tokio::test]
async fn a_new_log_takes_a_keyspace_whose_tables_are_merged() {
    let directory = tempfile::tempdir().unwrap();
    let log = with_tables_to_merge(directory.path()).await;
    let mut keyspaces: Vec<_> = (0..layout::SHARED_KEYSPACES).collect();
    for number in 0..layout::SHARED_KEYSPACES {
        let key = format!("n/new{number}");
        log.append(&key, payloads(&["a"]), at(0)).await.unwrap();
        let taken = layout::shared_keyspace_of(id_of(&log, &key));
        keyspaces.retain(|number| Some(*number) != taken);
    }
    assert_eq!(keyspaces, [0]);
}

#[tokio::test]
async fn tables_are_merged_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let log = with_tables_to_merge(directory.path()).await;
    log.close().await.unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    // Closing waits for the keeper.
    log.close().await.unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    assert!(tables_of(&log, "n/a") < 20);
    let records = log.read("n/a", Offset(0), ALL).await.unwrap();
    assert_eq!(records.len() as u64, log.bounds("n/a").next.0);
}

/// Writes a record whose log is not known, as after the loss of its entry.
fn write_stray(log: &EmbeddedLog, id: u32, offset: u64) {
    let header = layout::RecordHeader {
        accepted_millis: 0,
        bytes_before: 0,
    };
    let value = layout::record_value(offset, header, b"stray");
    let keyspace = log.0.shared.store.keyspace(id).unwrap();
    keyspace
        .insert(layout::RecordKey::new(id, offset).as_ref(), value)
        .unwrap();
}

#[tokio::test]
async fn a_place_with_records_of_another_log_is_never_taken() {
    for (own_keyspaces, stray, expected) in [
        (0, layout::SHARED_IDS, layout::SHARED_IDS + 1),
        (1, 0, layout::SHARED_IDS),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let log = open_with_own_keyspaces(directory.path(), own_keyspaces).unwrap();
        if own_keyspaces > 0 {
            log.append("n/gone", payloads(&["a"]), at(0)).await.unwrap();
            log.trim("n/gone", Offset(1)).await.unwrap();
            assert_eq!(give_back(&log, &["n/gone"]).await, 1);
        }
        write_stray(&log, stray, 7);
        let first = log.append("n/a", payloads(&["a"]), at(0)).await.unwrap();
        assert_eq!(id_of(&log, "n/a"), expected);
        log.close().await.unwrap();
        let log = open_with_own_keyspaces(directory.path(), own_keyspaces).unwrap();
        assert_eq!(log.bounds("n/a").next, first.plus(1));
    }
}

#[tokio::test]
async fn a_log_short_of_places_knows_it_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    let store = &log.0.shared.store;
    let mut batch = store.batch();
    // Three quarters of all brokers, and one.
    for number in 0..24_577 {
        let id = layout::SHARED_IDS + number;
        store.keyspace(id).unwrap();
        let entry = layout::Registered {
            id,
            first: 0,
            bytes_before_first: 0,
            last_accepted_millis: 0,
            start: 0,
        };
        let key = layout::broker_key(&format!("n{number}/b"));
        batch.insert(&store.meta, key, entry.to_value());
    }
    batch.commit().unwrap();
    log.close().await.unwrap();
    let log = open_with_own_keyspaces(directory.path(), 0).unwrap();
    assert!(log.is_short_of_places("any"));
    assert_eq!(give_back(&log, &["n0/b"]).await, 1);
    assert!(!log.is_short_of_places("any"));
}

#[tokio::test]
async fn a_namespace_with_too_many_brokers_is_rejected_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let options = EmbeddedOptions {
            places: 32,
            ..EmbeddedOptions::default()
        };
        EmbeddedLog::open(directory.path(), options).unwrap()
    };
    let log = open();
    let append =
        async |log: &EmbeddedLog, key: &str| log.append(key, vec![Bytes::from_static(b"x")], at(0)).await;
    for number in 0..8 {
        append(&log, &format!("greedy/b{number}")).await.unwrap();
    }
    let refused = append(&log, "greedy/b8").await.unwrap_err();
    let LogError::TooManyBrokers(detail) = &refused else {
        panic!("{refused}");
    };
    for part in [
        "namespace greedy has 8 brokers",
        "its share is 8",
        "greedy/b8 would be one too many",
    ] {
        assert!(detail.contains(part), "{detail}");
    }
    assert!(log.is_short_of_places("greedy") && !log.is_short_of_places("other"));
    append(&log, "greedy/b0").await.unwrap();
    append(&log, "greedy/b0.dead-letters").await.unwrap();
    append(&log, "other/default").await.unwrap();
    log.close().await.unwrap();
    let log = open();
    assert!(append(&log, "greedy/b8").await.is_err());
    log.trim("greedy/b1", Offset(1)).await.unwrap();
    assert_eq!(give_back(&log, &["greedy/b1"]).await, 1);
    append(&log, "greedy/b8").await.unwrap_err();
    log.trim("greedy/b2", Offset(1)).await.unwrap();
    assert_eq!(give_back(&log, &["greedy/b2"]).await, 1);
    append(&log, "greedy/b8").await.unwrap();
}

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Prints what 10,000 brokers cost. Run it alone, in a release build.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measures_many_brokers() {
    let rate = async |log: &EmbeddedLog, brokers: usize| {
        let began = std::time::Instant::now();
        let appends = 20_000;
        let work = async |worker: usize| {
            for number in 0..appends / 64 {
                let key = format!("n{}/b", (number * 64 + worker * 7919) % brokers);
                log.append(&key, vec![vec![b'x'; 1000].into()], at(0))
                    .await
                    .unwrap();
            }
        };
        futures::future::join_all((0..64).map(work)).await;
        f64::from(appends as u32) / began.elapsed().as_secs_f64()
    };
    for brokers in [10, 1000, 10_000] {
        let directory = tempfile::tempdir().unwrap();
        let log = open(directory.path()).unwrap();
        let fill = (0..brokers).map(|broker| {
            let log = &log;
            async move {
                let key = format!("n{broker}/b");
                log.append(&key, vec![vec![b'x'; 1000].into(); 10], at(0))
                    .await
                    .unwrap();
            }
        });
        let began = std::time::Instant::now();
        let mut fill = futures::StreamExt::buffer_unordered(futures::stream::iter(fill), 64);
        while futures::StreamExt::next(&mut fill).await.is_some() {}
        drop(fill);
        let filled = began.elapsed();
        let rates = [rate(&log, brokers).await, rate(&log, brokers).await];
        log.close().await.unwrap();
        let (before, began) = (resident(), std::time::Instant::now());
        let log = open(directory.path()).unwrap();
        let opened = began.elapsed();
        let after = resident();
        let again = rate(&log, brokers).await;
        eprintln!(
            "{brokers} brokers: first 10 records each in {filled:?}; {rates:.0?} appends/s, {again:.0} after opening; opened in \
             {opened:?}, {} KiB more, {} KiB after appends",
            after.saturating_sub(before),
            resident().saturating_sub(before),
        );
    }
}
