//! Watches the cluster: keeps the resources that routing is computed from in memory, and signals changes.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, Stream, StreamExt, future};
use k8s_openapi::{NamespaceResourceScope, api::core::v1};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, Lookup, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Notify,
    time::{Instant, interval_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    addressables::Addressables, credential_reader::CredentialApi, metrics::ControllerMetrics,
    producer_options::ProducerOptions, secrets::Secrets, signing_keys::SigningKeys, tokens::Tokens,
    watch_config::watched,
};
use crate::{
    api,
    resolve::{
        Namespace, Observed, Port, ProducerCheck, Referrers, Service, ServiceAccount, named_addressables,
        trim,
    },
    routing::Broker,
};

/// Interval at which outstanding lists are logged at the start.
const SAY_AWAITED_EVERY: Duration = Duration::from_secs(10);

/// Page size for listing Weir resources, each of which may have a megabyte.
const PAGE: u32 = 50;

/// Annotation in which kubectl stores the applied manifest, which is as large as the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A kind of resource that can be watched.
pub(super) trait WatchedKind:
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

impl<K> WatchedKind for K where
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

/// A Weir resource may have been stored by another version. One that cannot be decoded must not hide the others.
type Guarded<K> = DeserializeGuard<K>;

/// The resources of one kind: in one store, or in one per watched namespace, along with its name.
pub(super) struct ResourceStores<K: Lookup<DynamicType = ()> + Clone + 'static>(
    Vec<(Option<String>, Store<K>)>,
);

impl<K: Lookup<DynamicType = ()> + Clone + 'static> ResourceStores<K> {
    /// Whether the resources of this namespace have been listed.
    pub(super) fn is_listed(&self, namespace: &str) -> bool {
        self.awaited()
            .all(|awaited| awaited.is_some_and(|awaited| awaited != namespace))
    }

    /// Returns the namespaces that have not been listed yet; `None` stands for all.
    fn awaited(&self) -> impl Iterator<Item = Option<&str>> {
        let is_awaited = |store: &Store<K>| store.wait_until_ready().now_or_never().is_none();
        let awaited = self.0.iter().filter(move |(_, store)| is_awaited(store));
        awaited.map(|(namespace, _)| namespace.as_deref())
    }

    pub(super) fn state(&self) -> impl Iterator<Item = Arc<K>> {
        self.0.iter().flat_map(|(_, store)| store.state())
    }
}

/// The current resources of the cluster.
pub(super) struct Watches {
    brokers: ResourceStores<Guarded<api::Broker>>,
    sources: ResourceStores<Guarded<api::Source>>,
    triggers: ResourceStores<Guarded<api::Trigger>>,
    sinks: ResourceStores<Guarded<api::Sink>>,
    services: ResourceStores<v1::Service>,
    namespaces: ResourceStores<v1::Namespace>,
    accounts: ResourceStores<v1::ServiceAccount>,
    secrets: Secrets,
    signing_keys: SigningKeys,
    tokens: Tokens,
    addressables: Addressables,
    changed: Arc<Notify>,
    /// Unreadable resources already logged, by UID.
    unreadable: HashMap<String, String>,
}

