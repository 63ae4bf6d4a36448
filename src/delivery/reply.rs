//! Replies: a Sink that answers with an event has it stored in the same broker, for all its Triggers.
//!
//! A reply can make a Sink reply again. Each reply carries, in [`HOPS`], how many replies led to it, and one that
//! would be beyond [`MAX_HOPS`] is not stored, so that a loop ends.

use jiff::Timestamp;

use crate::{
    cloudevents::{Event, Invalid, TraceContext},
    log::{EventLog, LogError},
};

/// The extension attribute of a reply that says how many replies led to it, itself included.
pub const HOPS: &str = "weirhops";

/// How many replies may follow from one event, one from another.
pub const MAX_HOPS: u32 = 32;

/// How a Sink's reply ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// So many events were stored in the broker.
    Stored(usize),
    /// It is not stored: too many replies led to it.
    BeyondMaxHops,
    /// It is not stored: it is called an event and is none, or is too large.
    Invalid(String),
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
    replies: &[Event],
    context: Option<&TraceContext>,
    is_first_unsettled: bool,
) -> Result<Reply, LogError> {
    let hops = hops(delivered).saturating_add(1);
    if hops > MAX_HOPS {
        return Ok(Reply::BeyondMaxHops);
    }
    let marked: Result<Vec<_>, _> = replies.iter().map(|reply| mark(reply, hops, context)).collect();
    let records: Vec<_> = match marked {
        Ok(replies) => replies.iter().map(Event::to_record).collect(),
        Err(invalid) => return Ok(Reply::Invalid(invalid.to_string())),
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
    Ok(Reply::Stored(count))
}

fn mark(reply: &Event, hops: u32, context: Option<&TraceContext>) -> Result<Event, Invalid> {
    let marked = reply.with_extensions([(HOPS, hops.to_string().as_str())])?;
    Ok(match context {
        Some(context) if marked.trace_context().is_none() => marked.with_trace_context(context.clone()),
        _ => marked,
    })
}

/// How many replies led to the event. What is no number is not ours, and counts as none.
fn hops(event: &Event) -> u32 {
    event
        .attribute(HOPS)
        .and_then(|value| value.canonical().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        log::{
            Offset, ReadLimit,
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

    #[tokio::test]
    async fn a_reply_counts_its_hops_and_the_chain_ends() {
        let directory = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
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
            let stored = store(&log, "a/b", &event(delivered), &[event(Some("7"))], None, false)
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
