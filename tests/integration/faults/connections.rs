//! One client's connections, and what stalls on them, shut nobody else out.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use super::is_long;
use crate::support::{
    LocalRouter, PATIENCE, Process, Scratch, Setup, connect, connect_from, eventually, exchange, exchange_on,
    get, post, runtime, send,
};
use http::Method;

/// Another client than those who connect from 127.0.0.1.
const OTHER: [u8; 4] = [127, 0, 0, 2];

const TRIGGERS: &str = "\
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: t, namespace: shop}
spec: {broker: orders, filters: [{exact: {type: unwanted}}], sink: {uri: 'http://127.0.0.1:9/'}}
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: t, namespace: other}
spec: {filters: [{exact: {type: unwanted}}], sink: {uri: 'http://127.0.0.1:9/'}}
";

fn ingress(router: &LocalRouter) -> SocketAddr {
    router.process.address("ingress")
}

pub(super) fn request(namespace: &str, length: usize) -> String {
    format!(
        "POST /{namespace}/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\nce-specversion: 1.0\r\nce-id: 1\r\n\
         ce-source: /s\r\nce-type: t\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// The status that a client of this address gets for an event.
fn status_for(client: [u8; 4], router: &LocalRouter, namespace: &str) -> u16 {
    let event = request(namespace, 4) + "data";
    exchange_on(connect_from(client, ingress(router)), event.as_bytes()).status
}

/// As many bodies of 1 MiB as one client may send at once with a budget of 128 MiB: each takes twice its size, of 12.8 MiB.
const BODIES_AT_ONCE: usize = 6;

/// Sends bodies without their last byte.
fn stall(router: &LocalRouter, body: &[u8]) -> Vec<TcpStream> {
    let begin = |_| {
        let mut stream = connect(ingress(router));
        // The router waits for the rest for 30 s at most.
        stream.set_read_timeout(Some(PATIENCE * 2)).unwrap();
        // The router may reject it before it has all.
        let _ = stream.write_all(request("shop", body.len()).as_bytes());
        let _ = stream.write_all(&body[1..]);
        stream
    };
    (0..BODIES_AT_ONCE).map(begin).collect()
}

/// Whether nothing came on this connection yet, not even its end.
fn is_unanswered(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn bodies_that_stall_hold_back_only_their_own_client_and_not_for_long() {
    let router = Setup::new(TRIGGERS, &[])
        .argument("--memory-budget=128MiB")
        .start();
    let body = vec![b'x'; 1024 * 1024];
    let whole = [request("shop", body.len()).as_bytes(), &body].concat();
    // On a slow machine the router may reject stalled bodies before all others were sent, which then proves nothing.
    let stalled = eventually(PATIENCE * 4, || {
        let stalled = stall(&router, &body);
        let own = exchange(ingress(&router), &whole).status;
        assert_eq!(status_for(OTHER, &router, "other"), 202);
        assert_eq!(status_for(OTHER, &router, "shop"), 202);
        assert_eq!(status_for([127, 0, 0, 1], &router, "other"), 202);
        match stalled.iter().filter(|stream| is_unanswered(stream)).count() {
            BODIES_AT_ONCE if own == 503 => Ok(stalled),
            held => Err(format!("{own}, and {held} bodies were held until the end")),
        }
    });
    for mut stream in stalled {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // On a busy machine one may get no memory in time.
        let is_ended = ["HTTP/1.1 408 ", "HTTP/1.1 503 "]
            .iter()
            .any(|status| answer.starts_with(status));
        assert!(is_ended, "{answer}");
    }
    assert_eq!(exchange(ingress(&router), &whole).status, 202);
    let slow = router.metric(&["weir_requests_rejected_total", "\"body_too_slow\""]);
    assert!(slow.is_some_and(|slow| slow > 0));
}

#[test]
fn idle_connections_make_room_for_others() {
    // A budget for 409 connections, of which one client gets half; with the default they are 4,096.
    let (argument, idle) = if is_long() {
        ("--log-level=info", 4200)
    } else {
        ("--memory-budget=16MiB", 500)
    };
    let router = Setup::new(TRIGGERS, &[]).argument(argument).start();
    let before = router.process.resident_memory();
    let connections: Vec<_> = (0..idle).map(|_| connect(ingress(&router))).collect();
    assert_eq!(status_for(OTHER, &router, "other"), 202);
    // Their own client as well, once some are idle for long enough.
    eventually(PATIENCE, || match status_for([127, 0, 0, 1], &router, "shop") {
        202 => Ok(()),
        status => Err(format!("{status}")),
    });
    let metrics = get(&router.admin("/metrics")).text();
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
    };
    let open = value("weir_ingress_connections ");
    let closed = value("weir_ingress_connections_closed_total ");
    let took = router.process.resident_memory().saturating_sub(before);
    eprintln!(
        "{idle} idle: {open} are open, {closed} were closed to make room; {} KiB more",
        took / 1024
    );
    assert!(open < idle as u64 && closed > 0, "{open} open, {closed} closed");
    drop(connections);
}

#[test]
fn the_admin_port_has_a_place_for_probes() {
    let router = Setup::new(TRIGGERS, &[]).start();
    let address = router.process.address("admin");
    let probe = b"GET /healthz HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n";
    let half = b"GET /healthz HTTP/1.1\r\nhost: we";
    let connections: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = connect(address);
            let _ = stream.write_all(if number % 2 == 0 { b"" } else { half });
            stream
        })
        .collect();
    assert_eq!(exchange_on(connect_from(OTHER, address), probe).status, 200);
    eventually(PATIENCE, || match exchange(address, probe).status {
        200 => Ok(()),
        status => Err(format!("{status}")),
    });
    drop(connections);
}

