//! Why an event matches or does not, and whether manifests are in order: `weir validate`, `weir explain` and
//! `weir test` as processes.

use std::path::Path;

use http::Method;
use serde_json::Value;

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, Process, Scratch, eventually};

/// Runs `weir` with colours off; its exit code and what it printed on both outputs, with the line that says why it
/// failed at the end: the two outputs race.
fn weir(arguments: &[&str]) -> (i32, String) {
    let mut process = Process::weir(arguments).quiet().start();
    let code = process.wait_for_exit(PATIENCE).code();
    let mut lines = process.output();
    lines.sort_by_key(|line| line.starts_with("weir: "));
    (code.expect("it ended by itself"), lines.join("\n"))
}

fn path(scratch: &Scratch, name: &str) -> String {
    scratch.path().join(name).to_str().unwrap().to_owned()
}

fn trigger(name: &str, filters: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: {name}}}}}\n  filters: {filters}\n"
    )
}

#[test]
fn the_manifests_of_the_quickstart_are_valid_and_their_tests_pass() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    assert_eq!(
        weir(&["validate", examples.to_str().unwrap()]),
        (0, "5 resources: no errors".to_owned())
    );
    let tests = examples.join("routing.test.yaml");
    let (code, output) = weir(&["test", tests.to_str().unwrap()]);
    assert_eq!(
        (code, output.lines().last()),
        (0, Some("5 tests passed")),
        "{output}"
    );
}

#[test]
fn routing_is_tested_by_a_table_of_events() {
    let scratch = Scratch::new();
    scratch.write("triggers.yaml", orders_and_stock());
    let order = "{type: com.example.order.created, source: /shop}";
    let tests = format!(
        "namespace: shop\ntests:\n- name: an order goes to orders\n  event: {order}\n  triggers: [orders]\n\
         - name: an order goes to stock\n  event: {order}\n  triggers: [stock]\n"
    );
    // Beside the manifests, and not taken for one.
    scratch.write("routing.test.yaml", &tests);
    let file = path(&scratch, "routing.test.yaml");
    let (code, output) = weir(&["test", &file]);
    let expected = format!(
        r#"{file}:3:3: ok: an order goes to orders
{file}:6:3: FAILED: an order goes to stock
  Trigger orders should not match, and does:
    yes  prefix type = "com.example.order.": the event has "com.example.order.created"
    yes  not this:
        no   suffix source = "/test": the event has "/shop"
  Trigger stock should match, and does not:
    no   exact type = "com.example.stock": the event has "com.example.order.created"   <-- because of this
    no   sql priority > 5 AND EXISTS subject:
        no   priority > 5: the event has no attribute priority   <-- because of this
        -    EXISTS subject: not evaluated, the result was already decided
"#
    );
    assert_eq!(
        (code, output.as_str()),
        (1, &*(expected + "weir: 1 of 2 tests failed"))
    );

    let (code, output) = weir(&["test", &file, "-o", "json"]);
    let lines: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    assert_eq!((code, lines.len()), (1, 2), "{output}");
    assert_eq!(
        (
            &lines[0]["passed"],
            &lines[1]["line"],
            &lines[1]["differences"][1]["kind"]
        ),
        (&true.into(), &6.into(), &"missing".into())
    );

    let passing = tests.replace("[stock]", "[orders]");
    scratch.write("routing.test.yaml", &passing);
    assert_eq!(weir(&["test", &file]).0, 0);
    scratch.write("routing.test.yaml", passing.replace("  triggers", "  trigger"));
    let (code, output) = weir(&["test", &file]);
    assert_eq!(code, 1);
    assert!(
        output.contains("routing.test.yaml:5:3: tests[0].trigger: unknown field; did you mean triggers?"),
        "{output}"
    );
    assert_eq!(weir(&["test", "/nonexistent"]).0, 2);
}

