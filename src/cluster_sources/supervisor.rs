//! Watches Sources, and runs those of kind kubernetes: one run for each, which ends before the next of the same begins.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, future};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource as _, ResourceExt as _,
    core::{DeserializeGuard, error_boundary::InvalidObject},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{process::SourcesProcess, records, report, run};
use crate::{api, supervision};

/// A Source may have been stored by another version of Weir. One that cannot be decoded keeps its records.
type GuardedSource = DeserializeGuard<api::Source>;

/// Debounce time of changes.
const QUIET: Duration = Duration::from_millis(50);

/// Delay before the records of Sources that are gone are removed, so that their runs have ended; and the interval at which
/// they are looked for.
const REMOVED_AFTER: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Time for which the first lists of Sources are waited for, once there is one.
const LISTED_WITHIN: Duration = Duration::from_secs(10);

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
    namespaces: Vec<String>,
    /// The UIDs of all Sources, as of the last look.
    known: HashSet<String>,
    tasks: TaskTracker,
}

struct Running {
    work: SourceWork,
    stop: CancellationToken,
    /// Cancelled once the run has ended.
    ended: CancellationToken,
}

/// What is to be done with a Source.
#[derive(Clone)]
enum SourceWork {
    Run(Arc<api::Source>),
    /// Takes back what an earlier run wrote in its status. It may be unreadable.
    Release(Box<ObjectMeta>, Option<Arc<api::Source>>),
}

impl SourceWork {
    /// Returns what is to be done with a Source, if anything.
    fn of(source: &Result<api::Source, InvalidObject>) -> Option<Self> {
        let (metadata, source) = match source {
            Ok(source) => (&source.metadata, Some(source)),
            Err(invalid) => (&invalid.metadata, None),
        };
        if metadata.deletion_timestamp.is_some() {
            return None;
        }
        let run = source.filter(|source| source.spec.kubernetes.is_some() && !source.spec.suspend);
        match run {
            Some(source) => Some(Self::Run(source.clone().into())),
            None if report::is_left(metadata, source) => Some(Self::Release(
                metadata.clone().into(),
                source.cloned().map(Arc::new),
            )),
            None => None,
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Run(source) => &source.metadata,
            Self::Release(metadata, _) => metadata,
        }
    }

    /// Whether the other one does the same.
    fn is_same(&self, other: &Self) -> bool {
        mem::discriminant(self) == mem::discriminant(other)
            && self.metadata().generation == other.metadata().generation
    }

    async fn done(self, shared: Arc<SourcesProcess>, stop: CancellationToken) {
        match self {
            Self::Run(source) => run::run(shared, source, stop).await,
            Self::Release(metadata, source) => {
                let release = report::release(shared.client.clone(), &metadata, source.as_deref());
                stop.run_until_cancelled(release).await;
            }
        }
    }
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
            namespaces: namespaces.to_vec(),
            known: HashSet::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Waits until all Sources were listed, but not for long for a namespace that cannot be: its Sources are run once it can.
    pub(super) async fn ready(&mut self) {
        let listed = future::join_all(self.stores.iter().map(Store::wait_until_ready));
        let mut some =
            Box::pin(future::select_all(self.stores.iter().map(|store| {
                Box::pin(async move { drop(store.wait_until_ready().await) })
            })));
        let in_time = async {
            some.as_mut().await;
            tokio::time::timeout(LISTED_WITHIN, listed).await.is_ok()
        };
        if !in_time.await {
            tracing::warn!("the Sources of some namespaces cannot be listed; running those of the others");
        }
    }

    /// Runs the Sources until told to stop.
    pub(super) async fn follow(&mut self, stop: &CancellationToken) {
        let mut look = Instant::now();
        loop {
            if self.apply(stop) {
                look = look.min(Instant::now() + REMOVED_AFTER);
            }
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(QUIET).await,
                () = tokio::time::sleep_until(look) => {
                    stop.run_until_cancelled(self.remove_records()).await;
                    look = Instant::now() + LOOK_EVERY;
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Starts and stops runs. Returns whether a Source is gone.
    fn apply(&mut self, term: &CancellationToken) -> bool {
        let mut known = HashSet::new();
        let mut wanted = HashMap::new();
        for guarded in self.stores.iter().flat_map(Store::state) {
            let uid = guarded.meta().uid.clone().unwrap_or_default();
            known.insert(uid.clone());
            if let Some(work) = SourceWork::of(&guarded.0) {
                wanted.insert(uid, work);
            }
        }
        self.running.retain(|uid, running| {
            let is_kept = wanted.contains_key(uid) || !running.ended.is_cancelled();
            if !wanted.contains_key(uid) {
                running.stop.cancel();
            }
            is_kept
        });
        for (uid, work) in wanted {
            let before = self.running.get(&uid);
            if before.is_some_and(|before| before.work.is_same(&work) && !before.stop.is_cancelled()) {
                continue;
            }
            let earlier = before.map(|before| {
                before.stop.cancel();
                before.ended.clone()
            });
            let running = self.begin(work, earlier, term);
            self.running.insert(uid, running);
        }
        let running = self
            .running
            .values()
            .filter(|running| !running.stop.is_cancelled());
        let run: HashSet<_> = running
            .filter_map(|running| match &running.work {
                SourceWork::Run(source) => Some((source.namespace().unwrap_or_default(), source.name_any())),
                SourceWork::Release(..) => None,
            })
            .collect();
        self.shared
            .metrics
            .retain(|namespace, name| run.contains(&(namespace.to_owned(), name.to_owned())));
        let is_gone = !self.known.is_subset(&known);
        self.known = known;
        is_gone
    }

    /// Begins the work once the earlier one has ended. It ends with the term at the latest.
    fn begin(
        &self,
        work: SourceWork,
        earlier: Option<CancellationToken>,
        term: &CancellationToken,
    ) -> Running {
        let (stop, ended) = (term.child_token(), CancellationToken::new());
        let (shared, again) = (self.shared.clone(), (work.clone(), stop.clone()));
        let ObjectMeta { namespace, name, .. } = work.metadata();
        let name = format!(
            "the Source {}/{}",
            namespace.as_deref().unwrap_or_default(),
            name.as_deref().unwrap_or_default()
        );
        let has_ended = ended.clone();
        self.tasks.spawn(async move {
            let _ended = has_ended.drop_guard();
            if let Some(earlier) = earlier {
                earlier.cancelled().await;
            }
            let (work, stop) = again;
            let run = || work.clone().done(shared.clone(), stop.clone());
            while supervision::caught(&name, run()).await.is_err() && !stop.is_cancelled() {
                stop.run_until_cancelled(tokio::time::sleep(AFTER_PANIC)).await;
            }
        });
        Running { work, stop, ended }
    }

    async fn remove_records(&self) {
        let SourcesProcess { client, owner, .. } = &*self.shared;
        let removed = records::remove_others(client.clone(), owner, &self.namespaces);
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
