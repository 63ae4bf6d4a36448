//! Conformance suite of every [`LogProvider`]. A provider's tests define how to open it, and call
//! [`conformance!`](crate::log::conformance::conformance) to get one test for each behaviour.
//!
//! Each behaviour gets a [`Tested`] with empty logs, which it may close and open again.

use std::{collections::BTreeMap, future::Future, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use proptest::prelude::*;
use tokio::sync::watch;

use super::{
    Append, Appended, CheckpointKey, EventIdentity, IdWindow, LogBounds, LogError, LogName, LogProvider,
    LogRecord, Offset, Ownership, ReadLimit, Unique,
};

/// Logs that can be opened, dropped, and opened again.
pub(crate) trait Tested {
    type Logs: LogProvider;

    /// Opens the logs with what an earlier opening stored.
    fn open(&self) -> impl Future<Output = Self::Logs>;

    /// Does at once what the provider otherwise does in the background.
    fn settle(&self, _logs: &Self::Logs) {}

    /// Whether the provider may count so many bytes for so many records with payloads of these bytes in all.
    fn counts(&self, counted: u64, payloads: u64, _records: u64) -> bool {
        counted == payloads
    }

    /// Compares the usage of the logs with the expected one: key, bytes of the payloads, number of records.
    fn check_usage(&self, logs: &Self::Logs, expected: &[(&str, u64, u64)]) {
        let used = logs.used();
        let is_right = used.len() == expected.len()
            && used
                .iter()
                .zip(expected)
                .all(|((key, bytes), (name, payloads, records))| {
                    key == name && self.counts(*bytes, *payloads, *records)
                });
        assert!(is_right, "{used:?}, expected {expected:?}");
    }
}

type Answer<T> = BoxFuture<'static, Result<T, LogError>>;

/// Opens a log or the checkpoints for one operation. Tests use the keys of the storage.
pub(crate) trait ByKey: LogProvider {
    fn append(&self, log: &str, payloads: Vec<Bytes>, accepted: Timestamp) -> Answer<Offset> {
        let log = LogProvider::open(self, &LogName::from_key(log));
        Box::pin(async move {
            let append = Append {
                payloads,
                accepted,
                unique: None,
            };
            Ok(log.append(append).await?.first)
        })
    }

    /// Appends records, each with a key and a digest, which is also its payload.
    fn append_unique(&self, log: &str, records: &[(u8, u64)], millis: i64) -> Answer<Appended> {
        let log = LogProvider::open(self, &LogName::from_key(log));
        let identities = records.iter().map(|(key, digest)| EventIdentity {
            key: [*key; 16],
            digest: *digest,
        });
        // Each record of its own is unlike any other, as those of events are.
        let payload = |(key, digest): &(u8, u64)| format!("{key} {digest} {}", fastrand::u64(..)).into();
        let append = Append {
            payloads: records.iter().map(payload).collect(),
            accepted: at(millis),
            unique: Some(Unique {
                identities: identities.collect(),
                window: WINDOW,
            }),
        };
        Box::pin(async move { log.append(append).await })
    }

    fn settle<'a>(
        &'a self,
        log: &str,
        payloads: Vec<Bytes>,
        accepted: Timestamp,
    ) -> BoxFuture<'a, Result<Offset, LogError>> {
        let name = LogName::from_key(log);
        Box::pin(async move {
            let capacity = self.capacity().unwrap();
            let append = Append {
                payloads,
                accepted,
                unique: None,
            };
            Ok(capacity.append_to_settle(&name, append).await?.first)
        })
    }

    fn read(&self, log: &str, from: Offset, limit: ReadLimit) -> Answer<Vec<LogRecord>> {
        let log = LogProvider::open(self, &LogName::from_key(log));
        Box::pin(async move { log.read(from, limit).await })
    }

    fn bounds(&self, log: &str) -> LogBounds {
        LogProvider::open(self, &LogName::from_key(log)).cached_bounds()
    }

    fn offset_at(&self, log: &str, time: Timestamp) -> Answer<Offset> {
        let log = LogProvider::open(self, &LogName::from_key(log));
        Box::pin(async move { log.offset_at(time).await })
    }

    fn follow(&self, log: &str) -> watch::Receiver<Offset> {
        LogProvider::open(self, &LogName::from_key(log)).follow()
    }

    fn trim(&self, log: &str, before: Offset) -> Answer<()> {
        let log = LogProvider::open(self, &LogName::from_key(log));
        Box::pin(async move { log.trim(before).await })
    }

    /// Retained bytes of each log, by key.
    fn used(&self) -> Vec<(String, u64)> {
        let usage = self.usage().into_iter();
        let mut usage: Vec<_> = usage.map(|(name, bytes)| (name.to_string(), bytes)).collect();
        usage.sort();
        usage
    }

    /// Every checkpoint, by key.
    fn stored(&self) -> Answer<Vec<(String, Bytes)>> {
        let checkpoints = self.checkpoints(Ownership::default());
        Box::pin(async move {
            let stored = checkpoints.load_all().await?.into_iter();
            let mut stored: Vec<_> = stored.map(|(key, value)| (key.to_string(), value)).collect();
            stored.sort();
            Ok(stored)
        })
    }

    fn checkpoint(&self, key: &str) -> Answer<Option<Bytes>> {
        let (checkpoints, key) = (
            self.checkpoints(Ownership::default()),
            CheckpointKey::from_key(key),
        );
        Box::pin(async move { checkpoints.load(&key).await })
    }

    fn save(&self, changes: Vec<(String, Option<Bytes>)>) -> Answer<()> {
        let checkpoints = self.checkpoints(Ownership::default());
        let changes = changes.into_iter();
        let changes = changes
            .map(|(key, value)| (CheckpointKey::from_key(&key), value))
            .collect();
        Box::pin(async move { checkpoints.save(changes).await })
    }
}

