//! Tells in the status of a Source whether it works.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ManagedFieldsEntry, ObjectMeta, Time};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::given_up::GivenUp;
use crate::{
    api::{self, SourceRejectionStatus},
    resolve::Finding,
};

/// Field manager, as `kubectl` shows it.
const FIELD_MANAGER: &str = "weir-sources";

/// Interval at which the time of the last event and the last rejection are written.
const LAST_EVENT_EVERY: Duration = Duration::from_secs(60);

/// Minimum time between two writes; and before one that changes only the message, which may have numbers that move.
const PACE: Duration = Duration::from_secs(1);
const MESSAGE_PACE: Duration = Duration::from_secs(10);

/// Timeout of a write, and the pause after one that failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is told of a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionReport {
    pub(super) connection: SourceConnection,
    pub(super) activity: Activity,
}

/// Whether a Source is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceConnection {
    Known(Finding),
    /// It is not known before the objects are listed, which this says.
    Listing(String),
}

impl SourceConnection {
    pub(super) fn holds(&self) -> bool {
        matches!(self, Self::Known(finding) if finding.holds)
    }

    fn condition(&self, generation: i64, before: &[Condition], now: &Time) -> Condition {
        match self {
            Self::Known(finding) => finding.condition(api::CONNECTED, generation, before, now),
            Self::Listing(message) => Finding::bad("Listing", message.as_str()).condition_with_status(
                "Unknown",
                api::CONNECTED,
                generation,
                before,
                now,
            ),
        }
    }
}

/// Whether the status of a Source says that its present generation is connected.
pub(super) fn is_connected(source: &api::Source) -> bool {
    let conditions = source.status.as_ref().map(|status| status.conditions.as_slice());
    let connected = conditions.and_then(|conditions| api::condition(conditions, api::CONNECTED));
    connected.is_some_and(|connected| {
        connected.status == "True" && connected.observed_generation == source.metadata.generation
    })
}

/// What a Source did last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Activity {
    pub(super) last_event: Option<Timestamp>,
    pub(super) last_rejection: Option<GivenUp>,
}

impl Activity {
    /// Reads what a status shows.
    fn shown(status: &api::SourceStatus) -> Self {
        let rejection = status.last_rejection.as_ref();
        Self {
            last_event: status.last_event_time.as_ref().and_then(|time| time.parse().ok()),
            last_rejection: rejection.and_then(|rejection| {
                let SourceRejectionStatus {
                    time,
                    reason,
                    message,
                } = rejection;
                Some(GivenUp {
                    at: time.parse().ok()?,
                    reason: reason.clone(),
                    message: message.clone(),
                })
            }),
        }
    }

    /// Fills in from an earlier one what there was nothing of since.
    pub(super) fn or(self, earlier: &Self) -> Self {
        Self {
            last_event: self.last_event.or(earlier.last_event),
            last_rejection: self.last_rejection.or_else(|| earlier.last_rejection.clone()),
        }
    }

    /// Adds it to a status. Kubernetes stores whole seconds.
    fn write(&self, status: &mut Value) {
        let whole = |time| api::whole_seconds(time).to_string();
        if let Some(time) = self.last_event {
            status["lastEventTime"] = whole(time).into();
        }
        if let Some(GivenUp { at, reason, message }) = &self.last_rejection {
            status["lastRejection"] = json!({"time": whole(*at), "reason": reason, "message": message});
        }
    }
}

/// Writes reports.
pub(super) struct Reporter {
    writer: ConnectionWriter,
    generation: i64,
    written: Option<Condition>,
    written_activity: Activity,
}

/// Whether this process has written something in the status of a Source that does not run, which is no longer true. A Source
/// of this kind, as one that is suspended, keeps what it did last.
pub(super) fn is_left(metadata: &ObjectMeta, source: Option<&api::Source>) -> bool {
    let fields = metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|fields| is_own(fields));
    let is_this_kind = source.is_some_and(|source| source.spec.kubernetes.is_some());
    fields
        .filter_map(|fields| serde_json::to_value(&fields.fields_v1).ok())
        .any(|fields| !is_this_kind || fields["f:status"].get("f:conditions").is_some())
}

fn is_own(fields: &ManagedFieldsEntry) -> bool {
    fields.manager.as_deref() == Some(FIELD_MANAGER) && fields.subresource.as_deref() == Some("status")
}

