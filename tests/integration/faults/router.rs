//! A router of the test's own, that can be killed and started again on the same port and data.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::support::{Consumer, PATIENCE, Process, ReservedPort, Scratch, eventually, get, try_get};

/// `weir run` with a directory of manifests.
pub(super) struct Router {
    pub(super) process: Process,
    port: ReservedPort,
    manifests: Scratch,
    data: Data,
    arguments: Vec<String>,
}

/// Where a router's data are.
enum Data {
    Own(Scratch),
    Given(PathBuf),
}

/// What a router is started with.
pub(super) struct Setup {
    manifests: String,
    arguments: Vec<String>,
    data: Option<PathBuf>,
    fail_points: String,
}

impl Setup {
    /// Manifests, and where their Services are (see [`mapped`]).
    pub(super) fn new(manifests: &str, services: &[String]) -> Self {
        Self {
            manifests: manifests.to_owned(),
            arguments: services
                .iter()
                .map(|service| format!("--service={service}"))
                .collect(),
            data: None,
            fail_points: String::new(),
        }
    }

    /// With another argument.
    pub(super) fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With its data in this directory, which stays.
    pub(super) fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.to_owned());
        self
    }

    /// With what happens at the fail points, the first time that it is started.
    #[cfg(feature = "failpoints")]
    pub(super) fn fail_points(mut self, actions: &str) -> Self {
        actions.clone_into(&mut self.fail_points);
        self
    }

    /// Starts it, without waiting for anything.
    pub(super) fn launch(self) -> Router {
        let Self {
            manifests,
            arguments,
            data,
            fail_points,
        } = self;
        let (port, scratch) = (ReservedPort::new(), Scratch::new());
        scratch.write("manifests.yaml", manifests);
        let data = data.map_or_else(|| Data::Own(Scratch::new()), Data::Given);
        Router {
            process: launch(&port, &scratch, data.path(), &arguments, &fail_points),
            port,
            manifests: scratch,
            data,
            arguments,
        }
    }

    /// Starts it, and waits until it takes events.
    pub(super) fn start(self) -> Router {
        let router = self.launch();
        router.wait_until_ready();
        router
    }
}

impl Data {
    fn path(&self) -> &Path {
        match self {
            Self::Own(scratch) => scratch.path(),
            Self::Given(path) => path,
        }
    }
}

fn launch(
    port: &ReservedPort,
    manifests: &Scratch,
    data: &Path,
    arguments: &[String],
    fail_points: &str,
) -> Process {
    let mut all = vec![
        "run".to_owned(),
        manifests.path().display().to_string(),
        format!("--data={}", data.display()),
        format!("--listen={}", port.address()),
        "--admin=127.0.0.1:0".to_owned(),
    ];
    all.extend_from_slice(arguments);
    Process::weir(all).env("FAILPOINTS", fail_points).quiet().start()
}

impl Router {
    /// Where the data are.
    pub(super) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Where events are posted to.
    pub(super) fn url(&self) -> String {
        format!("http://{}/shop/default", self.port.address())
    }

    #[track_caller]
    pub(super) fn wait_until_ready(&self) {
        self.process
            .wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    }

    pub(super) fn kill_and_restart(&mut self) {
        self.process.kill();
        self.restart();
    }

    /// Starts it again after it has ended, and waits until it takes events.
    #[track_caller]
    pub(super) fn restart(&mut self) {
        self.relaunch("");
        self.wait_until_ready();
    }

    /// Starts it again after it has ended, with what happens at the fail points.
    pub(super) fn relaunch(&mut self, fail_points: &str) {
        self.process = launch(
            &self.port,
            &self.manifests,
            self.data.path(),
            &self.arguments,
            fail_points,
        );
    }

    /// Waits until it was killed, by itself at a fail point.
    #[cfg(feature = "failpoints")]
    #[track_caller]
    pub(super) fn wait_until_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = self.process.wait_for_exit(PATIENCE * 2);
        let lines = self.process.lines();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        assert_eq!(status.signal(), Some(9), "it ended otherwise, {status}:\n{end}");
    }

    /// Whether the metrics, if it serves them, tell that the Trigger cannot deliver all it should.
    pub(super) fn metrics_tell_of_damage(&self, trigger: &str) -> bool {
        let serves = |line: &String| line.contains("listener=\"admin\"");
        if !self.process.lines().iter().any(serves) {
            return false;
        }
        let url = format!("http://{}/metrics", self.process.address("admin"));
        let of = format!("trigger=\"{trigger}\"");
        let tells = |line: &str| {
            let stopped = line.starts_with("weir_trigger_stopped{");
            let dropped = line.contains("outcome=\"dropped\"");
            (stopped || dropped) && line.contains(&of) && !line.ends_with(" 0")
        };
        try_get(&url).is_ok_and(|metrics| metrics.text().lines().any(tells))
    }

    /// The figures of a Trigger by name: `matched`, `delivered`, `expired`, `dead_lettered`, `dropped`, `pending`.
    pub(super) fn accounting(&self, trigger: &str) -> BTreeMap<String, u64> {
        let text = get(&format!("http://{}/metrics", self.process.address("admin"))).text();
        let mut figures = BTreeMap::new();
        for line in text
            .lines()
            .filter(|line| line.contains(&format!("trigger=\"{trigger}\"")))
        {
            let value = || line.rsplit(' ').next().unwrap().parse().unwrap();
            if line.starts_with("weir_trigger_events_matched_total") {
                figures.insert("matched".to_owned(), value());
            } else if line.starts_with("weir_trigger_events_pending") {
                figures.insert("pending".to_owned(), value());
            } else if line.starts_with("weir_trigger_events_settled_total") {
                let outcome = line.split("outcome=\"").nth(1).unwrap();
                figures.insert(outcome.split('"').next().unwrap().to_owned(), value());
            }
        }
        figures
    }

    /// At rest, matched = delivered + expired + dead-lettered + dropped + pending.
    #[track_caller]
    pub(super) fn check_accounting(&self, trigger: &str) -> BTreeMap<String, u64> {
        let figures = self.accounting(trigger);
        let ended: u64 = figures
            .iter()
            .filter(|(name, _)| *name != "matched")
            .map(|(_, value)| value)
            .sum();
        assert_eq!(figures["matched"], ended, "{trigger}: {figures:?}");
        figures
    }

    /// Waits until a Trigger has settled so many events and nothing else, each of them as `outcome`.
    #[track_caller]
    pub(super) fn wait_until_all_are(&self, trigger: &str, outcome: &str, events: usize) {
        let events = events as u64;
        eventually(PATIENCE, || {
            let figures = self.accounting(trigger);
            let all = figures["matched"] == events && figures[outcome] == events && figures["pending"] == 0;
            if all {
                Ok(())
            } else {
                Err(format!("{trigger}: {events} should be {outcome}: {figures:?}"))
            }
        });
        self.check_accounting(trigger);
    }
}

/// The manifest of a Trigger that takes everything, in order by key or not; `delivery` is what else its delivery says.
pub(super) fn trigger(name: &str, delivery: &str) -> String {
    let delivery =
        ["backoffDelay: 20ms, backoffMax: 200ms", delivery].join(if delivery.is_empty() { "" } else { ", " });
    format!(
        "---\napiVersion: weir.dev/v1alpha1\nkind: Trigger\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         sink: {{service: {{name: {name}}}}}\n  delivery: {{{delivery}}}\n"
    )
}

/// Where the Service of the Trigger `name` is.
pub(super) fn mapped(name: &str, consumer: &Consumer) -> String {
    format!("shop/{name}={}", consumer.url().trim_end_matches('/'))
}
