//! Sources of kind webhook, with the real router.

use http::Method;
use ring::hmac;

use crate::support::{
    Answer, Consumer, LocalRouter, PATIENCE, Response, Setup, eventually, mapped, runtime, send,
};

const SECRET: &str = "It's a Secret to Everybody";

/// A Secret, Sources that use it, and a Trigger that takes everything.
const MANIFESTS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: hooks, namespace: shop}
stringData: {old: "It's a Secret to Everybody", new: n3w}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: github, namespace: shop}
spec:
  webhook:
    verification: {github: {secrets: [{secretKeyRef: {name: hooks, key: new}}, {secretKeyRef: {name: hooks, key: old}}]}}
    event: {attributes: {team: blue}}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: slack, namespace: shop}
spec:
  webhook:
    verification: {slack: {secrets: [{secretKeyRef: {name: hooks, key: new}}]}}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: alerts, namespace: shop}
spec:
  webhook:
    verification: {token: {secrets: [{secretKeyRef: {name: hooks, key: new}}]}}
    event: {attributes: {type: com.example.alert, source: /alertmanager}}
  suspend: false
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: missing, namespace: shop}
spec:
  webhook:
    verification: {gitlab: {secrets: [{secretKeyRef: {name: hooks, key: other}}]}}
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: all, namespace: shop}
spec:
  sink: {service: {name: all}}
"#;

fn start(manifests: &str) -> (LocalRouter, Consumer) {
    let consumer = Consumer::start();
    let router = Setup::new(manifests, &[mapped("all", &consumer)])
        .argument("--listen-hooks=127.0.0.1:0")
        .start();
    (router, consumer)
}

fn hook(router: &LocalRouter, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let url = format!("http://{}{path}", router.process.address("hooks"));
    let body = bytes::Bytes::copy_from_slice(body.as_bytes());
    runtime()
        .block_on(send(Method::POST, &url, headers, body))
        .unwrap()
}

/// HMAC-SHA256 in hexadecimal digits.
fn sign(secret: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, text.as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn requests_become_events_once_their_sender_is_proven() {
    let (router, consumer) = start(MANIFESTS);
    let body = r#"{"action": "opened", "issue": {"number": 7}, "repository": {"url": "https://api.github.com/repos/o/r"}}"#;
    let signature = format!("sha256={}", sign(SECRET, body));
    let github = |id: &str, signature: &str| {
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", "issues"),
            ("x-github-delivery", id),
            ("x-hub-signature-256", signature),
        ];
        let answer = hook(&router, "/shop/github", &headers, body);
        let reason = serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_or_default();
        let reason = reason["reason"].as_str().unwrap_or_default().to_owned();
        (answer.status.as_u16(), reason)
    };
    assert_eq!(github("d-1", &signature), (202, String::new()));
    let received = consumer.wait_for(1);
    let event = &received[0];
    for (name, value) in [
        ("ce-id", "d-1"),
        ("ce-type", "com.github.issues.opened"),
        ("ce-source", "https://api.github.com/repos/o/r"),
        ("ce-subject", "7"),
        ("ce-team", "blue"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(event.header(name), Some(value), "{name}");
    }
    assert_eq!(event.body, body);

    let new = format!("sha256={}", sign("n3w", body));
    assert_eq!(github("d-2", &new), (202, String::new()));
    let forged = format!("sha256={}", sign("guess", body));
    assert_eq!(github("d-3", &forged), (401, "invalid_signature".to_owned()));
    let unsigned = hook(&router, "/shop/github", &[], body);
    assert_eq!(unsigned.json()["reason"], "no_signature");

    let token = [("authorization", "Bearer n3w"), ("content-type", "text/plain")];
    assert_eq!(hook(&router, "/shop/alerts", &token, "fire").status, 202);
    let wrong = [("authorization", "Bearer old"), ("content-type", "text/plain")];
    assert_eq!(hook(&router, "/shop/alerts", &wrong, "fire").status, 401);
    let received = consumer.wait_for(3);
    let alert = received
        .iter()
        .find(|event| event.header("ce-type") == Some("com.example.alert"));
    let alert = alert.expect("the alert is delivered");
    assert_eq!(
        (alert.header("ce-source"), &*alert.body),
        (Some("/alertmanager"), b"fire".as_slice())
    );

    for path in ["/shop/missing", "/shop/none", "/other/github"] {
        let unknown = hook(&router, path, &token, "x");
        assert_eq!(
            (unknown.status.as_u16(), &unknown.json()["reason"]),
            (404, &"unknown_webhook".into())
        );
    }
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("Source shop/missing") && line.contains("has no key \"other\"")
    });
    for (parts, count) in [
        (["source=\"github\"", "result=\"accepted\""], 2),
        (["source=\"github\"", "result=\"invalid_signature\""], 1),
        (["source=\"github\"", "result=\"no_signature\""], 1),
        (["source=\"alerts\"", "result=\"invalid_signature\""], 1),
    ] {
        let all = ["weir_webhook_requests_total", parts[0], parts[1]];
        assert_eq!(router.metric(&all), Some(count), "{all:?}");
    }
    let told = router.process.lines().join("\n");
    assert!(!told.contains("n3w") && !told.contains(SECRET), "{told}");
    // Brokers are not reachable by the port for webhooks, nor webhooks by that for brokers.
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-type", "t"),
        ("ce-source", "/s"),
    ];
    assert_eq!(hook(&router, "/shop/default", &headers, "").status, 404);
}

