//! Tests of members and shards: a shard has one owner until it is released, or until the lease of its owner expires.

use std::time::Duration;

use super::{
    super::*,
    server::{NatsServer, eventually},
};
use crate::log::conformance::ByKey as _;

const SHARD: Shard = Shard(3);

fn change(value: &str) -> Vec<CheckpointChange> {
    vec![(CheckpointKey::Trigger("t".into()), Some(value.to_owned().into()))]
}

fn names(routers: &[&str]) -> Vec<String> {
    routers.iter().map(|router| (*router).to_owned()).collect()
}

/// Waits until a router sees these routers, and the owner of [`SHARD`].
async fn sees(membership: &Membership, routers: &[&str], owner: Option<&str>) {
    eventually(async || {
        let seen = membership.seen().await.unwrap();
        let is_expected = seen.routers.iter().eq(names(routers).iter())
            && seen.owners.get(&SHARD).map(String::as_str) == owner;
        is_expected.then_some(()).ok_or(seen)
    })
    .await;
}

#[tokio::test]
async fn a_shard_has_one_owner_until_it_is_released() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    sees(&first, &["one", "other"], None).await;
    let owned = first.take(SHARD).await.unwrap();
    sees(&second, &["one", "other"], Some("one")).await;
    let refused = second.take(SHARD).await.err();
    assert!(matches!(refused, Some(LogError::Fenced(_))), "{refused:?}");
    let before = one.checkpoints(owned);
    before.save(change("1")).await.unwrap();

    first.release(owned).await.unwrap();
    sees(&second, &["one", "other"], None).await;
    let later = second.take(SHARD).await.unwrap();
    sees(&first, &["one", "other"], Some("other")).await;
    let after = other.checkpoints(later);
    assert_eq!(after.load_all().await.unwrap().len(), 1);
    after.save(change("2")).await.unwrap();
    let fenced = before.save(change("3")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(
        after.load(&CheckpointKey::Trigger("t".into())).await.unwrap(),
        Some("2".into())
    );
}

#[tokio::test]
async fn a_router_that_leaves_owns_its_shards_until_it_releases_them() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    let owned = first.take(SHARD).await.unwrap();
    first.prepare_to_leave();
    sees(&second, &["other"], Some("one")).await;
    assert!(second.take(SHARD).await.is_err());
    first.release(owned).await.unwrap();
    first.leave().await;
    second.take(SHARD).await.unwrap();
    eventually(async || one.join("one").await).await;
}

#[tokio::test]
async fn a_shard_is_free_once_the_lease_of_its_owner_has_expired() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    first.take(SHARD).await.unwrap();
    // Longer than a lease lasts without a renewal.
    let lost = tokio::time::timeout(std::time::Duration::from_secs(13), first.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    let again = other.join("one").await.err();
    assert!(
        matches!(again, Some(LogError::Fenced(_))),
        "the name is in use: {again:?}"
    );
    // Simulates a killed router.
    drop((first, one));
    eventually(async || second.take(SHARD).await).await;
}

#[tokio::test]
async fn a_shard_of_an_earlier_router_of_the_same_name_is_free() {
    let server = NatsServer::start();
    let (one, again) = futures::join!(server.connect(), server.connect());
    let first = one.join("one").await.unwrap();
    let owned = first.take(SHARD).await.unwrap();
    drop(first);
    let second = eventually(async || again.join("one").await).await;
    sees(&second, &["one"], None).await;
    let later = second.take(SHARD).await.unwrap();
    assert!(later.epoch > owned.epoch);
}

#[tokio::test]
async fn a_router_that_cannot_renew_its_lease_loses_it_and_joins_again() {
    let mut server = NatsServer::start();
    let one = server.connect().await;
    let membership = one.join("one").await.unwrap();
    server.kill();
    let reason = membership.lost().await.to_string();
    assert!(reason.contains("cannot renew the lease"), "{reason}");
    drop(membership);
    server.start_again();
    let membership = eventually(async || one.join("one").await).await;
    membership.take(SHARD).await.unwrap();
}

#[tokio::test]
async fn a_fenced_save_ends_the_turn() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let membership = one.join("one").await.unwrap();
    let checkpoints = one.checkpoints(membership.take(Shard::default()).await.unwrap());
    other.take_over("other").await.unwrap();
    let fenced = checkpoints.save(change("1")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    let reason = membership.lost().await.to_string();
    assert!(reason.contains("no longer owns the log"), "{reason}");
    let log = one.open(&LogName::from_key("n/b"));
    log.append(Append {
        payloads: vec![Bytes::from_static(b"event")],
        accepted: Timestamp::UNIX_EPOCH,
        unique: None,
    })
    .await
    .unwrap();
    let trimmed = log.trim(Offset(1)).await;
    assert!(trimmed.is_err(), "a router whose turn is over trims a log");
}

#[tokio::test]
async fn shards_do_not_share_checkpoints() {
    let server = NatsServer::start();
    let log = server.connect().await;
    let membership = log.join("one").await.unwrap();
    let mut owned = Vec::new();
    for shard in [Shard(1), Shard(2), Shard(11)] {
        let checkpoints = log.checkpoints(membership.take(shard).await.unwrap());
        checkpoints.save(change(&shard.to_string())).await.unwrap();
        owned.push(checkpoints);
    }
    for (checkpoints, value) in owned.iter().zip(["1", "2", "11"]) {
        let expected = vec![(CheckpointKey::Trigger("t".into()), Bytes::from(value))];
        assert_eq!(checkpoints.load_all().await.unwrap(), expected);
    }
    let of_all = log
        .checkpoint_of_all(&CheckpointKey::Trigger("t".into()))
        .await
        .unwrap();
    let shards: Vec<_> = of_all.into_keys().collect();
    assert_eq!(shards, [Shard(1), Shard(2), Shard(11)]);
}

