//! Keeps the logs within their limits. Settled events are retained by age and size, and removed earlier when the log
//! is full. Unsettled events are removed only if the operator prefers that to rejecting new events.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::{StreamExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{
    Retention,
    dead_letters::DeadLetters,
    deleted_triggers::DeletedTriggers,
    holds::Holds,
    redrive::TakenLetters,
    retention,
    wall_clock::{self, WallClock},
};
use crate::{
    intake::MakeRoom,
    log::{BrokerName, Capacity, Log, LogBounds, LogError, LogName, LogProvider, Offset},
    routing::BrokerPolicy,
};

/// Divisor of the log's capacity that gives the bytes freed at once when it is full.
const PORTION: u64 = 8;

/// Pause between two trims of a full volume. The space of removed events becomes free with a delay; until then,
/// removing more does not help.
const VOLUME_PAUSE: Duration = Duration::from_secs(10);

/// Pause after an attempt to make room that did not free enough.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(10);

/// Pause after an attempt that freed nothing, if no Trigger has settled anything since.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Timeout for a new event that waits for room.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of trimming one log, after which the others go on without it; and the number of logs trimmed at once.
const TRIM_TIMEOUT: Duration = Duration::from_secs(30);
const AT_A_TIME: usize = 8;

/// Policy for new events when the log is full of unsettled ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Reject new events, with 507.
    #[default]
    Refuse,
    /// Drop the oldest events, with a warning and a metric.
    DropOldest,
}

/// Trims the logs of all brokers.
pub(super) struct Trimmer {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) events: Retention,
    pub(super) letters: Retention,
    pub(super) when_full: WhenFull,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) taken: Arc<TakenLetters>,
    /// Settings of brokers, by `namespace/name`.
    pub(super) policies: ArcSwap<BTreeMap<String, BrokerPolicy>>,
    /// Maximum bytes of settled events of a broker, whatever its settings.
    pub(super) max_bytes: u64,
    /// Holds of present Triggers.
    pub(super) present: ArcSwap<Holds>,
    /// Holds for deleted Triggers.
    pub(super) deleted_triggers: Arc<DeletedTriggers>,
    pub(super) figures: Figures,
    pub(super) room: RoomAttempts,
    pub(super) clock: StdMutex<WallClock>,
}

/// Attempts to make room in the log: one at a time, with the result of the last.
#[derive(Debug, Default)]
pub(super) struct RoomAttempts {
    /// Held during an attempt; contains the time of the last one made for the volume.
    making: Mutex<Option<Instant>>,
    last: StdMutex<RoomAttempt>,
    /// Incremented whenever a Trigger's hold shrinks.
    released: Arc<AtomicU64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct RoomAttempt {
    /// Number of attempts so far.
    number: u64,
    ended: Option<Instant>,
    outcome: Freed,
    /// [`RoomAttempts::released`] when it began.
    released: u64,
}

/// Result of an attempt to make room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Freed {
    #[default]
    Nothing,
    /// Less than was wanted.
    Some,
    Enough,
}

