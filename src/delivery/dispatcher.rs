//! The delivery loop of one Trigger. The feed supplies events, the scheduler decides the next step, and the loop
//! performs it and saves checkpoints. One task owns all state of a Trigger, so no locks are needed.

mod outcomes;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Hold, SinkHealth, TriggerStats,
    attempt::{AttemptPerformer, CompletedAttempt, SendOutcome, StoreOutcome},
    buffered::{BufferedEvent, MemoryShare},
    ending::Ending,
    feed::{Batch, Feed, FeedItem, Reading},
    inbox::Inbox,
    lines::Lines,
    position::{BrokerLogs, EventPosition},
    progress::Progress,
    reader::Reader,
    redrive::Redrive,
    room::NamespaceRoom,
    saver::{Saver, finished},
    scheduler::{Launch, Policy, Scheduler, SchedulerStep},
    settings::Settings,
};
use crate::{
    destination::Client,
    intake::Intake,
    log::{CheckpointKey, Checkpoints, LogError},
    memory::{Pool, Reservation},
};

/// Interval at which an idle Trigger checkpoints its position.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Backoff after a failed read of the log: initial, then maximum.
const READ_AGAIN: Duration = Duration::from_millis(100);
const MAX_READ_AGAIN: Duration = Duration::from_secs(10);

/// Pause before the save of redriven dead letters is retried.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// Dependencies of a dispatcher.
pub(super) struct DispatcherParts {
    pub(super) logs: BrokerLogs,
    pub(super) checkpoints: Arc<dyn Checkpoints>,
    pub(super) intake: Intake,
    pub(super) client: Client,
    pub(super) reader: Arc<Reader>,
    pub(super) inbox: Arc<Inbox>,
    /// Closed when the Trigger is gone.
    pub(super) settings: watch::Receiver<Settings>,
    /// Dead letters to redrive.
    pub(super) redrives: mpsc::Receiver<Box<Redrive>>,
    pub(super) stats: Arc<TriggerStats>,
    pub(super) hold: Arc<Hold>,
    pub(super) sink: Arc<SinkHealth>,
    /// Asked when settling needs room in the log.
    pub(super) room: Arc<NamespaceRoom>,
    /// Memory shared by attempts.
    pub(super) memory: Pool,
    pub(super) progress: Progress,
    /// Stops delivery: what is in flight may finish within the grace period.
    pub(super) stop: CancellationToken,
    pub(super) grace: Duration,
}

pub(super) struct Dispatcher {
    saver: Saver,
    performer: Arc<AttemptPerformer>,
    feed: Feed,
    scheduler: Scheduler<BufferedEvent>,
    settings: Settings,
    new_settings: watch::Receiver<Settings>,
    redrives: mpsc::Receiver<Box<Redrive>>,
    stats: Arc<TriggerStats>,
    hold: Arc<Hold>,
    sink: Arc<SinkHealth>,
    room: Arc<NamespaceRoom>,
    lines: Lines,
    reading: Option<Reading>,
    read_again: ReadAgain,
    /// The attempt that waits for memory. Those after it stay with the scheduler.
    waiting: Option<WaitingLaunch>,
    attempts: FuturesUnordered<BoxFuture<'static, CompletedAttempt>>,
    sent: FuturesUnordered<BoxFuture<'static, (EventPosition, SendOutcome)>>,
    stored: FuturesUnordered<BoxFuture<'static, (EventPosition, StoreOutcome)>>,
    stop: CancellationToken,
    grace: Duration,
}

/// An attempt that waits for memory.
struct WaitingLaunch {
    launch: Launch<BufferedEvent>,
    memory: BoxFuture<'static, Option<Reservation>>,
}

/// Backoff of reading the log after a failed read.
struct ReadAgain {
    at: Option<Instant>,
    pause: Duration,
}

