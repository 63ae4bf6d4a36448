//! Table tests for resolution and compiling.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    AddressableKind, AddressableName, AddressableState, ClusterReach, CompileOutcome, Finding, Namespace,
    Naming, Observed, Port, Referrers, SecretName, SecretState, Service, StatusAddress, TokenName,
    TokenState, TriggerDiagnosis, compile, named_addressables,
};
use crate::{
    api,
    routing::{
        self, BackoffPolicy, ClientCertificate, Configuration, ContentMode, Header, HttpEndpoint,
        InstallationQuotas, Ordering, PlainHeader, ServiceAccountToken, SigningKey, Start,
    },
};

const DOMAIN: &str = "cluster.local";

fn endpoint(destination: &Option<routing::Destination>) -> &HttpEndpoint {
    let Some(routing::Destination::Http(endpoint)) = destination else {
        panic!("no destination")
    };
    endpoint
}

fn resource<K: serde::de::DeserializeOwned>(kind: &str, namespace: &str, name: &str, spec: Value) -> K {
    serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{kind}/{namespace}/{name}"), "generation": 2},
        "spec": spec,
    }))
    .unwrap()
}

fn trigger(name: &str, spec: Value) -> api::Trigger {
    resource("Trigger", "shop", name, spec)
}

fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Service {
    Service {
        namespace: namespace.into(),
        name: name.into(),
        ports: Some(
            ports
                .iter()
                .map(|&(name, number)| Port {
                    name: name.into(),
                    number,
                })
                .collect(),
        ),
        external_name: None,
    }
}

fn cluster() -> Observed {
    let external = Service {
        external_name: Some("example.com".into()),
        ..service("shop", "external", &[("", 80)])
    };
    Observed {
        services: vec![
            service("shop", "one", &[("http", 8080)]),
            service("shop", "two", &[("a", 1), ("b", 2)]),
            service("other", "far", &[("", 80)]),
            external,
        ],
        sinks: vec![
            resource(
                "Sink",
                "shop",
                "near",
                json!({"service": {"name": "one", "path": "/in"}, "contentMode": "Binary",
                "delivery": {"timeout": "5s", "concurrency": 4}}),
            ),
            resource("Sink", "shop", "broken", json!({"service": {"name": "none"}})),
            resource("Sink", "other", "closed", json!({"uri": "http://example.com/"})),
            resource(
                "Sink",
                "other",
                "named",
                json!({"service": {"name": "far"}, "allowedNamespaces": {"names": ["shop"]}}),
            ),
            resource(
                "Sink",
                "other",
                "everyone",
                json!({"uri": "https://example.com/", "allowedNamespaces": {"names": ["*"]}}),
            ),
            resource(
                "Sink",
                "other",
                "labelled",
                json!({"uri": "http://example.com/", "allowedNamespaces": {"matchLabels": {"team": "blue"}}}),
            ),
            resource(
                "Sink",
                "other",
                "otherwise",
                json!({"uri": "http://example.com/", "allowedNamespaces": {"matchLabels": {"team": "red"}}}),
            ),
        ],
        namespaces: vec![
            Namespace {
                name: "shop".into(),
                labels: [("team".into(), "blue".into())].into(),
                terminating: false,
            },
            Namespace {
                name: "other".into(),
                labels: [].into(),
                terminating: false,
            },
        ],
        ..Observed::default()
    }
}

fn with_trigger(spec: Value) -> (CompileOutcome, TriggerDiagnosis) {
    let mut observed = cluster();
    observed.triggers.push(trigger("t", spec));
    let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
    let diagnosis = outcome.diagnoses.triggers[0].clone();
    (outcome, diagnosis)
}

#[test]
fn resolves_destinations() {
    let table = [
        (
            json!({"service": {"name": "one"}}),
            Ok("http://one.shop.svc.cluster.local:8080/"),
        ),
        (
            json!({"service": {"name": "one", "port": "http", "path": "/a?b", "scheme": "https"}}),
            Ok("https://one.shop.svc.cluster.local:8080/a?b"),
        ),
        (
            json!({"service": {"name": "two", "port": 2}}),
            Ok("http://two.shop.svc.cluster.local:2/"),
        ),
        (json!({"service": {"name": "two"}}), Err("PortAmbiguous")),
        (
            json!({"service": {"name": "two", "port": "c"}}),
            Err("PortNotFound"),
        ),
        (
            json!({"service": {"name": "one", "port": 80}}),
            Err("PortNotFound"),
        ),
        (json!({"service": {"name": "far"}}), Err("ServiceNotFound")),
        (json!({"service": {"name": "external"}}), Err("ServiceExternal")),
        (
            json!({"uri": "https://example.com/hook?x=1"}),
            Ok("https://example.com/hook?x=1"),
        ),
        (
            json!({"uri": "http://user:secret@example.com/"}),
            Err("InvalidUri"),
        ),
        (json!({"uri": "ftp://example.com/"}), Err("InvalidUri")),
        (json!({"uri": "http://example.com:99999/"}), Err("InvalidUri")),
        (json!({"uri": "http://example.com:8080x"}), Err("InvalidUri")),
        (json!({"uri": "/path"}), Err("InvalidUri")),
        (json!({"uri": "http://one.shop.svc/"}), Err("InvalidUri")),
        (
            json!({"uri": "http://ONE.shop.svc.Cluster.Local.:80/"}),
            Err("InvalidUri"),
        ),
        (
            json!({"ref": {"name": "near"}}),
            Ok("http://one.shop.svc.cluster.local:8080/in"),
        ),
        (json!({"ref": {"name": "broken"}}), Err("ServiceNotFound")),
        (json!({"ref": {"name": "none"}}), Err("SinkNotFound")),
        (
            json!({"ref": {"name": "closed", "namespace": "other"}}),
            Err("SinkNotAllowed"),
        ),
        (
            json!({"ref": {"name": "none", "namespace": "other"}}),
            Err("SinkNotAllowed"),
        ),
        (
            json!({"ref": {"name": "named", "namespace": "other"}}),
            Ok("http://far.other.svc.cluster.local:80/"),
        ),
        (
            json!({"ref": {"name": "everyone", "namespace": "other"}}),
            Ok("https://example.com/"),
        ),
        (
            json!({"ref": {"name": "labelled", "namespace": "other"}}),
            Ok("http://example.com/"),
        ),
        (
            json!({"ref": {"name": "otherwise", "namespace": "other"}}),
            Err("SinkNotAllowed"),
        ),
        (json!({}), Err("InvalidSink")),
    ];
    for (sink, expected) in table {
        let (outcome, diagnosis) = with_trigger(json!({"sink": sink}));
        let uri = outcome.configuration.triggers[0]
            .destination
            .as_ref()
            .map(|destination| destination.uri().to_owned());
        assert_eq!(diagnosis.sink_uri, uri, "routing and status cannot disagree");
        let found = uri.ok_or(diagnosis.sink.reason);
        assert_eq!(
            found.as_deref().map_err(|reason| *reason),
            expected,
            "{sink}: {}",
            diagnosis.sink.message
        );
        assert_eq!(diagnosis.sink.holds, expected.is_ok());
    }
}

#[test]
fn does_not_reveal_whether_a_foreign_sink_exists() {
    let message = |name| {
        with_trigger(json!({"sink": {"ref": {"name": name, "namespace": "other"}}}))
            .1
            .sink
            .message
    };
    assert_eq!(
        message("closed").replace("closed", "x"),
        message("missing").replace("missing", "x")
    );
}

