//! Filters that would take any time or memory: they take their part, and nobody else's.

use std::time::Duration;

use serde_json::{Value, json};

use super::{LocalRouter, Setup, is_long, mapped, trigger};
use crate::support::{Consumer, PATIENCE, eventually, post};

const MIB: u64 = 1024 * 1024;

/// A Trigger with these filters.
pub(super) fn filtered(name: &str, filters: &Value) -> String {
    trigger(name, "").replace("spec:\n", &format!("spec:\n  filters: {filters}\n"))
}

/// Five times the same expression.
pub(super) fn five(expression: &str) -> Value {
    let expression = [expression; 5].join(" || ");
    json!([{"cel": expression}])
}

fn post_long_text(router: &LocalRouter, id: u32) {
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-source", "/p"),
        ("ce-type", "t"),
        ("ce-id", &*id.to_string()),
        ("content-type", "application/json"),
    ];
    let text = format!("\"{}\"", "ab".repeat(125_000));
    assert_eq!(post(&router.url(), &headers, text).status, 202);
}

fn explained(router: &LocalRouter, name: &str) -> Value {
    let url = router.admin("/v1/explain/shop/default");
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-source", "/p"),
        ("ce-type", "t"),
        ("ce-id", "x"),
        ("content-type", "application/json"),
    ];
    let operator = router.operator();
    let headers = [&headers[..], &[("authorization", &*operator)]].concat();
    let answer = post(&url, &headers, "\"ab\"");
    let explained: Value = answer.json();
    let triggers = explained["triggers"].as_array().unwrap();
    let found = triggers.iter().find(|trigger| trigger["name"] == name);
    found.unwrap().clone()
}

#[test]
fn an_expensive_filter_is_set_aside_and_holds_nobody_and_its_events_wait() {
    let [live, expensive] = [(); 2].map(|()| Consumer::start());
    // What passes when it is compiled takes thousands of steps for each byte; the other took two minutes.
    let costly = filtered("expensive", &five("event.data.matches('[ab]*a[ab]{500}c0')"));
    let refused = filtered("refused", &five("event.data.matches('[ab]*a[ab]{3000}c0')"));
    let others = [trigger("live", ""), refused].concat();
    let services = [mapped("live", &live), mapped("expensive", &expensive)];
    let setup = Setup::new(&[&*others, &costly].concat(), &services);
    let mut router = setup
        .argument("--service=shop/refused=http://127.0.0.1:1")
        .start();

    let events = 20;
    for id in 0..events {
        post_long_text(&router, id);
    }
    assert_eq!(live.wait_for(events as usize).len(), events as usize);
    let of = "trigger=\"expensive\"";
    eventually(PATIENCE, || {
        match router.metric(&["weir_trigger_set_aside", of]) {
            Some(1) => Ok(()),
            other => Err(format!("not set aside: {other:?}")),
        }
    });
    let overruns = router.metric(&["weir_trigger_filter_overruns_total", of]);
    assert_eq!(overruns, Some(16));
    assert_eq!(router.metric(&["weir_trigger_filter_errors_total", of]), overruns);
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("not evaluated any more") && line.contains("shop/expensive")
    });
    assert_eq!(explained(&router, "expensive")["held"], "filterTooExpensive");
    let invalid = explained(&router, "refused")["invalid"].to_string();
    assert!(
        invalid.contains("more than 65536 bytes when compiled"),
        "{invalid}"
    );
    assert!(expensive.received().is_empty());

    // With the event that set it aside it waits, also over a restart of nothing but the filters.
    let cheap = filtered("expensive", &json!([{"cel": "event.data.matches('^a')"}]));
    router.apply(&[&*others, &cheap].concat());
    let waited = (events - 15) as usize;
    let mut ids: Vec<u32> = expensive
        .wait_for(waited)
        .iter()
        .map(|received| received.header("ce-id").unwrap().parse().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, (events - waited as u32..events).collect::<Vec<_>>());
    router.wait_until_all_are("expensive", "delivered", waited);
    router.wait_until_all_are("live", "delivered", events as usize);
    assert_eq!(router.metric(&["weir_trigger_set_aside", of]), Some(0));

    // Whatever is being evaluated, it ends when it is told to.
    router.apply(&[&*others, &costly].concat());
    (events..events + 10).for_each(|id| post_long_text(&router, id));
    router.process.signal("TERM");
    assert!(router.process.wait_for_exit(PATIENCE).success());
}

