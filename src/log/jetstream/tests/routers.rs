//! Tests with several routers on the same streams: each follows the others, and an earlier owner is fenced.

use super::{
    super::*,
    server::{NatsServer, PATIENCE, eventually},
};
use crate::log::{
    conformance::{ALL, ByKey as _, at, payloads},
    jetstream::publish::NatsMessage,
};

async fn grows_to(end: &mut watching::Receiver<Offset>, next: u64) {
    let grown = end.wait_for(|end| *end >= Offset(next));
    tokio::time::timeout(PATIENCE, grown).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_router_follows_what_another_one_appends() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let mut end = other.follow("n/b");
    for number in 1..=20 {
        one.append("n/b", payloads(&["x"]), at(0)).await.unwrap();
        grows_to(&mut end, number).await;
        let records = other.read("n/b", Offset(number - 1), ALL).await.unwrap();
        assert_eq!(records.len(), 1);
    }
    other.append("n/b", payloads(&["y"]), at(0)).await.unwrap();
    grows_to(&mut one.follow("n/b"), 21).await;
}

/// Simulates a lost announcement: stores the record directly.
#[tokio::test]
async fn records_are_found_without_an_announcement() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    one.append("n/b", payloads(&["0"]), at(0)).await.unwrap();
    let mut end = other.follow("n/b");
    let message = NatsMessage {
        subject: "weir.ev.n.b.0".to_owned(),
        headers: async_nats::HeaderMap::new(),
        content: layout::encode("weir.ev.n.b.0", 0, b"1"),
    };
    let stored = one.0.streams.session.store("id", &[message], PATIENCE).await;
    assert_eq!(stored.unwrap(), 2);
    grows_to(&mut end, 2).await;
    eventually(async || match other.used() {
        used if used.len() == 1 => Ok(()),
        used => Err(used),
    })
    .await;
}

#[tokio::test]
async fn a_read_begins_after_records_trimmed_by_another_router() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    one.append("n/b", payloads(&["0", "1", "2", "3"]), at(0))
        .await
        .unwrap();
    let all = other.read("n/b", Offset(0), ALL).await.unwrap();
    assert_eq!(all.len(), 4);
    one.trim("n/b", Offset(3)).await.unwrap();
    let rest = other.read("n/b", Offset(0), ALL).await.unwrap();
    assert_eq!(rest, all[3..]);
    assert_eq!(other.bounds("n/b").first, Offset(3));
    other.trim("n/b", Offset(100)).await.unwrap();
    assert_eq!(one.read("n/b", Offset(0), ALL).await.unwrap(), []);
    assert_eq!(one.offset_at("n/b", at(0)).await.unwrap(), Offset(4));
}

#[tokio::test]
async fn an_earlier_owner_is_fenced() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let change = |key: &str, value: &str| (CheckpointKey::Trigger(key.into()), Some(value.to_owned().into()));
    let earlier = one.take_over("one").await.unwrap();
    let before = one.checkpoints(earlier);
    before
        .save(vec![change("a", "1"), change("b", "1")])
        .await
        .unwrap();
    before.save(vec![change("a", "2")]).await.unwrap();

    let later = other.take_over("other").await.unwrap();
    assert!(later.epoch > earlier.epoch);
    let after = other.checkpoints(later);
    for changes in [
        vec![change("a", "3"), change("b", "3")],
        vec![change("a", "3")],
        vec![
            (CheckpointKey::Trigger("a".into()), None),
            (CheckpointKey::Trigger("b".into()), None),
        ],
    ] {
        let fenced = before.save(changes).await;
        assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    }
    let mut stored = after.load_all().await.unwrap();
    stored.sort();
    let expected =
        [("a", "2"), ("b", "1")].map(|(key, value)| (CheckpointKey::Trigger(key.into()), Bytes::from(value)));
    assert_eq!(stored, expected);
    after.save(vec![change("a", "4")]).await.unwrap();
    assert_eq!(other.checkpoint("a").await.unwrap(), Some("4".into()));
}

#[tokio::test]
async fn queued_saves_are_stored_in_order() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let owned = log.take_over("router").await.unwrap();
    let checkpoints = log.checkpoints(owned);
    let saves = (0..100).map(|number: u32| {
        let own = (
            CheckpointKey::Trigger(format!("t{number}")),
            Some(number.to_string().into()),
        );
        let shared = (CheckpointKey::RunningTime, Some(number.to_string().into()));
        checkpoints.save(vec![own, shared])
    });
    let mut saves: Vec<_> = saves.collect();
    for save in &mut saves {
        assert!(futures::poll!(save).is_pending());
    }
    for saved in futures::future::join_all(saves).await {
        saved.unwrap();
    }
    let stored = checkpoints.load_all().await.unwrap();
    assert_eq!(stored.len(), 101);
    assert!(stored.contains(&(CheckpointKey::RunningTime, "99".into())));
}

#[tokio::test]
async fn more_checkpoints_than_fit_a_batch_are_saved_and_loaded() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let owned = log.take_over("router").await.unwrap();
    let checkpoints = log.checkpoints(owned);
    let key = |number: u32| CheckpointKey::Trigger(format!("t{number}"));
    let changes = (0..2500).map(|number| (key(number), Some(Bytes::from(vec![b'x'; 300]))));
    checkpoints.save(changes.collect()).await.unwrap();
    assert_eq!(checkpoints.load_all().await.unwrap().len(), 2500);
    let removed = (0..2000).map(|number| (key(number), None));
    checkpoints.save(removed.collect()).await.unwrap();
    assert_eq!(checkpoints.load_all().await.unwrap().len(), 500);
}

#[tokio::test]
async fn dead_letters_have_a_stream_of_their_own() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", payloads(&["event"]), at(0)).await.unwrap();
    let letters = payloads(&["letter", "another"]);
    let first = log.append("n/b.dead-letters", letters, at(0)).await.unwrap();
    assert_eq!(first, Offset(0));
    let other = server.connect().await;
    let keys: Vec<_> = other.used().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["n/b", "n/b.dead-letters"]);
    other.trim("n/b.dead-letters", Offset(1)).await.unwrap();
    let rest = log.read("n/b.dead-letters", Offset(0), ALL).await.unwrap();
    assert_eq!(rest[0].payload, "another");
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_deleted_stream_continues_at_the_offset_where_it_ended() {
    let server = NatsServer::start();
    let log = server.connect().await;
    log.append("n/b", payloads(&["0", "1", "2"]), at(0))
        .await
        .unwrap();
    let (session, nothing) = (&log.0.streams.session, serde_json::json!({}));
    let deleted: Result<serde_json::Value, _> =
        session.api("STREAM.DELETE.weir_n_b", &nothing, PATIENCE).await;
    deleted.unwrap();
    let next = log.append("n/b", payloads(&["3"]), at(0)).await.unwrap();
    assert_eq!(next, Offset(3), "an offset that Triggers have passed is reused");
    assert_eq!(log.read("n/b", Offset(0), ALL).await.unwrap().len(), 1);
}
