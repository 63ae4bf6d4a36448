//! Tests of the ids that brokers remember.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    EmbeddedLog, EmbeddedOptions, check, layout, salvage,
    salvage_tests::files,
    tests::{empty_journal, flush, rewrite},
};
use crate::log::{
    Append, Appended, BrokerName, Capacity as _, EventIdentity, IdWindow, KeepIds, LogError, LogName,
    LogProvider as _, Offset, Unique,
    conformance::{ByKey as _, WINDOW, at},
};

const BROKERS: [&str; 3] = ["n/a", "n/b", "m/a"];

fn open(directory: &Path, own_keyspaces: u32, max_ids: usize) -> EmbeddedLog {
    let options = EmbeddedOptions {
        own_keyspaces,
        max_ids,
        ..EmbeddedOptions::default()
    };
    EmbeddedLog::open(directory, options).unwrap()
}

fn window(events: u64) -> IdWindow {
    IdWindow { events, ..WINDOW }
}

fn identity(key: u16) -> EventIdentity {
    let mut bytes = [7; 16];
    bytes[..2].copy_from_slice(&key.to_be_bytes());
    EventIdentity {
        key: bytes,
        digest: key.into(),
    }
}

/// Appends a record for each key, in one request.
async fn append(
    log: &EmbeddedLog,
    broker: &str,
    keys: &[u16],
    millis: i64,
    window: IdWindow,
) -> Result<Appended, LogError> {
    let name = LogName::from_key(broker);
    let append = append_of(keys, millis, window);
    crate::log::LogProvider::open(log, &name).append(append).await
}

fn append_of(keys: &[u16], millis: i64, window: IdWindow) -> Append {
    Append {
        payloads: keys.iter().map(|key| format!("{key}").into()).collect(),
        accepted: at(millis),
        unique: Some(Unique {
            identities: keys.iter().map(|key| identity(*key)).collect(),
            window,
        }),
    }
}

/// Forgets what is outside of the windows of these brokers. The others are gone.
async fn forget(log: &EmbeddedLog, brokers: &[(&str, u64)], millis: Option<i64>) {
    let kept = log.remembered_ids().into_iter().map(|(broker, _)| {
        let found = brokers.iter().find(|(name, _)| *name == broker.as_str());
        let kept = found.map_or(KeepIds::Nothing, |(_, events)| KeepIds::Within(window(*events)));
        (broker, kept)
    });
    forget_these(log, kept.collect(), millis).await;
}

async fn forget_these(log: &EmbeddedLog, mut kept: Vec<(BrokerName, KeepIds)>, millis: Option<i64>) {
    while !kept.is_empty() {
        let unfinished = log.forget_ids(kept.clone(), millis.map(at)).await.unwrap();
        kept.retain(|(broker, _)| unfinished.contains(broker));
    }
    // Places are given back after that.
    log.sync().await.unwrap();
}

fn remembered(log: &EmbeddedLog) -> BTreeMap<String, (u64, u64)> {
    let remembered = log.remembered_ids().into_iter();
    remembered
        .filter(|(_, ids)| ids.ids > 0)
        .map(|(broker, ids)| (broker.to_string(), (ids.ids, ids.forgotten_early)))
        .collect()
}

/// Retained bytes of a broker's ids.
fn bytes_of_ids(log: &EmbeddedLog, broker: &str) -> u64 {
    let ids = log.0.shared.brokers.get(&layout::ids_of(broker));
    ids.map_or(0, |ids| ids.state().bytes())
}

