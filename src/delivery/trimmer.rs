//! Keeps the logs within their bounds: what is settled is retained by age and size, and goes earlier when the log is
//! full; what is not settled goes only if the operator chose that over refusing new events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{
    Retention, TriggerView,
    dead_letter::DeadLetter,
    dead_letters::DeadLetters,
    keeper::Keeper,
    redrive::Taken,
    retention,
    wall_clock::{self, WallClock},
};
use crate::log::{Bounds, EventLog, LogError, Offset};

/// The part of the log's capacity that is freed at a time when it is full.
const PORTION: u64 = 8;

/// A volume gives the space of removed events back after a while. Until then a full one is not helped by removing
/// more.
const VOLUME_PAUSE: Duration = Duration::from_secs(10);

/// What happens to new events when the log is full of events that Triggers have not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// They are refused, with 507.
    #[default]
    Refuse,
    /// The oldest events are dropped, with a warning and a metric.
    DropOldest,
}

/// Removes what may go from the logs of all brokers.
pub(super) struct Trimmer {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) events: Retention,
    pub(super) letters: Retention,
    pub(super) when_full: WhenFull,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) taken: Arc<Taken>,
    pub(super) keeper: Arc<Keeper>,
    pub(super) figures: Figures,
    /// Held while room is made; when that was last done for the volume.
    pub(super) making_room: Mutex<Option<Instant>>,
    pub(super) clock: StdMutex<WallClock>,
}

/// What was removed though somebody may have wanted it.
#[derive(Debug, Default)]
pub(super) struct Figures {
    letters_expired: AtomicU64,
    dropped: StdMutex<BTreeMap<String, u64>>,
}

impl Figures {
    /// Dead letters that were too old, or too many.
    pub(super) fn letters_expired(&self) -> u64 {
        self.letters_expired.load(Relaxed)
    }

