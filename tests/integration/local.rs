//! Local mode: `weir run`, `weir display` and `weir send` as processes.

use crate::support::{
    Consumer, PATIENCE, Process, Received, ReservedPort, Scratch, eventually, get, post, try_post,
};

fn run(manifests: &Scratch, data: &Scratch, services: &[(&str, &Consumer)]) -> Process {
    let path = |scratch: &Scratch| scratch.path().to_str().unwrap().to_owned();
    let mut arguments = vec!["run".to_owned(), path(manifests), "--data".to_owned(), path(data)];
    arguments.extend(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"].map(str::to_owned));
    for (service, consumer) in services {
        arguments.extend([
            "--service".to_owned(),
            format!("{service}={}", consumer.url().trim_end_matches('/')),
        ]);
    }
    let process = Process::weir(arguments).start();
    process.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    process
}

fn trigger(name: &str, filters: &str, service: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         filters: {filters}\n  sink: {{service: {{name: {service}, path: /in}}}}\n---\n"
    )
}

fn send(process: &Process, arguments: &[&str]) -> std::process::ExitStatus {
    let broker = format!("{}/shop/default", process.address("ingress"));
    let all = ["send", broker.as_str()]
        .into_iter()
        .chain(arguments.iter().copied());
    Process::weir(all).start().wait_for_exit(PATIENCE)
}

fn bodies(received: &[Received]) -> Vec<String> {
    let mut bodies: Vec<_> = received
        .iter()
        .map(|message| String::from_utf8(message.body.to_vec()).unwrap())
        .collect();
    bodies.sort();
    bodies
}

