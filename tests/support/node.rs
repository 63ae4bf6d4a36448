//! A whole cluster of one node: a kubelet that runs pods with containerd and runc, Services by kube-proxy, names by
//! CoreDNS, NetworkPolicies by kube-router, on a machine that needs no container engine.
//!
//! It lives in namespaces of its own (processes, mounts, network) below one first process. Whoever ends that one ends
//! the node: the kernel kills what runs in there, containers too, and with the last process the mounts and the
//! network are gone. The first process ends with the test process, however that ends (see `process.rs`). What is left
//! then, the cgroups and the directory, is removed by shells that wait for the end of a pipe.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Kubectl, PATIENCE, Process, Scratch, control_plane, eventually, process::Launch};

/// Everything listens in the node's own network, so that ports need not be free.
const ADDRESS: &str = "10.0.0.2";
const API_SERVER: &str = "10.0.0.2:6443";
const ETCD: &str = "http://127.0.0.1:2379";
const DNS: &str = "10.96.0.10";
const PODS: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/16";
const NODE: &str = "node";
const CONTAINERD: &str = "/run/containerd/containerd.sock";

/// How long the parts of a node may take, beside a compiler.
const START: Duration = Duration::from_secs(180);

/// A cluster of one node.
#[derive(Debug)]
pub(crate) struct Node {
    // In the order of dropping: with the first process everything on the node ends, then what is left is removed.
    first: Process,
    parts: Vec<Process>,
    // The API server, then the controllers and the scheduler, which come and go with it.
    control_plane: Mutex<Vec<Process>>,
    _cgroup: Cgroup,
    inside: Inside,
    kubernetes: PathBuf,
    assets: PathBuf,
    directory: Scratch,
}

/// How a process is started in the node's namespaces.
#[derive(Clone, Debug)]
struct Inside(u32);

impl Inside {
    fn arguments(&self, program: impl AsRef<OsStr>) -> Vec<OsString> {
        let target = self.0.to_string();
        let inside = ["--target", &target, "--mount", "--net", "--pid", "--"];
        // nsenter waits for what it starts, which ends with it.
        let together = ["setpriv", "--pdeathsig", "KILL", "--"];
        [&inside[..], &together]
            .concat()
            .into_iter()
            .map(OsString::from)
            .chain([program.as_ref().to_owned()])
            .collect()
    }
}

impl Node {
    /// What the node's programs are in, as `tests/kubernetes/build.sh node` prints it; `None` where nobody asked for
    /// a node.
    pub(crate) fn assets() -> Option<PathBuf> {
        env::var_os("WEIR_NODE_ASSETS").map(PathBuf::from)
    }

