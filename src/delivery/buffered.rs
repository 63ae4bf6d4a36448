//! An event in memory together with its reservation of the memory budget.

use std::sync::Arc;

use crate::{
    cloudevents::Event,
    memory::{Pool, Reservation},
};

/// An event held in memory until it is attempted. Clones share the event and its reservation.
#[derive(Clone, Debug)]
pub(super) struct BufferedEvent {
    event: Event,
    /// Released with the last clone.
    _memory: Arc<Reservation>,
}

impl BufferedEvent {
    pub(super) fn new(event: Event, memory: Reservation) -> Self {
        Self {
            event,
            _memory: Arc::new(memory),
        }
    }

    pub(super) fn event(&self) -> &Event {
        &self.event
    }

    /// Size of the event, in bytes.
    pub(super) fn size(&self) -> usize {
        self.event.size()
    }

    #[cfg(test)]
    pub(super) fn for_test(event: Event) -> Self {
        let share = MemoryShare::new(&Pool::new(usize::MAX / 4), "shop", "test");
        let size = event.size();
        Self::new(event, share.try_reserve(size).unwrap())
    }
}

/// Share of the memory budget for a Trigger or a broker's reader, as a member of its namespace.
#[derive(Clone, Debug)]
pub(super) struct MemoryShare {
    pool: Pool,
    namespace: Arc<str>,
    member: Arc<str>,
}

impl MemoryShare {
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
