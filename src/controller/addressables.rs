//! Watches the objects with a URL in their status that Triggers and Sinks reference: one watch for each kind, from the
//! first reference to it until the last. The controller may read only the kinds that an operator grants it.
//!
//! Only the names and addresses of objects are kept. They stay in force while the API server is unavailable.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, future};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    discovery::{self, Scope},
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{metrics::ControllerMetrics, watch_config::watched};
use crate::resolve::{AddressableKind, AddressableName, AddressableState, StatusAddress};

/// Name of the watches in metrics.
const KIND: &str = "Addressable";

/// Maximum number of watched kinds.
const MAX_KINDS: usize = 256;

/// Maximum number of kinds that one namespace has watched, so that it does not take those of others.
const MAX_KINDS_OF_NAMESPACE: usize = 8;

/// Page size for listing objects, whose size is unknown.
const PAGE: u32 = 50;

/// Interval at which an unknown kind is looked for again, and one that may not be read is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Maximum number of kinds that are looked for at a time.
const LOOK_UPS: usize = 4;

/// Timeout of looking for a kind.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time that routing waits at the start for referenced objects. Otherwise each start of a controller would briefly leave
/// events without a destination.
const AWAITED_AT_START: Duration = Duration::from_secs(15);

/// The watches of the referenced kinds.
pub(super) struct Addressables {
    watcher: Arc<KindWatcher>,
    kinds: BTreeMap<AddressableKind, KindWatch>,
}

/// A watch of a kind, which ends when this is dropped.
struct KindWatch {
    known: watch::Receiver<KnownKind>,
    _stop: DropGuard,
}

impl Addressables {
    /// Watches no kind yet. `changed` is notified of changes of their objects in these namespaces, or all if there are
    /// none, until told to stop.
    pub(super) fn new(
        client: &Client,
        namespaces: &[String],
        metrics: &Arc<ControllerMetrics>,
        changed: &Arc<Notify>,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            watcher: Arc::new(KindWatcher {
                client: client.clone(),
                namespaces: namespaces.to_vec(),
                metrics: metrics.clone(),
                changed: changed.clone(),
                look_ups: Semaphore::new(LOOK_UPS),
                stop: stop.clone(),
            }),
            kinds: BTreeMap::new(),
        }
    }

    /// Returns the known states of these objects. Starts watching newly referenced kinds, and stops watching others.
    pub(super) fn observe(
        &mut self,
        named: &BTreeSet<AddressableName>,
    ) -> BTreeMap<AddressableName, AddressableState> {
        let admitted = admit(named, |kind| self.kinds.contains_key(kind));
        self.kinds.retain(|kind, _| admitted.contains(kind));
        for kind in admitted {
            let start = || self.watcher.start(kind.clone());
            self.kinds.entry(kind.clone()).or_insert_with(start);
        }
        let state = |name: &AddressableName| match self.kinds.get(&name.kind) {
            Some(watch) => watch.known.borrow().state(name),
            None => Some(AddressableState::TooManyKinds),
        };
        let named = named.iter();
        named
            .filter_map(|name| Some((name.clone(), state(name)?)))
            .collect()
    }

    /// Waits, for a bounded time, until the states of these objects are known.
    pub(super) async fn ready(&mut self, named: &BTreeSet<AddressableName>) {
        self.observe(named);
        let all = async {
            for name in named {
                let Some(watch) = self.kinds.get(&name.kind) else {
                    continue;
                };
                let mut known = watch.known.clone();
                // An error means that the controller stops.
                let _ = known.wait_for(|known| known.state(name).is_some()).await;
            }
        };
        if tokio::time::timeout(AWAITED_AT_START, all).await.is_err() {
            tracing::warn!(
                "some addressable objects could not be read in time; events for their Triggers wait"
            );
        }
    }
}

