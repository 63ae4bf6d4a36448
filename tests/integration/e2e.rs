//! Weir as people meet it: installed with helm on a real cluster, with the rights that it needs and no more, events
//! posted by pods to the broker's URL and delivered to Services.
//!
//! `make e2e` runs these; where it did not ask for a node they are skipped, and say so.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{Kubectl, Node, PATIENCE, eventually};

/// How long pods may take to start and end, and events that waited for them to arrive.
const LONG: Duration = Duration::from_secs(120);

const SYSTEM: &str = "weir-system";

/// A volume for the router, which nobody else would provide, in a class that is the default.
const VOLUME: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: router}
spec:
  storageClassName: local
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  local: {path: PATH}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [NODE]}]
"#;

/// A consumer that prints what it gets, its Service, and a Trigger that gives it everything.
const CONSUMER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: consumer}
spec:
  replicas: REPLICAS
  selector: {matchLabels: {app: consumer}}
  template:
    metadata: {labels: {app: consumer}}
    spec:
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: display
        image: IMAGE
        args: [display, --listen=0.0.0.0:8080, --output=json]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: consumer}
spec:
  selector: {app: consumer}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: all}
spec:
  sink: {service: {name: consumer}}
  delivery: DELIVERY
"#;

/// A cluster with Weir and the example shop on it.
struct Installation {
    node: Node,
}

impl Installation {
    /// The one that the tests share; `None`, said, where there is no node to be had.
    fn shared() -> Option<&'static Self> {
        // Tried once: when it fails for one test it does for all.
        static SHARED: LazyLock<Option<Installation>> = LazyLock::new(|| {
            if Node::assets().is_none() {
                say("skipped: the end-to-end tests need a node; make e2e starts one");
                return None;
            }
            Some(Installation::make())
        });
        SHARED.as_ref()
    }

    #[track_caller]
    fn make() -> Self {
        let begin = Instant::now();
        let node = Node::start();
        node.import(&image());
        say(&format!("a cluster of one node: {:.1?}", begin.elapsed()));
        let admin = node.kubectl("default");
        admin.apply(&restricted(SYSTEM));
        let volume = node.volume("router");
        admin.apply(
            &VOLUME
                .replace("PATH", &volume.display().to_string())
                .replace("NODE", node.name()),
        );

        let begin = Instant::now();
        install(&node);
        say(&format!(
            "helm install, until everything is ready: {:.1?}",
            begin.elapsed()
        ));
        let shop = node.kubectl("shop");
        shop.run(["apply", "--filename", &project("examples/shop")]);
        eventually(LONG, || match delivered(&shop, "audit")?.is_empty() {
            false => Ok(()),
            true => Err("no event has arrived".to_owned()),
        });
        say(&format!(
            "from helm install to the first event through a Service: {:.1?}",
            begin.elapsed()
        ));
        Self { node }
    }

    /// A new namespace with a consumer in it.
    #[track_caller]
    fn consumer(&self, namespace: &str, replicas: u32, delivery: &str) -> Kubectl {
        let kubectl = self.node.kubectl(namespace);
        kubectl.apply(&restricted(namespace));
        kubectl.apply(
            &CONSUMER
                .replace("REPLICAS", &replicas.to_string())
                .replace("IMAGE", &reference())
                .replace("DELIVERY", delivery),
        );
        kubectl.wait_ready("trigger/all");
        kubectl
    }

    /// The broker's URL, as the node reaches it: by the Service's address.
    #[track_caller]
    fn broker(&self, namespace: &str) -> String {
        let service = self.node.kubectl(SYSTEM).get("service/weir");
        let address = service["spec"]["clusterIP"]
            .as_str()
            .expect("a Service has an address");
        format!("http://{address}/{namespace}/default")
    }

    /// Posts an event by `weir send`, from the node; an error says why it was not taken.
    fn send(&self, broker: &str, id: &str) -> Result<(), String> {
        let arguments = [
            "send",
            broker,
            "--type=com.example.test",
            "--source=/test",
            "--id",
            id,
        ];
        self.node.run(weir(), arguments).map(drop)
    }
}

/// Installs the chart with its default values, and waits until everything is ready.
#[track_caller]
fn install(node: &Node) {
    let chart = project("charts/weir");
    let arguments = [
        "install",
        "weir",
        &chart,
        "--namespace",
        SYSTEM,
        "--wait",
        "--timeout=3m",
    ];
    if let Err(error) = node.helm(arguments) {
        let system = node.kubectl(SYSTEM);
        let state = |arguments: &[&str]| system.try_run(arguments).unwrap_or_else(|error| error);
        panic!(
            "{error}\n{}\n{}",
            state(&["describe", "pods"]),
            state(&["logs", "--selector=app.kubernetes.io/name=weir", "--prefix"])
        );
    }
}