#[test]
fn trigger_settings_override_sink_settings_and_defaults() {
    let (outcome, _) = with_trigger(json!({
        "sink": {"ref": {"name": "near"}}, "start": "Earliest",
        "delivery": {"concurrency": 1, "retry": 3, "backoffPolicy": "Linear", "backoffDelay": "100ms"},
    }));
    let route = &outcome.configuration.triggers[0];
    let delivery = &route.delivery;
    assert_eq!((delivery.concurrency, delivery.timeout.as_secs()), (1, 5));
    assert_eq!(
        (delivery.retry.attempts, delivery.retry.duration),
        (Some(3), None)
    );
    assert_eq!(
        (delivery.backoff_policy, delivery.backoff_delay.as_millis()),
        (BackoffPolicy::Linear, 100)
    );
    assert_eq!(delivery.backoff_max.as_secs(), 300);
    assert_eq!(endpoint(&route.destination).content_mode, ContentMode::Binary);
    assert_eq!((route.start, route.generation), (Start::Earliest, 2));
}

#[test]
fn stored_zero_counts_as_unset_where_it_is_invalid() {
    let (outcome, _) = with_trigger(json!({
        "sink": {"ref": {"name": "near"}},
        "delivery": {
            "timeout": "0s", "backoffDelay": "0ms", "backoffMax": "0.0h", "retryDuration": "0s", "retryAfterMax": "0s",
        },
    }));
    let delivery = &outcome.configuration.triggers[0].delivery;
    // The timeout comes from the Sink, the backoff from the defaults.
    assert_eq!(
        [delivery.timeout, delivery.backoff_delay, delivery.backoff_max],
        [5_000, 500, 300_000].map(Duration::from_millis)
    );
    assert_eq!(
        (delivery.retry.duration, delivery.retry_after_max),
        (Some(Duration::ZERO), Duration::ZERO)
    );
}

#[test]
fn dead_letter_sink_is_resolved_relative_to_its_owner() {
    let dead_letters = |target: Value| json!({"deadLetterSink": target});
    let near = json!({"ref": {"name": "near"}});
    let table = [
        // The Trigger's delivery and its Sink's delivery in namespace `other` -> the dead-letter destination, or
        // why it is unresolved.
        (json!({}), json!({}), None),
        (
            dead_letters(json!({"service": {"name": "one"}})),
            json!({}),
            Some(Ok("http://one.shop.svc.cluster.local:8080/")),
        ),
        (
            dead_letters(near.clone()),
            json!({}),
            Some(Ok("http://one.shop.svc.cluster.local:8080/in")),
        ),
        (
            json!({}),
            dead_letters(json!({"service": {"name": "far"}})),
            Some(Ok("http://far.other.svc.cluster.local:80/")),
        ),
        (
            dead_letters(near),
            dead_letters(json!({"service": {"name": "far"}})),
            Some(Ok("http://one.shop.svc.cluster.local:8080/in")),
        ),
        (
            dead_letters(json!({"service": {"name": "far"}})),
            json!({}),
            Some(Err("ServiceNotFound")),
        ),
        (
            dead_letters(json!({"ref": {"name": "closed", "namespace": "other"}})),
            json!({}),
            Some(Err("SinkNotAllowed")),
        ),
        (
            json!({}),
            dead_letters(json!({"service": {"name": "one"}})),
            Some(Err("ServiceNotFound")),
        ),
    ];
    for (own, of_sink, expected) in table {
        let mut observed = cluster();
        let allowed = json!({"names": ["shop"]});
        let sink = json!({"uri": "http://example.com/", "allowedNamespaces": allowed, "delivery": of_sink});
        observed.sinks.push(resource("Sink", "other", "target", sink));
        let spec = json!({"sink": {"ref": {"name": "target", "namespace": "other"}}, "delivery": own});
        observed.triggers.push(trigger("t", spec.clone()));
        let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
        let route = &outcome.configuration.triggers[0];
        assert!(
            route.destination.is_some(),
            "events are delivered either way: {spec}"
        );
        let uri = route
            .delivery
            .dead_letter_sink
            .as_ref()
            .map(|destination| destination.uri());
        let finding = outcome.diagnoses.triggers[0].dead_letter_sink.as_ref();
        match expected {
            None => assert_eq!((uri, finding), (None, None), "{spec}"),
            Some(Ok(expected)) => assert_eq!(
                (uri, finding.map(|f| f.holds)),
                (Some(expected), Some(true)),
                "{spec}"
            ),
            Some(Err(reason)) => assert_eq!((uri, finding.map(|f| f.reason)), (None, Some(reason)), "{spec}"),
        }
    }
}

#[test]
fn sink_without_service_keeps_its_delivery_settings() {
    let mut observed = cluster();
    let delivery = json!({"ordering": "ByKey", "deadLetterSink": {"service": {"name": "one"}}});
    let sink = json!({"service": {"name": "away"}, "delivery": delivery});
    observed.sinks.push(resource("Sink", "shop", "target", sink));
    let spec = json!({"sink": {"ref": {"name": "target"}}});
    observed.triggers.push(trigger("t", spec));
    let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
    let route = &outcome.configuration.triggers[0];
    assert_eq!(route.destination, None);
    assert_eq!(route.delivery.ordering, Ordering::ByKey);
    assert!(route.delivery.dead_letter_sink.is_some());
}

#[test]
fn trigger_with_invalid_filter_keeps_its_position_and_is_reported() {
    for (filters, message) in [
        (
            json!([{"exact": {"a": "b"}}, {"not": {"exact": {}}}]),
            "spec.filters[1].not.exact: has no attribute",
        ),
        (
            json!([{"sql": "EXISTS a"}, {"any": [{"sql": "type = 'a' AND priority >"}]}]),
            "spec.filters[1].any[0].sql: column 26: expected a value",
        ),
        (
            json!([{"sql": "STRLEN(type) > 5"}]),
            "spec.filters[0].sql: column 1: there is no function STRLEN",
        ),
        (
            json!([{"sql": "a AND b OR c"}]),
            "spec.filters[0].sql: column 9: OR follows AND without parentheses",
        ),
        (
            json!([{"cel": "event.type = 'a'"}]),
            "spec.filters[0].cel: column 12: mismatched input '='",
        ),
        (
            json!([{"not": {"cel": "event.type.split('.') == []"}}]),
            "spec.filters[0].not.cel: there is no .split(...): the functions are",
        ),
        (
            json!([{"sql": "1 + 1"}]),
            "spec.filters[0].sql: expected Boolean, got Integer",
        ),
    ] {
        let (outcome, diagnosis) =
            with_trigger(json!({"sink": {"service": {"name": "one"}}, "filters": filters}));
        assert_eq!(
            (diagnosis.filters.holds, diagnosis.filters.reason),
            (false, "InvalidFilter")
        );
        assert!(
            diagnosis.filters.message.starts_with(message),
            "{}",
            diagnosis.filters.message
        );
        assert_eq!(outcome.configuration.triggers.len(), 1);
    }
}

#[test]
fn a_transform_reaches_routers_or_is_reported_with_its_field() {
    let sink = json!({"service": {"name": "one"}});
    let (outcome, diagnosis) = with_trigger(json!({
        "sink": sink,
        "transform": {"attributes": {"set": {"type": "b"}, "remove": ["x"]}, "data": {"id": "${data.id}"}},
    }));
    let expected = json!({"set": {"type": "b"}, "remove": ["x"], "data": {"id": "${data.id}"}});
    let route = &outcome.configuration.triggers[0];
    assert_eq!(serde_json::to_value(&route.transform).unwrap(), expected);
    assert_eq!(
        diagnosis.transform,
        Some(Finding::good("Compiled", "the transform is valid"))
    );

    for (filters, transform, is_filter_good, reason, message) in [
        (
            json!([]),
            json!({"data": {"total": "${data.a +}"}}),
            true,
            "InvalidTransform",
            "spec.transform.data.total: column 11: ",
        ),
        (
            json!([{"cel": "x"}]),
            json!({"attributes": {"remove": ["id"]}}),
            false,
            "InvalidTransform",
            "spec.transform.attributes.remove: id cannot be removed",
        ),
        (
            json!([]),
            json!({"data": "x".repeat(70_000)}),
            true,
            "TransformTooLarge",
            "spec.transform: has more than",
        ),
        (
            json!([]),
            json!({}),
            true,
            "InvalidTransform",
            "spec.transform: changes nothing",
        ),
    ] {
        let spec = json!({"sink": sink, "filters": filters, "transform": transform});
        let (outcome, diagnosis) = with_trigger(spec);
        assert_eq!(diagnosis.filters.holds, is_filter_good, "{transform}");
        let found = diagnosis.transform.unwrap();
        assert_eq!((found.holds, found.reason), (false, reason));
        assert!(found.message.starts_with(message), "{}", found.message);
        let route = &outcome.configuration.triggers[0];
        assert!(route.refused.is_some() && route.transform.is_none(), "{route:?}");
    }
}

