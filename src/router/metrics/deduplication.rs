//! Metrics of deduplication.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::gauge::gauge_value;
use crate::{
    log::{BrokerName, LogProvider},
    ownership::Shards,
};

/// Exports what brokers with deduplication remember, and the events that they did not store.
pub(super) struct DeduplicationCollector {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) shards: Arc<Shards>,
}

impl fmt::Debug for DeduplicationCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeduplicationCollector").finish_non_exhaustive()
    }
}

impl Collector for DeduplicationCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let of = |broker: &BrokerName| {
            [
                ("namespace", broker.namespace().to_owned()),
                ("broker", broker.name().to_owned()),
            ]
        };
        let mut family = encoder.encode_descriptor(
            "broker_events_deduplicated",
            "Events that were not stored, because the broker remembers one with their source and id",
            None,
            MetricType::Counter,
        )?;
        for (broker, counts) in &self.shards.deduplication().counted() {
            for (result, count) in [("repeat", counts.repeats), ("conflict", counts.conflicts)] {
                let labels = (of(broker), [("result", result)]);
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let remembered = self.logs.remembered_ids();
        let mut family = encoder.encode_descriptor(
            "broker_deduplication_ids",
            "Events whose source and id the broker remembers",
            None,
            MetricType::Gauge,
        )?;
        for (broker, ids) in &remembered {
            gauge_value(ids.ids).encode(family.encode_family(&of(broker))?)?;
        }
        let mut family = encoder.encode_descriptor(
            "broker_deduplication_forgotten_early",
            "Events that were forgotten within the window, because there were too many",
            None,
            MetricType::Counter,
        )?;
        for (broker, ids) in &remembered {
            ConstCounter::new(ids.forgotten_early).encode(family.encode_family(&of(broker))?)?;
        }
        Ok(())
    }
}