#[test]
fn a_challenge_of_slack_is_answered_and_stores_nothing() {
    let (router, consumer) = start(MANIFESTS);
    let now = jiff::Timestamp::now().as_second();
    let body = r#"{"type": "url_verification", "challenge": "3eZbrw1a"}"#;
    let slack = |secret: &str, now: i64, body: &str| {
        let signature = format!("v0={}", sign(secret, &format!("v0:{now}:{body}")));
        let now = now.to_string();
        let headers = [
            ("x-slack-signature", &*signature),
            ("x-slack-request-timestamp", &*now),
            ("content-type", "application/json"),
        ];
        hook(&router, "/shop/slack", &headers, body)
    };
    let answer = slack("n3w", now, body);
    assert_eq!(
        (answer.status.as_u16(), answer.text().as_str()),
        (200, "3eZbrw1a")
    );
    assert_eq!(slack("guess", now, body).status, 401);
    assert_eq!(slack("n3w", now - 400, body).json()["reason"], "stale_signature");
    let event = r#"{"type": "event_callback", "event_id": "Ev1", "event": {"type": "message"}}"#;
    assert_eq!(slack("n3w", now, event).status, 202);
    let received = consumer.wait_for(1);
    assert_eq!(received[0].header("ce-type"), Some("com.slack.message"));
    assert_eq!(consumer.received().len(), 1);
}

#[test]
fn an_accepted_request_outlives_a_kill_and_a_suspended_source_takes_none() {
    let (mut router, consumer) = start(MANIFESTS);
    consumer.answer(Answer::status(503));
    let token = [("authorization", "Bearer n3w"), ("content-type", "text/plain")];
    for number in 0..20 {
        assert_eq!(
            hook(&router, "/shop/alerts", &token, &number.to_string()).status,
            202
        );
    }
    router.kill_and_restart();
    consumer.answer(Answer::status(204));
    let arrived = |received: &[crate::support::Received]| {
        let bodies: std::collections::BTreeSet<_> = received.iter().map(|event| event.body.clone()).collect();
        bodies.len() == 20
    };
    consumer.wait_until(PATIENCE * 2, arrived);

    router.apply(&MANIFESTS.replace("suspend: false", "suspend: true"));
    eventually(PATIENCE, || {
        match hook(&router, "/shop/alerts", &token, "x").status.as_u16() {
            404 => Ok(()),
            status => Err(status.to_string()),
        }
    });
}

#[test]
fn an_event_is_made_and_selected_as_the_source_says() {
    const ALERTS: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: alerts, namespace: shop}
