//! Tests with a server that is killed, unavailable, full or damaged.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::future::join_all;

use super::{
    super::*,
    server::{NatsServer, eventually},
};
use crate::log::{
    conformance::{ALL, ByKey as _, at, payloads},
    jetstream::publish::NatsMessage,
};

/// Number of appends during repeated faults.
const APPENDS: usize = 1000;

/// Appends one record or three, and returns their offsets and texts.
async fn append_some(log: &JetStreamLog, number: usize) -> Vec<(Offset, String)> {
    let count = if number.is_multiple_of(4) { 3 } else { 1 };
    let texts: Vec<_> = (0..count).map(|part| format!("{number}/{part}")).collect();
    let records = texts.iter().map(|text| Bytes::from(text.clone())).collect();
    let first = log.append("n/b", records, at(0)).await.unwrap();
    texts
        .into_iter()
        .zip(0..)
        .map(|(text, part)| (first.plus(part), text))
        .collect()
}

/// Runs concurrent appends, and calls `fault` repeatedly meanwhile. Checks that all acknowledged records are stored
/// once, at the acknowledged offsets.
pub(super) async fn appends_survive(log: &JetStreamLog, faults: usize, mut fault: impl AsyncFnMut()) {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let writer = async || {
        let mut acknowledged = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= APPENDS {
                return acknowledged;
            }
            acknowledged.extend(append_some(log, number).await);
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let failing = async {
        for number in 1..=faults {
            let some = number * APPENDS / (faults + 1);
            eventually(async || match done.load(Ordering::Relaxed) {
                done if done >= some => Ok(()),
                done => Err(done),
            })
            .await;
            fault().await;
        }
    };
    let (written, ()) = futures::join!(join_all((0..16).map(|_| writer())), failing);

    let records = log.read("n/b", Offset(0), ALL).await.unwrap();
    for (offset, text) in written.iter().flatten() {
        assert_eq!(records[offset.0 as usize].payload, text.as_bytes(), "{offset}");
    }
    let stored: HashSet<_> = records.iter().map(|record| record.payload.clone()).collect();
    assert_eq!(stored.len(), records.len(), "records are stored twice");
    assert_eq!(records.len(), written.iter().flatten().count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_stored_twice_when_the_server_is_killed() {
    let mut server = NatsServer::start();
    let log = server.connect().await;
    appends_survive(&log, 5, async || {
        server.kill();
        server.start_again();
    })
    .await;
}

#[tokio::test]
async fn the_log_is_unavailable_until_the_server_is_back() {
    let mut server = NatsServer::start();
    let options = JetStreamOptions {
        timeout: Duration::from_secs(1),
        ..server.options()
    };
    let log = JetStreamLog::connect(options).await.unwrap();
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    server.kill();
    let opened = LogProvider::open(&log, &LogName::from_key("n/b"));
    let save = || log.save(vec![("k".into(), Some("v".into()))]);
    for error in [
        log.append("n/b", payloads(&["1"]), at(0)).await.err(),
        log.append("n/new", payloads(&["1"]), at(0)).await.err(),
        log.append("n/b", payloads(&["1", "2"]), at(0)).await.err(),
        log.read("n/b", Offset(0), ALL).await.err(),
        log.trim("n/b", Offset(1)).await.err(),
        log.offset_at("n/b", at(0)).await.err(),
        opened.bounds().await.err(),
        save().await.err(),
        log.stored().await.err(),
        log.checkpoint("k").await.err(),
    ] {
        assert!(matches!(error, Some(LogError::Unavailable(_))), "{error:?}");
    }
    assert!(log.read_errors() > 0);
    server.start_again();
    eventually(async || log.append("n/b", payloads(&["3"]), at(0)).await).await;
    eventually(async || save().await).await;
    assert_eq!(log.checkpoint("k").await.unwrap(), Some("v".into()));
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap()[0].payload, "0");
}

#[tokio::test]
async fn a_full_stream_accepts_records_after_a_trim() {
    let server = NatsServer::start();
    let options = JetStreamOptions {
        max_bytes: 100_000,
        ..server.options()
    };
    let log = JetStreamLog::connect(options).await.unwrap();
    let record = || Bytes::from(vec![b'x'; 10_000]);
    let mut count = 0;
    let full = loop {
        match log.append("n/b", vec![record()], at(0)).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(count >= 8, "{count} records are stored");
    assert!(matches!(full, LogError::Full(_)), "{full:?}");
    let batch = log.append("n/b", vec![record(); 3], at(0)).await;
    assert!(matches!(batch, Err(LogError::Full(_))), "{batch:?}");
    assert_eq!(
        log.bounds("n/b").next,
        Offset(count),
        "a part of the batch is stored"
    );
    log.trim("n/b", Offset(4)).await.unwrap();
    let first = log.append("n/b", vec![record(); 3], at(0)).await.unwrap();
    assert_eq!(first, Offset(count));
}

#[tokio::test]
async fn appends_beyond_the_limits_of_the_server_fail_at_once() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let record = |bytes: usize| Bytes::from(vec![b'x'; bytes]);
    for records in [
        vec![record(2 * 1024 * 1024)],
        vec![record(1), record(2 * 1024 * 1024)],
        vec![record(0); 1001],
        vec![record(1024 * 1024); 65],
    ] {
        let refused = log.append("n/b", records, at(0)).await;
        assert!(matches!(refused, Err(LogError::TooLarge(_))), "{refused:?}");
    }
    let first = log.append("n/b", vec![record(1); 1000], at(0)).await.unwrap();
    assert_eq!(first, Offset(0));
    assert_eq!(log.bounds("n/b").next, Offset(1000));
}

#[tokio::test]
async fn a_retry_returns_the_sequence_of_the_first_attempt() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", payloads(&["before"]), at(0)).await.unwrap();
    let streams = &log.0.streams;
    for count in [1, 3] {
        let message = NatsMessage {
            subject: "weir.ev.n.b.0".to_owned(),
            headers: async_nats::HeaderMap::new(),
            content: Bytes::from_static(b"x"),
        };
        let (id, messages) = (format!("id-{count}"), vec![message; count]);
        let store = async || {
            let stored = streams
                .session
                .store(&id, &messages, Duration::from_secs(10))
                .await;
            stored.unwrap()
        };
        let first = store().await;
        log.append("n/b", payloads(&["between"]), at(0)).await.unwrap();
        assert_eq!(store().await, first, "{count} messages");
    }
    let opened = LogProvider::open(&log, &LogName::from_key("n/b"));
    assert_eq!(opened.bounds().await.unwrap().next, Offset(7));
}

/// An append whose time is over, because the process was paused, must not be retried: the server forgets its id.
#[tokio::test]
async fn nothing_is_sent_once_the_time_is_over() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    let message = NatsMessage::encoded("weir.ev.n.b.0", 0, b"1");
    let session = &log.0.streams.session;
    for count in [1, 2] {
        let messages = vec![message.clone(); count];
        let stored = session.store("id", &messages, Duration::ZERO).await;
        assert!(stored.is_err(), "{stored:?}");
    }
    let next = log.append("n/b", payloads(&["2"]), at(0)).await.unwrap();
    assert_eq!(next, Offset(1));
}

