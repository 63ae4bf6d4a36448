//! Sources of kind kubernetes, with the real API server, router, controller and `weir sources`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::Kubeconfig,
};
use serde_json::{Value, json};

use crate::{
    cluster::Weir,
    controller::condition,
    faults::kills,
    sink_credentials::{await_reason, run_grant},
    support::{Consumer, ControlPlane, Kubectl, PATIENCE, Process, Received, eventually, get, runtime},
};

/// What the chart gives `weir sources`, in its own namespace and in all.
const RULES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: weir-sources}
rules:
- {apiGroups: [weir.dev], resources: [sources], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [sources/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weir-sources}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-sources}
subjects: [{kind: ServiceAccount, name: weir-sources, namespace: default}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: weir-sources, namespace: default}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [weir-sources], verbs: [get, update]}
- {apiGroups: [""], resources: [configmaps], verbs: [list, create, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: weir-sources, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: weir-sources}
subjects: [{kind: ServiceAccount, name: weir-sources, namespace: default}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: weir-sources}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
    resourceRules:
    - {apiGroups: [""], apiVersions: ["*"], operations: [CREATE, UPDATE, DELETE], resources: [configmaps]}
  matchConditions:
  - name: weir-sources
    expression: "request.userInfo.username == 'system:serviceaccount:default:weir-sources'"
  validations:
  - expression: "(request.operation == 'DELETE' ? oldObject : object).metadata.name.startsWith('weir-source-')"
    message: weir sources may change only its records
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: weir-sources}
spec: {policyName: weir-sources, validationActions: [Deny]}
"#;

/// What the Source's ServiceAccount may see, and that `weir sources` may use it.
const VIEWER: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: viewer}
rules: [{apiGroups: [""], resources: [configmaps, secrets], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: viewer}
subjects: [{kind: ServiceAccount, name: viewer, namespace: NAMESPACE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: viewer-token}
rules: [{apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [viewer], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer-token}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: viewer-token}
subjects: [{kind: ServiceAccount, name: weir-sources, namespace: default}]
"#;

fn source(spec: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {{name: objects}}\nspec: {{kubernetes: {{serviceAccountName: \
         viewer, {spec}}}}}\n"
    )
}

const CONFIG_MAPS: &str = "resources: [{apiVersion: v1, kind: ConfigMap, labelSelector: tell=yes}]";

/// A cluster with Weir, `weir sources`, and a namespace whose events a consumer gets in order by object.
struct Setup {
    plane: ControlPlane,
    weir: Weir,
    account: Kubectl,
    sources: Process,
    shop: Kubectl,
    consumer: Consumer,
}

impl Setup {
    fn new() -> Self {
        let plane = ControlPlane::start();
        let account = plane.service_account("default", "weir-sources");
        plane.admin().apply(RULES);
        let weir = Weir::install(&plane, &[]);
        let shop = plane.namespace("shop");
        shop.run(["create", "serviceaccount", "viewer"]);
        let consumer = Consumer::start();
        shop.apply(&format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: all}}\nspec: {{sink: {{uri: '{}'}}, delivery: \
             {{ordering: ByKey, backoffDelay: 20ms}}}}\n",
            consumer.url()
        ));
        shop.wait_ready("trigger/all");
        let sources = start_sources(&account, &weir);
        Self {
            plane,
            weir,
            account,
            sources,
            shop,
            consumer,
        }
    }

    /// The same, where the Source's ServiceAccount has its rights.
    fn granted() -> Self {
        let setup = Self::new();
        setup
            .shop
            .apply(&VIEWER.replace("NAMESPACE", setup.shop.namespace()));
        setup
    }

    fn restart_sources(&mut self) {
        self.sources = start_sources(&self.account, &self.weir);
    }

    fn client(&self) -> Api<ConfigMap> {
        runtime().block_on(async {
            let kubeconfig = Kubeconfig::read_from(self.shop.kubeconfig()).unwrap();
            let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
            let client = Client::try_from(config.unwrap()).unwrap();
            Api::namespaced(client, self.shop.namespace())
        })
    }

    /// Waits until the Source has this reason for being connected or not, and returns the message.
    fn await_connected(&self, reason: &str) -> String {
        eventually(PATIENCE * 3, || {
            let connected = condition(&self.shop, "source/objects", "Connected");
            match connected["reason"] == reason {
                true => Ok(connected["message"].as_str().unwrap().to_owned()),
                false => Err(format!("{connected}, not {reason}")),
            }
        })
    }

    fn metric(&self, name: &str) -> u64 {
        let metrics = get(&format!("http://{}/metrics", self.sources.address("admin"))).text();
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum()
    }

    /// Every change that was seen has ended, and is counted once.
    fn assert_accounted(&self) {
        eventually(PATIENCE, || match self.metric("weir_sources_changes_pending") {
            0 => Ok(()),
            pending => Err(format!("{pending} changes are pending")),
        });
        let ended = [
            "weir_sources_events_produced_total",
            "weir_sources_changes_filtered_total",
            "weir_sources_events_rejected_total",
            "weir_sources_changes_failed_total",
            "weir_sources_changes_left_total",
        ];
        let ended: u64 = ended.iter().map(|name| self.metric(name)).sum();
        assert_eq!(self.metric("weir_sources_changes_total"), ended);
    }
}

