//! The answer of a destination of any kind, and its meaning for the event. Pure.

use std::time::Duration;

use super::{
    http::Replies,
    verdict::{Blame, Verdict},
};
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
