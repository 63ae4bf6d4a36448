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
use http::HeaderValue;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    SAVE_EVERY, Settlement, TriggerStats,
    backoff::{self, Attempts},
    breaker::Breaker,
    client::{Answer, Client},
    dead_letter::DeadLetter,
    dead_lettering::DeadLettering,
    inbox::Inbox,
    lanes::{Item, Lanes},
    lines::Lines,
    place::{FetchError, Place},
    progress::{Low, Progress},
    rate::Bucket,
    reader::{READ, Reader},
    redrive::Redrive,
    reply::{self, Reply},
    settings::Settings,
    target::Target,
    traced::Traced,
    verdict::Verdict,
};
use crate::{
    cloudevents::{Event, TraceContext},
    filter::{Decision, Subject},
    log::{EventLog, LogError, Offset, ReadLimit},
    routing::{Ordering, broker_key},
    telemetry::Attempt,
};

/// How many events of a Trigger are unsettled at most; it then waits for one to settle.
pub(super) const WINDOW: usize = 1024;

/// A Trigger that is at most this far behind the shared reader joins it.
const JOIN_WITHIN: u64 = 256;

/// How often a Trigger that wants nothing notes that it has seen everything.
const NOTE_POSITION_EVERY: Duration = Duration::from_secs(5);

/// How long what found no room on the disk waits before it is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// What a dispatcher works with.
pub(super) struct Parts {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) client: Client,
    pub(super) reader: Arc<Reader>,
    pub(super) inbox: Arc<Inbox>,
    /// Closed when the Trigger is gone.
    pub(super) settings: watch::Receiver<Settings>,
    /// Dead letters that somebody wants delivered again.
    pub(super) redrives: mpsc::Receiver<Redrive>,
    pub(super) stats: Arc<TriggerStats>,
    /// Told when something cannot be settled for want of room in the log.
    pub(super) room_wanted: Arc<Notify>,
    pub(super) progress: Progress,
    /// Ends delivery: what is under way may finish within the grace that follows.
    pub(super) stop: CancellationToken,
    pub(super) grace: Duration,
}

pub(super) struct Dispatcher {
    parts: Parts,
    settings: Settings,
    uid: String,
    /// `namespace/name`.
    trigger: Arc<str>,
    broker: String,
    lines: Lines,
    following: Following,
    ready: VecDeque<Item>,
    /// What held its key back and may go now.
    released: VecDeque<Item>,
    lanes: Lanes,
    bucket: Bucket,
    delayed: BTreeSet<(Instant, Place)>,
    in_flight: FuturesUnordered<BoxFuture<'static, Attempted>>,
    dead_lettering: DeadLettering,
    dead_letters: FuturesUnordered<BoxFuture<'static, (Place, Result<(), FetchError>)>>,
    breaker: Breaker,
    saving: Option<BoxFuture<'static, Result<(), LogError>>>,
    /// What is unsettled in what is being saved.
    saving_low: Low,
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

/// What came of an attempt.
struct Attempted {
    made: Made,
    outcome: Outcome,
}

/// An attempt that was made.
struct Made {
    place: Place,
    /// Where it went; the Trigger's Sink may be another by now.
    target: Target,
    began: Began,
    /// The event, if it could be read.
    about: Option<Event>,
}

/// When an attempt began.
#[derive(Clone, Copy)]
struct Began {
    time: Timestamp,
    instant: Instant,
}

enum Outcome {
    Answered(Answer, Option<Reply>),
    ReplyNotStored(Answer),
    Expired,
    NotFetched(FetchError),
}

impl Dispatcher {
    pub(super) fn new(parts: Parts) -> Self {
        let settings = parts.settings.borrow().clone();
        let trigger = settings.trigger();
        let (uid, broker) = (
            trigger.uid.clone(),
            broker_key(&trigger.namespace, &trigger.broker),
        );
        let trigger: Arc<str> = format!("{}/{}", trigger.namespace, trigger.name).into();
        let low = parts.progress.low();
        parts.stats.show(&parts.progress);
        parts.stats.show_low(low);
        let dead_lettering = DeadLettering::new(
            parts.log.clone(),
            parts.client.clone(),
            trigger.clone(),
            broker.clone(),
            parts.settings.clone(),
            parts.room_wanted.clone(),
            parts.stats.clone(),
        );
        Self {
            parts,
            settings,
            uid,
            lines: Lines::new(trigger.clone(), broker.clone()),
            trigger,
            broker,
            dead_lettering,
            dead_letters: FuturesUnordered::new(),
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
            let more = self.fill().await? && self.wants_more();
            let wake = self.launch();
            let save = self.save_at.filter(|_| self.saving.is_none());
            tokio::select! {
                Some(attempted) = self.in_flight.next() => self.attempted(attempted)?,
                Some((place, kept)) = self.dead_letters.next() => self.dead_lettered(place, kept)?,
                Some(redrive) = self.parts.redrives.recv() => self.redrive(redrive).await?,
                () = self.parts.inbox.changed(), if self.wants_more() => {}
                () = at(wake) => {}
                () = at(save) => self.begin_save(),
                saved = finished(&mut self.saving) => self.saved(saved)?,
                changed = self.parts.settings.changed() => match changed {
                    Ok(()) => self.settings_changed(),
                    Err(_) => {
                        self.note_position();
                        return Ok(());
                    }
                },
                _ = note_position.tick() => {
                    self.note_position();
                    self.lines.tell_overdue(Instant::now());
                    self.dead_lettering.tell_overdue(Instant::now());
                }
                () = std::future::ready(()), if more => {}
                () = stop.cancelled() => return self.finish().await,
            }
        }
    }