fn start_sources(account: &Kubectl, weir: &Weir) -> Process {
    start_sources_with(account, weir, &[])
}

fn start_sources_with(account: &Kubectl, weir: &Weir, more: &[&str]) -> Process {
    let broker = format!("http://{}", weir.router.address("ingress"));
    let arguments = ["sources", "--admin=127.0.0.1:0", "--broker-base-url", &broker];
    Process::weir(arguments.iter().chain(more))
        .env("KUBECONFIG", account.kubeconfig())
        .start()
}

fn map(name: &str, label: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"tell": label}}, "data": {"value": value},
    }))
    .unwrap()
}

/// The word at the end of an event's type.
fn kind(event: &Received) -> &str {
    let kind = event.header("ce-type").unwrap();
    kind.strip_prefix("dev.weir.kubernetes.").unwrap()
}

fn body(event: &Received) -> Value {
    serde_json::from_slice(&event.body).unwrap()
}

/// The version of each object by its UID, as told; none of those that were told to be deleted.
fn told(received: &[Received]) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    for event in received {
        let uid = event.header("ce-partitionkey").unwrap().to_owned();
        match kind(event) {
            "deleted" => drop(known.remove(&uid)),
            _ => {
                let version = body(event)["metadata"]["resourceVersion"].clone();
                known.insert(uid, version.as_str().unwrap().to_owned());
            }
        }
    }
    known
}

/// The version of each object by its UID, as the API server has it.
fn stored(maps: &Api<ConfigMap>) -> BTreeMap<String, String> {
    let listed = runtime().block_on(maps.list(&ListParams::default().labels("tell=yes")));
    let listed = listed.unwrap().into_iter();
    listed
        .map(|map| (map.metadata.uid.unwrap(), map.metadata.resource_version.unwrap()))
        .collect()
}

/// Waits until the consumer knows what is stored.
fn await_told(setup: &Setup, maps: &Api<ConfigMap>) {
    let stored = stored(maps);
    eventually(PATIENCE * 4, || {
        let told = setup.consumer.look(told);
        let differ = stored
            .iter()
            .filter(|(name, version)| told.get(*name) != Some(version));
        let differ: BTreeSet<_> = differ.map(|(name, _)| name).collect();
        let more: BTreeSet<_> = told.keys().filter(|name| !stored.contains_key(*name)).collect();
        match differ.is_empty() && more.is_empty() {
            true => Ok(()),
            false => Err(format!("not told: {differ:?}; told, but gone: {more:?}")),
        }
    });
}

