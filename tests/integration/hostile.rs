//! Clients that mean harm: the router answers or hangs up, goes on serving everyone else, and holds no more memory than
//! its limits allow.
//!
//! Two of the server's limits are longer than a test should take: a body has 30 seconds to arrive, and a connection may
//! be without a request for 650 (`server` has a unit test on a clock of its own).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::support::{LocalRouter, PATIENCE, connect, eventually, exchange, exchange_bytes, get};

const MIB: u64 = 1024 * 1024;

const HEAD: &str = "POST /shop/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n";
const EVENT: &str = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n";
const MEMBERS: &str = r#""specversion":"1.0","id":"1","source":"/","type":"t""#;

/// A router whose events nobody wants, and how much memory it may come to hold.
struct Target {
    router: LocalRouter,
    at_rest: u64,
}

impl Target {
    fn start() -> Self {
        let trigger = "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: t, namespace: shop}\n\
                       spec: {filters: [{exact: {type: unwanted}}], sink: {uri: 'http://127.0.0.1:9/'}}\n";
        let router = LocalRouter::start(trigger, &[]);
        let mut target = Self { router, at_rest: 0 };
        target.serves();
        target.at_rest = target.router.process.resident_memory();
        target
    }

    fn address(&self) -> SocketAddr {
        self.router.process.address("ingress")
    }

    /// Everyone else is served.
    #[track_caller]
    fn serves(&self) {
        assert_eq!(self.router.post("t", "good", &[]).status, 202);
        assert_eq!(get(&self.router.admin("/readyz")).status, 200);
    }

    #[track_caller]
    fn holds_at_most(&self, more: u64, what: &str) {
        let held = self.router.process.resident_memory();
        let growth = held.saturating_sub(self.at_rest);
        assert!(growth <= more, "{what}: {} MiB more than at rest", growth / MIB);
    }
}

