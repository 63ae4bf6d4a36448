//! Starts, changes and ends the readers and dispatchers as the routing table changes, and trims the logs.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex as StdMutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    runtime,
    sync::{Mutex, Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{
    Client, DeadLetter, Dropped, KeptLetter, Page, Redriven, Retention, Selection, TriggerStats, WhenFull,
    dead_letters::{DeadLetters, Recipient},
    dispatcher::{Dispatcher, Parts},
    holding::Holding,
    inbox::Inbox,
    keeper::{self, Gone, Keeper, KeptTrigger, StoredPlace},
    kept::{self, Identity, Record, Stored, removal},
    progress::Progress,
    reader::Reader,
    redrive::{Redrive, Taken},
    settings::Settings,
    trimmer::{Figures, Room, Trimmer},
};
use crate::{
    log::{CursorChange, EventLog, LogError, MakeRoom, Offset},
    memory::Pool,
    routing::{RoutingTable, Start, Trigger},
    supervision::{self, Supervisor},
};

/// How often the logs are trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// How soon they are trimmed when settling needs room; what is settled meanwhile is trimmed with it.
const TRIM_AT_ONCE: Duration = Duration::from_millis(100);

/// How long a Trigger waits before it is looked again where it begins, if the log could not be read.
const FIND_AGAIN: Duration = Duration::from_secs(1);

/// How delivery behaves as a whole.
#[derive(Clone, Debug)]
pub struct DeliveryOptions {
    /// What is retained of settled events.
    pub retention: Retention,
    /// What is retained of dead letters.
    pub dead_letters: Retention,
    /// What happens when the log is full of events that are not settled.
    pub when_full: WhenFull,
    /// How long the place of a Trigger that is gone is kept for one that takes it up.
    pub keep_deleted: Duration,
    /// How long attempts under way may take to finish when the engine is shut down.
    pub grace: Duration,
    /// The memory that events and attempts share.
    pub memory: Pool,
}

impl Default for DeliveryOptions {
    /// Settled events for a day, dead letters for a week, a GiB of each; an hour for the places of deleted Triggers; ten
    /// seconds to finish; 64 MiB of memory.
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            dead_letters: Retention {
                age: Duration::from_secs(7 * 24 * 60 * 60),
                ..Retention::default()
            },
            when_full: WhenFull::default(),
            keep_deleted: Duration::from_secs(60 * 60),
            grace: Duration::from_secs(10),
            memory: Pool::new(64 * 1024 * 1024),
        }
    }
}

/// Why the engine cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What was redriven and dropped cannot be read; guessing would redrive it again.
    #[error(
        "the stored list {key} of the dead letters that were redriven or dropped cannot be used: {detail}"
    )]
    DeadLetters {
        /// The list's key.
        key: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A cursor is there and cannot be read; guessing would lose or repeat events.
    #[error("the stored cursor of Trigger {uid} cannot be used: {detail}")]
    Cursor {
        /// The Trigger's UID.
        uid: String,
        /// What is wrong with it.
        detail: String,
    },
}

/// A Trigger's delivery as seen from outside.
#[derive(Clone, Debug)]
pub struct TriggerView {
    /// The Trigger's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its broker as `namespace/name`.
    pub broker: String,
    /// Its figures.
    pub stats: Arc<TriggerStats>,
}

impl TriggerView {
    /// How many events of its broker the Trigger has not looked at yet.
    pub fn backlog(&self, log: &dyn EventLog) -> u64 {
        log.bounds(&self.broker)
            .next
            .0
            .saturating_sub(self.stats.next().0)
    }
}

/// All delivery of a router.
pub struct Engine {
    log: Arc<dyn EventLog>,
    client: Client,
    options: DeliveryOptions,
    running: Mutex<Running>,
    views: ArcSwap<Vec<TriggerView>>,
    keeper: Arc<Keeper>,
    /// Asked for by what cannot be settled for want of room.
    room_wanted: Arc<Notify>,
    /// Whether there was a table.
    applied: AtomicBool,
    dead_letters: Arc<DeadLetters>,
    trimmer: Trimmer,
    tasks: TaskTracker,
    supervisor: Supervisor,
    /// Where readers and dispatchers run.
    runtime: runtime::Handle,
    stop: CancellationToken,
}

impl MakeRoom for Engine {
    fn make_room(&self) -> BoxFuture<'_, Result<bool, LogError>> {
        self.trimmer.make_room().boxed()
    }
}

#[derive(Default)]
struct Running {
    /// Cursors found at the start, until their Triggers appear.
    stored: HashMap<String, StoredPlace>,
    readers: BTreeMap<String, RunningReader>,
    dispatchers: HashMap<String, Handle>,
}

/// The reader of a broker that has Triggers.
struct RunningReader {
    reader: Arc<Reader>,
    /// Ends it when it is dropped.
    _stop: DropGuard,
}

struct Handle {
    settings: watch::Sender<Settings>,
    inbox: Arc<Inbox>,
    view: TriggerView,
    redrives: mpsc::Sender<Redrive>,
    task: JoinHandle<()>,
}

/// Where a Trigger goes on, or begins.
struct TriggerPlace {
    progress: Progress,
    /// Why the log cannot tell where it begins. Nothing is delivered then, and all that is retained is held for it:
    /// until the log can be read, or for damage until the router is started again.
    unknown: Option<LogError>,
    /// Whether the Trigger was gone, or another was that had its name, and it goes on from there.
    resumed: bool,
}

impl TriggerPlace {
    fn known(progress: Progress) -> Self {
        Self {
            progress,
            unknown: None,
            resumed: false,
        }
    }
}

