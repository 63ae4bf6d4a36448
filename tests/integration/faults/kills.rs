//! Kills: at random, and at every step of the event log's way to an acknowledgement.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{
    LocalRouter, Producers, Setup, all_arrive, check_order_by_key, kills, mapped, post_event, trigger,
};
use crate::support::{Consumer, PATIENCE, Scratch, eventually};

/// A Trigger in order by key beside one that is not, and a router that has both.
struct Pair {
    router: LocalRouter,
    any: Consumer,
    keyed: Consumer,
}

impl Pair {
    fn start(setup: impl FnOnce(Setup) -> Setup) -> Self {
        Self::start_with("", setup)
    }

    /// With further manifests.
    fn start_with(manifests: &str, setup: impl FnOnce(Setup) -> Setup) -> Self {
        let [any, keyed] = [(); 2].map(|()| Consumer::start());
        let manifests = trigger("any", "") + &trigger("keyed", "ordering: ByKey") + manifests;
        let services = [mapped("any", &any), mapped("keyed", &keyed)];
        Self {
            router: setup(Setup::new(&manifests, &services)).launch(),
            any,
            keyed,
        }
    }

    /// Waits until everything that was acknowledged has arrived at both, checks order and accounting, and tells.
    #[track_caller]
    fn check(&self, what: &str, kills: u32, producers: Producers) {
        let acknowledged = producers.finish();
        let mut repeats = 0;
        for (name, consumer) in [("any", &self.any), ("keyed", &self.keyed)] {
            let mut arrivals = all_arrive(consumer, &acknowledged);
            // What was stored and not acknowledged arrives as well, some of it perhaps only now.
            eventually(PATIENCE, || {
                arrivals.catch_up(consumer);
                self.router.all_are(name, "delivered", arrivals.events())
            });
            repeats += arrivals.repeats();
        }
        check_order_by_key(&self.keyed);
        eprintln!(
            "{what}: {kills} kills, {} acknowledged, 0 lost, {repeats} repeats",
            acknowledged.len()
        );
    }
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
    let mut pair = Pair::start(|setup| setup);
    pair.router.wait_until_ready();
    let producers = Producers::start(&pair.router.url());
    let mut killed = Vec::new();
    for round in 0..kills() {
        // Some way into the work, at another moment each time.
        producers.wait_for_more(20 + (round as usize * 37) % 150);
        killed.push(Instant::now());
        pair.router.kill_and_restart();
    }
    pair.check("at random", kills(), producers);
    for consumer in [&pair.any, &pair.keyed] {
        repeats_are_of_what_was_delivered_shortly_before_a_kill(consumer, &killed);
    }
}

/// The manifest of a broker that recognizes repeats.
const DEDUPLICATION: &str = "---\napiVersion: weir.dev/v1alpha1\nkind: Broker\n\
                             metadata: {name: default, namespace: shop}\nspec: {deduplication: {}}\n";

