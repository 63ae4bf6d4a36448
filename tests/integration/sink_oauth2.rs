//! Sinks that are sent tokens of an authorization server.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    cluster::{ALLOW_LOOPBACK, Weir, post_binary, trigger},
    controller::condition,
    support::{
        Answer, Authority, Consumer, ControlPlane, HttpsFront, LocalRouter, PATIENCE, Received, eventually,
        get,
    },
};

const RETRY: &str = ", delivery: {backoffDelay: 50ms, backoffMax: 200ms}";

/// An authorization server over HTTPS.
struct TokenServer {
    consumer: Consumer,
    front: HttpsFront,
    /// Tokens issued so far.
    issued: Arc<AtomicU32>,
}

impl TokenServer {
    fn start(authority: &Authority) -> Self {
        let consumer = Consumer::start();
        Self {
            front: authority.serve(&consumer, "localhost"),
            issued: Arc::default(),
            consumer,
        }
    }

    fn url(&self) -> String {
        format!("{}token", self.front.url("localhost"))
    }

    /// Issues `t0ken-1`, `t0ken-2` and so on, which expire after so many seconds.
    fn issue(&self, expires_in: u32) {
        let issued = self.issued.clone();
        self.consumer.answer_by(move |_| {
            let number = issued.fetch_add(1, Relaxed) + 1;
            let body = format!(
                r#"{{"access_token":"t0ken-{number}","token_type":"Bearer","expires_in":{expires_in}}}"#
            );
            Answer::status(200)
                .header("content-type", "application/json")
                .body(body)
        });
    }

    fn refuse(&self, status: u16, body: &'static str) {
        self.consumer.answer(Answer::status(status).body(body));
    }
}

/// A Sink that accepts no token but this one.
fn accept_only(sink: &Consumer, token: &str) {
    let expected = format!("Bearer {token}");
    sink.answer_by(move |received| {
        let is_accepted = received.header("authorization") == Some(&*expected);
        Answer::status(if is_accepted { 204 } else { 401 }).body(format!(
            "you sent {}",
            received.header("authorization").unwrap_or_default()
        ))
    });
}

fn sink(url: &str, tokens: &TokenServer, authority: &Authority) -> String {
    let pem: String = authority
        .pem()
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: partner}}\nspec:\n  uri: '{url}'\n  \
         caCerts: |\n{pem}  authorization:\n    oauth2:\n      tokenUrl: '{}'\n      clientId: 'weir:shop'\n      \
         clientSecret: {{secretKeyRef: {{name: client, key: secret}}}}\n      scopes: [events.write, extra]\n      \
         audience: 'https://partner'\n",
        tokens.url()
    )
}

fn secret(value: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: client}}\nstringData: {{secret: '{value}'}}\n"
    )
}

fn in_shop(manifests: &[String]) -> String {
    manifests
        .concat()
        .replace("metadata: {name", "metadata: {namespace: shop, name")
}

fn tokens_of(received: &[Received]) -> BTreeSet<String> {
    let tokens = received
        .iter()
        .filter_map(|received| received.header("authorization"));
    tokens.map(str::to_owned).collect()
}

fn assert_hidden(text: &str, place: &str) {
    for secret in ["s3cr3t", "t0ken-"] {
        assert!(!text.contains(secret), "{secret} is in {place}:\n{text}");
    }
}

