//! Tests of the health of the servers and streams, with one server. `cluster.rs` has those with three.

use super::{
    super::*,
    server::{NatsServer, PATIENCE, eventually},
};
use crate::log::{
    StreamHealth,
    conformance::{ByKey as _, at, payloads},
};

/// Returns the streams; `None` while the servers are unavailable.
pub(super) fn streams(log: &JetStreamLog) -> Option<Arc<[StreamHealth]>> {
    match log.health() {
        Some(LogHealth::Available(streams)) => Some(streams),
        _ => None,
    }
}

#[tokio::test]
async fn the_health_has_all_streams_while_the_server_responds() {
    let mut server = NatsServer::start();
    let options = JetStreamOptions {
        max_bytes: 2_000_000,
        dead_letters_max_bytes: 1_000_000,
        ..server.options()
    };
    let log = JetStreamLog::connect(options).await.unwrap();
    assert_eq!(streams(&log).unwrap().len(), 1, "the state stream");
    for key in ["n/b", "n/b.dead-letters"] {
        log.append(key, payloads(&["0"]), at(0)).await.unwrap();
    }
    let stream = |name: &str, log: Option<&str>, max_bytes| StreamHealth {
        name: name.to_owned(),
        log: log.map(LogName::from_key),
        max_bytes,
        replicas_missing: 0,
        has_leader: true,
    };
    let expected = [
        stream("weir_n_b", Some("n/b"), Some(2_000_000)),
        stream("weir_n_b_dl", Some("n/b.dead-letters"), Some(1_000_000)),
        stream(names::STATE, None, None),
    ];
    let all_seen = async || match streams(&log) {
        Some(seen) if *seen == expected => Ok(()),
        seen => Err(seen),
    };
    eventually(all_seen).await;
    server.kill();
    eventually(async || streams(&log).map_or(Ok(()), Err)).await;
    server.start_again();
    eventually(all_seen).await;
}

/// A server lists at most 256 streams at once.
#[tokio::test]
async fn more_streams_than_fit_a_page_are_polled() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let all = &log.0.streams;
    let new = (0..300).map(|number| async move {
        let tracked = Tracked::new(
            LogName::from_key(&format!("n/b{number}")),
            recent::RecentRecords::new(Arc::default()),
        );
        let mut config = all.config_of(&tracked, Offset(0));
        config["storage"] = "memory".into();
        config["max_bytes"] = 10_000.into();
        all.session.stream_or_new(&config, PATIENCE).await.unwrap();
    });
    futures::future::join_all(new).await;
    all.refresh_all(PATIENCE).await.unwrap();
    assert_eq!(streams(&log).unwrap().len(), 301);
    assert_eq!(all.logs().iter().filter(|log| log.is_seen()).count(), 300);
}
