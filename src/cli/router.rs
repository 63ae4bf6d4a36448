//! `weir router`: a router that takes its routing configuration from the controller.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    host::host_name,
    nats::NatsArgs,
    service::{self, ServiceAddress},
    shutdown,
    tls::TlsArgs,
    traces::TraceArgs,
    units::{self, Size},
};
use crate::{
    delivery::{DeliveryOptions, Retention},
    descriptors,
    destination::UriAddresses,
    log::embedded::EmbeddedOptions,
    memory::MemoryBudget,
    router::{self, ControllerAddress, ControllerLink, Listeners, LogOptions, RouterLog, RouterOptions},
    routing::{Revision, WhenFull},
    telemetry::Tracer,
};

/// Divisor of the memory budget that gives the memory, beside it, of the ids that brokers with deduplication remember.
const IDS_DIVISOR: u64 = 4;

/// Flags shared by `weir router` and `weir run`.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// Maximum size of a request. Events of up to 64 KiB are always accepted.
    #[arg(
        long,
        env = "WEIR_MAX_EVENT_SIZE",
        default_value = "1MiB",
        value_name = "SIZE"
    )]
    pub max_event_size: Size,

    /// Time after which an idle connection from a producer is closed. Set it above the idle timeout of any load
    /// balancer in front, or clients occasionally get a 502.
    #[arg(long, env = "WEIR_IDLE_TIMEOUT", default_value = "650s", value_name = "DURATION", value_parser = units::duration)]
    pub idle_timeout: Duration,

    /// Address that receives the requests of webhooks, as /NAMESPACE/SOURCE, such as 0.0.0.0:8082. Without it, Sources of
    /// kind webhook receive nothing.
    #[arg(long, env = "WEIR_LISTEN_HOOKS", value_name = "ADDRESS")]
    pub listen_hooks: Option<SocketAddr>,

    /// Time for which settled events are retained, for Triggers that start in the past. Unsettled events are not
    /// affected.
    #[arg(long, env = "WEIR_RETENTION_AGE", default_value = "24h", value_name = "DURATION", value_parser = units::duration)]
    pub retention_age: Duration,

    /// Maximum size of settled events retained per broker. Unsettled events are not affected.
    #[arg(
        long,
        env = "WEIR_RETENTION_SIZE",
        default_value = "1GiB",
        value_name = "SIZE"
    )]
    pub retention_size: Size,

    /// Where to store events: embedded, in this router's data directory; or jetstream, in NATS JetStream, shared by
    /// several routers, which divide the work.
    #[arg(
        long = "log",
        env = "WEIR_LOG_ENGINE",
        default_value = "embedded",
        value_enum,
        value_name = "ENGINE"
    )]
    pub engine: LogEngine,

    /// Connection to NATS.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Maximum size of the embedded event log in total.
    #[arg(long, env = "WEIR_LOG_SIZE", default_value = "8GiB", value_name = "SIZE")]
    pub log_size: Size,

    /// Largest share of the embedded event log that the brokers of one namespace get, in percent of what the other
    /// namespaces leave. Beyond it, --when-full or the Broker's whenFull applies.
    #[arg(
        long,
        env = "WEIR_LOG_SHARE",
        default_value_t = 50,
        value_name = "PERCENT",
        value_parser = clap::value_parser!(u8).range(10..=90)
    )]
    pub log_share: u8,

    /// Policy for new events when the log or a share of it is full and every event that all Triggers have settled has
    /// been removed. A Broker's whenFull overrides it, except when the whole log is full.
    #[arg(
        long,
        env = "WEIR_WHEN_FULL",
        default_value = "refuse",
        value_enum,
        value_name = "POLICY"
    )]
    pub when_full: FullPolicy,

    /// Time for which the position of a deleted Trigger is kept, and the events from there on. A Trigger with the
    /// same name and broker resumes there, unless its start is set. 0s keeps none. When the log is full, these
    /// positions are dropped first.
    #[arg(long, env = "WEIR_KEEP_DELETED_TRIGGERS", default_value = "1h", value_name = "DURATION", value_parser = units::duration_or_none)]
    pub keep_deleted_triggers: Duration,

    /// Disk space to keep free. A write that would leave less is rejected with 507.
    #[arg(long, env = "WEIR_DISK_RESERVE", default_value = "32MiB", value_name = "SIZE")]
    pub disk_reserve: Size,

    /// Memory limit of requests, deliveries and responses together. Beyond it they wait or are rejected with 503.
    /// Default: a quarter of the container's memory limit, or 256MiB without one.
    #[arg(long, env = "WEIR_MEMORY_BUDGET", value_name = "SIZE")]
    pub memory_budget: Option<Size>,

    /// Start with an empty event log although the data directory had one before, according to its
    /// configuration.json. Undelivered events of the old log are lost. Without this flag the router refuses to
    /// start. Remove the flag after the start.
    #[arg(long, env = "WEIR_ACCEPT_EMPTY_LOG")]
    pub accept_empty_log: bool,

    /// Time for which dead letters are kept.
    #[arg(long, env = "WEIR_DEAD_LETTER_AGE", default_value = "7d", value_name = "DURATION", value_parser = units::duration)]
    pub dead_letter_age: Duration,

    /// Maximum size of dead letters kept per broker. Beyond it the oldest are removed.
    #[arg(
        long,
        env = "WEIR_DEAD_LETTER_SIZE",
        default_value = "1GiB",
        value_name = "SIZE"
    )]
    pub dead_letter_size: Size,

    /// URL to reach a Service at instead of its cluster name, for a router outside the cluster. Can be repeated.
    #[arg(long = "service", value_name = "NAMESPACE/NAME=URL")]
    pub services: Vec<ServiceAddress>,
}

