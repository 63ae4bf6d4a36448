//! The harness itself: what the other tests take for granted.

use std::{
    fs,
    time::{Duration, Instant},
};

use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client, Config, config::Kubeconfig};

use crate::support::{
    Answer, Consumer, ControlPlane, Kubectl, PATIENCE, Process, ReservedPort, Scratch, eventually, get, post,
    runtime, send, try_get, try_post,
};

#[test]
fn kubectl_works_in_a_namespace_of_the_test() {
    let kubectl = ControlPlane::shared().namespace("harness");
    let namespaces = kubectl.run(["get", "namespaces", "--output=name"]);
    assert!(
        namespaces.contains(&format!("namespace/{}\n", kubectl.namespace())),
        "{namespaces}"
    );

    kubectl.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: one}, data: {key: value}}");
    assert_eq!(kubectl.get("configmap/one")["data"]["key"], "value");
    assert_eq!(
        kubectl.get("configmap/one")["metadata"]["namespace"],
        kubectl.namespace()
    );
}

#[test]
fn what_is_refused_comes_back_as_the_person_reads_it() {
    let kubectl = ControlPlane::shared().namespace("harness");
    let error = kubectl.apply_err("{apiVersion: v1, kind: ConfigMap, metadata: {name: Not-A-Name}}");
    assert!(error.contains("metadata.name: Invalid value"), "{error}");
    let error = kubectl.try_run(["get", "configmap/none"]).unwrap_err();
    assert!(error.contains("NotFound"), "{error}");
}

#[test]
fn a_condition_is_waited_for() {
    let kubectl = ControlPlane::shared().namespace("harness");
    kubectl.apply("{apiVersion: v1, kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}");
    let patch = r#"{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;
    kubectl.run([
        "patch",
        "service/orders",
        "--subresource=status",
        "--type=merge",
        "--patch",
        patch,
    ]);
    kubectl.wait_ready("service/orders");
    kubectl.wait_condition("service/orders", "Ready=True");
}

#[test]
fn a_service_account_may_do_what_its_role_allows() {
    let plane = ControlPlane::shared();
    let admin = plane.namespace("harness");
    let account = plane.service_account(admin.namespace(), "reader");
    let refused = account.try_run(["get", "configmaps"]).unwrap_err();
    assert!(refused.contains("Forbidden"), "{refused}");

    admin.run([
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=configmaps",
    ]);
    let subject = format!("--serviceaccount={}:reader", admin.namespace());
    admin.run(["create", "rolebinding", "reader", "--role=reader", &subject]);
    eventually(PATIENCE, || account.try_run(["get", "configmaps"]));
}

#[test]
fn a_rust_client_trusts_the_api_server() {
    let kubectl = ControlPlane::shared().namespace("harness");
    kubectl.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}");
    runtime().block_on(async {
        let kubeconfig = Kubeconfig::read_from(kubectl.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config).unwrap(), kubectl.namespace());
        assert_eq!(
            maps.get("one").await.unwrap().metadata.name.as_deref(),
            Some("one")
        );
    });
}

#[test]
fn the_api_server_goes_and_comes_back_with_what_it_knew() {
    let mut plane = ControlPlane::start();
    let kubectl: Kubectl = plane.admin();
    kubectl.apply("{apiVersion: v1, kind: ConfigMap, metadata: {name: one}}");
    let account = plane.service_account("default", "somebody");
    let whoami = ["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"];
    assert_eq!(account.run(whoami), "system:serviceaccount:default:somebody");

    plane.stop_api_server();
    let error = kubectl.try_run(["get", "configmap/one"]).unwrap_err();
    assert!(error.contains("refused"), "{error}");

    plane.start_api_server();
    kubectl.get("configmap/one");
    assert_eq!(account.run(whoami), "system:serviceaccount:default:somebody");
}

#[test]
fn a_consumer_records_what_is_posted() {
    let consumer = Consumer::start();
    let response = post(
        &format!("{}orders?page=1", consumer.url()),
        &[("ce-id", "1")],
        "data",
    );
    assert_eq!(response.status, 204);

    let received = consumer.wait_for(1);
    let [request] = &received[..] else {
        panic!("{received:?}")
    };
    assert_eq!(request.method, Method::POST);
    assert_eq!(request.target, "/orders?page=1");
    assert_eq!(request.header("ce-id"), Some("1"));
    assert_eq!(request.header("ce-type"), None);
    assert_eq!(request.body, "data");
    assert!(request.at <= Instant::now());
}

