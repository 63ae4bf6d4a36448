//! What it costs to check producers by their tokens, and to reject tokens that nobody issued.
//!
//! The long form, `make bench-producers`, measures it on a release build, for `benches/README.md`.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use futures::StreamExt as _;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{AUDIENCE, Setup, broker, token};
use crate::{
    faults::is_long,
    support::{PATIENCE, eventually, send},
};

/// Requests under way at a time.
const CONNECTIONS: usize = 64;

/// How often each kind of request is measured, in turn, so that a change of the machine's speed touches all.
const ROUNDS: usize = 5;

/// Requests of one kind.
struct Kind<'a> {
    name: &'static str,
    broker: &'static str,
    /// The token of a request, by its number.
    token: Box<dyn Fn(usize) -> Option<String> + 'a>,
    /// What they may be answered.
    statuses: &'static [u16],
    /// Requests a second, and CPU time of the router for each, of each round.
    seen: Vec<(f64, Duration)>,
}

impl<'a> Kind<'a> {
    fn new(
        name: &'static str,
        broker: &'static str,
        token: impl Fn(usize) -> Option<String> + 'a,
        statuses: &'static [u16],
    ) -> Self {
        Self {
            name,
            broker,
            token: Box::new(token),
            statuses,
            seen: Vec::new(),
        }
    }

    fn measure(&mut self, setup: &Setup, runtime: &Runtime, requests: usize, round: usize) {
        let url = setup.weir.broker("shop");
        let url = url.replace("/default", &format!("/{}", self.broker));
        let authorizations: Vec<_> = (round * requests..(round + 1) * requests)
            .map(|number| Some(format!("Bearer {}", (self.token)(number)?)))
            .collect();
        let post = async |authorization: Option<String>| {
            let event = [
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-source", "/s"),
                ("ce-type", "t"),
            ];
            let authorization = authorization.as_deref().map(|value| ("authorization", value));
            let headers: Vec<_> = event.into_iter().chain(authorization).collect();
            let answer = send(http::Method::POST, &url, &headers, vec![b'x'; 1024]).await;
            answer.unwrap()
        };
        let (before, began) = (setup.weir.router.processor_time(), Instant::now());
        let posted = futures::stream::iter(authorizations).map(post);
        let mut answers = posted.buffer_unordered(CONNECTIONS);
        runtime.block_on(async {
            while let Some(answer) = answers.next().await {
                let is_expected = self.statuses.contains(&answer.status.as_u16());
                assert!(is_expected, "{}: {}", self.name, answer.text());
            }
        });
        let rate = requests as f64 / began.elapsed().as_secs_f64();
        let processor = setup.weir.router.processor_time() - before;
        self.seen.push((rate, processor / requests as u32));
    }

    /// Medians of the rounds, as a row of a table.
    fn row(&self) -> String {
        let mut rates: Vec<_> = self.seen.iter().map(|(rate, _)| *rate).collect();
        let mut processor: Vec<_> = self.seen.iter().map(|(_, processor)| *processor).collect();
        rates.sort_by(f64::total_cmp);
        processor.sort_unstable();
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let statuses: Vec<_> = self.statuses.iter().map(u16::to_string).collect();
        format!(
            "| {} | {} | {:.0} | {:.0} to {:.0} | {:.0} | {:.0} to {:.0} |",
            self.name,
            statuses.join(", "),
            rates[rates.len() / 2],
            rates[0],
            rates[rates.len() - 1],
            micros(processor[processor.len() / 2]),
            micros(processor[0]),
            micros(processor[processor.len() - 1]),
        )
    }
}

/// A token with the claims of another and an id of its own, so that its signature is wrong.
fn forged(token: &str, number: usize) -> String {
    let parts: Vec<_> = token.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&BASE64URL.decode(parts[1]).unwrap()).unwrap();
    claims["jti"] = number.into();
    let claims = BASE64URL.encode(claims.to_string());
    [parts[0], &claims, parts[2]].join(".")
}

#[test]
fn tokens_that_nobody_issued_cost_little_and_displace_no_other() {
    let setup = Setup::new(&[]);
    let checkout = token(&setup.shop, "checkout", AUDIENCE);
    let other = token(&setup.shop, "other", AUDIENCE);
    setup.shop.apply(&broker("{}").replace("orders", "anyone"));
    eventually(PATIENCE, || match setup.post("anyone", None, "t") {
        answer if answer.status == 202 => Ok(()),
        answer => Err(answer.text()),
    });
    let mut kinds = [
        Kind::new("broker for anyone, no token", "anyone", |_| None, &[202]),
        Kind::new("listed account", "orders", |_| Some(checkout.clone()), &[202]),
        Kind::new("no token", "orders", |_| None, &[401]),
        Kind::new(
            "account that is not listed",
            "orders",
            |_| Some(other.clone()),
            &[403],
        ),
        Kind::new(
            "forged tokens, each another",
            "orders",
            |number| Some(forged(&checkout, number)),
            &[401, 429],
        ),
    ];
    // More forged tokens than a router remembers valid ones.
    let (requests, rounds) = if is_long() { (20_000, ROUNDS) } else { (300, 1) };
    let runtime = Runtime::new().unwrap();
    for round in 0..rounds {
        for kind in &mut kinds {
            kind.measure(&setup, &runtime, requests, round);
        }
    }
    assert_eq!(setup.post("orders", Some(&checkout), "t").status, 202);
    // Other accounts are not concerned, and new tokens of this one only for a while.
    let page = token(&setup.web, "page", AUDIENCE);
    assert_eq!(setup.post("orders", Some(&page), "visit").status, 202);
    let new = token(&setup.shop, "checkout", AUDIENCE);
    eventually(PATIENCE, || match setup.post("orders", Some(&new), "t") {
        answer if answer.status == 202 => Ok(()),
        answer if answer.status == 429 && answer.headers.contains_key("retry-after") => Err(answer.text()),
        answer => panic!("{}", answer.text()),
    });
    let metrics = setup.weir.metrics();
    let count = metrics.lines().find_map(|line| {
        line.strip_prefix("weir_requests_rejected_total{reason=\"too_many_invalid_tokens\"} ")
    });
    assert!(count.is_some_and(|count| count != "0"), "{count:?}");
    eprintln!(
        "| requests | status | a second, median | of {rounds} rounds | CPU each, microseconds | of {rounds} rounds |"
    );
    eprintln!("| --- | --- | --- | --- | --- | --- |");
    for kind in &kinds {
        eprintln!("{}", kind.row());
    }
}
