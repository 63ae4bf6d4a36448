//! Tells in the status of a Source whether it works.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::{api, resolve::Finding};

/// Field manager, as `kubectl` shows it.
const FIELD_MANAGER: &str = "weir-sources";

/// The condition that this process writes.
const CONNECTED: &str = "Connected";

/// Interval at which the time of the last event is written.
const LAST_EVENT_EVERY: Duration = Duration::from_secs(60);

/// Minimum time between two writes.
const PACE: Duration = Duration::from_secs(1);

/// Timeout of a write, and the pause after one that failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is told of a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionReport {
    pub(super) connected: Finding,
    pub(super) last_event: Option<Timestamp>,
}

/// Writes reports.
pub(super) struct Reporter {
    sources: Api<api::Source>,
    name: String,
    namespace: String,
    uid: String,
    generation: i64,
    written: Option<Condition>,
    written_event: Option<Timestamp>,
}

impl Reporter {
    pub(super) fn new(client: Client, source: &api::Source) -> Self {
        let namespace = source.namespace().unwrap_or_default();
        let conditions = source.status.as_ref().map(|status| status.conditions.as_slice());
        Self {
            sources: Api::namespaced(client, &namespace),
            name: source.name_any(),
            namespace,
            uid: source.uid().unwrap_or_default(),
            generation: source.metadata.generation.unwrap_or_default(),
            written: conditions
                .and_then(|conditions| api::condition(conditions, CONNECTED))
                .cloned(),
            written_event: None,
        }
    }

    /// Writes each report that differs, until there are no more.
    pub(super) async fn run(mut self, mut reports: watch::Receiver<Option<ConnectionReport>>) {
        let mut event_due = Instant::now();
        loop {
            let report = reports.borrow_and_update().clone();
            let mut pause = PACE;
            if let Some(report) = report {
                let condition = self.condition(&report.connected);
                let is_event = report.last_event != self.written_event && Instant::now() >= event_due;
                if self.written.as_ref() != Some(&condition) || is_event {
                    if self.write(&condition, report.last_event).await {
                        self.written = Some(condition);
                        self.written_event = report.last_event;
                        event_due = Instant::now() + LAST_EVENT_EVERY;
                    } else {
                        pause = TIMEOUT;
                    }
                }
                let is_behind = report.last_event != self.written_event || pause == TIMEOUT;
                tokio::time::sleep(pause).await;
                let wait = if is_behind {
                    event_due.max(Instant::now() + PACE)
                } else {
                    Instant::now() + LAST_EVENT_EVERY
                };
                tokio::select! {
                    changed = reports.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(wait) => {}
                }
            } else if reports.changed().await.is_err() {
                return;
            }
        }
    }

    /// The condition; the time of its transition moves only with its status.
    fn condition(&self, finding: &Finding) -> Condition {
        let status = if finding.holds { "True" } else { "False" };
        let before = self.written.as_ref().filter(|before| before.status == status);
        // Kubernetes stores whole seconds.
        let now = || Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default());
        Condition {
            type_: CONNECTED.to_owned(),
            status: status.to_owned(),
            reason: finding.reason.to_owned(),
            message: finding.message.clone(),
            observed_generation: Some(self.generation),
            last_transition_time: before.map_or_else(now, |before| before.last_transition_time.clone()),
        }
    }

    async fn write(&self, condition: &Condition, last_event: Option<Timestamp>) -> bool {
        let mut status = json!({"conditions": [condition]});
        if let Some(time) = last_event {
            let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
            status["lastEventTime"] = whole.to_string().into();
        }
        let patch = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Source",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid},
            "status": status,
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&patch);
        let write = self.sources.patch_status(&self.name, &parameters, &patch);
        let (namespace, source) = (&self.namespace, &self.name);
        match tokio::time::timeout(TIMEOUT, write).await {
            Ok(Ok(_)) => true,
            // Deleted in the meantime; the watch will report it.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 || status.code == 409 => true,
            Ok(Err(error)) => {
                tracing::warn!(namespace, source, %error, "cannot write a status; retrying");
                false
            }
            Err(_) => {
                tracing::warn!(namespace, source, "cannot write a status in time; retrying");
                false
            }
        }
    }
}