#[test]
fn changes_are_told_as_far_as_the_author_may_see() {
    let setup = Setup::new();
    let shop = &setup.shop;
    shop.apply(&source(&format!(
        "{CONFIG_MAPS}, events: [Added, Updated, Deleted]"
    )));
    let maps = setup.client();
    runtime()
        .block_on(maps.create(&PostParams::default(), &map("early", "yes", "1")))
        .unwrap();

    let message = setup.await_connected("TokenForbidden");
    assert!(
        message.contains("--serviceaccount=default:weir-sources"),
        "{message}"
    );
    run_grant(shop, &message);
    let message = setup.await_connected("Forbidden");
    assert!(
        message.contains("needs list, watch on configmaps in namespace"),
        "{message}"
    );
    assert!(setup.consumer.received().is_empty());
    run_grant(shop, &message);
    setup.await_connected("Connected");

    let post = PostParams::default();
    runtime().block_on(async {
        maps.create(&post, &map("late", "yes", "1")).await.unwrap();
        maps.create(&post, &map("other", "no", "1")).await.unwrap();
        let patch = Patch::Merge(json!({"data": {"value": "2"}}));
        maps.patch("late", &PatchParams::default(), &patch).await.unwrap();
        maps.delete("early", &DeleteParams::default()).await.unwrap();
    });
    let received = setup.consumer.wait_for(4);
    let seen: Vec<_> = received
        .iter()
        .map(|event| (event.header("ce-name").unwrap(), kind(event)))
        .collect();
    let of = |name| -> Vec<&str> {
        seen.iter()
            .filter(|(of, _)| *of == name)
            .map(|(_, kind)| *kind)
            .collect()
    };
    assert_eq!(of("early"), ["added", "deleted"], "{seen:?}");
    assert_eq!(of("late"), ["added", "updated"], "{seen:?}");
    let updated = received.iter().find(|event| kind(event) == "updated").unwrap();
    let data = body(updated);
    let uid = data["metadata"]["uid"].as_str().unwrap();
    let version = data["metadata"]["resourceVersion"].as_str().unwrap();
    let namespace = shop.namespace();
    let source_uid = shop.get("source/objects")["metadata"]["uid"].clone();
    let source_uid = source_uid.as_str().unwrap();
    for (name, value) in [
        ("ce-id", format!("{source_uid}.{uid}.{version}")),
        ("ce-source", format!("/api/v1/namespaces/{namespace}/configmaps")),
        (
            "ce-subject",
            format!("/api/v1/namespaces/{namespace}/configmaps/late"),
        ),
        ("ce-kind", "ConfigMap".to_owned()),
        ("ce-apiversion", "v1".to_owned()),
        ("ce-namespace", namespace.to_owned()),
        ("ce-partitionkey", uid.to_owned()),
        ("content-type", "application/json".to_owned()),
    ] {
        assert_eq!(updated.header(name), Some(&*value), "{name}");
    }
    assert_eq!(data["data"]["value"], "2");
    assert_eq!(data["metadata"].get("managedFields"), None);
    setup.assert_accounted();

    // Its account may change nothing but its records.
    setup.plane.admin().run(["create", "configmap", "other"]);
    for attempt in [
        ["delete", "configmap", "other"].as_slice(),
        &["create", "configmap", "another"],
    ] {
        eventually(PATIENCE, || match setup.account.try_run(attempt) {
            Err(error) if error.contains("may change only its records") => Ok(()),
            other => Err(format!("{attempt:?}: {other:?}")),
        });
    }

    // What no longer matches is told as deleted, and the records go with the Source.
    let patch = Patch::Merge(json!({"metadata": {"labels": {"tell": "no"}}}));
    runtime()
        .block_on(maps.patch("late", &PatchParams::default(), &patch))
        .unwrap();
    let received = setup.consumer.wait_for(5);
    assert_eq!(kind(&received[4]), "deleted");
    let admin = setup.plane.admin();
    let records = || admin.run(["get", "configmaps", "-l", "weir.dev/source-uid", "-o", "name"]);
    assert!(!records().is_empty());
    shop.run(["delete", "source/objects"]);
    eventually(PATIENCE * 2, || match records() {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    });
}

#[test]
fn a_source_is_ready_while_weir_sources_runs() {
    let mut setup = Setup::granted();
    let shop = setup.shop.clone();
    shop.apply(&source(CONFIG_MAPS));
    await_reason(&shop, "source/objects", "SourcesDisabled");
    setup.sources.terminate();
    let lease = ["--sources-lease=weir-sources"];
    setup.weir.restart_controller_with(&setup.plane, &lease);
    await_reason(&shop, "source/objects", "SourcesNotRunning");
    let lease = ["--lease=weir-sources"];
    let mut first = start_sources_with(&setup.account, &setup.weir, &lease);
    shop.wait_ready("source/objects");

    // Another one stands by, and takes over.
    let second = start_sources_with(&setup.account, &setup.weir, &lease);
    let readiness = || get(&format!("http://{}/readyz", second.address("admin"))).text();
    let await_readiness = |wanted: &str| {
        eventually(PATIENCE, || match readiness() {
            text if text.contains(wanted) => Ok(()),
            text => Err(text),
        });
    };
    await_readiness("waiting to lead");
    assert!(first.terminate().success());
    await_readiness("the Sources are known");
    let maps = setup.client();
    runtime()
        .block_on(maps.create(&PostParams::default(), &map("a", "yes", "1")))
        .unwrap();
    setup.consumer.wait_for(1);
    shop.wait_ready("source/objects");
    let ready = condition(&shop, "source/objects", "Ready");
    assert_eq!(ready["reason"], "Ready", "{ready}");

    let role = shop.get("role/viewer");
    shop.run(["delete", "role/viewer", "rolebinding/viewer-token"]);
    drop(second);
    setup.sources = start_sources_with(&setup.account, &setup.weir, &[]);
    let message = await_reason(&shop, "source/objects", "NotConnected");
    assert!(message.starts_with("TokenForbidden: "), "{message} {role}");
}