impl<P: LogProvider + ?Sized> ByKey for P {}

/// Generates one test for each behaviour; `$subject` is an expression for a [`Tested`] with empty logs.
macro_rules! conformance {
    ($subject:expr) => {
        $crate::log::conformance::conformance! { @each $subject,
            a_broker_without_records_is_empty
            what_was_appended_is_read_back
            an_append_of_nothing_stores_nothing
            brokers_have_their_own_offsets
            a_read_keeps_its_limit_and_gives_at_least_one_record
            concurrent_appends_get_offsets_without_gaps
            a_restart_keeps_everything
            trimmed_records_are_gone_for_good
            a_log_that_was_trimmed_whole_goes_on_counting
            a_time_is_found
            times_never_decrease
            checkpoints_are_kept
            the_end_is_watched
            a_reader_follows_the_writers
            usage_is_of_retained_payloads
            large_records_are_stored
            repeats_are_not_stored
            concurrent_repeats_are_stored_once
            repeats_of_trimmed_records_are_known
        }
    };
    (@each $subject:expr, $($behaviour:ident)*) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                $crate::log::conformance::$behaviour($subject).await;
            }
        )*
    };
}
pub(crate) use conformance;

pub(crate) const ALL: ReadLimit = ReadLimit {
    records: usize::MAX,
    bytes: usize::MAX,
};

/// Window of the appends without repeats.
pub(crate) const WINDOW: IdWindow = IdWindow {
    age: Duration::from_secs(600),
    events: 1000,
};

/// A time, in milliseconds after an arbitrary one.
pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap()
}

pub(crate) fn payloads(texts: &[&str]) -> Vec<Bytes> {
    texts
        .iter()
        .map(|text| Bytes::copy_from_slice(text.as_bytes()))
        .collect()
}

