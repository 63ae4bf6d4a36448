//! The channel between controller and routers, secured: who gets through, and certificates that come and go. The test
//! plays the kubelet, which brings the authorities and the token to a router's files.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::{
    cluster::trigger,
    support::{ControlPlane, Kubectl, PATIENCE, Process, Scratch, eventually, get},
};

const SECRET: &str = "weir-controller-tls";
const CONFIG_MAP: &str = "weir-controller-ca";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What the documentation of `weir::controller` says that it needs, and nothing more.
const RULES: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: weir-controller}
rules:
- {apiGroups: [weir.dev], resources: [brokers, sources, triggers, sinks], verbs: [list, watch]}
- {apiGroups: [""], resources: [services, serviceaccounts, namespaces], verbs: [list, watch]}
- {apiGroups: [weir.dev], resources: [brokers/status, sources/status, triggers/status, sinks/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: weir-controller}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: weir-controller}
subjects: [{kind: ServiceAccount, name: weir-controller, namespace: default}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: weir-controller}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: weir-controller}
subjects: [{kind: ServiceAccount, name: weir-controller, namespace: default}]
"#;

const ROLE: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: weir-controller}
rules:
- {apiGroups: [""], resources: [secrets], resourceNames: [weir-controller-tls], verbs: [get, create, update, patch]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [weir-controller-ca], verbs: [get, create, update, patch]}
"#;

/// An API server with the rights of a controller on it, and the files of a router.
pub(crate) struct Setup {
    pub(crate) plane: ControlPlane,
    pub(crate) admin: Kubectl,
    account: Kubectl,
    pub(crate) files: Scratch,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let plane = ControlPlane::start();
        let admin = plane.admin();
        admin.run(["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/crds")]);
        admin.run(["wait", "--for=condition=Established", "crd", "--all"]);
        let account = plane.service_account("default", "weir-controller");
        plane.service_account("default", "weir-router");
        admin.apply(RULES);
        admin.apply(ROLE);
        Self {
            plane,
            admin,
            account,
            files: Scratch::new(),
        }
    }

    pub(crate) fn controller(&self, listen: &str) -> Process {
        let arguments = ["controller", "--listen", listen, "--admin", "127.0.0.1:0"];
        let secured = [
            ["--tls-secret", SECRET],
            ["--tls-ca-config-map", CONFIG_MAP],
            ["--tls-service", "localhost"],
            ["--router-service-account", "default/weir-router"],
        ];
        Process::weir(arguments.iter().chain(secured.iter().flatten()))
            .env("KUBECONFIG", self.account.kubeconfig())
            .start()
    }

    /// A router of this name, with data of its own.
    fn router(&self, name: &str, url: &str, more: &[&str]) -> Process {
        let data = self.files.path().join(format!("data-{name}"));
        let arguments = [
            "router",
            "--name",
            name,
            "--controller",
            url,
            "--data",
            data.to_str().unwrap(),
        ];
        let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        Process::weir(arguments.iter().chain(&listen).chain(more)).start()
    }

    /// One that trusts the authorities, with the token of a file.
    pub(crate) fn secured_router(&self, name: &str, address: SocketAddr, token: &str) -> Process {
        let (ca, token) = (self.file("ca.crt"), self.file(token));
        let files = [
            "--controller-ca",
            ca.to_str().unwrap(),
            "--controller-token",
            token.to_str().unwrap(),
        ];
        self.router(name, &https(address), &files)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// What the kubelet does with the ConfigMap, once there is one.
    pub(crate) fn bring_authorities(&self) -> String {
        let authorities = eventually(PATIENCE, || self.authorities());
        self.files.write("ca.crt", &authorities);
        authorities
    }

    fn authorities(&self) -> Result<String, String> {
        let map = self
            .admin
            .try_run(["get", "configmap", CONFIG_MAP, "--output=json"])?;
        let map: Value = serde_json::from_str(&map).unwrap();
        Ok(map["data"]["ca.crt"].as_str().unwrap().to_owned())
    }

    /// What the Secret holds under a key.
    fn secret(&self, key: &str) -> Result<String, String> {
        let secret = self.admin.try_run(["get", "secret", SECRET, "--output=json"])?;
        let secret: Value = serde_json::from_str(&secret).unwrap();
        let data = STANDARD.decode(secret["data"][key].as_str().unwrap_or_default());
        Ok(String::from_utf8(data.unwrap()).unwrap())
    }

    /// Writes a token of a ServiceAccount to a file.
    pub(crate) fn token(&self, file: &str, account: &str, more: &[&str]) {
        let arguments = ["create", "token", account, "--duration=1h"];
        let token = self.admin.run(arguments.iter().chain(more));
        self.files.write(file, token);
    }
}

