//! The bounded queue between a broker's reader and one Trigger's feed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{TriggerStats, buffered::BufferedEvent};
use crate::{filter, log::Offset};

/// Maximum events in an inbox.
const MAX_EVENTS: usize = 256;

/// Maximum bytes of data in an inbox; a single larger event still fits.
const MAX_BYTES: usize = 256 * 1024;

/// Events that the shared reader found for a Trigger. An inbox that overflows takes nothing more until the Trigger
/// has caught up from the log and attaches it again.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    changed: Notify,
    stats: Arc<TriggerStats>,
}

#[derive(Debug, Default)]
struct InboxState {
    /// `None` for an unreadable record.
    queue: VecDeque<(Offset, Option<BufferedEvent>)>,
    bytes: usize,
    attached: bool,
    /// Offsets below were already evaluated when the inbox was attached.
    from: Offset,
    /// First event that did not fit.
    missed: Option<Offset>,
    /// Whether the inbox may not be attached because the Trigger's events have to wait.
    shut: bool,
}

/// Events taken out of an inbox.
#[derive(Debug)]
pub(super) struct Drained {
    /// In offset order; `None` for an unreadable record.
    pub(super) events: Vec<(Offset, Option<BufferedEvent>)>,
    /// Offset from which the Trigger reads the log, set once the inbox overflowed and is now empty.
    pub(super) missed: Option<Offset>,
    /// Whether the inbox is empty now.
    pub(super) emptied: bool,
    /// Whether the reader still offers events to it.
    pub(super) is_attached: bool,
}

impl Inbox {
    /// Creates an empty inbox for the Trigger with these stats.
    pub(super) fn new(stats: Arc<TriggerStats>) -> Self {
        Self {
            stats,
            ..Self::default()
        }
    }

    /// Counts a filter error for an event. If that sets the Trigger aside, this event and later ones wait in the log.
    pub(super) fn filter_failed(&self, offset: Offset, error: &filter::Error<'_>) {
        if self.is_attached() {
            self.stats.filter_failed(error);
            if self.stats.is_set_aside() {
                self.overflow(offset);
            }
        }
    }

    /// Counts an event whose filters stayed within their budget.
    pub(super) fn filter_within_budget(&self) {
        self.stats.filter_within_budget();
    }

    /// Offers an event. If the inbox is full, it overflows and the Trigger falls back to reading the log.
    pub(super) fn push(&self, offset: Offset, event: &BufferedEvent) {
        self.offer(offset, Some(event));
    }

    /// Offers an unreadable record, which the Trigger counts as missed when it gets there.
    pub(super) fn push_unreadable(&self, offset: Offset) {
        self.offer(offset, None);
    }

    fn offer(&self, offset: Offset, event: Option<&BufferedEvent>) {
        let mut state = self.lock();
        if !state.attached || offset < state.from {
            return;
        }
        let size = event.map_or(0, BufferedEvent::size);
        let fits =
            state.queue.len() < MAX_EVENTS && (state.bytes + size <= MAX_BYTES || state.queue.is_empty());
        if fits {
            state.queue.push_back((offset, event.cloned()));
            state.bytes += size;
            drop(state);
            self.changed.notify_one();
        } else {
            drop(state);
            self.overflow(offset);
        }
    }

