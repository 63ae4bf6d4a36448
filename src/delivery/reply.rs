//! Replies: a Sink that answers with an event has it stored in the same broker, for all its Triggers.
//!
//! A reply can make a Sink reply again. Each reply carries, in [`HOPS`], how many deliveries led to it, and has its
//! place in the lineage of what it replies to, so that loops end: see [`super::descendants`].

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;

use super::{
    Descendants, MAX_HOPS,
    descendants::{self, Beyond, Counted},
    target::Target,
};
use crate::{
    cloudevents::{Event, Invalid, Lineage, TraceContext, content_coding, read_http_each, transfer_coding},
    log::{EventLog, LogError},
    memory::Reservation,
};

/// The extension attribute of a reply that says how many deliveries led to it, that to its Sink included.
pub const HOPS: &str = "weirhops";

/// After how many events of a batch others get their turn.
pub const EVENTS_AT_ONCE: usize = 256;

/// What a Sink answered, called an event or a batch and not parsed yet: a batch is larger as events than as text.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Hides its secrets in what is said of the reply.
    pub(super) target: Target,
    pub(super) descendants: Descendants,
    /// The memory of the body and of the records that are made of it.
    pub(super) _memory: Reservation,
}

/// How a Sink's reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// So many events were stored in the broker.
    Stored(usize),
    /// It is not stored: too many deliveries led to it.
    BeyondMaxHops,
    /// It is not stored: too many events follow from the same one.
    BeyondMaxDescendants,
    /// It is not stored: it is called an event and is none, or is too large.
    Invalid(String),
}

/// Why a reply makes no records.
enum Unusable {
    Invalid(String),
    BeyondMaxDescendants,
}

impl From<Invalid> for Unusable {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid.to_string())
    }
}

/// Stores what a Sink answered to `delivered`, as one commit. A reply without a trace context of its own continues
/// `context`, that of the delivery. The room that is kept for settling is for the reply to the
/// first unsettled event alone: nothing can be removed before that is settled.
///
/// # Errors
/// What the log says; when there is no room, too, and then the delivery has to be tried again.
pub(super) async fn store(
    log: &dyn EventLog,
    broker: &str,
    delivered: &Event,
    replies: &Replies,
    context: Option<&TraceContext>,
    is_first_unsettled: bool,
) -> Result<Reply, LogError> {
    let next = descendants::next(delivered);
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
        let now = Timestamp::now();
        if is_first_unsettled {
            log.append_to_settle(broker, records, now).await?;
        } else {
            log.append(broker, records, now).await?;
        }
    }
    counted.keep();
    Ok(Reply::Stored(count))
}

impl Replies {
    /// The records of all events, each with its lineage.
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
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            if records.len() % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let event = event?.with_extensions([(HOPS, hops.as_str())])?;
            let event = match context {
                Some(context) if event.trace_context().is_none() => event.with_trace_context(context.clone()),
                _ => event,
            };
            records.push(event.with_lineage(lineage).to_record());
        }
        Ok((records, counted))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::{Addresses, Client},
        log::{
            Offset, ReadLimit,
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
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let client = client();
        let origin = event(None).with_lineage(Lineage::of_origin(7));
        let thousand = replies(&client, &vec![event(None); 1000]);
        for round in 1..=5 {
            let reply = store(&log, "a/b", &origin, &thousand, None, false).await.unwrap();
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
        let reply = store(&log, "a/b", &origin, &few, None, false).await.unwrap();
        assert_eq!(reply, Reply::Stored(1), "what fits still does");
        let invalid = Replies {
            body: Bytes::from_static(br#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{}]"#),
            ..few
        };
        for _ in 0..100 {
            let reply = store(&log, "a/b", &origin, &invalid, None, false).await.unwrap();
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
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
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
            // What the Sink itself says of hops is not believed.
            let replies = replies(&client, &[event(Some("7"))]);
            let stored = store(&log, "a/b", &event(delivered), &replies, None, false)
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
