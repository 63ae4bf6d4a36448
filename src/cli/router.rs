//! `weir router`: a router that takes its routing configuration from the controller.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::sync::watch;

use super::{
    host_name,
    service::{self, ServiceAddress},
    shutdown,
    traces::TraceArgs,
    units::{self, Size},
};
use crate::{
    delivery::{DeliveryOptions, Retention, UriAddresses, WhenFull},
    descriptors,
    log::embedded::EmbeddedOptions,
    memory::MemoryBudget,
    router::{self, ControllerAddress, ControllerLink, RouterOptions},
    routing::Revision,
    telemetry::Tracer,
};

/// What a router takes on its command line, whether it is one in a cluster or in local mode.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// How large a request may be. Events of 64 KiB always pass.
    #[arg(
        long,
        env = "WEIR_MAX_EVENT_SIZE",
        default_value = "1MiB",
        value_name = "SIZE"
    )]
    pub max_event_size: Size,

    /// How long an idle connection from a producer stays open. Set it above the idle timeout of any load balancer in front,
    /// or clients get an occasional 502.
    #[arg(long, env = "WEIR_IDLE_TIMEOUT", default_value = "650s", value_name = "DURATION", value_parser = units::duration)]
    pub idle_timeout: Duration,

    /// How long settled events are retained, for Triggers that start with what was. Unsettled events stay.
    #[arg(long, env = "WEIR_RETENTION_AGE", default_value = "24h", value_name = "DURATION", value_parser = units::duration)]
    pub retention_age: Duration,

    /// How much of each broker's settled events is retained. Unsettled events stay.
    #[arg(
        long,
        env = "WEIR_RETENTION_SIZE",
        default_value = "1GiB",
        value_name = "SIZE"
    )]
    pub retention_size: Size,

    /// How large the event log may become in all.
    #[arg(long, env = "WEIR_LOG_SIZE", default_value = "8GiB", value_name = "SIZE")]
    pub log_size: Size,

    /// What happens to new events when the log is full, once everything is removed that every Trigger has settled.
    #[arg(
        long,
        env = "WEIR_WHEN_FULL",
        default_value = "refuse",
        value_enum,
        value_name = "POLICY"
    )]
    pub when_full: FullPolicy,

    /// How long the place of a Trigger that is deleted is kept, and its events with it: a Trigger of the same name and
    /// broker goes on there, unless its start is set. 0s keeps none. A full log gives such places up first.
    #[arg(long, env = "WEIR_KEEP_DELETED_TRIGGERS", default_value = "1h", value_name = "DURATION", value_parser = units::duration_or_none)]
    pub keep_deleted_triggers: Duration,

    /// How much of the disk stays free; what would leave less is refused with 507.
    #[arg(long, env = "WEIR_DISK_RESERVE", default_value = "32MiB", value_name = "SIZE")]
    pub disk_reserve: Size,

    /// How much memory requests, deliveries and answers may hold together; what does not fit waits or is refused with
    /// 503. Default: a quarter of the container's memory limit, or 256MiB without one.
    #[arg(long, env = "WEIR_MEMORY_BUDGET", value_name = "SIZE")]
    pub memory_budget: Option<Size>,

    /// Begin with an empty event log although the data directory had one before, as configuration.json in it tells. What
    /// was in it and not delivered is lost. Without this the router does not start. Take it away again afterwards.
    #[arg(long, env = "WEIR_ACCEPT_EMPTY_LOG")]
    pub accept_empty_log: bool,

    /// How long dead letters are kept.
    #[arg(long, env = "WEIR_DEAD_LETTER_AGE", default_value = "7d", value_name = "DURATION", value_parser = units::duration)]
    pub dead_letter_age: Duration,

    /// How much of each broker's dead letters is kept; beyond it the oldest are removed.
    #[arg(
        long,
        env = "WEIR_DEAD_LETTER_SIZE",
        default_value = "1GiB",
        value_name = "SIZE"
    )]
    pub dead_letter_size: Size,

    /// Where a Service is reached instead of by its cluster name, for a router outside the cluster; may be repeated.
    #[arg(long = "service", value_name = "NAMESPACE/NAME=URL")]
    pub services: Vec<ServiceAddress>,
}

/// What happens to new events when the log is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FullPolicy {
    /// They are refused with 507.
    Refuse,
    /// The oldest events are dropped, also undelivered ones, with a warning and a metric.
    DropOldest,
}