impl Engine {
    /// Reads the stored cursors; nothing is delivered before the first [`Engine::apply`]. The supervisor is told when
    /// a task panicked that all delivery depends on. `runtime` is where readers and dispatchers run.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn start(
        log: Arc<dyn EventLog>,
        client: Client,
        options: DeliveryOptions,
        supervisor: Supervisor,
        runtime: &runtime::Handle,
    ) -> Result<Arc<Self>, EngineError> {
        let (mut cursors, mut records) = (HashMap::new(), HashMap::new());
        let (mut ran_before, taken) = (Duration::ZERO, Arc::<Taken>::default());
        for (key, cursor) in log.cursors().await? {
            match kept::stored(&key, &cursor) {
                Stored::Record(uid, record) => {
                    records.insert(uid.to_owned(), record);
                    continue;
                }
                Stored::RunningTime(time) => {
                    ran_before = time;
                    continue;
                }
                Stored::Other => {}
            }
            match taken.restore(&key, &cursor) {
                None => drop(cursors.insert(key, cursor)),
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    return Err(EngineError::DeadLetters {
                        key,
                        detail: error.to_string(),
                    });
                }
            }
        }
        let lost = taken.keep_within(|broker| log.bounds(&DeadLetter::log_of(broker)));
        let dead_letters = Arc::new(DeadLetters::new(log.clone(), taken.clone()));
        let keeper = Arc::new(Keeper::new(log.clone(), options.keep_deleted, ran_before));
        let (stored, without_cursor) = keeper::sort_out(cursors, records);
        let engine = Arc::new(Self {
            dead_letters: dead_letters.clone(),
            trimmer: Trimmer {
                log: log.clone(),
                events: options.retention,
                letters: options.dead_letters,
                when_full: options.when_full,
                dead_letters,
                taken,
                present: ArcSwap::default(),
                keeper: keeper.clone(),
                figures: Figures::default(),
                room: Room::default(),
                clock: StdMutex::default(),
            },
            log,
            client,
            options,
            running: Mutex::new(Running {
                stored,
                ..Running::default()
            }),
            views: ArcSwap::default(),
            keeper,
            room_wanted: Arc::default(),
            applied: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            supervisor: supervisor.clone(),
            runtime: runtime.clone(),
            stop: CancellationToken::new(),
        });
        let needless = without_cursor.iter().flat_map(|uid| removal(uid));
        let changes: Vec<_> = lost.into_iter().chain(needless).collect();
        if !changes.is_empty() {
            engine.save_places(changes).await?;
        }
        engine
            .tasks
            .spawn(supervisor.watch("the trimmer of the event log", engine.clone().trim_regularly()));
        Ok(engine)
    }

    /// Delivers by this table from now on. When it returns, the place of every Trigger that is new is durable, so
    /// that an event accepted afterwards reaches it.
    ///
    /// # Errors
    /// When the log fails, or a Trigger's stored cursor cannot be read. Where the log is damaged, only the Triggers that
    /// need what cannot be read are stopped.
    pub async fn apply(&self, table: &RoutingTable) -> Result<(), EngineError> {
        let mut running = self.running.lock().await;
        let turn = self.keeper.turn().await;
        self.retire_absent(&mut running, table).await?;
        let mut new = self.places(&mut running, table).await?;
        drop(turn);
        for (broker, routes) in table.brokers() {
            let reader = self.reader(&mut running, broker);
            let mut inboxes = Vec::with_capacity(routes.routes().len());
            for (index, route) in routes.routes().iter().enumerate() {
                let settings = Settings::new(&self.client, table.authorities(), routes.clone(), index);
                let inbox = match running.dispatchers.get(&route.trigger.uid) {
                    Some(handle) => {
                        let is_deliverable = settings.is_deliverable();
                        // Nobody listens only if the dispatcher has ended, which is told where it does.
                        let _ = handle.settings.send(settings);
                        if !is_deliverable {
                            // Before the reader follows the new table: nothing may pass a Trigger by that has to wait.
                            // After the settings are sent: a dispatcher that attaches just now looks for those.
                            handle.inbox.detach();
                        }
                        handle.inbox.clone()
                    }
                    None => {
                        // Every Trigger that does not run has a place by now.
                        let Some(place) = new.remove(&route.trigger.uid) else {
                            continue;
                        };
                        let handle = self.spawn(&reader, settings, place, broker, &route.trigger);
                        let inbox = handle.inbox.clone();
                        running.dispatchers.insert(route.trigger.uid.clone(), handle);
                        inbox
                    }
                };
                inboxes.push(inbox);
            }
            reader.follow(routes.clone(), inboxes);
        }
        running
            .readers
            .retain(|broker, _| table.brokers().contains_key(broker));
        let mut views: Vec<_> = running
            .dispatchers
            .values()
            .map(|handle| handle.view.clone())
            .collect();
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let held = held(&running.stored);
        let holding = Holding::new(views.iter().chain(held.iter()));
        self.keeper.hand_over(|| {
            self.trimmer.present.store(Arc::new(holding));
            self.views.store(Arc::new(views));
        });
        self.applied.store(true, Relaxed);
        Ok(())
    }

    /// Where each Trigger that does not run yet goes on, or begins. Where it begins, or has to go back to, is durable
    /// before it does.
    async fn places(
        &self,
        running: &mut Running,
        table: &RoutingTable,
    ) -> Result<HashMap<String, TriggerPlace>, EngineError> {
        let (mut places, mut changed) = (HashMap::new(), Vec::new());
        for (broker, routes) in table.brokers() {
            for trigger in routes.routes().iter().map(|route| &route.trigger) {
                let uid = &trigger.uid;
                if running.dispatchers.contains_key(uid) || places.contains_key(uid) {
                    continue;
                }
                let found = self.found(running, trigger, broker).await?;
                let (mut place, is_new) = match &found {
                    Some(found) => self.restored(&found.stored.cursor, broker, trigger)?,
                    None => (self.beginning(broker, trigger.start).await?, true),
                };
                place.resumed = found.as_ref().is_some_and(|found| found.was_gone);
                if place.unknown.is_none() {
                    let found = found.as_ref();
                    changed.extend(changes(trigger, broker, &place.progress, is_new, found));
                }
                places.insert(uid.clone(), place);
            }
        }
        if !changed.is_empty() {
            self.save_places(changed).await?;
        }
        Ok(places)
    }

    /// What is stored of a Trigger that does not run yet, or of one whose place it takes.
    async fn found(
        &self,
        running: &mut Running,
        trigger: &Trigger,
        broker: &str,
    ) -> Result<Option<Found>, LogError> {
        if let Some(stored) = running.stored.remove(&trigger.uid) {
            let was_gone = stored
                .record
                .as_ref()
                .is_some_and(|record| record.gone_at().is_some());
            return Ok(Some(Found {
                uid: trigger.uid.clone(),
                stored,
                was_gone,
            }));
        }
        let taken_up = self.keeper.take_up(trigger, broker).await?;
        Ok(taken_up.map(|(uid, cursor)| Found {
            uid,
            stored: StoredPlace { cursor, record: None },
            was_gone: true,
        }))
    }

    /// Where the Trigger was, and whether that is another place than what is stored: it goes back to the ends of the
    /// logs if it was beyond them, as it can be once a damaged log was opened without its end.
    fn restored(
        &self,
        stored: &Bytes,
        broker: &str,
        trigger: &Trigger,
    ) -> Result<(TriggerPlace, bool), EngineError> {
        let mut progress = Progress::decode(stored, Instant::now()).map_err(|error| EngineError::Cursor {
            uid: trigger.uid.clone(),
            detail: error.to_string(),
        })?;
        let end = self.log.bounds(broker).next;
        let dead_letters = self.log.bounds(&DeadLetter::log_of(broker)).next;
        let (place, dropped) = (progress.next(), progress.counts().dropped);
        let is_beyond = progress.keep_within(end, dead_letters);
        if is_beyond {
            tracing::warn!(
                trigger = format!("{}/{}", trigger.namespace, trigger.name),
                broker,
                %place,
                %end,
                dropped = progress.counts().dropped - dropped,
                "the Trigger's place is beyond the end of the log, which has lost its end: it goes on at the end, and \
                 what it had not settled beyond is dropped"
            );
        }
        Ok((TriggerPlace::known(progress), is_beyond))
    }

    async fn beginning(&self, broker: &str, start: Start) -> Result<TriggerPlace, LogError> {
        match find_start(&*self.log, broker, start).await {
            Ok(offset) => Ok(TriggerPlace::known(Progress::starting_at(offset))),
            Err(error @ (LogError::Damaged { .. } | LogError::Unavailable(_))) => Ok(TriggerPlace {
                unknown: Some(error),
                ..TriggerPlace::known(Progress::starting_at(self.log.bounds(broker).first))
            }),
            Err(error) => Err(error),
        }
    }

    async fn save_places(&self, changes: Vec<CursorChange>) -> Result<(), LogError> {
        match self.log.save_cursors(changes).await {
            // Then there is no room for events either: none is accepted that a new Trigger could miss.
            Err(LogError::Full(error)) => {
                tracing::warn!(
                    error,
                    "no room to keep where Triggers begin; they keep it with their progress"
                );
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => self.log.sync().await,
        }
    }

    /// Every Trigger's figures, by namespace and name.
    pub fn triggers(&self) -> Arc<Vec<TriggerView>> {
        self.views.load_full()
    }

    /// The Trigger that holds most of the log: of the broker with the most bytes, the one that has settled least.
    pub fn holds_most(&self) -> Option<TriggerView> {
        let usage = self.log.usage().into_iter().collect::<BTreeMap<_, _>>();
        let triggers = self.triggers();
        let bytes = |view: &TriggerView| usage.get(&view.broker).copied().unwrap_or_default();
        let most = triggers
            .iter()
            .max_by_key(|view| (bytes(view), Reverse(view.stats.low())))?;
        Some(most.clone())
    }

    /// The Triggers that are gone and whose places are kept, those that have been gone for longest first.
    pub fn kept_triggers(&self) -> Vec<KeptTrigger> {
        self.keeper.triggers()
    }

    /// How many those are.
    pub fn kept_count(&self) -> usize {
        self.keeper.count()
    }

    /// How many events had matched and were not settled when the place of their Trigger, which was gone, was given up,
    /// since the start. Of what it had not looked at yet nobody knows what it would have wanted.
    pub fn dropped_with_trigger(&self) -> u64 {
        self.keeper.dropped()
    }

    /// How many dead letters were removed because of their age, or because there were too many, since the start.
    pub fn dead_letters_expired(&self) -> u64 {
        self.trimmer.figures.letters_expired()
    }

    /// How many events of each broker were dropped because the log was full, since the start: removed before every
    /// Trigger had settled them.
    pub fn dropped_when_full(&self) -> BTreeMap<String, u64> {
        self.trimmer.figures.dropped()
    }

    /// The brokers that have dead letters, and how many.
    pub fn dead_letter_brokers(&self) -> Vec<(String, u64)> {
        let logs = self.log.usage();
        let brokers = logs.iter().filter_map(|(key, _)| DeadLetter::broker_of(key));
        brokers
            .map(|broker| (broker.to_owned(), self.dead_letters.count(broker)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// At most `limit` of a broker's dead letters, from `from` on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn dead_letters(
        &self,
        broker: &str,
        selection: &Selection,
        from: Offset,
        limit: usize,
    ) -> Result<Page, LogError> {
        self.dead_letters.page(broker, selection, from, limit).await
    }

    /// One dead letter.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn dead_letter(&self, broker: &str, id: Offset) -> Result<Option<KeptLetter>, LogError> {
        let page = self
            .dead_letters
            .page(broker, &Selection::default(), id, 1)
            .await?;
        Ok(page.letters.into_iter().find(|kept| kept.id == id))
    }

    /// Has some of the selected dead letters delivered again, from `from` on; whoever calls goes on at
    /// [`Redriven::next`]. Each goes to the Trigger that it is from, or that has its name now, and is settled like
    /// any other event.
    ///
    /// # Errors
    /// When the log has no room to note it, or failed.
    pub async fn redrive(
        &self,
        broker: &str,
        selection: &Selection,
        from: Offset,
    ) -> Result<Redriven, LogError> {
        let running = self.running.lock().await;
        let of_broker = running
            .dispatchers
            .values()
            .filter(|handle| handle.view.broker == broker);
        let recipients: Vec<_> = of_broker
            .map(|handle| Recipient {
                uid: handle.view.uid.clone(),
                name: handle.view.name.clone(),
                trigger: format!("{}/{}", handle.view.namespace, handle.view.name),
                redrives: handle.redrives.clone(),
            })
            .collect();
        drop(running);
        self.dead_letters
            .redrive(broker, selection, from, &recipients)
            .await
    }

    /// Removes some of the selected dead letters for good, from `from` on; whoever calls goes on at
    /// [`Dropped::next`].
    ///
    /// # Errors
    /// When the log has no room to note it, or failed.
    pub async fn drop_dead_letters(
        &self,
        broker: &str,
        selection: &Selection,
        from: Offset,
    ) -> Result<Dropped, LogError> {
        self.dead_letters.remove(broker, selection, from).await
    }

    /// Ends delivery: attempts under way may finish, and cursors are saved.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn reader(&self, running: &mut Running, broker: &str) -> Arc<Reader> {
        if let Some(running) = running.readers.get(broker) {
            return running.reader.clone();
        }
        let reader = Arc::new(Reader::new(
            broker.to_owned(),
            self.log.clone(),
            &self.options.memory,
        ));
        let stop = self.stop.child_token();
        let running_reader = RunningReader {
            reader: reader.clone(),
            _stop: stop.clone().drop_guard(),
        };
        running.readers.insert(broker.to_owned(), running_reader);
        let (task, name) = (reader.clone(), broker.to_owned());
        let reading = async move {
            if let Err(error) = task.run(stop).await {
                tracing::error!(broker = name, %error, "the event log failed: nothing of the broker is read any more");
            }
        };
        let name = format!("the reader of {broker}");
        self.tasks
            .spawn_on(self.supervisor.clone().watch(name, reading), &self.runtime);
        reader
    }

    fn spawn(
        &self,
        reader: &Arc<Reader>,
        settings: Settings,
        place: TriggerPlace,
        broker: &str,
        trigger: &Trigger,
    ) -> Handle {
        let TriggerPlace {
            progress,
            unknown,
            resumed,
        } = place;
        let (sender, receiver) = watch::channel(settings);
        let (redrives, asked) = mpsc::channel(1);
        let stats = Arc::new(TriggerStats::telling(self.trimmer.room.settled()));
        if resumed {
            stats.resumed();
            self.tell_resumed(broker, trigger, &progress);
        }
        let inbox = Arc::new(Inbox::new(stats.clone()));
        stats.show(&progress);
        stats.show_low(progress.low());
        // Boxed, like all that is large: tens of thousands of Triggers may each have this task.
        let mut parts = Box::new(Parts {
            log: self.log.clone(),
            client: self.client.clone(),
            reader: reader.clone(),
            inbox: inbox.clone(),
            settings: receiver,
            redrives: asked,
            stats: stats.clone(),
            room_wanted: self.room_wanted.clone(),
            memory: self.options.memory.clone(),
            progress,
            stop: self.stop.clone(),
            grace: self.options.grace,
        });
        let view = TriggerView {
            uid: trigger.uid.clone(),
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            broker: broker.to_owned(),
            stats,
        };
        let name = format!("{}/{}", trigger.namespace, trigger.name);
        let (stopped, broker, start) = (view.stats.clone(), broker.to_owned(), trigger.start);
        let delivering = async move {
            if let Some(error) = unknown {
                match Box::pin(find_start_later(error, &mut parts, &name, &broker, start)).await {
                    Some(Ok(offset)) => parts.progress = Progress::starting_at(offset),
                    Some(Err(error)) => {
                        stopped.stop();
                        tracing::error!(
                            trigger = name, %error,
                            "where the Trigger begins cannot be found in the damaged log, and all that is retained is \
                             held for it: make it anew with another start"
                        );
                        return;
                    }
                    None => return,
                }
            }
            let delivery = Box::pin(Box::new(Dispatcher::new(*parts)).run());
            match supervision::caught(&format!("delivery of {name}"), delivery).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    stopped.stop();
                    tracing::error!(trigger = name, %error, "delivery has ended: the event log failed");
                }
                Err(_) => stopped.stop(),
            }
        };
        let task = self.tasks.spawn_on(delivering, &self.runtime);
        Handle {
            settings: sender,
            inbox,
            view,
            redrives,
            task,
        }
    }

    fn tell_resumed(&self, broker: &str, trigger: &Trigger, progress: &Progress) {
        let backlog = self.log.bounds(broker).next.0.saturating_sub(progress.next().0);
        tracing::info!(
            trigger = format!("{}/{}", trigger.namespace, trigger.name),
            broker,
            pending = progress.pending(),
            not_looked_at = backlog,
            "the Trigger goes on where it was, or one of its name, before that was gone"
        );
    }

    /// Ends the dispatchers of Triggers that are not in the table, and keeps their places, and those that were found
    /// of others that are not in it.
    async fn retire_absent(&self, running: &mut Running, table: &RoutingTable) -> Result<(), LogError> {
        let present: HashSet<_> = table.triggers().map(|trigger| trigger.uid.as_str()).collect();
        let dispatchers = &mut running.dispatchers;
        let absent = dispatchers.extract_if(|uid, _| !present.contains(uid.as_str()));
        let mut gone = Vec::new();
        for (_, handle) in absent {
            gone.push(Gone::ended(&end(handle).await));
        }
        let is_gone = |uid: &str| !present.contains(uid) && !table.is_unread(uid);
        let stored = running.stored.extract_if(|uid, _| is_gone(uid));
        gone.extend(stored.map(|(uid, place)| Gone::found(uid, place)));
        let unread = gone.extract_if(.., |gone| table.is_unread(&gone.uid));
        let mut unread: Vec<_> = unread.map(|gone| gone.uid).collect();
        unread.extend(self.keeper.take_unread(|uid| table.is_unread(uid)));
        for uid in unread {
            if let Some(cursor) = self.log.cursor(&uid).await? {
                let place = StoredPlace { cursor, record: None };
                running.stored.insert(uid, place);
            }
        }
        self.keeper.keep(gone).await
    }

    async fn trim_regularly(self: Arc<Self>) {
        let mut regularly = tokio::time::interval(TRIM_EVERY);
        regularly.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let room_wanted = tokio::select! {
                _ = regularly.tick() => false,
                () = self.room_wanted.notified() => {
                    tokio::time::sleep(TRIM_AT_ONCE).await;
                    true
                }
                () = self.stop.cancelled() => return,
            };
            self.tell_overdue(Instant::now());
            if !self.applied.load(Relaxed) {
                // Which events are wanted is not known yet.
                continue;
            }
            if let Err(error) = self.keeper.tick().await {
                tracing::error!(%error, "the places of deleted Triggers cannot be seen to");
            }
            if let Err(error) = self.trimmer.trim(room_wanted).await {
                tracing::error!(%error, "the event log cannot be trimmed");
            }
        }
    }

    /// Says how many log lines were held back, where no later line has.
    fn tell_overdue(&self, now: Instant) {
        self.client.tell_overdue(now);
        self.dead_letters.tell_overdue(now);
    }
}