    /// Marks the inbox as overflowed at `missed`: the Trigger falls back to reading the log from there.
    pub(super) fn overflow(&self, missed: Offset) {
        let mut state = self.lock();
        if state.attached {
            state.attached = false;
            state.missed = Some(missed);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Takes up to `limit` events.
    pub(super) fn take(&self, limit: usize) -> Drained {
        let mut state = self.lock();
        let count = limit.min(state.queue.len());
        let events: Vec<_> = state.queue.drain(..count).collect();
        let taken = events.iter().filter_map(|(_, event)| event.as_ref());
        state.bytes -= taken.map(BufferedEvent::size).sum::<usize>();
        let emptied = state.queue.is_empty();
        let missed = if emptied { state.missed.take() } else { None };
        Drained {
            events,
            missed,
            emptied,
            is_attached: state.attached,
        }
    }

    /// Attaches the inbox: the reader offers events from now on, but none below `from`. Call it under the reader's
    /// lock, which makes "now" a definite offset. Does nothing while the inbox is shut.
    pub(super) fn attach(&self, from: Offset) {
        let mut state = self.lock();
        if state.shut {
            return;
        }
        *state = InboxState {
            attached: true,
            from,
            ..InboxState::default()
        };
    }

    /// Drops the queued events and detaches; the Trigger reads them from the log instead.
    pub(super) fn detach(&self) {
        let mut state = self.lock();
        *state = InboxState {
            shut: state.shut,
            ..InboxState::default()
        };
    }

    /// Shuts or reopens the inbox. While it is shut, the reader skips its Trigger. Call it under the reader's
    /// lock, so that it agrees with the table that the reader follows.
    pub(super) fn set_shut(&self, shut: bool) {
        let mut state = self.lock();
        if shut {
            *state = InboxState::default();
        }
        state.shut = shut;
    }

    pub(super) fn is_attached(&self) -> bool {
        self.lock().attached
    }

    /// Whether the reader has to evaluate the event at this offset for this Trigger.
    pub(super) fn awaits(&self, offset: Offset) -> bool {
        let state = self.lock();
        state.attached && offset >= state.from
    }

    /// Waits until something was offered since the last [`Inbox::take`].
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        // No panic under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    fn event(bytes: usize) -> BufferedEvent {
        let builder = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        BufferedEvent::for_test(builder.data("text/plain", vec![b'x'; bytes]).build().unwrap())
    }

    #[test]
    fn keeps_the_order_and_reports_the_first_missed_offset() {
        let inbox = Inbox::default();
        inbox.push(Offset(0), &event(1));
        assert!(inbox.take(10).events.is_empty(), "not attached");
        inbox.attach(Offset(0));
        for offset in 1..=MAX_EVENTS as u64 + 5 {
            inbox.push(Offset(offset), &event(1));
        }
        assert!(!inbox.is_attached());
        let taken = inbox.take(10);
        assert_eq!(taken.events.first().map(|(offset, _)| *offset), Some(Offset(1)));
        assert_eq!((taken.missed, taken.emptied), (None, false));
        let taken = inbox.take(MAX_EVENTS);
        assert_eq!(taken.events.len(), MAX_EVENTS - 10);
        assert_eq!(
            (taken.missed, taken.emptied),
            (Some(Offset(MAX_EVENTS as u64 + 1)), true)
        );
    }

    #[test]
    fn unreadable_records_keep_their_position() {
        let inbox = Inbox::default();
        inbox.push_unreadable(Offset(0));
        inbox.attach(Offset(0));
        inbox.push(Offset(1), &event(1));
        inbox.push_unreadable(Offset(2));
        let taken = inbox.take(10).events;
        let positions: Vec<_> = taken
            .iter()
            .map(|(offset, event)| (offset.0, event.is_some()))
            .collect();
        assert_eq!(positions, [(1, true), (2, false)]);
    }

    #[test]
    fn filter_errors_are_counted_only_while_attached() {
        let stats = Arc::<TriggerStats>::default();
        let inbox = Inbox::new(stats.clone());
        let failure = filter::cel::CelFailure::NotBoolean("int".to_owned());
        let error = filter::Error::Cel(failure);
        inbox.filter_failed(Offset(0), &error);
        assert_eq!(
            (stats.filter_errors(), stats.filter_error()),
            (0, None),
            "counted by the feed that reads the log"
        );
        inbox.attach(Offset(0));
        inbox.filter_failed(Offset(1), &error);
        inbox.filter_failed(Offset(2), &error);
        assert_eq!(stats.filter_errors(), 2);
        assert_eq!(
            stats.filter_error().unwrap().as_str(),
            "cel: expected bool, got int"
        );
    }

    #[test]
    fn the_event_that_sets_a_trigger_aside_waits() {
        let stats = Arc::<TriggerStats>::default();
        let inbox = Inbox::new(stats.clone());
        inbox.attach(Offset(0));
        inbox.push(Offset(0), &event(1));
        let mut offset = 1;
        while inbox.is_attached() {
            inbox.filter_failed(Offset(offset), &filter::Error::TooExpensive);
            offset += 1;
        }
        assert!(stats.is_set_aside());
        let taken = inbox.take(10);
        assert_eq!((taken.events.len(), taken.missed), (1, Some(Offset(offset - 1))));
    }

    #[test]
    fn is_bounded_in_bytes_but_accepts_one_event_of_any_size() {
        let inbox = Inbox::default();
        inbox.attach(Offset(0));
        inbox.push(Offset(0), &event(MAX_BYTES * 2));
        assert!(inbox.is_attached());
        inbox.push(Offset(1), &event(1));
        assert!(!inbox.is_attached());
        assert_eq!(inbox.take(10).events.len(), 1);
    }
}
