//! Watches the cluster: keeps what routing is computed from in memory, and says when it changed.

use std::{collections::HashSet, fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, future::BoxFuture};
use k8s_openapi::{NamespaceResourceScope, api::core::v1};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store, store::WriterDropped},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    metrics::ControllerMetrics,
    observed::{Namespace, Observed, Port, Service},
    secrets::Secrets,
};
use crate::api;

/// How often it is said what is still awaited at the start.
const SAY_AWAITED_EVERY: Duration = Duration::from_secs(10);

/// What can be watched.
pub(super) trait Watched:
    Resource<DynamicType = ()>
    + Lookup<DynamicType = ()>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()>
        + Lookup<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// Our own resources may have been stored by another version; one that cannot be read must not hide the others.
type Guarded<K> = DeserializeGuard<K>;

/// The resources of one kind: in one store, or in one for each namespace that is looked at.
pub(super) struct Seen<K: Lookup<DynamicType = ()> + Clone + 'static>(Vec<Store<K>>);

impl<K: Lookup<DynamicType = ()> + Clone + 'static> Seen<K> {
    /// Waits until everything was listed once.
    pub(super) async fn ready(&self) -> Result<(), WriterDropped> {
        for store in &self.0 {
            store.wait_until_ready().await?;
        }
        Ok(())
    }

    pub(super) fn state(&self) -> impl Iterator<Item = Arc<K>> {
        self.0.iter().flat_map(Store::state)
    }
}

/// What the cluster's resources are at present.
pub(super) struct Watches {
    sources: Seen<Guarded<api::Source>>,
    triggers: Seen<Guarded<api::Trigger>>,
    sinks: Seen<Guarded<api::Sink>>,
    services: Seen<v1::Service>,
    namespaces: Seen<v1::Namespace>,
    secrets: Secrets,
    changed: Arc<Notify>,
    /// What was said to be unreadable, so that it is said once.
    unreadable: HashSet<String>,
}

impl Watches {
    /// Starts watching these namespaces, or all if there are none, until told to stop. With a
    /// `secure_channel` to the routers the Secrets that Sinks name are read too.
    pub(super) fn start(
        client: &Client,
        namespaces: &[String],
        metrics: &Arc<ControllerMetrics>,
        secure_channel: bool,
        stop: &CancellationToken,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let starter = Starter {
            client,
            namespaces,
            metrics,
            stop,
            changed: &changed,
        };
        let everything = watcher::Config::default();
        Self {
            sources: starter.watch("Source", &everything, |_| {}),
            triggers: starter.watch("Trigger", &everything, |_| {}),
            sinks: starter.watch("Sink", &everything, |_| {}),
            services: starter.watch("Service", &everything, keep_ports),
            namespaces: starter.watch_namespaces(),
            secrets: Secrets::start(client, metrics, &changed, secure_channel, stop),
            changed,
            unreadable: HashSet::new(),
        }
    }

    /// Waits until everything was listed once; routing computed from less would forget Triggers.
    pub(super) async fn ready(&self) {
        let mut awaited: Vec<(&str, BoxFuture<'_, _>)> = vec![
            ("Sources", Box::pin(self.sources.ready())),
            ("Triggers", Box::pin(self.triggers.ready())),
            ("Sinks", Box::pin(self.sinks.ready())),
            ("Services", Box::pin(self.services.ready())),
            ("Namespaces", Box::pin(self.namespaces.ready())),
        ];
        while let Some((kind, mut listed)) = awaited.pop() {
            while tokio::time::timeout(SAY_AWAITED_EVERY, &mut listed)
                .await
                .is_err()
            {
                tracing::warn!(
                    kind,
                    "waiting for the API server to list these; if they are Weir's own, are they installed? \
                     weir crds | kubectl apply -f -"
                );
            }
        }
        let sinks = readable(&self.sinks, "Sink", &mut HashSet::new());
        self.secrets.ready(&sinks).await;
    }

    /// Waits until something changed since this was last asked.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is there now.
    pub(super) fn observe(&mut self) -> Observed {
        let mut unreadable = HashSet::new();
        let sinks = readable(&self.sinks, "Sink", &mut unreadable);
        let observed = Observed {
            secrets: self.secrets.observe(&sinks),
            sources: readable(&self.sources, "Source", &mut unreadable),
            triggers: readable(&self.triggers, "Trigger", &mut unreadable),
            sinks,
            services: self
                .services
                .state()
                .filter(|service| service.metadata.deletion_timestamp.is_none())
                .map(|service| observe_service(&service))
                .collect(),
            namespaces: self
                .namespaces
                .state()
                .map(|namespace| Namespace {
                    name: namespace.name_any(),
                    labels: namespace.labels().clone(),
                    terminating: namespace.metadata.deletion_timestamp.is_some(),
                })
                .collect(),
        };
        for problem in unreadable.difference(&self.unreadable) {
            tracing::error!(
                problem,
                "a resource cannot be read and is left out; was it written by another version of Weir?"
            );
        }
        self.unreadable = unreadable;
        observed
    }
}

