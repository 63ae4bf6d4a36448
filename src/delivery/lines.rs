//! Log lines about one Trigger's deliveries. All lines share the same fields. Warnings are rate-limited, since a cause
//! of failure usually affects many events.
//!
//! | field | value |
//! | --- | --- |
//! | `trigger` | the Trigger as `namespace/name` |
//! | `broker` | its broker as `namespace/name` |
//! | `event_id`, `event_source`, `event_type` | the event's attributes, if it could be read; at most 256 bytes of each |
//! | `trace_id` | the event's trace, if it has one |
//! | `error` | what went wrong |
//! | `held_back` | number of lines of this kind suppressed since the last one |

use std::{sync::Arc, time::Instant};

use super::{dead_letter::DeadLetter, position::EventPosition};
use crate::{
    cloudevents::{Event, TraceContext},
    intake::{MAX_DESCENDANTS, MAX_HOPS},
    log::LogError,
    telemetry::{Admitted, Burst},
};

/// Maximum bytes excerpt of an attribute.
const MAX_SHOWN: usize = 256;

/// Writes the log lines of one Trigger.
pub(super) struct Lines {
    trigger: Arc<str>,
    broker: String,
    bursts: [(&'static str, Burst); 7],
}

/// Kinds of warnings, each with its own rate limit.
#[derive(Clone, Copy)]
enum WarningKind {
    DeadLetter,
    Reply,
    Damaged,
    Missed,
    Unsaved,
    NoRoom,
    Unread,
}

/// A line with the common fields, at a level of `tracing`.
macro_rules! line {
    ($level:ident, $lines:expr, $event:expr, $($field:tt)+) => {{
        let event: Option<&Event> = $event;
        tracing::$level!(
            trigger = &*$lines.trigger,
            broker = $lines.broker.as_str(),
            event_id = event.map(|event| excerpt(event.id())),
            event_source = event.map(|event| excerpt(event.source())),
            event_type = event.map(|event| excerpt(event.r#type())),
            trace_id = event.and_then(trace_id),
            $($field)+
        );
    }};
}

/// Such a line, rate-limited by kind.
macro_rules! few {
    ($kind:ident, $level:ident, $lines:expr, $event:expr, [$($field:tt)*], $message:literal) => {
        if let Some(Admitted { held_back }) = $lines.admit(WarningKind::$kind) {
            line!($level, $lines, $event, $($field)* held_back, $message);
        }
    };
}

impl Lines {
    pub(super) fn new(trigger: Arc<str>, broker: String) -> Self {
        let kinds = [
            "dead letters",
            "replies not stored",
            "unreadable events",
            "events removed before delivery",
            "checkpoints not saved",
            "dead letters waiting for room",
            "failed reads of the event log",
        ];
        Self {
            trigger,
            broker,
            bursts: kinds.map(|kind| (kind, Burst::default())),
        }
    }

    /// An event became a dead letter.
    pub(super) fn dead_letter(&mut self, event: Option<&Event>, letter: &DeadLetter) {
        few!(
            DeadLetter,
            warn,
            self,
            event,
            [
                attempts = letter.attempts,
                status = letter.status,
                error = letter.detail,
                reason = letter.reason,
            ],
            "an event became a dead letter"
        );
    }

    /// A reply exceeded the hop limit.
    pub(super) fn reply_beyond_max_hops(&mut self, event: Option<&Event>) {
        few!(
            Reply,
            warn,
            self,
            event,
            [],
            "the Sink's reply is not stored: a chain of {MAX_HOPS} deliveries led to it; this looks like a loop"
        );
    }

    /// Replies exceeded the limit of events that may follow from one.
    pub(super) fn reply_beyond_max_descendants(&mut self, event: Option<&Event>) {
        few!(
            Reply,
            warn,
            self,
            event,
            [],
            "the Sink's reply is not stored: more than {MAX_DESCENDANTS} events would descend from one event"
        );
    }

    /// The reply is not a valid event.
    pub(super) fn invalid_reply(&mut self, event: Option<&Event>, error: &str) {
        few!(
            Reply,
            warn,
            self,
            event,
            [error,],
            "the Sink's reply is not a valid event and is not stored"
        );
    }

    /// An event can no longer be read.
    pub(super) fn damaged(&mut self, position: EventPosition, error: &str) {
        few!(
            Damaged,
            error,
            self,
            None,
            [%position, error,],
            "an event cannot be read again and is dropped"
        );
    }

    /// A record passed the log's checksums but is not an event: another version of Weir wrote it.
    pub(super) fn unreadable(&mut self, position: EventPosition, error: &str) {
        few!(
            Damaged,
            error,
            self,
            None,
            [%position, error,],
            "a record of the event log is not a readable event and is skipped"
        );
    }

    /// Events were removed before the Trigger evaluated them.
    pub(super) fn missed(&mut self, missed: u64) {
        few!(
            Missed,
            warn,
            self,
            None,
            [missed,],
            "events were removed from the full log before the Trigger evaluated them"
        );
    }

    /// The disk is too full for the Trigger's checkpoint.
    pub(super) fn unsaved(&mut self, error: &str) {
        few!(
            Unsaved,
            warn,
            self,
            None,
            [error,],
            "cannot save the checkpoint; retrying"
        );
    }

    /// The log has no room for a dead letter.
    pub(super) fn without_room(&mut self, position: EventPosition, error: &str) {
        few!(
            NoRoom,
            warn,
            self,
            None,
            [%position, error,],
            "log full: cannot store a dead letter; it waits for room"
        );
    }

    /// The log is temporarily unavailable.
    pub(super) fn unread(&mut self, error: &LogError) {
        few!(
            Unread,
            error,
            self,
            None,
            [%error,],
            "the event log cannot be read; the Trigger's events wait, retrying"
        );
    }

    /// The Sink went down.
    pub(super) fn sink_fails(&self, error: &str) {
        line!(
            warn,
            self,
            None,
            error,
            "the Sink keeps failing; it is probed until it answers, and events wait"
        );
    }

    /// The Sink is no longer down.
    pub(super) fn sink_answers(&self) {
        line!(info, self, None, "the Sink answers again");
    }

    /// An event was delivered.
    pub(super) fn delivered(&self, event: Option<&Event>, status: Option<u16>) {
        line!(debug, self, event, status, "an event was delivered");
    }

    /// An attempt failed. The line does not say whether a retry follows.
    pub(super) fn attempt_failed(&self, event: Option<&Event>, error: &str) {
        line!(debug, self, event, error, "an attempt to deliver an event failed");
    }

    /// An event expired.
    pub(super) fn expired(&self, event: Option<&Event>) {
        line!(debug, self, event, "an event expired before it was delivered");
    }

    /// An event was removed. The trimmer has logged the number.
    pub(super) fn removed(&self, position: EventPosition) {
        line!(debug, self, None, %position, "an event was removed before it was delivered");
    }

    /// Logs how many lines were suppressed since the last line of their kind, once its interval is over.
    pub(super) fn log_suppressed(&mut self, now: Instant) {
        for (kind, burst) in &mut self.bursts {
            if let Some(held_back) = burst.overdue(now) {
                let (trigger, broker) = (&*self.trigger, self.broker.as_str());
                tracing::warn!(trigger, broker, held_back, of = *kind, "log lines suppressed");
            }
        }
    }

    fn admit(&mut self, kind: WarningKind) -> Option<Admitted> {
        let (_, burst) = &mut self.bursts[kind as usize];
        burst.admit(Instant::now())
    }
}

/// The event's trace ID for logs.
pub(super) fn trace_id(event: &Event) -> Option<String> {
    event.trace_context().as_ref().map(TraceContext::trace_id_text)
}

/// The beginning of an attribute.
pub(super) fn excerpt(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_SHOWN)]
}
