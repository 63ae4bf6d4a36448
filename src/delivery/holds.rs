//! Holds: the low watermarks of Triggers. A broker's logs may not be trimmed at or above the lowest of them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{position::EventPosition, progress::LowWatermarks, room::NamespaceRoom};
use crate::log::{BrokerName, LogBounds, Offset};

/// Sentinel for "no offset".
const NONE: u64 = u64::MAX;

/// The hold of one Trigger on its broker's logs, written by its dispatcher.
#[derive(Debug)]
pub struct Hold {
    low: AtomicU64,
    low_dead_letter: AtomicU64,
    first_unsettled: AtomicU64,
    /// Told whenever the low watermark changes.
    room: Arc<NamespaceRoom>,
}

impl Hold {
    /// Holds everything from `low` on. `room` is told whenever the hold shrinks.
    pub(super) fn new(low: LowWatermarks, room: Arc<NamespaceRoom>) -> Self {
        Self {
            low: AtomicU64::new(low.events.0),
            low_dead_letter: AtomicU64::new(dead_letter(low)),
            first_unsettled: AtomicU64::new(low.events.0),
            room,
        }
    }

    /// Low watermark: the first unsettled offset of the last saved checkpoint.
    pub fn low(&self) -> Offset {
        Offset(self.low.load(Relaxed))
    }

    /// First dead letter being redriven in the last saved checkpoint.
    pub(super) fn low_dead_letter(&self) -> Option<Offset> {
        let offset = self.low_dead_letter.load(Relaxed);
        (offset != NONE).then_some(Offset(offset))
    }

    /// Publishes the durable low watermark of a saved checkpoint.
    pub(super) fn saved(&self, low: LowWatermarks) {
        if self.low.swap(low.events.0, Relaxed) != low.events.0 {
            self.room.released();
        }
        self.low_dead_letter.store(dead_letter(low), Relaxed);
    }

    /// Holds dead letters that are about to be redriven, before the checkpoint with them is saved.
    pub(super) fn hold_dead_letters(&self, low: LowWatermarks) {
        self.low_dead_letter.fetch_min(dead_letter(low), Relaxed);
    }

    /// Notes the first unsettled event, whether saved or not.
    pub(super) fn set_first_unsettled(&self, low: LowWatermarks) {
        self.first_unsettled.store(low.events.0, Relaxed);
    }

    /// Whether this is the first unsettled event: until it is settled, no later event can be removed.
    pub(super) fn is_first_unsettled(&self, position: EventPosition) -> bool {
        matches!(position, EventPosition::Log(Offset(offset)) if offset == self.first_unsettled.load(Relaxed))
    }
}

fn dead_letter(low: LowWatermarks) -> u64 {
    low.dead_letters.map_or(NONE, |offset| offset.0)
}

/// Holds of all Triggers, by broker. Rebuilt with each configuration and read by every trim.
#[derive(Debug, Default)]
pub(super) struct Holds(HashMap<BrokerName, Vec<Arc<Hold>>>);

impl Holds {
    /// Collects what Triggers of these brokers hold.
    pub(super) fn new<'a>(holds: impl Iterator<Item = (&'a BrokerName, &'a Arc<Hold>)>) -> Self {
        let mut of_broker = HashMap::<_, Vec<_>>::new();
        for (broker, hold) in holds {
            of_broker.entry(broker.clone()).or_default().push(hold.clone());
        }
        Self(of_broker)
    }

    /// The same holds plus those of further Triggers.
    pub(super) fn with<'a>(&self, further: impl Iterator<Item = (&'a BrokerName, &'a Arc<Hold>)>) -> Self {
        let mut all = Self(self.0.clone());
        for (broker, holds) in Self::new(further).0 {
            all.0.entry(broker).or_default().extend(holds);
        }
        all
    }

    /// First event that some Trigger holds; the end of the log if none does.
    pub(super) fn unsettled(&self, broker: &BrokerName, bounds: LogBounds) -> Offset {
        let low = self.of(broker).map(Hold::low).min();
        low.unwrap_or(bounds.next).min(bounds.next)
    }

    /// First dead letter that is being redriven.
    pub(super) fn redriven(&self, broker: &BrokerName) -> Option<Offset> {
        self.of(broker).filter_map(Hold::low_dead_letter).min()
    }

    /// Whether there is a Trigger of this broker.
    pub(super) fn has_any(&self, broker: &BrokerName) -> bool {
        self.of(broker).next().is_some()
    }

    fn of(&self, broker: &BrokerName) -> impl Iterator<Item = &Hold> {
        self.0.get(broker).into_iter().flatten().map(|hold| &**hold)
    }
}
