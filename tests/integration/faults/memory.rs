//! What one client can make the router hold in memory: less than half of what the chart lets it have, whatever it sends.
//!
//! The budget is that of the chart's router, whose limit is 512 MiB.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::is_long;
use crate::support::{
    LocalRouter, PATIENCE, RawResponse, Setup, connect, connect_from, eventually, exchange_on, get,
};

const MIB: u64 = 1024 * 1024;

/// The most that the router may hold.
pub(super) const MOST: u64 = 256 * MIB;

/// Another client than those who connect from 127.0.0.1.
const OTHER: [u8; 4] = [127, 0, 0, 2];

pub(super) const HEAD: &str = "POST /shop/default HTTP/1.1\r\nhost: weir\r\n";
pub(super) const EVENT: &str = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n";

/// A router in whose namespaces `shop` and `other` events are wanted by nobody.
fn router(triggers: usize) -> LocalRouter {
    let trigger = |namespace: &str, number: usize| {
        format!(
            "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: t{number}, namespace: {namespace}}}\n\
             spec: {{filters: [{{exact: {{type: unwanted}}}}], sink: {{uri: 'http://127.0.0.1:9/'}}}}\n"
        )
    };
    let all: String = (1..triggers).map(|number| trigger("shop", number)).collect();
    let setup = Setup::new(&(all + &trigger("other", 0)), &[]);
    setup.argument("--memory-budget=128MiB").start()
}

fn ingress(router: &LocalRouter) -> SocketAddr {
    router.process.address("ingress")
}

#[track_caller]
fn holds_little(router: &LocalRouter, what: &str) {
    let (now, most) = (router.process.resident_memory(), router.process.peak_memory());
    eprintln!("{what}: {} MiB, at most {} MiB", now / MIB, most / MIB);
    assert!(most < MOST, "{what}: {} MiB", most / MIB);
}

/// Another client posts to another namespace, and is answered 202.
#[track_caller]
fn others_are_served(router: &LocalRouter) {
    let answer = post_from(OTHER, router, "other", "", &[b'x'; 1000]);
    assert_eq!(answer.status, 202, "{}", answer.json());
}

fn post_from(
    client: [u8; 4],
    router: &LocalRouter,
    namespace: &str,
    headers: &str,
    body: &[u8],
) -> RawResponse {
    let event = if headers.is_empty() { EVENT } else { headers };
    let head = format!(
        "POST /{namespace}/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n{event}content-length: {}\r\n\r\n",
        body.len()
    );
    exchange_on(
        connect_from(client, ingress(router)),
        &[head.as_bytes(), body].concat(),
    )
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [a, b, c, kind, flags];
    [&head, &stream.to_be_bytes()[..], payload].concat()
}

pub(super) const HEADERS: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// A connection of HTTP/2 whose dynamic table has the field `a` with no value.
pub(super) fn http2_on(mut stream: TcpStream) -> TcpStream {
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    stream.write_all(&begin).unwrap();
    stream
}

/// A head for `/shop/default` with so many fields of one byte each, which `first` puts into the dynamic table.
pub(super) fn indexed(first: bool, fields: usize) -> Vec<u8> {
    let mut head = vec![0x83, 0x86]; // POST, http
    head.extend_from_slice(b"\x04\x0d/shop/default");
    if first {
        head.extend_from_slice(b"\x40\x01a\x00");
    }
    head.resize(head.len() + fields, 0x80 | 62);
    head
}

/// Waits until what was sent on a connection of HTTP/2 was read, or the connection is closed.
pub(super) fn is_read(mut stream: &TcpStream) {
    let _ = stream.write_all(&frame(PING, 0, 0, &[7; 8]));
    let (mut received, mut buffer) = (Vec::new(), [0; 65536]);
    let pong = frame(PING, ACK, 0, &[7; 8]);
    while !received.windows(pong.len()).any(|window| window == pong) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => received.extend_from_slice(&buffer[..read]),
        }
    }
}

#[test]
fn heads_of_http2_that_grow_when_they_are_decoded() {
    let router = router(2);
    let connections: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = http2_on(connect(ingress(&router)));
            let sent: Vec<u8> = (0..100)
                .flat_map(|number| frame(HEADERS, END_HEADERS, 2 * number + 1, &indexed(number == 0, 7500)))
                .collect();
            let _ = stream.write_all(&sent);
            stream
        })
        .collect();
    connections.iter().for_each(is_read);
    holds_little(&router, "1,600 heads of 7,500 fields");
    others_are_served(&router);
    eventually(PATIENCE, || {
        match router.metric(&["weir_requests_rejected_total", "\"too_many_heads\""]) {
            Some(refused) if refused > 100 => Ok(()),
            refused => Err(format!("{refused:?} were rejected")),
        }
    });
    drop(connections);
}

