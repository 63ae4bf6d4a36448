//! Starts, changes and ends the readers and dispatchers as the routing table changes, and trims the logs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex as StdMutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
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
    progress::Progress,
    reader::Reader,
    redrive::{Redrive, Taken},
    settings::Settings,
    trimmer::{Figures, Room, Trimmer},
};
use crate::{
    log::{CursorChange, EventLog, LogError, Offset},
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
    /// How long attempts under way may take to finish when the engine is shut down.
    pub grace: Duration,
    /// The memory that events and attempts share.
    pub memory: Pool,
}

impl Default for DeliveryOptions {
    /// Settled events for a day, dead letters for a week, a GiB of each; ten seconds to finish; 64 MiB of memory.
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            dead_letters: Retention {
                age: Duration::from_secs(7 * 24 * 60 * 60),
                ..Retention::default()
            },
            when_full: WhenFull::default(),
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
    /// What these hold in the logs, and Triggers of which only their places are known.
    holding: ArcSwap<Holding>,
    dropped_with_trigger: AtomicU64,
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

#[derive(Default)]
struct Running {
    /// Cursors found at the start, until their Triggers appear.
    stored: HashMap<String, Bytes>,
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
}

impl TriggerPlace {
    fn known(progress: Progress) -> Self {
        Self {
            progress,
            unknown: None,
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
        let (mut stored, taken) = (HashMap::new(), Arc::<Taken>::default());
        for (key, cursor) in log.cursors().await? {
            match taken.restore(&key, &cursor) {
                None => drop(stored.insert(key, cursor)),
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
        let engine = Arc::new(Self {
            dead_letters: dead_letters.clone(),
            trimmer: Trimmer {
                log: log.clone(),
                events: options.retention,
                letters: options.dead_letters,
                when_full: options.when_full,
                dead_letters,
                taken,
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
            holding: ArcSwap::default(),
            dropped_with_trigger: AtomicU64::new(0),
            room_wanted: Arc::default(),
            applied: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            supervisor: supervisor.clone(),
            runtime: runtime.clone(),
            stop: CancellationToken::new(),
        });
        if !lost.is_empty() {
            engine.save_places(lost).await?;
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
        let mut new = self.places(&mut running, table).await?;
        let mut present = HashSet::new();
        for (broker, routes) in table.brokers() {
            let reader = self.reader(&mut running, broker);
            let mut inboxes = Vec::with_capacity(routes.routes().len());
            for (index, route) in routes.routes().iter().enumerate() {
                present.insert(route.trigger.uid.clone());
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
        let gone = self.remove_absent(&mut running, &present, table).await;
        let mut views: Vec<_> = running
            .dispatchers
            .values()
            .map(|handle| handle.view.clone())
            .collect();
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let held = held(&running.stored);
        self.holding
            .store(Arc::new(Holding::new(views.iter().chain(held.iter()))));
        self.views.store(Arc::new(views));
        self.applied.store(true, Relaxed);
        if !gone.is_empty() {
            self.save_places(gone.into_iter().map(|uid| (uid, None)).collect())
                .await?;
        }
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
                let stored = running.stored.remove(uid);
                let (place, is_new) = match &stored {
                    Some(stored) => self.restored(stored, broker, trigger)?,
                    None => (self.beginning(broker, trigger.start).await?, true),
                };
                if is_new && place.unknown.is_none() {
                    changed.push((
                        uid.clone(),
                        Some(place.progress.encode(broker, Instant::now()).into()),
                    ));
                }
                places.insert(uid.clone(), place);
            }
        }
        if !changed.is_empty() {
            self.save_places(changed).await?;
        }
        Ok(places)
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
                progress: Progress::starting_at(self.log.bounds(broker).first),
                unknown: Some(error),
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

    /// How many events had matched and were not settled when their Trigger was deleted, since the start. Of what it had
    /// not looked at yet nobody knows what it would have wanted.
    pub fn dropped_with_trigger(&self) -> u64 {
        self.dropped_with_trigger.load(Relaxed)
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

    /// The log had no room for an event: removes what may go. Returns whether another attempt may succeed.
    ///
    /// # Errors
    /// When the log cannot be trimmed.
    pub async fn make_room(&self) -> Result<bool, LogError> {
        self.trimmer.make_room(&self.holding.load_full()).await
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
        TriggerPlace { progress, unknown }: TriggerPlace,
        broker: &str,
        trigger: &Trigger,
    ) -> Handle {
        let (sender, receiver) = watch::channel(settings);
        let (redrives, asked) = mpsc::channel(1);
        let stats = Arc::new(TriggerStats::telling(self.trimmer.room.settled()));
        let inbox = Arc::new(Inbox::new(stats.clone()));
        stats.show(&progress);
        stats.show_low(progress.low());
        let mut parts = Parts {
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
        };
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
                match find_start_later(error, &mut parts, &name, &broker, start).await {
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
            let delivery = Dispatcher::new(parts).run();
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

    /// Ends the dispatchers of Triggers that are gone, and names the cursors to remove.
    async fn remove_absent(
        &self,
        running: &mut Running,
        present: &HashSet<String>,
        table: &RoutingTable,
    ) -> Vec<String> {
        let mut gone: Vec<String> = running
            .dispatchers
            .keys()
            .filter(|uid| !present.contains(*uid))
            .cloned()
            .collect();
        for uid in &gone {
            let Some(Handle {
                settings,
                inbox,
                view,
                redrives: _,
                task,
            }) = running.dispatchers.remove(uid)
            else {
                continue;
            };
            drop(settings);
            // It ends at once when its settings are closed; a panic in it was caught.
            let _ = task.await;
            inbox.detach();
            let pending = view.stats.pending();
            self.dropped_with_trigger.fetch_add(pending, Relaxed);
            let trigger = format!("{}/{}", view.namespace, view.name);
            let backlog = view.backlog(&*self.log);
            if pending + backlog == 0 {
                tracing::info!(trigger, "the Trigger is gone");
            } else {
                tracing::warn!(
                    trigger,
                    dropped = pending,
                    not_looked_at = backlog,
                    "the Trigger is gone, and with it what it had not delivered: it was deleted, or its namespace is not \
                     watched any more"
                );
            }
        }
        let stored = running.stored.extract_if(|uid, _| !table.is_unread(uid));
        gone.extend(stored.map(|(uid, _)| uid));
        gone
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
            if let Err(error) = self.trimmer.trim(&self.holding.load_full(), room_wanted).await {
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

/// Views of Triggers that do not run, so that what they have not settled stays in the log.
fn held(stored: &HashMap<String, Bytes>) -> Vec<TriggerView> {
    let mut held = Vec::new();
    for (uid, cursor) in stored {
        match Progress::decode_with_broker(cursor, Instant::now()) {
            Ok((broker, progress)) => {
                let stats = Arc::<TriggerStats>::default();
                stats.show(&progress);
                stats.show_low(progress.low());
                held.push(TriggerView {
                    uid: uid.clone(),
                    namespace: String::new(),
                    name: String::new(),
                    broker,
                    stats,
                });
            }
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

    use super::*;
    use crate::{
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
        assert_eq!(kept, ["latest"], "the next start looks again");
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
            engine
                .trimmer
                .trim(&engine.holding.load_full(), false)
                .await
                .unwrap();
            log.bounds(BROKER).first
        };
        assert_eq!(
            first_after(&["u"]).await,
            Offset(0),
            "it is old, and somebody wants it"
        );
        assert_eq!(first_after(&[]).await, Offset(1));
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
