//! Requests to the committer.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::broker::OpenLog;
use crate::log::{Appended, EventIdentity, KeepIds, LogError, Offset, Unique};

/// Channel for the answer to a request.
pub(super) type ReplySender<T> = oneshot::Sender<Result<T, LogError>>;

/// A request to the committer.
pub(super) enum Request {
    Append {
        purpose: Purpose,
        broker: Arc<OpenLog>,
        payloads: Vec<Bytes>,
        accepted_millis: i64,
        unique: Option<Unique>,
        reply: ReplySender<Appended>,
        /// Bounds the waiting bytes; released when the request is done.
        permit: OwnedSemaphorePermit,
    },
    /// Asks which of these ids a broker remembers.
    FindIds {
        broker: Arc<OpenLog>,
        identities: Vec<EventIdentity>,
        /// Answered with one value for each id, in order.
        reply: ReplySender<Vec<bool>>,
    },
    /// Cursors are waiting to be saved.
    Saves,
    Trim {
        broker: Arc<OpenLog>,
        /// At most the durable end of the log.
        before: Offset,
        /// Payload bytes below it.
        bytes_before: u64,
        reply: ReplySender<()>,
    },
    /// Gives back the places of logs that are empty; answers how many.
    GiveBack {
        logs: Vec<Arc<OpenLog>>,
        reply: ReplySender<usize>,
    },
    /// Forgets some ids of these brokers that are not kept; answers which brokers have more.
    ForgetIds {
        kept: HashMap<Arc<str>, KeepIds>,
        now_millis: Option<i64>,
        reply: ReplySender<Vec<Arc<str>>>,
    },
    Sync {
        reply: ReplySender<()>,
    },
}

/// Purpose of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// New events: the first to be rejected.
    NewEvents,
    /// Replies, which settle an event, and so make room.
    Replies,
    /// A dead letter, which settles an event as well.
    DeadLetter,
}
