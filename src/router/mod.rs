//! The router: puts ingress, event log, routing and delivery together.
//!
//! The command line calls [`run`] with a stream of routing configurations, from the controller
//! ([`ControllerLink`]) or from files. Everything that must survive the process is in the data directory: the
//! event log with the cursors, and the last configuration, with which the router starts when the controller is
//! unavailable.

pub mod api;
mod audit;
mod body;
mod controller_connector;
mod controller_link;
pub mod dead_letters;
mod error;
mod exceeded;
mod explain;
mod forwarding;
mod hooks;
mod ingress;
mod ingress_servers;
mod metrics;
mod operator;
mod operator_token;
mod options;
mod over_quota;
mod owner_file;
mod problem;
mod quotas;
mod router_log;
mod saved;
mod sink_report;
mod source_report;
mod threads;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use controller_link::{ControllerAddress, ControllerLink, LinkError};
pub use error::RouterError;
pub use operator_token::OPERATOR_TOKEN_FILE;
pub use options::{Listeners, LogOptions, RouterOptions, TlsListener};
pub use router_log::RouterLog;
pub use saved::SavedError;

use crate::{
    access::Access,
    delivery::DeliveryOptions,
    descriptors::{self, Descriptors},
    destination::{Addresses, Client},
    intake::Descendants,
    log::{LogError, LogProvider},
    memory::Pool,
    ownership::{EngineStarter, Shards, WorkSharing},
    routing::{Configuration, Destination, Revision, RoutingTable, ServiceName, protocol::SinkReport},
    server::{self, Heartbeat, OwnThread, Server, ServerLimits},
    supervision::{self, Supervisor},
};

use body::Bodies;
use forwarding::Forwarding;
use hooks::{HookServer, Hooks};
use ingress_servers::IngressServers;
use metrics::Metrics;
use operator::Operators;
use operator_token::OperatorToken;
use saved::SavedConfiguration;
use sink_report::ReportedParts;
use threads::Threads;

/// Pause before a configuration that could not be written is retried.
const WRITE_AGAIN: Duration = Duration::from_secs(3);

/// Memory of a connection beside its requests, in bytes. The budget limits the number of connections: that of requests
/// those from producers, that of attempts those to Sinks, most of which are idle in between.
const CONNECTION_BYTES: usize = 16 * 1024;