impl Watches {
    /// Starts watching these namespaces, or all if there are none, until told to stop. With a `secure_channel` to
    /// the routers, also obtains the Secrets and tokens that Sinks and Brokers reference.
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
        let api = CredentialApi::new(client.clone());
        let everything = watched();
        let ours = watched().page_size(PAGE);
        Self {
            brokers: starter.watch("Broker", &ours, |_| {}),
            sources: starter.watch("Source", &ours, keep_of_source),
            triggers: starter.watch("Trigger", &ours, keep_of_trigger),
            sinks: starter.watch("Sink", &ours, |_| {}),
            services: starter.watch("Service", &everything, keep_ports),
            namespaces: starter.watch_namespaces(),
            accounts: starter.watch("ServiceAccount", &everything, keep_identity),
            secrets: Secrets::start(&api, metrics, &changed, secure_channel, stop),
            tokens: Tokens::start(&api, metrics, &changed, secure_channel, stop),
            signing_keys: SigningKeys::start(client, &changed, stop),
            addressables: Addressables::new(client, namespaces, metrics, &changed, stop),
            changed,
            unreadable: HashMap::new(),
        }
    }

    /// Waits until everything has been listed; computing routing from less would drop Triggers. Does not wait for
    /// namespaces that do not exist or are being deleted: there is nothing to drop, and the permission to list may
    /// be gone with them.
    pub(super) async fn ready(&mut self) {
        let mut say = interval_at(Instant::now() + SAY_AWAITED_EVERY, SAY_AWAITED_EVERY);
        loop {
            let awaited = self.awaited();
            if awaited.is_empty() {
                break;
            }
            tokio::select! {
                () = self.changed() => {}
                _ = say.tick() => say_awaited(&awaited),
            }
        }
        let sinks = readable(&self.sinks, &mut HashMap::new());
        let brokers = readable(&self.brokers, &mut HashMap::new());
        let sources = readable(&self.sources, &mut HashMap::new());
        let triggers = readable(&self.triggers, &mut HashMap::new());
        let addressables = named_addressables(&triggers, &sinks);
        let referrers = Referrers {
            sinks: &sinks,
            brokers: &brokers,
            sources: &sources,
        };
        tokio::join!(
            self.secrets.ready(referrers),
            self.tokens.ready(referrers),
            self.addressables.ready(&addressables),
            self.signing_keys.tried()
        );
    }

    /// Returns what is yet to be listed, by kind and namespace. Namespaces come first, since the rest depends on
    /// them.
    fn awaited(&self) -> Vec<(&'static str, Option<&str>)> {
        let of = |kind| move |namespace| (kind, namespace);
        let namespaces: Vec<_> = self.namespaces.awaited().map(of("Namespace")).collect();
        if !namespaces.is_empty() {
            return namespaces;
        }
        let there: HashSet<_> = self
            .namespaces
            .state()
            .filter(|namespace| namespace.metadata.deletion_timestamp.is_none())
            .map(|namespace| namespace.name_any())
            .collect();
        let brokers = self.brokers.awaited().map(of("Broker"));
        let sources = self.sources.awaited().map(of("Source"));
        let triggers = self.triggers.awaited().map(of("Trigger"));
        let sinks = self.sinks.awaited().map(of("Sink"));
        let services = self.services.awaited().map(of("Service"));
        let accounts = self.accounts.awaited().map(of("ServiceAccount"));
        let all = brokers
            .chain(sources)
            .chain(triggers)
            .chain(sinks)
            .chain(services)
            .chain(accounts);
        all.filter(|(_, namespace)| namespace.is_none_or(|namespace| there.contains(namespace)))
            .collect()
    }

    /// Waits for a change since the last call.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the current resources, with who may post to a broker whose Broker lists no producers.
    pub(super) fn observe(&mut self, producers: ProducerOptions) -> Observed {
        let mut unreadable = HashMap::new();
        let sinks = readable(&self.sinks, &mut unreadable);
        let brokers = readable(&self.brokers, &mut unreadable);
        let unread_brokers = self
            .brokers
            .state()
            .filter_map(|guarded| unread_broker(&guarded))
            .collect();
        let sources = readable(&self.sources, &mut unreadable);
        let mut unread = HashMap::new();
        let triggers = readable(&self.triggers, &mut unread);
        let referrers = Referrers {
            sinks: &sinks,
            brokers: &brokers,
            sources: &sources,
        };
        let observed = Observed {
            secrets: self.secrets.observe(referrers),
            tokens: self.tokens.observe(referrers),
            addressables: self.addressables.observe(&named_addressables(&triggers, &sinks)),
            brokers,
            unread_brokers,
            sources,
            triggers,
            unread_triggers: unread.keys().cloned().collect(),
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
            producers: Some(self.producer_check(producers)),
            ..Observed::default()
        };
        unreadable.extend(unread);
        for (uid, problem) in &unreadable {
            if self.unreadable.get(uid) != Some(problem) {
                tracing::error!(
                    problem,
                    "ignoring a resource that cannot be decoded (a Trigger keeps its position); was it written by \
                     another version of Weir?"
                );
            }
        }
        self.unreadable = unreadable;
        observed
    }

    fn producer_check(&self, ProducerOptions { others, audit }: ProducerOptions) -> ProducerCheck {
        let accounts = self.accounts.state().map(|account| ServiceAccount {
            namespace: ResourceExt::namespace(&*account).unwrap_or_default(),
            name: account.name_any(),
            uid: ResourceExt::uid(&*account).unwrap_or_default(),
        });
        ProducerCheck {
            others,
            audit,
            issuer: self.signing_keys.latest(),
            accounts: accounts.collect(),
        }
    }

    /// Returns the number of resources that could not be read at the last call.
    pub(super) fn unreadable_count(&self) -> usize {
        self.unreadable.len()
    }
}