#[test]
fn valid_expressions_reach_routers_verbatim() {
    let text = "type = 'a' and (priority > 5 OR NOT EXISTS priority)";
    let (outcome, diagnosis) = with_trigger(json!({
        "sink": {"service": {"name": "one"}}, "filters": [{"not": {"sql": text}}],
    }));
    assert_eq!(diagnosis.filters.reason, "Compiled");
    let filters = &outcome.configuration.triggers[0].filters;
    assert_eq!(
        serde_json::to_value(filters).unwrap(),
        json!([{"not": {"sql": text}}])
    );
}

#[test]
fn longest_expression_of_the_schema_compiles() {
    assert_eq!(api::MAX_EXPRESSION, crate::filter::sql::MAX_LENGTH);
    assert_eq!(api::MAX_EXPRESSION, crate::filter::cel::MAX_LENGTH);
}

#[test]
fn compiles_sources() {
    let cron = |more: Value| {
        let mut cron = json!({"schedule": "*/5 * * * *", "type": "t"});
        cron.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let mut observed = cluster();
        observed
            .sources
            .push(resource("Source", "shop", "s", json!({"cron": cron})));
        compile(&observed, DOMAIN, InstallationQuotas::default())
    };
    let good = cron(json!({"timeZone": "Europe/Berlin", "data": {"json": "{}"}, "extensions": {"x": "1"}}));
    let crate::routing::SourceKind::Cron(cron_of_route) = &good.configuration.sources[0].kind else {
        panic!("not a schedule")
    };
    let attributes: Vec<_> = cron_of_route
        .attributes
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let source = "/apis/weir.dev/v1alpha1/namespaces/shop/sources/s";
    assert_eq!(
        attributes,
        [
            ("type", "t"),
            ("source", source),
            ("datacontenttype", "application/json"),
            ("x", "1")
        ]
    );
    for (more, reason) in [
        (json!({"schedule": "* * *"}), "InvalidSchedule"),
        (json!({"schedule": "61 * * * *"}), "InvalidSchedule"),
        (json!({"schedule": "0 0 3 * * * 2030"}), "InvalidSchedule"),
        (json!({"schedule": "0 0 30 2 *"}), "InvalidSchedule"),
        (json!({"timeZone": "Mars/Olympus"}), "InvalidTimeZone"),
        (json!({"data": {"json": "{"}}), "InvalidData"),
        (json!({"data": {}}), "InvalidData"),
        (json!({"source": "a b"}), "InvalidEvent"),
        (json!({"extensions": {"Bad": "x"}}), "InvalidEvent"),
    ] {
        let outcome = cron(more.clone());
        assert_eq!(outcome.diagnoses.sources[0].valid.reason, reason, "{more}");
        assert!(outcome.configuration.sources.is_empty());
    }
}

#[test]
fn new_triggers_and_sources_do_not_displace_older_ones() {
    let large: Vec<_> = (0..50)
        .map(|n| {
            let entries = (0..32).map(|entry| (format!("a{entry}"), Value::from(n.to_string())));
            json!({"exact": entries.collect::<serde_json::Map<_, _>>()})
        })
        .collect();
    let created = |metadata: &mut kube::core::ObjectMeta, day: i8| {
        let time = format!("2026-11-{day:02}T08:00:00Z").parse().unwrap();
        metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
    };
    let mut observed = cluster();
    let sink = json!({"uri": "http://example.com/"});
    for number in 0..50 {
        let mut trigger = trigger(&format!("t{number}"), json!({"sink": sink, "filters": large}));
        created(&mut trigger.metadata, 10);
        observed.triggers.push(trigger);
    }
    for (name, day) in [("new", 11), ("old", 9)] {
        let spec = json!({"cron": {"schedule": "0 * * * *", "type": "t"}, "filters": large});
        let mut source: api::Source = resource("Source", "shop", name, spec);
        created(&mut source.metadata, day);
        observed.sources.push(source);
    }
    let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
    let findings: Vec<_> = outcome
        .diagnoses
        .sources
        .iter()
        .map(|source| (&*source.subject.name, source.valid.reason))
        .collect();
    assert_eq!(findings, [("new", "NamespaceTooLarge"), ("old", "Valid")]);
    let message = &outcome.diagnoses.sources[0].valid.message;
    assert!(message.ends_with("delete Triggers or Sources"), "{message}");
}

#[test]
fn ignores_resources_being_deleted() {
    let mut observed = cluster();
    let mut leaving = trigger("t", json!({"sink": {"ref": {"name": "near"}}}));
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        "2026-01-01T00:00:00Z".parse().unwrap(),
    ));
    observed.triggers.push(leaving);
    let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
    assert!(outcome.configuration.triggers.is_empty() && outcome.diagnoses.triggers.is_empty());
}

#[test]
fn revision_depends_on_the_content() {
    let (a, _) = with_trigger(json!({"sink": {"service": {"name": "one"}}}));
    let (b, _) = with_trigger(json!({"sink": {"service": {"name": "one"}}}));
    let (c, _) = with_trigger(json!({"sink": {"service": {"name": "one", "path": "/c"}}}));
    assert_eq!(a.configuration.revision, b.configuration.revision);
    assert_ne!(a.configuration.revision, c.configuration.revision);
}

fn shuffled<T: Clone + std::fmt::Debug + 'static>(list: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    Just(list).prop_shuffle()
}

proptest! {
    #[test]
    fn order_of_resources_does_not_matter(
        triggers in shuffled((0..6).map(|n| trigger(&format!("t{n}"), json!({"sink": {"ref": {"name": "near"}}}))).collect()),
        sinks in shuffled(cluster().sinks),
        services in shuffled(cluster().services),
        namespaces in shuffled(cluster().namespaces),
    ) {
        let mut sorted = triggers.clone();
        sorted.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let expected = compile(&Observed { triggers: sorted, ..cluster() }, DOMAIN, InstallationQuotas::default());
        let observed = Observed { triggers, sinks, services, namespaces, ..Observed::default() };
        prop_assert_eq!(compile(&observed, DOMAIN, InstallationQuotas::default()), expected);
    }
}

/// Secret `billing` with the keys `token` and `odd`, which have these values.
fn secret(values: &[(&str, &str)]) -> SecretState {
    let values = values.iter();
    SecretState::Found {
        version: "v1".into(),
        values: values
            .map(|&(key, value)| (key.into(), value.to_owned().into()))
            .collect(),
        looked_for: None,
    }
}

/// Secret `billing`, of which these keys were looked up and none exists.
fn looked_for(keys: &[&str]) -> SecretState {
    SecretState::Found {
        version: "v1".into(),
        values: [].into(),
        looked_for: Some(keys.iter().map(|&key| key.to_owned()).collect()),
    }
}

/// Compiles a Sink with this spec, and a Trigger that references it.
fn with_sink(spec: Value, state: Option<SecretState>) -> CompileOutcome {
    let mut observed = cluster();
    observed.sinks.push(resource("Sink", "shop", "asking", spec));
    let name = SecretName {
        namespace: "shop".into(),
        name: "billing".into(),
    };
    observed.secrets = state.map(|state| (name, state)).into_iter().collect();
    observed
        .triggers
        .push(trigger("t", json!({"sink": {"ref": {"name": "asking"}}})));
    compile(&observed, DOMAIN, InstallationQuotas::default())
}

