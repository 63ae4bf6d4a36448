//! Tests with three servers and streams with three replicas: leaders are killed, and any replica responds to reads.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use super::{
    super::*,
    faults::appends_survive,
    health,
    server::{FIT, HeldPort, NatsServer, PATIENCE, eventually},
};
use crate::log::{
    EventIdentity, Unique,
    conformance::{self, ALL, ByKey as _, Tested, WINDOW, at, payloads},
};

/// Servers of one cluster.
struct NatsCluster {
    servers: Vec<NatsServer>,
    _ports: Vec<HeldPort>,
}

impl NatsCluster {
    async fn start() -> Self {
        let ports: Vec<_> = (0..3).map(|_| HeldPort::new()).collect();
        let servers = (0..3).map(|number| NatsServer::configured(&configuration(number, &ports)));
        let cluster = Self {
            servers: servers.collect(),
            _ports: ports,
        };
        eventually(async || JetStreamLog::connect(cluster.options()).await.map(drop)).await;
        cluster
    }

    fn options(&self) -> JetStreamOptions {
        JetStreamOptions {
            urls: self.servers.iter().map(NatsServer::url).collect(),
            replicas: 3,
            ..self.servers[0].options()
        }
    }

    async fn connect(&self) -> JetStreamLog {
        JetStreamLog::connect(self.options()).await.unwrap()
    }

    async fn delete_streams(&self) {
        let log = self.connect().await;
        for stream in ["weir_n_b", "weir_n_a", names::STATE] {
            let request = format!("STREAM.DELETE.{stream}");
            let session = &log.0.streams.session;
            let deleted: Result<serde_json::Value, _> =
                session.api(&request, &serde_json::json!({}), PATIENCE).await;
            assert!(
                deleted.is_ok() || session.stream(stream, PATIENCE).await.unwrap().is_none(),
                "{deleted:?}"
            );
        }
    }

    /// Makes a server the leader of a stream.
    async fn lead(&self, log: &JetStreamLog, stream: &str, server: usize) {
        let session = &log.0.streams.session;
        let request = format!("STREAM.LEADER.STEPDOWN.{stream}");
        let body = serde_json::json!({ "placement": { "preferred": format!("server-{server}") } });
        eventually(async || {
            let asked: Result<serde_json::Value, _> = session.api(&request, &body, PATIENCE).await;
            match self.leader(log, stream).await {
                leader if leader == server => Ok(()),
                leader => Err((leader, asked)),
            }
        })
        .await;
    }

    /// Index of the server that leads a stream.
    async fn leader(&self, log: &JetStreamLog, stream: &str) -> usize {
        let session = &log.0.streams.session;
        let request = format!("STREAM.INFO.{stream}");
        eventually(async || {
            let info: serde_json::Value = session
                .api(&request, &serde_json::json!({}), Duration::from_secs(5))
                .await
                .map_err(|e| e.to_string())?;
            let leader = info["cluster"]["leader"].as_str().unwrap_or_default();
            leader
                .strip_prefix("server-")
                .and_then(|number| number.parse().ok())
                .ok_or_else(|| info["cluster"].to_string())
        })
        .await
    }
}

/// Opens the log by a new connection each time.
impl Tested for &NatsCluster {
    type Logs = JetStreamLog;

    async fn open(&self) -> JetStreamLog {
        self.connect().await
    }

    fn counts(&self, counted: u64, payloads: u64, records: u64) -> bool {
        self.servers[0].counts(counted, payloads, records)
    }
}

