//! Prometheus metrics of a router. The operator's documentation lists their names.

mod certificate;
mod deduplication;
mod delivery;
mod gauge;
mod hooks;
mod ingress;
mod servers;
mod sources;

pub(super) use hooks::{HookMetrics, HookOutcome, HookRecord};
pub(super) use ingress::IngressMetrics;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, family::Family, gauge::Gauge},
    registry::Registry,
};

use self::{
    certificate::CertificateCollector, deduplication::DeduplicationCollector, delivery::DeliveryCollector,
    gauge::gauge_value, servers::ServerCollector, sources::SourceCollector,
};
use crate::{descriptors, log::LogProvider, ownership::Shards, server::ListenerTls};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AppliedRevisionLabels {
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: &'static str,
}

/// All metrics of a router.
pub(super) struct Metrics {
    pub(super) registry: Registry,
    pub(super) ingress: Arc<IngressMetrics>,
    pub(super) hooks: Arc<HookMetrics>,
    pub(super) configuration: ConfigurationInfo,
}

/// The applied revision.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigurationInfo(Family<AppliedRevisionLabels, Gauge>);

impl ConfigurationInfo {
    pub(super) fn applied(&self, revision: &str) {
        self.0.clear();
        self.0
            .get_or_create(&AppliedRevisionLabels {
                revision: revision.to_owned(),
            })
            .set(1);
    }
}

impl Metrics {
    /// `tls` is that of the ingress, if it speaks TLS.
    pub(super) fn new(logs: Arc<dyn LogProvider>, shards: Arc<Shards>, tls: Option<ListenerTls>) -> Self {
        let mut all = of_every_router();
        let registry = all.sub_registry_with_prefix("weir");
        let ingress = Arc::new(IngressMetrics::new());
        let configuration = ConfigurationInfo::default();
        ingress.register(registry);
        let hooks = Arc::new(HookMetrics::default());
        hooks.register(registry);
        if let Some(tls) = tls {
            registry.register_collector(Box::new(CertificateCollector {
                tls,
                connections: ingress.connections(),
            }));
        }
        registry.register(
            "router_configuration_info",
            "1 for the revision of the routing configuration that is applied",
            configuration.0.clone(),
        );
        registry.register_collector(Box::new(ServerCollector {
            logs: logs.clone(),
            shards: shards.clone(),
        }));
        registry.register_collector(Box::new(DeduplicationCollector {
            logs: logs.clone(),
            shards: shards.clone(),
        }));
        registry.register_collector(Box::new(DeliveryCollector {
            logs,
            shards: shards.clone(),
        }));
        registry.register_collector(Box::new(SourceCollector {
            shards,
            hooks: hooks.clone(),
        }));
        Self {
            registry: all,
            ingress,
            hooks,
            configuration,
        }
    }
}

/// Metrics of a router that waits for the servers that keep its log.
pub(super) fn while_waiting() -> Registry {
    let mut all = of_every_router();
    servers::register_unavailable(all.sub_registry_with_prefix("weir"));
    all
}

/// Metrics of a router, with any log.
fn of_every_router() -> Registry {
    let mut all = Registry::default();
    all.register_collector(Box::new(ProcessCollector));
    let registry = all.sub_registry_with_prefix("weir");
    let build = Family::<VersionLabels, Gauge>::default();
    build
        .get_or_create(&VersionLabels {
            version: env!("CARGO_PKG_VERSION"),
        })
        .set(1);
    registry.register("build_info", "The version that runs", build);
    all
}

