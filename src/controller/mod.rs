//! The control plane: watches the resources, computes routing, gives it to routers, writes status.
//!
//! ```text
//! watch -> observed -> compile -> (configuration -> endpoint -> routers)
//!                              -> (diagnoses + what routers applied and see -> statuses -> status writer)
//! ```
//! `compile`, `resolve`, `statuses`, `routers` and `sinks_seen` are pure; [`run`] is called by the command line. Local mode uses
//! [`compile`] alone.
//!
//! The account needs: list and watch on `sources`, `triggers`, `sinks` (weir.dev), `services` and `namespaces`;
//! patch on the `status` of the three; create and patch on `events` (events.k8s.io). Of `secrets` it may get those that
//! a namespace's owner lets it read, one by one; a Sink that names another one says so in its status.

mod compile;
mod credentials;
mod diagnosis;
mod endpoint;
mod metrics;
mod observed;
mod resolve;
mod routers;
mod secrets;
mod sinks_seen;
mod status_task;
mod status_writer;
mod statuses;
#[cfg(test)]
mod tests;
mod watch;

pub use compile::{Outcome, compile};
pub use credentials::named as named_secrets;
pub use diagnosis::{Diagnoses, Finding, SinkDiagnosis, SourceDiagnosis, Subject, TriggerDiagnosis};
pub use observed::{Namespace, Observed, Port, SecretName, SecretState, Service};

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use kube::Client;
use prometheus_client::registry::Registry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::server::{self, BindError, Server};
use endpoint::Publication;
use metrics::ControllerMetrics;
use status_task::{Found, StatusTask};
use watch::Watches;

/// Changes that come within this time of each other are computed together.
const QUIET: Duration = Duration::from_millis(50);

/// Changes that keep coming are computed after this time all the same.
const NOT_QUIET: Duration = Duration::from_millis(250);

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
    /// Whether nobody else can read what routers get. Without it credentials of Sinks are neither read nor sent.
    pub secure_channel: bool,
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

    let mut watches = Watches::start(&client, &metrics, options.secure_channel, &stop);
    tokio::select! {
        () = watches.ready() => {}
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        tracing::info!("all resources are known");
        let routing = Routing {
            cluster_domain: options.cluster_domain,
            metrics: metrics.clone(),
            publication: publication.clone(),
        };
        let (found, latest) = tokio::sync::watch::channel(routing.compute(&mut watches));
        ready.store(true, Relaxed);
        // Side by side: however slowly statuses are written, routing is computed at once.
        let statuses = StatusTask::new(client, options.broker_url, metrics, publication);
        tokio::join!(routing.follow(watches, found, &stop), statuses.run(latest, &stop));
    }
    servers.wait().await;
    tracing::info!("the controller has stopped");
    Ok(())
}

/// Computes routing from what was watched, and gives it to routers.
struct Routing {
    publication: Arc<Publication>,
    metrics: Arc<ControllerMetrics>,
    cluster_domain: String,
}

impl Routing {
    /// Computes again what changed, until told to stop.
    async fn follow(
        &self,
        mut watches: Watches,
        found: tokio::sync::watch::Sender<Found>,
        stop: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = watches.changed() => {}
                () = stop.cancelled() => return,
            }
            settle(&watches).await;
            found.send_replace(self.compute(&mut watches));
        }
    }

    fn compute(&self, watches: &mut Watches) -> Found {
        let observed = watches.observe();
        let Outcome {
            configuration,
            diagnoses,
        } = compile(&observed, &self.cluster_domain);
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
        Found {
            observed: Arc::new(observed),
            diagnoses: Arc::new(diagnoses),
        }
    }
}

/// Waits for a quiet moment among changes.
async fn settle(watches: &Watches) {
    let latest = tokio::time::Instant::now() + NOT_QUIET;
    loop {
        let quiet = (tokio::time::Instant::now() + QUIET).min(latest);
        match tokio::time::timeout_at(quiet, watches.changed()).await {
            Ok(()) if quiet < latest => {}
            _ => return,
        }
    }
}