impl Dispatcher {
    pub(super) fn new(parts: DispatcherParts) -> Self {
        let DispatcherParts {
            logs,
            checkpoints,
            intake,
            client,
            reader,
            inbox,
            settings: new_settings,
            redrives,
            stats,
            hold,
            sink,
            room,
            memory,
            progress,
            stop,
            grace,
        } = parts;
        let settings = new_settings.borrow().clone();
        let trigger = settings.trigger();
        let key = CheckpointKey::Trigger(trigger.uid.clone());
        let memory = MemoryShare::new(&memory, &trigger.namespace, &trigger.uid);
        let name: Arc<str> = format!("{}/{}", trigger.namespace, trigger.name).into();
        let low = progress.low();
        stats.filter_changed(trigger.generation);
        stats.show(&progress);
        hold.saved(low);
        hold.set_first_unsettled(low);
        let scheduler = Scheduler::new(progress, policy(&settings), Instant::now(), fastrand::f64);
        let feed = Feed::new(
            logs.clone(),
            reader,
            inbox,
            stats.clone(),
            memory.clone(),
            scheduler.to_recover(),
        );
        let lines = Lines::new(name.clone(), logs.broker().to_string());
        let saver = Saver::new(checkpoints, key, logs.broker().clone(), hold.clone(), low);
        let performer = AttemptPerformer {
            logs,
            intake,
            client,
            stats: stats.clone(),
            hold: hold.clone(),
            memory,
            trigger: name,
        };
        Self {
            saver,
            performer: Arc::new(performer),
            feed,
            scheduler,
            settings,
            new_settings,
            redrives,
            stats,
            hold,
            sink,
            room,
            lines,
            reading: None,
            read_again: ReadAgain {
                at: None,
                pause: READ_AGAIN,
            },
            waiting: None,
            attempts: FuturesUnordered::new(),
            sent: FuturesUnordered::new(),
            stored: FuturesUnordered::new(),
            stop,
            grace,
        }
    }