fn record(offset: u64, millis: i64, text: &str) -> LogRecord {
    LogRecord {
        offset: Offset(offset),
        accepted: at(millis),
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn bounds(first: u64, next: u64) -> LogBounds {
    LogBounds {
        first: Offset(first),
        next: Offset(next),
    }
}

fn offsets(records: &[LogRecord]) -> Vec<u64> {
    records.iter().map(|record| record.offset.0).collect()
}

pub(crate) async fn a_broker_without_records_is_empty(subject: impl Tested) {
    let log = subject.open().await;
    assert_eq!(log.bounds("n/none"), bounds(0, 0));
    let asked = LogProvider::open(&log, &LogName::from_key("n/none"));
    assert_eq!(asked.bounds().await.unwrap(), bounds(0, 0));
    assert_eq!(log.read("n/none", Offset(0), ALL).await.unwrap(), []);
    assert_eq!(log.read("n/none", Offset(7), ALL).await.unwrap(), []);
    assert_eq!(log.offset_at("n/none", at(0)).await.unwrap(), Offset(0));
    log.trim("n/none", Offset(5)).await.unwrap();
    assert_eq!(log.bounds("n/none"), bounds(0, 0));
    assert_eq!(*log.follow("n/none").borrow(), Offset(0));
    assert_eq!(log.used(), []);
    assert_eq!(log.stored().await.unwrap(), []);
    log.sync().await.unwrap();
}

pub(crate) async fn what_was_appended_is_read_back(subject: impl Tested) {
    let log = subject.open().await;
    assert_eq!(
        log.append("n/b", payloads(&["one", "", "\0\u{7f}"]), at(1))
            .await
            .unwrap(),
        Offset(0)
    );
    let later = at(2) + Duration::from_micros(999);
    assert_eq!(
        log.append("n/b", payloads(&["four"]), later).await.unwrap(),
        Offset(3)
    );
    assert_eq!(log.bounds("n/b"), bounds(0, 4));
    let opened = LogProvider::open(&log, &LogName::from_key("n/b"));
    assert_eq!(opened.name().to_string(), "n/b");
    assert_eq!(opened.bounds().await.unwrap(), bounds(0, 4));
    assert!(subject.counts(opened.retained(), 9, 4), "{}", opened.retained());
    let expected = [
        record(0, 1, "one"),
        record(1, 1, ""),
        record(2, 1, "\0\u{7f}"),
        record(3, 2, "four"),
    ];
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap(), expected);
    assert_eq!(log.read("n/b", Offset(2), ALL).await.unwrap(), expected[2..]);
    assert_eq!(log.read("n/b", Offset(4), ALL).await.unwrap(), []);
}

pub(crate) async fn an_append_of_nothing_stores_nothing(subject: impl Tested) {
    let log = subject.open().await;
    assert_eq!(log.append("n/b", vec![], at(0)).await.unwrap(), Offset(0));
    log.append("n/b", payloads(&["a"]), at(0)).await.unwrap();
    assert_eq!(log.append("n/b", vec![], at(0)).await.unwrap(), Offset(1));
    assert_eq!(log.bounds("n/b"), bounds(0, 1));
}

pub(crate) async fn brokers_have_their_own_offsets(subject: impl Tested) {
    let log = subject.open().await;
    let long = format!("{0}/{0}", "x".repeat(63));
    for broker in ["n/b", "n/bb", "nb/b", "n-b/b", &long] {
        assert_eq!(
            log.append(broker, payloads(&[broker]), at(0)).await.unwrap(),
            Offset(0)
        );
        assert_eq!(
            log.append(broker, payloads(&["second"]), at(1)).await.unwrap(),
            Offset(1)
        );
    }
    log.trim("n/b", Offset(1)).await.unwrap();
    for broker in ["n/bb", "nb/b", "n-b/b", &long] {
        let expected = [record(0, 0, broker), record(1, 1, "second")];
        assert_eq!(log.read(broker, Offset(0), ALL).await.unwrap(), expected);
    }
    assert_eq!(log.used().len(), 5);
}

pub(crate) async fn a_read_keeps_its_limit_and_gives_at_least_one_record(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/b", payloads(&["aaaa", "bbbb", "cccc", "dddd"]), at(0))
        .await
        .unwrap();
    let read = async |records, bytes| {
        offsets(
            &log.read("n/b", Offset(1), ReadLimit { records, bytes })
                .await
                .unwrap(),
        )
    };
    assert_eq!(read(2, usize::MAX).await, [1, 2]);
    assert_eq!(read(usize::MAX, 8).await, [1, 2]);
    assert_eq!(read(usize::MAX, 11).await, [1, 2]);
    assert_eq!(read(usize::MAX, 1).await, [1]);
    let mut found = Vec::new();
    while found.len() < 3 {
        let next = Offset(1 + found.len() as u64);
        let limit = ReadLimit {
            records: 100,
            bytes: 100,
        };
        let records = log.read("n/b", next, limit).await.unwrap();
        assert!(!records.is_empty(), "nothing after {found:?}");
        found.extend(offsets(&records));
    }
    assert_eq!(found, [1, 2, 3]);
}

pub(crate) async fn concurrent_appends_get_offsets_without_gaps(subject: impl Tested) {
    let log = subject.open().await;
    let append = async |n: usize| {
        let texts = [format!("{n}/0"), format!("{n}/1"), format!("{n}/2")];
        let texts: Vec<&str> = texts[..=n % 3].iter().map(String::as_str).collect();
        (n, log.append("n/b", payloads(&texts), at(0)).await.unwrap())
    };
    let appended = futures::future::join_all((0..60).map(append)).await;
    let records = log.read("n/b", Offset(0), ALL).await.unwrap();
    assert_eq!(offsets(&records), (0..120).collect::<Vec<_>>());
    for (n, first) in appended {
        for part in 0..=n % 3 {
            let payload = &records[first.0 as usize + part].payload;
            assert_eq!(payload, format!("{n}/{part}").as_bytes());
        }
    }
}

pub(crate) async fn a_restart_keeps_everything(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/a", payloads(&["a0", "a1"]), at(10)).await.unwrap();
    log.append("n/b", payloads(&["b0"]), at(20)).await.unwrap();
    log.save(vec![("k".into(), Some("v".into()))]).await.unwrap();
    let usage = [("n/a", 4, 2), ("n/b", 2, 1)];
    subject.check_usage(&log, &usage);
    let stored = log.stored().await.unwrap();
    drop(log);
    let log = subject.open().await;
    subject.check_usage(&log, &usage);
    assert_eq!(log.stored().await.unwrap(), stored);
    assert_eq!(
        log.read("n/a", Offset(0), ALL).await.unwrap(),
        [record(0, 10, "a0"), record(1, 10, "a1")]
    );
    assert_eq!(
        log.read("n/b", Offset(0), ALL).await.unwrap(),
        [record(0, 20, "b0")]
    );
    assert_eq!(*log.follow("n/a").borrow(), Offset(2));
    assert_eq!(
        log.append("n/a", payloads(&["a2"]), at(30)).await.unwrap(),
        Offset(2)
    );
}

pub(crate) async fn trimmed_records_are_gone_for_good(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/b", payloads(&["0", "1", "2", "3", "4"]), at(0))
        .await
        .unwrap();
    log.trim("n/b", Offset(2)).await.unwrap();
    assert_eq!(log.bounds("n/b"), bounds(2, 5));
    assert_eq!(
        offsets(&log.read("n/b", Offset(0), ALL).await.unwrap()),
        [2, 3, 4]
    );
    log.trim("n/b", Offset(1)).await.unwrap();
    assert_eq!(log.bounds("n/b"), bounds(2, 5));
    drop(log);
    let log = subject.open().await;
    assert_eq!(log.bounds("n/b"), bounds(2, 5));
    assert_eq!(
        offsets(&log.read("n/b", Offset(0), ALL).await.unwrap()),
        [2, 3, 4]
    );
    assert_eq!(log.offset_at("n/b", at(-1)).await.unwrap(), Offset(2));
}

pub(crate) async fn a_log_that_was_trimmed_whole_goes_on_counting(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/b", payloads(&["0", "1", "2"]), at(0))
        .await
        .unwrap();
    log.trim("n/b", Offset(100)).await.unwrap();
    assert_eq!(log.bounds("n/b"), bounds(3, 3));
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap(), []);
    assert_eq!(log.used(), []);
    drop(log);
    let log = subject.open().await;
    assert_eq!(log.bounds("n/b"), bounds(3, 3));
    assert_eq!(
        log.append("n/b", payloads(&["3"]), at(1)).await.unwrap(),
        Offset(3)
    );
    assert_eq!(
        log.read("n/b", Offset(0), ALL).await.unwrap(),
        [record(3, 1, "3")]
    );
}

