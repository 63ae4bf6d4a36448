//! The shards that this router owns: an engine for each, and the Sources of their brokers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, join_all};
use tokio::{runtime, sync::Mutex};

use super::{applied, logs::ShardLogs, past::PastCounts};
use crate::{
    delivery::{DeliveryOptions, Engine, EngineError},
    destination::Client,
    intake::{Deduplication, HeldRoom, IdWindows, Intake, MakeRoom, RoomBy, Shortage},
    log::{
        BrokerName, CheckpointKey, IdWindow, LogError, LogProvider, Ownership, Partition, Shard,
        jetstream::{JetStreamLog, Membership, SHARDS, Seen},
    },
    routing::{self, Deduplicated, Revision, RoutingTable},
    source::{LastRuns, SourcePlace, Sources, Statistics},
    supervision::Supervisor,
};

/// Interval at which the shards' revisions are read until all have the newest one.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Time after which a shard without an owner is told of: longer than a hand-over takes.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// What the engines of all shards are started with.
pub struct EngineStarter {
    /// All logs.
    pub logs: Arc<dyn LogProvider>,
    /// The client that delivers.
    pub client: Client,
    /// Options of delivery.
    pub options: DeliveryOptions,
    /// Notified when a task panics that all delivery depends on.
    pub supervisor: Supervisor,
    /// Runs readers and dispatchers.
    pub runtime: runtime::Handle,
}

/// The shards of this router.
pub struct Shards {
    starter: EngineStarter,
    /// The log, if several routers share it.
    shared: Option<Arc<JetStreamLog>>,
    /// Number of shards of the installation.
    pub(super) count: u16,
    owned: Arc<Owned>,
    deduplication: Arc<Deduplication>,
    /// Whether Sources run at this router.
    runs_sources: bool,
    /// Held while shards or the configuration change.
    work: Mutex<Work>,
    statistics: Statistics,
    /// Whether shards may be taken.
    takes: AtomicBool,
    /// Why this router shares no work at present.
    problem: StdMutex<Option<String>>,
    /// Routers and owners, as last seen. Empty if no other router shares the log, or while NATS does not answer.
    seen: ArcSwap<Seen>,
    /// Shards without an owner, and since when.
    without_owner: StdMutex<BTreeMap<Shard, Instant>>,
    /// Counts of engines that have ended.
    pub(super) past: StdMutex<PastCounts>,
}

/// The owned shards.
#[derive(Default)]
struct Owned(ArcSwap<BTreeMap<Shard, OwnedShard>>);

/// A shard with its engine.
#[derive(Clone)]
pub(super) struct OwnedShard {
    ownership: Ownership,
    pub(super) engine: Arc<Engine>,
    last_runs: Arc<LastRuns>,
}

impl OwnedShard {
    fn new(ownership: Ownership, engine: Arc<Engine>) -> Self {
        let last_runs = LastRuns::new(engine.checkpoints().clone(), engine.last_runs());
        Self {
            ownership,
            engine,
            last_runs: Arc::new(last_runs),
        }
    }
}

struct Work {
    configuration: Option<WantedConfiguration>,
    /// `None` once shut down.
    sources: Option<Sources>,
}

/// The configuration that every shard gets.
struct WantedConfiguration {
    table: Arc<RoutingTable>,
    sources: Vec<routing::Source>,
    /// Whether it is from an earlier run, so that other routers may have applied a newer one.
    is_saved: bool,
}