fn configuration(number: usize, ports: &[HeldPort]) -> String {
    let routes = ports
        .iter()
        .map(|port| format!("nats-route://{}", port.address()));
    let routes: Vec<_> = routes.collect();
    let listen = ports[number].address().to_string();
    format!(
        "{FIT}server_name: server-{number}\ncluster {{ name: weir, listen: {listen:?}, routes: {routes:?} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_stored_twice_when_leaders_are_killed() {
    let mut cluster = NatsCluster::start().await;
    let log = cluster.connect().await;
    log.append("n/a", payloads(&["first"]), at(0)).await.unwrap();
    appends_survive(&log, 2, async || {
        let leader = cluster.leader(&log, "weir_n_b").await;
        cluster.servers[leader].kill();
        let last = cluster.leader(&log, "weir_n_b").await;
        assert_ne!(last, leader);
        cluster.servers[leader].start_again();
    })
    .await;
}

/// Number of times that a leader is killed: `WEIR_KILLS`, else a few.
fn kills() -> u32 {
    let asked_for = std::env::var("WEIR_KILLS").ok();
    asked_for.and_then(|kills| kills.parse().ok()).unwrap_or(2)
}

/// Appends the event of a number, unless it is a repeat.
async fn send(log: &JetStreamLog, number: u32) -> Result<Appended, LogError> {
    let mut key = [7; 16];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let append = Append {
        payloads: vec![format!("{number} {}", fastrand::u64(..)).into()],
        accepted: at(0),
        unique: Some(Unique {
            identities: vec![EventIdentity { key, digest: 1 }],
            window: WINDOW,
        }),
    };
    log.open(&LogName::from_key("n/b")).append(append).await
}

/// Producers send each event until it is acknowledged, and then once more to the other router.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_again_is_stored_once_when_leaders_are_killed() {
    const BETWEEN: u32 = 200;
    let mut cluster = NatsCluster::start().await;
    let (one, other) = futures::join!(cluster.connect(), cluster.connect());
    let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
    let events = BETWEEN * (kills() + 1);
    let producer = async || {
        loop {
            let number = next.fetch_add(1, Relaxed);
            if number >= events {
                return;
            }
            let (first, second) = if number % 2 == 0 {
                (&one, &other)
            } else {
                (&other, &one)
            };
            eventually(async || send(first, number).await).await;
            let again = eventually(async || send(second, number).await).await;
            assert_eq!(again.repeats, 1, "{number}");
            done.fetch_add(1, Relaxed);
        }
    };
    let killing = async {
        for kill in 1..=kills() {
            eventually(async || match done.load(Relaxed) {
                done if done >= kill * BETWEEN => Ok(()),
                done => Err(done),
            })
            .await;
            let leader = cluster.leader(&one, "weir_n_b").await;
            cluster.servers[leader].kill();
            assert_ne!(cluster.leader(&one, "weir_n_b").await, leader);
            cluster.servers[leader].start_again();
        }
    };
    futures::join!(futures::future::join_all((0..16).map(|_| producer())), killing);
    let records = one.read("n/b", Offset(0), ALL).await.unwrap();
    let number = |record: &LogRecord| {
        let text = str::from_utf8(&record.payload).unwrap();
        text.split_once(' ').unwrap().0.parse::<u32>().unwrap()
    };
    let mut stored: Vec<_> = records.iter().map(number).collect();
    stored.sort_unstable();
    assert!(stored.iter().copied().eq(0..events), "{stored:?}");
    eprintln!("{} leaders killed, {events} events, each stored once", kills());
}

#[tokio::test]
async fn records_are_read_from_any_replica_right_after_the_append() {
    let cluster = NatsCluster::start().await;
    let (one, other) = futures::join!(cluster.connect(), cluster.connect());
    let mut end = other.follow("n/b");
    for number in 0..200 {
        let count = if number % 10 == 0 { 3 } else { 1 };
        let first = one
            .append("n/b", payloads(&vec!["x"; count]), at(0))
            .await
            .unwrap();
        assert_eq!(one.read("n/b", first, ALL).await.unwrap().len(), count);
        let next = first.plus(count as u64);
        let grown = end.wait_for(|end| *end >= next);
        tokio::time::timeout(PATIENCE, grown).await.unwrap().unwrap();
        assert_eq!(other.read("n/b", first, ALL).await.unwrap().len(), count);
    }
}

