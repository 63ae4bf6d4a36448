//! What Prometheus sees of a router. Names are listed in the operator's documentation.

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
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};

use super::problem::Problem;
use crate::{
    delivery::{Engine, TriggerStats, TriggerView},
    descriptors,
    log::LogProvider,
    memory::Pool,
    server::{ConnectionCounts, Limits, Refusal, Refused},
    source::{SourceCounts, Statistics},
};

/// From well below one fsync to a disk in trouble, in seconds.
const INGRESS_SECONDS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// The reasons of answers 503 and 507, which are the router's and not the producers'. They are counted from 0 on: a
/// series that begins with the first refusal has not increased, and no alert would fire.
const REASONS_OF_OURS: [&str; 9] = [
    "no_configuration",
    "too_many_connections",
    "too_many_heads",
    "too_many_bodies",
    "too_many_events",
    "log_failed",
    "log_unavailable",
    "log_full",
    "log_limit",
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RevisionLabels {
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

/// What the ingress counts.
#[derive(Debug)]
pub(super) struct IngressMetrics {
    accepted: Accepted,
    rejected: Family<ReasonLabels, Counter>,
    seconds: Histogram,
    connections: ConnectionCounts,
}

/// How many events were accepted, by broker, as `namespace/name`. Clones are one and the same.
#[derive(Clone, Debug, Default)]
struct Accepted(Arc<Mutex<BTreeMap<String, u64>>>);

impl Accepted {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        // Each count is changed by one addition.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Accepted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "events_accepted",
            "Events that were made durable",
            None,
            MetricType::Counter,
        )?;
        let counts = self.counts().clone();
        for (key, count) in counts {
            let (namespace, broker) = key.split_once('/').unwrap_or(("", &key));
            ConstCounter::new(count)
                .encode(family.encode_family(&[("namespace", namespace), ("broker", broker)])?)?;
        }
        Ok(())
    }
}

impl IngressMetrics {
    /// Events of a broker were stored. One that is gone meanwhile, as `exists` tells, gets no new series.
    pub(super) fn accepted(&self, broker: &str, exists: impl Fn() -> bool, events: usize, took: Duration) {
        self.seconds.observe(took.as_secs_f64());
        if events == 0 {
            return;
        }
        let mut counts = self.accepted.counts();
        match counts.get_mut(broker) {
            Some(count) => *count += events as u64,
            None if exists() => drop(counts.insert(broker.to_owned(), events as u64)),
            None => {}
        }
    }

    /// Forgets the brokers that are gone.
    pub(super) fn retain(&self, exists: impl Fn(&str, &str) -> bool) {
        self.accepted.counts().retain(|key, _| {
            key.split_once('/')
                .is_some_and(|(namespace, broker)| exists(namespace, broker))
        });
    }

