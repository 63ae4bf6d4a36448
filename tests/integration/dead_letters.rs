//! Dead letters: kept, listed, shown, redriven and dropped by command line, or sent to a dead-letter Sink.

use http::Method;
use serde_json::Value;

use crate::support::{Answer, Consumer, LocalRouter, PATIENCE, Process, eventually};

fn trigger(name: &str, delivery: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         filters: [{{prefix: {{type: {name}}}}}]\n  sink: {{service: {{name: {name}}}}}\n  \
         delivery: {{retry: 2, backoffDelay: 10ms, backoffMax: 20ms{delivery}}}\n"
    )
}

/// Runs `weir dead-letters`; its exit status and what it printed on both outputs.
fn dead_letters(router: &LocalRouter, arguments: &[&str]) -> (bool, String) {
    let mut process = router
        .weir(&[&["dead-letters"], arguments].concat())
        .quiet()
        .start();
    let success = process.wait_for_exit(PATIENCE).success();
    (success, process.output().join("\n"))
}

fn listed(router: &LocalRouter, which: &[&str]) -> Vec<Value> {
    let arguments = ["list", "shop/default", "-o", "json"];
    let (success, output) = dead_letters(router, &[&arguments, which].concat());
    assert!(success, "{output}");
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn wait_for_letters(router: &LocalRouter, count: u64) {
    eventually(PATIENCE, || {
        match router.metric(&["weir_dead_letters{", "broker=\"default\""]) {
            Some(kept) if kept == count => Ok(()),
            other => Err(format!("{other:?} dead letters")),
        }
    });
}

#[test]
fn dead_letters_are_listed_shown_redriven_and_dropped() {
    let [billing, stock] = [(); 2].map(|()| Consumer::start());
    billing.answer(Answer::status(422).body("no such customer"));
    stock.answer(Answer::status(503));
    let manifests = trigger("billing", "") + &trigger("stock", "");
    let mut router = LocalRouter::start(&manifests, &[("billing", &billing), ("stock", &stock)]);
    for (r#type, id) in [
        ("billing.a", "1"),
        ("billing.b", "2"),
        ("billing.a", "3"),
        ("stock", "4"),
    ] {
        assert_eq!(router.post(r#type, id, &[("ce-custom", "kept")]).status, 202);
    }
    wait_for_letters(&router, 4);
    assert_eq!(
        dead_letters(&router, &["list"]),
        (true, "BROKER         DEAD LETTERS\nshop/default   4".to_owned())
    );

    let letters = listed(&router, &["--trigger=billing"]);
    assert_eq!(letters.len(), 3);
    let letter = letters.iter().find(|letter| letter["eventId"] == "2").unwrap();
    let named = (&letter["trigger"]["namespace"], &letter["trigger"]["name"]);
    assert_eq!(
        named,
        (&"shop".into(), &"billing".into()),
        "as weir explain names it"
    );
    assert_eq!((&letter["status"], &letter["attempts"]), (&422.into(), &1.into()));
    let id = letter["id"].to_string();
    let (success, shown) = dead_letters(&router, &["show", "shop/default", &id]);
    assert!(
        success && shown.contains("no such customer") && shown.contains("\"custom\":\"kept\""),
        "{shown}"
    );
    let stock_letter = &listed(&router, &["--trigger=stock"])[0];
    assert_eq!(
        (&stock_letter["status"], &stock_letter["attempts"]),
        (&503.into(), &3.into())
    );

    // Dropped by filter; nothing else is.
    let drop = dead_letters(&router, &["drop", "shop/default", "--filter=type=billing.b"]);
    assert_eq!(drop, (true, "1 dropped".to_owned()));
    let (success, shown) = dead_letters(&router, &["show", "shop/default", &id]);
    assert!(!success && shown.contains("has no dead letter"), "{shown}");
    for verb in ["redrive", "drop"] {
        let (success, said) = dead_letters(&router, &[verb, "shop/default", &id]);
        assert!(
            !success && said.contains("1 of the IDs match no dead letter"),
            "{said}"
        );
    }

    // What means nothing does nothing, and says so.
    for which in ["--trigger=nosuch", "--filter=status=400"] {
        for verb in ["redrive", "drop"] {
            let (success, said) = dead_letters(&router, &[verb, "shop/default", which]);
            assert!(!success && said.contains("shop/default matches"), "{said}");
        }
    }
    let (success, said) = dead_letters(&router, &["drop", "shop/default", "--all"]);
    assert!(!success && said.contains("add --yes"), "{said}");

    // What is redriven while its Sink still rejects is a dead letter again, and counts each time.
    let redrive = dead_letters(&router, &["redrive", "shop/default", "--trigger=stock"]);
    assert_eq!(redrive, (true, "1 redriven".to_owned()));
    eventually(PATIENCE, || match router.accounting("stock") {
        figures if figures["matched"] == 2 && figures["dead_lettered"] == 2 => Ok(()),
        figures => Err(format!("{figures:?}")),
    });

    // A redriven event outlives a crash; so does what is known of those that were taken out.
    stock.answer(Answer::Hang);
    let redrive = dead_letters(&router, &["redrive", "shop/default", "--trigger=stock"]);
    assert_eq!(redrive, (true, "1 redriven".to_owned()));
    let before = stock.wait_for(7).len();
    stock.answer(Answer::status(204));
    router.kill_and_restart();
    let received = stock.wait_until(PATIENCE, |received| received.len() > before);
    assert_eq!(received[before].header("ce-custom"), Some("kept"));
    eventually(PATIENCE, || match router.accounting("stock") {
        figures if figures["delivered"] == 1 && figures["pending"] == 0 => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    let left: Vec<_> = listed(&router, &[])
        .iter()
        .map(|letter| letter["eventId"].clone())
        .collect();
    assert_eq!(left, ["1", "3"]);

    billing.answer(Answer::status(200));
    let redrive = dead_letters(&router, &["redrive", "shop/default", "--all"]);
    assert_eq!(redrive, (true, "2 redriven".to_owned()));
    eventually(PATIENCE, || match router.accounting("billing")["delivered"] {
        2 => Ok(()),
        delivered => Err(format!("{delivered} delivered")),
    });
    assert_eq!(
        dead_letters(&router, &["list"]),
        (true, "no dead letters".to_owned())
    );
    let (success, output) = dead_letters(&router, &["redrive", "shop/default"]);
    assert!(
        !success && output.contains("select dead letters by ID"),
        "{output}"
    );
}

#[test]
fn more_dead_letters_than_a_trigger_takes_at_once_are_redriven() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(400));
    let router = LocalRouter::start(&trigger("bulk", ""), &[("bulk", &consumer)]);
    for batch in 0..5 {
        assert_eq!(
            router.post_batch("bulk", batch * 500..(batch + 1) * 500).status,
            202
        );
    }
    wait_for_letters(&router, 2500);
    consumer.answer(Answer::status(204).after(std::time::Duration::from_millis(1)));
    let redrive = dead_letters(&router, &["redrive", "shop/default", "--all"]);
    assert_eq!(redrive, (true, "2500 redriven".to_owned()));
    eventually(PATIENCE, || match router.accounting("bulk") {
        figures if figures["delivered"] == 2500 && figures["dead_lettered"] == 2500 => Ok(()),
        figures => Err(format!("{figures:?}")),
    });
    assert_eq!(router.metric(&["weir_trigger_events_redriven_total"]), Some(2500));
    // Their records go with the next trimming.
    eventually(PATIENCE, || {
        match router.metric(&["weir_log_retained_bytes", "default.dead-letters"]) {
            Some(0) | None => Ok(()),
            bytes => Err(format!("{bytes:?} bytes of dead letters are left")),
        }
    });
}

#[test]
fn a_letter_of_a_trigger_that_is_gone_goes_to_its_successor_of_that_name() {
    let consumer = Consumer::start();
    consumer.answer(Answer::status(400));
    let router = LocalRouter::start(&trigger("old", ""), &[("old", &consumer)]);
    assert_eq!(router.post("old", "1", &[]).status, 202);
    wait_for_letters(&router, 1);
    router.apply(&trigger("new", ""));
    let is_gone = |line: &str| line.contains("Trigger deleted") && line.contains("shop/old");
    router.process.wait_for_line(PATIENCE, is_gone);
    let (success, output) = dead_letters(&router, &["redrive", "shop/default", "--all"]);
    assert!(
        !success && output.contains("1 belong to Triggers that no longer exist"),
        "{output}"
    );
    router.apply(&(trigger("new", "") + &trigger("old", "")));
    consumer.answer(Answer::status(204));
    assert_eq!(
        dead_letters(&router, &["redrive", "shop/default", "--all"]),
        (true, "1 redriven".to_owned())
    );
    consumer.wait_for(2);
}

#[test]
fn a_dead_letter_sink_gets_the_event_and_what_happened() {
    let [shop, graveyard] = [(); 2].map(|()| Consumer::start());
    shop.answer_by(|request| match request.header("ce-id") {
        Some("refused") => Answer::status(400).body("not\u{7}today"),
        _ => Answer::Reset,
    });
    let tries = std::sync::atomic::AtomicU32::new(0);
    graveyard.answer_by(move |request| {
        let first = tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        match request.header("ce-id") {
            Some("unwanted") => Answer::status(400).body("full"),
            _ if first => Answer::status(503),
            _ => Answer::status(200),
        }
    });
    let sink = ", deadLetterSink: {service: {name: graveyard, path: /letters}}";
    let router = LocalRouter::start(
        &trigger("shop", sink),
        &[("shop", &shop), ("graveyard", &graveyard)],
    );
    for id in ["refused", "reset"] {
        assert_eq!(router.post("shop", id, &[("ce-custom", "kept")]).status, 202);
    }
    let received = graveyard.wait_until(PATIENCE, |received| received.len() == 3);
    let of = |id: &str| {
        received
            .iter()
            .rev()
            .find(|letter| letter.header("ce-id") == Some(id))
            .unwrap()
    };
    let refused = of("refused");
    assert_eq!(refused.target, "/letters");
    let attributes = [
        "ce-custom",
        "ce-weirerrorcode",
        "ce-weirerrorreason",
        "ce-weirerrorattempts",
        "ce-weirerrortrigger",
    ];
    assert_eq!(
        attributes.map(|name| refused.header(name)),
        ["kept", "400", "refused", "1", "shop/shop"].map(Some)
    );
    assert!(
        refused
            .header("ce-weirerrordest")
            .unwrap()
            .starts_with(&shop.url())
    );
    assert_eq!(
        refused.header("ce-weirerrordata"),
        Some("400%20Bad%20Request:%20not%EF%BF%BDtoday")
    );
    let reset = of("reset");
    assert_eq!(reset.header("ce-weirerrorattempts"), Some("3"));
    assert_eq!(reset.header("ce-weirerrorcode"), None, "there was no answer");
    eventually(PATIENCE, || match router.accounting("shop")["dead_lettered"] {
        2 => Ok(()),
        letters => Err(format!("{letters} dead letters")),
    });
    assert_eq!(dead_letters(&router, &["list"]).1, "no dead letters");

    // What the dead-letter Sink does not take either is kept.
    assert_eq!(router.post("shop", "unwanted", &[]).status, 202);
    wait_for_letters(&router, 1);
    let detail = listed(&router, &[])[0]["detail"].to_string();
    assert!(
        detail.contains("then the dead-letter Sink: 400 Bad Request: full"),
        "{detail}"
    );
}

#[test]
fn what_a_router_does_not_know_is_said() {
    let consumer = Consumer::start();
    let router = LocalRouter::start(&trigger("t", ""), &[("t", &consumer)]);
    assert_eq!(
        router
            .ask(Method::GET, "/v1/dead-letters/shop/default/letters/7", "")
            .status,
        404
    );
    let (success, output) = dead_letters(&router, &["list", "shop"]);
    assert!(!success && output.contains("use NAMESPACE/NAME"), "{output}");
    let (success, output) = dead_letters(&router, &["list", "shop/default", "--filter=Type=x"]);
    assert!(!success && output.contains("Type"), "{output}");
    let router = "--router=http://127.0.0.1:1";
    let mut process = Process::weir(["dead-letters", "list", router]).quiet().start();
    assert!(!process.wait_for_exit(PATIENCE).success());
    assert!(
        process
            .output()
            .join("\n")
            .contains("cannot reach http://127.0.0.1:1")
    );
}
