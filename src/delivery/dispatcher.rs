//! One Trigger's delivery: takes events, sends them, waits out retries, settles, and saves how far it got.
//!
//! All of a Trigger's state is in one task, so nothing here is locked. What is held in memory is bounded: at most
//! [`WINDOW`] offsets are unsettled, and only those about to be sent have their events with them; an event that
//! waits for a retry is read from the log again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::Uri;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    SAVE_EVERY, Settlement, TriggerStats,
    backoff::{self, Attempts},
    breaker::Breaker,
    client::{Answer, Client},
    dead_letter::DeadLetter,
    inbox::Inbox,
    lanes::{Item, Lanes},
    progress::Progress,
    rate::Bucket,
    reader::{READ, Reader, unreadable},
    verdict::Verdict,
};
use crate::{
    cloudevents::{Event, Mode},
    log::{EventLog, LogError, Offset, ReadLimit},
    routing::{BrokerTable, ContentMode, Delivery, Ordering, Route, Trigger, broker_key},
};

/// How many events of a Trigger are unsettled at most; it then waits for one to settle.
pub(super) const WINDOW: usize = 1024;

/// A Trigger that is at most this far behind the shared reader joins it.
const JOIN_WITHIN: u64 = 256;

/// How often a Trigger that wants nothing notes that it has seen everything.
const NOTE_POSITION_EVERY: Duration = Duration::from_secs(5);

/// How long what found no room on the disk waits before it is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// What a dispatcher is told: a table and which of its routes is the Trigger's.
#[derive(Clone)]
pub(super) struct Settings {
    table: Arc<BrokerTable>,
    index: usize,
    /// Parsed once; `None` while events have to wait.
    target: Option<Uri>,
}

impl Settings {
    pub(super) fn new(table: Arc<BrokerTable>, index: usize) -> Self {
        let trigger = &table.routes()[index].trigger;
        let target = match &trigger.destination {
            Some(destination) if !trigger.suspend => match destination.uri.parse() {
                Ok(uri) => Some(uri),
                Err(error) => {
                    tracing::error!(
                        namespace = trigger.namespace, trigger = trigger.name, uri = destination.uri, %error,
                        "the Sink's URI cannot be used; events wait"
                    );
                    None
                }
            },
            _ => None,
        };
        Self { table, index, target }
    }

    /// Whether events are delivered, or have to wait.
    pub(super) fn is_deliverable(&self) -> bool {
        self.target.is_some() && self.route().filter.is_ok()
    }

    fn route(&self) -> &Route {
        &self.table.routes()[self.index]
    }

    fn trigger(&self) -> &Trigger {
        &self.route().trigger
    }

    fn delivery(&self) -> &Delivery {
        &self.trigger().delivery
    }

    fn mode(&self) -> Option<Mode> {
        match self
            .trigger()
            .destination
            .as_ref()
            .map(|destination| destination.content_mode)
        {
            Some(ContentMode::Binary) => Some(Mode::Binary),
            Some(ContentMode::Structured) => Some(Mode::Structured),
            Some(ContentMode::AsReceived) | None => None,
        }
    }
}

/// What a dispatcher works with.
pub(super) struct Parts {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) client: Client,
    pub(super) reader: Arc<Reader>,
    pub(super) inbox: Arc<Inbox>,
    /// Closed when the Trigger is gone.
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) stats: Arc<TriggerStats>,
    pub(super) progress: Progress,
    /// Ends delivery: what is under way may finish within the grace that follows.
    pub(super) stop: CancellationToken,
    pub(super) grace: Duration,
}

pub(super) struct Dispatcher {
    parts: Parts,
    settings: Settings,
    uid: String,
    broker: String,
    following: Following,
    ready: VecDeque<Item>,
    /// What held its key back and may go now.
    released: VecDeque<Item>,
    lanes: Lanes,
    bucket: Bucket,
    delayed: BTreeSet<(Instant, Offset)>,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    breaker: Breaker,
    saving: Option<BoxFuture<'static, Result<(), LogError>>>,
    /// The first unsettled offset of what is being saved.
    saving_low: Offset,
    save_at: Option<Instant>,
}

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Following {
    /// From the log, by itself.
    Alone,
    /// From the log up to here, then from the inbox.
    Joining(Offset),
    /// From the inbox.
    Attached,
}

