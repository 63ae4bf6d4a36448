//! Options of a router.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use super::ControllerLink;
use crate::{
    delivery::DeliveryOptions,
    descriptors::Descriptors,
    destination::UriAddresses,
    log::{embedded::EmbeddedOptions, jetstream::JetStreamOptions},
    memory::MemoryBudget,
    routing::ServiceName,
    server::ListenerTls,
    telemetry::Tracer,
};

/// Options of a router.
#[derive(Clone, Debug)]
pub struct RouterOptions {
    /// Addresses that producers post to.
    pub listen: Listeners,
    /// Address that serves health, readiness and metrics and, to operators on this machine, Triggers, dead letters and
    /// explanations.
    pub admin: SocketAddr,
    /// Directory for all persistent data. Created if absent.
    pub data: PathBuf,
    /// Whether to start with an empty event log although the data directory had one before.
    pub accept_empty_log: bool,
    /// Time after which a producer's idle connection is closed.
    pub idle_timeout: Duration,
    /// Maximum size of a request, in bytes.
    pub max_body: usize,
    /// Addresses of Services in place of their cluster names, for a router outside the cluster.
    pub services: BTreeMap<ServiceName, http::Uri>,
    /// Addresses that destinations other than Services may reach.
    pub uri_addresses: UriAddresses,
    /// Addresses that Services not in `services` may resolve to.
    pub service_addresses: UriAddresses,
    /// Memory for requests, deliveries and responses.
    pub memory: MemoryBudget,
    /// Maximum connections of each kind.
    pub descriptors: Descriptors,
    /// Where events are stored.
    pub log: LogOptions,
    /// Name of the only router that runs Sources with a schedule, if there are several routers that share no log; `None` if
    /// this one does.
    pub sources_router: Option<String>,
    /// Options of delivery.
    pub delivery: DeliveryOptions,
    /// Creates the spans of requests and deliveries.
    pub tracer: Tracer,
    /// Reviews the tokens of operators; `None` if only the router's own token admits them.
    pub reviewer: Option<ControllerLink>,
}

/// Addresses that producers post to.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// Address for HTTP.
    pub plain: Option<SocketAddr>,
    /// Address for HTTPS.
    pub tls: Option<TlsListener>,
    /// Address for webhooks, over HTTP.
    pub hooks: Option<SocketAddr>,
}

/// A listener for HTTPS.
#[derive(Clone, Debug)]
pub struct TlsListener {
    /// Its address.
    pub address: SocketAddr,
    /// Its certificate, and whose clients may present one.
    pub tls: ListenerTls,
}

/// Where events are stored.
#[derive(Clone, Debug)]
pub enum LogOptions {
    /// In the data directory of this router.
    Embedded(EmbeddedOptions),
    /// In NATS JetStream.
    JetStream(JetStreamOptions),
}
