//! A router without a cluster, as a process that can be killed and started again on the same port and data.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::Method;

use super::{
    Consumer, Launch, Nameserver, PATIENCE, Process, ReservedPort, Scratch, client::Response, eventually,
    get, post, runtime, send, try_get,
};

/// `weir run` with its manifests, its data and its address, which outlive the process.
pub(crate) struct LocalRouter {
    pub(crate) process: Process,
    port: ReservedPort,
    manifests: Scratch,
    data: Data,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    by: Vec<String>,
}

/// The file with the token of a router's operators, in its data directory.
const OPERATOR_TOKEN: &str = "operator-token";

/// Where a router's data are.
enum Data {
    Own(Scratch),
    Given(PathBuf),
}

/// What a router is started with.
pub(crate) struct Setup {
    manifests: String,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    data: Option<PathBuf>,
    fail_points: String,
    by: Vec<String>,
}

impl Setup {
    /// Manifests, and where their Services are (see [`mapped`]).
    pub(crate) fn new(manifests: &str, services: &[String]) -> Self {
        Self {
            manifests: manifests.to_owned(),
            arguments: services
                .iter()
                .map(|service| format!("--service={service}"))
                .collect(),
            variables: Vec::new(),
            data: None,
            fail_points: String::new(),
            by: Vec::new(),
        }
    }

    /// With another argument.
    pub(crate) fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// With another variable of its environment.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With its data in this directory, which stays.
    pub(crate) fn data(mut self, directory: &Path) -> Self {
        self.data = Some(directory.to_owned());
        self
    }

    /// With what happens at the fail points, the first time that it is started.
    #[cfg(feature = "failpoints")]
    pub(crate) fn fail_points(mut self, actions: &str) -> Self {
        actions.clone_into(&mut self.fail_points);
        self
    }

    /// With no more than so many file descriptors.
    pub(crate) fn open_files(mut self, most: usize) -> Self {
        self.by = ["prlimit", &format!("--nofile={most}:{most}"), "--"]
            .map(str::to_owned)
            .to_vec();
        self
    }

    /// With this nameserver instead of the machine's.
    pub(crate) fn nameserver(mut self, nameserver: &Nameserver) -> Self {
        self.by = nameserver.command();
        self
    }

    /// Starts it, without waiting for anything.
    pub(crate) fn launch(self) -> LocalRouter {
        let Self {
            manifests,
            arguments,
            variables,
            data,
            fail_points,
            by,
        } = self;
        let port = ReservedPort::new();
        let scratch = Scratch::new();
        scratch.write("manifests.yaml", manifests);
        let data = data.map_or_else(|| Data::Own(Scratch::new()), Data::Given);
        LocalRouter {
            process: launch(
                &port,
                &scratch,
                data.path(),
                &arguments,
                &variables,
                &fail_points,
                &by,
            ),
            port,
            manifests: scratch,
            data,
            arguments,
            variables,
            by,
        }
    }

    /// Starts it, and waits until it takes events.
    pub(crate) fn start(self) -> LocalRouter {
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
    variables: &[(String, String)],
    fail_points: &str,
    by: &[String],
) -> Process {
    let mut all = vec![
        "run".to_owned(),
        manifests.path().display().to_string(),
        format!("--data={}", data.display()),
        format!("--listen={}", port.address()),
        "--admin=127.0.0.1:0".to_owned(),
    ];
    all.extend_from_slice(arguments);
    let launch = Process::weir(all).env("FAILPOINTS", fail_points);
    let launch = variables
        .iter()
        .fold(launch, |launch, (name, value)| launch.env(name, value));
    launch.by(by).start()
}

/// The token of the operators of a router with these data, as a header.
#[track_caller]
pub(crate) fn operator_of(data: &Path) -> String {
    let token = std::fs::read_to_string(data.join(OPERATOR_TOKEN)).expect("a router writes it");
    format!("Bearer {}", token.trim())
}

impl LocalRouter {
    /// Runs the manifests; `services` are those of namespace `shop`.
    pub(crate) fn start(manifests: &str, services: &[(&str, &Consumer)]) -> Self {
        Self::start_with(manifests, services, &[])
    }