async fn find_start(log: &dyn EventLog, broker: &str, start: Start) -> Result<Offset, LogError> {
    let bounds = log.bounds(broker);
    match start {
        Start::Latest => Ok(bounds.next),
        Start::Earliest => Ok(bounds.first),
        Start::At(time) => log.offset_at(broker, time).await,
    }
}

/// Where a Trigger begins of which an error kept that from being known: waits while the log cannot be read. `None` when
/// the Trigger has gone, or delivery ends.
async fn find_start_later(
    mut error: LogError,
    parts: &mut Parts,
    trigger: &str,
    broker: &str,
    start: Start,
) -> Option<Result<Offset, LogError>> {
    while let LogError::Unavailable(reason) = &error {
        tracing::warn!(
            trigger,
            reason,
            "where the Trigger begins cannot be read; it waits until it can"
        );
        let (stop, log, settings) = (&parts.stop, &*parts.log, &mut parts.settings);
        let again = async {
            tokio::time::sleep(FIND_AGAIN).await;
            find_start(log, broker, start).await
        };
        let gone = async { while settings.changed().await.is_ok() {} };
        tokio::select! {
            found = again => match found {
                Ok(offset) => return Some(Ok(offset)),
                Err(again) => error = again,
            },
            () = stop.cancelled() => return None,
            () = gone => return None,
        }
    }
    Some(Err(error))
}

