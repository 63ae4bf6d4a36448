//! The runner, on a clock controlled by the test.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use tokio::sync::watch;

use super::*;
use crate::source::cron::{CAUGHT_UP, CONFIRMED_WITHIN, LOOK};
use crate::{
    cloudevents::Event,
    filter::Expression,
    intake::{MakeRoom, Shortage},
    log::{
        CheckpointChange, CheckpointKey, Checkpoints, LogError, LogName, LogProvider, Offset, Ownership,
        conformance::ALL,
        memory::{MemoryLogs, Operation},
    },
    routing::CatchUp,
};

/// A clock controlled by the test.
#[derive(Clone, Copy)]
struct Time {
    elapsed: Duration,
    wall: Timestamp,
}

struct TestClock {
    time: watch::Sender<Time>,
    sleepers: watch::Sender<usize>,
}

impl TestClock {
    fn at(wall: &str) -> Arc<Self> {
        let time = Time {
            elapsed: Duration::ZERO,
            wall: wall.parse().unwrap(),
        };
        Arc::new(Self {
            time: watch::Sender::new(time),
            sleepers: watch::Sender::new(0),
        })
    }

    /// Advances the time once `sleepers` tasks are sleeping.
    async fn advance(&self, sleepers: usize, by: Duration) {
        self.asleep(sleepers).await;
        // They sleep again or end; the count restarts here in either case.
        self.sleepers.send_replace(0);
        self.time.send_modify(|time| {
            time.elapsed += by;
            time.wall += by;
        });
    }

    async fn asleep(&self, sleepers: usize) {
        self.sleepers
            .subscribe()
            .wait_for(|count| *count >= sleepers)
            .await
            .unwrap();
    }

    async fn put(&self, sleepers: usize, wall: &str) {
        self.asleep(sleepers).await;
        self.time.send_modify(|time| time.wall = wall.parse().unwrap());
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.time.borrow().wall
    }

    fn sleep(&self, pause: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut time = self.time.subscribe();
            let until = time.borrow().elapsed + pause;
            self.sleepers.send_modify(|count| *count += 1);
            if time.wait_for(|time| time.elapsed >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
            // Tasks that are still asleep must be counted again after the next advance.
        })
    }
}

/// Logs that can be full, and count the appends that they rejected.
#[derive(Default)]
struct TestLog {
    logs: MemoryLogs,
    full: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    has_room_to_make: AtomicBool,
}

impl TestLog {
    fn new() -> Arc<Self> {
        let log = Self::default();
        let (full, refused) = (log.full.clone(), log.refused.clone());
        log.logs.set_fault(move |operation, _| {
            let is_refused = operation == Operation::Append && full.load(Ordering::Relaxed);
            is_refused.then(|| {
                refused.fetch_add(1, Ordering::Relaxed);
                LogError::Full("no room".to_owned())
            })
        });
        Arc::new(log)
    }

    /// The shard of all Sources, with what is stored.
    fn place(&self, continues: bool) -> Option<SourcePlace> {
        let last_runs = LastRuns::new(self.logs.checkpoints(Ownership::default()), &self.last_runs());
        Some(SourcePlace {
            continues,
            last_runs: Arc::new(last_runs),
        })
    }

    fn last_runs(&self) -> HashMap<String, Bytes> {
        let checkpoints = self.logs.checkpoints(Ownership::default());
        let stored = checkpoints.load_all().now_or_never().unwrap().unwrap();
        let runs = stored.into_iter().filter_map(|(key, value)| match key {
            CheckpointKey::LastRun(uid) => Some((uid, value)),
            _ => None,
        });
        runs.collect()
    }

    /// Waits until a Source has stored that it has come to this time.
    async fn settled(&self, name: &str, until: &str) {
        let until = format!("\"{until}\"");
        let is_settled = || {
            let run = self.last_runs().remove(&format!("uid-{name}"));
            run.is_some_and(|run| str::from_utf8(&run).unwrap().contains(&until))
        };
        while !is_settled() {
            tokio::task::yield_now().await;
        }
    }