/// What a future under way has come to.
enum Done {
    Attempt {
        offset: Offset,
        began: Timestamp,
        event: Option<Event>,
        outcome: Outcome,
    },
    DeadLetter {
        offset: Offset,
        stored: Result<(), LogError>,
    },
}

enum Outcome {
    Answered(Answer),
    Expired,
    Unreadable(String),
    LogFailed(LogError),
}

impl Dispatcher {
    pub(super) fn new(parts: Parts) -> Self {
        let settings = parts.settings.borrow().clone();
        let trigger = settings.trigger();
        let (uid, broker) = (
            trigger.uid.clone(),
            broker_key(&trigger.namespace, &trigger.broker),
        );
        let low = parts.progress.low();
        parts.stats.show(&parts.progress);
        parts.stats.show_low(low);
        Self {
            parts,
            settings,
            uid,
            broker,
            following: Following::Alone,
            ready: VecDeque::new(),
            released: VecDeque::new(),
            lanes: Lanes::default(),
            bucket: Bucket::default(),
            delayed: BTreeSet::new(),
            in_flight: FuturesUnordered::new(),
            breaker: Breaker::default(),
            saving: None,
            saving_low: low,
            save_at: None,
        }
    }

    /// Delivers until told to stop or the Trigger is gone.
    ///
    /// # Errors
    /// When the log failed; the process has to end.
    pub(super) async fn run(mut self) -> Result<(), LogError> {
        let stop = self.parts.stop.clone();
        let mut note_position = tokio::time::interval(NOTE_POSITION_EVERY);
        note_position.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.recover().await?;
        loop {
            self.fill().await?;
            let wake = self.launch();
            let save = self.save_at.filter(|_| self.saving.is_none());
            tokio::select! {
                Some(done) = self.in_flight.next() => self.done(done)?,
                () = self.parts.inbox.changed(), if self.wants_more() => {}
                () = at(wake) => {}
                () = at(save) => self.begin_save(),
                saved = finished(&mut self.saving) => self.saved(saved)?,
                changed = self.parts.settings.changed() => match changed {
                    Ok(()) => self.settings_changed(),
                    Err(_) => return Ok(()),
                },
                _ = note_position.tick() => self.note_position(),
                () = stop.cancelled() => return self.finish().await,
            }
        }
    }

    /// Takes up what was wanted and not settled when the cursor was saved.
    async fn recover(&mut self) -> Result<(), LogError> {
        let outstanding: Vec<_> = self.parts.progress.outstanding().collect();
        for offset in outstanding {
            let mut item = Item {
                offset,
                event: None,
                key: None,
            };
            if self.settings.delivery().ordering == Ordering::ByKey {
                match fetch(&*self.parts.log, &self.broker, offset).await {
                    Ok(event) => item.key = partition_key(&event),
                    Err(Outcome::LogFailed(error)) => return Err(error),
                    // Its attempt finds the same, and settles it.
                    Err(_) => {}
                }
            }
            self.ready.push_back(item);
        }
        Ok(())
    }

    /// Lets what is under way finish, then makes the cursor say so.
    async fn finish(mut self) -> Result<(), LogError> {
        let deadline = tokio::time::Instant::now() + self.parts.grace;
        while let Ok(Some(done)) = tokio::time::timeout_at(deadline, self.in_flight.next()).await {
            self.done(done)?;
        }
        if let Some(saving) = self.saving.take() {
            let saved = saving.await;
            self.saved(saved)?;
        }
        let saved = self.parts.log.save_cursors(vec![self.cursor()]).await;
        self.saved(saved)
    }

    fn is_deliverable(&self) -> bool {
        self.settings.is_deliverable()
    }

    fn wants_more(&self) -> bool {
        self.is_deliverable()
            && self.parts.progress.pending() < WINDOW
            && self.ready.len() < self.concurrency() * 2
    }

    fn concurrency(&self) -> usize {
        self.settings.delivery().concurrency.max(1) as usize
    }