/// Runs a router until it is told to stop, then drains what is in flight. `name` is unique among the routers that share
/// the log.
///
/// `configurations` is `None` until there is one; each applied one is acknowledged on `applied`, once all routers that
/// share the log have applied it. A configuration that cannot be written to the disk is not applied: it is retried until
/// it can, or a newer one comes. `sinks` is kept up to date with the Sinks that are down, once that is known.
///
/// # Errors
/// Fails when it cannot start, or when the event log failed and the process has to exit.
pub async fn run(
    options: RouterOptions,
    name: &str,
    log: RouterLog,
    mut configurations: watch::Receiver<Option<Configuration>>,
    applied: watch::Sender<Revision>,
    sinks: watch::Sender<Option<SinkReport>>,
    stop: CancellationToken,
) -> Result<(), RouterError> {
    let saved = SavedConfiguration::in_directory(&options.data)?;
    let logs = log.provider();
    let addresses = Addresses {
        uris: options.uri_addresses,
        services: options.service_addresses,
        mapped: options.services.keys().cloned().collect(),
    };
    let descendants = Descendants::default();
    let sockets_to_sinks =
        (options.memory.attempts.capacity() / CONNECTION_BYTES).min(options.descriptors.sinks);
    let client = Client::new(options.max_body, addresses)?
        .traced(options.tracer.clone())
        .counting(descendants.clone())
        .with_answers(options.memory.answers.clone())
        .with_sockets(Pool::new(sockets_to_sinks));
    let supervisor = Supervisor::default();
    let delivery = DeliveryOptions {
        memory: options.memory.attempts.clone(),
        ..options.delivery
    };
    let delivering = Threads::start("delivery").map_err(RouterError::Threads)?;
    let starter = EngineStarter {
        logs: logs.clone(),
        client,
        options: delivery,
        supervisor: supervisor.clone(),
        runtime: delivering.handle(),
    };
    let elsewhere = options.sources_router.filter(|router| router != name);
    let (shards, shared) = match log {
        RouterLog::Embedded(_) => {
            if let Some(router) = &elsewhere {
                tracing::info!(router, "Sources with a schedule run at another router");
            }
            (Shards::alone(starter, elsewhere.is_none()).await?, None)
        }
        RouterLog::JetStream(log) => {
            let shards = Shards::of_shared(starter, log.clone());
            let sharing = WorkSharing {
                log: log.clone(),
                router: name.to_owned(),
                shards: shards.clone(),
            };
            let forwarding = Forwarding {
                log,
                router: name.to_owned(),
                shards: shards.clone(),
                max_body: options.max_body,
            };
            (shards, Some((sharing, Arc::new(forwarding))))
        }
    };
    let tls = options.listen.tls.as_ref().map(|listener| listener.tls.clone());
    let metrics = Metrics::new(logs.clone(), shards.clone(), tls);
    let table = Arc::new(ArcSwapOption::<RoutingTable>::empty());
    let access = Arc::<ArcSwap<Access>>::default();
    let requests = options.memory.requests;
    let Descriptors { ingress, admin, .. } = options.descriptors;
    let limit = descriptors::limit();
    tracing::info!(
        limit,
        ingress,
        admin,
        sockets_to_sinks,
        "file descriptors are divided"
    );
    let quotas = Arc::<quotas::Quotas>::default();
    let over_quota = Arc::<over_quota::RejectedLately>::default();
    let audited = Arc::<audit::AuditLog>::default();
    let ingress = ingress::Ingress {
        intake: shards.intake(),
        shards: shards.clone(),
        table: table.clone(),
        access: access.clone(),
        metrics: metrics.ingress.clone(),
        bodies: Bodies::new(options.max_body, requests.clone()),
        tracer: options.tracer,
        refusals: Mutex::default(),
        over_quota: over_quota.clone(),
        quotas: quotas.clone(),
        descendants,
        conflicts: Mutex::default(),
        loops: Mutex::default(),
        audited: audited.clone(),
    };
    let ingress = Arc::new(ingress);
    let hooks = Arc::<ArcSwap<Hooks>>::default();
    let hook_server = HookServer {
        ingress: ingress.clone(),
        hooks: hooks.clone(),
        metrics: metrics.hooks.clone(),
    };
    let connections = (requests.capacity() / CONNECTION_BYTES).min(options.descriptors.ingress);
    let limits = ServerLimits {
        idle_timeout: options.idle_timeout,
        ..metrics.ingress.limits(connections, requests)
    };
    let ingress_servers = IngressServers::bind(options.listen, limits).await?;
    let limits = server::admin_limits(options.descriptors.admin);
    let admin_server = Server::bind("admin", options.admin).await?.with_limits(limits);
    let before = last_configuration(&saved)?;
    let mut applier = Applier {
        saved,
        unsaved: None,
        shards: shards.clone(),
        table: table.clone(),
        access,
        hooks,
        hook_metrics: metrics.hooks.clone(),
        services: options.services,
        configuration: metrics.configuration.clone(),
        ingress: metrics.ingress.clone(),
        quotas,
        undecodable: Arc::default(),
        unacknowledged: None,
        applied,
    };
    let explainer = explain::Explainer {
        logs: logs.clone(),
        shards: shards.clone(),
        table: table.clone(),
        others: shared.as_ref().map(|(_, forwarding)| forwarding.clone()),
        turn: Arc::new(tokio::sync::Semaphore::new(1)),
    };
    let triggers = api::Triggers {
        shards: shards.clone(),
        table: table.clone(),
    };
    let table_of_report = table.clone();
    let operator = dead_letters::routes(shards.clone())
        .merge(explain::routes(explainer, options.max_body))
        .merge(api::routes(triggers))
        .merge(api::delivery_route(shards.clone()));
    let of_installation = match &shared {
        Some((_, forwarding)) => forwarding.clone().layer(operator.clone()),
        None => operator.clone(),
    };
    let operators = Operators {
        router: name.to_owned(),
        token: OperatorToken::renew(&options.data),
        reviewer: options.reviewer,
    };
    let of_installation = server::on_main_runtime(operators.guard(of_installation));
    let shards_of_readiness = shards.clone();
    let admin = server::admin(metrics.registry, Heartbeat::start(), move || {
        match (shards_of_readiness.problem(), table.load().as_ref()) {
            (Some(problem), _) => Err(problem),
            (None, Some(table)) => Ok(format!("revision {}", table.revision().0)),
            (None, None) => Err("no routing configuration yet".to_owned()),
        }
    })
    .merge(of_installation);

    let (servers, sharing_tasks) = (TaskTracker::new(), TaskTracker::new());
    let stop_admin = CancellationToken::new();
    let admin = OwnThread::serve(admin_server, admin, stop_admin.clone())?;
    let leave = CancellationToken::new();
    let (sharing_ended, ended) = watch::channel(None);
    let mut answering = JoinSet::new();
    if let Some((sharing, forwarding)) = shared {
        answering.spawn(forwarding.answer_others(operator));
        let leave = leave.clone();
        let sharing = async move { drop(sharing_ended.send(sharing.run(leave).await.err())) };
        let watched = supervisor
            .clone()
            .watch("sharing the work among routers", sharing);
        sharing_tasks.spawn(watched);
    }
    let begun = applier.begin(before).await;
    let stop_ingress = stop.child_token();
    let reported = ReportedParts {
        shards: shards.clone(),
        table: table_of_report,
        undecodable: applier.undecodable.clone(),
        rejected: over_quota,
        hooks: metrics.hooks.clone(),
        sources_router: elsewhere,
    };
    let reporting = sink_report::keep(reported, sinks, stop_ingress.clone());
    servers.spawn(supervisor.clone().watch("the report of Sinks", reporting));
    let (audit, stop_audit) = (audited.clone(), stop_ingress.clone());
    let auditing = async move {
        stop_audit.run_until_cancelled(audit.keep()).await;
    };
    servers.spawn(supervisor.clone().watch("the log of the audit", auditing));
    let hook_service = hooks::service(hook_server);
    ingress_servers.serve(
        &ingress::service(ingress),
        hook_service,
        &servers,
        &supervisor,
        &stop_ingress,
    );
    servers.close();

    let outcome = match begun {
        Ok(()) => {
            let refused = refused_to_share(ended);
            tokio::select! {
                ended = applier.follow(&mut configurations, &*logs, &supervisor, &stop) => ended,
                error = refused => Err(RouterError::Log(error)),
            }
        }
        failed => failed,
    };

    // Producers first, so that nothing new comes in; then Sources; then delivery.
    stop_ingress.cancel();
    stop_admin.cancel();
    servers.wait().await;
    audited.finish();
    admin.ended().await;
    leave.cancel();
    sharing_tasks.close();
    sharing_tasks.wait().await;
    shards.shutdown().await;
    drop(answering);
    if outcome.is_ok() {
        logs.sync().await?;
    }
    tracing::info!("the router has stopped");
    outcome
}