/// Metrics of every process, under their conventional names.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text;

    use super::{ingress::REASONS_OF_OURS, *};
    use crate::{
        delivery::DeliveryOptions,
        destination::Client,
        log::{Append, LogHealth, LogName, StreamHealth, memory::MemoryLogs},
        ownership::EngineStarter,
        server::documented::assert_documented,
        supervision::Supervisor,
    };

    fn page(registry: &Registry) -> String {
        let mut page = String::new();
        text::encode(&mut page, registry).unwrap();
        page
    }

    async fn metrics(logs: &MemoryLogs) -> (Metrics, Arc<Shards>) {
        let logs: Arc<dyn LogProvider> = Arc::new(logs.clone());
        let starter = EngineStarter {
            logs: logs.clone(),
            client: Client::for_test(),
            options: DeliveryOptions::default(),
            supervisor: Supervisor::default(),
            runtime: tokio::runtime::Handle::current(),
        };
        let shards = Shards::alone(starter, true).await.unwrap();
        let tls = ListenerTls::for_test().await;
        (Metrics::new(logs, shards.clone(), Some(tls)), shards)
    }

    /// Series of the log's servers and streams, without descriptions.
    fn of_servers(page: &str) -> Vec<&str> {
        let names = ["available", "replica", "stream"].map(|name| format!("weir_log_{name}"));
        let lines = page.lines();
        lines
            .filter(|line| names.iter().any(|name| line.starts_with(name)))
            .collect()
    }

    fn stream(name: &str, log: Option<&str>, replicas_missing: u64) -> StreamHealth {
        StreamHealth {
            name: name.to_owned(),
            log: log.map(LogName::from_key),
            max_bytes: log.map(|_| 1000),
            replicas_missing,
            has_leader: true,
        }
    }

    #[tokio::test]
    async fn the_page_has_the_servers_of_the_log() {
        let logs = MemoryLogs::default();
        let (metrics, shards) = metrics(&logs).await;
        assert!(
            of_servers(&page(&metrics.registry)).is_empty(),
            "no servers keep the log"
        );
        logs.set_health(LogHealth::Unavailable);
        assert_eq!(of_servers(&page(&metrics.registry)), ["weir_log_available 0"]);
        assert_eq!(of_servers(&page(&while_waiting())), ["weir_log_available 0"]);
        let append = Append {
            payloads: vec!["event".into()],
            accepted: jiff::Timestamp::now(),
            unique: None,
        };
        let log = logs.open(&LogName::from_key("shop/default.dead-letters"));
        log.append(append).await.unwrap();
        let streams = [
            stream("weir_billing_default", Some("billing/default"), 0),
            stream("weir_shop_default", Some("shop/default"), 1),
            stream("weir_shop_default_dl", Some("shop/default.dead-letters"), 0),
            stream("weir_state", None, 2),
            StreamHealth {
                has_leader: false,
                max_bytes: None,
                ..stream("weir_shop_orders", Some("shop/orders"), 0)
            },
        ];
        logs.set_health(LogHealth::Available(streams.into()));
        assert_eq!(
            of_servers(&page(&metrics.registry)),
            [
                "weir_log_available 1",
                "weir_log_replicas_missing 3",
                "weir_log_streams_without_leader 1",
                r#"weir_log_stream_replicas_missing{stream="weir_state",namespace="",broker=""} 2"#,
                r#"weir_log_stream_replicas_missing{stream="weir_shop_default",namespace="shop",broker="default"} 1"#,
                r#"weir_log_stream_max_bytes{namespace="shop",broker="default.dead-letters"} 1000"#,
            ]
        );
        let streams = (0..5000).map(|number| {
            let log = format!("n{number:04}/default");
            stream(&format!("weir_n{number:04}_default"), Some(&log), 1)
        });
        logs.set_health(LogHealth::Available(streams.collect()));
        let page = page(&metrics.registry);
        assert!(page.contains("weir_log_replicas_missing 5000\n"), "{page}");
        assert_eq!(page.matches("weir_log_stream_replicas_missing{").count(), 100);
        shards.shutdown().await;
    }

    #[tokio::test]
    async fn the_page_of_metrics_has_the_routers() {
        let logs = MemoryLogs::default();
        logs.set_health(LogHealth::Available(Arc::default()));
        let (metrics, shards) = metrics(&logs).await;
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
        let answered = |webhook, events, second| {
            let now = jiff::Timestamp::from_second(second).unwrap();
            let outcome = HookOutcome::Stored(events);
            metrics
                .hooks
                .answered(webhook, ("uid", 1), "accepted", outcome, now);
        };
        answered("shop/github", 3, 7);
        answered("shop/gone", 1, 8);
        metrics.hooks.retain(|webhook| webhook != "shop/gone");
        let series: Vec<_> = self::page(&metrics.registry)
            .lines()
            .filter(|line| line.contains("source=\"") && !line.ends_with(" 0"))
            .map(str::to_owned)
            .collect();
        assert_eq!(
            series,
            [
                r#"weir_webhook_requests_total{namespace="shop",source="github",result="accepted"} 1"#,
                r#"weir_source_events_produced_total{namespace="shop",source="github"} 3"#,
                r#"weir_source_last_event_timestamp_seconds{namespace="shop",source="github"} 7"#,
            ]
        );
        metrics.configuration.applied("1");
        let others = ["weir_controller_", "weir_sources_"];
        assert_documented(&metrics.registry, |name| {
            !others.iter().any(|prefix| name.starts_with(prefix))
        });
        shards.shutdown().await;
    }
}
