//! TLS at the ingress: HTTPS on a port of its own, with the limits of the other one, and certificates that are replaced
//! while events come in.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use http::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::rustls::version::{TLS12, TLS13};

use crate::support::{
    Authority, Consumer, HttpsClient, LocalRouter, PATIENCE, Pair, Process, Scratch, SecretVolume, Setup,
    TlsStream, connect, eventually, exchange, exchange_bytes, mapped, runtime, try_post,
};

const TRIGGER: &str = "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: web, namespace: shop}\n\
                       spec: {sink: {service: {name: web}}}\n";
const EVENT: &str = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n";
const RELOADED: &str = "certificate reloaded";
const NOT_RELOADED: &str = "cannot reload the certificate";
const SUCCESSFUL: &str = "weir_ingress_certificate_reload_successful";

/// A router with an HTTPS port and a consumer of its events.
struct Target {
    authority: Authority,
    volume: SecretVolume,
    consumer: Consumer,
    router: LocalRouter,
}

impl Target {
    fn start() -> Self {
        Self::start_with(|setup| setup)
    }

    fn start_with(also: impl FnOnce(Setup) -> Setup) -> Self {
        let authority = Authority::new("weir's tests");
        let volume = SecretVolume::new(&authority.pair());
        let consumer = Consumer::start();
        let setup = Setup::new(TRIGGER, &[mapped("web", &consumer)]).argument("--listen-tls=127.0.0.1:0");
        let setup = volume.flags().into_iter().fold(setup, Setup::argument);
        Self {
            router: also(setup).start(),
            authority,
            volume,
            consumer,
        }
    }

    fn address(&self) -> SocketAddr {
        self.router.process.address("ingress-tls")
    }

    fn client(&self) -> HttpsClient {
        client(&[&self.authority])
    }

    #[track_caller]
    fn serves(&self) {
        assert_eq!(self.router.post("t", "plain", &[]).status, 202);
        self.serves_https();
    }

    #[track_caller]
    fn serves_https(&self) {
        let posted = runtime().block_on(self.client().pooled().post(self.address(), "tls"));
        assert_eq!(posted, Ok((202, Version::HTTP_11)));
    }

    fn times_said(&self, part: &str) -> usize {
        let lines = self.router.process.lines();
        lines.iter().filter(|line| line.contains(part)).count()
    }

    #[track_caller]
    fn wait_for(&self, part: &str) {
        self.router
            .process
            .wait_for_line(PATIENCE, |line| line.contains(part));
    }
}

/// A client for HTTP/1.1 that trusts these authorities.
fn client(authorities: &[&Authority]) -> HttpsClient {
    HttpsClient::new(authorities, Version::HTTP_11, &[&TLS13, &TLS12])
}

