//! Metrics of the process, and of each Source that it runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        MetricType,
        counter::ConstCounter,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use crate::routing::ChangeKind;

/// By namespace and name.
type SourceCountersByName = BTreeMap<(String, String), Arc<SourceCounters>>;

/// The metrics of the process.
#[derive(Clone, Debug, Default)]
pub(super) struct SourcesMetrics {
    leader: Gauge,
    sources: Arc<Mutex<SourceCountersByName>>,
}

/// What a Source did since this process first ran it. Each change that it saw is produced, filtered, rejected, failed, left,
/// or pending.
#[derive(Debug, Default)]
pub(super) struct SourceCounters {
    changes: [AtomicU64; 3],
    produced: AtomicU64,
    filtered: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    left: AtomicU64,
    refused: AtomicU64,
    pending: AtomicU64,
    objects: AtomicU64,
    connected: AtomicU64,
}

impl SourceCounters {
    /// Counts a change that was seen.
    pub(super) fn changed(&self, kind: ChangeKind) {
        for (counted, count) in ChangeKind::ALL.iter().zip(&self.changes) {
            if *counted == kind {
                count.fetch_add(1, Relaxed);
            }
        }
    }

    /// Counts an event that is durable.
    pub(super) fn produced(&self) {
        self.produced.fetch_add(1, Relaxed);
    }

    /// Counts a change that is not to be told.
    pub(super) fn filtered(&self) {
        self.filtered.fetch_add(1, Relaxed);
    }

    /// Counts an event that the broker will never accept.
    pub(super) fn rejected(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// Counts a change whose event could not be made, or for which a filter failed.
    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    /// Counts changes that a run had not settled when it ended. None is pending any more.
    pub(super) fn left(&self, changes: usize) {
        self.left.fetch_add(changes as u64, Relaxed);
        self.pending.store(0, Relaxed);
    }

    /// The changes that are not pending: produced, filtered, rejected, failed and left.
    #[cfg(test)]
    pub(super) fn settled(&self) -> [u64; 5] {
        let counts = [
            &self.produced,
            &self.filtered,
            &self.rejected,
            &self.failed,
            &self.left,
        ];
        counts.map(|count| count.load(Relaxed))
    }

    /// Counts an attempt that is repeated.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Sets the number of changes that are not settled, and of objects.
    pub(super) fn holds(&self, pending: usize, objects: usize) {
        self.pending.store(pending as u64, Relaxed);
        self.objects.store(objects as u64, Relaxed);
    }

    /// Sets whether the Source works.
    pub(super) fn is_connected(&self, is_connected: bool) {
        self.connected.store(u64::from(is_connected), Relaxed);
    }
}

impl SourcesMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "leader",
            "1 while this process runs the Sources of kind kubernetes",
            self.leader.clone(),
        );
        registry.register_collector(Box::new(self.clone()));
    }

    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.sources().clear();
        }
    }

    /// Returns the counters of a Source.
    pub(super) fn of(&self, namespace: &str, name: &str) -> Arc<SourceCounters> {
        let key = (namespace.to_owned(), name.to_owned());
        self.sources().entry(key).or_default().clone()
    }

    /// Forgets Sources that are not run any more.
    pub(super) fn retain(&self, is_run: impl Fn(&str, &str) -> bool) {
        self.sources()
            .retain(|(namespace, name), _| is_run(namespace, name));
    }

    fn sources(&self) -> MutexGuard<'_, SourceCountersByName> {
        // No holder of the lock can panic halfway through a change.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Name, help and value of a metric with one series a Source.
type SourceMetric = (&'static str, &'static str, fn(&SourceCounters) -> &AtomicU64);

const COUNTERS: [SourceMetric; 6] = [
    ("events_produced", "Events that the Source produced", |counters| {
        &counters.produced
    }),
    (
        "changes_filtered",
        "Changes of objects that are not told, by the Source's events or filters",
        |counters| &counters.filtered,
    ),
    (
        "events_rejected",
        "Events that the broker will never accept, and that are given up",
        |counters| &counters.rejected,
    ),
    (
        "changes_failed",
        "Changes of objects whose event cannot be made, or for which a filter failed",
        |counters| &counters.failed,
    ),
    (
        "changes_left",
        "Changes of objects that were not settled when the Source was changed or began anew, and that are seen again",
        |counters| &counters.left,
    ),
    (
        "attempts_failed",
        "Attempts to post an event that failed, and are repeated",
        |counters| &counters.refused,
    ),
];

const GAUGES: [SourceMetric; 3] = [
    (
        "changes_pending",
        "Changes of objects that were seen and are not settled",
        |counters| &counters.pending,
    ),
    ("objects", "Objects that the Source follows", |counters| {
        &counters.objects
    }),
    (
        "connected",
        "1 if the Source watches its objects and the broker takes its events",
        |counters| &counters.connected,
    ),
];

impl Collector for SourcesMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sources = self.sources().clone();
        let mut family = encoder.encode_descriptor(
            "changes",
            "Changes of objects that the Source saw",
            None,
            MetricType::Counter,
        )?;
        for ((namespace, source), counters) in &sources {
            for (kind, count) in ChangeKind::ALL.iter().zip(&counters.changes) {
                let labels = [
                    ("namespace", namespace.as_str()),
                    ("source", source),
                    ("change", kind.word()),
                ];
                ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for ((namespace, source), counters) in &sources {
                let labels = [("namespace", namespace.as_str()), ("source", source)];
                ConstCounter::new(value(counters).load(Relaxed)).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, value) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((namespace, source), counters) in &sources {
                let labels = [("namespace", namespace.as_str()), ("source", source)];
                let value = i64::try_from(value(counters).load(Relaxed)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::documented::assert_documented;

    #[test]
    fn metrics_are_documented() {
        let metrics = SourcesMetrics::default();
        metrics.of("shop", "objects");
        let mut registry = Registry::with_prefix("weir_sources");
        metrics.register(&mut registry);
        assert_documented(&registry, |name| name.starts_with("weir_sources_"));
    }
}
