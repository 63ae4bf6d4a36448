//! Rejects what the API server would reject, with its position.

use super::*;

fn read(text: &str) -> (Vec<Manifest>, Vec<String>) {
    let mut problems = Vec::new();
    let read = ManifestReader::new().read(Path::new("m.yaml"), text, &mut problems);
    (read.manifests, problems.iter().map(ToString::to_string).collect())
}

const TRIGGER: &str = "\
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata:
  name: urgent
  namespace: shop
  labels: {team: blue}
spec:
  filters:
  - exact: {type: com.example.order.created}
  sink:
    service: {name: orders, port: 8080, path: /events}
  delivery:
    retry: 3
    backoffDelay: 1s
";

#[test]
fn fills_in_defaults_of_valid_manifests() {
    let (manifests, problems) = read(TRIGGER);
    assert_eq!(problems, Vec::<String>::new());
    let Resource::Trigger(trigger) = &manifests[0].resource else {
        panic!()
    };
    assert_eq!(trigger.spec.broker, "default");
    assert_eq!(trigger.spec.filters.len(), 1);
    assert_eq!(
        trigger.metadata.uid.as_deref(),
        Some("local/Trigger/shop/urgent/default")
    );
    assert_eq!(trigger.metadata.labels.as_ref().unwrap()["team"], "blue");
    assert!(trigger.metadata.generation.unwrap() > 0);
    let (again, _) = read(
        &TRIGGER
            .replace("retry: 3", "retry: 4")
            .replace("namespace: shop", "namespace: shop # x"),
    );
    assert_ne!(again[0].resource.meta().generation, trigger.metadata.generation);
    assert_eq!(again[0].resource.meta().uid, trigger.metadata.uid);
    let (again, _) = read(&format!("# moved\n{TRIGGER}"));
    assert_eq!(again[0].resource, manifests[0].resource);
}

#[test]
fn accepts_every_kind_and_the_output_of_kubectl() {
    let (manifests, problems) = read(
        "\
apiVersion: v1
kind: List
items:
- apiVersion: weir.dev/v1alpha1
  kind: Source
  metadata: {name: clock, creationTimestamp: 2026-11-24T08:00:00Z, generation: 4, managedFields: [], uid: abc}
  spec: {cron: {schedule: '*/2 * * * * *', type: com.example.tick}}
  status: {conditions: []}
- apiVersion: weir.dev/v1alpha1
  kind: Sink
  metadata: {name: there}
  spec: {uri: 'https://example.com/events'}
---
apiVersion: apps/v1
kind: Deployment
anything: goes
",
    );
    assert_eq!(problems, Vec::<String>::new());
    let uids: Vec<_> = manifests
        .iter()
        .map(|manifest| manifest.resource.meta().uid.clone().unwrap())
        .collect();
    assert_eq!(uids, ["local/Source/default/clock", "local/Sink/default/there"]);
    let Resource::Source(source) = &manifests[0].resource else {
        panic!()
    };
    assert_eq!(source.spec.cron.as_ref().unwrap().time_zone, "UTC");
}

#[test]
fn null_members_are_absent() {
    let (manifests, problems) = read(&TRIGGER.replace(
        "  delivery:\n    retry: 3",
        "  suspend: null\n  start:\n  delivery:\n    retry: ~\n    timeout: null",
    ));
    assert_eq!(problems, Vec::<String>::new());
    let Resource::Trigger(trigger) = &manifests[0].resource else {
        panic!()
    };
    assert_eq!(trigger.spec.delivery.as_ref().unwrap().retry, None);
}

