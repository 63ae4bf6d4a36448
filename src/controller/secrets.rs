//! Reads the Secrets that Sinks reference, one by one. The controller may `get` only those that a namespace's owner
//! grants it, and may neither list nor watch them. Each is read when a Sink starts to reference it, and again
//! periodically.
//!
//! Known values stay in force while the API server is unavailable. Only the referenced keys of a Secret are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1};
use kube::{Api, Client, api::PostParams};
use tokio::sync::{Notify, OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::{
    metrics::ControllerMetrics,
    secret_plan::{Plan, ReadOutcome},
};
use crate::{
    api,
    resolve::{self, Naming, SecretName, SecretState},
    routing::Secret,
};

/// Maximum number of concurrent reads.
const CONCURRENCY: usize = 8;

/// Timeout of a read.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time that routing waits at the start for referenced Secrets. Otherwise each start of a controller would briefly
/// leave events without a destination.
const AWAITED_AT_START: Duration = Duration::from_secs(15);

type SecretNamings = BTreeMap<SecretName, Naming>;

type SecretStates = BTreeMap<SecretName, SecretState>;

/// Known state of the referenced Secrets.
pub(super) struct Secrets {
    named: watch::Sender<SecretNamings>,
    /// `None` if Secrets are not read.
    known: Option<watch::Receiver<SecretStates>>,
}

impl Secrets {
    /// Reads Secrets until told to stop, and notifies `changed` when one changes. Reads none if the channel to
    /// routers is not encrypted.
    pub(super) fn start(
        client: &Client,
        metrics: &Arc<ControllerMetrics>,
        changed: &Arc<Notify>,
        secure_channel: bool,
        stop: &CancellationToken,
    ) -> Self {
        let (named, to_read) = watch::channel(SecretNamings::new());
        if !secure_channel {
            return Self { named, known: None };
        }
        let (publish, known) = watch::channel(SecretStates::new());
        let reader = SecretReader {
            api: Arc::new(SecretApi {
                client: client.clone(),
                account: OnceCell::new(),
            }),
            metrics: metrics.clone(),
            changed: changed.clone(),
            known: publish,
            plan: Plan::new(Instant::now()),
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

    /// Returns the known state for these Sinks. Newly referenced Secrets are read at once.
    pub(super) fn observe<'a>(&self, sinks: impl IntoIterator<Item = &'a api::Sink>) -> SecretStates {
        let named = resolve::named_secrets(sinks);
        self.named.send_if_modified(|before| {
            let is_new = *before != named;
            before.clone_from(&named);
            is_new
        });
        let known = self.known.as_ref().map(watch::Receiver::borrow);
        let state = |name: &SecretName| match &known {
            Some(known) => known.get(name).cloned(),
            None => Some(SecretState::Withheld),
        };
        let known = named.keys();
        known
            .filter_map(|name| Some((name.clone(), state(name)?)))
            .collect()
    }

    /// Waits, for a bounded time, until every Secret of these Sinks was read.
    pub(super) async fn ready<'a>(&self, sinks: impl IntoIterator<Item = &'a api::Sink>) {
        self.observe(sinks);
        let Some(mut known) = self.known.clone() else {
            return;
        };
        let named = self.named.borrow().clone();
        let all = known.wait_for(|known| named.keys().all(|name| known.contains_key(name)));
        if tokio::time::timeout(AWAITED_AT_START, all).await.is_err() {
            tracing::warn!("some Secrets referenced by Sinks could not be read in time; their events wait");
        }
    }
}

type SecretRead = (SecretName, Result<SecretState, String>);

struct SecretReader {
    api: Arc<SecretApi>,
    metrics: Arc<ControllerMetrics>,
    changed: Arc<Notify>,
    known: watch::Sender<SecretStates>,
    plan: Plan,
    /// Secrets whose last read failed.
    failing: BTreeSet<SecretName>,
    under_way: FuturesUnordered<BoxFuture<'static, SecretRead>>,
}

impl SecretReader {
    async fn run(mut self, mut named: watch::Receiver<SecretNamings>) {
        loop {
            let next = self.begin(Instant::now());
            tokio::select! {
                Some((name, read)) = self.under_way.next() => self.ended(name, read),
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
                let read = tokio::time::timeout(TIMEOUT, api.read(&name, &keys)).await;
                let read = read.unwrap_or_else(|_| Err(format!("no response within {TIMEOUT:?}")));
                (name, read)
            };
            self.under_way.push(read.boxed());
        }
        None
    }

    fn ended(&mut self, name: SecretName, read: Result<SecretState, String>) {
        let Some(keys) = self.plan.keys(&name) else {
            return;
        };
        let ended = match &read {
            Err(_) => ReadOutcome::Failed,
            Ok(state) if serves(state, keys) => ReadOutcome::Serves,
            Ok(state) => ReadOutcome::Missing {
                is_news: self.known.borrow().get(&name) != Some(state),
            },
        };
        self.plan.ended(&name, ended, Instant::now());
        let SecretName {
            namespace,
            name: secret,
        } = &name;
        let state = match read {
            Ok(state) => {
                if self.failing.remove(&name) {
                    tracing::info!(namespace, secret, "the Secret can be read again");
                }
                state
            }
            Err(error) => {
                self.metrics.watch_failed("Secret");
                if self.failing.insert(name.clone()) {
                    tracing::warn!(
                        namespace,
                        secret,
                        error,
                        "cannot read the Secret; its last known values stay in force"
                    );
                }
                if self.known.borrow().contains_key(&name) {
                    return;
                }
                SecretState::Unreadable(error)
            }
        };
        self.publish(|known| known.insert(name.clone(), state.clone()) != Some(state));
    }

    fn take_over(&mut self, named: &SecretNamings) {
        self.plan.take_over(named, Instant::now());
        self.failing.retain(|name| named.contains_key(name));
        self.publish(|known| {
            let before = known.len();
            known.retain(|name, _| named.contains_key(name));
            known.len() != before
        });
    }

    fn publish(&self, change: impl FnOnce(&mut SecretStates) -> bool) {
        if self.known.send_if_modified(change) {
            self.changed.notify_one();
        }
    }
}

/// Requests to the API server.
struct SecretApi {
    client: Client,
    /// The controller's account.
    account: OnceCell<String>,
}

impl SecretApi {
    async fn read(&self, name: &SecretName, keys: &BTreeSet<String>) -> Result<SecretState, String> {
        let SecretName { namespace, name } = name;
        match Api::<v1::Secret>::namespaced(self.client.clone(), namespace)
            .get_opt(name)
            .await
        {
            Ok(Some(secret)) => Ok(found(secret, keys)),
            Ok(None) => Ok(SecretState::NotFound),
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(SecretState::Forbidden {
                account: self.account().await,
            }),
            // The error could quote the Secret.
            Err(kube::Error::SerdeError(_)) => {
                Err("the API server's response is not a valid Secret".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Formats the account as an argument of `kubectl create rolebinding`; `None` if the API server does not report
    /// it.
    async fn account(&self) -> Option<String> {
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

fn serves(state: &SecretState, keys: &BTreeSet<String>) -> bool {
    match state {
        SecretState::Found { values, .. } => keys.iter().all(|key| values.contains_key(key)),
        _ => false,
    }
}

fn as_subject(user: &str) -> String {
    match user.strip_prefix("system:serviceaccount:") {
        Some(account) => format!("--serviceaccount={account}"),
        None => format!("--user={user}"),
    }
}

fn found(secret: v1::Secret, keys: &BTreeSet<String>) -> SecretState {
    let metadata = secret.metadata;
    let data = secret.data.unwrap_or_default();
    let values = data.into_iter().filter(|(key, _)| keys.contains(key));
    SecretState::Found {
        version: format!(
            "{}.{}",
            metadata.uid.unwrap_or_default(),
            metadata.resource_version.unwrap_or_default()
        ),
        values: values
            .map(|(key, value)| (key, Secret::from(String::from_utf8_lossy(&value.0).into_owned())))
            .collect(),
        looked_for: Some(keys.clone()),
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
    use k8s_openapi::{ByteString, apimachinery::pkg::apis::meta::v1::ObjectMeta};

    use super::*;

    #[test]
    fn keeps_only_referenced_keys() {
        let data = [("token", &b"a"[..]), ("odd", b"\xff"), ("other", b"b")];
        let secret = v1::Secret {
            metadata: ObjectMeta {
                uid: Some("u".into()),
                resource_version: Some("7".into()),
                ..ObjectMeta::default()
            },
            data: Some(
                data.map(|(key, value)| (key.to_owned(), ByteString(value.into())))
                    .into(),
            ),
            ..v1::Secret::default()
        };
        let keys: BTreeSet<_> = ["token", "odd", "absent"].map(str::to_owned).into();
        let state = found(secret, &keys);
        let expected = [("token", "a"), ("odd", "\u{fffd}")];
        assert_eq!(
            state,
            SecretState::Found {
                version: "u.7".into(),
                values: expected
                    .map(|(key, value)| (key.into(), value.to_owned().into()))
                    .into(),
                looked_for: Some(keys.clone()),
            }
        );
        assert!(!serves(&state, &keys));
        assert!(serves(&state, &["token".to_owned()].into()));
        assert!(!serves(&SecretState::NotFound, &keys));
    }

    #[test]
    fn formats_account_as_kubectl_argument() {
        assert_eq!(
            as_subject("system:serviceaccount:weir-system:weir-controller"),
            "--serviceaccount=weir-system:weir-controller"
        );
        assert_eq!(as_subject("admin"), "--user=admin");
    }

    /// A reader whose API server does not respond.
    fn reader(names: &[SecretName]) -> SecretReader {
        let api_server = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, kube::Error>>()
        });
        let naming = Naming {
            keys: ["token".to_owned()].into(),
            sinks: BTreeSet::new(),
        };
        let mut reader = SecretReader {
            api: Arc::new(SecretApi {
                client: Client::new(api_server, "default"),
                account: OnceCell::new(),
            }),
            metrics: Arc::default(),
            changed: Arc::default(),
            known: watch::Sender::new(SecretStates::new()),
            plan: Plan::new(Instant::now()),
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

    #[tokio::test]
    async fn known_values_stay_in_force_while_reads_fail() {
        let (one, two) = (name("one"), name("two"));
        let mut reader = reader(&[one.clone(), two.clone()]);
        let known = |reader: &SecretReader, name: &SecretName| reader.known.borrow().get(name).cloned();
        reader.ended(one.clone(), Ok(state("a")));
        reader.ended(one.clone(), Err("down".into()));
        assert_eq!(known(&reader, &one), Some(state("a")));
        // For a Secret that was never read, the cause is reported.
        reader.ended(two.clone(), Err("down".into()));
        assert_eq!(known(&reader, &two), Some(SecretState::Unreadable("down".into())));
        reader.ended(two.clone(), Ok(state("b")));
        assert_eq!(known(&reader, &two), Some(state("b")));
        // A revoked Secret is dropped.
        reader.ended(one.clone(), Ok(SecretState::Forbidden { account: None }));
        assert_eq!(
            known(&reader, &one),
            Some(SecretState::Forbidden { account: None })
        );
        reader.take_over(&SecretNamings::new());
        assert_eq!(*reader.known.borrow(), SecretStates::new());
        // A late response changes nothing.
        reader.ended(one.clone(), Ok(state("a")));
        assert_eq!(known(&reader, &one), None);
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
