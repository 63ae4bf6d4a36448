//! A router without a cluster, as a process that can be killed and started again.

use std::{collections::BTreeMap, ops::Range};

use super::{Consumer, PATIENCE, Process, ReservedPort, Scratch, client::Response, eventually, get, post};

/// `weir run` with its manifests, its data and its address, which outlive the process.
pub(crate) struct LocalRouter {
    pub(crate) process: Process,
    manifests: Scratch,
    port: ReservedPort,
    data: Scratch,
    arguments: Vec<String>,
}

impl LocalRouter {
    /// Runs the manifests; `services` are those of namespace `shop`.
    pub(crate) fn start(manifests: &str, services: &[(&str, &Consumer)]) -> Self {
        Self::start_with(manifests, services, &[])
    }

    /// With further arguments.
    pub(crate) fn start_with(manifests: &str, services: &[(&str, &Consumer)], arguments: &[&str]) -> Self {
        let (port, scratch, data) = (ReservedPort::new(), Scratch::new(), Scratch::new());
        scratch.write("manifests.yaml", manifests);
        let mapped = services.iter().map(|(name, consumer)| {
            format!("--service=shop/{name}={}", consumer.url().trim_end_matches('/'))
        });
        let arguments: Vec<_> = mapped
            .chain(arguments.iter().map(|&argument| argument.to_owned()))
            .collect();
        let process = launch(&port, &scratch, &data, &arguments);
        Self {
            process,
            manifests: scratch,
            port,
            data,
            arguments,
        }
    }

    /// As the machine's power would.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.port, &self.manifests, &self.data, &self.arguments);
    }

    /// The URL of a path of the admin endpoint.
    pub(crate) fn admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.process.address("admin"))
    }

    /// The URL of `shop/default`.
    pub(crate) fn broker(&self) -> String {
        format!("http://{}/shop/default", self.port.address())
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
        post(&self.broker(), &headers, "data")
    }

    /// Posts events of this type as one batch, with numbers for ids.
    pub(crate) fn post_batch(&self, r#type: &str, ids: Range<u32>) -> Response {
        let event =
            |id| format!(r#"{{"specversion":"1.0","source":"/p","type":"{type}","id":"{id}","data":{id}}}"#);
        let events: Vec<_> = ids.map(event).collect();
        let headers = [("content-type", "application/cloudevents-batch+json")];
        post(&self.broker(), &headers, format!("[{}]", events.join(",")))
    }

    /// Changes the manifests, and waits until they are applied.
    pub(crate) fn apply(&self, manifests: &str) {
        let applied = |lines: &[String]| {
            let is_applied = |line: &&String| line.contains("routing configuration applied");
            lines.iter().filter(is_applied).count()
        };
        let before = applied(&self.process.lines());
        self.manifests.write("manifests.yaml", manifests);
        eventually(PATIENCE, || {
            if applied(&self.process.lines()) > before {
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
}

fn value(metrics: &str, parts: &[&str]) -> Option<u64> {
    let line = metrics
        .lines()
        .find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn launch(port: &ReservedPort, manifests: &Scratch, data: &Scratch, arguments: &[String]) -> Process {
    let path = |scratch: &Scratch| scratch.path().to_str().unwrap().to_owned();
    let fixed = [
        "run".to_owned(),
        path(manifests),
        format!("--data={}", path(data)),
        format!("--listen={}", port.address()),
        "--admin=127.0.0.1:0".to_owned(),
    ];
    let process = Process::weir(fixed.into_iter().chain(arguments.iter().cloned())).start();
    process.wait_for_line(PATIENCE, |line| line.contains("routing configuration applied"));
    process
}
