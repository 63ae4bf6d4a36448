//! What must hold whatever happens to the router: no acknowledged event is lost, and the accounting adds up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Answer, Consumer, PATIENCE, Process, Received, ReservedPort, Scratch, eventually, get, try_post,
};

/// How often the router is killed: `WEIR_KILLS`, else a few times.
fn kills() -> u32 {
    std::env::var("WEIR_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(6)
}

struct Router {
    process: Process,
    port: ReservedPort,
    manifests: Scratch,
    data: Scratch,
    services: Vec<String>,
}

impl Router {
    fn start(manifests: &str, services: Vec<String>) -> Self {
        let (port, scratch, data) = (ReservedPort::new(), Scratch::new(), Scratch::new());
        scratch.write("manifests.yaml", manifests);
        let process = Self::launch(&port, &scratch, &data, &services);
        Self {
            process,
            port,
            manifests: scratch,
            data,
            services,
        }
    }

    fn launch(port: &ReservedPort, manifests: &Scratch, data: &Scratch, services: &[String]) -> Process {
        let listen = port.address().to_string();
        let path = |scratch: &Scratch| scratch.path().to_str().unwrap().to_owned();
        let mut arguments = vec![
            "run".to_owned(),
            path(manifests),
            format!("--data={}", path(data)),
        ];
        arguments.extend([format!("--listen={listen}"), "--admin=127.0.0.1:0".to_owned()]);
        arguments.extend(services.iter().map(|service| format!("--service={service}")));
        let process = Process::weir(arguments).quiet().start();
        process.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
        process
    }

    fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = Self::launch(&self.port, &self.manifests, &self.data, &self.services);
    }

    /// The figures of a Trigger by name: `matched`, `delivered`, `expired`, `dead_lettered`, `dropped`, `pending`.
    fn accounting(&self, trigger: &str) -> BTreeMap<String, u64> {
        let text = get(&format!("http://{}/metrics", self.process.address("admin"))).text();
        let mut figures = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| line.contains(&format!("trigger=\"{trigger}\"")))
        {
            let value = line.rsplit(' ').next().unwrap().parse().unwrap();
            if line.starts_with("weir_trigger_events_matched_total") {
                figures.insert("matched".to_owned(), value);
            } else if line.starts_with("weir_trigger_events_pending") {
                figures.insert("pending".to_owned(), value);
            } else if line.starts_with("weir_trigger_events_settled_total") {
                let outcome = line
                    .split("outcome=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap();
                figures.insert(outcome.to_owned(), value);
            }
        }
        figures
    }

    /// At rest, matched = delivered + expired + dead-lettered + dropped + pending.
    fn check_accounting(&self, trigger: &str) -> BTreeMap<String, u64> {
        let figures = self.accounting(trigger);
        let ended: u64 = figures
            .iter()
            .filter(|(name, _)| *name != "matched")
            .map(|(_, value)| value)
            .sum();
        assert_eq!(figures["matched"], ended, "{trigger}: {figures:?}");
        figures
    }
}

fn trigger(name: &str, service: &str) -> String {
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: {service}}}}}\n  delivery: {{backoffDelay: 20ms, backoffMax: 200ms}}\n"
    )
}

fn mapped(service: &str, consumer: &Consumer) -> String {
    format!("shop/{service}={}", consumer.url().trim_end_matches('/'))
}