pub(crate) const AUDIENCE: &str = "--audience=weir-controller";

fn https(address: SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

/// Waits until the router says why the controller does not answer.
fn await_problem(router: &Process, parts: &[&str]) {
    let line = router.wait_for_line(PATIENCE, |line| {
        line.contains("no answer from the controller") && parts.iter().all(|part| line.contains(part))
    });
    eprintln!("{line}");
}

fn metrics(controller: &Process) -> String {
    get(&format!("http://{}/metrics", controller.address("admin"))).text()
}

#[test]
fn only_a_router_that_proves_who_it_is_gets_its_configuration() {
    let setup = Setup::new();
    let controller = setup.controller("127.0.0.1:0");
    let address = controller.address("configuration");
    setup.bring_authorities();
    setup
        .admin
        .apply(&trigger("one", "[]", "{uri: 'http://example.com/'}", ""));

    setup.token("good", "weir-router", &[AUDIENCE]);
    let _router = setup.secured_router("router-0", address, "good");
    setup.admin.wait_ready("trigger/one");

    // Nobody else, and each is told why.
    setup.plane.service_account("default", "other");
    setup.token("other-account", "other", &[AUDIENCE]);
    setup.token("other-audience", "weir-router", &[]);
    setup.files.write("no-token", "e30.e30.e30");
    let refused = "401 Unauthorized";
    for (number, (token, reason)) in [
        ("other-account", "routers must use default/weir-router"),
        ("other-audience", "a valid token for the audience weir-controller"),
        ("no-token", "a valid token for the audience weir-controller"),
    ]
    .into_iter()
    .enumerate()
    {
        let router = setup.secured_router(&format!("bad-{number}"), address, token);
        await_problem(&router, &[refused, reason]);
    }
    let ca = setup.file("ca.crt");
    let router = setup.router(
        "without",
        &https(address),
        &["--controller-ca", ca.to_str().unwrap()],
    );
    await_problem(&router, &[refused, "no token", "--controller-token"]);
    let router = setup.router("plain", &format!("http://{address}"), &[]);
    await_problem(&router, &["400 Bad Request", "use an https URL"]);
    let router = setup.secured_router("missing", address, "not-there-yet");
    await_problem(&router, &["not-there-yet", "--controller-token", "No such file"]);

    // What is mended is found without a restart.
    setup.token("not-there-yet", "weir-router", &[AUDIENCE]);
    router.wait_for_line(PATIENCE, |line| line.contains("the controller answers again"));

    let metrics = metrics(&controller);
    for line in [
        "weir_controller_routers 2",
        "weir_controller_refused_requests_total{reason=\"other_account\"}",
        "weir_controller_refused_requests_total{reason=\"invalid_token\"}",
        "weir_controller_refused_requests_total{reason=\"no_token\"}",
        "weir_controller_certificate_expiry_timestamp_seconds{} ",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let lines = controller.lines();
    for reason in ["other_account", "invalid_token", "no_token"] {
        let told: Vec<_> = lines.iter().filter(|line| line.contains(reason)).collect();
        assert!(!told.is_empty(), "{reason} is not in {lines:#?}");
        eprintln!("{}", told[0]);
    }
    for token in ["good", "other-account", "other-audience", "no-token"] {
        let token = fs::read_to_string(setup.file(token)).unwrap();
        assert!(
            !lines.iter().any(|line| line.contains(token.trim())),
            "{lines:#?}"
        );
    }
}

#[test]
fn a_token_that_is_bound_to_a_pod_is_good_for_the_router_of_that_name() {
    let setup = Setup::new();
    let controller = setup.controller("127.0.0.1:0");
    let address = controller.address("configuration");
    setup.bring_authorities();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "router-0"},
        "spec": {"serviceAccountName": "weir-router", "containers": [{"name": "router", "image": "weir"}]},
    });
    setup.admin.apply(&pod.to_string());
    let bound = [
        AUDIENCE,
        "--bound-object-kind=Pod",
        "--bound-object-name=router-0",
    ];
    setup.token("bound", "weir-router", &bound);
    let other = setup.secured_router("router-1", address, "bound");
    await_problem(
        &other,
        &["401 Unauthorized", "belongs to the pod router-0", "--name"],
    );
    let router = setup.secured_router("router-0", address, "bound");
    router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    assert!(metrics(&controller).contains("reason=\"other_pod\""));
}

