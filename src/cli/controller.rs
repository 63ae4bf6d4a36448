//! `weir controller`: the control plane.

use std::net::SocketAddr;

use anyhow::Context as _;

use super::shutdown;
use crate::controller::{self, ControllerOptions};

/// The flags of `weir controller`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where routers get the routing configuration.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "0.0.0.0:8090",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// Where health, readiness and metrics are.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// What follows .svc. in the cluster's names of Services.
    #[arg(
        long,
        env = "WEIR_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub cluster_domain: String,

    /// What comes before /NAMESPACE/BROKER in the URL that producers post to, told in the status of Triggers, for
    /// example http://weir.weir-system.svc.cluster.local.
    #[arg(long, env = "WEIR_BROKER_URL", value_name = "URL")]
    pub broker_url: Option<String>,
}

/// Runs a controller until it is told to end. The API server is the one of the kubeconfig (KUBECONFIG or
/// ~/.kube/config), or, in a pod, the cluster's.
///
/// # Errors
/// When it cannot start.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        listen,
        admin,
        cluster_domain,
        broker_url,
    } = args;
    let stop = shutdown::token()?;
    let client = kube::Client::try_default()
        .await
        .context("cannot find the API server: set KUBECONFIG, or run in a pod with a ServiceAccount")?;
    let options = ControllerOptions {
        listen,
        admin,
        cluster_domain,
        broker_url,
        secure_channel: listen.ip().is_loopback(),
    };
    Ok(controller::run(options, client, stop).await?)
}
