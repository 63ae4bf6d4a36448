//! Who may post: tokens that a real API server issues, and forged ones, which it judges as well.

mod costs;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use serde_json::{Value, json};

use crate::{
    cluster::Weir,
    support::{ControlPlane, Kubectl, PATIENCE, Response, eventually, post},
};

pub(crate) const AUDIENCE: &str = "weir-broker";

/// Namespaces `shop`, with a Broker `orders` and the ServiceAccounts `checkout` and `other`, and `web` with `page`.
struct Setup {
    plane: ControlPlane,
    weir: Weir,
    shop: Kubectl,
    web: Kubectl,
}

impl Setup {
    fn new(controller: &[&str]) -> Self {
        let plane = ControlPlane::start();
        let weir = Weir::install_with_controller(&plane, controller);
        let namespace = |name: &str, accounts: &[&str]| {
            plane.admin().run(["create", "namespace", name]);
            let kubectl = plane.admin().in_namespace(name);
            for account in accounts {
                kubectl.run(["create", "serviceaccount", account]);
            }
            kubectl
        };
        let shop = namespace("shop", &["checkout", "other"]);
        let web = namespace("web", &["page"]);
        let setup = Self {
            plane,
            weir,
            shop,
            web,
        };
        setup.shop.apply(&broker(
            "{producers: [{serviceAccount: {name: checkout}}, {serviceAccount: {namespace: web, name: '*'}, \
             filters: [{exact: {type: visit}}]}]}",
        ));
        setup
            .shop
            .run(["wait", "--for=condition=Ready", "broker.weir.dev/orders"]);
        setup
    }

    fn post(&self, broker: &str, token: Option<&str>, kind: &str) -> Response {
        let url = self
            .weir
            .broker("shop")
            .replace("/default", &format!("/{broker}"));
        let authorization = token.map(|token| format!("Bearer {token}"));
        let mut headers = vec![
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", kind),
        ];
        headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
        post(&url, &headers, "{}")
    }
}

fn broker(spec: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {{name: orders, namespace: shop}}\nspec: {spec}\n"
    )
}

pub(crate) fn token(kubectl: &Kubectl, account: &str, audience: &str) -> String {
    let audience = format!("--audience={audience}");
    kubectl
        .run(["create", "token", account, &audience])
        .trim()
        .to_owned()
}

/// Whether the API server accepts a token for the audience of brokers.
fn reviewed(admin: &Kubectl, token: &str) -> bool {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [AUDIENCE]},
    });
    let reviewed = admin.create(&review.to_string());
    reviewed["status"]["authenticated"] == true
}

/// Replaces the header of a token.
fn with_header(token: &str, header: &Value) -> String {
    let (_, rest) = token.split_once('.').unwrap();
    format!("{}.{rest}", BASE64URL.encode(header.to_string()))
}

