//! The source of one Trigger's events. It first replays the events outstanding at startup, then reads the broker's
//! log, and once caught up takes events from the inbox that the shared reader fills. It yields wanted events,
//! unreadable records and gaps.

#[cfg(test)]
mod model;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use roaring::RoaringTreemap;

use super::{
    TriggerStats,
    buffered::{BufferedEvent, MemoryShare},
    inbox::Inbox,
    keys::{is_in, key_of},
    position::{BrokerLogs, EventPosition, FetchError, READ},
    reader::{FilterYield, Reader},
    settings::Settings,
};
use crate::{
    cloudevents::Event,
    filter::{Decision, Subject},
    log::{LogError, LogRecord, Offset, ReadLimit},
};

/// Maximum lag, in offsets, at which a Trigger joins the shared reader.
const JOIN_WITHIN: u64 = 256;

/// Maximum bytes of one read by a single Trigger; fewer records if it has room for fewer.
const READ_BYTES: usize = 256 * 1024;

/// Minimum records of one read, since the Trigger may not want most of them.
const MIN_RECORDS: usize = 32;

/// Timeout for reserving memory for a read, which is then retried.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Feed of one Trigger.
pub(super) struct Feed {
    logs: BrokerLogs,
    reader: Arc<Reader>,
    inbox: Arc<Inbox>,
    stats: Arc<TriggerStats>,
    memory: MemoryShare,
    following: FeedSource,
}

/// Current source of a feed.
#[derive(Clone, Debug, PartialEq)]
enum FeedSource {
    /// Replaying the events outstanding at startup.
    Recovering(Recovery),
    /// Reading the log independently of the shared reader.
    Alone,
    /// Reading the log up to this offset, then switching to the inbox.
    Joining(Offset),
    /// Taking from the inbox.
    Attached,
}

/// Offsets that are still to be replayed.
#[derive(Clone, Debug, Default, PartialEq)]
struct Recovery {
    events: RoaringTreemap,
    redriven: RoaringTreemap,
}

/// One item that the Trigger has to handle.
#[derive(Debug)]
pub(super) enum FeedItem {
    /// A wanted event. `buffered` is `None` when memory is short or the event could not be read.
    Event {
        position: EventPosition,
        key: Option<Box<str>>,
        buffered: Option<BufferedEvent>,
    },
    /// An unreadable record: it is unknown whether the Trigger wants it. Already logged by its reader.
    Unreadable,
    /// An outstanding event that was removed from the log.
    Removed(EventPosition),
    /// Number of events removed from the log before the Trigger evaluated them.
    Missed(u64),
}

/// Items that a feed yields, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) fed: Vec<FeedItem>,
    /// Everything below has been evaluated.
    pub(super) next: Offset,
    /// Unreadable records, to be logged.
    pub(super) problems: Vec<(EventPosition, String)>,
    at_end: bool,
    recovered: Option<Recovery>,
}

/// A read in progress; runs independently of the feed.
pub(super) type Reading = BoxFuture<'static, Result<Batch, LogError>>;

impl Feed {
    /// Creates a feed that first replays these outstanding positions.
    pub(super) fn new(
        logs: BrokerLogs,
        reader: Arc<Reader>,
        inbox: Arc<Inbox>,
        stats: Arc<TriggerStats>,
        memory: MemoryShare,
        to_recover: impl IntoIterator<Item = EventPosition>,
    ) -> Self {
        let mut recovery = Recovery::default();
        for position in to_recover {
            match position {
                EventPosition::Log(Offset(offset)) => recovery.events.insert(offset),
                EventPosition::DeadLetter(Offset(offset)) => recovery.redriven.insert(offset),
            };
        }
        Self {
            logs,
            reader,
            inbox,
            stats,
            memory,
            following: FeedSource::recovering(recovery),
        }
    }

    #[cfg(test)]
    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Whether events come from the inbox, by [`Feed::take`]; otherwise from [`Feed::read`].
    pub(super) fn is_attached(&self) -> bool {
        self.following == FeedSource::Attached
    }

    /// Waits until the inbox has something new.
    pub(super) async fn changed(&self) {
        self.inbox.changed().await;
    }

    /// Pauses the feed. It reads from the log when it resumes.
    pub(super) fn pause(&mut self) {
        self.inbox.detach();
        if !matches!(self.following, FeedSource::Recovering(_)) {
            self.following = FeedSource::Alone;
        }
    }

