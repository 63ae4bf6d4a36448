//! One namespace does its worst, and another, which posts a little to a Sink that is well, is served as if it were alone:
//! no post is rejected, every event arrives, and the router's memory stays within its budget.
//!
//! The long form, `make bench-neighbour`, measures how long the neighbour's events take, for `benches/README.md`.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::runtime::Runtime;

use super::{
    LocalRouter, Setup,
    answers::{asking, batch},
    arrivals::{all_arrive, id_of},
    connections::request,
    filters::{filtered, five, of_bytes},
    is_long,
    loops::leading_to,
    mapped,
    memory::{END_HEADERS, EVENT, HEAD, HEADERS, MOST, frame, http2_on, indexed, is_read},
    trigger,
};
use crate::support::{Answer, Consumer, Nameserver, Response, connect_from, send};

const MIB: u64 = 1024 * 1024;

/// The address from which the namespace `shop` does its worst.
const ATTACKER: [u8; 4] = [127, 0, 0, 66];

const NEIGHBOUR: &str = "\
---
apiVersion: weir.dev/v1alpha1
kind: Trigger
metadata: {name: well, namespace: other}
spec: {sink: {service: {name: well}}}
";

/// How often the neighbour posts.
const EVERY: Duration = Duration::from_millis(10);

/// A way to be a bad neighbour.
struct Attack {
    name: &'static str,
    /// Further arguments of the router.
    arguments: &'static [&'static str],
    /// What the Sink `bad` answers.
    answer: Answer,
    /// How many Sinks, named `t0` and so on, answer the same.
    sinks: u32,
    /// The namespace's manifests, given the URL of its broker.
    manifests: fn(&str) -> String,
    /// How many threads do it.
    threads: u32,
    /// What each thread does until it is told to stop, over and over again.
    turn: fn(&Scene, u32),
}

/// What the threads of an attack share.
struct Scene {
    router: LocalRouter,
    stop: AtomicBool,
    turns: AtomicU32,
}

impl Scene {
    fn ingress(&self) -> SocketAddr {
        self.router.process.address("ingress")
    }

