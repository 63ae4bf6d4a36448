//! The controller beside a router that the test plays: what it says while routers come, lag behind and go.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{ControlPlane, Kubectl, PATIENCE, Process, eventually, get, runtime, send};

/// What the documentation of `weir::controller` says that it needs, and nothing more.
const RULES: &str = r#"
- {apiGroups: [weir.dev], resources: [brokers, sources, triggers, sinks], verbs: [list, watch]}
- {apiGroups: [""], resources: [services, serviceaccounts, namespaces], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [brokers/status, sources/status, triggers/status, sinks/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
"#;

/// A user that may do what the controller needs.
pub(crate) fn account(plane: &ControlPlane) -> Kubectl {
    let account = plane.service_account("default", "weir-controller");
    plane.admin().apply(&format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {{name: weir-controller}}\nrules:{RULES}\
         ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: weir-controller}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-controller}}\n\
         subjects: [{{kind: ServiceAccount, name: weir-controller, namespace: default}}]\n"
    ));
    account
}

pub(crate) fn install_definitions(kubectl: &Kubectl) {
    kubectl.run(["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/crds")]);
    kubectl.run(["wait", "--for=condition=Established", "crd", "--all"]);
}

fn start(kubeconfig: &Path, listen: &str) -> Process {
    let arguments = ["controller", "--listen", listen, "--admin", "127.0.0.1:0"];
    Process::weir(arguments).env("KUBECONFIG", kubeconfig).start()
}

fn trigger(name: &str, uri: &str, more: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}}}\n\
         spec: {{sink: {{uri: '{uri}'}}{more}}}\n"
    )
}

pub(crate) fn condition(kubectl: &Kubectl, resource: &str, r#type: &str) -> Value {
    let resource = kubectl.get(resource);
    let conditions = resource["status"]["conditions"].as_array().cloned();
    conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == r#type)
        .unwrap_or_default()
}