/// What is stored of a Trigger.
struct Found {
    /// The UID under which it is stored; another's where the Trigger takes its place.
    uid: String,
    stored: StoredPlace,
    /// Whether that Trigger was gone.
    was_gone: bool,
}

/// What has to be stored so that the Trigger has its place: one commit, so that the place is never there twice.
fn changes(
    trigger: &Trigger,
    broker: &str,
    progress: &Progress,
    is_new: bool,
    found: Option<&Found>,
) -> Vec<CursorChange> {
    let mut changes = Vec::new();
    let others = found.map(|found| &*found.uid).filter(|uid| *uid != trigger.uid);
    if is_new || others.is_some() {
        changes.push((
            trigger.uid.clone(),
            Some(progress.encode(broker, Instant::now()).into()),
        ));
    }
    let record = Record::present(Identity::of(trigger, broker));
    if found.and_then(|found| found.stored.record.as_ref()) != Some(&record) {
        changes.push(record.change(&trigger.uid));
    }
    changes.extend(others.into_iter().flat_map(removal));
    changes
}

/// Ends a dispatcher.
async fn end(handle: Handle) -> TriggerView {
    let Handle {
        settings,
        inbox,
        view,
        redrives: _,
        task,
    } = handle;
    drop(settings);
    // It ends at once when its settings are closed; a panic in it was caught.
    let _ = task.await;
    inbox.detach();
    view
}