    /// Takes up what was wanted and not settled when the cursor was saved.
    async fn recover(&mut self) -> Result<(), LogError> {
        let outstanding: Vec<_> = self.parts.progress.outstanding().collect();
        for place in outstanding {
            let mut key = None;
            if self.settings.delivery().ordering == Ordering::ByKey {
                match place.fetch(&*self.parts.log, &self.broker).await {
                    Ok(event) => key = partition_key(&event),
                    Err(FetchError::Log(error)) => return Err(error),
                    // Its attempt finds the same, and settles it.
                    Err(FetchError::Removed | FetchError::Damaged(_)) => {}
                }
            }
            self.ready.push_back(Item {
                place,
                event: None,
                key,
            });
        }
        Ok(())
    }

    /// Lets what is under way finish, then makes the cursor say so. A dead letter that its Sink does not take in
    /// time stays unsettled.
    async fn finish(mut self) -> Result<(), LogError> {
        let deadline = tokio::time::Instant::now() + self.parts.grace;
        while let Ok(Some(attempted)) = tokio::time::timeout_at(deadline, self.in_flight.next()).await {
            self.attempted(attempted)?;
        }
        while let Ok(Some((place, kept))) = tokio::time::timeout_at(deadline, self.dead_letters.next()).await
        {
            self.dead_lettered(place, kept)?;
        }
        self.end_save().await?;
        let saved = self.parts.log.save_cursors(vec![self.cursor()]).await;
        self.saved(saved)
    }

