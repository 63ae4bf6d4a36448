//! Several routers under one controller: each has a log of its own, and any of them takes a producer's request.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    cluster::post_binary,
    controller::install_definitions,
    leadership::router,
    support::{Answer, Consumer, ControlPlane, Kubectl, Process, Received, Scratch, eventually, get},
};

/// A router that is gone is waited for during fifteen seconds.
const GONE: Duration = Duration::from_secs(60);

fn controller(admin: &Kubectl) -> Process {
    let arguments = ["controller", "--listen=127.0.0.1:0", "--admin=127.0.0.1:0"];
    Process::weir(arguments)
        .env("KUBECONFIG", admin.kubeconfig())
        .start()
}

fn broker(router: &Process) -> String {
    format!("http://{}/default/default", router.address("ingress"))
}

fn arrived(consumer: &Consumer) -> BTreeSet<String> {
    let received = consumer.received();
    let ids = received.iter().filter_map(|message| message.header("ce-id"));
    ids.map(str::to_owned).collect()
}

#[track_caller]
fn await_arrived(consumer: &Consumer, wanted: &BTreeSet<String>) {
    eventually(GONE, || match arrived(consumer) {
        arrived if arrived == *wanted => Ok(()),
        arrived => Err(format!("{arrived:?} arrived, not {wanted:?}")),
    });
}

#[test]
fn several_routers_share_the_work_and_nothing_else() {
    let plane = ControlPlane::start();
    let admin = plane.admin();
    install_definitions(&admin);
    let controller = controller(&admin);
    let address = controller.address("configuration");
    let (data_of_one, data_of_other) = (Scratch::new(), Scratch::new());
    let one = router("one", address, &data_of_one);
    let mut other = router("other", address, &data_of_other);
    let consumer = Consumer::start();
    let trigger = |name: &str, r#type: &str| {
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}}}\nspec: {{filters: [{{exact: \
             {{type: {type}}}}}], sink: {{uri: '{}'}}, delivery: {{backoffMax: 200ms}}}}\n",
            consumer.url()
        )
    };
    // Only of routers that it knows can a controller say that they have a Trigger.
    eventually(GONE, || {
        let metrics = get(&format!("http://{}/metrics", controller.address("admin"))).text();
        if metrics.contains("\nweir_controller_routers 2\n") {
            Ok(())
        } else {
            Err(metrics)
        }
    });
    admin.apply(&trigger("all", "a"));
    admin.wait_ready("trigger/all");
    let mut wanted = BTreeSet::new();
    for number in 0..10 {
        for (router, name) in [(&one, "one"), (&other, "other")] {
            let id = format!("{name}-{number}");
            post_binary(&broker(router), &id, "a", "{}");
            wanted.insert(id);
        }
    }
    await_arrived(&consumer, &wanted);

    // Only one of them runs Sources.
    admin.apply(
        "apiVersion: weir.dev/v1alpha1\nkind: Source\nmetadata: {name: clock}\nspec: {cron: {schedule: '* * * * * *', type: \
         tick}}\n",
    );
    admin.wait_ready("source/clock");
    let produces = |router: &Process| {
        let metrics = get(&format!("http://{}/metrics", router.address("admin"))).text();
        metrics.contains("weir_source_events_produced_total{")
    };
    eventually(GONE, || {
        produces(&one).then_some(()).ok_or("no Source runs".to_owned())
    });
    assert!(!produces(&other));

    // What a router has accepted is on its own volume, and waits there for it.
    consumer.answer(Answer::status(503));
    post_binary(&broker(&other), "kept", "a", "{}");
    other.kill();
    consumer.answer(Answer::status(204));
    post_binary(&broker(&one), "meanwhile", "a", "{}");
    wanted.insert("meanwhile".to_owned());
    eventually(GONE, || match arrived(&consumer) {
        arrived if arrived.contains("meanwhile") => Ok(()),
        arrived => Err(format!("{arrived:?}")),
    });
    admin.apply(&trigger("later", "b"));
    admin.run(["wait", "--for=condition=Ready", "trigger/later", "--timeout=60s"]);

    let attempts = || {
        let is_kept = |message: &Received| message.header("ce-id") == Some("kept");
        consumer
            .received()
            .iter()
            .filter(|message| is_kept(message))
            .count()
    };
    let before = attempts();
    let other = router("other", address, &data_of_other);
    eventually(GONE, || match attempts() {
        after if after > before => Ok(()),
        after => Err(format!("{after} attempts")),
    });
    wanted.insert("kept".to_owned());
    // It has been told what is new meanwhile.
    eventually(GONE, || {
        let condition = admin.try_run(["wait", "--for=condition=Ready", "trigger/later", "--timeout=1s"]);
        condition.map(drop)
    });
    post_binary(&broker(&other), "new", "b", "{}");
    wanted.insert("new".to_owned());
    await_arrived(&consumer, &wanted);
}