/// Chooses the kinds to watch: the first kind of every namespace, then the second of every one, and so on, so that a few
/// namespaces do not take those of others. Kinds that are already watched come first within a namespace and a turn.
fn admit(
    named: &BTreeSet<AddressableName>,
    is_watched: impl Fn(&AddressableKind) -> bool,
) -> BTreeSet<&AddressableKind> {
    let mut by_namespace = BTreeMap::<&str, BTreeSet<(bool, &AddressableKind)>>::new();
    for AddressableName { kind, namespace, .. } in named {
        let kinds = by_namespace.entry(namespace).or_default();
        kinds.insert((!is_watched(kind), kind));
    }
    let in_turn = by_namespace.into_values().flat_map(|kinds| {
        let kinds = kinds.into_iter().take(MAX_KINDS_OF_NAMESPACE).enumerate();
        kinds.map(|(turn, (is_new, kind))| (turn, is_new, kind))
    });
    let in_order: BTreeSet<_> = in_turn.collect();
    let mut admitted = BTreeSet::new();
    for (.., kind) in in_order {
        if admitted.len() == MAX_KINDS {
            break;
        }
        admitted.insert(kind);
    }
    admitted
}

/// What is known of a kind.
#[derive(Debug, Default)]
struct KnownKind {
    /// Why no object of it can be read.
    problem: Option<AddressableState>,
    /// What is known of each watched namespace; `None` stands for all.
    namespaces: BTreeMap<Option<String>, KnownObjects>,
}

/// What is known of the objects of a kind, in a namespace or in all.
#[derive(Debug, Default)]
struct KnownObjects {
    is_listed: bool,
    /// Why they cannot be read.
    problem: Option<AddressableState>,
    /// Their addresses, by namespace and name.
    addresses: KnownAddresses,
}

type KnownAddresses = BTreeMap<(String, String), StatusAddress>;

impl KnownKind {
    /// Returns the state of an object; `None` if it is not known yet.
    fn state(&self, name: &AddressableName) -> Option<AddressableState> {
        if self.problem.is_some() {
            return self.problem.clone();
        }
        let namespaces = &self.namespaces;
        let objects = namespaces
            .get(&None)
            .or_else(|| namespaces.get(&Some(name.namespace.clone())))?;
        if objects.problem.is_some() {
            return objects.problem.clone();
        }
        objects.is_listed.then(|| {
            let address = objects
                .addresses
                .get(&(name.namespace.clone(), name.name.clone()));
            address.map_or(AddressableState::NotFound, |address| {
                AddressableState::Found(address.clone())
            })
        })
    }

    /// Records that the kind cannot be read. Returns whether that is news.
    fn fail(&mut self, problem: AddressableState) -> bool {
        let is_news = self.problem.as_ref() != Some(&problem);
        self.problem = Some(problem);
        self.namespaces.clear();
        is_news
    }

    /// Records that the kind exists.
    fn exists(&mut self) -> bool {
        self.problem.take().is_some()
    }
}

impl KnownObjects {
    /// Records that they cannot be read. Known addresses stay in force, unless the permission to read them is gone.
    /// Returns whether anything has changed.
    fn fail(&mut self, problem: AddressableState) -> bool {
        let is_forbidden = matches!(problem, AddressableState::Forbidden { .. });
        if (self.is_listed && !is_forbidden) || self.problem.as_ref() == Some(&problem) {
            return false;
        }
        if is_forbidden {
            self.is_listed = false;
            self.addresses.clear();
        }
        self.problem = Some(problem);
        true
    }

    /// Replaces the addresses. Returns whether anything has changed.
    fn list(&mut self, addresses: KnownAddresses) -> bool {
        let is_news = !self.is_listed || self.addresses != addresses;
        *self = Self {
            is_listed: true,
            problem: None,
            addresses,
        };
        is_news
    }

    fn insert(&mut self, object: (String, String), address: StatusAddress) -> bool {
        self.addresses.insert(object, address.clone()) != Some(address)
    }

    fn remove(&mut self, object: &(String, String)) -> bool {
        self.addresses.remove(object).is_some()
    }
}

/// Watches kinds.
struct KindWatcher {
    client: Client,
    namespaces: Vec<String>,
    metrics: Arc<ControllerMetrics>,
    changed: Arc<Notify>,
    look_ups: Semaphore,
    stop: CancellationToken,
}

