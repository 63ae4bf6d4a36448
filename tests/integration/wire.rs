//! What HTTP leaves to both ends: how requests to Sinks are framed, what their answers may be like, and how connections of
//! producers begin and end.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    time::{Duration, Instant},
};

use crate::support::{Answer, Consumer, LocalRouter, connect, exchange, get, runtime, send};

const EVENT: &str = "ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /s\r\nce-type: t\r\n";

fn router(consumer: &Consumer, delivery: &str) -> LocalRouter {
    let manifest = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{sink: {{service: {{name: web}}}}, delivery: {{{delivery}}}}}\n"
    );
    LocalRouter::start(&manifest, &[("web", consumer)])
}

#[test]
fn a_request_says_how_long_it_is_and_that_the_answer_is_not_to_be_coded() {
    let consumer = Consumer::start();
    let router = router(&consumer, "");
    let address = router.process.address("ingress");
    for (body, length) in [("", "0"), ("data", "4")] {
        let request = format!(
            "POST /shop/default HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n{EVENT}content-length: {length}\r\n\r\n{body}"
        );
        assert_eq!(exchange(address, request.as_bytes()).status, 202);
    }
    for received in consumer.wait_for(2) {
        let length = received.body.len().to_string();
        assert_eq!(received.header("content-length"), Some(length.as_str()));
        assert_eq!(received.header("accept-encoding"), Some("identity"));
    }
}

#[test]
fn an_answer_may_have_many_headers_and_large_ones() {
    let consumer = Consumer::start();
    let many = (0..1000).fold(Answer::status(202), |answer, number| {
        answer.header(&format!("x-{number}"), "y")
    });
    let large = Answer::status(202).header("x-large", &"y".repeat(48 * 1024));
    let mut answers = [many, large].into_iter();
    consumer.answer_by(move |_| answers.next().unwrap_or_else(|| Answer::status(500)));
    let router = router(&consumer, "");
    for id in ["1", "2"] {
        assert_eq!(router.post("t", id, &[]).status, 202);
        router.wait_until_all_are("web", "delivered", id.parse().unwrap());
    }
    assert_eq!(consumer.received().len(), 2);
}

#[test]
fn a_sink_that_asks_for_a_pause_gets_it_from_all_events() {
    let pause = Duration::from_secs(2);
    for status in [429, 503] {
        let consumer = Consumer::start();
        let mut is_first = true;
        consumer.answer_by(move |_| {
            if std::mem::take(&mut is_first) {
                Answer::status(status).header("retry-after", "2")
            } else {
                Answer::status(204)
            }
        });
        // One at a time, so that nothing else is under way when it asks.
        let router = router(&consumer, "concurrency: 1, backoffDelay: 10ms");
        assert_eq!(router.post_batch("t", 0..5).status, 202);
        router.wait_until_all_are("web", "delivered", 5);
        let times: Vec<Instant> = consumer.look(|received| received.iter().map(|one| one.at).collect());
        // It begins once the router has read the answer.
        assert!(
            times[1] - times[0] >= pause,
            "{status}: {:?}",
            times[1] - times[0]
        );
        assert_eq!(times.len(), 6);
    }
}

#[test]
fn a_sink_that_takes_so_many_requests_a_second_refuses_few() {
    const LIMIT: u32 = 20;
    let consumer = Consumer::start();
    let (mut second, mut taken) = (Instant::now(), 0);
    consumer.answer_by(move |request| {
        if request.at - second >= Duration::from_secs(1) {
            (second, taken) = (request.at, 0);
        }
        taken += 1;
        Answer::status(if taken > LIMIT { 429 } else { 204 })
    });
    let router = router(&consumer, "backoffDelay: 10ms, backoffMax: 500ms");
    assert_eq!(router.post_batch("t", 0..200).status, 202);
    router.wait_until_all_are("web", "delivered", 200);
    let refused = consumer.received().len() - 200;
    // Without a pace it is some two thousand.
    assert!(refused < 120, "{refused} were rejected");
}

#[test]
fn a_producer_that_has_no_more_to_send_is_answered() {
    let consumer = Consumer::start();
    let router = router(&consumer, "");
    let mut stream = connect(router.process.address("ingress"));
    let request =
        format!("POST /shop/default HTTP/1.1\r\nhost: weir\r\n{EVENT}content-length: 4\r\n\r\ndata");
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    consumer.wait_for(1);
}

#[test]
fn a_connection_without_a_request_is_closed_when_the_operator_says() {
    let consumer = Consumer::start();
    let manifest = "apiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {name: web, namespace: shop}\n\
                    spec: {sink: {service: {name: web}}}\n";
    let router = LocalRouter::start_with(manifest, &[("web", &consumer)], &["--idle-timeout=1s"]);
    let mut stream = connect(router.process.address("ingress"));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let consumer = Consumer::start();
    let router = router(&consumer, "");
    let address = router.process.address("ingress");
    for (path, length, expected) in [
        ("/shop/default", 100_000_000, "HTTP/1.1 413 "),
        ("/shop/unknown", 10, "HTTP/1.1 404 "),
    ] {
        let mut stream = connect(address);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: weir\r\nexpect: 100-continue\r\n{EVENT}content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[test]
fn what_load_balancers_and_clients_ask_for_is_there() {
    let consumer = Consumer::start();
    let router = router(&consumer, "");
    let url = router.url();
    let root = url.replace("shop/default", "");
    assert_eq!(get(&root).status, 200, "a health check");
    let answer = |method: http::Method, url: &str| {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
        ];
        runtime()
            .block_on(send(method, url, &headers, ""))
            .unwrap()
            .status
    };
    assert_eq!(answer(http::Method::HEAD, &root), 200);
    assert_eq!(answer(http::Method::POST, &root), 404);
    assert_eq!(
        answer(http::Method::POST, &format!("{url}/")),
        202,
        "a slash at the end"
    );
    assert_eq!(answer(http::Method::OPTIONS, &url), 200);
    assert_eq!(
        answer(http::Method::OPTIONS, &url.replace("default", "none")),
        404
    );
}
