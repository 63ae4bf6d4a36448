//! Metrics of webhooks.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Registry,
};

/// Answers of each webhook, `namespace/name`, by result.
type Answers = BTreeMap<(String, &'static str), u64>;

/// Counts the requests of webhooks.
#[derive(Clone, Debug, Default)]
pub(in crate::router) struct HookMetrics(Arc<Mutex<Answers>>);

impl HookMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    /// Counts a request that was answered.
    pub(in crate::router) fn answered(&self, webhook: &str, result: &'static str) {
        *self.answers().entry((webhook.to_owned(), result)).or_default() += 1;
    }

    /// Forgets webhooks that do not exist any more.
    pub(in crate::router) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.answers().retain(|(webhook, _), _| exists(webhook));
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        // No holder of the lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for HookMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let answers = self.answers().clone();
        let mut family = encoder.encode_descriptor(
            "webhook_requests",
            "Requests that webhooks answered, by result: accepted, filtered, challenge, or the reason of a rejection",
            None,
            MetricType::Counter,
        )?;
        for ((webhook, result), count) in answers {
            let (namespace, source) = webhook.split_once('/').unwrap_or_default();
            let labels = [("namespace", namespace), ("source", source), ("result", result)];
            let labelled = family.encode_family(&labels)?;
            ConstCounter::new(count).encode(labelled)?;
        }
        Ok(())
    }
}
