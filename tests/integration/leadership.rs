//! Several controllers, of which one leads; an account that may see a part of the cluster only; and what the controller
//! tells workloads.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use crate::{
    cluster::post_binary,
    controller::{events, install_definitions},
    support::{
        Authority, Consumer, ControlPlane, Kubectl, PATIENCE, Process, ReservedPort, Scratch, eventually, get,
    },
};

/// A Lease that its holder does not give up runs out after fifteen seconds, and is looked at every two.
const FAILOVER: Duration = Duration::from_secs(60);

/// What the chart gives the controller in each namespace that it looks at.
const RULES: &str = r#"
- {apiGroups: [weir.dev], resources: [brokers, sources, triggers, sinks], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [brokers/status, sources/status, triggers/status, sinks/status], verbs: [patch]}
- {apiGroups: [""], resources: [services, serviceaccounts], verbs: [list, watch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [weir-broker], verbs: [list, watch, create, patch, delete]}
"#;

const LEASE_RULES: &str = r#"
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [weir-controller], verbs: [get, update]}
"#;

fn binding(kind: &str, namespace: Option<&str>, name: &str, rules: &str) -> String {
    let place = namespace.map_or_else(String::new, |namespace| format!(", namespace: {namespace}"));
    format!(
        "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}{place}}}\nrules:{rules}\
         ---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata: {{name: {name}{place}}}\n\
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: {name}}}\n\
         subjects: [{{kind: ServiceAccount, name: weir-controller, namespace: default}}]\n"
    )
}

/// The account of a controller that looks at all namespaces.
fn account(plane: &ControlPlane) -> Kubectl {
    let account = plane.service_account("default", "weir-controller");
    let namespaces =
        format!("{RULES}- {{apiGroups: [\"\"], resources: [namespaces], verbs: [list, watch]}}\n");
    plane
        .admin()
        .apply(&binding("ClusterRole", None, "weir", &namespaces));
    plane
        .admin()
        .apply(&binding("Role", Some("default"), "weir", LEASE_RULES));
    account
}

fn controller(account: &Kubectl, listen: SocketAddr, more: &[&str]) -> Process {
    let listen = listen.to_string();
    let mut arguments = vec!["controller", "--listen", &listen, "--admin", "127.0.0.1:0"];
    arguments.extend(["--broker-base-url", "http://weir.weir-system.svc"]);
    arguments.extend(more);
    Process::weir(arguments)
        .env("KUBECONFIG", account.kubeconfig())
        .start()
}

pub(crate) fn router(name: &str, controller: SocketAddr, data: &Scratch) -> Process {
    let controller = format!("http://{controller}");
    let arguments = [
        "router",
        "--name",
        name,
        "--listen=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        "--allow-uri-addresses=127.0.0.0/8", // consumers are there
        "--sources-router=one",
    ];
    let data = [
        "--controller",
        &controller,
        "--data",
        data.path().to_str().unwrap(),
    ];
    Process::weir(arguments.into_iter().chain(data)).start()
}

fn readiness(controller: &Process) -> String {
    get(&format!("http://{}/readyz", controller.address("admin"))).text()
}

fn await_readiness(controller: &Process, wanted: &str) {
    eventually(FAILOVER, || match readiness(controller) {
        readiness if readiness.contains(wanted) => Ok(()),
        readiness => Err(readiness),
    });
}

fn is_leader(controller: &Process) -> bool {
    let metrics = get(&format!("http://{}/metrics", controller.address("admin"))).text();
    metrics.contains("\nweir_controller_leader 1\n")
}

const LEADS: &str = "all resources are known";
const WAITS: &str = "waiting to lead";

#[test]
fn one_of_several_controllers_leads_and_another_takes_over() {
    let mut plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let listen = ReservedPort::new();
    let start = || controller(&account, listen.address(), &["--lease", "weir-controller"]);
    let mut first = start();
    await_readiness(&first, LEADS);
    let consumer = Consumer::start();
    let trigger = |r#type: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: orders}}\n\
             spec: {{filters: [{{exact: {{type: {type}}}}}], sink: {{uri: '{}'}}}}\n",
            consumer.url()
        )
    };
    let data = Scratch::new();
    let router = router("r", listen.address(), &data);
    admin.apply(&trigger("one"));
    admin.wait_ready("trigger/orders");

    let mut second = start();
    await_readiness(&second, WAITS);
    assert!(is_leader(&first) && !is_leader(&second));

    first.kill();
    await_readiness(&second, LEADS);
    admin.apply(&trigger("two"));
    let generation = "--for=jsonpath={.status.observedGeneration}=2";
    admin.run(["wait", generation, "trigger/orders", "--timeout=60s"]);
    admin.wait_ready("trigger/orders");
    let broker = format!("http://{}/default/default", router.address("ingress"));
    post_binary(&broker, "1", "two", "{}");
    eventually(PATIENCE, || match consumer.received().len() {
        1 => Ok(()),
        count => Err(format!("{count} events arrived")),
    });

    let mut third = start();
    await_readiness(&third, WAITS);
    assert!(second.terminate().success());
    let lease = || admin.get("lease/weir-controller")["spec"].clone();
    await_readiness(&third, LEADS);
    assert_eq!(lease()["leaseTransitions"], 2, "{}", lease());

    // Nobody can lead without the API server; when it is back, the same process does again.
    plane.stop_api_server();
    await_readiness(&third, WAITS);
    plane.start_api_server();
    await_readiness(&third, LEADS);
    assert!(third.is_running());
    assert!(third.terminate().success());
    assert_eq!(lease()["holderIdentity"], Value::Null, "it was given up");
}