fn say_awaited(awaited: &[(&'static str, Option<&str>)]) {
    for (kind, namespace) in awaited {
        tracing::warn!(
            kind,
            namespace,
            "waiting for the API server to list these resources; if they are Weir's own, install the definitions: \
             weir crds | kubectl apply -f -"
        );
    }
}

/// Starts watching the ConfigMaps with this name. The second value is notified of changes.
pub(super) fn config_maps(
    client: &Client,
    namespaces: &[String],
    name: &str,
    metrics: &Arc<ControllerMetrics>,
    stop: &CancellationToken,
) -> (ResourceStores<v1::ConfigMap>, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let starter = Starter {
        client,
        namespaces,
        metrics,
        stop,
        changed: &changed,
    };
    let config = watched().fields(&format!("metadata.name={name}"));
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
    fn watch<K>(&self, kind: &'static str, config: &watcher::Config, strip: fn(&mut K)) -> ResourceStores<K>
    where
        K: WatchedKind + Resource<Scope = NamespaceResourceScope>,
    {
        if self.namespaces.is_empty() {
            let api = Api::all(self.client.clone());
            return ResourceStores(vec![self.store(kind, None, api, config.clone(), strip)]);
        }
        let watch = |namespace: &String| {
            let api = Api::namespaced(self.client.clone(), namespace);
            self.store(kind, Some(namespace), api, config.clone(), strip)
        };
        ResourceStores(self.namespaces.iter().map(watch).collect())
    }

    /// Watches each namespace by name, which works for accounts that may not see the others.
    fn watch_namespaces(&self) -> ResourceStores<v1::Namespace> {
        let everything = watched();
        let watch = |name: Option<&String>, config| {
            let api = Api::all(self.client.clone());
            self.store("Namespace", name, api, config, keep_labels)
        };
        if self.namespaces.is_empty() {
            return ResourceStores(vec![watch(None, everything)]);
        }
        let named = |name: &String| {
            let config = everything.clone().fields(&format!("metadata.name={name}"));
            watch(Some(name), config)
        };
        ResourceStores(self.namespaces.iter().map(named).collect())
    }

    fn store<K: WatchedKind>(
        &self,
        kind: &'static str,
        namespace: Option<&String>,
        api: Api<K>,
        config: watcher::Config,
        strip: fn(&mut K),
    ) -> (Option<String>, Store<K>) {
        let (store, writer) = reflector::store();
        // The watcher announces each list before it starts, whatever its outcome.
        let is_progress = |event: &watcher::Result<watcher::Event<K>>| {
            !matches!(event, Ok(watcher::Event::Init | watcher::Event::InitApply(_)))
        };
        let stream = watcher(api, config)
            .modify(move |object| {
                let metadata = object.meta_mut();
                metadata.managed_fields = None;
                if let Some(annotations) = &mut metadata.annotations {
                    annotations.remove(LAST_APPLIED);
                }
                strip(object);
            })
            .reflect(writer)
            .filter(move |event| future::ready(is_progress(event)))
            .default_backoff();
        let (metrics, changed, stop) = (self.metrics.clone(), self.changed.clone(), self.stop.clone());
        let of = namespace.cloned();
        tokio::spawn(async move {
            stop.run_until_cancelled(follow(kind, of.as_deref(), stream, &metrics, &changed))
                .await;
        });
        (namespace.cloned(), store)
    }
}

async fn follow<T>(
    kind: &'static str,
    namespace: Option<&str>,
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
                    tracing::info!(kind, namespace, "the watch works again");
                }
                working = true;
                changed.notify_one();
            }
            Err(error) => {
                metrics.watch_failed(kind);
                if working {
                    tracing::warn!(
                        kind,
                        namespace,
                        %error,
                        "the watch failed; retrying, and routing continues unchanged"
                    );
                }
                working = false;
            }
        }
    }
}