/// Resolves with the error of a router that may not share the log.
async fn refused_to_share(mut ended: watch::Receiver<Option<LogError>>) -> LogError {
    let refused = ended
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|ended| ended.clone());
    match refused {
        Some(error) => error,
        // It has ended because it was told to, or panicked, which the supervisor tells.
        None => std::future::pending().await,
    }
}

/// Loads the configuration of the last run, if it can be read. Without it the router waits for the controller and
/// loses nothing: a Trigger's checkpoint is given up only when a configuration without the Trigger is applied.
fn last_configuration(saved: &SavedConfiguration) -> Result<Option<Configuration>, SavedError> {
    match saved.load() {
        Err(error @ SavedError::Malformed { .. }) => {
            tracing::error!(
                "{error}; the router starts without it, and the next configuration takes its place"
            );
            Ok(None)
        }
        loaded => loaded,
    }
}

/// Applies configurations.
struct Applier {
    saved: SavedConfiguration,
    unsaved: Option<Unsaved>,
    shards: Arc<Shards>,
    table: Arc<ArcSwapOption<RoutingTable>>,
    access: Arc<ArcSwap<Access>>,
    hooks: Arc<ArcSwap<Hooks>>,
    hook_metrics: Arc<metrics::HookMetrics>,
    services: BTreeMap<ServiceName, http::Uri>,
    configuration: metrics::ConfigurationInfo,
    ingress: Arc<metrics::IngressMetrics>,
    quotas: Arc<quotas::Quotas>,
    /// UIDs of the items of the applied configuration that cannot be decoded, for the report to the controller.
    undecodable: Arc<ArcSwap<Vec<String>>>,
    /// Applied revision that other routers may not have applied yet.
    unacknowledged: Option<Revision>,
    applied: watch::Sender<Revision>,
}

