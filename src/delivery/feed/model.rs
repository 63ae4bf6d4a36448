//! Model test of a feed and its broker's reader. Runs them against a real log with operations in any order, and
//! compares what they yield with what was appended: each wanted event once and in order, or reported as missed;
//! after a restart, each outstanding event once more, or reported as removed.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    cloudevents::EventBuilder,
    delivery::reader::Listener,
    destination::Client,
    log::{
        Append, BrokerName, LogProvider, Partition,
        embedded::{EmbeddedLog, EmbeddedOptions},
    },
    memory::Pool,
    routing::{Configuration, Delivery, RoutingTable},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Wanted,
    /// Three of them fill an inbox.
    WantedAndLarge,
    Unwanted,
    Unreadable,
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<Kind>),
    /// Appends more than the maximum lag at which a feed joins the shared reader.
    AppendMany(Kind),
    /// Runs the broker's reader.
    Offer,
    /// Runs the feed, with room for this many events.
    Feed(usize),
    /// Removes this many of the oldest records.
    Trim(u64),
    /// Settles this many outstanding events.
    Settle(usize),
    Pause,
    /// Replaces the feed by a new one that starts with what was outstanding.
    Restart,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => Just(Kind::Wanted),
        1 => Just(Kind::WantedAndLarge),
        3 => Just(Kind::Unwanted),
        1 => Just(Kind::Unreadable),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => prop::collection::vec(kind(), 1..20).prop_map(Action::Append),
        1 => kind().prop_map(Action::AppendMany),
        4 => Just(Action::Offer),
        6 => (1_usize..64).prop_map(Action::Feed),
        1 => (1_u64..40).prop_map(Action::Trim),
        2 => (1_usize..20).prop_map(Action::Settle),
        1 => Just(Action::Pause),
        1 => Just(Action::Restart),
    ]
}

/// One log for all runs; each run has its own broker in it.
static LOG: LazyLock<(tempfile::TempDir, Arc<dyn LogProvider>)> = LazyLock::new(|| {
    let directory = tempfile::tempdir().unwrap();
    let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
    (directory, Arc::new(log))
});

fn record(kind: Kind) -> Bytes {
    let size = if kind == Kind::WantedAndLarge { 100_000 } else { 10 };
    let event = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/s")
        .attribute("type", if kind == Kind::Unwanted { "other" } else { "wanted" })
        .attribute("large", "x".repeat(size));
    match kind {
        Kind::Unreadable => Bytes::from_static(&[9, 0]),
        _ => event.build().unwrap().to_record(),
    }
}

struct Run {
    logs: BrokerLogs,
    reader: Arc<Reader>,
    settings: Settings,
    table: RoutingTable,
    memory: MemoryShare,
    feed: Feed,
    next: Offset,
    appended: Vec<Kind>,
    /// Events yielded for the first time, in order.
    events: Vec<u64>,
    missed: Vec<Range<u64>>,
    unreadable: usize,
    outstanding: BTreeSet<u64>,
    /// Events that the feed has to replay.
    to_recover: BTreeSet<u64>,
}

impl Run {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("b{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let logs = BrokerLogs::open(&*LOG.1, &BrokerName::new("shop", &name));
        let trigger = json!({
            "uid": "u", "namespace": "shop", "name": "t", "generation": 1, "broker": name,
            "filters": [{"exact": {"type": "wanted"}}],
            "destination": {"uri": "http://sink/", "service": null, "contentMode": "AsReceived"},
            "delivery": Delivery::default(), "start": "Latest", "suspend": false,
        });
        let table = RoutingTable::compile(Configuration {
            triggers: vec![serde_json::from_value(trigger).unwrap()],
            ..Configuration::default()
        });
        let client = Client::for_test();
        let settings = Settings::new(
            &client,
            table.authorities(),
            table.brokers()[logs.broker().as_str()].clone(),
            0,
            Partition::WHOLE,
        );
        let pool = Pool::new(1 << 26);
        let reader = Arc::new(Reader::new(logs.events.clone(), Offset(0), &pool));
        let memory = MemoryShare::new(&pool, "shop", "t");
        let feed = begun(&logs, &reader, &table, &memory, &BTreeSet::new());
        Self {
            logs,
            reader,
            settings,
            table,
            memory,
            feed,
            next: Offset(0),
            appended: Vec::new(),
            events: Vec::new(),
            missed: Vec::new(),
            unreadable: 0,
            outstanding: BTreeSet::new(),
            to_recover: BTreeSet::new(),
        }
    }

