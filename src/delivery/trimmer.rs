//! Keeps the logs within their limits. Settled events are retained by age and size, and removed earlier when the log
//! is full. Unsettled events are removed only if the operator prefers that to rejecting new events.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
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
    broker_fills::BrokerFills,
    dead_letters::DeadLetters,
    deleted_triggers::DeletedTriggers,
    holds::Holds,
    redrive::TakenLetters,
    retention,
    room::{Freed, RoomAttempts},
    wall_clock::{self, WallClock},
};
use crate::{
    intake::{Deduplication, HeldRoom, MakeRoom, RoomBy, Shortage},
    log::{
        BrokerName, Capacity, KeepIds, Log, LogBounds, LogError, LogName, LogProvider, NamespaceShare, Offset,
    },
    routing::{BrokerPolicy, ExistingBrokers, Quota, RoutingTable, WhenFull},
};

/// Divisor of the log's capacity, of a namespace's share, or of a broker's quota, that gives the bytes freed at once when
/// it is full.
pub(super) const PORTION: u64 = 8;

/// Pause between two trims of a full volume. The space of removed events becomes free with a delay; until then,
/// removing more does not help.
const VOLUME_PAUSE: Duration = Duration::from_secs(10);

/// Difference between the clocks of this router and of the servers of a log that is allowed for.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);

/// Timeout for a new event that waits for room.
pub(super) const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout of trimming one log, after which the others go on without it; and the number of logs trimmed at once.
const TRIM_TIMEOUT: Duration = Duration::from_secs(30);
const AT_A_TIME: usize = 8;

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
    /// Quota of brokers without settings.
    pub(super) quota: ArcSwap<Quota>,
    pub(super) fills: BrokerFills,
    /// Maximum bytes of settled events of a broker, whatever its settings.
    pub(super) max_bytes: u64,
    /// Holds of present Triggers.
    pub(super) present: ArcSwap<Holds>,
    /// Holds for deleted Triggers.
    pub(super) deleted_triggers: Arc<DeletedTriggers>,
    pub(super) figures: Figures,
    pub(super) room: Arc<RoomAttempts>,
    pub(super) clock: StdMutex<WallClock>,
    /// Brokers of the routing table. Locked while a table is being applied.
    pub(super) existing: Mutex<ExistingBrokers>,
    pub(super) deduplication: Arc<Deduplication>,
}

/// Room that is wanted in a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoomWanted {
    /// None at present.
    No,
    /// Without dropping unsettled events of present Triggers.
    Kept,
    /// Also by dropping the oldest events, of brokers that do.
    ByDropping,
}

