//! Tests of the lease: one router holds it, and another gets it when it is given up or expires.

use super::{
    super::*,
    server::{NatsServer, eventually},
};

fn change(value: &str) -> Vec<CheckpointChange> {
    vec![(CheckpointKey::Trigger("t".into()), Some(value.to_owned().into()))]
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_is_given_up() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    assert_eq!(one.lease_holder().await.unwrap(), None);
    let first = one.take_lease("one").await.unwrap();
    let refused = other.take_lease("other").await.err();
    assert!(matches!(refused, Some(LogError::Fenced(_))), "{refused:?}");
    assert_eq!(other.lease_holder().await.unwrap().as_deref(), Some("one"));
    let before = one.checkpoints(first.epoch());
    before.save(change("1")).await.unwrap();

    first.give_up().await;
    let second = eventually(async || other.take_lease("other").await).await;
    assert_eq!(one.lease_holder().await.unwrap().as_deref(), Some("other"));
    let fenced = before.save(change("2")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    other.checkpoints(second.epoch()).save(change("3")).await.unwrap();
}

#[tokio::test]
async fn a_lease_expires_unless_it_is_renewed() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let first = one.take_lease("one").await.unwrap();
    // Longer than a lease lasts without a renewal.
    let lost = tokio::time::timeout(std::time::Duration::from_secs(13), first.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    assert!(other.take_lease("other").await.is_err());
    // Simulates a killed router.
    drop((first, one));
    eventually(async || other.take_lease("other").await).await;
}

#[tokio::test]
async fn a_holder_that_cannot_renew_its_lease_loses_it() {
    let mut server = NatsServer::start();
    let one = server.connect().await;
    let lease = one.take_lease("one").await.unwrap();
    server.kill();
    let reason = lease.lost().await.to_string();
    assert!(reason.contains("cannot renew the lease"), "{reason}");
}

#[tokio::test]
async fn a_fenced_save_ends_the_turn() {
    let server = NatsServer::start();
    let (one, other) = futures::join!(server.connect(), server.connect());
    let lease = one.take_lease("one").await.unwrap();
    let checkpoints = one.checkpoints(lease.epoch());
    other.take_over("other").await.unwrap();
    let fenced = checkpoints.save(change("1")).await;
    assert!(matches!(fenced, Err(LogError::Fenced(_))), "{fenced:?}");
    let reason = lease.lost().await.to_string();
    assert!(reason.contains("no longer owns the log"), "{reason}");
    let log = one.open(&LogName::from_key("n/b"));
    log.append(Append {
        payloads: vec![Bytes::from_static(b"event")],
        accepted: Timestamp::UNIX_EPOCH,
    })
    .await
    .unwrap();
    let trimmed = log.trim(Offset(1)).await;
    assert!(trimmed.is_err(), "a router whose turn is over trims a log");
}