    /// Posts to `shop/default` with these headers, on a connection of its own.
    fn post(&self, headers: &str, body: &[u8]) {
        let head = format!(
            "{HEAD}connection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        ask(ATTACKER, self.ingress(), &[head.as_bytes(), body].concat());
    }

    /// Waits, in steps short enough to stop in time.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.stop.load(Relaxed) && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Sends a request on a connection of its own. What comes of it is the attacker's concern.
fn ask(from: [u8; 4], address: SocketAddr, request: &[u8]) {
    let mut stream = connect_from(from, address);
    let _ = stream.write_all(request);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// How long the neighbour is watched.
fn window() -> Duration {
    if is_long() {
        Duration::from_secs(20)
    } else {
        Duration::from_secs(2)
    }
}

/// What came of the neighbour's posts.
struct Seen {
    refused: Vec<String>,
    /// From when an event was to be posted to when its Sink had it, in ascending order.
    delays: Vec<Duration>,
}

impl Seen {
    fn percentile(&self, percent: usize) -> Duration {
        self.delays[(self.delays.len() - 1) * percent / 100]
    }
}

/// Posts for a while, without waiting for answers, and waits until everything has arrived.
fn neighbour(runtime: &Runtime, url: &str, well: &Consumer, prefix: &str) -> Seen {
    let count = (window().as_millis() / EVERY.as_millis()) as u32;
    let begin = Instant::now();
    let due = |number: u32| begin + EVERY * number;
    let post = async |number: u32| {
        tokio::time::sleep_until(due(number).into()).await;
        let id = format!("{prefix}-{number}");
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-source", "/p"),
            ("ce-type", "t"),
            ("ce-id", &*id),
        ];
        match send(http::Method::POST, url, &headers, vec![b'x'; 1024]).await {
            Ok(Response { status, .. }) if status == 202 => None,
            Ok(answer) => Some(format!("{id}: {}", answer.text())),
            Err(error) => Some(format!("{id}: {error}")),
        }
    };
    let refused = runtime.block_on(futures::future::join_all((0..count).map(post)));
    let ids = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    let refused: Vec<_> = refused.into_iter().flatten().collect();
    if !refused.is_empty() {
        return Seen {
            refused,
            delays: vec![Duration::MAX],
        };
    }
    all_arrive(well, &ids);
    let mut delays: Vec<_> = well.look(|received| {
        let delay = |id: &str| {
            let number = id.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()?;
            Some(due(number))
        };
        received
            .iter()
            .filter_map(|message| Some(message.at - delay(&id_of(message))?))
            .collect()
    });
    delays.sort_unstable();
    Seen { refused, delays }
}

/// What one attack cost the neighbour.
fn measure(attack: &Attack, nameserver: Option<&Nameserver>) -> String {
    // The neighbour has threads of its own, so that it does not wait for the attackers' part of this process.
    let runtime = Runtime::new().unwrap();
    let well = {
        let _on = runtime.enter();
        Consumer::start()
    };
    let bad = Consumer::start();
    bad.answer(attack.answer.clone());
    // By name, so that it depends on what becomes of other names.
    let well_url = format!("http://localhost:{}", well.address().port());
    let names = (0..attack.sinks).map(|number| format!("t{number}"));
    let services: Vec<_> = names
        .map(|name| mapped(&name, &bad))
        .chain([mapped("bad", &bad), format!("other/well={well_url}")])
        .collect();
    let setup = Setup::new(NEIGHBOUR, &services).argument("--memory-budget=128MiB");
    let setup = attack.arguments.iter().copied().fold(setup, Setup::argument);
    let router = match nameserver {
        Some(nameserver) => setup.nameserver(nameserver).start(),
        None => setup.start(),
    };
    let url = router.url().replace("shop", "other");
    let alone = neighbour(&runtime, &url, &well, "alone");
    let manifests = (attack.manifests)(&router.url());
    if !manifests.is_empty() {
        router.apply(&[NEIGHBOUR, &manifests].concat());
    }
    let scene = Arc::new(Scene {
        router,
        stop: AtomicBool::new(false),
        turns: AtomicU32::new(0),
    });
    let threads: Vec<_> = (0..attack.threads)
        .map(|thread| {
            let (scene, turn) = (scene.clone(), attack.turn);
            thread::spawn(move || {
                while !scene.stop.load(Relaxed) {
                    turn(&scene, thread);
                    scene.turns.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let beside = neighbour(&runtime, &url, &well, "beside");
    scene.stop.store(true, Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let most = scene.router.process.peak_memory();
    assert_eq!(beside.refused, [""; 0], "beside {}", attack.name);
    assert_eq!(alone.refused, [""; 0]);
    assert!(most < MOST, "{}: the router held {} MiB", attack.name, most / MIB);
    let millis = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
    format!(
        "| {} | {} | {} | {} | {} | {:.1} | {} |",
        attack.name,
        millis(alone.percentile(50)),
        millis(alone.percentile(99)),
        millis(beside.percentile(50)),
        millis(beside.percentile(99)),
        beside.percentile(99).as_secs_f64() / alone.percentile(99).as_secs_f64(),
        most / MIB
    )
}

fn event(id: &str, r#type: &str) -> String {
    format!(
        "ce-specversion: 1.0\r\nce-id: {id}\r\nce-source: /bad\r\nce-type: {type}\r\nce-partitionkey: {id}\r\n"
    )
}

fn status(code: u16) -> Answer {
    Answer::status(code)
}

fn attacks() -> Vec<Attack> {
    let reply = status(200)
        .header("content-type", "application/cloudevents-batch+json")
        .body(batch(4000));
    let attack = |name, manifests, threads, turn| Attack {
        name,
        arguments: &[],
        answer: status(204),
        sinks: 0,
        manifests,
        threads,
        turn,
    };
    vec![
        attack(
            "posts without pause",
            |_| trigger("bad", ""),
            16,
            |scene, _| scene.post(&event("1", "t"), b"x"),
        ),
        Attack {
            answer: status(503),
            ..attack(
                "events that always fail, by key",
                |_| trigger("bad", "ordering: ByKey"),
                8,
                |scene, thread| {
                    let id = format!("{thread}-{}", scene.turns.load(Relaxed));
                    scene.post(&event(&id, "t"), b"x");
                },
            )
        },
        Attack {
            answer: Answer::Hang,
            ..attack(
                "a Sink that hangs with 200 events of 1 MB",
                |_| trigger("bad", "concurrency: 200, timeout: 10m"),
                4,
                |scene, _| {
                    if scene.turns.load(Relaxed) < 300 {
                        scene.post(&event("1", "t"), &vec![b'x'; 1_000_000]);
                    } else {
                        scene.pause(Duration::from_millis(100));
                    }
                },
            )
        },
        Attack {
            arguments: &["--log-size=64MiB"],
            answer: status(503),
            ..attack(
                "a dead Sink whose events fill the namespace's share",
                |_| trigger("bad", ""),
                4,
                |scene, thread| {
                    let id = format!("{thread}-{}", scene.turns.load(Relaxed));
                    scene.post(&event(&id, "t"), &vec![b'x'; 100_000]);
                },
            )
        },
        Attack {
            answer: Answer::Hang,
            sinks: hanging_sinks(),
            ..attack(
                "1,000 Triggers whose Sinks hang",
                |_| hanging(),
                2,
                |scene, _| {
                    scene.post(&event("1", "t"), b"x");
                },
            )
        },
        Attack {
            sinks: ten_thousand(),
            ..attack(
                "10,000 Triggers, a hundred of which want each event",
                |_| one_in_a_hundred(),
                2,
                |scene, _| scene.post(&event("1", "t"), b"x"),
            )
        },
        attack(
            "events of 1 MB without pause",
            |_| trigger("bad", ""),
            2,
            |scene, _| scene.post(&event("1", "t"), &vec![b'x'; 1_000_000]),
        ),
        attack(
            "two Triggers that lead back to their broker",
            |broker| leading_to("one", broker, "") + &leading_to("two", broker, ""),
            1,
            |scene, _| {
                scene.post(&event("1", "t"), b"x");
                scene.pause(Duration::from_millis(500));
            },
        ),
        attack("expensive filters on 250 KB", expensive, 2, |scene, _| {
            let text = format!("\"{}\"", "ab".repeat(125_000));
            scene.post(
                &(event("1", "t") + "content-type: application/json\r\n"),
                text.as_bytes(),
            );
        }),
        attack(
            "posts of 250 KB without pause",
            |_| trigger("bad", ""),
            2,
            |scene, _| {
                scene.post(&event("1", "t"), &vec![b'x'; 250_000]);
            },
        ),
        attack(
            "60 Triggers of 970 KB, applied again and again",
            |_| String::new(),
            1,
            |scene, _| {
                let count = if is_long() { 60 } else { 2 };
                let bytes = if is_long() { 970_000 } else { 120_000 };
                let turn = scene.turns.load(Relaxed);
                let large: String = (0..count)
                    .map(|n| of_bytes(&format!("large-{turn}-{n}"), bytes))
                    .collect();
                scene.router.change(&[NEIGHBOUR, &large].concat());
                scene.pause(Duration::from_secs(2));
            },
        ),
        attack(
            "large heads over HTTP/1",
            |_| String::new(),
            2,
            |scene, _| {
                let large = format!("{HEAD}{EVENT}ce-large: {}", "x".repeat(250 * 1024));
                let connections: Vec<_> = (0..100)
                    .map(|_| {
                        let mut stream = connect_from(ATTACKER, scene.ingress());
                        let _ = stream.write_all(large.as_bytes());
                        stream
                    })
                    .collect();
                scene.pause(Duration::from_millis(300));
                drop(connections);
            },
        ),
        attack(
            "heads over HTTP/2 that grow when they are decoded",
            |_| String::new(),
            2,
            |scene, _| {
                let connections: Vec<_> = (0..8)
                    .map(|_| {
                        let mut stream = http2_on(connect_from(ATTACKER, scene.ingress()));
                        let sent: Vec<u8> = (0..100)
                            .flat_map(|number| {
                                frame(HEADERS, END_HEADERS, 2 * number + 1, &indexed(number == 0, 7500))
                            })
                            .collect();
                        let _ = stream.write_all(&sent);
                        stream
                    })
                    .collect();
                connections.iter().for_each(is_read);
            },
        ),
        attack(
            "batches of 1 MiB of small events",
            |_| trigger("bad", ""),
            8,
            |scene, _| {
                scene.post(
                    "content-type: application/cloudevents-batch+json\r\n",
                    batch(17_000).as_bytes(),
                );
            },
        ),
        Attack {
            answer: reply,
            ..attack(
                "a Sink that answers with 4,000 events",
                |_| asking("bad", "concurrency: 32"),
                2,
                |scene, _| {
                    scene.post(&event("1", "question"), b"x");
                },
            )
        },
        attack(
            "scrapes at many Triggers",
            |_| many_triggers(),
            20,
            |scene, _| {
                let scrape = b"GET /metrics HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n";
                ask(ATTACKER, scene.router.process.address("admin"), scrape);
            },
        ),
        attack(
            "bodies that stall",
            |_| String::new(),
            64,
            |scene, _| {
                let mut stream = connect_from(ATTACKER, scene.ingress());
                let _ = stream.write_all(request("shop", 1_000_000).as_bytes());
                let _ = stream.write_all(&vec![b'x'; 999_999]);
                scene.pause(Duration::from_secs(60));
            },
        ),
        attack(
            "idle connections",
            |_| String::new(),
            1,
            |scene, _| {
                let count = if is_long() { 4200 } else { 400 };
                let connections: Vec<_> = (0..count)
                    .map(|_| connect_from(ATTACKER, scene.ingress()))
                    .collect();
                scene.pause(Duration::from_secs(5));
                drop(connections);
            },
        ),
        attack(
            "brokers that come and go",
            |_| String::new(),
            2,
            |scene, thread| {
                let turn = scene.turns.load(Relaxed);
                if thread == 0 {
                    let manifests: String = (0..50).map(|n| of_broker(&format!("b{turn}-{n}"))).collect();
                    scene.router.change(&[NEIGHBOUR, &manifests].concat());
                    scene.pause(Duration::from_millis(500));
                } else {
                    let broker = format!("/shop/b{}-{} ", turn.saturating_sub(turn % 50), turn % 50);
                    let head = HEAD.replace("/shop/default ", &broker);
                    let event = format!("{head}connection: close\r\n{EVENT}content-length: 0\r\n\r\n");
                    ask(ATTACKER, scene.ingress(), event.as_bytes());
                }
            },
        ),
        Attack {
            answer: status(400),
            ..attack(
                "dead letters that are redriven again and again",
                |_| trigger("bad", ""),
                4,
                |scene, thread| {
                    if thread > 0 {
                        return scene.post(&event("1", "t"), b"x");
                    }
                    let redrive = format!(
                        "POST /v1/dead-letters/shop/default/redrive HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                         authorization: {}\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}",
                        scene.router.operator()
                    );
                    let admin = scene.router.process.address("admin");
                    ask([127, 0, 0, 1], admin, redrive.as_bytes());
                },
            )
        },
    ]
}

/// The same load on the machine, without a request to the router: what of the figures is the machine's.
fn controls() -> Vec<Attack> {
    let control = |name, threads, turn| Attack {
        name,
        arguments: &[],
        answer: status(204),
        sinks: 0,
        manifests: |_| trigger("bad", ""),
        threads,
        turn,
    };
    vec![
        control("control: two threads that compute", 2, |_, _| {
            let until = Instant::now() + Duration::from_millis(20);
            while Instant::now() < until {
                std::hint::black_box(batch(10));
            }
        }),
        control(
            "control: 16 threads that compute for half of the time",
            16,
            |scene, _| {
                let until = Instant::now() + Duration::from_millis(5);
                while Instant::now() < until {
                    std::hint::black_box(batch(10));
                }
                scene.pause(Duration::from_millis(5));
            },
        ),
        control("control: writes of 1 MiB to the same disk", 2, |_, thread| {
            let path = std::env::temp_dir().join(format!("weir-control-{}-{thread}", std::process::id()));
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(&vec![b'x'; 1 << 20]).unwrap();
            file.sync_all().unwrap();
            std::fs::remove_file(path).unwrap();
        }),
    ]
}

/// The one that needs a nameserver that never answers.
fn unanswered() -> Attack {
    Attack {
        name: "names that nobody resolves",
        arguments: &[],
        answer: status(204),
        sinks: 0,
        manifests: |_| unresolvable(),
        threads: 2,
        turn: |scene, thread| {
            let id = format!("{thread}-{}", scene.turns.load(Relaxed));
            scene.post(&event(&id, "t"), b"x");
        },
    }
}

fn expensive(_broker: &str) -> String {
    let costly = five("event.data.matches('[ab]*a[ab]{500}c0')");
    (0..8)
        .map(|n| filtered(&format!("costly-{n}"), &costly))
        .collect()
}

fn many_triggers() -> String {
    let count = if is_long() { 1000 } else { 100 };
    let unwanted = json!([{"exact": {"type": "unwanted"}}]);
    (0..count)
        .map(|n| filtered(&format!("t{n}"), &unwanted))
        .collect()
}

fn hanging_sinks() -> u32 {
    if is_long() { 1000 } else { 100 }
}

fn hanging() -> String {
    (0..hanging_sinks())
        .map(|n| trigger(&format!("t{n}"), ""))
        .collect()
}

fn ten_thousand() -> u32 {
    if is_long() { 10_000 } else { 300 }
}

fn one_in_a_hundred() -> String {
    let wanted = |n: u32| match n % 100 {
        0 => "t",
        _ => "unwanted",
    };
    (0..ten_thousand())
        .map(|n| filtered(&format!("t{n}"), &json!([{"exact": {"type": wanted(n)}}])))
        .collect()
}

fn unresolvable() -> String {
    (0..100)
        .map(|n| leading_to(&format!("t{n}"), &format!("http://name-{n}.test/"), ""))
        .collect()
}

fn of_broker(broker: &str) -> String {
    leading_to(broker, "http://127.0.0.1:9/", "").replace("spec:\n", &format!("spec:\n  broker: {broker}\n"))
}

#[test]
fn a_namespace_that_does_its_worst_leaves_others_alone() {
    let only = std::env::var("WEIR_ATTACK").unwrap_or_default();
    let mut table = vec![
        "| what one namespace does | p50 alone, ms | p99 alone | p50 beside it | p99 beside it | p99 by p99 | MiB |".to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    let controls = if is_long() { controls() } else { Vec::new() };
    let named = attacks().into_iter().chain(controls);
    for attack in &named
        .filter(|attack| attack.name.contains(&only))
        .collect::<Vec<_>>()
    {
        table.push(measure(attack, None));
    }
    match Nameserver::silent() {
        Ok(nameserver) if unanswered().name.contains(&only) => {
            table.push(measure(&unanswered(), Some(&nameserver)));
        }
        Ok(_) => {}
        Err(reason) => table.push(format!("skipped: {}: {reason}", unanswered().name)),
    }
    eprintln!("{}", table.join("\n"));
}
