//! Attempts to make room in the logs: when to make one, and when its result would be the same as the last one's. A
//! full log may reject thousands of events a second, and most rejections must cost no more than reading a counter.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, Notify};

/// Pause after an attempt to make room that did not free enough.
pub(super) const NO_ROOM_PAUSE: Duration = Duration::from_millis(10);

/// Pause after an attempt that freed nothing, if no Trigger has settled anything since.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Attempts to make room: for the logs as a whole, and for each namespace.
#[derive(Debug, Default)]
pub(super) struct RoomAttempts {
    pub(super) log: Arc<Room>,
    /// Notified when settling wants room.
    wanted: Arc<Notify>,
    namespaces: StdMutex<HashMap<Box<str>, Arc<NamespaceRoom>>>,
}

/// Attempts to make room in the share of one namespace. Its Triggers tell what may change their result.
#[derive(Debug, Default)]
pub(super) struct NamespaceRoom {
    /// For brokers that reject new events.
    pub(super) share: Room,
    /// For brokers that drop their oldest events instead.
    pub(super) share_by_dropping: Room,
    log: Arc<Room>,
    is_wanted: AtomicBool,
    wanted: Arc<Notify>,
}

/// Attempts to make room in one place: one at a time, with the result of the last.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Held during an attempt; contains the time of the last one made for the volume.
    pub(super) making: Mutex<Option<Instant>>,
    last: StdMutex<RoomAttempt>,
    /// Incremented whenever a Trigger's hold shrinks.
    released: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoomAttempt {
    /// Number of attempts so far.
    pub(super) number: u64,
    pub(super) outcome: Freed,
    ended: Option<Instant>,
    /// [`Room::released`] when it began.
    released: u64,
}

/// Result of an attempt to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Freed {
    #[default]
    Nothing,
    /// Less than was wanted.
    Some,
    Enough,
}

impl Freed {
    pub(super) fn of(freed: u64, wanted: u64) -> Self {
        match freed {
            0 => Self::Nothing,
            _ if freed < wanted => Self::Some,
            _ => Self::Enough,
        }
    }
}

impl RoomAttempts {
    /// Attempts for a namespace. Those of a namespace without Triggers are forgotten now and then.
    pub(super) fn of(&self, namespace: &str) -> Arc<NamespaceRoom> {
        let mut namespaces = self.namespaces();
        if let Some(room) = namespaces.get(namespace) {
            return room.clone();
        }
        namespaces.retain(|_, room| Arc::strong_count(room) > 1);
        let room = Arc::new(NamespaceRoom {
            log: self.log.clone(),
            wanted: self.wanted.clone(),
            ..NamespaceRoom::default()
        });
        namespaces.insert(namespace.into(), room.clone());
        room
    }

    /// Waits until settling wants room.
    pub(super) async fn is_wanted(&self) {
        self.wanted.notified().await;
    }

    /// Namespaces whose Triggers have wanted room since the last call.
    pub(super) fn take_wanted(&self) -> Vec<String> {
        let namespaces = self.namespaces();
        let wanted = namespaces
            .iter()
            .filter(|(_, room)| room.is_wanted.swap(false, Relaxed));
        wanted.map(|(namespace, _)| namespace.to_string()).collect()
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<NamespaceRoom>>> {
        // Entries are inserted and removed whole.
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NamespaceRoom {
    /// Notes that a Trigger's hold has shrunk.
    pub(super) fn released(&self) {
        self.share.released.fetch_add(1, Relaxed);
        self.share_by_dropping.released.fetch_add(1, Relaxed);
        self.log.released.fetch_add(1, Relaxed);
    }

    /// Asks for room for what settles an event.
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Relaxed);
        self.wanted.notify_one();
    }
}

impl Room {
    pub(super) fn last(&self) -> RoomAttempt {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counter of holds that have shrunk.
    pub(super) fn released(&self) -> u64 {
        self.released.load(Relaxed)
    }

    /// Notes the result of an attempt that began at this count of [`Room::released`].
    pub(super) fn ended(&self, outcome: Freed, released: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = RoomAttempt {
            number: last.number + 1,
            ended: Some(Instant::now()),
            outcome,
            released,
        };
    }
}

impl RoomAttempt {
    /// Pause before the next attempt; `None` if its result would be the same.
    pub(super) fn pause(&self, released: u64) -> Option<Duration> {
        let Some(ended) = self.ended else {
            return Some(Duration::ZERO);
        };
        let pause = NO_ROOM_PAUSE.saturating_sub(ended.elapsed());
        match self.outcome {
            Freed::Enough => Some(Duration::ZERO),
            Freed::Some => Some(pause),
            // Retried occasionally even if nothing was released: the volume may have been enlarged.
            Freed::Nothing if self.released == released && ended.elapsed() < LOOK_AGAIN => None,
            Freed::Nothing => Some(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_freed_nothing_is_repeated_once_a_hold_has_shrunk() {
        let rooms = RoomAttempts::default();
        let (shop, bank) = (rooms.of("shop"), rooms.of("bank"));
        for room in [&shop.share, &bank.share, &*rooms.log] {
            assert_eq!(room.last().pause(room.released()), Some(Duration::ZERO));
            room.ended(Freed::Nothing, room.released());
            assert_eq!(room.last().pause(room.released()), None);
        }
        shop.released();
        let again = |room: &Room| room.last().pause(room.released()).is_some();
        assert!(again(&shop.share) && again(&rooms.log));
        assert!(!again(&bank.share), "another namespace's hold changes nothing");
    }

    #[test]
    fn namespaces_that_want_room_are_told_once() {
        let rooms = RoomAttempts::default();
        let (shop, _bank) = (rooms.of("shop"), rooms.of("bank"));
        shop.want();
        shop.want();
        assert_eq!(rooms.take_wanted(), ["shop"]);
        assert!(rooms.take_wanted().is_empty());
    }

    #[test]
    fn namespaces_without_triggers_are_forgotten() {
        let rooms = RoomAttempts::default();
        let kept = rooms.of("kept");
        for number in 0..100 {
            drop(rooms.of(&number.to_string()));
        }
        assert!(rooms.namespaces().len() <= 2);
        assert!(Arc::ptr_eq(&kept, &rooms.of("kept")));
    }
}
