//! The cached state of each log: its bounds, its size, and the newest time in it. Updated from responses of the servers
//! and announcements of other routers. The servers can supply all of it again.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

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

/// The end of a log, as far as this router knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeenEnd {
    pub(super) next: Offset,
    /// End of the records that are known to be acknowledged. A server can return records before it acknowledges them.
    pub(super) acknowledged: Offset,
}

impl SeenEnd {
    /// Whether records from this offset on are known to be acknowledged.
    fn is_acknowledged_from(self, first: Offset) -> bool {
        first < self.acknowledged
    }
}

#[derive(Default)]
struct Sight {
    bounds: LogBounds,
    /// End of the records that are known to be acknowledged, to this router or to another one.
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
    /// Time before which that is not changed, after a failure.
    window_due: Option<Instant>,
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

    pub(super) fn seen_end(&self) -> SeenEnd {
        let sight = self.sight();
        SeenEnd {
            next: sight.bounds.next,
            acknowledged: sight.acknowledged,
        }
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

    /// Whether the time for which the server remembers ids may be changed, which failed a while ago if ever.
    pub(super) fn is_window_due(&self, now: Instant) -> bool {
        self.sight().window_due.is_none_or(|due| due <= now)
    }

    pub(super) fn set_window_due(&self, due: Instant) {
        self.sight().window_due = Some(due);
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
        self.sight().bytes += bytes;
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
    pub(super) fn lost_end(&self, before: SeenEnd, first: Offset, next: Offset, is_shortened: bool) {
        let (stream, from) = (&self.location.stream, first.0);
        if before.is_acknowledged_from(first) {
            let to = before.acknowledged.0;
            tracing::error!(
                stream,
                from,
                to,
                "the stream has lost acknowledged records at its end"
            );
        } else {
            let to = before.next.0;
            tracing::warn!(
                stream,
                from,
                to,
                "the stream has lost records at its end, none of which is known to be acknowledged"
            );
        }
        self.recent.forget();
        let mut sight = self.sight();
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_what_was_acknowledged_counts_as_lost() {
        let log = Tracked::new(LogName::from_key("n/b"), RecentRecords::new(Arc::default()));
        log.appended(Offset(5), 1);
        log.ends_at_least_at(Offset(9));
        let before = log.seen_end();
        assert_eq!((before.next, before.acknowledged), (Offset(9), Offset(5)));
        assert!(before.is_acknowledged_from(Offset(4)) && !before.is_acknowledged_from(Offset(5)));
        // The append that finds out is acknowledged itself.
        log.appended(Offset(6), 1);
        assert!(!before.is_acknowledged_from(Offset(5)));
        log.lost_end(before, Offset(5), Offset(6), true);
        let after = log.seen_end();
        assert_eq!((after.next, after.acknowledged), (Offset(6), Offset(6)));
    }
}
