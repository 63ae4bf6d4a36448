//! A cluster with Weir in it: a real API server, `weir controller` and `weir router` as processes.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    Answer, Consumer, ControlPlane, Kubectl, PATIENCE, Process, Received, Scratch, eventually, get,
    operator_of, post,
};

/// Weir, running.
pub(crate) struct Weir {
    pub(crate) controller: Process,
    pub(crate) router: Process,
    data: Scratch,
    /// What the router is started with besides.
    arguments: Vec<String>,
    /// The same of the controller.
    controller_arguments: Vec<String>,
}

/// Lets a `uri` reach the consumers of tests.
pub(crate) const ALLOW_LOOPBACK: &str = "--allow-uri-addresses=127.0.0.0/8";

impl Weir {
    /// Installs the custom resource definitions, and starts a controller and a router. `services` are
    /// `NAMESPACE/NAME=URL`.
    pub(crate) fn install(plane: &ControlPlane, services: &[String]) -> Self {
        let services = services.iter().map(|service| format!("--service={service}"));
        Self::install_with(plane, services.chain([ALLOW_LOOPBACK.to_owned()]).collect())
    }

    /// The same, with these arguments for the router.
    pub(crate) fn install_with(plane: &ControlPlane, arguments: Vec<String>) -> Self {
        Self::start(plane, plane.admin().kubeconfig(), arguments)
    }

    /// The same, with these arguments for the controller.
    pub(crate) fn install_with_controller(plane: &ControlPlane, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        Self::start_both(plane, plane.admin().kubeconfig(), arguments, Vec::new())
    }

    /// The same, with a controller that is this user.
    pub(crate) fn start(plane: &ControlPlane, controller: &Path, arguments: Vec<String>) -> Self {
        Self::start_both(plane, controller, Vec::new(), arguments)
    }

    /// The same, with arguments for both.
    pub(crate) fn start_both(
        plane: &ControlPlane,
        controller: &Path,
        controller_arguments: Vec<String>,
        arguments: Vec<String>,
    ) -> Self {
        let kubectl = plane.admin();
        kubectl.run(["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/crds")]);
        kubectl.run(["wait", "--for=condition=Established", "crd", "--all"]);
        let controller = start_controller(controller, "127.0.0.1:0", &controller_arguments);
        let data = Scratch::new();
        let router = start_router(&controller, data.path(), "127.0.0.1:0", &arguments);
        Self {
            controller,
            router,
            data,
            arguments,
            controller_arguments,
        }
    }

    pub(crate) fn broker(&self, namespace: &str) -> String {
        format!("http://{}/{namespace}/default", self.router.address("ingress"))
    }

    /// Where the router's data are.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// The token of the router's operators, as a header.
    pub(crate) fn operator(&self) -> String {
        operator_of(self.data())
    }

    pub(crate) fn metrics(&self) -> String {
        get(&format!("http://{}/metrics", self.router.address("admin"))).text()
    }

    /// `kill -9`, and a new process on the same data and address.
    pub(crate) fn kill_and_restart_router(&mut self) {
        let listen = self.router.address("ingress").to_string();
        self.router.kill();
        self.router = start_router(&self.controller, self.data.path(), &listen, &self.arguments);
    }

    /// The same, with these arguments from now on.
    pub(crate) fn restart_router_with(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
        self.kill_and_restart_router();
    }

    /// `kill -9`, and a new process on the same address.
    pub(crate) fn kill_and_restart_controller(&mut self, plane: &ControlPlane) {
        let listen = self.controller.address("configuration").to_string();
        self.controller.kill();
        let arguments = &self.controller_arguments;
        self.controller = start_controller(plane.admin().kubeconfig(), &listen, arguments);
    }

    /// The same, with these arguments from now on.
    pub(crate) fn restart_controller_with(&mut self, plane: &ControlPlane, arguments: &[&str]) {
        self.controller_arguments = arguments.iter().map(ToString::to_string).collect();
        self.kill_and_restart_controller(plane);
    }
}

fn start_controller(kubeconfig: &Path, listen: &str, more: &[String]) -> Process {
    let mut arguments = vec![
        "controller",
        "--listen",
        listen,
        "--admin",
        "127.0.0.1:0",
        "--broker-base-url",
        "http://weir",
    ];
    arguments.extend(more.iter().map(String::as_str));
    Process::weir(arguments).env("KUBECONFIG", kubeconfig).start()
}

fn start_router(controller: &Process, data: &Path, listen: &str, more: &[String]) -> Process {
    let controller = format!("http://{}", controller.address("configuration"));
    let mut arguments = vec![
        "router",
        "--name",
        "router-0",
        "--listen",
        listen,
        "--admin",
        "127.0.0.1:0",
    ];
    arguments.extend(["--controller", &controller, "--data", data.to_str().unwrap()]);
    arguments.extend(more.iter().map(String::as_str));
    Process::weir(&arguments).start()
}

/// The cluster that tests share which break nothing; each has a namespace of its own.
fn shared() -> &'static Weir {
    static WEIR: OnceLock<Weir> = OnceLock::new();
    WEIR.get_or_init(|| Weir::install(ControlPlane::shared(), &[]))
}

fn namespace(prefix: &str) -> (&'static Weir, Kubectl) {
    (shared(), ControlPlane::shared().namespace(prefix))
}

pub(crate) fn trigger(name: &str, filters: &str, sink: &str, more: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}}}\n\
         spec: {{filters: {filters}, sink: {sink}{more}}}\n"
    )
}

