//! Prometheus metrics of a router. The operator's documentation lists their names.

mod delivery;
mod gauge;
mod ingress;

pub(super) use ingress::IngressMetrics;

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, family::Family, gauge::Gauge},
    registry::Registry,
};

use self::{delivery::DeliveryCollector, gauge::gauge_value};
use crate::{descriptors, log::LogProvider, ownership::Shards};

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
    pub(super) fn new(logs: Arc<dyn LogProvider>, shards: Arc<Shards>) -> Self {
        let mut all = of_every_router();
        let registry = all.sub_registry_with_prefix("weir");
        let ingress = Arc::new(IngressMetrics::new());
        let configuration = ConfigurationInfo::default();
        ingress.register(registry);
        registry.register(
            "router_configuration_info",
            "1 for the revision of the routing configuration that is applied",
            configuration.0.clone(),
        );
        registry.register_collector(Box::new(DeliveryCollector { logs, shards }));
        Self {
            registry: all,
            ingress,
            configuration,
        }
    }
}

/// Metrics of a router, also while it waits for its log.
pub(super) fn of_every_router() -> Registry {
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
        log::embedded::{EmbeddedLog, EmbeddedOptions},
        ownership::EngineStarter,
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
        let directory = tempfile::tempdir().unwrap();
        let log: Arc<dyn LogProvider> =
            Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let shards = Shards::alone(EngineStarter {
            logs: log.clone(),
            client: Client::for_test(),
            options: DeliveryOptions::default(),
            supervisor: Supervisor::default(),
            runtime,
        });
        let shards = shards.await.unwrap();
        let metrics = Metrics::new(log, shards.clone());
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
        shards.shutdown().await;
    }
}