pub(crate) async fn a_time_is_found(subject: impl Tested) {
    let log = subject.open().await;
    for (millis, text) in [(10, "0"), (20, "1"), (20, "2"), (30, "3")] {
        log.append("n/b", payloads(&[text]), at(millis)).await.unwrap();
    }
    for (millis, offset) in [(0, 0), (10, 0), (11, 1), (20, 1), (21, 3), (30, 3), (31, 4)] {
        assert_eq!(
            log.offset_at("n/b", at(millis)).await.unwrap(),
            Offset(offset),
            "{millis}"
        );
    }
    log.trim("n/b", Offset(2)).await.unwrap();
    for (millis, offset) in [(0, 2), (20, 2), (30, 3), (31, 4)] {
        assert_eq!(
            log.offset_at("n/b", at(millis)).await.unwrap(),
            Offset(offset),
            "{millis} after the trim"
        );
    }
}

/// A search by time must work even after a clock was set back.
pub(crate) async fn times_never_decrease(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/b", payloads(&["0"]), at(50)).await.unwrap();
    log.append("n/b", payloads(&["1"]), at(40)).await.unwrap();
    drop(log);
    let log = subject.open().await;
    log.append("n/b", payloads(&["2"]), at(45)).await.unwrap();
    log.append("n/b", payloads(&["3"]), at(60)).await.unwrap();
    let records = log.read("n/b", Offset(0), ALL).await.unwrap();
    assert!(records.is_sorted_by_key(|record| record.accepted), "{records:?}");
    assert_eq!(log.offset_at("n/b", at(60)).await.unwrap(), Offset(3));
}

