//! Sinks that ask for a client certificate.

use crate::{
    cluster::{post_binary, trigger},
    support::{Authority, Consumer, LocalRouter, PATIENCE, Pair, Received, eventually},
};

fn indented(pem: &str) -> String {
    pem.lines().map(|line| format!("    {line}\n")).collect()
}

fn sink(name: &str, url: &str, authority: &Authority, more: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Sink\nmetadata: {{name: {name}}}\nspec:\n  uri: '{url}'\n  \
         delivery: {{retry: 0}}\n  caCerts: |\n{}{more}",
        indented(authority.pem())
    )
}

fn with_certificate(secret: &str) -> String {
    format!("  tls: {{clientCertificate: {{secretName: {secret}}}}}\n")
}

fn secret(name: &str, Pair { certificate, key }: &Pair) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: {name}}}\nstringData:\n  \
         tls.crt: |\n{}  tls.key: |\n{}",
        indented(certificate),
        indented(key)
    )
}

/// Whether this event has been received.
fn has(id: &str) -> impl Fn(&[Received]) -> bool {
    move |received| {
        received
            .iter()
            .any(|received| received.header("ce-id") == Some(id))
    }
}

#[test]
fn each_sink_is_shown_the_certificate_of_its_own_secret() {
    let [servers, partners, others] = ["servers", "partners", "others"].map(Authority::new);
    let consumer = Consumer::start();
    let front = servers.serve_clients_of(&partners, &consumer, "localhost");
    let url = front.url("localhost");
    let names = ["partner", "stranger", "bare"];
    let sinks = [
        sink("partner", &url, &servers, &with_certificate("partner")),
        sink("stranger", &url, &servers, &with_certificate("stranger")),
        sink("bare", &url, &servers, ""),
    ];
    let triggers = names.map(|name| {
        trigger(
            name,
            &format!("[{{exact: {{type: {name}}}}}]"),
            &format!("{{ref: {{name: {name}}}}}"),
            "",
        )
    });
    let (known, unknown) = (partners.pair(), others.pair());
    let manifests = |partner: &Pair, stranger: &Pair| {
        let secrets = [secret("partner", partner), secret("stranger", stranger)];
        let all = [sinks.concat(), triggers.concat(), secrets.concat()].concat();
        all.replace("metadata: {name", "metadata: {namespace: shop, name")
    };
    let router = LocalRouter::start(&manifests(&known, &unknown), &[]);

    // The same URL, while a connection of the first is open.
    post_binary(&router.url(), "1", "partner", "{}");
    consumer.wait_for(1);
    for (event, name, part) in [
        ("2", "stranger", "TLS: the server rejected the client certificate"),
        ("3", "bare", "TLS: the server requires a client certificate"),
    ] {
        post_binary(&router.url(), event, name, "{}");
        // With TLS 1.3 the alert comes after the client's part of the handshake, and now and then the connection is
        // closed before it is read.
        let is_rejected = |line: &str| line.contains(part) || line.contains("operation was canceled");
        router.process.wait_for_line(PATIENCE, |line| {
            line.contains("an event became a dead letter")
                && line.contains(&format!("{event:?}"))
                && is_rejected(line)
        });
    }
    assert_eq!(consumer.received().len(), 1);

    // A certificate is replaced.
    router.apply(&manifests(&known, &partners.pair()));
    eventually(PATIENCE, || {
        post_binary(&router.url(), "4", "stranger", "{}");
        consumer
            .look(has("4"))
            .then_some(())
            .ok_or_else(|| "still the old certificate".to_owned())
    });

    // A pair that does not fit holds the events.
    router.apply(&manifests(&known.with_key_of(&unknown), &unknown));
    let line = router.process.wait_for_line(PATIENCE, |line| {
        line.contains("Sink shop/partner")
            && line.contains("the private key is not that of the first certificate")
    });
    assert!(!line.contains("BEGIN"), "{line}");
    post_binary(&router.url(), "5", "partner", "{}");
    assert!(!consumer.look(has("5")));
    router.apply(&manifests(&known, &unknown));
    consumer.wait_until(PATIENCE, has("5"));
    let log = router.process.lines().join("\n");
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}