impl From<WhenFull> for RoomWanted {
    fn from(when_full: WhenFull) -> Self {
        match when_full {
            WhenFull::Reject => Self::Kept,
            WhenFull::DropOldest => Self::ByDropping,
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
    /// Trims settled events by age and size, and more of them where a share or the log is nearly full. The namespaces
    /// that want room get it as for a waiting new event, and trimming by age is left to the regular passes.
    pub(super) async fn trim(&self, wanting: &[String]) -> Result<(), LogError> {
        let holds = &*self.holds();
        let now = Timestamp::now();
        let now = (self.trusts_clock(now) && wanting.is_empty()).then_some(now);
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
        if wanting.is_empty() {
            self.forget_ids(now).await?;
            self.give_back_places().await?;
        }
        // Delivered events make room for dead letters and replies, even if no new event asks for any.
        if let Some(capacity) = self.logs.capacity() {
            self.free_where_nearly_full(capacity, wanting).await?;
        }
        Ok(())
    }

    async fn free_where_nearly_full(
        &self,
        capacity: &dyn Capacity,
        wanting: &[String],
    ) -> Result<(), LogError> {
        let is_nearly_full = |used: u64, all: u64| used > all - all / (2 * PORTION);
        let wants = |namespace: &str| wanting.iter().any(|wanting| wanting == namespace);
        for share in capacity.shares() {
            let (is_full, wants) = (is_nearly_full(share.held, share.limit), wants(&share.namespace));
            if is_full || wants {
                let room = self.room.of(&share.namespace);
                let _making = room.share.making.lock().await;
                let wanted = if is_full && wants {
                    RoomWanted::ByDropping
                } else {
                    RoomWanted::No
                };
                self.free_in_share(&share, wanted).await?;
            }
        }
        if is_nearly_full(capacity.retained(), capacity.capacity()) {
            let mut volume = self.room.log.making.lock().await;
            self.free_in_log(capacity, &mut volume, wanting).await?;
        }
        Ok(())
    }

    /// Forgets ids that are outside of the windows of their brokers, and all of brokers that are gone. A broker whose
    /// deduplication is turned off keeps what it remembers for its window, since that may be a mistake.
    async fn forget_ids(&self, now: Option<Timestamp>) -> Result<(), LogError> {
        if !self.deduplication.is_set() {
            return Ok(());
        }
        let remembered = self.logs.remembered_ids().into_iter();
        let mut brokers: Vec<_> = remembered.map(|(broker, _)| broker).collect();
        while !brokers.is_empty() {
            let kept = self.kept_ids(brokers).await;
            brokers = self.logs.forget_ids(kept, now).await?;
        }
        Ok(())
    }

    /// The ids that brokers go on remembering at present.
    async fn kept_ids(&self, brokers: Vec<BrokerName>) -> Vec<(BrokerName, KeepIds)> {
        let existing = self.existing.lock().await;
        let kept = brokers.into_iter().map(|broker| {
            let is_gone = !existing.has(broker.namespace(), broker.name());
            let kept = match self.deduplication.window_of(&broker) {
                _ if is_gone => KeepIds::Nothing,
                Some(window) => KeepIds::Within(window),
                None => KeepIds::WithinLast,
            };
            (broker, kept)
        });
        kept.collect()
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

    /// Takes over the settings of brokers.
    pub(super) fn settings_changed(&self, table: &RoutingTable) {
        self.policies.store(table.policies().clone());
        self.quota.store(Arc::new(table.quota()));
        self.fills
            .retain(|broker| table.has_broker(broker.namespace(), broker.name()));
    }

    /// Bytes that unsettled events of a broker may take, if they are limited.
    pub(super) fn quota_of(&self, broker: &BrokerName) -> Option<u64> {
        match self.policies.load().get(broker.as_str()) {
            Some(policy) => policy.quota.bytes,
            None => self.quota.load().bytes,
        }
    }

    /// Policy for new events of a broker, while its quota or its namespace's share is used up.
    pub(super) fn when_full_of(&self, broker: &BrokerName) -> WhenFull {
        let policies = self.policies.load();
        let policy = policies.get(broker.as_str());
        policy
            .and_then(|policy| policy.when_full)
            .unwrap_or(self.when_full)
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
        let too_old = if self.needs_place_of(log.name()) {
            bounds.next
        } else {
            too_old
        };
        let unsettled = holds.unsettled(broker, bounds);
        let before = retention::trim_before(bounds, bytes, retention.bytes, too_old, unsettled);
        let before = match self.window_held_by_records(broker) {
            Some(window) => before.min(first_within(log, window, now, bounds).await?),
            None => before,
        };
        if before > bounds.first || !log.is_trimmed() {
            log.trim(before).await?;
        }
        Ok(())
    }

    /// Time for which events have to be retained, so that repeats of them are recognized.
    fn window_held_by_records(&self, broker: &BrokerName) -> Option<Duration> {
        let window = self.deduplication.window_of(broker)?;
        let is_held = self.logs.remembers_by_records();
        is_held.then(|| window.age.saturating_add(CLOCK_DIFFERENCE))
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

    /// Makes room for events of a namespace. Returns whether there may be room now.
    ///
    /// One attempt runs at a time, later callers wait for it, and none is made whose result would be the same as the
    /// last one's.
    async fn free_some(&self, broker: &BrokerName, shortage: Shortage) -> Result<bool, LogError> {
        let Some(capacity) = self.logs.capacity() else {
            return Ok(false);
        };
        let namespace = broker.namespace();
        let of_namespace = self.room.of(namespace);
        let when_full = self.when_full_of(broker);
        let room = match (shortage, when_full) {
            (Shortage::Share, WhenFull::Reject) => &of_namespace.share,
            (Shortage::Share, WhenFull::DropOldest) => &of_namespace.share_by_dropping,
            (Shortage::Log, _) => &*self.room.log,
        };
        let before = room.last();
        let Some(pause) = before.pause(room.released()) else {
            return Ok(false);
        };
        let attempt = async {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let mut making = room.making.lock().await;
            let last = room.last();
            if last.number != before.number {
                return Ok(last.outcome != Freed::Nothing);
            }
            let released = room.released();
            let freed = match shortage {
                Shortage::Share => {
                    let share = share_of(capacity, namespace);
                    match share {
                        Some(share) => self.free_in_share(&share, when_full.into()).await,
                        None => Ok(Freed::Nothing),
                    }
                }
                Shortage::Log => {
                    self.free_in_log(capacity, &mut making, &[namespace.to_owned()])
                        .await
                }
            };
            let freed = freed.inspect_err(|_| room.ended(Freed::Nothing, released))?;
            room.ended(freed, released);
            Ok(freed != Freed::Nothing)
        };
        tokio::time::timeout(ROOM_TIMEOUT, attempt)
            .await
            .unwrap_or(Ok(false))
    }

    /// Makes room in a namespace's share. Removes its settled events of any age from its largest logs. If room is
    /// wanted, then events held only for its deleted Triggers, and then, if so wanted, the oldest events of its brokers
    /// that drop them.
    async fn free_in_share(&self, share: &NamespaceShare, room: RoomWanted) -> Result<Freed, LogError> {
        let NamespaceShare {
            namespace,
            held,
            limit,
            ..
        } = share;
        let own = |broker: &BrokerName| broker.namespace() == namespace;
        let portion = (limit / PORTION).min(held / PORTION + 1);
        let wanted = held.saturating_sub(limit - limit / PORTION).max(portion);
        let mut freed = self.free_settled(wanted, own).await?;
        if room != RoomWanted::No && freed < wanted {
            freed += self.free_retained(wanted - freed, own).await?;
        }
        if room == RoomWanted::ByDropping && freed < wanted {
            let drops =
                |broker: &BrokerName| own(broker) && self.when_full_of(broker) == WhenFull::DropOldest;
            freed += self.drop_oldest(wanted - freed, drops).await?;
        }
        Ok(Freed::of(freed, wanted))
    }

    /// Makes room in a full log. Removes settled events of any age, first from the namespaces that hold most. If
    /// namespaces want room, then events held only for deleted Triggers, and then, if so configured, the oldest
    /// events: see [`Trimmer::drop_most_over`]. A namespace within its guaranteed part, unless it wants room, loses only
    /// settled events.
    async fn free_in_log(
        &self,
        capacity: &dyn Capacity,
        volume: &mut Option<Instant>,
        wanting: &[String],
    ) -> Result<Freed, LogError> {
        let (all, used) = (capacity.capacity(), capacity.retained());
        let portion = all / PORTION;
        if used.saturating_add(portion / 2) < all {
            // Room was made just now, or the volume rather than the log is full.
            if volume.is_some_and(|at| at.elapsed() < VOLUME_PAUSE) {
                return Ok(Freed::Some);
            }
            *volume = Some(Instant::now());
        }
        let wanted = portion.min(used / PORTION + 1);
        let mut freed = self.free_settled(wanted, |_| true).await?;
        if !wanting.is_empty() && freed < wanted {
            let shares = capacity.shares();
            let safe = shares.iter().filter(|share| share.held <= share.guaranteed);
            let safe: BTreeSet<_> = safe.map(|share| share.namespace.as_str()).collect();
            let may_lose = |broker: &BrokerName| {
                let namespace = broker.namespace();
                !safe.contains(namespace) || wanting.iter().any(|wanting| wanting == namespace)
            };
            freed += self.free_retained(wanted - freed, may_lose).await?;
        }
        if !wanting.is_empty() && freed < wanted && self.when_full == WhenFull::DropOldest {
            freed += self
                .drop_most_over(capacity.shares(), wanted - freed, wanting)
                .await?;
        }
        Ok(Freed::of(freed, wanted))
    }

    /// Drops about `wanted` bytes of the oldest events of the namespaces that exceed their shares, first of the one that
    /// exceeds it most. If none does, of those that want room, but nothing of their guaranteed parts.
    async fn drop_most_over(
        &self,
        mut shares: Vec<NamespaceShare>,
        wanted: u64,
        wanting: &[String],
    ) -> Result<u64, LogError> {
        shares.sort_by_key(|share| Reverse(share.excess()));
        let mut freed = 0;
        for share in shares.iter().filter(|share| share.excess() > 0) {
            if freed < wanted {
                let own = |broker: &BrokerName| broker.namespace() == share.namespace;
                let most = share.excess().min(wanted - freed);
                freed += self.drop_oldest(most, own).await?;
            }
        }
        if freed == 0 {
            shares.retain(|share| share.held > share.guaranteed && wanting.contains(&share.namespace));
            for share in &shares {
                let own = |broker: &BrokerName| broker.namespace() == share.namespace;
                let most = share.held / PORTION + 1;
                freed += self.drop_oldest(wanted.min(most), own).await?;
            }
        }
        Ok(freed)
    }

    /// Expires checkpoints of deleted Triggers of some brokers, the oldest first, until about `wanted` bytes of events
    /// held only for them are gone; returns the number of bytes.
    async fn free_retained(
        &self,
        wanted: u64,
        of: impl Fn(&BrokerName) -> bool + Copy,
    ) -> Result<u64, LogError> {
        let present = self.present.load_full();
        let others = |broker: &BrokerName| {
            let log = self.logs.open(&LogName::Events(broker.clone()));
            match of(broker) {
                true => present.unsettled(broker, log.cached_bounds()),
                // Others seem to hold all of its events.
                false => Offset(0),
            }
        };
        let mut freed = 0;
        while freed < wanted && self.deleted_triggers.discard_for_room(&others).await?.is_some() {
            freed += self.free_settled(wanted - freed, of).await?;
        }
        Ok(freed)
    }

    /// Removes about `wanted` bytes of the oldest settled events of some brokers.
    async fn free_settled(&self, wanted: u64, of: impl Fn(&BrokerName) -> bool) -> Result<u64, LogError> {
        let holds = self.holds();
        let unsettled = |broker: &BrokerName, bounds| holds.unsettled(broker, bounds);
        self.free(wanted, of, &holds, unsettled).await
    }

    /// Removes about `wanted` bytes of the oldest events of some brokers, settled or not.
    pub(super) async fn drop_oldest(
        &self,
        wanted: u64,
        of: impl Fn(&BrokerName) -> bool,
    ) -> Result<u64, LogError> {
        let everything = |_: &BrokerName, bounds: LogBounds| bounds.next;
        self.free(wanted, of, &self.holds(), everything).await
    }

    /// Holds of all Triggers, including deleted ones whose checkpoints are retained.
    pub(super) fn holds(&self) -> Arc<Holds> {
        self.deleted_triggers.with_retained(|| self.present.load_full())
    }

    /// Removes about `wanted` bytes of the oldest events of some brokers, but nothing at or above `limit`; returns the
    /// number of bytes. Begins with the namespace that holds most, and there with the largest broker.
    async fn free(
        &self,
        wanted: u64,
        of: impl Fn(&BrokerName) -> bool,
        holds: &Holds,
        limit: impl Fn(&BrokerName, LogBounds) -> Offset,
    ) -> Result<u64, LogError> {
        let mut usage = self.logs.usage();
        let mut held = HashMap::<_, u64>::new();
        for (name, bytes) in &usage {
            *held.entry(name.broker().namespace().to_owned()).or_default() += bytes;
        }
        usage.retain(|(name, _)| matches!(name, LogName::Events(broker) if of(broker)));
        usage.sort_by_cached_key(|(name, bytes)| {
            Reverse((held.get(name.broker().namespace()).copied(), *bytes))
        });
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
                "no room in the event log: dropped the oldest events before every Trigger had settled them"
            );
        }
    }
}

impl MakeRoom for Trimmer {
    fn hold_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        bytes: u64,
        by: RoomBy,
    ) -> BoxFuture<'a, Result<Option<HeldRoom>, LogError>> {
        Box::pin(self.hold_within_quota(broker, bytes, by))
    }