fn sink(name: &str, spec: &str) -> String {
    format!("---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

const BINARY: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-source", "/shop"),
    ("content-type", "application/json"),
    ("ce-myext", "Z%C3%BCrich x"),
];

pub(crate) fn post_binary(url: &str, id: &str, r#type: &str, data: &str) {
    let headers: Vec<_> = BINARY
        .into_iter()
        .chain([("ce-id", id), ("ce-type", r#type)])
        .collect();
    assert_eq!(post(url, &headers, data.to_owned()).status, 202);
}

fn ids(received: &[Received]) -> Vec<String> {
    let id = |message: &Received| match message.header("ce-id") {
        Some(id) => id.to_owned(),
        None => serde_json::from_slice::<Value>(&message.body).unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned(),
    };
    let mut ids: Vec<_> = received.iter().map(id).collect();
    ids.sort();
    ids
}

/// Reason of a condition of a resource, empty while there is none.
fn reason(kubectl: &Kubectl, resource: &str, condition: &str) -> String {
    let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].reason}}");
    kubectl.run(["get", resource, "-o", &path])
}

fn await_reason(kubectl: &Kubectl, resource: &str, condition: &str, expected: &str) {
    eventually(PATIENCE, || {
        let reason = reason(kubectl, resource, condition);
        if reason == expected {
            Ok(())
        } else {
            Err(format!("{resource} {condition}: {reason}, not {expected}"))
        }
    });
}

#[test]
fn from_kubectl_apply_to_a_service() {
    let plane = ControlPlane::start();
    let [billing, audit, mail] = [(); 3].map(|()| Consumer::start());
    let url = |consumer: &Consumer| consumer.url().trim_end_matches('/').to_owned();
    let services = [
        format!("shop/billing={}", url(&billing)),
        format!("shop/mail={}", url(&mail)),
    ];
    let weir = Weir::install(&plane, &services);
    let kubectl = plane.admin();
    kubectl.run(["create", "namespace", "shop"]);
    let shop = kubectl.in_namespace("shop");
    let service = |name: &str, ports: &str| {
        format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: {ports}}}\n")
    };
    let manifests = [
        service("billing", "[{name: http, port: 8080}, {name: other, port: 9}]"),
        service("mail", "[{port: 80}]"),
        sink("audit", &format!("{{uri: '{}audit', contentMode: Structured}}", audit.url())),
        "---\napiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: clock}\nspec: {cron: {schedule: '* * * * * *', \
         type: com.example.tick, data: {json: '{\"n\": 1.10}'}, extensions: {shard: '7'}}}\n"
            .to_owned(),
        trigger("billing", "[{exact: {type: order.created}}]", "{service: {name: billing, port: http, path: /events}}", ""),
        trigger("audit", "[{prefix: {type: order.}}]", "{ref: {name: audit}}", ""),
        trigger("mail", "[{any: [{suffix: {type: .shipped}}, {exact: {type: com.example.tick}}]}]", "{service: {name: mail}}", ""),
    ];
    shop.apply(&manifests.concat());
    shop.run([
        "wait",
        "--for=condition=Ready",
        "trigger",
        "--all",
        "--timeout=30s",
    ]);

    let broker = weir.broker("shop");
    post_binary(&broker, "1", "order.created", "{\"amount\": 1.10}");
    let structured =
        r#"{"specversion":"1.0", "id":"2","source":"/shop","type":"order.shipped","n":7,"data":{"b":[1.0]}}"#;
    let response = post(
        &broker,
        &[("content-type", "application/cloudevents+json; charset=utf-8")],
        structured,
    );
    assert_eq!(response.status, 202);
    let batch = format!(
        "[{},\n {}]",
        structured.replace("\"2\"", "\"3\""),
        structured.replace("\"2\"", "\"4\"").replace("shipped", "created")
    );
    assert_eq!(
        post(
            &broker,
            &[("content-type", "application/cloudevents-batch+json")],
            batch
        )
        .status,
        202
    );
    post_binary(&broker, "5", "unwanted", "{}");

    assert_eq!(ids(&billing.wait_for(2)), ["1", "4"]);
    assert_eq!(ids(&audit.wait_for(4)), ["1", "2", "3", "4"]);
    let orders = |received: &[Received]| -> Vec<Received> {
        received
            .iter()
            .filter(|message| message.header("ce-type") != Some("com.example.tick"))
            .cloned()
            .collect()
    };
    let mailed = mail.wait_until(PATIENCE, |received| {
        orders(received).len() >= 2 && received.len() >= 3
    });
    assert_eq!(ids(&orders(&mailed)), ["2", "3"]);

    // What came in goes out, in the mode that it came in.
    let received = billing.received();
    let first = received
        .iter()
        .find(|message| message.header("ce-id") == Some("1"))
        .unwrap();
    assert_eq!(
        (first.method.as_str(), first.target.as_str()),
        ("POST", "/events")
    );
    assert_eq!(first.body, "{\"amount\": 1.10}");
    for (name, value) in BINARY {
        assert_eq!(first.header(name), Some(value));
    }
    let second = mailed
        .iter()
        .find(|message| message.body == structured)
        .expect("the text of event 2");
    assert_eq!(
        second.header("content-type"),
        Some("application/cloudevents+json; charset=utf-8")
    );
    // The Sink asks for structured.
    let received = audit.received();
    let converted = received
        .iter()
        .find(|message| ids(std::slice::from_ref(*message)) == ["1"])
        .unwrap();
    assert_eq!(
        (converted.target.as_str(), converted.header("content-type")),
        ("/audit", Some("application/cloudevents+json"))
    );
    let json: Value = serde_json::from_slice(&converted.body).unwrap();
    assert_eq!(
        (&json["myext"], &json["type"]),
        (&"Zürich x".into(), &"order.created".into())
    );
    assert!(
        std::str::from_utf8(&converted.body)
            .unwrap()
            .contains("\"data\":{\"amount\": 1.10}")
    );
    // The Source's events.
    let tick = mailed
        .iter()
        .find(|message| message.header("ce-type") == Some("com.example.tick"))
        .unwrap();
    assert_eq!(
        (tick.header("ce-shard"), tick.header("ce-source")),
        (
            Some("7"),
            Some("/apis/weir.dev/v1alpha1/namespaces/shop/sources/clock")
        )
    );
    assert_eq!(tick.body, "{\"n\": 1.10}");

    // What people see.
    let table = shop.run(["get", "triggers"]);
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        header,
        ["NAME", "READY", "REASON", "ANSWERING", "BROKER", "SINK", "AGE"]
    );
    assert!(
        table.contains("http://billing.shop.svc.cluster.local:8080/events"),
        "{table}"
    );
    let billing_trigger = shop.get("trigger/billing");
    assert_eq!(billing_trigger["status"]["brokerUrl"], "http://weir/shop/default");
    assert_eq!(
        billing_trigger["status"]["observedGeneration"],
        billing_trigger["metadata"]["generation"]
    );
    assert!(
        kubectl
            .run(["explain", "trigger.spec.filters"])
            .contains("exactly one of")
    );

    // An edited filter takes effect without a restart.
    let before = billing.received().len();
    let edited = Instant::now();
    shop.apply(&trigger(
        "billing",
        "[{exact: {type: order.refunded}}]",
        "{service: {name: billing, port: http, path: /events}}",
        "",
    ));
    let mut number = 100;
    eventually(PATIENCE, || {
        post_binary(&broker, &number.to_string(), "order.refunded", "{}");
        number += 1;
        if billing.received().len() > before {
            Ok(())
        } else {
            Err("no refund was delivered".to_owned())
        }
    });
    eprintln!("an edited filter took effect after {:?}", edited.elapsed());
    eprintln!(
        "resident memory: controller {} KiB, router {} KiB",
        weir.controller.resident_memory() / 1024,
        weir.router.resident_memory() / 1024
    );
}