impl RoomAttempts {
    fn last(&self) -> RoomAttempt {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counter that Triggers increment when their holds shrink.
    pub(super) fn released(&self) -> Arc<AtomicU64> {
        self.released.clone()
    }

    fn ended(&self, outcome: Freed, released: u64) {
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
    fn pause(&self, released: u64) -> Option<Duration> {
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

/// Counters of removed events and dead letters that may still have been wanted.
#[derive(Debug, Default)]
pub(super) struct Figures {
    letters_expired: AtomicU64,
    dropped: StdMutex<BTreeMap<BrokerName, u64>>,
}

impl Figures {
    /// Dead letters removed by age or size.
    pub(super) fn letters_expired(&self) -> u64 {
        self.letters_expired.load(Relaxed)
    }

    /// Events removed before every Trigger had settled them, by broker.
    pub(super) fn dropped(&self) -> BTreeMap<BrokerName, u64> {
        self.dropped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn count_dropped(&self, broker: &BrokerName, events: u64) {
        let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        *dropped.entry(broker.clone()).or_default() += events;
    }
}

impl Trimmer {
    /// Trims settled events by age and size, and more of them when the log is nearly full. With `room_wanted`,
    /// a nearly full log gets room as for a waiting new event, and trimming by age is left to the regular passes.
    pub(super) async fn trim(&self, room_wanted: bool) -> Result<(), LogError> {
        let holds = &*self.holds();
        let now = Timestamp::now();
        let now = (self.trusts_clock(now) && !room_wanted).then_some(now);
        let trimming = self.logs.usage().into_iter().map(|(name, bytes)| async move {
            let log = self.logs.open(&name);
            let trim = async {
                match &name {
                    LogName::Events(broker) => self.trim_events(broker, &*log, bytes, now, holds).await,
                    LogName::DeadLetters(broker) => self.trim_letters(broker, &*log, bytes, now, holds).await,
                }
            };
            self.within_time(&name, trim).await
        });
        let mut trimmed = futures::stream::iter(trimming).buffer_unordered(AT_A_TIME);
        while let Some(trimmed) = trimmed.next().await {
            trimmed?;
        }
        // Delivered events make room for dead letters and replies, even if no new event asks for any.
        if let Some(room) = self.logs.capacity()
            && room.retained() > room.capacity() - room.capacity() / (2 * PORTION)
        {
            let mut volume = self.room.making.lock().await;
            self.free_portion(room, &mut volume, room_wanted).await?;
        }
        Ok(())
    }

    /// Trims one log. An error there does not stop the others, unless it is fatal.
    async fn within_time(
        &self,
        name: &LogName,
        trim: impl Future<Output = Result<(), LogError>>,
    ) -> Result<(), LogError> {
        match tokio::time::timeout(TRIM_TIMEOUT, trim).await {
            Ok(Ok(())) => {}
            Ok(Err(error @ LogError::Failed(_))) => return Err(error),
            Ok(Err(error)) => {
                tracing::error!(log = %name, %error, "cannot trim a log; retrying")
            }
            Err(_) => tracing::error!(
                log = %name,
                seconds = TRIM_TIMEOUT.as_secs(),
                "timed out trimming a log; retrying"
            ),
        }
        Ok(())
    }

    /// Whether the wall clock is trusted enough to trim by age.
    fn trusts_clock(&self, wall: Timestamp) -> bool {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(jump) = clock.observe(now, wall) {
            tracing::warn!(
                seconds = jump.as_secs(),
                "the wall clock jumped: trimming by age is off for {} minutes",
                wall_clock::DISTRUST.as_secs() / 60
            );
        }
        clock.is_trusted(now)
    }

    /// Retention of a broker's settled events: by its settings, or else the router's.
    fn retention_of(&self, broker: &BrokerName) -> Retention {
        let policies = self.policies.load();
        let policy = policies.get(broker.as_str());
        let bytes = policy.and_then(|policy| policy.retention_bytes);
        Retention {
            age: policy
                .and_then(|policy| policy.retention_age)
                .unwrap_or(self.events.age),
            bytes: bytes.unwrap_or(self.events.bytes).min(self.max_bytes),
        }
    }

    async fn trim_events(
        &self,
        broker: &BrokerName,
        log: &dyn Log,
        bytes: u64,
        now: Option<Timestamp>,
        holds: &Holds,
    ) -> Result<(), LogError> {
        let bounds = log.bounds().await?;
        let retention = self.retention_of(broker);
        let too_old = first_within(log, retention.age, now, bounds).await?;
        let unsettled = holds.unsettled(broker, bounds);
        let before = retention::trim_before(bounds, bytes, retention.bytes, too_old, unsettled);
        if before > bounds.first || !log.is_trimmed() {
            log.trim(before).await?;
        }
        Ok(())
    }

    async fn trim_letters(
        &self,
        broker: &BrokerName,
        log: &dyn Log,
        bytes: u64,
        now: Option<Timestamp>,
        holds: &Holds,
    ) -> Result<(), LogError> {
        let bounds = log.bounds().await?;
        self.taken.forget_below(broker, bounds.first);
        let too_old = first_within(log, self.letters.age, now, bounds).await?;
        // Nobody starts to take letters meanwhile. A letter being taken is first held by the taker, then by its
        // Trigger, and only then removed from the log. So read the holds last, and in that order.
        let letters = self.dead_letters.of(broker);
        let _trimming = letters.trimming().await;
        let too_old = too_old.max(self.taken.first_kept(broker, bounds.first));
        let being_taken = letters.being_taken();
        let held = being_taken.into_iter().chain(holds.redriven(broker)).min();
        let unsettled = held.unwrap_or(bounds.next).min(bounds.next);
        let before = retention::trim_before(bounds, bytes, self.letters.bytes, too_old, unsettled);
        if before <= bounds.first {
            return Ok(());
        }
        let count = self.dead_letters.count(broker);
        log.trim(before).await?;
        self.taken.forget_below(broker, before);
        let expired = count.saturating_sub(self.dead_letters.count(broker));
        if expired > 0 {
            self.figures.letters_expired.fetch_add(expired, Relaxed);
            tracing::warn!(
                %broker,
                expired,
                "removed dead letters over the retention's age or size"
            );
        }
        Ok(())
    }

    /// Makes room in a full log. Removes settled events of any age from the largest logs, then events held only for
    /// deleted Triggers, and then, if so configured, the oldest events. Returns whether there may be room now.
    ///
    /// A full log may reject thousands of events a second, and most rejections must cost no more than reading a
    /// counter. So one attempt runs at a time, later callers wait for it, and none is made whose result would be the
    /// same as the last one's.
    async fn free_some(&self) -> Result<bool, LogError> {
        let Some(capacity) = self.logs.capacity() else {
            return Ok(false);
        };
        let before = self.room.last();
        let Some(pause) = before.pause(self.room.released.load(Relaxed)) else {
            return Ok(false);
        };
        let attempt = async {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let mut volume = self.room.making.lock().await;
            let last = self.room.last();
            if last.number != before.number {
                return Ok(last.outcome != Freed::Nothing);
            }
            let released = self.room.released.load(Relaxed);
            let freed = self
                .free_portion(capacity, &mut volume, true)
                .await
                .inspect_err(|_| self.room.ended(Freed::Nothing, released))?;
            self.room.ended(freed, released);
            Ok(freed != Freed::Nothing)
        };
        tokio::time::timeout(ROOM_TIMEOUT, attempt)
            .await
            .unwrap_or(Ok(false))
    }

    async fn free_portion(
        &self,
        room: &dyn Capacity,
        volume: &mut Option<Instant>,
        room_wanted: bool,
    ) -> Result<Freed, LogError> {
        let (capacity, used) = (room.capacity(), room.retained());
        let portion = capacity / PORTION;
        if used.saturating_add(portion / 2) < capacity {
            // Room was made just now, or the volume rather than the log is full.
            if volume.is_some_and(|at| at.elapsed() < VOLUME_PAUSE) {
                return Ok(Freed::Some);
            }
            *volume = Some(Instant::now());
        }
        let wanted = portion.min(used / PORTION + 1);
        let holds = self.holds();
        let unsettled = |broker: &BrokerName, bounds| holds.unsettled(broker, bounds);
        let mut freed = self.free(wanted, &holds, unsettled).await?;
        if room_wanted && freed < wanted {
            freed += self.free_retained(wanted - freed).await?;
        }
        if room_wanted && freed < wanted && self.when_full == WhenFull::DropOldest {
            let everything = |_: &BrokerName, bounds: LogBounds| bounds.next;
            freed += self.free(wanted - freed, &self.holds(), everything).await?;
        }
        Ok(match freed {
            0 => Freed::Nothing,
            _ if freed < wanted => Freed::Some,
            _ => Freed::Enough,
        })
    }

    /// Expires checkpoints of deleted Triggers, the oldest first, until about `wanted` bytes of events held only
    /// for them are gone; returns the number of bytes.
    async fn free_retained(&self, wanted: u64) -> Result<u64, LogError> {
        let present = self.present.load_full();
        let others = |broker: &BrokerName| {
            let log = self.logs.open(&LogName::Events(broker.clone()));
            present.unsettled(broker, log.cached_bounds())
        };
        let mut freed = 0;
        while freed < wanted && self.deleted_triggers.discard_for_room(&others).await?.is_some() {
            let holds = self.holds();
            let unsettled = |broker: &BrokerName, bounds| holds.unsettled(broker, bounds);
            freed += self.free(wanted - freed, &holds, unsettled).await?;
        }
        Ok(freed)
    }

    /// Holds of all Triggers, including deleted ones whose checkpoints are retained.
    fn holds(&self) -> Arc<Holds> {
        self.deleted_triggers.with_retained(|| self.present.load_full())
    }

    /// Removes about `wanted` bytes of the oldest events, where there are most, but nothing at or above `limit`;
    /// returns the number of bytes.
    async fn free(
        &self,
        wanted: u64,
        holds: &Holds,
        limit: impl Fn(&BrokerName, LogBounds) -> Offset,
    ) -> Result<u64, LogError> {
        let mut usage = self.logs.usage();
        usage.retain(|(name, _)| matches!(name, LogName::Events(_)));
        usage.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let mut freed = 0;
        for (name, bytes) in usage {
            if freed >= wanted {
                break;
            }
            let (log, broker) = (self.logs.open(&name), name.broker());
            let bounds = log.bounds().await?;
            let kept = bytes.saturating_sub(wanted - freed);
            let limit = limit(broker, bounds);
            let before = retention::trim_before(bounds, bytes, kept, bounds.first, limit);
            if before > bounds.first {
                let trim = async {
                    log.trim(before).await?;
                    self.report_dropped(broker, bounds, before, holds);
                    Ok(())
                };
                self.within_time(&name, trim).await?;
                freed += bytes.saturating_sub(log.retained());
            }
        }
        Ok(freed)
    }

    fn report_dropped(&self, broker: &BrokerName, bounds: LogBounds, before: Offset, holds: &Holds) {
        let settled = holds.unsettled(broker, bounds).max(bounds.first);
        let dropped = before.0.saturating_sub(settled.0);
        if dropped > 0 {
            self.figures.count_dropped(broker, dropped);
            tracing::warn!(
                %broker,
                dropped,
                "the event log is full: dropped the oldest events before every Trigger had settled them"
            );
        }
    }
}

impl MakeRoom for Trimmer {
    fn make_room(&self) -> BoxFuture<'_, Result<bool, LogError>> {
        Box::pin(self.free_some())
    }
}

/// First record not older than `age`; the first one of all while the wall clock is not trusted.
async fn first_within(
    log: &dyn Log,
    age: Duration,
    now: Option<Timestamp>,
    bounds: LogBounds,
) -> Result<Offset, LogError> {
    let age = SignedDuration::try_from(age).ok();
    let oldest = now.zip(age).and_then(|(now, age)| now.checked_sub(age).ok());
    match oldest {
        Some(oldest) => log.offset_at(oldest).await,
        None => Ok(bounds.first),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        delivery::{Hold, TriggerView, progress::Progress},
        log::{
            Ownership,
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
            memory::MemoryLogs,
        },
    };

    const BROKER: &str = "shop/default";

    const CAPACITY: u64 = 64 * 1024;

    fn open(directory: &tempfile::TempDir) -> Arc<dyn LogProvider> {
        let options = EmbeddedOptions {
            max_bytes: CAPACITY,
            ..EmbeddedOptions::default()
        };
        Arc::new(EmbeddedLog::open(directory.path(), options).unwrap())
    }

    fn trimmer(log: &Arc<dyn LogProvider>, when_full: WhenFull) -> Trimmer {
        let taken = Arc::<TakenLetters>::default();
        let checkpoints = log.checkpoints(Ownership::default());
        Trimmer {
            logs: log.clone(),
            events: Retention::default(),
            letters: Retention {
                bytes: 1,
                ..Retention::default()
            },
            when_full,
            dead_letters: Arc::new(DeadLetters::new(log.clone(), checkpoints.clone(), taken.clone())),
            taken,
            policies: ArcSwap::default(),
            max_bytes: u64::MAX,
            present: ArcSwap::default(),
            deleted_triggers: Arc::new(DeletedTriggers::new(
                log.clone(),
                checkpoints,
                Duration::ZERO,
                Duration::ZERO,
            )),
            figures: Figures::default(),
            room: RoomAttempts::default(),
            clock: StdMutex::default(),
        }
    }

    fn trigger(broker: &str, room: &RoomAttempts) -> TriggerView {
        TriggerView {
            uid: "u".to_owned(),
            namespace: "shop".to_owned(),
            name: "t".to_owned(),
            log: MemoryLogs::default().open(&LogName::Events(broker.into())),
            stats: Arc::default(),
            hold: Arc::new(Hold::new(Progress::starting_at(Offset(0)).low(), room.released())),
            sink: Arc::default(),
        }
    }

    fn settled_up_to(trigger: &TriggerView, offset: u64) {
        trigger.hold.saved(Progress::starting_at(Offset(offset)).low());
    }

    async fn append(log: &dyn LogProvider, key: &str, events: usize) -> Result<Offset, LogError> {
        let events = vec![Bytes::from(vec![b'x'; 1024]); events];
        log.append(key, events, Timestamp::now()).await
    }

    #[tokio::test]
    async fn unsettled_events_are_dropped_only_when_room_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        // Between the trim threshold and the rejection of new events.
        append(&*log, BROKER, 61).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::DropOldest);
        let has_settled_nothing = trigger(BROKER, &trimmer.room);
        let holds = Holds::new([has_settled_nothing.held()].into_iter());
        trimmer.present.store(Arc::new(holds));
        trimmer.trim(false).await.unwrap();
        assert_eq!(
            (log.bounds(BROKER).first, trimmer.figures.dropped()),
            (Offset(0), BTreeMap::new())
        );
        trimmer.trim(true).await.unwrap();
        let first = log.bounds(BROKER).first;
        assert!(first > Offset(0), "{first}");
        assert_eq!(trimmer.figures.dropped(), [(BROKER.into(), first.0)].into());
    }

    /// Many requests find a full log that 10,000 Triggers hold.
    #[tokio::test]
    async fn rejections_share_an_attempt_to_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&*log, BROKER, 61).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::Refuse);
        let triggers: Vec<_> = (0..10_000).map(|_| trigger(BROKER, &trimmer.room)).collect();
        trimmer
            .present
            .store(Arc::new(Holds::new(triggers.iter().map(TriggerView::held))));