    /// Starts one, and waits until it is Ready, names resolve and NetworkPolicies are enforced.
    ///
    /// # Panics
    /// Where `tests/kubernetes/lacks.sh` finds something lacking.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let assets =
            Self::assets().expect("WEIR_NODE_ASSETS says where the node's programs are: run make e2e");
        let kubernetes = control_plane::assets();
        let directory = Scratch::new();
        let (first, inside) = start_first(&directory);
        let cgroup = Cgroup::make(&directory);
        control_plane::write_credentials(&directory, API_SERVER.parse().expect("it is an address"));
        let mut node = Self {
            first,
            parts: Vec::new(),
            control_plane: Mutex::default(),
            _cgroup: cgroup,
            inside,
            kubernetes,
            assets,
            directory,
        };
        node.start_control_plane();
        node.start_kubelet();
        node.start_dns();
        node.start_network_policies();
        node
    }

    /// kubectl as the administrator, in this namespace.
    pub(crate) fn kubectl(&self, namespace: &str) -> Kubectl {
        Kubectl::new(self.file("kubectl"), self.file("admin.kubeconfig"), namespace)
    }

    /// A program of the test's, to be started on the node, as the administrator.
    pub(crate) fn launch<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Launch {
        let arguments = self
            .inside
            .arguments(program)
            .into_iter()
            .chain(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        Process::program("nsenter", arguments)
            .env("KUBECONFIG", self.file("admin.kubeconfig"))
            .env("HOME", self.file("home"))
            .quiet()
    }

    /// Runs a program on the node to its end; an error is what it wrote.
    pub(crate) fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        self.launch(program, arguments).run()
    }

    /// Runs helm as the administrator.
    pub(crate) fn helm<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, String> {
        self.run(self.assets.join("helm"), arguments)
    }

    /// Makes the image in an OCI archive one that pods can have.
    #[track_caller]
    pub(crate) fn import(&self, archive: &Path) {
        let arguments = [
            "--address",
            CONTAINERD,
            "--namespace",
            "k8s.io",
            "images",
            "import",
        ];
        let arguments = arguments.map(OsString::from).into_iter().chain([archive.into()]);
        self.run("ctr", arguments)
            .unwrap_or_else(|error| panic!("cannot import {}: {error}", archive.display()));
    }

    /// Packs a static binary into an image for pods, with the binary's name and the tag `test`.
    #[track_caller]
    pub(crate) fn import_binary(&self, binary: &Path) {
        let name = binary.file_name().unwrap_or_default().to_string_lossy();
        let archive = self.file(&name).with_extension("tar");
        let packed = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/image.sh"))
            .arg(binary)
            .arg(format!("docker.io/library/{name}:test"))
            .arg(&archive)
            .output()
            .expect("cannot start deploy/image.sh");
        assert!(
            packed.status.success(),
            "{}",
            String::from_utf8_lossy(&packed.stderr)
        );
        self.import(&archive);
    }

    /// Kills the API server. What it knew stays in etcd. The controllers and the scheduler end with it, as those do
    /// that have to hold a Lease.
    pub(crate) fn stop_api_server(&self) {
        self.control_plane().clear();
    }

    /// Starts the API server, again or for the first time, waits until it is ready, and starts the controllers and the
    /// scheduler: had they stayed, they would ask it again only after up to a minute, one waiting for the other.
    #[track_caller]
    pub(crate) fn start_api_server(&self) {
        let file = |name: &str| self.file(name).display().to_string();
        let arguments = [
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={ADDRESS}"),
            format!("--cert-dir={}", file("tls")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-key-file={}", file("service-account.pub")),
            format!(
                "--service-account-signing-key-file={}",
                file("service-account.key")
            ),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged".to_owned(),
            // Nobody resolves the node's name.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        let process = self
            .launch(self.kubernetes.join("kube-apiserver"), arguments)
            .start();
        self.control_plane().push(process);
        let kubectl = self.kubectl("default");
        eventually(START, || {
            let readiness = kubectl.try_run(["get", "--raw=/readyz", "--request-timeout=5s"]);
            if let (Err(_), Some(process)) = (&readiness, self.control_plane().first_mut()) {
                assert!(
                    process.is_running(),
                    "the API server ended:\n{}",
                    process.lines().join("\n")
                );
            }
            readiness
        });
        self.start_controllers();
    }

    fn start_controllers(&self) {
        let file = |name: &str| self.file(name).display().to_string();
        let kubeconfig = format!("--kubeconfig={}", file("admin.kubeconfig"));
        let alone = "--leader-elect=false".to_owned();
        let controllers = [
            kubeconfig.clone(),
            alone.clone(),
            format!("--root-ca-file={}", file("tls/apiserver.crt")),
            format!(
                "--service-account-private-key-file={}",
                file("service-account.key")
            ),
            format!("--cluster-cidr={PODS}"),
            "--allocate-node-cidrs".to_owned(),
        ];
        let start = |name: &str, arguments: &[String]| {
            let process = self.launch(self.assets.join(name), arguments).start();
            self.control_plane().push(process);
        };
        start("kube-controller-manager", &controllers);
        start("kube-scheduler", &[kubeconfig, alone]);
    }

    /// A directory on the node for a volume.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let path = self.file("volumes").join(name);
        fs::create_dir_all(&path).expect("cannot make a directory");
        path
    }

    /// The name of the node, as Kubernetes knows it.
    pub(crate) fn name(&self) -> &'static str {
        NODE
    }

    /// How much memory the containers of a namespace's pods hold, in bytes, as the kubelet reports it: the working set and, of it,
    /// what is resident.
    #[track_caller]
    pub(crate) fn memory(&self, namespace: &str) -> Vec<(String, u64, u64)> {
        let path = format!("--raw=/api/v1/nodes/{NODE}/proxy/stats/summary?only_cpu_and_memory=true");
        let summary = self.kubectl("default").run(["get", &path]);
        let summary: Value = serde_json::from_str(&summary).expect("the kubelet's summary is JSON");
        let mut memory = Vec::new();
        for pod in summary["pods"].as_array().into_iter().flatten() {
            if pod["podRef"]["namespace"] != namespace {
                continue;
            }
            for container in pod["containers"].as_array().into_iter().flatten() {
                let bytes = |name: &str| container["memory"][name].as_u64().unwrap_or_default();
                let name = pod["podRef"]["name"].as_str().unwrap_or_default().to_owned();
                memory.push((name, bytes("workingSetBytes"), bytes("rssBytes")));
            }
        }
        memory
    }

    fn control_plane(&self) -> MutexGuard<'_, Vec<Process>> {
        self.control_plane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start_part(&mut self, program: impl AsRef<OsStr>, arguments: &[String]) {
        let part = self.launch(program, arguments).start();
        self.parts.push(part);
    }

    #[track_caller]
    fn start_control_plane(&mut self) {
        let script = format!(
            "#!/bin/sh\nexec nsenter --target {} --net -- {} \"$@\"\n",
            self.inside.0,
            self.kubernetes.join("kubectl").display()
        );
        let kubectl = self.directory.write("kubectl", script);
        fs::set_permissions(kubectl, fs::Permissions::from_mode(0o755))
            .expect("cannot make a script executable");

        let etcd = [
            format!("--data-dir={}", self.file("etcd").display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        self.start_part(self.kubernetes.join("etcd"), &etcd);
        self.start_api_server();
    }

    #[track_caller]
    fn start_kubelet(&mut self) {
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            // Each pod has a link of its own and everything is routed, so that answers pass where Services are undone.
            "plugins": [{
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "10.244.0.0/24" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        });
        self.directory.write("cni/pods.conflist", network.to_string());
        let containerd = self.directory.write(
            "containerd.toml",
            format!(
                r#"version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:test"
  restrict_oom_score_adj = true # root may lack the right to go below its own
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{}"
"#,
                self.file("cni").display()
            ),
        );
        let configuration = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // The network is the node's own: whoever reaches it is the test.
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": self.directory.write("resolv.conf", "nameserver 127.0.0.1\n"),
            // A guest on this machine, whatever cgroups, swap and free space it has.
            "cgroupRoot": format!("/{}", Cgroup::name(&self.directory)),
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "evictionHard": { "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%" },
            "imageGCHighThresholdPercent": 100,
            "protectKernelDefaults": false,
        });
        let configuration = self.directory.write("kubelet.json", configuration.to_string());
        let kubeconfig = format!("--kubeconfig={}", self.file("admin.kubeconfig").display());
        let kubelet = [
            kubeconfig.clone(),
            format!("--config={}", configuration.display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={ADDRESS}"),
        ];
        let proxy = [
            kubeconfig,
            "--proxy-mode=iptables".to_owned(),
            format!("--hostname-override={NODE}"),
            format!("--cluster-cidr={PODS}"),
            "--conntrack-max-per-core=0".to_owned(), // a limit of the whole machine
        ];
        self.start_part("containerd", &[format!("--config={}", containerd.display())]);
        eventually(START, || self.run("ctr", ["--address", CONTAINERD, "version"]));
        self.import_program("pause");
        self.start_part(self.assets.join("kubelet"), &kubelet);
        self.start_part(self.assets.join("kube-proxy"), &proxy);
    }

    #[track_caller]
    fn start_dns(&mut self) {
        self.import_program("coredns");
        let system = self.kubectl("kube-system");
        system.apply(include_str!("node/coredns.yaml"));
        let ready = ["wait", "--for=condition=Ready", "node", NODE, "--timeout=1s"];
        self.await_success(|node| node.kubectl("default").try_run(ready).map(drop));
        system.wait_rolled_out("deployment/coredns");
    }

    /// Starts kube-router, for NetworkPolicies alone; it looks for the node once, at its start.
    #[track_caller]
    fn start_network_policies(&mut self) {
        let arguments = [
            format!("--kubeconfig={}", self.file("admin.kubeconfig").display()),
            format!("--hostname-override={NODE}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--run-firewall=true".to_owned(),
            "--run-router=false".to_owned(),
            "--run-service-proxy=false".to_owned(),
            "--enable-cni=false".to_owned(),
        ];
        self.start_part(self.assets.join("kube-router"), &arguments);
        // From the first time on that it has been through all pods.
        self.await_success(|node| {
            let rules = node.run("iptables", ["--list-rules", "KUBE-ROUTER-FORWARD"])?;
            match rules.contains("KUBE-POD-FW-") {
                true => Ok(()),
                false => Err(rules),
            }
        });
    }

    /// Tries until it succeeds, or a part of the node has ended.
    #[track_caller]
    fn await_success(&mut self, attempt: impl Fn(&Self) -> Result<(), String>) {
        eventually(START, || {
            let done = attempt(self);
            if done.is_err() {
                let control_plane = self
                    .control_plane
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner);
                let parts = self.parts.iter_mut().chain(control_plane);
                for part in parts.chain([&mut self.first]) {
                    assert!(
                        part.is_running(),
                        "a part of the node ended:\n{}",
                        part.lines().join("\n")
                    );
                }
            }
            done
        });
    }

    /// Packs one of the node's own programs into an image.
    #[track_caller]
    fn import_program(&self, name: &str) {
        self.import_binary(&self.assets.join(name));
    }
}

