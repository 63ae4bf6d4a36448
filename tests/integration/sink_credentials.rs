//! Sinks that are trusted by an authority of their own, and sent a token, a key, or a header of their own.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    cluster::{ALLOW_LOOPBACK, Weir, post_binary, trigger},
    controller::{account, condition, events},
    support::{
        Answer, Authority, Consumer, ControlPlane, Kubectl, LocalRouter, PATIENCE, Process, Received,
        eventually, get, post,
    },
};
use http::Method;

fn indented(pem: &str) -> String {
    pem.lines().map(|line| format!("    {line}\n")).collect()
}

/// A Sink at this URL, by this authority, with a token and a key from Secret `credentials`.
fn sink(name: &str, url: &str, authority: &str, more: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec:\n  uri: '{url}'\n  \
         caCerts: |\n{}  authorization: {{bearerToken: {{secretKeyRef: {{name: credentials, key: token}}}}}}\n  \
         headers: [{{name: X-Api-Key, valueFrom: {{secretKeyRef: {{name: credentials, key: api-key}}}}}}, {{name: X-Tenant, value: blue}}]\n\
         {more}",
        indented(authority)
    )
}

fn secret(token: &str, key: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: credentials}}\n\
         stringData: {{token: \"{token}\\n\", api-key: {key}}}\n"
    )
}

fn shown(received: &Received) -> [Option<&str>; 2] {
    ["authorization", "x-api-key"].map(|name| received.header(name))
}

fn await_shown(consumer: &Consumer, token: &str, key: &str) {
    let token = format!("Bearer {token}");
    let expected = [Some(token.as_str()), Some(key)];
    consumer.wait_until(PATIENCE, |received| {
        received.iter().any(|received| shown(received) == expected)
    });
}

fn await_told(process: &Process, event: &str, part: &str) {
    process.wait_for_line(PATIENCE, |line| {
        line.contains("an event became a dead letter") && line.contains(event) && line.contains(part)
    });
}

fn assert_hidden(text: &str, where_it_is: &str) {
    for secret in ["s3cr3t-one", "s3cr3t-two", "k3y-one"] {
        assert!(!text.contains(secret), "{secret} is in {where_it_is}:\n{text}");
    }
}

fn assert_owner_alone_reads(data: &Path, secret: &str) {
    let saved = data.join("configuration.json");
    let mode = std::fs::metadata(&saved).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(std::fs::read_to_string(saved).unwrap().contains(secret));
}

#[test]
fn an_authority_and_credentials_without_a_cluster() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let [good, unknown, expired, misnamed, echo] = [(); 5].map(|()| Consumer::start());
    let fronts = [
        ours.serve(&good, "localhost"),
        theirs.serve(&unknown, "localhost"),
        ours.serve_expired(&expired, "localhost"),
        ours.serve(&misnamed, "example.com"),
        ours.serve(&echo, "localhost"),
    ];
    // What it was sent stands where the text is cut off.
    echo.answer_by(|received| {
        let [token, key] = shown(received).map(Option::unwrap_or_default);
        Answer::status(400).body(format!("{}, you said {token} and {key}", "x".repeat(990)))
    });
    let plain = Consumer::start();
    let once = "  delivery: {retry: 0}\n";
    let names = ["good", "unknown", "expired", "misnamed", "echo"];
    let mut manifests: String = names
        .iter()
        .zip(&fronts)
        .map(|(name, front)| sink(name, &front.url("localhost"), ours.pem(), once))
        .collect();
    let no_tls = plain.url().replace("http:", "https:");
    manifests += &sink("plain", &no_tls, ours.pem(), once);
    let letters = ", delivery: {deadLetterSink: {ref: {name: good}}}";
    for name in names.iter().chain(&["plain"]) {
        manifests += &trigger(
            name,
            &format!("[{{exact: {{type: {name}}}}}]"),
            &format!("{{ref: {{name: {name}}}}}"),
            if *name == "expired" { letters } else { "" },
        );
    }
    let in_shop = |manifests: &str| manifests.replace("metadata: {name", "metadata: {namespace: shop, name");
    let router = LocalRouter::start(
        &in_shop(&format!("{manifests}{}", secret("s3cr3t-one", "k3y-one"))),
        &[],
    );

    for name in names.iter().chain(&["plain"]) {
        post_binary(&router.url(), name, name, "{}");
    }
    await_shown(&good, "s3cr3t-one", "k3y-one");
    for (event, part) in [
        (
            "unknown",
            "TLS: no trusted authority has signed the server's certificate",
        ),
        ("expired", "TLS: the server's certificate has expired"),
        ("misnamed", "localhost"),
        ("plain", "TLS: the server does not speak TLS"),
        ("echo", ", you said [secret]"),
    ] {
        await_told(&router.process, &format!("{event:?}"), part);
    }
    for consumer in [&unknown, &expired, &misnamed, &plain] {
        assert_eq!(consumer.received().len(), 0);
    }

    // The Sink of dead letters is shown the same.
    let received = good.wait_until(PATIENCE, |received| {
        received
            .iter()
            .any(|received| received.header("ce-id") == Some("expired"))
    });
    for letter in &received {
        assert_eq!(shown(letter), [Some("Bearer s3cr3t-one"), Some("k3y-one")]);
        assert_eq!(letter.header("x-tenant"), Some("blue"));
    }

    // A changed Secret is taken over; one that is gone holds what names it.
    router.apply(&in_shop(&format!(
        "{manifests}{}",
        secret("s3cr3t-two", "k3y-one")
    )));
    eventually(PATIENCE, || {
        post_binary(&router.url(), "again", "good", "{}");
        let is_new = |received: &[Received]| {
            let mut shown = received.iter().map(|received| received.header("authorization"));
            shown.any(|token| token == Some("Bearer s3cr3t-two"))
        };
        good.look(is_new)
            .then_some(())
            .ok_or_else(|| "still the old token".to_owned())
    });
    router.apply(&in_shop(&manifests));
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("Sink shop/good")
            && line.contains("there is no Secret \"credentials\" in namespace \"shop\"")
    });

    assert_hidden(&router.process.lines().join("\n"), "the log");
    let metrics = get(&router.admin("/metrics"));
    let letters = router.ask(Method::POST, "/v1/dead-letters/shop/default/list", "{}");
    assert!(letters.text().contains("you said [secret]"), "{}", letters.text());
    for (response, place) in [(metrics, "the metrics"), (letters, "the dead letters")] {
        assert_eq!(response.status, 200, "{place}");
        assert_hidden(&response.text(), place);
    }
}

