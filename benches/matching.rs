//! How long it takes to find the Triggers that want an event, by how many there are, and to evaluate one filter.
//!
//! `make bench-matching` runs it. It makes no processes and no I/O.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench ends by panicking")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use weir::{
    cloudevents::{Event, EventBuilder},
    filter::CompiledFilter,
    routing::{Configuration, Delivery, RoutingTable},
};

const SIZES: [usize; 3] = [10, 1_000, 10_000];

/// What one of several Triggers wants.
type Kind = fn(usize) -> Value;

const KINDS: [(&str, Kind); 4] = [
    ("exact types", exact),
    ("prefixes", prefix),
    ("any of two", any),
    ("a mix", mix),
];

fn exact(n: usize) -> Value {
    json!([{"exact": {"type": format!("com.example.order.{n}")}}])
}

fn prefix(n: usize) -> Value {
    json!([{"prefix": {"type": format!("com.example.order.{n}.")}}])
}

fn any(n: usize) -> Value {
    json!([{"any": [
        {"exact": {"type": format!("com.example.order.{n}")}},
        {"prefix": {"subject": format!("customers/{n}/")}},
    ]}])
}

fn mix(n: usize) -> Value {
    match n % 4 {
        0 => exact(n),
        1 => prefix(n),
        2 => any(n),
        _ => {
            json!([{"sql": format!("source = '/shop' AND type = 'com.example.order.{n}' AND priority > 3")}])
        }
    }
}

fn table(count: usize, filters: Kind) -> RoutingTable {
    let trigger = |n: usize| {
        json!({
            "uid": n.to_string(), "namespace": "bench", "name": n.to_string(), "generation": 1, "broker": "default",
            "filters": filters(n), "destination": null, "delivery": Delivery::default(), "start": "Latest",
            "suspend": false,
        })
    };
    RoutingTable::compile(Configuration {
        triggers: (0..count)
            .map(|n| serde_json::from_value(trigger(n)).unwrap())
            .collect(),
        ..Configuration::default()
    })
}

/// An event with the attributes that most have; one Trigger of each kind wants it.
fn event(r#type: &str) -> Event {
    EventBuilder::new()
        .attribute("id", "b8b6c6b4-4a3a-4a67-9d0c-5a3a7d2c1e5f")
        .attribute("source", "/shop")
        .attribute("type", r#type)
        .attribute("time", "2026-01-01T00:00:00Z")
        .attribute("priority", 7)
        .data(
            "application/json",
            r#"{"amount": 150, "customer": {"id": "c-1"}, "tags": ["new", "gift"]}"#,
        )
        .build()
        .unwrap()
}

fn triggers(criterion: &mut Criterion) {
    for (name, filters) in KINDS {
        let mut group = criterion.benchmark_group(name);
        for count in SIZES {
            let table = table(count, filters);
            let broker = &table.brokers()["bench/default"];
            // Several in turn, so that not every search ends where the last one did.
            let events: Vec<_> = (0..count)
                .step_by(count.div_ceil(97))
                .map(|n| {
                    event(&format!(
                        "com.example.order.{n}{}",
                        if n % 4 == 1 { "." } else { "" }
                    ))
                })
                .collect();
            let mut events = events.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| {
                    let mut found = 0;
                    broker.matching(black_box(events.next().unwrap()), |_| found += 1);
                    found
                });
            });
        }
        group.finish();
    }
}

fn filters(criterion: &mut Criterion) {
    let event = event("com.example.order.created");
    let mut group = criterion.benchmark_group("one filter");
    for (name, filter) in [
        ("exact", json!([{"exact": {"type": "com.example.order.created"}}])),
        (
            "sql of three terms",
            json!([{"sql": "type LIKE 'com.example.%' AND source = '/shop' AND priority > 3"}]),
        ),
        (
            "cel of three terms",
            json!([{"cel": "event.type.startsWith('com.example.') && event.source == '/shop' && event.priority > 3"}]),
        ),
        (
            "cel on data, parsing it",
            json!([{"cel": "event.data.amount > 100"}]),
        ),
    ] {
        let filter = CompiledFilter::compile(&serde_json::from_value::<Vec<_>>(filter).unwrap()).unwrap();
        assert!(filter.matches(&event));
        group.bench_function(name, |bencher| bencher.iter(|| filter.matches(black_box(&event))));
    }
    group.finish();
}

criterion_group!(benches, triggers, filters);
criterion_main!(benches);