#[test]
fn files_route_as_a_cluster_does() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let [orders, all] = [(); 2].map(|()| Consumer::start());
    let content = trigger("orders", "[{exact: {type: order}}]", "orders") + &trigger("all", "[]", "all");
    manifests.write("triggers.yaml", &content);
    let process = run(&manifests, &data, &[("shop/orders", &orders), ("shop/all", &all)]);
    for (mode, r#type, text) in [
        ("binary", "order", "one"),
        ("structured", "order", "two"),
        ("batch", "other", "three"),
    ] {
        let status = send(
            &process,
            &["--type", r#type, "--data", text, "--mode", mode, "-e", "shard=7"],
        );
        assert!(status.success());
    }
    let received = all.wait_for(3);
    let received_orders = orders.wait_for(2);
    assert_eq!(received_orders.len(), 2);
    let binary = received.iter().find(|message| message.body == "one").unwrap();
    assert_eq!(
        (binary.target.as_str(), binary.header("ce-shard")),
        ("/in", Some("7"))
    );
    assert!(
        bodies(&received)
            .iter()
            .any(|body| body.contains(r#""shard":"7""#) && body.contains(r#""data":"three""#))
    );

    // A changed file takes effect.
    manifests.write("triggers.yaml", content.replace("{type: order}", "{type: other}"));
    eventually(PATIENCE, || {
        assert!(send(&process, &["--type", "other", "--data", "four"]).success());
        let found = orders.received().iter().any(|message| message.body == "four");
        if found {
            Ok(())
        } else {
            Err("the new filter is not in force".to_owned())
        }
    });

    // A broken one is said, with its place, and keeps what it said before.
    manifests.write(
        "triggers.yaml",
        content.replace("exact: {type: order}", "exactly: {type: order}"),
    );
    process.wait_for_line(PATIENCE, |line| {
        line.contains("triggers.yaml:7:") && line.contains("exactly")
    });
    assert!(send(&process, &["--type", "other", "--data", "five"]).success());
    orders.wait_until(PATIENCE, |received| {
        received.iter().any(|message| message.body == "five")
    });
}

#[test]
fn a_broken_sql_filter_is_said_with_its_place_and_matches_nothing() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let [good, broken] = [(); 2].map(|()| Consumer::start());
    manifests.write("good.yaml", trigger("good", "[{sql: type LIKE 'o%'}]", "good"));
    let filters = "\n  - exact: {type: order}\n  - sql: type = 'order' AND";
    manifests.write("broken.yaml", trigger("broken", filters, "broken"));
    let process = run(
        &manifests,
        &data,
        &[("shop/good", &good), ("shop/broken", &broken)],
    );
    process.wait_for_line(PATIENCE, |line| {
        line.contains(
            "broken.yaml:9:5: Trigger shop/broken: spec.filters[1].sql: column 19: expected a value",
        )
    });
    assert!(send(&process, &["--type", "order", "--data", "one"]).success());
    assert_eq!(bodies(&good.wait_for(1)), ["one"]);
    assert!(broken.received().is_empty());
    // What came in the meantime waited for the filter.
    manifests.write(
        "broken.yaml",
        trigger("broken", &format!("{filters} TRUE"), "broken"),
    );
    assert_eq!(bodies(&broken.wait_for(1)), ["one"]);
}

#[test]
fn cel_filters_look_into_the_data_and_what_has_no_value_is_counted() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let large = Consumer::start();
    let filters = "[{cel: \"event.type == 'order' && event.data.amount > 100\"}]";
    manifests.write("t.yaml", trigger("large", filters, "large"));
    let process = run(&manifests, &data, &[("shop/large", &large)]);
    let send_json = |mode: &str, r#type: &str, data: &str| {
        let json = ["--content-type", "application/json"];
        let arguments = ["--type", r#type, "--mode", mode, "--data", data];
        assert!(send(&process, &[&arguments[..], &json[..]].concat()).success());
    };
    send_json("binary", "order", r#"{"amount":150}"#);
    send_json("binary", "order", r#"{"amount":99}"#);
    send_json("binary", "order", r#"{"amount":"many"}"#);
    send_json("binary", "other", "{}");
    send_json("structured", "order", "{}");
    send_json("structured", "order", r#"{"amount":100.5}"#);
    large.wait_for(2);
    let metrics = get(&format!("http://{}/metrics", process.address("admin"))).text();
    let counted = metrics
        .lines()
        .find(|line| {
            line.starts_with("weir_trigger_filter_errors_total") && line.contains("trigger=\"large\"")
        })
        .unwrap();
    assert!(counted.ends_with(" 2"), "{counted}");
    assert_eq!(large.received().len(), 2);
}

#[test]
fn events_outlive_the_process() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let mut consumer = Consumer::start();
    manifests.write("t.yaml", trigger("t", "[]", "web"));
    let mut process = run(&manifests, &data, &[("shop/web", &consumer)]);
    consumer.stop();
    assert!(send(&process, &["--type", "t", "--data", "kept"]).success());
    process.kill();
    consumer.restart();
    let mut process = run(&manifests, &data, &[("shop/web", &consumer)]);
    assert_eq!(bodies(&consumer.wait_for(1)), ["kept"]);
    assert!(process.terminate().success(), "a graceful end");
    let mut process = run(&manifests, &data, &[("shop/web", &consumer)]);
    assert!(send(&process, &["--type", "t", "--data", "next"]).success());
    consumer.wait_for(2);
    assert!(process.terminate().success());
    assert_eq!(
        bodies(&consumer.received()),
        ["kept", "next"],
        "a graceful end repeats nothing"
    );
}

#[test]
fn what_is_missing_is_said_with_its_place() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    manifests.write("t.yaml", trigger("t", "[]", "web"));
    let process = run(&manifests, &data, &[]);
    process.wait_for_line(PATIENCE, |line| {
        line.contains("t.yaml:8:") && line.contains("no --service shop/web=URL is given")
    });
    let dead_letters = trigger("t", "[]", "web").replace(
        "---",
        "  delivery: {deadLetterSink: {service: {name: grave}}}\n---",
    );
    manifests.write("t.yaml", dead_letters);
    process.wait_for_line(PATIENCE, |line| {
        line.contains(
            "t.yaml:9:14: Trigger shop/t: no --service shop/grave=URL is given, so the router keeps",
        )
    });
    let empty = Scratch::new();
    let refused = Process::weir(["run", empty.path().to_str().unwrap()])
        .quiet()
        .start()
        .wait_for_exit(PATIENCE);
    assert_eq!(refused.code(), Some(1));
}

#[test]
fn a_sink_without_its_service_is_said_where_it_stands_and_where_it_is_used() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let sink = "apiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {name: s, namespace: shop}\nspec:\n  service: \
                {name: web}\n";
    manifests.write("sink.yaml", sink);
    // A Sink alone is something to run: its Trigger may come later.
    let process = run(&manifests, &data, &[]);
    process.wait_for_line(PATIENCE, |line| {
        line.contains("sink.yaml:5:3: Sink shop/s: no --service shop/web=URL is given")
    });
    let by_sink = trigger("t", "[]", "web").replace("service: {name: web, path: /in}", "ref: {name: s}");
    manifests.write("trigger.yaml", by_sink);
    process.wait_for_line(PATIENCE, |line| {
        line.contains("trigger.yaml:8:3: Trigger shop/t: no --service shop/web=URL is given")
    });
}

#[test]
fn http_needs_no_certificate_authorities() {
    let consumer = Consumer::start();
    let url = consumer.url();
    let status = Process::weir(["send", url.as_str(), "--type", "t"])
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent")
        .start()
        .wait_for_exit(PATIENCE);
    assert!(status.success());
    consumer.wait_for(1);
}

#[test]
fn a_named_display_shows_its_name() {
    for (output, shown) in [
        ("text", "[orders] greeting"),
        ("json", r#"{"name":"orders","event":{"#),
    ] {
        let arguments = [
            "display",
            "--listen",
            "127.0.0.1:0",
            "--name",
            "orders",
            "-o",
            output,
        ];
        let display = Process::weir(arguments).start();
        let address = display.address("display").to_string();
        let sent = Process::weir(["send", address.as_str(), "--type", "greeting"])
            .start()
            .wait_for_exit(PATIENCE);
        assert!(sent.success());
        display.wait_for_line(PATIENCE, |line| line.starts_with(shown));
    }
}

#[test]
fn display_prints_what_send_sends() {
    let display = Process::weir(["display", "--listen", "127.0.0.1:0", "-o", "json"]).start();
    let address = display.address("display").to_string();
    let sent = Process::weir([
        "send",
        &address,
        "--type",
        "greeting",
        "--id",
        "1",
        "--data",
        "{\"a\": 1.10}",
    ])
    .start()
    .wait_for_exit(PATIENCE);
    assert!(sent.success());
    let line = display.wait_for_line(PATIENCE, |line| line.contains("greeting"));
    assert!(line.contains(r#""data":{"a": 1.10}"#), "{line}");
    let refused = post(
        &format!("http://{address}/"),
        &[("content-type", "application/json")],
        "{}",
    );
    assert_eq!(refused.status, 400);
    let nobody = Process::weir(["send", "127.0.0.1:1", "--type", "t"])
        .quiet()
        .start()
        .wait_for_exit(PATIENCE);
    assert_eq!(nobody.code(), Some(1));
    let wrong = Process::weir(["send", &address, "--type", ""])
        .quiet()
        .start()
        .wait_for_exit(PATIENCE);
    assert_eq!(wrong.code(), Some(2));
}

#[test]
fn the_quickstart_has_no_mistake() {
    let data = Scratch::new();
    let [ticks, orders] = [(); 2].map(|()| Consumer::start());
    let arguments = [
        "run".to_owned(),
        concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quickstart").to_owned(),
        "--data".to_owned(),
        data.path().to_str().unwrap().to_owned(),
        "--listen=127.0.0.1:0".to_owned(),
        "--admin=127.0.0.1:0".to_owned(),
        format!("--service=quickstart/ticks={}", ticks.url().trim_end_matches('/')),
        format!(
            "--service=quickstart/orders={}",
            orders.url().trim_end_matches('/')
        ),
    ];
    let process = Process::weir(arguments).start();
    let tick = ticks.wait_for(1).remove(0);
    assert_eq!(
        (tick.header("ce-type"), tick.header("ce-priority")),
        (Some("com.example.tick"), Some("low"))
    );
    assert!(
        process.lines().iter().all(|line| !line.contains(".yaml:")),
        "{:?}",
        process.lines()
    );
    assert!(orders.received().is_empty());
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let (manifests, data) = (Scratch::new(), Scratch::new());
    let consumer = Consumer::start();
    manifests.write("triggers.yaml", trigger("all", "[]", "all"));
    let listen = ReservedPort::new();
    let (weir, address) = (env!("CARGO_BIN_EXE_weir"), listen.address());
    let service = format!("shop/all={}", consumer.url().trim_end_matches('/'));
    let full_disk = r#"exec "$0" "$@" 2>/dev/full"#;
    let run = ["-c", full_disk, weir, "run", manifests.path().to_str().unwrap()];
    let options = [
        format!("--data={}", data.path().display()),
        format!("--listen={address}"),
        "--admin=127.0.0.1:0".to_owned(),
        format!("--service={service}"),
    ];
    let arguments = run.into_iter().chain(options.iter().map(String::as_str));
    let mut process = Process::program("sh", arguments).start();
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ];
    eventually(PATIENCE, || {
        match try_post(&format!("http://{address}/shop/default"), &headers, "") {
            Ok(response) if response.status == 202 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    consumer.wait_for(1);
    assert!(process.terminate().success());
}

#[test]
fn the_quickstart_shows_that_nothing_is_lost() {
    let state = Scratch::new();
    // What the script starts ends with it, however that ends.
    let exec = format!(
        "#!/bin/sh\nexec setpriv --pdeathsig KILL -- {} \"$@\"\n",
        env!("CARGO_BIN_EXE_weir")
    );
    let weir = state.write("weir", exec);
    std::fs::set_permissions(&weir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let [ingress, admin, ticks, orders] = [(); 4].map(|()| ReservedPort::new());
    let script = |arguments: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/quickstart/run.sh");
        let all: Vec<_> = [script].into_iter().chain(arguments.iter().copied()).collect();
        Process::program("bash", all)
            .env("QUICKSTART_WEIR", &weir)
            .env("QUICKSTART_STATE", state.path())
            .env("QUICKSTART_TICKS", ticks.address().to_string())
            .env("QUICKSTART_ORDERS", orders.address().to_string())
            .env("WEIR_LISTEN", ingress.address().to_string())
            .env("WEIR_ADMIN", admin.address().to_string())
    };
    let all = script(&[]).start();
    all.wait_for_line(PATIENCE, |line| line.contains("com.example.tick"));
    let order = |id: &str| {
        let url = format!("http://{}/quickstart/default", ingress.address());
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/shop"),
            ("ce-type", "com.example.order.created"),
        ];
        assert_eq!(post(&url, &headers, "").status, 202);
    };
    order("first");
    all.wait_for_line(PATIENCE, |line| line.contains("first"));

    // Without its consumer, and over the router's end, an order waits.
    script(&["stop", "orders"]).run().unwrap();
    all.wait_for_line(PATIENCE, |line| line.contains("The others go on"));
    order("second");
    script(&["kill", "router"]).run().unwrap();
    let _router = script(&["router"]).start();
    let consumer = script(&["orders"]).start();
    consumer.wait_for_line(PATIENCE, |line| line.contains("second"));
}