#[test]
fn the_order_of_applying_does_not_matter() {
    let (weir, kubectl) = namespace("order");
    let broker = weir.broker(kubectl.namespace());
    // Events before any Trigger, once the namespace is known.
    eventually(PATIENCE, || {
        let headers: Vec<_> = BINARY
            .into_iter()
            .chain([("ce-id", "1"), ("ce-type", "early")])
            .collect();
        let status = post(&broker, &headers, "{}").status;
        if status == 202 {
            Ok(())
        } else {
            Err(format!("{status}"))
        }
    });
    let [late, early] = [(); 2].map(|()| Consumer::start());
    // A Trigger before its Sink.
    kubectl.apply(
        &[
            trigger("late", "[{prefix: {type: la}}]", "{ref: {name: late}}", ""),
            trigger(
                "early",
                "[]",
                &format!("{{uri: '{}'}}", early.url()),
                ", start: Earliest",
            ),
        ]
        .concat(),
    );
    await_reason(&kubectl, "trigger/late", "Ready", "SinkNotFound");
    // It is in force all the same: what comes now waits for the Sink.
    kubectl.wait_ready("trigger/early");
    post_binary(&broker, "2", "late", "{}");
    assert_eq!(ids(&early.wait_for(2)), ["1", "2"]);
    kubectl.apply(&sink("late", &format!("{{uri: '{}'}}", late.url())));
    kubectl.wait_ready("trigger/late");
    assert_eq!(ids(&late.wait_for(1)), ["2"]);
}

#[test]
fn nothing_is_lost_when_the_router_is_killed() {
    let plane = ControlPlane::start();
    let mut weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("killed");
    let (mut dead, live) = (Consumer::start(), Consumer::start());
    kubectl.apply(
        &[
            trigger(
                "dead",
                "[]",
                &format!("{{uri: '{}'}}", dead.url()),
                ", delivery: {backoffDelay: 100ms, backoffMax: 1s}",
            ),
            trigger("live", "[]", &format!("{{uri: '{}'}}", live.url()), ""),
        ]
        .concat(),
    );
    kubectl.run([
        "wait",
        "--for=condition=Ready",
        "trigger",
        "--all",
        "--timeout=30s",
    ]);
    dead.stop();
    let broker = weir.broker(kubectl.namespace());
    for id in ["1", "2", "3"] {
        post_binary(&broker, id, "t", "{}");
    }
    assert_eq!(
        ids(&live.wait_for(3)),
        ["1", "2", "3"],
        "a dead Sink holds nobody else"
    );
    weir.kill_and_restart_router();
    dead.restart();
    assert_eq!(ids(&dead.wait_for(3)), ["1", "2", "3"]);
    // Settled, and nothing pending.
    eventually(PATIENCE, || {
        let metrics = weir.metrics();
        let of = |name: &str| {
            metrics
                .lines()
                .find(|line| line.starts_with(name) && line.contains("\"dead\""))
                .map(str::to_owned)
        };
        match of("weir_trigger_events_pending{") {
            Some(line) if line.ends_with(" 0") => Ok(()),
            line => Err(format!("{line:?}")),
        }
    });
}

#[test]
fn routing_goes_on_without_the_api_server() {
    let mut plane = ControlPlane::start();
    let weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("alone");
    let consumer = Consumer::start();
    let uri = format!("{{uri: '{}'}}", consumer.url());
    kubectl.apply(&trigger("t", "[]", &uri, ""));
    kubectl.wait_ready("trigger/t");
    let broker = weir.broker(kubectl.namespace());
    plane.stop_api_server();
    post_binary(&broker, "1", "t", "{}");
    assert_eq!(ids(&consumer.wait_for(1)), ["1"]);
    plane.start_api_server();
    // Status catches up with what is applied then.
    kubectl.apply(&trigger("t", "[{exact: {type: u}}]", &uri, ""));
    kubectl.apply(&trigger("new", "[]", "{ref: {name: nowhere}}", ""));
    await_reason(&kubectl, "trigger/new", "Ready", "SinkNotFound");
    kubectl.wait_ready("trigger/t");
    post_binary(&broker, "2", "t", "{}");
    post_binary(&broker, "3", "u", "{}");
    assert_eq!(ids(&consumer.wait_for(2)), ["1", "3"]);
}