fn reason_of_sink(outcome: &CompileOutcome) -> (&'static str, String) {
    let mut sinks = outcome.diagnoses.sinks.iter();
    let sink = sinks.find(|sink| sink.subject.name == "asking").unwrap();
    let trigger = &outcome.diagnoses.triggers[0].sink;
    assert_eq!(
        (sink.resolved.holds, sink.resolved.reason),
        (trigger.holds, trigger.reason)
    );
    assert_eq!(
        outcome.configuration.triggers[0].destination.is_some(),
        trigger.holds
    );
    if !trigger.holds {
        assert_eq!(
            trigger.message,
            format!("Sink \"asking\": {}", sink.resolved.message)
        );
    }
    (sink.resolved.reason, sink.resolved.message.clone())
}

fn named_by(sinks: &[api::Sink]) -> Referrers<'_> {
    Referrers {
        sinks,
        ..Referrers::default()
    }
}

fn key(key: &str) -> Value {
    json!({"secretKeyRef": {"name": "billing", "key": key}})
}

fn header(name: &str, at: &str) -> Value {
    json!({"name": name, "valueFrom": key(at)})
}

#[test]
fn credentials_become_headers_of_the_destination() {
    let spec = json!({
        "uri": "https://example.com/",
        "authorization": {"bearerToken": key("token")},
        "headers": [header("X-Api-Key", "odd")],
    });
    let found = secret(&[("token", "s3cret\n"), ("odd", "a b\r\n"), ("other", "\u{fffd}")]);
    let outcome = with_sink(spec.clone(), Some(found));
    assert_eq!(reason_of_sink(&outcome).0, "Resolved");
    let destination = endpoint(&outcome.configuration.triggers[0].destination);
    let expected = |name: &str, value: &str, version: &str| Header {
        name: name.into(),
        value: value.to_owned().into(),
        version: version.into(),
    };
    assert_eq!(
        destination.headers,
        [
            expected("authorization", "Bearer s3cret", "Bearer billing/token@v1"),
            expected("x-api-key", "a b", "billing/odd@v1"),
        ]
    );
    let shown = format!("{outcome:?}");
    assert!(!shown.contains("s3cret") && !shown.contains("a b"), "{shown}");
    // Present where it belongs.
    let json = serde_json::to_string(&outcome.configuration).unwrap();
    assert!(json.contains("Bearer s3cret"), "{json}");

    // A revision depends on the version, not on the value.
    let revision = |version: &str, token: &str| {
        let SecretState::Found { values, .. } = secret(&[("token", token), ("odd", "x")]) else {
            panic!()
        };
        let state = SecretState::Found {
            version: version.into(),
            values,
            looked_for: None,
        };
        with_sink(spec.clone(), Some(state)).configuration.revision
    };
    assert_eq!(revision("v1", "a"), revision("v1", "b"));
    assert_ne!(revision("v1", "a"), revision("v2", "a"));

    let sinks = [resource("Sink", "shop", "asking", spec)];
    let named: Vec<_> = named_by(&sinks).secrets().into_iter().collect();
    let naming = Naming {
        keys: ["odd", "token"].map(str::to_owned).into(),
        referrers: [("Sink/shop/asking".to_owned(), 2)].into(),
    };
    let name = SecretName {
        namespace: "shop".into(),
        name: "billing".into(),
    };
    assert_eq!(named, [(name, naming)]);
}

#[test]
fn unusable_secret_is_reported_without_its_value() {
    let forbidden = |account: Option<&str>| SecretState::Forbidden {
        account: account.map(str::to_owned),
    };
    let long = "x".repeat(8193);
    let table = [
        (None, "SecretAwaited", "has not been read yet"),
        (
            Some(SecretState::NotFound),
            "SecretNotFound",
            "there is no Secret \"billing\" in namespace \"shop\"; apply it",
        ),
        (
            Some(forbidden(Some("--serviceaccount=weir-system:weir-controller"))),
            "SecretForbidden",
            "the controller may not read Secret \"billing\" in namespace \"shop\"; to grant access, run: kubectl create role \
             weir-billing --verb=get --resource=secrets --resource-name=billing -n shop && kubectl create rolebinding \
             weir-billing --role=weir-billing -n shop --serviceaccount=weir-system:weir-controller",
        ),
        (
            Some(forbidden(None)),
            "SecretForbidden",
            "--serviceaccount=NAMESPACE:NAME (of the controller's ServiceAccount)",
        ),
        (
            Some(SecretState::Unreadable("timeout".into())),
            "SecretUnreadable",
            "in namespace \"shop\": timeout; retrying",
        ),
        (Some(SecretState::Withheld), "ChannelNotSecure", "enable TLS"),
        (
            Some(secret(&[])),
            "SecretKeyNotFound",
            "has no key \"token\"; add it",
        ),
        (
            Some(looked_for(&["token"])),
            "SecretKeyNotFound",
            "has no key \"token\"; add it",
        ),
        (
            Some(looked_for(&["other"])),
            "SecretAwaited",
            "key \"token\" of Secret \"billing\" in namespace \"shop\" has not been read yet",
        ),
        (Some(secret(&[("token", "")])), "InvalidSecretValue", "is empty"),
        (
            Some(secret(&[("token", "\r\n\n")])),
            "InvalidSecretValue",
            "is empty",
        ),
        (
            Some(secret(&[("token", &long)])),
            "InvalidSecretValue",
            "is longer than 8192 bytes",
        ),
        (
            Some(secret(&[("token", "s3cret\nx")])),
            "InvalidSecretValue",
            "is not a valid header value",
        ),
        (
            Some(secret(&[("token", "s3crét")])),
            "InvalidSecretValue",
            "is not a valid header value",
        ),
        (
            Some(secret(&[("token", "\u{fffd}")])),
            "InvalidSecretValue",
            "is not a valid header value",
        ),
        (
            Some(secret(&[("token", "Bearer s3cret")])),
            "InvalidSecretValue",
            "Bearer is added automatically",
        ),
    ];
    for (state, reason, part) in table {
        let spec = json!({"uri": "https://example.com/", "authorization": {"bearerToken": key("token")}});
        let told = reason_of_sink(&with_sink(spec, state));
        assert_eq!(told.0, reason, "{}", told.1);
        assert!(told.1.contains(part), "{}", told.1);
        assert!(
            told.1
                .starts_with("spec.authorization.bearerToken.secretKeyRef: "),
            "{}",
            told.1
        );
        assert!(!told.1.contains("s3cr"), "{}", told.1);
    }
}

#[test]
fn validates_credentials_and_authorities() {
    let found = || Some(secret(&[("token", "x")]));
    let token = json!({"bearerToken": key("token")});
    let table = [
        (
            json!({"uri": "http://example.com/", "authorization": token}),
            "InsecureUri",
            "spec.uri: credentials are sent outside",
        ),
        (
            json!({"uri": "http://example.com/", "headers": [header("x-key", "token")]}),
            "InsecureUri",
            "spec.uri: credentials are sent outside",
        ),
        (
            json!({"service": {"name": "one"}, "authorization": token}),
            "Resolved",
            "events go to http://one",
        ),
        (
            json!({"service": {"name": "none"}, "authorization": token}),
            "ServiceNotFound",
            "",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [header("x", "token"), header("X", "token")]}),
            "InvalidHeader",
            "spec.headers[1].valueFrom.secretKeyRef: duplicate header \"x\"",
        ),
        (
            json!({"service": {"name": "one"}, "authorization": token, "headers": [header("Authorization", "token")]}),
            "InvalidHeader",
            "duplicate header \"authorization\"",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [header("Authorization", "token")]}),
            "Resolved",
            "",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [header("CE-Id", "token")]}),
            "InvalidHeader",
            "spec.headers[0].name: \"CE-Id\" is a reserved header, set by Weir or by HTTP itself",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [header("a b", "token")]}),
            "InvalidHeader",
            "spec.headers[0].name: \"a b\" is not a valid header name",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "X-Tenant"}]}),
            "InvalidHeader",
            "spec.headers[0]: exactly one of value and valueFrom must be set",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "x", "value": "v", "valueFrom": key("token")}]}),
            "InvalidHeader",
            "spec.headers[0]: exactly one of value and valueFrom must be set",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [header("x", "token"), {"name": "X", "value": "v"}]}),
            "InvalidHeader",
            "spec.headers[1].value: duplicate header \"x\"",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "Weir-Hops", "value": "0"}]}),
            "InvalidHeader",
            "spec.headers[0].name: \"Weir-Hops\" is a reserved header",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "authorization", "value": "Basic x"}]}),
            "InvalidHeader",
            "spec.headers[0].value: everyone who can read the Sink can read it",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "x", "value": "a\r\nb: c"}]}),
            "InvalidHeader",
            "spec.headers[0].value: is not a valid header value",
        ),
        (
            json!({"service": {"name": "one"}, "headers": [{"name": "x", "value": ""}]}),
            "InvalidHeader",
            "spec.headers[0].value: is empty",
        ),
        (
            json!({"uri": "https://example.com/", "caCerts": "x"}),
            "InvalidCaCerts",
            "spec.caCerts: no certificate found",
        ),
    ];
    for (spec, reason, beginning) in table {
        let told = reason_of_sink(&with_sink(spec.clone(), found()));
        assert_eq!(told.0, reason, "{spec}: {}", told.1);
        assert!(told.1.contains(beginning), "{}", told.1);
    }
}