    /// Takes dead letters as if they had just matched, as many as there is room for.
    async fn redrive(&mut self, redrive: Redrive) -> Result<(), LogError> {
        let Redrive {
            letters,
            taken,
            taking: _taking,
            answer,
        } = redrive;
        if answer.is_closed() {
            // Whoever asked has given up, and may have asked again.
            return Ok(());
        }
        // Else an older cursor could be stored after the one that has the letters in it.
        self.end_save().await?;
        let room = WINDOW - self.parts.progress.pending().min(WINDOW);
        let accepted: Vec<_> = letters.into_iter().take(room).collect();
        let offsets = || accepted.iter().map(|letter| letter.offset);
        let mut progress = self.parts.progress.clone();
        offsets().for_each(|offset| progress.redriven(offset));
        // Before they are taken out: then trimming goes past them, were they not held.
        self.parts.stats.hold_dead_letters(progress.low());
        // One commit: a letter is either in the dead-letter log or in a Trigger's progress, never in both.
        let cursor = (self.uid.clone(), Some(progress.encode(&self.broker).into()));
        let changes = vec![cursor, taken.change(&self.broker, offsets())];
        let saved = self.parts.log.save_cursors(changes).await;
        if saved.is_ok() {
            taken.take(&self.broker, offsets());
            self.parts.stats.show_low(progress.low());
            self.parts.progress = progress;
            self.changed();
            let by_key = self.settings.delivery().ordering == Ordering::ByKey;
            self.ready.extend(accepted.iter().map(|letter| Item {
                place: Place::DeadLetter(letter.offset),
                event: None,
                key: letter.key.clone().filter(|_| by_key),
            }));
        }
        if let Err(error @ LogError::Failed(_)) = saved {
            return Err(error);
        }
        // Whoever asked may have gone.
        let _ = answer.send(saved.map(|()| accepted.len()));
        Ok(())
    }