#[test]
fn manifests_are_validated_with_the_place_of_each_problem() {
    let scratch = Scratch::new();
    scratch.write("good.yaml", trigger("good", "[{exact: {type: a}}]"));
    let file = path(&scratch, "good.yaml");
    assert_eq!(
        weir(&["validate", &file]),
        (0, "1 resource: no errors".to_owned())
    );
    let (code, output) = weir(&["validate", "--strict", &file]);
    assert_eq!(
        (code, output.lines().next().unwrap()),
        (
            1,
            &*format!("{file}:6:3: Trigger shop/good: Service shop/good is not among the files")
        )
    );

    let foreign = trigger("foreign", "[]").replace(
        "service: {name: foreign}",
        "ref: {name: audit, namespace: platform}",
    );
    scratch.write(
        "bad.yaml",
        trigger("bad", "[{exact: {type: a}}, {sql: type =}]") + &foreign,
    );
    let directory = scratch.path().to_str().unwrap();
    let (code, output) = weir(&["validate", directory, "-o", "json"]);
    assert_eq!(code, 1, "{output}");
    let lines: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let places: Vec<_> = lines
        .iter()
        .map(|line| (line["line"].as_u64(), line["column"].as_u64(), &line["severity"]))
        .collect();
    assert_eq!(
        places,
        [
            (Some(7), Some(34), &"error".into()),
            (Some(13), Some(3), &"warning".into())
        ],
        "{output}"
    );
    assert_eq!(output.lines().last(), Some("weir: 1 error"));
    let (_, output) = weir(&["validate", directory]);
    assert!(
        output.contains("bad.yaml:13:3: warning: Trigger shop/foreign: Sink platform/audit is not among"),
        "{output}"
    );

    for wrong in [&["validate"][..], &["validate", "/nonexistent"]] {
        assert_eq!(weir(wrong).0, 2, "{wrong:?}");
    }
    let empty = Scratch::new();
    let (code, output) = weir(&["validate", empty.path().to_str().unwrap()]);
    assert_eq!(
        (code, output.contains("no Source, Trigger or Sink")),
        (1, true),
        "{output}"
    );
}

const ORDER: &str = r#"{"specversion": "1.0", "id": "42", "source": "/shop", "type": "com.example.order.created", "priority": 7}"#;

fn orders_and_stock() -> String {
    trigger(
        "orders",
        "[{prefix: {type: com.example.order.}}, {not: {suffix: {source: /test}}}]",
    ) + &trigger(
        "stock",
        "[{exact: {type: com.example.stock}}, {sql: priority > 5 AND EXISTS subject}]",
    )
}

