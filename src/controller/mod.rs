//! The control plane: watches the resources, computes routing, gives it to routers, writes status.
//!
//! ```text
//! watch -> observed -> compile -> (configuration -> endpoint -> routers)
//!                              -> (diagnoses + what routers applied -> statuses -> status writer)
//! ```
//! `compile`, `resolve`, `statuses` and `routers` are pure; [`run`] is called by the command line. Local mode uses
//! [`compile`] alone.
//!
//! The account needs: list and watch on `sources`, `triggers`, `sinks` (weir.dev), `services` and `namespaces`;
//! patch on the `status` of the three; create and patch on `events` (events.k8s.io).

mod compile;
mod diagnosis;
mod endpoint;
mod metrics;
mod observed;
mod resolve;
mod routers;
mod status_writer;
mod statuses;
#[cfg(test)]
mod tests;
mod watch;

pub use compile::{Outcome, compile};
pub use diagnosis::{Diagnoses, Finding, SinkDiagnosis, SourceDiagnosis, Subject, TriggerDiagnosis};
pub use observed::{Namespace, Observed, Port, Service};

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Client, Resource};
use prometheus_client::registry::Registry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api,
    server::{self, BindError, Server},
};
use endpoint::Publication;
use metrics::ControllerMetrics;
use status_writer::{StatusWriter, Write};
use watch::Watches;

/// Changes that come within this time of each other are computed together.
const QUIET: Duration = Duration::from_millis(50);

/// Changes that keep coming are computed after this time all the same.
const NOT_QUIET: Duration = Duration::from_millis(250);

/// How often it is looked whether a router is gone.
const LOOK_FOR_ROUTERS_EVERY: Duration = Duration::from_secs(5);

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How a controller is set up.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Where routers get the routing configuration.
    pub listen: SocketAddr,
    /// Where health, readiness and metrics are.
    pub admin: SocketAddr,
    /// What follows `.svc.` in the names of Services, usually `cluster.local`.
    pub cluster_domain: String,
    /// What comes before `/NAMESPACE/BROKER` in the URL that producers post to; told in statuses if known.
    pub broker_url: Option<String>,
}

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Runs a controller until it is told to stop.
///
/// # Errors
/// When it cannot listen. An API server that is away is waited for.
pub async fn run(
    options: ControllerOptions,
    client: Client,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let metrics = Arc::<ControllerMetrics>::default();
    let publication = Publication::new();
    let ready = Arc::new(AtomicBool::new(false));
    let mut registry = Registry::with_prefix("weir_controller");
    metrics.register(&mut registry);

    let configuration = Server::bind("configuration", options.listen).await?;
    let admin = Server::bind("admin", options.admin).await?;
    let servers = TaskTracker::new();
    servers.spawn(configuration.serve(endpoint::service(publication.clone()), stop.clone()));
    let is_ready = ready.clone();
    let admin_service = server::admin(registry, move || match is_ready.load(Relaxed) {
        true => Ok("all resources are known".to_owned()),
        false => Err("the API server has not listed all resources yet".to_owned()),
    });
    servers.spawn(admin.serve(admin_service, stop.clone()));
    servers.close();

    let watches = Watches::start(&client, &metrics, &stop);
    let mut controller = Controller {
        writer: StatusWriter::new(client, metrics.clone()),
        cluster_domain: options.cluster_domain,
        broker_url: options.broker_url,
        observed: Observed::default(),
        diagnoses: Diagnoses::default(),
        watches,
        metrics,
        publication,
    };
    tokio::select! {
        () = controller.watches.ready() => {}
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        tracing::info!("all resources are known");
        controller.recompile();
        ready.store(true, Relaxed);
        controller.follow(&stop).await;
    }
    servers.wait().await;
    tracing::info!("the controller has stopped");
    Ok(())
}

struct Controller {
    watches: Watches,
    writer: StatusWriter,
    publication: Arc<Publication>,
    metrics: Arc<ControllerMetrics>,
    cluster_domain: String,
    broker_url: Option<String>,
    observed: Observed,
    diagnoses: Diagnoses,
}

