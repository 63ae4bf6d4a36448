//! What the statuses of Sources tell, with real routers and a real API server.

use std::net::SocketAddr;

use http::Method;
use serde_json::Value;

use crate::{
    controller::{account, condition, events, install_definitions},
    faults::{Producers, all_arrive, kills},
    support::{
        Consumer, ControlPlane, Kubectl, PATIENCE, Process, ReservedPort, Response, Scratch, eventually, get,
        runtime, send,
    },
};

const SOURCES: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: clock}
spec: {cron: {schedule: "* * * * * *", type: tick, catchUp: All}}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: hook}
spec:
  webhook:
    verification: {none: {}}
    event: {attributes: {id: "${request.headers['x-id']}", type: hooked}}
"#;

fn controller(account: &Kubectl, listen: SocketAddr) -> Process {
    let listen = listen.to_string();
    let arguments = ["controller", "--listen", &listen, "--admin", "127.0.0.1:0"];
    let hooks = ["--webhook-base-url", "http://hooks.example.com"];
    Process::weir(arguments.into_iter().chain(hooks))
        .env("KUBECONFIG", account.kubeconfig())
        .start()
}

/// A router that leaves schedules to the router `one`, unless it is that.
fn router(name: &str, controller: SocketAddr, data: &Scratch) -> Process {
    let controller = format!("http://{controller}");
    let arguments = [
        "router",
        "--name",
        name,
        "--listen=127.0.0.1:0",
        "--listen-hooks=127.0.0.1:0",
        "--admin=127.0.0.1:0",
        "--allow-uri-addresses=127.0.0.0/8", // consumers are there
        "--sources-router=one",
        "--controller",
        &controller,
        "--data",
        data.path().to_str().unwrap(),
    ];
    Process::weir(arguments).start()
}

fn hook(router: &Process, id: Option<&str>) -> Result<Response, String> {
    let url = format!("http://{}/default/hook", router.address("hooks"));
    let headers: Vec<_> = id.map(|id| ("x-id", id)).into_iter().collect();
    runtime().block_on(send(Method::POST, &url, &headers, "data"))
}

/// Waits until a condition of a Source has this status and reason.
#[track_caller]
fn await_condition(kubectl: &Kubectl, source: &str, r#type: &str, expected: (&str, &str)) -> Value {
    eventually(PATIENCE * 2, || {
        let found = condition(kubectl, &format!("source/{source}"), r#type);
        match found["status"] == expected.0 && found["reason"] == expected.1 {
            true => Ok(found),
            false => Err(format!("{source} {type}: {found}, not {expected:?}")),
        }
    })
}

fn trigger(consumer: &Consumer) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: all}}\n\
         spec: {{sink: {{uri: '{}'}}}}\n",
        consumer.url()
    )
}

