//! What the committer is asked for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::broker::Broker;
use crate::log::{LogError, Offset};

/// Where the answer to a request goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, LogError>>;

/// What the committer is asked for.
pub(super) enum Request {
    Append {
        purpose: Purpose,
        broker: Arc<Broker>,
        payloads: Vec<Bytes>,
        accepted_millis: i64,
        reply: Reply<Offset>,
        /// Bounds the bytes that wait; given back when the request is done.
        permit: OwnedSemaphorePermit,
    },
    /// Cursors wait to be saved.
    Saves,
    Trim {
        broker: Arc<Broker>,
        /// At most the end of what is durable.
        before: Offset,
        /// The payloads' bytes below it.
        bytes_before: u64,
        reply: Reply<()>,
    },
    Sync {
        reply: Reply<()>,
    },
}

/// What records are appended for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Events that come in: the first to be refused.
    NewEvents,
    /// What is needed to settle events, and so to make room.
    Settling,
}
