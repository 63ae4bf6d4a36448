//! Watches Sources, and runs those of kind kubernetes: one run for each, which ends before the next of the same begins.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, future};
use kube::{
    Api, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{process::SourcesProcess, records, run};
use crate::{api, supervision};

/// A Source may have been stored by another version of Weir. One that cannot be decoded keeps its records.
type GuardedSource = DeserializeGuard<api::Source>;

/// Debounce time of changes.
const QUIET: Duration = Duration::from_millis(50);

/// Delay before the records of Sources that are gone are removed, so that their runs have ended; and the interval at which
/// they are looked for.
const REMOVED_AFTER: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Pause before a Source that panicked is run again.
const AFTER_PANIC: Duration = Duration::from_secs(10);

/// Time for which the runs may take to end.
const LAST: Duration = Duration::from_secs(10);

/// Lifetime of a watch, in seconds. A dead connection looks like an idle one.
const WATCHED: u32 = 60;

/// The Sources that run.
pub(super) struct SourceSupervisor {
    shared: Arc<SourcesProcess>,
    stores: Vec<Store<GuardedSource>>,
    changed: Arc<Notify>,
    running: HashMap<String, Running>,
    /// The UIDs of all Sources, as of the last look.
    known: HashSet<String>,
    tasks: TaskTracker,
}

struct Running {
    source: Arc<api::Source>,
    stop: CancellationToken,
    /// Cancelled once the run has ended.
    ended: CancellationToken,
}

impl SourceSupervisor {
    /// Starts to watch the Sources of these namespaces, or of all.
    pub(super) fn start(
        shared: &Arc<SourcesProcess>,
        namespaces: &[String],
        stop: &CancellationToken,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let client = &shared.client;
        let apis: Vec<Api<GuardedSource>> = match namespaces {
            [] => vec![Api::all(client.clone())],
            some => some
                .iter()
                .map(|namespace| Api::namespaced(client.clone(), namespace))
                .collect(),
        };
        let watch = |api| {
            let (store, writer) = reflector::store();
            let config = watcher::Config::default().timeout(WATCHED);
            let mut events = watcher(api, config)
                .reflect(writer)
                .filter(|event| {
                    let is_progress =
                        !matches!(event, Ok(watcher::Event::Init | watcher::Event::InitApply(_)));
                    future::ready(is_progress)
                })
                .default_backoff()
                .boxed();
            let (changed, stop) = (changed.clone(), stop.clone());
            tokio::spawn(async move {
                while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
                    match event {
                        Ok(_) => changed.notify_one(),
                        Err(error) => tracing::warn!(%error, "cannot watch Sources; retrying"),
                    }
                }
            });
            store
        };
        Self {
            shared: shared.clone(),
            stores: apis.into_iter().map(watch).collect(),
            changed,
            running: HashMap::new(),
            known: HashSet::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Waits until all Sources were listed.
    pub(super) async fn ready(&mut self) {
        for store in &self.stores {
            drop(store.wait_until_ready().await);
        }
    }

    /// Runs the Sources until told to stop.
    pub(super) async fn follow(&mut self, stop: &CancellationToken) {
        let mut look = Instant::now();
        loop {
            if self.apply() {
                look = look.min(Instant::now() + REMOVED_AFTER);
            }
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(QUIET).await,
                () = tokio::time::sleep_until(look) => {
                    self.remove_records().await;
                    look = Instant::now() + LOOK_EVERY;
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Starts and stops runs. Returns whether a Source is gone.
    fn apply(&mut self) -> bool {
        let mut known = HashSet::new();
        let mut wanted = HashMap::new();
        for guarded in self.stores.iter().flat_map(Store::state) {
            match &guarded.0 {
                Ok(source) => {
                    let uid = source.uid().unwrap_or_default();
                    known.insert(uid.clone());
                    let is_run = source.spec.kubernetes.is_some()
                        && !source.spec.suspend
                        && source.metadata.deletion_timestamp.is_none();
                    if is_run {
                        wanted.insert(uid, source.clone());
                    }
                }
                Err(invalid) => known.extend(invalid.metadata.uid.clone()),
            }
        }
        self.running.retain(|uid, running| {
            let is_kept = wanted.contains_key(uid) || !running.ended.is_cancelled();
            if !wanted.contains_key(uid) {
                running.stop.cancel();
            }
            is_kept
        });
        for (uid, source) in wanted {
            let before = self.running.get(&uid);
            if before.is_some_and(|before| {
                before.source.metadata.generation == source.metadata.generation && !before.stop.is_cancelled()
            }) {
                continue;
            }
            let earlier = before.map(|before| {
                before.stop.cancel();
                before.ended.clone()
            });
            let running = self.begin(source.into(), earlier);
            self.running.insert(uid, running);
        }
        let running = self
            .running
            .values()
            .filter(|running| !running.stop.is_cancelled());
        let run: HashSet<_> = running
            .map(|running| {
                (
                    running.source.namespace().unwrap_or_default(),
                    running.source.name_any(),
                )
            })
            .collect();
        self.shared
            .metrics
            .retain(|namespace, name| run.contains(&(namespace.to_owned(), name.to_owned())));
        let is_gone = !self.known.is_subset(&known);
        self.known = known;
        is_gone
    }

    fn begin(&self, source: Arc<api::Source>, earlier: Option<CancellationToken>) -> Running {
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let (shared, again) = (self.shared.clone(), (source.clone(), stop.clone()));
        let name = format!(
            "the Source {}/{}",
            source.namespace().unwrap_or_default(),
            source.name_any()
        );
        let has_ended = ended.clone();
        self.tasks.spawn(async move {
            let _ended = has_ended.drop_guard();
            if let Some(earlier) = earlier {
                earlier.cancelled().await;
            }
            let (source, stop) = again;
            let run = || run::run(shared.clone(), source.clone(), stop.clone());
            while supervision::caught(&name, run()).await.is_err() && !stop.is_cancelled() {
                tokio::time::sleep(AFTER_PANIC).await;
            }
        });
        Running { source, stop, ended }
    }

    async fn remove_records(&self) {
        let SourcesProcess { client, owner, .. } = &*self.shared;
        let removed = records::remove_others(client.clone(), owner, |uid| self.known.contains(uid));
        if let Err(error) = removed.await {
            tracing::warn!(
                error,
                "cannot remove the records of Sources that are gone; retrying later"
            );
        }
    }

    /// Stops all runs, and waits until they have saved what they told.
    pub(super) async fn end(self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
        self.tasks.close();
        if tokio::time::timeout(LAST, self.tasks.wait()).await.is_err() {
            tracing::warn!("some Sources did not end in time; some of their events may be repeated");
        }
    }
}