/// Simulates a lost end: the router believes that the stream was longer.
#[tokio::test]
async fn a_stream_that_lost_its_end_gets_another_owner() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let (first, second) = (one.join("one").await.unwrap(), other.join("other").await.unwrap());
    let name = LogName::from_key("n/b");
    let owned = first.take(Shard::of(name.broker(), SHARDS)).await.unwrap();
    let append = |log: &JetStreamLog| {
        let log = log.open(&name);
        async move {
            let payloads = vec![Bytes::from_static(b"event")];
            let accepted = Timestamp::UNIX_EPOCH;
            let append = Append {
                payloads,
                accepted,
                unique: None,
            };
            Ok::<_, LogError>(log.append(append).await?.first)
        }
    };
    append(&one).await.unwrap();
    assert!(first.owns(owned).await.unwrap());
    for log in [&one, &other] {
        log.0.streams.log(&name).ends_at_least_at(Offset(100));
    }
    let refused = append(&other).await;
    assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
    assert!(!first.owns(owned).await.unwrap());
    assert_eq!(append(&other).await.unwrap(), Offset(2));

    let later = second.take(owned.shard).await.unwrap();
    first.release(owned).await.unwrap();
    assert!(
        second.owns(later).await.unwrap(),
        "an earlier owner releases the shard"
    );
    second.release(later).await.unwrap();
    first.take(owned.shard).await.unwrap();
    assert_eq!(
        one.open(&name).bounds().await.unwrap().next,
        Offset(3),
        "the end is that of before"
    );
}

/// The retry that the router asks for is stored where no Trigger has been, and is then known as a repeat.
#[tokio::test]
async fn an_event_that_was_refused_after_a_lost_end_is_no_repeat() {
    let mut server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    one.append_unique("n/b", &[(1, 1)], 0).await.unwrap();
    let name = LogName::from_key("n/b");
    for batch in [&[(2, 1)][..], &[(3, 1), (4, 1)]] {
        other.0.streams.log(&name).ends_at_least_at(Offset(100));
        let refused = other.append_unique("n/b", batch, 1).await;
        assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
        let before = one.open(&name).bounds().await.unwrap().next;
        let stored = one.append_unique("n/b", batch, 2).await.unwrap();
        assert_eq!((stored.first, stored.repeats), (before, 0));
    }
    server.kill();
    server.start_again();
    let log = server.connect().await;
    let all = [(1, 1), (2, 1), (3, 1), (4, 1)];
    assert_eq!(log.append_unique("n/b", &all, 3).await.unwrap().repeats, 4);
    let conflict = log.append_unique("n/b", &[(2, 2)], 4).await;
    assert!(matches!(conflict, Err(LogError::Conflict { .. })), "{conflict:?}");
}

#[tokio::test]
async fn a_record_with_an_id_is_appended_once() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let _membership = one.join("one").await.unwrap();
    let logs = [&one, &other].map(|log| log.open(&LogName::from_key("n/b")));
    let append = |payload: &'static str| Append {
        payloads: vec![Bytes::from_static(payload.as_bytes())],
        accepted: Timestamp::UNIX_EPOCH,
        unique: None,
    };
    for (log, id, offset) in [(0, "a", 0), (1, "a", 0), (0, "b", 1), (0, "a", 0), (1, "b", 1)] {
        let appended = logs[log].append_once(id, append(id)).await.unwrap();
        assert_eq!(appended.first, Offset(offset), "{id}");
    }
    assert_eq!(logs[0].append(append("c")).await.unwrap().first, Offset(2));
    let over = LogError::Fenced("the turn is over".to_owned());
    one.0.streams.turn.end(over);
    let fenced = logs[0].append_once("d", append("d")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    assert_eq!(logs[1].bounds().await.unwrap().next, Offset(3));
}

#[tokio::test]
async fn routers_ask_each_other() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let answering = one.answer("one".to_owned(), async |question: Bytes| {
        question.repeat(100_000).into()
    });
    let asking = async {
        let wait = std::time::Duration::from_secs(10);
        let ask = async |question: &'static str| other.ask("one", question.into(), wait).await;
        eventually(async || ask("").await).await;
        for question in ["a", "0123456789"] {
            let answer = ask(question).await.unwrap();
            assert!(answer == question.repeat(100_000), "{} bytes", answer.len());
        }
        let unknown = other.ask("nobody", "a".into(), wait).await;
        assert!(matches!(unknown, Err(LogError::Unavailable(_))), "{unknown:?}");
        let large = other.ask("one", vec![0; 3_000_000].into(), wait).await;
        assert!(matches!(large, Err(LogError::TooLarge(_))), "{large:?}");
    };
    tokio::select! {
        () = answering => {}
        () = asking => {}
    }
}

/// A server that recovers responds from a replica that may lack the newest leases and owners.
#[tokio::test]
async fn the_view_of_a_replica_that_is_behind_is_rejected() {
    let server = NatsServer::start();
    let options = JetStreamOptions {
        timeout: Duration::from_millis(200),
        ..server.options()
    };
    let (one, other) = futures::join!(JetStreamLog::connect(options), server.connect());
    let one = one.unwrap();
    let first = one.join("one").await.unwrap();
    let _second = other.join("other").await.unwrap();
    sees(&first, &["one", "other"], None).await;
    // As if this router had stored more than the server has.
    let known = &one.0.streams.state_end;
    let end = known.fetch_add(1000, Ordering::Relaxed);
    let seen = first.seen().await;
    assert!(matches!(seen, Err(LogError::Unavailable(_))), "{seen:?}");
    known.store(end, Ordering::Relaxed);
    sees(&first, &["one", "other"], None).await;
}
