//! The cached state of each log: its bounds, its size, and the newest time in it. Updated from responses of the servers
//! and announcements of other routers. The servers can supply all of it again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Semaphore, watch};

use super::{api::StreamInfo, names::Location, recent::RecentRecords};
use crate::log::{LogBounds, LogName, Offset};

/// Maximum batches in flight per log. A server accepts 50 per stream, of all routers together.
const BATCHES: usize = 16;

/// A log and its cached state.
pub(super) struct Tracked {
    pub(super) name: LogName,
    pub(super) location: Location,
    /// Held while the stream is created or looked up.
    pub(super) creating: tokio::sync::Mutex<()>,
    /// Held while refused events are noted.
    pub(super) refusing: tokio::sync::Mutex<()>,
    /// Limits the batches in flight.
    pub(super) batches: Semaphore,
    /// Used if the broker has several partitions.
    pub(super) recent: RecentRecords,
    end: watch::Sender<Offset>,
    sight: Mutex<Sight>,
}

#[derive(Default)]
struct Sight {
    bounds: LogBounds,
    /// End of the records that are known to be acknowledged, to this router or to another one. A server can return records
    /// before it acknowledges them.
    acknowledged: Offset,
    bytes: u64,
    /// Whether the stream has lost records at its end, so that positions of Triggers may be beyond it.
    is_shortened: bool,
    /// Creation time of the stream; `None` until it is known.
    created: Option<String>,
    /// Newest time of a record, in milliseconds; `None` until it is known, and appends must wait.
    newest: Option<i64>,
    /// Nanoseconds for which the server remembers ids, once known.
    id_window: Option<u64>,
}

impl Tracked {
    pub(super) fn new(name: LogName, recent: RecentRecords) -> Self {
        Self {
            location: Location::of(&name),
            name,
            creating: tokio::sync::Mutex::default(),
            refusing: tokio::sync::Mutex::default(),
            batches: Semaphore::new(BATCHES),
            recent,
            end: watch::Sender::default(),
            sight: Mutex::default(),
        }
    }

    pub(super) fn bounds(&self) -> LogBounds {
        self.sight().bounds
    }

    /// Returns the bytes that the server stores for the retained records.
    pub(super) fn bytes(&self) -> u64 {
        self.sight().bytes
    }

    /// Returns the end of the records that are known to be acknowledged.
    pub(super) fn acknowledged(&self) -> Offset {
        self.sight().acknowledged
    }

    pub(super) fn follow(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    /// Whether the stream has lost records at its end during this connection. New records may then be below the
    /// positions of Triggers, which would skip them.
    pub(super) fn is_shortened(&self) -> bool {
        self.sight().is_shortened
    }

    /// Forgets that the stream has lost records, once positions of Triggers will be corrected.
    pub(super) fn accept_shortened(&self) {
        self.sight().is_shortened = false;
    }

    /// Whether the stream is known to exist.
    pub(super) fn is_seen(&self) -> bool {
        self.sight().created.is_some()
    }

    /// Whether the stream exists and the newest time in it is known.
    pub(super) fn is_ready(&self) -> bool {
        self.sight().newest.is_some()
    }

    /// Nanoseconds for which the server remembers ids, as last seen.
    pub(super) fn id_window(&self) -> Option<u64> {
        self.sight().id_window
    }

    /// Allows appends. `newest_millis` is the newest time in the log.
    pub(super) fn set_ready(&self, newest_millis: i64) {
        let mut sight = self.sight();
        sight.newest = sight.newest.max(Some(newest_millis));
    }

    /// Requires that the stream is looked up before the next append.
    pub(super) fn set_unready(&self) {
        self.sight().newest = None;
    }

    /// Returns the time for new records: `millis`, or the newest time in the log if that is later.
    pub(super) fn accept(&self, millis: i64) -> i64 {
        let mut sight = self.sight();
        let accepted = sight.newest.map_or(millis, |newest| newest.max(millis));
        sight.newest = sight.newest.map(|_| accepted);
        accepted
    }

    /// Updates the state from a response. Responses may arrive out of order, so bounds only grow, unless the stream was
    /// created again.
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
                "the stream was deleted and created again; its earlier records are lost"
            );
            sight.is_shortened |= bounds.next < sight.bounds.next;
            sight.bounds = bounds;
            sight.acknowledged = sight.acknowledged.min(bounds.next);
            self.recent.forget();
        }
        sight.created = Some(info.created.clone());
        sight.id_window = Some(info.config.duplicate_window);
        sight.bounds.next = sight.bounds.next.max(bounds.next);
        sight.bounds.first = sight.bounds.first.max(bounds.first);
        sight.bytes = info.state.bytes;
        self.publish(sight);
    }

    /// Updates the state after an append that ends at `next`.
    pub(super) fn appended(&self, next: Offset, bytes: u64) {
        let mut sight = self.sight();
        sight.bytes += bytes;
        drop(sight);
        self.acknowledged_to(next);
    }

    /// Updates the end: records below this offset are acknowledged.
    pub(super) fn acknowledged_to(&self, next: Offset) {
        let mut sight = self.sight();
        sight.acknowledged = sight.acknowledged.max(next);
        sight.bounds.next = sight.bounds.next.max(next);
        self.publish(sight);
    }

    /// Notes that the stream ended at `before`, and that it has lost its records from `first` on. Its end is now `next`.
    /// `is_shortened`: positions of Triggers may be beyond it, and nobody corrects them yet.
    pub(super) fn lost_end(&self, before: Offset, first: Offset, next: Offset, is_shortened: bool) {
        self.recent.forget();
        let mut sight = self.sight();
        let (stream, from, acknowledged) = (&self.location.stream, first.0, sight.acknowledged.0);
        if from < acknowledged {
            tracing::error!(
                stream,
                from,
                to = acknowledged,
                "the stream has lost acknowledged records at its end"
            );
        } else {
            tracing::warn!(
                stream,
                from,
                to = before.0,
                "the stream has lost records at its end; none of them is known to be acknowledged, so their producers send them again"
            );
        }
        sight.acknowledged = sight.acknowledged.min(next);
        sight.is_shortened |= is_shortened;
        sight.bounds.next = next;
        sight.bounds.first = sight.bounds.first.min(next);
        self.publish(sight);
    }

    /// Updates the end: a replica has returned records below this offset.
    pub(super) fn ends_at_least_at(&self, next: Offset) {
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