#[test]
fn heads_of_http2_that_do_not_end() {
    let router = router(2);
    let connections: Vec<_> = (0..500)
        .map(|_| {
            let mut stream = http2_on(connect(ingress(&router)));
            let _ = stream.write_all(&frame(HEADERS, 0, 1, &indexed(true, 7500)));
            stream
        })
        .collect();
    // Whoever finds no room is closed after a while.
    let closed = |stream: &&TcpStream| {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut stream = *stream;
        loop {
            match stream.read(&mut [0; 1000]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    };
    eventually(PATIENCE, || match connections.iter().filter(closed).count() {
        200.. => Ok(()),
        few => Err(format!("{few} are closed")),
    });
    holds_little(&router, "500 heads of HTTP/2 that do not end");
    others_are_served(&router);
}

#[test]
fn heads_of_http1_that_are_large() {
    let router = router(2);
    let address = ingress(&router);
    let large = format!("{HEAD}{EVENT}ce-large: {}", "x".repeat(250 * 1024));
    let connections: Vec<_> = (0..500)
        .map(|number| {
            let mut stream = connect(address);
            // Every other one is complete, and its body does not come.
            let end = if number % 2 == 0 {
                ""
            } else {
                "\r\ncontent-length: 10\r\n\r\n"
            };
            let _ = stream.write_all(large.as_bytes());
            let _ = stream.write_all(end.as_bytes());
            stream
        })
        .collect();
    holds_little(&router, "500 heads of 250 KiB");
    others_are_served(&router);
    drop(connections);
    let many = format!("{HEAD}{EVENT}{}", "a:b\r\n".repeat(8000));
    let connections: Vec<_> = (0..500)
        .map(|_| {
            let mut stream = connect(address);
            let _ = stream.write_all(format!("{many}content-length: 10\r\n\r\n").as_bytes());
            stream
        })
        .collect();
    holds_little(&router, "500 heads of 8,000 fields");
    others_are_served(&router);
    drop(connections);
}

#[test]
fn an_event_of_64_kib_passes_in_every_form() {
    let router = router(2);
    let few = format!("ce-large: {}\r\n", "x".repeat(64 * 1024));
    let many: String = (0..7000).map(|number| format!("ce-a{number}: x\r\n")).collect();
    for headers in [few, many] {
        let event = format!("{EVENT}{headers}");
        let answer = post_from([127, 0, 0, 1], &router, "shop", &event, b"");
        assert_eq!(answer.status, 202, "{}", answer.json());
    }
}

#[test]
fn batches_of_many_small_events() {
    let router = router(2);
    let event = |id: usize| format!(r#"{{"specversion":"1.0","id":"{id:04}","source":"/","type":"t"}}"#);
    let size = if is_long() { 1024 * 1024 } else { 128 * 1024 };
    let count = size / (event(0).len() + 1);
    let batch = format!(
        "[{}]",
        (0..count)
            .map(|id| event(id % 10_000))
            .collect::<Vec<_>>()
            .join(",")
    );
    let statuses: Vec<_> = thread::scope(|scope| {
        let post = || {
            let headers = "content-type: application/cloudevents-batch+json\r\n";
            let answer = post_from([127, 0, 0, 1], &router, "shop", headers, batch.as_bytes());
            assert!(
                answer.status == 202 || answer.head.contains("retry-after: "),
                "{}",
                answer.head
            );
            answer.status
        };
        let posting: Vec<_> = (0..60).map(|_| scope.spawn(post)).collect();
        posting
            .into_iter()
            .map(|posting| posting.join().unwrap())
            .collect()
    });
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    eprintln!("{accepted} of 60 batches of {count} events were accepted");
    assert!(accepted > 0);
    holds_little(&router, "60 batches");
    others_are_served(&router);
}

#[test]
fn scrapes_of_many_triggers() {
    let router = router(if is_long() { 10_000 } else { 300 });
    let before = router.process.peak_memory();
    let url = router.admin("/metrics");
    let address = router.process.address("admin");
    // They ask, and read nothing for a while.
    let mut asking: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(address);
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    assert!(get(&router.admin("/healthz")).status.is_success());
    for stream in &mut asking {
        let mut page = Vec::new();
        stream.read_to_end(&mut page).unwrap();
        assert!(page.ends_with(b"# EOF\n"), "{} bytes", page.len());
    }
    eprintln!(
        "at rest {} MiB, a page has {} KiB",
        before / MIB,
        get(&url).body.len() / 1024
    );
    holds_little(&router, "20 scrapes");
}