/// Starts the router by a shell that sets limits first.
fn limited(limits: &str, manifests: &Scratch, data: &Scratch) -> Process {
    manifests.write("manifests.yaml", TRIGGERS);
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let weir = env!("CARGO_BIN_EXE_weir");
    let arguments = [
        "-c".to_owned(),
        script,
        weir.to_owned(),
        "run".to_owned(),
        manifests.path().display().to_string(),
        format!("--data={}", data.path().display()),
        "--listen=127.0.0.1:0".to_owned(),
        "--admin=127.0.0.1:0".to_owned(),
    ];
    Process::program("sh", arguments).quiet().start()
}

#[test]
fn file_descriptors_are_raised_and_told() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let hard = Command::new("sh").args(["-c", "ulimit -Hn"]).output().unwrap();
    let hard = String::from_utf8_lossy(&hard.stdout).trim().to_owned();
    let router = limited("ulimit -Sn 1024", &manifests, &data);
    router.wait_for_line(PATIENCE, |line| line.contains("file descriptors are divided"));
    let metrics = get(&format!("http://{}/metrics", router.address("admin"))).text();
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line.rsplit(' ').next().unwrap_or_default().to_owned()
    };
    if hard != "unlimited" {
        assert_eq!(value("process_max_fds "), hard);
    }
    assert!(
        value("process_open_fds ")
            .parse::<u64>()
            .is_ok_and(|open| open > 10),
        "{metrics}"
    );
    drop(router);

    let mut router = limited("ulimit -n 1024", &manifests, &data);
    assert!(!router.wait_for_exit(PATIENCE).success());
    let said = router.output().join("\n");
    assert!(
        said.contains("needs 2048 file descriptors") && said.contains("1024"),
        "{said}"
    );
}