    fn make_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        shortage: Shortage,
    ) -> BoxFuture<'a, Result<bool, LogError>> {
        Box::pin(self.free_some(broker, shortage))
    }
}

fn share_of(capacity: &dyn Capacity, namespace: &str) -> Option<NamespaceShare> {
    let mut shares = capacity.shares().into_iter();
    shares.find(|share| share.namespace == namespace)
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
    use proptest::prelude::*;

    use super::*;
    use crate::{
        delivery::{Hold, TriggerView, progress::Progress, room::LOOK_AGAIN},
        log::{
            Ownership,
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
            memory::MemoryLogs,
        },
        routing::{Broker, Configuration},
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
            quota: ArcSwap::default(),
            fills: BrokerFills::default(),
            max_bytes: u64::MAX,
            present: ArcSwap::default(),
            deleted_triggers: Arc::new(DeletedTriggers::new(
                log.clone(),
                checkpoints,
                Duration::ZERO,
                Duration::ZERO,
            )),
            figures: Figures::default(),
            room: Arc::default(),
            clock: StdMutex::default(),
            existing: Mutex::default(),
            deduplication: Arc::default(),
        }
    }

    fn trigger(broker: &str, room: &RoomAttempts) -> TriggerView {
        let broker = BrokerName::from(broker);
        let room = room.of(broker.namespace());
        TriggerView {
            uid: "u".to_owned(),
            namespace: broker.namespace().to_owned(),
            name: "t".to_owned(),
            log: MemoryLogs::default().open(&LogName::Events(broker)),
            stats: Arc::default(),
            hold: Arc::new(Hold::new(Progress::starting_at(Offset(0)).low(), room)),
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
        append(&*log, BROKER, 30).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::DropOldest);
        let has_settled_nothing = trigger(BROKER, &trimmer.room);
        let holds = Holds::new([has_settled_nothing.hold_on_broker()].into_iter());
        trimmer.present.store(Arc::new(holds));
        trimmer.trim(&[]).await.unwrap();
        assert_eq!(
            (log.bounds(BROKER).first, trimmer.figures.dropped()),
            (Offset(0), BTreeMap::new())
        );
        trimmer.trim(&["shop".to_owned()]).await.unwrap();
        let first = log.bounds(BROKER).first;
        assert!(first > Offset(0), "{first}");
        assert_eq!(trimmer.figures.dropped(), [(BROKER.into(), first.0)].into());
    }

    /// Many requests find a full log that 10,000 Triggers hold.
    #[tokio::test]
    async fn rejections_share_an_attempt_to_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&*log, BROKER, 30).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::Reject);
        let triggers: Vec<_> = (0..10_000).map(|_| trigger(BROKER, &trimmer.room)).collect();
        trimmer.present.store(Arc::new(Holds::new(
            triggers.iter().map(TriggerView::hold_on_broker),
        )));

        let (broker, began) = (BROKER.into(), Instant::now());
        let rejections = 20_000;
        for _ in 0..rejections {
            assert!(!trimmer.make_room(&broker, Shortage::Share).await.unwrap());
        }
        let (attempts, took) = (trimmer.room.of("shop").share.last().number, began.elapsed());
        let looks = took.div_duration_f64(LOOK_AGAIN);
        assert!(attempts as f64 <= looks + 1.0, "{attempts} in {took:?}");
        eprintln!("{rejections} rejections took {took:?} with {attempts} attempts");

        // Settled events make room at once.
        triggers.iter().for_each(|trigger| settled_up_to(trigger, 30));
        assert!(trimmer.make_room(&broker, Shortage::Share).await.unwrap());
        append(&*log, BROKER, 3).await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_callers_wait_for_the_attempt_in_progress() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&*log, BROKER, 30).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::DropOldest);
        let holds = Holds::new([trigger(BROKER, &trimmer.room).hold_on_broker()].into_iter());
        trimmer.present.store(Arc::new(holds));
        let broker = BROKER.into();
        let room = trimmer.room.of("shop");
        // An attempt may end at once, so none begins before all callers have.
        let making = room.share_by_dropping.making.lock().await;
        let all = (0..100).map(|_| trimmer.make_room(&broker, Shortage::Share));
        let (all, ()) = futures::join!(futures::future::join_all(all), async { drop(making) });
        for made in all {
            assert!(made.unwrap());
        }
        assert_eq!(room.share_by_dropping.last().number, 1);
        let dropped = trimmer.figures.dropped()[&BROKER.into()];
        assert!(
            (2..=6).contains(&dropped),
            "{dropped} were dropped for one portion"
        );
    }

    #[tokio::test]
    async fn brokers_that_are_gone_give_their_places_back() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let trimmer = Trimmer {
            events: Retention {
                age: Duration::ZERO,
                ..Retention::default()
            },
            ..trimmer(&log, WhenFull::Reject)
        };
        let keys = [
            "shop/gone",
            "shop/gone.dead-letters",
            "shop/held",
            "shop/exists",
            "default/default",
        ];
        for key in keys {
            append(&*log, key, 2).await.unwrap();
        }
        let held = trigger("shop/held", &trimmer.room);
        settled_up_to(&held, 2);
        let holds = Holds::new([held.hold_on_broker()].into_iter());
        trimmer.present.store(Arc::new(holds));
        let exists = Broker {
            namespace: "shop".to_owned(),
            name: "exists".to_owned(),
        };
        let configuration = Configuration {
            namespaces: ["default".to_owned()].into(),
            brokers: [exists].into(),
            ..Configuration::default()
        };
        let taken = BrokerName::from("shop/gone");
        trimmer.taken.take(&taken, [Offset(0), Offset(1)].into_iter());
        *trimmer.existing.lock().await = RoutingTable::compile(configuration).existing_brokers();
        let places = || {
            let capacity = log.capacity().unwrap();
            let empty = capacity.empty_logs().into_iter();
            let mut empty: Vec<_> = empty.map(|log| log.to_string()).collect();
            empty.sort();
            empty
        };
        let applying = trimmer.existing.lock().await;
        trimmer.trim(&[]).await.unwrap();
        let mut all = keys.to_vec();
        all.sort_unstable();
        assert_eq!(places(), all, "a table is being applied");
        drop(applying);
        trimmer.trim(&[]).await.unwrap();
        assert_eq!(places(), ["default/default", "shop/exists", "shop/held"]);
        assert!(!trimmer.taken.has_any(&taken));
        trimmer.present.store(Arc::default());
        trimmer.trim(&[]).await.unwrap();
        assert_eq!(places(), ["default/default", "shop/exists"]);
    }

    #[tokio::test]
    async fn a_redrive_of_one_broker_does_not_block_trimming_another() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let trimmer = trimmer(&log, WhenFull::Reject);
        let (busy, other) = ("shop/busy", "shop/other");
        for broker in [busy, other] {
            append(&*log, &format!("{broker}.dead-letters"), 10)
                .await
                .unwrap();
        }
        let first = |broker| log.bounds(&format!("{broker}.dead-letters")).first;
        let taking = trimmer.dead_letters.of(&busy.into()).take(Offset(4)).await;
        trimmer.trim(&[]).await.unwrap();
        assert_eq!((first(busy), first(other)), (Offset(4), Offset(9)));
        drop(taking);
        trimmer.trim(&[]).await.unwrap();
        assert_eq!(first(busy), Offset(9));
    }

    /// A trimmer that drops the oldest events, of Triggers that settle nothing.
    fn dropping(log: &Arc<dyn LogProvider>, brokers: &[&str]) -> Trimmer {
        let trimmer = trimmer(log, WhenFull::DropOldest);
        let triggers: Vec<_> = brokers
            .iter()
            .map(|broker| trigger(broker, &trimmer.room))
            .collect();
        let holds = Holds::new(triggers.iter().map(TriggerView::hold_on_broker));
        trimmer.present.store(Arc::new(holds));
        trimmer
    }

    #[tokio::test]
    async fn room_in_a_share_is_made_of_what_its_namespace_has_settled() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        append(&*log, "bank/settled", 12).await.unwrap();
        append(&*log, "shop/settled", 8).await.unwrap();
        append(&*log, "shop/held", 16).await.unwrap();
        let trimmer = trimmer(&log, WhenFull::Reject);
        let holds = trigger("shop/held", &trimmer.room);
        trimmer
            .present
            .store(Arc::new(Holds::new([holds.hold_on_broker()].into_iter())));
        let first = |broker: &str| log.bounds(broker).first.0;
        let broker = "shop/held".into();
        let mut freed = 0;
        while trimmer.make_room(&broker, Shortage::Share).await.unwrap() {
            assert!(first("shop/settled") > freed);
            freed = first("shop/settled");
        }
        assert_eq!((freed, first("shop/held"), first("bank/settled")), (8, 0, 0));
    }

    #[tokio::test]
    async fn the_oldest_events_of_the_namespace_most_over_its_share_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        // Within half of the log, then more than what is left.
        append(&*log, "greedy/small", 10).await.unwrap();
        append(&*log, "greedy/large", 20).await.unwrap();
        let many: Vec<_> = (0..15).map(|broker| format!("many/{broker}")).collect();
        for broker in &many {
            append(&*log, broker, 1).await.unwrap();
        }
        append(&*log, "few/default", 2).await.unwrap();
        let brokers = many.iter().map(String::as_str);
        let brokers = brokers.chain(["greedy/small", "greedy/large", "few/default"]);
        let trimmer = dropping(&log, &brokers.collect::<Vec<_>>());
        let (few, greedy) = ("few/default".into(), "greedy/small".into());
        trimmer.make_room(&few, Shortage::Log).await.unwrap();
        let dropped = trimmer.figures.dropped();
        assert_eq!(
            dropped.keys().map(BrokerName::as_str).collect::<Vec<_>>(),
            ["greedy/large"]
        );
        assert!(
            dropped.values().all(|events| (3..=9).contains(events)),
            "{dropped:?}"
        );
        // What has no room in a share is made of that namespace's events.
        trimmer.make_room(&greedy, Shortage::Share).await.unwrap();
        assert_eq!(trimmer.figures.dropped().len(), 1);
    }

    fn set_policies(trimmer: &Trimmer, policies: &[(&str, serde_json::Value)]) {
        let policies = policies.iter().map(|(broker, settings)| {
            let name = BrokerName::from(*broker);
            let mut policy = serde_json::json!({
                "uid": broker, "namespace": name.namespace(), "name": name.name(), "generation": 1,
            });
            policy
                .as_object_mut()
                .unwrap()
                .extend(settings.as_object().unwrap().clone());
            ((*broker).to_owned(), serde_json::from_value(policy).unwrap())
        });
        trimmer.policies.store(Arc::new(policies.collect()));
    }

    #[tokio::test]
    async fn a_broker_says_whether_its_oldest_events_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let (keeps, drops) = ("shop/keeps", "shop/drops");
        for broker in [keeps, drops] {
            append(&*log, broker, 14).await.unwrap();
        }
        let trimmer = dropping(&log, &[keeps, drops]);
        set_policies(&trimmer, &[(keeps, serde_json::json!({"whenFull": "Reject"}))]);
        let (keeps, drops) = (keeps.into(), drops.into());
        assert!(!trimmer.make_room(&keeps, Shortage::Share).await.unwrap());
        assert!(trimmer.figures.dropped().is_empty());
        assert!(trimmer.make_room(&drops, Shortage::Share).await.unwrap());
        let dropped = trimmer.figures.dropped();
        assert_eq!(dropped.keys().collect::<Vec<_>>(), [&drops]);
    }

    #[tokio::test]
    async fn unsettled_events_of_a_broker_stay_within_its_quota() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let trimmer = trimmer(&log, WhenFull::Reject);
        let holder = trigger(BROKER, &trimmer.room);
        let holds = Holds::new([holder.hold_on_broker()].into_iter());
        trimmer.present.store(Arc::new(holds));
        set_policies(
            &trimmer,
            &[(BROKER, serde_json::json!({"quota": {"bytes": 10 * 1024}}))],
        );
        let (broker, other) = (BrokerName::from(BROKER), "shop/other".into());
        append(&*log, BROKER, 5).await.unwrap();
        // Events that are being stored count.
        let held = trimmer
            .hold_room(&broker, 5 * 1024, RoomBy::Dropping)
            .await
            .unwrap();
        assert!(held.is_some());
        let refused = trimmer
            .hold_room(&broker, 1, RoomBy::Dropping)
            .await
            .map(drop)
            .unwrap_err();
        assert!(matches!(refused, LogError::BrokerQuota(_)), "{refused}");
        drop(held);
        append(&*log, BROKER, 5).await.unwrap();
        let refused = trimmer
            .hold_room(&broker, 1, RoomBy::Dropping)
            .await
            .map(drop)
            .unwrap_err();
        let expected = "unsettled events of broker shop/default take 10240 bytes";
        assert!(refused.to_string().contains(expected), "{refused}");
        assert!(
            trimmer
                .hold_room(&other, 1 << 30, RoomBy::Dropping)
                .await
                .unwrap()
                .is_none()
        );

        // Settled events do not count, though they are retained.
        settled_up_to(&holder, 4);
        let unsettled = trimmer.unsettled_events(&broker).await.unwrap().unwrap();
        assert_eq!(
            (unsettled.events, unsettled.bytes, unsettled.limit),
            (6, 6 * 1024, 10 * 1024)
        );
        assert!(
            trimmer
                .hold_room(&broker, 4 * 1024, RoomBy::Dropping)
                .await
                .unwrap()
                .is_some()
        );
        assert_eq!(log.bounds(BROKER).first, Offset(0));
    }

    #[tokio::test]
    async fn a_broker_over_its_quota_drops_its_own_oldest_events() {
        let directory = tempfile::tempdir().unwrap();
        let log = open(&directory);
        let other = "shop/other";
        append(&*log, other, 10).await.unwrap();
        append(&*log, BROKER, 10).await.unwrap();
        let trimmer = dropping(&log, &[BROKER, other]);
        set_policies(
            &trimmer,
            &[(BROKER, serde_json::json!({"quota": {"bytes": 10 * 1024}}))],
        );
        let broker = BrokerName::from(BROKER);
        assert!(
            trimmer
                .hold_room(&broker, 2 * 1024, RoomBy::Dropping)
                .await
                .unwrap()
                .is_some()
        );
        let dropped = [(broker.clone(), 2)].into();
        assert_eq!(trimmer.figures.dropped(), dropped);
        append(&*log, BROKER, 2).await.unwrap();
        let looked = trimmer.hold_room(&broker, 1024, RoomBy::Looking).await.map(drop);
        assert!(matches!(looked, Err(LogError::BrokerQuota(_))), "{looked:?}");
        assert_eq!(trimmer.figures.dropped(), dropped);
        let too_large = trimmer
            .hold_room(&broker, 11 * 1024, RoomBy::Dropping)
            .await
            .map(drop);
        assert!(
            matches!(too_large, Err(LogError::BrokerQuota(_))),
            "{too_large:?}"
        );
        assert_eq!(trimmer.figures.dropped(), [(broker, 2)].into());
    }

    #[derive(Clone, Debug)]
    struct Post {
        namespace: usize,
        broker: usize,
        bytes: usize,
        volume_is_full: bool,
    }

    fn posts() -> impl Strategy<Value = Vec<Post>> {
        let post = (0_usize..6, 0_usize..4, 1_usize..12_000, prop::bool::weighted(0.1)).prop_map(
            |(namespace, broker, bytes, volume_is_full)| Post {
                // The last of them posts a little.
                bytes: if namespace == 5 { bytes / 300 + 1 } else { bytes },
                namespace,
                broker,
                volume_is_full,
            },
        );
        prop::collection::vec(post, 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..Default::default() })]

        #[test]
        fn whatever_the_others_post_a_namespace_within_its_share_loses_nothing(posts in posts()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let log = open(&directory);
                let names: Vec<_> = (0..6).flat_map(|n| (0..4).map(move |b| format!("n{n}/b{b}"))).collect();
                let trimmer = dropping(&log, &names.iter().map(String::as_str).collect::<Vec<_>>());
                let firsts = |namespace: &str| -> Vec<_> {
                    let own = names.iter().filter(|name| BrokerName::from(name.as_str()).namespace() == namespace);
                    own.map(|name| log.bounds(name).first).collect()
                };
                for Post { namespace, broker, bytes, volume_is_full } in posts {
                    let broker = BrokerName::new(&format!("n{namespace}"), &format!("b{broker}"));
                    let events = vec![Bytes::from(vec![b'x'; bytes])];
                    let stored = log.append(broker.as_str(), events, Timestamp::now()).await;
                    let shares = log.capacity().unwrap().shares();
                    let before: Vec<_> = shares.iter().map(|share| firsts(&share.namespace)).collect();
                    let shortage = match stored.as_ref().err().and_then(Shortage::of) {
                        None if volume_is_full => Shortage::Log,
                        None => continue,
                        Some(shortage) => shortage,
                    };
                    trimmer.make_room(&broker, shortage).await.unwrap();
                    for (share, before) in shares.iter().zip(before) {
                        let is_asker = share.namespace == broker.namespace();
                        let is_within = share.held <= share.limit && !is_asker;
                        if is_within || share.held <= share.guaranteed {
                            assert_eq!(firsts(&share.namespace), before, "{share:?} {broker} {shortage:?}");
                        }
                    }
                }
            });
        }
    }
}