pub(crate) async fn checkpoints_are_kept(subject: impl Tested) {
    let log = subject.open().await;
    let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    log.save(vec![("n/t1".into(), value("1")), ("n/t2".into(), value("2"))])
        .await
        .unwrap();
    log.save(vec![
        ("n/t1".into(), value("")),
        ("n/t2".into(), None),
        ("n/t3".into(), value("3")),
    ])
    .await
    .unwrap();
    log.save(vec![("n/never".into(), None)]).await.unwrap();
    log.save(vec![]).await.unwrap();
    let expected = [
        ("n/t1".to_owned(), Bytes::new()),
        ("n/t3".to_owned(), Bytes::from_static(b"3")),
    ];
    let sorted = async |log: &dyn LogProvider| {
        let mut cursors = log.stored().await.unwrap();
        cursors.sort();
        cursors
    };
    assert_eq!(sorted(&log).await, expected);
    for (key, value) in [("n/t2", None), ("n/t3", value("3"))] {
        assert_eq!(log.checkpoint(key).await.unwrap(), value, "{key}");
    }
    drop(log);
    assert_eq!(sorted(&subject.open().await).await, expected);
}

pub(crate) async fn the_end_is_watched(subject: impl Tested) {
    let log = subject.open().await;
    let mut early = log.follow("n/b");
    log.append("n/b", payloads(&["0", "1"]), at(0)).await.unwrap();
    early.changed().await.unwrap();
    assert_eq!(*early.borrow_and_update(), Offset(2));
    let late = log.follow("n/b");
    assert_eq!(*late.borrow(), Offset(2));
    log.append("n/other", payloads(&["0"]), at(0)).await.unwrap();
    assert!(!early.has_changed().unwrap());
}