#[test]
fn brokers_that_are_gone_take_their_series_along() {
    let router = Setup::new(TRIGGERS, &[]).start();
    let series = || {
        let metrics = get(&router.admin("/metrics")).text();
        let of = |line: &&str| line.starts_with("weir_events_accepted_total{");
        metrics.lines().filter(of).map(str::to_owned).collect::<Vec<_>>()
    };
    let url = router.url().replace("/default", "/orders");
    let batch = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(post(&url, &batch, "[]").status, 202);
    assert_eq!(series(), [""; 0], "an empty batch is nothing");
    let event = r#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"}]"#;
    assert_eq!(post(&url, &batch, event).status, 202);
    assert_eq!(post(&router.url(), &batch, event).status, 202);
    assert_eq!(series().len(), 2);
    router.apply(&TRIGGERS.replace("broker: orders, ", ""));
    eventually(Duration::from_secs(10), || match series().as_slice() {
        [one] if one.contains("default") => Ok(()),
        others => Err(format!("{others:?}")),
    });
}

#[test]
fn only_operators_can_use_the_admin_port() {
    let router = Setup::new(TRIGGERS, &[]).start();
    let address = router.process.address("admin");
    let ask = |method: &str, path: &str, headers: &str| {
        let request = format!(
            "{method} /v1/dead-letters{path} HTTP/1.1\r\nconnection: close\r\n{headers}content-type: application/json\r\n\
             content-length: 2\r\n\r\n{{}}"
        );
        let answer = exchange(address, request.as_bytes());
        let reason = answer.json()["reason"].as_str().unwrap_or_default().to_owned();
        (answer.status, reason)
    };
    let operator = format!("authorization: {}\r\n", router.operator());
    let answered = |status, reason: &str| (status, reason.to_owned());
    for (method, path) in [
        ("GET", ""),
        ("POST", "/shop/default/list"),
        ("POST", "/shop/default/drop"),
    ] {
        for (headers, reason) in [
            ("host: evil.example\r\n", "wrong_host"),
            (
                "host: localhost\r\norigin: http://evil.example\r\n",
                "foreign_origin",
            ),
            ("host: localhost\r\nx-forwarded-for: 10.0.0.1\r\n", "not_local"),
        ] {
            let headers = format!("{headers}{operator}");
            assert_eq!(
                ask(method, path, &headers),
                answered(403, reason),
                "{method} {path} {headers}"
            );
        }
        // Whoever asks from this machine is not yet an operator.
        for (token, reason) in [
            ("", "no_token"),
            ("authorization: Basic YTpi\r\n", "no_token"),
            ("authorization: Bearer abc\r\n", "invalid_token"),
        ] {
            let headers = format!("host: localhost\r\n{token}");
            assert_eq!(
                ask(method, path, &headers),
                answered(401, reason),
                "{method} {path}"
            );
        }
        let headers = format!("host: localhost\r\n{operator}");
        assert_eq!(ask(method, path, &headers).0, 200, "{method} {path}");
    }
    let encoded = ask(
        "POST",
        "/sho%70/default/list",
        &format!("host: localhost\r\n{operator}"),
    );
    assert_eq!(encoded, answered(404, "unknown_path"));
    let elsewhere =
        format!("GET /v1/dead-letters HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{operator}\r\n");
    let elsewhere = exchange_on(connect_from([127, 0, 0, 6], address), elsewhere.as_bytes());
    assert_eq!(elsewhere.status, 403);
}

#[test]
fn the_token_of_operators_is_another_after_a_restart() {
    let mut router = Setup::new(TRIGGERS, &[]).start();
    let before = router.operator();
    router.kill_and_restart();
    assert_ne!(before, router.operator());
    assert_eq!(router.ask(Method::GET, "/v1/triggers", "").status, 200);
    let headers = [("authorization", &*before)];
    let refused = runtime().block_on(send(Method::GET, &router.admin("/v1/triggers"), &headers, ""));
    let refused = refused.unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(
        refused.headers["www-authenticate"],
        "Bearer error=\"invalid_token\""
    );
    let told = refused.text();
    assert!(
        told.contains(&router.token_file().display().to_string()),
        "{told}"
    );
    // Health and metrics are for everyone.
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&router.admin(path)).status, 200, "{path}");
    }
}
