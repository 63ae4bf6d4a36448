//! The kinds of a Source and their watches. A kind that cannot be watched, because the cluster does not have it or the
//! ServiceAccount may not list it, stops no other, and is watched once it can be.

use std::{collections::BTreeMap, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _, future,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use kube::Client;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::feed::{KindProblem, ObjectFeed, WatchItem, discover};
use crate::{
    resolve::{Finding, KubernetesPlan},
    source::kubernetes::{ObjectKey, ObjectPlace},
};

/// Pauses before the API server is asked again for a kind that it does not have; each is twice the last.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(30);

/// Maximum number of problems in a message.
const TOLD_PROBLEMS: usize = 8;

/// A kind by its index in the plan, and its feeds or why there are none.
type Discovered = (usize, Result<Vec<ObjectFeed>, Finding>);

/// The kinds of a Source.
pub(super) struct WatchedKinds {
    client: Client,
    plan: KubernetesPlan,
    kinds: Vec<KindState>,
    /// By a number that is used once.
    feeds: BTreeMap<usize, ObjectFeed>,
    next_number: usize,
    watches: SelectAll<BoxStream<'static, (usize, WatchItem)>>,
    discoveries: FuturesUnordered<BoxFuture<'static, Discovered>>,
}

/// What is known of a kind.
#[derive(Default)]
struct KindState {
    /// Why it has no feeds.
    problem: Option<Finding>,
    /// Numbers of its feeds.
    feeds: Vec<usize>,
    /// Ends its watches.
    watching: Option<DropGuard>,
    /// Before the API server was last asked for it.
    pause: Duration,
}

impl KindState {
    fn next_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).clamp(FIRST_LOOK, LONGEST_LOOK);
        self.pause
    }
}

impl WatchedKinds {
    /// Begins to ask the API server how the kinds are called. Each is watched as soon as that is known.
    pub(super) fn begin(client: Client, plan: &KubernetesPlan) -> Self {
        let kinds = Self {
            client,
            plan: plan.clone(),
            kinds: plan.kinds.iter().map(|_| KindState::default()).collect(),
            feeds: BTreeMap::new(),
            next_number: 0,
            watches: SelectAll::new(),
            discoveries: FuturesUnordered::new(),
        };
        for kind in 0..kinds.kinds.len() {
            kinds.look(kind, Duration::ZERO);
        }
        kinds
    }

    /// Returns what the next watch delivers, with the number of its feed; nothing, if something else has become known. Watches
    /// are read only if there is room.
    pub(super) async fn next(&mut self, has_room: bool) -> Option<(usize, WatchItem)> {
        tokio::select! {
            Some(delivered) = self.watches.next(), if has_room => Some(delivered),
            Some((kind, discovered)) = self.discoveries.next() => {
                self.discovered(kind, discovered);
                None
            }
            else => future::pending().await,
        }
    }

    pub(super) fn feed(&mut self, number: usize) -> Option<&mut ObjectFeed> {
        self.feeds.get_mut(&number)
    }

    /// Takes note that the API server does not serve the kind of a feed any more. Its objects are forgotten only once it says
    /// that they are gone.
    pub(super) fn lost(&mut self, number: usize) {
        let Some(kind) = self.kinds.iter().position(|kind| kind.feeds.contains(&number)) else {
            return;
        };
        let state = &mut self.kinds[kind];
        let mut was_listed = false;
        for number in state.feeds.drain(..) {
            was_listed |= self.feeds.remove(&number).is_some_and(|feed| feed.is_listed);
        }
        state.watching = None;
        let name = &self.plan.kinds[kind].kind;
        let message =
            format!("spec.kubernetes.resources[{kind}]: the cluster has no kind {name} any more; retrying");
        state.problem = Some(Finding::bad("UnknownKind", message));
        if was_listed {
            state.pause = Duration::ZERO;
        }
        let pause = state.next_pause();
        self.look(kind, pause);
    }

    /// Stops all watches.
    pub(super) fn end(&mut self) {
        self.watches.clear();
        self.discoveries.clear();
    }

    /// Names of the kinds whose objects were not all listed yet.
    pub(super) fn listing(&self) -> Vec<&str> {
        let states = self.kinds.iter().zip(&self.plan.kinds);
        let unlisted = states.filter(|(state, _)| !self.is_listed(state));
        unlisted.map(|(_, planned)| planned.kind.as_str()).collect()
    }