#[tokio::test]
async fn a_damaged_record_is_reported_and_not_returned() {
    let server = NatsServer::start();
    let options = JetStreamOptions {
        timeout: Duration::from_secs(2),
        ..server.options()
    };
    let log = JetStreamLog::connect(options).await.unwrap();
    log.append("n/b", payloads(&["0", "1"]), at(0)).await.unwrap();
    let mut damaged = layout::encode("weir.ev.n.b.0", 0, b"2").to_vec();
    damaged[12] ^= 1;
    let message = NatsMessage {
        subject: "weir.ev.n.b.0".to_owned(),
        headers: async_nats::HeaderMap::new(),
        content: damaged.into(),
    };
    let session = &log.0.streams.session;
    session
        .store("id", &[message], Duration::from_secs(10))
        .await
        .unwrap();
    log.append("n/b", payloads(&["3"]), at(0)).await.unwrap();
    let limit = ReadLimit { records: 2, ..ALL };
    assert_eq!(log.read("n/b", Offset(0), limit).await.unwrap().len(), 2);
    for from in [0, 2] {
        match log.read("n/b", Offset(from), ALL).await {
            Err(LogError::Damaged { path, detail }) => {
                assert!(path.ends_with("weir_n_b"), "{}", path.display());
                assert!(
                    detail.contains("offset 2") && detail.contains("checksum"),
                    "{detail}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(log.read("n/b", Offset(3), ALL).await.unwrap()[0].payload, "3");
}

/// Another replica may lack a record that was read. The end of the log must not be before it: the record would count as
/// removed when it is read again.
#[tokio::test]
async fn the_known_end_is_beyond_all_records_that_were_read() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    // Stored without an announcement.
    let message = NatsMessage::encoded("weir.ev.n.b.0", 0, b"1");
    let session = &log.0.streams.session;
    let stored = session.store("id", &[message], Duration::from_secs(10)).await;
    assert_eq!(stored.unwrap(), 2);
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 2);
    assert_eq!(log.bounds("n/b").next, Offset(2));
}
