//! The control plane: watches the resources, computes routing, serves it to routers, and writes status.
//!
//! ```text
//! watch -> observed -> resolve -> (configuration -> endpoint -> routers)
//!                              -> (diagnoses + what routers applied and see -> statuses -> status writer)
//! ```
//! [`crate::resolve`], `statuses`, `routers` and `sinks_seen` are pure. The command line calls [`run`].
//!
//! Permissions of the account: list and watch on `brokers`, `sources`, `triggers`, `sinks` (weir.dev), `services`,
//! `serviceaccounts` and `namespaces`; get on the two paths of OpenID Connect Discovery; patch on the `status` of the
//! first four; create and patch on `events` (events.k8s.io). With
//! leader election: create, get and update on one `leases` object (coordination.k8s.io) in its own namespace, and get on
//! that of `weir sources`. To
//! publish the broker's address to workloads: list, watch, create, patch and delete on `configmaps` named
//! [`discovery::NAME`]. For a secured channel: create on `tokenreviews` (authentication.k8s.io) and
//! `subjectaccessreviews` (authorization.k8s.io); get, create,
//! update and patch on the Secret and the ConfigMap of [`TlsOptions`]. It may get only those `secrets`, and
//! create only those `serviceaccounts/token`, that a namespace's owner grants it, each by name; the status of a
//! resource that references another one says so. It may list and watch only those other kinds with a URL in their
//! status that an operator grants it.

mod access_reviews;
mod addressables;
mod broker_authority;
mod broker_usage;
mod channel;
mod credential_plan;
mod credential_reader;
mod discovery;
mod endpoint;
mod metrics;
mod objects_status;
mod producer_options;
mod routers;
mod secrets;
mod signing_keys;
mod sinks_seen;
mod source_activity;
mod source_status;
mod sources_seen;
mod status_task;
mod status_writer;
mod statuses;
mod token_review;
mod tokens;
mod watch;
mod watch_config;

pub use channel::{ChannelOptions, RouterAccount, RouterAccountError, TlsOptions};
pub use producer_options::ProducerOptions;

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::{
    election::{Candidate, Election, LeaseObserver},
    resolve::{self, ClusterReach, CompileOutcome, Observed},
    routing::InstallationQuotas,
    server::{self, BindError, Heartbeat, OwnThread, Server, ThreadError},
};
use broker_authority::BrokerAuthority;
use channel::Channel;
use discovery::Discovery;
use endpoint::Publication;
use metrics::ControllerMetrics;
use status_task::{BaseUrls, ResolvedResources, StatusTask};
use watch::Watches;

/// Debounce time: changes within this time are computed together.
const QUIET: Duration = Duration::from_millis(50);

/// Maximum delay before a continuous stream of changes is computed.
const NOT_QUIET: Duration = Duration::from_millis(250);

/// Time for which a waiting controller remains ready although it cannot use the Lease. A restart of the API server
/// does not make it unready; a missing Role does.
const LEASE_UNUSED: Duration = Duration::from_secs(60);

/// Maximum number of connections to the admin endpoint.
const ADMIN_CONNECTIONS: usize = 64;

/// Options of a controller.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Address that serves the routing configuration.
    pub listen: SocketAddr,
    /// Security of the channel to routers.
    pub channel: ChannelOptions,
    /// Whether the channel to routers may carry secrets, per [`ChannelOptions::is_secure`].
    pub secure_channel: bool,
    /// Address that serves health, readiness and metrics.
    pub admin: SocketAddr,
    /// Suffix after `.svc.` in names of Services, usually `cluster.local`.
    pub cluster_domain: String,
    /// Limits of every broker, which no Broker's quota exceeds, and defaults.
    pub broker_quotas: InstallationQuotas,
    /// URL prefix before `/NAMESPACE/BROKER` for producers. Published in statuses and to workloads, if set.
    pub broker_base_url: Option<String>,
    /// URL prefix of webhooks, for the statuses of Sources.
    pub webhook_base_url: Option<String>,
    /// File with the authorities that signed the certificate of that URL. Published to workloads, if it exists.
    pub broker_authority: Option<PathBuf>,
    /// Namespaces to watch; empty for all.
    pub watch_namespaces: Vec<String>,
    /// What destinations may reach in the cluster.
    pub reach: ClusterReach,
    /// Who may post.
    pub producers: ProducerOptions,
    /// Lease of the processes `weir sources`, in the client's namespace; `None` if the installation has none.
    pub sources_lease: Option<String>,
    /// Leader election; `None` for a single controller.
    pub election: Option<Election>,
}

