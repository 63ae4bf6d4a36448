//! How fast Weir routes, side by side with the plain limit: a minimal proxy to the same sink that keeps nothing.
//!
//! `make bench` runs it. Everything is a process of its own on loopback: this one makes the load, others are the
//! sink, the proxy and Weir. `WEIR_BENCH_EVENTS` sets the number of events of each run, `WEIR_BENCH_BACKLOG` that
//! of the backlog, and `WEIR_BENCH_BINARY` another `weir` to measure, such as one of an earlier commit.
//! `make bench-jetstream` and `make bench-scale` run it with the arguments `jetstream` and `scale`; see `jetstream.rs`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a bench ends by panicking and prints its results"
)]

mod jetstream;

use std::{
    convert::Infallible,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::TcpListener;

const CONNECTIONS: u64 = 64;
const BODY: usize = 1024;
const DEAD_SINK_PAIRS: usize = 5;
/// Events a second in the open loop, where a slow answer does not delay the next event.
const OPEN_LOOP_RATE: u64 = 1_000;

type HttpClient = Client<HttpConnector, Full<Bytes>>;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.get(1).map(String::as_str) {
        Some("sink") => {
            let millis = arguments.get(2).map_or(0, |millis| millis.parse().unwrap());
            runtime.block_on(sink(Duration::from_millis(millis)));
        }
        Some("proxy") => runtime.block_on(proxy(arguments[2].parse().unwrap())),
        _ if arguments.iter().any(|argument| argument == "jetstream") => {
            runtime.block_on(jetstream::compare());
        }
        _ if arguments.iter().any(|argument| argument == "scale") => {
            runtime.block_on(jetstream::scale());
        }
        _ => runtime.block_on(compare()),
    }
}

fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Serves on a free port, and says which on standard output.
async fn serve<F, R>(answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            // A client that goes away ends its connection.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn answer(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// Counts deliveries and their times since they were posted; `GET` gives and forgets them. Takes so long for each.
async fn sink(takes: Duration) {
    let times = Arc::new(Mutex::new(Vec::<u64>::new()));
    serve(move |request| {
        let times = times.clone();
        async move {
            if request.method() == http::Method::GET {
                if request.uri().path() == "/count" {
                    return answer(StatusCode::OK, times.lock().unwrap().len().to_string());
                }
                let mut times = std::mem::take(&mut *times.lock().unwrap());
                times.sort_unstable();
                let at = |share: f64| {
                    times
                        .get((times.len() as f64 * share) as usize)
                        .copied()
                        .unwrap_or_default()
                };
                return answer(
                    StatusCode::OK,
                    format!("{} {} {}", times.len(), at(0.5), at(0.99)),
                );
            }
            let sent: u64 = request.headers()["ce-sent"].to_str().unwrap().parse().unwrap();
            request.into_body().collect().await.unwrap();
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            times.lock().unwrap().push(now().saturating_sub(sent));
            answer(StatusCode::NO_CONTENT, String::new())
        }
    })
    .await;
}

/// The plain limit: passes each request on and its answer back.
async fn proxy(sink: SocketAddr) {
    let client = client();
    serve(move |request| {
        let client = client.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            parts.uri = format!("http://{sink}/").parse().unwrap();
            let body = body.collect().await.unwrap().to_bytes();
            let response = client
                .request(Request::from_parts(parts, Full::new(body)))
                .await
                .unwrap();
            answer(response.status(), String::new())
        }
    })
    .await;
}

