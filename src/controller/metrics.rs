//! Prometheus metrics of the controller.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedRevisionLabels {
    revision: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadyLabels {
    ready: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reason: &'static str,
}

/// The controller's metrics.
#[derive(Debug, Default)]
pub(super) struct ControllerMetrics {
    leader: Gauge,
    compilations: Counter,
    revision: Family<ServedRevisionLabels, Gauge>,
    routers: Gauge,
    triggers: Family<ReadyLabels, Gauge>,
    sources: Family<ReadyLabels, Gauge>,
    sources_not_connected: Gauge,
    unreadable: Gauge,
    writes: Family<WriteLabels, Counter>,
    watch_errors: Family<KindLabels, Counter>,
    refusals: Family<RefusalLabels, Counter>,
    /// Absent while no certificate is served.
    certificate_expiry: Family<[(&'static str, &'static str); 0], Gauge>,
}

impl ControllerMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("leader", "1 while this controller leads", self.leader.clone());
        registry.register(
            "compilations",
            "Number of times routing was computed",
            self.compilations.clone(),
        );
        registry.register(
            "configuration_info",
            "1 for the published revision of the routing configuration",
            self.revision.clone(),
        );
        registry.register("routers", "Connected routers", self.routers.clone());
        registry.register(
            "triggers",
            "Triggers by their Ready condition",
            self.triggers.clone(),
        );
        registry.register(
            "sources",
            "Sources by their Ready condition",
            self.sources.clone(),
        );
        registry.register(
            "sources_not_connected",
            "Sources that are Ready and whose Connected condition is False",
            self.sources_not_connected.clone(),
        );
        registry.register(
            "unreadable_resources",
            "Brokers, Sources, Triggers and Sinks that cannot be decoded and are ignored",
            self.unreadable.clone(),
        );
        registry.register(
            "status_writes",
            "Status writes, by kind and outcome",
            self.writes.clone(),
        );
        registry.register("watch_errors", "Watch errors, by kind", self.watch_errors.clone());
        registry.register(
            "refused_requests",
            "Requests to the configuration endpoint rejected because they did not come from a router, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "Expiry of the certificate served to routers, in Unix time",
            self.certificate_expiry.clone(),
        );
    }

    /// Resets the metrics of routers, Triggers and certificates, which only the leader knows.
    pub(super) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.revision.clear();
            self.routers.set(0);
            self.triggers.clear();
            self.sources.clear();
            self.sources_not_connected.set(0);
            self.unreadable.set(0);
            self.certificate_expiry.clear();
        }
    }

    pub(super) fn compiled(&self) {
        self.compilations.inc();
    }

    pub(super) fn published(&self, revision: &str) {
        self.revision.clear();
        self.revision
            .get_or_create(&ServedRevisionLabels {
                revision: revision.to_owned(),
            })
            .set(1);
    }

    pub(super) fn routers(&self, count: usize) {
        self.routers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn triggers(&self, ready: i64, not_ready: i64) {
        by_ready(&self.triggers, ready, not_ready);
    }

    pub(super) fn sources(&self, ready: i64, not_ready: i64, not_connected: i64) {
        by_ready(&self.sources, ready, not_ready);
        self.sources_not_connected.set(not_connected);
    }

    pub(super) fn unreadable(&self, count: usize) {
        self.unreadable.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(super) fn wrote(&self, kind: &'static str, outcome: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, outcome }).inc();
    }

    pub(super) fn watch_failed(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&RefusalLabels { reason }).inc();
    }

    pub(super) fn serves_until(&self, second: i64) {
        self.certificate_expiry.get_or_create(&[]).set(second);
    }
}

fn by_ready(family: &Family<ReadyLabels, Gauge>, ready: i64, not_ready: i64) {
    for (label, count) in [("true", ready), ("false", not_ready)] {
        family.get_or_create(&ReadyLabels { ready: label }).set(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::documented::assert_documented;

    #[test]
    fn metrics_page_lists_the_controller_metrics() {
        let (metrics, mut registry) = (
            ControllerMetrics::default(),
            Registry::with_prefix("weir_controller"),
        );
        metrics.register(&mut registry);
        metrics.published("1");
        metrics.triggers(1, 0);
        metrics.sources(1, 0, 0);
        metrics.wrote("Trigger", "written");
        metrics.watch_failed("Trigger");
        metrics.refused("no_token");
        metrics.serves_until(1);
        assert_documented(&registry, |name| name.starts_with("weir_controller_"));
    }

    #[test]
    fn reports_certificate_expiry_while_it_is_served() {
        let (metrics, mut registry) = (ControllerMetrics::default(), Registry::default());
        metrics.register(&mut registry);
        let told = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let lines = text.lines().filter(|line| line.starts_with("certificate_expiry"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        metrics.leads(true);
        assert_eq!(told(), <[&str; 0]>::default());
        metrics.serves_until(7);
        assert_eq!(told(), ["certificate_expiry_timestamp_seconds{} 7"]);
        metrics.leads(false);
        assert_eq!(told(), <[&str; 0]>::default());
        metrics.leads(true);
        metrics.serves_until(8);
        assert_eq!(told(), ["certificate_expiry_timestamp_seconds{} 8"]);
    }
}
