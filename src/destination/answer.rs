//! The answer of a destination of any kind, and its meaning for the event. Pure.

use std::time::Duration;

use super::http::Replies;
use crate::cloudevents::TraceContext;

/// Result of one attempt.
#[derive(Debug)]
pub struct Answer {
    /// Its meaning for the event.
    pub verdict: Verdict,
    /// Status code of the answer in the destination's protocol, if there was one.
    pub code: Option<u16>,
    /// Pause requested by the destination.
    pub retry_after: Option<Duration>,
    /// The code with the beginning of the answer, or why there was no answer.
    pub detail: String,
    /// Events of the reply, or why it is not a valid event.
    pub reply: Option<Result<Replies, String>>,
    /// Trace context that was sent with the event.
    pub context: Option<TraceContext>,
}

/// Meaning of an answer for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The destination accepted it.
    Delivered,
    /// It failed; a retry may succeed.
    Failed(Blame),
    /// The destination rejected it: no retry will succeed.
    Rejected,
    /// The router lacked a connection or memory. This says nothing about the destination and does not count as an
    /// attempt; another follows shortly.
    RouterBusy,
}

/// What a failed attempt says about its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The destination is unreachable or does not answer in time.
    Silent,
    /// The destination, or a gateway in front of it, is temporarily unavailable.
    Unavailable,
    /// The destination reports too many requests.
    TooFast,
    /// The destination failed on this event.
    Event,
}

impl Answer {
    /// No answer, for the reason in `detail`.
    pub fn none(detail: String) -> Self {
        Self {
            verdict: Verdict::Failed(Blame::Silent),
            code: None,
            retry_after: None,
            detail,
            reply: None,
            context: None,
        }
    }

    /// The router lacked a resource for the attempt, named in `detail`.
    pub fn router_busy(detail: String) -> Self {
        Self {
            verdict: Verdict::RouterBusy,
            ..Self::none(detail)
        }
    }
}