/// Producers that send each event until it is acknowledged, and then once more, perhaps to the next process.
fn insistent_producers(url: &str) -> Producers {
    let url = url.to_owned();
    Producers::by(4, move |key, id| {
        let began = Instant::now();
        let mut acknowledged = 0;
        loop {
            let answer = post_event(&url, id, key, bytes::Bytes::from_static(b"data"));
            match &answer {
                Ok(answered) if answered.status == 202 => acknowledged += 1,
                Ok(answered) => assert_ne!(answered.status, 422, "{}", answered.text()),
                Err(_) => {}
            }
            if acknowledged == 2 || began.elapsed() > PATIENCE {
                return answer;
            }
            if answer.is_err() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    })
}

/// The accounting of the Triggers shows an event that is stored twice. Its records are trimmed meanwhile.
#[test]
fn what_is_sent_again_is_stored_once_when_the_router_is_killed_again_and_again() {
    let mut pair = Pair::start_with(DEDUPLICATION, |setup| setup.argument("--retention-size=1KiB"));
    pair.router.wait_until_ready();
    let producers = insistent_producers(&pair.router.url());
    for round in 0..kills() {
        producers.wait_for_more(20 + (round as usize * 37) % 150);
        pair.router.kill_and_restart();
    }
    pair.check("sent again, at random", kills(), producers);
}

/// Records of the broker's events in the log of a router that has ended.
fn records_in(data: &Path) -> String {
    let weir = env!("CARGO_BIN_EXE_weir");
    let checked = Command::new(weir)
        .args(["log", "check"])
        .arg(data)
        .output()
        .unwrap();
    let report = String::from_utf8(checked.stdout).unwrap();
    let mut lines = report.lines();
    let of_broker = lines.find_map(|line| line.strip_prefix("shop/default: "));
    of_broker.unwrap_or(&report).to_owned()
}

#[test]
fn each_event_is_in_the_log_once_when_the_router_is_killed_again_and_again() {
    let data = Scratch::new();
    let mut pair = Pair::start_with(DEDUPLICATION, |setup| setup.data(data.path()));
    pair.router.wait_until_ready();
    let producers = insistent_producers(&pair.router.url());
    for round in 0..kills() {
        producers.wait_for_more(20 + (round as usize * 37) % 150);
        pair.router.kill_and_restart();
    }
    let acknowledged = producers.finish();
    drop(pair);
    let events = acknowledged.len();
    let expected = format!("{events} records at offsets 0 to {}, whole", events - 1);
    assert_eq!(records_in(data.path()), expected, "as many as were acknowledged");
    eprintln!("{} kills, {events} events, each in the log once", kills());
}

/// What needs a binary with fail points; `src/log/embedded/fail_points.rs` names them.
#[cfg(feature = "failpoints")]
mod at_fail_points {
    use super::*;
    use crate::faults::is_long;

    /// How often a router is killed at one point.
    fn kills_each() -> u32 {
        if is_long() { kills() / 20 } else { 2 }
    }

    /// Kills a router under load at a point, again and again, each time at another pass below `passes`.
    fn survives_kills_at(point: &str, kills: u32, passes: u32, data: usize) {
        let producers = |url: &str| Producers::with_data(url, data);
        survives_with("", point, kills, passes, producers);
    }

    fn survives_with(
        manifests: &str,
        point: &str,
        kills: u32,
        passes: u32,
        producers: impl FnOnce(&str) -> Producers,
    ) {
        let actions = |kill: u32| {
            let action = ["late kill", "kill"][kill as usize % 2];
            format!("{point}={}*off->return({action})", fastrand::u32(0..passes))
        };
        let mut pair = Pair::start_with(manifests, |setup| {
            setup.argument("--retention-size=1KiB").fail_points(&actions(0))
        });
        let producers = producers(&pair.router.url());
        for kill in 0..kills {
            if kill > 0 {
                pair.router.relaunch(&actions(kill));
            }
            pair.router.wait_until_killed();
        }
        pair.router.restart();
        // It works as if nothing had been.
        producers.wait_for_more(50);
        pair.check(point, kills, producers);
    }

    fn each_on_its_own(points: &[&'static str], at_once: usize, survives: impl Fn(&str) + Sync) {
        let queue = std::sync::Mutex::new(points.iter());
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some(point) = { queue.lock().unwrap().next() } {
                        survives(point);
                    }
                });
            }
        });
    }

    #[test]
    fn no_acknowledged_event_is_lost_when_the_router_dies_on_the_way_to_an_acknowledgement() {
        let points = [
            "log-before-write",
            "log-after-write",
            "log-before-fsync",
            "log-after-fsync",
            "log-before-acknowledgement",
            "log-before-cursor-save",
            "log-after-cursor-save",
        ];
        each_on_its_own(&points, 2, |point| {
            survives_kills_at(point, kills_each(), 60, 512);
        });
    }

    #[test]
    fn what_is_sent_again_is_stored_once_when_the_router_dies_on_the_way_to_an_acknowledgement() {
        let points = [
            "log-before-write",
            "log-after-write",
            "log-after-fsync",
            "log-before-acknowledgement",
        ];
        each_on_its_own(&points, 2, |point| {
            survives_with(DEDUPLICATION, point, kills_each(), 60, insistent_producers);
        });
    }

    /// The log is trimmed every ten seconds, so these take longer; they wait side by side.
    #[test]
    fn no_acknowledged_event_is_lost_when_the_router_dies_while_it_trims() {
        let points = [
            "log-before-trim",
            "log-after-trim",
            "log-before-drop",
            "log-after-drop",
        ];
        let (kills, passes) = if is_long() { (kills_each(), 2) } else { (1, 1) };
        each_on_its_own(&points, points.len(), |point| {
            survives_kills_at(point, kills, passes, 16 * 1024);
        });
    }
}