/// A Trigger of so many bytes, with filters of nothing but values.
pub(super) fn of_bytes(name: &str, bytes: usize) -> String {
    let lists = (bytes / 30_000).min(32);
    let value = "x".repeat(bytes / (lists * 32 * 32) - 12);
    let map = |n: usize| -> Value {
        (0..32)
            .map(|entry| (format!("k{entry}"), json!(format!("{n}{value}"))))
            .collect()
    };
    let any = |n: usize| json!({"any": (0..32).map(|entry| json!({"exact": map(n * 32 + entry)})).collect::<Vec<_>>()});
    filtered(name, &Value::Array((0..lists).map(any).collect()))
}

/// A Trigger of so many expressions with so many regular expressions each, of some 20 KiB compiled.
fn of_patterns(name: &str, expressions: usize, patterns: usize) -> String {
    let patterns: Vec<_> = (0..patterns)
        .map(|n| format!("event.type.matches('[a-c]{{600}}{n}')"))
        .collect();
    let expression = patterns.join(" || ");
    assert!(expression.len() < 4096, "{}", expression.len());
    let one = json!({"any": vec![json!({"cel": expression}); expressions.min(32)]});
    filtered(name, &json!(vec![one; expressions.div_ceil(32)]))
}

#[test]
fn manifests_of_any_size_take_little_memory_and_the_rest_goes_on() {
    let live = Consumer::start();
    // Checking a manifest against its schema takes long in a build for debugging.
    let (large, bytes) = if is_long() { (60, 970_000) } else { (2, 120_000) };
    let mut manifests = trigger("live", "") + &of_patterns("patterns", if is_long() { 128 } else { 32 }, 100);
    for n in 0..large {
        manifests += &of_bytes(&format!("large{n}"), bytes);
    }
    // Each of these is as large as a Trigger may be; together they are too much for a namespace.
    let full = if is_long() { 200 } else { 3 };
    for n in 0..full {
        manifests += &of_patterns(&format!("full{n:03}"), 1, 20);
    }
    let setup = Setup::new(&manifests, &[mapped("live", &live)]);
    let router = setup.launch();
    let ready = |line: &str| line.contains("routing configuration applied");
    router.process.wait_for_line(10 * PATIENCE, ready);
    assert_eq!(router.post("t", "1", &[]).status, 202);
    live.wait_for(1);
    let refused = |name: &str| explained(&router, name)["invalid"].to_string();
    // One of so many values is not even kept.
    let large = if is_long() {
        "more than 20000 values; split the Trigger"
    } else {
        "more than 65536 bytes of names"
    };
    if !is_long() {
        assert!(refused("large0").contains(large), "{}", refused("large0"));
    }
    assert!(
        refused("patterns").contains("more than 65536 bytes of names"),
        "{}",
        refused("patterns")
    );
    assert_eq!(refused("full000"), "null");
    if is_long() {
        let last = refused(&format!("full{:03}", full - 1));
        assert!(last.contains("of the 16777216 bytes of its namespace"), "{last}");
    }
    let memory = router.process.resident_memory();
    assert!(memory < 256 * MIB, "the router holds {} MiB", memory / MIB);
    eprintln!(
        "manifests of {} KiB: the router held {} MiB",
        manifests.len() / 1024,
        memory / MIB
    );
    // It said of each what is wrong.
    let told = Duration::from_secs(5);
    router.process.wait_for_line(told, |line| {
        line.contains(if is_long() { large } else { "large1" }) && line.contains("split the Trigger")
    });
}