/// Why a controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// Cannot listen on an address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The thread of the admin endpoint could not be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Lifecycle stage of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LifecycleStage {
    Waiting,
    Listing,
    Leading,
}

impl LifecycleStage {
    /// Returns readiness. `lease_used` is the time since the Lease was last usable. A controller that has never
    /// used the Lease could not take over, so a rollout must not replace one that can.
    fn readiness(self, can_connect: bool, lease_used: Option<Duration>) -> Result<String, String> {
        match self {
            Self::Waiting => match lease_used {
                None => Err("the Lease could not be used yet; see the log".to_owned()),
                Some(ago) if ago > LEASE_UNUSED => {
                    Err("the Lease can no longer be used; see the log".to_owned())
                }
                Some(_) => Ok("waiting to lead; another controller may do so".to_owned()),
            },
            Self::Listing => Err("the API server has not listed all resources yet".to_owned()),
            Self::Leading if !can_connect => Err("there is no certificate for routers yet".to_owned()),
            Self::Leading => Ok("all resources are known".to_owned()),
        }
    }
}

/// Runs a controller until it is told to stop.
///
/// # Errors
/// If it cannot listen. An unavailable API server is waited for.
pub async fn run(
    options: ControllerOptions,
    client: Client,
    stop: CancellationToken,
) -> Result<(), ControllerError> {
    let metrics = Arc::<ControllerMetrics>::default();
    let mut registry = Registry::with_prefix("weir_controller");
    metrics.register(&mut registry);
    let (stage, staged) = tokio::sync::watch::channel(LifecycleStage::Waiting);
    let limits = server::admin_limits(ADMIN_CONNECTIONS);
    let admin = Server::bind("admin", options.admin).await?.with_limits(limits);
    if !options.secure_channel {
        tracing::warn!(
            "the connection from routers is not both encrypted and authenticated: set --tls-secret, --tls-ca-config-map, \
             --tls-service and --router-service-account, or listen on a loopback address"
        );
    }
    let channel = Channel::new(&options.channel, &client, &options.cluster_domain, &metrics);
    let can_connect = channel.readiness();
    let (last_used, used) = tokio::sync::watch::channel(None);
    let admin_service = server::admin(registry, Heartbeat::start(), move || {
        let lease_used = used.borrow().map(|at: tokio::time::Instant| at.elapsed());
        staged.borrow().readiness(can_connect(), lease_used)
    });
    let admin = OwnThread::serve(admin, admin_service, stop.clone())?;

    let controller = Controller {
        options,
        client,
        metrics,
        channel,
        stage,
        last_used,
        routers: tokio::sync::watch::Sender::default(),
    };
    match &controller.options.election {
        Some(election) => controller.lead_when_elected(election, &stop).await?,
        None => controller.lead(&stop).await?,
    }
    stop.cancelled().await;
    admin.ended().await;
    tracing::info!("the controller has stopped");
    Ok(())
}

/// State that outlives a term of leadership.
struct Controller {
    options: ControllerOptions,
    client: Client,
    metrics: Arc<ControllerMetrics>,
    channel: Channel,
    stage: tokio::sync::watch::Sender<LifecycleStage>,
    /// Time at which the Lease was last usable.
    last_used: tokio::sync::watch::Sender<Option<tokio::time::Instant>>,
    /// Names of the routers known to the leader.
    routers: tokio::sync::watch::Sender<BTreeSet<String>>,
}

impl Controller {
    /// Leads whenever this controller holds the Lease, until told to stop.
    async fn lead_when_elected(
        &self,
        election: &Election,
        stop: &CancellationToken,
    ) -> Result<(), ControllerError> {
        let mut candidate = Candidate::new(
            self.client.clone(),
            election,
            self.last_used.clone(),
            self.routers.clone(),
        );
        let lead = async |term: &CancellationToken| {
            let led = self.lead(term).await;
            self.metrics.leads(false);
            self.stage.send_replace(LifecycleStage::Waiting);
            led
        };
        candidate.lead_when_elected(stop, lead).await
    }