/// Runs the commands of a message as they stand there, as a namespace's owner does.
pub(crate) fn run_grant(kubectl: &Kubectl, message: &str) {
    let (_, commands) = message.split_once("run: ").unwrap();
    for command in commands.split(" && ") {
        let words = command.split_whitespace();
        kubectl.run(words.skip_while(|word| *word == "kubectl"));
    }
}

pub(crate) fn await_reason(kubectl: &Kubectl, resource: &str, reason: &str) -> String {
    eventually(PATIENCE * 2, || {
        let ready = condition(kubectl, resource, "Ready");
        if ready["reason"] == reason {
            Ok(ready["message"].as_str().unwrap().to_owned())
        } else {
            Err(format!("{resource}: {ready}, not {reason}"))
        }
    })
}

#[test]
fn a_secret_is_read_once_it_may_be_and_again_when_it_is_another() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let weir = Weir::start(&plane, account.kubeconfig(), vec![ALLOW_LOOPBACK.to_owned()]);
    let kubectl = plane.namespace("credentials");
    let (authority, consumer) = (Authority::new("ours"), Consumer::start());
    let front = authority.serve(&consumer, "localhost");
    let url = front.url("localhost");
    kubectl.apply(
        &[
            &*sink("billing", &url, authority.pem(), ""),
            &trigger("billing", "[]", "{ref: {name: billing}}", ""),
        ]
        .concat(),
    );

    let message = await_reason(&kubectl, "sink/billing", "SecretForbidden");
    assert!(
        message.contains("--serviceaccount=default:weir-controller"),
        "{message}"
    );
    await_reason(&kubectl, "trigger/billing", "SecretForbidden");
    let broker = weir.broker(kubectl.namespace());
    post_binary(&broker, "1", "t", "{}");
    run_grant(&kubectl, &message);
    await_reason(&kubectl, "sink/billing", "SecretNotFound");
    kubectl.apply(&secret("s3cr3t-one", "k3y-one").replace("api-key", "other"));
    await_reason(&kubectl, "sink/billing", "SecretKeyNotFound");
    kubectl.apply(&secret("s3cr3t-one", "k3y-one"));
    await_reason(&kubectl, "sink/billing", "Resolved");
    kubectl.wait_ready("trigger/billing");
    // What was posted meanwhile has waited.
    assert_eq!(
        shown(&consumer.wait_for(1)[0]),
        [Some("Bearer s3cr3t-one"), Some("k3y-one")]
    );

    kubectl.apply(&secret("s3cr3t-two", "k3y-one"));
    eventually(PATIENCE * 2, || {
        post_binary(&broker, "2", "t", "{}");
        let is_new = |received: &[Received]| {
            let mut tokens = received.iter().map(|received| received.header("authorization"));
            tokens.any(|token| token == Some("Bearer s3cr3t-two"))
        };
        consumer
            .look(is_new)
            .then_some(())
            .ok_or_else(|| "still the old token".to_owned())
    });

    assert_owner_alone_reads(weir.data(), "s3cr3t");
    let explain = format!(
        "http://{}/v1/explain/{}/default",
        weir.router.address("admin"),
        kubectl.namespace()
    );
    let operator = weir.operator();
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "3"),
        ("ce-source", "/x"),
        ("ce-type", "t"),
        ("authorization", &*operator),
    ];
    let explained = post(&explain, &headers, "");
    assert_eq!(explained.status, 200);
    assert_hidden(&explained.text(), "what the router explains");
    assert_hidden(&weir.router.lines().join("\n"), "the router's log");
    assert_hidden(&weir.controller.lines().join("\n"), "the controller's log");
    assert_hidden(&weir.metrics(), "the router's metrics");
    let admin = format!("http://{}", weir.controller.address("admin"));
    assert_hidden(
        &get(&format!("{admin}/metrics")).text(),
        "the controller's metrics",
    );
    assert_hidden(
        &kubectl.run(["get", "sinks,triggers,events.events.k8s.io", "-o", "yaml"]),
        "the resources",
    );
    let told = events(&kubectl, "billing");
    assert!(
        told.iter().any(|(reason, _)| reason == "SecretForbidden"),
        "{told:?}"
    );
}

