//! Replies: an event with which a Sink answers is stored in the same broker, for all its Triggers.
//!
//! A reply can make a Sink reply again. To end such loops each reply carries the number of deliveries that led to
//! it, in [`HOPS`], and inherits the lineage of what it replies to: see [`crate::intake`].

use bytes::Bytes;
use http::HeaderMap;

use super::target::Target;
use crate::{
    cloudevents::{Event, Invalid, Lineage, TraceContext, content_coding, read_http_each, transfer_coding},
    intake::{self, Beyond, Counted, Descendants, HOPS, Intake, MAX_HOPS, UsableRoom},
    log::{LogError, LogName},
    memory::Reservation,
};

/// A Sink's unparsed answer, declared as an event or a batch: a batch is larger as events than as text.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Hides its secrets in messages about the reply.
    pub(super) target: Target,
    pub(super) descendants: Descendants,
    /// Memory of the body and of the records made from it.
    pub(super) _memory: Reservation,
}

/// Outcome of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Number of events stored in the broker.
    Stored(usize),
    /// Not stored: too many deliveries led to it.
    BeyondMaxHops,
    /// Not stored: too many events follow from the same one.
    BeyondMaxDescendants,
    /// Not stored: not a valid event, or too large.
    Invalid(String),
}

/// Reasons why a reply yields no records.
enum Unusable {
    Invalid(String),
    BeyondMaxDescendants,
}

impl From<Invalid> for Unusable {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid.to_string())
    }
}

/// Stores a Sink's reply to `delivered` as one commit. A reply without a trace context continues `context`, the
/// one of the delivery.
///
/// # Errors
/// Those of the log. When it is full, the delivery has to be retried.
pub(super) async fn store(
    intake: &Intake,
    log: &LogName,
    delivered: &Event,
    replies: &Replies,
    context: Option<&TraceContext>,
    room: UsableRoom,
) -> Result<Reply, LogError> {
    let next = intake::next(delivered);
    if next.hops > MAX_HOPS {
        return Ok(Reply::BeyondMaxHops);
    }
    let (records, counted) = match replies.records(next, context).await {
        Ok(made) => made,
        Err(Unusable::BeyondMaxDescendants) => return Ok(Reply::BeyondMaxDescendants),
        Err(Unusable::Invalid(problem)) => return Ok(Reply::Invalid(replies.target.hide_secrets(problem))),
    };
    let count = records.len();
    if count > 0 {
        intake.settle(log, records, room).await?;
    }
    counted.keep();
    Ok(Reply::Stored(count))
}

impl Replies {
    /// Creates the records of all events, each with its lineage.
    async fn records(
        &self,
        next: Lineage,
        context: Option<&TraceContext>,
    ) -> Result<(Vec<Bytes>, Counted), Unusable> {
        let headers = &self.headers;
        if let Some(coding) = content_coding(headers).or_else(|| transfer_coding(headers)) {
            return Err(Unusable::Invalid(format!(
                "its coding {coding:?} is not supported: send the body as it is"
            )));
        }
        let events = read_http_each(headers, self.body.clone())?;
        let events = events.in_context(TraceContext::from_headers(headers));
        let counted = self.descendants.count(next.origin, events.len());
        let counted = counted.map_err(|_: Beyond| Unusable::BeyondMaxDescendants)?;
        let (hops, lineage) = (
            next.hops.to_string(),
            Lineage {
                origin: Some(counted.origin()),
                ..next
            },
        );
        let records = intake::records(events, |_, event| {
            let event = event?.with_extensions([(HOPS, hops.as_str())])?;
            let event = match context {
                Some(context) if event.trace_context().is_none() => event.with_trace_context(context.clone()),
                _ => event,
            };
            Ok::<_, Unusable>(event.with_lineage(lineage).to_record())
        });
        Ok((records.await?, counted))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderValue, header};

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::{Addresses, Client},
        log::{
            Offset, ReadLimit,
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
        memory::Pool,
        routing::{Authorities, ContentMode, Destination},
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

    fn replies(client: &Client, events: &[Event]) -> Replies {
        let destination = Destination {
            uri: "http://sink/".to_owned(),
            service: None,
            content_mode: ContentMode::default(),
            ca_certs: None,
            headers: Vec::new(),
        };
        let target = client.target("a", &destination, &Authorities::default());
        let texts: Vec<_> = events
            .iter()
            .map(|event| String::from_utf8(event.to_json().to_vec()).unwrap())
            .collect();
        let format = HeaderValue::from_static("application/cloudevents-batch+json");
        Replies {
            headers: HeaderMap::from_iter([(header::CONTENT_TYPE, format)]),
            body: format!("[{}]", texts.join(",")).into(),
            target: target.unwrap(),
            descendants: Descendants::default(),
            _memory: Pool::new(1).try_reserve(&"a".into(), 0).unwrap(),
        }
    }

    fn client() -> Client {
        drop(rustls::crypto::ring::default_provider().install_default());
        Client::new(1, Addresses::any()).unwrap()
    }

    #[tokio::test]
    async fn replies_beyond_the_number_that_may_follow_from_one_are_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let (intake, broker) = (Intake::without_room(log.clone()), LogName::from_key("a/b"));
        let client = client();
        let origin = event(None).with_lineage(Lineage::of_origin(7));
        let thousand = replies(&client, &vec![event(None); 1000]);
        for round in 1..=5 {
            let reply = store(&intake, &broker, &origin, &thousand, None, UsableRoom::Common)
                .await
                .unwrap();
            let expected = match round {
                5 => Reply::BeyondMaxDescendants,
                _ => Reply::Stored(1000),
            };
            assert_eq!(reply, expected);
        }
        assert_eq!(log.bounds("a/b").next, Offset(4000));
        let few = replies(&client, &[event(None)]);
        let few = Replies {
            descendants: thousand.descendants.clone(),
            ..few
        };
        let reply = store(&intake, &broker, &origin, &few, None, UsableRoom::Common)
            .await
            .unwrap();
        assert_eq!(reply, Reply::Stored(1), "what fits still does");
        let invalid = Replies {
            body: Bytes::from_static(br#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{}]"#),
            ..few
        };
        for _ in 0..100 {
            let reply = store(&intake, &broker, &origin, &invalid, None, UsableRoom::Common)
                .await
                .unwrap();
            assert!(
                matches!(reply, Reply::Invalid(_)),
                "and does not count: {reply:?}"
            );
        }
        assert_eq!(log.bounds("a/b").next, Offset(4001));
    }

    #[tokio::test]
    async fn a_reply_counts_its_hops_and_the_chain_ends() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let (intake, broker) = (Intake::without_room(log.clone()), LogName::from_key("a/b"));
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
            let replies = replies(&client, &[event(Some("7"))]);
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
                Some(_) => Reply::Stored(1),
                None => Reply::BeyondMaxHops,
            };
            assert_eq!(stored, reply);
        }
        assert_eq!(log.bounds("a/b").next, Offset(4));
    }
}
