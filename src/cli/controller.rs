//! `weir controller`: the control plane.

use std::{collections::BTreeSet, net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use anyhow::Context as _;

use super::{
    host::host_name,
    shutdown,
    units::{self, Size},
};
use crate::controller::{
    self, ChannelOptions, ControllerOptions, ProducerOptions, RouterAccount, TlsOptions,
};
use crate::{
    descriptors,
    election::Election,
    resolve::ClusterReach,
    routing::{DeduplicationSettings, InstallationDeduplication, InstallationQuotas, Quota, UnlistedBrokers},
};

/// Read timeout of the API server. A watch ends earlier because it requests one minute; the timeout catches lists
/// on a dead connection, which would otherwise hang forever.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// The flags of `weir controller`.
#[derive(Debug, clap::Args)]
pub struct ControllerArgs {
    /// Address that serves the routing configuration to routers.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "0.0.0.0:8090",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// Address that serves health, readiness and metrics.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// DNS domain of the cluster, used in Service names after .svc.
    #[arg(
        long,
        env = "WEIR_CLUSTER_DOMAIN",
        default_value = "cluster.local",
        value_name = "DOMAIN"
    )]
    pub cluster_domain: String,

    /// URL prefix of brokers, which producers post to as URL/NAMESPACE/BROKER, for example
    /// http://weir.weir-system.svc. Published in the status of Triggers and, as the ConfigMap weir-broker, in
    /// namespaces labelled weir.dev/inject=enabled.
    #[arg(long, env = "WEIR_BROKER_BASE_URL", value_name = "URL")]
    pub broker_base_url: Option<String>,

    /// URL prefix of webhooks, which other systems post to as URL/NAMESPACE/SOURCE, for example https://hooks.example.com.
    /// Published in the status of Sources. Without it, Sources of kind webhook are not Ready.
    #[arg(long, env = "WEIR_WEBHOOK_BASE_URL", value_name = "URL")]
    pub webhook_base_url: Option<String>,

    /// PEM file with the authorities that signed the certificate of an https --broker-base-url. Published in the
    /// ConfigMap weir-broker, as K_CA_CERTS, if the file exists. Changes to the file are picked up.
    #[arg(
        long,
        env = "WEIR_BROKER_CA",
        value_name = "FILE",
        requires = "broker_base_url"
    )]
    pub broker_ca: Option<PathBuf>,

    /// Maximum events per second that each router accepts for a broker. A Broker's quota cannot exceed it. Default: no
    /// limit.
    #[arg(long, env = "WEIR_BROKER_EVENTS_PER_SECOND", value_name = "EVENTS")]
    pub broker_events_per_second: Option<NonZeroU32>,

    /// Maximum size of an event of a broker, its data and attributes. A Broker's quota cannot exceed it. Default: what
    /// the router's --max-event-size allows.
    #[arg(long, env = "WEIR_BROKER_EVENT_SIZE", value_name = "SIZE")]
    pub broker_event_size: Option<Size>,

    /// Maximum bytes of a broker's unsettled events in the embedded log of each router. A Broker's quota cannot exceed it.
    /// Default: no limit other than the namespace's share of the log.
    #[arg(long, env = "WEIR_BROKER_BYTES", value_name = "SIZE")]
    pub broker_bytes: Option<Size>,

    /// Maximum events per second at each router for a broker that has no Broker, or whose Broker sets no
    /// quota.eventsPerSecond. Default: --broker-events-per-second.
    #[arg(long, env = "WEIR_BROKER_DEFAULT_EVENTS_PER_SECOND", value_name = "EVENTS")]
    pub broker_default_events_per_second: Option<NonZeroU32>,

    /// Maximum size of an event for a broker that has no Broker, or whose Broker sets no quota.eventSize. Default:
    /// --broker-event-size.
    #[arg(long, env = "WEIR_BROKER_DEFAULT_EVENT_SIZE", value_name = "SIZE")]
    pub broker_default_event_size: Option<Size>,

    /// Maximum bytes of unsettled events for a broker that has no Broker, or whose Broker sets no quota.bytes. Default:
    /// --broker-bytes.
    #[arg(long, env = "WEIR_BROKER_DEFAULT_BYTES", value_name = "SIZE")]
    pub broker_default_bytes: Option<Size>,

    /// Maximum time for which a broker with deduplication remembers its events. A Broker's deduplication.window cannot
    /// exceed it. Default: 7d.
    #[arg(long, env = "WEIR_BROKER_DEDUPLICATION_WINDOW", value_name = "DURATION", value_parser = units::duration)]
    pub broker_deduplication_window: Option<Duration>,

    /// Maximum number of events that a broker with deduplication remembers at each router. A Broker's
    /// deduplication.events cannot exceed it. Default: 1000000.
    #[arg(long, env = "WEIR_BROKER_DEDUPLICATION_EVENTS", value_name = "EVENTS")]
    pub broker_deduplication_events: Option<NonZeroU32>,

    /// Time for which a broker remembers its events that has no Broker, or whose Broker sets no deduplication.window.
    /// Default: no deduplication, unless a Broker has it.
    #[arg(long, env = "WEIR_BROKER_DEFAULT_DEDUPLICATION_WINDOW", value_name = "DURATION", value_parser = units::duration)]
    pub broker_default_deduplication_window: Option<Duration>,

    /// Number of events that a broker with deduplication remembers at each router, if its Broker sets no
    /// deduplication.events. Default: 100000.
    #[arg(long, env = "WEIR_BROKER_DEFAULT_DEDUPLICATION_EVENTS", value_name = "EVENTS")]
    pub broker_default_deduplication_events: Option<NonZeroU32>,

    /// Namespaces to watch, separated by commas. Events for other namespaces are rejected with 404. Default: all.
    #[arg(
        long,
        env = "WEIR_WATCH_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub watch_namespaces: Vec<String>,

    /// Let destinations be Services of type ExternalName. Their targets outside the cluster are limited to the addresses that
    /// routers permit for a uri, and those in the cluster to Services of the same namespace and of --shared-namespaces.
    #[arg(long, env = "WEIR_ALLOW_EXTERNAL_NAME_SERVICES")]
    pub allow_external_name_services: bool,

    /// Namespaces, separated by commas, whose Services every namespace may reach by the URL of an addressable object or by a
    /// Service of type ExternalName, such as those of a gateway: kourier-system,knative-eventing. * is all namespaces. Default:
    /// none, only Services of the same namespace.
    #[arg(
        long,
        env = "WEIR_SHARED_NAMESPACES",
        value_delimiter = ',',
        value_name = "NAMESPACES"
    )]
    pub shared_namespaces: Vec<String>,

    /// Who may post to a broker whose Broker does not list its producers: allow, everyone, without a token;
    /// same-namespace, ServiceAccounts of the broker's namespace; deny, nobody.
    #[arg(
        long,
        env = "WEIR_PRODUCERS",
        default_value = "allow",
        value_enum,
        value_name = "RULE"
    )]
    pub producers: UnlistedProducers,

    /// Let every request pass, and count and log those that would be rejected because of their producer. For a trial
    /// of --producers and of the producers in Brokers.
    #[arg(long, env = "WEIR_PRODUCERS_AUDIT")]
    pub producers_audit: bool,

    /// Lease for leader election among several controllers, in the controller's own namespace. Default: none; run
    /// only one controller.
    #[arg(long, env = "WEIR_LEASE", value_name = "NAME")]
    pub lease: Option<String>,

    /// Lease of the processes weir sources, in the controller's own namespace, which tells whether one of them runs. Without
    /// it, Sources of kind kubernetes are not Ready.
    #[arg(long, env = "WEIR_SOURCES_LEASE", value_name = "NAME")]
    pub sources_lease: Option<String>,

    /// Authentication of routers and encryption of the routing configuration.
    #[command(flatten)]
    pub channel: ChannelArgs,
}