#[test]
fn status_of_a_source_tells_whether_events_come() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let listen = ReservedPort::new();
    let controller = controller(&account, listen.address());
    let (data_of_one, data_of_other) = (Scratch::new(), Scratch::new());
    let other = router("other", listen.address(), &data_of_other);
    admin.apply(SOURCES);

    let unrun = await_condition(&admin, "clock", "Ready", ("False", "NotRunning"));
    let message = unrun["message"].as_str().unwrap();
    assert!(message.contains("the router one (--sources-router)"), "{message}");
    await_condition(&admin, "hook", "Ready", ("True", "Ready"));
    await_condition(&admin, "hook", "Connected", ("Unknown", "NoRequestYet"));

    assert_eq!(hook(&other, None).unwrap().status, 422);
    await_condition(&admin, "hook", "Connected", ("False", "EventRejected"));
    let status = admin.get("source/hook")["status"].clone();
    assert_eq!(status["lastRejection"]["reason"], "mapping_failed", "{status}");
    assert_eq!(status["lastEventTime"], Value::Null);
    assert_eq!(hook(&other, Some("1")).unwrap().status, 202);
    await_condition(&admin, "hook", "Connected", ("True", "RequestsAccepted"));
    let status = admin.get("source/hook")["status"].clone();
    assert!(status["lastEventTime"].is_string(), "{status}");

    let one = router("one", listen.address(), &data_of_one);
    await_condition(&admin, "clock", "Ready", ("True", "Ready"));
    await_condition(&admin, "clock", "Connected", ("True", "Scheduled"));
    let produced = || {
        let page = get(&format!("http://{}/metrics", one.address("admin"))).text();
        let line = page
            .lines()
            .find(|line| line.starts_with("weir_source_events_produced_total{") && line.contains("clock"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    eventually(PATIENCE, || {
        let status = admin.get("source/clock")["status"].clone();
        match status["lastEventTime"].is_string() {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
    let (version, before) = (
        admin.get("source/clock")["metadata"]["resourceVersion"].clone(),
        produced().unwrap(),
    );
    eventually(PATIENCE, || match produced() {
        Some(now) if now >= before + 3 => Ok(()),
        now => Err(format!("{now:?}")),
    });
    assert_eq!(
        admin.get("source/clock")["metadata"]["resourceVersion"],
        version,
        "events write no status"
    );
    let table = admin.run(["get", "source", "clock"]);
    assert!(
        table.contains("CONNECTED") && table.contains("LAST EVENT"),
        "{table}"
    );
    let page = get(&format!("http://{}/metrics", controller.address("admin"))).text();
    for line in [
        "weir_controller_sources{ready=\"true\"} 2",
        "weir_controller_sources_not_connected 0",
    ] {
        assert!(page.contains(line), "{page}");
    }
    let told = events(&admin, "hook");
    for reason in ["EventRejected", "RequestsAccepted"] {
        assert!(told.iter().any(|(found, _)| found == reason), "{told:?}");
    }
    // Nobody runs it again: that is told once no other router has taken it over.
    drop(one);
    await_condition(&admin, "clock", "Ready", ("False", "NotRunning"));
}

#[test]
fn sources_do_not_notice_when_the_api_server_is_killed_again_and_again() {
    let mut plane = ControlPlane::start();
    let account = account(&plane);
    let admin = plane.admin();
    install_definitions(&admin);
    let (listen, consumer, data) = (ReservedPort::new(), Consumer::start(), Scratch::new());
    let _controller = controller(&account, listen.address());
    let router = std::sync::Arc::new(router("one", listen.address(), &data));
    admin.apply(&(SOURCES.to_owned() + &trigger(&consumer)));
    for resource in ["source/clock", "source/hook", "trigger/all"] {
        admin.wait_ready(resource);
    }
    let poster = router.clone();
    let sender = Producers::by(4, move |_, id| hook(&poster, Some(id)));
    for _ in 0..kills() {
        plane.stop_api_server();
        sender.wait_for_more(50);
        plane.start_api_server();
    }
    let acknowledged = sender.finish();
    await_condition(&admin, "clock", "Connected", ("True", "Scheduled"));
    await_condition(&admin, "hook", "Connected", ("True", "RequestsAccepted"));
    let is_hooked = |event: &crate::support::Received| event.header("ce-type") == Some("hooked");
    all_arrive(&consumer, &acknowledged);
    let hooked = consumer.look(|received| received.iter().filter(|event| is_hooked(event)).count());
    let page = get(&format!("http://{}/metrics", router.address("admin"))).text();
    let produced = |source: &str| {
        let line = page.lines().find(|line| {
            line.starts_with("weir_source_events_produced_total{") && line.contains(&format!("\"{source}\""))
        });
        line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .unwrap_or_default()
    };
    assert_eq!(
        (hooked, produced("hook")),
        (acknowledged.len(), acknowledged.len())
    );
    let mut times: Vec<i64> = consumer.look(|received| {
        let ticks = received.iter().filter(|event| !is_hooked(event));
        let ids = ticks.filter_map(|event| event.header("ce-id")?.rsplit_once('-'));
        ids.map(|(_, time)| time.parse().unwrap()).collect()
    });
    times.sort_unstable();
    let span = times[times.len() - 1] - times[0] + 1;
    assert_eq!(span, times.len() as i64, "each time once: {times:?}");
    eprintln!(
        "API server: {} kills, {hooked} requests and {} scheduled times, 0 lost, 0 repeated",
        kills(),
        times.len()
    );
}
