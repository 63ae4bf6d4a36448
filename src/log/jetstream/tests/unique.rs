//! Repeats at the server: of several routers, across its restarts, and in batches.

use super::{
    server::{FIT, NatsServer, PATIENCE},
    *,
};
use crate::log::{
    EventIdentity, IdWindow, Unique,
    conformance::{ByKey as _, WINDOW, at},
};

/// Nanoseconds for which the server remembers ids of the stream of `n/b`.
async fn window(log: &JetStreamLog) -> u64 {
    let streams = &log.0.streams;
    let name = LogName::from_key("n/b");
    let stream = &streams.log(&name).location.stream;
    let info = streams.session.stream(stream, Duration::from_secs(5)).await;
    info.unwrap().unwrap().config.duplicate_window
}

#[tokio::test]
async fn a_repeat_is_recognized_by_every_router() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let appends = (0..100_u8).map(|number| {
        let log = if number % 2 == 0 { &one } else { &other };
        match number % 5 {
            0 => log.append_unique("n/b", &[(number / 10, 1), (100 + number / 10, 1)], 0),
            _ => log.append_unique("n/b", &[(number / 10, 1)], 0),
        }
    });
    let answers = futures::future::join_all(appends).await;
    let repeats: usize = answers.into_iter().map(|answer| answer.unwrap().repeats).sum();
    assert_eq!(repeats, 120 - 20);
    assert_eq!(
        one.open(&LogName::from_key("n/b")).bounds().await.unwrap().next,
        Offset(20)
    );
}

#[tokio::test]
async fn a_server_that_was_killed_knows_repeats() {
    let mut server = NatsServer::start();
    let log = server.connect().await;
    log.append_unique("n/b", &[(1, 1)], 0).await.unwrap();
    log.append_unique("n/b", &[(2, 1), (3, 1)], 0).await.unwrap();
    server.kill();
    server.start_again();
    let log = server.connect().await;
    let appended = log
        .append_unique("n/b", &[(3, 1), (1, 1), (4, 1), (2, 1)], 1)
        .await;
    assert_eq!(appended.unwrap().repeats, 3);
    let conflict = log.append_unique("n/b", &[(5, 1), (2, 2)], 2).await;
    let Err(LogError::Conflict { index, accepted }) = conflict else {
        panic!("{conflict:?}");
    };
    assert_eq!((index, accepted), (1, at(0)));
}

/// Sets the window that a router wants for the broker, as far as it decides.
async fn want(log: &JetStreamLog, age: Option<Duration>) {
    log.want_id_windows(move |_| age.map(|age| IdWindow { age, ..WINDOW }));
    log.0.streams.refresh_all(PATIENCE).await.unwrap();
    log.0.streams.set_windows().await;
}

/// Appends the same event by a router whose broker has this window. Returns the number of repeats.
async fn append(log: &JetStreamLog, age: Duration) -> usize {
    let unique = Unique {
        identities: vec![EventIdentity {
            key: [1; 16],
            digest: 1,
        }],
        window: IdWindow { age, ..WINDOW },
    };
    let append = Append {
        // No two events have the same bytes.
        payloads: vec![Bytes::from(fastrand::u64(..).to_string())],
        accepted: at(0),
        unique: Some(unique),
    };
    let log = log.open(&LogName::from_key("n/b"));
    log.append(append).await.unwrap().repeats
}

fn nanos(age: Duration) -> u64 {
    u64::try_from(age.as_nanos()).unwrap()
}

const HOUR: Duration = Duration::from_secs(3600);

fn shard() -> Shard {
    Shard::of(&"n/b".into(), SHARDS)
}

#[tokio::test]
async fn the_window_of_the_stream_is_that_of_the_broker() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let membership = log.join("one").await.unwrap();
    membership.take(shard()).await.unwrap();
    // The first append creates the stream.
    assert_eq!(append(&log, HOUR).await, 0);
    assert_eq!(window(&log).await, nanos(HOUR));
    for hours in [3, 2] {
        want(&log, Some(HOUR * hours)).await;
        assert_eq!(window(&log).await, nanos(HOUR * hours));
        assert_eq!(append(&log, HOUR * hours).await, 1);
    }
    // Without deduplication it is as long as retries last. What was stored shortly before is still known.
    want(&log, None).await;
    assert_eq!(window(&log).await, log.0.streams.id_window());
    want(&log, Some(HOUR)).await;
    assert_eq!(window(&log).await, nanos(HOUR));
    assert_eq!(append(&log, HOUR).await, 1);
}

