//! The entry point of delivery. Starts readers and dispatchers, applies each routing table, and shuts everything
//! down.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex as StdMutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{runtime, sync::Mutex};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    DeliveryOptions, EngineError, TriggerView,
    broker_fills::BrokerFills,
    dead_letters::DeadLetters,
    deleted_triggers::{self, DeletedTriggers, StoredCheckpoint},
    holds::Holds,
    placement::Placement,
    position::BrokerLogs,
    progress::Progress,
    reader::{Listener, Reader},
    redrive::TakenLetters,
    retained::{self, removal},
    running::{RunningReader, RunningTrigger, Spawner},
    settings::Settings,
    trimmer::{Figures, Trimmer},
    upkeep::Upkeep,
};
use crate::{
    destination::Client,
    intake::{Deduplication, HeldRoom, Intake, MakeRoom, RoomBy, Shortage},
    log::{BrokerName, CheckpointKey, Checkpoints, LogError, LogProvider, Ownership},
    routing::RoutingTable,
    supervision::Supervisor,
};

/// Delivery of one router.
pub struct Engine {
    spawner: Spawner,
    pub(super) running: Mutex<RunningTasks>,
    pub(super) views: ArcSwap<Vec<TriggerView>>,
    pub(super) deleted_triggers: Arc<DeletedTriggers>,
    /// Whether a routing table was ever applied.
    applied: Arc<AtomicBool>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) trimmer: Arc<Trimmer>,
    /// Loaded with the other checkpoints, for the Sources of the shard.
    last_runs: HashMap<String, Bytes>,
}

/// Running tasks, and the checkpoints of Triggers that do not run.
pub(super) struct RunningTasks {
    placement: Placement,
    readers: BTreeMap<BrokerName, RunningReader>,
    pub(super) triggers: HashMap<String, RunningTrigger>,
}

/// Checkpoints of earlier runs, by kind.
#[derive(Default)]
struct LoadedCheckpoints {
    by_uid: HashMap<String, StoredCheckpoint>,
    /// UIDs that have a stored owner record but no checkpoint.
    without_checkpoint: Vec<String>,
    taken: Arc<TakenLetters>,
    ran_before: Duration,
    last_runs: HashMap<String, Bytes>,
}

impl LoadedCheckpoints {
    async fn load(checkpoints: &dyn Checkpoints) -> Result<Self, EngineError> {
        let (mut cursors, mut records) = (HashMap::new(), HashMap::new());
        let mut stored = Self::default();
        for (key, value) in checkpoints.load_all().await? {
            match key {
                CheckpointKey::Trigger(uid) => drop(cursors.insert(uid, value)),
                CheckpointKey::Identity(uid) => {
                    drop(records.insert(uid, retained::OwnerRecord::read(&value)))
                }
                CheckpointKey::Revision | CheckpointKey::TrimPoint(_) => {}
                CheckpointKey::LastRun(uid) => drop(stored.last_runs.insert(uid, value)),
                CheckpointKey::RunningTime => stored.ran_before = retained::RunningTime::read(&value),
                CheckpointKey::DeadLetters(ref broker) => {
                    let restored = stored.taken.restore(broker.clone(), &value);
                    restored.map_err(|error| EngineError::DeadLetters {
                        key: key.to_string(),
                        detail: error.to_string(),
                    })?;
                }
            }
        }
        (stored.by_uid, stored.without_checkpoint) = deleted_triggers::pair_with_owners(cursors, records);
        Ok(stored)
    }
}

