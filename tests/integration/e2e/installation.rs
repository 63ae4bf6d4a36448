//! A cluster with Weir and the example shop on it, and what the tests do with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::cluster::{Cluster, Given};
use crate::{
    faults::Producers,
    support::{Kubectl, Node, Response, eventually},
};

/// How long pods may take to start and end, and events that waited for them to arrive.
pub(super) const LONG: Duration = Duration::from_secs(120);

pub(super) const SYSTEM: &str = "weir-system";

/// A volume for the router, which nobody else would provide, in a class that is the default.
pub(super) const VOLUME: &str = r#"
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
pub(super) const CONSUMER: &str = r#"
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
        lifecycle: {preStop: {sleep: {seconds: 3}}} # until nobody is led to it any more
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
pub(super) struct Installation {
    pub(super) cluster: Cluster,
}

impl Installation {
    /// The one that the tests share; `None`, said, where there is no cluster to be had.
    pub(super) fn shared() -> Option<&'static Self> {
        // Tried once: when it fails for one test it does for all.
        static SHARED: LazyLock<Option<Installation>> = LazyLock::new(|| {
            if let Some(kubeconfig) = given() {
                return Some(Installation::make(Cluster::Given(Given::new(kubeconfig))));
            }
            if Node::assets().is_none() {
                say("skipped: the end-to-end tests need a node; make e2e starts one");
                return None;
            }
            Some(Installation::make(Cluster::Node(Box::new(start_node()))))
        });
        SHARED.as_ref()
    }

    #[track_caller]
    fn make(cluster: Cluster) -> Self {
        let begin = Instant::now();
        cluster.kubectl("default").apply(&restricted(SYSTEM));
        install(&cluster);
        say(&format!(
            "helm install, until everything is ready: {:.1?}",
            begin.elapsed()
        ));
        let shop = cluster.kubectl("shop");
        shop.apply(&example_shop());
        eventually(LONG, || match delivered(&shop, "audit")?.is_empty() {
            false => Ok(()),
            true => {
                let state = shop.try_run(["get", "pods,weir,configmaps,events"])?;
                Err(format!("no event has arrived\n{state}"))
            }
        });
        say(&format!(
            "from helm install to the first event through a Service: {:.1?}",
            begin.elapsed()
        ));
        Self { cluster }
    }

    /// A new namespace with a consumer in it.
    #[track_caller]
    pub(super) fn consumer(&self, namespace: &str, replicas: u32, delivery: &str) -> Kubectl {
        let kubectl = self.cluster.kubectl(namespace);
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

    /// Posts events until told to stop, by the harness that counts what is lost in the fault suite.
    pub(super) fn producers(&'static self, namespace: &str) -> Producers {
        self.producers_to(vec![self.cluster.broker(namespace)])
    }

    /// The same, to these brokers in turn.
    pub(super) fn producers_to(&'static self, brokers: Vec<String>) -> Producers {
        let turn = AtomicUsize::new(0);
        Producers::by(2, move |_, id| {
            let broker = &brokers[turn.fetch_add(1, Ordering::Relaxed) % brokers.len()];
            self.cluster.send(broker, id)?;
            Ok(Response {
                status: StatusCode::ACCEPTED,
                headers: HeaderMap::new(),
                body: Bytes::new(),
            })
        })
    }

    /// The pod of the controller that leads, as the Lease has it.
    #[track_caller]
    pub(super) fn leader(&self) -> String {
        let lease = self.cluster.kubectl(SYSTEM).get("lease/weir-controller");
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        holder.split('_').next().unwrap_or_default().to_owned()
    }
}

/// A node with the image on it, and a volume for a router.
#[track_caller]
fn start_node() -> Node {
    let begin = Instant::now();
    let node = Node::start();
    node.import(&image());
    let volume = node.volume("router").display().to_string();
    let volume = VOLUME.replace("PATH", &volume).replace("NODE", node.name());
    node.kubectl("default").apply(&volume);
    say(&format!("a cluster of one node: {:.1?}", begin.elapsed()));
    node
}

/// Installs the chart with its default values, and waits until everything is ready.
#[track_caller]
pub(super) fn install(cluster: &Cluster) {
    install_with(cluster, &[]);
}

