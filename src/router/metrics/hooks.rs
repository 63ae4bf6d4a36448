//! Metrics of webhooks, and how each is, for its status.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Registry,
};

use crate::{
    routing::protocol::{SourceFailureCause, SourceRejection},
    source::SourceProgress,
};

/// What webhooks did since the router started, by `namespace/name`.
#[derive(Clone, Debug, Default)]
pub(in crate::router) struct HookMetrics(Arc<Mutex<BTreeMap<String, HookRecord>>>);

/// What a webhook did.
#[derive(Clone, Debug, Default)]
pub(in crate::router) struct HookRecord {
    /// UID of the Source.
    pub(in crate::router) uid: String,
    /// Its generation.
    pub(in crate::router) generation: i64,
    pub(in crate::router) answers: BTreeMap<&'static str, u64>,
    /// Events that were stored.
    pub(in crate::router) events: u64,
    pub(in crate::router) progress: SourceProgress,
    pub(in crate::router) last_rejection: Option<SourceRejection>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(in crate::router) enum HookOutcome<'a> {
    /// So many events were stored.
    Stored(u64),
    /// Verified, and answered without an event.
    Answered,
    /// A sender asked for permission, which proves nothing.
    Validated,
    /// Rejected.
    Rejected {
        /// What is wrong with it.
        detail: &'a str,
        /// What it tells about the Source, if anything.
        cause: Option<SourceFailureCause>,
    },
}

impl HookMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Counts a request that was answered.
    pub(in crate::router) fn answered(
        &self,
        webhook: &str,
        (uid, generation): (&str, i64),
        result: &'static str,
        outcome: HookOutcome<'_>,
        now: Timestamp,
    ) {
        let mut records = self.lock();
        let record = records.entry(webhook.to_owned()).or_default();
        if record.uid != uid {
            // Another Source with the name of a deleted one.
            record.uid = uid.to_owned();
            (record.progress, record.last_rejection) = Default::default();
        }
        if record.generation != generation {
            record.generation = generation;
            record.progress.changed();
        }
        *record.answers.entry(result).or_default() += 1;
        match outcome {
            HookOutcome::Stored(0) | HookOutcome::Answered => record.progress.succeeded(now),
            HookOutcome::Stored(events) => {
                record.events += events;
                record.progress.stored(now);
            }
            HookOutcome::Validated => {}
            HookOutcome::Rejected { detail, cause } => {
                if let Some(cause) = cause {
                    record.progress.failed(cause, now, detail);
                }
                record.last_rejection = Some(SourceRejection {
                    at: now,
                    reason: result.into(),
                    detail: detail.into(),
                });
            }
        }
    }

    /// Forgets webhooks that do not exist any more.
    pub(in crate::router) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|webhook, _| exists(webhook));
    }

    /// Returns what webhooks did that had a request, by `namespace/name`.
    pub(in crate::router) fn records(&self) -> BTreeMap<String, HookRecord> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, HookRecord>> {
        // No holder of the lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for HookMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "webhook_requests",
            "Requests that webhooks answered, by result: accepted, filtered, challenge, validated, or the reason of a rejection",
            None,
            MetricType::Counter,
        )?;
        for (webhook, record) in self.records() {
            let (namespace, source) = webhook.split_once('/').unwrap_or_default();
            for (result, count) in record.answers {
                let labels = [("namespace", namespace), ("source", source), ("result", result)];
                let labelled = family.encode_family(&labels)?;
                ConstCounter::new(count).encode(labelled)?;
            }
        }
        Ok(())
    }
}
