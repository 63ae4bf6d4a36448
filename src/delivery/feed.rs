//! The source of one Trigger's events. It first replays what was outstanding at startup, then reads the broker's
//! log, and once caught up it takes from the inbox that the shared reader fills. It yields wanted events,
//! unreadable records and gaps.

#[cfg(test)]
mod model;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use roaring::RoaringTreemap;

use super::{
    TriggerStats,
    held::{Held, Share},
    inbox::Inbox,
    place::{BrokerLogs, FetchError, Place, READ},
    reader::{Reader, Turn},
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
    memory: Share,
    following: Following,
}

/// Current source of a feed.
#[derive(Clone, Debug, PartialEq)]
enum Following {
    /// Replaying from the log what was outstanding at startup.
    Recovering(Recovery),
    /// Reading the log by itself.
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
pub(super) enum Fed {
    /// A wanted event. `held` is `None` when memory is short or the event could not be read.
    Event {
        place: Place,
        key: Option<Box<str>>,
        held: Option<Held>,
    },
    /// An unreadable record: nobody can tell whether the Trigger wants it. Whoever read it has logged it.
    Unreadable,
    /// An outstanding event that was removed from the log.
    Removed(Place),
    /// Number of events removed from the log before the Trigger looked at them.
    Missed(u64),
}

/// Items that a feed yields, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) fed: Vec<Fed>,
    /// Everything below was looked at.
    pub(super) next: Offset,
    /// Unreadable records, to be logged.
    pub(super) problems: Vec<(Place, String)>,
    at_end: bool,
    recovered: Option<Recovery>,
}

/// A read in progress; runs independently of the feed.
pub(super) type Reading = BoxFuture<'static, Result<Batch, LogError>>;

impl Feed {
    /// Creates a feed that first replays these outstanding places.
    pub(super) fn new(
        logs: BrokerLogs,
        reader: Arc<Reader>,
        inbox: Arc<Inbox>,
        stats: Arc<TriggerStats>,
        memory: Share,
        to_recover: impl IntoIterator<Item = Place>,
    ) -> Self {
        let mut recovery = Recovery::default();
        for place in to_recover {
            match place {
                Place::Log(Offset(offset)) => recovery.events.insert(offset),
                Place::DeadLetter(Offset(offset)) => recovery.redriven.insert(offset),
            };
        }
        Self {
            logs,
            reader,
            inbox,
            stats,
            memory,
            following: Following::recovering(recovery),
        }
    }

    #[cfg(test)]
    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Whether events come from the inbox, by [`Feed::take`]; otherwise from [`Feed::read`].
    pub(super) fn is_attached(&self) -> bool {
        self.following == Following::Attached
    }

    /// Waits until the inbox has something new.
    pub(super) async fn changed(&self) {
        self.inbox.changed().await;
    }

    /// Pauses the feed. It reads from the log when it resumes.
    pub(super) fn pause(&mut self) {
        self.inbox.detach();
        if !matches!(self.following, Following::Recovering(_)) {
            self.following = Following::Alone;
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
        for (offset, held) in taken.events {
            if offset < next {
                continue;
            }
            batch.next = offset.plus(1);
            batch.fed.push(match held {
                Some(held) => Fed::event(Place::Log(offset), held.event(), Some(held.clone())),
                None => Fed::Unreadable,
            });
        }
        if let Some(missed) = taken.missed {
            batch.next = batch.next.max(missed);
            self.following = Following::Alone;
            more = true;
        } else if taken.emptied && taken.is_attached {
            batch.next = batch.next.max(position);
        } else if taken.emptied {
            // Detached by a configuration that a later one replaced: what was missed meanwhile is in the log.
            self.following = Following::Alone;
            more = true;
        }
        (batch, more)
    }

    /// Starts a read of the log from `next`, which yields to other tasks. Pass its result to [`Feed::absorb`],
    /// unless the settings have changed.
    pub(super) fn read(&self, next: Offset, room: usize, settings: &Settings) -> Reading {
        let reading = ByItself {
            logs: self.logs.clone(),
            stats: self.stats.clone(),
            memory: self.memory.clone(),
            limit: ReadLimit {
                records: room.clamp(MIN_RECORDS, READ.records),
                bytes: READ_BYTES,
            },
        };
        match &self.following {
            Following::Recovering(recovery) => {
                let recovery = recovery.clone();
                async move { reading.again(recovery, next).await }.boxed()
            }
            Following::Joining(until) => {
                let (until, settings) = (Some(*until), settings.clone());
                async move { reading.on(next, until, &settings).await }.boxed()
            }
            Following::Alone | Following::Attached => {
                let settings = settings.clone();
                async move { reading.on(next, None, &settings).await }.boxed()
            }
        }
    }

    /// Takes over the position that a read reached, and joins the shared reader when it is near.
    pub(super) fn absorb(&mut self, batch: &mut Batch) {
        if let Some(recovery) = batch.recovered.take() {
            self.following = Following::recovering(recovery);
            return;
        }
        let next = batch.next;
        match self.following {
            Following::Joining(until) if next >= until || batch.at_end => {
                self.following = Following::Attached
            }
            Following::Alone if batch.at_end || next.plus(JOIN_WITHIN) >= self.reader.position() => {
                let position = self.reader.attach(&self.inbox, next);
                if self.stats.is_set_aside() {
                    self.inbox.detach();
                }
                if !self.inbox.is_attached() {
                    // The Trigger is set aside, or settings on their way make its events wait.
                    return;
                }
                self.following = if next >= position {
                    Following::Attached
                } else {
                    Following::Joining(position)
                };
            }
            _ => {}
        }
    }
}

impl Following {
    fn recovering(recovery: Recovery) -> Self {
        if recovery.events.is_empty() && recovery.redriven.is_empty() {
            Self::Alone
        } else {
            Self::Recovering(recovery)
        }
    }
}

impl Fed {
    fn event(place: Place, event: &Event, held: Option<Held>) -> Self {
        let key = partition_key(event);
        Self::Event { place, key, held }
    }
}

fn partition_key(event: &Event) -> Option<Box<str>> {
    event.attribute("partitionkey").map(|key| key.canonical().into())
}

/// Yields outstanding events below an offset that was read as removed from the log.
fn removed_below(Offset(offset): Offset, outstanding: &mut RoaringTreemap, batch: &mut Batch) {
    while let Some(removed) = outstanding.min().filter(|&removed| removed < offset) {
        outstanding.remove(removed);
        batch.fed.push(Fed::Removed(Place::Log(Offset(removed))));
    }
}

/// Read of the log for one Trigger.
struct ByItself {
    logs: BrokerLogs,
    stats: Arc<TriggerStats>,
    memory: Share,
    limit: ReadLimit,
}

impl ByItself {
    /// Reads on from `from`, but not beyond `until`, and keeps what the Trigger wants.
    async fn on(self, from: Offset, until: Option<Offset>, settings: &Settings) -> Result<Batch, LogError> {
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
            batch.fed.push(Fed::Missed(found.0 - from.0));
            batch.next = found;
        }
        let mut turn = Turn::default();
        for record in records {
            if until.is_some_and(|until| record.offset >= until) {
                break;
            }
            let offset = record.offset;
            let fed = self.look_at(record, settings, &mut batch, &mut turn).await;
            if self.stats.is_set_aside() {
                // This event and those behind it wait for another filter.
                break;
            }
            batch.fed.extend(fed);
            batch.next = offset.plus(1);
        }
        Ok(batch)
    }