    async fn times(&self, count: u64) -> Vec<String> {
        let log = self.logs.open(&LogName::Events("shop/orders".into()));
        log.follow().wait_for(|end| end.0 >= count).await.unwrap();
        let records = log.read(Offset(0), ALL).await.unwrap().into_iter();
        let events = records.map(|record| Event::from_record(record.payload).unwrap());
        events
            .map(|event| event.attribute("time").unwrap().to_string())
            .collect()
    }
}

impl MakeRoom for TestLog {
    fn make_room<'a>(&'a self, _: &'a BrokerName, _: Shortage) -> BoxFuture<'a, Result<bool, LogError>> {
        let has_room = self.has_room_to_make.load(Ordering::Relaxed);
        self.full.fetch_and(!has_room, Ordering::Relaxed);
        Box::pin(async move { Ok(has_room) })
    }
}

fn source(name: &str, schedule: &str) -> routing::Source {
    routing::Source {
        uid: format!("uid-{name}"),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        generation: 1,
        broker: "orders".to_owned(),
        filters: Vec::new(),
        kind: routing::SourceKind::Cron(routing::Cron {
            schedule: schedule.to_owned(),
            time_zone: "UTC".to_owned(),
            attributes: vec![
                ("source".to_owned(), format!("/{name}")),
                ("type".to_owned(), "com.example.tick".to_owned()),
            ],
            data: None,
            catch_up: CatchUp::None,
        }),
    }
}

fn catching_up(name: &str, schedule: &str, catch_up: CatchUp) -> routing::Source {
    let mut source = source(name, schedule);
    if let routing::SourceKind::Cron(cron) = &mut source.kind {
        cron.catch_up = catch_up;
    }
    source
}

const SECOND: Duration = Duration::from_secs(1);

fn start(wall: &str) -> (Arc<TestLog>, Arc<TestClock>, Sources) {
    let log = TestLog::new();
    let clock = TestClock::at(wall);
    let intake = Intake::new(Arc::new(log.logs.clone()), log.clone(), Arc::default());
    let sources = Sources::with_clock(intake, Arc::clone(&clock) as _);
    (log, clock, sources)
}

fn counts(sources: &Sources) -> Vec<(String, u64, u64)> {
    sources
        .statistics()
        .snapshot()
        .into_iter()
        .map(|c| (c.name, c.produced, c.missed))
        .collect()
}

#[tokio::test]
async fn produces_one_event_per_scheduled_time() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00.5Z");
    sources.apply(&[source("a", "*/2 * * * * *")], false, |_| log.place(false));
    clock.advance(1, Duration::from_millis(1_500)).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:02Z"]);
    clock.advance(1, SECOND).await;
    clock.advance(0, SECOND).await;
    assert_eq!(
        log.times(2).await,
        ["2026-11-24T08:00:02Z", "2026-11-24T08:00:04Z"]
    );
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 2, 0)]);
    sources.shutdown().await;
}