#[test]
fn a_new_leader_waits_for_the_routers_that_the_one_before_it_knew() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let listen = ReservedPort::new();
    let start = || controller(&account, listen.address(), &["--lease", "weir-controller"]);
    let mut first = start();
    await_readiness(&first, LEADS);
    let second = start();
    await_readiness(&second, WAITS);
    let (data_of_one, data_of_other) = (Scratch::new(), Scratch::new());
    let _one = router("one", listen.address(), &data_of_one);
    let other = router("other", listen.address(), &data_of_other);
    eventually(PATIENCE, || {
        let told = &admin.get("lease/weir-controller")["metadata"]["annotations"]["weir.dev/routers"];
        if told == "one,other" {
            Ok(())
        } else {
            Err(told.to_string())
        }
    });
    let trigger = |name: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}}}\n\
             spec: {{sink: {{uri: 'http://127.0.0.1:9/'}}}}\n"
        )
    };
    let ready = |name: &str| {
        let trigger = admin.get(&format!("trigger/{name}"));
        let conditions = trigger["status"]["conditions"].as_array();
        let ready = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == "Ready"));
        ready.cloned().unwrap_or_default()
    };
    admin.apply(&trigger("before"));
    admin.wait_ready("trigger/before");
    let before = ready("before");

    other.signal("STOP");
    first.kill();
    await_readiness(&second, LEADS);
    admin.apply(&trigger("after"));
    eventually(PATIENCE, || {
        let ready = ready("after");
        let told = ready["message"].as_str().unwrap_or_default();
        if told.contains("not applied yet by other:") {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    });
    assert_eq!(ready("before"), before, "nothing has become of it");
    other.signal("CONT");
    admin.wait_ready("trigger/after");
    assert_eq!(ready("before"), before, "nothing has become of it");
}

#[test]
fn an_account_that_may_see_some_namespaces_serves_these() {
    let plane = ControlPlane::start();
    let account = plane.service_account("default", "weir-controller");
    let admin = plane.admin();
    install_definitions(&admin);
    for namespace in ["shop", "bank", "other"] {
        admin.run(["create", "namespace", namespace]);
    }
    // One of them is not there, and neither is what would let the account list in it.
    let names = "\n- {apiGroups: [\"\"], resources: [namespaces], resourceNames: [shop, bank, gone], verbs: [list, watch]}\n";
    admin.apply(&binding("ClusterRole", None, "weir", names));
    for namespace in ["shop", "bank"] {
        let binding = binding("Role", Some(namespace), "weir", RULES);
        admin.in_namespace(namespace).apply(&binding);
        let account = account.in_namespace(namespace);
        for resource in ["triggers.weir.dev", &format!("namespaces/{namespace}")] {
            let may = || account.try_run(["auth", "can-i", "list", resource]);
            eventually(PATIENCE, may);
        }
    }
    admin.run([
        "label",
        "namespace/shop",
        "namespace/other",
        "weir.dev/inject=enabled",
    ]);

    // Whoever may not use the Lease is not ready, or a rollout would remove those that may.
    let unable = controller(
        &account,
        "127.0.0.1:0".parse().unwrap(),
        &["--lease=weir-controller"],
    );
    unable.wait_for_line(PATIENCE, |line| line.contains("cannot read or write the Lease"));
    assert!(readiness(&unable).contains("the Lease could not be used yet"));

    let listen = ReservedPort::new();
    let controller = controller(&account, listen.address(), &["--watch-namespaces=shop,bank,gone"]);
    await_readiness(&controller, LEADS);
    let data = Scratch::new();
    let router = router("r", listen.address(), &data);
    let consumer = Consumer::start();
    let trigger = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: all}}\nspec: {{sink: {{uri: '{}'}}}}\n",
        consumer.url()
    );
    for namespace in ["shop", "bank", "other"] {
        admin.in_namespace(namespace).apply(&trigger);
    }
    admin.in_namespace("shop").wait_ready("trigger/all");
    admin.in_namespace("bank").wait_ready("trigger/all");
    let broker = |namespace: &str| format!("http://{}/{namespace}/default", router.address("ingress"));
    post_binary(&broker("shop"), "1", "a", "{}");
    post_binary(&broker("bank"), "2", "a", "{}");
    eventually(PATIENCE, || match consumer.received().len() {
        2 => Ok(()),
        count => Err(format!("{count} events arrived")),
    });
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "3"),
        ("ce-source", "/s"),
        ("ce-type", "a"),
    ];
    assert_eq!(crate::support::post(&broker("other"), &headers, "").status, 404);
    let lines = controller.lines();
    let broken: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("the watch failed"))
        .collect();
    assert!(
        !broken.is_empty() && broken.iter().all(|line| line.contains("gone")),
        "{broken:#?}"
    );
    eventually(PATIENCE, || {
        admin
            .in_namespace("shop")
            .try_run(["get", "configmap/weir-broker"])
    });
    let other = admin
        .in_namespace("other")
        .try_run(["get", "configmap/weir-broker"]);
    assert!(other.unwrap_err().contains("NotFound"));
}