    async fn look_at(
        &self,
        record: LogRecord,
        settings: &Settings,
        batch: &mut Batch,
        turn: &mut Turn,
    ) -> Option<Fed> {
        let place = Place::Log(record.offset);
        match Event::from_record(record.payload) {
            Ok(event) => {
                let is_wanted = self.wants(&event, settings, turn).await;
                is_wanted.then(|| self.hold(place, event))
            }
            Err(error) => {
                batch.problems.push((place, error.to_string()));
                Some(Fed::Unreadable)
            }
        }
    }

    async fn wants(&self, event: &Event, settings: &Settings, turn: &mut Turn) -> bool {
        let subject = Subject::new(event);
        turn.next();
        let is_wanted = match settings.route().decide(&subject) {
            Decision::Failed(error) => {
                self.stats.filter_failed(&error);
                false
            }
            decision => {
                self.stats.filter_held();
                matches!(decision, Decision::Pass)
            }
        };
        turn.pass(&subject).await;
        is_wanted
    }

    /// Holds the event in memory if the budget allows, or its place alone.
    fn hold(&self, place: Place, event: Event) -> Fed {
        let memory = self.memory.try_reserve(event.size());
        let key = partition_key(&event);
        let held = memory.map(|memory| Held::new(event, memory));
        Fed::Event { place, key, held }
    }

    /// Replays some of what was outstanding at startup.
    async fn again(self, mut recovery: Recovery, next: Offset) -> Result<Batch, LogError> {
        let mut batch = Batch {
            next,
            ..Batch::default()
        };
        if let Some(first) = recovery.events.min() {
            self.events_again(Offset(first), &mut recovery.events, &mut batch)
                .await?;
        } else if let Some(first) = recovery.redriven.min() {
            let place = Place::DeadLetter(Offset(first));
            self.event_again(place, &mut batch).await?;
            recovery.redriven.remove(first);
        }
        batch.recovered = Some(recovery);
        Ok(batch)
    }

    async fn events_again(
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
                self.event_again(Place::Log(first), batch).await?;
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
            let place = Place::Log(record.offset);
            batch.fed.push(match Event::from_record(record.payload) {
                Ok(event) => self.hold(place, event),
                Err(_) => Fed::without_event(place),
            });
        }
        removed_below(end, outstanding, batch);
        Ok(())
    }

    /// Replays one event. If it cannot be read, its attempt finds out and settles it.
    async fn event_again(&self, place: Place, batch: &mut Batch) -> Result<(), LogError> {
        batch.fed.push(match place.fetch(&self.logs).await {
            Ok(event) => self.hold(place, event),
            Err(FetchError::Removed | FetchError::Damaged(_)) => Fed::without_event(place),
            Err(FetchError::Log(error)) => return Err(error),
        });
        Ok(())
    }
}

impl Fed {
    fn without_event(place: Place) -> Self {
        Self::Event {
            place,
            key: None,
            held: None,
        }
    }
}
