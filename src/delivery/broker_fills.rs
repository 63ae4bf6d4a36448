//! What brokers hold of a router's logs: the bytes of unsettled events, as far as known, and of events that are being
//! stored. While there is room, a new event costs no look at the log.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Mutex;

use super::room::NO_ROOM_PAUSE;
use crate::{
    intake::HeldRoom,
    log::{BrokerName, Offset},
};

/// What brokers hold, by broker.
#[derive(Debug, Default)]
pub(super) struct BrokerFills(StdMutex<HashMap<BrokerName, Arc<BrokerFill>>>);

/// What one broker holds.
#[derive(Debug, Default)]
pub(super) struct BrokerFill {
    counts: Arc<StdMutex<FillCounts>>,
    /// Held by whoever looks at the log or makes room.
    pub(super) looking: Mutex<()>,
}

/// Bytes of a broker. Between two looks at the log, more may be settled than is known, but not less.
#[derive(Debug, Default)]
pub(super) struct FillCounts {
    /// First unsettled event at the last look, and the bytes of all events below it.
    pub(super) low: Offset,
    pub(super) settled: u64,
    /// Bytes that are being stored.
    pub(super) in_flight: u64,
    /// When a look found no room.
    pub(super) full: Option<Instant>,
}

impl FillCounts {
    /// Bytes of unsettled events, if so many were ever stored.
    pub(super) fn unsettled(&self, ever: u64) -> u64 {
        ever.saturating_sub(self.settled)
    }

    fn hold(&mut self, ever: u64, quota: u64, bytes: u64) -> bool {
        let used = self.unsettled(ever).saturating_add(self.in_flight);
        let has_room = used.saturating_add(bytes) <= quota;
        if has_room {
            self.in_flight += bytes;
        }
        has_room
    }

    fn release(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }
}

/// Releases bytes in flight when dropped.
struct BytesInFlight {
    counts: Arc<StdMutex<FillCounts>>,
    bytes: u64,
}

impl Drop for BytesInFlight {
    fn drop(&mut self) {
        lock(&self.counts).release(self.bytes);
    }
}

impl BrokerFills {
    pub(super) fn of(&self, broker: &BrokerName) -> Arc<BrokerFill> {
        let mut fills = lock(&self.0);
        if let Some(fill) = fills.get(broker) {
            return fill.clone();
        }
        let fill = Arc::<BrokerFill>::default();
        fills.insert(broker.clone(), fill.clone());
        fill
    }

    /// Forgets brokers that are gone.
    pub(super) fn retain(&self, exists: impl Fn(&BrokerName) -> bool) {
        lock(&self.0).retain(|broker, _| exists(broker));
    }
}

impl BrokerFill {
    pub(super) fn counts(&self) -> MutexGuard<'_, FillCounts> {
        lock(&self.counts)
    }

    /// Holds room for new events, if there is some. `ever` is the bytes of all events ever stored.
    pub(super) fn hold(&self, ever: u64, quota: u64, bytes: u64) -> Option<HeldRoom> {
        let counts = self.counts.clone();
        self.counts()
            .hold(ever, quota, bytes)
            .then(|| Box::new(BytesInFlight { counts, bytes }) as HeldRoom)
    }

    /// Whether somebody has just looked and found no room.
    pub(super) fn is_surely_full(&self) -> bool {
        self.counts().full.is_some_and(|at| at.elapsed() < NO_ROOM_PAUSE)
    }
}

fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    // Each value is changed by one assignment at a time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// A request for room.
        Hold(u64),
        /// The oldest held bytes become durable.
        Store,
        /// The oldest held bytes are not stored.
        Fail,
        /// Triggers settle an event.
        Settle,
        /// The log is looked at.
        Look,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_u64..60).prop_map(Step::Hold),
            3 => Just(Step::Store),
            1 => Just(Step::Fail),
            2 => Just(Step::Settle),
            1 => Just(Step::Look),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        #[test]
        fn unsettled_events_never_exceed_the_quota(steps in steps(), quota in 1_u64..200) {
            let mut counts = FillCounts::default();
            let (mut ever, mut settled) = (0, 0);
            let (mut held, mut stored) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Hold(bytes) => {
                        let has_room = counts.hold(ever, quota, bytes);
                        let in_flight: u64 = held.iter().sum();
                        if counts.settled == settled {
                            prop_assert_eq!(has_room, ever - settled + in_flight + bytes <= quota);
                        }
                        if has_room {
                            held.push(bytes);
                        }
                    }
                    Step::Store if !held.is_empty() => {
                        let bytes = held.remove(0);
                        ever += bytes;
                        counts.release(bytes);
                        stored.push(bytes);
                    }
                    Step::Fail if !held.is_empty() => counts.release(held.remove(0)),
                    Step::Settle if !stored.is_empty() => settled += stored.remove(0),
                    Step::Look => counts.settled = settled,
                    _ => {}
                }
                prop_assert!(ever - settled <= quota);
                prop_assert_eq!(counts.in_flight, held.iter().sum::<u64>());
            }
        }
    }
}
