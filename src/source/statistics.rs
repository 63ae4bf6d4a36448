//! Counts what the Sources do, for metrics, and notes how they are, for their statuses.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;

use super::progress::SourceProgress;
use crate::{
    log::LogError,
    routing::{self, protocol::SourceFailureCause},
};

/// Counters of the Sources, for metrics. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Statistics(Arc<Mutex<CountersBySource>>);

/// By namespace and name.
type CountersBySource = BTreeMap<(String, String), Arc<Counters>>;

/// Counts of one Source.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) produced: AtomicU64,
    pub(super) missed: AtomicU64,
    pub(super) caught_up: AtomicU64,
    pub(super) filtered: AtomicU64,
    /// UID of the Source, and how it is.
    state: Mutex<(String, SourceProgress)>,
}

impl Counters {
    /// Notes that an event was stored.
    pub(super) fn stored(&self, at: Timestamp) {
        self.produced.fetch_add(1, Ordering::Relaxed);
        self.state().1.stored(at);
    }

    /// Notes that a scheduled time was settled without an event.
    pub(super) fn succeeded(&self, at: Timestamp) {
        self.state().1.succeeded(at);
    }

    /// Notes a failure, and the scheduled time whose event is tried again, if it is.
    pub(super) fn failed(
        &self,
        cause: SourceFailureCause,
        at: Timestamp,
        detail: &str,
        waiting_since: Option<Timestamp>,
    ) {
        let mut state = self.state();
        state.1.failed(cause, at, detail);
        state.1.waiting_since = waiting_since;
    }

    /// Notes that the Source has ended because of an error of the log.
    pub(super) fn ended(&self, at: Timestamp, error: &LogError) {
        self.failed(SourceFailureCause::Ended, at, &error.to_string(), None);
    }

    fn state(&self) -> MutexGuard<'_, (String, SourceProgress)> {
        // No holder of the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    /// Scheduled times without an event, because the log did not take it, a filter failed or the time was missed.
    pub missed: u64,
    /// Events of scheduled times that had passed while nobody ran the Source, or more than a minute before; `produced`
    /// counts them too.
    pub caught_up: u64,
    /// Scheduled times whose event does not match the Source's filters.
    pub filtered: u64,
    /// UID of the Source.
    pub uid: String,
    /// How it is.
    pub progress: SourceProgress,
}

impl Statistics {
    /// Returns the counts of the running Sources, ordered by namespace and name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<SourceCounts> {
        self.lock()
            .iter()
            .map(|((namespace, name), counters)| {
                let (uid, progress) = counters.state().clone();
                SourceCounts {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    produced: counters.produced.load(Ordering::Relaxed),
                    missed: counters.missed.load(Ordering::Relaxed),
                    caught_up: counters.caught_up.load(Ordering::Relaxed),
                    filtered: counters.filtered.load(Ordering::Relaxed),
                    uid,
                    progress,
                }
            })
            .collect()
    }

    /// Returns the counters of a Source that begins to run. Its last event is that of an earlier run; its failure is not.
    pub(super) fn of(&self, source: &routing::Source) -> Arc<Counters> {
        let key = (source.namespace.clone(), source.name.clone());
        let counters = Arc::clone(self.lock().entry(key).or_default());
        let mut state = counters.state();
        let mut progress = match state.0 == source.uid {
            true => state.1.clone(),
            false => SourceProgress::default(),
        };
        progress.changed();
        *state = (source.uid.clone(), progress);
        drop(state);
        counters
    }

    pub(super) fn keep<'a>(&self, sources: impl Iterator<Item = &'a routing::Source>) {
        let present: HashSet<_> = sources
            .map(|source| (&*source.namespace, &*source.name))
            .collect();
        self.lock()
            .retain(|(namespace, name), _| present.contains(&(&**namespace, &**name)));
    }

    fn lock(&self) -> MutexGuard<'_, CountersBySource> {
        // A panic elsewhere cannot leave a map of counters inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