#[test]
fn a_source_that_does_not_run_is_not_connected() {
    let setup = Setup::granted();
    let shop = &setup.shop;
    shop.apply(&source(CONFIG_MAPS));
    setup.await_connected("Connected");
    let patch = |patch: &str| shop.run(["patch", "source/objects", "--type=merge", "-p", patch]);
    patch(r#"{"spec": {"suspend": true}}"#);
    await_reason(shop, "source/objects", "Suspended");
    await_released(shop);
    assert_eq!(condition(shop, "source/objects", "Connected"), Value::Null);
    patch(r#"{"spec": {"suspend": false}}"#);
    setup.await_connected("Connected");

    // The controller writes the condition from now on.
    patch(r#"{"spec": {"kubernetes": null, "cron": {"schedule": "0 0 1 1 *", "type": "t"}}}"#);
    await_reason(shop, "source/objects", "Ready");
    await_released(shop);
    setup.await_connected("Scheduled");
}

/// Waits until `weir sources` owns no condition of the Source.
fn await_released(shop: &Kubectl) {
    eventually(PATIENCE, || {
        let source = shop.run(["get", "source/objects", "--show-managed-fields", "-o", "json"]);
        let source: Value = serde_json::from_str(&source).map_err(|error| error.to_string())?;
        let managed = source["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten();
        let mut own = managed.filter(|fields| fields["manager"] == "weir-sources");
        match own.find(|fields| !fields["fieldsV1"]["f:status"]["f:conditions"].is_null()) {
            Some(fields) => Err(fields.to_string()),
            None => Ok(()),
        }
    });
}

#[test]
fn events_are_made_as_the_author_says() {
    let setup = Setup::granted();
    let shop = &setup.shop;
    shop.apply(&source(&format!(
        "{CONFIG_MAPS}, event: {{attributes: {{tier: '${{object.data.tier}}', type: 'made.${{change}}'}}, data: {{before: \
         '${{oldObject == null ? \"none\" : oldObject.data.value}}', now: '${{object.data.value}}'}}}}"
    )));
    setup.await_connected("Connected");
    let maps = setup.client();
    let tier = |tier: &str| Patch::Merge(json!({"data": {"tier": tier, "value": "2"}}));
    let (post, patch) = (PostParams::default(), PatchParams::default());
    let mut good = map("good", "yes", "1");
    good.data
        .get_or_insert_default()
        .insert("tier".to_owned(), "gold".to_owned());
    runtime().block_on(async {
        maps.create(&post, &map("broken", "yes", "1")).await.unwrap();
        maps.create(&post, &good).await.unwrap();
    });
    let received = setup.consumer.wait_for(1);
    assert_eq!(received[0].header("ce-name"), Some("good"));
    assert_eq!(received[0].header("ce-tier"), Some("gold"));
    assert_eq!(received[0].header("ce-type"), Some("made.added"));
    assert_eq!(body(&received[0]), json!({"before": "none", "now": "1"}));

    let expected = "ConfigMap \"broken\": spec.kubernetes.event.attributes.tier: there is no tier";
    let message = setup.await_connected("EventsRejected");
    assert!(message.ends_with(expected), "{message}");
    eventually(PATIENCE, || {
        let rejection = &shop.get("source/objects")["status"]["lastRejection"];
        let is_told = rejection["reason"] == "mapping_failed" && rejection["message"] == expected;
        is_told.then_some(()).ok_or_else(|| rejection.to_string())
    });
    setup.assert_accounted();
    assert_eq!(setup.metric("weir_sources_changes_failed_total"), 1);

    // The next change of the object is told.
    runtime()
        .block_on(maps.patch("broken", &patch, &tier("tin")))
        .unwrap();
    let received = setup.consumer.wait_for(2);
    assert_eq!(received[1].header("ce-tier"), Some("tin"));
    assert_eq!(body(&received[1]), json!({"before": "1", "now": "2"}));
}

#[test]
fn a_kind_that_cannot_be_watched_stops_no_other() {
    let setup = Setup::granted();
    let shop = &setup.shop;
    let namespace = shop.namespace();
    shop.apply(&source(
        "resources: [{apiVersion: example.com/v1, kind: Widget}, {apiVersion: coordination.k8s.io/v1, kind: Lease}, {apiVersion: \
         v1, kind: ConfigMap, labelSelector: tell=yes}]",
    ));
    let forbidden = format!(
        "Lease of coordination.k8s.io/v1 is not watched: ServiceAccount \"viewer\" in namespace \"{namespace}\" needs list, watch \
         on leases.coordination.k8s.io in namespace \"{namespace}\""
    );
    let await_message = |parts: &[&str]| {
        eventually(PATIENCE * 6, || {
            let connected = condition(shop, "source/objects", "Connected");
            let message = connected["message"].as_str().unwrap_or_default();
            match parts.iter().all(|part| message.contains(part)) {
                true => Ok(message.to_owned()),
                false => Err(connected.to_string()),
            }
        })
    };
    let unknown = "spec.kubernetes.resources[0]: the cluster has no kind Widget of example.com/v1";
    let message = await_message(&[unknown, &forbidden, "watches ConfigMap nevertheless"]);
    let maps = setup.client();
    runtime()
        .block_on(maps.create(&PostParams::default(), &map("a", "yes", "1")))
        .unwrap();
    setup.consumer.wait_for(1);

    // What is granted, and what is installed, is watched without a restart.
    run_grant(shop, &message);
    setup.plane.admin().apply(WIDGETS);
    let message = await_message(&[
        "needs list, watch on widgets.example.com in namespace",
        "watches Lease, ConfigMap nevertheless",
    ]);
    run_grant(shop, &message);
    setup.await_connected("Connected");
    shop.apply("apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n");
    let received = setup.consumer.wait_for(2);
    assert_eq!(received[1].header("ce-kind"), Some("Widget"));
}

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
"#;

#[test]
fn sources_of_the_same_objects_are_no_repeats_of_each_other() {
    let mut setup = Setup::granted();
    let shop = setup.shop.clone();
    shop.apply(
        "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {name: default}\nspec: {deduplication: {window: 10m}}\n",
    );
    shop.wait_ready("brokers.weir.dev/default");
    shop.apply(&source(CONFIG_MAPS));
    let second = source(&format!("{CONFIG_MAPS}, event: {{attributes: {{from: second}}}}"));
    shop.apply(&second.replace("name: objects", "name: second"));
    setup.await_connected("Connected");
    shop.run([
        "wait",
        "--for=condition=Connected",
        "source/second",
        "--timeout=60s",
    ]);
    let maps = setup.client();
    let post = PostParams::default();
    runtime()
        .block_on(maps.create(&post, &map("a", "yes", "1")))
        .unwrap();
    let told_by = |received: &[Received], name: &str| -> [usize; 2] {
        let of = received
            .iter()
            .filter(|event| event.header("ce-name") == Some(name));
        let (second, first): (Vec<_>, Vec<_>) = of.partition(|event| event.header("ce-from").is_some());
        [first.len(), second.len()]
    };
    assert_eq!(told_by(&setup.consumer.wait_for(2), "a"), [1, 1]);

    // Whatever a kill repeats has the same ids, and is stored once.
    setup.sources.kill();
    setup.restart_sources();
    runtime()
        .block_on(maps.create(&post, &map("b", "yes", "1")))
        .unwrap();
    let received = setup.consumer.wait_for(4);
    setup.assert_accounted();
    assert_eq!(
        [told_by(&received, "a"), told_by(&received, "b")],
        [[1, 1], [1, 1]]
    );
}

#[test]
fn data_is_a_patch_or_a_reference_and_never_a_secret() {
    let setup = Setup::granted();
    let shop = &setup.shop;
    let secret = |value: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: key}}\nstringData: {{token: s3cret-{value}}}\n"
        )
    };
    shop.apply(&source(
        "resources: [{apiVersion: v1, kind: Secret}, {apiVersion: v1, kind: ConfigMap, labelSelector: tell=yes}], data: Patch",
    ));
    setup.await_connected("Connected");
    shop.apply(&secret("one"));
    setup.consumer.wait_for(1);
    shop.apply(&secret("two"));
    let received = setup.consumer.wait_for(2);
    for event in &received {
        let text = String::from_utf8_lossy(&event.body);
        assert!(!text.contains("s3cret") && !text.contains("czNjcmV0"), "{text}");
    }
    assert_eq!(
        received[1].header("content-type"),
        Some("application/merge-patch+json")
    );
    let maps = setup.client();
    let patch = Patch::Merge(json!({"data": {"value": "2"}}));
    runtime().block_on(async {
        maps.create(&PostParams::default(), &map("a", "yes", "1"))
            .await
            .unwrap();
        maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    });
    let received = setup.consumer.wait_for(4);
    let patch = body(&received[3]);
    assert_eq!(patch["data"], json!({"value": "2"}));
    assert_eq!(patch.get("kind"), None);

    shop.apply(&source(&format!("{CONFIG_MAPS}, data: Reference")));
    eventually(PATIENCE, || {
        let connected = condition(shop, "source/objects", "Connected");
        let is_new = connected["observedGeneration"] == 2 && connected["status"] == "True";
        is_new.then_some(()).ok_or_else(|| connected.to_string())
    });
    runtime()
        .block_on(maps.delete("a", &DeleteParams::default()))
        .unwrap();
    let received = setup.consumer.wait_for(5);
    let reference = body(&received[4]);
    assert_eq!(
        (&reference["name"], &reference["kind"]),
        (&json!("a"), &json!("ConfigMap"))
    );
    assert_eq!(reference.get("metadata"), None);
}