/// Where events are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogEngine {
    /// In the data directory of the router.
    Embedded,
    /// In NATS JetStream.
    Jetstream,
}

/// Policy for new events when the log is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum FullPolicy {
    /// Reject new events with 507.
    Refuse,
    /// Drop the oldest events, including undelivered ones, with a warning and a metric.
    DropOldest,
}

impl LogArgs {
    /// Converts the flags to the router's options.
    ///
    /// # Errors
    /// If a Service is given twice, an option does not apply to the log, or the process's limit of file descriptors is
    /// too low.
    pub fn into_options(
        self,
        listen: Listeners,
        admin: SocketAddr,
        data: PathBuf,
        uri_addresses: UriAddresses,
        service_addresses: UriAddresses,
    ) -> anyhow::Result<RouterOptions> {
        let Self {
            max_event_size,
            idle_timeout,
            listen_hooks,
            retention_age,
            retention_size,
            engine,
            nats,
            log_size,
            log_share,
            when_full,
            keep_deleted_triggers,
            disk_reserve,
            dead_letter_age,
            dead_letter_size,
            services,
            memory_budget,
            accept_empty_log,
        } = self;
        let memory = memory_budget.map_or_else(MemoryBudget::default_bytes, |size| size.0);
        let (mut retained_bytes, mut dead_letter_bytes) = (retention_size.0, dead_letter_size.0);
        let mut max_retention = u64::MAX;
        let log = match engine {
            LogEngine::Embedded => LogOptions::Embedded(EmbeddedOptions {
                max_bytes: log_size.0,
                share_percent: log_share,
                reserve_bytes: disk_reserve.0,
                max_ids: EmbeddedOptions::ids_within(memory / IDS_DIVISOR),
                ..EmbeddedOptions::default()
            }),
            LogEngine::Jetstream => {
                anyhow::ensure!(
                    when_full == FullPolicy::Refuse,
                    "--when-full drop-oldest works only with --log embedded: JetStream streams are trimmed only by retention"
                );
                let log = nats.into_options(max_event_size)?;
                // A full stream makes no room by itself, so retained events may take only half of it.
                max_retention = log.max_bytes / 2;
                retained_bytes = retained_bytes.min(max_retention);
                dead_letter_bytes = dead_letter_bytes.min(log.dead_letters_max_bytes / 2);
                LogOptions::JetStream(log)
            }
        };
        let services: BTreeMap<_, _> = service::by_name(services)?;
        Ok(RouterOptions {
            listen: Listeners {
                hooks: listen_hooks,
                ..listen
            },
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
            log,
            delivery: DeliveryOptions {
                retention: Retention {
                    age: retention_age,
                    bytes: retained_bytes,
                },
                max_retention,
                dead_letters: Retention {
                    age: dead_letter_age,
                    bytes: dead_letter_bytes,
                },
                when_full: match when_full {
                    FullPolicy::Refuse => WhenFull::Reject,
                    FullPolicy::DropOldest => WhenFull::DropOldest,
                },
                keep_deleted: keep_deleted_triggers,
                ..DeliveryOptions::default()
            },
            sources_router: None,
            tracer: Tracer::default(),
            reviewer: None,
        })
    }
}