#[test]
fn plain_headers_need_no_secret_and_no_https() {
    let outcome = |value: &str| {
        let headers = json!([{"name": "X-Tenant", "value": value}]);
        with_sink(json!({"uri": "http://example.com/", "headers": headers}), None)
    };
    let found = outcome("blue team");
    assert_eq!(reason_of_sink(&found).0, "Resolved");
    let destination = endpoint(&found.configuration.triggers[0].destination);
    let expected = PlainHeader {
        name: "x-tenant".into(),
        value: "blue team".into(),
    };
    assert_eq!(
        (&*destination.headers, &*destination.plain_headers),
        (&[][..], &[expected][..])
    );
    assert_eq!(
        outcome("blue team").configuration.revision,
        found.configuration.revision
    );
    assert_ne!(
        outcome("green").configuration.revision,
        found.configuration.revision
    );
}

/// A Sink that is signed with these keys of Secret `billing`, and sets this header.
fn signed(keys: &[&str], header: &str) -> Value {
    let keys: Vec<_> = keys.iter().map(|name| key(name)).collect();
    json!({
        "uri": "http://example.com/",
        "signature": {"standardWebhooks": {"keys": keys}},
        "headers": [{"name": header, "value": "x"}],
    })
}

#[test]
fn signing_keys_come_from_secrets() {
    let [old, new] = ["A", "B"].map(|letter| format!("whsec_{}", letter.repeat(32)));
    let found = |new: &str| Some(secret(&[("old", &old), ("new", new)]));
    let outcome = with_sink(signed(&["old", "new"], "x"), found(&format!("{new}\n")));
    assert_eq!(reason_of_sink(&outcome).0, "Resolved");
    let destination = endpoint(&outcome.configuration.triggers[0].destination);
    let key = |value: &str, version: &str| SigningKey {
        value: value.to_owned().into(),
        version: version.into(),
    };
    assert_eq!(
        destination.signing_keys,
        [key(&old, "billing/old@v1"), key(&new, "billing/new@v1")]
    );
    assert!(!format!("{outcome:?}").contains("whsec_"));
    let other = with_sink(signed(&["old", "new"], "x"), found(&old));
    assert_eq!(other.configuration.revision, outcome.configuration.revision);

    let path = "spec.signature.standardWebhooks.keys[1].secretKeyRef: ";
    let table = [
        (
            signed(&["old", "none"], "x"),
            found(&new),
            "SecretKeyNotFound",
            path,
        ),
        (signed(&["old", "new"], "x"), None, "SecretAwaited", "keys[0]"),
        (
            signed(&["old", "new"], "x"),
            found("s3cret"),
            "InvalidSecretValue",
            "is not a signing key: whsec_, followed by the base64 of 24 to 64 bytes",
        ),
        (
            signed(&["old"], "Webhook-Id"),
            found(&new),
            "InvalidHeader",
            "spec.headers[0].name: \"Webhook-Id\" is already set by signature",
        ),
    ];
    for (spec, state, reason, part) in table {
        let told = reason_of_sink(&with_sink(spec, state));
        assert_eq!(told.0, reason, "{}", told.1);
        assert!(told.1.contains(part) && !told.1.contains("s3cret"), "{}", told.1);
    }
}

/// Secret `billing` as one of type `kubernetes.io/tls`.
fn tls_secret(certificate: &str, key: &str) -> SecretState {
    secret(&[("tls.crt", certificate), ("tls.key", key)])
}

#[test]
fn client_certificate_comes_from_a_secret() {
    let pair = || {
        let made = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    };
    let ((certificate, key), (_, other)) = (pair(), pair());
    let spec =
        json!({"uri": "https://example.com/", "tls": {"clientCertificate": {"secretName": "billing"}}});
    let outcome = with_sink(spec.clone(), Some(tls_secret(&certificate, &key)));
    assert_eq!(reason_of_sink(&outcome).0, "Resolved");
    let destination = endpoint(&outcome.configuration.triggers[0].destination);
    let expected = ClientCertificate {
        certificate: certificate.clone().into(),
        key: key.clone().into(),
        version: "billing@v1".into(),
    };
    assert_eq!(destination.client_certificate, Some(expected));
    assert!(!format!("{outcome:?}").contains("-----BEGIN"));

    let sinks = [resource("Sink", "shop", "asking", spec.clone())];
    let keys: Vec<_> = named_by(&sinks)
        .secrets()
        .into_values()
        .map(|naming| naming.keys)
        .collect();
    assert_eq!(keys, [["tls.crt", "tls.key"].map(str::to_owned).into()]);

    let long = format!("{certificate}{}", "x".repeat(65_536));
    let table = [
        (None, "SecretAwaited", "has not been read yet"),
        (
            Some(secret(&[("tls.crt", &certificate)])),
            "SecretKeyNotFound",
            "has no key \"tls.key\"",
        ),
        (
            Some(tls_secret(&certificate, &other)),
            "InvalidClientCertificate",
            "Secret \"billing\" in namespace \"shop\": the private key is not that of the first certificate",
        ),
        (
            Some(tls_secret("", &key)),
            "InvalidClientCertificate",
            "no certificate found",
        ),
        (
            Some(tls_secret(&long, &key)),
            "InvalidClientCertificate",
            "is longer than 65536 bytes",
        ),
    ];
    for (state, reason, part) in table {
        let told = reason_of_sink(&with_sink(spec.clone(), state));
        assert_eq!(told.0, reason, "{}", told.1);
        let path = "spec.tls.clientCertificate.secretName: ";
        assert!(told.1.starts_with(path) && told.1.contains(part), "{}", told.1);
    }
}