#[test]
fn a_trigger_that_only_a_newer_version_can_read_keeps_its_place() {
    let plane = ControlPlane::start();
    let mut weir = Weir::install(&plane, &[]);
    let kubectl = plane.namespace("newer");
    let consumer = Consumer::start();
    let uri = format!("{{uri: '{}'}}", consumer.url());
    kubectl.apply(&trigger("t", "[]", &uri, ", delivery: {ordering: ByKey}"));
    kubectl.wait_ready("trigger/t");
    consumer.answer(Answer::status(503));
    let broker = weir.broker(kubectl.namespace());
    post_binary(&broker, "1", "t", "{}");
    consumer.wait_for(1);

    let known = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/delivery/properties/ordering/enum/-";
    let newer = format!(r#"[{{"op": "add", "path": "{known}", "value": "Newer"}}]"#);
    plane
        .admin()
        .run(["patch", "crd/triggers.weir.dev", "--type=json", "--patch", &newer]);
    let order = |ordering: &str| {
        let patch = format!(r#"{{"spec": {{"delivery": {{"ordering": "{ordering}"}}}}}}"#);
        kubectl.try_run(["patch", "trigger/t", "--type=merge", "--patch", &patch])
    };
    let applied = |weir: &Weir| get(&format!("http://{}/readyz", weir.router.address("admin"))).text();
    let await_applied = |weir: &Weir, wanted: &dyn Fn(&str) -> bool| {
        eventually(PATIENCE, || match applied(weir) {
            revision if revision.contains("revision") && wanted(&revision) => Ok(revision),
            revision => Err(revision),
        })
    };
    let before = applied(&weir);
    eventually(PATIENCE, || order("Newer")); // once the new schema is served
    let unread = await_applied(&weir, &|revision| revision != before);
    weir.controller.wait_for_line(PATIENCE, |line| {
        line.contains("cannot be decoded") && line.contains("Trigger newer-")
    });
    let metrics = get(&format!("http://{}/metrics", weir.controller.address("admin"))).text();
    assert!(
        metrics.contains("\nweir_controller_unreadable_resources 1\n"),
        "{metrics}"
    );
    post_binary(&broker, "2", "t", "{}");
    weir.kill_and_restart_router();
    await_applied(&weir, &|revision| revision == unread);
    post_binary(&broker, "3", "t", "{}");
    // Also when nothing is known of it but where it is.
    weir.router.kill();
    fs::remove_file(weir.data().join("configuration.json")).unwrap();
    weir.kill_and_restart_router();
    await_applied(&weir, &|revision| revision == unread);
    post_binary(&broker, "4", "t", "{}");

    consumer.answer(Answer::status(204));
    let refused = consumer.received().len();
    order("ByKey").unwrap();
    consumer.wait_until(PATIENCE, |received| {
        let arrived: BTreeSet<String> = ids(&received[refused..]).into_iter().collect();
        arrived == ["1", "2", "3", "4"].map(String::from).into()
    });
}

#[test]
fn triggers_heal_and_say_what_is_missing() {
    let (_, kubectl) = namespace("heal");
    let (_, other) = namespace("other");
    kubectl.apply(
        &[
            trigger("to-service", "[]", "{service: {name: web}}", ""),
            trigger("to-sink", "[]", "{ref: {name: shared}}", ""),
            trigger(
                "foreign",
                "[]",
                &format!("{{ref: {{name: shared, namespace: {}}}}}", other.namespace()),
                "",
            ),
            trigger("held", "[]", "{uri: 'http://example.com/'}", ", suspend: true"),
            trigger("inside", "[]", "{uri: 'http://web.heal.svc.cluster.local/'}", ""),
        ]
        .concat(),
    );
    await_reason(&kubectl, "trigger/to-service", "Ready", "ServiceNotFound");
    await_reason(&kubectl, "trigger/to-service", "SinkResolved", "ServiceNotFound");
    await_reason(&kubectl, "trigger/to-service", "FiltersValid", "NoFilters");
    await_reason(&kubectl, "trigger/to-sink", "Ready", "SinkNotFound");
    await_reason(&kubectl, "trigger/foreign", "Ready", "SinkNotAllowed");
    await_reason(&kubectl, "trigger/held", "Ready", "Suspended");
    await_reason(&kubectl, "trigger/inside", "Ready", "InvalidUri");

    let service = |ports: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{ports: {ports}}}\n")
    };
    kubectl.apply(&service("[{name: a, port: 80}, {name: b, port: 81}]"));
    await_reason(&kubectl, "trigger/to-service", "Ready", "PortAmbiguous");
    kubectl.apply(&trigger(
        "to-service",
        "[]",
        "{service: {name: web, port: c}}",
        "",
    ));
    await_reason(&kubectl, "trigger/to-service", "Ready", "PortNotFound");
    kubectl.apply(&trigger(
        "to-service",
        "[]",
        "{service: {name: web, port: b}}",
        "",
    ));
    kubectl.wait_ready("trigger/to-service");

    other.apply(&sink("shared", "{uri: 'http://example.com/'}"));
    other.wait_ready("sink/shared");
    await_reason(&kubectl, "trigger/foreign", "Ready", "SinkNotAllowed");
    other.apply(&sink(
        "shared",
        &format!(
            "{{uri: 'http://example.com/', allowedNamespaces: {{names: [{}]}}}}",
            kubectl.namespace()
        ),
    ));
    kubectl.wait_ready("trigger/foreign");
    other.apply(&sink(
        "shared",
        "{uri: 'http://example.com/', allowedNamespaces: {matchLabels: {team: blue}}}",
    ));
    await_reason(&kubectl, "trigger/foreign", "Ready", "SinkNotAllowed");
    ControlPlane::shared()
        .admin()
        .run(["label", "namespace", kubectl.namespace(), "team=blue"]);
    kubectl.wait_ready("trigger/foreign");

    let letters = ", delivery: {deadLetterSink: {ref: {name: graves}}}";
    kubectl.apply(&trigger(
        "with-letters",
        "[]",
        "{uri: 'http://example.com/'}",
        letters,
    ));
    await_reason(
        &kubectl,
        "trigger/with-letters",
        "DeadLetterSinkResolved",
        "SinkNotFound",
    );
    kubectl.apply(&sink("graves", "{uri: 'http://example.com/'}"));
    kubectl.wait_ready("trigger/with-letters");

    kubectl.apply(&sink("shared", "{service: {name: web, port: 80}}"));
    kubectl.wait_ready("trigger/to-sink");
    kubectl.run(["delete", "service", "web"]);
    await_reason(&kubectl, "trigger/to-sink", "Ready", "ServiceNotFound");
    kubectl.run(["delete", "sink", "shared"]);
    await_reason(&kubectl, "trigger/to-sink", "Ready", "SinkNotFound");

    // One Event for each transition of Ready.
    let events = kubectl.run([
        "get",
        "events",
        "--field-selector=involvedObject.name=to-sink",
        "-o",
        "jsonpath={range .items[*]}{.reason} {.type}{\"\\n\"}{end}",
    ]);
    let mut told: Vec<_> = events.lines().collect();
    told.sort_unstable();
    assert!(
        told.contains(&"Ready Normal")
            && told.contains(&"SinkNotFound Warning")
            && told.contains(&"ServiceNotFound Warning"),
        "{events}"
    );
}

