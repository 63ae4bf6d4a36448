//! Brokers with several partitions: routers agree on the number, and read as from a log with one.

use super::{
    super::*,
    server::{NatsServer, eventually},
};
use crate::log::conformance::{ALL, ByKey as _, Tested, at, payloads};

/// A server whose brokers have several partitions.
struct Partitioned(NatsServer);

impl Partitioned {
    fn start() -> Self {
        Self(NatsServer::start())
    }
}

impl Tested for Partitioned {
    type Logs = JetStreamLog;

    async fn open(&self) -> JetStreamLog {
        connect(&self.0, 4).await
    }

    fn counts(&self, counted: u64, payloads: u64, records: u64) -> bool {
        self.0.counts(counted, payloads, records)
    }
}

crate::log::conformance::conformance!(Partitioned::start());

/// Connects a router that wants so many partitions of new brokers.
async fn connect(server: &NatsServer, partitions: u16) -> JetStreamLog {
    let options = JetStreamOptions {
        partitions,
        ..server.options()
    };
    JetStreamLog::connect(options).await.unwrap()
}

#[tokio::test]
async fn routers_agree_on_the_number_of_partitions() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(connect(&server, 3), connect(&server, 5));
    let brokers: Vec<_> = (0..40)
        .map(|number| BrokerName::new("n", &format!("b{number}")))
        .collect();
    let decided = futures::join!(
        one.decide_partitions(brokers.clone()),
        other.decide_partitions(brokers.iter().rev().cloned().collect()),
    );
    assert!(decided.0.is_ok() && decided.1.is_ok(), "{decided:?}");
    let later = connect(&server, 7).await;
    for broker in &brokers {
        let partitions = [&one, &other, &later].map(|log| log.partitions_of(broker));
        assert!(
            [[Some(3); 3], [Some(5); 3]].contains(&partitions),
            "{broker}: {partitions:?}"
        );
    }
    let new = BrokerName::from("n/new");
    later.append(new.as_str(), payloads(&["0"]), at(0)).await.unwrap();
    assert_eq!(later.partitions_of(&new), Some(7), "the first append decides too");
    one.decide_partitions(vec![new.clone()]).await.unwrap();
    assert_eq!(one.partitions_of(&new), Some(7));
}

/// Earlier versions stored no numbers of partitions, and had one.
#[tokio::test]
async fn an_older_stream_has_one_partition() {
    let server = NatsServer::start();
    let before = server.connect().await;
    before.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    let streams = &before.0.streams;
    let purge = serde_json::json!({ "filter": names::PARTITIONS });
    let wait = Duration::from_secs(10);
    let purged: serde_json::Value = streams
        .session
        .api("STREAM.PURGE.weir_state", &purge, wait)
        .await
        .unwrap();
    assert_eq!(purged["purged"], 1);
    let after = connect(&server, 4).await;
    let broker = BrokerName::from("n/b");
    // Without a Trigger or an append, too.
    eventually(async || match after.partitions_of(&broker) {
        Some(1) => Ok(()),
        other => Err(other),
    })
    .await;
}

/// Taking a shard must not disturb the engine of another shard of the same broker.
#[tokio::test]
async fn taking_a_partition_keeps_the_bounds_of_the_others() {
    let server = NatsServer::start();
    let log = connect(&server, 4).await;
    log.append("n/b", payloads(&["0", "1"]), at(0)).await.unwrap();
    let membership = log.join("one").await.unwrap();
    let broker = BrokerName::from("n/b");
    let events = log.open(&LogName::Events(broker.clone()));
    for partition in Partition::all(4) {
        let taking = membership.take(partition.shard(&broker, SHARDS));
        let mut taking = std::pin::pin!(taking);
        while futures::poll!(&mut taking).is_pending() {
            assert_eq!(events.cached_bounds().next, Offset(2));
            tokio::task::yield_now().await;
        }
    }
}

/// Simulates a lost end: the router believes that the stream was longer.
#[tokio::test]
async fn all_partitions_of_a_stream_that_lost_its_end_get_other_owners() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(connect(&server, 2), connect(&server, 2));
    one.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    let broker = BrokerName::from("n/b");
    other.decide_partitions(vec![broker.clone()]).await.unwrap();
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    let [here, there] = [0, 1].map(|number| Partition { number, of: 2 }.shard(&broker, SHARDS));
    let there = second.take(there).await.unwrap();
    one.0
        .streams
        .log(&LogName::Events(broker))
        .ends_at_least_at(Offset(100));
    let here = first.take(here).await.unwrap();
    assert!(second.owns(there).await.unwrap());
    let refused = one.append("n/b", payloads(&["1"]), at(0)).await;
    assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
    assert!(!first.owns(here).await.unwrap() && !second.owns(there).await.unwrap());
    one.append("n/b", payloads(&["2"]), at(0)).await.unwrap();
}

#[tokio::test]
async fn readers_share_what_was_read() {
    let server = NatsServer::start();
    let (log, writer) = futures::join!(connect(&server, 4), connect(&server, 4));
    for number in 0..20_u64 {
        let records = payloads(&[&format!("{number}a"), &format!("{number}b")]);
        writer.append("n/b", records, at(0)).await.unwrap();
        let expected = 2 * number + 2;
        let readers = (0..4).map(|reader| log.read("n/b", Offset(expected.saturating_sub(reader)), ALL));
        for (reader, read) in futures::future::join_all(readers).await.into_iter().enumerate() {
            let offsets: Vec<_> = read.unwrap().iter().map(|record| record.offset.0).collect();
            let from = expected.saturating_sub(reader as u64);
            assert_eq!(offsets, (from..expected).collect::<Vec<_>>());
        }
    }
}