    /// Takes up to `room` unseen events, at `next` and above, from the inbox. Also returns whether there may be
    /// more.
    pub(super) fn take(&mut self, next: Offset, room: usize) -> (Batch, bool) {
        // Read the position first: everything offered below it is in the inbox by now.
        let position = self.reader.position();
        let taken = self.inbox.take(room);
        let mut batch = Batch {
            next,
            ..Batch::default()
        };
        let mut more = !taken.events.is_empty();
        for (offset, buffered) in taken.events {
            if offset < next {
                continue;
            }
            batch.next = offset.plus(1);
            batch.fed.push(match buffered {
                Some(buffered) => FeedItem::event(
                    EventPosition::Log(offset),
                    buffered.event(),
                    Some(buffered.clone()),
                ),
                None => FeedItem::Unreadable,
            });
        }
        if let Some(missed) = taken.missed {
            batch.next = batch.next.max(missed);
            self.following = FeedSource::Alone;
            more = true;
        } else if taken.emptied && taken.is_attached {
            batch.next = batch.next.max(position);
        } else if taken.emptied {
            // Detached by a configuration that has been replaced since: the events missed meanwhile are in the log.
            self.following = FeedSource::Alone;
            more = true;
        }
        (batch, more)
    }

    /// Starts a read of the log from `next`, which yields to other tasks. Pass its result to [`Feed::absorb`],
    /// unless the settings have changed.
    pub(super) fn read(&self, next: Offset, room: usize, settings: &Settings) -> Reading {
        let reading = LogRead {
            logs: self.logs.clone(),
            stats: self.stats.clone(),
            memory: self.memory.clone(),
            limit: ReadLimit {
                records: room.clamp(MIN_RECORDS, READ.records),
                bytes: READ_BYTES,
            },
        };
        match &self.following {
            FeedSource::Recovering(recovery) => {
                let recovery = recovery.clone();
                async move { reading.replay(recovery, next).await }.boxed()
            }
            FeedSource::Joining(until) => {
                let (until, settings) = (Some(*until), settings.clone());
                async move { reading.read_from(next, until, &settings).await }.boxed()
            }
            FeedSource::Alone | FeedSource::Attached => {
                let settings = settings.clone();
                async move { reading.read_from(next, None, &settings).await }.boxed()
            }
        }
    }

    /// Applies the result of a read, and joins the shared reader once the Trigger has nearly caught up.
    pub(super) fn absorb(&mut self, batch: &mut Batch) {
        if let Some(recovery) = batch.recovered.take() {
            self.following = FeedSource::recovering(recovery);
            return;
        }
        let next = batch.next;
        match self.following {
            FeedSource::Joining(until) if next >= until || batch.at_end => {
                self.following = FeedSource::Attached
            }
            FeedSource::Alone if batch.at_end || next.plus(JOIN_WITHIN) >= self.reader.position() => {
                let position = self.reader.attach(&self.inbox, next);
                if self.stats.is_set_aside() {
                    self.inbox.detach();
                }
                if !self.inbox.is_attached() {
                    // The Trigger is set aside, or pending settings make its events wait.
                    return;
                }
                self.following = if next >= position {
                    FeedSource::Attached
                } else {
                    FeedSource::Joining(position)
                };
            }
            _ => {}
        }
    }
}

impl FeedSource {
    fn recovering(recovery: Recovery) -> Self {
        if recovery.events.is_empty() && recovery.redriven.is_empty() {
            Self::Alone
        } else {
            Self::Recovering(recovery)
        }
    }
}

impl FeedItem {
    fn event(position: EventPosition, event: &Event, buffered: Option<BufferedEvent>) -> Self {
        let key = key_of(event);
        Self::Event {
            position,
            key,
            buffered,
        }
    }
}

/// Yields the outstanding events below `offset` as removed from the log.
fn removed_below(Offset(offset): Offset, outstanding: &mut RoaringTreemap, batch: &mut Batch) {
    while let Some(removed) = outstanding.min().filter(|&removed| removed < offset) {
        outstanding.remove(removed);
        batch
            .fed
            .push(FeedItem::Removed(EventPosition::Log(Offset(removed))));
    }
}

/// Read of the log for one Trigger.
struct LogRead {
    logs: BrokerLogs,
    stats: Arc<TriggerStats>,
    memory: MemoryShare,
    limit: ReadLimit,
}

impl LogRead {
    /// Reads from `from`, but not beyond `until`, and returns what the Trigger wants.
    async fn read_from(
        self,
        from: Offset,
        until: Option<Offset>,
        settings: &Settings,
    ) -> Result<Batch, LogError> {
        let mut batch = Batch {
            next: from,
            ..Batch::default()
        };
        let Ok(_room) = tokio::time::timeout(MEMORY_TIMEOUT, self.memory.reserve(READ_BYTES)).await else {
            return Ok(batch);
        };
        let records = self.logs.events.read(from, self.limit).await?;
        batch.at_end = records.is_empty();
        let found = match records.first() {
            Some(record) => record.offset,
            None => self.logs.events.bounds().await?.first,
        };
        // Everything from `until` on is in the inbox.
        let found = until.map_or(found, |until| found.min(until));
        if found > from {
            // The gap has records of all partitions.
            let of = u64::from(self.logs.events.partition().of.max(1));
            batch.fed.push(FeedItem::Missed((found.0 - from.0).div_ceil(of)));
            batch.next = found;
        }
        let mut filter_yield = FilterYield::default();
        for record in records {
            if until.is_some_and(|until| record.offset >= until) {
                break;
            }
            let offset = record.offset;
            let fed = self
                .evaluate(record, settings, &mut batch, &mut filter_yield)
                .await;
            if self.stats.is_set_aside() {
                // This event and those after it wait until the filter changes.
                break;
            }
            batch.fed.extend(fed);
            batch.next = offset.plus(1);
        }
        Ok(batch)
    }

