//! Starts and stops the Sources, and counts what they do. Each kind has a module of its own, which [`run`] calls.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    clock::{Clock, SystemClock},
    cron,
};
use crate::{intake::Intake, log::BrokerName, routing, supervision};

/// The running Sources. Dropping it stops them without waiting; see [`Sources::shutdown`].
pub struct Sources {
    intake: Intake,
    clock: Arc<dyn Clock>,
    running: HashMap<String, Running>,
    statistics: Statistics,
    tasks: TaskTracker,
}

/// What a Source of any kind works with.
pub(super) struct Context {
    pub(super) broker: BrokerName,
    pub(super) intake: Intake,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Arc<Counters>,
    pub(super) stop: CancellationToken,
}

/// Runs a Source until it is told to stop.
async fn run(source: routing::Source, context: Context) {
    match source.kind.clone() {
        routing::SourceKind::Cron(cron) => cron::run(source, cron, context).await,
    }
}

struct Running {
    source: routing::Source,
    stop: CancellationToken,
}

/// Counters of the Sources, for metrics. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Mutex<Counts>>);

/// By namespace and name.
type Counts = BTreeMap<(String, String), Arc<Counters>>;

/// Counts of one Source.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) produced: AtomicU64,
    pub(super) missed: AtomicU64,
}

/// Counts of one Source since this process first ran it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceCounts {
    /// Namespace of the Source.
    pub namespace: String,
    /// Name of the Source.
    pub name: String,
    /// Events appended to the log.
    pub produced: u64,
    /// Scheduled times without an event, because the log was full or the time was missed.
    pub missed: u64,
}

impl Statistics {
    /// Returns the counts of the running Sources, ordered by namespace and name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<SourceCounts> {
        self.lock()
            .iter()
            .map(|((namespace, name), counters)| SourceCounts {
                namespace: namespace.clone(),
                name: name.clone(),
                produced: counters.produced.load(Ordering::Relaxed),
                missed: counters.missed.load(Ordering::Relaxed),
            })
            .collect()
    }

    fn of(&self, source: &routing::Source) -> Arc<Counters> {
        let key = (source.namespace.clone(), source.name.clone());
        Arc::clone(self.lock().entry(key).or_default())
    }

    fn keep(&self, sources: &[routing::Source]) {
        self.lock().retain(|(namespace, name), _| {
            sources
                .iter()
                .any(|source| source.namespace == *namespace && source.name == *name)
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // A panic elsewhere cannot leave a map of counters inconsistent.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.stop.cancel();
        }
    }
}

impl Sources {
    /// Creates a runner without Sources. It appends events to `log` and frees space through `room`.
    pub fn new(intake: Intake) -> Self {
        Self::with_clock(intake, Arc::new(SystemClock))
    }

    fn with_clock(intake: Intake, clock: Arc<dyn Clock>) -> Self {
        Self {
            intake,
            clock,
            running: HashMap::new(),
            statistics: Statistics::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns the counters, for metrics.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.statistics.clone()
    }

    /// Replaces the set of running Sources. Must be called within a tokio runtime. Unchanged Sources continue
    /// undisturbed; a changed one continues with its next time from now.
    pub fn apply(&mut self, sources: &[routing::Source]) {
        self.running.retain(|uid, running| {
            let unchanged = sources
                .iter()
                .any(|source| source.uid == *uid && *source == running.source);
            if !unchanged {
                running.stop.cancel();
            }
            unchanged
        });
        self.statistics.keep(sources);
        for source in sources {
            if self.running.contains_key(&source.uid) {
                continue;
            }
            let stop = CancellationToken::new();
            self.running.insert(
                source.uid.clone(),
                Running {
                    source: source.clone(),
                    stop: stop.clone(),
                },
            );
            let context = Context {
                broker: BrokerName::new(&source.namespace, &source.broker),
                intake: self.intake.clone(),
                clock: Arc::clone(&self.clock),
                counters: self.statistics.of(source),
                stop,
            };
            let name = format!("the Source {}/{}", source.namespace, source.name);
            let running = run(source.clone(), context);
            // A Source that panicked produces no more events until the router restarts. The others continue.
            self.tasks
                .spawn(async move { drop(supervision::caught(&name, running).await) });
        }
    }

    /// Stops all Sources. Waits for appends in progress.
    pub async fn shutdown(mut self) {
        self.apply(&[]);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
