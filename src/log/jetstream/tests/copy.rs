//! Tests of copies of an embedded log: all retained records, at the same offsets, even after an interruption.

use std::time::Duration;

use super::{
    super::*,
    server::{NatsServer, eventually},
};
use crate::log::{
    BrokerName,
    conformance::{ALL, ByKey as _, at, payloads},
    embedded::{EmbeddedLog, EmbeddedOptions},
};

/// Returns a provider with a trimmed log, a log trimmed to empty, dead letters, and checkpoints.
async fn embedded(directory: &tempfile::TempDir, records: usize) -> EmbeddedLog {
    let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
    for first in (0..records).step_by(500) {
        let texts: Vec<_> = (first..(first + 500).min(records))
            .map(|number| format!("{number}-{}", "x".repeat(200)))
            .collect();
        let payloads = texts.into_iter().map(Bytes::from).collect();
        log.append("n/b", payloads, at(first as i64)).await.unwrap();
    }
    log.append("n/empty", payloads(&["0", "1"]), at(7)).await.unwrap();
    log.append("n/b.dead-letters", payloads(&["letter"]), at(9))
        .await
        .unwrap();
    log.trim("n/b", Offset(3)).await.unwrap();
    log.trim("n/empty", Offset(2)).await.unwrap();
    let changes = (0..1200).map(|number| (format!("t{number}"), Some(Bytes::from(number.to_string()))));
    let letters = ("dead-letters:n/b".to_owned(), Some(Bytes::from_static(b"taken")));
    log.save(changes.chain([letters]).collect()).await.unwrap();
    log
}

async fn all(log: &impl LogProvider, key: &str) -> Vec<LogRecord> {
    let (mut records, bounds) = (
        Vec::new(),
        log.open(&LogName::from_key(key)).bounds().await.unwrap(),
    );
    let mut next = bounds.first;
    while next < bounds.next {
        let read = log.read(key, next, ALL).await.unwrap();
        next = read.last().unwrap().offset.plus(1);
        records.extend(read);
    }
    records
}

/// Checkpoints of unknown brokers go to all shards.
fn broker_of(key: &CheckpointKey, _: &[u8]) -> Option<BrokerName> {
    match key {
        CheckpointKey::DeadLetters(broker) => Some(broker.clone()),
        _ => None,
    }
}

async fn check(from: &EmbeddedLog, to: &JetStreamLog) {
    for key in ["n/b", "n/empty", "n/b.dead-letters"] {
        let name = LogName::from_key(key);
        let bounds = from.open(&name).bounds().await.unwrap();
        assert_eq!(to.open(&name).bounds().await.unwrap(), bounds, "{key}");
        assert_eq!(all(to, key).await, all(from, key).await, "{key}");
    }
    let mut expected = from.checkpoints(Ownership::default()).load_all().await.unwrap();
    for shard in Shard::all(SHARDS) {
        let stored = to.0.streams.load_all(shard).await.unwrap();
        let stored: BTreeMap<_, _> = stored.into_iter().collect();
        let of_shard = expected.iter().filter(|(key, value)| {
            broker_of(key, value).is_none_or(|broker| Shard::of(&broker, SHARDS) == shard)
        });
        assert_eq!(stored, of_shard.cloned().collect(), "shard {shard}");
    }
    expected.retain(|(key, value)| broker_of(key, value).is_some());
    assert_eq!(expected.len(), 1);
}

#[tokio::test]
async fn all_retained_records_are_copied_once() {
    let (directory, server) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let from = embedded(&directory, 2500).await;
    let to = server.connect().await;
    let report = to.copy_from(&from, from.names(), broker_of).await.unwrap();
    assert_eq!((report.logs.len(), report.checkpoints), (3, 1201));
    check(&from, &to).await;
    let again = to.copy_from(&from, from.names(), broker_of).await;
    assert!(matches!(again, Err(LogError::Open { .. })), "{again:?}");
    let next = to.append("n/empty", payloads(&["2"]), at(8)).await.unwrap();
    assert_eq!(next, Offset(2), "the offset does not follow the last one");
}

#[tokio::test]
async fn an_interrupted_copy_resumes() {
    let (directory, mut server) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let from = embedded(&directory, 20_000).await;
    let to = JetStreamLog::connect(JetStreamOptions {
        timeout: Duration::from_secs(1),
        ..server.options()
    });
    let to = to.await.unwrap();
    let copied = {
        let copy = to.copy_from(&from, from.names(), broker_of);
        tokio::pin!(copy);
        let begun = eventually(async || match to.open(&LogName::from_key("n/b")).bounds().await {
            Ok(bounds) if bounds.next > Offset(3) => Ok(()),
            bounds => Err(bounds),
        });
        tokio::select! {
            copied = &mut copy => panic!("the copy ended before it was interrupted: {copied:?}"),
            () = begun => {}
        }
        server.kill();
        copy.await
    };
    assert!(copied.is_err(), "{copied:?}");
    drop(to);
    server.start_again();
    let to = server.connect().await;
    let half = eventually(async || match to.join("router").await {
        Err(LogError::Open { detail, .. }) => Ok(detail),
        Err(other) => Err(other.to_string()),
        Ok(_) => panic!("a router joins on a partial copy"),
    });
    let half = half.await;
    assert!(half.contains("only in part"), "{half}");
    // Waits until the lease of the interrupted copy expires.
    eventually(async || to.copy_from(&from, from.names(), broker_of).await).await;
    check(&from, &to).await;
}

#[tokio::test]
async fn a_copy_is_refused_by_servers_that_routers_use() {
    let (directory, server) = (tempfile::tempdir().unwrap(), NatsServer::start());
    let from = embedded(&directory, 1).await;
    let to = server.connect().await;
    let membership = to.join("router").await.unwrap();
    let fenced = to.copy_from(&from, from.names(), broker_of).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    membership.leave().await;
    to.append("n/b", payloads(&["event"]), at(0)).await.unwrap();
    eventually(
        async || match to.copy_from(&from, from.names(), broker_of).await {
            Err(LogError::Open { detail, .. }) if detail.contains("no router has used") => Ok(()),
            other => Err(other),
        },
    )
    .await;
    assert_eq!(all(&to, "n/b").await.len(), 1);
}
