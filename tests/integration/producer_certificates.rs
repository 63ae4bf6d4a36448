//! Producers that are known by the client certificate of their connection.

use http::Version;
use rcgen::SanType;
use tokio::io::AsyncReadExt as _;
use tokio_rustls::rustls::{
    SupportedProtocolVersion,
    version::{TLS12, TLS13},
};

use crate::support::{
    Authority, HttpsClient, LocalRouter, PATIENCE, Pair, Scratch, SecretVolume, Setup, eventually, post,
    runtime,
};

const MANIFESTS: &str = "\
    apiVersion: weir.dev/v1alpha1\nkind: Broker\nmetadata: {name: orders, namespace: shop}\nspec:\n  producers:\n  \
    - certificate: {dnsName: orders.shop.example}\n  - certificate: {uri: 'spiffe://example/shop/orders'}\n  \
    - certificate: {dnsName: others.shop.example}\n    filters: [{exact: {type: other}}]\n  \
    - bearerToken: {secretKeyRef: {name: partners, key: token}}\n\
    ---\napiVersion: v1\nkind: Secret\nmetadata: {name: partners, namespace: shop}\nstringData: {token: t0ken}\n";

const SUCCESSFUL: &str = "weir_ingress_certificate_reload_successful";

/// A router with an HTTPS port that asks clients for certificates.
struct Target {
    server: Authority,
    clients: Authority,
    files: Scratch,
    router: LocalRouter,
    _volume: SecretVolume,
}

impl Target {
    fn start() -> Self {
        let (server, clients) = (Authority::new("the server's"), Authority::new("the clients'"));
        let (volume, files) = (SecretVolume::new(&server.pair()), Scratch::new());
        let file = files.write("ca.crt", clients.pem());
        let setup = Setup::new(MANIFESTS, &[]).argument("--listen-tls=127.0.0.1:0");
        let setup = setup.argument(format!("--listen-tls-client-ca={}", file.display()));
        let setup = volume.flags().into_iter().fold(setup, Setup::argument);
        Self {
            router: setup.start(),
            server,
            clients,
            files,
            _volume: volume,
        }
    }

    /// Posts to broker `orders` on a connection of its own; returns the status and the body.
    fn post_over(
        &self,
        http: Version,
        tls: &'static SupportedProtocolVersion,
        pair: Option<&Pair>,
        authorization: Option<&str>,
    ) -> Result<(u16, String), String> {
        let client = HttpsClient::new(&[&self.server], http, &[tls]);
        let client = match pair {
            Some(pair) => client.presenting(pair),
            None => client,
        };
        let url = format!(
            "https://{}/shop/orders",
            self.router.process.address("ingress-tls")
        );
        let answer = runtime().block_on(client.pooled().post_as(&url, "1", authorization))?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }

    /// Whether the router rejects this certificate. With TLS 1.3 the client learns that when it reads.
    fn rejects(&self, pair: &Pair) -> bool {
        let client = HttpsClient::new(&[&self.server], Version::HTTP_11, &[&TLS13]).presenting(pair);
        let address = self.router.process.address("ingress-tls");
        runtime().block_on(async {
            let mut stream = client.connect(address).await.unwrap();
            let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
            read.is_ok_and(|read| read.is_err())
        })
    }

    fn post(&self, pair: Option<&Pair>, authorization: Option<&str>) -> Result<(u16, String), String> {
        self.post_over(Version::HTTP_11, &TLS13, pair, authorization)
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

#[test]
fn names_in_client_certificates_admit_producers() {
    let target = Target::start();
    let listed = target
        .clients
        .client(&[dns("a.example"), dns("orders.shop.example")]);
    let spiffe = target.clients.client(&[uri("spiffe://example/shop/orders")]);
    let limited = target.clients.client(&[dns("others.shop.example")]);
    let unlisted = target
        .clients
        .client(&[dns("*.shop.example"), uri("spiffe://example/shop")]);
    let foreign = Authority::new("another").client(&[dns("orders.shop.example")]);
    for http in [Version::HTTP_11, Version::HTTP_2] {
        for tls in [&TLS12, &TLS13] {
            let posted = target.post_over(http, tls, Some(&listed), None);
            assert_eq!(posted, Ok((202, String::new())), "{http:?} {tls:?}");
        }
    }
    let token = Some("Bearer t0ken");
    for (case, pair, authorization, status, part) in [
        ("a URI", Some(&spiffe), None, 202, ""),
        ("none but a token", None, token, 202, ""),
        ("neither", None, None, 401, "client certificate"),
        (
            "a wrong token",
            None,
            Some("Bearer x"),
            401,
            "the token is not accepted",
        ),
        (
            "other names",
            Some(&unlisted),
            None,
            403,
            "\\\"*.shop.example\\\" may not post to shop/orders",
        ),
        ("other names and a token", Some(&unlisted), token, 202, ""),
        (
            "a wrong token beside it",
            Some(&listed),
            Some("Bearer x"),
            202,
            "",
        ),
        (
            "another event",
            Some(&limited),
            None,
            403,
            "filters in spec.producers[2]",
        ),
    ] {
        let (was, body) = target.post(pair, authorization).unwrap();
        assert_eq!(was, status, "{case}: {body}");
        assert!(body.contains(part), "{case}: {body}");
    }
    assert!(target.rejects(&foreign));
    // Nothing is known of a client without TLS.
    let url = target.router.url().replace("default", "orders");
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ];
    assert_eq!(post(&url, &headers, "{}").status, 401);
}

#[test]
fn authorities_of_clients_are_replaced_unless_they_cannot_be_used() {
    let target = Target::start();
    let next = Authority::new("the next");
    let [old, new] =
        [&target.clients, &next].map(|authority| authority.client(&[dns("orders.shop.example")]));
    assert_eq!(target.post(Some(&old), None).unwrap().0, 202);
    target.files.write("ca.crt", "no certificate");
    let said = "cannot reload the authorities of client certificates";
    target
        .router
        .process
        .wait_for_line(PATIENCE, |line| line.contains(said));
    assert_eq!(target.router.metric(&[SUCCESSFUL]), Some(0));
    assert_eq!(target.post(Some(&old), None).unwrap().0, 202);
    target.files.write("ca.crt", next.pem());
    eventually(PATIENCE, || match target.post(Some(&new), None)? {
        (202, _) => Ok(()),
        (status, body) => Err(format!("{status}: {body}")),
    });
    assert_eq!(target.router.metric(&[SUCCESSFUL]), Some(1));
    assert!(target.rejects(&old));
}
