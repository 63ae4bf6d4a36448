//! `weir controller`: the control plane.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Context as _;

use super::{host_name, shutdown};
use crate::controller::{self, ChannelOptions, ControllerOptions, Election, RouterAccount, TlsOptions};
use crate::descriptors;

/// How long the API server may take to go on with an answer. A watch ends before that, as it is asked for for a minute;
/// what never ends otherwise is a list on a connection that is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

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

    /// What comes before /NAMESPACE/BROKER in the URL that producers post to, for example
    /// http://weir.weir-system.svc. It is told in the status of Triggers and, as the ConfigMap weir-broker, to the
    /// workloads of namespaces labelled weir.dev/inject=enabled.
    #[arg(long, env = "WEIR_BROKER_BASE_URL", value_name = "URL")]
    pub broker_base_url: Option<String>,

    /// The namespaces to look at, separated by commas; events for others are refused with 404. Default: all.
    #[arg(
        long,
        env = "WEIR_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub watch_namespaces: Vec<String>,

    /// The Lease by which one of several controllers leads while the others wait, in the controller's own namespace.
    /// Default: none; then there must be no other controller.
    #[arg(long, env = "WEIR_LEASE", value_name = "NAME")]
    pub lease: Option<String>,

    /// Who may get the routing configuration, and how it is kept from others.
    #[command(flatten)]
    pub channel: ChannelArgs,
}

/// The flags that secure what routers get.
#[derive(Debug, clap::Args)]
pub struct ChannelArgs {
    /// Serve routers over TLS, with certificates in this Secret. The controller makes and renews them; the Secret is
    /// in its own namespace, like the ConfigMap and the Service.
    #[arg(long, env = "WEIR_TLS_SECRET", value_name = "NAME", requires_all = ["tls_ca_config_map", "tls_service"])]
    pub tls_secret: Option<String>,

    /// The ConfigMap in which the controller gives out the authorities that routers are to trust, under ca.crt.
    #[arg(
        long,
        env = "WEIR_TLS_CA_CONFIG_MAP",
        value_name = "NAME",
        requires = "tls_secret"
    )]
    pub tls_ca_config_map: Option<String>,

    /// The Service by which routers reach the controller: its names are those of the certificate.
    #[arg(long, env = "WEIR_TLS_SERVICE", value_name = "NAME", requires = "tls_secret")]
    pub tls_service: Option<String>,

    /// Answer routers only: whoever has a token of this ServiceAccount for the audience weir-controller.
    #[arg(
        long,
        env = "WEIR_ROUTER_SERVICE_ACCOUNT",
        value_name = "NAMESPACE/NAME",
        requires = "tls_secret"
    )]
    pub router_service_account: Option<RouterAccount>,
}

impl ChannelArgs {
    fn into_options(self) -> ChannelOptions {
        let Self {
            tls_secret,
            tls_ca_config_map,
            tls_service,
            router_service_account,
        } = self;
        let tls = match (tls_secret, tls_ca_config_map, tls_service) {
            (Some(secret), Some(config_map), Some(service)) => Some(TlsOptions {
                secret,
                config_map,
                service,
            }),
            _ => None, // each requires the others
        };
        ChannelOptions {
            tls,
            routers: router_service_account,
        }
    }
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
        broker_base_url,
        watch_namespaces,
        lease,
        channel,
    } = args;
    let channel = channel.into_options();
    let stop = shutdown::token()?;
    descriptors::raise()?;
    let client = client().await?;
    let election = match lease {
        Some(lease) => Some(Election {
            lease,
            host: host_name()?,
        }),
        None => None,
    };
    let options = ControllerOptions {
        listen,
        secure_channel: channel.is_secure(listen.ip()),
        channel,
        admin,
        cluster_domain,
        broker_base_url,
        watch_namespaces: each_once(watch_namespaces),
        election,
    };
    Ok(controller::run(options, client, stop).await?)
}

async fn client() -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::infer()
        .await
        .context("cannot find the API server: set KUBECONFIG, or run in a pod with a ServiceAccount")?;
    config.read_timeout = Some(READ_TIMEOUT);
    // Counted from the request on, not from when its connection was last used.
    config.reset_reader_on_write = true;
    kube::Client::try_from(config).context("cannot make a client of the API server")
}

/// Without empty names, which an empty variable or a trailing comma gives.
fn each_once(names: Vec<String>) -> Vec<String> {
    let names: BTreeSet<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn each_namespace_is_watched_once_and_none_means_all() {
        for (given, watched) in [
            ("", &[][..]),
            (",", &[]),
            ("shop", &["shop"]),
            ("shop,bank,", &["bank", "shop"]),
            ("shop,bank,shop", &["bank", "shop"]),
        ] {
            let command = Command::parse_from(["controller", "--watch-namespaces", given]);
            assert_eq!(each_once(command.args.watch_namespaces), watched, "{given:?}");
        }
    }
}
