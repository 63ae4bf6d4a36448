//! Trace context: it goes through, and where traces are exported, spans tell of the way.

use crate::support::{
    Answer, Collector, Consumer, Exported, LocalRouter, PATIENCE, Received, Setup, eventually, mapped, post,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const HOP: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const ORIGIN: &str = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01";

fn trigger(name: &str, r#type: &str, delivery: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         filters: [{{exact: {{type: {type}}}}}]\n  sink: {{service: {{name: {name}}}}}\n  \
         delivery: {{backoffDelay: 20ms, backoffMax: 100ms{delivery}}}\n"
    )
}

fn of<'a>(received: &'a [Received], id: &str) -> &'a Received {
    received
        .iter()
        .find(|request| request.header("ce-id") == Some(id))
        .unwrap_or_else(|| panic!("{id} has not come: {received:?}"))
}

#[test]
fn with_tracing_off_the_context_goes_through_unchanged_also_when_the_router_was_killed() {
    let mut billing = Consumer::start();
    billing.stop();
    let mut router = LocalRouter::start(&trigger("billing", "order", ""), &[("billing", &billing)]);
    let state = "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE";
    let long = format!("{}=1,a=2", "l".repeat(600));
    let extension = [("ce-traceparent", ORIGIN), ("ce-tracestate", "o=1")];
    let both = [
        ("traceparent", HOP),
        ("tracestate", state),
        extension[0],
        extension[1],
    ];
    let sent: [(&str, &[(&str, &str)]); 6] = [
        ("header", &[("traceparent", HOP), ("tracestate", state)]),
        ("extension", &extension),
        ("both", &both),
        ("none", &[]),
        ("invalid", &[("traceparent", "00-nothing"), ("tracestate", "a=1")]),
        ("long", &[("traceparent", UNSAMPLED), ("tracestate", &long)]),
    ];
    for (id, headers) in sent {
        assert_eq!(router.post("order", id, headers).status, 202);
    }
    let batch = r#"[{"specversion":"1.0","id":"b1","source":"/p","type":"order"},
        {"specversion":"1.0","id":"b2","source":"/p","type":"order","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01"}]"#;
    let headers = [
        ("content-type", "application/cloudevents-batch+json"),
        ("traceparent", HOP),
    ];
    assert_eq!(post(&router.url(), &headers, batch).status, 202);

    router.kill_and_restart();
    billing.restart();
    let received = billing.wait_for(8);
    let expected = [
        ("header", Some(HOP), Some(state)),
        ("extension", Some(ORIGIN), Some("o=1")),
        ("both", Some(HOP), Some(state)),
        ("none", None, None),
        ("invalid", None, None),
        ("long", Some(UNSAMPLED), None),
    ];
    for (id, parent, state) in expected {
        let request = of(&received, id);
        let found = (request.header("traceparent"), request.header("tracestate"));
        assert_eq!(found, (parent, state), "{id}");
    }
    for (id, has_extension) in [
        ("header", false),
        ("extension", true),
        ("both", true),
        ("none", false),
    ] {
        let attribute = |name| of(&received, id).header(name).map(str::to_owned);
        let found = (attribute("ce-traceparent"), attribute("ce-tracestate"));
        let set = has_extension.then(|| (Some(ORIGIN.to_owned()), Some("o=1".to_owned())));
        assert_eq!(
            found,
            set.unwrap_or_default(),
            "the attributes of {id} are as they came"
        );
    }
    for (id, parent) in [("b1", HOP), ("b2", ORIGIN)] {
        let part = format!("\"{id}\"");
        let mut events = received.iter();
        let found = events.find(|request| String::from_utf8_lossy(&request.body).contains(&part));
        assert_eq!(found.unwrap().header("traceparent"), Some(parent), "{id}");
    }
}

#[test]
fn a_reply_continues_its_own_context_or_that_of_the_delivery() {
    let [ask, answers] = [(); 2].map(|()| Consumer::start());
    ask.answer_by(|request| {
        let id = request.header("ce-id").unwrap();
        let reply = Answer::status(200)
            .header("ce-specversion", "1.0")
            .header("ce-id", id)
            .header("ce-source", "/replier")
            .header("ce-type", "answer");
        match id {
            "header" => reply.header("traceparent", ORIGIN).header("tracestate", "r=1"),
            "extension" => reply.header("ce-traceparent", ORIGIN),
            _ => reply,
        }
    });
    let manifests = trigger("ask", "question", "") + &trigger("answers", "answer", "");
    let router = LocalRouter::start(&manifests, &[("ask", &ask), ("answers", &answers)]);
    for id in ["header", "extension", "neither"] {
        let headers = [("traceparent", HOP), ("tracestate", "d=1")];
        assert_eq!(router.post("question", id, &headers).status, 202);
    }
    let received = answers.wait_for(3);
    let expected = [
        ("header", ORIGIN, Some("r=1")),
        ("extension", ORIGIN, None),
        ("neither", HOP, Some("d=1")),
    ];
    for (id, parent, state) in expected {
        let reply = of(&received, id);
        let found = (reply.header("traceparent"), reply.header("tracestate"));
        assert_eq!(found, (Some(parent), state), "{id}");
    }
}