fn await_reason(kubectl: &Kubectl, resource: &str, r#type: &str, reason: &str) -> Value {
    eventually(PATIENCE, || {
        let found = condition(kubectl, resource, r#type);
        if found["reason"] == reason {
            Ok(found)
        } else {
            Err(format!("{resource} {type}: {found}, not {reason}"))
        }
    })
}

/// The reasons of the Events about a resource, with how often each was told, sorted.
pub(crate) fn events(kubectl: &Kubectl, name: &str) -> Vec<(String, u64)> {
    let text = kubectl.run(["get", "events.events.k8s.io", "--output=json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    let mut told: Vec<_> = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["regarding"]["name"] == name)
        .map(|event| {
            (
                event["reason"].as_str().unwrap().to_owned(),
                event["series"]["count"].as_u64().unwrap_or(1),
            )
        })
        .collect();
    told.sort();
    told
}

/// Asks as a router does, and answers with what it was given; the request may wait, as a router's does.
fn ask(controller: &Process, router: &str, revision: &str) -> JoinHandle<(u16, Value)> {
    let url = format!(
        "http://{}/v1/configuration?router={router}&revision={revision}",
        controller.address("configuration")
    );
    runtime().spawn(async move {
        let response = send(Method::GET, &url, &[], "").await.unwrap();
        let body = serde_json::from_slice(&response.body).unwrap_or_default();
        (response.status.as_u16(), body)
    })
}

/// Asks, and waits for the answer.
fn given(controller: &Process, router: &str, revision: &str) -> Value {
    let (status, body) = runtime().block_on(ask(controller, router, revision)).unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

fn revision(configuration: &Value) -> String {
    configuration["revision"].as_str().unwrap().to_owned()
}

#[test]
fn a_trigger_is_ready_once_every_router_says_so() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();

    // Without its definitions it waits, and says for what.
    let controller = start(account.kubeconfig(), "127.0.0.1:0");
    let ready = format!("http://{}/readyz", controller.address("admin"));
    assert_eq!(get(&ready).status, 503);
    controller.wait_for_line(PATIENCE, |line| line.contains("weir crds | kubectl apply -f -"));
    install_definitions(&admin);
    // The pauses between attempts to watch have grown to half a minute.
    eventually(PATIENCE * 3, || match get(&ready).status.as_u16() {
        200 => Ok(()),
        status => Err(status.to_string()),
    });

    let kubectl = plane.namespace("ack");
    kubectl.apply(&trigger("one", "http://example.com/", ""));
    let none = await_reason(&kubectl, "trigger/one", "Ready", "NoRouter");
    assert_eq!(
        (&none["status"], &none["observedGeneration"]),
        (&json!("False"), &json!(1))
    );
    assert_eq!(
        condition(&kubectl, "trigger/one", "SinkResolved")["status"],
        "True"
    );
    assert_eq!(events(&kubectl, "one"), [("NoRouter".to_owned(), 1)]);

    // A router comes, and has nothing yet.
    let first = given(&controller, "r1", "");
    assert_eq!(first["triggers"][0]["name"], "one");
    let behind = await_reason(&kubectl, "trigger/one", "Ready", "RouterOutOfDate");
    assert!(behind["message"].as_str().unwrap().contains("r1"), "{behind}");
    let waiting = ask(&controller, "r1", &revision(&first));
    kubectl.wait_ready("trigger/one");
    let told = [("NoRouter", 1), ("Ready", 1), ("RouterOutOfDate", 1)]
        .map(|(reason, count)| (reason.to_owned(), count));
    assert_eq!(events(&kubectl, "one"), told);

    // What another Trigger brings does not concern this one, while r1 lags behind.
    kubectl.apply(&trigger("two", "http://example.com/", ""));
    let (status, second) = runtime().block_on(waiting).unwrap();
    assert_eq!(status, 200);
    await_reason(&kubectl, "trigger/two", "Ready", "RouterOutOfDate");
    assert_eq!(condition(&kubectl, "trigger/one", "Ready")["status"], "True");
    let _r1 = ask(&controller, "r1", &revision(&second));
    kubectl.wait_ready("trigger/two");
    assert_eq!(events(&kubectl, "one"), told, "nothing happened to it");

    // A second router is waited for by name, and only it.
    given(&controller, "r2", "");
    let behind = await_reason(&kubectl, "trigger/one", "Ready", "RouterOutOfDate");
    let message = behind["message"].as_str().unwrap();
    assert!(message.contains("r2") && !message.contains("r1"), "{message}");
    let _r2 = ask(&controller, "r2", &revision(&second));
    kubectl.wait_ready("trigger/one");

    // Nothing is written while nothing happens; that cannot be awaited.
    let versions = || {
        kubectl.run([
            "get",
            "triggers",
            "-o",
            "jsonpath={.items[*].metadata.resourceVersion}",
        ])
    };
    let before = versions();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(versions(), before);
    let metrics = get(&format!("http://{}/metrics", controller.address("admin"))).text();
    for line in [
        "weir_controller_triggers{ready=\"true\"} 2",
        "weir_controller_triggers{ready=\"false\"} 0",
        "weir_controller_routers 2",
        "weir_controller_watch_errors_total{kind=\"Trigger\"}",
        "weir_controller_status_writes_total{kind=\"Trigger\",outcome=\"written\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("outcome=\"failed\""), "{metrics}");
}

/// Routers go on by what they have while there is no controller, so its return changes nothing.
#[test]
fn a_restarted_controller_waits_for_its_routers_before_it_says_that_none_is_there() {
    let plane = ControlPlane::start();
    install_definitions(&plane.admin());
    let kubectl = plane.namespace("restart");
    kubectl.apply(&trigger("t", "http://example.com/", ""));
    let mut controller = start(kubectl.kubeconfig(), "127.0.0.1:0");
    await_reason(&kubectl, "trigger/t", "Ready", "NoRouter");
    let configuration = given(&controller, "r", "");
    let waiting = ask(&controller, "r", &revision(&configuration));
    kubectl.wait_ready("trigger/t");
    let (before, told) = (kubectl.get("trigger/t"), events(&kubectl, "t"));

    waiting.abort();
    let listen = controller.address("configuration").to_string();
    controller.kill();
    controller = start(kubectl.kubeconfig(), &listen);
    controller.wait_for_line(PATIENCE, |line| line.contains("routing configuration published"));
    // A router may take some seconds to come back, as its pauses between attempts have grown.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        assert_eq!(kubectl.get("trigger/t")["status"], before["status"]);
    }
    // An edit meanwhile is seen, and is not said to be applied.
    kubectl.apply(&trigger("new", "http://example.com/", ""));
    eventually(
        PATIENCE,
        || match condition(&kubectl, "trigger/new", "Ready")["status"].as_str() {
            Some("True") => panic!("no router can have applied it"),
            Some(_) => Ok(()),
            None => Err("no status yet".to_owned()),
        },
    );
    let configuration = given(&controller, "r", &revision(&configuration));
    let _waiting = ask(&controller, "r", &revision(&configuration));
    kubectl.wait_ready("trigger/new");
    assert_eq!(
        kubectl.get("trigger/t")["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
    assert_eq!(events(&kubectl, "t"), told);
}

/// An Event's note may have 1024 bytes, a URI twice as many.
#[test]
fn a_transition_with_a_long_message_is_told_too() {
    let plane = ControlPlane::start();
    install_definitions(&plane.admin());
    let kubectl = plane.namespace("long");
    let _controller = start(kubectl.kubeconfig(), "127.0.0.1:0");
    let inside = format!("http://web.long.svc/{}", "ü".repeat(900));
    kubectl.apply(&trigger("t", &inside, ""));
    let ready = await_reason(&kubectl, "trigger/t", "Ready", "InvalidUri");
    eventually(PATIENCE, || match events(&kubectl, "t") {
        told if told == [("InvalidUri".to_owned(), 1)] => Ok(()),
        told => Err(format!("{told:?} for {ready}")),
    });
}

/// What the API server takes, the controller can read: else it could not even say so in status.
#[test]
fn a_start_that_is_no_time_is_refused() {
    let plane = ControlPlane::start();
    install_definitions(&plane.admin());
    let kubectl = plane.namespace("start");
    let _controller = start(kubectl.kubeconfig(), "127.0.0.1:0");
    for (number, (start, accepted)) in [
        ("2026-11-24T08:00:00Z", true),
        ("2024-02-29T23:59:59.123456789+14:00", true),
        ("2026-13-01T00:00:00Z", false),
        ("2026-02-30T00:00:00Z", false),
        ("2026-02-29T00:00:00Z", false),
        ("2026-01-01T24:00:00Z", false),
        ("2026-01-01T00:00:00+99:00", false),
        ("9999-12-31T23:59:59Z", false),
        ("0000-01-01T00:00:00Z", false),
        ("yesterday", false),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("t{number}");
        let manifest = trigger(&name, "http://example.com/", &format!(", start: '{start}'"));
        if accepted {
            kubectl.apply(&manifest);
            await_reason(&kubectl, &format!("trigger/{name}"), "Ready", "NoRouter");
        } else {
            let refusal = kubectl.apply_err(&manifest);
            assert!(
                refusal.contains("spec.start") && refusal.contains("2026-11-24T08:00:00Z"),
                "{start}: {refusal}"
            );
        }
    }
}