#[test]
fn a_deleted_secret_is_made_anew_and_routers_go_on_when_they_have_the_new_authority() {
    let setup = Setup::new();
    let mut controller = setup.controller("127.0.0.1:0");
    let address = controller.address("configuration");
    let before = setup.bring_authorities();
    setup.token("good", "weir-router", &[AUDIENCE]);
    let router = setup.secured_router("router-0", address, "good");
    router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));

    setup.admin.run(["delete", "secret", SECRET]);
    eventually(PATIENCE, || match setup.authorities()? {
        authorities if authorities == before => Err("the authorities are those from before".to_owned()),
        authorities => Ok(authorities),
    });
    // The connection from before goes on; a new one is not trusted until the kubelet was there.
    setup
        .admin
        .apply(&trigger("one", "[]", "{uri: 'http://example.com/'}", ""));
    setup.admin.wait_ready("trigger/one");
    controller.kill();
    let controller = setup.controller(&address.to_string());
    controller.wait_for_line(PATIENCE, |line| {
        line.contains("serving routers with this certificate")
    });
    await_problem(&router, &["no authority of", "--controller-ca", "kubelet"]);
    setup.bring_authorities();
    router.wait_for_line(PATIENCE, |line| line.contains("the controller answers again"));
    setup
        .admin
        .apply(&trigger("two", "[]", "{uri: 'http://example.com/'}", ""));
    setup.admin.wait_ready("trigger/two");
}

/// An authority of a month ago, and what is served for as long as `from` and `until` say, in days from today.
fn stored(from: i32, until: i32) -> Value {
    let day = |day: i32| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        let midnight = date_time_ymd(1970, 1, 1) + now;
        if day < 0 {
            midnight - DAY * day.unsigned_abs()
        } else {
            midnight + DAY * day.unsigned_abs()
        }
    };
    let (authority_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "a month old");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (authority.not_before, authority.not_after) = (day(-30), day(335));
    let names = ["", ".default", ".default.svc", ".default.svc.cluster.local"];
    let mut serving = CertificateParams::new(names.map(|name| format!("localhost{name}"))).unwrap();
    (serving.not_before, serving.not_after) = (day(from), day(until));
    let certificate = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, &authority_key);
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "labels": {"kept": "yes"}},
        "stringData": {
            "ca.crt": certificate,
            "ca.key": authority_key.serialize_pem(),
            "tls.crt": serving.signed_by(&key, &issuer).unwrap().pem(),
            "tls.key": key.serialize_pem(),
        },
    })
}

#[test]
fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
    let setup = Setup::new();
    // Fresh: kept.
    setup.admin.apply(&stored(-10, 80).to_string());
    let (authority, fresh) = (setup.secret("ca.crt").unwrap(), setup.secret("tls.crt").unwrap());
    let controller = setup.controller("127.0.0.1:0");
    let address = controller.address("configuration");
    setup.token("good", "weir-router", &[AUDIENCE]);
    assert_eq!(setup.bring_authorities(), authority);
    let router = setup.secured_router("router-0", address, "good");
    router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    assert_eq!(setup.secret("tls.crt").unwrap(), fresh);

    // Two thirds are over: renewed, while it runs, and not by a new authority.
    setup.admin.apply(&stored(-61, 29).to_string());
    let (authority, old) = (setup.secret("ca.crt").unwrap(), setup.secret("tls.crt").unwrap());
    controller.wait_for_line(PATIENCE, |line| {
        line.contains("passed two thirds of its lifetime")
    });
    assert_ne!(setup.secret("tls.crt").unwrap(), old);
    assert_eq!(setup.secret("ca.crt").unwrap(), authority);
    assert_eq!(
        setup.admin.get(&format!("secret/{SECRET}"))["metadata"]["labels"]["kept"],
        "yes"
    );
    eventually(PATIENCE, || match setup.authorities()? {
        given if given == authority => Ok(()),
        given => Err(given),
    });

    // Unreadable: made anew.
    let broken = json!([{"op": "replace", "path": "/data/tls.key", "value": STANDARD.encode("no key")}]);
    setup.admin.run([
        "patch",
        "secret",
        SECRET,
        "--type=json",
        "--patch",
        &broken.to_string(),
    ]);
    controller.wait_for_line(PATIENCE, |line| line.contains("no usable serving certificate"));

    // Another router connects with what there is now.
    setup.bring_authorities();
    let router = setup.secured_router("router-1", address, "good");
    router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
}

