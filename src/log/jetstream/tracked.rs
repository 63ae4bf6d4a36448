//! What this router knows of each log: its bounds, its bytes, and the newest time in it. Answers of the server and
//! messages of other routers bring it up to date; nothing of it is needed to find a record again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::{api::StreamInfo, names::Location};
use crate::log::{LogBounds, LogName, Offset};

/// Maximum batches of a log that are under way; a server takes 50 of a stream, from all routers.
const BATCHES: usize = 16;

/// A log, as last seen.
pub(super) struct Tracked {
    pub(super) name: LogName,
    pub(super) location: Location,
    /// Held while the stream is made or looked up.
    pub(super) making: tokio::sync::Mutex<()>,
    /// Batches that may still be sent.
    pub(super) batches: Semaphore,
    end: watch::Sender<Offset>,
    sight: Mutex<Sight>,
}

#[derive(Default)]
struct Sight {
    bounds: LogBounds,
    bytes: u64,
    /// Whether the stream has lost records at its end, so that Triggers may have passed it.
    is_shortened: bool,
    /// When the stream was created; `None` before it was seen.
    created: Option<String>,
    /// Newest time of a record, in milliseconds, if this router may append.
    newest: Option<i64>,
}

impl Tracked {
    pub(super) fn new(name: LogName) -> Self {
        Self {
            location: Location::of(&name),
            name,
            making: tokio::sync::Mutex::default(),
            batches: Semaphore::new(BATCHES),
            end: watch::Sender::default(),
            sight: Mutex::default(),
        }
    }

    pub(super) fn bounds(&self) -> LogBounds {
        self.sight().bounds
    }

    /// Bytes that the server stores for the retained records.
    pub(super) fn bytes(&self) -> u64 {
        self.sight().bytes
    }

    pub(super) fn follow(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Whether the stream has lost records at its end since this connection began. What is appended then may be below
    /// the positions of Triggers.
    pub(super) fn is_shortened(&self) -> bool {
        self.sight().is_shortened
    }

    /// Whether the stream was seen.
    pub(super) fn is_seen(&self) -> bool {
        self.sight().created.is_some()
    }

    /// Whether the stream exists and the newest time in it is known.
    pub(super) fn is_ready(&self) -> bool {
        self.sight().newest.is_some()
    }

    /// Allows appends: there is no newer time in the log.
    pub(super) fn set_ready(&self, newest_millis: i64) {
        let mut sight = self.sight();
        sight.newest = sight.newest.max(Some(newest_millis));
    }

    /// The stream has to be looked up before the next append.
    pub(super) fn set_unready(&self) {
        self.sight().newest = None;
    }

    /// Returns the time for records that are appended now: not before any earlier one.
    pub(super) fn accept(&self, millis: i64) -> i64 {
        let mut sight = self.sight();
        let accepted = sight.newest.map_or(millis, |newest| newest.max(millis));
        sight.newest = sight.newest.map(|_| accepted);
        accepted
    }

    /// Takes over what the server says. Answers may overtake each other, so bounds only grow, unless it is another
    /// stream.
    pub(super) fn observe(&self, info: &StreamInfo) {
        let bounds = info.bounds();
        let mut sight = self.sight();
        if sight
            .created
            .as_ref()
            .is_some_and(|created| *created != info.created)
        {
            tracing::warn!(
                stream = info.config.name,
                "the stream was deleted and made again; its records are gone"
            );
            sight.bounds = bounds;
        }
        sight.created = Some(info.created.clone());
        sight.bounds.next = sight.bounds.next.max(bounds.next);
        sight.bounds.first = sight.bounds.first.max(bounds.first);
        sight.bytes = info.state.bytes;
        self.publish(sight);
    }

    /// Notes records that were appended when the log ended at `before` or later.
    pub(super) fn appended(&self, before: Offset, first: Offset, count: u64, bytes: u64) {
        let mut sight = self.sight();
        let next = first.plus(count);
        if first < before {
            // The end only moves backwards if the servers lost what they had acknowledged.
            tracing::error!(
                stream = self.location.stream,
                from = first.0,
                to = before.0,
                "the stream has lost acknowledged records at its end"
            );
            sight.is_shortened = true;
            sight.bounds.next = next;
            sight.bounds.first = sight.bounds.first.min(next);
        }
        sight.bounds.next = sight.bounds.next.max(next);
        sight.bytes += bytes;
        self.publish(sight);
    }

    /// Notes what another router says of the end.
    pub(super) fn told(&self, next: Offset) {
        let mut sight = self.sight();
        sight.bounds.next = sight.bounds.next.max(next);
        self.publish(sight);
    }

    fn publish(&self, sight: MutexGuard<'_, Sight>) {
        let next = sight.bounds.next;
        self.end
            .send_if_modified(|end| std::mem::replace(end, next) != next);
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