#[test]
fn a_consumer_answers_as_it_is_told() {
    let consumer = Consumer::start();
    let delay = Duration::from_millis(50);
    consumer.answer(
        Answer::status(503)
            .header("retry-after", "1")
            .body(r#"{"detail": "busy"}"#)
            .after(delay),
    );
    let begin = Instant::now();
    let response = get(&consumer.url());
    assert!(begin.elapsed() >= delay);
    assert_eq!(response.status, 503);
    assert_eq!(response.headers["retry-after"], "1");
    assert_eq!(response.json()["detail"], "busy");

    consumer.answer(Answer::Reset);
    let error = try_post(&consumer.url(), &[], "reset").unwrap_err();
    assert!(error.contains("ConnectionReset"), "{error}");
    assert_eq!(consumer.received().len(), 2);
}

#[test]
fn a_consumer_decides_on_each_request() {
    let consumer = Consumer::start();
    consumer.answer_by(|request| Answer::status(if request.body == "good" { 200 } else { 400 }));
    assert_eq!(post(&consumer.url(), &[], "good").status, 200);
    assert_eq!(post(&consumer.url(), &[], "bad").status, 400);
}

#[test]
fn a_consumer_counts_what_is_under_way() {
    let consumer = Consumer::start();
    consumer.answer(Answer::Hang);
    let url = consumer.url();
    let requests: Vec<_> = (0..3)
        .map(|_| {
            let url = url.clone();
            runtime().spawn(async move { send(Method::POST, &url, &[], "").await })
        })
        .collect();
    let received = consumer.wait_until(PATIENCE, |received| received.len() == 3);
    assert_eq!(received.len(), 3);
    assert_eq!(consumer.most_in_flight(), 3);

    drop(consumer);
    for request in requests {
        runtime().block_on(request).unwrap().unwrap_err();
    }
}

#[test]
fn a_stopped_consumer_refuses_and_comes_back_on_its_port() {
    let mut consumer = Consumer::start();
    let address = consumer.address();
    consumer.stop();
    let error = try_get(&consumer.url()).unwrap_err();
    assert!(error.contains("ConnectionRefused"), "{error}");

    consumer.restart();
    assert_eq!(consumer.address(), address);
    assert_eq!(get(&consumer.url()).status, 204);
}

#[test]
fn a_reserved_port_is_free_for_who_names_it() {
    let port = ReservedPort::new();
    for _ in 0..2 {
        std::net::TcpListener::bind(port.address()).unwrap();
    }
}

#[test]
fn a_process_is_watched_and_ended() {
    let script = r#"trap 'echo bye; exit 3' TERM; echo "INFO listening listener=\"ingress\" address=127.0.0.1:$PORT"
        while :; do sleep 0.05; done"#;
    let mut process = Process::program("sh", ["-c", script]).env("PORT", "4711").start();
    assert_eq!(process.address("ingress").port(), 4711);
    assert!(process.resident_memory() > 0);
    assert!(process.is_running());

    assert_eq!(process.terminate().code(), Some(3));
    process.wait_for_line(PATIENCE, |line| line == "bye");
    assert_eq!(process.lines().len(), 2);
    assert!(!process.is_running());
}

#[test]
fn a_process_gets_nothing_of_the_machine() {
    let mut process = Process::program("env", [] as [&str; 0]).quiet().start();
    assert!(process.wait_for_exit(PATIENCE).success());
    process.wait_for_line(PATIENCE, |line| line == "KUBECONFIG=/nonexistent/kubeconfig");
    assert!(process.lines().iter().all(|line| !line.starts_with("CARGO")));
}

#[test]
fn a_process_is_killed_at_once() {
    let mut process = Process::program("sleep", ["1000"]).start();
    let id = process.id();
    process.signal("STOP");
    process.kill();
    assert!(fs::metadata(format!("/proc/{id}")).is_err());
}

/// The test's thread ends before the test process does, and must not take along what others still use.
#[test]
fn a_process_outlives_the_thread_that_asked_for_it() {
    let mut process = std::thread::spawn(|| Process::program("sleep", ["1000"]).start())
        .join()
        .unwrap();
    assert!(process.is_running());
}

#[test]
fn nothing_outlives_a_test_process_that_is_killed() {
    let this = std::env::current_exe().unwrap();
    let arguments = [
        "--exact",
        "harness::leaves_something_running",
        "--ignored",
        "--nocapture",
    ];
    let mut tests = Process::program(this, arguments).start();
    let line = tests.wait_for_line(PATIENCE, |line| line.starts_with("left "));
    let left: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|path| fs::metadata(path).is_ok()), "{left:?}");

    tests.kill();
    eventually(PATIENCE, || match left.iter().find(|path| is_there(path)) {
        Some(path) => Err(format!("{path} is still there")),
        None => Ok(()),
    });
}

/// A process that has ended and that nobody has asked after, as where the first process of a container asks after
/// no one, is gone.
fn is_there(path: &str) -> bool {
    let status = fs::read_to_string(format!("{path}/status")).unwrap_or_default();
    fs::metadata(path).is_ok() && !status.contains("State:\tZ")
}

#[test]
#[ignore = "started and killed by nothing_outlives_a_test_process_that_is_killed"]
fn leaves_something_running() {
    let scratch = Scratch::new();
    let mut process = Process::program("sleep", ["1000"]).start();
    // What ends it with its parent is in place once the program itself runs.
    eventually(PATIENCE, || {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.id())).unwrap_or_default();
        if name.trim() == "sleep" { Ok(()) } else { Err(name) }
    });
    eprintln!("left /proc/{} {}", process.id(), scratch.path().display());
    process.wait_for_exit(Duration::from_secs(1000));
}

#[test]
fn a_scratch_directory_is_gone_afterwards() {
    let scratch = Scratch::new();
    scratch.write("a/b", "content");
    let path = scratch.path().to_owned();
    assert_eq!(fs::read_to_string(path.join("a/b")).unwrap(), "content");
    drop(scratch);
    assert!(!path.exists());
}

#[test]
fn the_binary_is_built_with_the_tests() {
    Process::weir(["--version"]).start().wait_for_exit(PATIENCE);
}