    /// Events by broker that were removed before every Trigger had settled them.
    pub(super) fn dropped(&self) -> BTreeMap<String, u64> {
        self.dropped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn count_dropped(&self, broker: &str, events: u64) {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        *dropped.entry(broker.to_owned()).or_default() += events;
    }
}

impl Trimmer {
    /// Removes what is settled and over age or over size, and more of what is settled when the log is nearly full. If
    /// somebody waits for room then, as for new events.
    pub(super) async fn trim(&self, triggers: &[TriggerView], room_wanted: bool) -> Result<(), LogError> {
        let now = Timestamp::now();
        let now = self.trusts_clock(now).then_some(now);
        for (key, bytes) in self.log.usage() {
            let trimmed = match DeadLetter::broker_of(&key) {
                Some(broker) => self.trim_letters(broker, &key, bytes, now, triggers).await,
                None => self.trim_events(&key, bytes, now, triggers).await,
            };
            match trimmed {
                Ok(()) => {}
                Err(error @ LogError::Failed(_)) => return Err(error),
                Err(error) => {
                    tracing::error!(log = key, %error, "a log cannot be trimmed; it is tried again")
                }
            }
        }
        // What is delivered makes room for dead letters and replies, also when no new event asks for any.
        if self.used() > self.log.capacity() - self.log.capacity() / (2 * PORTION) {
            self.free_portion(triggers, room_wanted).await?;
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.log.usage().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether things may be removed for their age by the time of the wall clock.
    fn trusts_clock(&self, wall: Timestamp) -> bool {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(jump) = clock.look(now, wall) {
            tracing::warn!(
                seconds = jump.as_secs(),
                "the clock has jumped: for {} minutes nothing is removed for its age",
                wall_clock::DISTRUST.as_secs() / 60
            );
        }
        clock.is_trusted(now)
    }

    async fn trim_events(
        &self,
        broker: &str,
        bytes: u64,
        now: Option<Timestamp>,
        triggers: &[TriggerView],
    ) -> Result<(), LogError> {
        let bounds = self.log.bounds(broker);
        let too_old = self.first_within(broker, self.events.age, now, bounds).await?;
        let unsettled = unsettled(broker, bounds, triggers);
        let before = retention::trim_before(bounds, bytes, self.events.bytes, too_old, unsettled);
        if before > bounds.first {
            self.log.trim(broker, before).await?;
        }
        Ok(())
    }

    async fn trim_letters(
        &self,
        broker: &str,
        key: &str,
        bytes: u64,
        now: Option<Timestamp>,
        triggers: &[TriggerView],
    ) -> Result<(), LogError> {
        let bounds = self.log.bounds(key);
        self.taken.forget_below(broker, bounds.first);
        let too_old = self.first_within(key, self.letters.age, now, bounds).await?;
        // No letter is redriven meanwhile. One is held before it is taken out, so what is held is looked at last.
        let _taking = self.dead_letters.taking.lock().await;
        let too_old = too_old.max(self.taken.first_kept(broker, bounds.first));
        let of_broker = triggers.iter().filter(|trigger| trigger.broker == broker);
        let redriven = of_broker
            .filter_map(|trigger| trigger.stats.low_dead_letter())
            .min();
        let unsettled = redriven.unwrap_or(bounds.next).min(bounds.next);
        let before = retention::trim_before(bounds, bytes, self.letters.bytes, too_old, unsettled);
        if before <= bounds.first {
            return Ok(());
        }
        let count = self.dead_letters.count(broker);
        self.log.trim(key, before).await?;
        self.taken.forget_below(broker, before);
        let expired = count.saturating_sub(self.dead_letters.count(broker));
        if expired > 0 {
            self.figures.letters_expired.fetch_add(expired, Relaxed);
            tracing::warn!(
                broker,
                expired,
                "dead letters were removed: they were too old, or too many"
            );
        }
        Ok(())
    }

    /// The first record that is not older than `age`; the first one while it is not known what time it is.
    async fn first_within(
        &self,
        key: &str,
        age: Duration,
        now: Option<Timestamp>,
        bounds: Bounds,
    ) -> Result<Offset, LogError> {
        let age = SignedDuration::try_from(age).ok();
        let oldest = now.zip(age).and_then(|(now, age)| now.checked_sub(age).ok());
        match oldest {
            Some(oldest) => self.log.offset_at(key, oldest).await,
            None => Ok(bounds.first),
        }
    }

    /// The log had no room. Removes settled events, whatever their age, from where there are most; if that does not give
    /// enough, what is held for Triggers that are gone alone; and, if the operator chose so, the oldest events.
    pub(super) async fn make_room(&self, triggers: &[TriggerView]) -> Result<(), LogError> {
        self.free_portion(triggers, true).await
    }

    async fn free_portion(&self, triggers: &[TriggerView], room_wanted: bool) -> Result<(), LogError> {
        let mut volume = self.making_room.lock().await;
        let capacity = self.log.capacity();
        let used = self.used();
        let portion = capacity / PORTION;
        if used.saturating_add(portion / 2) < capacity {
            // Room was made just now, or it is the volume that is full.
            if volume.is_some_and(|at| at.elapsed() < VOLUME_PAUSE) {
                return Ok(());
            }
            *volume = Some(Instant::now());
        }
        let wanted = portion.min(used / PORTION + 1);
        let mut freed = self.free(wanted, triggers, unsettled).await?;
        if !room_wanted || freed >= wanted {
            return Ok(());
        }
        freed += self.free_kept(wanted - freed, triggers).await?;
        if freed < wanted && self.when_full == WhenFull::DropOldest {
            let everything = |_: &str, bounds: Bounds, _: &[TriggerView]| bounds.next;
            self.free(wanted - freed, triggers, everything).await?;
        }
        Ok(())
    }

    /// Gives up the places of Triggers that are gone, the oldest first, until about so many bytes of events went that
    /// were held for them alone; tells how many did.
    async fn free_kept(&self, wanted: u64, triggers: &[TriggerView]) -> Result<u64, LogError> {
        let kept = self.keeper.triggers().into_iter();
        let kept: HashSet<_> = kept.map(|kept| kept.view.uid).collect();
        let mut lows = HashMap::<&str, Offset>::new();
        for view in triggers.iter().filter(|view| !kept.contains(&view.uid)) {
            let low = lows.entry(&view.broker).or_insert(Offset(u64::MAX));
            *low = view.stats.low().min(*low);
        }
        let others = |broker: &str| {
            let next = self.log.bounds(broker).next;
            lows.get(broker).map_or(next, |low| next.min(*low))
        };
        let mut holding = triggers.to_vec();
        let mut freed = 0;
        while freed < wanted
            && let Some(uid) = self.keeper.give_up_for_room(&others).await?
        {
            holding.retain(|view| view.uid != uid);
            freed += self.free(wanted - freed, &holding, unsettled).await?;
        }
        Ok(freed)
    }

    /// Removes about so many bytes of the oldest events, from where there are most, but nothing at or above `limit`;
    /// tells how many bytes went.
    async fn free(
        &self,
        wanted: u64,
        triggers: &[TriggerView],
        limit: impl Fn(&str, Bounds, &[TriggerView]) -> Offset,
    ) -> Result<u64, LogError> {
        let mut usage = self.log.usage();
        usage.retain(|(key, _)| DeadLetter::broker_of(key).is_none());
        usage.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let mut freed = 0;
        for (broker, bytes) in usage {
            if freed >= wanted {
                break;
            }
            let bounds = self.log.bounds(&broker);
            let kept = bytes.saturating_sub(wanted - freed);
            let limit = limit(&broker, bounds, triggers);
            let before = retention::trim_before(bounds, bytes, kept, bounds.first, limit);
            if before > bounds.first {
                self.log.trim(&broker, before).await?;
                self.tell_dropped(&broker, bounds, before, triggers);
                freed += bytes.saturating_sub(self.bytes(&broker));
            }
        }
        Ok(freed)
    }

    fn tell_dropped(&self, broker: &str, bounds: Bounds, before: Offset, triggers: &[TriggerView]) {
        let settled = unsettled(broker, bounds, triggers).max(bounds.first);
        let dropped = before.0.saturating_sub(settled.0);
        if dropped > 0 {
            self.figures.count_dropped(broker, dropped);
            tracing::warn!(
                broker,
                dropped,
                "the event log is full: the oldest events were dropped before every Trigger had settled them"
            );
        }
    }

    fn bytes(&self, broker: &str) -> u64 {
        let usage = self.log.usage();
        usage
            .iter()
            .find_map(|(key, bytes)| (key == broker).then_some(*bytes))
            .unwrap_or(0)
    }
}

/// The first event that some Trigger has not settled; the end of the log if there is none.
fn unsettled(broker: &str, bounds: Bounds, triggers: &[TriggerView]) -> Offset {
    let of_broker = triggers.iter().filter(|trigger| trigger.broker == broker);
    let low = of_broker.map(|trigger| trigger.stats.low()).min();
    low.unwrap_or(bounds.next).min(bounds.next)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        delivery::TriggerStats,
        log::embedded::{EmbeddedLog, EmbeddedOptions},
    };

    const BROKER: &str = "shop/default";

    #[tokio::test]
    async fn unsettled_events_are_dropped_only_where_somebody_wants_room() {
        let directory = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions {
            max_bytes: 64 * 1024,
            ..EmbeddedOptions::default()
        };
        let log: Arc<dyn EventLog> = Arc::new(EmbeddedLog::open(directory.path(), options).unwrap());
        // Between where it is trimmed and where new events are refused.
        let events = vec![Bytes::from(vec![b'x'; 1024]); 61];
        log.append(BROKER, events, Timestamp::now()).await.unwrap();
        let taken = Arc::<Taken>::default();
        let trimmer = Trimmer {
            log: log.clone(),
            events: Retention::default(),
            letters: Retention::default(),
            when_full: WhenFull::DropOldest,
            dead_letters: Arc::new(DeadLetters::new(log.clone(), taken.clone())),
            taken,
            keeper: Arc::new(Keeper::new(log.clone(), Duration::ZERO, Duration::ZERO)),
            figures: Figures::default(),
            making_room: Mutex::default(),
            clock: StdMutex::default(),
        };
        let has_settled_nothing = TriggerView {
            uid: "u".to_owned(),
            namespace: "shop".to_owned(),
            name: "t".to_owned(),
            broker: BROKER.to_owned(),
            stats: Arc::<TriggerStats>::default(),
        };
        let triggers = [has_settled_nothing];
        trimmer.trim(&triggers, false).await.unwrap();
        assert_eq!(
            (log.bounds(BROKER).first, trimmer.figures.dropped()),
            (Offset(0), BTreeMap::new())
        );
        trimmer.trim(&triggers, true).await.unwrap();
        let first = log.bounds(BROKER).first;
        assert!(first > Offset(0), "{first}");
        assert_eq!(trimmer.figures.dropped(), [(BROKER.to_owned(), first.0)].into());
    }
}