#[test]
fn token_of_a_service_account_is_told_by_its_state() {
    let spec = json!({
        "uri": "https://example.com/",
        "authorization": {"serviceAccountToken": {"serviceAccountName": "sender", "audience": "aud"}},
    });
    let name = TokenName {
        namespace: "shop".into(),
        account: "sender".into(),
        audience: "aud".into(),
    };
    let outcome = |spec: &Value, state: Option<TokenState>| {
        let mut observed = cluster();
        observed
            .sinks
            .push(resource("Sink", "shop", "asking", spec.clone()));
        observed.tokens = state.map(|state| (name.clone(), state)).into_iter().collect();
        observed
            .triggers
            .push(trigger("t", json!({"sink": {"ref": {"name": "asking"}}})));
        compile(&observed, DOMAIN, InstallationQuotas::default())
    };
    let issued = |token: &str, version: &str| TokenState::Issued {
        token: token.to_owned().into(),
        version: version.into(),
    };
    let found = outcome(&spec, Some(issued("t0ken", "v1")));
    assert_eq!(reason_of_sink(&found).0, "Resolved");
    let expected = ServiceAccountToken {
        account: "sender".into(),
        audience: "aud".into(),
        value: "t0ken".to_owned().into(),
        version: "v1".into(),
    };
    let destination = endpoint(&found.configuration.triggers[0].destination);
    assert_eq!(destination.service_account_token, Some(expected));
    assert!(!format!("{found:?}").contains("t0ken"));
    let revision = |token, version| {
        outcome(&spec, Some(issued(token, version)))
            .configuration
            .revision
    };
    assert_eq!(revision("other", "v1"), found.configuration.revision);
    assert_ne!(revision("t0ken", "v2"), found.configuration.revision);
    let sinks = [resource("Sink", "shop", "asking", spec.clone())];
    assert!(named_by(&sinks).tokens().keys().eq([&name]));
    assert!(named_by(&sinks).secrets().is_empty());

    let table = [
        (None, "TokenAwaited", "has not been requested yet"),
        (
            Some(TokenState::NotFound),
            "ServiceAccountNotFound",
            "there is no ServiceAccount \"sender\" in namespace \"shop\"",
        ),
        (
            Some(TokenState::Forbidden {
                account: Some("--serviceaccount=weir-system:weir-controller".into()),
            }),
            "TokenForbidden",
            "run: kubectl create role weir-token-sender --verb=create --resource=serviceaccounts/token \
             --resource-name=sender -n shop && kubectl create rolebinding weir-token-sender --role=weir-token-sender -n shop \
             --serviceaccount=weir-system:weir-controller",
        ),
        (
            Some(TokenState::Unavailable("timeout".into())),
            "TokenUnavailable",
            "in namespace \"shop\": timeout; retrying",
        ),
        (Some(TokenState::Withheld), "ChannelNotSecure", "enable TLS"),
        (
            Some(TokenState::Unsupported),
            "TokenUnsupported",
            "weir run cannot request tokens",
        ),
    ];
    for (state, reason, part) in table {
        let told = reason_of_sink(&outcome(&spec, state));
        assert_eq!(told.0, reason, "{}", told.1);
        let path = "spec.authorization.serviceAccountToken: ";
        assert!(told.1.starts_with(path) && told.1.contains(part), "{}", told.1);
    }

    let mut invalid = spec.clone();
    invalid["uri"] = json!("http://example.com/");
    assert_eq!(reason_of_sink(&outcome(&invalid, None)).0, "InsecureUri");
    let mut invalid = spec.clone();
    invalid["headers"] = json!([header("Authorization", "token")]);
    assert_eq!(reason_of_sink(&outcome(&invalid, None)).0, "InvalidHeader");
    let mut invalid = spec.clone();
    invalid["authorization"]["bearerToken"] = key("token");
    assert_eq!(reason_of_sink(&outcome(&invalid, None)).0, "InvalidAuthorization");
}

#[test]
fn client_credentials_come_from_the_sink_and_a_secret() {
    let spec = json!({
        "service": {"name": "one"},
        "authorization": {"oauth2": {
            "tokenUrl": "https://id.example.com/token", "clientId": "weir", "clientSecret": key("secret"),
            "scopes": ["a", "b"], "audience": "aud",
        }},
    });
    let found = with_sink(
        spec.clone(),
        Some(secret(&[("secret", "s3cret\n"), ("id", "weir-2")])),
    );
    assert_eq!(reason_of_sink(&found).0, "Resolved");
    let client = |outcome: &CompileOutcome| {
        let destination = endpoint(&outcome.configuration.triggers[0].destination);
        destination.client_credentials.clone().unwrap()
    };
    let expected = routing::ClientCredentials {
        token_url: "https://id.example.com/token".into(),
        id: "weir".to_owned().into(),
        secret: "s3cret".to_owned().into(),
        version: client(&found).version,
        scopes: vec!["a".into(), "b".into()],
        audience: Some("aud".into()),
    };
    assert_eq!(client(&found), expected);
    assert!(!format!("{found:?}").contains("s3cret"));
    let trigger = &found.configuration.triggers[0];
    let bare = serde_json::to_string(&trigger.without_secrets()).unwrap();
    assert!(!bare.contains("s3cret"), "{bare}");

    let mut from_secret = spec.clone();
    let fields = &mut from_secret["authorization"]["oauth2"];
    fields.as_object_mut().unwrap().remove("clientId");
    fields["clientIdFrom"] = key("id");
    let other = with_sink(
        from_secret.clone(),
        Some(secret(&[("secret", "s3cret"), ("id", "weir-2")])),
    );
    assert_eq!(client(&other).id.reveal(), "weir-2");
    assert_ne!(other.configuration.revision, found.configuration.revision);
    let asking = [resource("Sink", "shop", "asking", from_secret.clone())];
    let named = named_by(&asking).secrets();
    let keys: Vec<_> = named.values().flat_map(|naming| &naming.keys).collect();
    assert_eq!(keys, ["id", "secret"]);

    let changed = |field: &str, value: Value| {
        let mut spec = from_secret.clone();
        spec["authorization"]["oauth2"][field] = value;
        spec
    };
    let mut twice = spec.clone();
    twice["authorization"]["bearerToken"] = key("secret");
    let table = [
        (
            from_secret.clone(),
            "SecretKeyNotFound",
            "clientIdFrom.secretKeyRef: ",
        ),
        (
            changed("clientId", json!("weir")),
            "InvalidAuthorization",
            "exactly one of clientId",
        ),
        (
            changed("tokenUrl", json!("http://id.example.com/")),
            "InsecureUri",
            "tokenUrl: the client's secret is sent over https only",
        ),
        (
            changed("tokenUrl", json!("https://id.shop.svc/")),
            "InvalidUri",
            "tokenUrl: uri \"https://id.shop.svc/\" is inside the cluster",
        ),
        (twice, "InvalidAuthorization", "exactly one of bearerToken"),
    ];
    for (spec, reason, part) in table {
        let told = reason_of_sink(&with_sink(spec, Some(secret(&[("secret", "s3cret")]))));
        assert_eq!(told.0, reason, "{}", told.1);
        assert!(
            told.1.starts_with("spec.authorization") && told.1.contains(part),
            "{}",
            told.1
        );
    }
    let told = reason_of_sink(&with_sink(spec, Some(secret(&[("secret", "s3cr\u{e9}t")]))));
    assert_eq!(told.0, "InvalidSecretValue", "{}", told.1);
}

#[test]
fn deduplicates_authorities() {
    let pem = || {
        let made = rcgen::generate_simple_self_signed(["x".to_owned()]);
        made.unwrap().cert.pem()
    };
    let unnamed = pem();
    let configuration = |pem: &str| {
        let mut observed = cluster();
        let spec = json!({"uri": "https://example.com/", "caCerts": pem});
        for (name, spec) in [
            ("billing", spec.clone()),
            ("graves", spec),
            (
                "unnamed",
                json!({"uri": "https://example.com/", "caCerts": unnamed}),
            ),
        ] {
            observed.sinks.push(resource("Sink", "shop", name, spec));
        }
        for name in ["one", "two"] {
            let spec = json!({
                "sink": {"ref": {"name": "billing"}}, "delivery": {"deadLetterSink": {"ref": {"name": "graves"}}},
            });
            observed.triggers.push(trigger(name, spec));
        }
        compile(&observed, DOMAIN, InstallationQuotas::default()).configuration
    };
    let (first, second) = (pem(), pem());
    let found = configuration(&first);
    let named: Vec<_> = found
        .triggers
        .iter()
        .flat_map(|trigger| trigger.destinations())
        .map(|routing::Destination::Http(endpoint)| {
            found.authorities.get(endpoint.ca_certs.as_ref().unwrap())
        })
        .collect();
    assert_eq!(named, [Some(&*first); 4]);
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(serde_json::from_str::<Configuration>(&text).unwrap(), found);
    assert_eq!(configuration(&first).revision, found.revision);
    assert_ne!(configuration(&second).revision, found.revision);
}

