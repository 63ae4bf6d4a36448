//! Obtains the credentials that Sinks and Brokers reference from the API server, one by one: a kind of them is a [`Credential`].
//! The controller may obtain only those that a namespace's owner grants it. Each is obtained when a resource starts
//! to reference it, and again periodically.
//!
//! Known credentials stay in force while the API server is unavailable, until they expire.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{Api, Client, api::PostParams};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::{
    credential_plan::{Plan, PlanKey, ReadOutcome},
    metrics::ControllerMetrics,
};
use crate::resolve::{Naming, Referrers};

/// Maximum number of concurrent reads of a kind.
const CONCURRENCY: usize = 8;

/// Timeout of a read.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time that routing waits at the start for referenced credentials. Otherwise each start of a controller would briefly
/// leave events without a destination.
const AWAITED_AT_START: Duration = Duration::from_secs(15);

/// A kind of credential.
pub(super) trait Credential: Sized + 'static {
    /// Identifies one.
    type Name: PlanKey + Send + Sync + 'static;
    /// What is known of one.
    type State: Clone + PartialEq + Send + Sync + 'static;

    /// Name of the kind, for metrics and the log.
    const KIND: &'static str;

    /// Lists those that are referenced.
    fn named(referrers: Referrers<'_>) -> BTreeMap<Self::Name, Naming>;

    /// The state while the channel to routers is not encrypted.
    fn withheld() -> Self::State;

    /// The state of one that was not obtained, because of this error.
    fn unavailable(error: String) -> Self::State;

    /// Whether a state has all of these keys.
    fn serves(state: &Self::State, keys: &BTreeSet<String>) -> bool;

    /// Obtains one.
    fn obtain(
        api: &CredentialApi,
        name: &Self::Name,
        keys: &BTreeSet<String>,
    ) -> impl Future<Output = Result<Obtained<Self::State>, String>> + Send;
}

/// A credential as the API server has it now.
#[derive(Debug)]
pub(super) struct Obtained<S> {
    pub(super) state: S,
    /// Time after which it is obtained again, if it serves.
    pub(super) again: Duration,
    /// Time at which it expires.
    pub(super) expires: Option<Instant>,
}

type Namings<C> = BTreeMap<<C as Credential>::Name, Naming>;

type States<C> = BTreeMap<<C as Credential>::Name, <C as Credential>::State>;

/// Known states of the referenced credentials of a kind.
pub(super) struct Credentials<C: Credential> {
    named: watch::Sender<Namings<C>>,
    /// `None` if none are obtained.
    known: Option<watch::Receiver<States<C>>>,
}

impl<C: Credential> Credentials<C> {
    /// Obtains credentials until told to stop, and notifies `changed` when one changes. Obtains none if the channel to
    /// routers is not encrypted.
    pub(super) fn start(
        api: &Arc<CredentialApi>,
        metrics: &Arc<ControllerMetrics>,
        changed: &Arc<Notify>,
        secure_channel: bool,
        stop: &CancellationToken,
    ) -> Self {
        let (named, to_read) = watch::channel(Namings::<C>::new());
        if !secure_channel {
            return Self { named, known: None };
        }
        let (publish, known) = watch::channel(States::<C>::new());
        let reader = CredentialReader::<C> {
            api: api.clone(),
            metrics: metrics.clone(),
            changed: changed.clone(),
            known: publish,
            plan: Plan::new(Instant::now()),
            expiries: BTreeMap::new(),
            failing: BTreeSet::new(),
            under_way: FuturesUnordered::new(),
        };
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(reader.run(to_read)).await });
        Self {
            named,
            known: Some(known),
        }
    }

    /// Returns the known states for these resources. Newly referenced credentials are obtained at once.
    pub(super) fn observe(&self, referrers: Referrers<'_>) -> States<C> {
        let named = C::named(referrers);
        self.named.send_if_modified(|before| {
            let is_new = *before != named;
            before.clone_from(&named);
            is_new
        });
        let known = self.known.as_ref().map(watch::Receiver::borrow);
        let state = |name: &C::Name| match &known {
            Some(known) => known.get(name).cloned(),
            None => Some(C::withheld()),
        };
        let known = named.keys();
        known
            .filter_map(|name| Some((name.clone(), state(name)?)))
            .collect()
    }

    /// Waits, for a bounded time, until every credential of these resources was obtained.
    pub(super) async fn ready(&self, referrers: Referrers<'_>) {
        self.observe(referrers);
        let Some(mut known) = self.known.clone() else {
            return;
        };
        let named = self.named.borrow().clone();
        let all = known.wait_for(|known| named.keys().all(|name| known.contains_key(name)));
        if tokio::time::timeout(AWAITED_AT_START, all).await.is_err() {
            let kind = C::KIND;
            tracing::warn!(
                kind,
                "some credentials could not be obtained in time; events for their Sinks wait, and their producers are rejected"
            );
        }
    }
}