/// A broker whose deduplication is turned on once it has a stream.
#[tokio::test]
async fn ids_from_before_the_window_grew_are_kept() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", vec![Bytes::new()], at(0)).await.unwrap();
    let base = log.0.streams.id_window();
    assert_eq!(window(&log).await, base);
    let membership = log.join("one").await.unwrap();
    membership.take(shard()).await.unwrap();
    assert_eq!(append(&log, HOUR).await, 0);
    assert_eq!(window(&log).await, base, "an append changes nothing");
    want(&log, Some(HOUR)).await;
    assert_eq!(window(&log).await, nanos(HOUR));
    assert_eq!(append(&log, HOUR).await, 1);
}

#[tokio::test]
async fn only_the_owner_of_a_broker_changes_its_window() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    let owned = first.take(shard()).await.unwrap();
    append(&one, HOUR).await;
    want(&other, Some(HOUR * 2)).await;
    assert_eq!(append(&other, HOUR * 2).await, 1);
    assert_eq!(window(&one).await, nanos(HOUR));
    want(&one, Some(HOUR * 3)).await;
    want(&other, Some(HOUR * 2)).await;
    assert_eq!(window(&one).await, nanos(HOUR * 3));
    // With the shard goes the decision.
    first.release(owned).await.unwrap();
    second.take(shard()).await.unwrap();
    want(&one, Some(HOUR * 4)).await;
    assert_eq!(window(&one).await, nanos(HOUR * 3));
    want(&other, Some(HOUR * 2)).await;
    assert_eq!(window(&one).await, nanos(HOUR * 2));
}

#[tokio::test]
async fn events_are_stored_once_while_the_window_changes() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let membership = one.join("one").await.unwrap();
    membership.take(shard()).await.unwrap();
    append(&one, HOUR).await;
    let changes = async {
        for round in 0..20_u32 {
            let hours = [None, Some(HOUR), Some(HOUR * 5)];
            want(&one, hours[round as usize % hours.len()]).await;
        }
    };
    let appends = async {
        let sent = (2..42_u8).map(|key| async move { (key, key + 100) });
        for (key, next) in futures::future::join_all(sent).await {
            let records = [(key, 1), (next, 1)];
            let both = [&one, &other].map(|log| log.append_unique("n/b", &records, 0));
            let repeats = futures::future::join_all(both).await.into_iter();
            let repeats: usize = repeats.map(|appended| appended.unwrap().repeats).sum();
            assert_eq!(repeats, 2, "{key}");
        }
    };
    futures::join!(changes, appends);
    let log = one.open(&LogName::from_key("n/b"));
    assert_eq!(log.bounds().await.unwrap().next, Offset(1 + 80));
}

#[tokio::test]
async fn a_window_is_as_long_as_the_server_accepts() {
    let limited = FIT.replace("jetstream {", "jetstream { limits: { duplicate_window: '10m' },");
    let server = NatsServer::configured(&limited);
    let log = server.connect().await;
    let most = Duration::from_secs(600);
    let membership = log.join("one").await.unwrap();
    let owned = membership.take(shard()).await.unwrap();
    assert_eq!(append(&log, HOUR).await, 0);
    assert_eq!(window(&log).await, nanos(most));
    want(&log, None).await;
    assert_eq!(window(&log).await, log.0.streams.id_window());
    // A router that does not know the limit yet.
    membership.release(owned).await.unwrap();
    let log = server.connect().await;
    let membership = log.join("two").await.unwrap();
    membership.take(shard()).await.unwrap();
    want(&log, Some(HOUR)).await;
    assert_eq!(window(&log).await, nanos(most));
    assert_eq!(append(&log, HOUR).await, 1);
}