#[tokio::test]
async fn unchanged_sources_continue_changed_ones_restart_and_removed_ones_stop() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    let (kept, mut changed, removed) = (
        source("kept", "0 * * * * *"),
        source("changed", "0 * * * * *"),
        source("removed", "0 * * * * *"),
    );
    sources.apply(&[kept.clone(), changed.clone(), removed], false, |_| {
        log.place(false)
    });
    clock.asleep(3).await;
    let routing::SourceKind::Cron(cron) = &mut changed.kind else {
        panic!("not a schedule")
    };
    cron.schedule = "10 * * * * *".to_owned();
    changed.generation = 2;
    sources.apply(&[kept, changed], false, |_| log.place(false));
    clock.asleep(4).await;
    clock.advance(0, 10 * SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:10Z"]);
    // `kept` checks the clock after 30 seconds, and so does `changed`.
    for _ in 0..5 {
        clock.advance(0, 10 * SECOND).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(
        log.times(2).await,
        ["2026-11-24T08:00:10Z", "2026-11-24T08:01:00Z"]
    );
    assert_eq!(counts(&sources).len(), 2);
    sources.shutdown().await;
}

#[tokio::test]
async fn clock_set_forward_catches_up_the_last_minute_only() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    sources.apply(&[source("a", "*/20 * * * * *")], false, |_| log.place(false));
    clock.put(1, "2026-11-24T09:00:05Z").await;
    clock.advance(1, 20 * SECOND).await;
    let times = log.times(3).await;
    assert_eq!(
        times,
        [
            "2026-11-24T08:59:40Z",
            "2026-11-24T09:00:00Z",
            "2026-11-24T09:00:20Z"
        ]
    );
    clock.asleep(1).await;
    // From 08:00:20 to 08:59:20.
    assert_eq!(counts(&sources), [("a".to_owned(), 3, 178)]);
    sources.shutdown().await;
}

#[tokio::test]
async fn jump_over_years_is_noticed_at_once_and_counted_roughly() {
    let (log, clock, mut sources) = start("1970-01-01T00:00:00Z");
    sources.apply(&[source("a", "* * * * * *")], false, |_| log.place(false));
    clock.put(1, "2026-11-24T09:00:00Z").await;
    clock.advance(1, SECOND).await;
    assert_eq!(log.times(60).await[0], "2026-11-24T08:59:02Z");
    sources.shutdown().await;
}

#[tokio::test]
async fn clock_set_back_far_restarts_the_schedule() {
    let (log, clock, mut sources) = start("2099-01-01T00:00:00Z");
    sources.apply(&[source("a", "0 * * * *")], false, |_| log.place(false));
    clock.put(1, "2026-11-24T08:59:50Z").await;
    clock.advance(1, LOOK).await;
    clock.advance(1, LOOK).await;
    clock.put(1, "2026-11-24T10:00:00Z").await;
    clock.advance(0, LOOK).await;
    assert_eq!(log.times(1).await, ["2026-11-24T10:00:00Z"]);
    sources.shutdown().await;
}

#[tokio::test]
async fn retries_a_full_log_until_the_next_time_is_due() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    log.full.store(true, Ordering::Relaxed);
    sources.apply(&[source("a", "*/3 * * * * *")], false, |_| log.place(false));
    clock.advance(1, 3 * SECOND).await; // 08:00:03 is due: the log is full
    clock.advance(1, SECOND).await; // still full
    clock.advance(1, SECOND).await; // still full
    clock.asleep(1).await;
    assert_eq!(log.refused.load(Ordering::Relaxed), 3);
    clock.advance(1, SECOND).await; // 08:00:06 is due: 08:00:03 is missed
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 0, 1)]);
    log.full.store(false, Ordering::Relaxed);
    clock.advance(1, SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:06Z"]);
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 1, 1)]);
    sources.shutdown().await;
}

#[tokio::test]
async fn frees_space_in_a_full_log() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    log.full.store(true, Ordering::Relaxed);
    log.has_room_to_make.store(true, Ordering::Relaxed);
    sources.apply(&[source("a", "*/3 * * * * *")], false, |_| log.place(false));
    clock.advance(1, 3 * SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:03Z"]);
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 1, 0)]);
    sources.shutdown().await;
}

#[tokio::test]
async fn shutdown_does_not_wait_for_the_next_time() {
    let (log, _clock, mut sources) = start("2026-11-24T08:00:00Z");
    sources.apply(
        &[source("a", "0 0 1 1 *"), source("b", "0 0 1 1 *")],
        false,
        |_| log.place(false),
    );
    sources.shutdown().await;
}

#[tokio::test]
async fn failing_source_does_not_affect_others() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    sources.apply(
        &[source("broken", "x"), source("a", "* * * * * *")],
        false,
        |_| log.place(false),
    );
    clock.advance(1, SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:01Z"]);
    sources.shutdown().await;
}