/// Who may post to a broker whose Broker does not list its producers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum UnlistedProducers {
    /// Everyone, without a token.
    Allow,
    /// ServiceAccounts of the broker's namespace.
    SameNamespace,
    /// Nobody.
    Deny,
}

/// Flags that secure the connection from routers.
#[derive(Debug, clap::Args)]
pub struct ChannelArgs {
    /// Serve routers over TLS with the certificates in this Secret. The controller issues and renews them. The
    /// Secret, the ConfigMap and the Service are in the controller's own namespace.
    #[arg(long, env = "WEIR_TLS_SECRET", value_name = "NAME", requires_all = ["tls_ca_config_map", "tls_service"])]
    pub tls_secret: Option<String>,

    /// ConfigMap in which the controller publishes the authorities that routers must trust, under the key ca.crt.
    #[arg(
        long,
        env = "WEIR_TLS_CA_CONFIG_MAP",
        value_name = "NAME",
        requires = "tls_secret"
    )]
    pub tls_ca_config_map: Option<String>,

    /// Service by which routers reach the controller. The certificate is issued for its names.
    #[arg(long, env = "WEIR_TLS_SERVICE", value_name = "NAME", requires = "tls_secret")]
    pub tls_service: Option<String>,

    /// Serve only clients with a token of this ServiceAccount for the audience weir-controller.
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