#[test]
fn nothing_secret_is_sent_where_others_may_listen() {
    let plane = ControlPlane::start();
    let admin = plane.admin();
    let mut weir = Weir::install(&plane, &[]);
    weir.controller.kill();
    let controller = Process::weir(["controller", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0"])
        .env("KUBECONFIG", admin.kubeconfig())
        .start();
    let kubectl = plane.namespace("plain");
    kubectl.apply(
        &[
            &*secret("s3cr3t-one", "k3y-one"),
            &*sink("s", "https://example.com/", Authority::new("ours").pem(), ""),
        ]
        .concat(),
    );
    await_reason(&kubectl, "sink/s", "ChannelNotSecure");
    assert_hidden(&controller.lines().join("\n"), "the controller's log");
}

/// The claims of a token.
fn claims(token: &str) -> serde_json::Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

fn sink_with_token(url: &str, authority: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: warehouse}}\nspec:\n  uri: '{url}'\n  \
         caCerts: |\n{}  authorization: {{serviceAccountToken: {{serviceAccountName: sender, audience: 'https://w'}}}}\n",
        indented(authority)
    )
}

#[test]
fn a_token_of_a_service_account_is_requested_once_it_may_be() {
    let plane = ControlPlane::start();
    let account = account(&plane);
    let weir = Weir::start(&plane, account.kubeconfig(), vec![ALLOW_LOOPBACK.to_owned()]);
    let kubectl = plane.namespace("tokens");
    let (authority, consumer) = (Authority::new("ours"), Consumer::start());
    let front = authority.serve(&consumer, "localhost");
    kubectl.apply(
        &[
            &*sink_with_token(&front.url("localhost"), authority.pem()),
            &trigger("warehouse", "[]", "{ref: {name: warehouse}}", ""),
        ]
        .concat(),
    );
    let message = await_reason(&kubectl, "sink/warehouse", "TokenForbidden");
    await_reason(&kubectl, "trigger/warehouse", "TokenForbidden");
    let broker = weir.broker(kubectl.namespace());
    post_binary(&broker, "1", "t", "{}");
    run_grant(&kubectl, &message);
    await_reason(&kubectl, "sink/warehouse", "ServiceAccountNotFound");
    kubectl.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: sender}\n");
    await_reason(&kubectl, "sink/warehouse", "Resolved");
    kubectl.wait_ready("trigger/warehouse");

    // What was posted meanwhile has waited.
    let received = consumer.wait_for(1).remove(0);
    let token = received.header("authorization").unwrap();
    let token = token.strip_prefix("Bearer ").unwrap();
    let claims = claims(token);
    let subject = format!("system:serviceaccount:{}:sender", kubectl.namespace());
    assert_eq!(claims["sub"], subject);
    assert_eq!(claims["aud"], serde_json::json!(["https://w"]));
    let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!((3_600..=14_400).contains(&lifetime), "{claims}");

    assert_owner_alone_reads(weir.data(), token);
    for (text, place) in [
        (weir.router.lines().join("\n"), "the router's log"),
        (weir.controller.lines().join("\n"), "the controller's log"),
        (weir.metrics(), "the router's metrics"),
        (
            kubectl.run(["get", "sinks,triggers,events.events.k8s.io", "-o", "yaml"]),
            "the resources",
        ),
    ] {
        assert!(!text.contains(token), "the token is in {place}");
    }
}

#[test]
fn weir_run_says_that_it_requests_no_tokens() {
    let manifests = [
        sink_with_token("https://example.com/", Authority::new("ours").pem()),
        trigger("warehouse", "[]", "{ref: {name: warehouse}}", ""),
    ];
    let router = LocalRouter::start(&manifests.concat(), &[]);
    router.process.wait_for_line(PATIENCE, |line| {
        line.contains("Sink default/warehouse") && line.contains("weir run cannot request tokens")
    });
}