#[test]
fn a_head_that_is_too_large_or_malformed_is_refused() {
    let target = Target::start();
    let long = "x".repeat(8 * 1024 * 1024);
    let many: String = (0..9000).map(|number| format!("ce-x{number}: 1\r\n")).collect();
    for (what, status, rest) in [
        ("a header of 8 MiB", 431, format!("ce-x: {long}\r\n\r\n")),
        ("a header that does not end", 431, format!("ce-x: {long}")),
        ("a header's name that does not end", 431, format!("ce-{long}")),
        ("9000 headers", 431, format!("{many}\r\n")),
        (
            "two lengths",
            400,
            "content-length: 1\r\ncontent-length: 2\r\n\r\nab".to_owned(),
        ),
        ("a negative length", 400, "content-length: -1\r\n\r\n".to_owned()),
        (
            "a length that is no number",
            400,
            "content-length: +1\r\n\r\na".to_owned(),
        ),
        (
            "a length of more than 64 bits",
            400,
            "content-length: 99999999999999999999\r\n\r\n".to_owned(),
        ),
        (
            "an unknown transfer coding",
            400,
            "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("a NUL in a header", 400, "ce-x: a\0b\r\n\r\n".to_owned()),
        ("a space before the colon", 400, "ce-x : a\r\n\r\n".to_owned()),
        ("a folded header", 400, "ce-x: a\r\n b\r\n\r\n".to_owned()),
    ] {
        let response = exchange(target.address(), format!("{HEAD}{EVENT}{rest}").as_bytes());
        assert_eq!(response.status, status, "{what}");
    }
    for (what, status, bytes) in [
        (
            "a target that does not end",
            431,
            format!("GET /{long}").into_bytes(),
        ),
        (
            "TLS",
            400,
            [
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
                &[0; 600],
            ]
            .concat(),
        ),
    ] {
        assert_eq!(exchange(target.address(), &bytes).status, status, "{what}");
    }
    target.holds_at_most(32 * MIB, "heads");
    target.serves();
}

#[test]
fn a_body_that_is_meant_to_cost_is_answered_with_what_is_wrong() {
    let target = Target::start();
    let deep = |depth: usize| "[".repeat(depth);
    let closed = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let members: String = (0..90_000).map(|number| format!(r#","{number}":1"#)).collect();
    let structured = |rest: &str| {
        (
            "content-type: application/cloudevents+json\r\n",
            format!("{{{MEMBERS}{rest}"),
        )
    };
    let batch = |text: String| ("content-type: application/cloudevents-batch+json\r\n", text);
    for (what, (headers, body), status, reason) in [
        (
            "gzip",
            ("content-encoding: gzip\r\n", "x".repeat(100)),
            415,
            "content_encoding",
        ),
        (
            "a second coding",
            (
                "content-encoding: identity\r\ncontent-encoding: gzip\r\n",
                "x".repeat(100),
            ),
            415,
            "content_encoding",
        ),
        (
            "more than the limit",
            (EVENT, "x".repeat(2 * 1024 * 1024)),
            413,
            "too_large",
        ),
        (
            "data nested half a million deep",
            structured(&format!(r#","data":{}}}"#, closed(500_000))),
            202,
            "",
        ),
        (
            "nesting that is not closed",
            structured(&format!(r#","data":{}"#, deep(1_000_000))),
            400,
            "malformed_json",
        ),
        (
            "a nested attribute",
            structured(&format!(r#","x":{}}}"#, closed(500_000))),
            400,
            "invalid_attribute_type",
        ),
        ("a nested batch", batch(closed(500_000)), 400, "malformed_json"),
        (
            "a batch of half a million that are none",
            batch(format!("[{}1]", "1,".repeat(500_000))),
            400,
            "malformed_json",
        ),
        (
            "90,000 attributes",
            structured(&format!("{members}}}")),
            400,
            "too_many_attributes",
        ),
        (
            "one attribute 150,000 times",
            structured(&format!("{}}}", r#","a":1"#.repeat(150_000))),
            400,
            "duplicate_attribute",
        ),
    ] {
        let length = body.len();
        let request = format!("{HEAD}{headers}content-length: {length}\r\n\r\n{body}");
        let response = exchange(target.address(), request.as_bytes());
        let problem = response.json();
        assert_eq!(response.status, status, "{what}: {problem}");
        assert_eq!(
            problem["reason"].as_str().unwrap_or_default(),
            reason,
            "{what}: {problem}"
        );
    }
    let endless = "a: b\r\n".repeat(200_000);
    for (what, chunks) in [
        ("a chunk of more than 64 bits", "FFFFFFFFFFFFFFFFF\r\n"),
        ("a chunk without a size", "zz\r\n"),
        (
            "a chunk's extension that does not end",
            &format!("1;{}", "x".repeat(1_000_000)),
        ),
        ("trailers that do not end", &format!("0\r\n{endless}")),
    ] {
        let request = format!("{HEAD}{EVENT}transfer-encoding: chunked\r\n\r\n{chunks}");
        let response = exchange(target.address(), request.as_bytes());
        assert_eq!(
            (response.status, response.json()["reason"].as_str()),
            (400, Some("incomplete_body")),
            "{what}"
        );
    }
    target.holds_at_most(96 * MIB, "bodies");
    target.serves();
}

#[test]
fn bodies_that_stop_midway_hold_no_more_memory_than_they_may_together() {
    let target = Target::start();
    let head = format!("POST /shop/default HTTP/1.1\r\nhost: weir\r\n{EVENT}content-length: 1000000\r\n\r\n");
    let part = [head.as_bytes(), &vec![b'x'; 900_000][..]].concat();
    let stopped: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = connect(target.address());
            // Whoever is rejected is read for a while longer, and then may find the connection closed.
            let _ = stream.write_all(&part);
            stream
        })
        .collect();
    target.holds_at_most(160 * MIB, "200 bodies of 900 kB that stop midway");
    let (reason, busy) = ("reason=\"too_many_bodies\"", "weir_requests_rejected_total");
    eventually(PATIENCE, || {
        let refused = target.router.metric(&[busy, reason]).unwrap_or(0);
        if refused > 100 {
            Ok(())
        } else {
            Err(format!("{refused} were rejected"))
        }
    });
    drop(stopped);
    // What they held is free as soon as the router sees that they are gone.
    eventually(PATIENCE, || {
        match target.router.post("t", "good", &[]).status.as_u16() {
            202 => Ok(()),
            status => Err(format!("{status}")),
        }
    });
    target.serves();
}

#[test]
fn batches_of_tiny_events_cost_little_more_than_their_bytes() {
    let target = Target::start();
    let batch = format!("[{}{{{MEMBERS}}}]", format!("{{{MEMBERS}}},").repeat(18_000));
    let headers = "content-type: application/cloudevents-batch+json";
    let request = format!(
        "{HEAD}{headers}\r\ncontent-length: {}\r\n\r\n{batch}",
        batch.len()
    );
    for _ in 0..5 {
        assert_eq!(exchange(target.address(), request.as_bytes()).status, 202);
    }
    // Five mebibytes, 90,005 events; the event log's own buffers are the most of it.
    target.holds_at_most(128 * MIB, "five batches of 18,001 events");
    target.serves();
}

#[test]
fn heads_that_are_sent_slowly_are_cut_off() {
    let target = Target::start();
    let mut silent: Vec<_> = (0..500).map(|_| connect(target.address())).collect();
    for stream in &mut silent {
        stream.write_all(HEAD.as_bytes()).unwrap();
    }
    // It sends a header every now and then, which does not give it more time.
    let mut dripping = connect(target.address());
    dripping.write_all(HEAD.as_bytes()).unwrap();
    let begin = Instant::now();
    while dripping.write_all(b"x-a: b\r\n").is_ok() {
        assert!(
            begin.elapsed() < PATIENCE,
            "a head that drips in is never cut off"
        );
        thread::sleep(Duration::from_millis(100)); // how slowly it drips
    }
    for mut stream in silent {
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(
            !ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
            "a silent head is never cut off"
        );
    }
    target.holds_at_most(32 * MIB, "500 unfinished heads");
    target.serves();
}

#[test]
fn a_client_that_does_not_read_its_answers_is_not_read_either() {
    use http2::{PING, SETTINGS, frame, preface};
    let target = Target::start();
    for (what, first, again) in [
        (
            "requests",
            vec![],
            b"GET /nowhere HTTP/1.1\r\nhost: weir\r\n\r\n".to_vec(),
        ),
        ("pings", preface(), frame(PING, 0, 0, b"12345678")),
        (
            "settings",
            preface(),
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        ),
    ] {
        let mut stream = connect(target.address());
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        stream.write_all(&first).unwrap();
        let again = again.repeat(1000);
        let mut sent = 0;
        let error = loop {
            match stream.write(&again[sent % again.len()..]) {
                Ok(written) => sent += written,
                Err(error) => break error,
            }
            assert!(sent < 256 * 1024 * 1024, "{what} are read on and on");
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{what}");
        target.holds_at_most(32 * MIB, what);
    }
    target.serves();
}

/// HTTP/2 (RFC 9113) as far as an attack needs it.
mod http2 {
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const END_HEADERS: u8 = 4;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// What a client begins with.
    pub(super) fn preface() -> Vec<u8> {
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(SETTINGS, 0, 0, b""),
        ]
        .concat()
    }

    /// A field without compression (RFC 7541, section 6.2.2).
    pub(super) fn field(name: &str, value: &str) -> Vec<u8> {
        [vec![0], string(name), string(value)].concat()
    }

    fn string(text: &str) -> Vec<u8> {
        let mut left = text.len();
        let mut encoded = Vec::new();
        if left < 127 {
            encoded.push(left as u8);
        } else {
            encoded.push(127);
            left -= 127;
            while left >= 128 {
                encoded.push((left % 128) as u8 | 128);
                left /= 128;
            }
            encoded.push(left as u8);
        }
        encoded.extend_from_slice(text.as_bytes());
        encoded
    }
}

#[test]
fn http2_floods_end_the_connection() {
    use http2::{CONTINUATION, END_HEADERS, HEADERS, RST_STREAM, field, frame, preface};
    let target = Target::start();
    let fields = [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":authority", "weir"),
        field(":path", "/shop/default"),
        field("ce-specversion", "1.0"),
        field("ce-id", "1"),
        field("ce-source", "/s"),
        field("ce-type", "t"),
    ]
    .concat();
    let head = frame(HEADERS, 0, 1, &fields);
    let large = frame(CONTINUATION, 0, 1, &field("ce-x", &"y".repeat(15_000)));
    let request_and_reset = |number: u32| {
        let stream = 2 * number + 1;
        let request = frame(HEADERS, END_HEADERS, stream, &fields);
        [request, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let rapid_reset: Vec<_> = (0..20_000).map(request_and_reset).collect();
    for (what, flood) in [
        ("rapid reset (CVE-2023-44487)", rapid_reset.concat()),
        ("30 MiB of headers", [head.clone(), large.repeat(2000)].concat()),
        (
            "continuations without end (CVE-2024-27316)",
            [head, frame(CONTINUATION, 0, 1, b"").repeat(100_000)].concat(),
        ),
        (
            "a frame of 16 MiB",
            frame(HEADERS, END_HEADERS, 1, &vec![0; 16 * 1024 * 1024 - 1]),
        ),
    ] {
        // It ends the connection at once: one that is merely idle would stay open for longer than is patient.
        exchange_bytes(target.address(), &[preface(), flood].concat());
        target.holds_at_most(48 * MIB, what);
        target.serves();
    }
}

/// How many connections the router serves at once (`server::MAX_CONNECTIONS`).
const MOST_CONNECTIONS: usize = 4096;

/// Side by side: when the kernel's queue is full, a connection takes a second longer.
fn connect_many(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    const THREADS: usize = 32;
    let some = || -> Vec<_> { (0..count / THREADS).map(|_| connect(address)).collect() };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(some)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    })
}

#[test]
fn connections_beyond_the_most_wait_and_are_served_later() {
    // The test process and the router, which inherits its limits, both need a file descriptor for each.
    let limited = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), "--nofile=16384:"])
        .status()
        .expect("cannot start prlimit (on Debian, apt-get install util-linux)");
    if !limited.success() {
        let line = "skipped: connections_beyond_the_most_wait_and_are_served_later: it needs 16384 open files (ulimit -Hn)\n";
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    let target = Target::start();
    let answers = |stream: &TcpStream, timeout| {
        stream.set_read_timeout(Some(timeout)).unwrap();
        let mut stream = stream;
        stream.read(&mut [0; 9]).map_err(|error| error.kind())
    };
    let request = format!("{HEAD}{EVENT}content-length: 0\r\n\r\n");
    let mut idle = connect_many(target.address(), MOST_CONNECTIONS);
    let mut waiting = connect(target.address());
    waiting.write_all(request.as_bytes()).unwrap();
    // It waits for a place, or has that of one that is idle by now; the router is well otherwise.
    assert_eq!(get(&target.router.admin("/readyz")).status, 200);
    target.holds_at_most(64 * MIB, "4096 idle connections");
    // Not one alone, which may be waiting itself: the test's own client has a connection too.
    idle.truncate(MOST_CONNECTIONS / 2);
    assert_eq!(answers(&waiting, PATIENCE), Ok(9));
    drop(idle);
    target.serves();
}
