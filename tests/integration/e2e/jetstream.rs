//! Weir installed with its log in NATS: three routers and three NATS servers, of which any may be replaced under load.

use std::{collections::BTreeMap, env, fs, path::PathBuf, thread, time::Instant};

use serde_json::Value;

use super::{
    cluster::Cluster,
    installation::{Installation, LONG, SYSTEM, install, install_with, project, restricted, say},
    load::{Followed, all_delivered},
};
use crate::support::{Kubectl, eventually};

/// The namespace of the NATS servers, and their names.
const NATS: &str = "nats";
const SERVERS: [&str; 3] = ["nats-0", "nats-1", "nats-2"];

const ROUTERS: usize = 3;
/// Number of shards of an installation.
const SHARDS: usize = 24;
/// Brokers in addition to the default one, each with a Trigger.
const BROKERS: usize = 5;

/// The Trigger of a further broker.
fn trigger(broker: usize) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: t{broker}}}\n\
         spec:\n  broker: b{broker}\n  sink: {{service: {{name: consumer}}}}\n"
    )
}

#[test]
fn routers_and_nats_servers_may_be_replaced_under_load() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = &installation.cluster;
    let system = cluster.kubectl(SYSTEM);
    let nats = start_nats(cluster);
    replace_release(cluster);
    helm_test(cluster);

    let kubectl = installation.consumer("jetstream", 2, "{}");
    kubectl.apply(&(0..BROKERS).map(trigger).collect::<String>());
    wait_ready(&kubectl);
    kubectl.wait_rolled_out("deployment/consumer");
    let named = (0..BROKERS).map(|broker| cluster.broker_named("jetstream", &format!("b{broker}")));
    let brokers = named.chain([cluster.broker("jetstream")]).collect();

    let followed = Followed::new();
    thread::scope(|scope| {
        scope.spawn(|| followed.follow(installation, &kubectl, "consumer"));
        let _ends = followed.end_on_drop();
        let producers = installation.producers_to(brokers);
        let disrupt = |what: &str, disruption: &dyn Fn()| {
            producers.wait_for_more(20);
            let (before, begin) = (producers.count(), Instant::now());
            disruption();
            await_division(&system);
            producers.wait_for_more(20);
            say(&format!(
                "{what}: {} events acknowledged around it, {:.1?}",
                producers.count() - before,
                begin.elapsed()
            ));
        };
        disrupt("a router's pod is deleted", &|| {
            let pod = routers(&system).expect("the routers are listed").remove(0);
            system.run(["delete", "pod", &pod]);
            // So that no Trigger waits for it.
            eventually(LONG, || has_left(installation, &pod));
            system.wait_rolled_out("deployment/weir-router");
        });
        disrupt("a NATS pod is deleted with its data", &|| {
            let before = eventually(LONG, || current(&nats));
            let leader = eventually(LONG, || leader(&nats, "weir_state"));
            nats.run(["delete", "pod", &leader]);
            nats.wait_rolled_out("statefulset/nats");
            eventually(LONG, || {
                let after = current(&nats)?;
                let lacking = before.keys().find(|stream| !after.contains_key(*stream));
                lacking.map_or(Ok(()), |stream| Err(format!("nobody leads {stream}")))
            });
        });
        disrupt("routers restart, one after another", &|| {
            system.run(["rollout", "restart", "deployment/weir-router"]);
            system.wait_rolled_out("deployment/weir-router");
        });
        let begin = Instant::now();
        kubectl.apply(&trigger(BROKERS));
        wait_ready(&kubectl);
        say(&format!(
            "a Trigger is Ready right after that: {:.1?}",
            begin.elapsed()
        ));
        let acknowledged = producers.finish();
        let repeated = eventually(LONG, || all_delivered(&followed, &acknowledged));
        say(&format!(
            "routers and NATS servers replaced under load: {} acknowledged, 0 lost, {repeated} repeated",
            acknowledged.len()
        ));
    });
    eventually(LONG, || without_failure(&kubectl));

    // Other tests find the release as it was.
    uninstall(cluster);
    install(cluster);
    nats.run(["delete", "namespace", NATS, kubectl.namespace(), "--wait=false"]);
}

/// Starts three NATS servers, and waits until they are ready.
#[track_caller]
fn start_nats(cluster: &Cluster) -> Kubectl {
    let begin = Instant::now();
    let image = match cluster {
        Cluster::Node(node) => {
            let folder = env::var_os("WEIR_NATS").map(PathBuf::from);
            let folder = folder.expect("WEIR_NATS is the folder of nats-server: run make e2e");
            node.import_binary(&folder.join("nats-server"));
            "nats-server:test".to_owned()
        }
        Cluster::Given(_) => official_image(),
    };
    let nats = cluster.kubectl(NATS);
    nats.apply(&restricted(NATS));
    for namespace in [NATS, SYSTEM] {
        let secret =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: weir-nats}\nstringData: {password: w1234}\n";
        cluster.kubectl(namespace).apply(secret);
    }
    nats.apply(&include_str!("nats.yaml").replace("IMAGE", &image));
    nats.wait_rolled_out("statefulset/nats");
    say(&format!("three NATS servers: {:.1?}", begin.elapsed()));
    nats
}

/// The image that deploy/nats-values.yaml selects.
fn official_image() -> String {
    let values = fs::read_to_string(project("deploy/nats-values.yaml")).expect("the values are there");
    let tag = values.lines().find_map(|line| line.trim().strip_prefix("tag: "));
    format!("nats:{}", tag.expect("the values select a tag"))
}