/// Posts without pause from several threads until told to stop, and keeps the ids that were acknowledged.
struct Producers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeSet<String>>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Producers {
    fn start(url: &str) -> Self {
        let (stop, acknowledged) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<BTreeSet<String>>>::default(),
        );
        let threads = (0..4)
            .map(|thread| {
                let (stop, acknowledged, url) = (stop.clone(), acknowledged.clone(), url.to_owned());
                thread::spawn(move || {
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let id = format!("{thread}-{number}");
                        let headers = [
                            ("ce-specversion", "1.0"),
                            ("ce-source", "/p"),
                            ("ce-type", "t"),
                            ("ce-id", id.as_str()),
                        ];
                        match try_post(&url, &headers, "x".repeat(512)) {
                            Ok(response) if response.status == 202 => {
                                acknowledged.lock().unwrap().insert(id);
                            }
                            // The router is down; it is back in a moment.
                            _ => thread::sleep(Duration::from_millis(5)),
                        }
                    }
                })
            })
            .collect();
        Self {
            stop,
            acknowledged,
            threads,
        }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    fn finish(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

fn delivered(consumer: &Consumer) -> Vec<String> {
    consumer
        .received()
        .iter()
        .map(|message| message.header("ce-id").unwrap().to_owned())
        .collect()
}

/// Waits until a consumer has every acknowledged event; gives how many deliveries were repeats.
fn all_arrive(consumer: &Consumer, acknowledged: &BTreeSet<String>) -> usize {
    eventually(Duration::from_secs(60), || {
        let arrived: BTreeSet<_> = delivered(consumer).into_iter().collect();
        match acknowledged.iter().find(|id| !arrived.contains(*id)) {
            None => Ok(()),
            Some(id) => Err(format!(
                "{} of {} arrived; {id} did not",
                arrived.len(),
                acknowledged.len()
            )),
        }
    });
    let all = delivered(consumer);
    all.len() - all.iter().collect::<BTreeSet<_>>().len()
}

/// Progress is saved many times a second, so what is delivered again is what was delivered in the last moments.
fn repeats_are_of_what_was_delivered_shortly_before_a_kill(consumer: &Consumer, killed: &[Instant]) {
    let mut last: BTreeMap<String, Instant> = BTreeMap::new();
    for message in consumer.received() {
        let id = message.header("ce-id").unwrap().to_owned();
        if let Some(before) = last.insert(id.clone(), message.at) {
            let shortly = Duration::from_secs(2);
            let near = killed
                .iter()
                .any(|&kill| before <= kill + shortly && before + shortly >= kill && message.at >= kill);
            assert!(
                near,
                "{id} was delivered {:?} after it had been, without a kill",
                message.at - before
            );
        }
    }
}

#[test]
fn no_acknowledged_event_is_lost_when_the_router_is_killed_again_and_again() {
    let [first, second] = [(); 2].map(|()| Consumer::start());
    let manifests = trigger("first", "first") + &trigger("second", "second");
    let mut router = Router::start(
        &manifests,
        vec![mapped("first", &first), mapped("second", &second)],
    );
    let producers = Producers::start(&format!("http://{}/shop/default", router.port.address()));
    let mut killed = Vec::new();
    for round in 0..kills() {
        let (before, began) = (producers.count(), Instant::now());
        // Some way into the work, at another moment each time.
        let enough = 20 + (round as usize * 37) % 150;
        eventually(PATIENCE, || {
            let count = producers.count() - before;
            if count >= enough {
                Ok(())
            } else {
                Err(format!("{count} in {:?}", began.elapsed()))
            }
        });
        killed.push(Instant::now());
        router.kill_and_restart();
    }
    let acknowledged = producers.finish();
    let repeats = all_arrive(&first, &acknowledged) + all_arrive(&second, &acknowledged);
    eprintln!(
        "{} kills: {} acknowledged, 0 lost, {repeats} repeats",
        kills(),
        acknowledged.len()
    );
    eventually(PATIENCE, || {
        let pending = router.accounting("first")["pending"] + router.accounting("second")["pending"];
        if pending == 0 {
            Ok(())
        } else {
            Err(format!("{pending} pending"))
        }
    });
    for name in ["first", "second"] {
        router.check_accounting(name);
    }
    for consumer in [&first, &second] {
        repeats_are_of_what_was_delivered_shortly_before_a_kill(consumer, &killed);
    }
}

#[test]
fn a_sink_that_hangs_or_resets_holds_nobody_else_and_catches_up() {
    let [hanging, resetting, live] = [(); 3].map(|()| Consumer::start());
    hanging.answer(Answer::Hang);
    resetting.answer(Answer::Reset);
    let manifests = trigger("hanging", "hanging").replace("backoffDelay", "timeout: 500ms, backoffDelay")
        + &trigger("resetting", "resetting")
        + &trigger("live", "live");
    let services = vec![
        mapped("hanging", &hanging),
        mapped("resetting", &resetting),
        mapped("live", &live),
    ];
    let router = Router::start(&manifests, services);
    let producers = Producers::start(&format!("http://{}/shop/default", router.port.address()));
    // More than a Trigger's window, so that the dead ones fall behind the shared reader.
    eventually(Duration::from_secs(60), || {
        let count = producers.count();
        if count >= 2500 {
            Ok(())
        } else {
            Err(count.to_string())
        }
    });
    let acknowledged = producers.finish();
    assert_eq!(all_arrive(&live, &acknowledged), 0);
    for name in ["hanging", "resetting"] {
        let figures = router.check_accounting(name);
        assert_eq!(figures["delivered"], 0);
        assert!(figures["pending"] <= 1024, "the window is bounded: {figures:?}");
    }
    hanging.answer(Answer::status(204));
    resetting.answer(Answer::status(200));
    all_arrive(&hanging, &acknowledged);
    all_arrive(&resetting, &acknowledged);
}

/// Posts events one after another, with a `partitionkey` each.
fn post_keyed(router: &Router, keys: &[&str]) {
    let url = format!("http://{}/shop/default", router.port.address());
    for (number, key) in keys.iter().enumerate() {
        let id = number.to_string();
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-source", "/p"),
            ("ce-type", "t"),
            ("ce-id", id.as_str()),
            ("ce-partitionkey", key),
        ];
        assert_eq!(try_post(&url, &headers, "").unwrap().status, 202);
    }
}