#[test]
fn reports_errors_in_triggers_with_their_positions() {
    for (from, to, expected) in [
        (
            "kind: Trigger",
            "kind: Triger",
            "m.yaml:2:1: kind: weir.dev has no kind \"Triger\"; there are Broker, Sink, Source, Trigger",
        ),
        (
            "v1alpha1",
            "v1",
            "m.yaml:1:1: apiVersion: weir.dev has no version \"v1\"; there is weir.dev/v1alpha1",
        ),
        ("  name: urgent\n", "", "m.yaml:3:1: metadata.name is missing"),
        (
            "name: urgent",
            "name: Urgent",
            "m.yaml:4:3: metadata.name: \"Urgent\" must be",
        ),
        (
            "name: urgent",
            "name: 7",
            "m.yaml:4:9: metadata.name: must be a string, not an integer; put it in quotes",
        ),
        (
            "namespace: shop",
            "namespace: my.shop",
            "m.yaml:5:3: metadata.namespace: \"my.shop\" must be",
        ),
        (
            "namespace: shop",
            "nmespace: shop",
            "m.yaml:5:3: metadata.nmespace: unknown field; did you mean namespace?",
        ),
        (
            "blue",
            "1",
            "m.yaml:6:18: metadata.labels.team: must be a string, not an integer; put it in quotes",
        ),
        (
            "spec:",
            "specs:",
            "m.yaml:7:1: specs: unknown field; did you mean spec?",
        ),
        (
            "  filters:",
            "  filter:",
            "m.yaml:8:3: spec.filter: unknown field; did you mean filters?",
        ),
        (
            "- exact: {type",
            "- exactly: {type",
            "m.yaml:9:5: spec.filters[0].exactly: unknown field; did you mean exact?",
        ),
        (
            "{type: com.example.order.created}",
            "{type: 5}",
            "m.yaml:9:19: spec.filters[0].exact.type: must be a string, not an integer; put it in quotes",
        ),
        (
            "{type: com.example.order.created}",
            "{}",
            "m.yaml:9:5: spec.filters[0].exact: must have at least 1 of its fields",
        ),
        (
            "{type: com",
            "{Type: com",
            "m.yaml:9:5: spec.filters[0].exact: attribute names are lower-case letters and digits",
        ),
        (
            "- exact: {type: com.example.order.created}",
            "- {exact: {a: b}, prefix: {c: d}}",
            "m.yaml:9:5: spec.filters[0]: a filter has exactly one of",
        ),
        (
            "- exact: {type: com.example.order.created}",
            "- {sql: TRUE, exact: {c: d}}",
            "m.yaml:9:11: spec.filters[0].sql: must be a string, not a boolean; put it in quotes",
        ),
        (
            "- exact: {type: com.example.order.created}",
            "- {sql: 'EXISTS a', exact: {c: d}}",
            "m.yaml:9:5: spec.filters[0]: a filter has exactly one of: exact, prefix, suffix, all, any, not, sql",
        ),
        (
            "- exact: {type: com.example.order.created}",
            "- sql: ''",
            "m.yaml:9:10: spec.filters[0].sql: must not be empty",
        ),
        (
            "- exact: {type: com.example.order.created}",
            "- any: [{not: {sql: 'EXISTS a', exact: {c: d}}}]",
            "m.yaml:9:12: spec.filters[0].any[0].not: must have at most 1 of its fields, not 2",
        ),
        (
            "  - exact: {type: com.example.order.created}",
            "    exact: {a: b}",
            "m.yaml:9:5: spec.filters: must be a list, not a mapping",
        ),
        (
            "name: orders",
            "name: orders.shop",
            "m.yaml:11:21: spec.sink.service.name: \"orders.shop\" must match",
        ),
        (
            "port: 8080",
            "port: 80800",
            "m.yaml:11:29: spec.sink.service.port: a port is a number from 1 to 65535",
        ),
        (
            "port: 8080",
            "port: [1]",
            "m.yaml:11:35: spec.sink.service.port: must be an integer or a string, not a list",
        ),
        (
            "    service:",
            "    uri: https://x\n    service:",
            "m.yaml:10:3: spec.sink: exactly one of ref, service and uri must be set",
        ),
        (
            "    service: {name: orders, port: 8080, path: /events}",
            "    uri: ftp://x",
            "m.yaml:11:5: spec.sink.uri: must be an absolute http or https URI",
        ),
        (
            "    service: {name: orders, port: 8080, path: /events}",
            "    uri: http://x:99999/",
            "m.yaml:11:5: spec.sink.uri: must be an absolute http or https URI",
        ),
        (
            "  sink:\n    service: {name: orders, port: 8080, path: /events}\n",
            "",
            "m.yaml:7:1: spec: sink is missing",
        ),
        (
            "retry: 3",
            "retry: -1",
            "m.yaml:13:12: spec.delivery.retry: must be 0 or more",
        ),
        (
            "retry: 3",
            "retry: 1.5",
            "m.yaml:13:12: spec.delivery.retry: must be an integer, not a number",
        ),
        (
            "retry: 3",
            "retry: 2000000",
            "m.yaml:13:12: spec.delivery.retry: must be 1000000 or less",
        ),
        (
            "backoffDelay: 1s",
            "backoffDelay: soon",
            "m.yaml:14:5: spec.delivery.backoffDelay: must be a duration with the units ms, s, m or h",
        ),
        (
            "backoffDelay: 1s",
            "backoffDelay: 999999999999999999999h",
            "m.yaml:14:5: spec.delivery.backoffDelay:",
        ),
        (
            "backoffDelay: 1s",
            "backoffDelay: 0s",
            "m.yaml:14:5: spec.delivery.backoffDelay: must be longer than zero, such as 500ms or 30s; leave it out",
        ),
        (
            "backoffDelay: 1s",
            "backoffMax: 0ms",
            "m.yaml:14:5: spec.delivery.backoffMax: must be longer than zero",
        ),
        (
            "backoffDelay: 1s",
            "timeout: 0h0.00s",
            "m.yaml:14:5: spec.delivery.timeout: must be longer than zero",
        ),
        (
            "backoffDelay: 1s",
            "backoffDelay: 1h\n    backoffMax: 1m",
            "m.yaml:12:3: spec.delivery: backoffDelay must not be longer than backoffMax",
        ),
        (
            "backoffDelay: 1s",
            "backoffPolicy: Linear2",
            "m.yaml:14:20: spec.delivery.backoffPolicy: must be one of Exponential, Linear, not Linear2",
        ),
        (
            "  delivery:",
            "  start: Sometime\n  delivery:",
            "m.yaml:12:3: spec.start: must be Latest, Earliest or a time",
        ),
        (
            "  delivery:",
            "  start: 2026-13-45T00:00:00Z\n  delivery:",
            "m.yaml:12:3: spec.start: must be Latest, Earliest or a time",
        ),
        (
            "  delivery:",
            "  suspend: 'yes'\n  delivery:",
            "m.yaml:12:12: spec.suspend: must be true or false, not a string",
        ),
        (
            "kind: Trigger\n",
            "",
            "m.yaml:1:1: not a manifest: apiVersion and kind are missing",
        ),
    ] {
        assert!(TRIGGER.contains(from), "{from}");
        let (manifests, problems) = read(&TRIGGER.replacen(from, to, 1));
        assert!(
            problems.iter().any(|problem| problem.starts_with(expected)),
            "{to}\n expected {expected}\n found {problems:#?}"
        );
        assert!(manifests.is_empty(), "{to}");
    }
}

