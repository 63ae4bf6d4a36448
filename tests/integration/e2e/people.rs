//! What people see and may do.

use serde_json::Value;

use super::installation::{
    Installation, LONG, SYSTEM, await_delivered, delivered, install, project, say, weir,
};
use crate::support::{PATIENCE, ReservedPort, Scratch, eventually, kubectl_binary};

#[test]
fn events_reach_the_services_that_asked_for_them() {
    let Some(Installation { cluster }) = Installation::shared() else {
        return;
    };
    let shop = cluster.kubectl("shop");
    shop.run([
        "wait",
        "--for=condition=Ready",
        "trigger",
        "--all",
        "--timeout=60s",
    ]);
    shop.run([
        "wait",
        "--for=condition=Complete",
        "job/producer",
        "--timeout=120s",
    ]);
    await_delivered(&shop, "billing", &["order-1-paid"]);
    await_delivered(&shop, "warehouse", &["order-1", "order-1-paid", "stock-1"]);
    await_delivered(&shop, "audit", &["order-1", "order-1-paid", "stock-1", "stock-2"]);

    let listed = shop.run(["get", "weir"]);
    for line in [
        "NAME READY REASON BROKER SINK AGE",
        "trigger.weir.dev/billing True Ready default",
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let is_there = |listed: &str| {
            let mut found = listed.split_whitespace();
            words.iter().all(|word| found.any(|found| found == *word))
        };
        assert!(listed.lines().any(is_there), "{line}\n{listed}");
    }
    let explained = shop.run(["explain", "trigger.spec.filters.prefix"]);
    assert!(explained.contains("starts with"), "{explained}");
    let events = shop.run(["events", "--for=trigger/billing"]);
    assert!(events.contains("Ready"), "{events}");

    cluster
        .helm(["test", "weir", "--namespace", SYSTEM])
        .unwrap_or_else(|error| panic!("{error}"));
    let Some(node) = cluster.own("memory as the kubelet reports it") else {
        return;
    };
    for (pod, working_set, resident) in node.memory(SYSTEM) {
        let mebibytes = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
        say(&format!(
            "memory of {pod}: {:.1} MiB working set, {:.1} MiB resident",
            mebibytes(working_set),
            mebibytes(resident)
        ));
    }
}

#[test]
fn dead_letters_are_redriven_through_a_port_forward() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    // A Service without anybody behind it: what is delivered now becomes a dead letter.
    let kubectl = installation.consumer("letters", 0, "{retry: 0}");
    let cluster = &installation.cluster;
    let broker = cluster.broker("letters");
    eventually(PATIENCE, || cluster.send(&broker, "1"));

    // Its token is kept where the other commands find it.
    let (kept, reserved) = (Scratch::new(), ReservedPort::new());
    let port = reserved.address().port().to_string();
    let kubectl_binary = kubectl_binary();
    let directory = kubectl_binary.parent().expect("it is in a directory");
    let others = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{others}", directory.display());
    let forward = [
        "port-forward",
        "--namespace",
        SYSTEM,
        "weir-router-0",
        "--port",
        &port,
    ];
    let forward = cluster.launch_weir(forward).env("PATH", path);
    let forward = forward.env("XDG_RUNTIME_DIR", kept.path()).start();
    forward.wait_for_line(LONG, |line| line.starts_with("Forwarding from 127.0.0.1:"));
    let router = format!("--router=http://127.0.0.1:{port}");
    let dead_letters = |arguments: &[&str]| {
        let arguments = ["dead-letters"].iter().chain(arguments).copied();
        let launch = cluster.launch_weir(arguments.chain([router.as_str()]));
        launch.env("XDG_RUNTIME_DIR", kept.path()).run()
    };
    let letter: Value = eventually(LONG, || {
        let listed = dead_letters(&["list", "letters/default", "--output=json"])?;
        serde_json::from_str(&listed).map_err(|error| format!("{error}: {listed:?}"))
    });
    assert_eq!(letter["eventId"], "1");
    let id = letter["id"].to_string();
    let shown = dead_letters(&["show", "letters/default", &id]).unwrap_or_else(|error| panic!("{error}"));
    assert!(shown.contains("com.example.test"), "{shown}");

    kubectl.run(["scale", "deployment/consumer", "--replicas=1"]);
    kubectl.wait_rolled_out("deployment/consumer");
    // kube-proxy may learn of the pod a moment later; the letter then comes back.
    eventually(LONG, || {
        let redriven = dead_letters(&["redrive", "letters/default", "--all"])?;
        let delivered = delivered(&kubectl, "consumer")?;
        if delivered.contains_key("1") {
            Ok(())
        } else {
            Err(redriven)
        }
    });
    eventually(LONG, || match dead_letters(&["list"])? {
        listed if listed == "no dead letters" => Ok(()),
        listed => Err(listed),
    });

    let none = Scratch::new();
    let list = cluster.launch_weir(["dead-letters", "list", &router]);
    let refused = list.env("XDG_RUNTIME_DIR", none.path()).run();
    let refused = refused.expect_err("whoever has no token is let in");
    assert!(
        refused.contains("401 Unauthorized") && refused.contains("weir port-forward"),
        "{refused}"
    );

    // Only through the API server, whose rights say who may.
    let Some(node) = cluster.own("a pod's address is tried from its node") else {
        return;
    };
    let pod = cluster.kubectl(SYSTEM).get("pod/weir-router-0");
    let direct = format!(
        "--router=http://{}:9090",
        pod["status"]["podIP"].as_str().unwrap_or_default()
    );
    let refused = node
        .run(weir(), ["dead-letters", "list", &direct])
        .expect_err("another machine is let in");
    assert!(refused.contains("port-forward"), "{refused}");
}

