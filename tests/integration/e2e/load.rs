//! Nothing is lost while everything is replaced.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::installation::{Installation, LONG, SYSTEM, event_id, image_values, project, say};
use crate::support::{Kubectl, Process, eventually};

/// Reads the logs of all pods of an app, also of those that end: each from its beginning, while it is there.
pub(super) struct Followed {
    pods: Mutex<BTreeMap<String, Process>>,
    ended: AtomicBool,
}

impl Followed {
    pub(super) fn new() -> Self {
        Self {
            pods: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// Looks for new pods until told to stop.
    pub(super) fn follow(&self, installation: &Installation, kubectl: &Kubectl, app: &str) {
        let selector = format!("--selector=app={app}");
        let names =
            "--output=jsonpath={range .items[?(@.status.phase=='Running')]}{.metadata.name}{'\\n'}{end}";
        while !self.ended.load(Ordering::Relaxed) {
            let running = kubectl
                .try_run(["get", "pods", &selector, names])
                .unwrap_or_default();
            for pod in running.lines() {
                let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
                pods.entry(pod.to_owned()).or_insert_with(|| {
                    let arguments = ["logs", "--namespace", kubectl.namespace(), "--follow", pod];
                    installation.cluster.launch_kubectl(arguments).start()
                });
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Stops looking for new pods when dropped, also when the test fails meanwhile.
    pub(super) fn end_on_drop(&self) -> EndOnDrop<'_> {
        EndOnDrop(&self.ended)
    }

    /// How often each event was delivered, by its ID.
    fn delivered(&self) -> Result<BTreeMap<String, usize>, String> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut delivered = BTreeMap::new();
        for line in pods.values().flat_map(Process::lines) {
            if let Some(id) = event_id(&line) {
                *delivered.entry(id?).or_default() += 1;
            }
        }
        Ok(delivered)
    }
}

pub(super) struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn everything_may_be_replaced_under_load() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let kubectl = installation.consumer("load", 2, "{}");
    let followed = Followed::new();
    thread::scope(|scope| {
        scope.spawn(|| followed.follow(installation, &kubectl, "consumer"));
        let _ends = followed.end_on_drop();
        let producers = installation.producers("load");
        for (what, disrupt) in disruptions(installation, &kubectl) {
            producers.wait_for_more(20);
            let before = producers.count();
            disrupt().unwrap_or_else(|error| panic!("{what}: {error}"));
            producers.wait_for_more(20);
            say(&format!(
                "{what}: {} events acknowledged around it",
                producers.count() - before
            ));
        }
        let acknowledged = producers.finish();
        let repeated = eventually(LONG, || all_delivered(&followed, &acknowledged));
        say(&format!(
            "everything replaced under load: {} acknowledged, 0 lost, {repeated} repeated",
            acknowledged.len()
        ));
    });
}

type Disruption<'a> = (&'static str, Box<dyn Fn() -> Result<String, String> + 'a>);

fn disruptions<'a>(installation: &'a Installation, kubectl: &'a Kubectl) -> [Disruption<'a>; 5] {
    let system = installation.cluster.kubectl(SYSTEM);
    let delete = move |pod: &str, how: &[&str]| system.try_run(["delete", "pod", pod].iter().chain(how));
    let kill = delete.clone();
    let kill_leader = delete.clone();
    let roll = |kubectl: &Kubectl| {
        kubectl.try_run(["rollout", "restart", "deployment/consumer"])?;
        kubectl.try_run(["rollout", "status", "deployment/consumer", "--timeout=120s"])
    };
    let now = &["--grace-period=0", "--force"];
    [
        (
            "the router's pod is deleted",
            Box::new(move || delete("weir-router-0", &[])),
        ),
        (
            "the router is killed",
            Box::new(move || kill("weir-router-0", now)),
        ),
        (
            "consumers restart, one after another",
            Box::new(move || roll(kubectl)),
        ),
        (
            "the controller that leads is killed",
            Box::new(move || {
                let leader = installation.leader();
                kill_leader(&leader, now)?;
                eventually(LONG, || match installation.leader() {
                    next if next != leader && !next.is_empty() => Ok(()),
                    _ => Err(format!("{leader} has the Lease still")),
                });
                // Whoever leads now gives the router what is new.
                let patch = r#"{"spec": {"delivery": {"timeout": "29s"}}}"#;
                kubectl.try_run(["patch", "trigger/all", "--type=merge", "--patch", patch])?;
                let generation = "--for=jsonpath={.status.observedGeneration}=2";
                kubectl.try_run(["wait", generation, "trigger/all", "--timeout=60s"])?;
                kubectl.try_run(["wait", "--for=condition=Ready", "trigger/all", "--timeout=60s"])
            }),
        ),
        ("the release is upgraded", Box::new(|| upgrade(installation))),
    ]
}

/// Replaces all pods of the release.
fn upgrade(installation: &Installation) -> Result<String, String> {
    let chart = project("charts/weir");
    let pods = ["controller", "router"].map(|pod| format!("--set-string={pod}.podAnnotations.upgraded=yes"));
    let image = image_values();
    let upgrade = ["upgrade", "weir", &chart, "--namespace", SYSTEM, "--wait"];
    let values = pods.iter().chain(&image).map(String::as_str);
    installation.cluster.helm(upgrade.into_iter().chain(values))
}

/// How many events were delivered more than once, when all were delivered.
pub(super) fn all_delivered(followed: &Followed, acknowledged: &BTreeSet<String>) -> Result<usize, String> {
    let delivered = followed.delivered()?;
    let lost = acknowledged
        .iter()
        .filter(|id| !delivered.contains_key(*id))
        .count();
    if lost > 0 {
        let all = acknowledged.len();
        return Err(format!("of {all} acknowledged events {lost} have not arrived"));
    }
    Ok(delivered.values().filter(|times| **times > 1).count())
}
