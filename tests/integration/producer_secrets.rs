//! Producers that are known by a token or a password from a Secret of the Broker's namespace.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    cluster::Weir,
    controller::account,
    producers::{AUDIENCE, token},
    sink_credentials::{await_reason, run_grant},
    support::{ControlPlane, Kubectl, LocalRouter, PATIENCE, Response, eventually, post},
};

const ORDERS: &str = "broker.weir.dev/orders";
const REFERENCE: &str = "secretKeyRef: {name: partners, key";

/// A Broker `shop/orders` with these producers.
fn broker(producers: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {{name: orders, namespace: shop}}\n\
         spec: {{producers: [{producers}]}}\n"
    )
}

fn secret(data: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: partners, namespace: shop}}\nstringData: {{{data}}}\n"
    )
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// Posts an event of this type to a broker of namespace `shop`, whose `default` is at this URL.
fn post_as(default: &str, broker: &str, authorization: Option<&str>, kind: &str) -> Response {
    let url = default.replace("/default", &format!("/{broker}"));
    let mut headers = vec![
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", kind),
    ];
    headers.extend(authorization.map(|value| ("authorization", value)));
    post(&url, &headers, "{}")
}

fn challenges(answer: &Response) -> Vec<&str> {
    let all = answer.headers.get_all("www-authenticate").iter();
    all.map(|value| value.to_str().unwrap()).collect()
}

#[track_caller]
fn eventually_answers(default: &str, authorization: &str, status: u16) {
    eventually(PATIENCE * 2, || {
        match post_as(default, "orders", Some(authorization), "visit") {
            answer if answer.status == status => Ok(()),
            answer => Err(answer.text()),
        }
    });
}

fn install(plane: &ControlPlane) -> (Weir, Kubectl) {
    let rule = ["--producers", "same-namespace"].map(str::to_owned).to_vec();
    let weir = Weir::start_both(plane, account(plane).kubeconfig(), rule, Vec::new());
    plane.admin().run(["create", "namespace", "shop"]);
    let shop = plane.admin().in_namespace("shop");
    shop.run(["create", "serviceaccount", "checkout"]);
    (weir, shop)
}

#[test]
fn secrets_of_the_namespace_admit_producers() {
    let plane = ControlPlane::start();
    let (mut weir, shop) = install(&plane);
    let url = weir.broker("shop");
    shop.apply(&broker(&format!(
        "{{serviceAccount: {{name: checkout}}}}, {{bearerToken: {{{REFERENCE}: token}}}}}}, \
         {{basic: {{username: acme, password: {{{REFERENCE}: password}}}}}}, filters: [{{exact: {{type: visit}}}}]}}"
    )));

    // Without the Secret, the other entry holds.
    let message = await_reason(&shop, ORDERS, "SecretForbidden");
    assert!(
        message.starts_with("spec.producers[1].bearerToken.secretKeyRef: "),
        "{message}"
    );
    let checkout = format!("Bearer {}", token(&shop, "checkout", AUDIENCE));
    eventually_answers(&url, &checkout, 202);
    assert_eq!(post_as(&url, "orders", Some("Bearer t0ken-one"), "t").status, 401);
    run_grant(&shop, &message);
    await_reason(&shop, ORDERS, "SecretNotFound");
    shop.apply(&secret("token: t0ken-one"));
    let message = await_reason(&shop, ORDERS, "SecretKeyNotFound");
    assert!(message.contains("\"password\""), "{message}");
    eventually_answers(&url, "Bearer t0ken-one", 202);
    shop.apply(&secret("token: \"t0ken-one\\n\", password: 'p4ss: word'"));
    await_reason(&shop, ORDERS, "Ready");

    let (good, bad) = (basic("acme:p4ss: word"), basic("acme:p4ss"));
    let bearer = ["Bearer", "Basic realm=\"weir\""];
    let invalid = ["Bearer error=\"invalid_token\"", "Basic realm=\"weir\""];
    for (authorization, kind, status, reason, expected) in [
        (Some("Bearer t0ken-one"), "t", 202, "", &[][..]),
        (Some(&*good), "visit", 202, "", &[]),
        (Some(&*good), "t", 403, "event_not_allowed", &[]),
        (None, "visit", 401, "no_token", &bearer),
        (Some("Bearer t0ken-on"), "visit", 401, "invalid_token", &invalid),
        (
            Some("Bearer acme:p4ss: word"),
            "visit",
            401,
            "invalid_token",
            &invalid,
        ),
        (Some(&*bad), "visit", 401, "invalid_credentials", &bearer),
        (
            Some("Basic t0ken-one"),
            "visit",
            401,
            "invalid_credentials",
            &bearer,
        ),
    ] {
        let answer = post_as(&url, "orders", authorization, kind);
        assert_eq!(
            answer.status,
            status,
            "{authorization:?} {kind}: {}",
            answer.text()
        );
        assert_eq!(challenges(&answer), expected, "{authorization:?} {kind}");
        if status != 202 {
            assert_eq!(answer.json()["reason"], reason, "{authorization:?} {kind}");
        }
        // Whoever is not let in cannot tell a broker that exists from one that does not.
        if status == 401 {
            let missing = post_as(&url, "missing", authorization, kind);
            assert_eq!(missing.text(), answer.text());
            assert_eq!(challenges(&missing), expected);
        }
    }
    // A secret is good for the broker that lists it only.
    assert_eq!(
        post_as(&url, "default", Some("Bearer t0ken-one"), "t").status,
        401
    );

    // Neither the controller nor the API server is needed to check it, and no one shows it.
    weir.controller.kill();
    weir.kill_and_restart_router();
    eventually_answers(&weir.broker("shop"), &good, 202);
    let saved = std::fs::read_to_string(weir.data().join("configuration.json")).unwrap();
    let resources = shop.run(["get", "brokers.weir.dev,events.events.k8s.io", "-o", "yaml"]);
    for (text, place) in [
        (weir.router.lines().join("\n"), "the router's log"),
        (weir.controller.lines().join("\n"), "the controller's log"),
        (weir.metrics(), "the router's metrics"),
        (saved, "the router's saved configuration"),
        (resources, "the resources"),
    ] {
        for secret in ["t0ken-one", "p4ss"] {
            assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
        }
    }
}

