//! Sinks whose answers are large, many, or never end: the router's memory stays within its budget, and what they answer
//! is stored in the end.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{LocalRouter, Setup, is_long, mapped, trigger};
use crate::support::{Answer, Consumer, PATIENCE, Process, Received, eventually};

const MIB: u64 = 1024 * 1024;
/// What the router may hold with the budget of these tests.
const MEMORY: u64 = 256 * MIB;
const BUDGET: &str = "--memory-budget=128MiB";
const LONG: Duration = Duration::from_secs(240);

/// Looks at a process's memory until it is told to stop, and keeps the most that it saw.
struct Highest {
    stop: Arc<AtomicBool>,
    watch: thread::JoinHandle<()>,
    most: Arc<AtomicU64>,
}

impl Highest {
    fn of(process: &Process) -> Self {
        let path = format!("/proc/{}/status", process.id());
        let (stop, most) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, seen) = (stop.clone(), most.clone());
        let watch = thread::spawn(move || {
            while !stopped.load(Relaxed) {
                let status = std::fs::read_to_string(&path).unwrap_or_default();
                let held = status.lines().find_map(|line| {
                    let kibibytes = line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?;
                    kibibytes.trim().parse::<u64>().ok()
                });
                seen.fetch_max(held.unwrap_or(0) * 1024, Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, watch, most }
    }

    #[track_caller]
    fn end(self, of: &str) {
        self.stop.store(true, Relaxed);
        self.watch.join().unwrap();
        let most = self.most.load(Relaxed);
        eprintln!("{of}: the router held {} MiB at most", most / MIB);
        assert!(most < MEMORY, "{of}: the router held {} MiB", most / MIB);
    }
}

fn started(manifest: &str, sink: &Consumer, name: &str) -> LocalRouter {
    Setup::new(manifest, &[mapped(name, sink)])
        .argument(BUDGET)
        .start()
}

/// The text of a batch that is as large as a reply may be, of so many events of type `answer`.
pub(super) fn batch(events: usize) -> String {
    let event = r#"{"specversion":"1.0","id":"1","source":"a","type":"answer"}"#;
    let text = format!("[{}", vec![event; events].join(","));
    let padding = 1_048_576 - text.len() - 1;
    text + &" ".repeat(padding) + "]"
}

/// The manifest of a Trigger for events of type `question` alone.
pub(super) fn asking(name: &str, delivery: &str) -> String {
    trigger(name, delivery).replace("spec:\n", "spec:\n  filters: [{exact: {type: question}}]\n")
}

#[test]
fn large_batches_of_replies_fit_into_memory() {
    let replying = Consumer::start();
    let (storable, beyond) = (batch(4000), batch(17_000));
    replying.answer_by(move |request: &Received| {
        let is_even = request
            .header("ce-id")
            .is_some_and(|id| id.ends_with(['0', '2', '4', '6', '8']));
        Answer::status(200)
            .header("content-type", "application/cloudevents-batch+json")
            .body(if is_even { storable.clone() } else { beyond.clone() })
    });
    let router = started(&asking("replying", "concurrency: 32"), &replying, "replying");
    let highest = Highest::of(&router.process);
    let questions: u32 = if is_long() { 256 } else { 32 };
    for id in 0..questions {
        assert_eq!(router.post("question", &id.to_string(), &[]).status, 202);
    }
    eventually(LONG, || match router.accounting("replying")["delivered"] {
        delivered if delivered == u64::from(questions) => Ok(()),
        delivered => Err(format!("{delivered} are delivered")),
    });
    highest.end("batches of replies");
    let replies = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        router.metric(&["weir_trigger_replies_total", &outcome])
    };
    let half = u64::from(questions / 2);
    assert_eq!(replies("beyond_max_descendants"), Some(half));
    assert_eq!(replies("stored"), Some(half * 4000));
}

#[test]
fn large_replies_are_stored_a_few_at_a_time() {
    let replying = Consumer::start();
    replying.answer_by(|_| {
        Answer::status(200)
            .header("ce-specversion", "1.0")
            .header("ce-id", "reply")
            .header("ce-source", "/r")
            .header("ce-type", "answer")
            .body(vec![b'x'; 1_000_000])
    });
    let router = started(&asking("replying", "concurrency: 200"), &replying, "replying");
    let highest = Highest::of(&router.process);
    let questions = if is_long() { 1000 } else { 200 };
    assert_eq!(router.post_batch("question", 0..questions).status, 202);
    router.wait_until_all_are("replying", "delivered", questions as usize);
    highest.end("large replies");
    let replies = router.metric(&["weir_trigger_replies_total", "outcome=\"stored\""]);
    assert!(replies >= Some(questions.into()), "{replies:?}");
}

#[test]
fn replies_that_stall_at_the_last_byte_hold_little() {
    let stalls = if is_long() { 500 } else { 200 };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stalled = Arc::<AtomicU64>::default();
    let counted = stalled.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counted = counted.clone();
            thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                counted.fetch_add(1, Relaxed);
                let head = "HTTP/1.1 200 OK\r\nce-specversion: 1.0\r\nce-id: r\r\nce-source: /r\r\nce-type: answer\r\n\
                            content-length: 1000000\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&vec![b'x'; 999_999]);
                // Until the router gives up.
                let _ = stream.read(&mut request);
            });
        }
    });
    let well = Consumer::start();
    let stalling = trigger("stalling", &format!("concurrency: {stalls}, timeout: 20s"));
    let manifest = stalling + &trigger("well", "");
    let services = [format!("shop/stalling=http://{address}"), mapped("well", &well)];
    let router = Setup::new(&manifest, &services).argument(BUDGET).start();
    let highest = Highest::of(&router.process);
    assert_eq!(router.post_batch("t", 0..stalls).status, 202);
    well.wait_for(stalls as usize);
    eventually(LONG, || match stalled.load(Relaxed) {
        reached if reached >= 100 => Ok(()),
        reached => Err(format!("{reached} replies stall")),
    });
    // Those that have begun have sent what they will.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(router.post("t", "last", &[]).status, 202);
    well.wait_until(PATIENCE, |received| received.len() > stalls as usize);
    highest.end("stalled replies");
}