    /// Waits for a save that is under way, if there is one.
    async fn end_save(&mut self) -> Result<(), LogError> {
        match self.saving.take() {
            Some(saving) => {
                let saved = saving.await;
                self.saved(saved)
            }
            None => Ok(()),
        }
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

    /// Takes some events, if there are not enough to send; whether there may be more. It does a little at a time, so
    /// that a Trigger that reads much and wants nothing of it still sees what else goes on.
    async fn fill(&mut self) -> Result<bool, LogError> {
        if !self.wants_more() {
            return Ok(false);
        }
        match self.following {
            Following::Attached => Ok(self.take_from_inbox()),
            Following::Alone | Following::Joining(_) => self.read_log().await,
        }
    }

    /// Whether there may be more.
    fn take_from_inbox(&mut self) -> bool {
        // The position is read first: what was offered below it is in the inbox by now.
        let position = self.parts.reader.position();
        let room = self.room();
        let taken = self.parts.inbox.take(room);
        let more = !taken.events.is_empty();
        for (offset, event) in taken.events {
            if offset < self.parts.progress.next() {
                continue;
            }
            match event {
                Some(event) => self.matched(offset, event),
                None => self.unreadable(offset),
            }
        }
        if let Some(missed) = taken.missed {
            self.parts.progress.advance(missed);
            self.following = Following::Alone;
            return true;
        }
        match (taken.emptied, taken.is_attached) {
            (true, true) => self.parts.progress.advance(position),
            // Detached by a configuration that another has followed since: what it missed meanwhile is in the log.
            (true, false) => {
                self.following = Following::Alone;
                return true;
            }
            (false, _) => {}
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
        let found = records.first().map(|record| record.offset);
        self.skip_removed(found.unwrap_or_else(|| self.parts.log.bounds(&self.broker).first));
        for record in records {
            if matches!(self.following, Following::Joining(until) if record.offset >= until) {
                break;
            }
            match Event::from_record(record.payload) {
                Ok(event) if self.wants(&event) => self.matched(record.offset, event),
                Ok(_) => {}
                Err(error) => {
                    self.lines.unreadable(Place::Log(record.offset), &error);
                    self.unreadable(record.offset);
                }
            }
            self.parts.progress.advance(record.offset.plus(1));
        }
        self.changed();
        self.join(at_end);
        Ok(true)
    }

    fn wants(&self, event: &Event) -> bool {
        match self.settings.route().decide(&Subject::new(event)) {
            Decision::Pass => true,
            Decision::Skip => false,
            Decision::Failed(error) => {
                self.parts.stats.filter_failed(&error);
                false
            }
        }
    }

    /// Goes past what was removed from the log before it was looked at, and tells.
    fn skip_removed(&mut self, found: Offset) {
        let found = match self.following {
            // What comes from there on is in the inbox.
            Following::Joining(until) => found.min(until),
            Following::Alone | Following::Attached => found,
        };
        let missed = found.0.saturating_sub(self.parts.progress.next().0);
        if missed > 0 {
            self.parts.progress.advance(found);
            self.parts.stats.count_missed(missed);
            self.lines.missed(missed);
        }
    }

    /// Goes past a record of which nobody can say whether the Trigger wants it.
    fn unreadable(&mut self, offset: Offset) {
        self.parts.progress.advance(offset.plus(1));
        self.parts.stats.count_missed(1);
        self.changed();
    }

    fn join(&mut self, at_end: bool) {
        let next = self.parts.progress.next();
        match self.following {
            Following::Joining(until) if next >= until || at_end => self.following = Following::Attached,
            Following::Alone if at_end || next.plus(JOIN_WITHIN) >= self.parts.reader.position() => {
                let position = self.parts.reader.attach(&self.parts.inbox);
                if self.parts.settings.has_changed().unwrap_or(false) {
                    // By what they say it may have to stay detached.
                    self.parts.inbox.detach();
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

    fn matched(&mut self, offset: Offset, event: Event) {
        self.parts.progress.matched(offset);
        let by_key = self.settings.delivery().ordering == Ordering::ByKey;
        let key = by_key.then(|| partition_key(&event)).flatten();
        self.ready.push_back(Item {
            place: Place::Log(offset),
            event: Some(event),
            key,
        });
        self.changed();
    }

    /// Starts as many attempts as may be under way; tells when to look again, if time alone will allow more.
    fn launch(&mut self) -> Option<Instant> {
        let target = self.settings.target()?.clone();
        let now = Instant::now();
        while self.in_flight.len() < self.concurrency() {
            let at = self.permits(now)?;
            if at > now {
                return Some(at);
            }
            let Some((place, event)) = self.next_to_send(now) else {
                return self.delayed.first().map(|&(at, _)| at);
            };
            if let Some(limit) = self.settings.delivery().rate_limit {
                self.bucket.take(limit, now);
            }
            self.parts.stats.attempt_began();
            self.in_flight.push(self.attempt(&target, place, event));
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
    fn next_to_send(&mut self, now: Instant) -> Option<(Place, Option<Event>)> {
        if self.delayed.first().is_some_and(|&(at, _)| at <= now) {
            return self.delayed.pop_first().map(|(_, place)| (place, None));
        }
        if let Some(item) = self.released.pop_front() {
            return Some((item.place, item.event));
        }
        while let Some(item) = self.ready.pop_front() {
            if let Some(item) = self.lanes.enter(item) {
                return Some((item.place, item.event));
            }
        }
        None
    }

    fn attempt(&self, target: &Target, place: Place, event: Option<Event>) -> BoxFuture<'static, Attempted> {
        let (log, client) = (self.parts.log.clone(), self.parts.client.clone());
        let (target, broker, trigger) = (target.clone(), self.broker.clone(), self.trigger.clone());
        let number = self.parts.progress.failures(place).saturating_add(1);
        let (mode, timeout) = (self.settings.mode(), self.settings.delivery().timeout);
        let stats = self.parts.stats.clone();
        async move {
            let began = Began {
                time: Timestamp::now(),
                instant: Instant::now(),
            };
            let event = match event {
                Some(event) => Ok(event),
                None => place.fetch(&*log, &broker).await,
            };
            let (about, outcome) = match event {
                Ok(event) if event.expires().is_some_and(|at| at <= began.time) => {
                    (Some(event), Outcome::Expired)
                }
                Ok(event) => {
                    let attempt = Attempt {
                        event: &event,
                        trigger: &trigger,
                        broker: &broker,
                        target: &target.uri,
                        number,
                        is_dead_letter: false,
                    };
                    let traced = Traced::begin(client.tracer(), &attempt);
                    let mut message = event.to_http(mode);
                    message
                        .headers
                        .insert("prefer", HeaderValue::from_static("reply"));
                    traced.set_headers(&mut message.headers);
                    let answer = client.post(&target, message, timeout).await;
                    let context = traced.context().cloned();
                    traced.end(&answer);
                    let is_first = stats.is_first_unsettled(place);
                    let outcome = with_reply(&*log, &broker, &event, context, answer, is_first).await;
                    (Some(event), outcome)
                }
                Err(error) => (None, Outcome::NotFetched(error)),
            };
            let made = Made {
                place,
                target,
                began,
                about,
            };
            Attempted { made, outcome }
        }
        .boxed()
    }

    fn attempted(&mut self, Attempted { made, outcome }: Attempted) -> Result<(), LogError> {
        let delivered =
            matches!(&outcome, Outcome::Answered(answer, _) if answer.verdict == Verdict::Delivered);
        let took = made.began.instant.elapsed();
        self.parts.stats.attempt_ended(delivered, took);
        match outcome {
            Outcome::Answered(answer, reply) => {
                self.replied(made.about.as_ref(), reply);
                if !answer.is_router_busy && self.settings.target() == Some(&made.target) {
                    self.heard(made.began, &answer);
                }
                self.answered(&made, &answer);
            }
            // The Sink answered; that the log has no room is not its failure.
            Outcome::ReplyNotStored(answer) => {
                self.parts.room_wanted.notify_one();
                self.failed(&made, &answer);
            }
            Outcome::Expired => {
                self.lines.expired(made.about.as_ref());
                self.settle(made.place, Settlement::Expired);
            }
            Outcome::NotFetched(error) => return self.not_fetched(made.place, error),
        }
        Ok(())
    }

    fn dead_lettered(&mut self, place: Place, kept: Result<(), FetchError>) -> Result<(), LogError> {
        match kept {
            Ok(()) => {
                self.settle(place, Settlement::DeadLettered);
                Ok(())
            }
            Err(error) => self.not_fetched(place, error),
        }
    }

    /// What cannot be read again cannot be delivered.
    fn not_fetched(&mut self, place: Place, error: FetchError) -> Result<(), LogError> {
        match error {
            FetchError::Log(error) => return Err(error),
            FetchError::Removed => self.lines.removed(place),
            FetchError::Damaged(error) => self.lines.damaged(place, &error),
        }
        self.settle(place, Settlement::Dropped);
        Ok(())
    }

    fn replied(&mut self, delivered: Option<&Event>, reply: Option<Reply>) {
        let Some(reply) = reply else { return };
        self.parts.stats.replied(&reply);
        match reply {
            Reply::Stored(_) => {}
            Reply::BeyondMaxHops => self.lines.reply_beyond_max_hops(delivered),
            Reply::BeyondMaxDescendants => self.lines.reply_beyond_max_descendants(delivered),
            Reply::Invalid(problem) => self.lines.invalid_reply(delivered, &problem),
        }
    }

    /// What an answer, or none, tells of the Sink.
    fn heard(&mut self, began: Began, answer: &Answer) {
        if answer.verdict != Verdict::Retry {
            return self.sink_answered();
        }
        let was_open = self.breaker.is_open();
        let delivery = self.settings.delivery();
        let pause = |failures| backoff::pause(delivery, failures, answer.retry_after, 1.0);
        self.breaker.failed(began.instant, Instant::now(), pause);
        if self.breaker.is_open() {
            self.parts.stats.outage_goes_on(Timestamp::now(), &answer.detail);
        }
        if self.breaker.is_open() && !was_open {
            self.lines.sink_fails(&answer.detail);
        }
    }

    fn sink_answered(&mut self) {
        if self.breaker.is_open() {
            self.parts.stats.outage_ended();
            self.lines.sink_answers();
        }
        self.breaker.answered();
        self.parts.stats.sink_answered();
    }

    fn answered(&mut self, made: &Made, answer: &Answer) {
        match answer.verdict {
            Verdict::Delivered => {
                let status = answer.status.map(|status| status.as_u16());
                self.lines.delivered(made.about.as_ref(), status);
                self.settle(made.place, Settlement::Delivered);
            }
            Verdict::Refused => {
                let attempts = self.parts.progress.failed(made.place, made.began.time);
                self.dead_letter(made, answer, attempts, "refused");
            }
            Verdict::Retry => self.failed(made, answer),
        }
    }

    fn failed(&mut self, made: &Made, answer: &Answer) {
        self.lines.attempt_failed(made.about.as_ref(), &answer.detail);
        let attempts = self.parts.progress.failed(made.place, made.began.time);
        let delivery = self.settings.delivery();
        let exhausted = backoff::exhausted(delivery, attempts, Timestamp::now());
        let pause = backoff::pause(delivery, attempts.failed, answer.retry_after, fastrand::f64());
        self.changed();
        if exhausted {
            self.dead_letter(made, answer, attempts, "retries exhausted");
        } else {
            self.delayed.insert((Instant::now() + pause, made.place));
        }
    }

    fn dead_letter(&mut self, made: &Made, answer: &Answer, attempts: Attempts, reason: &str) {
        let trigger = self.settings.trigger();
        let letter = DeadLetter {
            trigger: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            sink: made.target.uri.to_string(),
            reason: reason.to_owned(),
            status: answer.status.map(|status| status.as_u16()),
            detail: answer.detail.clone(),
            attempts: attempts.failed,
        };
        self.lines.dead_letter(made.about.as_ref(), &letter);
        let place = made.place;
        let settled = self.dead_lettering.clone().settle(letter, place);
        self.dead_letters
            .push(async move { (place, settled.await) }.boxed());
    }

    fn settle(&mut self, place: Place, settlement: Settlement) {
        self.parts.progress.settle(place, settlement);
        self.released.extend(self.lanes.leave(place));
        self.changed();
        self.dead_lettering.settled();
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
                self.lines.unsaved(&detail);
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
            self.take_from_inbox();
        }
        if self.parts.progress.next() != self.parts.stats.next() {
            self.changed();
        }
    }

    fn settings_changed(&mut self) {
        let settings = self.parts.settings.borrow_and_update().clone();
        if settings.target() != self.settings.target() {
            // The pauses, too, were earned by another Sink.
            let now = Instant::now();
            self.breaker = Breaker::default();
            self.delayed = self.delayed.iter().map(|&(_, offset)| (now, offset)).collect();
            self.parts.stats.sink_changed();
        }
        if settings.trigger().filters != self.settings.trigger().filters {
            self.parts.stats.filter_changed();
        }
        self.settings = settings;
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

/// Stores what the Sink replied with. Where that cannot be done, the delivery has failed.
async fn with_reply(
    log: &dyn EventLog,
    broker: &str,
    event: &Event,
    context: Option<TraceContext>,
    mut answer: Answer,
    is_first_unsettled: bool,
) -> Outcome {
    let reply = match answer.reply.take() {
        None => None,
        Some(Err(problem)) => Some(Reply::Invalid(problem)),
        Some(Ok(replies)) => {
            match reply::store(log, broker, event, &replies, context.as_ref(), is_first_unsettled).await {
                Ok(reply) => Some(reply),
                Err(LogError::Full(detail) | LogError::Limit(detail)) => {
                    let detail = format!("the Sink's reply cannot be stored: {detail}");
                    return Outcome::ReplyNotStored(Answer::none(detail));
                }
                Err(error) => return Outcome::NotFetched(FetchError::Log(error)),
            }
        }
    };
    Outcome::Answered(answer, reply)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::Addresses,
        log::embedded::{EmbeddedLog, EmbeddedOptions},
        routing::{Configuration, Delivery, RoutingTable},
    };

    const BROKER: &str = "shop/default";

    fn settings(client: &Client, sink: &str) -> Settings {
        let trigger = json!({
            "uid": "u", "namespace": "shop", "name": "t", "generation": 1, "broker": "default", "filters": [],
            "destination": {"uri": sink, "service": null, "contentMode": "AsReceived"},
            "delivery": Delivery::default(), "start": "Latest", "suspend": false,
        });
        let table = RoutingTable::compile(Configuration {
            triggers: vec![serde_json::from_value(trigger).unwrap()],
            ..Configuration::default()
        });
        Settings::new(client, table.authorities(), table.brokers()[BROKER].clone(), 0)
    }

    /// A dispatcher that does not run, of a Trigger with this Sink; with what changes its settings.
    fn dispatcher(directory: &tempfile::TempDir, sink: &str) -> (Dispatcher, watch::Sender<Settings>) {
        drop(rustls::crypto::ring::default_provider().install_default());
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let log: Arc<dyn EventLog> = Arc::new(log);
        let client = Client::new(1, Addresses::any()).unwrap();
        let (changes, settings) = watch::channel(settings(&client, sink));
        let (_, redrives) = mpsc::channel(1);
        let dispatcher = Dispatcher::new(Parts {
            reader: Arc::new(Reader::new(BROKER.to_owned(), log.clone())),
            log,
            client,
            inbox: Arc::default(),
            settings,
            redrives,
            stats: Arc::default(),
            room_wanted: Arc::default(),
            progress: Progress::starting_at(Offset(0)),
            stop: CancellationToken::new(),
            grace: Duration::ZERO,
        });
        (dispatcher, changes)
    }

    #[tokio::test]
    async fn a_dispatcher_does_not_attach_while_other_settings_wait_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, changes) = dispatcher(&directory, "http://sink/");
        changes.send_replace(dispatcher.settings.clone());
        dispatcher.join(true);
        assert!(!dispatcher.parts.inbox.is_attached());
        assert_eq!(dispatcher.following, Following::Alone);
        dispatcher.settings_changed();
        dispatcher.join(true);
        assert!(dispatcher.parts.inbox.is_attached());
        assert_eq!(dispatcher.following, Following::Attached);
    }

    #[tokio::test]
    async fn what_was_passed_over_since_is_noted_in_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://sink/");
        let stats = dispatcher.parts.stats.clone();
        dispatcher.join(true);
        dispatcher.parts.progress.advance(Offset(1));
        assert_eq!(stats.next(), Offset(0));
        dispatcher.note_position();
        assert_eq!(stats.next(), Offset(1));
        assert!(dispatcher.save_at.is_some());
    }

    #[tokio::test]
    async fn a_dead_letter_names_the_sink_that_did_not_take_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://new/");
        let log = dispatcher.parts.log.clone();
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let payload = event.build().unwrap().to_record();
        log.append(BROKER, vec![payload], Timestamp::now()).await.unwrap();
        dispatcher.parts.progress.matched(Offset(0));
        let before = settings(&dispatcher.parts.client, "http://old/");
        let made = Made {
            place: Place::Log(Offset(0)),
            target: before.target().unwrap().clone(),
            began: Began {
                time: Timestamp::now(),
                instant: Instant::now(),
            },
            about: None,
        };
        let refused = Answer {
            verdict: Verdict::Refused,
            ..Answer::none("no".to_owned())
        };
        dispatcher.parts.stats.attempt_began();
        let outcome = Outcome::Answered(refused, None);
        dispatcher.attempted(Attempted { made, outcome }).unwrap();
        let (_, kept) = dispatcher.dead_letters.next().await.unwrap();
        assert!(kept.is_ok());
        let kept = log
            .read(&DeadLetter::log_of(BROKER), Offset(0), READ)
            .await
            .unwrap();
        let (letter, _) = DeadLetter::decode(kept[0].payload.clone()).unwrap();
        assert_eq!(letter.sink, "http://old/");
    }
}
