//! Metrics of the ingress.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        histogram::Histogram,
    },
    registry::Registry,
};

use super::gauge::gauge_value;
use crate::{
    memory::Pool,
    router::{exceeded::ExceededLimit, problem::Problem},
    server::{ConnectionCounts, ConnectionPlaces, ExhaustedResource, OverloadResponse, ServerLimits},
};

/// Buckets in seconds, from well below one fsync to a disk in trouble.
const INGRESS_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Reasons of 503 and 507 answers, which are the router's fault and not the producers'. They are exported from 0
/// on: a series that begins with the first rejection has no increase, and no alert would fire.
pub(super) const REASONS_OF_OURS: [&str; 12] = [
    "no_configuration",
    "too_many_connections",
    "too_many_heads",
    "too_many_bodies",
    "too_many_events",
    "log_failed",
    "log_unavailable",
    "log_full",
    "log_limit",
    "no_keys",
    "unknown_producers",
    "quota",
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Metrics of the ingress.
#[derive(Debug)]
pub(in crate::router) struct IngressMetrics {
    brokers: CountsByBroker,
    rejected: Family<ReasonLabels, Counter>,
    audited: Audited,
    seconds: Histogram,
    connections: ConnectionCounts,
}

/// Counts by broker, as `namespace/name`. Clones share the counts.
#[derive(Clone, Debug, Default)]
struct CountsByBroker(Arc<Mutex<BTreeMap<String, BrokerCounts>>>);

/// Counts of one broker.
#[derive(Clone, Copy, Debug, Default)]
struct BrokerCounts {
    /// Accepted events.
    accepted: u64,
    /// Requests rejected because of a quota, by limit.
    over_quota: [u64; ExceededLimit::ALL.len()],
}

impl CountsByBroker {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, BrokerCounts>> {
        // Each count changes by one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for CountsByBroker {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = self.counts().clone();
        let of = |key: &'_ str| {
            let (namespace, broker) = key.split_once('/').unwrap_or(("", key));
            [("namespace", namespace.to_owned()), ("broker", broker.to_owned())]
        };
        let mut family = encoder.encode_descriptor(
            "events_accepted",
            "Events that were made durable",
            None,
            MetricType::Counter,
        )?;
        for (key, counts) in &counts {
            ConstCounter::new(counts.accepted).encode(family.encode_family(&of(key))?)?;
        }
        let mut family = encoder.encode_descriptor(
            "broker_requests_over_quota",
            "Requests that were rejected because they exceed what the broker or its namespace may",
            None,
            MetricType::Counter,
        )?;
        for (key, counts) in &counts {
            for (limit, count) in ExceededLimit::ALL.into_iter().zip(counts.over_quota) {
                let labels = (of(key), [("limit", limit.label())]);
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Number of requests and events that only the audit let pass, by broker, as `namespace/name`, and reason. Clones share
/// the counts.
#[derive(Clone, Debug, Default)]
struct Audited(Arc<Mutex<BTreeMap<(String, &'static str), u64>>>);

impl Audited {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<(String, &'static str), u64>> {
        // Each count changes by one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Audited {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "producers_audited",
            "Requests and events that would be rejected without the audit of producers",
            None,
            MetricType::Counter,
        )?;
        let counts = self.counts().clone();
        for ((key, reason), count) in counts {
            let (namespace, broker) = key.split_once('/').unwrap_or(("", &key));
            let labels = [("namespace", namespace), ("broker", broker), ("reason", reason)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl IngressMetrics {
    pub(super) fn new() -> Self {
        let rejected = Family::default();
        for reason in REASONS_OF_OURS {
            drop(rejected.get_or_create(&ReasonLabels { reason }));
        }
        Self {
            brokers: CountsByBroker::default(),
            rejected,
            audited: Audited::default(),
            seconds: Histogram::new(INGRESS_SECONDS),
            connections: ConnectionCounts::default(),
        }
    }

    pub(super) fn connections(&self) -> ConnectionCounts {
        self.connections.clone()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.brokers.clone()));
        registry.register_collector(Box::new(self.audited.clone()));
        registry.register_collector(Box::new(ConnectionCollector(self.connections.clone())));
        registry.register(
            "requests_rejected",
            "Requests that were rejected, by reason",
            self.rejected.clone(),
        );
        registry.register(
            "ingress_duration_seconds",
            "Time from a request's head to the answer that its events are durable",
            self.seconds.clone(),
        );
    }

    /// Counts stored events of a broker. A broker removed meanwhile, as `exists` tells, gets no new series.
    pub(in crate::router) fn accepted(
        &self,
        broker: &str,
        exists: impl Fn() -> bool,
        events: usize,
        took: Duration,
    ) {
        self.seconds.observe(took.as_secs_f64());
        if events == 0 {
            return;
        }
        self.count(broker, exists, |counts| counts.accepted += events as u64);
    }

    /// Counts a request that was rejected because it exceeds a limit.
    pub(in crate::router) fn over_quota(
        &self,
        broker: &str,
        limit: ExceededLimit,
        exists: impl Fn() -> bool,
    ) {
        self.count(broker, exists, |counts| counts.over_quota[limit as usize] += 1);
    }

    fn count(&self, broker: &str, exists: impl Fn() -> bool, count: impl FnOnce(&mut BrokerCounts)) {
        let mut brokers = self.brokers.counts();
        match brokers.get_mut(broker) {
            Some(counts) => count(counts),
            None if exists() => count(brokers.entry(broker.to_owned()).or_default()),
            None => {}
        }
    }

    /// Removes the series of brokers that are gone.
    pub(in crate::router) fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        let exists = |key: &str| {
            key.split_once('/')
                .is_some_and(|(namespace, broker)| exists(namespace, broker))
        };
        self.brokers.counts().retain(|key, _| exists(key));
        self.audited.counts().retain(|(key, _), _| exists(key));
    }

    /// Counts a request or event of an existing broker that only the audit let pass.
    pub(in crate::router) fn audited(&self, broker: &str, reason: &'static str) {
        let mut counts = self.audited.counts();
        *counts.entry((broker.to_owned(), reason)).or_default() += 1;
    }

    pub(in crate::router) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Limits of the endpoint that producers post to: this many connections, and this memory for heads of
    /// requests.
    pub(in crate::router) fn limits(self: &Arc<Self>, connections: usize, memory: Pool) -> ServerLimits {
        let metrics = self.clone();
        let refuse = move |refusal| {
            let problem = busy(refusal);
            metrics.rejected(problem.reason());
            let (content_type, body) = problem.into_document();
            OverloadResponse { content_type, body }
        };
        ServerLimits {
            places: ConnectionPlaces::new(connections, self.connections.clone()),
            memory,
            refuse: Arc::new(refuse),
            ..ServerLimits::default()
        }
    }
}

/// Problem for a client without room.
fn busy(refusal: ExhaustedResource) -> Problem {
    let (reason, detail) = match refusal {
        ExhaustedResource::Connections => (
            "too_many_connections",
            "this client, or all together, have as many connections as they may; try again, and use them for more than one \
             request",
        ),
        ExhaustedResource::Heads => (
            "too_many_heads",
            "the headers of this client's requests hold as much memory as they may; send the event again",
        ),
    };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Problem::new(status, reason, "The router is busy", detail).try_again()
}

/// Connections of the ingress.
#[derive(Debug)]
struct ConnectionCollector(ConnectionCounts);

impl Collector for ConnectionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        gauge_value(self.0.open()).encode(encoder.encode_descriptor(
            "ingress_connections",
            "Connections of producers that are open",
            None,
            MetricType::Gauge,
        )?)?;
        ConstCounter::new(self.0.closed_for_room()).encode(encoder.encode_descriptor(
            "ingress_connections_closed",
            "Idle connections that were closed to make room for others, since the start",
            None,
            MetricType::Counter,
        )?)
    }
}