#[test]
fn producers_are_checked_by_their_tokens() {
    let setup = Setup::new(&[]);
    let admin = setup.plane.admin();
    let checkout = token(&setup.shop, "checkout", AUDIENCE);
    let other = token(&setup.shop, "other", AUDIENCE);
    let page = token(&setup.web, "page", AUDIENCE);

    for (broker, token, kind, status, said) in [
        ("orders", Some(&checkout), "t", 202, ""),
        ("orders", Some(&page), "visit", 202, ""),
        ("orders", None, "t", 401, "the request has no token"),
        (
            "orders",
            Some(&other),
            "t",
            403,
            "spec.producers of Broker shop/orders does not list ServiceAccount shop/other",
        ),
        (
            "orders",
            Some(&page),
            "t",
            403,
            "none of the filters in spec.producers[1] of Broker shop/orders",
        ),
        // The rule of the installation holds for others: everyone may post.
        ("default", None, "t", 202, ""),
        ("missing", None, "t", 404, "has no broker"),
    ] {
        let answer = setup.post(broker, token.map(String::as_str), kind);
        assert_eq!(answer.status, status, "{broker} {kind}: {}", answer.text());
        assert!(answer.text().contains(said), "{broker} {kind}: {}", answer.text());
        if status == 401 {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        if status > 400 {
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
    }

    // Weir's verdicts on forged tokens are the API server's.
    let (signed, signature) = checkout.rsplit_once('.').unwrap();
    let (_, other_signature) = other.rsplit_once('.').unwrap();
    let header: Value = {
        let (header, _) = checkout.split_once('.').unwrap();
        serde_json::from_slice(&BASE64URL.decode(header).unwrap()).unwrap()
    };
    let kid = header["kid"].clone();
    for (case, token, expected) in [
        ("valid", checkout.clone(), true),
        (
            "for another audience",
            token(&setup.shop, "checkout", "weir-controller"),
            false,
        ),
        (
            "signature of another token",
            format!("{signed}.{other_signature}"),
            false,
        ),
        (
            "alg none",
            format!("{}.", with_header(signed, &json!({"alg": "none", "kid": kid}))),
            false,
        ),
        (
            "another alg",
            with_header(&checkout, &json!({"alg": "HS256", "kid": kid})),
            false,
        ),
        (
            "unknown key",
            with_header(&checkout, &json!({"alg": "ES256", "kid": "own"})),
            false,
        ),
        ("no signature", format!("{signed}."), false),
        (
            "cut",
            format!("{signed}.{}", &signature[..signature.len() - 2]),
            false,
        ),
        ("not a token", "eyJ.eyJ.x".to_owned(), false),
    ] {
        assert_eq!(reviewed(&admin, &token), expected, "{case}, by the API server");
        let answer = setup.post("orders", Some(&token), "t");
        let status = if expected { 202 } else { 401 };
        assert_eq!(answer.status, status, "{case}: {}", answer.text());
        assert!(!answer.text().contains(signature), "{case}");
        if !expected {
            assert_eq!(
                answer.headers["www-authenticate"],
                "Bearer error=\"invalid_token\""
            );
        }
    }

    // A deleted account, and one that was created again.
    setup.shop.run(["delete", "serviceaccount", "checkout"]);
    let is_refused = || match setup.post("orders", Some(&checkout), "t") {
        answer if answer.status == 401 && answer.text().contains("has been deleted") => Ok(()),
        answer => Err(answer.text()),
    };
    eventually(PATIENCE, is_refused);
    setup.shop.run(["create", "serviceaccount", "checkout"]);
    let new = token(&setup.shop, "checkout", AUDIENCE);
    eventually(PATIENCE, || match setup.post("orders", Some(&new), "t") {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    });
    assert_eq!(is_refused(), Ok(()));
    // The API server remembers tokens for ten seconds.
    eventually(PATIENCE, || match reviewed(&admin, &checkout) {
        false => Ok(()),
        true => Err("the API server still accepts the token of a deleted account".to_owned()),
    });

    // Neither the controller nor the API server is needed to check a token.
    let Setup {
        mut plane,
        mut weir,
        shop,
        web,
    } = setup;
    weir.controller.kill();
    plane.stop_api_server();
    weir.kill_and_restart_router();
    let setup = Setup {
        plane,
        weir,
        shop,
        web,
    };
    eventually(PATIENCE, || match setup.post("orders", Some(&new), "t") {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    });
    assert_eq!(setup.post("orders", Some(&other), "t").status, 403);
}

#[test]
fn the_audit_counts_what_deny_would_reject() {
    let mut setup = Setup::new(&["--producers", "deny"]);
    let checkout = token(&setup.shop, "checkout", AUDIENCE);
    let other = token(&setup.shop, "other", AUDIENCE);
    let page = token(&setup.web, "page", AUDIENCE);
    let requests = [
        ("orders", Some(&checkout), "t"),
        ("orders", Some(&other), "t"),
        ("orders", Some(&page), "visit"),
        ("orders", Some(&page), "t"),
        ("orders", None, "t"),
        ("default", Some(&checkout), "t"),
        ("default", Some(&page), "t"),
        ("default", None, "t"),
    ];
    let post_all = |setup: &Setup| -> Vec<Response> {
        let post = |(broker, token, kind): (&str, Option<&String>, &str)| {
            setup.post(broker, token.map(String::as_str), kind)
        };
        requests.into_iter().map(post).collect()
    };
    let denied: Vec<_> = post_all(&setup)
        .iter()
        .map(|answer| match answer.status.as_u16() {
            202 => None,
            _ => Some(answer.json()["reason"].as_str().unwrap().to_owned()),
        })
        .collect();
    assert_eq!(denied.iter().flatten().count(), 6, "{denied:?}");
    // Strangers cannot tell a broker that exists from one that does not.
    let (there, missing) = (
        setup.post("default", Some(&page), "t"),
        setup.post("missing", Some(&page), "t"),
    );
    assert_eq!(
        (there.status, there.text()),
        (missing.status, missing.text().replace("missing", "default"))
    );

    let (plane, weir) = (&setup.plane, &mut setup.weir);
    weir.restart_controller_with(plane, &["--producers", "deny", "--producers-audit"]);
    eventually(PATIENCE, || match setup.post("default", None, "t") {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    });
    let counted = |broker: &str, reason: &str| {
        let series = format!(
            "weir_producers_audited_total{{namespace=\"shop\",broker=\"{broker}\",reason=\"{reason}\"}}"
        );
        let metrics = setup.weir.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
        line.map_or(0, |count| count.trim().parse::<usize>().unwrap())
    };
    let before: Vec<_> = [("orders", "no_token"), ("default", "no_token")]
        .map(|(broker, reason)| counted(broker, reason))
        .into();
    assert_eq!(before[0], 0);
    assert!(post_all(&setup).iter().all(|answer| answer.status == 202));
    for (broker, reason) in [
        ("orders", "no_token"),
        ("orders", "not_allowed"),
        ("orders", "event_not_allowed"),
        ("default", "not_allowed"),
    ] {
        let expected = requests.iter().zip(&denied);
        let expected = expected.filter(|((of, ..), why)| *of == broker && why.as_deref() == Some(reason));
        assert_eq!(counted(broker, reason), expected.count(), "{broker} {reason}");
    }
    assert_eq!(counted("default", "no_token"), before[1] + 1);
    // The first is logged at once, and the others a minute later.
    let is_audit = |line: &&String| line.contains("would be rejected without --producers-audit");
    let lines = setup.weir.router.lines();
    let told: Vec<_> = lines.iter().filter(is_audit).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("shop/default no_token 1: "), "{}", told[0]);
    assert_eq!(setup.post("missing", None, "t").status, 404);
}

#[test]
fn an_invalid_broker_lets_nobody_in() {
    let setup = Setup::new(&[]);
    let checkout = token(&setup.shop, "checkout", AUDIENCE);
    assert_eq!(setup.post("orders", Some(&checkout), "t").status, 202);
    for (spec, problem) in [
        (
            "{producers: [{serviceAccount: {name: Checkout}}]}",
            "should match",
        ),
        ("{producers: [{serviceAccount: {namespace: web}}]}", "name"),
        ("{producers: [{filters: [{exact: {type: t}}]}]}", "serviceAccount"),
        (
            "{producers: [{serviceAccount: {name: a}, filters: [{exact: {}}]}]}",
            "at least 1",
        ),
    ] {
        let refused = setup.shop.apply_err(&broker(spec));
        assert!(refused.contains(problem), "{spec}: {refused}");
    }
    setup.shop.apply(&broker(
        "{producers: [{serviceAccount: {name: checkout}, filters: [{sql: 'type ='}]}]}",
    ));
    let message = r#"jsonpath={.status.conditions[?(@.type=="Ready")].message}"#;
    eventually(PATIENCE, || {
        match setup.shop.run(["get", "broker.weir.dev/orders", "-o", message]) {
            text if text.starts_with("spec.producers[0].filters[0].sql") => Ok(()),
            text => Err(text),
        }
    });
    eventually(PATIENCE, || {
        match setup.post("orders", Some(&checkout), "t").status.as_u16() {
            403 => Ok(()),
            status => Err(status.to_string()),
        }
    });
}

#[test]
fn keys_rotate_under_load_without_a_rejection() {
    let mut setup = Setup::new(&[]);
    let old = token(&setup.shop, "checkout", AUDIENCE);
    let url = setup.weir.broker("shop").replace("/default", "/orders");
    let stop = Arc::new(AtomicBool::new(false));
    let post_with = |token: &str| {
        let (url, stop, authorization) = (url.clone(), stop.clone(), format!("Bearer {token}"));
        thread::spawn(move || {
            let headers = [
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "/s"),
                ("ce-type", "t"),
                ("authorization", &authorization),
            ];
            let mut posted = 0;
            while !stop.load(Relaxed) {
                assert_eq!(post(&url, &headers, "{}").status, 202);
                posted += 1;
            }
            posted
        })
    };
    let mut posting = vec![post_with(&old)];
    setup.plane.publish_next_service_account_key();
    let has_both =
        |line: &str| line.contains("read the keys of ServiceAccount tokens") && line.contains("keys=2");
    setup.weir.controller.wait_for_line(2 * PATIENCE, has_both);
    setup.plane.sign_with_next_service_account_key();
    let new = token(&setup.shop, "checkout", AUDIENCE);
    let kid = |token: &str| token.split_once('.').unwrap().0.to_owned();
    assert_ne!(kid(&old), kid(&new));
    eventually(PATIENCE, || match setup.post("orders", Some(&new), "t") {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    });
    posting.push(post_with(&new));
    eventually(PATIENCE, || {
        match setup.post("orders", Some(&old), "t").status.as_u16() {
            202 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    stop.store(true, Relaxed);
    for posting in posting {
        assert!(posting.join().unwrap() > 0);
    }
}