#[test]
fn an_error_that_a_filter_ends_in_is_shown_in_the_status() {
    let (weir, kubectl) = namespace("filter-error");
    let consumer = Consumer::start();
    let to = format!("{{uri: '{}'}}", consumer.url());
    kubectl.apply(&trigger("large", "[{cel: event.data.amount > 100}]", &to, ""));
    kubectl.wait_ready("trigger/large");
    let broker = weir.broker(kubectl.namespace());
    for (id, data) in [("1", r#"{"amount": "much"}"#), ("2", r#"{"amount": 101}"#)] {
        let [version, source, content_type, _] = BINARY;
        let headers = [version, source, content_type, ("ce-id", id), ("ce-type", "t")];
        assert_eq!(post(&broker, &headers, data).status, 202);
    }
    assert_eq!(consumer.wait_for(1)[0].header("ce-id"), Some("2"));
    await_reason(&kubectl, "trigger/large", "FiltersEvaluated", "FilterError");
    kubectl.wait_ready("trigger/large");
    // Another filter starts afresh.
    kubectl.apply(&trigger(
        "large",
        "[{cel: double(event.data.amount) > 100.0}]",
        &to,
        "",
    ));
    eventually(PATIENCE, || {
        let path = "jsonpath={.status.conditions[*].type}";
        let types = kubectl.run(["get", "trigger/large", "-o", path]);
        if types.contains("FiltersEvaluated") {
            Err(types)
        } else {
            Ok(())
        }
    });
}

#[test]
fn sql_filters_route_and_a_broken_one_is_told_with_its_column() {
    let (weir, kubectl) = namespace("sql");
    let broker = weir.broker(kubectl.namespace());
    let [good, mended] = [(); 2].map(|()| Consumer::start());
    let to = |consumer: &Consumer| format!("{{uri: '{}'}}", consumer.url());
    let urgent = "[{sql: \"type LIKE 'order.%' AND EXISTS priority AND priority > 5\"}]";
    let broken = "[{sql: \"type LIKE 'order.%' AND priority >\"}]";
    kubectl.apply(
        &[
            trigger("good", urgent, &to(&good), ""),
            trigger("broken", broken, &to(&mended), ""),
        ]
        .concat(),
    );
    kubectl.wait_ready("trigger/good");
    await_reason(&kubectl, "trigger/broken", "Ready", "InvalidFilter");
    let message = kubectl.run([
        "get",
        "trigger/broken",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}",
    ]);
    assert!(
        message.contains("spec.filters[0].sql: column 35: expected a value"),
        "{message}"
    );
    let post_order = |id: &str, priority: &str| {
        let [version, source, content_type, _] = BINARY;
        let headers = [
            version,
            source,
            content_type,
            ("ce-id", id),
            ("ce-type", "order.created"),
            ("ce-priority", priority),
        ];
        assert_eq!(post(&broker, &headers, "{}").status, 202);
    };
    // In structured mode the number is one, in binary mode it is text.
    let structured = r#"{"specversion":"1.0","id":"1","source":"/s","type":"order.created","priority":7}"#;
    let content_type = [("content-type", "application/cloudevents+json")];
    assert_eq!(post(&broker, &content_type, structured).status, 202);
    post_order("2", "10");
    post_order("3", "4");
    post_order("4", "high");
    post_order("5", "6");
    assert_eq!(ids(&good.wait_for(3)), ["1", "2", "5"]);

    assert!(mended.received().is_empty());
    // What came in the meantime waited for the filter.
    kubectl.apply(&trigger("broken", urgent, &to(&mended), ""));
    kubectl.wait_ready("trigger/broken");
    post_order("6", "9");
    assert_eq!(ids(&mended.wait_for(4)), ["1", "2", "5", "6"]);
    assert_eq!(ids(&good.wait_for(4)), ["1", "2", "5", "6"]);
}