/// Returns the readable resources. Errors of the others are added to `unreadable`, by UID.
fn readable<K>(store: &ResourceStores<Guarded<K>>, unreadable: &mut HashMap<String, String>) -> Vec<K>
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
                let uid = invalid.metadata.uid.clone().unwrap_or_default();
                let problem = format!("{} {namespace}/{name}: {}", K::kind(&()), invalid.error);
                unreadable.insert(uid, problem);
            }
        }
    }
    resources
}

/// The broker of a Broker that cannot be decoded.
fn unread_broker(guarded: &Guarded<api::Broker>) -> Option<Broker> {
    let invalid = guarded.0.as_ref().err()?;
    Some(Broker {
        namespace: invalid.metadata.namespace.clone()?,
        name: invalid.metadata.name.clone()?,
    })
}

fn observe_service(service: &v1::Service) -> Service {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let port = |port: &v1::ServicePort| {
        // Absent means TCP, which HTTP requires.
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
        external_name: spec
            .filter(|spec| spec.type_.as_deref() == Some("ExternalName"))
            .map(|spec| spec.external_name.clone().unwrap_or_default()),
    }
}

/// A cluster has many Services, and routing needs only their ports and external names.
fn keep_ports(service: &mut v1::Service) {
    service.status = None;
    service.metadata.annotations = None;
    service.metadata.labels = None;
    if let Some(spec) = service.spec.take() {
        service.spec = Some(v1::ServiceSpec {
            ports: spec.ports,
            type_: spec.type_,
            external_name: spec.external_name,
            ..v1::ServiceSpec::default()
        });
    }
}

fn keep_of_trigger(trigger: &mut Guarded<api::Trigger>) {
    if let Ok(trigger) = &mut trigger.0 {
        trim::filters(&mut trigger.spec.filters);
    }
}

fn keep_of_source(source: &mut Guarded<api::Source>) {
    if let Ok(source) = &mut source.0 {
        trim::filters(&mut source.spec.filters);
    }
}

fn keep_identity(account: &mut v1::ServiceAccount) {
    account.metadata.annotations = None;
    account.metadata.labels = None;
    (account.secrets, account.image_pull_secrets) = (None, None);
}