#[test]
fn a_token_is_requested_once_renewed_and_replaced() {
    let authority = Authority::new("ours");
    let (consumer, tokens) = (Consumer::start(), TokenServer::start(&authority));
    let front = authority.serve(&consumer, "localhost");
    let manifests = in_shop(&[
        sink(&front.url("localhost"), &tokens, &authority),
        secret("s3cr3t %"),
        trigger("partner", "[]", "{ref: {name: partner}}", RETRY),
    ]);
    tokens.refuse(503, r#"{"error":"temporarily_unavailable"}"#);
    let router = LocalRouter::start(&manifests, &[]);

    // Events wait while there is no token, and then arrive with the same one.
    assert_eq!(router.post_batch("t", 0..50).status, 202);
    tokens.consumer.wait_for(2);
    assert_eq!(consumer.received().len(), 0);
    tokens.issue(3600);
    let received = consumer.wait_for(50);
    assert_eq!(tokens_of(&received), ["Bearer t0ken-1".to_owned()].into());
    assert_eq!(tokens.issued.load(Relaxed), 1);
    let request = tokens.consumer.received().remove(0);
    assert_eq!((request.method.as_str(), &*request.target), ("POST", "/token"));
    let basic = STANDARD.encode("weir%3Ashop:s3cr3t+%25");
    assert_eq!(request.header("authorization"), Some(&*format!("Basic {basic}")));
    assert_eq!(
        request.body,
        "grant_type=client_credentials&scope=events.write+extra&audience=https%3A%2F%2Fpartner"
    );

    // The Sink rejects the token: another one is requested.
    accept_only(&consumer, "t0ken-2");
    router.post("t", "rejected", &[]);
    consumer.wait_until(PATIENCE, |received| {
        let of_event = received
            .iter()
            .filter(|received| received.header("ce-id") == Some("rejected"));
        tokens_of(&of_event.cloned().collect::<Vec<_>>()).len() == 2
    });
    assert_eq!(tokens.issued.load(Relaxed), 2);
    router.wait_until_all_are("partner", "delivered", 51);

    // Another client's tokens expire soon.
    consumer.answer(Answer::status(204));
    tokens.issue(1);
    router.apply(&manifests.replace("weir:shop", "weir:other"));
    let before = consumer.received().len();
    eventually(PATIENCE, || {
        router.post("t", "again", &[]);
        let seen = consumer.look(|received| tokens_of(&received[before..]));
        match seen.contains("Bearer t0ken-3") && seen.contains("Bearer t0ken-4") {
            true => Ok(()),
            false => Err(format!("{seen:?}")),
        }
    });

    assert_hidden(&router.process.lines().join("\n"), "the log");
    assert_hidden(&get(&router.admin("/metrics")).text(), "the metrics");
}

#[test]
fn wrong_credentials_are_seen_in_status_until_they_are_right() {
    let plane = ControlPlane::start();
    let weir = Weir::install_with(&plane, vec![ALLOW_LOOPBACK.to_owned()]);
    let kubectl = plane.namespace("oauth2");
    let authority = Authority::new("ours");
    let (consumer, tokens) = (Consumer::start(), TokenServer::start(&authority));
    let front = authority.serve(&consumer, "localhost");
    tokens.refuse(
        401,
        r#"{"error":"invalid_client","error_description":"s3cr3t-one\nis not right","access_token":"t0ken-x"}"#,
    );
    kubectl.apply(
        &[
            secret("s3cr3t-one"),
            sink(&front.url("localhost"), &tokens, &authority),
            trigger("partner", "[]", "{ref: {name: partner}}", RETRY),
        ]
        .concat(),
    );
    kubectl.wait_ready("sink/partner");
    kubectl.wait_ready("trigger/partner");
    let broker = weir.broker(kubectl.namespace());
    for id in ["1", "2", "3"] {
        post_binary(&broker, id, "t", "{}");
    }
    kubectl.wait_condition("trigger/partner", "SinkAnswering=False");
    let down = condition(&kubectl, "trigger/partner", "SinkAnswering");
    let expected = format!(
        "no token from {}: 401 Unauthorized: invalid_client: [secret] is not right",
        tokens.url()
    );
    let message = down["message"].as_str().unwrap();
    assert!(message.contains(&expected), "{message}");
    assert_eq!(consumer.received().len(), 0);

    tokens.issue(3600);
    kubectl.apply(&secret("s3cr3t-two"));
    kubectl.wait_condition("trigger/partner", "SinkAnswering");
    let received = consumer.wait_for(3);
    assert_eq!(tokens_of(&received), ["Bearer t0ken-1".to_owned()].into());

    for (text, place) in [
        (weir.router.lines().join("\n"), "the router's log"),
        (weir.controller.lines().join("\n"), "the controller's log"),
        (weir.metrics(), "the router's metrics"),
        (
            kubectl.run(["get", "sinks,triggers,events.events.k8s.io", "-o", "yaml"]),
            "the resources",
        ),
    ] {
        assert_hidden(&text, place);
    }
}