impl KindWatcher {
    fn start(self: &Arc<Self>, kind: AddressableKind) -> KindWatch {
        let stop = self.stop.child_token();
        let (publish, known) = watch::channel(KnownKind::default());
        let (this, stopped) = (self.clone(), stop.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(this.watch(&kind, &publish)).await });
        KindWatch {
            known,
            _stop: stop.drop_guard(),
        }
    }

    /// Watches a kind, also if it is installed or granted later, and installed again.
    async fn watch(&self, kind: &AddressableKind, known: &watch::Sender<KnownKind>) {
        loop {
            match self.discover(kind).await {
                Ok(resource) => {
                    self.publish(known, KnownKind::exists);
                    self.follow(&resource, known).await;
                }
                Err(problem) => {
                    let AddressableKind { api_version, kind } = kind;
                    if self.publish(known, |known| known.fail(problem.clone())) {
                        tracing::warn!(api_version, kind, ?problem, "cannot read a kind of destinations");
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Looks for the resource of a kind.
    async fn discover(&self, kind: &AddressableKind) -> Result<ApiResource, AddressableState> {
        let AddressableKind { api_version, kind } = kind;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = GroupVersionKind::gvk(group, version, kind);
        // Never closed.
        let _permit = self.look_ups.acquire().await;
        let found = tokio::time::timeout(TIMEOUT, discovery::pinned_kind(&self.client, &kind)).await;
        let error = match found {
            Ok(Ok((resource, capabilities))) if capabilities.scope == Scope::Namespaced => {
                return Ok(resource);
            }
            Ok(Ok(_)) => return Err(AddressableState::ClusterScoped),
            Ok(Err(kube::Error::Discovery(_))) => return Err(AddressableState::UnknownKind),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(AddressableState::UnknownKind);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no response within {TIMEOUT:?}"),
        };
        self.metrics.watch_failed(KIND);
        Err(AddressableState::Unreadable(error))
    }

    /// Follows the objects of a kind until the API server no longer has it.
    async fn follow(&self, resource: &ApiResource, known: &watch::Sender<KnownKind>) {
        let all = [None];
        let named: Vec<_> = self.namespaces.iter().map(Some).collect();
        let namespaces = if named.is_empty() { &all[..] } else { &named };
        let follow = |namespace: &Option<&String>| {
            Box::pin(self.follow_namespace(resource, namespace.cloned(), known))
        };
        future::select_all(namespaces.iter().map(follow)).await;
    }

    /// Follows the objects of a kind in a namespace, or in all, until the API server no longer has the kind.
    async fn follow_namespace(
        &self,
        resource: &ApiResource,
        namespace: Option<String>,
        known: &watch::Sender<KnownKind>,
    ) {
        let publish = |change: &mut dyn FnMut(&mut KnownObjects) -> bool| {
            self.publish(known, |known| {
                change(known.namespaces.entry(namespace.clone()).or_default())
            })
        };
        loop {
            let api = Api::<DynamicObject>::dynamic(self.client.clone(), resource, &Scope::Namespaced);
            let api = match &namespace {
                Some(namespace) => api.constrain(namespace),
                None => api,
            };
            let mut events = pin!(watcher(api, watched().page_size(PAGE)).default_backoff());
            let mut listed = KnownAddresses::new();
            let mut authorities = KnownAuthorities::default();
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => listed.clear(),
                    Ok(watcher::Event::InitApply(object)) => {
                        listed.insert(name_of(&object), authorities.address(&object));
                    }
                    Ok(watcher::Event::InitDone) => {
                        let mut listed = Some(std::mem::take(&mut listed));
                        publish(&mut |known| listed.take().is_some_and(|listed| known.list(listed)));
                        authorities.forget_unused();
                    }
                    Ok(watcher::Event::Apply(object)) => {
                        let address = authorities.address(&object);
                        publish(&mut |known| known.insert(name_of(&object), address.clone()));
                    }
                    Ok(watcher::Event::Delete(object)) => {
                        publish(&mut |known| known.remove(&name_of(&object)));
                    }
                    Err(error) => {
                        let resource = resource_name(resource);
                        let code = status_code(&error);
                        let problem = match code {
                            Some(404) => return,
                            Some(403) => AddressableState::Forbidden {
                                resource: resource.clone(),
                            },
                            _ => {
                                self.metrics.watch_failed(KIND);
                                AddressableState::Unreadable(error.to_string())
                            }
                        };
                        if publish(&mut |known| known.fail(problem.clone())) {
                            tracing::warn!(resource, namespace, %error, "cannot read a kind of destinations; retrying");
                        }
                        // A watch that continues would not list again once it is let.
                        if code == Some(403) {
                            break;
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Publishes a change, if it is one. Returns whether it is.
    fn publish(&self, known: &watch::Sender<KnownKind>, change: impl FnOnce(&mut KnownKind) -> bool) -> bool {
        let is_news = known.send_if_modified(change);
        if is_news {
            self.changed.notify_one();
        }
        is_news
    }
}

/// The authorities of a kind's objects, each kept once, since many objects announce the same ones.
#[derive(Default)]
struct KnownAuthorities {
    pems: HashSet<Arc<str>>,
    /// Number of authorities in use when unused ones were last forgotten.
    used: usize,
}

/// Number of authorities of a kind of which unused ones are kept until the next listing.
const FEW_AUTHORITIES: usize = 16;

impl KnownAuthorities {
    fn address(&mut self, object: &DynamicObject) -> StatusAddress {
        let mut address = StatusAddress::of(&object.data);
        if let Some(pem) = &mut address.ca_certs {
            match self.pems.get(pem) {
                Some(known) => *pem = known.clone(),
                None => {
                    // Seldom enough that it costs little per change.
                    if self.pems.len() >= 2 * self.used.max(FEW_AUTHORITIES) {
                        self.forget_unused();
                    }
                    self.pems.insert(pem.clone());
                }
            }
        }
        address
    }

    fn forget_unused(&mut self) {
        self.pems.retain(|pem| Arc::strong_count(pem) > 1);
        self.used = self.pems.len();
    }
}

fn name_of(object: &DynamicObject) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Formats a resource as `kubectl create clusterrole --resource` takes it.
fn resource_name(resource: &ApiResource) -> String {
    let ApiResource { group, plural, .. } = resource;
    match group.as_str() {
        "" => plural.clone(),
        group => format!("{plural}.{group}"),
    }
}

fn status_code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(namespace: &str, kind: &str) -> AddressableName {
        AddressableName {
            kind: AddressableKind {
                api_version: "example.com/v1".to_owned(),
                kind: kind.to_owned(),
            },
            namespace: namespace.to_owned(),
            name: "a".to_owned(),
        }
    }

    fn address(url: &str) -> StatusAddress {
        StatusAddress {
            url: Some(url.to_owned()),
            ca_certs: None,
        }
    }

    fn key() -> (String, String) {
        ("shop".to_owned(), "a".to_owned())
    }

    fn forbidden() -> AddressableState {
        AddressableState::Forbidden {
            resource: "as.example.com".to_owned(),
        }
    }

    #[test]
    fn admits_a_bounded_number_of_kinds_and_keeps_watched_ones() {
        let many = (0..20).map(|number| name("greedy", &format!("A{number:02}")));
        let named: BTreeSet<_> = many.chain([name("modest", "B"), name("modest", "A00")]).collect();
        let shown = |is_watched: &dyn Fn(&AddressableKind) -> bool| {
            let admitted = admit(&named, is_watched).into_iter();
            admitted.map(|kind| kind.kind.clone()).collect::<Vec<_>>()
        };
        let expected = ["A00", "A01", "A02", "A03", "A04", "A05", "A06", "A07", "B"];
        assert_eq!(shown(&|_| false), expected);
        let expected = ["A00", "A01", "A02", "A03", "A04", "A05", "A06", "A19", "B"];
        assert_eq!(shown(&|kind| kind.kind == "A19"), expected);
        let all: BTreeSet<_> = (0..2 * MAX_KINDS)
            .map(|number| name(&format!("n{number}"), &format!("A{number}")))
            .collect();
        assert_eq!(admit(&all, |_| false).len(), MAX_KINDS);
    }

    #[test]
    fn few_namespaces_do_not_take_the_kinds_of_others() {
        let kinds = |namespace: &str| {
            let namespace = namespace.to_owned();
            (0..MAX_KINDS_OF_NAMESPACE)
                .map(move |number| name(&namespace, &format!("A-{namespace}-{number}")))
        };
        let greedy = (0..MAX_KINDS / MAX_KINDS_OF_NAMESPACE).map(|number| format!("greedy-{number}"));
        let mut named: BTreeSet<_> = greedy.flat_map(|namespace| kinds(&namespace)).collect();
        let watched: BTreeSet<_> = named.iter().map(|name| name.kind.clone()).collect();
        named.insert(name("modest", "Z"));
        for is_watched in [false, true] {
            let admitted = admit(&named, |kind| is_watched && watched.contains(kind));
            assert_eq!(admitted.len(), MAX_KINDS);
            assert!(admitted.iter().any(|kind| kind.kind == "Z"));
        }
    }

    #[test]
    fn known_addresses_stay_in_force_until_reading_is_forbidden() {
        let mut known = KnownKind::default();
        let a = name("shop", "A");
        let down = || AddressableState::Unreadable("down".to_owned());
        assert_eq!(known.state(&a), None);
        let objects = known.namespaces.entry(None).or_default();
        assert!(objects.fail(down()) && !objects.fail(down()));
        assert_eq!(known.state(&a), Some(down()));
        let objects = known.namespaces.entry(None).or_default();
        let listed = KnownAddresses::from([(key(), address("http://a/"))]);
        assert!(objects.list(listed.clone()) && !objects.list(listed));
        assert!(!objects.fail(down()));
        let found = |url| Some(AddressableState::Found(address(url)));
        assert_eq!(known.state(&a), found("http://a/"));
        assert_eq!(known.state(&name("bank", "A")), Some(AddressableState::NotFound));
        let objects = known.namespaces.entry(None).or_default();
        assert!(objects.insert(key(), address("http://b/")) && !objects.insert(key(), address("http://b/")));
        assert_eq!(known.state(&a), found("http://b/"));
        let objects = known.namespaces.entry(None).or_default();
        assert!(objects.remove(&key()) && !objects.remove(&key()));
        assert_eq!(known.state(&a), Some(AddressableState::NotFound));
        let objects = known.namespaces.entry(None).or_default();
        assert!(objects.fail(forbidden()) && !objects.fail(forbidden()));
        assert_eq!(known.state(&a), Some(forbidden()));
        assert!(known.fail(AddressableState::UnknownKind) && !known.fail(AddressableState::UnknownKind));
        assert_eq!(known.state(&a), Some(AddressableState::UnknownKind));
        assert!(known.exists() && !known.exists());
        assert_eq!(known.state(&a), None);
    }

    #[test]
    fn knows_only_watched_namespaces() {
        let mut known = KnownKind::default();
        let shop = known.namespaces.entry(Some("shop".to_owned())).or_default();
        shop.list(KnownAddresses::new());
        assert_eq!(known.state(&name("shop", "A")), Some(AddressableState::NotFound));
        assert_eq!(known.state(&name("bank", "A")), None);
    }

    #[test]
    fn keeps_the_same_authorities_once() {
        let object = |name: &str, pem: &str| {
            let status = json!({"address": {"url": "https://a/", "CACerts": pem}});
            let object = json!({"metadata": {"name": name}, "status": status});
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        let mut authorities = KnownAuthorities::default();
        let [a, b] = ["a", "b"].map(|name| authorities.address(&object(name, "pem")).ca_certs.unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        let other = authorities.address(&object("a", "other"));
        drop((a, b));
        authorities.forget_unused();
        assert_eq!(authorities.pems, HashSet::from([other.ca_certs.unwrap()]));
        let mut address = StatusAddress::default();
        for number in 0..1000 {
            address = authorities.address(&object("a", &number.to_string()));
        }
        assert!(
            authorities.pems.contains(&address.ca_certs.unwrap())
                && authorities.pems.len() <= 2 * FEW_AUTHORITIES
        );
    }
}