/// A configuration that could not be written, and is therefore not applied.
struct Unsaved {
    configuration: Configuration,
    /// Cause, as last logged.
    problem: String,
}

impl Applier {
    async fn take_over(&mut self, mut configuration: Configuration) -> Result<(), RouterError> {
        let before = self.unsaved.take();
        if let Some(table) = self.table.load().as_deref() {
            if *table.revision() == configuration.revision {
                return Ok(self.shards.confirm().await?);
            }
            configuration.keep_unread(table.triggers());
        }
        if let Err(error) = self.saved.store(&configuration) {
            let problem = error.to_string();
            if before.is_none_or(|before| before.problem != problem) {
                tracing::error!(
                    revision = configuration.revision.0,
                    "cannot apply the new configuration: {problem}; the router keeps its present one and retries"
                );
            }
            self.unsaved = Some(Unsaved {
                configuration,
                problem,
            });
            return Ok(());
        }
        self.apply(configuration, false).await
    }

    /// Applies a configuration that could not be written before.
    async fn try_again(&mut self) -> Result<(), RouterError> {
        match &self.unsaved {
            Some(Unsaved { configuration, .. }) => self.take_over(configuration.clone()).await,
            None => Ok(()),
        }
    }

    /// Applies the configuration of the last run.
    async fn begin(&mut self, before: Option<Configuration>) -> Result<(), RouterError> {
        let Some(configuration) = before else {
            return Ok(());
        };
        tracing::info!(
            revision = configuration.revision.0,
            "starting with the configuration of the last run"
        );
        self.apply(configuration, true).await
    }

