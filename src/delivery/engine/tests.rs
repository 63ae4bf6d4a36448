//! Tests of the whole of delivery on a real log.

use std::{net::SocketAddr, sync::atomic::AtomicU64, time::Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    cloudevents::EventBuilder,
    delivery::progress::Progress,
    log::{
        Offset,
        conformance::ByKey as _,
        embedded::{EmbeddedLog, EmbeddedOptions},
        memory::{MemoryLogs, Operation},
    },
    routing::{Configuration, Delivery},
};

const BROKER: &str = "shop/default";
const PATIENCE: Duration = Duration::from_secs(30);

async fn eventually(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

async fn start(log: Arc<dyn LogProvider>) -> Arc<Engine> {
    let client = Client::for_test();
    Engine::start(
        log,
        crate::log::Ownership::default(),
        client,
        DeliveryOptions::default(),
        Arc::default(),
        Supervisor::default(),
        &runtime::Handle::current(),
    )
    .await
    .unwrap()
}

fn open(directory: &tempfile::TempDir) -> EmbeddedLog {
    EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap()
}

/// A Trigger whose Sink never answers.
fn trigger(uid: &str, start: &Value, suspend: bool) -> Value {
    json!({
        "uid": uid, "namespace": "shop", "name": uid, "generation": 1, "broker": "default", "filters": [],
        "destination": {"uri": "http://127.0.0.1:9/", "service": null, "contentMode": "AsReceived"},
        "delivery": Delivery::default(), "start": start, "suspend": suspend,
    })
}

fn table_of(triggers: Vec<Value>) -> RoutingTable {
    let triggers = triggers.into_iter().map(serde_json::from_value);
    RoutingTable::compile(Configuration {
        triggers: triggers.collect::<Result<_, _>>().unwrap(),
        ..Configuration::default()
    })
}

fn table(triggers: &[(&str, Value)]) -> RoutingTable {
    let triggers = triggers.iter().map(|(uid, start)| trigger(uid, start, false));
    table_of(triggers.collect())
}

/// Logs that cannot find offsets by time: unavailable `away` times, then damaged if `is_damaged`.
fn without_times(away: &Arc<AtomicU64>, is_damaged: bool) -> Arc<MemoryLogs> {
    let (logs, away) = (MemoryLogs::default(), away.clone());
    logs.set_fault(move |operation, _| {
        if operation != Operation::FindTime {
            return None;
        }
        let is_away = away.try_update(Relaxed, Relaxed, |left| left.checked_sub(1));
        match is_away {
            Ok(_) => Some(LogError::Unavailable("EIO".to_owned())),
            Err(_) => is_damaged.then(|| LogError::Damaged {
                path: "log".into(),
                detail: "offset 0".to_owned(),
            }),
        }
    });
    Arc::new(logs)
}

#[tokio::test]
async fn damage_at_the_start_position_stops_only_that_trigger() {
    let log = without_times(&Arc::default(), true);
    let engine = start(log.clone()).await;
    let table = table(&[
        ("latest", json!("Latest")),
        ("timed", json!({"At": "2026-01-01T00:00:00Z"})),
    ]);
    engine.apply(&table).await.unwrap();
    let views = engine.triggers();
    let stopped = || {
        views
            .iter()
            .map(|view| view.stats.is_stopped())
            .collect::<Vec<_>>()
    };
    eventually(|| stopped() == [false, true]).await;
    let cursors = log.stored().await.unwrap();
    let kept: Vec<_> = cursors.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(
        kept,
        ["latest", "trigger:latest"],
        "the start position is not stored"
    );
    engine.shutdown().await;
}

#[tokio::test]
async fn a_trigger_waits_while_its_start_position_is_unavailable() {
    let away = Arc::new(AtomicU64::new(2));
    let log = without_times(&away, false);
    let record = || vec![Bytes::from_static(&[9, 0])];
    log.append(BROKER, record(), Timestamp::UNIX_EPOCH).await.unwrap();
    let engine = start(log.clone()).await;
    let since = json!({"At": "2026-01-01T00:00:00Z"});
    engine.apply(&table(&[("timed", since.clone())])).await.unwrap();
    let stats = engine.triggers()[0].stats.clone();
    log.append(BROKER, record(), Timestamp::now()).await.unwrap();
    assert_eq!((engine.triggers()[0].hold.low(), stats.missed()), (Offset(0), 0));
    eventually(|| stats.next() == Offset(2)).await;
    assert_eq!((stats.missed(), stats.is_stopped()), (1, false));

    // Deleting the Trigger meanwhile does not wait for the log.
    away.store(u64::MAX, Relaxed);
    engine
        .apply(&table(&[("timed", since.clone()), ("other", since.clone())]))
        .await
        .unwrap();
    engine.apply(&table(&[("timed", since)])).await.unwrap();
    assert_eq!(engine.triggers().len(), 1);
    engine.shutdown().await;
}

/// A Sink that answers each request with an event of type `answer`.
async fn replying() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8192];
            let _ = stream.read(&mut request).await.unwrap();
            let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\nce-specversion: 1.0\r\n\
                          ce-id: 1\r\nce-source: /sink\r\nce-type: answer\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn an_attempt_ends_although_its_reply_cannot_be_stored() {
    let log = MemoryLogs::default();
    let appends = AtomicU64::new(0);
    log.set_fault(move |operation, _| {
        let is_first_reply = operation == Operation::Append && appends.fetch_add(1, Relaxed) == 1;
        is_first_reply.then(|| LogError::Unavailable("EIO".to_owned()))
    });
    let log: Arc<dyn LogProvider> = Arc::new(log);
    let engine = start(log.clone()).await;
    let mut asking = trigger("u", &json!("Latest"), false);
    asking["destination"]["uri"] = format!("http://{}/", replying().await).into();
    asking["filters"] = json!([{"exact": {"type": "t"}}]);
    engine.apply(&table_of(vec![asking])).await.unwrap();
    append(&log, 1).await;
    let stats = engine.triggers()[0].stats.clone();
    eventually(|| stats.delivered() == 1).await;
    assert_eq!(
        (stats.attempts(), stats.failed_attempts(), stats.replies_stored()),
        (2, 1, 1)
    );
    assert_eq!(stats.in_flight(), 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn readers_of_brokers_without_triggers_stop() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = start(log.clone()).await;
    let tasks = engine.spawner.tasks.len();
    for round in 0..3 {
        engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
        assert_eq!(engine.running.lock().await.readers.len(), 1);
        let record = vec![Bytes::from_static(&[9, 0])];
        log.append(BROKER, record, Timestamp::now()).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        eventually(|| stats.missed() == 1).await;
        engine.apply(&table(&[])).await.unwrap();
        assert!(engine.running.lock().await.readers.is_empty(), "round {round}");
        eventually(|| engine.spawner.tasks.len() == tasks).await;
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_position_beyond_the_end_of_the_log_skips_no_new_event() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let other_version = || vec![Bytes::from_static(&[9, 0])];
    let dead_letters = format!("{BROKER}.dead-letters");
    for key in [BROKER, &dead_letters] {
        log.append(key, other_version(), Timestamp::now()).await.unwrap();
    }
    let mut beyond = Progress::starting_at(Offset(1));
    beyond.matched(Offset(6));
    let redriven = TakenLetters::default().change(&BROKER.into(), [Offset(0), Offset(1)].into_iter());
    let cursors = vec![
        ("u".to_owned(), Some(beyond.encode(BROKER, Instant::now()).into())),
        (redriven.0.to_string(), redriven.1),
    ];
    log.save(cursors).await.unwrap();

    let engine = start(log.clone()).await;
    engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
    let stats = engine.triggers()[0].stats.clone();
    assert_eq!(
        (stats.next(), stats.dropped(), stats.pending()),
        (Offset(1), 1, 0)
    );
    let stored: HashMap<_, _> = log.stored().await.unwrap().into_iter().collect();
    assert_eq!(
        Progress::decode(&stored["u"], Instant::now()).unwrap().next(),
        Offset(1)
    );
    let restored = TakenLetters::default();
    restored
        .restore(BROKER.into(), &stored["dead-letters:shop/default"])
        .unwrap();
    assert_eq!(restored.count_from(&BROKER.into(), Offset(0)), 1);
    log.append(BROKER, other_version(), Timestamp::now())
        .await
        .unwrap();
    eventually(|| stats.missed() == 1).await;
    log.append(&dead_letters, other_version(), Timestamp::now())
        .await
        .unwrap();
    assert_eq!(engine.dead_letter_brokers(), [(BROKER.into(), 1)]);
    engine.shutdown().await;
}

/// On one thread two configurations arrive before the dispatcher sees the first.
#[tokio::test]
async fn a_suspension_that_the_dispatcher_misses_does_not_stall_it() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = start(log.clone()).await;
    let with_suspend = |suspend| table_of(vec![trigger("u", &json!("Latest"), suspend)]);
    engine.apply(&with_suspend(false)).await.unwrap();
    let inbox = engine.running.lock().await.triggers["u"].inbox.clone();
    eventually(|| inbox.is_attached()).await;
    engine.apply(&with_suspend(true)).await.unwrap();
    engine.apply(&with_suspend(false)).await.unwrap();
    let other_version = vec![Bytes::from_static(&[9, 0])];
    log.append(BROKER, other_version, Timestamp::now()).await.unwrap();
    let stats = engine.triggers()[0].stats.clone();
    eventually(|| stats.missed() == 1).await;
    engine.shutdown().await;
}

#[tokio::test]
async fn unsettled_events_of_an_undecodable_trigger_stay_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = start(log.clone()).await;
    engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
    engine.shutdown().await;
    let event = vec![Bytes::from_static(b"event")];
    log.append(BROKER, event, Timestamp::UNIX_EPOCH).await.unwrap();

    let engine = start(log.clone()).await;
    let first_after = async |unread: &[&str]| {
        let configuration = Configuration {
            unread: unread.iter().map(|&uid| uid.into()).collect(),
            ..Configuration::default()
        };
        let table = RoutingTable::compile(configuration);
        engine.apply(&table).await.unwrap();
        let first = trim(&engine, &log).await;
        (first, engine.retained_count())
    };
    assert_eq!(
        first_after(&["u"]).await,
        (Offset(0), 0),
        "old, but held for the Trigger"
    );
    assert_eq!(first_after(&[]).await, (Offset(0), 1), "deleted");
    assert_eq!(first_after(&["u"]).await, (Offset(0), 0), "undecodable again");
    engine.shutdown().await;
}