fn deduplication(window: Option<Duration>, events: Option<NonZeroU32>) -> DeduplicationSettings {
    DeduplicationSettings {
        window,
        events: events.map(|events| events.get().into()),
    }
}

/// Runs a controller until it is told to stop. The API server is taken from the kubeconfig (KUBECONFIG or
/// ~/.kube/config) or, in a pod, from the cluster.
///
/// # Errors
/// If it cannot start.
pub async fn run(args: ControllerArgs) -> anyhow::Result<()> {
    let ControllerArgs {
        listen,
        admin,
        cluster_domain,
        broker_base_url,
        webhook_base_url,
        broker_ca,
        broker_events_per_second,
        broker_event_size,
        broker_bytes,
        broker_default_events_per_second,
        broker_default_event_size,
        broker_default_bytes,
        broker_deduplication_window,
        broker_deduplication_events,
        broker_default_deduplication_window,
        broker_default_deduplication_events,
        watch_namespaces,
        allow_external_name_services,
        shared_namespaces,
        producers,
        producers_audit,
        lease,
        sources_lease,
        channel,
    } = args;
    let channel = channel.into_options();
    let stop = shutdown::token()?;
    descriptors::raise()?;
    let client = client().await?;
    let election = election(lease)?;
    let options = ControllerOptions {
        listen,
        secure_channel: channel.is_secure(listen.ip()),
        channel,
        admin,
        cluster_domain,
        broker_quotas: InstallationQuotas {
            limits: Quota {
                events_per_second: broker_events_per_second,
                event_size: broker_event_size.map(|size| size.0),
                bytes: broker_bytes.map(|size| size.0),
            },
            defaults: Quota {
                events_per_second: broker_default_events_per_second,
                event_size: broker_default_event_size.map(|size| size.0),
                bytes: broker_default_bytes.map(|size| size.0),
            },
            deduplication: InstallationDeduplication {
                limits: deduplication(broker_deduplication_window, broker_deduplication_events),
                defaults: deduplication(
                    broker_default_deduplication_window,
                    broker_default_deduplication_events,
                ),
            },
        },
        broker_base_url,
        webhook_base_url,
        broker_authority: broker_ca,
        watch_namespaces: each_once(watch_namespaces),
        reach: ClusterReach {
            external_name_services: allow_external_name_services,
            shared_namespaces: each_once(shared_namespaces).into_iter().collect(),
        },
        producers: ProducerOptions {
            others: match producers {
                UnlistedProducers::Allow => UnlistedBrokers::Allow,
                UnlistedProducers::SameNamespace => UnlistedBrokers::SameNamespace,
                UnlistedProducers::Deny => UnlistedBrokers::Deny,
            },
            audit: producers_audit,
        },
        sources_lease,
        election,
    };
    Ok(controller::run(options, client, stop).await?)
}

async fn client() -> anyhow::Result<kube::Client> {
    let config = configuration_of_the_api_server().await?;
    kube::Client::try_from(config).context("cannot create a client for the API server")
}

/// Returns how the API server is reached.
///
/// # Errors
/// If there is neither a kubeconfig nor a ServiceAccount of a pod.
pub(super) async fn configuration_of_the_api_server() -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::infer()
        .await
        .context("cannot find the API server: set KUBECONFIG, or run in a pod with a ServiceAccount")?;
    config.read_timeout = Some(READ_TIMEOUT);
    // Restarts the read timeout with each request instead of counting from the last use of the connection.
    config.reset_reader_on_write = true;
    Ok(config)
}

/// Returns the options of leader election by this Lease, if there is one.
///
/// # Errors
/// If this process has no name.
pub(super) fn election(lease: Option<String>) -> anyhow::Result<Option<Election>> {
    let election = |lease| {
        Ok(Election {
            lease,
            host: host_name()?,
        })
    };
    lease.map(election).transpose()
}

/// Removes duplicates and empty names, as left by an empty variable or a trailing comma.
pub(super) fn each_once(names: Vec<String>) -> Vec<String> {
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
        args: ControllerArgs,
    }

    #[test]
    fn deduplicates_namespaces_and_treats_an_empty_list_as_all() {
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