#[test]
fn controllers_that_start_together_serve_the_same_authority() {
    let setup = Setup::new();
    let controllers = [(); 3].map(|()| setup.controller("127.0.0.1:0"));
    setup.token("good", "weir-router", &[AUDIENCE]);
    for controller in &controllers {
        controller.wait_for_line(PATIENCE, |line| {
            line.contains("serving routers with this certificate")
        });
    }
    let authorities = setup.secret("ca.crt").unwrap();
    eventually(PATIENCE, || match setup.authorities()? {
        given if given == authorities => Ok(()),
        given => Err(given),
    });
    setup.bring_authorities();
    for (number, controller) in controllers.iter().enumerate() {
        let router = setup.secured_router(
            &format!("router-{number}"),
            controller.address("configuration"),
            "good",
        );
        router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    }
    let made = |controller: &Process| {
        controller
            .lines()
            .iter()
            .filter(|line| line.contains("renewed the certificates for routers"))
            .count()
    };
    assert_eq!(controllers.iter().map(made).sum::<usize>(), 1);
}

#[test]
fn a_controller_without_the_rights_says_which() {
    let setup = Setup::new();
    setup.admin.run(["delete", "role", "weir-controller"]);
    let controller = setup.controller("127.0.0.1:0");
    let line = controller.wait_for_line(PATIENCE, |line| {
        line.contains("cannot read Secret default/weir-controller-tls")
    });
    assert!(line.contains("get, create, update and patch"), "{line}");
    let ready = format!("http://{}/readyz", controller.address("admin"));
    eventually(PATIENCE, || match get(&ready).text() {
        text if text.contains("there is no certificate for routers yet") => Ok(()),
        text => Err(text),
    });
    setup.admin.apply(ROLE);
    controller.wait_for_line(PATIENCE, |line| {
        line.contains("serving routers with this certificate")
    });
    eventually(PATIENCE, || match get(&ready).text() {
        text if text.starts_with("ok") => Ok(()),
        text => Err(text),
    });

    setup
        .admin
        .run(["delete", "clusterrolebinding", "weir-controller"]);
    setup.bring_authorities();
    setup.token("good", "weir-router", &[AUDIENCE]);
    let router = setup.secured_router("router-0", controller.address("configuration"), "good");
    await_problem(&router, &["503 Service Unavailable", "see the controller's log"]);
    controller.wait_for_line(PATIENCE, |line| line.contains("create on tokenreviews"));
}

#[test]
fn a_router_goes_on_with_its_configuration_while_the_api_server_is_away() {
    let mut setup = Setup::new();
    let controller = setup.controller("127.0.0.1:0");
    let address = controller.address("configuration");
    setup.bring_authorities();
    setup.token("good", "weir-router", &[AUDIENCE]);
    let router = setup.secured_router("router-0", address, "good");
    router.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    setup.plane.stop_api_server();
    // Its token is known, also when it comes back; one that is not known cannot be checked.
    let again = setup.secured_router("router-1", address, "good");
    again.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    setup.files.write("unknown", "e30.e30.e30");
    let unknown = setup.secured_router("router-2", address, "unknown");
    await_problem(&unknown, &["503 Service Unavailable"]);
    setup.plane.start_api_server();
    await_problem(&unknown, &["401 Unauthorized"]);
    assert!(
        !router
            .lines()
            .iter()
            .any(|line| line.contains("no answer from the controller"))
    );
}

#[test]
fn flags_that_do_not_go_together_are_refused_and_an_open_channel_is_warned_of() {
    for (arguments, expected) in [
        (&["controller", "--tls-secret", "a"][..], "--tls-ca-config-map"),
        (&["controller", "--router-service-account", "a/b"], "--tls-secret"),
        (&["controller", "--router-service-account", "b"], "NAMESPACE/NAME"),
        (
            &["router", "--data", "/x", "--controller", "https://x"],
            "--controller-ca",
        ),
        (
            &[
                "router",
                "--data",
                "/x",
                "--controller",
                "http://x",
                "--controller-token",
                "/t",
            ],
            "where others can read along",
        ),
    ] {
        let mut process = Process::weir(arguments).start();
        let output = process.output().join("\n");
        assert!(output.contains(expected), "{arguments:?}: {output}");
    }
    let plane = ControlPlane::shared();
    let start = |listen| {
        let arguments = ["controller", "--listen", listen, "--admin", "127.0.0.1:0"];
        Process::weir(arguments)
            .env("KUBECONFIG", plane.admin().kubeconfig())
            .start()
    };
    let warning = |line: &str| line.contains("WARN") && line.contains("--router-service-account");
    start("0.0.0.0:0").wait_for_line(PATIENCE, warning);
    let local = start("127.0.0.1:0");
    local.address("admin");
    get(&format!("http://{}/healthz", local.address("admin")));
    assert!(!local.lines().iter().any(|line| warning(line)));
}
