//! A cluster with Weir and the example shop on it, and what the tests do with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
    sync::LazyLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

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
    pub(super) node: Node,
}

impl Installation {
    /// The one that the tests share; `None`, said, where there is no node to be had.
    pub(super) fn shared() -> Option<&'static Self> {
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
    pub(super) fn make() -> Self {
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
            true => {
                let state = shop.try_run(["get", "pods,weir,configmaps,events"])?;
                Err(format!("no event has arrived\n{state}"))
            }
        });
        say(&format!(
            "from helm install to the first event through a Service: {:.1?}",
            begin.elapsed()
        ));
        Self { node }
    }

    /// A new namespace with a consumer in it.
    #[track_caller]
    pub(super) fn consumer(&self, namespace: &str, replicas: u32, delivery: &str) -> Kubectl {
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
    pub(super) fn broker(&self, namespace: &str) -> String {
        let service = self.node.kubectl(SYSTEM).get("service/weir");
        let address = service["spec"]["clusterIP"]
            .as_str()
            .expect("a Service has an address");
        format!("http://{address}/{namespace}/default")
    }

    /// Posts events from the node until told to stop, by the harness that counts what is lost in the fault suite.
    pub(super) fn producers(&'static self, namespace: &str) -> Producers {
        let broker = self.broker(namespace);
        Producers::by(2, move |_, id| {
            self.send(&broker, id)?;
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
        let lease = self.node.kubectl(SYSTEM).get("lease/weir-controller");
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        holder.split('_').next().unwrap_or_default().to_owned()
    }

    /// Posts an event by `weir send`, from the node; an error says why it was not taken.
    pub(super) fn send(&self, broker: &str, id: &str) -> Result<(), String> {
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
pub(super) fn install(node: &Node) {
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

/// The image's name in the chart and in the example.
pub(super) fn reference() -> String {
    format!("weir:{}", env!("CARGO_PKG_VERSION"))
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