/// A process of this bench or of Weir, ended when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Process {
    fn role(arguments: &[&str]) -> (Self, SocketAddr) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (Self(child), line.trim().parse().unwrap())
    }

    /// Weir on these manifests, with more arguments; gives where events are posted, and the admin port.
    fn weir(
        directory: &std::path::Path,
        services: &[String],
        more: &[String],
    ) -> (Self, SocketAddr, SocketAddr) {
        let binary = std::env::var("WEIR_BENCH_BINARY");
        let mut command = Command::new(binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_weir")));
        command.args(["run", directory.join("manifests").to_str().unwrap()]);
        command.arg(format!("--data={}", directory.join("data").display()));
        command.args(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"]);
        command.args(services.iter().map(|service| format!("--service={service}")));
        command.args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut ingress, mut admin) = (None, None);
        for line in lines.by_ref() {
            let line = line.unwrap();
            let address = || {
                line.split("address=")
                    .nth(1)
                    .map(|text| text.trim().parse().unwrap())
            };
            if line.contains("listener=\"ingress\"") {
                ingress = address();
            } else if line.contains("listener=\"admin\"") {
                admin = address();
            }
            if line.contains("routing configuration applied") {
                break;
            }
        }
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let says = "weir says where it listens";
        (Self(child), ingress.expect(says), admin.expect(says))
    }

    /// Processor time so far, and resident memory in KiB.
    fn usage(&self) -> (Duration, u64) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // User and system time, in hundredths of a second.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        (
            Duration::from_millis(ticks * 10),
            resident.split_whitespace().nth(1).unwrap().parse().unwrap(),
        )
    }
}

struct Figures {
    accepted: f64,
    delivered: f64,
    p50: Duration,
    p99: Duration,
    processor: f64,
    resident: u64,
}

async fn get(client: &HttpClient, uri: String) -> String {
    get_with(client, uri, HeaderMap::new()).await
}

async fn get_with(client: &HttpClient, uri: String, headers: HeaderMap) -> String {
    let mut request = Request::get(uri).body(Full::default()).unwrap();
    *request.headers_mut() = headers;
    let response = client.request(request).await.unwrap();
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Posts events over so many connections and waits until the sink has `fan_out` times as many.
async fn measure(
    process: &Process,
    target: &str,
    sink: SocketAddr,
    events: u64,
    fan_out: u64,
    connections: u64,
) -> Figures {
    let client = client();
    get(&client, format!("http://{sink}/times")).await;
    let (processor_before, _) = process.usage();
    let began = Instant::now();
    post_all(&client, &[target], events, connections).await;
    figures(process, &client, sink, events, fan_out, processor_before, began).await
}

/// Posts events over so many connections, which take turns in targets.
async fn post_all(client: &HttpClient, targets: &[&str], events: u64, connections: u64) {
    let (next, body) = (Arc::new(AtomicU64::new(0)), Bytes::from(vec![b'x'; BODY]));
    let targets = targets.iter().cycle();
    let posting: Vec<_> = (0..connections)
        .zip(targets)
        .map(|(_, target)| {
            let (client, next, body) = (client.clone(), next.clone(), body.clone());
            let target = (*target).to_owned();
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= events {
                        return;
                    }
                    post(&client, &target, number, now(), body.clone()).await;
                }
            })
        })
        .collect();
    for post in posting {
        post.await.unwrap();
    }
}

async fn post(client: &HttpClient, target: &str, number: u64, sent: u64, body: Bytes) {
    let request = Request::post(target)
        .header("ce-specversion", "1.0")
        .header("ce-id", number)
        .header("ce-source", "/bench")
        .header("ce-type", "wanted")
        .header("ce-sent", sent)
        .header("content-type", "text/plain")
        .body(Full::new(body))
        .unwrap();
    let response = client.request(request).await.unwrap();
    assert!(response.status().is_success(), "{}", response.status());
    response.into_body().collect().await.unwrap();
}

/// Waits until the sink has so many events.
async fn await_count(client: &HttpClient, sink: SocketAddr, expected: u64) {
    let counting = async {
        while get(client, format!("http://{sink}/count"))
            .await
            .parse::<u64>()
            .unwrap()
            < expected
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(600), counting).await;
    counted.expect("everything is delivered");
}