#[test]
fn workloads_are_told_the_authority_of_an_https_broker() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let files = Scratch::new();
    let [first, second] = ["first", "second"].map(Authority::new);
    let file = files.write("ca.crt", first.pem());
    let flag = format!("--broker-ca={}", file.display());
    let controller = controller(&account, "127.0.0.1:0".parse().unwrap(), &[&flag]);
    await_readiness(&controller, LEADS);
    admin.run(["create", "namespace", "shop"]);
    admin.run(["label", "namespace/shop", "weir.dev/inject=enabled"]);
    let shop = admin.in_namespace("shop");
    let await_authority = |wanted: Option<&str>| {
        eventually(PATIENCE * 2, || {
            let text = shop.try_run(["get", "configmap/weir-broker", "--output=jsonpath={.data}"])?;
            let data: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            let told = ["K_CA_CERTS", "WEIR_BROKER_CA_CERTS"].map(|name| data[name].as_str());
            if told == [wanted; 2] && data["K_SINK"].is_string() {
                Ok(())
            } else {
                Err(text)
            }
        });
    };
    await_authority(Some(first.pem()));
    files.write("ca.crt", second.pem());
    await_authority(Some(second.pem()));
    // What cannot be authorities is told, and changes nothing.
    files.write("ca.crt", second.pair().key);
    controller.wait_for_line(PATIENCE * 2, |line| {
        line.contains("--broker-ca") && line.contains("private key")
    });
    await_authority(Some(second.pem()));
    // A Secret that is deleted, to be issued again, takes no authority back.
    std::fs::remove_file(&file).unwrap();
    controller.wait_for_line(PATIENCE * 2, |line| {
        line.contains("--broker-ca") && line.contains("No such file")
    });
    await_authority(Some(second.pem()));
}

#[test]
fn workloads_of_a_labelled_namespace_find_their_broker() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let controller = controller(&account, "127.0.0.1:0".parse().unwrap(), &[]);
    await_readiness(&controller, LEADS);
    let namespace = |name: &str| {
        admin.run(["create", "namespace", name]);
        admin.in_namespace(name)
    };
    let label = |name: &str, label: &str| admin.run(["label", &format!("namespace/{name}"), label]);
    let (shop, bank, plain) = (namespace("shop"), namespace("bank"), namespace("plain"));
    bank.apply(
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: weir-broker}, data: {K_SINK: 'http://mine'}}",
    );
    label("shop", "weir.dev/inject=enabled");
    label("bank", "weir.dev/inject=enabled");

    let await_data = |kubectl: &Kubectl, wanted: &str| {
        eventually(PATIENCE, || {
            let text = kubectl.try_run(["get", "configmap/weir-broker", "--output=jsonpath={.data}"])?;
            let data: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
            match (data["K_SINK"].as_str(), data["WEIR_BROKER_URL"].as_str()) {
                (Some(sink), Some(broker)) if sink == wanted && broker == wanted => Ok(()),
                _ => Err(text),
            }
        });
    };
    let url = "http://weir.weir-system.svc/shop/default";
    await_data(&shop, url);
    // What somebody changes or removes comes back.
    shop.run([
        "patch",
        "configmap/weir-broker",
        "--type=merge",
        "--patch",
        r#"{"data": {"K_SINK": "http://x"}}"#,
    ]);
    await_data(&shop, url);
    shop.run(["delete", "configmap/weir-broker"]);
    await_data(&shop, url);
    // What somebody else made stays, and that is said.
    eventually(PATIENCE, || match events(&bank, "weir-broker") {
        told if told == [("NotManaged".to_owned(), 1)] => Ok(()),
        told => Err(format!("{told:?}")),
    });
    assert_eq!(bank.get("configmap/weir-broker")["data"]["K_SINK"], "http://mine");
    assert!(plain.try_run(["get", "configmap/weir-broker"]).is_err());

    label("shop", "weir.dev/inject-");
    eventually(PATIENCE, || {
        match shop.try_run(["get", "configmap/weir-broker"]) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let lines = controller.lines();
    let told = lines
        .iter()
        .filter(|line| line.contains("published the broker's address"));
    assert_eq!(told.count(), 3, "each change is told once: {lines:#?}");
}