    async fn evaluate(
        &self,
        record: LogRecord,
        settings: &Settings,
        batch: &mut Batch,
        filter_yield: &mut FilterYield,
    ) -> Option<FeedItem> {
        let (position, partition) = (EventPosition::Log(record.offset), self.logs.events.partition());
        match Event::from_record(record.payload) {
            Ok(event) => {
                if !is_in(partition, &event, record.offset) {
                    return None;
                }
                let is_wanted = self.wants(&event, settings, filter_yield).await;
                is_wanted.then(|| self.buffer(position, event))
            }
            Err(_) if !partition.has(None, record.offset) => None,
            Err(error) => {
                batch.problems.push((position, error.to_string()));
                Some(FeedItem::Unreadable)
            }
        }
    }

    async fn wants(&self, event: &Event, settings: &Settings, filter_yield: &mut FilterYield) -> bool {
        let subject = Subject::new(event);
        filter_yield.next_event();
        let is_wanted = match settings.route().decide(&subject) {
            Decision::Failed(error) => {
                self.stats.filter_failed(&error);
                false
            }
            decision => {
                self.stats.filter_within_budget();
                matches!(decision, Decision::Pass)
            }
        };
        filter_yield.yield_if_due(&subject).await;
        is_wanted
    }

    /// Buffers the event if the memory budget allows, otherwise only its position.
    fn buffer(&self, position: EventPosition, event: Event) -> FeedItem {
        let memory = self.memory.try_reserve(event.size());
        let key = key_of(&event);
        let buffered = memory.map(|memory| BufferedEvent::new(event, memory));
        FeedItem::Event {
            position,
            key,
            buffered,
        }
    }

    /// Replays some of the events outstanding at startup.
    async fn replay(self, mut recovery: Recovery, next: Offset) -> Result<Batch, LogError> {
        let mut batch = Batch {
            next,
            ..Batch::default()
        };
        if let Some(first) = recovery.events.min() {
            self.replay_events(Offset(first), &mut recovery.events, &mut batch)
                .await?;
        } else if let Some(first) = recovery.redriven.min() {
            let position = EventPosition::DeadLetter(Offset(first));
            self.replay_event(position, &mut batch).await?;
            recovery.redriven.remove(first);
        }
        batch.recovered = Some(recovery);
        Ok(batch)
    }

    async fn replay_events(
        &self,
        first: Offset,
        outstanding: &mut RoaringTreemap,
        batch: &mut Batch,
    ) -> Result<(), LogError> {
        let Ok(_room) = tokio::time::timeout(MEMORY_TIMEOUT, self.memory.reserve(READ_BYTES)).await else {
            return Ok(());
        };
        let records = match self.logs.events.read(first, self.limit).await {
            Ok(records) => records,
            Err(LogError::Damaged { .. }) => {
                self.replay_event(EventPosition::Log(first), batch).await?;
                outstanding.remove(first.0);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let end = match records.last() {
            Some(record) => record.offset.plus(1),
            None => self.logs.events.bounds().await?.next,
        };
        for record in records {
            if !outstanding.contains(record.offset.0) {
                continue;
            }
            removed_below(record.offset, outstanding, batch);
            outstanding.remove(record.offset.0);
            let position = EventPosition::Log(record.offset);
            batch.fed.push(match Event::from_record(record.payload) {
                Ok(event) => self.buffer(position, event),
                Err(_) => FeedItem::without_event(position),
            });
        }
        removed_below(end, outstanding, batch);
        Ok(())
    }

    /// Replays one event. If it is unreadable, its attempt fails and settles it.
    async fn replay_event(&self, position: EventPosition, batch: &mut Batch) -> Result<(), LogError> {
        batch.fed.push(match position.fetch(&self.logs).await {
            Ok(event) => self.buffer(position, event),
            Err(FetchError::Removed | FetchError::Damaged(_)) => FeedItem::without_event(position),
            Err(FetchError::Log(error)) => return Err(error),
        });
        Ok(())
    }
}

impl FeedItem {
    fn without_event(position: EventPosition) -> Self {
        Self::Event {
            position,
            key: None,
            buffered: None,
        }
    }
}
