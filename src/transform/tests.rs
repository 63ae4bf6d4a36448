//! Results of transforms, rejected transforms, and robustness against any template and event.

use bytes::Bytes;
use proptest::{collection, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::cloudevents::{Event, EventBuilder, Lineage, read_http};

const DATA: &str = r#"{"order": {"id": "o-1", "total": 12.5, "lines": [{"sku": "X", "n": 2}, {"sku": "Y", "n": 1}]},
    "paid": true, "note": "say \"hi\"", "none": null}"#;

fn event() -> Event {
    EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/shop")
        .attribute("type", "order")
        .attribute("secretext", "x")
        .attribute("priority", 7)
        .attribute(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .data("application/json", Bytes::from_static(DATA.as_bytes()))
        .build()
        .unwrap()
        .with_lineage(Lineage::of_origin(7))
}

fn compiled(transform: Value) -> Result<CompiledTransform, TransformError> {
    CompiledTransform::compile(&serde_json::from_value(transform).unwrap())
}

fn apply(transform: Value) -> Result<Event, String> {
    let compiled = compiled(transform.clone()).unwrap_or_else(|error| panic!("{transform}: {error}"));
    let applied = compiled.apply(&event());
    assert_eq!(applied, compiled.apply(&event()), "the same again");
    let explained = compiled.explain(&event());
    assert_eq!(explained.error.is_none(), applied.is_ok(), "{explained:?}");
    applied.map_err(|failure| failure.to_string())
}

fn data(transform: Value) -> Result<Value, String> {
    let event = apply(json!({ "data": transform }))?;
    assert_eq!(
        event.attribute("datacontenttype"),
        Some(&"application/json".into())
    );
    Ok(serde_json::from_slice(event.data().unwrap().as_bytes()).unwrap())
}

#[test]
fn sets_and_removes_attributes() {
    let event = apply(json!({
        "set": {
            "type": "com.example.${event.type}.v2", "region": "${event.source}", "subject": "${event.priority}",
            "paid": "${data.paid}", "lines": "${size(data.order.lines)}", "cost": "$${${data.order.total}",
        },
        "remove": ["secretext", "absent"],
    }))
    .unwrap();
    let of = |name: &str| event.attribute(name).cloned();
    assert_eq!(event.r#type(), "com.example.order.v2");
    assert_eq!(
        (of("region"), of("subject")),
        (Some("/shop".into()), Some("7".into()))
    );
    assert_eq!((of("paid"), of("lines")), (Some(true.into()), Some(2.into())));
    assert_eq!((of("cost"), of("secretext")), (Some("${12.5".into()), None));
    let before = super::tests::event();
    assert_eq!(of("traceparent"), before.attribute("traceparent").cloned());
    assert_eq!(
        (event.data(), event.lineage(), event.id()),
        (before.data(), before.lineage(), "1")
    );
}

#[test]
fn makes_data_from_a_template() {
    for (template, expected) in [
        (
            json!({"id": "${data.order.id}", "total": "${data.order.total}", "note": "order ${data.order.id}: ${data.note}"}),
            json!({"id": "o-1", "total": 12.5, "note": "order o-1: say \"hi\""}),
        ),
        (
            json!("${data.order}"),
            json!({"id": "o-1", "total": 12.5, "lines": [{"sku": "X", "n": 2}, {"sku": "Y", "n": 1}]}),
        ),
        (
            json!({"skus": "${data.order.lines.map(l, l.sku)}", "first": "${data.order.lines[0]}"}),
            json!({"skus": ["X", "Y"], "first": {"sku": "X", "n": 2}}),
        ),
        (
            json!({"lines": "${data.order.lines.filter(l, l.n > 1).map(l, {'article': l.sku})}"}),
            json!({"lines": [{"article": "X"}]}),
        ),
        (
            json!([1, null, true, "", "$${event.id}", "${data.none}", {"${event.id}": [], "b": {}}]),
            json!([1, null, true, "", "${event.id}", null, {"${event.id}": [], "b": {}}]),
        ),
        (json!("${has(data.gift) ? data.gift : 'none'}"), json!("none")),
        (
            json!("at ${timestamp('2026-11-24T09:00:00+01:00')}"),
            json!("at 2026-11-24T08:00:00Z"),
        ),
    ] {
        assert_eq!(data(template.clone()), Ok(expected), "{template}");
    }
}

#[test]
fn content_type_can_be_set_with_the_data() {
    let event =
        apply(json!({"set": {"datacontenttype": "application/vnd.x+json"}, "data": {"a": 1}})).unwrap();
    assert_eq!(
        event.attribute("datacontenttype"),
        Some(&"application/vnd.x+json".into())
    );
    assert_eq!(event.data().unwrap().as_bytes(), br#"{"a":1}"#);
}

#[test]
fn failures_name_the_field_and_not_the_data() {
    for (transform, expected) in [
        (
            json!({"data": {"total": "${data.order.sum}"}}),
            "spec.transform.data.total: there is no sum",
        ),
        (
            json!({"data": {"a": [1, {"b": "x ${data.order}"}]}}),
            "spec.transform.data.a[1].b: expected string, number, bool or timestamp, got map",
        ),
        (
            json!({"set": {"subject": "${data.order}"}}),
            "spec.transform.attributes.set.subject: expected string, number, bool or timestamp, got map",
        ),
        (
            json!({"set": {"time": "${data.note}"}}),
            "spec.transform.attributes.set.time: the value is not a timestamp such as 2026-11-24T08:00:00Z",
        ),
        (
            json!({"set": {"subject": "${''}"}}),
            "spec.transform.attributes.set.subject: the value is empty",
        ),
        (
            json!({"set": {"ext": "${'a\\nb'}"}}),
            "spec.transform.attributes.set.ext: the value has a control character or another that attributes cannot have",
        ),
        (
            json!({"data": "${1 / 0}"}),
            "spec.transform.data: division by zero",
        ),
    ] {
        let message = apply(transform.clone()).unwrap_err();
        assert_eq!(message, expected, "{transform}");
    }
}

#[test]
fn results_are_bounded() {
    let event = EventBuilder::new()
        .attribute("id", "1")
        .attribute("source", "/shop")
        .attribute("type", "order")
        .data("application/json", format!("\"{}\"", "x".repeat(200_000)))
        .build()
        .unwrap();
    let failure = |transform: Value| {
        compiled(transform)
            .unwrap()
            .apply(&event)
            .unwrap_err()
            .to_string()
    };
    let five = "${data}".repeat(6);
    for (transform, expected) in [
        (json!({"data": vec!["${data}"; 4]}), None),
        (
            json!({"data": vec!["${data}"; 6]}),
            Some("spec.transform.data: the expressions exceed"),
        ),
        (
            json!({"data": [five]}),
            Some("spec.transform.data[0]: the new data has more than 1048576 bytes"),
        ),
        (
            json!({"set": {"ext": "${data}"}}),
            Some("spec.transform.attributes.set.ext: the value has more than 8192 bytes"),
        ),
        (
            json!({"data": {"a": "${[1, 2, 3, 4, 5].map(i, data.matches('[ab]*a[ab]{500}c0'))}"}}),
            Some("spec.transform.data.a: the expressions exceed 2000000 steps for this event"),
        ),
    ] {
        match expected {
            None => assert!(
                compiled(transform.clone()).unwrap().apply(&event).is_ok(),
                "{transform}"
            ),
            Some(_) => {
                let message = failure(transform);
                let is_bound = ["exceed 2000000 steps", "has more than"];
                assert!(is_bound.iter().any(|part| message.contains(part)), "{message}");
            }
        }
    }
}

#[test]
fn compile_errors_have_a_path_and_a_column() {
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    for (transform, expected) in [
        (json!({}), "transform: changes nothing"),
        (
            json!({"data": {"total": "sum: ${data.a +}"}}),
            "transform.data.total: column 16: ",
        ),
        (
            json!({"data": ["a\nb ${x}"]}),
            "transform.data[0]: line 2, column 5: there is no x: the variables are",
        ),
        (
            json!({"data": {"a": "b ${c"}}),
            "transform.data.a: column 3: ${ is not closed by }; for the text ${ write $${",
        ),
        (
            json!({"set": {"time": "soon"}}),
            "transform.attributes.set.time: the attribute `time` is `soon`, which is not a timestamp",
        ),
        (
            json!({"set": {"specversion": "1.1"}}),
            "transform.attributes.set: specversion cannot be changed",
        ),
        (
            json!({"set": {"weirhops": "1"}}),
            "transform.attributes.set: weirhops cannot be changed",
        ),
        (
            json!({"set": {"Bad": "1"}}),
            "transform.attributes.set: \"Bad\" is not a valid",
        ),
        (
            json!({"set": {"data": "1"}}),
            "transform.attributes.set: \"data\" is not a valid",
        ),
        (
            json!({"remove": ["id"]}),
            "transform.attributes.remove: id cannot be removed",
        ),
        (
            json!({"remove": ["traceparent"]}),
            "transform.attributes.remove: traceparent cannot be changed",
        ),
        (
            json!({"set": {"a": "1"}, "remove": ["a"]}),
            "transform.attributes.remove: a is both set and removed",
        ),
        (
            json!({"data": 1, "remove": ["datacontenttype"]}),
            "transform.attributes.remove: datacontenttype cannot be removed together with data",
        ),
        (json!({ "data": deep }), "transform.data[0][0]"),
        (
            json!({"data": vec![1; 5000]}),
            "transform: has more than 4096 parts",
        ),
        (
            json!({"data": "x".repeat(70_000)}),
            "transform: has more than 65536 bytes",
        ),
    ] {
        let error = compiled(transform.clone()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{transform}: {error}");
        let label = if error.to_string().contains("more than") {
            "TransformTooLarge"
        } else {
            "InvalidTransform"
        };
        assert_eq!(error.label(), label, "{error}");
    }
}

#[test]
fn unknown_fields_are_not_ignored() {
    assert!(serde_json::from_value::<Transform>(json!({"set": {}, "rename": {}})).is_err());
}

#[test]
fn explains_every_field() {
    let compiled = compiled(json!({
        "set": {"type": "${event.type}.v2"}, "remove": ["secretext"],
        "data": {"id": "${data.order.id}", "sum": "${data.sum}", "none": [], "k": 1},
    }))
    .unwrap();
    let TransformExplanation { fields, event, error } = compiled.explain(&event());
    let lines: Vec<_> = fields
        .into_iter()
        .map(|TransformedField { path, value, error }| format!("{path} {value:?} {error:?}"))
        .collect();
    assert_eq!(
        lines,
        [
            r#"attributes.set.type Some("\"order.v2\"") None"#,
            "attributes.remove.secretext None None",
            r#"data.id Some("\"o-1\"") None"#,
            r#"data.k Some("1") None"#,
            r#"data.none Some("[]") None"#,
            r#"data.sum None Some("there is no sum")"#,
        ]
    );
    assert_eq!(
        (event, error.as_deref()),
        (None, Some("spec.transform.data.sum: there is no sum"))
    );
}

fn text() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "${data}",
        "${data.a}",
        "${data.b.c}",
        "${event.id}",
        "${event.n}",
        "${1.5}",
        "${data.l.map(x, [x, x])}",
        "${data.l.exists(x, x == 1)}",
        "${timestamp(event.time)}",
        "${{'a': data}}",
        "$${",
        "$",
        "text",
        "ä\u{1}",
        "}",
        "${",
        "2026-11-24T08:00:00Z",
        "/uri",
        "application/json",
        "application/cloudevents+json",
        "text/plain",
    ]);
    collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

fn template() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        4 => text().prop_map(Value::String),
        1 => select(vec![json!(null), json!(1), json!(-1.5), json!(true)]),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            collection::vec(("[a-z.\"]{0,3}", inner), 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let data = select(vec![
        "",
        "{",
        "1",
        "\"x\"",
        "null",
        r#"{"a": 1, "b": {"c": "ä\u0001"}, "l": [1, "2", null]}"#,
        r#"{"a": {"b": 1e400}}"#,
    ]);
    let content_type = select(vec![None, Some("application/json"), Some("text/plain")]);
    (
        data,
        content_type,
        any::<bool>(),
        select(vec!["x", "2026-11-24T08:00:00Z"]),
    )
        .prop_map(|(data, content_type, is_structured, extension)| {
            let mut builder = EventBuilder::new()
                .attribute("id", "1")
                .attribute("source", "/s")
                .attribute("type", "t")
                .attribute("n", 5)
                .attribute("time", "2026-11-24T08:00:00Z")
                .attribute("ext", extension)
                .untyped_data(data);
            if let Some(content_type) = content_type {
                builder = builder.attribute("datacontenttype", content_type);
            }
            let event = builder.build().unwrap();
            if !is_structured {
                return event;
            }
            let message = event.to_http(Some(crate::cloudevents::Mode::Structured));
            read_http(&message.headers, message.body)
                .unwrap()
                .into_events()
                .pop()
                .unwrap()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_result_is_a_valid_event(
        set in collection::btree_map(
            select(vec!["id", "source", "type", "time", "subject", "dataschema", "datacontenttype", "ext", "n"]), text(), 0..4,
        ),
        remove in collection::btree_set(select(vec!["time", "subject", "datacontenttype", "ext", "n", "absent"]), 0..3),
        data in proptest::option::of(template()),
        event in any_event(),
    ) {
        let transform = Transform {
            set: set.into_iter().map(|(name, text)| (name.to_owned(), text)).collect(),
            remove: remove.into_iter().map(str::to_owned).collect(),
            data: data.filter(|data| !data.is_null()),
        };
        let text = serde_json::to_string(&transform).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Transform>(&text).unwrap(), &transform);
        let Ok(compiled) = CompiledTransform::compile(&transform) else { return Ok(()) };
        let explained = compiled.explain(&event);
        let Ok(changed) = compiled.apply(&event) else {
            prop_assert!(explained.error.is_some());
            return Ok(());
        };
        prop_assert_eq!(changed.mode(), event.mode());
        // What is sent can be received, and is the same.
        let message = changed.to_http(None);
        let received = read_http(&message.headers, message.body.clone());
        let is_event = changed.attribute("datacontenttype").is_some_and(|value| value.to_string().contains("cloudevents"));
        if !is_event {
            let received = received.map_err(|error| TestCaseError::fail(error.to_string()))?.into_events().pop();
            let received = received.ok_or_else(|| TestCaseError::fail("no event"))?;
            prop_assert_eq!(received.data(), changed.data());
            for (name, value) in changed.attributes() {
                let received = received.attribute(name).map(|value| value.canonical().into_owned());
                prop_assert_eq!(received, Some(value.canonical().into_owned()), "{}", name);
            }
        }
        prop_assert!(serde_json::from_slice::<&serde_json::value::RawValue>(&changed.to_json()).is_ok());
    }
}