#[test]
fn a_quiet_cluster_makes_no_writes() {
    let (weir, kubectl) = namespace("quiet");
    kubectl.apply(&trigger("t", "[]", "{uri: 'http://example.com/'}", ""));
    kubectl.apply(&trigger("u", "[]", "{ref: {name: missing}}", ""));
    kubectl.wait_ready("trigger/t");
    await_reason(&kubectl, "trigger/u", "Ready", "SinkNotFound");
    let versions = || {
        let path = "jsonpath={.items[*].metadata.resourceVersion}";
        kubectl.run(["get", "triggers", "-o", path])
    };
    let before = versions();
    let admin = format!("http://{}/metrics", weir.controller.address("admin"));
    assert!(get(&admin).text().contains("weir_controller_routers 1"));
    // That nothing happens cannot be awaited: the controller looks at its routers every five seconds, here twice.
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(versions(), before);
}

#[test]
fn kubectl_apply_refuses_what_is_wrong_and_names_the_field() {
    let (_, kubectl) = namespace("refused");
    let to = "{uri: 'http://example.com/'}";
    let trigger_with = |filters: &str| trigger("t", filters, to, "");
    let source = |cron: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {{name: s}}\nspec: {{cron: {cron}}}\n"
        )
    };
    let with_header = |name: &str, more: &str| {
        let key = "{secretKeyRef: {name: s, key: k}}";
        sink(
            "s",
            &format!("{{uri: 'https://a/', headers: [{{name: {name}, valueFrom: {key}}}]{more}}}"),
        )
    };
    let token = ", authorization: {bearerToken: {secretKeyRef: {name: s, key: k}}}";
    let signing_key = "{secretKeyRef: {name: s, key: k}}";
    let zero = |field: &str| trigger("t", "[]", to, &format!(", delivery: {{{field}: 0s}}"));
    let deep = "[{not: {not: {not: {not: {exact: {a: b}}}}}}]";
    let table = [
        (
            trigger_with("[{exact: {type: a}, prefix: {type: b}}]"),
            "spec.filters[0]",
        ),
        (trigger_with("[{exact: {}}]"), "spec.filters[0].exact"),
        (trigger_with("[{all: []}]"), "spec.filters[0].all"),
        (
            trigger_with("[{exact: {Type: a}}]"),
            "attribute names are lower-case",
        ),
        (
            trigger_with("[{exact: {type: ''}}]"),
            "spec.filters[0].exact.type",
        ),
        (trigger_with("[{exactly: {type: a}}]"), "spec.filters[0].exactly"),
        (trigger_with(deep), "spec.filters[0]"),
        (trigger_with("[{sql: ''}]"), "spec.filters[0].sql"),
        (
            trigger_with(&format!("[{{sql: '{}'}}]", "x".repeat(4097))),
            "spec.filters[0].sql",
        ),
        (
            trigger_with("[{sql: 'EXISTS a', exact: {type: a}}]"),
            "spec.filters[0]: Too many",
        ),
        (
            trigger_with("[{any: [{sql: 'EXISTS a', exact: {type: a}}]}]"),
            "spec.filters[0].any[0]",
        ),
        (
            trigger_with("[{all: [{any: [{not: {sql: 'EXISTS a', exact: {type: a}}}]}]}]"),
            "spec.filters[0].all[0].any[0].not",
        ),
        (
            trigger("t", "[]", "{uri: 'http://a/', ref: {name: x}}", ""),
            "exactly one of ref, service and uri",
        ),
        (
            trigger("t", "[]", "{}", ""),
            "exactly one of ref, service and uri",
        ),
        (
            trigger("t", "[]", "{ref: {kind: Service, name: a}}", ""),
            "apiVersion and kind must be set together",
        ),
        (
            trigger("t", "[]", "{ref: {apiVersion: v1, kind: Service, name: a}}", ""),
            "for a Service of Kubernetes itself, use service",
        ),
        (
            sink("s", "{ref: {apiVersion: v1, kind: Service, name: a}}"),
            "for a Service of Kubernetes itself, use service",
        ),
        (trigger("t", "[]", "{uri: 'ftp://a/'}", ""), "spec.sink.uri"),
        (
            trigger("t", "[]", to, ", delivery: {deadLetterSink: {}}"),
            "spec.delivery.deadLetterSink",
        ),
        (
            trigger("t", "[]", "{service: {name: web, port: 0}}", ""),
            "spec.sink.service.port",
        ),
        (
            trigger("t", "[]", "{service: {name: Web}}", ""),
            "spec.sink.service.name",
        ),
        (trigger("t", "[]", to, ", start: yesterday"), "spec.start"),
        (trigger("t", "[]", to, ", broker: Big"), "spec.broker"),
        (
            trigger("t", "[]", to, ", delivery: {timeout: soon}"),
            "spec.delivery.timeout",
        ),
        (
            trigger("t", "[]", to, ", delivery: {backoffDelay: 2m, backoffMax: 1m}"),
            "backoffDelay must not be longer",
        ),
        (zero("timeout"), "must be longer than zero"),
        (zero("backoffDelay"), "longer than zero, such as 500ms or 30s"),
        (zero("backoffMax"), "longer than zero, such as 500ms or 30s"),
        (
            sink("s", "{uri: 'http://a/', delivery: {timeout: 0.0h0ms}}"),
            "spec.delivery.timeout",
        ),
        (
            trigger("t", "[]", to, ", delivery: {concurrency: 0}"),
            "spec.delivery.concurrency",
        ),
        (trigger("t", "[]", to, ", colour: red"), "spec.colour"),
        (
            sink("s", "{uri: 'http://a/', service: {name: b}}"),
            "exactly one of ref, service and uri",
        ),
        (
            sink("s", "{uri: 'http://a/', allowedNamespaces: {}}"),
            "spec.allowedNamespaces",
        ),
        (
            sink("s", "{uri: 'http://a/', contentMode: Fast}"),
            "spec.contentMode",
        ),
        (
            sink("s", "{uri: 'http://a/', caCerts: x}"),
            "caCerts requires https",
        ),
        (
            sink("s", "{service: {name: a}, caCerts: x}"),
            "caCerts requires https",
        ),
        (
            with_header("AUTHORIZATION", token),
            "authorization already sets the Authorization header",
        ),
        (
            with_header("X-Key", ", authorization: {}"),
            "exactly one of bearerToken, serviceAccountToken and oauth2",
        ),
        (
            with_header(
                "X-Key",
                &format!(
                    ", authorization: {{oauth2: {{tokenUrl: 'http://a/', clientId: a, clientSecret: {signing_key}}}}}"
                ),
            ),
            "must be an absolute https URI",
        ),
        (
            with_header(
                "X-Key",
                &format!(
                    ", authorization: {{oauth2: {{tokenUrl: 'https://a/', clientSecret: {signing_key}}}}}"
                ),
            ),
            "exactly one of clientId and clientIdFrom",
        ),
        (with_header("Ce-Id", ""), "spec.headers[0].name"),
        (with_header("content-TYPE", ""), "spec.headers[0].name"),
        (
            with_header("Host", ""),
            "is a reserved header, set by Weir or by HTTP itself",
        ),
        (with_header("'a b'", ""), "spec.headers[0].name"),
        (with_header("Weir-Hops", ""), "is a reserved header"),
        (
            sink("s", "{uri: 'http://a/', headers: [{name: X-Key}]}"),
            "exactly one of value and valueFrom",
        ),
        (
            with_header("'X-Key', value: a", ""),
            "exactly one of value and valueFrom",
        ),
        (
            sink(
                "s",
                "{uri: 'http://a/', headers: [{name: X-Key, value: \"a\\nb\"}]}",
            ),
            "spec.headers[0].value",
        ),
        (
            sink(
                "s",
                "{uri: 'http://a/', headers: [{name: authorization, value: a}]}",
            ),
            "set Authorization by valueFrom",
        ),
        (
            sink(
                "s",
                "{uri: 'http://a/', signature: {standardWebhooks: {keys: []}}}",
            ),
            "spec.signature.standardWebhooks.keys",
        ),
        (
            with_header(
                "Webhook-Id",
                &format!(", signature: {{standardWebhooks: {{keys: [{signing_key}]}}}}"),
            ),
            "signature already sets webhook-id",
        ),
        (
            with_header(
                "X-Key",
                ", authorization: {serviceAccountToken: {serviceAccountName: a, audience: 'https://kubernetes.default.svc'}}",
            ),
            "audience is the API server",
        ),
        (
            sink(
                "s",
                "{uri: 'http://a/', tls: {clientCertificate: {secretName: s}}}",
            ),
            "tls requires https",
        ),
        (
            sink("s", "{uri: 'https://a/', tls: {}}"),
            "spec.tls.clientCertificate",
        ),
        (source("{type: t}"), "spec.cron.schedule"),
        (
            source("{schedule: '* * * * *', type: t, data: {text: a, json: b}}"),
            "data must have exactly one",
        ),
        (
            source("{schedule: '* * * * *', type: t, extensions: {id: a}}"),
            "are not extensions",
        ),
        (
            "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: s}\nspec: {}\n".to_owned(),
            "exactly one of cron, webhook and kubernetes must be set",
        ),
    ];
    for (manifest, expected) in table {
        let refusal = kubectl.apply_err(&manifest);
        assert!(
            refusal.contains(expected),
            "{manifest}\nwas rejected with\n{refusal}\nwithout {expected:?}"
        );
    }
    kubectl.apply(&trigger(
        "t",
        "[{all: [{any: [{not: {exact: {a: b}}}, {not: {sql: EXISTS a}}]}]}, {sql: EXISTS a}]",
        to,
        ", start: 2026-11-24T08:00:00Z, delivery: {timeout: null, backoffDelay: 0.5ms, retryDuration: 0s, retryAfterMax: 0s}",
    ));
    let refusal = kubectl.apply_err(&trigger("t", "[]", to, ", broker: other"));
    assert!(refusal.contains("broker cannot be changed"), "{refusal}");
}