#[test]
fn accounts_may_do_what_they_need_and_no_more() {
    let Some(Installation { cluster }) = Installation::shared() else {
        return;
    };
    let may = |account: &str, verb: &str, resource: &str| {
        let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let subresource = format!("--subresource={subresource}");
        let arguments = [
            "auth",
            "can-i",
            verb,
            resource,
            &subresource,
            &user,
            "--all-namespaces",
        ];
        cluster.kubectl(SYSTEM).try_run(arguments).is_ok()
    };
    for (account, verb, resource, allowed) in [
        ("weir-controller", "list", "triggers.weir.dev", true),
        ("weir-controller", "watch", "services", true),
        ("weir-controller", "watch", "serviceaccounts", true),
        ("weir-controller", "create", "serviceaccounts/token", false),
        ("weir-controller", "patch", "triggers.weir.dev/status", true),
        ("weir-controller", "patch", "triggers.weir.dev", false),
        ("weir-controller", "delete", "sinks.weir.dev", false),
        ("weir-controller", "list", "secrets", false),
        ("weir-controller", "get", "configmaps", false),
        ("weir-controller", "create", "pods", false),
        (
            "weir-controller",
            "create",
            "tokenreviews.authentication.k8s.io",
            true,
        ),
        (
            "weir-controller",
            "create",
            "subjectaccessreviews.authorization.k8s.io",
            true,
        ),
        ("weir-controller", "create", "secrets", false),
        ("weir-router", "list", "triggers.weir.dev", false),
        ("weir-router", "get", "secrets", false),
        ("weir-router", "list", "services", false),
        ("weir-router", "list", "serviceaccounts", false),
        (
            "weir-router",
            "create",
            "tokenreviews.authentication.k8s.io",
            false,
        ),
        ("weir-router", "create", "events.events.k8s.io", false),
    ] {
        assert_eq!(
            may(account, verb, resource),
            allowed,
            "{account} {verb} {resource}"
        );
    }
}

#[test]
fn what_people_made_outlives_the_release() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let kubectl = installation.consumer("outlives", 1, "{}");
    kubectl.wait_ready("trigger/all");
    let cluster = &installation.cluster;
    cluster
        .helm(["uninstall", "weir", "--namespace", SYSTEM, "--wait"])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kubectl.get("trigger/all")["metadata"]["name"], "all");
    let claim = cluster
        .kubectl(SYSTEM)
        .get("persistentvolumeclaim/data-weir-router-0");
    assert_eq!(claim["status"]["phase"], "Bound");

    // Plain manifests of the same are what this API server takes.
    let manifests = project("deploy/weir.yaml");
    cluster
        .kubectl(SYSTEM)
        .run(["apply", "--dry-run=server", "--filename", &manifests]);

    install(cluster);
    kubectl.run(["wait", "--for=condition=Ready", "trigger/all", "--timeout=60s"]);
    let broker = cluster.broker("outlives");
    eventually(PATIENCE, || cluster.send(&broker, "after"));
    await_delivered(&kubectl, "consumer", &["after"]);
}
