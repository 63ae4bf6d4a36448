//! Brokers: the settings of brokers.

use crate::{
    cluster::Weir,
    support::{
        Answer, Consumer, ControlPlane, LocalRouter, Nats, PATIENCE, Setup, eventually, get, mapped, post,
    },
};

fn broker(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn trigger(broker: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: of-{broker}, namespace: shop}}\n\
         spec: {{broker: {broker}, sink: {{service: {{name: all}}}}}}\n"
    )
}

const EVENT: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/s"),
    ("ce-type", "t"),
];

#[test]
fn a_broker_exists_before_a_trigger_names_it() {
    let plane = ControlPlane::start();
    let weir = Weir::install(&plane, &[]);
    plane.admin().run(["create", "namespace", "shop"]);
    let kubectl = plane.admin().in_namespace("shop");
    let url = weir.broker("shop").replace("/default", "/orders");
    eventually(PATIENCE, || match post(&url, &EVENT, "").status.as_u16() {
        404 => Ok(()),
        status => Err(format!("{status}")),
    });

    kubectl.apply(&broker(
        "orders",
        "{retention: {age: 12h, size: 512Mi}, partitions: 4}",
    ));
    for condition in ["Ready", "WithinQuota"] {
        let condition = format!("--for=condition={condition}");
        kubectl.run(["wait", &*condition, "broker.weir.dev/orders"]);
    }
    assert_eq!(post(&url, &EVENT, "").status, 202);
    let shown = kubectl.run(["get", "brokers.weir.dev"]);
    assert!(
        shown.contains("http://weir/shop/orders") && shown.contains("True"),
        "{shown}"
    );

    for (spec, problem) in [
        ("{partitions: 5}", "partitions cannot be changed"),
        ("{retention: {size: 1gb}}", "must be a size"),
        ("{retention: {age: forever}}", "must be a duration"),
        ("{partitions: 25}", "less than or equal to 24"),
        ("{quota: {eventsPerSecond: 0}}", "greater than or equal to 1"),
        ("{quota: {eventSize: large}}", "must be a size"),
        ("{quota: {bytes: large}}", "must be a size"),
        ("{whenFull: Drop}", "spec.whenFull"),
    ] {
        let refused = kubectl.apply_err(&broker("orders", spec));
        assert!(refused.contains(problem), "{spec}: {refused}");
    }

    // A name that cannot be in a URL is valid for Kubernetes.
    kubectl.apply(&broker("my.orders", "{}"));
    let reason = r#"jsonpath={.status.conditions[?(@.type=="Ready")].reason}"#;
    eventually(PATIENCE, || {
        match kubectl.run(["get", "broker.weir.dev/my.orders", "-o", reason]) {
            reason if reason == "InvalidName" => Ok(()),
            other => Err(other),
        }
    });

    kubectl.run(["delete", "broker.weir.dev/orders"]);
    eventually(PATIENCE, || match post(&url, &EVENT, "").status.as_u16() {
        404 => Ok(()),
        status => Err(format!("{status}")),
    });
}

#[test]
fn a_quota_limits_the_rate_and_the_size_of_events() {
    let all = Consumer::start();
    let quota = broker("orders", "{quota: {eventsPerSecond: 5, eventSize: 1Ki}}");
    let router = LocalRouter::start(&[quota, trigger("orders")].concat(), &[("all", &all)]);
    let (default, orders) = (router.url(), router.url().replace("/default", "/orders"));

    let large = post(&orders, &EVENT, "x".repeat(1000));
    assert_eq!(
        (large.status.as_u16(), &large.json()["reason"]),
        (413, &"quota".into())
    );
    let detail = large.json()["detail"].to_string();
    assert!(detail.contains("shop/orders takes 1024"), "{detail}");

    let mut accepted = 0;
    let refused = loop {
        let answer = post(&orders, &EVENT, "");
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1000, "all were accepted");
    };
    assert!(accepted >= 4, "{accepted}");
    assert_eq!(
        (refused.status.as_u16(), &refused.json()["reason"]),
        (429, &"quota".into())
    );
    assert_eq!(refused.headers["retry-after"], "1");
    for (limit, count) in [("rate", 1), ("size", 1), ("share", 0)] {
        let limit = format!("limit=\"{limit}\"");
        let counted = router.metric(&["weir_broker_requests_over_quota_total", "\"orders\"", &limit]);
        assert_eq!(counted, Some(count), "{limit}");
    }
    // Another broker is not affected.
    for _ in 0..20 {
        assert_eq!(post(&default, &EVENT, "x".repeat(2000)).status, 202);
    }
    eventually(PATIENCE, || match post(&orders, &EVENT, "").status.as_u16() {
        202 => Ok(()),
        status => Err(format!("{status}")),
    });
    all.wait_for(accepted + 1);
}