#[test]
fn invalid_events_are_answered_with_what_is_wrong() {
    let (weir, kubectl) = namespace("invalid");
    kubectl.apply(&trigger(
        "t",
        "[]",
        "{uri: 'http://example.com/'}",
        ", broker: named, suspend: true",
    ));
    await_reason(&kubectl, "trigger/t", "Ready", "Suspended");
    let url = |path: &str| format!("http://{}/{path}", weir.router.address("ingress"));
    let namespace = kubectl.namespace();
    let here = format!("{namespace}/default");
    let event = |more: &[(&'static str, &'static str)]| -> Vec<(&'static str, &'static str)> {
        [
            ("ce-specversion", "1.0"),
            ("ce-source", "/s"),
            ("ce-id", "1"),
            ("ce-type", "t"),
        ]
        .into_iter()
        .chain(more.iter().copied())
        .collect()
    };
    eventually(PATIENCE, || {
        match post(&url(&format!("{namespace}/named")), &event(&[]), "")
            .status
            .as_u16()
        {
            202 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    let large = "x".repeat(2 * 1024 * 1024);
    let json = [("content-type", "application/cloudevents+json")];
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a str, u16, Option<&'a str>);
    let table: Vec<Case<'_>> = vec![
        (&here, event(&[("ce-time", "noon")]), "", 400, Some("time")),
        (&here, event(&[("ce-my-ext", "x")]), "", 400, Some("my-ext")),
        (
            &here,
            json.to_vec(),
            r#"{"specversion":"0.3","id":"1","source":"/","type":"t"}"#,
            400,
            Some("specversion"),
        ),
        (
            &here,
            json.to_vec(),
            r#"{"specversion":"1.0","id":"1","source":"/"}"#,
            400,
            Some("type"),
        ),
        (&here, json.to_vec(), "{", 400, None),
        (&here, vec![], "", 400, None),
        (
            &here,
            vec![("content-type", "application/cloudevents+avro")],
            "",
            415,
            None,
        ),
        (&here, event(&[("content-encoding", "gzip")]), "", 415, None),
        (&here, event(&[]), &large, 413, None),
        ("nowhere/default", event(&[]), &large, 404, None),
        ("nowhere", event(&[]), "", 404, None),
    ];
    for (path, headers, body, status, attribute) in table {
        let response = post(&url(path), &headers, body.to_owned());
        assert_eq!(
            response.status.as_u16(),
            status,
            "{path} {headers:?}: {}",
            response.text()
        );
        assert_eq!(response.headers["content-type"], "application/problem+json");
        let problem = response.json();
        assert_eq!(
            problem.get("attribute").and_then(Value::as_str),
            attribute,
            "{problem}"
        );
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty()),
            "{problem}"
        );
    }
    let missing = post(&url(&format!("{namespace}/nobroker")), &event(&[]), "");
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("no broker"), "{}", missing.text());
    let batch = r#"[{"specversion":"1.0","id":"1","source":"/","type":"t"},{"specversion":"1.0","id":"2"}]"#;
    let response = post(
        &url(&here),
        &[("content-type", "application/cloudevents-batch+json")],
        batch,
    );
    assert_eq!(
        (response.status.as_u16(), &response.json()["index"]),
        (400, &1.into())
    );
}