pub(crate) async fn a_reader_follows_the_writers(subject: impl Tested) {
    const RECORDS: u64 = 200;
    let log = subject.open().await;
    let write = async {
        for n in 0..RECORDS {
            log.append("n/b", payloads(&[&n.to_string()]), at(0))
                .await
                .unwrap();
        }
    };
    let read = async {
        let mut end = log.follow("n/b");
        let mut next = Offset(0);
        while next.0 < RECORDS {
            let limit = ReadLimit {
                records: 7,
                bytes: usize::MAX,
            };
            let records = log.read("n/b", next, limit).await.unwrap();
            if records.is_empty() {
                end.wait_for(|end| *end > next).await.unwrap();
            }
            for record in records {
                assert_eq!(record.offset, next);
                assert_eq!(record.payload, next.to_string().as_bytes());
                next = next.plus(1);
            }
        }
    };
    futures::join!(write, read);
}

pub(crate) async fn usage_is_of_retained_payloads(subject: impl Tested) {
    let log = subject.open().await;
    log.append("n/a", payloads(&["12345", "1234", ""]), at(0))
        .await
        .unwrap();
    log.append("n/b", payloads(&["123"]), at(0)).await.unwrap();
    subject.check_usage(&log, &[("n/a", 9, 3), ("n/b", 3, 1)]);
    log.trim("n/a", Offset(1)).await.unwrap();
    log.trim("n/b", Offset(1)).await.unwrap();
    subject.check_usage(&log, &[("n/a", 4, 2)]);
    drop(log);
    subject.check_usage(&subject.open().await, &[("n/a", 4, 2)]);
}

pub(crate) async fn large_records_are_stored(subject: impl Tested) {
    let log = subject.open().await;
    let large: Bytes = (0..700_000_u32)
        .map(|n| (n % 251) as u8)
        .collect::<Vec<_>>()
        .into();
    for offset in 0..12 {
        assert_eq!(
            log.append("n/b", vec![large.clone()], at(0)).await.unwrap(),
            Offset(offset)
        );
    }
    let limit = ReadLimit {
        records: 100,
        bytes: 1_500_000,
    };
    let records = log.read("n/b", Offset(0), limit).await.unwrap();
    assert_eq!(offsets(&records), [0, 1]);
    assert!(records.iter().all(|record| record.payload == large));
}