/// While the Trigger waits for its first event, another broker comes and goes.
#[tokio::test]
async fn a_trigger_misses_nothing_though_its_log_begins_further_on_than_it_was_placed() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = start(log.clone()).await;
    let wanted = table(&[("u", json!("Latest"))]);
    engine.apply(&wanted).await.unwrap();
    let gone = "gone/b";
    log.append(gone, vec![Bytes::new(); 5], Timestamp::UNIX_EPOCH)
        .await
        .unwrap();
    log.trim(gone, Offset(5)).await.unwrap();
    trim(&engine, &log).await;
    engine.shutdown().await;
    drop((engine, log));

    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    assert_eq!(log.bounds(BROKER).next, Offset(5), "{gone} was given back");
    let engine = start(log.clone()).await;
    engine.apply(&wanted).await.unwrap();
    append(&log, 2).await;
    let stats = engine.triggers()[0].stats.clone();
    eventually(|| stats.matched() == 2 && stats.next() == Offset(7)).await;
    assert_eq!((stats.missed(), stats.dropped()), (0, 0));
    engine.shutdown().await;
}

/// A Trigger whose name differs from its UID.
fn named(uid: &str, name: &str, more: Value) -> Value {
    let mut trigger = trigger(uid, &json!("Latest"), false);
    trigger["name"] = name.into();
    trigger
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    trigger
}