fn key_of(message: &Received) -> &str {
    message.header("ce-partitionkey").unwrap()
}

#[test]
fn events_of_one_key_stay_in_order_and_a_failing_key_holds_only_itself() {
    let consumer = Consumer::start();
    let manifest = trigger("keyed", "keyed").replace("backoffDelay", "ordering: ByKey, backoffDelay");
    let mut router = Router::start(&manifest, vec![mapped("keyed", &consumer)]);
    // Key a fails until further notice; b and c go on.
    consumer.answer_by(|message| Answer::status(if key_of(message) == "a" { 503 } else { 204 }));
    let keys: Vec<&str> = ["a", "b", "c"].into_iter().cycle().take(60).collect();
    post_keyed(&router, &keys);
    consumer.wait_until(PATIENCE, |received| {
        received.iter().filter(|message| key_of(message) != "a").count() >= 40
    });
    let ids = |key: &str| -> Vec<u32> {
        let of_key = |message: &&Received| key_of(message) == key;
        consumer
            .received()
            .iter()
            .filter(of_key)
            .map(|message| message.header("ce-id").unwrap().parse().unwrap())
            .collect()
    };
    for (key, first) in [("b", 1), ("c", 2)] {
        assert_eq!(ids(key), (0..20).map(|n| first + 3 * n).collect::<Vec<_>>());
    }
    assert!(
        ids("a").iter().all(|&id| id == 0),
        "the first of its key holds the others: {:?}",
        ids("a")
    );
    // Also across a crash.
    router.kill_and_restart();
    consumer.answer(Answer::status(204));
    consumer.wait_until(PATIENCE, |received| {
        received
            .iter()
            .any(|message| message.header("ce-id") == Some("57"))
    });
    let mut order = ids("a");
    order.dedup();
    assert_eq!(order, (0..20).map(|n| 3 * n).collect::<Vec<_>>());
    router.check_accounting("keyed");
}

#[test]
fn a_sink_gets_no_more_at_once_and_in_a_time_than_its_trigger_says() {
    let [single, limited] = [(); 2].map(|()| Consumer::start());
    single.answer(Answer::status(204).after(Duration::from_millis(5)));
    let manifests = trigger("single", "single").replace("backoffDelay", "concurrency: 1, backoffDelay")
        + &trigger("limited", "limited").replace(
            "backoffDelay",
            "rateLimit: {perSecond: 20, burst: 1}, backoffDelay",
        );
    let router = Router::start(
        &manifests,
        vec![mapped("single", &single), mapped("limited", &limited)],
    );
    post_keyed(&router, &["k"; 31]);
    single.wait_for(31);
    assert_eq!(single.most_in_flight(), 1);
    let received = limited.wait_for(31);
    let took = received[30].at - received[0].at;
    assert!(
        took >= Duration::from_millis(1400),
        "30 more at 20 a second took {took:?}"
    );
}