type CredentialRead<C> = (
    <C as Credential>::Name,
    Result<Obtained<<C as Credential>::State>, String>,
);

struct CredentialReader<C: Credential> {
    api: Arc<CredentialApi>,
    metrics: Arc<ControllerMetrics>,
    changed: Arc<Notify>,
    known: watch::Sender<States<C>>,
    plan: Plan<C::Name>,
    /// When known credentials expire, if they do.
    expiries: BTreeMap<C::Name, Instant>,
    /// Credentials whose last read failed.
    failing: BTreeSet<C::Name>,
    under_way: FuturesUnordered<BoxFuture<'static, CredentialRead<C>>>,
}

impl<C: Credential> CredentialReader<C> {
    async fn run(mut self, mut named: watch::Receiver<Namings<C>>) {
        loop {
            let next = self.begin(Instant::now());
            tokio::select! {
                Some((name, read)) = self.under_way.next() => self.ended(name, read, Instant::now()),
                changed = named.changed() => match changed {
                    Ok(()) => self.take_over(&named.borrow_and_update().clone()),
                    Err(_) => return,
                },
                () = at(next) => {}
            }
        }
    }

    /// Starts due reads. Returns the time of the next one, if there is capacity for it.
    fn begin(&mut self, now: Instant) -> Option<Instant> {
        while self.under_way.len() < CONCURRENCY {
            let Some((name, keys)) = self.plan.begin(now) else {
                return self.plan.next();
            };
            let api = self.api.clone();
            let read = async move {
                let read = tokio::time::timeout(TIMEOUT, C::obtain(&api, &name, &keys)).await;
                let read = read.unwrap_or_else(|_| Err(format!("no response within {TIMEOUT:?}")));
                (name, read)
            };
            self.under_way.push(read.boxed());
        }
        None
    }

    fn ended(&mut self, name: C::Name, read: Result<Obtained<C::State>, String>, now: Instant) {
        let Some(keys) = self.plan.keys(&name) else {
            return;
        };
        let ended = match &read {
            Err(_) => ReadOutcome::Failed,
            Ok(Obtained { state, again, .. }) if C::serves(state, keys) => {
                ReadOutcome::Serves { again: *again }
            }
            Ok(Obtained { state, .. }) => ReadOutcome::Missing {
                is_news: self.known.borrow().get(&name) != Some(state),
            },
        };
        self.plan.ended(&name, ended, now);
        let (kind, namespace, credential) = (C::KIND, name.namespace().to_owned(), name.name().to_owned());
        let state = match read {
            Ok(Obtained { state, expires, .. }) => {
                if self.failing.remove(&name) {
                    tracing::info!(
                        kind,
                        namespace,
                        name = credential,
                        "a credential can be obtained again"
                    );
                }
                match expires {
                    Some(expires) => self.expiries.insert(name.clone(), expires),
                    None => self.expiries.remove(&name),
                };
                state
            }
            Err(error) => {
                self.metrics.watch_failed(C::KIND);
                if self.failing.insert(name.clone()) {
                    tracing::warn!(
                        kind,
                        namespace,
                        name = credential,
                        error,
                        "cannot obtain a credential; the last known one stays in force until it expires"
                    );
                }
                let has_expired = self.expiries.get(&name).is_some_and(|expires| *expires <= now);
                if self.known.borrow().contains_key(&name) && !has_expired {
                    return;
                }
                C::unavailable(error)
            }
        };
        self.publish(|known| known.insert(name.clone(), state.clone()) != Some(state));
    }

    fn take_over(&mut self, named: &Namings<C>) {
        self.plan.take_over(named, Instant::now());
        self.failing.retain(|name| named.contains_key(name));
        self.expiries.retain(|name, _| named.contains_key(name));
        self.publish(|known| {
            let before = known.len();
            known.retain(|name, _| named.contains_key(name));
            known.len() != before
        });
    }

    fn publish(&self, change: impl FnOnce(&mut States<C>) -> bool) {
        if self.known.send_if_modified(change) {
            self.changed.notify_one();
        }
    }
}

/// Requests to the API server.
pub(super) struct CredentialApi {
    pub(super) client: Client,
    /// The controller's account.
    account: OnceCell<String>,
}

impl CredentialApi {
    pub(super) fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            account: OnceCell::new(),
        })
    }

    /// Formats the account as an argument of `kubectl create rolebinding`; `None` if the API server does not report
    /// it.
    pub(super) async fn account(&self) -> Option<String> {
        let ask = async || {
            let reviews = Api::<SelfSubjectReview>::all(self.client.clone());
            let review = reviews
                .create(&PostParams::default(), &SelfSubjectReview::default())
                .await
                .ok();
            let user = review
                .and_then(|review| review.status?.user_info?.username)
                .ok_or(())?;
            Ok::<_, ()>(as_subject(&user))
        };
        self.account.get_or_try_init(ask).await.ok().cloned()
    }
}