    pub(super) fn rejected(&self, reason: &'static str) {
        self.rejected.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The limits of the endpoint that producers post to: so many connections, and this for the heads of requests.
    pub(super) fn limits(self: &Arc<Self>, connections: usize, memory: Pool) -> Limits {
        let metrics = self.clone();
        let refuse = move |refusal| {
            let problem = busy(refusal);
            metrics.rejected(problem.reason());
            let (content_type, body) = problem.into_document();
            Refused { content_type, body }
        };
        Limits {
            connections,
            memory,
            counts: self.connections.clone(),
            refuse: Arc::new(refuse),
            ..Limits::default()
        }
    }
}

/// What whoever finds no room is told.
fn busy(refusal: Refusal) -> Problem {
    let (reason, detail) = match refusal {
        Refusal::Connections => (
            "too_many_connections",
            "this client, or all together, have as many connections as they may; try again, and use them for more than one \
             request",
        ),
        Refusal::Heads => (
            "too_many_heads",
            "the headers of this client's requests hold as much memory as they may; send the event again",
        ),
    };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Problem::new(status, reason, "The router is busy", detail).try_again()
}

/// All metrics of a router.
pub(super) struct Metrics {
    pub(super) registry: Registry,
    pub(super) ingress: Arc<IngressMetrics>,
    pub(super) configuration: ConfigurationInfo,
}

/// Which revision is applied.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigurationInfo(Family<RevisionLabels, Gauge>);

impl ConfigurationInfo {
    pub(super) fn applied(&self, revision: &str) {
        self.0.clear();
        self.0
            .get_or_create(&RevisionLabels {
                revision: revision.to_owned(),
            })
            .set(1);
    }
}

impl Metrics {
    pub(super) fn new(logs: Arc<dyn LogProvider>, engine: Arc<Engine>, sources: Statistics) -> Self {
        let mut all = Registry::default();
        all.register_collector(Box::new(ProcessCollector));
        let registry = all.sub_registry_with_prefix("weir");
        let ingress = Arc::new(IngressMetrics {
            accepted: Accepted::default(),
            rejected: Family::default(),
            seconds: Histogram::new(INGRESS_SECONDS),
            connections: ConnectionCounts::default(),
        });
        for reason in REASONS_OF_OURS {
            drop(ingress.rejected.get_or_create(&ReasonLabels { reason }));
        }
        let configuration = ConfigurationInfo::default();
        let build = Family::<VersionLabels, Gauge>::default();
        build
            .get_or_create(&VersionLabels {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        registry.register("build_info", "The version that runs", build);
        registry.register_collector(Box::new(ingress.accepted.clone()));
        registry.register_collector(Box::new(ConnectionCollector(ingress.connections.clone())));
        registry.register(
            "requests_rejected",
            "Requests that were refused, by reason",
            ingress.rejected.clone(),
        );
        registry.register(
            "ingress_duration_seconds",
            "Time from a request's head to the answer that its events are durable",
            ingress.seconds.clone(),
        );
        registry.register(
            "router_configuration_info",
            "1 for the revision of the routing configuration that is applied",
            configuration.0.clone(),
        );
        registry.register_collector(Box::new(DeliveryCollector {
            logs,
            engine,
            sources,
        }));
        Self {
            registry: all,
            ingress,
            configuration,
        }
    }
}

/// The ingress's connections.
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

/// What every process tells of itself, under the names that everybody uses.
#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(open) = descriptors::open() {
            gauge_value(open).encode(encoder.encode_descriptor(
                "process_open_fds",
                "File descriptors that are open",
                None,
                MetricType::Gauge,
            )?)?;
        }
        gauge_value(descriptors::limit()).encode(encoder.encode_descriptor(
            "process_max_fds",
            "File descriptors that may be open",
            None,
            MetricType::Gauge,
        )?)
    }
}

/// Reads the engine's and the log's figures when they are asked for, so that counting costs delivery nothing.
struct DeliveryCollector {
    logs: Arc<dyn LogProvider>,
    engine: Arc<Engine>,
    sources: Statistics,
}

impl fmt::Debug for DeliveryCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryCollector").finish_non_exhaustive()
    }
}

type Labels<'a> = [(&'static str, &'a str); 3];

fn labels(view: &TriggerView) -> Labels<'_> {
    let broker = view.broker().name();
    [
        ("namespace", &view.namespace),
        ("trigger", &view.name),
        ("broker", broker),
    ]
}