spec:
  webhook:
    verification: {none: {}}
    event:
      attributes:
        type: "com.example.alert.${body.status}"
        subject: "${body.commonLabels.alertname}"
        env: "${request.query.env}"
      data: {pods: "${body.alerts.map(a, a.labels.pod)}"}
  filters: [{not: {exact: {type: com.example.alert.resolved}}}]
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: all, namespace: shop}
spec: {sink: {service: {name: all}}}
"#;
    let (router, consumer) = start(ALERTS);
    let alert = |status: &str| {
        let body = format!(
            r#"{{"status": "{status}", "commonLabels": {{"alertname": "DiskFull"}}, "alerts": [{{"labels": {{"pod": "a"}}}}]}}"#
        );
        let headers = [("content-type", "application/json")];
        hook(&router, "/shop/alerts?env=test", &headers, &body)
    };
    assert_eq!(alert("resolved").status, 204);
    assert_eq!(alert("firing").status, 202);
    let received = consumer.wait_for(1);
    for (name, value) in [
        ("ce-type", "com.example.alert.firing"),
        ("ce-subject", "DiskFull"),
        ("ce-env", "test"),
        (
            "ce-source",
            "/apis/weir.dev/v1alpha1/namespaces/shop/sources/alerts",
        ),
        ("content-type", "application/json"),
    ] {
        assert_eq!(received[0].header(name), Some(value), "{name}");
    }
    assert_eq!(received[0].body, r#"{"pods":["a"]}"#);

    let failed = hook(&router, "/shop/alerts?env=test", &[], r#"{"status": "secret"}"#);
    let problem = failed.json();
    assert_eq!(
        (failed.status.as_u16(), &problem["reason"]),
        (422, &"mapping_failed".into())
    );
    assert_eq!(
        problem["detail"],
        "spec.webhook.event.attributes.subject: there is no commonLabels"
    );
    for result in ["accepted", "filtered", "mapping_failed"] {
        let result = format!("result=\"{result}\"");
        assert_eq!(
            router.metric(&["weir_webhook_requests_total", &result]),
            Some(1),
            "{result}"
        );
    }
    assert_eq!(consumer.received().len(), 1);
}

#[test]
fn cloud_events_keep_what_they_have_once_their_sender_has_permission() {
    const GRID: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: hooks, namespace: shop}
stringData: {token: s3cret}
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: grid, namespace: shop}
spec:
  webhook:
    verification: {cloudEvents: {allowedOrigins: [eventgrid.azure.net], secrets: [{secretKeyRef: {name: hooks, key: token}}]}}
  filters: [{not: {exact: {type: noise}}}]