    /// Delivers until it is stopped or the Trigger is deleted.
    ///
    /// # Errors
    /// Fails when the log failed; the process has to exit.
    pub(super) async fn run(mut self: Box<Self>) -> Result<(), LogError> {
        let stop = self.stop.clone();
        let mut checkpoint = tokio::time::interval(CHECKPOINT_EVERY);
        checkpoint.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let more = self.fill();
            let wake = self.perform();
            let save = self.saver.due();
            tokio::select! {
                Some(attempted) = self.attempts.next() => self.attempted(attempted)?,
                Some((launch, memory)) = reserved(&mut self.waiting) => self.launch(launch, memory),
                Some((position, sent)) = self.sent.next() => self.letter_sent(position, sent)?,
                Some((position, stored)) = self.stored.next() => self.letter_stored(position, stored)?,
                Some(redrive) = self.redrives.recv() => Box::pin(self.redrive(*redrive)).await?,
                () = self.feed.changed(), if self.feed.is_attached() && self.scheduler.wants_more() => {}
                read = finished(&mut self.reading) => self.read(read)?,
                () = at(self.read_again.at) => self.read_again.at = None,
                () = at(wake) => {}
                () = at(save) => self.saver.begin(self.scheduler.progress()),
                saved = self.saver.finished() => {
                    let ended = self.saver.ended(saved)?;
                    self.log_unsaved(ended);
                }
                changed = self.new_settings.changed() => match changed {
                    Ok(()) => self.settings_changed(),
                    Err(_) => {
                        self.checkpoint_position();
                        return Box::pin(self.save()).await;
                    }
                },
                _ = checkpoint.tick() => {
                    self.checkpoint_position();
                    self.lines.log_suppressed(Instant::now());
                }
                () = std::future::ready(()), if more => {}
                () = stop.cancelled() => return Box::pin(self.finish()).await,
            }
        }
    }

    /// Drains what is in flight, then saves the checkpoint. A dead letter that its Sink does not accept in time stays
    /// unsettled.
    async fn finish(mut self: Box<Self>) -> Result<(), LogError> {
        // What waits for memory does not begin any more, and leaves the queue to others.
        self.waiting = None;
        let deadline = tokio::time::Instant::now() + self.grace;
        while let Ok(Some(attempted)) = tokio::time::timeout_at(deadline, self.attempts.next()).await {
            self.attempted(attempted)?;
        }
        loop {
            loop {
                let step = self.scheduler.next_letter(Instant::now());
                if self.perform_step(step).is_err() {
                    break;
                }
            }
            let ended = async {
                tokio::select! {
                    Some((position, sent)) = self.sent.next() => Some((position, Ok(sent))),
                    Some((position, stored)) = self.stored.next() => Some((position, Err(stored))),
                    else => None,
                }
            };
            match tokio::time::timeout_at(deadline, ended).await {
                Ok(Some((position, Ok(sent)))) => self.letter_sent(position, sent)?,
                Ok(Some((position, Err(stored)))) => self.letter_stored(position, stored)?,
                Ok(None) | Err(_) => break,
            }
        }
        self.save().await
    }

    /// Saves the last checkpoint.
    async fn save(&mut self) -> Result<(), LogError> {
        let ended = self.saver.save(self.scheduler.progress()).await?;
        self.log_unsaved(ended);
        Ok(())
    }

    /// Takes as many events as there is room for, from the inbox or by starting a read of the log. Returns whether
    /// more may be available at once.
    fn fill(&mut self) -> bool {
        self.stats.show_full(self.scheduler.is_full());
        if !self.scheduler.wants_more() {
            return false;
        }
        if self.feed.is_attached() {
            return self.take_from_inbox();
        }
        // While its filters are set aside, a Trigger evaluates no further events.
        if self.reading.is_none() && self.read_again.at.is_none() && !self.stats.is_set_aside() {
            let next = self.scheduler.progress().next();
            self.reading = Some(self.feed.read(next, self.scheduler.room(), &self.settings));
        }
        false
    }

    fn take_from_inbox(&mut self) -> bool {
        let next = self.scheduler.progress().next();
        let (batch, more) = self.feed.take(next, self.scheduler.room());
        self.fed(batch);
        more
    }

    /// Handles the result of a read of the log.
    fn read(&mut self, read: Result<Batch, LogError>) -> Result<(), LogError> {
        match read {
            Ok(mut batch) => {
                self.read_again.pause = READ_AGAIN;
                self.stats.read();
                self.feed.absorb(&mut batch);
                self.fed(batch);
                Ok(())
            }
            Err(error @ LogError::Failed(_)) => Err(error),
            Err(error) => {
                self.lines.unread(&error);
                self.stats.stop();
                self.read_again.at = Some(Instant::now() + self.read_again.pause);
                self.read_again.pause = (self.read_again.pause * 2).min(MAX_READ_AGAIN);
                Ok(())
            }
        }
    }

    fn fed(&mut self, batch: Batch) {
        let Batch {
            fed, next, problems, ..
        } = batch;
        for (position, problem) in problems {
            self.lines.unreadable(position, &problem);
        }
        let now = Instant::now();
        let before = self.scheduler.progress().next();
        let has_news = !fed.is_empty();
        for one in fed {
            match one {
                FeedItem::Event {
                    position,
                    key,
                    buffered,
                } => {
                    let event = buffered.map(|buffered| {
                        let size = buffered.size();
                        (buffered, size)
                    });
                    self.scheduler.offer(position, key, event, now, fastrand::f64());
                }
                FeedItem::Unreadable => self.stats.count_missed(1),
                FeedItem::Removed(position) => {
                    self.lines.removed(position);
                    self.scheduler.removed(position, now);
                }
                FeedItem::Missed(missed) => {
                    self.stats.count_missed(missed);
                    self.lines.missed(missed);
                }
            }
        }
        self.scheduler.advance(next);
        // If only the position has moved, it is saved at the next periodic checkpoint.
        if has_news || (next > before && !self.feed.is_attached()) {
            self.changed();
        }
    }

    /// Performs all due steps; returns the time of the next one, if known.
    fn perform(&mut self) -> Option<Instant> {
        loop {
            let now = Instant::now();
            let step = match self.waiting {
                Some(_) => self.scheduler.next_letter(now),
                None => self.scheduler.next(now),
            };
            if let Err(at) = self.perform_step(step) {
                return at;
            }
        }
    }

    /// Begins one step, or returns the time of the next one, if known.
    fn perform_step(&mut self, step: SchedulerStep<BufferedEvent>) -> Result<(), Option<Instant>> {
        let performer = self.performer.clone();
        match step {
            SchedulerStep::Attempt(launch) => match performer.try_reserve(launch.event.as_ref()) {
                Some(memory) => self.launch(launch, Some(memory)),
                None => {
                    let memory = performer.reserve(launch.event.as_ref()).boxed();
                    self.waiting = Some(WaitingLaunch { launch, memory });
                }
            },
            SchedulerStep::SendLetter {
                position,
                letter,
                number,
            } => {
                let sent = performer.send_letter(&self.settings, position, letter, number);
                self.sent.push(sent);
            }
            SchedulerStep::StoreLetter { position, letter } => {
                self.stored.push(performer.store_letter(position, letter))
            }
            SchedulerStep::Wait(at) => return Err(at),
        }
        Ok(())
    }

    /// Begins an attempt with its memory. Without memory, or a target that may have gone since, it is postponed.
    fn launch(&mut self, launch: Launch<BufferedEvent>, memory: Option<Reservation>) {
        match (memory, self.settings.target().cloned()) {
            (Some(memory), Some(target)) => {
                let performer = self.performer.clone();
                let attempt = performer.attempt(&self.settings, target, launch, memory);
                self.attempts.push(attempt);
            }
            _ => {
                self.stats.attempt_postponed();
                let now = Instant::now();
                self.scheduler
                    .ended(launch.position, Ending::Busy, now, fastrand::f64());
            }
        }
    }

    /// Takes over as many dead letters as there is room for, as if they had just matched.
    async fn redrive(&mut self, redrive: Redrive) -> Result<(), LogError> {
        let Redrive {
            letters,
            taken,
            taking: _taking,
            answer,
        } = redrive;
        if answer.is_closed() {
            // The requester has given up, and may have asked again.
            return Ok(());
        }
        // A save in flight could overwrite the checkpoint that includes the letters with an older one.
        let ended = self.saver.end().await?;
        self.log_unsaved(ended);
        let room = self.scheduler.redrive_room();
        let accepted: Vec<_> = letters.into_iter().take(room).collect();
        let offsets = || accepted.iter().map(|letter| letter.offset);
        let progress = self.scheduler.with_redriven(offsets());
        // Hold them before they leave the dead-letter log: from then on only this hold stops trimming.
        self.hold.hold_dead_letters(progress.low());
        // One commit: a letter is either in the dead-letter log or in a Trigger's progress, never in both.
        let broker = self.performer.logs.broker();
        let change = taken.change(broker, offsets());
        let mut saved = self.saver.save_with(&progress, change.clone()).await;
        // It may have been stored: a save of other progress would then lose the letters.
        while matches!(saved, Err(LogError::Unavailable(_))) && !self.stop.is_cancelled() {
            tokio::time::sleep(SAVE_AGAIN).await;
            saved = self.saver.save_with(&progress, change.clone()).await;
        }
        if saved.is_ok() {
            taken.take(broker, offsets());
            for letter in &accepted {
                self.scheduler
                    .redriven(letter.offset, letter.key.clone(), Instant::now());
            }
            self.changed();
        }
        if let Err(error @ (LogError::Failed(_) | LogError::Unavailable(_) | LogError::Fenced(_))) = saved {
            return Err(error);
        }
        // The requester may be gone.
        let _ = answer.send(saved.map(|()| accepted.len()));
        Ok(())
    }

    /// Marks the progress as unsaved.
    fn changed(&mut self) {
        self.stats.show(self.scheduler.progress());
        self.hold.set_first_unsettled(self.scheduler.progress().low());
        self.saver.changed();
    }

    fn log_unsaved(&mut self, no_room: Option<String>) {
        if let Some(detail) = no_room {
            self.lines.unsaved(&detail);
        }
    }

    fn checkpoint_position(&mut self) {
        if self.feed.is_attached() {
            self.take_from_inbox();
        }
        if self.scheduler.progress().next() != self.stats.next() {
            self.changed();
        }
    }

    fn settings_changed(&mut self) {
        let settings = self.new_settings.borrow_and_update().clone();
        // The read in progress matches by the old settings.
        self.reading = None;
        if settings.target() != self.settings.target() {
            self.scheduler.sink_changed(Instant::now());
            self.sink.changed();
        }
        let (new, old) = (settings.trigger(), self.settings.trigger());
        if (new.generation, &new.filters) != (old.generation, &old.filters) {
            self.stats.filter_changed(new.generation);
        }
        self.settings = settings;
        self.scheduler.set_policy(policy(&self.settings));
        if !self.settings.is_deliverable() {
            // The events in the inbox are not counted yet: the Trigger reads them from the log when it resumes.
            self.feed.pause();
        }
    }
}