/// Installs the chart with further arguments for helm, and waits until everything is ready.
#[track_caller]
pub(super) fn install_with(cluster: &Cluster, arguments: &[&str]) {
    let chart = project("charts/weir");
    let install = [
        "install",
        "weir",
        &chart,
        "--namespace",
        SYSTEM,
        "--wait",
        "--timeout=3m",
    ];
    let image = image_values();
    let values = image.iter().map(String::as_str).chain(arguments.iter().copied());
    if let Err(error) = cluster.helm(install.into_iter().chain(values)) {
        let system = cluster.kubectl(SYSTEM);
        let state = |arguments: &[&str]| system.try_run(arguments).unwrap_or_else(|error| error);
        panic!(
            "{error}\n{}\n{}",
            state(&["describe", "pods"]),
            state(&["logs", "--selector=app.kubernetes.io/name=weir", "--prefix"])
        );
    }
}

/// The kubeconfig of a cluster that is there already, if the tests are to run on that.
fn given() -> Option<PathBuf> {
    env::var_os("WEIR_IMAGE_REFERENCE")?;
    let kubeconfig = env::var_os("KUBECONFIG").map(PathBuf::from);
    Some(kubeconfig.expect("WEIR_IMAGE_REFERENCE names an image, and KUBECONFIG no cluster that has it"))
}

/// What the chart is told of the image.
pub(super) fn image_values() -> Vec<String> {
    let reference = reference();
    let (repository, tag) = reference.rsplit_once(':').expect("an image's name has a tag");
    vec![
        format!("--set=image.repository={repository}"),
        format!("--set=image.tag={tag}"),
    ]
}

/// The manifests of the example, with the image under test.
fn example_shop() -> String {
    let file = |name: &str| fs::read_to_string(project(&format!("examples/shop/{name}.yaml")));
    let files = ["consumers", "producer", "triggers"].map(|name| file(name).expect("the example is there"));
    let image = format!("weir:{}", env!("CARGO_PKG_VERSION"));
    files.join("\n---\n").replace(&image, &reference())
}

pub(super) fn say(line: &str) {
    eprintln!("e2e: {line}");
}

pub(super) fn project(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The image under test, in an OCI archive.
pub(super) fn image() -> PathBuf {
    let image = env::var_os("WEIR_IMAGE").map(PathBuf::from);
    image.expect("WEIR_IMAGE says where the image is that make image makes: run make e2e")
}

/// The image's name, as the cluster's nodes have it or pull it.
pub(super) fn reference() -> String {
    env::var("WEIR_IMAGE_REFERENCE").unwrap_or_else(|_| format!("weir:{}", env!("CARGO_PKG_VERSION")))
}

/// The binary that was built with the tests; on the node it is at the same place.
pub(super) fn weir() -> &'static str {
    env!("CARGO_BIN_EXE_weir")
}

/// A namespace whose pods have to pass the restricted Pod Security Standard.
pub(super) fn restricted(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  \
         labels: {{pod-security.kubernetes.io/enforce: restricted}}\n"
    )
}

/// How often each event was delivered to the consumers of a Deployment, by the event's ID, as their logs have it.
pub(super) fn delivered(kubectl: &Kubectl, app: &str) -> Result<BTreeMap<String, usize>, String> {
    let selector = format!("--selector=app={app}");
    let log = kubectl.try_run(["logs", &selector, "--tail=-1"])?;
    let mut delivered = BTreeMap::new();
    for id in log.lines().filter_map(event_id) {
        *delivered.entry(id?).or_default() += 1;
    }
    Ok(delivered)
}

/// The ID of an event in a line of a consumer's log; `None` where the line is about something else.
pub(super) fn event_id(line: &str) -> Option<Result<String, String>> {
    let event = line
        .starts_with('{')
        .then(|| serde_json::from_str::<Value>(line))?;
    Some(match event {
        Ok(event) => event["id"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("no event: {line}")),
        Err(error) => Err(format!("{error}: {line}")),
    })
}

/// Waits until the consumers of a Deployment have had exactly these events.
#[track_caller]
pub(super) fn await_delivered(kubectl: &Kubectl, app: &str, wanted: &[&str]) {
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