/// Replaces the release by one that stores events in NATS.
#[track_caller]
fn replace_release(cluster: &Cluster) {
    // The example may be posting.
    let complete = [
        "wait",
        "--for=condition=Complete",
        "job/producer",
        "--timeout=120s",
    ];
    cluster.kubectl("shop").run(complete);
    let begin = Instant::now();
    uninstall(cluster);
    say(&format!("helm uninstall: {:.1?}", begin.elapsed()));
    let begin = Instant::now();
    let values = format!(
        "--values={}",
        project("tests/integration/e2e/jetstream-values.yaml")
    );
    install_with(cluster, &[&values]);
    await_division(&cluster.kubectl(SYSTEM));
    say(&format!(
        "helm install with three routers on NATS, until they share the work: {:.1?}",
        begin.elapsed()
    ));
}

#[track_caller]
fn uninstall(cluster: &Cluster) {
    let uninstall = ["uninstall", "weir", "--namespace", SYSTEM, "--wait"];
    cluster.helm(uninstall).unwrap_or_else(|error| panic!("{error}"));
    let system = cluster.kubectl(SYSTEM);
    let pods = "--selector=app.kubernetes.io/name=weir";
    system.run(["wait", "--for=delete", "pod", pods, "--timeout=120s"]);
    // It names the routers of this release, for which the next leader would wait.
    system.run(["delete", "lease/weir-controller"]);
}

#[track_caller]
fn helm_test(cluster: &Cluster) {
    let test = ["test", "weir", "--namespace", SYSTEM];
    cluster.helm(test).unwrap_or_else(|error| panic!("{error}"));
}

#[track_caller]
fn wait_ready(kubectl: &Kubectl) {
    let wait = [
        "wait",
        "--for=condition=Ready",
        "trigger",
        "--all",
        "--timeout=60s",
    ];
    kubectl.run(wait);
}

/// Checks that a router has told the controller that it ends.
fn has_left(installation: &Installation, router: &str) -> Result<(), String> {
    let log = installation
        .cluster
        .kubectl(SYSTEM)
        .try_run(["logs", &installation.leader()])?;
    let is_told = |line: &str| line.contains("a router has left") && line.contains(router);
    log.lines().any(is_told).then_some(()).ok_or(log)
}

/// Checks that every condition of every Trigger is True.
fn without_failure(kubectl: &Kubectl) -> Result<(), String> {
    let triggers = parse(&kubectl.try_run(["get", "triggers", "--output=json"])?)?;
    let triggers = triggers["items"].as_array().into_iter().flatten();
    let conditions =
        triggers.flat_map(|trigger| trigger["status"]["conditions"].as_array().into_iter().flatten());
    match conditions
        .into_iter()
        .find(|condition| condition["status"] != "True")
    {
        None => Ok(()),
        Some(_) => Err(kubectl.try_run(["get", "triggers", "--output=yaml"])?),
    }
}

fn parse(json: &str) -> Result<Value, String> {
    serde_json::from_str(json).map_err(|error| format!("{error}: {json}"))
}

/// The pods of the routers, without those that are ending.
fn routers(system: &Kubectl) -> Result<Vec<String>, String> {
    let selector = "--selector=app.kubernetes.io/component=router";
    let pods = parse(&system.try_run(["get", "pods", selector, "--output=json"])?)?;
    let pods = pods["items"].as_array().into_iter().flatten();
    Ok(pods
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|pod| pod["metadata"]["name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// Waits until the routers own all shards, in equal parts.
#[track_caller]
fn await_division(system: &Kubectl) {
    eventually(LONG, || {
        let mut shards = BTreeMap::new();
        for pod in routers(system)? {
            let metrics = format!("--raw=/api/v1/namespaces/{SYSTEM}/pods/{pod}:9090/proxy/metrics");
            let metrics = system.try_run(["get", &metrics])?;
            let owned = metrics
                .lines()
                .find_map(|line| line.strip_prefix("weir_router_shards "));
            let owned = owned.and_then(|owned| owned.parse::<usize>().ok());
            shards.insert(pod, owned.unwrap_or_default());
        }
        let is_divided = shards.len() == ROUTERS && shards.values().all(|owned| *owned == SHARDS / ROUTERS);
        is_divided
            .then_some(())
            .ok_or_else(|| format!("{shards:?} shards are owned"))
    });
}

/// The last sequence of each stream that a NATS server has, or leads.
fn streams(nats: &Kubectl, server: &str, led: bool) -> Result<BTreeMap<String, u64>, String> {
    let query = format!("jsz?acc=WEIR&streams=true&stream-leader-only={led}");
    let path = format!("--raw=/api/v1/namespaces/{NATS}/pods/{server}:8222/proxy/{query}");
    let answer = parse(&nats.try_run(["get", &path])?)?;
    let streams = answer["account_details"][0]["stream_detail"].as_array();
    let last = |stream: &Value| {
        let name = stream["name"].as_str()?.to_owned();
        Some((name, stream["state"]["last_seq"].as_u64()?))
    };
    Ok(streams.into_iter().flatten().filter_map(last).collect())
}

/// The server that leads a stream.
fn leader(nats: &Kubectl, stream: &str) -> Result<String, String> {
    for server in SERVERS {
        if streams(nats, server, true)?.contains_key(stream) {
            return Ok(server.to_owned());
        }
    }
    Err(format!("nobody leads {stream}"))
}

/// The streams, each of which has a leader, if every server has all of their messages.
fn current(nats: &Kubectl) -> Result<BTreeMap<String, u64>, String> {
    let mut led = BTreeMap::new();
    for server in SERVERS {
        led.append(&mut streams(nats, server, true)?);
    }
    for server in SERVERS {
        let has = streams(nats, server, false)?;
        for (stream, last) in &led {
            match has.get(stream) {
                Some(has) if has >= last => {}
                has => return Err(format!("{server} has {has:?} of {last} messages of {stream}")),
            }
        }
    }
    Ok(led)
}
