//! Watches of the objects of a Source, one for each kind and namespace, as its ServiceAccount.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::GroupVersionKind,
    discovery::{self, ApiCapabilities, ApiResource, Scope, verbs},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time::Instant;

use crate::{
    resolve::{Finding, KubernetesPlan, PlannedKind},
    source::kubernetes::{KindNames, ObjectKey},
};

/// Page size for lists. An object may have more than a megabyte.
const PAGE: u32 = 100;

/// Lifetime of a watch, in seconds. A dead connection looks like an idle one.
const WATCHED: u32 = 60;

/// Status for a version that is too old to resume at.
const EXPIRED: u16 = 410;

/// Timeout of a request for discovery.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which a watch that failed works again, unless it fails again. A watch that works tells nothing until an object
/// changes; a failed one is retried within a minute.
const FAILED_FOR: Duration = Duration::from_secs(90);

/// Time for which a watch fails, and number of failures, before the status tells it. An API server restarts within it.
const TOLD_AFTER: Duration = Duration::from_secs(60);
const TOLD_FAILURES: u32 = 3;

/// What a watch delivers.
pub(super) type WatchItem = watcher::Result<watcher::Event<DynamicObject>>;

/// A kind in a namespace, or in all.
pub(super) struct ObjectFeed {
    pub(super) names: Arc<KindNames>,
    /// Kind and group.
    pub(super) kind: Arc<str>,
    /// `None` for all, and for objects that belong to none.
    pub(super) namespace: Option<String>,
    /// UIDs listed so far, during a list.
    pub(super) listing: Option<HashSet<Arc<str>>>,
    /// Whether there was a complete list.
    pub(super) is_listed: bool,
    resource: ApiResource,
    labels: Option<String>,
    fields: Option<String>,
    is_namespaced: bool,
    failure: Option<(KindProblem, Instant)>,
    trouble: Option<Trouble>,
}

/// Failures of a watch, none of them long after the one before.
struct Trouble {
    since: Instant,
    last: Instant,
    failures: u32,
    /// What the status says once they have lasted.
    problem: KindProblem,
}

/// What a failed watch asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeedFailure {
    /// Nothing: it is retried.
    Retried,
    /// The token is not accepted.
    Unauthenticated,
    /// The kind is not served any more.
    UnknownKind,
}

/// Why a kind, or the objects of one in a namespace, cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KindProblem {
    pub(super) finding: Finding,
    /// The commands that grant what is missing.
    pub(super) grant: Option<String>,
}

impl From<Finding> for KindProblem {
    fn from(finding: Finding) -> Self {
        Self { finding, grant: None }
    }
}

/// Asks the API server how a kind of the plan is called, and prepares a feed of it for each namespace.
///
/// # Errors
/// What is wrong.
pub(super) async fn discover(
    client: &Client,
    plan: &KubernetesPlan,
    index: usize,
) -> Result<Vec<ObjectFeed>, Finding> {
    let Some(planned) = plan.kinds.get(index) else {
        return Ok(Vec::new());
    };
    let (resource, capabilities) = find(client, index, planned).await?;
    let is_namespaced = capabilities.scope == Scope::Namespaced;
    let namespaces: Vec<_> = match &plan.namespaces {
        Some(namespaces) if is_namespaced => namespaces.iter().cloned().map(Some).collect(),
        _ => vec![None],
    };
    let names = Arc::new(KindNames {
        api_version: resource.api_version.clone(),
        kind: resource.kind.clone(),
        plural: resource.plural.clone(),
    });
    let kind = ObjectKey::kind_of(&resource.kind, &resource.group);
    let feed = |namespace| ObjectFeed {
        names: names.clone(),
        kind: kind.clone(),
        namespace,
        listing: None,
        is_listed: false,
        resource: resource.clone(),
        labels: planned.labels.clone(),
        fields: planned.fields.clone(),
        is_namespaced,
        failure: None,
        trouble: None,
    };
    Ok(namespaces.into_iter().map(feed).collect())
}

async fn find(
    client: &Client,
    index: usize,
    planned: &PlannedKind,
) -> Result<(ApiResource, ApiCapabilities), Finding> {
    let PlannedKind {
        group, version, kind, ..
    } = planned;
    let path = format!("spec.kubernetes.resources[{index}]");
    let api_version = match group.is_empty() {
        true => version.clone(),
        false => format!("{group}/{version}"),
    };
    let unavailable = |problem: String| {
        Finding::bad(
            "ApiServerUnavailable",
            format!("cannot ask the API server for {kind} of {api_version}: {problem}; retrying"),
        )
    };
    let wanted = GroupVersionKind::gvk(group, version, kind);
    match tokio::time::timeout(TIMEOUT, discovery::pinned_kind(client, &wanted)).await {
        Ok(Ok((resource, capabilities))) if capabilities.supports_operation(verbs::WATCH) => {
            Ok((resource, capabilities))
        }
        Ok(Ok(_)) => Err(Finding::bad(
            "UnwatchableKind",
            format!("{path}: {kind} of {api_version} cannot be watched; remove it"),
        )),
        Ok(Err(error)) if is_unknown(&error) => Err(Finding::bad(
            "UnknownKind",
            format!(
                "{path}: the cluster has no kind {kind} of {api_version}; install it, or correct apiVersion and kind"
            ),
        )),
        Ok(Err(error)) => Err(unavailable(error.to_string())),
        Err(_) => Err(unavailable(format!("no response within {TIMEOUT:?}"))),
    }
}