/// Keys and digests of the retained records.
async fn stored_ids(log: &impl LogProvider, key: &str) -> Vec<String> {
    let records = log.read(key, Offset(0), ALL).await.unwrap();
    let text = |record: LogRecord| String::from_utf8(record.payload.to_vec()).unwrap();
    let texts = records.into_iter().map(text);
    texts
        .map(|text| text.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

pub(crate) async fn repeats_are_not_stored(subject: impl Tested) {
    let mut log = subject.open().await;
    let stored = |first, repeats| Appended {
        first: Offset(first),
        repeats,
    };
    let appended = log.append_unique("n/b", &[(1, 1), (2, 1)], 0).await.unwrap();
    assert_eq!(appended, stored(0, 0));
    for _ in 0..2 {
        let repeated = log.append_unique("n/b", &[(2, 1)], 5).await.unwrap();
        assert_eq!(repeated.repeats, 1);
        let repeated = log.append_unique("n/b", &[(1, 1), (2, 1)], 5).await.unwrap();
        assert_eq!(repeated.repeats, 2);
        log = reopened(&subject, log).await;
    }
    let appended = log.append_unique("n/b", &[(1, 1), (3, 1), (2, 1)], 9).await;
    assert_eq!(appended.unwrap(), stored(2, 2));
    // The same key with another digest.
    for (records, expected) in [(&[(3, 2)][..], 0), (&[(2, 1), (3, 2)], 1)] {
        let conflict = log.append_unique("n/b", records, 10).await;
        let Err(LogError::Conflict { index, accepted }) = conflict else {
            panic!("{conflict:?}");
        };
        assert_eq!((index, accepted), (expected, at(9)));
    }
    // Without identities nothing is compared.
    log.append("n/b", payloads(&["4 1 x"]), at(11)).await.unwrap();
    let other = log.append_unique("n/c", &[(1, 2)], 12).await.unwrap();
    assert_eq!(other, stored(0, 0), "another broker");
    assert_eq!(stored_ids(&log, "n/b").await, ["1 1", "2 1", "3 1", "4 1"]);
    assert_eq!(log.usage().len(), 2, "{:?}", log.usage());
}

async fn reopened<T: Tested>(subject: &T, log: T::Logs) -> T::Logs {
    drop(log);
    subject.open().await
}

pub(crate) async fn concurrent_repeats_are_stored_once(subject: impl Tested) {
    let log = subject.open().await;
    let requests = (0..60_u8).map(|number| {
        let (one, other) = (number % 10, 10 + number % 7);
        let records = match number % 3 {
            0 => vec![(one, 1)],
            1 => vec![(one, 1), (other, 1)],
            _ => vec![(other, 1), (other + 100, 1), (one, 1)],
        };
        let requested = log.append_unique("n/b", &records, 0);
        async move { (records.len(), requested.await.unwrap().repeats) }
    });
    let answers = futures::future::join_all(requests).await;
    let (requested, repeats) = answers.into_iter().fold((0, 0), |(all, of), (records, repeats)| {
        (all + records, of + repeats)
    });
    let mut stored = stored_ids(&log, "n/b").await;
    assert_eq!(stored.len(), requested - repeats);
    stored.sort();
    let before = stored.len();
    stored.dedup();
    assert_eq!(stored.len(), before, "an event is stored twice");
    assert_eq!(stored.len(), 10 + 7 + 7);
}

pub(crate) async fn repeats_of_trimmed_records_are_known(subject: impl Tested) {
    let log = subject.open().await;
    log.append_unique("n/b", &[(1, 1), (2, 1)], 0).await.unwrap();
    log.trim("n/b", Offset(2)).await.unwrap();
    let repeated = log.append_unique("n/b", &[(1, 1), (3, 1)], 1).await.unwrap();
    assert_eq!((repeated.first, repeated.repeats), (Offset(2), 1));
    if !log.remembers_by_records() {
        let log = reopened(&subject, log).await;
        let repeated = log
            .append_unique("n/b", &[(1, 1), (2, 1), (4, 1)], 1)
            .await
            .unwrap();
        assert_eq!((repeated.first, repeated.repeats), (Offset(3), 2));
    }
}

/// A step of the model test.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Append {
        broker: usize,
        lengths: Vec<usize>,
        millis: i64,
    },
    Read {
        broker: usize,
        from: u64,
        records: usize,
        bytes: usize,
    },
    Trim {
        broker: usize,
        before: u64,
    },
    Find {
        broker: usize,
        millis: i64,
    },
    SaveCursor {
        key: usize,
        value: Option<u8>,
    },
    Settle,
    Restart,
}

/// Generates steps for [`behaves_like_the_model`].
pub(crate) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let broker = 0..3_usize;
    let step = prop_oneof![
        6 => (broker.clone(), prop::collection::vec(0..2000_usize, 0..5), 0..200_i64)
            .prop_map(|(broker, lengths, millis)| Step::Append { broker, lengths, millis }),
        4 => (broker.clone(), 0..60_u64, 0..9_usize, 0..5000_usize)
            .prop_map(|(broker, from, records, bytes)| Step::Read { broker, from, records, bytes }),
        2 => (broker.clone(), 0..60_u64).prop_map(|(broker, before)| Step::Trim { broker, before }),
        2 => (broker, -10..210_i64).prop_map(|(broker, millis)| Step::Find { broker, millis }),
        2 => (0..3_usize, prop::option::of(any::<u8>())).prop_map(|(key, value)| Step::SaveCursor { key, value }),
        2 => Just(Step::Settle),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..most)
}

/// Model of a broker's log: all records ever appended, and the number of trimmed ones.
#[derive(Default)]
struct Model {
    records: Vec<LogRecord>,
    first: usize,
}

impl Model {
    fn append(&mut self, payloads: &[Bytes], accepted: Timestamp) {
        let last = self
            .records
            .last()
            .map_or(accepted, |record| record.accepted.max(accepted));
        for payload in payloads {
            let offset = Offset(self.records.len() as u64);
            self.records.push(LogRecord {
                offset,
                accepted: last,
                payload: payload.clone(),
            });
        }
    }