#[tokio::test]
async fn ids_are_forgotten_by_age_and_size() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 800, 1000);
    for (key, millis) in [(1, 0), (2, 1000), (3, 2000), (4, 3000)] {
        append(&log, "n/a", &[key], millis, window(3)).await.unwrap();
    }
    assert_eq!(remembered(&log), [("n/a".to_owned(), (3, 1))].into());
    assert_eq!(bytes_of_ids(&log, "n/a"), 4 * 24, "trimmed later");
    forget(&log, &[("n/a", 3)], None).await;
    assert_eq!(bytes_of_ids(&log, "n/a"), 3 * 24);
    let age = i64::try_from(WINDOW.age.as_millis()).unwrap();
    forget(&log, &[("n/a", 3)], Some(age + 1999)).await;
    assert_eq!(remembered(&log), [("n/a".to_owned(), (2, 1))].into());
    forget(&log, &[("n/a", 3)], Some(age + 2000)).await;
    assert_eq!(remembered(&log), [("n/a".to_owned(), (1, 1))].into());
    assert_eq!(bytes_of_ids(&log, "n/a"), 24);
    // Both the size and the age hold after a restart.
    drop(log);
    let log = open(directory.path(), 800, 1000);
    assert_eq!(remembered(&log), [("n/a".to_owned(), (1, 0))].into());
    let repeats = append(&log, "n/a", &[3, 4], 4000, window(3))
        .await
        .unwrap()
        .repeats;
    assert_eq!(repeats, 1);
}

#[tokio::test]
async fn a_broker_without_deduplication_forgets_and_gives_its_place_back() {
    let directory = tempfile::tempdir().unwrap();
    for own_keyspaces in [800, 0] {
        let log = open(directory.path(), own_keyspaces, 1000);
        append(&log, "n/a", &[1, 2], 0, WINDOW).await.unwrap();
        append(&log, "n/b", &[1], 0, WINDOW).await.unwrap();
        let held = log.shares()[0].held;
        forget(&log, &[("n/b", 10)], None).await;
        assert_eq!(remembered(&log), [("n/b".to_owned(), (1, 0))].into());
        assert_eq!(log.shares()[0].held, held - 2 * 24);
        let place = log.0.shared.brokers.get("n/a.ids");
        assert!(place.is_none_or(|ids| !ids.is_stored()));
        assert_eq!(log.names(), ["n/a", "n/b"].map(LogName::from_key));
        assert_eq!(log.bounds("n/a").next.0 - log.bounds("n/a").first.0, 2);
        // As a new one: what was forgotten is not known, not even after a restart.
        drop(log);
        let log = open(directory.path(), own_keyspaces, 1000);
        let appended = append(&log, "n/a", &[2, 3], 1, WINDOW).await.unwrap();
        assert_eq!(appended.repeats, 0);
        forget(&log, &[], None).await;
        log.trim("n/a", Offset(4)).await.unwrap();
        log.trim("n/b", Offset(1)).await.unwrap();
        log.give_back(&log.empty_logs()).await.unwrap();
        drop(log);
        assert!(check(directory.path()).unwrap().is_whole());
    }
}

#[tokio::test]
async fn a_broker_that_is_not_named_forgets_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 800, 1000);
    append(&log, "n/a", &[1], 0, WINDOW).await.unwrap();
    let before = log.remembered_ids();
    // Its first event since they were looked at.
    append(&log, "n/b", &[1], 0, WINDOW).await.unwrap();
    let kept = before
        .into_iter()
        .map(|(broker, _)| (broker, KeepIds::Within(WINDOW)));
    forget_these(&log, kept.collect(), Some(1)).await;
    assert_eq!(append(&log, "n/b", &[1], 2, WINDOW).await.unwrap().repeats, 1);
}

#[tokio::test]
async fn ids_outlive_deduplication_for_their_window() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 800, 1000);
    append(&log, "n/a", &[1], 0, WINDOW).await.unwrap();
    let off = || vec![("n/a".into(), KeepIds::WithinLast)];
    let age = i64::try_from(WINDOW.age.as_millis()).unwrap();
    forget_these(&log, off(), Some(age - 1)).await;
    assert_eq!(append(&log, "n/a", &[1], 1, WINDOW).await.unwrap().repeats, 1);
    forget_these(&log, off(), Some(age)).await;
    assert_eq!(remembered(&log), BTreeMap::new());
    let is_stored = |broker: &str| {
        let ids = log.0.shared.brokers.get(&layout::ids_of(broker));
        ids.is_some_and(|ids| ids.is_stored())
    };
    assert!(!is_stored("n/a"), "its place is given back");
    forget_these(&log, off(), Some(age)).await;
    assert_eq!(log.remembered_ids(), []);
    assert_eq!(append(&log, "n/a", &[1], age, WINDOW).await.unwrap().repeats, 0);
    assert_eq!(append(&log, "n/a", &[1], age, WINDOW).await.unwrap().repeats, 1);
}

