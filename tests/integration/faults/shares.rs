//! The log is divided among namespaces: one that fills its share is rejected alone, whatever fills it, and another goes
//! on as if it were alone.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{LocalRouter, Producers, Setup, all_arrive, answers::asking, mapped, post_event, trigger};
use crate::support::{Answer, Consumer, PATIENCE, eventually};

/// A Trigger of another namespace.
const WELL: &str = "\
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: well, namespace: other}
spec:
  sink: {service: {name: well}}
  delivery: {backoffDelay: 20ms, backoffMax: 200ms}
";

/// Size of the data of an event.
const DATA: usize = 8 * 1024;

fn well_at(consumer: &Consumer) -> String {
    format!("other/well=http://{}", consumer.address())
}

/// URL of the neighbour's broker.
fn other(router: &LocalRouter) -> String {
    router.url().replace("/shop/", "/other/")
}

#[track_caller]
fn wait_until_refused(producers: &Producers) {
    eventually(PATIENCE * 2, || match producers.refused_with(507) {
        0..20 => Err(format!("{} were accepted", producers.count())),
        _ => Ok(()),
    });
}

/// The neighbour posts and receives as much as fits into the log several times, and never more at once than its own share.
#[track_caller]
fn neighbour_goes_on(router: &LocalRouter, well: &Consumer) {
    let producers = Producers::with_data(&other(router), DATA);
    for _ in 0..15 {
        producers.wait_for_more(20);
        let _rest = producers.rest();
        all_arrive(well, &producers.acknowledged());
    }
    assert_eq!(producers.refused_with(507), 0);
    all_arrive(well, &producers.finish());
}

fn held_by(namespace: &str, router: &LocalRouter, metric: &str) -> u64 {
    let label = format!("namespace=\"{namespace}\"");
    router.metric(&[metric, &label]).unwrap_or_default()
}

#[test]
fn a_dead_sink_fills_the_share_of_its_namespace_alone() {
    let (bad, well) = (Consumer::start(), Consumer::start());
    bad.answer(Answer::status(503));
    let manifests = [trigger("bad", ""), WELL.to_owned()].concat();
    let router = Setup::new(&manifests, &[mapped("bad", &bad), well_at(&well)])
        .argument("--log-size=2MiB")
        .start();
    let producers = Producers::with_data(&router.url(), DATA);
    wait_until_refused(&producers);
    neighbour_goes_on(&router, &well);

    let refusal = producers.last_refusal().unwrap();
    assert!(refusal.headers.contains_key("retry-after"));
    let problem = refusal.json();
    assert_eq!(
        (&problem["status"], &problem["reason"]),
        (&507.into(), &"quota".into())
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("namespace shop holds"), "{detail}");
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("events are rejected with 507") && line.contains("held_by=\"shop/bad\"")
    });
    let (held, limit) = (
        held_by("shop", &router, "weir_log_namespace_bytes"),
        held_by("shop", &router, "weir_log_namespace_limit_bytes"),
    );
    assert!(held > 512 * 1024 && held < 1100 * 1024, "{held} of {limit}");
    assert!(held_by("shop", &router, "weir_broker_requests_over_quota_total") >= 20);
    assert!(held_by("shop", &router, "weir_trigger_held_events") > 50);

    bad.answer(Answer::status(204));
    producers.wait_for_more(100);
    all_arrive(&bad, &producers.finish());
}

#[test]
fn replies_and_dead_letters_fill_the_share_of_their_namespace_alone() {
    let (ask, held, well) = (Consumer::start(), Consumer::start(), Consumer::start());
    let event = format!(
        r#"{{"specversion":"1.0","id":"1","source":"a","type":"answer","data":"{}"}}"#,
        "x".repeat(100)
    );
    let thousand = format!("[{}]", vec![event; 1000].join(","));
    ask.answer(
        Answer::status(200)
            .header("content-type", "application/cloudevents-batch+json")
            .body(thousand),
    );
    held.answer(Answer::status(503));
    // Nobody gets the answers, and every question becomes a dead letter of another Trigger.
    let rejected =
        trigger("rejected", "retry: 0").replace("spec:\n", "spec:\n  filters: [{exact: {type: question}}]\n");
    let manifests = [asking("ask", ""), trigger("held", ""), rejected, WELL.to_owned()].concat();
    let services = [
        mapped("ask", &ask),
        mapped("held", &held),
        mapped("rejected", &held),
        well_at(&well),
    ];
    let router = Setup::new(&manifests, &services)
        .argument("--log-size=2MiB")
        .start();
    assert_eq!(router.post("question", "first", &[]).status, 202);
    eventually(PATIENCE, || {
        let stored = router.metric(&["weir_trigger_replies_total", "trigger=\"ask\"", "stored"]);
        match stored >= Some(1000) {
            true => Ok(()),
            false => Err(format!("{stored:?} replies are stored")),
        }
    });
    // Replies leave a little room, which a few events fill.
    let (mut accepted, padding) = (0, "x".repeat(DATA));
    eventually(PATIENCE * 2, || {
        let answer = router.post("question", &accepted.to_string(), &[("ce-padding", &padding)]);
        accepted += 1;
        match answer.status.as_u16() {
            507 => Ok(()),
            status => Err(format!(
                "{accepted} questions, the last one answered with {status}"
            )),
        }
    });
    neighbour_goes_on(&router, &well);
    let share = held_by("shop", &router, "weir_log_namespace_bytes");
    assert!(share < 1150 * 1024, "{share}");
}

#[test]
fn the_oldest_events_are_dropped_of_whoever_exceeds_its_share() {
    let (bad, well) = (Consumer::start(), Consumer::start());
    bad.answer(Answer::status(503));
    well.answer(Answer::status(503));
    // Thirty brokers, none of them as large as the neighbour's.
    let brokers: String = (0..30)
        .map(|number| {
            trigger(&format!("bad-{number}"), "").replace("spec:\n", &format!("spec:\n  broker: b{number}\n"))
        })
        .collect();
    let services: Vec<_> = (0..30)
        .map(|number| mapped(&format!("bad-{number}"), &bad))
        .chain([well_at(&well)])
        .collect();
    let router = Setup::new(&[&brokers, WELL].concat(), &services)
        .argument("--log-size=2MiB")
        .argument("--when-full=drop-oldest")
        .start();
    // A number of events that fits into the neighbour's share, however late this thread runs.
    let kept: BTreeSet<_> = (0..20)
        .map(|number| {
            let id = format!("kept-{number}");
            let answer = post_event(&other(&router), &id, "kept", vec![b'x'; DATA]).unwrap();
            assert_eq!(answer.status, 202, "{}", answer.text());
            id
        })
        .collect();

    let url = router.url();
    let next = AtomicUsize::new(0);
    let producers = Producers::by(4, move |key, id| {
        let number = next.fetch_add(1, Relaxed) % 30;
        let url = url.replace("/default", &format!("/b{number}"));
        post_event(&url, id, key, vec![b'x'; DATA])
    });
    producers.wait_for_more(400);
    assert_eq!(producers.refused_with(507), 0);
    drop(producers.finish());
    let dropped = |broker: &str| router.metric(&["weir_events_dropped_when_full_total", broker]);
    assert!((0..30).any(|number| dropped(&format!("broker=\"b{number}\"")) > Some(0)));
    assert_eq!(dropped("namespace=\"other\""), Some(0));
    well.answer(Answer::status(204));
    all_arrive(&well, &kept);
}