#[tokio::test]
async fn a_source_that_continues_produces_what_was_due_shortly_before() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:10Z");
    let each_minute = [source("a", "0 * * * * *"), source("b", "0 * * * * *")];
    sources.apply(&each_minute, false, |source| log.place(source.name == "a"));
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:00Z"]);
    clock.asleep(2).await;
    assert_eq!(counts(&sources), [("a".into(), 1, 0), ("b".into(), 0, 0)]);
}

/// Runs a Source for a while at 08:00, and again after an outage. Returns the scheduled times of the events.
async fn resumed(before: &routing::Source, after: &routing::Source, back: &str, count: u64) -> Vec<String> {
    let (log, clock, mut sources) = start("2026-11-24T08:00:10Z");
    sources.apply(std::slice::from_ref(before), false, |_| log.place(false));
    clock.advance(1, LOOK).await;
    clock.advance(1, 20 * SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:01:00Z"]);
    // Once it sleeps again, it has stored how far it has come.
    clock.advance(1, Duration::ZERO).await;
    sources.shutdown().await;
    clock.put(0, back).await;
    let intake = Intake::new(Arc::new(log.logs.clone()), log.clone(), Arc::default());
    let mut sources = Sources::with_clock(intake, Arc::clone(&clock) as _);
    sources.apply(std::slice::from_ref(after), false, |_| log.place(false));
    let times = log.times(count).await;
    clock.asleep(1).await;
    sources.shutdown().await;
    let produced = log
        .logs
        .open(&LogName::Events("shop/orders".into()))
        .cached_bounds();
    assert_eq!(produced.next, Offset(count), "{times:?}");
    times[1..].to_vec()
}

#[tokio::test]
async fn missed_times_are_made_up_for_as_the_source_says() {
    let each_minute = |catch_up| catching_up("a", "0 * * * * *", catch_up);
    let changed = routing::Source {
        generation: 2,
        ..each_minute(CatchUp::All)
    };
    let all = each_minute(CatchUp::All);
    for (before, after, back, expected) in [
        (&all, &all, "2026-11-24T08:01:30Z", &[][..]),
        (
            &all,
            &all,
            "2026-11-24T08:04:00Z",
            &[
                "2026-11-24T08:02:00Z",
                "2026-11-24T08:03:00Z",
                "2026-11-24T08:04:00Z",
            ],
        ),
        (
            &each_minute(CatchUp::Last),
            &each_minute(CatchUp::Last),
            "2026-11-24T08:04:30Z",
            &["2026-11-24T08:04:00Z"],
        ),
        (
            &each_minute(CatchUp::None),
            &each_minute(CatchUp::None),
            "2026-11-24T08:04:30Z",
            &[],
        ),
        // It may have been suspended meanwhile.
        (&all, &changed, "2026-11-24T08:04:30Z", &[]),
        // The clock was wrong before.
        (&all, &all, "2026-11-24T07:00:30Z", &[]),
    ] {
        let times = resumed(before, after, back, 1 + expected.len() as u64).await;
        assert_eq!(times, expected, "{before:?} {back}");
    }
}

#[tokio::test]
async fn at_most_a_hundred_missed_times_are_made_up_for_and_the_others_counted() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:10Z");
    let each_minute = [catching_up("a", "0 * * * * *", CatchUp::All)];
    sources.apply(&each_minute, false, |_| log.place(false));
    clock.asleep(1).await;
    log.settled("a", "2026-11-24T08:00:10Z").await;
    sources.shutdown().await;
    clock.put(0, "2026-11-24T10:00:30Z").await;
    let intake = Intake::new(Arc::new(log.logs.clone()), log.clone(), Arc::default());
    let mut sources = Sources::with_clock(intake, Arc::clone(&clock) as _);
    let statistics = sources.statistics();
    sources.apply(&each_minute, false, |_| log.place(false));
    let times = log.times(CAUGHT_UP as u64).await;
    assert_eq!(
        (&*times[0], &*times[99]),
        ("2026-11-24T08:21:00Z", "2026-11-24T10:00:00Z")
    );
    log.settled("a", "2026-11-24T10:00:00Z").await;
    let counts = statistics.snapshot().remove(0);
    assert_eq!((counts.produced, counts.missed, counts.caught_up), (100, 20, 100));
    sources.shutdown().await;
}