#[test]
fn secrets_are_rotated_without_a_gap() {
    let plane = ControlPlane::start();
    let (weir, shop) = install(&plane);
    let url = weir.broker("shop");
    let entry = |key: &str| format!("{{bearerToken: {{{REFERENCE}: {key}}}}}}}");
    shop.apply(&format!("{}{}", secret("old: t0ken-one"), broker(&entry("old"))));
    run_grant(&shop, &await_reason(&shop, ORDERS, "SecretForbidden"));
    await_reason(&shop, ORDERS, "Ready");
    eventually_answers(&url, "Bearer t0ken-one", 202);

    // Two entries take both for as long as producers change over.
    shop.apply(&secret("old: t0ken-one, new: t0ken-two"));
    shop.apply(&broker(&format!("{}, {}", entry("old"), entry("new"))));
    eventually_answers(&url, "Bearer t0ken-two", 202);
    eventually_answers(&url, "Bearer t0ken-one", 202);
    await_reason(&shop, ORDERS, "Ready");
    shop.apply(&broker(&entry("new")));
    eventually_answers(&url, "Bearer t0ken-one", 401);
    assert_eq!(post_as(&url, "orders", Some("Bearer t0ken-two"), "t").status, 202);

    // A changed value takes effect by itself.
    shop.apply(&secret("new: t0ken-three"));
    eventually_answers(&url, "Bearer t0ken-three", 202);
    eventually_answers(&url, "Bearer t0ken-two", 401);
}

#[test]
fn secrets_are_checked_without_a_cluster() {
    let trigger = "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: t, namespace: shop}\n\
                   spec: {broker: accounts, sink: {uri: 'http://127.0.0.1:9/'}}\n";
    let accounts = broker("{serviceAccount: {name: checkout}}").replace("name: orders", "name: accounts");
    let manifests = |token: &str| {
        let orders = broker(&format!(
            "{{serviceAccount: {{name: checkout}}}}, {{bearerToken: {{{REFERENCE}: token}}}}}}, \
             {{bearerToken: {{secretKeyRef: {{name: missing, key: token}}}}}}"
        ));
        format!(
            "{}{orders}{accounts}{trigger}",
            secret(&format!("token: {token}"))
        )
    };
    let router = LocalRouter::start(&manifests("t0ken-one"), &[]);
    let url = router.url();
    for (broker, authorization, status) in [
        ("orders", Some("Bearer t0ken-one"), 202),
        ("orders", Some("Bearer wrong"), 401),
        ("orders", Some("Bearer a.b.c"), 401),
        ("orders", None, 401),
        // Nothing can verify tokens of ServiceAccounts.
        ("accounts", None, 202),
        ("default", None, 202),
    ] {
        let answer = post_as(&url, broker, authorization, "t");
        assert_eq!(
            answer.status,
            status,
            "{broker} {authorization:?}: {}",
            answer.text()
        );
    }
    for part in [
        "spec.producers[2].bearerToken.secretKeyRef: this producer may not post: there is no Secret \"missing\"",
        "Broker shop/orders: the ServiceAccounts that it lists may not post",
        "Broker shop/accounts: everyone may post to the broker",
    ] {
        router.process.wait_for_line(PATIENCE, |line| line.contains(part));
    }
    router.apply(&manifests("t0ken-two"));
    eventually_answers(&url, "Bearer t0ken-two", 202);
    eventually_answers(&url, "Bearer t0ken-one", 401);
}