impl Shards {
    /// Creates the only shard of a log that is not shared, and starts its engine. `runs_sources`: its Sources run at this
    /// router, and not at another one.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn alone(starter: EngineStarter, runs_sources: bool) -> Result<Arc<Self>, EngineError> {
        let shards = Self::new(starter, None, 1, runs_sources);
        let engine = shards.start(Ownership::default()).await?;
        shards.owned.insert(OwnedShard::new(Ownership::default(), engine));
        Ok(shards)
    }

    /// Creates the shards of a shared log. This router owns none of them yet; see [`WorkSharing`](super::WorkSharing).
    pub fn of_shared(starter: EngineStarter, log: Arc<JetStreamLog>) -> Arc<Self> {
        Self::new(starter, Some(log), SHARDS, true)
    }

    fn new(
        starter: EngineStarter,
        shared: Option<Arc<JetStreamLog>>,
        count: u16,
        runs_sources: bool,
    ) -> Arc<Self> {
        let owned = Arc::<Owned>::default();
        let deduplication = Arc::<Deduplication>::default();
        let intake = Intake::new(starter.logs.clone(), owned.clone(), deduplication.clone());
        let sources = Sources::new(intake);
        Arc::new(Self {
            starter,
            shared,
            count,
            owned,
            deduplication,
            runs_sources,
            statistics: sources.statistics(),
            work: Mutex::new(Work {
                configuration: None,
                sources: Some(sources),
            }),
            takes: AtomicBool::new(true),
            problem: StdMutex::default(),
            seen: ArcSwap::default(),
            without_owner: StdMutex::default(),
            past: StdMutex::default(),
        })
    }

    /// The intake that stores new events, of all brokers. It makes room in a full log.
    pub fn intake(&self) -> Intake {
        Intake::new(
            self.starter.logs.clone(),
            self.owned.clone(),
            self.deduplication.clone(),
        )
    }

    /// Deduplication of all brokers.
    pub fn deduplication(&self) -> &Deduplication {
        &self.deduplication
    }

    /// Counts of the Sources.
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// All logs.
    pub(super) fn logs(&self) -> &dyn LogProvider {
        &*self.starter.logs
    }

    pub(super) fn owned(&self) -> Arc<BTreeMap<Shard, OwnedShard>> {
        self.owned.0.load_full()
    }

    /// Returns the engine of a broker, if this router owns its shard. It has the dead letters and, if the broker has
    /// several partitions, the first one.
    pub fn engine_of(&self, broker: &BrokerName) -> Option<Arc<Engine>> {
        let owned = self.owned.0.load();
        let owned = owned.get(&Shard::of(broker, self.count))?;
        Some(owned.engine.clone())
    }

    /// Returns the router that owns a broker's shard, as last seen; `None` if no other router shares the log.
    pub fn owner_of(&self, broker: &BrokerName) -> Option<String> {
        let seen = self.seen.load();
        seen.owners.get(&Shard::of(broker, self.count)).cloned()
    }

    /// Returns the routers that own partitions of a broker, as last seen.
    pub fn owners_of(&self, broker: &BrokerName) -> BTreeSet<String> {
        let seen = self.seen.load();
        let owners = self
            .shards_of(broker)
            .filter_map(|shard| seen.owners.get(&shard).cloned());
        owners.collect()
    }

    /// Whether several routers may share the shards.
    pub fn are_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Number of partitions of a broker, as far as this router knows.
    pub fn partitions_of(&self, broker: &BrokerName) -> u16 {
        self.decided_partitions(broker).unwrap_or(1)
    }

    /// Returns the number of partitions of a broker, if routers share the log and this one knows it.
    pub fn decided_partitions(&self, broker: &BrokerName) -> Option<u16> {
        self.shared.as_ref()?.partitions_of(broker)
    }

    fn shards_of(&self, broker: &BrokerName) -> impl Iterator<Item = Shard> {
        Partition::all(self.partitions_of(broker)).map(|partition| partition.shard(broker, self.count))
    }

    /// Whether a shard has a partition of a broker.
    fn has_part_of(&self, shard: Shard, broker: &BrokerName) -> bool {
        Partition::in_shard(broker, self.partitions_of(broker), shard, self.count).is_some()
    }

    /// Returns the routers that own shards, as last seen.
    pub fn owners(&self) -> BTreeSet<String> {
        self.seen.load().owners.values().cloned().collect()
    }

    /// Applies a configuration to all shards of this router, and to those that it takes later. On return the checkpoint
    /// of every new Trigger of these shards is durable. `is_saved`: the configuration is that of an earlier run.
    ///
    /// # Errors
    /// As [`Engine::apply`], unless routers share the log: a shard that fails is then given up, and taken again.
    pub async fn apply(
        &self,
        table: Arc<RoutingTable>,
        sources: Vec<routing::Source>,
        is_saved: bool,
    ) -> Result<(), EngineError> {
        if let Some(log) = &self.shared {
            let policies = table.policies().iter();
            let wanted =
                policies.filter_map(|(broker, policy)| Some((broker.as_str().into(), policy.partitions?)));
            log.want_partitions(wanted.collect());
        }
        self.deduplication.set(id_windows(&table));
        self.deduplication
            .retain(|broker| table.has_broker(broker.namespace(), broker.name()));
        let mut work = self.work.lock().await;
        work.configuration = Some(WantedConfiguration {
            table,
            sources,
            is_saved,
        });
        self.apply_to_all(&mut work).await
    }

    /// Confirms that the configuration of an earlier run is the present one. Shards that waited for a newer one get it.
    ///
    /// # Errors
    /// As [`Shards::apply`].
    pub async fn confirm(&self) -> Result<(), EngineError> {
        let mut work = self.work.lock().await;
        match &mut work.configuration {
            Some(configuration) if configuration.is_saved => configuration.is_saved = false,
            _ => return Ok(()),
        }
        if self.shared.is_none() {
            self.run_sources(&mut work, None);
            self.forget_last_runs(&work).await;
            return Ok(());
        }
        self.apply_to_all(&mut work).await
    }

    async fn apply_to_all(&self, work: &mut Work) -> Result<(), EngineError> {
        if let Some(configuration) = &work.configuration {
            self.want_id_windows(configuration);
            let owned = self.owned();
            let applying = owned.values().map(|owned| self.apply_to(owned, configuration));
            for (shard, applied) in owned.values().zip(join_all(applying).await) {
                match applied {
                    Err(error) if self.shared.is_some() => self.fail(shard, &error).await,
                    applied => applied?,
                }
            }
        }
        self.run_sources(work, None);
        self.forget_last_runs(work).await;
        Ok(())
    }

    /// Decides the windows of the streams of this router's shards, unless another router may have a newer configuration.
    fn want_id_windows(&self, configuration: &WantedConfiguration) {
        if let Some(log) = &self.shared
            && !configuration.is_saved
        {
            let windows = id_windows(&configuration.table);
            log.want_id_windows(move |broker| windows.of(broker));
        }
    }

    /// Resolves once every shard of the installation has an owner that has applied this revision.
    pub async fn all_have_applied(&self, revision: &Revision) {
        let Some(log) = &self.shared else { return };
        loop {
            match log.checkpoint_of_all(&CheckpointKey::Revision).await {
                Ok(stored) => {
                    let applied = stored
                        .values()
                        .filter(|value| applied::is_applied(value, revision));
                    if applied.count() == usize::from(self.count) {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot read which configuration the shards have"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Stops the Sources, then delivery: attempts in flight may finish within the grace period, and checkpoints are
    /// saved.
    pub async fn shutdown(&self) {
        let sources = self.work.lock().await.sources.take();
        if let Some(sources) = sources {
            sources.shutdown().await;
        }
        self.give_up_all(None).await;
    }

    /// Takes a shard and starts its engine with the present configuration.
    ///
    /// # Errors
    /// [`EngineError::Log`] with [`LogError::Fenced`] if another router owns the shard; otherwise as
    /// [`Engine::start`] and [`Engine::apply`].
    pub(super) async fn take(&self, membership: &Membership, shard: Shard) -> Result<(), EngineError> {
        let ownership = membership.take(shard).await?;
        let taken = self.begin(ownership).await;
        if taken.is_err() {
            // Best effort: otherwise the shard is free once this membership ends.
            drop(membership.release(ownership).await);
        }
        taken
    }

    async fn begin(&self, ownership: Ownership) -> Result<(), EngineError> {
        let engine = self.start(ownership).await?;
        let owned = OwnedShard::new(ownership, engine);
        let mut work = self.work.lock().await;
        let ready = match &work.configuration {
            // A change that comes later waits for the lock, and then finds the shard.
            Some(configuration) if self.takes() => self.apply_first(&owned, configuration).await,
            _ => Ok(false),
        };
        if !self.takes() || ready.is_err() {
            self.end(&owned.engine).await;
            return ready.map(drop);
        }
        self.owned.insert(owned.clone());
        if !self.takes() {
            // All shards were given up meanwhile.
            self.owned.remove(ownership.shard);
            self.end(&owned.engine).await;
            return Ok(());
        }
        let continues = ready?.then_some(ownership.shard);
        self.run_sources(&mut work, continues);
        self.forget_last_runs(&work).await;
        Ok(())
    }

    /// Applies a configuration to a shard that was taken. Returns whether the owner before had applied it too.
    async fn apply_first(
        &self,
        owned: &OwnedShard,
        configuration: &WantedConfiguration,
    ) -> Result<bool, EngineError> {
        let (checkpoints, revision) = (&**owned.engine.checkpoints(), configuration.table.revision());
        let is_last = applied::is_last(checkpoints, revision).await?;
        self.apply_to(owned, configuration).await?;
        Ok(is_last)
    }

    /// Stops the engine of a shard that this router no longer owns, which it checks.
    pub(super) async fn drop_if_lost(&self, membership: &Membership, shard: Shard) {
        let Some(OwnedShard { ownership, .. }) = self.owned().get(&shard).cloned() else {
            return;
        };
        if !matches!(membership.owns(ownership).await, Ok(false)) {
            return;
        }
        tracing::warn!(shard = shard.0, "this router no longer owns a shard");
        if let Some(owned) = self.remove(shard).await {
            self.end(&owned.engine).await;
        }
    }

    /// Stops the engine of a shard, then releases the shard.
    pub(super) async fn give_up(&self, membership: &Membership, shard: Shard) {
        if let Some(owned) = self.remove(shard).await {
            self.end(&owned.engine).await;
            release(membership, owned.ownership).await;
        }
    }

    /// Allows shards to be taken.
    pub(super) fn accept_shards(&self) {
        self.takes.store(true, SeqCst);
    }

    /// Stops all engines at once and takes no more shards. Releases each shard to a membership that has not ended.
    pub(super) async fn give_up_all(&self, membership: Option<&Membership>) {
        self.takes.store(false, SeqCst);
        // Does not wait for a change in progress, which may take as long as NATS does not answer.
        let owned = self.owned.0.swap(Arc::default());
        let ending = owned.values().map(|owned| async move {
            self.end(&owned.engine).await;
            if let Some(membership) = membership {
                release(membership, owned.ownership).await;
            }
        });
        let stop_sources = async { self.run_sources(&mut *self.work.lock().await, None) };
        tokio::join!(join_all(ending), stop_sources);
    }

    fn takes(&self) -> bool {
        self.takes.load(SeqCst)
    }

    async fn start(&self, ownership: Ownership) -> Result<Arc<Engine>, EngineError> {
        let EngineStarter {
            logs,
            client,
            options,
            supervisor,
            runtime,
        } = &self.starter;
        let logs = ShardLogs::new(logs.clone(), self.shared.as_ref(), ownership);
        Engine::start(
            Arc::new(logs),
            ownership,
            client.clone(),
            options.clone(),
            self.deduplication.clone(),
            supervisor.clone(),
            runtime,
        )
        .await
    }

    /// Applies a configuration to one shard.
    async fn apply_to(
        &self,
        OwnedShard {
            ownership, engine, ..
        }: &OwnedShard,
        WantedConfiguration { table, is_saved, .. }: &WantedConfiguration,
    ) -> Result<(), EngineError> {
        let Some(log) = &self.shared else {
            return engine.apply(table).await;
        };
        let (checkpoints, revision) = (&**engine.checkpoints(), table.revision());
        if *is_saved && !applied::is_last_begun(checkpoints, revision).await? {
            tracing::info!(
                shard = ownership.shard.0,
                revision = revision.0,
                "waiting for a configuration: another router has applied a newer one than that of the last run"
            );
            return Ok(());
        }
        let brokers = table.brokers().keys().map(|broker| broker.as_str().into());
        log.decide_partitions(brokers.collect()).await?;
        applied::begin(checkpoints, revision).await?;
        let of_shard = table.of_brokers(|broker| self.has_part_of(ownership.shard, &broker.into()));
        engine.apply(&of_shard).await?;
        applied::end(checkpoints, revision).await?;
        Ok(())
    }

    /// Gives up a shard whose engine failed.
    async fn fail(
        &self,
        OwnedShard {
            ownership, engine, ..
        }: &OwnedShard,
        error: &EngineError,
    ) {
        let shard = ownership.shard;
        tracing::error!(shard = shard.0, %error, "cannot apply the new configuration to a shard; it is given up and taken again");
        self.owned.remove(shard);
        self.end(engine).await;
    }

    /// Shuts an engine down, and keeps its counts.
    async fn end(&self, engine: &Engine) {
        engine.shutdown().await;
        lock(&self.past).add(engine);
    }

    async fn remove(&self, shard: Shard) -> Option<OwnedShard> {
        let mut work = self.work.lock().await;
        let removed = self.owned.remove(shard);
        self.run_sources(&mut work, None);
        removed
    }

    /// Runs the Sources of the brokers of this router's shards that run, and no others. Those of the shard that `continues` ran at
    /// another router before.
    fn run_sources(&self, work: &mut Work, continues: Option<Shard>) {
        let (Some(configuration), Some(sources)) = (&work.configuration, &mut work.sources) else {
            return;
        };
        let owned = self.owned();
        let place = |source: &routing::Source| {
            let shard = self.shard_of(source)?;
            Some(SourcePlace {
                continues: continues == Some(shard),
                last_runs: owned.get(&shard)?.last_runs.clone(),
            })
        };
        sources.apply(&configuration.sources, configuration.is_saved, place);
    }

    /// Returns the shard that runs a Source; `None` if it does not run, or not at this router.
    fn shard_of(&self, source: &routing::Source) -> Option<Shard> {
        let broker = BrokerName::new(&source.namespace, &source.broker);
        let runs = self.runs_sources && source.kind.runs();
        runs.then(|| Shard::of(&broker, self.count))
    }

    /// Forgets the last runs of Sources that no longer run at the shards of this router, once that is certain. One that
    /// is kept while another router runs the Source would be outdated when it runs here again.
    async fn forget_last_runs(&self, work: &Work) {
        let Some(configuration) = &work.configuration else {
            return;
        };
        if configuration.is_saved {
            return;
        }
        for (shard, owned) in &*self.owned() {
            let sources = configuration.sources.iter();
            let of_shard = sources.filter(|source| self.shard_of(source) == Some(*shard));
            let uids = of_shard.map(|source| &*source.uid).collect();
            if let Err(error) = owned.last_runs.keep_only(&uids).await {
                tracing::warn!(%error, "cannot remove when deleted Sources last ran; the next configuration removes it");
            }
        }
    }

    /// Notes the routers and the owners of shards.
    pub(super) fn note_seen(&self, seen: Seen) {
        let mut without_owner = lock(&self.without_owner);
        without_owner.retain(|shard, _| !seen.owners.contains_key(shard));
        for shard in Shard::all(self.count).filter(|shard| !seen.owners.contains_key(shard)) {
            without_owner.entry(shard).or_insert_with(Instant::now);
        }
        self.seen.store(Arc::new(seen));
    }

    /// Notes why this router shares no work, and logs it if it is news; `None` if it does. Nothing is known of other
    /// routers meanwhile.
    pub(super) fn note_problem(&self, problem: Option<String>) {
        let mut known = lock(&self.problem);
        if let Some(problem) = &problem {
            if known.as_ref() != Some(problem) {
                tracing::info!("{problem}");
            }
            self.note_seen(Seen::default());
        }
        *known = problem;
    }

    /// Whether no router has delivered a broker's events, or those of one of its partitions, for a while, as last seen.
    pub fn is_without_owner(&self, broker: &BrokerName) -> bool {
        let without_owner = lock(&self.without_owner);
        let mut since = self
            .shards_of(broker)
            .filter_map(|shard| without_owner.get(&shard));
        since.any(|since| since.elapsed() >= TELL_AFTER)
    }

    /// Number of shards that no live router owns, as last seen.
    pub fn without_owner(&self) -> usize {
        lock(&self.without_owner).len()
    }

    /// Returns why this router shares no work at present, if so.
    pub fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }
}

async fn release(membership: &Membership, ownership: Ownership) {
    if let Err(error) = membership.release(ownership).await {
        tracing::warn!(%error, shard = ownership.shard.0, "cannot release a shard; it is free once this router's lease has expired");
    }
}

/// Locks what no panic leaves half changed.
pub(super) fn lock<T>(mutex: &StdMutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Owned {
    fn insert(&self, new: OwnedShard) {
        self.0.rcu(|owned| {
            let mut owned = BTreeMap::clone(owned);
            owned.insert(new.ownership.shard, new.clone());
            owned
        });
    }

    fn remove(&self, shard: Shard) -> Option<OwnedShard> {
        let before = self.0.rcu(|owned| {
            let mut owned = BTreeMap::clone(owned);
            owned.remove(&shard);
            owned
        });
        before.get(&shard).cloned()
    }
}

/// The windows of the brokers in a table.
fn id_windows(table: &RoutingTable) -> IdWindows {
    let window = |Deduplicated { window, events }| IdWindow { age: window, events };
    let brokers = table.policies().iter();
    IdWindows {
        brokers: brokers
            .map(|(broker, policy)| (broker.clone(), policy.deduplication.map(window)))
            .collect(),
        others: table.deduplication().map(window),
    }
}

impl MakeRoom for Owned {
    /// Only a log that is not shared has quotas, and then there is one shard.
    fn hold_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        bytes: u64,
        by: RoomBy,
    ) -> BoxFuture<'a, Result<Option<HeldRoom>, LogError>> {
        Box::pin(async move {
            match self.0.load_full().values().next() {
                Some(owned) => owned.engine.hold_room(broker, bytes, by).await,
                None => Ok(None),
            }
        })
    }

    fn make_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        shortage: Shortage,
    ) -> BoxFuture<'a, Result<bool, LogError>> {
        Box::pin(async move {
            let mut is_made = false;
            for owned in self.0.load_full().values() {
                is_made |= owned.engine.make_room(broker, shortage).await?;
            }
            Ok(is_made)
        })
    }
}

#[cfg(test)]
mod tests;
