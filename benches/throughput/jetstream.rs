//! Weir on three NATS servers, side by side with a plain publisher to the same servers, and with the embedded log.
//!
//! All servers and routers run on this machine, on one disk. `WEIR_NATS` is the folder with `nats-server`.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use async_nats::Client;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    BODY, Figures, Process, Weir, await_count, client, get, get_with, mebibytes, number, post_all, trigger,
};

/// Requests in flight.
const IN_FLIGHT: [u64; 2] = [64, 256];

/// Number of shards that routers divide, and so the maximum number of partitions.
const SHARDS: u16 = 24;

/// How often one router and three are compared, and with how many requests in flight.
const SCALE_PAIRS: usize = 3;
const SCALE_IN_FLIGHT: u64 = 192;

/// Three servers that sync messages before they acknowledge them.
struct Servers {
    processes: Vec<Process>,
    urls: String,
    _directory: tempfile::TempDir,
}

impl Servers {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ports, routes) = (free_ports(), free_ports());
        let all: Vec<_> = routes
            .iter()
            .map(|port| format!("nats-route://127.0.0.1:{port}"))
            .collect();
        let start = |number: usize| {
            let folder = directory.path().join(number.to_string());
            fs::create_dir(&folder).unwrap();
            let configuration = format!(
                "server_name: server-{number}\nlisten: \"127.0.0.1:{}\"\nmax_payload: 2MB\n\
                 jetstream {{ store_dir: {folder:?}, sync_interval: always, max_file: 8GB }}\n\
                 cluster {{ name: bench, listen: \"127.0.0.1:{}\", routes: {all:?} }}\n",
                ports[number], routes[number]
            );
            fs::write(folder.join("nats.conf"), configuration).unwrap();
            let server =
                Path::new(&std::env::var("WEIR_NATS").expect("WEIR_NATS is set")).join("nats-server");
            let mut command = Command::new(server);
            command.arg("--config").arg(folder.join("nats.conf"));
            Process(command.stderr(Stdio::null()).spawn().unwrap())
        };
        let urls: Vec<_> = ports
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        let servers = Self {
            processes: (0..3).map(start).collect(),
            urls: urls.join(","),
            _directory: directory,
        };
        servers.publisher().await;
        servers
    }

    /// A client of a new stream with three replicas. The stream can be created once the servers are ready.
    async fn publisher(&self) -> Client {
        let config = json!({"name": "plain", "subjects": ["plain.>"], "num_replicas": 3, "storage": "file"});
        let creating = async {
            loop {
                let urls: Vec<_> = self.urls.split(',').collect();
                if let Ok(client) = async_nats::connect(&urls[..]).await {
                    let request = client.request("$JS.API.STREAM.CREATE.plain", config.to_string().into());
                    let answer = request.await.map(|answer| answer.payload).unwrap_or_default();
                    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
                    if answer["config"]["name"] == "plain" {
                        return client;
                    }
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let created = tokio::time::timeout(Duration::from_secs(60), creating).await;
        created.expect("the servers are ready")
    }

    /// Processor time of all servers so far.
    fn processor(&self) -> Duration {
        self.processes.iter().map(|server| server.usage().0).sum()
    }

    fn arguments(&self, partitions: u16) -> Vec<String> {
        vec![
            "--log=jetstream".to_owned(),
            format!("--nats={}", self.urls),
            format!("--nats-partitions={partitions}"),
        ]
    }
}

fn free_ports() -> Vec<u16> {
    let listeners: Vec<_> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let ports = listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port());
    ports.collect()
}

pub(crate) async fn compare() {
    let events = number("WEIR_BENCH_EVENTS", 20_000);
    let (_sink, sink) = Process::role(&["sink"]);
    println!(
        "{events} events of {BODY} bytes; CPU of Weir and of the three servers in seconds for 100,000 events\n"
    );
    println!(
        "| run | in flight | accepted/s | of the publisher | delivered/s | p50 | p99 | CPU Weir | CPU servers | resident MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for in_flight in IN_FLIGHT {
        let (plain, processor) = publish(events, in_flight).await;
        println!("| plain publisher | {in_flight} | {plain:.0} | 1.00 | | | | | {processor:.1} | |");
        for (partitions, manifest, fan_out) in [
            (1, no_trigger(), 0),
            (1, one_trigger(), 1),
            (SHARDS, one_trigger(), 1),
        ] {
            let name = format!("JetStream, partitions: {partitions}, Triggers: {fan_out}");
            let servers = Servers::start().await;
            let weir = Weir::with(&manifest, sink, &servers.arguments(partitions));
            if fan_out > 0 {
                delivers(&weir).await;
            }
            let before = servers.processor();
            let figures = weir.measure_over(sink, events, fan_out, in_flight).await;
            // With the tenth of events that warms up.
            let processor = per_100_000(servers.processor() - before, events + events / 10);
            print(&name, in_flight, &figures, plain, &format!("{processor:.1}"));
        }
        let figures = Weir::start(&one_trigger(), sink)
            .measure_over(sink, events, 1, in_flight)
            .await;
        print("embedded", in_flight, &figures, plain, "");
    }
}

/// Lets one router and three accept and deliver as many events as they can, to a Sink that takes 20 ms for each. On a
/// small machine, `WEIR_BENCH_BINARY` has to limit the CPU time of each router, or else the machine is what limits them.
pub(crate) async fn scale() {
    let events = number("WEIR_BENCH_EVENTS", 20_000);
    let (_sink, sink) = Process::role(&["sink", "20"]);
    println!("\n| routers | delivered/s to a Sink that takes 20 ms |\n| --- | --- |");
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..SCALE_PAIRS {
        for (routers, rates) in [1, 3].into_iter().zip(&mut all) {
            let rate = deliveries_of(routers, sink, events).await;
            println!("| {routers} | {rate:.0} |");
            rates.push(rate);
        }
    }
    let [one, three] = all.map(|rates| rates.iter().sum::<f64>());
    println!("\nthree routers deliver {:.2} times as much as one", three / one);
}

/// Deliveries a second by so many routers, which share the partitions of one broker.
async fn deliveries_of(routers: u64, sink: SocketAddr, events: u64) -> f64 {
    let servers = Servers::start().await;
    let manifest = one_trigger().replace("spec: {", "spec: {delivery: {concurrency: 1024}, ");
    let routers: Vec<_> = (0..routers)
        .map(|_| Weir::with(&manifest, sink, &servers.arguments(SHARDS)))
        .collect();
    divided(&routers).await;
    let (client, began) = (client(), Instant::now());
    get(&client, format!("http://{sink}/times")).await;
    let targets: Vec<_> = routers.iter().map(|router| router.target.as_str()).collect();
    post_all(&client, &targets, events, SCALE_IN_FLIGHT).await;
    await_count(&client, sink, events).await;
    events as f64 / began.elapsed().as_secs_f64()
}

/// Waits until each router owns its part of the shards.
async fn divided(routers: &[Weir]) {
    let client = client();
    let part = format!("weir_router_shards {}", usize::from(SHARDS) / routers.len());
    let dividing = async {
        for router in routers {
            let uri = format!("http://{}/metrics", router.admin);
            while !get(&client, uri.clone()).await.lines().any(|line| line == part) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), dividing).await;
    waited.expect("the routers divide the shards");
}

/// Waits until the router delivers to its Trigger.
async fn delivers(weir: &Weir) {
    let delivering = async {
        let (client, uri) = (client(), format!("http://{}/v1/triggers", weir.admin));
        while !get_with(&client, uri.clone(), weir.operator())
            .await
            .contains("live")
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), delivering).await;
    waited.expect("the router takes its shards");
}