/// Starts watching the ConfigMaps of one name; the second part is rung when one changed.
pub(super) fn config_maps(
    client: &Client,
    namespaces: &[String],
    name: &str,
    metrics: &Arc<ControllerMetrics>,
    stop: &CancellationToken,
) -> (Seen<v1::ConfigMap>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let starter = Starter {
        client,
        namespaces,
        metrics,
        stop,
        changed: &changed,
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    (starter.watch("ConfigMap", &config, |_| {}), changed)
}

struct Starter<'a> {
    client: &'a Client,
    namespaces: &'a [String],
    metrics: &'a Arc<ControllerMetrics>,
    stop: &'a CancellationToken,
    changed: &'a Arc<Notify>,
}

impl Starter<'_> {
    fn watch<K>(&self, kind: &'static str, config: &watcher::Config, strip: fn(&mut K)) -> Seen<K>
    where
        K: Watched + Resource<Scope = NamespaceResourceScope>,
    {
        if self.namespaces.is_empty() {
            return Seen(vec![self.store(
                kind,
                Api::all(self.client.clone()),
                config.clone(),
                strip,
            )]);
        }
        let watch = |namespace: &String| {
            let api = Api::namespaced(self.client.clone(), namespace);
            self.store(kind, api, config.clone(), strip)
        };
        Seen(self.namespaces.iter().map(watch).collect())
    }

    /// A namespace is watched by its name, which is what an account can be allowed that may not see the others.
    fn watch_namespaces(&self) -> Seen<v1::Namespace> {
        let watch = |config| self.store("Namespace", Api::all(self.client.clone()), config, keep_labels);
        if self.namespaces.is_empty() {
            return Seen(vec![watch(watcher::Config::default())]);
        }
        let named = |name: &String| watcher::Config::default().fields(&format!("metadata.name={name}"));
        Seen(self.namespaces.iter().map(|name| watch(named(name))).collect())
    }

    fn store<K: Watched>(
        &self,
        kind: &'static str,
        api: Api<K>,
        config: watcher::Config,
        strip: fn(&mut K),
    ) -> Store<K> {
        let (store, writer) = reflector::store();
        let stream = watcher(api, config)
            .default_backoff()
            .modify(move |object| {
                object.meta_mut().managed_fields = None;
                strip(object);
            })
            .reflect(writer);
        let (metrics, changed, stop) = (self.metrics.clone(), self.changed.clone(), self.stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(follow(kind, stream, &metrics, &changed))
                .await;
        });
        store
    }
}

async fn follow<T>(
    kind: &'static str,
    stream: impl Stream<Item = watcher::Result<T>>,
    metrics: &ControllerMetrics,
    changed: &Notify,
) {
    let mut stream = std::pin::pin!(stream);
    let mut working = true;
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => {
                if !working {
                    tracing::info!(kind, "the watch works again");
                }
                working = true;
                changed.notify_one();
            }
            Err(error) => {
                metrics.watch_failed(kind);
                if working {
                    tracing::warn!(kind, %error, "the watch broke; it is tried again, and routing goes on as it was");
                }
                working = false;
            }
        }
    }
}

fn readable<K>(store: &Seen<Guarded<K>>, kind: &str, unreadable: &mut HashSet<String>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    Guarded<K>: Lookup<DynamicType = ()>,
    <Guarded<K> as Lookup>::DynamicType: Eq + Hash + Clone,
{
    let mut resources = Vec::new();
    for guarded in store.state() {
        match &guarded.0 {
            Ok(resource) => resources.push(resource.clone()),
            Err(invalid) => {
                let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
                let name = invalid.metadata.name.as_deref().unwrap_or_default();
                unreadable.insert(format!("{kind} {namespace}/{name}: {}", invalid.error));
            }
        }
    }
    resources
}

fn observe_service(service: &v1::Service) -> Service {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let port = |port: &v1::ServicePort| {
        // Absent means TCP, and HTTP needs it.
        port.protocol
            .as_deref()
            .filter(|protocol| *protocol != "TCP")
            .is_none()
            .then_some(())?;
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            number: u16::try_from(port.port).ok()?,
        })
    };
    Service {
        namespace: ResourceExt::namespace(service).unwrap_or_default(),
        name: service.name_any(),
        ports: Some(ports.iter().filter_map(port).collect()),
        external_name: spec.and_then(|spec| spec.type_.as_deref()) == Some("ExternalName"),
    }
}

/// A cluster has many Services, and routing needs their ports only.
fn keep_ports(service: &mut v1::Service) {
    service.status = None;
    service.metadata.annotations = None;
    service.metadata.labels = None;
    if let Some(spec) = service.spec.take() {
        service.spec = Some(v1::ServiceSpec {
            ports: spec.ports,
            type_: spec.type_,
            ..v1::ServiceSpec::default()
        });
    }
}

fn keep_labels(namespace: &mut v1::Namespace) {
    namespace.spec = None;
    namespace.status = None;
    namespace.metadata.annotations = None;
}