#[test]
fn an_event_of_64_kib_passes_in_every_mode() {
    let (weir, kubectl) = namespace("large");
    let consumer = Consumer::start();
    // Structured, since few servers take as many headers as Weir does.
    let uri = format!("{{uri: '{}', contentMode: Structured}}", consumer.url());
    kubectl.apply(&[sink("s", &uri), trigger("t", "[]", "{ref: {name: s}}", "")].concat());
    kubectl.wait_ready("trigger/t");
    let url = weir.broker(kubectl.namespace());
    // All of it in attributes: many small ones, and one large one.
    let mut headers: Vec<(String, String)> =
        (0..5000).map(|n| (format!("ce-x{n}"), "v".to_owned())).collect();
    headers.extend(["id", "source", "type"].map(|name| (format!("ce-{name}"), "1".to_owned())));
    headers.push(("ce-specversion".to_owned(), "1.0".to_owned()));
    let many: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(post(&url, &many, "").status, 202);
    let long = "z".repeat(63 * 1024);
    let one: Vec<_> = many[5000..]
        .iter()
        .copied()
        .chain([("ce-long", long.as_str())])
        .collect();
    assert_eq!(post(&url, &one, "").status, 202);
    let data = format!(r#"{{"specversion":"1.0","id":"2","source":"1","type":"1","data":"{long}"}}"#);
    assert_eq!(
        post(&url, &[("content-type", "application/cloudevents+json")], data).status,
        202
    );
    let received = consumer.wait_for(3);
    let events: Vec<Value> = received
        .iter()
        .map(|message| serde_json::from_slice(&message.body).unwrap())
        .collect();
    assert!(
        events
            .iter()
            .any(|event| (0..5000).all(|n| event[format!("x{n}")] == "v"))
    );
    assert!(events.iter().any(|event| event["long"] == long));
    assert!(events.iter().any(|event| event["data"] == long));
}

#[test]
fn a_failing_sink_is_tried_again_and_a_refusing_one_is_not() {
    let (weir, kubectl) = namespace("failing");
    let [failing, refusing] = [(); 2].map(|()| Consumer::start());
    let mut left = 3;
    failing.answer_by(move |_| {
        left -= 1;
        if left >= 0 {
            Answer::status(503)
        } else {
            Answer::status(204)
        }
    });
    refusing.answer(Answer::status(400).body("no"));
    let delivery = ", delivery: {backoffDelay: 50ms, backoffMax: 100ms}";
    kubectl.apply(
        &[
            trigger(
                "failing",
                "[]",
                &format!("{{uri: '{}'}}", failing.url()),
                delivery,
            ),
            trigger(
                "refusing",
                "[]",
                &format!("{{uri: '{}'}}", refusing.url()),
                delivery,
            ),
        ]
        .concat(),
    );
    kubectl.run([
        "wait",
        "--for=condition=Ready",
        "trigger",
        "--all",
        "--timeout=30s",
    ]);
    post_binary(&weir.broker(kubectl.namespace()), "1", "t", "{}");
    assert_eq!(ids(&failing.wait_for(4)), ["1", "1", "1", "1"]);
    eventually(PATIENCE, || {
        let metrics = weir.metrics();
        let figure = |trigger: &str, outcome: &str| {
            metrics.lines().any(|line| {
                line.starts_with("weir_trigger_events_settled_total{")
                    && line.contains(kubectl.namespace())
                    && line.contains(&format!("\"{trigger}\""))
                    && line.contains(&format!("\"{outcome}\""))
                    && line.ends_with(" 1")
            })
        };
        let settled = figure("failing", "delivered") && figure("refusing", "dead_lettered");
        if settled { Ok(()) } else { Err(metrics) }
    });
    assert_eq!(refusing.received().len(), 1);
}