    /// Names of the kinds.
    pub(super) fn names(&self) -> Vec<&str> {
        self.plan
            .kinds
            .iter()
            .map(|planned| planned.kind.as_str())
            .collect()
    }

    /// Returns what is wrong with some of the kinds, if something is.
    pub(super) fn problem(&self) -> Option<Finding> {
        let mut problems = Vec::new();
        let mut others = Vec::new();
        for (state, planned) in self.kinds.iter().zip(&self.plan.kinds) {
            let before = problems.len();
            problems.extend(state.problem.clone().map(KindProblem::from));
            let feeds = state.feeds.iter().filter_map(|number| self.feeds.get(number));
            problems.extend(feeds.filter_map(ObjectFeed::problem).cloned());
            if problems.len() == before && self.is_listed(state) {
                others.push(planned.kind.as_str());
            }
        }
        joined(&problems, &others)
    }

    fn is_listed(&self, state: &KindState) -> bool {
        let mut feeds = state.feeds.iter().filter_map(|number| self.feeds.get(number));
        !state.feeds.is_empty() && feeds.all(|feed| feed.is_listed)
    }

    /// Asks the API server how a kind is called, after a pause.
    fn look(&self, kind: usize, pause: Duration) {
        let (client, plan) = (self.client.clone(), self.plan.clone());
        let look = async move {
            tokio::time::sleep(pause).await;
            (kind, discover(&client, &plan, kind).await)
        };
        self.discoveries.push(look.boxed());
    }

    fn discovered(&mut self, kind: usize, discovered: Result<Vec<ObjectFeed>, Finding>) {
        let state = &mut self.kinds[kind];
        let feeds = match discovered {
            Ok(feeds) => feeds,
            Err(problem) => {
                state.problem = Some(problem);
                let pause = state.next_pause();
                self.look(kind, pause);
                return;
            }
        };
        let stop = CancellationToken::new();
        for feed in feeds {
            let number = self.next_number;
            self.next_number += 1;
            let watch = feed.watch(self.client.clone());
            let watch = watch.take_until(stop.clone().cancelled_owned());
            self.watches
                .push(watch.map(move |delivered| (number, delivered)).boxed());
            self.feeds.insert(number, feed);
            state.feeds.push(number);
        }
        state.problem = None;
        state.watching = Some(stop.drop_guard());
    }
}

/// Whether an object is one of those that a Source watches, or will once its kind can be watched.
pub(super) fn is_planned(plan: &KubernetesPlan, key: &ObjectKey, place: &ObjectPlace) -> bool {
    let mut kinds = plan.kinds.iter();
    let is_kind = kinds.any(|planned| ObjectKey::kind_of(&planned.kind, &planned.group) == key.kind);
    is_kind
        && match (&plan.namespaces, &place.namespace) {
            (Some(namespaces), Some(namespace)) => namespaces.contains(namespace),
            _ => true,
        }
}