/// Posts events of about 8 KiB until one is not accepted. Returns the number of those that were, and the answer.
fn fill(url: &str, most: usize) -> (usize, Option<crate::support::Response>) {
    for accepted in 0..most {
        let answer = post(url, &EVENT, "x".repeat(8 * 1024));
        if answer.status != 202 {
            return (accepted, Some(answer));
        }
    }
    (most, None)
}

#[test]
fn a_quota_limits_the_unsettled_events_of_one_broker() {
    let all = Consumer::start();
    all.answer(Answer::status(503));
    let manifests = [
        broker("kept", "{quota: {bytes: 100Ki}}"),
        broker("rolling", "{quota: {bytes: 100Ki}, whenFull: DropOldest}"),
        trigger("kept").replace(
            "spec: {",
            "spec: {delivery: {backoffDelay: 20ms, backoffMax: 200ms}, ",
        ),
        trigger("rolling").replace(
            "spec: {",
            "spec: {delivery: {backoffDelay: 20ms, backoffMax: 200ms}, ",
        ),
    ];
    let router = LocalRouter::start(&manifests.concat(), &[("all", &all)]);
    let of_broker = |name: &str| router.url().replace("/default", &format!("/{name}"));
    let (kept, rolling, default) = (of_broker("kept"), of_broker("rolling"), router.url());

    let (accepted, refusal) = fill(&kept, 100);
    assert!((10..=12).contains(&accepted), "{accepted} were accepted");
    let refusal = refusal.unwrap();
    assert!(refusal.headers.contains_key("retry-after"));
    let problem = refusal.json();
    assert_eq!(
        (&problem["status"], &problem["reason"]),
        (&507.into(), &"quota".into())
    );
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.contains("broker shop/kept") && detail.contains("102400 bytes"),
        "{detail}"
    );
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("events are rejected with 507") && line.contains("held_by=\"shop/of-kept\"")
    });
    let counted = |broker: &str, limit: &str| {
        let (broker, limit) = (format!("broker=\"{broker}\""), format!("limit=\"{limit}\""));
        router.metric(&["weir_broker_requests_over_quota_total", &broker, &limit])
    };
    assert_eq!(
        (counted("kept", "bytes"), counted("kept", "share")),
        (Some(1), Some(0))
    );

    // The oldest events of the other one go instead; a broker without a quota is not affected.
    assert_eq!(fill(&rolling, 40).0, 40);
    let dropped = |broker: &str| {
        let broker = format!("broker=\"{broker}\"");
        router.metric(&["weir_events_dropped_when_full_total", &broker])
    };
    assert!(dropped("rolling") >= Some(28), "{:?}", dropped("rolling"));
    assert_eq!(dropped("kept").unwrap_or_default(), 0);
    assert_eq!(fill(&default, 40).0, 40);

    // What is delivered makes room, though it is retained.
    all.answer(Answer::status(204));
    router.wait_until_all_are("of-kept", "delivered", accepted);
    eventually(PATIENCE, || match fill(&kept, 1) {
        (1, _) => Ok(()),
        (_, refusal) => Err(refusal.unwrap().text()),
    });
    assert!(retained(&router, "kept") > 100 * 1024);
}