fn say(line: &str) {
    eprintln!("e2e: {line}");
}

fn project(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The image under test, in an OCI archive.
fn image() -> PathBuf {
    let image = env::var_os("WEIR_IMAGE").map(PathBuf::from);
    image.expect("WEIR_IMAGE says where the image is that make image makes: run make e2e")
}

/// The image's name in the chart and in the example.
fn reference() -> String {
    format!("weir:{}", env!("CARGO_PKG_VERSION"))
}

/// The binary that was built with the tests; on the node it is at the same place.
fn weir() -> &'static str {
    env!("CARGO_BIN_EXE_weir")
}

/// A namespace whose pods have to pass the restricted Pod Security Standard.
fn restricted(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  \
         labels: {{pod-security.kubernetes.io/enforce: restricted}}\n"
    )
}

/// How often each event was delivered to the consumers of a Deployment, by the event's ID, as their logs have it.
fn delivered(kubectl: &Kubectl, app: &str) -> Result<BTreeMap<String, usize>, String> {
    let selector = format!("--selector=app={app}");
    let log = kubectl.try_run(["logs", &selector, "--tail=-1"])?;
    let mut delivered = BTreeMap::new();
    for line in log.lines().filter(|line| line.starts_with('{')) {
        let event: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
        let id = event["id"].as_str().ok_or_else(|| format!("no event: {line}"))?;
        *delivered.entry(id.to_owned()).or_default() += 1;
    }
    Ok(delivered)
}

/// Waits until the consumers of a Deployment have had exactly these events.
#[track_caller]
fn await_delivered(kubectl: &Kubectl, app: &str, wanted: &[&str]) {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    eventually(LONG, || {
        let delivered = delivered(kubectl, app)?;
        let got: BTreeSet<&str> = delivered.keys().map(String::as_str).collect();
        if got == wanted {
            Ok(())
        } else {
            Err(format!("{app} has {got:?}, not {wanted:?}"))
        }
    });
}

#[test]
fn events_reach_the_services_that_asked_for_them() {
    let Some(Installation { node }) = Installation::shared() else {
        return;
    };
    let shop = node.kubectl("shop");
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

    node.helm(["test", "weir", "--namespace", SYSTEM])
        .unwrap_or_else(|error| panic!("{error}"));
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
    let broker = installation.broker("letters");
    eventually(PATIENCE, || installation.send(&broker, "1"));

    let forward = [
        "port-forward",
        "--namespace",
        SYSTEM,
        "pod/weir-router-0",
        ":9090",
    ];
    let forward = installation
        .node
        .launch(installation.node.kubectl_binary(), forward)
        .start();
    let line = forward.wait_for_line(LONG, |line| line.starts_with("Forwarding from 127.0.0.1:"));
    let port = line.split([':', ' ']).nth(3).expect("the line names the port");
    let router = format!("--router=http://127.0.0.1:{port}");
    let dead_letters = |arguments: &[&str]| {
        let arguments = ["dead-letters"].iter().chain(arguments).copied();
        installation.node.run(weir(), arguments.chain([router.as_str()]))
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
    kubectl.run(["rollout", "status", "deployment/consumer", "--timeout=120s"]);
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

    // Only through the API server, whose rights say who may.
    let pod = installation.node.kubectl(SYSTEM).get("pod/weir-router-0");
    let direct = format!(
        "--router=http://{}:9090",
        pod["status"]["podIP"].as_str().unwrap_or_default()
    );
    let refused = installation
        .node
        .run(weir(), ["dead-letters", "list", &direct])
        .expect_err("another machine is let in");
    assert!(refused.contains("port-forward"), "{refused}");
}

#[test]
fn a_router_may_be_deleted_and_upgraded_under_load() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let kubectl = installation.consumer("load", 2, "{}");
    kubectl.wait_ready("trigger/all");
    let broker = installation.broker("load");
    let acknowledged = Mutex::new(BTreeSet::new());
    let refused = Mutex::new(0);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for producer in 0..2 {
            let (acknowledged, refused, ended, broker) = (&acknowledged, &refused, &ended, &broker);
            scope.spawn(move || {
                for number in 0.. {
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                    let id = format!("{producer}-{number}");
                    match installation.send(broker, &id) {
                        Ok(()) => drop(lock(acknowledged).insert(id)),
                        Err(_) => *lock(refused) += 1,
                    }
                }
            });
        }
        let _ends = EndOnDrop(&ended);
        let system = installation.node.kubectl(SYSTEM);
        let delete = |how: &[&str]| system.try_run(["delete", "pod", "weir-router-0"].iter().chain(how));
        let upgrade = || {
            let chart = project("charts/weir");
            let pods =
                ["controller", "router"].map(|pod| format!("--set-string={pod}.podAnnotations.upgraded=yes"));
            let arguments = [
                "upgrade",
                "weir",
                &chart,
                "--namespace",
                SYSTEM,
                "--wait",
                &pods[0],
                &pods[1],
            ];
            installation.node.helm(arguments)
        };
        let disruptions: [&dyn Fn() -> Result<String, String>; 3] = [
            &|| delete(&[]),
            &|| delete(&["--grace-period=0", "--force"]),
            &upgrade,
        ];
        for disrupt in disruptions {
            await_more(&acknowledged);
            disrupt().unwrap_or_else(|error| panic!("{error}"));
            await_more(&acknowledged);
        }
    });
    let acknowledged = lock(&acknowledged);
    let mut repeated = 0;
    eventually(LONG, || {
        let delivered = delivered(&kubectl, "consumer")?;
        let lost = acknowledged
            .iter()
            .filter(|id| !delivered.contains_key(*id))
            .count();
        repeated = delivered.values().filter(|times| **times > 1).count();
        if lost == 0 {
            Ok(())
        } else {
            Err(format!(
                "of {} acknowledged events {lost} have not arrived",
                acknowledged.len()
            ))
        }
    });
    say(&format!(
        "a router deleted twice and upgraded under load: {} acknowledged, 0 lost, {repeated} repeated, {} attempts refused meanwhile",
        acknowledged.len(),
        lock(&refused)
    ));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the producers to end, also when the test fails while they work.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until some more events were acknowledged.
