//! What goes on while something is away.

use std::time::{Duration, Instant};

use super::installation::{Installation, LONG, SYSTEM, await_delivered, say};
use crate::support::{Kubectl, PATIENCE, eventually};

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(60);

#[test]
fn events_flow_for_a_minute_without_the_api_server() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let Some(node) = installation.cluster.own("the API server is stopped") else {
        return;
    };
    let kubectl = installation.consumer("outage", 1, "{}");
    kubectl.wait_rolled_out("deployment/consumer");
    let producers = installation.producers("outage");
    producers.wait_for_more(20);
    node.stop_api_server();
    let begin = Instant::now();
    while begin.elapsed() < OUTAGE {
        producers.wait_for_more(20);
    }
    // Nobody can be asked for the consumer's log: it is in a file of the node.
    let last = producers.acknowledged().last().cloned().unwrap_or_default();
    let line = format!(r#""id":"{last}""#);
    let log = ["--recursive", "--quiet", &line, "/var/log/pods"];
    eventually(LONG, || node.run("grep", log));

    node.start_api_server();
    // What is new takes effect again.
    let patch = r#"{"spec": {"filters": [{"exact": {"type": "com.example.test"}}]}}"#;
    kubectl.run(["patch", "trigger/all", "--type=merge", "--patch", patch]);
    let generation = "--for=jsonpath={.status.observedGeneration}=2";
    kubectl.run(["wait", generation, "trigger/all", "--timeout=120s"]);
    kubectl.run(["wait", "--for=condition=Ready", "trigger/all", "--timeout=60s"]);
    producers.wait_for_more(20);
    let acknowledged = producers.finish();
    let wanted: Vec<&str> = acknowledged.iter().map(String::as_str).collect();
    await_delivered(&kubectl, "consumer", &wanted);
    say(&format!(
        "the API server away for a minute: {} acknowledged, 0 lost",
        acknowledged.len()
    ));
}

#[test]
fn events_wait_for_a_consumer_that_is_scaled_to_zero() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let kubectl = installation.consumer("zero", 1, "{}");
    kubectl.wait_rolled_out("deployment/consumer");
    let broker = installation.cluster.broker("zero");
    eventually(PATIENCE, || installation.cluster.send(&broker, "before"));
    await_delivered(&kubectl, "consumer", &["before"]);

    kubectl.run(["scale", "deployment/consumer", "--replicas=0"]);
    kubectl.run([
        "wait",
        "--for=delete",
        "pod",
        "--selector=app=consumer",
        "--timeout=120s",
    ]);
    let waiting: Vec<String> = (0..10).map(|number| format!("waits-{number}")).collect();
    for id in &waiting {
        eventually(PATIENCE, || installation.cluster.send(&broker, id));
    }
    // It is said, in the status and by an Event, that the consumer is away.
    kubectl.run([
        "wait",
        "--for=condition=SinkAnswering=False",
        "trigger/all",
        "--timeout=120s",
    ]);
    await_event(&kubectl, "SinkDown");

    kubectl.run(["scale", "deployment/consumer", "--replicas=1"]);
    let waiting: Vec<&str> = waiting.iter().map(String::as_str).collect();
    await_delivered(&kubectl, "consumer", &waiting);
    kubectl.run([
        "wait",
        "--for=condition=SinkAnswering",
        "trigger/all",
        "--timeout=120s",
    ]);
}

fn await_event(kubectl: &Kubectl, reason: &str) {
    eventually(LONG, || {
        let events = kubectl.try_run(["events", "--for=trigger/all"])?;
        if events.contains(reason) {
            Ok(())
        } else {
            Err(events)
        }
    });
}

#[test]
fn a_namespace_may_be_deleted_with_everything_in_it() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let other = installation.consumer("stays", 1, "{}");
    // Events wait, for a consumer that never comes.
    installation.consumer("goes", 0, "{}");
    let broker = installation.cluster.broker("goes");
    eventually(PATIENCE, || installation.cluster.send(&broker, "waits"));

    let admin = installation.cluster.kubectl("default");
    admin.run(["delete", "namespace", "goes", "--timeout=120s"]);
    // Until the routers know, events are accepted.
    let mut wanted = vec!["waits", "new"];
    eventually(LONG, || match installation.cluster.send(&broker, "late") {
        Err(error) if error.contains("404") => Ok(()),
        Ok(()) => {
            wanted.push("late");
            Err("accepted".to_owned())
        }
        other => Err(format!("{other:?}")),
    });
    let metrics = format!("--raw=/api/v1/namespaces/{SYSTEM}/pods/weir-router-0:9090/proxy/metrics");
    // What is retained of its events is gone with time alone.
    let of_its_triggers = |line: &&str| line.starts_with("weir_trigger_") && line.contains(r#""goes""#);
    eventually(LONG, || {
        let metrics = admin.try_run(["get", &metrics])?;
        metrics
            .lines()
            .find(of_its_triggers)
            .map_or(Ok(()), |line| Err(line.to_owned()))
    });

    // Others notice nothing, and a Trigger of the same names goes on where the deleted one was, for an hour.
    let broker_of_stays = installation.cluster.broker("stays");
    eventually(PATIENCE, || installation.cluster.send(&broker_of_stays, "other"));
    await_delivered(&other, "consumer", &["other"]);
    let again = installation.consumer("goes", 1, "{}");
    eventually(PATIENCE, || installation.cluster.send(&broker, "new"));
    await_delivered(&again, "consumer", &wanted);
}