#[test]
fn a_brokers_status_says_how_full_it_is() {
    let plane = ControlPlane::start();
    plane.admin().run(["create", "namespace", "shop"]);
    let all = Consumer::start();
    all.answer(Answer::status(503));
    let weir = Weir::install(&plane, &[mapped("all", &all)]);
    let kubectl = plane.admin().in_namespace("shop");
    kubectl.apply("apiVersion: v1\nkind: Service\nmetadata: {name: all}\nspec: {ports: [{port: 80}]}\n");
    kubectl.apply(&[broker("orders", "{quota: {bytes: 100Ki}}"), trigger("orders")].concat());
    kubectl.wait_ready("broker.weir.dev/orders");
    kubectl.wait_ready("trigger/of-orders");
    let url = weir.broker("shop").replace("/default", "/orders");
    let accepted = fill(&url, 100).0;
    kubectl.wait_condition("broker.weir.dev/orders", "WithinQuota=False");
    let status = eventually(PATIENCE * 3, || {
        let status = kubectl.get("broker.weir.dev/orders")["status"].clone();
        match status["backlog"] == accepted {
            true => Ok(status),
            false => Err(status.to_string()),
        }
    });
    assert!(status["fillPercent"].as_u64() >= Some(75), "{status}");
    assert!(status["usedBytes"].as_u64() > Some(75 * 1024), "{status}");
    let within = status["conditions"].as_array().unwrap();
    let within = within.iter().find(|condition| condition["type"] == "WithinQuota");
    let message = within.unwrap()["message"].as_str().unwrap();
    assert!(
        message.contains("broker shop/orders has used up its quota.bytes; Trigger shop/of-orders holds most"),
        "{message}"
    );
    let shown = kubectl.run(["get", "brokers.weir.dev"]);
    assert!(shown.contains("BACKLOG") && shown.contains("FILL %"), "{shown}");
}

/// Bytes that are retained of a broker.
fn retained(router: &LocalRouter, broker: &str) -> u64 {
    let of_broker = format!("broker=\"{broker}\"");
    router
        .metric(&["weir_log_retained_bytes", &of_broker])
        .unwrap_or_default()
}

#[test]
fn a_broker_says_how_long_settled_events_are_kept() {
    let consumer = Consumer::start();
    let manifest = broker("short", "{retention: {age: 0s}}") + &trigger("short") + &trigger("default");
    let router = Setup::new(&manifest, &[mapped("all", &consumer)]).start();
    for name in ["short", "default"] {
        let url = router.url().replace("/default", &format!("/{name}"));
        assert_eq!(post(&url, &EVENT, "").status, 202);
    }
    consumer.wait_for(2);
    eventually(PATIENCE, || match retained(&router, "short") {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes are retained")),
    });
    assert!(retained(&router, "default") > 0);
}

#[test]
fn a_broker_says_how_many_partitions_it_has() {
    let (nats, consumer) = (Nats::start(), Consumer::start());
    let before = trigger("divided") + &trigger("default");
    let setup = |manifest: &str| {
        Setup::new(manifest, &[mapped("all", &consumer)])
            .argument("--log=jetstream")
            .argument(format!("--nats={}", nats.url()))
            .argument("--nats-replicas=1")
            .argument("--nats-stream-size=64MiB")
            .argument("--nats-dead-letter-stream-size=16MiB")
            .start()
    };
    // The broker of the second Trigger is in use, and keeps its number.
    let manifest = broker("divided", "{partitions: 3}") + &before;
    let router = setup(&manifest);
    router.apply(&(manifest.clone() + &broker("default", "{partitions: 5}")));
    let partitions = |broker: &str| {
        let metrics = get(&router.admin("/metrics")).text();
        let of_trigger = format!("trigger=\"of-{broker}\"");
        let matched = metrics.lines().filter(|line| {
            line.starts_with("weir_trigger_events_matched_total{") && line.contains(&of_trigger)
        });
        matched.count()
    };
    eventually(PATIENCE, || {
        match (partitions("divided"), partitions("default")) {
            (3, 1) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}