#[tokio::test]
async fn a_full_log_delays_the_events_of_a_source_that_catches_up() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    log.full.store(true, Ordering::Relaxed);
    sources.apply(&[catching_up("a", "*/3 * * * * *", CatchUp::All)], false, |_| {
        log.place(false)
    });
    clock.advance(1, 3 * SECOND).await;
    for _ in 0..17 {
        clock.advance(1, SECOND).await;
    }
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 0, 0)]);
    log.full.store(false, Ordering::Relaxed);
    clock.advance(1, SECOND).await;
    let times = log.times(7).await;
    assert_eq!(
        (&*times[0], &*times[6]),
        ("2026-11-24T08:00:03Z", "2026-11-24T08:00:21Z")
    );
    sources.shutdown().await;
}

#[tokio::test]
async fn sources_of_an_earlier_run_are_confirmed_before_they_catch_up() {
    for suspended in [true, false] {
        let (log, clock, mut sources) = start("2026-11-24T08:00:10Z");
        let each_minute = [catching_up("a", "0 * * * * *", CatchUp::All)];
        sources.apply(&each_minute, false, |_| log.place(false));
        clock.advance(1, Duration::ZERO).await;
        sources.shutdown().await;
        clock.put(0, "2026-11-24T08:01:10Z").await;
        let intake = Intake::new(Arc::new(log.logs.clone()), log.clone(), Arc::default());
        let mut sources = Sources::with_clock(intake, Arc::clone(&clock) as _);
        sources.apply(&each_minute, true, |_| log.place(false));
        clock.asleep(1).await;
        if suspended {
            sources.apply(&[], false, |_| log.place(false));
            sources.apply(&[source("b", "30 * * * * *")], false, |_| log.place(false));
            clock.advance(0, 20 * SECOND).await;
            assert_eq!(log.times(1).await, ["2026-11-24T08:01:30Z"]);
        } else {
            clock.advance(0, CONFIRMED_WITHIN).await;
            assert_eq!(log.times(1).await, ["2026-11-24T08:01:00Z"]);
        }
        sources.shutdown().await;
    }
}

#[tokio::test]
async fn last_runs_of_deleted_sources_are_removed() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:10Z");
    let both = ["a", "b"].map(|name| catching_up(name, "0 * * * * *", CatchUp::Last));
    sources.apply(&both, false, |_| log.place(false));
    clock.asleep(2).await;
    for name in ["a", "b"] {
        log.settled(name, "2026-11-24T08:00:10Z").await;
    }
    let runs = log.place(false).unwrap().last_runs;
    runs.keep_only(&["uid-b"].into()).await.unwrap();
    assert_eq!(log.last_runs().into_keys().collect::<Vec<_>>(), ["uid-b"]);
    assert_eq!(runs.of(&both[0]), None);
    assert_eq!(runs.of(&both[1]), Some("2026-11-24T08:00:10Z".parse().unwrap()));
    sources.shutdown().await;
}

/// Checkpoints that wait with saving last runs of generation 1 until released.
struct HeldCheckpoints {
    stored: Arc<dyn Checkpoints>,
    is_held: watch::Receiver<bool>,
}

impl Checkpoints for HeldCheckpoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        self.stored.load_all()
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        self.stored.load(key)
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let is_first = |value: &Bytes| str::from_utf8(value).unwrap().contains(r#""generation":1"#);
            if changes
                .iter()
                .filter_map(|(_, value)| value.as_ref())
                .any(is_first)
            {
                self.is_held.clone().wait_for(|is_held| !is_held).await.unwrap();
            }
            self.stored.save(changes).await
        })
    }
}