    /// With further arguments.
    pub(crate) fn start_with(manifests: &str, services: &[(&str, &Consumer)], arguments: &[&str]) -> Self {
        let services: Vec<_> = services
            .iter()
            .map(|(name, consumer)| mapped(name, consumer))
            .collect();
        let setup = Setup::new(manifests, &services);
        arguments
            .iter()
            .fold(setup, |setup, &argument| setup.argument(argument))
            .start()
    }

    /// Where the data are.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Where events are posted to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/shop/default", self.port.address())
    }

    #[track_caller]
    pub(crate) fn wait_until_ready(&self) {
        self.process
            .wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    }

    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill();
        self.restart();
    }

    /// Starts it again after it has ended, and waits until it takes events.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.relaunch("");
        self.wait_until_ready();
    }

    /// Starts it again after it has ended, with what happens at the fail points.
    pub(crate) fn relaunch(&mut self, fail_points: &str) {
        self.process = launch(
            &self.port,
            &self.manifests,
            self.data.path(),
            &self.arguments,
            &self.variables,
            fail_points,
            &self.by,
        );
    }

    /// Waits until it was killed, by itself at a fail point.
    #[cfg(feature = "failpoints")]
    #[track_caller]
    pub(crate) fn wait_until_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt;
        let status = self.process.wait_for_exit(PATIENCE * 2);
        let lines = self.process.lines();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        assert_eq!(status.signal(), Some(9), "it ended otherwise, {status}:\n{end}");
    }

    /// Whether the metrics, if it serves them, tell that the Trigger cannot deliver all it should.
    pub(crate) fn metrics_tell_of_damage(&self, trigger: &str) -> bool {
        let serves = |line: &String| line.contains("listener=\"admin\"");
        if !self.process.lines().iter().any(serves) {
            return false;
        }
        let of = format!("trigger=\"{trigger}\"");
        let tells = |line: &str| {
            let stopped = line.starts_with("weir_trigger_stopped{");
            let dropped = line.contains("outcome=\"dropped\"");
            (stopped || dropped) && line.contains(&of) && !line.ends_with(" 0")
        };
        try_get(&self.admin("/metrics")).is_ok_and(|metrics| metrics.text().lines().any(tells))
    }

    /// The URL of a path of the admin endpoint.
    pub(crate) fn admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.process.address("admin"))
    }

    /// The file with the token of its operators.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.data().join(OPERATOR_TOKEN)
    }

    /// The token of its operators, as a header.
    #[track_caller]
    pub(crate) fn operator(&self) -> String {
        operator_of(self.data())
    }

    /// A command of `weir` that asks this router as an operator.
    pub(crate) fn weir(&self, arguments: &[&str]) -> Launch {
        let address = format!("--router={}", self.admin(""));
        let all = arguments.iter().copied().chain([address.as_str()]);
        Process::weir(all).env("WEIR_ROUTER_TOKEN", self.token_file())
    }

    /// Asks the admin endpoint as an operator.
    pub(crate) fn try_ask(&self, method: Method, path: &str, body: &str) -> Result<Response, String> {
        let operator = self.operator();
        let headers = [
            ("authorization", &*operator),
            ("content-type", "application/json"),
        ];
        let body = Bytes::copy_from_slice(body.as_bytes());
        runtime().block_on(send(method, &self.admin(path), &headers, body))
    }

    /// The same; fails the test when no response comes.
    #[track_caller]
    pub(crate) fn ask(&self, method: Method, path: &str, body: &str) -> Response {
        match self.try_ask(method, path, body) {
            Ok(response) => response,
            Err(error) => panic!("{error}"),
        }
    }

    /// Posts an event of this type and id to `shop/default`, with further headers.
    pub(crate) fn post(&self, r#type: &str, id: &str, headers: &[(&str, &str)]) -> Response {
        let required = [
            ("ce-specversion", "1.0"),
            ("ce-source", "/p"),
            ("ce-type", r#type),
            ("ce-id", id),
        ];
        let headers: Vec<_> = required.into_iter().chain(headers.iter().copied()).collect();
        post(&self.url(), &headers, "data")
    }

    /// Posts events of this type as one batch, with numbers for ids.
    pub(crate) fn post_batch(&self, r#type: &str, ids: Range<u32>) -> Response {
        let event =
            |id| format!(r#"{{"specversion":"1.0","source":"/p","type":"{type}","id":"{id}","data":{id}}}"#);
        let events: Vec<_> = ids.map(event).collect();
        let headers = [("content-type", "application/cloudevents-batch+json")];
        post(&self.url(), &headers, format!("[{}]", events.join(",")))
    }

    /// Changes the manifests, and waits until they are applied.
    pub(crate) fn apply(&self, manifests: &str) {
        let before = self.times_applied();
        self.change(manifests);
        self.wait_until_applied_after(before);
    }

    /// Changes the manifests.
    pub(crate) fn change(&self, manifests: &str) {
        self.manifests.write("manifests.yaml", manifests);
    }

    /// How many configurations it has applied so far.
    pub(crate) fn times_applied(&self) -> usize {
        let lines = self.process.lines();
        let is_applied = |line: &&String| line.contains("routing configuration applied");
        lines.iter().filter(is_applied).count()
    }

    /// Waits until it has applied more configurations than so many.
    #[track_caller]
    pub(crate) fn wait_until_applied_after(&self, before: usize) {
        eventually(PATIENCE, || {
            if self.times_applied() > before {
                Ok(())
            } else {
                Err("the changed manifests are not applied".to_owned())
            }
        });
    }

    /// The value of the first metric whose line has all of these parts.
    pub(crate) fn metric(&self, parts: &[&str]) -> Option<u64> {
        value(&get(&self.admin("/metrics")).text(), parts)
    }

    /// A Trigger's figures at rest: `matched`, `pending` and by outcome, which add up.
    #[track_caller]
    pub(crate) fn accounting(&self, trigger: &str) -> BTreeMap<&'static str, u64> {
        eventually(PATIENCE, || {
            let metrics = get(&self.admin("/metrics")).text();
            let of = format!("trigger=\"{trigger}\"");
            let figure = |name| value(&metrics, &[name, &of]).ok_or(metrics.clone());
            let mut figures = BTreeMap::from([("pending", figure("weir_trigger_events_pending")?)]);
            for outcome in ["delivered", "expired", "dead_lettered", "dropped"] {
                let label = format!("outcome=\"{outcome}\"");
                let settled = value(&metrics, &["weir_trigger_events_settled_total", &of, &label]);
                figures.insert(outcome, settled.ok_or(metrics.clone())?);
            }
            let matched = figure("weir_trigger_events_matched_total")?;
            let sum: u64 = figures.values().sum();
            figures.insert("matched", matched);
            if matched == sum {
                Ok(figures)
            } else {
                Err(format!("{trigger}: {figures:?}"))
            }
        })
    }
    /// Waits until a Trigger has settled so many events and nothing else, each of them as `outcome`.
    #[track_caller]
    pub(crate) fn wait_until_all_are(&self, trigger: &str, outcome: &str, events: usize) {
        eventually(PATIENCE, || self.all_are(trigger, outcome, events));
    }

    /// Whether so many events were matched, all with this outcome, or else the figures.
    pub(crate) fn all_are(&self, trigger: &str, outcome: &str, events: usize) -> Result<(), String> {
        let (events, figures) = (events as u64, self.accounting(trigger));
        let all = figures["matched"] == events && figures[outcome] == events && figures["pending"] == 0;
        if all {
            Ok(())
        } else {
            Err(format!("{trigger}: {events} should be {outcome}: {figures:?}"))
        }
    }
}

fn value(metrics: &str, parts: &[&str]) -> Option<u64> {
    let line = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Where the Service `name` of namespace `shop` is.
pub(crate) fn mapped(name: &str, consumer: &Consumer) -> String {
    format!("shop/{name}={}", consumer.url().trim_end_matches('/'))
}
