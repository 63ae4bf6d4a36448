//! `weir sources`: runs the Sources of kind kubernetes.

use std::{net::SocketAddr, path::PathBuf};

use super::{
    controller::{configuration_of_the_api_server, each_once, election},
    http::parse_url,
    shutdown,
};
use crate::{
    cluster_sources::{self, SourcesOptions},
    descriptors,
};

/// The flags of `weir sources`.
#[derive(Debug, clap::Args)]
pub struct SourcesArgs {
    /// Address that serves health, readiness and metrics.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// URL prefix of brokers, which events are posted to as URL/NAMESPACE/BROKER, for example
    /// http://weir.weir-system.svc.
    #[arg(long, env = "WEIR_BROKER_BASE_URL", value_name = "URL")]
    pub broker_base_url: String,

    /// PEM file with the authorities that signed the certificate of an https --broker-base-url. Changes to the file are
    /// picked up. Default: the authorities of this machine.
    #[arg(long, env = "WEIR_BROKER_CA", value_name = "FILE")]
    pub broker_ca: Option<PathBuf>,

    /// Namespaces whose Sources are run, separated by commas. Default: all.
    #[arg(
        long,
        env = "WEIR_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub watch_namespaces: Vec<String>,

    /// Lease for leader election among several processes, in their own namespace. Default: none; run only one process.
    #[arg(long, env = "WEIR_LEASE", value_name = "NAME")]
    pub lease: Option<String>,
}

/// Runs the Sources until told to stop. The API server is taken from the kubeconfig (KUBECONFIG or ~/.kube/config) or, in
/// a pod, from the cluster.
///
/// # Errors
/// If it cannot start.
pub async fn run(args: SourcesArgs) -> anyhow::Result<()> {
    let SourcesArgs {
        admin,
        broker_base_url,
        broker_ca,
        watch_namespaces,
        lease,
    } = args;
    let stop = shutdown::token()?;
    descriptors::raise()?;
    let config = configuration_of_the_api_server().await?;
    let options = SourcesOptions {
        admin,
        broker_base_url: parse_url(&broker_base_url)?,
        broker_authority: broker_ca,
        watch_namespaces: each_once(watch_namespaces),
        election: election(lease)?,
    };
    Ok(cluster_sources::run(options, config, stop).await?)
}