impl LogArgs {
    /// The router's options, with its addresses and its data directory.
    ///
    /// # Errors
    /// When a Service is given twice, or the process may have too few file descriptors.
    pub fn into_options(
        self,
        listen: SocketAddr,
        admin: SocketAddr,
        data: PathBuf,
        uri_addresses: UriAddresses,
        service_addresses: UriAddresses,
    ) -> anyhow::Result<RouterOptions> {
        let Self {
            max_event_size,
            idle_timeout,
            retention_age,
            retention_size,
            log_size,
            when_full,
            keep_deleted_triggers,
            disk_reserve,
            dead_letter_age,
            dead_letter_size,
            services,
            memory_budget,
            accept_empty_log,
        } = self;
        let services: BTreeMap<_, _> = service::by_name(services)?;
        let memory = memory_budget.map_or_else(MemoryBudget::default_bytes, |size| size.0);
        Ok(RouterOptions {
            listen,
            admin,
            data,
            accept_empty_log,
            idle_timeout,
            max_body: usize::try_from(max_event_size.0).unwrap_or(usize::MAX),
            services,
            memory: MemoryBudget::new(memory),
            descriptors: descriptors::for_router()?,
            uri_addresses,
            service_addresses,
            log: EmbeddedOptions {
                max_bytes: log_size.0,
                reserve_bytes: disk_reserve.0,
                ..EmbeddedOptions::default()
            },
            delivery: DeliveryOptions {
                retention: Retention {
                    age: retention_age,
                    bytes: retention_size.0,
                },
                dead_letters: Retention {
                    age: dead_letter_age,
                    bytes: dead_letter_size.0,
                },
                when_full: match when_full {
                    FullPolicy::Refuse => WhenFull::Refuse,
                    FullPolicy::DropOldest => WhenFull::DropOldest,
                },
                keep_deleted: keep_deleted_triggers,
                ..DeliveryOptions::default()
            },
            tracer: Tracer::default(),
        })
    }
}

/// The flags of `weir router`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The name by which the controller knows this router. Default: the host's name.
    #[arg(long, env = "WEIR_ROUTER_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// Where producers post events.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "0.0.0.0:8080",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// Where health, readiness, metrics and, for this machine only, dead letters and explanations are.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// The directory for the event log, the cursors and the last configuration. One router at a time can use it.
    #[arg(long, env = "WEIR_DATA", value_name = "DIRECTORY")]
    pub data: PathBuf,

    /// Where the controller serves the routing configuration.
    #[arg(
        long,
        env = "WEIR_CONTROLLER",
        default_value = "http://weir-controller:8090",
        value_name = "URL"
    )]
    pub controller: String,

    /// The file with the authorities that the controller's certificate is to be signed by, as PEM, for an https
    /// --controller. It may change at any time.
    #[arg(long, env = "WEIR_CONTROLLER_CA", value_name = "FILE")]
    pub controller_ca: Option<PathBuf>,

    /// The file with the ServiceAccount token by which this router proves who it is, for the audience
    /// weir-controller. It may change at any time.
    #[arg(long, env = "WEIR_CONTROLLER_TOKEN", value_name = "FILE")]
    pub controller_token: Option<PathBuf>,
    /// Which addresses a uri may reach although they are not on the internet. Private addresses are else reached as
    /// Services only; loopback and link-local addresses, and those of metadata services, not at all.
    #[arg(
        long,
        env = "WEIR_ALLOW_URI_ADDRESSES",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]",
        value_parser = network
    )]
    pub allow_uri_addresses: Vec<IpNet>,

    /// Which addresses a uri may not reach, even if they are allowed: those of pods and nodes, where they are public.
    #[arg(
        long,
        env = "WEIR_DENY_URI_ADDRESSES",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]",
        value_parser = network
    )]
    pub deny_uri_addresses: Vec<IpNet>,

    /// The event log and its limits.
    #[command(flatten)]
    pub log: LogArgs,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// A network, or an address for a network that has no other.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or(address).map_err(|_| {
        format!("{text:?} is no network: write an address and a length, such as 10.1.0.0/16 or fd00:1::/32")
    })
}

/// Runs a router until it is told to end.
///
/// # Errors
/// When it cannot start, or when its event log failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        name,
        listen,
        admin,
        data,
        controller,
        controller_ca,
        controller_token,
        allow_uri_addresses,
        deny_uri_addresses,
        log,
        traces,
    } = args;
    let name = match name {
        Some(name) => name,
        None => host_name().context("give the router a name with --name")?,
    };
    let stop = shutdown::token()?;
    let uri_addresses = UriAddresses {
        allow: allow_uri_addresses,
        deny: deny_uri_addresses,
    };
    let export = traces.start()?;
    let options = RouterOptions {
        tracer: export.tracer(),
        ..log.into_options(listen, admin, data, uri_addresses, UriAddresses::of_services())?
    };
    let controller = ControllerAddress {
        url: controller,
        authorities: controller_ca,
        token: controller_token,
    };
    let link = ControllerLink::new(controller, &name)?;
    let (configurations, received) = watch::channel(None);
    let (applied, acknowledged) = watch::channel(Revision::default());
    let (sinks, reports) = watch::channel(None);
    let following = tokio::spawn(link.clone().follow(configurations, acknowledged, stop.clone()));
    // Dropped also by a panic, which then ends the router too.
    let (report, ends_the_router) = (link.report(reports, stop.clone()), stop.clone().drop_guard());
    let reporting = tokio::spawn(async move {
        report.await;
        drop(ends_the_router);
    });
    let outcome = router::run(options, received, applied, sinks, stop.clone()).await;
    export.end().await;
    stop.cancel();
    following
        .await
        .and(reporting.await)
        .context("the link to the controller broke down")?;
    Ok(outcome?)
}
