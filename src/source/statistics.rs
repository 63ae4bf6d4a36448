//! Counts what the Sources do, for metrics.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::routing;

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
                caught_up: counters.caught_up.load(Ordering::Relaxed),
                filtered: counters.filtered.load(Ordering::Relaxed),
            })
            .collect()
    }

    pub(super) fn of(&self, source: &routing::Source) -> Arc<Counters> {
        let key = (source.namespace.clone(), source.name.clone());
        Arc::clone(self.lock().entry(key).or_default())
    }

    pub(super) fn keep<'a>(&self, sources: impl Iterator<Item = &'a routing::Source>) {
        let present: HashSet<_> = sources
            .map(|source| (&*source.namespace, &*source.name))
            .collect();
        self.lock()
            .retain(|(namespace, name), _| present.contains(&(&**namespace, &**name)));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, CountersBySource> {
        // A panic elsewhere cannot leave a map of counters inconsistent.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