#[tokio::test]
async fn the_namespace_that_remembers_most_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path(), 800, 64);
    append(&log, "m/a", &[1, 2, 3], 0, WINDOW).await.unwrap();
    for key in 0..200 {
        append(&log, "n/a", &[key], 0, WINDOW).await.unwrap();
        append(&log, "n/b", &[key], 0, WINDOW).await.unwrap();
    }
    let of = remembered(&log);
    assert_eq!(of["m/a"], (3, 0));
    let all: u64 = of.values().map(|(ids, _)| ids).sum();
    assert!((50..=64).contains(&all), "{of:?}");
    assert!(of["n/a"].0 >= 20 && of["n/b"].0 >= 20, "{of:?}");
    assert_eq!(of["n/a"].0 + of["n/a"].1, 200);
    assert_eq!(append(&log, "n/a", &[199], 0, WINDOW).await.unwrap().repeats, 1);
    // Also while they are loaded.
    drop(log);
    let log = open(directory.path(), 800, 32);
    let all: u64 = remembered(&log).values().map(|(ids, _)| ids).sum();
    assert!(all <= 32);
    assert_eq!(remembered(&log)["m/a"].0, 3);
}

#[tokio::test]
async fn a_full_log_recognizes_repeats() {
    let directory = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        max_bytes: 2000,
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    let mut key = 0;
    let full = loop {
        match append(&log, "n/a", &[key], 0, WINDOW).await {
            Ok(_) => key += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, LogError::Quota(_)), "{full}");
    assert_eq!(
        append(&log, "n/a", &[0, key - 1], 0, WINDOW)
            .await
            .unwrap()
            .repeats,
        2
    );
    assert!(append(&log, "n/a", &[0, key], 0, WINDOW).await.is_err());
    let appending = append_of(&[0, key, key - 1], 0, WINDOW);
    let to_store = crate::log::LogProvider::open(&log, &LogName::from_key("n/a"));
    let to_store = to_store.bytes_to_store(&appending).await.unwrap();
    assert_eq!(to_store, key.to_string().len() as u64);
    let held = log.shares()[0].held;
    let events: u64 = (0..key).map(|key| key.to_string().len() as u64).sum();
    assert_eq!(held, events + u64::from(key) * 24, "the ids count");
}

#[tokio::test]
async fn ids_survive_a_salvage() {
    let directory = tempfile::tempdir().unwrap();
    let (damaged, whole) = (directory.path().join("damaged"), directory.path().join("whole"));
    let log = open(&damaged, 800, 1000);
    append(&log, "n/a", &[1, 2], 0, WINDOW).await.unwrap();
    append(&log, "n/a", &[3], 0, WINDOW).await.unwrap();
    // Ids outlive the events.
    append(&log, "n/b", &[4], 0, WINDOW).await.unwrap();
    log.trim("n/b", Offset(1)).await.unwrap();
    assert_eq!(log.give_back(&log.empty_logs()).await.unwrap(), 1);
    drop(log);
    let report = salvage(&damaged, &whole).unwrap();
    assert!(report.is_whole(), "{report}");
    let log = open(&whole, 800, 1000);
    for (broker, keys) in [("n/a", &[1, 2, 3][..]), ("n/b", &[4])] {
        let appended = append(&log, broker, keys, 1, WINDOW).await.unwrap();
        assert_eq!(appended.repeats, keys.len(), "{broker}");
    }
}