/// Waits for the deliveries of what was posted since `began`; all of it is accepted by now.
async fn figures(
    process: &Process,
    client: &HttpClient,
    sink: SocketAddr,
    events: u64,
    fan_out: u64,
    processor_before: Duration,
    began: Instant,
) -> Figures {
    let accepted = began.elapsed();
    await_count(client, sink, events * fan_out).await;
    let delivered = began.elapsed();
    let (processor, resident) = process.usage();
    let times = get(client, format!("http://{sink}/times")).await;
    let times: Vec<u64> = times.split(' ').map(|figure| figure.parse().unwrap()).collect();
    let rate = |took: Duration| events as f64 / took.as_secs_f64();
    Figures {
        accepted: rate(accepted),
        delivered: rate(delivered),
        p50: Duration::from_nanos(times[1]),
        p99: Duration::from_nanos(times[2]),
        processor: (processor - processor_before).as_secs_f64() * 100_000.0 / events as f64,
        resident,
    }
}

/// Posts events at a fixed rate, whatever the answers take; times count from when an event was to be posted.
async fn measure_open_loop(process: &Process, target: &str, sink: SocketAddr, events: u64) -> Figures {
    let client = client();
    get(&client, format!("http://{sink}/times")).await;
    let (processor_before, _) = process.usage();
    let (began, began_at) = (tokio::time::Instant::now(), now());
    let mut posting = tokio::task::JoinSet::new();
    for number in 0..events {
        let due = Duration::from_micros(number * 1_000_000 / OPEN_LOOP_RATE);
        tokio::time::sleep_until(began + due).await;
        let sent = began_at + u64::try_from(due.as_nanos()).unwrap();
        let (client, target) = (client.clone(), target.to_owned());
        posting
            .spawn(async move { post(&client, &target, number, sent, Bytes::from(vec![b'x'; BODY])).await });
    }
    posting.join_all().await;
    figures(
        process,
        &client,
        sink,
        events,
        1,
        processor_before,
        began.into_std(),
    )
    .await
}

fn trigger(name: &str, r#type: &str, service: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: bench}}\n\
         spec: {{filters: [{{exact: {{type: {type}}}}}], sink: {{service: {{name: {service}}}}}}}\n"
    )
}

/// A number from the environment.
fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Weir with these manifests in a fresh directory, where `live` is the sink and nobody listens at `dead`.
struct Weir {
    process: Process,
    target: String,
    admin: SocketAddr,
    directory: tempfile::TempDir,
}

impl Weir {
    fn start(manifests: &str, sink: SocketAddr) -> Self {
        Self::with(manifests, sink, &[])
    }

    /// With more arguments.
    fn with(manifests: &str, sink: SocketAddr, arguments: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        fs::write(directory.path().join("manifests/all.yaml"), manifests).unwrap();
        let services = [
            format!("bench/live=http://{sink}"),
            "bench/dead=http://127.0.0.1:1".to_owned(),
        ];
        let (process, address, admin) = Process::weir(directory.path(), &services, arguments);
        Self {
            process,
            target: format!("http://{address}/bench/default"),
            admin,
            directory,
        }
    }

    /// The header by which an operator authenticates.
    fn operator(&self) -> HeaderMap {
        let token = fs::read_to_string(self.directory.path().join("data/operator-token")).unwrap();
        let value = format!("Bearer {}", token.trim()).parse().unwrap();
        [(header::AUTHORIZATION, value)].into_iter().collect()
    }

    /// After a tenth as much to warm up.
    async fn measure(&self, sink: SocketAddr, events: u64, fan_out: u64) -> Figures {
        self.measure_over(sink, events, fan_out, CONNECTIONS).await
    }

    async fn measure_over(&self, sink: SocketAddr, events: u64, fan_out: u64, connections: u64) -> Figures {
        let (process, target) = (&self.process, &self.target);
        measure(process, target, sink, events / 10, fan_out, connections).await;
        measure(process, target, sink, events, fan_out, connections).await
    }
}

