//! Metrics of Sources of all kinds.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use super::{HookMetrics, gauge::gauge_value};
use crate::{
    ownership::Shards,
    source::{SourceCounts, SourceProgress},
};

/// Reads what the Sources do on each scrape.
pub(super) struct SourceCollector {
    pub(super) shards: Arc<Shards>,
    pub(super) hooks: Arc<HookMetrics>,
}

impl fmt::Debug for SourceCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceCollector").finish_non_exhaustive()
    }
}

/// A Source of any kind.
struct ShownSource<'a> {
    labels: [(&'static str, &'a str); 2],
    events: u64,
    progress: &'a SourceProgress,
}

impl<'a> ShownSource<'a> {
    fn new(namespace: &'a str, name: &'a str, events: u64, progress: &'a SourceProgress) -> Self {
        Self {
            labels: [("namespace", namespace), ("source", name)],
            events,
            progress,
        }
    }
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (schedules, hooks) = (self.shards.statistics().snapshot(), self.hooks.records());
        let hooks = hooks.iter().map(|(key, record)| {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            ShownSource::new(namespace, name, record.events, &record.progress)
        });
        let schedules_shown = schedules.iter().map(|counts| {
            ShownSource::new(&counts.namespace, &counts.name, counts.produced, &counts.progress)
        });
        let all: Vec<_> = schedules_shown.chain(hooks).collect();
        let mut family = encoder.encode_descriptor(
            "source_events_produced",
            "Events of the Source that were made durable, since the start",
            None,
            MetricType::Counter,
        )?;
        for source in &all {
            ConstCounter::new(source.events).encode(family.encode_family(&source.labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "source_last_event_timestamp_seconds",
            "Time at which the last event of the Source was stored, in Unix time",
            None,
            MetricType::Gauge,
        )?;
        for source in &all {
            if let Some(at) = source.progress.last_event {
                let second = u64::try_from(at.as_second()).unwrap_or_default();
                gauge_value(second).encode(family.encode_family(&source.labels)?)?;
            }
        }
        times(&mut encoder, &schedules)
    }
}

/// Encodes what only schedules have.
fn times(encoder: &mut DescriptorEncoder<'_>, schedules: &[SourceCounts]) -> fmt::Result {
    let labels = |source: &SourceCounts| {
        [
            ("namespace", source.namespace.clone()),
            ("source", source.name.clone()),
        ]
    };
    type Count = fn(&SourceCounts) -> u64;
    let counters: [(&str, &str, Count); 3] = [
        (
            "source_times_missed",
            "Scheduled times without an event, since the start",
            |source| source.missed,
        ),
        (
            "source_times_caught_up",
            "Events of scheduled times that were missed and made up for, since the start",
            |source| source.caught_up,
        ),
        (
            "source_times_filtered",
            "Scheduled times whose event does not match the Source's filters, since the start",
            |source| source.filtered,
        ),
    ];
    for (name, help, count) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for source in schedules {
            ConstCounter::new(count(source)).encode(family.encode_family(&labels(source))?)?;
        }
    }
    let mut family = encoder.encode_descriptor(
        "source_lag_seconds",
        "Seconds since the oldest scheduled time that is due and has no event yet, or 0",
        None,
        MetricType::Gauge,
    )?;
    let now = Timestamp::now();
    for source in schedules {
        let lag = source
            .progress
            .waiting_since
            .map(|since| now.duration_since(since).as_secs());
        let lag = u64::try_from(lag.unwrap_or_default()).unwrap_or_default();
        gauge_value(lag).encode(family.encode_family(&labels(source))?)?;
    }
    Ok(())
}