async fn append(log: &Arc<dyn LogProvider>, events: usize) {
    let event = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/s")
        .attribute("type", "t");
    let events = vec![event.build().unwrap().to_record(); events];
    log.append(BROKER, events, Timestamp::UNIX_EPOCH).await.unwrap();
}

/// A Trigger with UID `a` and name `t` that wants three events and whose Sink never answers.
async fn with_backlog(log: &Arc<dyn LogProvider>) -> Arc<Engine> {
    let engine = start(log.clone()).await;
    engine
        .apply(&table_of(vec![named("a", "t", json!({}))]))
        .await
        .unwrap();
    append(log, 3).await;
    let stats = engine.triggers()[0].stats.clone();
    eventually(|| stats.matched() == 3 && stats.next() == Offset(3)).await;
    let saved = async || {
        Progress::decode(&log.checkpoint("a").await.unwrap().unwrap(), Instant::now())
            .unwrap()
            .pending()
    };
    while saved().await < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    engine
}

async fn keys(log: &Arc<dyn LogProvider>) -> Vec<String> {
    let cursors = log.stored().await.unwrap();
    cursors.into_iter().map(|(key, _)| key).collect()
}

/// Matched, pending and next offset of the Trigger with this UID.
fn figures(engine: &Engine, uid: &str) -> (u64, u64, Offset) {
    let triggers = engine.triggers();
    let view = triggers.iter().find(|view| view.uid == uid).unwrap();
    (view.stats.matched(), view.stats.pending(), view.stats.next())
}

