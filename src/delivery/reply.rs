//! Replies: events in a Sink's answer are stored in the same broker, for all its Triggers.
//!
//! A reply can cause another reply. To end such loops, each reply carries the number of deliveries that led to it, in
//! [`HOPS`](crate::intake::HOPS), and inherits the lineage of the event it replies to: see [`crate::intake`].

use crate::{
    cloudevents::{Event, TraceContext},
    destination::{Replies, UnusableReply},
    intake::{self, Intake, MAX_HOPS, UsableRoom},
    log::{BrokerName, LogError},
};

/// Outcome of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReplyOutcome {
    /// Number of events stored in the broker.
    Stored(usize),
    /// Not stored: too many deliveries led to it.
    BeyondMaxHops,
    /// Not stored: too many events descend from the same one.
    BeyondMaxDescendants,
    /// Not stored: not a valid event, too large, or with the source and id of another one.
    Invalid(String),
}

/// Stores a Sink's reply to `delivered` as one commit. A reply without a trace context continues `context`, the
/// one of the delivery.
///
/// # Errors
/// Those of the log. When it is full, the delivery has to be retried.
pub(super) async fn store(
    intake: &Intake,
    broker: &BrokerName,
    delivered: &Event,
    replies: &Replies,
    context: Option<&TraceContext>,
    room: UsableRoom,
) -> Result<ReplyOutcome, LogError> {
    let next = intake::next(delivered);
    if next.hops > MAX_HOPS {
        return Ok(ReplyOutcome::BeyondMaxHops);
    }
    let (records, counted) = match replies.records(next, context).await {
        Ok(made) => made,
        Err(UnusableReply::BeyondMaxDescendants) => return Ok(ReplyOutcome::BeyondMaxDescendants),
        Err(UnusableReply::Invalid(problem)) => return Ok(ReplyOutcome::Invalid(problem)),
    };
    let count = records.len();
    if count > 0 {
        match intake.settle(broker, &records, room).await {
            Err(conflict @ LogError::Conflict { .. }) => {
                return Ok(ReplyOutcome::Invalid(conflict.to_string()));
            }
            settled => settled?,
        };
    }
    counted.keep();
    Ok(ReplyOutcome::Stored(count))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::{
        cloudevents::{EventBuilder, Lineage},
        destination::Client,
        intake::{Descendants, HOPS},
        log::{
            Offset, ReadLimit,
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
    };

    fn event(hops: Option<&str>) -> Event {
        let builder = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let builder = match hops {
            Some(hops) => builder.attribute(HOPS, hops),
            None => builder,
        };
        builder.build().unwrap()
    }

    fn replies(client: &Client, events: &[Event], descendants: &Descendants) -> Replies {
        let texts: Vec<_> = events
            .iter()
            .map(|event| String::from_utf8(event.to_json().to_vec()).unwrap())
            .collect();
        Replies::for_test(
            client,
            format!("[{}]", texts.join(",")).into(),
            descendants.clone(),
        )
    }

    fn client() -> Client {
        Client::for_test()
    }

    #[tokio::test]
    async fn replies_beyond_the_maximum_of_descendants_are_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let (intake, broker) = (Intake::without_room(log.clone()), BrokerName::from("a/b"));
        let client = client();
        let origin = event(None).with_lineage(Lineage::of_origin(7));
        let descendants = Descendants::default();
        let thousand = replies(&client, &vec![event(None); 1000], &descendants);
        for round in 1..=5 {
            let reply = store(&intake, &broker, &origin, &thousand, None, UsableRoom::Common)
                .await
                .unwrap();
            let expected = match round {
                5 => ReplyOutcome::BeyondMaxDescendants,
                _ => ReplyOutcome::Stored(1000),
            };
            assert_eq!(reply, expected);
        }
        assert_eq!(log.bounds("a/b").next, Offset(4000));
        let few = replies(&client, &[event(None)], &descendants);
        let reply = store(&intake, &broker, &origin, &few, None, UsableRoom::Common)
            .await
            .unwrap();
        assert_eq!(reply, ReplyOutcome::Stored(1), "a smaller reply still fits");
        let body = Bytes::from_static(br#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{}]"#);
        let invalid = Replies::for_test(&client, body, descendants);
        for _ in 0..100 {
            let reply = store(&intake, &broker, &origin, &invalid, None, UsableRoom::Common)
                .await
                .unwrap();
            assert!(
                matches!(reply, ReplyOutcome::Invalid(_)),
                "an invalid reply does not count: {reply:?}"
            );
        }
        assert_eq!(log.bounds("a/b").next, Offset(4001));
    }

    #[tokio::test]
    async fn replies_count_hops_up_to_the_maximum() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let (intake, broker) = (Intake::without_room(log.clone()), BrokerName::from("a/b"));
        let client = client();
        let table = [
            (None, Some("1")),
            (Some("1"), Some("2")),
            (Some("31"), Some("32")),
            (Some("32"), None),
            (Some("4294967295"), None),
            (Some("many"), Some("1")),
        ];
        for (delivered, expected) in table {
            let before = log.bounds("a/b").next;
            // The Sink's own hop count is not trusted.
            let replies = replies(&client, &[event(Some("7"))], &Descendants::default());
            let stored = store(
                &intake,
                &broker,
                &event(delivered),
                &replies,
                None,
                UsableRoom::Common,
            )
            .await
            .unwrap();
            let limit = ReadLimit {
                records: 1,
                bytes: 1024,
            };
            let found = log.read("a/b", before, limit).await.unwrap().pop();
            let hops = found.map(|record| {
                let event = Event::from_record(record.payload).unwrap();
                event.attribute(HOPS).unwrap().canonical().into_owned()
            });
            assert_eq!(hops.as_deref(), expected, "{delivered:?}");
            let reply = match expected {
                Some(_) => ReplyOutcome::Stored(1),
                None => ReplyOutcome::BeyondMaxHops,
            };
            assert_eq!(stored, reply);
        }
        assert_eq!(log.bounds("a/b").next, Offset(4));
    }
}