---
apiVersion: weir.dev/v1alpha1
kind: Source
metadata: {name: open, namespace: shop}
spec: {webhook: {verification: {none: {}}}}
---
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: {name: default, namespace: shop}
spec: {quota: {eventsPerSecond: 50}}
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: all, namespace: shop}
spec: {sink: {service: {name: all}}}
"#;
    let (router, consumer) = start(GRID);
    let url = |path: &str| format!("http://{}{path}", router.process.address("hooks"));
    let options = |path: &str, headers: &[(&str, &str)]| {
        runtime()
            .block_on(send(Method::OPTIONS, &url(path), headers, ""))
            .unwrap()
    };
    let asking = [
        ("webhook-request-origin", "eventgrid.azure.net"),
        ("webhook-request-callback", "http://127.0.0.1:9/confirm?id=1"),
        ("webhook-request-rate", "120"),
    ];
    let permission = options("/shop/grid?access_token=guess", &asking);
    let header = |answer: &Response, name: &str| {
        let value = answer.headers.get(name);
        value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(permission.status, 200);
    for (name, value) in [
        ("webhook-allowed-origin", "eventgrid.azure.net"),
        ("webhook-allowed-rate", "3000"),
        ("allow", "POST, OPTIONS"),
    ] {
        assert_eq!(header(&permission, name), value, "{name}");
    }
    let refused = options("/shop/grid", &[("webhook-request-origin", "example.com")]);
    assert_eq!(
        (refused.status.as_u16(), refused.json()["reason"].clone()),
        (403, "origin_not_allowed".into())
    );
    let unasked = options("/shop/grid", &[]);
    for answer in [&refused, &unasked] {
        assert_eq!(header(answer, "webhook-allowed-origin"), "");
        assert_eq!(header(answer, "webhook-allowed-rate"), "");
    }
    assert_eq!(unasked.status, 200);
    let not_asked = options("/shop/open", &asking);
    let told = (not_asked.status.as_u16(), header(&not_asked, "allow"));
    assert_eq!(told, (405, "POST".to_owned()));
    assert_eq!(options("/shop/none", &asking).status, 404);

    let binary = [
        ("authorization", "Bearer s3cret"),
        ("ce-specversion", "1.0"),
        ("ce-id", "b-1"),
        ("ce-source", "/mine"),
        ("ce-type", "t"),
        ("ce-team", "blue"),
        ("content-type", "application/json"),
    ];
    assert_eq!(hook(&router, "/shop/grid", &binary, r#"{"n":  1}"#).status, 202);
    let event = |id: &str, kind: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"/mine","type":"{kind}","team":"blue","data":{{"n":  1}}}}"#
        )
    };
    let structured = [("content-type", "application/cloudevents+json")];
    let answer = hook(
        &router,
        "/shop/grid?access_token=s3cret",
        &structured,
        &event("s-1", "t"),
    );
    assert_eq!(
        (answer.status.as_u16(), header(&answer, "cache-control")),
        (202, "private".into())
    );
    let batch = [
        ("authorization", "Bearer s3cret"),
        ("content-type", "application/cloudevents-batch+json"),
    ];
    let events = [("1", "t"), ("2", "noise"), ("3", "t")].map(|(id, kind)| event(id, kind));
    assert_eq!(
        hook(&router, "/shop/grid", &batch, &format!("[{}]", events.join(","))).status,
        202
    );
    let noise = format!("[{}]", event("4", "noise"));
    assert_eq!(hook(&router, "/shop/grid", &batch, &noise).status, 204);
    let received = consumer.wait_for(4);
    let ids: std::collections::BTreeSet<_> = received.iter().map(crate::faults::id_of).collect();
    assert_eq!(ids, ["b-1", "s-1", "1", "3"].map(str::to_owned).into());
    let by_id = |id: &str| {
        received
            .iter()
            .find(|event| crate::faults::id_of(event) == id)
            .unwrap()
    };
    assert_eq!(by_id("b-1").header("ce-team"), Some("blue"));
    assert_eq!(by_id("b-1").body, r#"{"n":  1}"#);
    assert_eq!(by_id("s-1").body, event("s-1", "t"));

    for (path, headers, body, status, reason) in [
        (
            "/shop/grid",
            &structured[..],
            event("x", "t"),
            401,
            "no_signature",
        ),
        (
            "/shop/grid?access_token=guess",
            &structured,
            event("x", "t"),
            401,
            "invalid_signature",
        ),
        (
            "/shop/grid",
            &batch[..1],
            "{}".to_owned(),
            415,
            "not_a_cloudevent",
        ),
        ("/shop/grid", &batch, event("x", "t"), 400, "malformed_json"),
    ] {
        let answer = hook(&router, path, headers, &body);
        let problem = answer.json();
        assert_eq!(
            (answer.status.as_u16(), &problem["reason"]),
            (status, &reason.into()),
            "{problem}"
        );
        assert!(!answer.text().contains("guess"), "{problem}");
    }
    // Ten times what the broker takes in a second: it takes them once it has rested for a second.
    let many: Vec<_> = (0..500).map(|id| event(&format!("m-{id}"), "t")).collect();
    let many = format!("[{}]", many.join(","));
    eventually(PATIENCE, || {
        match hook(&router, "/shop/grid", &batch, &many).status.as_u16() {
            202 => Ok(()),
            status => Err(format!("the batch got {status}")),
        }
    });
    let answer = hook(&router, "/shop/grid", &binary, "{}");
    assert_eq!(answer.status, 429);
    assert_ne!(header(&answer, "retry-after"), "");
    assert_eq!(
        router.metric(&["weir_source_events_produced_total", "source=\"grid\""]),
        Some(504)
    );
    let told = router.process.lines().join("\n");
    assert!(!told.contains("s3cret") && !told.contains("guess"), "{told}");
}