    /// Takes events until there are enough to send, or none.
    async fn fill(&mut self) -> Result<(), LogError> {
        while self.wants_more() {
            let more = match self.following {
                Following::Attached => self.take_from_inbox(),
                Following::Alone | Following::Joining(_) => self.read_log().await?,
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Whether there may be more.
    fn take_from_inbox(&mut self) -> bool {
        // The position is read first: what was offered below it is in the inbox by now.
        let position = self.parts.reader.position();
        let room = self.room();
        let taken = self.parts.inbox.take(room);
        let more = !taken.events.is_empty();
        for (offset, event) in taken.events {
            if offset >= self.parts.progress.next() {
                self.matched(offset, event);
            }
        }
        if let Some(missed) = taken.missed {
            self.parts.progress.advance(missed);
            self.following = Following::Alone;
            return true;
        }
        if taken.emptied && self.parts.inbox.is_attached() {
            self.parts.progress.advance(position);
        }
        more
    }

    fn room(&self) -> usize {
        (WINDOW - self.parts.progress.pending().min(WINDOW)).min(READ.records)
    }

    /// Reads on from the Trigger's own place, and joins the shared reader when it is near.
    async fn read_log(&mut self) -> Result<bool, LogError> {
        let limit = ReadLimit {
            records: self.room(),
            ..READ
        };
        let records = self
            .parts
            .log
            .read(&self.broker, self.parts.progress.next(), limit)
            .await?;
        let at_end = records.is_empty();
        for record in records {
            if matches!(self.following, Following::Joining(until) if record.offset >= until) {
                break;
            }
            match Event::from_record(record.payload) {
                Ok(event) if self.settings.route().matches(&event) => self.matched(record.offset, event),
                Ok(_) => {}
                Err(error) => unreadable(&self.broker, record.offset, &error),
            }
            self.parts.progress.advance(record.offset.plus(1));
        }
        self.changed();
        self.join(at_end);
        Ok(true)
    }

    fn join(&mut self, at_end: bool) {
        let next = self.parts.progress.next();
        match self.following {
            Following::Joining(until) if next >= until || at_end => self.following = Following::Attached,
            Following::Alone if at_end || next.plus(JOIN_WITHIN) >= self.parts.reader.position() => {
                let position = self.parts.reader.attach(&self.parts.inbox);
                self.following = if next >= position {
                    Following::Attached
                } else {
                    Following::Joining(position)
                };
            }
            _ => {}
        }
    }

    fn matched(&mut self, offset: Offset, event: Event) {
        self.parts.progress.matched(offset);
        let by_key = self.settings.delivery().ordering == Ordering::ByKey;
        let key = by_key.then(|| partition_key(&event)).flatten();
        self.ready.push_back(Item {
            offset,
            event: Some(event),
            key,
        });
        self.changed();
    }

    /// Starts as many attempts as may be under way; tells when to look again, if time alone will allow more.
    fn launch(&mut self) -> Option<Instant> {
        let target = self.settings.target.clone().filter(|_| self.is_deliverable())?;
        let now = Instant::now();
        while self.in_flight.len() < self.concurrency() {
            let at = self.permits(now)?;
            if at > now {
                return Some(at);
            }
            let Some((offset, event)) = self.next_to_send(now) else {
                return self.delayed.first().map(|&(at, _)| at);
            };
            if let Some(limit) = self.settings.delivery().rate_limit {
                self.bucket.take(limit, now);
            }
            self.parts.stats.attempt_began();
            self.in_flight.push(self.attempt(&target, offset, event));
        }
        None
    }

    /// When an attempt may begin, by the breaker and the rate limit; `None` if not before another has ended.
    fn permits(&self, now: Instant) -> Option<Instant> {
        let by_breaker = self.breaker.permits(now, self.in_flight.len())?;
        let limit = self.settings.delivery().rate_limit;
        Some(limit.map_or(by_breaker, |limit| {
            self.bucket.permits(limit, now).max(by_breaker)
        }))
    }

    /// What is due again goes first, then what waited for its key, then what is new and may go.
    fn next_to_send(&mut self, now: Instant) -> Option<(Offset, Option<Event>)> {
        if self.delayed.first().is_some_and(|&(at, _)| at <= now) {
            return self.delayed.pop_first().map(|(_, offset)| (offset, None));
        }
        if let Some(item) = self.released.pop_front() {
            return Some((item.offset, item.event));
        }
        while let Some(item) = self.ready.pop_front() {
            if let Some(item) = self.lanes.enter(item) {
                return Some((item.offset, item.event));
            }
        }
        None
    }

    fn attempt(&self, target: &Uri, offset: Offset, event: Option<Event>) -> BoxFuture<'static, Done> {
        let (log, client) = (self.parts.log.clone(), self.parts.client.clone());
        let (target, broker) = (target.clone(), self.broker.clone());
        let (mode, timeout) = (self.settings.mode(), self.settings.delivery().timeout);
        async move {
            let began = Timestamp::now();
            let event = match event {
                Some(event) => event,
                None => match fetch(&*log, &broker, offset).await {
                    Ok(event) => event,
                    Err(outcome) => {
                        return Done::Attempt {
                            offset,
                            began,
                            event: None,
                            outcome,
                        };
                    }
                },
            };
            let outcome = if event.expires().is_some_and(|at| at <= began) {
                Outcome::Expired
            } else {
                Outcome::Answered(client.post(&target, event.to_http(mode), timeout).await)
            };
            Done::Attempt {
                offset,
                began,
                event: Some(event),
                outcome,
            }
        }
        .boxed()
    }

    fn done(&mut self, done: Done) -> Result<(), LogError> {
        match done {
            Done::Attempt {
                offset,
                began,
                event,
                outcome,
            } => {
                let delivered =
                    matches!(&outcome, Outcome::Answered(answer) if answer.verdict == Verdict::Delivered);
                self.parts.stats.attempt_ended(delivered);
                match outcome {
                    Outcome::Answered(answer) => self.answered(offset, began, event, answer),
                    Outcome::Expired => self.settle(offset, Settlement::Expired),
                    Outcome::Unreadable(error) => {
                        tracing::error!(broker = self.broker, %offset, error, "an event cannot be read again and is dropped");
                        self.settle(offset, Settlement::Dropped);
                    }
                    Outcome::LogFailed(error) => return Err(error),
                }
            }
            Done::DeadLetter {
                offset,
                stored: Ok(()),
            } => self.settle(offset, Settlement::DeadLettered),
            Done::DeadLetter {
                offset,
                stored: Err(LogError::Full(detail)),
            } => {
                tracing::warn!(broker = self.broker, %offset, detail, "no room for a dead letter; its delivery is tried again");
                self.delayed.insert((Instant::now() + NO_ROOM_PAUSE, offset));
            }
            Done::DeadLetter {
                stored: Err(error), ..
            } => return Err(error),
        }
        Ok(())
    }

    fn answered(&mut self, offset: Offset, began: Timestamp, event: Option<Event>, answer: Answer) {
        match answer.verdict {
            Verdict::Delivered => {
                self.sink_answered();
                self.settle(offset, Settlement::Delivered);
            }
            Verdict::Refused => {
                self.sink_answered();
                let attempts = self.parts.progress.failed(offset, began);
                self.dead_letter(offset, event, &answer, attempts, "refused");
            }
            Verdict::Retry => self.failed(offset, began, event, &answer),
        }
    }

    fn failed(&mut self, offset: Offset, began: Timestamp, event: Option<Event>, answer: &Answer) {
        let attempts = self.parts.progress.failed(offset, began);
        let delivery = self.settings.delivery();
        let (exhausted, now) = (
            backoff::exhausted(delivery, attempts, Timestamp::now()),
            Instant::now(),
        );
        let pause = backoff::pause(delivery, attempts.failed, answer.retry_after, fastrand::f64());
        let hold_off = backoff::pause(delivery, self.breaker.failures() + 1, answer.retry_after, 1.0);
        let was_open = self.breaker.is_open();
        self.breaker.failed(now, hold_off);
        if self.breaker.is_open() && !was_open {
            self.parts.stats.show_sink_down(true);
            let (trigger, detail) = (self.settings.trigger(), &answer.detail);
            tracing::warn!(
                namespace = trigger.namespace,
                trigger = trigger.name,
                detail,
                "the Sink keeps failing; it is probed until it answers, and events wait"
            );
        }
        self.changed();
        if exhausted {
            self.dead_letter(offset, event, answer, attempts, "retries exhausted");
        } else {
            self.delayed.insert((now + pause, offset));
        }
    }

    fn sink_answered(&mut self) {
        if self.breaker.is_open() {
            self.parts.stats.show_sink_down(false);
            let trigger = self.settings.trigger();
            tracing::info!(
                namespace = trigger.namespace,
                trigger = trigger.name,
                "the Sink answers again"
            );
        }
        self.breaker.answered();
    }

    fn dead_letter(
        &mut self,
        offset: Offset,
        event: Option<Event>,
        answer: &Answer,
        attempts: Attempts,
        reason: &str,
    ) {
        // An attempt that was answered had its event.
        let Some(event) = event else { return };
        let trigger = self.settings.trigger();
        tracing::warn!(
            namespace = trigger.namespace,
            trigger = trigger.name,
            id = event.id(),
            source = event.source(),
            attempts = attempts.failed,
            detail = answer.detail,
            reason,
            "an event became a dead letter"
        );
        let letter = DeadLetter {
            trigger: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            offset,
            reason: reason.to_owned(),
            status: answer.status.map(|status| status.as_u16()),
            detail: answer.detail.clone(),
            attempts: attempts.failed,
        };
        let (log, key) = (self.parts.log.clone(), DeadLetter::log_of(&self.broker));
        let payload = letter.encode(&event);
        self.in_flight.push(
            async move {
                let stored = log
                    .append(&key, vec![payload], Timestamp::now())
                    .await
                    .map(|_| ());
                Done::DeadLetter { offset, stored }
            }
            .boxed(),
        );
    }

    fn settle(&mut self, offset: Offset, settlement: Settlement) {
        self.parts.progress.settle(offset, settlement);
        self.released.extend(self.lanes.leave(offset));
        self.changed();
    }

    /// What was last saved is no longer how it is.
    fn changed(&mut self) {
        self.parts.stats.show(&self.parts.progress);
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE_EVERY);
    }

    fn begin_save(&mut self) {
        self.save_at = None;
        self.saving_low = self.parts.progress.low();
        let (log, cursor) = (self.parts.log.clone(), self.cursor());
        self.saving = Some(async move { log.save_cursors(vec![cursor]).await }.boxed());
    }

    /// Without room for the cursor, delivery goes on, and what is settled meanwhile repeats after a crash. It may
    /// be trimmed nevertheless, as that makes room; then it does not repeat, but is counted as dropped.
    fn saved(&mut self, saved: Result<(), LogError>) -> Result<(), LogError> {
        if matches!(saved, Ok(()) | Err(LogError::Full(_))) {
            self.parts.stats.show_low(self.saving_low);
        }
        match saved {
            Err(LogError::Full(detail)) => {
                tracing::warn!(
                    broker = self.broker,
                    detail,
                    "no room to save progress; it is tried again"
                );
                self.save_at = Some(Instant::now() + NO_ROOM_PAUSE);
                Ok(())
            }
            saved => saved,
        }
    }

    fn cursor(&self) -> (String, Option<Bytes>) {
        (
            self.uid.clone(),
            Some(self.parts.progress.encode(&self.broker).into()),
        )
    }

    fn note_position(&mut self) {
        if self.following == Following::Attached {
            let before = self.parts.progress.next();
            self.take_from_inbox();
            if self.parts.progress.next() != before {
                self.changed();
            }
        }
    }

    fn settings_changed(&mut self) {
        self.settings = self.parts.settings.borrow_and_update().clone();
        if !self.is_deliverable() {
            // What the inbox holds is not counted yet: the Trigger reads it from the log when it goes on.
            self.parts.inbox.detach();
            self.following = Following::Alone;
        }
    }
}

fn partition_key(event: &Event) -> Option<Box<str>> {
    event.attribute("partitionkey").map(|key| key.canonical().into())
}

async fn fetch(log: &dyn EventLog, broker: &str, offset: Offset) -> Result<Event, Outcome> {
    let records = match log.read(broker, offset, ReadLimit { records: 1, ..READ }).await {
        Ok(records) => records,
        Err(error @ LogError::Damaged { .. }) => return Err(Outcome::Unreadable(error.to_string())),
        Err(error) => return Err(Outcome::LogFailed(error)),
    };
    match records.into_iter().find(|record| record.offset == offset) {
        Some(record) => {
            Event::from_record(record.payload).map_err(|error| Outcome::Unreadable(error.to_string()))
        }
        None => Err(Outcome::Unreadable("it is no longer in the log".to_owned())),
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a save under way, for ever if there is none.
async fn finished(saving: &mut Option<BoxFuture<'static, Result<(), LogError>>>) -> Result<(), LogError> {
    match saving {
        Some(future) => {
            let saved = future.await;
            *saving = None;
            saved
        }
        None => std::future::pending().await,
    }
}