fn is_unknown(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    }
}

impl ObjectFeed {
    /// Starts to watch.
    pub(super) fn watch(&self, client: Client) -> BoxStream<'static, WatchItem> {
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &self.resource),
            None => Api::all_with(client, &self.resource),
        };
        let mut config = watcher::Config::default().timeout(WATCHED).page_size(PAGE);
        config.label_selector.clone_from(&self.labels);
        config.field_selector.clone_from(&self.fields);
        let begin = move || watcher(api.clone(), config.clone()).boxed();
        begun_anew(begin).default_backoff().boxed()
    }

    /// Takes note that the watch works.
    pub(super) fn works(&mut self) {
        self.failure = None;
        self.trouble = None;
    }

    /// Takes note of a failure.
    pub(super) fn failed(&mut self, error: &watcher::Error, account: &str, source: &str) -> FeedFailure {
        self.listing = None;
        let code = code(error);
        self.lasts(error, code);
        let is_list = matches!(error, watcher::Error::InitialListFailed(_));
        let bad = |reason, message: String| Some(KindProblem::from(Finding::bad(reason, message)));
        let kind = &self.names.kind;
        let problem = match code {
            // Whoever may not list may not be asked whether he may watch.
            Some(403) if is_list => Some(self.forbidden("list, watch", account, source)),
            Some(403) => Some(self.forbidden("watch", account, source)),
            Some(400 | 422) => bad(
                "InvalidSelector",
                format!("{kind} cannot be selected like this: {error}"),
            ),
            // Told if it lasts.
            _ if !is_list => None,
            _ => bad(
                "ApiServerUnavailable",
                format!("cannot list {kind}: {error}; retrying"),
            ),
        };
        if let Some(problem) = problem {
            self.failure = Some((problem, Instant::now()));
        }
        match code {
            Some(401) => FeedFailure::Unauthenticated,
            Some(404) => FeedFailure::UnknownKind,
            _ => FeedFailure::Retried,
        }
    }

    /// Returns what is wrong, if something is.
    pub(super) fn problem(&self) -> Option<&KindProblem> {
        let failure = self.failure.as_ref();
        let failure = failure.filter(|(_, since)| !self.is_listed || since.elapsed() < FAILED_FOR);
        let trouble = self.trouble.as_ref().filter(|trouble| {
            trouble.failures >= TOLD_FAILURES
                && trouble.since.elapsed() >= TOLD_AFTER
                && trouble.last.elapsed() < FAILED_FOR
        });
        let lasting = trouble.map(|trouble| &trouble.problem);
        failure.map(|(problem, _)| problem).or(lasting)
    }

    /// Takes note of how long a watch fails. One that fails after its first list is retried without another list.
    fn lasts(&mut self, error: &watcher::Error, code: Option<u16>) {
        if code == Some(EXPIRED) {
            return; // a list follows
        }
        let now = Instant::now();
        let before = self.trouble.take();
        let before = before.filter(|trouble| trouble.last.elapsed() < FAILED_FOR);
        self.trouble = Some(Trouble {
            since: before.as_ref().map_or(now, |trouble| trouble.since),
            last: now,
            failures: before.map_or(0, |trouble| trouble.failures).saturating_add(1),
            problem: KindProblem::from(Finding::bad(
                "ApiServerUnavailable",
                format!("cannot watch {}: {error}; retrying", self.names.kind),
            )),
        });
    }

    /// `verbs` are those of the rule that is missing.
    fn forbidden(&self, verbs: &str, account: &str, home: &str) -> KindProblem {
        let ApiResource { group, plural, .. } = &self.resource;
        let resource = match group.is_empty() {
            true => plural.clone(),
            false => format!("{plural}.{group}"),
        };
        let role = format!("weir-source-{account}-{plural}");
        let subject = format!("--serviceaccount={home}:{account}");
        let permission = format!("--verb=list,watch --resource={resource}");
        let (place, grant) = match &self.namespace {
            Some(namespace) => (
                format!(" in namespace {namespace:?}"),
                format!(
                    "kubectl create role {role} {permission} -n {namespace} && kubectl create rolebinding {role} \
                     --role={role} {subject} -n {namespace}"
                ),
            ),
            None => (
                if self.is_namespaced {
                    " in all namespaces"
                } else {
                    ""
                }
                .to_owned(),
                format!(
                    "kubectl create clusterrole {role} {permission} && kubectl create clusterrolebinding {role} \
                     --clusterrole={role} {subject}"
                ),
            ),
        };
        let KindNames {
            api_version, kind, ..
        } = &*self.names;
        let message = format!(
            "{kind} of {api_version} is not watched: ServiceAccount {account:?} in namespace {home:?} needs {verbs} on \
             {resource}{place}"
        );
        KindProblem {
            finding: Finding::bad("Forbidden", message),
            grant: Some(grant),
        }
    }
}