fn as_subject(user: &str) -> String {
    match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::secrets::NamedSecret, *};
    use crate::resolve::{SecretName, SecretState};

    #[test]
    fn formats_account_as_kubectl_argument() {
        assert_eq!(
            as_subject("system:serviceaccount:weir-system:weir-controller"),
            "--serviceaccount=weir-system:weir-controller"
        );
        assert_eq!(as_subject("admin"), "--user=admin");
    }

    /// A reader whose API server does not respond.
    fn reader(names: &[SecretName]) -> CredentialReader<NamedSecret> {
        let api_server = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, kube::Error>>()
        });
        let naming = Naming {
            keys: ["token".to_owned()].into(),
            referrers: BTreeSet::new(),
        };
        let mut reader = CredentialReader::<NamedSecret> {
            api: CredentialApi::new(Client::new(api_server, "default")),
            metrics: Arc::default(),
            changed: Arc::default(),
            known: watch::Sender::new(BTreeMap::new()),
            plan: Plan::new(Instant::now()),
            expiries: BTreeMap::new(),
            failing: BTreeSet::new(),
            under_way: FuturesUnordered::new(),
        };
        reader.take_over(&names.iter().map(|name| (name.clone(), naming.clone())).collect());
        reader
    }

    fn name(name: &str) -> SecretName {
        SecretName {
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn state(value: &str) -> SecretState {
        SecretState::Found {
            version: value.into(),
            values: [("token".into(), value.to_owned().into())].into(),
            looked_for: Some(["token".into()].into()),
        }
    }

    fn obtained(state: SecretState) -> Result<Obtained<SecretState>, String> {
        Ok(Obtained {
            state,
            again: Duration::from_secs(30),
            expires: None,
        })
    }

    #[tokio::test]
    async fn known_values_stay_in_force_while_reads_fail() {
        let (one, two) = (name("one"), name("two"));
        let mut reader = reader(&[one.clone(), two.clone()]);
        let known = |reader: &CredentialReader<NamedSecret>, name: &SecretName| {
            reader.known.borrow().get(name).cloned()
        };
        let now = Instant::now();
        reader.ended(one.clone(), obtained(state("a")), now);
        reader.ended(one.clone(), Err("down".into()), now);
        assert_eq!(known(&reader, &one), Some(state("a")));
        // For a credential that was never obtained, the cause is reported.
        reader.ended(two.clone(), Err("down".into()), now);
        assert_eq!(known(&reader, &two), Some(SecretState::Unreadable("down".into())));
        reader.ended(two.clone(), obtained(state("b")), now);
        assert_eq!(known(&reader, &two), Some(state("b")));
        // A revoked one is dropped.
        let revoked = SecretState::Forbidden { account: None };
        reader.ended(one.clone(), obtained(revoked.clone()), now);
        assert_eq!(known(&reader, &one), Some(revoked));
        reader.take_over(&BTreeMap::new());
        assert_eq!(*reader.known.borrow(), BTreeMap::new());
        // A late response changes nothing.
        reader.ended(one.clone(), obtained(state("a")), now);
        assert_eq!(known(&reader, &one), None);
    }

    #[tokio::test]
    async fn expired_credential_is_not_kept() {
        let one = name("one");
        let mut reader = reader(std::slice::from_ref(&one));
        let now = Instant::now();
        let expires = now + Duration::from_secs(60);
        let read = Obtained {
            expires: Some(expires),
            ..obtained(state("a")).unwrap()
        };
        reader.ended(one.clone(), Ok(read), now);
        let down = SecretState::Unreadable("down".into());
        for (at, expected) in [(now, state("a")), (expires, down)] {
            reader.ended(one.clone(), Err("down".into()), at);
            assert_eq!(reader.known.borrow().get(&one), Some(&expected));
        }
    }

    #[tokio::test]
    async fn limits_concurrent_reads() {
        let names: Vec<_> = (0..20).map(|number| name(&number.to_string())).collect();
        let mut reader = reader(&names);
        let mut now = Instant::now();
        while let Some(next) = reader.begin(now) {
            now = next;
        }
        assert_eq!(reader.under_way.len(), CONCURRENCY);
        reader.under_way = FuturesUnordered::new();
        while let Some(next) = reader.begin(now) {
            now = next;
        }
        assert_eq!(reader.under_way.len(), CONCURRENCY);
        // The remaining ones fit, so none is left to start.
        reader.under_way = FuturesUnordered::new();
        while let Some(next) = reader.begin(now) {
            now = next;
        }
        assert_eq!(reader.under_way.len(), 20 - 2 * CONCURRENCY);
    }
}