/// Takes back what this process has written in the status of a Source that does not run. Tries until it succeeds.
pub(super) async fn release(client: Client, metadata: &ObjectMeta, source: Option<&api::Source>) {
    if !is_left(metadata, source) {
        return;
    }
    let kept = source.filter(|source| source.spec.kubernetes.is_some());
    let kept = kept.and_then(|source| source.status.as_ref());
    let mut status = json!({});
    kept.map(Activity::shown).unwrap_or_default().write(&mut status);
    let namespace = metadata.namespace.clone().unwrap_or_default();
    let writer = ConnectionWriter {
        sources: Api::namespaced(client, &namespace),
        name: metadata.name.clone().unwrap_or_default(),
        namespace,
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    while !writer.write(&status).await {
        tokio::time::sleep(TIMEOUT).await;
    }
}

/// Writes the status of a Source.
struct ConnectionWriter {
    sources: Api<api::Source>,
    name: String,
    namespace: String,
    uid: String,
}

impl ConnectionWriter {
    /// Writes what this process has to say, and takes back the rest. Returns whether that succeeded.
    async fn write(&self, status: &Value) -> bool {
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

impl Reporter {
    pub(super) fn new(client: Client, source: &api::Source) -> Self {
        let namespace = source.namespace().unwrap_or_default();
        let status = source.status.as_ref();
        let conditions = status.map(|status| status.conditions.as_slice());
        Self {
            writer: ConnectionWriter {
                sources: Api::namespaced(client, &namespace),
                name: source.name_any(),
                namespace,
                uid: source.uid().unwrap_or_default(),
            },
            generation: source.metadata.generation.unwrap_or_default(),
            written: conditions
                .and_then(|conditions| api::condition(conditions, api::CONNECTED))
                .cloned(),
            written_activity: status.map(Activity::shown).unwrap_or_default(),
        }
    }

    /// Writes each report that differs, until there are no more.
    pub(super) async fn run(mut self, mut reports: watch::Receiver<Option<ConnectionReport>>) {
        let mut activity_due = Instant::now();
        let mut message_due = Instant::now();
        loop {
            let report = reports.borrow_and_update().clone();
            let mut pause = PACE;
            if let Some(report) = report {
                let condition = self.condition(&report.connection);
                // Of another run, as far as there is none of this one.
                let activity = report.activity.or(&self.written_activity);
                let now = Instant::now();
                let is_due = self.is_news(&condition)
                    || (self.written.as_ref() != Some(&condition) && now >= message_due)
                    || (activity != self.written_activity && now >= activity_due);
                if is_due {
                    if self.write(&condition, &activity).await {
                        self.written = Some(condition.clone());
                        self.written_activity = activity.clone();
                        activity_due = Instant::now() + LAST_EVENT_EVERY;
                        message_due = Instant::now() + MESSAGE_PACE;
                    } else {
                        pause = TIMEOUT;
                    }
                }
                tokio::time::sleep(pause).await;
                let soon = Instant::now() + PACE;
                let wait = if self.written.as_ref() != Some(&condition) {
                    message_due.max(soon)
                } else if activity != self.written_activity {
                    activity_due.max(soon)
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

    /// Whether more than the message differs from what was written.
    fn is_news(&self, condition: &Condition) -> bool {
        self.written.as_ref().is_none_or(|written| {
            let message = condition.message.clone();
            Condition {
                message,
                ..written.clone()
            } != *condition
        })
    }

    fn condition(&self, connection: &SourceConnection) -> Condition {
        let now = Time(api::whole_seconds(Timestamp::now()));
        connection.condition(self.generation, self.written.as_slice(), &now)
    }

    async fn write(&self, condition: &Condition, activity: &Activity) -> bool {
        let mut status = json!({"conditions": [condition]});
        activity.write(&mut status);
        self.writer.write(&status).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_unknown_while_objects_are_listed() {
        for (connection, expected) in [
            (
                SourceConnection::Listing("lists Pod".to_owned()),
                ("Unknown", "Listing", "lists Pod"),
            ),
            (
                SourceConnection::Known(Finding::good("Connected", "watches Pod")),
                ("True", "Connected", "watches Pod"),
            ),
            (
                SourceConnection::Known(Finding::bad("Forbidden", "grant it")),
                ("False", "Forbidden", "grant it"),
            ),
        ] {
            let condition = connection.condition(1, &[], &Time(Timestamp::UNIX_EPOCH));
            let Condition {
                status,
                reason,
                message,
                ..
            } = &condition;
            assert_eq!((status.as_str(), reason.as_str(), message.as_str()), expected);
            assert_eq!(connection.holds(), expected.0 == "True");
        }
    }

    #[test]
    fn activity_is_written_as_it_is_shown() {
        let activity = Activity {
            last_event: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            last_rejection: Some(GivenUp {
                at: "2026-01-02T00:00:00Z".parse().unwrap(),
                reason: "mapping_failed".to_owned(),
                message: "Pod \"a\": there is no b".to_owned(),
            }),
        };
        let mut status = json!({});
        activity.write(&mut status);
        let shown = Activity::shown(&serde_json::from_value(status).unwrap());
        assert_eq!(shown, activity);
        assert_eq!(Activity::default().or(&activity), activity);
    }

    #[test]
    fn what_is_left_of_a_source_is_taken_back_once() {
        let source = |spec: Value, manager: &str, fields: Value| -> api::Source {
            let managed = json!([{"manager": manager, "subresource": "status", "operation": "Apply",
                                  "fieldsType": "FieldsV1", "fieldsV1": {"f:status": fields}}]);
            let metadata = json!({"name": "s", "namespace": "n", "managedFields": managed});
            serde_json::from_value(json!({
                "apiVersion": "weir.dev/v1alpha1", "kind": "Source", "metadata": metadata, "spec": spec,
            }))
            .unwrap()
        };
        let objects = json!({"suspend": true, "kubernetes": {
            "serviceAccountName": "viewer", "resources": [{"apiVersion": "v1", "kind": "Pod"}],
        }});
        let schedule = json!({"cron": {"schedule": "* * * * *", "type": "t"}});
        let (both, time) = (
            json!({"f:conditions": {}, "f:lastEventTime": {}}),
            json!({"f:lastEventTime": {}}),
        );
        for (spec, manager, fields, expected) in [
            (&objects, FIELD_MANAGER, &both, true),
            (&objects, FIELD_MANAGER, &time, false),
            (&objects, "weir-controller", &both, false),
            (&schedule, FIELD_MANAGER, &time, true),
            (&schedule, "weir-controller", &both, false),
        ] {
            let source = source(spec.clone(), manager, fields.clone());
            let is_left = is_left(&source.metadata, Some(&source));
            assert_eq!(is_left, expected, "{spec} {manager} {fields}");
        }
    }
}