/// Starts the first process in namespaces of its own.
#[track_caller]
fn start_first(directory: &Scratch) -> (Process, Inside) {
    let script = directory.write("first.sh", include_str!("node/first.sh"));
    let path = directory.path().as_os_str().to_owned();
    let mut arguments: Vec<OsString> = [
        "--mount",
        "--net",
        "--pid",
        "--mount-proc",
        "--fork",
        "--kill-child=KILL",
    ]
    .map(OsString::from)
    .into();
    arguments.extend(["bash".into(), script.into(), path, ADDRESS.into()]);
    let first = Process::program("unshare", arguments).start();
    first.wait_for_line(PATIENCE, |line| line == "ready");
    // The one in the namespaces is the child of the one that made them.
    let id = first.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let child = children
        .split_whitespace()
        .next()
        .and_then(|child| child.parse().ok());
    (first, Inside(child.expect("unshare has one child")))
}

/// The cgroups below which everything runs that the kubelet starts: one in each hierarchy. They are removed on drop; like a
/// [`Scratch`], also when the test process is killed.
#[derive(Debug)]
struct Cgroup {
    cleaner: Child,
}

/// Removes the cgroups, from the leaves on, once its standard input ends and the last process in them has.
const CLEANER: &str = r#"cat; for _ in 1 2 3 4 5 6 7 8 9 10; do
    find /sys/fs/cgroup -depth -type d -path "*/$0*" -exec rmdir {} + 2>/dev/null
    [ -z "$(find /sys/fs/cgroup -maxdepth 2 -name "$0")" ] && exit
    sleep 0.3
done"#;

impl Cgroup {
    /// Its name, after the directory of the node.
    fn name(directory: &Scratch) -> String {
        let name = directory.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn make(directory: &Scratch) -> Self {
        let name = Self::name(directory);
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies: Vec<PathBuf> = if root.join("cgroup.controllers").exists() {
            vec![root.to_owned()]
        } else {
            let hierarchies = fs::read_dir(root).expect("cannot list the cgroup hierarchies");
            hierarchies.flatten().map(|entry| entry.path()).collect()
        };
        for hierarchy in hierarchies
            .iter()
            .filter(|path| path.join("cgroup.procs").exists())
        {
            let path = hierarchy.join(&name);
            fs::create_dir(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        }
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER, &name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // as for a `Scratch`
            .spawn()
            .expect("cannot start sh");
        Self { cleaner }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