#[tokio::test]
async fn an_earlier_run_does_not_overwrite_the_last_run_of_a_changed_source() {
    let (log, _clock, mut sources) = start("2026-11-24T08:00:10Z");
    let (held, is_held) = watch::channel(true);
    let checkpoints = HeldCheckpoints {
        stored: log.logs.checkpoints(Ownership::default()),
        is_held,
    };
    let last_runs = Arc::new(LastRuns::new(Arc::new(checkpoints), &HashMap::new()));
    let place = |_: &routing::Source| {
        Some(SourcePlace {
            continues: false,
            last_runs: last_runs.clone(),
        })
    };
    let before = catching_up("a", "0 * * * * *", CatchUp::Last);
    sources.apply(std::slice::from_ref(&before), false, place);
    while last_runs.of(&before).is_none() {
        tokio::task::yield_now().await;
    }
    // Removed in between, as while it is suspended.
    sources.apply(&[], false, place);
    let after = routing::Source {
        generation: 2,
        ..before
    };
    sources.apply(std::slice::from_ref(&after), false, place);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    held.send_replace(false);
    sources.shutdown().await;
    let stored = log.last_runs().remove("uid-a").unwrap();
    let stored = str::from_utf8(&stored).unwrap();
    assert!(stored.contains(r#""generation":2"#), "{stored}");
}

#[tokio::test]
async fn an_event_that_is_too_large_is_missed_at_once() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    let refused = AtomicUsize::new(0);
    log.logs.set_fault(move |operation, _| {
        let is_refused = operation == Operation::Append && refused.fetch_add(1, Ordering::Relaxed) == 0;
        is_refused.then(|| LogError::TooLarge("9 bytes".to_owned()))
    });
    sources.apply(&[catching_up("a", "* * * * * *", CatchUp::All)], false, |_| {
        log.place(false)
    });
    clock.advance(1, SECOND).await;
    log.settled("a", "2026-11-24T08:00:01Z").await;
    clock.advance(1, SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:02Z"]);
    clock.asleep(1).await;
    assert_eq!(counts(&sources), [("a".to_owned(), 1, 1)]);
    sources.shutdown().await;
}

#[tokio::test]
async fn scheduled_times_are_missed_if_a_filter_fails() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00Z");
    let mut failing = catching_up("a", "* * * * * *", CatchUp::All);
    let odd = "event.time.endsWith('02Z') || event.subject == 'x'";
    failing.filters = vec![Expression::Cel(odd.to_owned())];
    sources.apply(&[failing], false, |_| log.place(false));
    clock.advance(1, SECOND).await;
    log.settled("a", "2026-11-24T08:00:01Z").await;
    clock.advance(1, SECOND).await;
    assert_eq!(log.times(1).await, ["2026-11-24T08:00:02Z"]);
    clock.asleep(1).await;
    let counts = sources.statistics().snapshot().remove(0);
    assert_eq!((counts.produced, counts.filtered, counts.missed), (1, 0, 1));
    sources.shutdown().await;
}

#[tokio::test]
async fn filters_select_scheduled_times() {
    let (log, clock, mut sources) = start("2026-11-24T08:00:00.5Z");
    let mut selecting = source("a", "* * * * * *");
    let even = "event.time.endsWith('02Z') || event.time.endsWith('04Z')";
    selecting.filters = vec![Expression::Cel(even.to_owned())];
    sources.apply(&[selecting], false, |_| log.place(false));
    for _ in 0..4 {
        clock.advance(1, SECOND).await;
    }
    assert_eq!(
        log.times(2).await,
        ["2026-11-24T08:00:02Z", "2026-11-24T08:00:04Z"]
    );
    clock.asleep(1).await;
    let counts = sources.statistics().snapshot().remove(0);
    assert_eq!((counts.produced, counts.filtered, counts.missed), (2, 2, 0));
    sources.shutdown().await;
}