/// Watches, and begins anew with a list if the API server answers that the version to resume at has expired. Where it says
/// so within the watch, the watcher itself does.
fn begun_anew(
    begin: impl Fn() -> BoxStream<'static, WatchItem> + Send + 'static,
) -> impl Stream<Item = WatchItem> + Send {
    stream::unfold((begin(), begin), |(mut watch, begin)| async move {
        let item = watch.next().await?;
        let is_expired = matches!(
            &item,
            Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == EXPIRED
        );
        if is_expired {
            watch = begin();
        }
        Some((item, (watch, begin)))
    })
}

/// Status of the API server's response, if there was one.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn feed() -> ObjectFeed {
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
        ObjectFeed {
            names: Arc::new(KindNames {
                api_version: "v1".to_owned(),
                kind: "ConfigMap".to_owned(),
                plural: "configmaps".to_owned(),
            }),
            kind: "ConfigMap.core".into(),
            namespace: Some("shop".to_owned()),
            listing: None,
            is_listed: true,
            resource,
            labels: None,
            fields: None,
            is_namespaced: true,
            failure: None,
            trouble: None,
        }
    }

    fn answer(code: u16) -> kube::Error {
        kube::Error::Api(Status::failure("no", "because").with_code(code).boxed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_for_long_is_told() {
        let mut feed = feed();
        let fail = |feed: &mut ObjectFeed, code| {
            feed.failed(&watcher::Error::WatchStartFailed(answer(code)), "viewer", "shop")
        };
        let wait = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        for _ in 0..3 {
            assert_eq!(fail(&mut feed, 503), FeedFailure::Retried);
            assert_eq!(feed.problem(), None);
            wait(25).await;
        }
        fail(&mut feed, 503);
        let finding = &feed.problem().unwrap().finding;
        assert_eq!(finding.reason, "ApiServerUnavailable");
        assert!(
            finding.message.starts_with("cannot watch ConfigMap: "),
            "{}",
            finding.message
        );
        // It is retried within a minute, so that none has failed for longer than that says that it works.
        wait(FAILED_FOR.as_secs()).await;
        assert_eq!(feed.problem(), None);
        fail(&mut feed, 503);
        assert_eq!(feed.problem(), None, "it begins to fail");

        for _ in 0..4 {
            fail(&mut feed, 401);
            wait(25).await;
        }
        assert!(feed.problem().is_some());
        feed.works();
        assert_eq!(feed.problem(), None);
        for _ in 0..9 {
            fail(&mut feed, EXPIRED);
            wait(25).await;
        }
        assert_eq!(feed.problem(), None, "a list follows each");
    }

    #[tokio::test]
    async fn a_forbidden_kind_names_the_rule_that_is_missing() {
        let mut feed = feed();
        for (error, verbs) in [
            (watcher::Error::InitialListFailed(answer(403)), "list, watch"),
            (watcher::Error::WatchStartFailed(answer(403)), "watch"),
        ] {
            feed.failed(&error, "viewer", "home");
            let KindProblem { finding, grant } = feed.problem().unwrap().clone();
            let expected = format!(
                "ConfigMap of v1 is not watched: ServiceAccount \"viewer\" in namespace \"home\" needs {verbs} on configmaps in \
                 namespace \"shop\""
            );
            assert_eq!((finding.reason, finding.message), ("Forbidden", expected));
            let expected = "kubectl create role weir-source-viewer-configmaps --verb=list,watch --resource=configmaps -n shop && kubectl create \
                 rolebinding weir-source-viewer-configmaps --role=weir-source-viewer-configmaps --serviceaccount=home:viewer -n shop";
            assert_eq!(grant.as_deref(), Some(expected));
            feed.is_listed = false;
        }
    }

    #[tokio::test]
    async fn a_watch_whose_version_has_expired_lists_again() {
        let begin = || {
            let items: [WatchItem; 4] = [
                Ok(watcher::Event::Init),
                Ok(watcher::Event::InitDone),
                Err(watcher::Error::WatchStartFailed(answer(503))),
                Err(watcher::Error::WatchStartFailed(answer(EXPIRED))),
            ];
            stream::iter(items).boxed()
        };
        let items = begun_anew(begin).take(9).collect::<Vec<_>>().await;
        let lists = items
            .iter()
            .filter(|item| matches!(item, Ok(watcher::Event::Init)));
        assert_eq!(lists.count(), 3);
    }
}