impl Controller {
    /// Computes again what changed, and writes statuses, until told to stop.
    async fn follow(&mut self, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut look = tokio::time::interval(LOOK_FOR_ROUTERS_EVERY);
        loop {
            let all_written = tokio::select! {
                all_written = self.write_statuses() => all_written,
                () = stop.cancelled() => return,
            };
            let retry_at = (!all_written).then(|| tokio::time::Instant::now() + pause);
            pause = if all_written {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            tokio::select! {
                () = self.watches.changed() => {
                    self.settle().await;
                    self.recompile();
                }
                () = self.publication.acknowledged() => {}
                _ = look.tick() => {}
                () = retry(retry_at) => {}
                () = stop.cancelled() => return,
            }
            self.forget_gone_routers();
        }
    }

    /// Waits for a quiet moment among changes.
    async fn settle(&self) {
        let latest = tokio::time::Instant::now() + NOT_QUIET;
        loop {
            let quiet = (tokio::time::Instant::now() + QUIET).min(latest);
            match tokio::time::timeout_at(quiet, self.watches.changed()).await {
                Ok(()) if quiet < latest => {}
                _ => return,
            }
        }
    }

    fn recompile(&mut self) {
        self.observed = self.watches.observe();
        let Outcome {
            configuration,
            diagnoses,
        } = compile(&self.observed, &self.cluster_domain);
        self.diagnoses = diagnoses;
        self.metrics.compiled();
        if self.publication.publish(&configuration) {
            let revision = &configuration.revision.0;
            self.metrics.published(revision);
            tracing::info!(
                revision,
                triggers = configuration.triggers.len(),
                sources = configuration.sources.len(),
                "routing configuration published"
            );
        }
    }

    fn forget_gone_routers(&self) {
        let mut routers = self.publication.routers();
        for router in routers.forget_gone(Instant::now()) {
            tracing::warn!(router, "the router is gone");
        }
        self.metrics.routers(routers.count());
    }

    /// Writes the statuses that are not as they should be; tells whether all could be written.
    async fn write_statuses(&mut self) -> bool {
        let writes = self.outdated_statuses();
        writes.is_empty() || self.writer.perform(writes).await
    }

    fn outdated_statuses(&mut self) -> Vec<Write> {
        let Self {
            writer,
            publication,
            metrics,
            broker_url,
            observed,
            diagnoses,
            ..
        } = self;
        // Kubernetes keeps whole seconds.
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let (now, broker_url) = (Time(now), broker_url.as_deref());
        let routers = publication.routers();
        let mut writes = Vec::new();
        let (mut ready, mut not_ready) = (0, 0);

        let triggers = by_uid(&observed.triggers);
        for diagnosis in &diagnoses.triggers {
            let Some(trigger) = triggers.get(diagnosis.subject.uid.as_str()) else {
                continue;
            };
            let present: Option<api::TriggerStatus> = writer.present(*trigger, trigger.status.as_ref());
            let applied = routers.applied(&diagnosis.subject.uid, Instant::now());
            let status = statuses::trigger(diagnosis, &applied, present.as_ref(), broker_url, &now);
            match api::condition(&status.conditions, statuses::READY) {
                Some(condition) if condition.status == "True" => ready += 1,
                _ => not_ready += 1,
            }
            if present.as_ref() != Some(&status) {
                let before = present.map(|status| status.conditions).unwrap_or_default();
                writes.push(writer.write(
                    *trigger,
                    &status,
                    statuses::transition(&before, &status.conditions),
                ));
            }
        }
        metrics.triggers(ready, not_ready);

        let sinks = by_uid(&observed.sinks);
        for diagnosis in &diagnoses.sinks {
            let Some(sink) = sinks.get(diagnosis.subject.uid.as_str()) else {
                continue;
            };
            let present: Option<api::SinkStatus> = writer.present(*sink, sink.status.as_ref());
            let status = statuses::sink(diagnosis, present.as_ref(), &now);
            if present.as_ref() != Some(&status) {
                let before = present.map(|status| status.conditions).unwrap_or_default();
                writes.push(writer.write(*sink, &status, statuses::transition(&before, &status.conditions)));
            }
        }

        let sources = by_uid(&observed.sources);
        for diagnosis in &diagnoses.sources {
            let Some(source) = sources.get(diagnosis.subject.uid.as_str()) else {
                continue;
            };
            let present: Option<api::SourceStatus> = writer.present(*source, source.status.as_ref());
            let applied = routers.applied(&diagnosis.subject.uid, Instant::now());
            let status = statuses::source(diagnosis, &applied, present.as_ref(), broker_url, &now);
            if present.as_ref() != Some(&status) {
                let before = present.map(|status| status.conditions).unwrap_or_default();
                writes.push(writer.write(
                    *source,
                    &status,
                    statuses::transition(&before, &status.conditions),
                ));
            }
        }
        writer
            .retain(|uid| triggers.contains_key(uid) || sinks.contains_key(uid) || sources.contains_key(uid));
        writes
    }
}

fn by_uid<K: Resource>(resources: &[K]) -> HashMap<&str, &K> {
    resources
        .iter()
        .filter_map(|resource| Some((resource.meta().uid.as_deref()?, resource)))
        .collect()
}

async fn retry(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