#[test]
fn what_changes_while_nobody_watches_is_told_once() {
    const OBJECTS: usize = 1_000;
    let mut setup = Setup::granted();
    setup.shop.apply(&source(CONFIG_MAPS));
    let maps = setup.client();
    let post = PostParams::default();
    let name = |number: usize| format!("object-{number:04}");
    let each = |numbers: std::ops::Range<usize>, change: &(dyn Fn(usize) -> ChangeOfMap + Sync)| {
        let changes = numbers.map(|number| {
            let (maps, post, name) = (maps.clone(), post.clone(), name(number));
            let change = change(number);
            async move {
                match change {
                    ChangeOfMap::Create => drop(maps.create(&post, &map(&name, "yes", "1")).await.unwrap()),
                    ChangeOfMap::Update => {
                        let patch = Patch::Merge(json!({"data": {"value": "2"}}));
                        maps.patch(&name, &PatchParams::default(), &patch).await.unwrap();
                    }
                    ChangeOfMap::Delete => {
                        drop(maps.delete(&name, &DeleteParams::default()).await.unwrap());
                    }
                }
            }
        });
        runtime().block_on(stream::iter(changes).buffer_unordered(20).collect::<Vec<_>>());
    };
    // 700 that exist, of which 400 are changed, some twice, and 300 deleted; and 300 new ones.
    each(0..700, &|_| ChangeOfMap::Create);
    setup
        .consumer
        .wait_until(PATIENCE * 4, |received| received.len() >= 700);
    setup.assert_accounted();
    assert!(setup.sources.terminate().success());
    let before = setup.consumer.received().len();
    assert_eq!(before, 700);
    each(0..400, &|_| ChangeOfMap::Update);
    each(400..700, &|_| ChangeOfMap::Delete);
    each(700..OBJECTS, &|_| ChangeOfMap::Create);
    setup.restart_sources();
    await_told(&setup, &maps);
    setup.assert_accounted();
    let received = setup.consumer.received();
    let after = &received[before..];
    let count = |wanted| after.iter().filter(|event| kind(event) == wanted).count();
    assert_eq!(
        [count("updated"), count("deleted"), count("added")],
        [400, 300, 300]
    );
    let ids: BTreeSet<_> = received
        .iter()
        .map(|event| event.header("ce-id").unwrap())
        .collect();
    assert_eq!(ids.len(), received.len(), "no event is repeated");

    // Another start tells nothing.
    assert!(setup.sources.terminate().success());
    setup.restart_sources();
    eventually(PATIENCE, || match setup.metric("weir_sources_connected") {
        1 => Ok(()),
        _ => Err("it does not watch yet".to_owned()),
    });
    setup.assert_accounted();
    assert_eq!(setup.metric("weir_sources_changes_total"), 0);
}