async fn trim(engine: &Engine, log: &Arc<dyn LogProvider>) -> Offset {
    engine.trimmer.trim(&[]).await.unwrap();
    log.bounds(BROKER).first
}

#[tokio::test]
async fn a_trigger_resumes_from_a_deleted_one_of_its_name() {
    for restarts in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
        let mut engine = with_backlog(&log).await;
        engine.apply(&RoutingTable::default()).await.unwrap();
        append(&log, 2).await;
        if restarts {
            engine.shutdown().await;
            engine = start(log.clone()).await;
            engine.apply(&RoutingTable::default()).await.unwrap();
        }
        assert_eq!((engine.retained_count(), engine.dropped_with_trigger()), (1, 0));
        assert_eq!(
            trim(&engine, &log).await,
            Offset(0),
            "old, but held for a Trigger of its name"
        );
        // A Trigger of another name or broker does not resume from it.
        let others = [
            named("x", "other", json!({})),
            named("y", "t", json!({"broker": "elsewhere"})),
        ];
        engine.apply(&table_of(others.to_vec())).await.unwrap();
        assert_eq!(figures(&engine, "x"), (0, 0, Offset(5)));
        assert_eq!(engine.retained_count(), 1);
        let triggers = vec![others[0].clone(), others[1].clone(), named("b", "t", json!({}))];
        engine.apply(&table_of(triggers)).await.unwrap();
        eventually(|| figures(&engine, "b") == (5, 5, Offset(5))).await;
        assert!(
            engine
                .triggers()
                .iter()
                .all(|view| view.stats.is_resumed() == (view.uid == "b"))
        );
        assert_eq!(trim(&engine, &log).await, Offset(0));
        assert_eq!((engine.retained_count(), engine.dropped_with_trigger()), (0, 0));
        let keys = keys(&log).await;
        assert!(
            !keys.iter().any(|key| key == "a" || key == "trigger:a"),
            "the old checkpoint is removed: {keys:?}"
        );
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn a_trigger_replaced_while_no_router_ran_resumes() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    with_backlog(&log).await.shutdown().await;
    let engine = start(log.clone()).await;
    engine
        .apply(&table_of(vec![named("b", "t", json!({}))]))
        .await
        .unwrap();
    assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_trigger_that_is_replaced_or_briefly_missing_resumes() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = with_backlog(&log).await;
    engine
        .apply(&table_of(vec![named("b", "t", json!({}))]))
        .await
        .unwrap();
    assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
    engine.apply(&RoutingTable::default()).await.unwrap();
    // The same Trigger resumes, whatever its `start`.
    let set = json!({"start": "Earliest", "startIsSet": true});
    engine.apply(&table_of(vec![named("b", "t", set)])).await.unwrap();
    assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
    assert_eq!(engine.dropped_with_trigger(), 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn an_explicit_start_discards_the_retained_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let engine = with_backlog(&log).await;
    engine.apply(&RoutingTable::default()).await.unwrap();
    let latest = named("b", "t", json!({"startIsSet": true}));
    engine.apply(&table_of(vec![latest])).await.unwrap();
    assert_eq!(figures(&engine, "b"), (0, 0, Offset(3)));
    assert_eq!((engine.retained_count(), engine.dropped_with_trigger()), (0, 3));
    assert!(!engine.triggers()[0].stats.is_resumed());
    engine.shutdown().await;
}

#[tokio::test]
async fn retained_checkpoints_expire() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    with_backlog(&log).await.shutdown().await;
    for (keep_deleted, kept) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 0)] {
        let options = DeliveryOptions {
            keep_deleted,
            ..DeliveryOptions::default()
        };
        let client = Client::for_test();
        let engine = Engine::start(
            log.clone(),
            crate::log::Ownership::default(),
            client,
            options,
            Arc::default(),
            Supervisor::default(),
            &runtime::Handle::current(),
        )
        .await
        .unwrap();
        engine.apply(&RoutingTable::default()).await.unwrap();
        engine.deleted_triggers.tick().await.unwrap();
        assert_eq!(engine.retained_count(), kept);
        assert_eq!(engine.dropped_with_trigger(), if kept == 0 { 3 } else { 0 });
        assert_eq!(trim(&engine, &log).await, Offset(if kept == 0 { 3 } else { 0 }));
        engine.shutdown().await;
    }
    assert_eq!(keys(&log).await, ["running-time"]);
}