/// A router that exports to the collector soon.
fn traced(manifests: &str, services: &[String], collector: &Collector) -> Setup {
    Setup::new(manifests, services)
        .argument(format!("--otlp-endpoint={}", collector.url()))
        .variable("OTEL_BSP_SCHEDULE_DELAY", "100")
}

fn named<'a>(spans: &'a [Exported], name: &str) -> Vec<&'a Exported> {
    spans
        .iter()
        .filter(|exported| exported.span.name == name)
        .collect()
}

#[test]
fn spans_lead_from_the_producer_to_the_consumer() {
    let collector = Collector::start();
    let [billing, lost, letters] = [(); 3].map(|()| Consumer::start());
    let mut failed = false;
    billing.answer_by(move |_| match std::mem::replace(&mut failed, true) {
        false => Answer::status(503).body("not yet"),
        true => Answer::status(204),
    });
    lost.answer(Answer::status(400));
    let dead_letter_sink = ", deadLetterSink: {service: {name: letters}}";
    let manifests = trigger("billing", "order", "") + &trigger("lost", "order", dead_letter_sink);
    let services = [
        mapped("billing", &billing),
        mapped("lost", &lost),
        mapped("letters", &letters),
    ];
    let setup = traced(&manifests, &services, &collector)
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=shop")
        .variable("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=router-0");
    let mut router = setup.start();
    let headers = [
        ("traceparent", HOP),
        ("tracestate", "a=1"),
        ("ce-traceparent", ORIGIN),
        ("ce-subject", "7"),
    ];
    assert_eq!(router.post("order", "1", &headers).status, 202);
    billing.wait_for(2);
    letters.wait_for(1);
    router.wait_until_all_are("billing", "delivered", 1);
    router.wait_until_all_are("lost", "dead_lettered", 1);
    // What is not exported by then is exported now.
    assert!(router.process.terminate().success());

    let spans = collector.spans();
    assert_eq!(spans.len(), 5, "{spans:#?}");
    assert!(spans.iter().all(|span| span.trace() == TRACE));
    let [request] = named(&spans, "send shop/default")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        (request.parent().as_str(), request.span.kind),
        ("00f067aa0ba902b7", 2)
    );
    assert_eq!(request.links(), ["b9c7c989f97918e1"], "where the event began");
    let attributes = [
        ("messaging.system", "weir"),
        ("messaging.destination.name", "shop/default"),
        ("cloudevents.event_id", "1"),
        ("cloudevents.event_source", "/p"),
        ("cloudevents.event_type", "order"),
        ("cloudevents.event_subject", "7"),
        ("http.response.status_code", "202"),
    ];
    for (name, value) in attributes {
        assert_eq!(request.attribute(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(request.resource("service.name").as_deref(), Some("weir-router"));
    assert_eq!(request.resource("k8s.pod.name").as_deref(), Some("router-0"));

    let mut attempts = named(&spans, "deliver shop/billing");
    attempts.sort_by_key(|span| span.attribute("weir.attempt"));
    let received = billing.received();
    let expected = [("1", "503", Some("503")), ("2", "204", None)];
    assert_eq!(attempts.len(), expected.len());
    for ((attempt, request_seen), (number, status, error)) in attempts.iter().zip(&received).zip(expected) {
        assert_eq!((attempt.parent(), attempt.span.kind), (request.id(), 3));
        assert_eq!(attempt.attribute("weir.trigger").as_deref(), Some("shop/billing"));
        assert_eq!(attempt.attribute("weir.attempt").as_deref(), Some(number));
        assert_eq!(
            attempt.attribute("http.response.status_code").as_deref(),
            Some(status)
        );
        assert_eq!(attempt.attribute("error.type").as_deref(), error);
        assert_eq!(attempt.links(), ["b9c7c989f97918e1"]);
        let parent = format!("00-{TRACE}-{}-01", attempt.id());
        assert_eq!(request_seen.header("traceparent"), Some(parent.as_str()));
        assert_eq!(request_seen.header("tracestate"), Some("a=1"));
        assert_eq!(
            request_seen.header("ce-traceparent"),
            Some(ORIGIN),
            "what came in goes out"
        );
    }
    assert_eq!(named(&spans, "deliver shop/lost").len(), 1);
    let [letter] = named(&spans, "dead-letter shop/lost")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(letter.parent(), request.id());
    let parent = format!("00-{TRACE}-{}-01", letter.id());
    assert_eq!(letters.received()[0].header("traceparent"), Some(parent.as_str()));

    let requests = collector.requests();
    assert!(requests.iter().all(|request| request.target == "/v1/traces"));
    assert!(
        requests
            .iter()
            .all(|request| request.header("x-tenant") == Some("shop"))
    );
}

#[test]
fn what_the_producer_does_not_record_makes_no_span_and_goes_through() {
    let collector = Collector::start();
    let billing = Consumer::start();
    let router = traced(
        &trigger("billing", "order", ""),
        &[mapped("billing", &billing)],
        &collector,
    )
    .variable("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    .start();
    assert_eq!(
        router
            .post("order", "unsampled", &[("traceparent", UNSAMPLED)])
            .status,
        202
    );
    assert_eq!(router.post("order", "none", &[]).status, 202);
    assert_eq!(
        router
            .post("order", "refused", &[("traceparent", HOP), ("ce-time", "soon")])
            .status,
        400
    );
    assert_eq!(
        router.post("order", "sampled", &[("traceparent", HOP)]).status,
        202
    );
    let received = billing.wait_for(3);
    assert_eq!(of(&received, "unsampled").header("traceparent"), Some(UNSAMPLED));
    assert_eq!(of(&received, "none").header("traceparent"), None);
    // Which of the request and its delivery ends first is not said; what ended before them is exported before them.
    let is_sampled = |span: &Exported| span.attribute("cloudevents.event_id").as_deref() == Some("sampled");
    let spans = collector.wait_until(|spans| spans.iter().filter(|span| is_sampled(span)).count() >= 2);
    let ids: Vec<_> = spans
        .iter()
        .filter_map(|span| span.attribute("cloudevents.event_id"))
        .collect();
    assert_eq!(ids, ["sampled"; 2], "{spans:#?}");
    let [refused] = named(&spans, "send")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        refused.attribute("http.response.status_code").as_deref(),
        Some("400")
    );
    assert_eq!(
        (
            refused.parent().as_str(),
            refused.span.status.as_ref().map_or(0, |status| status.code)
        ),
        ("00f067aa0ba902b7", 0)
    );
}

#[test]
fn a_trace_begins_here_where_the_sampler_says_so() {
    let collector = Collector::start();
    let billing = Consumer::start();
    let router = Setup::new(&trigger("billing", "order", ""), &[mapped("billing", &billing)])
        .variable(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &format!("{}custom", collector.url()),
        )
        .variable("OTEL_SERVICE_NAME", "events")
        .variable("OTEL_TRACES_SAMPLER", "always_on")
        .variable("OTEL_BSP_SCHEDULE_DELAY", "100")
        .start();
    assert_eq!(router.post_batch("order", 0..3).status, 202);
    let spans = collector.wait_until(|spans| spans.len() == 4);
    let [request] = named(&spans, "send shop/default")[..] else {
        panic!("{spans:#?}")
    };
    assert_eq!(
        request.attribute("messaging.batch.message_count").as_deref(),
        Some("3")
    );
    assert_eq!(request.parent(), "");
    let deliveries = named(&spans, "deliver shop/billing");
    assert!(
        deliveries
            .iter()
            .all(|span| (span.parent(), span.trace()) == (request.id(), request.trace()))
    );
    assert_eq!(request.resource("service.name").as_deref(), Some("events"));
    assert_eq!(collector.requests()[0].target, "/custom");
}

#[test]
fn without_the_collector_events_flow_and_it_is_said_once() {
    let mut collector = Collector::start();
    collector.stop();
    let billing = Consumer::start();
    let mut router = traced(
        &trigger("billing", "order", ""),
        &[mapped("billing", &billing)],
        &collector,
    )
    .variable("OTEL_EXPORTER_OTLP_TIMEOUT", "5000")
    .start();
    let lines = |router: &LocalRouter, part: &str| {
        let lines = router.process.lines();
        lines.iter().filter(|line| line.contains(part)).count()
    };
    let failed = "cannot export traces";
    let mut sent = 0;
    let mut send = |router: &LocalRouter| {
        for _ in 0..50 {
            sent += 1;
            assert_eq!(
                router
                    .post("order", &sent.to_string(), &[("traceparent", HOP)])
                    .status,
                202
            );
        }
        sent
    };
    send(&router);
    router
        .process
        .wait_for_line(PATIENCE, |line| line.contains(failed));
    // Some more exports fail.
    for _ in 0..5 {
        send(&router);
    }
    collector.restart();
    let again = "exporting traces again";
    eventually(PATIENCE, || {
        send(&router);
        (lines(&router, again) >= 1)
            .then_some(())
            .ok_or_else(|| "nothing is exported".to_owned())
    });
    assert_eq!(lines(&router, failed), 1);
    let sent = send(&router);
    router.wait_until_all_are("billing", "delivered", sent);
    collector.stop();
    assert!(router.process.terminate().success());
    assert!(lines(&router, failed) <= 2);
}

#[test]
fn what_cannot_be_used_ends_the_process_with_what_is_wrong() {
    let billing = Consumer::start();
    let mut router = Setup::new(&trigger("billing", "order", ""), &[mapped("billing", &billing)])
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
        .variable("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .launch();
    let status = router.process.wait_for_exit(PATIENCE);
    let output = router.process.output().join("\n");
    assert_eq!(status.code(), Some(2), "{output}");
    assert!(
        output.contains("OTEL_EXPORTER_OTLP_PROTOCOL: \"grpc\""),
        "{output}"
    );
}
