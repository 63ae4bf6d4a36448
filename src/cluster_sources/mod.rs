//! The process `weir sources`: runs the Sources of kind kubernetes. Speaks to the API server, and posts events to the broker
//! as any producer does.
//!
//! ```text
//! sources_watch -> a run for each Source: tokens -> feeds -> ledger -> broker
//!                                                             |-> memory (ConfigMaps)
//!                                                             |-> report (condition Connected)
//! ```
//! The command line calls [`run`]. One process leads, by a Lease. A Source sees what the ServiceAccount may see that its
//! author names, by a token of that ServiceAccount. [`crate::source::kubernetes`] has what is pure.
//!
//! Permissions of the process's own account: list and watch on `sources` (weir.dev) and patch on their status; in its own
//! namespace, create, get and update on one `leases` object (coordination.k8s.io), and list, create, patch and delete on
//! `configmaps`. It may create only those `serviceaccounts/token` that a namespace's owner grants it, each by name.

mod account_client;
mod account_tokens;
mod broker;
mod feed;
mod given_up;
mod kinds;
mod metrics;
mod process;
mod queue;
mod records;
mod report;
mod run;
mod supervisor;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::Uri;
use kube::{Client, Config};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    election::{Candidate, Election},
    server::{self, BindError, Heartbeat, OwnThread, Server, ThreadError},
};
use broker::BrokerClient;
use metrics::SourcesMetrics;
use process::SourcesProcess;
use supervisor::SourceSupervisor;

/// Name by which the records of an installation without a Lease are found.
const OWNER: &str = "weir-sources";

/// Maximum number of connections to the admin endpoint.
const ADMIN_CONNECTIONS: usize = 64;

/// Time for which a waiting process remains ready although it cannot use the Lease.
const LEASE_UNUSED: Duration = Duration::from_secs(60);

/// Options of the process.
#[derive(Clone, Debug)]
pub struct SourcesOptions {
    /// Address that serves health, readiness and metrics.
    pub admin: SocketAddr,
    /// URL prefix before `/NAMESPACE/BROKER`.
    pub broker_base_url: Uri,
    /// File with the authorities that signed the certificate of that URL.
    pub broker_authority: Option<PathBuf>,
    /// Namespaces whose Sources are run; empty for all.
    pub watch_namespaces: Vec<String>,
    /// Leader election; `None` for a single process.
    pub election: Option<Election>,
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum SourcesError {
    /// Cannot listen on an address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The thread of the admin endpoint could not be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// Cannot create a client.
    #[error("cannot create a client for the API server: {0}")]
    Client(#[from] kube::Error),
}

/// Stage of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Listing,
    Leading,
}

impl Stage {
    fn readiness(self, lease_used: Option<Duration>) -> Result<String, String> {
        match self {
            Self::Waiting => match lease_used {
                None => Err("the Lease could not be used yet; see the log".to_owned()),
                Some(ago) if ago > LEASE_UNUSED => {
                    Err("the Lease can no longer be used; see the log".to_owned())
                }
                Some(_) => Ok("waiting to lead; another process may do so".to_owned()),
            },
            Self::Listing => Err("the API server has not listed the Sources yet".to_owned()),
            Self::Leading => Ok("the Sources are known".to_owned()),
        }
    }
}

/// Runs the Sources until told to stop.
///
/// # Errors
/// If it cannot listen. An unavailable API server is waited for.
pub async fn run(
    options: SourcesOptions,
    config: Config,
    stop: CancellationToken,
) -> Result<(), SourcesError> {
    let SourcesOptions {
        admin,
        broker_base_url,
        broker_authority,
        watch_namespaces,
        election,
    } = options;
    let client = Client::try_from(config.clone())?;
    let metrics = SourcesMetrics::default();
    let mut registry = Registry::with_prefix("weir_sources");
    metrics.register(&mut registry);
    let limits = server::admin_limits(ADMIN_CONNECTIONS);
    let admin = Server::bind("admin", admin).await?.with_limits(limits);
    let (stage, staged) = watch::channel(Stage::Waiting);
    let (last_used, used) = watch::channel(None);
    let readiness = move || {
        let lease_used = used.borrow().map(|at: tokio::time::Instant| at.elapsed());
        staged.borrow().readiness(lease_used)
    };
    let admin = OwnThread::serve(
        admin,
        server::admin(registry, Heartbeat::start(), readiness),
        stop.clone(),
    )?;

    let lease = election.as_ref().map(|election| election.lease.clone());
    let shared = Arc::new(SourcesProcess {
        config,
        client: client.clone(),
        owner: lease.unwrap_or_else(|| OWNER.to_owned()),
        broker: BrokerClient::new(broker_base_url, broker_authority),
        metrics,
    });
    let lead = async |term: &CancellationToken| {
        stage.send_replace(Stage::Listing);
        shared.metrics.leads(true);
        let mut supervisor = SourceSupervisor::start(&shared, &watch_namespaces, term);
        if term.run_until_cancelled(supervisor.ready()).await.is_some() {
            stage.send_replace(Stage::Leading);
            supervisor.follow(term).await;
        }
        supervisor.end().await;
        shared.metrics.leads(false);
        stage.send_replace(Stage::Waiting);
        Ok::<_, SourcesError>(())
    };
    match election {
        Some(election) => {
            let mut candidate = Candidate::new(client, &election, last_used, watch::Sender::default());
            candidate.lead_when_elected(&stop, lead).await?;
        }
        None => lead(&stop).await?,
    }
    stop.cancelled().await;
    admin.ended().await;
    tracing::info!("the process has stopped");
    Ok(())
}
