//! An event in memory, with its part of the memory budget.

use std::sync::Arc;

use crate::{
    cloudevents::Event,
    memory::{Pool, Reservation},
};

/// An event that is held in memory until it is attempted. Clones share the event and its part of the budget.
#[derive(Clone, Debug)]
pub(super) struct Held {
    event: Event,
    /// Given back when the last clone is gone.
    _memory: Arc<Reservation>,
}

impl Held {
    pub(super) fn new(event: Event, memory: Reservation) -> Self {
        Self {
            event,
            _memory: Arc::new(memory),
        }
    }

    pub(super) fn event(&self) -> &Event {
        &self.event
    }

    /// The event's size in bytes.
    pub(super) fn size(&self) -> usize {
        self.event.size()
    }

    #[cfg(test)]
    pub(super) fn of_a_test(event: Event) -> Self {
        let share = Share::new(&Pool::new(usize::MAX / 4), "shop", "test");
        let size = event.size();
        Self::new(event, share.try_reserve(size).unwrap())
    }
}

/// What a Trigger or a broker's reader may hold of the memory budget: it is a member of its namespace.
#[derive(Clone, Debug)]
pub(super) struct Share {
    pool: Pool,
    namespace: Arc<str>,
    member: Arc<str>,
}

impl Share {
    pub(super) fn new(pool: &Pool, namespace: &str, member: &str) -> Self {
        Self {
            pool: pool.clone(),
            namespace: namespace.into(),
            member: member.into(),
        }
    }

    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Reservation> {
        self.pool.try_reserve_for(&self.namespace, &self.member, bytes)
    }

    pub(super) fn reserve(&self, bytes: usize) -> impl Future<Output = Reservation> + Send + 'static {
        self.pool.reserve_for(&self.namespace, &self.member, bytes)
    }
}
