//! Repeats at the server: of several routers, across its restarts, and in batches.

use super::{server::NatsServer, *};
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

#[tokio::test]
async fn the_window_of_the_stream_is_that_of_the_broker() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let append = |age| {
        let unique = Unique {
            identities: vec![EventIdentity {
                key: [1; 16],
                digest: 1,
            }],
            window: IdWindow { age, ..WINDOW },
        };
        let append = Append {
            payloads: vec![Bytes::from(format!("{age:?}"))],
            accepted: at(0),
            unique: Some(unique),
        };
        let log = log.open(&LogName::from_key("n/b"));
        async move { log.append(append).await.unwrap().repeats }
    };
    let nanos = |age: Duration| u64::try_from(age.as_nanos()).unwrap();
    for (hours, repeats) in [(1, 0), (3, 1), (2, 1)] {
        let age = Duration::from_secs(3600 * hours);
        assert_eq!(append(age).await, repeats);
        assert_eq!(window(&log).await, nanos(age));
    }
    // Without deduplication it is as long as retries last.
    log.append("n/b", vec![Bytes::new()], at(0)).await.unwrap();
    assert_eq!(window(&log).await, log.0.streams.id_window());
}