impl Collector for DeliveryCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let triggers = self.engine.triggers();
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_matched",
            "Events that the Trigger wanted",
            TriggerStats::matched,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_redriven",
            "Events that were dead letters and matched once more on request",
            TriggerStats::redriven,
        )?;
        settled(&mut encoder, &triggers)?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_events_missed",
            "Events that the Trigger could not look at, removed before or not readable, since the start",
            TriggerStats::missed,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_filter_errors",
            "Events not matched because a filter ended in an error, since the start",
            TriggerStats::filter_errors,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_filter_overruns",
            "Events not matched because the filters took more than their budget, since the start",
            TriggerStats::filter_overruns,
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_set_aside",
            "1 while the filters are not evaluated, as they took more than their budget too often",
            |view| u64::from(view.stats.is_set_aside()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_events_pending",
            "Events wanted and not settled",
            |view| view.stats.pending(),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_backlog_events",
            "Events of the broker not looked at yet",
            |view| view.backlog(),
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts",
            "Delivery attempts since the start",
            TriggerStats::attempts,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts_failed",
            "Delivery attempts since the start that did not deliver",
            TriggerStats::failed_attempts,
        )?;
        counter(
            &mut encoder,
            &triggers,
            "trigger_attempts_put_off",
            "Delivery attempts since the start that the router put off, having no memory or no connection for them",
            TriggerStats::put_off,
        )?;
        attempts_took(&mut encoder, &triggers)?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_attempts_in_flight",
            "Delivery attempts under way",
            |view| view.stats.in_flight(),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_sink_down",
            "1 while the Sink keeps failing or has asked for a long pause",
            |view| u64::from(view.sink.outage().is_some()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_stopped",
            "1 once delivery has ended because the event log cannot be read, or by a fault in Weir",
            |view| u64::from(view.stats.is_stopped()),
        )?;
        gauge(
            &mut encoder,
            &triggers,
            "trigger_waiting_full",
            "1 while so many events wait for retries or for others of their key that no new ones are taken",
            |view| u64::from(view.stats.is_full()),
        )?;
        replies(&mut encoder, &triggers)?;
        let dropped = ConstCounter::new(self.engine.dropped_with_trigger());
        dropped.encode(encoder.encode_descriptor(
            "events_dropped_with_trigger",
            "Events that had matched and were not settled when the place of their deleted Trigger was given up, since the start; its backlog is not counted",
            None,
            MetricType::Counter,
        )?)?;
        let kept = gauge_value(self.engine.kept_count() as u64);
        kept.encode(encoder.encode_descriptor(
            "triggers_kept",
            "Deleted Triggers whose places are kept for others of their names",
            None,
            MetricType::Gauge,
        )?)?;
        let expired = ConstCounter::new(self.engine.dead_letters_expired());
        expired.encode(encoder.encode_descriptor(
            "dead_letters_expired",
            "Dead letters removed because of their age or their number, since the start",
            None,
            MetricType::Counter,
        )?)?;
        self.dropped_when_full(&mut encoder, &triggers)?;
        self.dead_letters(&mut encoder)?;
        self.produced(&mut encoder)?;
        self.log_bytes(&mut encoder)?;
        let read_errors = ConstCounter::new(self.logs.read_errors());
        read_errors.encode(encoder.encode_descriptor(
            "log_read_errors",
            "Attempts to read the event log that the disk failed; they are tried again, since the start",
            None,
            MetricType::Counter,
        )?)?;
        let Some(capacity) = self.logs.capacity() else {
            return Ok(());
        };
        gauge_value(capacity.capacity()).encode(encoder.encode_descriptor(
            "log_capacity_bytes",
            "Retained data, of all brokers together, at which the event log is full",
            None,
            MetricType::Gauge,
        )?)
    }
}

