//! Watches of the objects of a Source, one for each kind and namespace, as its ServiceAccount.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
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

/// Timeout of a request for discovery.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Time after which a watch that failed works again, unless it fails again. A watch that works tells nothing until an object
/// changes; a failed one is retried within a minute.
const FAILED_FOR: Duration = Duration::from_secs(90);

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
    failure: Option<(Finding, Instant)>,
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

/// Asks the API server how the kinds are called, and prepares a feed for each kind and namespace.
///
/// # Errors
/// What is wrong.
pub(super) async fn discover(client: &Client, plan: &KubernetesPlan) -> Result<Vec<ObjectFeed>, Finding> {
    let mut feeds = Vec::new();
    for (index, planned) in plan.kinds.iter().enumerate() {
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
        feeds.extend(namespaces.into_iter().map(|namespace| ObjectFeed {
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
        }));
    }
    Ok(feeds)
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
        watcher(api, config).default_backoff().boxed()
    }

    /// Whether an object would be in here.
    pub(super) fn covers(&self, kind: &str, namespace: Option<&str>) -> bool {
        let is_there = self.namespace.is_none() || self.namespace.as_deref() == namespace;
        *self.kind == *kind && is_there
    }

    /// Takes note that the watch works.
    pub(super) fn works(&mut self) {
        self.failure = None;
    }

    /// Takes note of a failure.
    pub(super) fn failed(&mut self, error: &watcher::Error, account: &str, source: &str) -> FeedFailure {
        self.listing = None;
        let code = code(error);
        let is_list = matches!(error, watcher::Error::InitialListFailed(_));
        let finding = match code {
            Some(403) => Some(self.forbidden(account, source)),
            Some(400 | 422) => Some(Finding::bad(
                "InvalidSelector",
                format!("{} cannot be selected like this: {error}", self.names.kind),
            )),
            // An expired version, which the next list replaces; or a busy or restarting API server.
            _ if !is_list => None,
            _ => Some(Finding::bad(
                "ApiServerUnavailable",
                format!("cannot list {}: {error}; retrying", self.names.kind),
            )),
        };
        if let Some(finding) = finding {
            self.failure = Some((finding, Instant::now()));
        }
        match code {
            Some(401) => FeedFailure::Unauthenticated,
            Some(404) => FeedFailure::UnknownKind,
            _ => FeedFailure::Retried,
        }
    }

    /// Returns what is wrong, if something is.
    pub(super) fn problem(&self) -> Option<&Finding> {
        let failure = self.failure.as_ref();
        let failure = failure.filter(|(_, since)| !self.is_listed || since.elapsed() < FAILED_FOR);
        failure.map(|(finding, _)| finding)
    }

    fn forbidden(&self, account: &str, home: &str) -> Finding {
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
        Finding::bad(
            "Forbidden",
            format!(
                "ServiceAccount {account:?} in namespace {home:?} may not list and watch {resource}{place}; to grant \
                 access, run: {grant}"
            ),
        )
    }
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