#[track_caller]
fn await_more(acknowledged: &Mutex<BTreeSet<String>>) {
    let wanted = lock(acknowledged).len() + 20;
    eventually(LONG, || match lock(acknowledged).len() {
        enough if enough >= wanted => Ok(()),
        so_far => Err(format!("{so_far} events were acknowledged, not {wanted}")),
    });
}

#[test]
fn events_flow_while_controller_and_api_server_are_away() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let kubectl = installation.consumer("outage", 1, "{}");
    kubectl.wait_ready("trigger/all");
    kubectl.run(["rollout", "status", "deployment/consumer", "--timeout=120s"]);
    let broker = installation.broker("outage");
    let node = &installation.node;
    let system = node.kubectl(SYSTEM);
    system.run(["scale", "deployment/weir-controller", "--replicas=0"]);
    system.run([
        "wait",
        "--for=delete",
        "pod",
        "--selector=app.kubernetes.io/component=controller",
    ]);
    node.stop_api_server();
    eventually(PATIENCE, || installation.send(&broker, "meanwhile"));
    // Nobody can be asked for the consumer's log: it is in a file of the node.
    let log = ["--recursive", "--quiet", r#""id":"meanwhile""#, "/var/log/pods"];
    eventually(LONG, || node.run("grep", log));

    node.start_api_server();
    system.run(["scale", "deployment/weir-controller", "--replicas=1"]);
    system.run([
        "rollout",
        "status",
        "deployment/weir-controller",
        "--timeout=120s",
    ]);
    // What is new takes effect again.
    kubectl.run([
        "patch",
        "trigger/all",
        "--type=merge",
        "--patch",
        r#"{"spec": {"filters": [{"exact": {"type": "other"}}]}}"#,
    ]);
    kubectl.run([
        "wait",
        "--for=jsonpath={.status.observedGeneration}=2",
        "trigger/all",
        "--timeout=60s",
    ]);
    kubectl.run(["wait", "--for=condition=Ready", "trigger/all", "--timeout=60s"]);
}

#[test]
fn accounts_may_do_what_they_need_and_no_more() {
    let Some(Installation { node }) = Installation::shared() else {
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
        node.kubectl(SYSTEM).try_run(arguments).is_ok()
    };
    for (account, verb, resource, allowed) in [
        ("weir-controller", "list", "triggers.weir.dev", true),
        ("weir-controller", "watch", "services", true),
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
        ("weir-controller", "create", "secrets", false),
        ("weir-router", "list", "triggers.weir.dev", false),
        ("weir-router", "get", "secrets", false),
        ("weir-router", "list", "services", false),
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
    let node = &installation.node;
    node.helm(["uninstall", "weir", "--namespace", SYSTEM, "--wait"])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(kubectl.get("trigger/all")["metadata"]["name"], "all");
    let claim = node
        .kubectl(SYSTEM)
        .get("persistentvolumeclaim/data-weir-router-0");
    assert_eq!(claim["status"]["phase"], "Bound");

    // Plain manifests of the same are what this API server takes.
    let manifests = project("deploy/weir.yaml");
    node.kubectl(SYSTEM)
        .run(["apply", "--dry-run=server", "--filename", &manifests]);

    install(node);
    kubectl.run(["wait", "--for=condition=Ready", "trigger/all", "--timeout=60s"]);
    let broker = installation.broker("outlives");
    eventually(PATIENCE, || installation.send(&broker, "after"));
    await_delivered(&kubectl, "consumer", &["after"]);
}