#[test]
fn an_event_is_explained_by_manifests_in_files() {
    let scratch = Scratch::new();
    let manifests = Scratch::new();
    manifests.write("triggers.yaml", orders_and_stock());
    scratch.write("event.json", ORDER);
    scratch.write(
        "event.http",
        "ce-specversion: 1.0\nce-id: 42\nce-source: /shop\nce-type: com.example.order.created\nce-priority: 7\n\ndata",
    );
    let directory = manifests.path().to_str().unwrap();
    let expected = r#"Event 42 of type com.example.order.created from /shop

Broker shop/default

  Trigger shop/orders matches
    yes  prefix type = "com.example.order.": the event has "com.example.order.created"
    yes  not this:
        no   suffix source = "/test": the event has "/shop"

  Trigger shop/stock does not match
    no   exact type = "com.example.stock": the event has "com.example.order.created"   <-- because of this
    no   sql priority > 5 AND EXISTS subject:
        yes  priority > 5: the event has "7"
        no   EXISTS subject: the event has no subject   <-- because of this"#;
    for file in ["event.json", "event.http"] {
        let file = path(&scratch, file);
        for arguments in [
            &["explain", "-f", &file, "-f", directory][..],
            &["explain", "-f", directory, "--event", &file],
            &["explain", "shop/default", "-f", directory, "--event", &file],
        ] {
            assert_eq!(weir(arguments), (0, expected.to_owned()), "{arguments:?}");
        }
    }

    // An event may lie among the manifests.
    manifests.write("event.json", ORDER);
    let beside = path(&manifests, "event.json");
    assert_eq!(
        weir(&["explain", "-f", &beside, "-f", directory]),
        (0, expected.to_owned())
    );

    let file = path(&scratch, "event.json");
    let (code, output) = weir(&["explain", "-f", &file, "-f", directory, "-o", "json"]);
    let lines: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let matches: Vec<_> = lines
        .iter()
        .map(|line| {
            (
                line["trigger"]["name"].as_str().unwrap(),
                &line["trigger"]["matches"],
            )
        })
        .collect();
    assert_eq!(
        (code, matches),
        (0, vec![("orders", &true.into()), ("stock", &false.into())])
    );
    assert_eq!(
        lines[1]["trigger"]["filters"][1]["clauses"][0]["saw"][0]["value"],
        "7"
    );

    let coloured = Process::weir(["explain", "-f", &file, "-f", directory])
        .env("NO_COLOR", "")
        .env("CLICOLOR_FORCE", "1")
        .start()
        .output()
        .join("\n");
    assert!(coloured.contains("\u{1b}[32m"), "{coloured}");

    for (arguments, part) in [
        (&["explain", "-f", directory][..], "no event given"),
        (&["explain", "-f", &file, "--event", &file], "are both events"),
        (&["explain", "--event", &file], "give a broker"),
        (
            &["explain", "shop/default", "--id", "1", "-f", directory],
            "cannot be used with",
        ),
    ] {
        let (code, output) = weir(arguments);
        assert_eq!(
            (code, output.contains(part)),
            (2, true),
            "{arguments:?}: {output}"
        );
    }
    let (code, output) = weir(&["explain", "shop/other", "-f", directory, "-f", &file]);
    assert_eq!(
        (code, output.contains("the brokers are shop/default")),
        (1, true),
        "{output}"
    );
    scratch.write("event.json", "{}");
    let (code, output) = weir(&["explain", "-f", &file, "-f", directory]);
    assert_eq!(
        (code, output.contains("event.json is not a valid event")),
        (1, true),
        "{output}"
    );
    manifests.write("broken.yaml", trigger("broken", "[{sql: type =}]"));
    scratch.write("event.json", ORDER);
    let (code, output) = weir(&["explain", "-f", &file, "-f", directory]);
    assert_eq!(code, 1, "what is explained may not be what was meant");
    assert!(
        output.contains("its filters or its transform do not compile") && output.contains("broken.yaml:7:"),
        "{output}"
    );
}

#[test]
fn a_router_explains_an_event_by_what_it_has_in_force() {
    let consumer = Consumer::start();
    let router = LocalRouter::start(
        &orders_and_stock(),
        &[("orders", &consumer), ("stock", &consumer)],
    );
    let scratch = Scratch::new();
    scratch.write("event.json", ORDER);
    let event = path(&scratch, "event.json");
    let (admin, url) = (router.admin(""), router.admin("/shop/default"));
    let token = format!("--router-token={}", router.token_file().display());
    let by_router = [
        "explain",
        "shop/default",
        "--router",
        &admin,
        "--event",
        &event,
        &token,
    ];
    let (code, output) = weir(&by_router);
    assert_eq!(code, 0, "{output}");
    assert!(
        output.contains("Trigger shop/orders matches")
            && output.contains("Trigger shop/stock does not match"),
        "{output}"
    );
    assert_eq!(
        weir(&["explain", "--broker", &url, "--event", &event, &token]),
        (0, output.clone())
    );

    router.apply(&orders_and_stock().replace("com.example.order.", "com.example.invoice."));
    assert_ne!(weir(&by_router).1, output, "what is in force is another");

    let ingress = format!("{}/shop/default", router.process.address("ingress"));
    let (code, output) = weir(&["explain", &ingress, "--event", &event]);
    assert_eq!(
        (code, output.contains("is not the admin address of a router")),
        (1, true),
        "{output}"
    );
    let (code, output) = weir(&[
        "explain",
        "shop/other",
        "--router",
        &admin,
        "--event",
        &event,
        &token,
    ]);
    assert_eq!(
        (code, output.contains("has no broker \"other\"")),
        (1, true),
        "{output}"
    );
    scratch.write("event.json", format!("[{ORDER}, {ORDER}]"));
    let (code, output) = weir(&by_router);
    assert_eq!(
        (code, output.contains("it contains 2 events")),
        (1, true),
        "{output}"
    );
}