/// Stored by an earlier version.
#[tokio::test]
async fn only_the_same_uid_resumes_from_a_checkpoint_without_an_owner_record() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    with_backlog(&log).await.shutdown().await;
    log.save(vec![("trigger:a".to_owned(), None)]).await.unwrap();
    let engine = start(log.clone()).await;
    engine
        .apply(&table_of(vec![named("a", "t", json!({}))]))
        .await
        .unwrap();
    assert_eq!(figures(&engine, "a"), (3, 3, Offset(3)));
    assert!(
        keys(&log).await.contains(&"trigger:a".to_owned()),
        "the owner record is added"
    );
    engine.shutdown().await;
    log.save(vec![("trigger:a".to_owned(), None)]).await.unwrap();
    let engine = start(log.clone()).await;
    engine
        .apply(&table_of(vec![named("b", "t", json!({}))]))
        .await
        .unwrap();
    assert_eq!(figures(&engine, "b"), (0, 0, Offset(3)));
    assert_eq!(engine.dropped_with_trigger(), 3);
    engine.shutdown().await;
}

#[tokio::test]
async fn an_unreadable_record_is_counted_once() {
    let directory = tempfile::tempdir().unwrap();
    let log: Arc<dyn LogProvider> = Arc::new(open(&directory));
    let append = async || {
        let other_version = Bytes::from_static(&[9, 0]);
        let appended = log.append(BROKER, vec![other_version], Timestamp::now()).await;
        appended.unwrap();
    };
    append().await;
    let engine = start(log.clone()).await;
    engine.apply(&table(&[("u", json!("Earliest"))])).await.unwrap();
    let stats = engine.triggers()[0].stats.clone();
    // First from the log, then from the shared reader.
    for missed in 1..=5 {
        eventually(|| stats.missed() == missed && stats.next() == Offset(missed)).await;
        append().await;
    }
    eventually(|| stats.missed() == 6).await;
    engine.shutdown().await;
    assert_eq!((stats.missed(), stats.next()), (6, Offset(6)));
    assert_eq!((stats.matched(), stats.pending(), stats.dropped()), (0, 0, 0));
}

/// Logs that panic when read.
async fn panicking() -> Arc<MemoryLogs> {
    let logs = MemoryLogs::default();
    logs.append(BROKER, vec![Bytes::new()], Timestamp::now())
        .await
        .unwrap();
    logs.set_fault(|operation, _| {
        assert!(operation != Operation::Read, "a fault in the program");
        None
    });
    Arc::new(logs)
}

#[tokio::test]
async fn a_trigger_whose_delivery_panicked_is_stopped() {
    let engine = start(panicking().await).await;
    engine.apply(&table(&[("u", json!("Earliest"))])).await.unwrap();
    let stats = engine.triggers()[0].stats.clone();
    eventually(|| stats.is_stopped()).await;
    engine.shutdown().await;
}