#[tokio::test]
async fn an_earlier_owner_is_fenced_by_the_quorum() {
    let cluster = NatsCluster::start().await;
    let (one, other) = futures::join!(cluster.connect(), cluster.connect());
    let change = |value: &'static str| {
        ["a", "b"].map(|key| {
            (
                CheckpointKey::Trigger(key.into()),
                Some(Bytes::from_static(value.as_bytes())),
            )
        })
    };
    let mut owners = [&one, &other].into_iter().cycle();
    let mut before = one.take_over("one").await.unwrap();
    for value in ["1", "2", "3", "4", "5", "6"] {
        let owner = owners.next().unwrap();
        let owned = owner.take_over("owner").await.unwrap();
        let fenced = one.checkpoints(before).save(change("old").to_vec()).await;
        assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
        let checkpoints = owner.checkpoints(owned);
        let saves =
            [change(value).to_vec(), change(value)[..1].to_vec()].map(|changes| checkpoints.save(changes));
        for saved in futures::future::join_all(saves).await {
            saved.unwrap();
        }
        let stored = other.stored().await.unwrap();
        assert_eq!(
            stored,
            ["a", "b"].map(|key| (key.to_owned(), Bytes::from_static(value.as_bytes())))
        );
        before = owned;
    }
}

/// Runs the tests whose outcome depends on what a replica has applied.
#[tokio::test]
async fn the_suite_holds_with_three_replicas() {
    let cluster = NatsCluster::start().await;
    conformance::what_was_appended_is_read_back(&cluster).await;
    cluster.delete_streams().await;
    conformance::concurrent_appends_get_offsets_without_gaps(&cluster).await;
    cluster.delete_streams().await;
    conformance::a_log_that_was_trimmed_whole_goes_on_counting(&cluster).await;
    cluster.delete_streams().await;
    conformance::checkpoints_are_kept(&cluster).await;
    conformance::a_reader_follows_the_writers(&cluster).await;
}

/// Flips a bit in the files of a stream, in the record with this payload.
fn flip_in(directory: &Path, payload: &[u8]) {
    let mut folders = vec![directory.join("store")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut content = fs::read(&path).unwrap();
            let found = content
                .windows(payload.len())
                .position(|window| window == payload);
            if let Some(at) = found
                && path.to_string_lossy().contains("weir_n_b")
            {
                content[at] ^= 1;
                fs::write(&path, content).unwrap();
                return;
            }
        }
    }
    panic!("the record is not in {}", directory.display());
}

#[tokio::test]
async fn a_record_damaged_in_one_replica_is_read_from_others() {
    let mut cluster = NatsCluster::start().await;
    let log = cluster.connect().await;
    let texts: Vec<_> = (0..50)
        .map(|number| format!("record-{number}-of-fifty"))
        .collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    log.append("n/b", payloads(&texts), at(0)).await.unwrap();
    let damaged = (cluster.leader(&log, "weir_n_b").await + 1) % 3;
    let follower = &mut cluster.servers[damaged];
    follower.stop();
    flip_in(follower.directory(), texts[20].as_bytes());
    follower.start_again();
    let log = cluster.connect().await;
    let read = async || {
        for _ in 0..20 {
            let records = log.read("n/b", Offset(0), ALL).await.unwrap();
            assert!(records.iter().map(|record| &record.payload).eq(&texts));
        }
    };
    read().await;
    cluster.lead(&log, "weir_n_b", damaged).await;
    read().await;
}

/// Missing replicas of each stream; `None` while the servers are unavailable.
fn missing(log: &JetStreamLog) -> Option<Vec<(String, u64)>> {
    let streams = health::streams(log)?;
    let with_leader = streams.iter().filter(|stream| stream.has_leader);
    Some(
        with_leader
            .map(|stream| (stream.name.clone(), stream.replicas_missing))
            .collect(),
    )
}

#[tokio::test]
async fn replicas_of_a_lost_server_are_missing() {
    let mut cluster = NatsCluster::start().await;
    let log = cluster.connect().await;
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    let becomes = async |expected: Option<u64>| {
        let expected = expected.map(|missing| {
            ["weir_n_b", names::STATE]
                .map(|stream| (stream.to_owned(), missing))
                .to_vec()
        });
        eventually(async || match missing(&log) {
            seen if seen == expected => Ok(()),
            seen => Err(seen),
        })
        .await;
    };
    becomes(Some(0)).await;
    let lost = cluster.leader(&log, "weir_n_b").await;
    cluster.servers[lost].kill();
    becomes(Some(1)).await;
    cluster.servers[lost].start_again();
    becomes(Some(0)).await;
    for server in &mut cluster.servers {
        server.kill();
    }
    becomes(None).await;
}