#[test]
fn dead_letter_sink_uses_its_own_credentials() {
    let mut observed = cluster();
    let spec = json!({"service": {"name": "one"}, "authorization": {"bearerToken": key("token")}});
    observed.sinks.push(resource("Sink", "shop", "graves", spec));
    observed.triggers.push(trigger(
        "t",
        json!({"sink": {"uri": "http://example.com/"}, "delivery": {"deadLetterSink": {"ref": {"name": "graves"}}}}),
    ));
    let name = SecretName {
        namespace: "shop".into(),
        name: "billing".into(),
    };
    let revision = |version: &str| {
        let mut observed = observed.clone();
        let state = SecretState::Found {
            version: version.into(),
            values: [("token".into(), "x".to_owned().into())].into(),
            looked_for: None,
        };
        observed.secrets = [(name.clone(), state)].into();
        let configuration = compile(&observed, DOMAIN, InstallationQuotas::default()).configuration;
        let graves = endpoint(&configuration.triggers[0].delivery.dead_letter_sink);
        assert_eq!(graves.headers[0].value.reveal(), "Bearer x");
        configuration.revision
    };
    assert_ne!(revision("v1"), revision("v2"));
    let diagnosis = compile(&observed, DOMAIN, InstallationQuotas::default())
        .diagnoses
        .triggers
        .remove(0);
    assert_eq!(diagnosis.dead_letter_sink.unwrap().reason, "SecretAwaited");
}

fn knative(name: &str) -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": name})
}