#[test]
fn an_event_of_the_log_is_explained_with_how_far_each_trigger_is() {
    let consumer = Consumer::start();
    consumer.answer_by(|request| match request.header("ce-type") {
        Some("refused") => Answer::status(422).body("no such customer"),
        Some("slow") => Answer::Hang,
        _ => Answer::status(204),
    });
    let suspended = trigger("held", "[]").replace("spec:", "spec:\n  suspend: true");
    let manifests = trigger("all", "[]") + &trigger("some", "[{exact: {type: other}}]") + &suspended;
    let router = LocalRouter::start(
        &manifests,
        &[("all", &consumer), ("some", &consumer), ("held", &consumer)],
    );
    let admin = router.admin("");
    let token = format!("--router-token={}", router.token_file().display());
    let explained = |id: &str, more: &[&str]| {
        let arguments = ["explain", "shop/default", "--router", &admin, &token, "--id", id];
        weir(&[&arguments, more].concat())
    };
    let delivery = |id: &str, name: &str, field: &str| {
        let (code, output) = explained(id, &["-o", "json"]);
        assert_eq!(code, 0, "{output}");
        let lines = output
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let line = lines
            .into_iter()
            .find(|line| line["trigger"]["name"] == name)
            .unwrap();
        line["trigger"]["progress"][field].clone()
    };
    assert_eq!(router.post("good", "a/1 ?", &[]).status, 202);
    eventually(PATIENCE, || match delivery("a/1 ?", "all", "state") {
        state if state == "settled" => Ok(()),
        state => Err(state.to_string()),
    });
    let (code, output) = explained("a/1 ?", &["--source", "/p"]);
    assert_eq!(code, 0, "{output}");
    for part in [
        "Event a/1 ? of type good from /p",
        "the event is in its log: accepted 2",
        "Trigger shop/all matches\n    it has no filters, so it matches every event\n    delivery: settled",
        "Trigger shop/held matches\n    it has no filters, so it matches every event\n    delivery: the Trigger is suspended: \
         its events wait\n    delivery: not yet read: the Trigger is at offset 0",
        "Trigger shop/some does not match\n    no   exact type = \"other\": the event has \"good\"",
    ] {
        assert!(output.contains(part), "{part:?} is not in {output}");
    }

    assert_eq!(router.post("refused", "2", &[]).status, 202);
    eventually(PATIENCE, || match delivery("2", "all", "deadLetter") {
        Value::Null => Err("no dead letter".to_owned()),
        letter if letter["reason"] == "refused" => Ok(()),
        letter => Err(letter.to_string()),
    });
    let (_, output) = explained("2", &[]);
    assert!(
        output.contains("the event became dead letter 0 (refused: 422"),
        "{output}"
    );
    assert_eq!(router.post("slow", "3", &[]).status, 202);
    eventually(PATIENCE, || match delivery("3", "all", "state") {
        state if state == "pending" => Ok(()),
        state => Err(state.to_string()),
    });

    for (id, more, part) in [
        (
            "9",
            &[][..],
            "none of the 3 events that broker shop/default retains",
        ),
        ("2", &["--source", "/q"], "has id \"2\" from source \"/q\""),
    ] {
        let (code, output) = explained(id, more);
        assert_eq!((code, output.contains(part)), (1, true), "{output}");
    }
    assert_eq!(
        router
            .ask(Method::GET, "/v1/explain/shop/default/events", "")
            .status,
        400
    );
}

#[test]
fn manifests_come_from_standard_input_and_from_folders_below() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("below")).unwrap();
    scratch.write("below/a.yaml", trigger("a", "[]"));
    let folder = scratch.path().to_str().unwrap();
    let (code, output) = weir(&["validate", folder]);
    assert!(
        code == 1 && output.contains("no Source, Trigger or Sink"),
        "{output}"
    );
    let fine = (0, "1 resource: no errors".to_owned());
    assert_eq!(weir(&["validate", "--recursive", folder]), fine);

    let piped = format!("exec \"$0\" validate - <{folder}/below/a.yaml");
    let output = Process::program("sh", ["-c", &piped, env!("CARGO_BIN_EXE_weir")]).run();
    assert_eq!(output, Ok(fine.1));
    let (code, output) = weir(&["run", "-"]);
    assert!(
        code == 2 && output.contains("name files or directories"),
        "{output}"
    );
}