    fn read(&self, from: u64, limit: ReadLimit) -> Vec<LogRecord> {
        let from = (from as usize).clamp(self.first, self.records.len());
        let mut bytes = 0;
        let fits = |(n, record): &(usize, &LogRecord)| {
            bytes += record.payload.len();
            *n == 0 || (*n < limit.records && bytes <= limit.bytes)
        };
        self.records[from..]
            .iter()
            .enumerate()
            .take_while(fits)
            .map(|(_, record)| record.clone())
            .collect()
    }

    fn find(&self, time: Timestamp) -> Offset {
        let retained = &self.records[self.first..];
        Offset(
            (self.first
                + retained
                    .iter()
                    .take_while(|record| record.accepted < time)
                    .count()) as u64,
        )
    }

    fn bytes(&self) -> u64 {
        self.records[self.first..]
            .iter()
            .map(|record| record.payload.len() as u64)
            .sum()
    }
}

/// Everything but the payloads, which are too long to print.
fn outline(records: &[LogRecord]) -> Vec<(u64, Timestamp, usize)> {
    records
        .iter()
        .map(|record| (record.offset.0, record.accepted, record.payload.len()))
        .collect()
}

/// Applies the steps to a log and to the model, and compares the two after each.
pub(crate) async fn behaves_like_the_model(subject: impl Tested, steps: Vec<Step>) {
    const BROKERS: [&str; 3] = ["n/a", "n/b", "m/a"];
    let mut models: [Model; 3] = Default::default();
    let mut cursors = BTreeMap::new();
    let mut log = subject.open().await;
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Append {
                broker,
                lengths,
                millis,
            } => {
                let payloads: Vec<Bytes> = lengths
                    .iter()
                    .map(|length| vec![number as u8; *length].into())
                    .collect();
                let first = log
                    .append(BROKERS[broker], payloads.clone(), at(millis))
                    .await
                    .unwrap();
                assert_eq!(first.0, models[broker].records.len() as u64);
                models[broker].append(&payloads, at(millis));
            }
            Step::Read {
                broker,
                from,
                records,
                bytes,
            } => {
                let limit = ReadLimit { records, bytes };
                let read = log.read(BROKERS[broker], Offset(from), limit).await.unwrap();
                let expected = models[broker].read(from, limit);
                assert_eq!(outline(&read), outline(&expected));
                assert!(read == expected);
            }
            Step::Trim { broker, before } => {
                log.trim(BROKERS[broker], Offset(before)).await.unwrap();
                let model = &mut models[broker];
                model.first = model.first.max((before as usize).min(model.records.len()));
            }
            Step::Find { broker, millis } => {
                let found = log.offset_at(BROKERS[broker], at(millis)).await.unwrap();
                assert_eq!(found, models[broker].find(at(millis)));
            }
            Step::SaveCursor { key, value } => {
                let key = format!("n/t{key}");
                let value = value.map(|value| Bytes::from(vec![value]));
                log.save(vec![(key.clone(), value.clone())]).await.unwrap();
                match value {
                    Some(value) => cursors.insert(key, value),
                    None => cursors.remove(&key),
                };
            }
            Step::Settle => subject.settle(&log),
            Step::Restart => {
                drop(log);
                log = subject.open().await;
            }
        }
        let mut usage = Vec::new();
        for (broker, model) in BROKERS.into_iter().zip(&models) {
            assert_eq!(
                log.bounds(broker),
                bounds(model.first as u64, model.records.len() as u64)
            );
            assert_eq!(log.follow(broker).borrow().0, model.records.len() as u64);
            if model.first < model.records.len() {
                usage.push((broker, model.bytes(), (model.records.len() - model.first) as u64));
            }
        }
        usage.sort_unstable();
        subject.check_usage(&log, &usage);
        let mut logged = log.stored().await.unwrap();
        logged.sort();
        assert_eq!(logged, cursors.clone().into_iter().collect::<Vec<_>>());
    }
}