/// Posts an event on a connection that stays open; returns the status line.
async fn post_on(stream: &mut TlsStream) -> Result<String, String> {
    let request =
        format!("POST /shop/default HTTP/1.1\r\nhost: weir\r\n{EVENT}content-length: 4\r\n\r\ndata");
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.map_err(failed)?);
    }
    let answer = String::from_utf8(answer).unwrap();
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn events_come_in_over_http1_and_http2_and_both_versions_of_tls() {
    let target = Target::start();
    let mut expected = 0;
    for http in [Version::HTTP_11, Version::HTTP_2] {
        for tls in [&TLS12, &TLS13] {
            let client = HttpsClient::new(&[&target.authority], http, &[tls]);
            let posted = runtime().block_on(client.pooled().post(target.address(), "1"));
            assert_eq!(posted, Ok((202, http)), "{tls:?}");
            expected += 1;
        }
    }
    assert_eq!(target.router.post("t", "plain", &[]).status, 202, "HTTP goes on");
    target.consumer.wait_for(expected + 1);
    let wrong_port = exchange(target.address(), b"GET / HTTP/1.1\r\nhost: weir\r\n\r\n");
    assert_eq!(wrong_port.status, 400);
    assert!(String::from_utf8_lossy(&wrong_port.body).contains("https URL"));
    let stranger = client(&[&Authority::new("another")]);
    let refused = runtime().block_on(stranger.pooled().post(target.address(), "1"));
    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn certificate_is_replaced_under_load_without_a_failed_request() {
    let mut target = Target::start();
    let (address, next) = (target.address(), Authority::new("the next authority"));
    let both = client(&[&target.authority, &next]);
    let (stop, posted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = |keeps_connections: bool| {
        let (both, stop, posted) = (both.clone(), stop.clone(), posted.clone());
        runtime().spawn(async move {
            let mut client = both.pooled();
            while !stop.load(Ordering::Relaxed) {
                if !keeps_connections {
                    client = both.pooled();
                }
                let answer = client.post(address, "load").await?;
                if answer.0 != 202 {
                    return Err(format!("{answer:?}"));
                }
                posted.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, String>(())
        })
    };
    let loads = [load(true), load(true), load(false), load(false)];
    let mut kept = runtime().block_on(both.connect(address)).unwrap();
    let before = runtime().block_on(post_on(&mut kept)).unwrap();
    let more_posted = || {
        let begun = posted.load(Ordering::Relaxed);
        eventually(PATIENCE, || match posted.load(Ordering::Relaxed) {
            now if now > begun + 20 => Ok(()),
            now => Err(format!("{now} events were posted, and {begun} before")),
        });
    };
    more_posted();
    target.volume.replace(&next.pair());
    let of_next = client(&[&next]);
    eventually(PATIENCE, || {
        runtime().block_on(of_next.connect(address)).map(drop)
    });
    more_posted();
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        runtime().block_on(load).unwrap().unwrap();
    }
    let after = runtime().block_on(post_on(&mut kept)).unwrap();
    assert_eq!([before, after], ["HTTP/1.1 202 Accepted"; 2].map(str::to_owned));
    assert_eq!(
        (target.times_said(RELOADED), target.times_said(NOT_RELOADED)),
        (1, 0)
    );
}

#[test]
fn pair_that_cannot_be_used_keeps_the_old_one_and_is_told() {
    let mut target = Target::start();
    let expiry = "weir_ingress_certificate_expiry_timestamp_seconds";
    let of_first = target.router.metric(&[expiry]).unwrap();
    assert_eq!(target.router.metric(&[SUCCESSFUL]), Some(1));
    let (second, expired) = (
        target.authority.pair_until(3000),
        target.authority.pair_until(2021),
    );
    let half = Pair {
        certificate: second.certificate[..second.certificate.len() / 2].to_owned(),
        key: second.key.clone(),
    };
    for (number, (pair, why)) in [
        (target.authority.pair().with_key_of(&second), "does not match"),
        (half, "is not valid PEM"),
        (expired, "expired at"),
    ]
    .into_iter()
    .enumerate()
    {
        target.volume.replace(&pair);
        target.wait_for(why);
        assert_eq!(
            target.times_said(NOT_RELOADED),
            number + 1,
            "once for each change"
        );
        assert_eq!(target.router.metric(&[SUCCESSFUL]), Some(0));
        assert_eq!(target.router.metric(&[expiry]), Some(of_first));
        target.serves();
    }
    target.volume.replace(&second);
    target.wait_for(RELOADED);
    target.serves();
    assert_eq!(target.router.metric(&[SUCCESSFUL]), Some(1));
    assert!(target.router.metric(&[expiry]).unwrap() < of_first);
    assert_eq!(target.times_said(NOT_RELOADED), 3);
}

#[test]
fn plain_http_can_be_switched_off() {
    let target = Target::start_with(|setup| setup.argument("--tls-only"));
    target.serves_https();
    let refused = try_post(&target.router.url(), &[], "data").unwrap_err();
    assert!(refused.contains("Connect"), "{refused}");
    assert_eq!(target.times_said("listener=\"ingress\""), 0);
}

#[test]
fn clients_that_stall_their_handshake_are_cut_off_and_hold_back_nobody() {
    let target = Target::start();
    target.serves();
    let at_rest = target.router.process.resident_memory();
    // The first 12 KiB of a ClientHello of 16 KiB.
    let mut hello = b"\x16\x03\x01\x3f\xff\x01\x00\x3f\xfb\x03\x03".to_vec();
    hello.resize(12 * 1024, 0);
    let mut stalled: Vec<_> = (0..400).map(|_| connect(target.address())).collect();
    for stream in stalled.iter_mut().skip(200) {
        stream.write_all(&hello).unwrap();
    }
    target.serves();
    let growth = target.router.process.resident_memory().saturating_sub(at_rest);
    assert!(
        growth <= 32 * 1024 * 1024,
        "{growth} bytes more than at rest, for 400 unfinished handshakes"
    );
    for mut stream in stalled {
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(
            !ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "a handshake that stalls is never cut off"
        );
    }
    eventually(PATIENCE, || {
        match target.router.metric(&["weir_ingress_handshakes_failed_total"]) {
            Some(failed) if failed >= 400 => Ok(()),
            failed => Err(format!("{failed:?} handshakes failed")),
        }
    });
    target.serves();
}

#[test]
fn both_ports_share_the_places_of_connections() {
    // With so few descriptors producers have 448 places, of which one client gets half.
    let target = Target::start_with(|setup| setup.open_files(2048));
    let plain = target.router.process.address("ingress");
    let open = |address| (0..300).map(|_| connect(address)).collect::<Vec<_>>();
    let held = [open(plain), open(target.address())];
    let count = || target.router.metric(&["weir_ingress_connections"]).unwrap();
    let refused = ["weir_requests_rejected_total", "reason=\"too_many_connections\""];
    eventually(PATIENCE, || match target.router.metric(&refused) {
        Some(refused) if refused > 100 => Ok(()),
        refused => Err(format!("{refused:?} were refused, {} are open", count())),
    });
    assert!(count() <= 224, "{} are open", count());
    drop(held);
    eventually(PATIENCE, || {
        let posted = runtime().block_on(target.client().pooled().post(target.address(), "1"));
        posted.map(drop)
    });
}

#[test]
fn what_is_no_tls_or_too_old_is_refused_without_a_line_in_the_log() {
    let target = Target::start();
    target.serves();
    let lines = target.router.process.lines().len();
    // A ClientHello of TLS 1.1, with the suite TLS_RSA_WITH_AES_128_CBC_SHA and no extensions.
    let mut hello = vec![1, 0, 0, 41, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let old = [&[22, 3, 1, 0, 45], &hello[..]].concat();
    for _ in 0..50 {
        let answer = exchange_bytes(target.address(), &old);
        assert!(
            matches!(answer[..], [21, 3, _, 0, 2, 2, 40 | 70]),
            "no fatal alert of the handshake, but {answer:?}"
        );
        exchange_bytes(target.address(), &[0; 600]);
        exchange_bytes(target.address(), b"\x16\x03\x01\xff\xff");
    }
    target.serves();
    let said = target.router.process.lines();
    assert_eq!(said.len(), lines, "{:?}", &said[lines..]);
}

#[test]
fn request_in_flight_ends_before_the_router_does() {
    let mut target = Target::start();
    let head = format!("POST /shop/default HTTP/1.1\r\nhost: weir\r\n{EVENT}content-length: 4\r\n\r\nda");
    let mut stream = runtime().block_on(async {
        let mut stream = target.client().connect(target.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        stream
    });
    // Its handshake is complete, and it is not yet known that the rest of the request comes.
    target.serves();
    target.router.process.signal("TERM");
    let address = target.address();
    eventually(PATIENCE, || match std::net::TcpStream::connect(address) {
        Ok(_) => Err("it still listens".to_owned()),
        Err(_) => Ok(()),
    });
    let answer = runtime().block_on(async {
        stream.write_all(b"ta").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    });
    assert_eq!(&answer, b"HTTP/1.1 202");
    drop(stream);
    assert!(target.router.process.wait_for_exit(PATIENCE).success());
}

#[test]
fn weir_send_trusts_what_it_is_told_to() {
    let target = Target::start();
    let files = Scratch::new();
    let file = files.write("ca.crt", target.authority.pem());
    let url = format!("https://{}/shop/default", target.address());
    let ca = format!("--ca={}", file.display());
    let send = |arguments: &[&str]| Process::weir([&["send", "--type=t"], arguments].concat());
    assert!(send(&[&url, &ca]).run().is_ok());
    let by_environment = send(&[]).env("K_SINK", &url);
    let by_environment = by_environment.env("K_CA_CERTS", target.authority.pem());
    assert!(by_environment.run().is_ok());
    target.consumer.wait_for(2);
    let untrusted = send(&[&url]).env(
        "SSL_CERT_FILE",
        files.write("other.crt", Authority::new("another").pem()),
    );
    let refused = untrusted.quiet().run().unwrap_err();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[test]
fn pair_that_cannot_be_used_at_the_start_is_an_error_that_says_what_to_do() {
    let (authority, manifests, data) = (Authority::new("weir's tests"), Scratch::new(), Scratch::new());
    manifests.write("t.yaml", TRIGGER);
    let mismatched = authority.pair().with_key_of(&authority.pair());
    let volume = SecretVolume::new(&mismatched);
    let path = |scratch: &Scratch| scratch.path().display().to_string();
    let gone = [
        "--tls-certificate=/nonexistent/tls.crt",
        "--tls-key=/nonexistent/tls.key",
    ]
    .map(str::to_owned);
    for (files, why) in [
        (&volume.flags()[..], "does not match the first certificate"),
        (&gone[..], "cannot read /nonexistent/tls.crt"),
        (&[], "--tls-certificate"),
    ] {
        let common = [
            "run".to_owned(),
            path(&manifests),
            format!("--data={}", path(&data)),
            "--listen=127.0.0.1:0".to_owned(),
            "--admin=127.0.0.1:0".to_owned(),
            "--listen-tls=127.0.0.1:0".to_owned(),
        ];
        let error = Process::weir([&common[..], files].concat()).quiet().start();
        let mut error = error;
        assert!(!error.wait_for_exit(PATIENCE).success());
        let said = error.output().join("\n");
        assert!(said.contains(why) && said.contains("--tls-key"), "{said}");
    }
}
