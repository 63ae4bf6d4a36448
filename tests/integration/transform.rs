//! Transforms by a real router: what is sent, what becomes a dead letter, and what a mended transform makes of it.

use serde_json::{Value, json};

use crate::support::{Consumer, LocalRouter, PATIENCE, eventually, post};

fn manifests(total: &str) -> String {
    let trigger = |name: &str, delivery: &str| {
        format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             sink: {{service: {{name: {name}}}}}\n  transform:\n    attributes:\n      \
             set: {{type: \"com.example.${{event.type}}.v2\", region: \"${{event.source}}\"}}\n      remove: [secretext]\n    \
             data:\n      id: ${{data.order.id}}\n      total: {total}\n      note: order ${{data.order.id}}\n{delivery}"
        )
    };
    let dead_letters = "  delivery: {deadLetterSink: {service: {name: letters}}}\n";
    trigger("billing", "") + &trigger("audited", dead_letters)
}

fn weir(router: &LocalRouter, arguments: &[&str]) -> String {
    let mut process = router.weir(arguments).quiet().start();
    let success = process.wait_for_exit(PATIENCE).success();
    let output = process.output().join("\n");
    assert!(success, "{output}");
    output
}

fn json_of(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn events_are_sent_transformed_or_become_dead_letters_that_name_the_field() {
    let [billing, audited, letters] = [(); 3].map(|()| Consumer::start());
    let services = [
        ("billing", &billing),
        ("audited", &audited),
        ("letters", &letters),
    ];
    let router = LocalRouter::start(&manifests("${data.order.total}"), &services);
    let send = |id: &str, data: &str| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-source", "/p"),
            ("ce-type", "order"),
            ("ce-id", id),
            ("ce-secretext", "x"),
            ("content-type", "application/json"),
        ];
        assert_eq!(post(&router.url(), &headers, data.to_owned()).status, 202);
    };

    send("1", r#"{"order": {"id": "o-1", "total": 12.5}}"#);
    let received = &billing.wait_for(1)[0];
    let header = |name: &str| received.header(name);
    assert_eq!(header("ce-type"), Some("com.example.order.v2"));
    assert_eq!((header("ce-region"), header("ce-id")), (Some("/p"), Some("1")));
    assert_eq!(
        (header("ce-secretext"), header("content-type")),
        (None, Some("application/json"))
    );
    let expected = json!({"id": "o-1", "note": "order o-1", "total": 12.5});
    assert_eq!(json_of(&received.body), expected);

    // In its own mode.
    let structured = r#"{"specversion":"1.0","id":"2","source":"/p","type":"order","secretext":"x","data":{"order":{"id":"o-2","total":1}}}"#;
    let headers = [("content-type", "application/cloudevents+json")];
    assert_eq!(post(&router.url(), &headers, structured).status, 202);
    let received = json_of(&billing.wait_for(2)[1].body);
    assert_eq!(received["type"], "com.example.order.v2");
    assert_eq!(
        received["data"],
        json!({"id": "o-2", "note": "order o-2", "total": 1})
    );
    assert_eq!(received.get("secretext"), None);

    // Nothing is sent of an event that lacks a field; the dead letter is the original.
    send("3", r#"{"order": {"id": "o-3"}}"#);
    let listed = || weir(&router, &["dead-letters", "list", "shop/default", "-o", "json"]);
    eventually(PATIENCE, || {
        let listed = listed();
        if listed.lines().count() == 1 {
            Ok(())
        } else {
            Err(listed)
        }
    });
    let letter: Value = serde_json::from_str(&listed()).unwrap();
    assert_eq!(
        (&letter["reason"], &letter["eventId"]),
        (&"transform failed".into(), &"3".into())
    );
    assert_eq!(letter["attempts"], 0);
    assert_eq!(letter["detail"], "spec.transform.data.total: there is no total");
    let received = &letters.wait_for(1)[0];
    assert_eq!(json_of(&received.body), json!({"order": {"id": "o-3"}}));
    assert_eq!(received.header("ce-type"), Some("order"));
    assert_eq!(received.header("ce-secretext"), Some("x"));
    assert_eq!(received.header("ce-weirerrorreason"), Some("transform%20failed"));
    assert_eq!((billing.received().len(), audited.received().len()), (2, 2));
    let explained = weir(&router, &["explain", "shop/default", "--id", "3"]);
    assert!(
        explained.contains("data.note = \"order o-3\"")
            && explained.contains("data.total: there is no total"),
        "{explained}"
    );

    // A mended transform applies to what is redriven.
    router.apply(&manifests("\"${has(data.order.total) ? data.order.total : 0}\""));
    weir(&router, &["dead-letters", "redrive", "shop/default", "--all"]);
    let received = &billing.wait_for(3)[2];
    let expected = json!({"id": "o-3", "note": "order o-3", "total": 0});
    assert_eq!(json_of(&received.body), expected);
    eventually(PATIENCE, || match router.accounting("billing") {
        figures if figures["delivered"] == 3 && figures["dead_lettered"] == 1 => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
}
