//! The result of an attempt at a Sink or a dead-letter Sink. Pure.

use std::time::Duration;

use crate::destination::{Answer, Blame, Verdict};

/// Result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The Sink accepted the event.
    Delivered,
    /// The Sink rejected the event; no retry will succeed.
    Rejected,
    /// A retry may succeed. `blame` is `None` when the router's own log has no room for the reply.
    Failed {
        blame: Option<Blame>,
        retry_after: Option<Duration>,
    },
    /// The event had expired.
    Expired,
    /// The Trigger's transform failed for the event, so nothing was sent; it fails the same way until it is changed.
    Untransformed,
    /// The event can no longer be read.
    Gone,
    /// No attempt was made: the router temporarily lacks a socket, memory or access to the log.
    Busy,
}

impl From<&Answer> for Ending {
    fn from(answer: &Answer) -> Self {
        match answer.verdict {
            Verdict::Delivered => Self::Delivered,
            Verdict::Rejected => Self::Rejected,
            Verdict::Failed(blame) => Self::Failed {
                blame: Some(blame),
                retry_after: answer.retry_after,
            },
            Verdict::RouterBusy => Self::Busy,
        }
    }
}