#[derive(Clone, Copy, Debug)]
enum ChangeOfMap {
    Create,
    Update,
    Delete,
}

/// Number of names of objects that are changed.
const OBJECTS_OF_CHANGES: usize = 60;

/// Changes objects until told to stop, whatever becomes of the requests. Returns the number of requests that succeeded.
async fn change_objects(maps: Api<ConfigMap>, stop: Arc<AtomicBool>) -> usize {
    let mut changed = 0;
    let mut number = 0_usize;
    while !stop.load(Relaxed) {
        number += 1;
        let name = format!("object-{}", fastrand::usize(0..OBJECTS_OF_CHANGES));
        let value = number.to_string();
        let result = match fastrand::u8(0..10) {
            0..3 => maps
                .create(&PostParams::default(), &map(&name, "yes", &value))
                .await
                .map(drop),
            3..8 => {
                let patch = Patch::Merge(json!({"data": {"value": value}}));
                maps.patch(&name, &PatchParams::default(), &patch).await.map(drop)
            }
            _ => maps.delete(&name, &DeleteParams::default()).await.map(drop),
        };
        match result {
            Ok(()) => changed += 1,
            Err(kube::Error::Api(_)) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    changed
}

#[test]
fn nothing_is_lost_when_processes_are_killed_again_and_again() {
    let mut setup = Setup::granted();
    // An event that is told again after a kill lacks the version before, and so differs from the one that the broker has.
    setup.shop.apply(
        "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {name: default}\nspec: {deduplication: {window: 10m}}\n",
    );
    let before = "${oldObject == null ? 'none' : oldObject.metadata.resourceVersion}";
    setup.shop.apply(&source(&format!(
        "{CONFIG_MAPS}, event: {{attributes: {{before: \"{before}\"}}}}"
    )));
    setup.await_connected("Connected");
    let maps = setup.client();
    let stop = Arc::new(AtomicBool::new(false));
    let changing = runtime().spawn(change_objects(maps.clone(), stop.clone()));
    let more_events = |setup: &Setup, count: usize| {
        let before = setup.consumer.look(<[Received]>::len);
        setup
            .consumer
            .wait_until(PATIENCE * 4, |received| received.len() >= before + count);
    };
    let mut killed = [0_usize; 4];
    for round in 0..kills() * 4 {
        // Some way into the work, at another moment each time.
        more_events(&setup, 5 + fastrand::usize(0..40));
        let victim = round as usize % 4;
        killed[victim] += 1;
        match victim {
            0 => {
                setup.sources.kill();
                setup.restart_sources();
            }
            1 => setup.weir.kill_and_restart_router(),
            // As when its pod is deleted.
            2 => {
                setup.sources.terminate();
                setup.restart_sources();
            }
            _ => {
                setup.plane.stop_api_server();
                setup.plane.start_api_server();
            }
        }
    }
    more_events(&setup, 20);
    stop.store(true, Relaxed);
    let changed = runtime().block_on(changing).unwrap();
    await_told(&setup, &maps);
    setup.assert_accounted();
    let received = setup.consumer.received();
    let mut times = BTreeMap::<&str, usize>::new();
    for event in &received {
        *times.entry(event.header("ce-id").unwrap()).or_default() += 1;
    }
    // What a kill repeats was told in the last seconds: of each object its last event, and its deletion before that. Repeats
    // have the same id.
    let repeats = received.len() - times.len();
    let kills = killed.iter().sum::<usize>();
    assert!(
        repeats <= kills * 2 * OBJECTS_OF_CHANGES,
        "{repeats} repeats after {kills} kills"
    );
    assert!(times.values().all(|&times| times <= 1 + kills), "{times:?}");
    eprintln!(
        "killed: weir sources {}, router {}, pod of weir sources {}, API server {}; {changed} changes, {} events, 0 final states \
         lost, 0 changes stuck, {repeats} repeats",
        killed[0],
        killed[1],
        killed[2],
        killed[3],
        times.len()
    );
}
