//! Sources in the routing configuration: what they share, and one type for each kind. Pure.

use serde::{Deserialize, Serialize};

use super::Webhook;
use crate::filter::Expression;

/// A validated Source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SourceJson", into = "SourceJson")]
pub struct Source {
    /// UID of the resource.
    pub uid: String,
    /// Namespace of the Source and of its broker.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Generation of the resource.
    pub generation: i64,
    /// Broker that its events are posted to.
    pub broker: String,
    /// Filters that its events have to match.
    pub filters: Vec<Expression>,
    /// What triggers its events.
    pub kind: SourceKind,
}

/// What triggers the events of a Source. In JSON each kind is a field of the Source, named after it.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceKind {
    /// A schedule.
    Cron(Cron),
    /// The requests of another system.
    Webhook(Webhook),
    /// Changes of objects in the cluster, which another process posts as a producer.
    Kubernetes(KubernetesObjects),
}

impl SourceKind {
    /// Whether it produces events by itself.
    pub fn runs(&self) -> bool {
        matches!(self, Self::Cron(_))
    }
}

/// Objects in the cluster. Routers need to know no more than that their broker exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesObjects {}

/// A schedule and the event to produce at each of its times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cron {
    /// Cron expression with five fields (minute, hour, day of month, month, day of week), or six with seconds
    /// first.
    pub schedule: String,
    /// IANA time zone.
    pub time_zone: String,
    /// Attributes of the events in order, without `id`, `time` and `specversion`.
    pub attributes: Vec<(String, String)>,
    /// Data of the events.
    pub data: Option<String>,
    /// Which missed times are made up for.
    #[serde(default, skip_serializing_if = "CatchUp::is_none")]
    pub catch_up: CatchUp,
}

/// Which scheduled times that were missed are made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CatchUp {
    /// None of them.
    #[default]
    None,
    /// The latest one.
    Last,
    /// All of them, up to a limit.
    All,
}

impl CatchUp {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// The JSON form. An unknown kind is an unknown field.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SourceJson {
    uid: String,
    namespace: String,
    name: String,
    generation: i64,
    broker: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filters: Vec<Expression>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<Cron>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<Webhook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kubernetes: Option<KubernetesObjects>,
}

/// A Source without a kind, or with several.
#[derive(Debug, thiserror::Error)]
#[error("the Source has no kind, or several")]
struct NoKind;

impl TryFrom<SourceJson> for Source {
    type Error = NoKind;

    fn try_from(wire: SourceJson) -> Result<Self, NoKind> {
        let kind = match (wire.cron, wire.webhook, wire.kubernetes) {
            (Some(cron), None, None) => SourceKind::Cron(cron),
            (None, Some(webhook), None) => SourceKind::Webhook(webhook),
            (None, None, Some(objects)) => SourceKind::Kubernetes(objects),
            _ => return Err(NoKind),
        };
        Ok(Self {
            uid: wire.uid,
            namespace: wire.namespace,
            name: wire.name,
            generation: wire.generation,
            broker: wire.broker,
            filters: wire.filters,
            kind,
        })
    }
}

impl From<Source> for SourceJson {
    fn from(source: Source) -> Self {
        let (cron, webhook, kubernetes) = match source.kind {
            SourceKind::Cron(cron) => (Some(cron), None, None),
            SourceKind::Webhook(webhook) => (None, Some(webhook), None),
            SourceKind::Kubernetes(objects) => (None, None, Some(objects)),
        };
        Self {
            uid: source.uid,
            namespace: source.namespace,
            name: source.name,
            generation: source.generation,
            broker: source.broker,
            filters: source.filters,
            cron,
            webhook,
            kubernetes,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_kind_is_a_field_of_its_name() {
        let text = r#"{"uid":"u","namespace":"n","name":"s","generation":1,"broker":"b","cron":{"schedule":"* * * * *","timeZone":"UTC","attributes":[["type","t"]],"data":null}}"#;
        let source: Source = serde_json::from_str(text).unwrap();
        assert!(matches!(&source.kind, SourceKind::Cron(cron) if cron.time_zone == "UTC"));
        assert_eq!(serde_json::to_string(&source).unwrap(), text);
    }

    #[test]
    fn webhook_keeps_its_verification() {
        let text = r#"{"uid":"u","namespace":"n","name":"s","generation":1,"broker":"b","webhook":{"verification":{"github":{"secrets":["s3cret"]}},"event":{"set":{"type":"t"}},"source":"/s"}}"#;
        let source: Source = serde_json::from_str(text).unwrap();
        assert!(!source.kind.runs());
        assert!(!format!("{source:?}").contains("s3cret"));
        assert_eq!(serde_json::to_string(&source).unwrap(), text);
    }

    #[test]
    fn routers_know_no_objects() {
        let text = r#"{"uid":"u","namespace":"n","name":"s","generation":1,"broker":"b","kubernetes":{}}"#;
        let source: Source = serde_json::from_str(text).unwrap();
        assert!(!source.kind.runs());
        assert_eq!(serde_json::to_string(&source).unwrap(), text);
    }

    #[test]
    fn rejects_unknown_kinds_and_fields() {
        let cron = json!({"schedule": "* * * * *", "timeZone": "UTC", "attributes": [], "data": null});
        let source = |more: Value| {
            let mut source =
                json!({"uid": "u", "namespace": "n", "name": "s", "generation": 1, "broker": "b"});
            source
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value::<Source>(source)
        };
        assert!(source(json!({"cron": cron})).is_ok());
        let mut newer = cron.clone();
        newer["jitter"] = "5m".into();
        for (more, part) in [
            (json!({}), "no kind"),
            (json!({"queue": {}}), "unknown field `queue`"),
            (json!({"cron": newer}), "unknown field `jitter`"),
        ] {
            let error = source(more).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