        let began = Instant::now();
        let rejections = 20_000;
        for _ in 0..rejections {
            assert!(!trimmer.make_room().await.unwrap());
        }
        let (attempts, took) = (trimmer.room.last().number, began.elapsed());
        let looks = took.div_duration_f64(LOOK_AGAIN);
        assert!(attempts as f64 <= looks + 1.0, "{attempts} in {took:?}");
        eprintln!("{rejections} rejections took {took:?} with {attempts} attempts");

        // Settled events make room at once.
        triggers.iter().for_each(|trigger| settled_up_to(trigger, 61));
        assert!(trimmer.make_room().await.unwrap());
        append(&*log, BROKER, 4).await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_callers_wait_for_the_attempt_in_progress() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&*log, BROKER, 61).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::DropOldest);
        let holds = Holds::new([trigger(BROKER, &trimmer.room).held()].into_iter());
        trimmer.present.store(Arc::new(holds));
        let all = (0..100).map(|_| trimmer.make_room());
        for made in futures::future::join_all(all).await {
            assert!(made.unwrap());
        }
        assert_eq!(trimmer.room.last().number, 1);
        let dropped = trimmer.figures.dropped()[&BROKER.into()];
        assert!(
            (4..=12).contains(&dropped),
            "{dropped} were dropped for one portion"
        );
    }

    #[tokio::test]
    async fn a_redrive_of_one_broker_does_not_block_trimming_another() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let trimmer = trimmer(&log, WhenFull::Refuse);
        let (busy, other) = ("shop/busy", "shop/other");
        for broker in [busy, other] {
            append(&*log, &format!("{broker}.dead-letters"), 10)
                .await
                .unwrap();
        }
        let first = |broker| log.bounds(&format!("{broker}.dead-letters")).first;
        let taking = trimmer.dead_letters.of(&busy.into()).take(Offset(4)).await;
        trimmer.trim(false).await.unwrap();
        assert_eq!((first(busy), first(other)), (Offset(4), Offset(9)));
        drop(taking);
        trimmer.trim(false).await.unwrap();
        assert_eq!(first(busy), Offset(9));
    }
}