#[test]
fn reports_every_problem_of_a_file_and_keeps_its_valid_resources() {
    let broken = TRIGGER
        .replace("retry: 3", "retry: x")
        .replace("  sink:", "  sinkk: 1\n  sink:");
    let (manifests, problems) = read(&format!("{TRIGGER}---\n{broken}---\nhello\n"));
    assert_eq!(manifests.len(), 1);
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert_eq!(
        problems[2],
        "m.yaml:32:1: a manifest must be a mapping, not a string"
    );
}

#[test]
fn checks_the_rules_of_the_other_kinds() {
    let source = "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: a}\nspec:\n";
    let sink = "apiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {name: a}\nspec:\n";
    for (text, expected) in [
        (
            format!("{source}  suspend: true\n"),
            "m.yaml:4:1: spec: exactly one of cron, webhook and kubernetes must be set",
        ),
        (
            format!("{source}  cron: {{schedule: '* * * * *', type: t, data: {{text: a, json: b}}}}\n"),
            "m.yaml:5:3: spec.cron: data must have exactly one of text and json",
        ),
        (
            format!("{source}  cron: {{schedule: '* * * * *', type: t, extensions: {{id: a}}}}\n"),
            "m.yaml:5:42: spec.cron.extensions: id, source, type",
        ),
        (
            format!("{source}  cron: {{schedule: '* * * * *'}}\n"),
            "m.yaml:5:3: spec.cron: type is missing",
        ),
        (
            format!("{sink}  uri: http://x\n  service: {{name: a}}\n"),
            "m.yaml:4:1: spec: exactly one of ref, service and uri",
        ),
        (
            format!("{sink}  uri: http://user@x\n"),
            "m.yaml:5:3: spec.uri: must be an absolute",
        ),
        (
            format!("{sink}  contentMode: Batch\n  uri: http://x\n"),
            "m.yaml:5:16: spec.contentMode: must be one of",
        ),
        (
            format!("{sink}  uri: http://x\n  headers: [{{name: X-Tenant}}]\n"),
            "m.yaml:6:13: spec.headers[0]: exactly one of value and valueFrom",
        ),
        (
            format!("{sink}  uri: http://x\n  headers: [{{name: Authorization, value: a}}]\n"),
            "m.yaml:6:13: spec.headers[0]: everyone who can read the Sink can read value",
        ),
        (
            format!("{sink}  uri: http://x\n  headers: [{{name: a, value: \"a\\nb\"}}]\n"),
            "m.yaml:6:30: spec.headers[0].value: \"a\\nb\" must match",
        ),
    ] {
        let (_, problems) = read(&text);
        assert!(
            problems.iter().any(|problem| problem.starts_with(expected)),
            "{text}\n expected {expected}\n found {problems:#?}"
        );
    }
}

#[test]
fn drops_resources_with_too_many_values() {
    let values = "\n  - exact: {type: a}".repeat(MAX_VALUES / 2);
    let large = TRIGGER.replace("\n  - exact: {type: com.example.order.created}", &values);
    let (manifests, problems) = read(&format!("{large}---\n{TRIGGER}"));
    assert_eq!(manifests.len(), 1);
    let expected = "m.yaml:1:1: the Trigger has more than 20000 values; split the Trigger";
    assert_eq!(problems, [expected]);
}
