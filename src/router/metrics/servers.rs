//! Metrics of the servers that keep the log. All routers see the same servers and streams, so a query takes the maximum
//! over routers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::Gauge},
    registry::Registry,
};

use super::gauge::gauge_value;
use crate::{
    log::{LogHealth, LogName, LogProvider, StreamHealth},
    ownership::Shards,
};

const AVAILABLE: (&str, &str) = (
    "log_available",
    "1 while the servers that keep the log respond to this router, else 0",
);
/// Maximum number of series for streams with missing replicas. A lost server has a replica of most streams.
const STREAMS: usize = 100;

/// Reads the health of the log on each scrape.
pub(super) struct ServerCollector {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) shards: Arc<Shards>,
}

impl fmt::Debug for ServerCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCollector").finish_non_exhaustive()
    }
}

/// Registers the metric of unavailable servers, for a router that waits for them.
pub(super) fn register_unavailable(registry: &mut Registry) {
    let (name, help) = AVAILABLE;
    registry.register(name, help, Gauge::<i64>::default());
}

impl Collector for ServerCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = AVAILABLE;
        match self.logs.health() {
            None => Ok(()),
            Some(LogHealth::Unavailable) => gauge(&mut encoder, name, help, 0),
            Some(LogHealth::Available(streams)) => {
                gauge(&mut encoder, name, help, 1)?;
                replicas_and_leaders(&mut encoder, &streams)?;
                self.max_bytes(&mut encoder, &streams)
            }
        }
    }
}

impl ServerCollector {
    /// For the streams that have a series `log_retained_bytes` at this router.
    fn max_bytes(&self, encoder: &mut DescriptorEncoder<'_>, streams: &[StreamHealth]) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "log_stream_max_bytes",
            "Retained data at which the log of the broker is full",
            None,
            MetricType::Gauge,
        )?;
        let limits = streams
            .iter()
            .filter_map(|stream| Some((stream.log.as_ref()?, stream.max_bytes?)));
        let limits: BTreeMap<_, _> = limits.collect();
        for (name, _) in self.shards.usage() {
            if let Some(max_bytes) = limits.get(&name) {
                let (namespace, broker) = labels(Some(&name));
                let labels = [("namespace", &*namespace), ("broker", &*broker)];
                gauge_value(*max_bytes).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn replicas_and_leaders(encoder: &mut DescriptorEncoder<'_>, streams: &[StreamHealth]) -> fmt::Result {
    gauge(
        encoder,
        "log_replicas_missing",
        "Replicas of all streams together that are offline or behind",
        streams.iter().map(|stream| stream.replicas_missing).sum(),
    )?;
    let without_leader = streams.iter().filter(|stream| !stream.has_leader);
    gauge(
        encoder,
        "log_streams_without_leader",
        "Streams without a leader, to which nothing can be appended",
        without_leader.count() as u64,
    )?;
    let mut family = encoder.encode_descriptor(
        "log_stream_replicas_missing",
        "Replicas of the stream that are offline or behind; only streams with any, and at most 100",
        None,
        MetricType::Gauge,
    )?;
    let missing = streams.iter().filter(|stream| stream.replicas_missing > 0);
    let mut missing: Vec<_> = missing.collect();
    missing.sort_by_key(|stream| (std::cmp::Reverse(stream.replicas_missing), &stream.name));
    for stream in missing.into_iter().take(STREAMS) {
        let (namespace, broker) = labels(stream.log.as_ref());
        let labels = [
            ("stream", &*stream.name),
            ("namespace", &*namespace),
            ("broker", &*broker),
        ];
        gauge_value(stream.replicas_missing).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Labels `namespace` and `broker` of a log, as in `log_retained_bytes`; empty for the checkpoints.
fn labels(log: Option<&LogName>) -> (String, String) {
    let key = log.map(ToString::to_string).unwrap_or_default();
    let (namespace, broker) = key.split_once('/').unwrap_or(("", &key));
    (namespace.to_owned(), broker.to_owned())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    gauge_value(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}