fn keep_labels(namespace: &mut v1::Namespace) {
    namespace.spec = None;
    namespace.status = None;
    namespace.metadata.annotations = None;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::{Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// An API server that denies listing in namespace `shop`.
    #[derive(Clone)]
    struct ApiServer {
        /// Metadata of namespace `shop`, if it exists.
        shop: Option<Value>,
        /// Time at which it is deleted.
        deleted_after: Option<Duration>,
        asked: Arc<AtomicUsize>,
    }

    impl ApiServer {
        fn new(shop: Option<Value>) -> Self {
            Self {
                shop,
                deleted_after: None,
                asked: Arc::default(),
            }
        }

        fn client(self) -> Client {
            let answer = move |request: Request<Body>| {
                let this = self.clone();
                async move {
                    let (status, body) = this.answer(request.uri()).await;
                    let body = Body::from(format!("{body}\n").into_bytes());
                    let response = Response::builder().status(status).body(body).unwrap();
                    Ok::<_, kube::Error>(response)
                }
            };
            Client::new(tower::service_fn(answer), "default")
        }

        async fn answer(&self, uri: &http::Uri) -> (StatusCode, Value) {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let query = uri.query().unwrap_or_default();
            let is_about_shop = uri.path().ends_with("/namespaces") && query.contains("name%3Dshop");
            let namespace = self.shop.as_ref().map(|metadata| json!({"metadata": metadata}));
            if query.contains("watch=") {
                return match (is_about_shop, self.deleted_after) {
                    (true, Some(after)) => {
                        tokio::time::sleep(after).await;
                        let event = json!({"type": "DELETED", "object": namespace});
                        (StatusCode::OK, event)
                    }
                    _ => future::pending().await,
                };
            }
            if uri.path().contains("/namespaces/shop/") {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Forbidden",
                    "code": 403,
                });
                return (StatusCode::FORBIDDEN, status);
            }
            let items: Vec<_> = namespace.filter(|_| is_about_shop).into_iter().collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items});
            (StatusCode::OK, list)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_lists_only_in_existing_namespaces() {
        let metadata = |more: Value| {
            let mut metadata = json!({"name": "shop", "uid": "u", "resourceVersion": "2"});
            metadata
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            Some(metadata)
        };
        let there = ApiServer::new(metadata(json!({})));
        let terminating = metadata(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        let deleted_later = ApiServer {
            deleted_after: Some(MINUTE),
            ..there.clone()
        };
        for (case, api_server, is_ready) in [
            ("it is there", there, false),
            ("it is not there", ApiServer::new(None), true),
            ("it is being deleted", ApiServer::new(terminating), true),
            ("it is deleted while it is awaited", deleted_later, true),
        ] {
            let stop = CancellationToken::new();
            let namespaces = ["shop".to_owned(), "bank".to_owned()];
            let mut watches =
                Watches::start(&api_server.client(), &namespaces, &Arc::default(), false, &stop);
            let ready = tokio::time::timeout(MINUTE * 2, watches.ready()).await;
            assert_eq!(ready.is_ok(), is_ready, "{case}: {:?}", watches.awaited());
            let awaited = if is_ready { 0 } else { ALL_OF_SHOP.len() };
            assert_eq!(watches.awaited(), &ALL_OF_SHOP[..awaited], "{case}");
            assert!(!watches.triggers.is_listed("shop") && watches.triggers.is_listed("bank"));
            stop.cancel();
        }
    }

    const ALL_OF_SHOP: [(&str, Option<&str>); 6] = [
        ("Broker", Some("shop")),
        ("Source", Some("shop")),
        ("Trigger", Some("shop")),
        ("Sink", Some("shop")),
        ("Service", Some("shop")),
        ("ServiceAccount", Some("shop")),
    ];

    #[tokio::test(start_paused = true)]
    async fn rejected_list_signals_no_change_and_is_retried_with_backoff() {
        let api_server = ApiServer::new(None);
        let asked = api_server.asked.clone();
        let (metrics, stop) = (Arc::default(), CancellationToken::new());
        let namespaces = ["shop".to_owned()];
        let client = api_server.client();
        let (seen, changed) = config_maps(&client, &namespaces, "weir-broker", &metrics, &stop);
        let rung = tokio::time::timeout(MINUTE * 10, changed.notified()).await;
        assert!(rung.is_err() && !seen.is_listed("shop"));
        let asked = asked.load(Ordering::Relaxed);
        assert!((10..30).contains(&asked), "{asked} times in ten minutes");
        stop.cancel();
    }
}