/// Views of Triggers that do not run, so that what they have not settled stays in the log.
fn held(stored: &HashMap<String, StoredPlace>) -> Vec<TriggerView> {
    let mut held = Vec::new();
    for (uid, place) in stored {
        match keeper::view(uid, None, &place.cursor) {
            Ok(view) => held.push(view),
            Err(error) => {
                tracing::error!(uid, %error, "the stored cursor of a Trigger cannot be used, and nothing is held for it");
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::Addresses,
        log::{
            Bounds, ReadLimit, Record,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
        routing::{Configuration, Delivery},
    };

    const BROKER: &str = "shop/default";
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn eventually(mut holds: impl FnMut() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }

    async fn start(log: Arc<dyn EventLog>) -> Arc<Engine> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::new(1, Addresses::any()).unwrap();
        Engine::start(
            log,
            client,
            DeliveryOptions::default(),
            Supervisor::default(),
            &runtime::Handle::current(),
        )
        .await
        .unwrap()
    }

    fn open(directory: &tempfile::TempDir) -> EmbeddedLog {
        EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap()
    }

    /// A Trigger whose Sink does not answer.
    fn trigger(uid: &str, start: &Value, suspend: bool) -> Value {
        json!({
            "uid": uid, "namespace": "shop", "name": uid, "generation": 1, "broker": "default", "filters": [],
            "destination": {"uri": "http://127.0.0.1:9/", "service": null, "contentMode": "AsReceived"},
            "delivery": Delivery::default(), "start": start, "suspend": suspend,
        })
    }

    fn table_of(triggers: Vec<Value>) -> RoutingTable {
        let triggers = triggers.into_iter().map(serde_json::from_value);
        RoutingTable::compile(Configuration {
            triggers: triggers.collect::<Result<_, _>>().unwrap(),
            ..Configuration::default()
        })
    }

    fn table(triggers: &[(&str, Value)]) -> RoutingTable {
        let triggers = triggers.iter().map(|(uid, start)| trigger(uid, start, false));
        table_of(triggers.collect())
    }

    /// A log in which no time can be found: it is away a few times, and then it is damaged, if at all.
    struct WithoutTimes {
        log: EmbeddedLog,
        away: AtomicU64,
        is_damaged: bool,
    }

    impl EventLog for WithoutTimes {
        fn offset_at<'a>(
            &'a self,
            broker: &'a str,
            time: Timestamp,
        ) -> BoxFuture<'a, Result<Offset, LogError>> {
            if self
                .away
                .try_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                return Box::pin(async { Err(LogError::Unavailable("EIO".to_owned())) });
            }
            if !self.is_damaged {
                return self.log.offset_at(broker, time);
            }
            let error = LogError::Damaged {
                path: "log".into(),
                detail: "offset 0".to_owned(),
            };
            Box::pin(async { Err(error) })
        }

        fn append<'a>(
            &'a self,
            broker: &'a str,
            payloads: Vec<Bytes>,
            accepted: Timestamp,
        ) -> BoxFuture<'a, Result<Offset, LogError>> {
            self.log.append(broker, payloads, accepted)
        }

        fn append_to_settle<'a>(
            &'a self,
            broker: &'a str,
            payloads: Vec<Bytes>,
            accepted: Timestamp,
        ) -> BoxFuture<'a, Result<Offset, LogError>> {
            self.log.append_to_settle(broker, payloads, accepted)
        }

        fn read<'a>(
            &'a self,
            broker: &'a str,
            from: Offset,
            limit: ReadLimit,
        ) -> BoxFuture<'a, Result<Vec<Record>, LogError>> {
            self.log.read(broker, from, limit)
        }

        fn bounds(&self, broker: &str) -> Bounds {
            self.log.bounds(broker)
        }

        fn watch(&self, broker: &str) -> watch::Receiver<Offset> {
            self.log.watch(broker)
        }

        fn trim<'a>(&'a self, broker: &'a str, before: Offset) -> BoxFuture<'a, Result<(), LogError>> {
            self.log.trim(broker, before)
        }

        fn usage(&self) -> Vec<(String, u64)> {
            self.log.usage()
        }

        fn capacity(&self) -> u64 {
            self.log.capacity()
        }

        fn cursors(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, LogError>> {
            self.log.cursors()
        }

        fn save_cursors(&self, changes: Vec<CursorChange>) -> BoxFuture<'_, Result<(), LogError>> {
            self.log.save_cursors(changes)
        }

        fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
            self.log.sync()
        }

        fn failed(&self) -> BoxFuture<'_, LogError> {
            self.log.failed()
        }
    }

    #[tokio::test]
    async fn damage_where_a_trigger_would_begin_stops_that_trigger_alone() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(WithoutTimes {
            log: open(&directory),
            away: AtomicU64::new(0),
            is_damaged: true,
        });
        let engine = start(log.clone()).await;
        let table = table(&[
            ("latest", json!("Latest")),
            ("timed", json!({"At": "2026-01-01T00:00:00Z"})),
        ]);
        engine.apply(&table).await.unwrap();
        let views = engine.triggers();
        let stopped = || {
            views
                .iter()
                .map(|view| view.stats.is_stopped())
                .collect::<Vec<_>>()
        };
        eventually(|| stopped() == [false, true]).await;
        let cursors = log.cursors().await.unwrap();
        let kept: Vec<_> = cursors.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(kept, ["latest", "trigger:latest"], "the next start looks again");
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_log_that_is_away_where_a_trigger_would_begin_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(WithoutTimes {
            log: open(&directory),
            away: AtomicU64::new(2),
            is_damaged: false,
        });
        let record = || vec![Bytes::from_static(&[9, 0])];
        log.append(BROKER, record(), Timestamp::UNIX_EPOCH).await.unwrap();
        let engine = start(log.clone()).await;
        let since = json!({"At": "2026-01-01T00:00:00Z"});
        engine.apply(&table(&[("timed", since.clone())])).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        log.append(BROKER, record(), Timestamp::now()).await.unwrap();
        assert_eq!((stats.low(), stats.missed()), (Offset(0), 0));
        eventually(|| stats.next() == Offset(2)).await;
        assert_eq!((stats.missed(), stats.is_stopped()), (1, false));

        // One that goes meanwhile is not waited for.
        log.away.store(u64::MAX, Relaxed);
        engine
            .apply(&table(&[("timed", since.clone()), ("other", since.clone())]))
            .await
            .unwrap();
        engine.apply(&table(&[("timed", since)])).await.unwrap();
        assert_eq!(engine.triggers().len(), 1);
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn the_readers_of_brokers_without_triggers_end() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let engine = start(log.clone()).await;
        let tasks = engine.tasks.len();
        for round in 0..3 {
            engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
            assert_eq!(engine.running.lock().await.readers.len(), 1);
            let record = vec![Bytes::from_static(&[9, 0])];
            log.append(BROKER, record, Timestamp::now()).await.unwrap();
            let stats = engine.triggers()[0].stats.clone();
            eventually(|| stats.missed() == 1).await;
            engine.apply(&table(&[])).await.unwrap();
            assert!(engine.running.lock().await.readers.is_empty(), "round {round}");
            eventually(|| engine.tasks.len() == tasks).await;
        }
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_place_beyond_the_end_of_the_log_skips_no_new_event() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let other_version = || vec![Bytes::from_static(&[9, 0])];
        let dead_letters = DeadLetter::log_of(BROKER);
        for key in [BROKER, &dead_letters] {
            log.append(key, other_version(), Timestamp::now()).await.unwrap();
        }
        let mut beyond = Progress::starting_at(Offset(1));
        beyond.matched(Offset(6));
        let redriven = Taken::default().change(BROKER, [Offset(0), Offset(1)].into_iter());
        let cursors = vec![
            ("u".to_owned(), Some(beyond.encode(BROKER, Instant::now()).into())),
            redriven,
        ];
        log.save_cursors(cursors).await.unwrap();

        let engine = start(log.clone()).await;
        engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        assert_eq!(
            (stats.next(), stats.dropped(), stats.pending()),
            (Offset(1), 1, 0)
        );
        let stored: HashMap<_, _> = log.cursors().await.unwrap().into_iter().collect();
        assert_eq!(
            Progress::decode(&stored["u"], Instant::now()).unwrap().next(),
            Offset(1)
        );
        let restored = Taken::default();
        for (key, cursor) in &stored {
            restored.restore(key, cursor);
        }
        assert_eq!(restored.count(BROKER), 1);
        log.append(BROKER, other_version(), Timestamp::now())
            .await
            .unwrap();
        eventually(|| stats.missed() == 1).await;
        log.append(&dead_letters, other_version(), Timestamp::now())
            .await
            .unwrap();
        assert_eq!(engine.dead_letter_brokers(), [(BROKER.to_owned(), 1)]);
        engine.shutdown().await;
    }

    /// On one thread two configurations in succession come before the dispatcher sees the first.
    #[tokio::test]
    async fn a_suspension_that_the_dispatcher_does_not_see_does_not_leave_it_deaf() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let engine = start(log.clone()).await;
        let with_suspend = |suspend| table_of(vec![trigger("u", &json!("Latest"), suspend)]);
        engine.apply(&with_suspend(false)).await.unwrap();
        let inbox = engine.running.lock().await.dispatchers["u"].inbox.clone();
        eventually(|| inbox.is_attached()).await;
        engine.apply(&with_suspend(true)).await.unwrap();
        engine.apply(&with_suspend(false)).await.unwrap();
        let other_version = vec![Bytes::from_static(&[9, 0])];
        log.append(BROKER, other_version, Timestamp::now()).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        eventually(|| stats.missed() == 1).await;
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn what_an_unread_trigger_has_not_settled_stays_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let engine = start(log.clone()).await;
        engine.apply(&table(&[("u", json!("Latest"))])).await.unwrap();
        engine.shutdown().await;
        let event = vec![Bytes::from_static(b"event")];
        log.append(BROKER, event, Timestamp::UNIX_EPOCH).await.unwrap();

        let engine = start(log.clone()).await;
        let first_after = async |unread: &[&str]| {
            let configuration = Configuration {
                unread: unread.iter().map(|&uid| uid.into()).collect(),
                ..Configuration::default()
            };
            let table = RoutingTable::compile(configuration);
            engine.apply(&table).await.unwrap();
            let first = trim(&engine, &log).await;
            (first, engine.kept_count())
        };
        assert_eq!(
            first_after(&["u"]).await,
            (Offset(0), 0),
            "it is old, and somebody wants it"
        );
        assert_eq!(first_after(&[]).await, (Offset(0), 1), "it is gone");
        assert_eq!(first_after(&["u"]).await, (Offset(0), 0), "it is there again");
        engine.shutdown().await;
    }

    /// A Trigger with another name than its UID.
    fn named(uid: &str, name: &str, more: Value) -> Value {
        let mut trigger = trigger(uid, &json!("Latest"), false);
        trigger["name"] = name.into();
        trigger
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        trigger
    }

    async fn append(log: &Arc<dyn EventLog>, events: usize) {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let events = vec![event.build().unwrap().to_record(); events];
        log.append(BROKER, events, Timestamp::UNIX_EPOCH).await.unwrap();
    }

    /// A Trigger with UID `a` and name `t` that wants three events, whose Sink does not answer.
    async fn with_backlog(log: &Arc<dyn EventLog>) -> Arc<Engine> {
        let engine = start(log.clone()).await;
        engine
            .apply(&table_of(vec![named("a", "t", json!({}))]))
            .await
            .unwrap();
        append(log, 3).await;
        let stats = engine.triggers()[0].stats.clone();
        eventually(|| stats.matched() == 3 && stats.next() == Offset(3)).await;
        let saved = async || {
            Progress::decode(&log.cursor("a").await.unwrap().unwrap(), Instant::now())
                .unwrap()
                .pending()
        };
        while saved().await < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        engine
    }

    async fn keys(log: &Arc<dyn EventLog>) -> Vec<String> {
        let cursors = log.cursors().await.unwrap();
        cursors.into_iter().map(|(key, _)| key).collect()
    }

    /// Matched, pending and what comes next of the Trigger with this UID.
    fn figures(engine: &Engine, uid: &str) -> (u64, u64, Offset) {
        let triggers = engine.triggers();
        let view = triggers.iter().find(|view| view.uid == uid).unwrap();
        (view.stats.matched(), view.stats.pending(), view.stats.next())
    }

    async fn trim(engine: &Engine, log: &Arc<dyn EventLog>) -> Offset {
        engine.trimmer.trim(false).await.unwrap();
        log.bounds(BROKER).first
    }

    #[tokio::test]
    async fn the_trigger_of_the_same_name_goes_on_where_the_deleted_one_was() {
        for restarts in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            let log: Arc<dyn EventLog> = Arc::new(open(&directory));
            let mut engine = with_backlog(&log).await;
            engine.apply(&RoutingTable::default()).await.unwrap();
            append(&log, 2).await;
            if restarts {
                engine.shutdown().await;
                engine = start(log.clone()).await;
                engine.apply(&RoutingTable::default()).await.unwrap();
            }
            assert_eq!((engine.kept_count(), engine.dropped_with_trigger()), (1, 0));
            assert_eq!(
                trim(&engine, &log).await,
                Offset(0),
                "it is old, and may be wanted"
            );
            // A Trigger of another name, or broker, has nothing to do with it.
            let others = [
                named("x", "other", json!({})),
                named("y", "t", json!({"broker": "elsewhere"})),
            ];
            engine.apply(&table_of(others.to_vec())).await.unwrap();
            assert_eq!(figures(&engine, "x"), (0, 0, Offset(5)));
            assert_eq!(engine.kept_count(), 1);
            let triggers = vec![others[0].clone(), others[1].clone(), named("b", "t", json!({}))];
            engine.apply(&table_of(triggers)).await.unwrap();
            eventually(|| figures(&engine, "b") == (5, 5, Offset(5))).await;
            assert!(
                engine
                    .triggers()
                    .iter()
                    .all(|view| view.stats.is_resumed() == (view.uid == "b"))
            );
            assert_eq!(trim(&engine, &log).await, Offset(0));
            assert_eq!((engine.kept_count(), engine.dropped_with_trigger()), (0, 0));
            let keys = keys(&log).await;
            assert!(
                !keys.iter().any(|key| key == "a" || key == "trigger:a"),
                "it is there once: {keys:?}"
            );
            engine.shutdown().await;
        }
    }

    #[tokio::test]
    async fn a_trigger_that_was_replaced_while_no_router_ran_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        with_backlog(&log).await.shutdown().await;
        let engine = start(log.clone()).await;
        engine
            .apply(&table_of(vec![named("b", "t", json!({}))]))
            .await
            .unwrap();
        assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_trigger_that_is_replaced_or_missing_for_a_moment_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let engine = with_backlog(&log).await;
        engine
            .apply(&table_of(vec![named("b", "t", json!({}))]))
            .await
            .unwrap();
        assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
        engine.apply(&RoutingTable::default()).await.unwrap();
        // The same Trigger, whatever it says of where a new one begins.
        let set = json!({"start": "Earliest", "startIsSet": true});
        engine.apply(&table_of(vec![named("b", "t", set)])).await.unwrap();
        assert_eq!(figures(&engine, "b"), (3, 3, Offset(3)));
        assert_eq!(engine.dropped_with_trigger(), 0);
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_start_that_is_set_begins_there_and_gives_the_place_up() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let engine = with_backlog(&log).await;
        engine.apply(&RoutingTable::default()).await.unwrap();
        let latest = named("b", "t", json!({"startIsSet": true}));
        engine.apply(&table_of(vec![latest])).await.unwrap();
        assert_eq!(figures(&engine, "b"), (0, 0, Offset(3)));
        assert_eq!((engine.kept_count(), engine.dropped_with_trigger()), (0, 3));
        assert!(!engine.triggers()[0].stats.is_resumed());
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_place_is_given_up_when_its_time_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        with_backlog(&log).await.shutdown().await;
        for (keep_deleted, kept) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 0)] {
            let options = DeliveryOptions {
                keep_deleted,
                ..DeliveryOptions::default()
            };
            let client = Client::new(1, Addresses::any()).unwrap();
            let engine = Engine::start(
                log.clone(),
                client,
                options,
                Supervisor::default(),
                &runtime::Handle::current(),
            )
            .await
            .unwrap();
            engine.apply(&RoutingTable::default()).await.unwrap();
            engine.keeper.tick().await.unwrap();
            assert_eq!(engine.kept_count(), kept);
            assert_eq!(engine.dropped_with_trigger(), if kept == 0 { 3 } else { 0 });
            assert_eq!(trim(&engine, &log).await, Offset(if kept == 0 { 3 } else { 0 }));
            engine.shutdown().await;
        }
        assert_eq!(keys(&log).await, ["running-time"]);
    }

    /// As an earlier version left it.
    #[tokio::test]
    async fn a_cursor_without_a_name_is_its_triggers_alone() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        with_backlog(&log).await.shutdown().await;
        log.save_cursors(vec![("trigger:a".to_owned(), None)])
            .await
            .unwrap();
        let engine = start(log.clone()).await;
        engine
            .apply(&table_of(vec![named("a", "t", json!({}))]))
            .await
            .unwrap();
        assert_eq!(figures(&engine, "a"), (3, 3, Offset(3)));
        assert!(
            keys(&log).await.contains(&"trigger:a".to_owned()),
            "it has one now"
        );
        engine.shutdown().await;
        log.save_cursors(vec![("trigger:a".to_owned(), None)])
            .await
            .unwrap();
        let engine = start(log.clone()).await;
        engine
            .apply(&table_of(vec![named("b", "t", json!({}))]))
            .await
            .unwrap();
        assert_eq!(figures(&engine, "b"), (0, 0, Offset(3)));
        assert_eq!(engine.dropped_with_trigger(), 3);
        engine.shutdown().await;
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Arc::new(open(&directory));
        let append = async || {
            let other_version = Bytes::from_static(&[9, 0]);
            let appended = log.append(BROKER, vec![other_version], Timestamp::now()).await;
            appended.unwrap();
        };
        append().await;
        let engine = start(log.clone()).await;
        engine.apply(&table(&[("u", json!("Earliest"))])).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        // By itself, then from the reader.
        for missed in 1..=5 {
            eventually(|| stats.missed() == missed && stats.next() == Offset(missed)).await;
            append().await;
        }
        eventually(|| stats.missed() == 6).await;
        engine.shutdown().await;
        assert_eq!((stats.missed(), stats.next()), (6, Offset(6)));
        assert_eq!((stats.matched(), stats.pending(), stats.dropped()), (0, 0, 0));
    }

    /// A log with one record, at which whoever reads it panics.
    struct Panicking(watch::Sender<Offset>);

    impl EventLog for Panicking {
        fn append<'a>(
            &'a self,
            _: &'a str,
            _: Vec<Bytes>,
            _: Timestamp,
        ) -> BoxFuture<'a, Result<Offset, LogError>> {
            unimplemented!()
        }

        fn append_to_settle<'a>(
            &'a self,
            _: &'a str,
            _: Vec<Bytes>,
            _: Timestamp,
        ) -> BoxFuture<'a, Result<Offset, LogError>> {
            unimplemented!()
        }

        fn read<'a>(
            &'a self,
            _: &'a str,
            _: Offset,
            _: ReadLimit,
        ) -> BoxFuture<'a, Result<Vec<Record>, LogError>> {
            panic!("a fault in the program")
        }

        fn bounds(&self, _: &str) -> Bounds {
            Bounds {
                first: Offset(0),
                next: Offset(1),
            }
        }

        fn offset_at<'a>(&'a self, _: &'a str, _: Timestamp) -> BoxFuture<'a, Result<Offset, LogError>> {
            unimplemented!()
        }

        fn watch(&self, _: &str) -> watch::Receiver<Offset> {
            self.0.subscribe()
        }

        fn trim<'a>(&'a self, _: &'a str, _: Offset) -> BoxFuture<'a, Result<(), LogError>> {
            Box::pin(async { Ok(()) })
        }

        fn capacity(&self) -> u64 {
            u64::MAX
        }

        fn usage(&self) -> Vec<(String, u64)> {
            Vec::new()
        }

        fn cursors(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>, LogError>> {
            Box::pin(async { Ok(Vec::new()) })
        }

        fn save_cursors(&self, _: Vec<CursorChange>) -> BoxFuture<'_, Result<(), LogError>> {
            Box::pin(async { Ok(()) })
        }

        fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
            Box::pin(async { Ok(()) })
        }

        fn failed(&self) -> BoxFuture<'_, LogError> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn a_trigger_whose_delivery_panicked_is_stopped() {
        let engine = start(Arc::new(Panicking(watch::Sender::new(Offset(1))))).await;
        engine.apply(&table(&[("u", json!("Earliest"))])).await.unwrap();
        let stats = engine.triggers()[0].stats.clone();
        eventually(|| stats.is_stopped()).await;
        engine.shutdown().await;
    }
}