fn addressable_name(namespace: &str, name: &str) -> AddressableName {
    AddressableName {
        kind: AddressableKind {
            api_version: "serving.knative.dev/v1".into(),
            kind: "Service".into(),
        },
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn at(url: &str) -> AddressableState {
    AddressableState::Found(StatusAddress::of(&json!({"status": {"address": {"url": url}}})))
}

/// A cluster in which namespace `gateways` is shared, with Services of type ExternalName.
fn cluster_with_aliases() -> Observed {
    let mut observed = cluster();
    observed.reach.shared_namespaces.insert("gateways".into());
    for (name, external_name) in [
        ("to-gateway", "gateway.gateways.svc.cluster.local"),
        ("to-other", "far.other.svc.cluster.local"),
        ("to-one", "one.shop.svc"),
    ] {
        observed.services.push(Service {
            external_name: Some(external_name.into()),
            ..service("shop", name, &[])
        });
    }
    observed
}

#[test]
fn resolves_addressable_objects_of_the_own_namespace() {
    let table = [
        (Some(at("http://one.shop.svc.cluster.local")), Ok(Some("one"))),
        (
            Some(at("http://to-gateway.shop.svc.cluster.local/a?b")),
            Ok(Some("to-gateway")),
        ),
        (Some(at("http://to-one.shop.svc/")), Ok(Some("to-one"))),
        (Some(at("http://any.gateways.svc:8080/")), Ok(Some("any"))),
        (Some(at("https://example.com/in")), Ok(None)),
        (Some(at("http://10.0.0.1/")), Ok(None)),
        (Some(at("http://external.shop.svc/")), Ok(None)),
        (Some(at("http://far.other.svc/")), Err("AddressNotAllowed")),
        (Some(at("http://to-other.shop.svc/")), Err("AddressNotAllowed")),
        (Some(at("http://none.shop.svc/")), Err("AddressNotAllowed")),
        (Some(at("http://shop.svc/")), Err("AddressNotAllowed")),
        (Some(at("http://user:secret@example.com/")), Err("AddressInvalid")),
        (Some(at("ftp://example.com/")), Err("AddressInvalid")),
        (Some(at("/relative")), Err("AddressInvalid")),
        (
            Some(at(&format!("http://example.com/{}", "a".repeat(2048)))),
            Err("AddressInvalid"),
        ),
        (Some(at("")), Err("AddressMissing")),
        (Some(AddressableState::NotFound), Err("AddressableNotFound")),
        (Some(AddressableState::UnknownKind), Err("AddressableKindUnknown")),
        (
            Some(AddressableState::ClusterScoped),
            Err("AddressableNotNamespaced"),
        ),
        (
            Some(AddressableState::TooManyKinds),
            Err("TooManyAddressableKinds"),
        ),
        (
            Some(AddressableState::Unreadable("down".into())),
            Err("AddressableUnreadable"),
        ),
        (Some(AddressableState::Unsupported), Err("AddressUnsupported")),
        (
            Some(AddressableState::Forbidden {
                resource: "services.serving.knative.dev".into(),
            }),
            Err("AddressableForbidden"),
        ),
        (None, Err("AddressAwaited")),
    ];
    for (state, expected) in table {
        let mut observed = cluster_with_aliases();
        observed
            .triggers
            .push(trigger("t", json!({"sink": {"ref": knative("hello")}})));
        let sink = json!({"ref": knative("hello"), "allowedNamespaces": {"names": ["other"]}});
        observed.sinks.push(resource("Sink", "shop", "hello", sink));
        let by_sink = json!({"sink": {"ref": {"name": "hello", "namespace": "shop"}}});
        observed
            .triggers
            .push(resource("Trigger", "other", "by-sink", by_sink));
        let known = state
            .clone()
            .map(|state| (addressable_name("shop", "hello"), state));
        observed.addressables = known.into_iter().collect();
        let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
        for (trigger, diagnosis) in outcome
            .configuration
            .triggers
            .iter()
            .zip(&outcome.diagnoses.triggers)
        {
            let finding = &diagnosis.sink;
            match expected {
                Ok(service) => {
                    assert!(finding.holds, "{state:?}: {}", finding.message);
                    let HttpEndpoint {
                        uri,
                        service: reached,
                        ..
                    } = endpoint(&trigger.destination);
                    assert_eq!(state, Some(at(uri)));
                    assert_eq!(
                        reached.as_ref().map(|service| &*service.name),
                        service,
                        "{state:?}"
                    );
                }
                Err(reason) => {
                    assert_eq!(finding.reason, reason, "{state:?}: {}", finding.message);
                    assert!(!finding.holds && trigger.destination.is_none());
                }
            }
        }
        assert_eq!(outcome.diagnoses.triggers.len(), 2);
    }
}

#[test]
fn addressable_object_of_another_namespace_needs_a_sink() {
    let mut reference = knative("hello");
    reference["namespace"] = json!("other");
    let mut observed = cluster();
    observed
        .triggers
        .push(trigger("t", json!({"sink": {"ref": reference}})));
    let name = addressable_name("other", "hello");
    observed.addressables.insert(name, at("https://example.com/"));
    let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
    let finding = &outcome.diagnoses.triggers[0].sink;
    assert_eq!(finding.reason, "AddressableNotAllowed");
    assert!(
        finding.message.contains("spec.allowedNamespaces"),
        "{}",
        finding.message
    );
    assert_eq!(named_addressables(&observed.triggers, &observed.sinks), [].into());
}

#[test]
fn names_every_referenced_addressable_object() {
    let letters = |name: &str| json!({"deadLetterSink": {"ref": knative(name)}});
    let mut own = knative("own");
    own["namespace"] = json!("shop");
    let triggers = [
        trigger(
            "a",
            json!({"sink": {"ref": knative("a")}, "delivery": letters("b")}),
        ),
        trigger("b", json!({"sink": {"ref": own}})),
        trigger("c", json!({"sink": {"ref": {"name": "a-sink"}}})),
        trigger(
            "d",
            json!({"sink": {"ref": {"apiVersion": "weir.dev/v1alpha1", "kind": "Sink", "name": "a-sink"}}}),
        ),
    ];
    let sink = json!({"ref": knative("c"), "delivery": letters("d")});
    let sinks = [resource("Sink", "bank", "s", sink)];
    let expected = [
        ("shop", "a"),
        ("shop", "b"),
        ("shop", "own"),
        ("bank", "c"),
        ("bank", "d"),
    ];
    assert_eq!(
        named_addressables(&triggers, &sinks),
        expected
            .map(|(namespace, name)| addressable_name(namespace, name))
            .into()
    );
}

#[test]
fn sink_with_apiversion_and_kind_is_a_sink() {
    let reference = json!({"apiVersion": "weir.dev/v1alpha1", "kind": "Sink", "name": "near"});
    let (outcome, _) = with_trigger(json!({"sink": {"ref": reference}}));
    let uri = &endpoint(&outcome.configuration.triggers[0].destination).uri;
    assert_eq!(uri, "http://one.shop.svc.cluster.local:8080/in");
}

#[test]
fn reads_the_first_address_with_a_url() {
    let with = |status: Value| {
        let StatusAddress { url, ca_certs } = StatusAddress::of(&json!({"status": status}));
        (url, ca_certs.map(|pem| pem.to_string()))
    };
    let found = |url: &str, pem: Option<&str>| (Some(url.to_owned()), pem.map(str::to_owned));
    let several = json!([{"name": "none"}, {"url": "https://b/", "CACerts": "pem"}, {"url": "http://c/"}]);
    for (status, expected) in [
        (
            json!({"address": {"url": "http://a/"}, "addresses": several}),
            found("http://a/", None),
        ),
        (
            json!({"address": {"url": "https://a/", "CACerts": "pem"}}),
            found("https://a/", Some("pem")),
        ),
        (
            json!({"address": {"url": "https://a/", "CACerts": ""}}),
            found("https://a/", None),
        ),
        (json!({"addresses": several}), found("https://b/", Some("pem"))),
        (
            json!({"address": {"name": "a"}, "addresses": several}),
            found("https://b/", Some("pem")),
        ),
        (json!({"address": {}}), (None, None)),
        (json!({"address": "http://a/"}), (None, None)),
        (json!({"address": {"url": 1}}), (None, None)),
        (json!({"addresses": {"url": "http://a/"}}), (None, None)),
        (json!("http://a/"), (None, None)),
        (json!(null), (None, None)),
    ] {
        assert_eq!(with(status.clone()), expected, "{status}");
    }
}

#[test]
fn trusts_the_authorities_in_the_status_of_an_object() {
    let [announced, own] = ["announced", "own"].map(|name| {
        rcgen::generate_simple_self_signed([name.to_owned()])
            .unwrap()
            .cert
            .pem()
    });
    let state = |url: &str, pem: &str| {
        let address = json!({"url": url, "CACerts": pem});
        AddressableState::Found(StatusAddress::of(&json!({"status": {"address": address}})))
    };
    let outcome = |state: AddressableState, sink: Value| {
        let mut observed = cluster_with_aliases();
        observed.sinks.push(resource("Sink", "shop", "hello", sink));
        observed
            .triggers
            .push(trigger("t", json!({"sink": {"ref": {"name": "hello"}}})));
        observed
            .triggers
            .push(trigger("u", json!({"sink": {"ref": knative("hello")}})));
        observed
            .addressables
            .insert(addressable_name("shop", "hello"), state);
        compile(&observed, DOMAIN, InstallationQuotas::default())
    };
    let trusted = |outcome: &CompileOutcome| {
        let Configuration {
            triggers,
            authorities,
            ..
        } = &outcome.configuration;
        let pem = |trigger: &routing::Trigger| {
            let digest = endpoint(&trigger.destination).ca_certs.as_ref()?;
            Some(authorities.get(digest).unwrap().to_owned())
        };
        triggers.iter().map(pem).collect::<Vec<_>>()
    };
    let (plain, own_too) = (
        json!({"ref": knative("hello")}),
        json!({"ref": knative("hello"), "caCerts": own}),
    );
    let https = || state("https://one.shop.svc/", &announced);
    let announced_by_both = [Some(announced.clone()), Some(announced.clone())];
    assert_eq!(trusted(&outcome(https(), plain.clone())), announced_by_both);
    // The Sink's own take precedence.
    assert_eq!(
        trusted(&outcome(https(), own_too)),
        [Some(own.clone()), Some(announced.clone())]
    );
    // They have no meaning for plain http.
    let http = outcome(state("http://one.shop.svc/", "nonsense"), plain.clone());
    assert_eq!(trusted(&http), [None, None]);
    for pem in ["nonsense", &format!("{}{announced}", "#\n".repeat(20_000))] {
        let outcome = outcome(state("https://one.shop.svc/", pem), plain.clone());
        for diagnosis in &outcome.diagnoses.triggers {
            assert_eq!(diagnosis.sink.reason, "InvalidCaCerts");
            assert!(
                diagnosis.sink.message.contains("CACerts"),
                "{}",
                diagnosis.sink.message
            );
        }
    }
}

#[test]
fn credentials_and_client_certificates_need_https_beyond_services() {
    let token = json!({"bearerToken": {"secretKeyRef": {"name": "s", "key": "k"}}});
    let certificate = json!({"clientCertificate": {"secretName": "s"}});
    for (url, more, expected) in [
        ("http://example.com/", ("authorization", &token), "InsecureUri"),
        ("https://example.com/", ("authorization", &token), "SecretAwaited"),
        ("HTTPS://example.com/", ("authorization", &token), "SecretAwaited"),
        ("http://one.shop.svc/", ("authorization", &token), "SecretAwaited"),
        ("http://one.shop.svc/", ("tls", &certificate), "InsecureUri"),
        ("https://one.shop.svc/", ("tls", &certificate), "SecretAwaited"),
    ] {
        let mut observed = cluster();
        let mut sink = json!({"ref": knative("hello")});
        sink[more.0] = more.1.clone();
        observed.sinks = vec![resource("Sink", "shop", "hello", sink)];
        observed
            .addressables
            .insert(addressable_name("shop", "hello"), at(url));
        let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
        let finding = &outcome.diagnoses.sinks[0].resolved;
        assert_eq!(finding.reason, expected, "{url} {more:?}: {}", finding.message);
    }
}

#[test]
fn resolves_services_of_type_external_name_where_they_are_allowed() {
    let uri_of = |reach: ClusterReach, service: Value| {
        let mut observed = Observed {
            reach,
            ..cluster_with_aliases()
        };
        observed.services.push(Service {
            external_name: Some("not a host".into()),
            ..self::service("shop", "malformed", &[])
        });
        observed
            .triggers
            .push(trigger("t", json!({"sink": {"service": service}})));
        let outcome = compile(&observed, DOMAIN, InstallationQuotas::default());
        let finding = &outcome.diagnoses.triggers[0].sink;
        match &outcome.configuration.triggers[0].destination {
            Some(routing::Destination::Http(HttpEndpoint { uri, service, .. })) => {
                Ok((uri.clone(), service.is_some()))
            }
            None => Err(finding.reason),
        }
    };
    let allowed = || ClusterReach {
        external_name_services: true,
        shared_namespaces: ["gateways".to_owned()].into(),
    };
    for (service, expected) in [
        // It has the port 80 in its list.
        (json!({"name": "external"}), Ok(("http://example.com:80/", false))),
        (json!({"name": "external", "port": 81}), Err("PortNotFound")),
        (
            json!({"name": "to-gateway", "port": 8443, "scheme": "https", "path": "/in"}),
            Ok(("https://gateway.gateways.svc.cluster.local:8443/in", true)),
        ),
        (json!({"name": "to-one"}), Ok(("http://one.shop.svc:80/", true))),
        (
            json!({"name": "to-one", "scheme": "https"}),
            Ok(("https://one.shop.svc:443/", true)),
        ),
        (json!({"name": "to-one", "port": "http"}), Err("PortNotFound")),
        (json!({"name": "to-other"}), Err("ServiceExternal")),
        (json!({"name": "malformed"}), Err("ServiceExternal")),
    ] {
        let expected = expected.map(|(uri, is_service)| (uri.to_owned(), is_service));
        assert_eq!(uri_of(allowed(), service.clone()), expected, "{service}");
        assert_eq!(
            uri_of(ClusterReach::default(), service.clone()),
            Err("ServiceExternal"),
            "{service}"
        );
    }
}