/// A Trigger that gets every event, also those that come before a router owns the shard of their partition.
fn one_trigger() -> String {
    trigger("live", "wanted", "live").replace("spec: {", "spec: {start: Earliest, ")
}

/// A Trigger of another broker, so that nobody reads the events.
fn no_trigger() -> String {
    one_trigger().replace("spec: {", "spec: {broker: other, ")
}

fn per_100_000(processor: Duration, events: u64) -> f64 {
    processor.as_secs_f64() * 100_000.0 / events as f64
}

/// Publishes messages with so many in flight; gives how many were acknowledged in a second, and the processor time of
/// the servers for 100,000.
async fn publish(events: u64, in_flight: u64) -> (f64, f64) {
    let servers = Servers::start().await;
    let client = servers.publisher().await;
    publish_some(&client, events / 10, in_flight).await;
    let (before, began) = (servers.processor(), Instant::now());
    publish_some(&client, events, in_flight).await;
    let took = began.elapsed();
    let processor = per_100_000(servers.processor() - before, events);
    (events as f64 / took.as_secs_f64(), processor)
}

async fn publish_some(client: &Client, events: u64, in_flight: u64) {
    let (next, payload) = (Arc::new(AtomicU64::new(0)), Bytes::from(vec![b'x'; BODY]));
    let publishing: Vec<_> = (0..in_flight)
        .map(|_| {
            let (client, next, payload) = (client.clone(), next.clone(), payload.clone());
            tokio::spawn(async move {
                while next.fetch_add(1, Relaxed) < events {
                    let answer = client.request("plain.events", payload.clone()).await.unwrap();
                    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
                    assert!(answer["seq"].is_u64(), "{answer}");
                }
            })
        })
        .collect();
    for publish in publishing {
        publish.await.unwrap();
    }
}

fn print(name: &str, in_flight: u64, figures: &Figures, plain: f64, servers: &str) {
    let Figures {
        accepted,
        delivered,
        p50,
        p99,
        processor,
        resident,
    } = figures;
    println!(
        "| {name} | {in_flight} | {accepted:.0} | {:.2} | {delivered:.0} | {:.1} ms | {:.1} ms | {processor:.1} | {servers} | {:.1} |",
        accepted / plain,
        p50.as_secs_f64() * 1000.0,
        p99.as_secs_f64() * 1000.0,
        mebibytes(*resident),
    );
}