/// Arguments of `weir router`.
#[derive(Debug, clap::Args)]
pub struct RouterArgs {
    /// Name of this router, by which the controller identifies it. Default: the host name.
    #[arg(long, env = "WEIR_ROUTER_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// Address that producers post events to.
    #[arg(
        long,
        env = "WEIR_LISTEN",
        default_value = "0.0.0.0:8080",
        value_name = "ADDRESS"
    )]
    pub listen: SocketAddr,

    /// TLS at the ingress.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Address that serves health, readiness and metrics and, to operators on this machine, Triggers, dead letters and
    /// explanations.
    #[arg(
        long,
        env = "WEIR_ADMIN",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    pub admin: SocketAddr,

    /// Directory for the event log, the checkpoints and the last configuration. Only one router can use it at a
    /// time.
    #[arg(long, env = "WEIR_DATA", value_name = "DIRECTORY")]
    pub data: PathBuf,

    /// URL of the controller, which serves the routing configuration.
    #[arg(
        long,
        env = "WEIR_CONTROLLER",
        default_value = "http://weir-controller:8090",
        value_name = "URL"
    )]
    pub controller: String,

    /// PEM file with the authorities trusted to sign the controller's certificate, for an https --controller.
    /// Changes to the file are picked up.
    #[arg(long, env = "WEIR_CONTROLLER_CA", value_name = "FILE")]
    pub controller_ca: Option<PathBuf>,

    /// File with the ServiceAccount token that authenticates this router to the controller, for the audience
    /// weir-controller. Changes to the file are picked up.
    #[arg(long, env = "WEIR_CONTROLLER_TOKEN", value_name = "FILE")]
    pub controller_token: Option<PathBuf>,
    /// Non-public addresses that a uri may reach. Without it, private addresses are reachable only through
    /// Services, and loopback, link-local and metadata service addresses not at all.
    #[arg(
        long,
        env = "WEIR_ALLOW_URI_ADDRESSES",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]",
        value_parser = network
    )]
    pub allow_uri_addresses: Vec<IpNet>,

    /// Addresses that a uri may not reach even if allowed, such as those of pods and nodes if they are public.
    #[arg(
        long,
        env = "WEIR_DENY_URI_ADDRESSES",
        value_delimiter = ',',
        value_name = "CIDR[,CIDR]",
        value_parser = network
    )]
    pub deny_uri_addresses: Vec<IpNet>,

    /// Name of the only router that runs Sources with a schedule, for several routers with --log embedded. Without it every
    /// router runs them, and each scheduled time yields one event per router.
    #[arg(
        long,
        env = "WEIR_SOURCES_ROUTER",
        value_name = "NAME",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    pub sources_router: Option<String>,

    /// Event log and limits.
    #[command(flatten)]
    pub log: LogArgs,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

/// Parses a network, or an address as a single-address network.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or(address).map_err(|_| {
        format!(
            "invalid network {text:?}: use an address and a prefix length, such as 10.1.0.0/16 or fd00:1::/32"
        )
    })
}

/// Runs a router until it is stopped.
///
/// # Errors
/// If it cannot start, or when its event log fails.
pub async fn run(args: RouterArgs) -> anyhow::Result<()> {
    let RouterArgs {
        name,
        listen,
        tls,
        admin,
        data,
        controller,
        controller_ca,
        controller_token,
        allow_uri_addresses,
        deny_uri_addresses,
        sources_router,
        log,
        traces,
    } = args;
    anyhow::ensure!(
        sources_router.is_none() || log.engine == LogEngine::Embedded,
        "--sources-router works only with --log embedded: routers that share a log run each Source once"
    );
    let name = match name {
        Some(name) => name,
        None => host_name().context("set the name of the router with --name")?,
    };
    let stop = shutdown::token()?;
    let uri_addresses = UriAddresses {
        allow: allow_uri_addresses,
        deny: deny_uri_addresses,
    };
    let listen = tls.into_listeners(listen).await?;
    let export = traces.start()?;
    let controller = ControllerAddress {
        url: controller,
        authorities: controller_ca,
        token: controller_token,
    };
    let link = ControllerLink::new(controller, &name)?;
    let options = RouterOptions {
        tracer: export.tracer(),
        // A token is not sent where others can read along.
        reviewer: Some(link.clone()).filter(ControllerLink::is_encrypted),
        sources_router,
        ..log.into_options(listen, admin, data, uri_addresses, UriAddresses::of_services())?
    };
    let outcome = match RouterLog::open(&options, &stop).await? {
        Some(log) => deliver(options, &name, log, &link, &stop).await,
        None => Ok(()),
    };
    export.end().await;
    outcome
}

/// Delivers with configurations from the controller.
async fn deliver(
    options: RouterOptions,
    name: &str,
    log: RouterLog,
    link: &ControllerLink,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (stop, is_shared) = (stop.child_token(), log.is_shared());
    let (configurations, received) = watch::channel(None);
    let (applied, acknowledged) = watch::channel(Revision::default());
    let (sinks, reports) = watch::channel(None);
    let following = tokio::spawn(link.clone().follow(configurations, acknowledged, stop.clone()));
    // The guard is also dropped by a panic, which then stops the router too.
    let (report, ends_the_router) = (
        link.clone().report(reports, stop.clone()),
        stop.clone().drop_guard(),
    );
    let reporting = tokio::spawn(async move {
        report.await;
        drop(ends_the_router);
    });
    let outcome = router::run(options, name, log, received, applied, sinks, stop.clone()).await;
    stop.cancel();
    following
        .await
        .and(reporting.await)
        .context("the task that connects to the controller failed")?;
    if is_shared {
        link.leave().await;
    }
    Ok(outcome?)
}