    /// Applies each new configuration until told to stop.
    async fn follow(
        &mut self,
        configurations: &mut watch::Receiver<Option<Configuration>>,
        logs: &dyn LogProvider,
        supervisor: &Supervisor,
        stop: &CancellationToken,
    ) -> Result<(), RouterError> {
        loop {
            let unacknowledged = self.unacknowledged.clone();
            tokio::select! {
                changed = configurations.changed() => {
                    if changed.is_err() {
                        // The sender of configurations ends when it is told to stop, like this loop, or by a panic.
                        return if stop.is_cancelled() { Ok(()) } else { Err(RouterError::NoConfigurations) };
                    }
                    let Some(configuration) = configurations.borrow_and_update().clone() else { continue };
                    self.take_over(configuration).await?;
                }
                revision = all_have_applied(&self.shards, unacknowledged) => {
                    self.unacknowledged = None;
                    if self.shards.are_shared() {
                        let revision = &revision.0;
                        tracing::info!(revision, "all shards have the configuration: its Triggers get the events accepted from now on");
                    }
                    self.applied.send_replace(revision);
                }
                () = tokio::time::sleep(WRITE_AGAIN), if self.unsaved.is_some() => self.try_again().await?,
                error = logs.failed() => return Err(RouterError::Log(error)),
                panicked = supervisor.panicked() => return Err(RouterError::Panicked(panicked)),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Applies a configuration; `is_saved` if it is that of the last run.
    async fn apply(&mut self, mut configuration: Configuration, is_saved: bool) -> Result<(), RouterError> {
        for item in &configuration.undecodable {
            tracing::error!(
                %item,
                "an item of the routing configuration cannot be decoded, and is left out; is the controller newer than this router?"
            );
        }
        let undecodable = configuration.undecodable.iter().map(|item| item.uid.clone());
        self.undecodable.store(Arc::new(undecodable.collect()));
        reach_services_at(&self.services, &mut configuration);
        let revision = configuration.revision.clone();
        let sources = configuration.sources.clone();
        let before = self.access.load_full();
        let compiling = supervision::apart("compiling the routing configuration", move || {
            let access = Access::compile(&configuration, &before);
            let hooks = Hooks::compile(&configuration.sources);
            (access, hooks, RoutingTable::compile(configuration))
        });
        let (access, hooks, table) = compiling.await.map_err(RouterError::Panicked)?;
        let table = Arc::new(table);
        // Delivery first: an event that the new table lets in must find its Triggers placed.
        self.shards.apply(table.clone(), sources, is_saved).await?;
        self.ingress
            .retain(|namespace, broker| table.has_broker(namespace, broker));
        // First: a broker that is new in the table may have producers of its own.
        self.access.store(Arc::new(access));
        self.quotas
            .retain(|broker| table.quota_of(broker).events_per_second.is_some());
        self.table.store(Some(table));
        self.hook_metrics.retain(|webhook| hooks.has(webhook));
        self.hooks.store(Arc::new(hooks));
        self.configuration.applied(&revision.0);
        tracing::info!(revision = revision.0, "routing configuration applied");
        self.unacknowledged = Some(revision);
        Ok(())
    }
}

/// Resolves with the revision once all routers that share the log have applied it; never for `None`.
async fn all_have_applied(shards: &Shards, revision: Option<Revision>) -> Revision {
    match revision {
        Some(revision) => {
            shards.all_have_applied(&revision).await;
            revision
        }
        None => std::future::pending().await,
    }
}

/// Replaces scheme, host and port of Services that are reached elsewhere; keeps the path.
fn reach_services_at(services: &BTreeMap<ServiceName, http::Uri>, configuration: &mut Configuration) {
    for trigger in &mut configuration.triggers {
        let destinations = [&mut trigger.destination, &mut trigger.delivery.dead_letter_sink];
        for destination in destinations.into_iter().flatten() {
            reach_at(services, destination);
        }
    }
}

fn reach_at(services: &BTreeMap<ServiceName, http::Uri>, Destination::Http(endpoint): &mut Destination) {
    let Some(base) = endpoint
        .service
        .as_ref()
        .and_then(|service| services.get(service))
    else {
        return;
    };
    let path = endpoint
        .uri
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.path_and_query().map(|path| path.as_str().to_owned()))
        .unwrap_or_else(|| "/".to_owned());
    endpoint.uri = format!("{}{path}", base.to_string().trim_end_matches('/'));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Delivery, HttpEndpoint, Start, Trigger};

    #[test]
    fn a_service_reached_elsewhere_keeps_its_path() {
        let service = ServiceName {
            namespace: "shop".into(),
            name: "billing".into(),
        };
        let trigger = |service| Trigger {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "t".into(),
            generation: 1,
            broker: "default".into(),
            filters: vec![],
            destination: Some(Destination::Http(HttpEndpoint::new(
                "http://billing.shop.svc.cluster.local:8080/events?x=1".into(),
                service,
            ))),
            delivery: Delivery::default(),
            start: Start::Latest,
            transform: None,
            start_is_set: false,
            suspend: false,
            refused: None,
        };
        let services = [(service.clone(), http::Uri::from_static("http://127.0.0.1:8081"))].into();
        let mut configuration = Configuration {
            triggers: vec![trigger(Some(service)), trigger(None)],
            ..Configuration::default()
        };
        reach_services_at(&services, &mut configuration);
        let uris: Vec<_> = configuration
            .triggers
            .iter()
            .map(|t| t.destination.as_ref().unwrap().uri())
            .collect();
        assert_eq!(
            uris,
            [
                "http://127.0.0.1:8081/events?x=1",
                "http://billing.shop.svc.cluster.local:8080/events?x=1"
            ]
        );
    }
}