/// Damages an event in its table, in which it is alone, and removes the journal. Its id is in another table.
fn lose(directory: &Path, event: u16) {
    empty_journal(directory);
    let payload = event.to_string().into_bytes();
    let place_in = |bytes: &[u8]| bytes.windows(payload.len()).position(|window| window == payload);
    let mut files = files(&directory.join("store/keyspaces")).into_iter();
    let found = files.find_map(|(path, bytes)| place_in(&bytes).map(|place| (path, bytes, place)));
    let (path, mut bytes, place) = found.unwrap();
    bytes[place] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Salvages a log that has lost this event. Returns the brokers that remember ids afterwards.
async fn remembering_after_the_loss_of(event: u16) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let (damaged, salvaged) = (
        directory.path().join("damaged"),
        directory.path().join("salvaged"),
    );
    let log = open(&damaged, 800, 1000);
    for (broker, events) in [("n/a", &[12345, 23456, 34567][..]), ("n/b", &[45678, 56789])] {
        for event in events {
            append(&log, broker, &[*event], 0, WINDOW).await.unwrap();
            flush(&log);
        }
    }
    log.close().await.unwrap();
    lose(&damaged, event);
    let report = salvage(&damaged, &salvaged).unwrap();
    assert_eq!(report.lost_records(), 1, "{report}");
    assert_eq!(report.to_string(), check(&damaged).unwrap().to_string());
    let checked = check(&salvaged).unwrap();
    assert!(checked.is_whole(), "{checked}");
    let log = open(&salvaged, 800, 1000);
    let remembering: Vec<_> = remembered(&log).into_keys().collect();
    for broker in ["n/a", "n/b"] {
        let is_told = report.to_string().contains(&format!("{broker}: FORGETS"));
        assert_eq!(is_told, !remembering.contains(&broker.to_owned()), "{report}");
    }
    let broker = if event < 45678 { "n/a" } else { "n/b" };
    let again = append(&log, broker, &[event], 1, WINDOW).await.unwrap();
    assert_eq!(again.repeats, 0, "the lost event is stored when it is sent again");
    let again = append(&log, broker, &[event], 2, WINDOW).await.unwrap();
    assert_eq!(again.repeats, 1);
    remembering
}

#[tokio::test]
async fn a_salvage_forgets_the_ids_of_brokers_that_lost_events() {
    assert_eq!(remembering_after_the_loss_of(23456).await, ["n/b"]);
}

/// Nobody can tell whose event is missing behind the last ones.
#[tokio::test]
async fn a_salvage_forgets_all_ids_if_events_are_missing_at_an_end() {
    for event in [34567, 56789] {
        assert_eq!(remembering_after_the_loss_of(event).await, [""; 0]);
    }
}

#[tokio::test]
async fn only_a_store_with_ids_has_their_format() {
    let directory = tempfile::tempdir().unwrap();
    let format = || open(directory.path(), 800, 1000).0.shared.store.format;
    assert_eq!(format(), layout::FIRST_FORMAT);
    let log = open(directory.path(), 800, 1000);
    log.append("n/a", vec!["a".into()], at(0)).await.unwrap();
    drop(log);
    assert_eq!(format(), layout::FIRST_FORMAT);
    let log = open(directory.path(), 800, 1000);
    append(&log, "n/a", &[1], 0, WINDOW).await.unwrap();
    drop(log);
    assert_eq!(format(), layout::FORMAT);
}

#[derive(Clone, Debug)]
enum IdStep {
    /// Requests sent at once: for a broker, its keys.
    Append(Vec<(usize, Vec<u16>)>),
    /// The time passes, and brokers forget; those that are not listed have no deduplication.
    Forget(i64, Vec<bool>),
    Trim(usize),
    Rewrite,
    Restart,
}