impl DeliveryCollector {
    fn produced(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let sources = self.sources.snapshot();
        type Count = fn(&SourceCounts) -> u64;
        let counters: [(&str, &str, Count); 2] = [
            (
                "source_events_produced",
                "Events that the Source made, since the start",
                |source| source.produced,
            ),
            (
                "source_times_missed",
                "Scheduled times without an event, since the start",
                |source| source.missed,
            ),
        ];
        for (name, help, count) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for source in &sources {
                let labels = [
                    ("namespace", source.namespace.as_str()),
                    ("source", source.name.as_str()),
                ];
                ConstCounter::new(count(source)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// Of every broker that has a Trigger, from 0 on: see [`REASONS_OF_OURS`].
    fn dropped_when_full(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        triggers: &[TriggerView],
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "events_dropped_when_full",
            "Events removed to make room before every Trigger had settled them, since the start",
            None,
            MetricType::Counter,
        )?;
        let mut dropped = self.engine.dropped_when_full();
        for view in triggers {
            dropped.entry(view.broker().clone()).or_default();
        }
        for (broker, count) in dropped {
            let labels = [("namespace", broker.namespace()), ("broker", broker.name())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn dead_letters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "dead_letters",
            "Dead letters that are kept",
            None,
            MetricType::Gauge,
        )?;
        for (broker, count) in self.engine.dead_letter_brokers() {
            let labels = [("namespace", broker.namespace()), ("broker", broker.name())];
            gauge_value(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn log_bytes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "log_retained_bytes",
            "Data retained in the event log",
            None,
            MetricType::Gauge,
        )?;
        for (name, bytes) in self.logs.usage() {
            let key = name.to_string();
            let (namespace, broker) = key.split_once('/').unwrap_or(("", &key));
            gauge_value(bytes)
                .encode(family.encode_family(&[("namespace", namespace), ("broker", broker)])?)?;
        }
        Ok(())
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    value: impl Fn(&TriggerStats) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for view in triggers {
        ConstCounter::new(value(&view.stats)).encode(family.encode_family(&labels(view))?)?;
    }
    Ok(())
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    value: impl Fn(&TriggerView) -> u64,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for view in triggers {
        gauge_value(value(view)).encode(family.encode_family(&labels(view))?)?;
    }
    Ok(())
}

fn gauge_value(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

fn attempts_took(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    let mut family = encoder.encode_descriptor(
        "trigger_attempt_duration_seconds",
        "Time that ended delivery attempts took, all together, since the start",
        None,
        MetricType::Counter,
    )?;
    for view in triggers {
        let seconds = view.stats.attempts_took().as_secs_f64();
        ConstCounter::new(seconds).encode(family.encode_family(&labels(view))?)?;
    }
    Ok(())
}

fn settled(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    outcomes(
        encoder,
        triggers,
        "trigger_events_settled",
        "Events that the Trigger wanted, by how they ended",
        |stats| {
            [
                ("delivered", stats.delivered()),
                ("expired", stats.expired()),
                ("dead_lettered", stats.dead_lettered()),
                ("dropped", stats.dropped()),
            ]
        },
    )
}

fn replies(encoder: &mut DescriptorEncoder<'_>, triggers: &[TriggerView]) -> fmt::Result {
    outcomes(
        encoder,
        triggers,
        "trigger_replies",
        "Events that the Sink replied with, by what became of them, since the start",
        |stats| {
            [
                ("stored", stats.replies_stored()),
                ("beyond_max_hops", stats.replies_beyond_max_hops()),
                ("beyond_max_descendants", stats.replies_beyond_max_descendants()),
                ("invalid", stats.replies_invalid()),
            ]
        },
    )
}

/// A counter with the label `outcome` beside those of the Trigger.
fn outcomes<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    triggers: &[TriggerView],
    name: &str,
    help: &str,
    values: impl Fn(&TriggerStats) -> [(&'static str, u64); N],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for view in triggers {
        for (outcome, value) in values(&view.stats) {
            let [namespace, trigger, broker] = labels(view);
            let labels = [namespace, trigger, broker, ("outcome", outcome)];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;
    use crate::{
        delivery::{Addresses, Client, DeliveryOptions},
        log::embedded::{EmbeddedLog, EmbeddedOptions},
        server::documented::assert_documented,
        supervision::Supervisor,
    };

    fn page(registry: &Registry) -> String {
        let mut page = String::new();
        text::encode(&mut page, registry).unwrap();
        page
    }

    #[tokio::test]
    async fn the_page_of_metrics_has_the_routers() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn LogProvider> =
            Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let engine = Engine::start(
            log.clone(),
            Client::new(1, Addresses::any()).unwrap(),
            DeliveryOptions::default(),
            Supervisor::default(),
            &runtime,
        );
        let engine = engine.await.unwrap();
        let metrics = Metrics::new(log, engine.clone(), Statistics::default());
        let page = page(&metrics.registry);
        for reason in REASONS_OF_OURS {
            let series = format!("weir_requests_rejected_total{{reason=\"{reason}\"}} 0\n");
            assert!(page.contains(&series), "{series} is not in {page}");
        }
        let accepted = |broker, exists: bool, events| {
            let ingress = &metrics.ingress;
            ingress.accepted(broker, || exists, events, Duration::ZERO);
            self::page(&metrics.registry)
                .matches("weir_events_accepted_total{")
                .count()
        };
        assert_eq!(accepted("shop/default", true, 0), 0, "an empty batch is nothing");
        assert_eq!(accepted("shop/gone", false, 1), 0);
        assert_eq!(accepted("shop/old", true, 1), 1);
        assert_eq!(accepted("shop/default", true, 1), 2);
        metrics
            .ingress
            .retain(|namespace, broker| (namespace, broker) != ("shop", "old"));
        assert_eq!(accepted("shop/old", false, 1), 1);
        metrics.ingress.rejected("too_large");
        metrics.configuration.applied("1");
        assert_documented(&metrics.registry, |name| !name.starts_with("weir_controller_"));
        engine.shutdown().await;
    }
}