/// Joins problems, whose reason is that of the first, with the commands that grant what is missing. `others` are the kinds that
/// are watched nevertheless.
fn joined(problems: &[KindProblem], others: &[&str]) -> Option<Finding> {
    let first = problems.first()?;
    let told = &problems[..problems.len().min(TOLD_PROBLEMS)];
    let mut messages: Vec<_> = told
        .iter()
        .map(|problem| problem.finding.message.clone())
        .collect();
    if problems.len() > told.len() {
        messages.push(format!("and {} more problems", problems.len() - told.len()));
    }
    if !others.is_empty() {
        messages.push(format!("watches {} nevertheless", others.join(", ")));
    }
    let grants: Vec<_> = told
        .iter()
        .filter_map(|problem| problem.grant.as_deref())
        .collect();
    if !grants.is_empty() {
        messages.push(format!("to grant access, run: {}", grants.join(" && ")));
    }
    Some(Finding::bad(first.finding.reason, messages.join("; ")))
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::{client::Body, runtime::watcher};
    use serde_json::json;

    use super::*;
    use crate::resolve::plan_kubernetes;

    /// An API server that serves ConfigMaps, of which there are none, and no other kind.
    fn api_server() -> Client {
        let answer = |request: Request<Body>| async move {
            let watches = request
                .uri()
                .query()
                .is_some_and(|query| query.contains("watch=true"));
            let (status, body) = match request.uri().path() {
                "/api/v1" => {
                    let verbs = ["list", "watch"];
                    let maps = json!({"name": "configmaps", "singularName": "", "kind": "ConfigMap", "namespaced": true,
                                      "verbs": verbs});
                    let list = json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [maps]});
                    (200_u16, list)
                }
                "/api/v1/namespaces/shop/configmaps" if watches => future::pending().await,
                "/api/v1/namespaces/shop/configmaps" => {
                    let metadata = json!({"resourceVersion": "1"});
                    (
                        200,
                        json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": []}),
                    )
                }
                _ => (
                    404,
                    json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}),
                ),
            };
            let body = Body::from(body.to_string().into_bytes());
            Response::builder().status(status).body(body)
        };
        Client::new(tower::service_fn(answer), "shop")
    }

    #[tokio::test]
    async fn an_unknown_kind_stops_no_other() {
        let source = json!({
            "serviceAccountName": "viewer",
            "resources": [{"apiVersion": "example.com/v1", "kind": "Widget"}, {"apiVersion": "v1", "kind": "ConfigMap"}],
        });
        let plan = plan_kubernetes("shop", &serde_json::from_value(source).unwrap()).unwrap();
        let mut kinds = WatchedKinds::begin(api_server(), &plan);
        assert_eq!(kinds.listing(), ["Widget", "ConfigMap"]);
        assert_eq!(kinds.problem(), None);
        loop {
            if let Some((number, Ok(watcher::Event::InitDone))) = kinds.next(true).await {
                kinds.feed(number).unwrap().is_listed = true;
            }
            if kinds.listing() == ["Widget"]
                && let Some(problem) = kinds.problem()
            {
                assert_eq!(problem.reason, "UnknownKind");
                assert_eq!(
                    problem.message,
                    "spec.kubernetes.resources[0]: the cluster has no kind Widget of example.com/v1; install it, or correct \
                     apiVersion and kind; watches ConfigMap nevertheless"
                );
                break;
            }
        }
        let number = *kinds.feeds.keys().next().unwrap();
        kinds.lost(number);
        assert_eq!(kinds.listing(), ["Widget", "ConfigMap"]);
        assert!(
            kinds
                .problem()
                .unwrap()
                .message
                .contains("no kind ConfigMap any more")
        );
    }

    #[test]
    fn problems_of_kinds_are_told_together() {
        let problem = |reason, kind: &str, grant: Option<&str>| KindProblem {
            finding: Finding::bad(reason, format!("no {kind}")),
            grant: grant.map(str::to_owned),
        };
        assert_eq!(joined(&[], &["Pod"]), None);
        let unknown = problem("UnknownKind", "Widget", None);
        let forbidden = problem("Forbidden", "Pod", Some("kubectl a && kubectl b"));
        let both = [unknown.clone(), forbidden.clone(), forbidden];
        let told = joined(&both, &["Job", "Node"]).unwrap();
        assert_eq!(told.reason, "UnknownKind");
        assert_eq!(
            told.message,
            "no Widget; no Pod; no Pod; watches Job, Node nevertheless; to grant access, run: kubectl a && kubectl b && \
             kubectl a && kubectl b"
        );
        let many: Vec<_> = std::iter::repeat_n(unknown, 64).collect();
        let told = joined(&many, &[]).unwrap();
        assert!(
            told.message.ends_with("no Widget; and 56 more problems"),
            "{}",
            told.message
        );
    }

    #[test]
    fn objects_of_a_kind_that_is_not_served_are_kept() {
        let source = json!({
            "serviceAccountName": "viewer", "namespaces": ["shop"],
            "resources": [{"apiVersion": "v1", "kind": "Node"}, {"apiVersion": "example.com/v1", "kind": "Widget"}],
        });
        let plan = plan_kubernetes("shop", &serde_json::from_value(source).unwrap()).unwrap();
        for (kind, namespace, expected) in [
            ("Widget.example.com", Some("shop"), true),
            ("Widget.example.com", Some("other"), false),
            ("Node.core", None, true),
            ("Pod.core", Some("shop"), false),
        ] {
            let key = ObjectKey {
                kind: kind.into(),
                uid: "a".into(),
            };
            let place = ObjectPlace {
                namespace: namespace.map(str::to_owned),
                name: "web".to_owned(),
            };
            assert_eq!(is_planned(&plan, &key, &place), expected, "{kind} {namespace:?}");
        }
    }
}