fn policy(settings: &Settings) -> Policy {
    Policy {
        delivery: settings.delivery().clone(),
        partition: settings.partition(),
        is_deliverable: settings.is_deliverable(),
    }
}

/// Waits until the attempt that waits for memory has it, or has waited for too long.
async fn reserved(
    waiting: &mut Option<WaitingLaunch>,
) -> Option<(Launch<BufferedEvent>, Option<Reservation>)> {
    let Some(WaitingLaunch { memory, .. }) = waiting else {
        return std::future::pending().await;
    };
    let memory = memory.await;
    let WaitingLaunch { launch, .. } = waiting.take()?;
    Some((launch, memory))
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::{
            DeadLetter,
            attempt::{AttemptDetails, AttemptOutcome},
            position::READ,
        },
        destination::{Answer, Verdict},
        log::{
            Append, LogProvider, Offset, Ownership, Partition,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
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
        let broker = table.brokers()[BROKER].clone();
        Settings::new(client, table.authorities(), broker, 0, Partition::WHOLE)
    }

    /// An idle dispatcher of a Trigger with this Sink, and the sender of its settings.
    fn dispatcher(directory: &tempfile::TempDir, sink: &str) -> (Dispatcher, watch::Sender<Settings>) {
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let logs: Arc<dyn LogProvider> = Arc::new(log);
        let of_broker = BrokerLogs::open(&*logs, &BROKER.into());
        let client = Client::for_test();
        let (changes, settings) = watch::channel(settings(&client, sink));
        let (_, redrives) = mpsc::channel(1);
        let pool = Pool::new(1 << 20);
        let dispatcher = Dispatcher::new(DispatcherParts {
            reader: Arc::new(Reader::new(of_broker.events.clone(), Offset(0), &pool)),
            memory: pool,
            logs: of_broker,
            checkpoints: logs.checkpoints(Ownership::default()),
            intake: Intake::without_room(logs),
            client,
            inbox: Arc::default(),
            settings,
            redrives,
            stats: Arc::default(),
            hold: Arc::new(Hold::new(Progress::starting_at(Offset(0)).low(), Arc::default())),
            sink: Arc::default(),
            room: Arc::default(),
            progress: Progress::starting_at(Offset(0)),
            stop: CancellationToken::new(),
            grace: Duration::ZERO,
        });
        (dispatcher, changes)
    }

    #[tokio::test]
    async fn attempts_that_find_no_memory_stay_with_the_scheduler() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://sink/");
        let now = Instant::now();
        for offset in 0..32 {
            let position = EventPosition::Log(Offset(offset));
            dispatcher.scheduler.offer(position, None, None, now, 0.0);
        }
        dispatcher.perform();
        let begun = dispatcher.attempts.len();
        assert!((1..16).contains(&begun), "{begun}");
        assert!(dispatcher.waiting.is_some());
        assert_eq!(dispatcher.scheduler.in_flight(), begun + 1);
        // What ends leaves memory for the one that waits, and then for others.
        dispatcher.attempts.clear();
        let (launch, memory) = reserved(&mut dispatcher.waiting).await.unwrap();
        assert!(memory.is_some());
        dispatcher.launch(launch, memory);
        dispatcher.perform();
        assert!(dispatcher.attempts.len() > 1 && dispatcher.waiting.is_some());
    }

    /// Reads the log once.
    async fn read(dispatcher: &mut Dispatcher) {
        assert!(!dispatcher.fill());
        let read = finished(&mut dispatcher.reading).await;
        dispatcher.read(read).unwrap();
    }

    #[tokio::test]
    async fn does_not_attach_while_the_inbox_is_shut() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://sink/");
        dispatcher.feed.inbox().set_shut(true);
        read(&mut dispatcher).await;
        assert!(!dispatcher.feed.is_attached());
        dispatcher.feed.inbox().set_shut(false);
        read(&mut dispatcher).await;
        assert!(dispatcher.feed.is_attached());
    }

    #[tokio::test]
    async fn the_final_position_is_checkpointed() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://sink/");
        let stats = dispatcher.stats.clone();
        read(&mut dispatcher).await;
        dispatcher.scheduler.advance(Offset(1));
        assert_eq!(stats.next(), Offset(0));
        dispatcher.checkpoint_position();
        assert_eq!(stats.next(), Offset(1));
        assert!(dispatcher.saver.is_due());
    }

    #[tokio::test]
    async fn a_dead_letter_names_the_sink_that_rejected_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut dispatcher, _changes) = dispatcher(&directory, "http://new/");
        let logs = dispatcher.performer.logs.clone();
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let append = Append {
            payloads: vec![event.build().unwrap().to_record()],
            accepted: Timestamp::now(),
            unique: None,
        };
        logs.events.append(append).await.unwrap();
        let (position, now) = (EventPosition::Log(Offset(0)), Instant::now());
        dispatcher.scheduler.offer(position, None, None, now, 0.0);
        assert!(matches!(
            dispatcher.scheduler.next(now),
            SchedulerStep::Attempt(_)
        ));
        let before = settings(&dispatcher.performer.client, "http://old/");
        let details = AttemptDetails {
            position,
            target: before.target().unwrap().clone(),
            took: Duration::ZERO,
            event: None,
        };
        let rejected = Answer {
            verdict: Verdict::Rejected,
            ..Answer::none("no".to_owned())
        };
        dispatcher.stats.attempt_began();
        let outcome = AttemptOutcome::Answered(rejected, None);
        dispatcher
            .attempted(CompletedAttempt { details, outcome })
            .unwrap();
        dispatcher.perform();
        let (position, stored) = dispatcher.stored.next().await.unwrap();
        dispatcher.letter_stored(position, stored).unwrap();
        assert_eq!(dispatcher.stats.dead_lettered(), 1);
        let stored = logs.letters.read(Offset(0), READ).await.unwrap();
        let (letter, _) = DeadLetter::decode(stored[0].payload.clone()).unwrap();
        assert_eq!(letter.sink, "http://old/");
    }
}