    /// Watches, serves routers and writes statuses, until told to stop.
    async fn lead(&self, stop: &CancellationToken) -> Result<(), ControllerError> {
        self.stage.send_replace(LifecycleStage::Listing);
        self.metrics.leads(true);
        let Self {
            options,
            client,
            metrics,
            channel,
            stage,
            last_used: _,
            routers,
        } = self;
        let publication = Publication::new(routers.clone());
        // Only the leader listens, so that routers find it.
        let configuration = Server::bind("configuration", options.listen).await?;
        let service = endpoint::service(publication.clone(), stop).merge(access_reviews::service(client));
        let serving = channel.serve(configuration, service, stop);
        let working = async {
            let mut watches = Watches::start(
                client,
                &options.watch_namespaces,
                metrics,
                options.secure_channel,
                stop,
            );
            if stop.run_until_cancelled(watches.ready()).await.is_none() {
                return;
            }
            tracing::info!("all resources are known");
            let routing = Routing {
                cluster_domain: options.cluster_domain.clone(),
                producers: options.producers,
                reach: options.reach.clone(),
                broker_quotas: options.broker_quotas,
                metrics: metrics.clone(),
                publication: publication.clone(),
            };
            let (found, latest) = tokio::sync::watch::channel(routing.compute(&mut watches));
            stage.send_replace(LifecycleStage::Leading);
            let observer = options.sources_lease.as_deref();
            let observer = observer.map(|lease| LeaseObserver::new(client.clone(), lease));
            // Runs concurrently, so that slow status writes do not delay routing.
            let statuses = StatusTask::new(
                client.clone(),
                BaseUrls {
                    brokers: options.broker_base_url.clone(),
                    webhooks: options.webhook_base_url.clone(),
                },
                observer.as_ref().map(LeaseObserver::health),
                metrics.clone(),
                publication.clone(),
            );
            let telling = async {
                if let Some(base_url) = &options.broker_base_url {
                    let authority = BrokerAuthority::in_file(options.broker_authority.clone());
                    Discovery::start(
                        client,
                        base_url,
                        authority,
                        &options.watch_namespaces,
                        metrics,
                        stop,
                    )
                    .run(latest.clone(), stop)
                    .await;
                }
            };
            let observing = async {
                if let Some(observer) = observer {
                    stop.run_until_cancelled(observer.run()).await;
                }
            };
            tokio::join!(
                routing.follow(watches, found, stop),
                statuses.run(latest.clone(), stop),
                observing,
                telling
            );
        };
        tokio::join!(serving, working);
        Ok(())
    }
}

/// Computes routing from the watched resources and publishes it to routers.
struct Routing {
    publication: Arc<Publication>,
    metrics: Arc<ControllerMetrics>,
    cluster_domain: String,
    producers: ProducerOptions,
    reach: ClusterReach,
    broker_quotas: InstallationQuotas,
}

impl Routing {
    /// Recomputes after changes, until told to stop.
    async fn follow(
        &self,
        mut watches: Watches,
        found: tokio::sync::watch::Sender<ResolvedResources>,
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

    fn compute(&self, watches: &mut Watches) -> ResolvedResources {
        let observed = Observed {
            reach: self.reach.clone(),
            ..watches.observe(self.producers)
        };
        self.metrics.unreadable(watches.unreadable_count());
        let CompileOutcome {
            configuration,
            diagnoses,
        } = resolve::compile(&observed, &self.cluster_domain, self.broker_quotas);
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
        ResolvedResources {
            observed: Arc::new(observed),
            diagnoses: Arc::new(diagnoses),
        }
    }
}

/// Waits until changes pause.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_controller_is_ready_while_the_lease_is_usable() {
        let minute = Duration::from_secs(60);
        for (stage, can_connect, lease_used, is_ready) in [
            (LifecycleStage::Waiting, false, None, false),
            (LifecycleStage::Waiting, false, Some(Duration::ZERO), true),
            (LifecycleStage::Waiting, false, Some(minute), true),
            (
                LifecycleStage::Waiting,
                true,
                Some(minute + Duration::from_millis(1)),
                false,
            ),
            (LifecycleStage::Listing, true, Some(Duration::ZERO), false),
            (LifecycleStage::Leading, false, Some(Duration::ZERO), false),
            (LifecycleStage::Leading, true, None, true),
        ] {
            let readiness = stage.readiness(can_connect, lease_used);
            assert_eq!(
                readiness.is_ok(),
                is_ready,
                "{stage:?} {lease_used:?}: {readiness:?}"
            );
        }
    }
}
