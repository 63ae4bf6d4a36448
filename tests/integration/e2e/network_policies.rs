//! Who may connect to Weir's pods where NetworkPolicies are enforced, as on the tests' own node.

use Met::{Nobody, Server};

use super::{
    cluster::Cluster,
    installation::{Installation, LONG, SYSTEM, project, weir},
};
use crate::support::{Kubectl, Node, eventually};

#[test]
fn strangers_reach_the_port_for_events_alone() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = &installation.cluster;
    let Some(node) = cluster.own("NetworkPolicies may not be enforced") else {
        return;
    };
    let system = cluster.kubectl(SYSTEM);
    let configuration = |kubectl: &Kubectl, pod, met| {
        eventually(LONG, || {
            let url = configuration(installation, node)?;
            meets(kubectl, pod, met, &url)?;
            // It still listens: whoever leads may have changed meanwhile.
            let_in(node, &url)
        });
    };
    let admin = eventually(LONG, || admin(&system, node));

    let stranger = installation.consumer("policies", 1, "{}");
    stranger.wait_rolled_out("deployment/consumer");
    let stranger_meets = |met, url: &str| await_met(&stranger, "deployment/consumer", met, url);
    stranger_meets(Server, "http://weir.weir-system.svc/policies/default");
    for url in &admin {
        stranger_meets(Nobody, url);
    }
    configuration(&stranger, "deployment/consumer", Nobody);
    configuration(&system, "pod/weir-router-0", Server);

    let peers = r#"[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "policies"}}}]"#;
    let_read_metrics(cluster, peers);
    for url in &admin {
        stranger_meets(Server, url);
        await_met(&cluster.kubectl("shop"), "deployment/audit", Nobody, url);
    }
    configuration(&stranger, "deployment/consumer", Nobody);
    let_read_metrics(cluster, "[]");
    for url in &admin {
        stranger_meets(Nobody, url);
    }
}

/// Where the routing configuration is served, by the controller that leads alone.
fn configuration(installation: &Installation, node: &Node) -> Result<String, String> {
    let leader = format!("pod/{}", installation.leader());
    let address = ["get", &leader, "--output=jsonpath={.status.podIP}"];
    let address = installation.cluster.kubectl(SYSTEM).try_run(address)?;
    let url = format!("https://{}:8090", address.trim());
    let_in(node, &url)?;
    Ok(url)
}

/// The admin ports of two controllers and a router, which the chart has by default; those that a test before this one
/// replaced may be ending still.
fn admin(system: &Kubectl, node: &Node) -> Result<Vec<String>, String> {
    let addresses = "--output=jsonpath={.items[*].status.podIP}";
    let addresses = system.try_run(["get", "pods", "--selector=app.kubernetes.io/name=weir", addresses])?;
    let urls = addresses
        .split_whitespace()
        .map(|address| format!("http://{address}:9090"));
    let urls: Vec<String> = urls.collect();
    if urls.len() != 3 {
        return Err(format!("not three pods: {addresses}"));
    }
    for url in &urls {
        let_in(node, url)?;
    }
    Ok(urls)
}

/// Checks that somebody listens, whom policies let the node connect to: then it is a policy that refuses others.
fn let_in(node: &Node, url: &str) -> Result<(), String> {
    check_met(node.run(weir(), send(url)), Server)
}

/// Says who reads the metrics, as peers of a NetworkPolicy.
#[track_caller]
fn let_read_metrics(cluster: &Cluster, peers: &str) {
    let chart = project("charts/weir");
    let peers = format!("--set-json=networkPolicy.metricsFrom={peers}");
    let upgrade = [
        "upgrade",
        "weir",
        &chart,
        "--namespace",
        SYSTEM,
        "--reuse-values",
        &peers,
    ];
    cluster.helm(upgrade).unwrap_or_else(|error| panic!("{error}"));
}

/// Whom `weir send` meets at a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// A server, whatever it answers. The one of the configuration has a certificate that only routers trust.
    Server,
    Nobody,
}

fn send(url: &str) -> [&str; 4] {
    ["send", url, "--type=com.example.test", "--source=/test"]
}

/// Waits until a pod meets a server, or nobody, at a URL: policies take effect a moment after they are written.
#[track_caller]
fn await_met(kubectl: &Kubectl, pod: &str, met: Met, url: &str) {
    eventually(LONG, || meets(kubectl, pod, met, url));
}

fn meets(kubectl: &Kubectl, pod: &str, met: Met, url: &str) -> Result<(), String> {
    let exec = ["exec", pod, "--", "/weir"];
    check_met(kubectl.try_run(exec.into_iter().chain(send(url))), met)
}

fn check_met(sent: Result<String, String>, wanted: Met) -> Result<(), String> {
    let says = |texts: [&str; 2]| {
        let error = sent.as_ref().err();
        error.is_some_and(|error| texts.iter().any(|text| error.contains(text)))
    };
    let met = if sent.is_ok() || says([" answered ", "invalid peer certificate"]) {
        Some(Server)
    } else if says(["cannot reach", "did not answer"]) {
        Some(Nobody)
    } else {
        None
    };
    match met == Some(wanted) {
        true => Ok(()),
        false => Err(format!("{wanted:?} was to be met: {sent:?}")),
    }
}