    fn end(&self) -> Offset {
        self.logs.events.cached_bounds().next
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Append(kinds) => self.append(kinds).await,
            Action::AppendMany(kind) => self.append(vec![kind; 300]).await,
            Action::Offer => self.reader.offer(self.end()).await.unwrap(),
            Action::Feed(room) => self.feed(room).await,
            Action::Trim(count) => {
                let before = self.logs.events.cached_bounds().first.plus(count).min(self.end());
                self.logs.events.trim(before).await.unwrap();
            }
            Action::Settle(count) => {
                for _ in 0..count {
                    self.outstanding.pop_first();
                }
            }
            Action::Pause => self.feed.pause(),
            Action::Restart => {
                self.to_recover = self.outstanding.clone();
                self.feed = begun(
                    &self.logs,
                    &self.reader,
                    &self.table,
                    &self.memory,
                    &self.to_recover,
                );
            }
        }
    }

    async fn append(&mut self, kinds: Vec<Kind>) {
        let append = Append {
            payloads: kinds.iter().map(|&kind| record(kind)).collect(),
            accepted: Timestamp::now(),
            unique: None,
        };
        self.logs.events.append(append).await.unwrap();
        self.appended.extend(kinds);
    }

    async fn feed(&mut self, room: usize) {
        let batch = if self.feed.is_attached() {
            self.feed.take(self.next, room).0
        } else {
            let reading = self.feed.read(self.next, room, &self.settings);
            let mut batch = reading.await.unwrap();
            self.feed.absorb(&mut batch);
            batch
        };
        for fed in batch.fed {
            match fed {
                FeedItem::Event {
                    position: EventPosition::Log(Offset(offset)),
                    ..
                } => {
                    if !self.to_recover.remove(&offset) {
                        assert!(offset >= self.next.0, "{offset} was yielded twice");
                        self.events.push(offset);
                        self.outstanding.insert(offset);
                    }
                }
                FeedItem::Removed(EventPosition::Log(Offset(offset))) => {
                    assert!(self.to_recover.remove(&offset), "{offset} was not outstanding");
                    assert!(
                        offset < self.logs.events.cached_bounds().first.0,
                        "{offset} is still in the log"
                    );
                    self.outstanding.remove(&offset);
                }
                FeedItem::Missed(count) => {
                    let missed = self.next.0..self.next.0 + count;
                    assert!(
                        missed.end <= self.logs.events.cached_bounds().first.0,
                        "{missed:?} are still in the log"
                    );
                    self.missed.push(missed);
                }
                FeedItem::Unreadable => self.unreadable += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(batch.next >= self.next, "the position went back");
        self.next = batch.next;
    }

    /// Runs until nothing is left.
    async fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.next == self.end() && self.to_recover.is_empty() && self.feed.is_attached() {
                return;
            }
            self.reader.offer(self.end()).await.unwrap();
            self.feed(64).await;
        }
        panic!(
            "not finished at {}, {:?}, still to replay: {:?}",
            self.next, self.feed.following, self.to_recover
        );
    }

    fn check(&self) {
        assert!(self.events.is_sorted(), "in order");
        let is_missed = |offset: &u64| self.missed.iter().any(|missed| missed.contains(offset));
        let of = |wanted: fn(Kind) -> bool| {
            let all = self.appended.iter().zip(0_u64..);
            all.filter(move |(kind, _)| wanted(**kind))
                .map(|(_, offset)| offset)
        };
        let wanted = of(|kind| matches!(kind, Kind::Wanted | Kind::WantedAndLarge));
        let expected: Vec<_> = wanted.filter(|offset| !is_missed(offset)).collect();
        assert_eq!(self.events, expected);
        let unreadable = of(|kind| kind == Kind::Unreadable).filter(|offset| !is_missed(offset));
        assert_eq!(self.unreadable, unreadable.count());
    }
}

fn begun(
    logs: &BrokerLogs,
    reader: &Arc<Reader>,
    table: &RoutingTable,
    memory: &MemoryShare,
    to_recover: &BTreeSet<u64>,
) -> Feed {
    let (stats, inbox) = (Arc::<TriggerStats>::default(), Arc::<Inbox>::default());
    reader.follow(
        table.brokers()[logs.broker().as_str()].clone(),
        vec![Listener {
            inbox: inbox.clone(),
            is_deliverable: true,
        }],
    );
    let to_recover = to_recover
        .iter()
        .map(|&offset| EventPosition::Log(Offset(offset)));
    Feed::new(
        logs.clone(),
        reader.clone(),
        inbox,
        stats,
        memory.clone(),
        to_recover,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn yields_each_wanted_event_once_and_in_order(actions in prop::collection::vec(action(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            for action in actions {
                run.act(action).await;
            }
            run.finish().await;
            run.check();
        });
    }
}