impl Engine {
    /// Loads the stored checkpoints. Nothing is delivered before the first [`Engine::apply`]. `runtime` runs the
    /// readers and dispatchers; `supervisor` is notified when a task panics that all delivery depends on. `ownership` is
    /// of the shard whose brokers are in `logs`.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub async fn start(
        logs: Arc<dyn LogProvider>,
        ownership: Ownership,
        client: Client,
        options: DeliveryOptions,
        deduplication: Arc<Deduplication>,
        supervisor: Supervisor,
        runtime: &runtime::Handle,
    ) -> Result<Arc<Self>, EngineError> {
        let checkpoints = logs.checkpoints(ownership);
        let LoadedCheckpoints {
            by_uid,
            without_checkpoint,
            taken,
            ran_before,
            last_runs,
        } = LoadedCheckpoints::load(&*checkpoints).await?;
        let lost = taken.keep_within(&*logs).await?;
        let dead_letters = Arc::new(DeadLetters::new(logs.clone(), checkpoints.clone(), taken.clone()));
        let deleted_triggers = Arc::new(DeletedTriggers::new(
            logs.clone(),
            checkpoints.clone(),
            options.keep_deleted,
            ran_before,
        ));
        let placement = Placement::new(
            logs.clone(),
            checkpoints.clone(),
            deleted_triggers.clone(),
            by_uid,
        );
        let needless = without_checkpoint.iter().flat_map(|uid| removal(uid));
        let changes: Vec<_> = lost.into_iter().chain(needless).collect();
        if !changes.is_empty() {
            placement.save(changes).await?;
        }
        let trimmer = Arc::new(Trimmer {
            logs: logs.clone(),
            events: options.retention,
            letters: options.dead_letters,
            when_full: options.when_full,
            dead_letters: dead_letters.clone(),
            taken,
            policies: ArcSwap::default(),
            quota: ArcSwap::default(),
            fills: BrokerFills::default(),
            max_bytes: options.max_retention,
            present: ArcSwap::default(),
            deleted_triggers: deleted_triggers.clone(),
            figures: Figures::default(),
            room: Arc::default(),
            clock: StdMutex::default(),
            existing: Mutex::default(),
            deduplication: deduplication.clone(),
        });
        let (stop, applied) = (CancellationToken::new(), Arc::default());
        let upkeep = Upkeep {
            client: client.clone(),
            dead_letters: dead_letters.clone(),
            deleted_triggers: deleted_triggers.clone(),
            trimmer: trimmer.clone(),
            applied: Arc::clone(&applied),
            stop: stop.clone(),
        };
        let tasks = TaskTracker::new();
        tasks.spawn(
            supervisor
                .clone()
                .watch("the trimmer of the event log", upkeep.run()),
        );
        let spawner = Spawner {
            intake: Intake::new(logs.clone(), trimmer.clone(), deduplication),
            logs,
            checkpoints,
            client,
            options,
            room: trimmer.room.clone(),
            tasks,
            supervisor,
            runtime: runtime.clone(),
            stop,
        };
        Ok(Arc::new(Self {
            spawner,
            running: Mutex::new(RunningTasks {
                placement,
                readers: BTreeMap::new(),
                triggers: HashMap::new(),
            }),
            views: ArcSwap::default(),
            deleted_triggers,
            applied,
            dead_letters,
            trimmer,
            last_runs,
        }))
    }

    /// The checkpoints of its shard.
    pub fn checkpoints(&self) -> &Arc<dyn Checkpoints> {
        &self.spawner.checkpoints
    }

    /// The last runs of Sources that were stored when it started, by UID.
    pub fn last_runs(&self) -> &HashMap<String, Bytes> {
        &self.last_runs
    }

    /// The logs of its brokers.
    pub fn logs(&self) -> &dyn LogProvider {
        &*self.spawner.logs
    }

    /// Applies a routing table. On return the checkpoint of every new Trigger is durable, so an event accepted
    /// afterwards reaches it.
    ///
    /// # Errors
    /// Fails when the log fails or a Trigger's stored checkpoint cannot be read. A damaged log stops only the
    /// Triggers that need the damaged part.
    pub async fn apply(&self, table: &RoutingTable) -> Result<(), EngineError> {
        let running = &mut *self.running.lock().await;
        let mut existing = self.trimmer.existing.lock().await;
        existing.add(table.existing_brokers());
        let turn = self.deleted_triggers.turn().await;
        running.retire_absent(table).await?;
        let triggers = &running.triggers;
        let mut new = running
            .placement
            .place_new(table, |uid| triggers.contains_key(uid))
            .await?;
        drop(turn);
        for (broker, routes) in table.brokers() {
            let broker = BrokerName::from(broker.as_str());
            let reader = running.reader(&self.spawner, &broker).await?;
            let logs = BrokerLogs::open(self.logs(), &broker);
            let mut listeners = Vec::with_capacity(routes.routes().len());
            for (index, route) in routes.routes().iter().enumerate() {
                let settings = Settings::new(
                    &self.spawner.client,
                    table.authorities(),
                    routes.clone(),
                    index,
                    logs.events.partition(),
                );
                let is_deliverable = settings.is_deliverable();
                let inbox = match running.triggers.get(&route.trigger.uid) {
                    Some(trigger) => {
                        // Send fails only after the dispatcher has ended; its end is reported where it happens.
                        let _ = trigger.settings.send(settings);
                        trigger.inbox.clone()
                    }
                    None => {
                        // `place_new` placed every Trigger that does not run.
                        let Some(start_position) = new.remove(&route.trigger.uid) else {
                            continue;
                        };
                        let trigger = self.spawner.trigger(
                            &reader,
                            settings,
                            start_position,
                            logs.clone(),
                            &route.trigger,
                        );
                        let inbox = trigger.inbox.clone();
                        running.triggers.insert(route.trigger.uid.clone(), trigger);
                        inbox
                    }
                };
                listeners.push(Listener {
                    inbox,
                    is_deliverable,
                });
            }
            reader.follow(routes.clone(), listeners);
        }
        running
            .readers
            .retain(|broker, _| table.brokers().contains_key(broker.as_str()));
        self.trimmer.settings_changed(table);
        self.show(running);
        *existing = table.existing_brokers();
        self.applied.store(true, Relaxed);
        Ok(())
    }

    /// Publishes the views of running Triggers, and hands over the holds retained for them.
    fn show(&self, running: &RunningTasks) {
        let mut views: Vec<_> = running
            .triggers
            .values()
            .map(|handle| handle.view.clone())
            .collect();
        views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let waiting = running.placement.views();
        let holds = Holds::new(
            views
                .iter()
                .chain(waiting.iter())
                .map(TriggerView::hold_on_broker),
        );
        self.deleted_triggers.hand_over(|| {
            self.trimmer.present.store(Arc::new(holds));
            self.views.store(Arc::new(views));
        });
    }

    /// Shuts delivery down: attempts in flight may finish within the grace period, and checkpoints are saved.
    pub async fn shutdown(&self) {
        self.spawner.stop.cancel();
        self.spawner.tasks.close();
        self.spawner.tasks.wait().await;
    }
}