async fn compare() {
    let events = number("WEIR_BENCH_EVENTS", 50_000);
    let (_sink, sink) = Process::role(&["sink"]);
    println!("{events} events of {BODY} bytes in binary mode over {CONNECTIONS} connections\n");
    println!(
        "| run | accepted/s | delivered/s | of the limit | p50 | p99 | CPU s / 100,000 | resident MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let limit = limit(sink, events).await;
    let others = (0..99)
        .map(|n| trigger(&format!("other-{n}"), &format!("other.{n}"), "live"))
        .collect::<String>();
    let fan_out = (0..10)
        .map(|n| trigger(&format!("t-{n}"), "wanted", "live"))
        .collect::<String>();
    let runs = [
        ("1 Trigger", trigger("live", "wanted", "live"), 1),
        (
            "100 Triggers, 1 matches",
            trigger("live", "wanted", "live") + &others,
            1,
        ),
        ("fan-out 10", fan_out, 10),
    ];
    for (name, manifests, fan_out) in runs {
        let figures = Weir::start(&manifests, sink).measure(sink, events, fan_out).await;
        print(&figures, name, limit);
    }
    let weir = Weir::start(&trigger("live", "wanted", "live"), sink);
    measure_open_loop(&weir.process, &weir.target, sink, OPEN_LOOP_RATE).await;
    let figures = measure_open_loop(&weir.process, &weir.target, sink, 10 * OPEN_LOOP_RATE).await;
    print(&figures, "1 Trigger, open loop at 1,000 a second", limit);
    dead_sink(sink, events, limit).await;
    backlog(sink, number("WEIR_BENCH_BACKLOG", 1_000_000)).await;
}

/// Gives what the plain proxy delivers in a second.
async fn limit(sink: SocketAddr, events: u64) -> f64 {
    let (process, address) = Process::role(&["proxy", &sink.to_string()]);
    let target = format!("http://{address}/");
    measure(&process, &target, sink, events / 10, 1, CONNECTIONS).await;
    let limit = measure(&process, &target, sink, events, 1, CONNECTIONS).await;
    print(&limit, "plain proxy, keeps nothing", limit.delivered);
    let open = measure_open_loop(&process, &target, sink, 10 * OPEN_LOOP_RATE).await;
    print(&open, "plain proxy, open loop at 1,000 a second", limit.delivered);
    limit.delivered
}

/// A live Sink alone and beside a dead one, in turn, so that a change of the machine's speed touches both.
async fn dead_sink(sink: SocketAddr, events: u64, limit: f64) {
    let alone = trigger("live", "wanted", "live");
    let beside = alone.clone() + &trigger("dead", "wanted", "dead");
    let mut ratios = Vec::new();
    let mut last = None;
    for _ in 0..DEAD_SINK_PAIRS {
        let without = Weir::start(&alone, sink).measure(sink, events, 1).await;
        let with = Weir::start(&beside, sink).measure(sink, events, 1).await;
        ratios.push(with.delivered / without.delivered);
        last = Some(with);
    }
    print(&last.unwrap(), "1 live Sink beside 1 dead", limit);
    ratios.sort_by(f64::total_cmp);
    let all: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    println!(
        "\nlive beside dead, of live alone: median {:.2} of {DEAD_SINK_PAIRS} pairs ({})",
        ratios[ratios.len() / 2],
        all.join(", ")
    );
}

/// What a backlog at a dead Sink takes in memory, while the live Sink beside it gets everything.
async fn backlog(sink: SocketAddr, events: u64) {
    let manifests = trigger("live", "wanted", "live") + &trigger("dead", "wanted", "dead");
    let weir = Weir::start(&manifests, sink);
    let figures = measure(&weir.process, &weir.target, sink, events, 1, CONNECTIONS).await;
    println!(
        "backlog of {events} events at a dead Sink: {:.1} MiB resident, {:.0} events a second accepted and \
         delivered to a live one",
        mebibytes(figures.resident),
        figures.delivered
    );
}

fn mebibytes(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}

fn print(figures: &Figures, name: &str, limit: f64) {
    let Figures {
        accepted,
        delivered,
        p50,
        p99,
        processor,
        resident,
    } = figures;
    println!(
        "| {name} | {accepted:.0} | {delivered:.0} | {:.2} | {:.1} ms | {:.1} ms | {processor:.1} | {:.1} |",
        delivered / limit,
        p50.as_secs_f64() * 1000.0,
        p99.as_secs_f64() * 1000.0,
        mebibytes(*resident),
    );
}
