//! In-memory state of each broker: where its records begin and end. The committer writes it, everyone reads it.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::{
    layout::{self, Registered},
    lock::lock,
    reads::Turns,
    store::{BrokerKeyspace, StoredBroker},
};
use crate::log::{LogBounds, Offset};

/// A log, as long as somebody uses it.
pub(super) struct OpenLog {
    pub(super) name: Arc<str>,
    /// Set with the first record, until the log gives its place back; a broker that is only watched has none.
    stored: Mutex<Option<BrokerKeyspace>>,
    state: Mutex<LogState>,
    end: watch::Sender<Offset>,
    /// When the record at this offset was accepted, in milliseconds, if it was ever asked for; the first record's.
    first_accepted: Mutex<Option<(u64, i64)>>,
    /// Turns of its reads from the storage.
    pub(super) turns: Turns,
}

/// Durable state of a broker's log. Byte counts are of all payloads before an offset, including trimmed ones.
#[derive(Clone, Copy)]
pub(super) struct LogState {
    /// First offset that the log ever had. Everything up to the first record's is the same before that.
    pub(super) start: u64,
    pub(super) first: u64,
    pub(super) bytes_before_first: u64,
    pub(super) next: u64,
    pub(super) bytes_before_next: u64,
    pub(super) last_accepted_millis: i64,
}

impl OpenLog {
    /// A log without records, whose first one will be at `start`.
    pub(super) fn new(name: &str, turns: Turns, start: u64) -> Self {
        let state = LogState {
            start,
            first: start,
            bytes_before_first: 0,
            next: start,
            bytes_before_next: 0,
            last_accepted_millis: i64::MIN,
        };
        Self {
            name: name.into(),
            stored: Mutex::default(),
            state: Mutex::new(state),
            end: watch::Sender::new(Offset(start)),
            first_accepted: Mutex::default(),
            turns,
        }
    }

    pub(super) fn stored(&self) -> Option<BrokerKeyspace> {
        lock(&self.stored).clone()
    }

    pub(super) fn is_stored(&self) -> bool {
        lock(&self.stored).is_some()
    }

    /// Number of its shared keyspace; `None` if it has one of its own, or no place.
    pub(super) fn shared_keyspace(&self) -> Option<u32> {
        let stored = lock(&self.stored);
        stored
            .as_ref()
            .and_then(|stored| layout::shared_keyspace_of(stored.id))
    }

    pub(super) fn set_stored(&self, stored: BrokerKeyspace) {
        *lock(&self.stored) = Some(stored);
    }

    /// Makes it a log without records, which goes on at the same offset.
    pub(super) fn give_back(&self) {
        *lock(&self.stored) = None;
        let mut state = lock(&self.state);
        state.start = state.next;
    }

    pub(super) fn state(&self) -> LogState {
        *lock(&self.state)
    }

    /// Publishes what has become durable, and notifies those who watch the end.
    pub(super) fn publish(&self, state: LogState) {
        *lock(&self.state) = state;
        self.end.send_if_modified(|end| {
            let grown = end.0 < state.next;
            *end = Offset(state.next);
            grown
        });
    }

    /// When the first record was accepted, if it is at this offset and the time is known.
    pub(super) fn accepted_at(&self, first: Offset) -> Option<i64> {
        let known = *lock(&self.first_accepted);
        known
            .filter(|(offset, _)| *offset == first.0)
            .map(|(_, millis)| millis)
    }

    /// Notes when the record at an offset was accepted.
    pub(super) fn note_accepted(&self, first: Offset, millis: i64) {
        *lock(&self.first_accepted) = Some((first.0, millis));
    }

    pub(super) fn watch(&self) -> watch::Receiver<Offset> {
        self.end.subscribe()
    }

    pub(super) fn is_watched(&self) -> bool {
        self.end.receiver_count() > 0
    }

    pub(super) fn bounds(&self) -> LogBounds {
        self.state().bounds()
    }

    /// Creates a broker found in the store.
    pub(super) fn found(found: StoredBroker, turns: Turns) -> Self {
        let StoredBroker {
            name,
            events,
            registered,
            next,
            bytes_before_next,
            last_accepted_millis,
        } = found;
        let Registered {
            id,
            first,
            bytes_before_first,
            last_accepted_millis: _,
            start,
        } = registered;
        let broker = Self::new(&name, turns, start);
        broker.set_stored(BrokerKeyspace { id, events });
        broker.publish(LogState {
            start,
            first,
            bytes_before_first,
            next,
            bytes_before_next,
            last_accepted_millis,
        });
        broker
    }
}

impl LogState {
    pub(super) fn bounds(self) -> LogBounds {
        LogBounds {
            first: Offset(self.first),
            next: Offset(self.next),
        }
    }

    /// Bytes of the retained payloads.
    pub(super) fn bytes(self) -> u64 {
        self.bytes_before_next.saturating_sub(self.bytes_before_first)
    }
}