fn id_steps() -> impl Strategy<Value = Vec<IdStep>> {
    let keys = prop::collection::btree_set(0_u16..24, 1..5);
    let keys = keys.prop_map(|keys| keys.into_iter().collect());
    let requests = prop::collection::vec((0..BROKERS.len(), keys), 1..6);
    let step = prop_oneof![
        6 => requests.prop_map(IdStep::Append),
        2 => (0_i64..400_000, prop::collection::vec(prop::bool::weighted(0.9), BROKERS.len()))
            .prop_map(|(millis, kept)| IdStep::Forget(millis, kept)),
        1 => (0..BROKERS.len()).prop_map(IdStep::Trim),
        1 => Just(IdStep::Rewrite),
        1 => Just(IdStep::Restart),
    ];
    prop::collection::vec(step, 1..40)
}

/// Times of the ids of a broker.
type IdTimes = HashMap<u16, i64>;

async fn behaves_like_the_model(steps: Vec<IdStep>, own_keyspaces: u32) {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(directory.path(), own_keyspaces, 1000);
    let mut models = [(); BROKERS.len()].map(|()| IdTimes::new());
    let mut now = 0;
    let age = i64::try_from(WINDOW.age.as_millis()).unwrap();
    for step in steps {
        match step {
            IdStep::Append(requests) => {
                let sent = requests.iter().map(|(broker, keys)| {
                    let appending = append(&log, BROKERS[*broker], keys, now, WINDOW);
                    async { appending.await.unwrap().repeats }
                });
                let repeats: usize = futures::future::join_all(sent).await.into_iter().sum();
                let mut expected = 0;
                for (broker, keys) in requests {
                    for key in keys {
                        match models[broker].entry(key) {
                            std::collections::hash_map::Entry::Occupied(_) => expected += 1,
                            std::collections::hash_map::Entry::Vacant(entry) => {
                                entry.insert(now);
                            }
                        }
                    }
                }
                assert_eq!(repeats, expected);
            }
            IdStep::Forget(passed, kept) => {
                now += passed;
                let windows: Vec<_> = BROKERS
                    .iter()
                    .zip(&kept)
                    .filter(|(_, kept)| **kept)
                    .map(|(broker, _)| (*broker, WINDOW.events))
                    .collect();
                forget(&log, &windows, Some(now)).await;
                for (model, kept) in models.iter_mut().zip(kept) {
                    model.retain(|_, accepted| kept && *accepted + age > now);
                }
            }
            IdStep::Trim(broker) => {
                let next = log.bounds(BROKERS[broker]).next;
                log.trim(BROKERS[broker], next).await.unwrap();
                log.give_back(&log.empty_logs()).await.unwrap();
            }
            IdStep::Rewrite => {
                flush(&log);
                rewrite(&log);
            }
            IdStep::Restart => {
                drop(log);
                let report = check(directory.path()).unwrap();
                assert!(report.is_whole(), "{report}");
                log = open(directory.path(), own_keyspaces, 1000);
            }
        }
        let of = remembered(&log);
        for (broker, model) in BROKERS.iter().zip(&models) {
            let ids = of.get(*broker).map_or(0, |(ids, _)| *ids);
            assert_eq!(ids, model.len() as u64, "{broker}");
            assert!(bytes_of_ids(&log, broker) >= 24 * ids);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    /// Whatever is sent again, at once or later, forgotten, trimmed and restarted in between.
    #[test]
    fn ids_behave_like_the_model(steps in id_steps(), own_keyspaces in prop::sample::select(vec![0, 2, 800])) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(behaves_like_the_model(steps, own_keyspaces));
    }
}

fn open_log(name: &str) -> Arc<super::broker::OpenLog> {
    let turns = super::reads::Turns::new(super::reads::Turns::of_namespace());
    Arc::new(super::broker::OpenLog::new(name, turns, 0))
}

/// An index in which a broker remembers so many ids, each from a commit of its own.
fn index_of(broker: &Arc<str>, ids: u32, window: IdWindow) -> super::ids::IdIndex {
    let mut index = super::ids::IdIndex::new(usize::MAX);
    for number in 0..ids {
        index.remember(broker, &[numbered(number)], 0, window, || open_log("n/a.ids"));
        index.close(broker);
    }
    index
}

fn numbered(number: u32) -> EventIdentity {
    let mut key = [7; 16];
    key[..4].copy_from_slice(&number.to_be_bytes());
    EventIdentity {
        key,
        digest: number.into(),
    }
}

/// More than this would let appends wait for too long.
const AT_ONCE: u64 = 5000;

#[test]
fn ids_are_forgotten_some_at_a_time() {
    let broker: Arc<str> = "n/a".into();
    let mut index = index_of(&broker, 20_000, window(1_000_000));
    let ids = |index: &super::ids::IdIndex| index.remembered_by(&broker).map_or(0, |ids| ids.ids);
    // With a smaller window, an append forgets some more than it brings.
    let small = window(10_000);
    for number in 20_000..20_010 {
        index.remember(&broker, &[numbered(number)], 0, small, || open_log("n/a.ids"));
        index.close(&broker);
    }
    assert_eq!(ids(&index), 20_000 - 10);
    for (kept, left) in [(KeepIds::Within(small), 10_000), (KeepIds::Nothing, 0)] {
        let kept = HashMap::from([(broker.clone(), kept)]);
        loop {
            let before = ids(&index);
            let forgotten = index.forget(&kept, Some(0));
            assert!(before - ids(&index) < AT_ONCE);
            if forgotten.unfinished.is_empty() {
                break;
            }
            assert!(ids(&index) < before, "it goes on");
        }
        assert_eq!(ids(&index), left);
    }
}

#[test]
fn brokers_without_ids_to_forget_are_looked_at_some_at_a_time() {
    let mut index = super::ids::IdIndex::new(usize::MAX);
    let brokers: Vec<Arc<str>> = (0..3000).map(|number| format!("n/b{number}").into()).collect();
    for broker in &brokers {
        index.remember(broker, &[numbered(0)], 0, WINDOW, || open_log("n/b.ids"));
        index.close(broker);
    }
    let mut left: HashMap<_, _> = brokers
        .iter()
        .map(|broker| (broker.clone(), KeepIds::Within(WINDOW)))
        .collect();
    let mut rounds = 0;
    while !left.is_empty() {
        let forgotten = index.forget(&left, Some(0));
        assert!(forgotten.looked_at.len() as u64 <= AT_ONCE / 4);
        left.retain(|broker, _| forgotten.unfinished.contains(broker));
        rounds += 1;
    }
    assert_eq!(rounds, 3);
}

/// What the options, the documentation and the Broker's fields say.
#[test]
fn an_id_takes_about_100_bytes_of_memory() {
    let broker: Arc<str> = "n/a".into();
    for ids in [25_600, 29_000, 40_000, 50_000, 100_000] {
        let index = index_of(&broker, ids, window(u64::MAX));
        let bytes = index.bytes() / ids as usize;
        eprintln!("{ids} ids: {bytes} bytes each");
        assert!(bytes < 115, "{ids} ids: {bytes} bytes each");
    }
}

#[test]
fn the_index_is_bounded_by_the_newest() {
    let mut index = super::ids::IdIndex::new(100);
    let broker: Arc<str> = "n/a".into();
    let window = IdWindow {
        age: Duration::from_secs(1),
        events: 10,
    };
    for key in 0..50 {
        index.remember(&broker, &[identity(key)], i64::from(key) * 100, window, || {
            open_log("n/a.ids")
        });
        assert!(index.close(&broker).is_some());
    }
    assert!(index.close(&broker).is_none(), "nothing new");
    let remembered = index.remembered_by(&broker).unwrap();
    // At ten a second they are forgotten by their number as they reach the age.
    assert_eq!((remembered.ids, remembered.forgotten_early), (10, 0));
    assert!(index.find(&broker, &identity(40).key).is_some());
    assert!(index.find(&broker, &identity(39).key).is_none());
}