impl RunningTasks {
    /// Returns the broker's reader; starts one if needed.
    async fn reader(&mut self, spawner: &Spawner, broker: &BrokerName) -> Result<Arc<Reader>, LogError> {
        if let Some(running) = self.readers.get(broker) {
            return Ok(running.reader.clone());
        }
        let running = spawner.reader(broker).await?;
        let reader = running.reader.clone();
        self.readers.insert(broker.clone(), running);
        Ok(reader)
    }

    /// Stops the Triggers that left the table and retains their checkpoints.
    async fn retire_absent(&mut self, table: &RoutingTable) -> Result<(), LogError> {
        let present: HashSet<_> = table.triggers().map(|trigger| trigger.uid.as_str()).collect();
        let absent = self.triggers.extract_if(|uid, _| !present.contains(uid.as_str()));
        let mut ended = Vec::new();
        for (_, trigger) in absent {
            ended.push(trigger.end().await);
        }
        self.placement.retire(ended, &present, table).await
    }
}

/// Returns the broker of a stored checkpoint; `None` if it has none or cannot be decoded.
pub fn broker_of_checkpoint(key: &CheckpointKey, value: &[u8]) -> Option<BrokerName> {
    match key {
        CheckpointKey::Trigger(_) => {
            let (broker, _) = Progress::decode_with_broker(value, Instant::now()).ok()?;
            Some(broker.as_str().into())
        }
        CheckpointKey::Identity(_) => {
            let record = retained::OwnerRecord::read(value)?;
            Some(record.identity.broker.as_str().into())
        }
        CheckpointKey::DeadLetters(broker) => Some(broker.clone()),
        CheckpointKey::RunningTime
        | CheckpointKey::Revision
        | CheckpointKey::TrimPoint(_)
        | CheckpointKey::LastRun(_) => None,
    }
}

impl MakeRoom for Engine {
    fn hold_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        bytes: u64,
        by: RoomBy,
    ) -> BoxFuture<'a, Result<Option<HeldRoom>, LogError>> {
        self.trimmer.hold_room(broker, bytes, by)
    }

    fn make_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        shortage: Shortage,
    ) -> BoxFuture<'a, Result<bool, LogError>> {
        self.trimmer.make_room(broker, shortage)
    }
}

#[cfg(test)]
mod tests;
