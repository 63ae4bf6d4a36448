//! In-memory state of each broker: where its records begin and end. The committer writes it, everyone reads it.

use std::sync::{Arc, Mutex, OnceLock};

use fjall::Keyspace;
use tokio::sync::watch;

use super::{layout::Registered, lock::lock, reads::Turns, store::StoredBroker};
use crate::log::{LogBounds, Offset};

/// A log, as long as somebody uses it.
pub(super) struct OpenLog {
    pub(super) name: Arc<str>,
    /// Set with the first record; a broker that is only watched has no place in the store.
    stored: OnceLock<BrokerKeyspace>,
    state: Mutex<LogState>,
    end: watch::Sender<Offset>,
    /// Turns of its reads from the storage.
    pub(super) turns: Turns,
}

#[derive(Clone)]
pub(super) struct BrokerKeyspace {
    pub(super) id: u32,
    pub(super) events: Keyspace,
}

/// Durable state of a broker's log. Byte counts are of all payloads before an offset, including trimmed ones.
#[derive(Clone, Copy)]
pub(super) struct LogState {
    pub(super) first: u64,
    pub(super) bytes_before_first: u64,
    pub(super) next: u64,
    pub(super) bytes_before_next: u64,
    pub(super) last_accepted_millis: i64,
}

impl OpenLog {
    pub(super) fn new(name: &str, turns: Turns) -> Self {
        let state = LogState {
            first: 0,
            bytes_before_first: 0,
            next: 0,
            bytes_before_next: 0,
            last_accepted_millis: i64::MIN,
        };
        Self {
            name: name.into(),
            stored: OnceLock::new(),
            state: Mutex::new(state),
            end: watch::Sender::new(Offset(0)),
            turns,
        }
    }

    pub(super) fn stored(&self) -> Option<&BrokerKeyspace> {
        self.stored.get()
    }

    pub(super) fn set_stored(&self, stored: BrokerKeyspace) -> &BrokerKeyspace {
        self.stored.get_or_init(|| stored)
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
        } = registered;
        let broker = Self::new(&name, turns);
        broker.set_stored(BrokerKeyspace { id, events });
        broker.publish(LogState {
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
