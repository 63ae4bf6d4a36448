//! A Trigger: a broker, filters, a destination and how to deliver to it.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{DeliverySpec, Filter, ServiceTarget};

/// Takes the events of a broker that pass its filters and delivers them to a destination.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Trigger",
    plural = "triggers",
    shortname = "trg",
    category = "weir",
    category = "eventing",
    namespaced,
    status = "TriggerStatus",
    derive = "PartialEq",
    doc = "A Trigger takes the events of a broker of its namespace that pass its filters and delivers each to its sink. It may be applied before its Sink, its Service or the first event of its kind exist, and heals by itself.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Answering",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"SinkAnswering\")].status"
    ),
    printcolumn(name = "Broker", type_ = "string", json_path = ".spec.broker"),
    printcolumn(name = "Sink", type_ = "string", json_path = ".status.sinkUri"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct TriggerSpec {
    /// The broker whose events it takes, in the Trigger's namespace: producers post to /NAMESPACE/BROKER.
    /// Cannot be changed. Default: default.
    #[serde(default = "super::default_broker")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = ("self == oldSelf", "broker cannot be changed: delete the Trigger and create it anew"))]
    pub broker: String,

    /// Which events it takes. All filters of the list must hold; an empty or absent list takes every event.
    /// Each filter is exactly one of:
    ///   exact, prefix, suffix - a map from attribute to value, all entries must hold;
    ///   all, any - a list of filters;
    ///   not - one filter;
    ///   sql - a CESQL expression, such as "EXISTS priority AND priority > 5";
    ///   cel - a CEL expression, which sees the data too, such as "event.data.amount > 100".
    /// all, any and not can be nested three deep. For example, orders of high priority that are no tests:
    ///   filters:
    ///   - prefix: {type: com.example.order.}
    ///   - exact: {priority: high}
    ///   - not: {suffix: {source: /test}}
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub filters: Vec<Filter>,

    /// Where its events are delivered to: exactly one of ref, service and uri.
    pub sink: Destination,

    /// How its events are delivered; what is left out is taken from the Sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliverySpec>,

    /// Where a new Trigger begins: Latest takes events from now on, Earliest also what the broker still retains,
    /// and a time such as 2026-11-24T08:00:00Z what was accepted since then. Looked at once, when the Trigger is
    /// first seen. Default: where a Trigger of this name and broker was that was deleted a short while ago (the
    /// routers' --keep-deleted-triggers), else Latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,

    /// Holds delivery. Events wait in the broker's log, and nothing is lost when this is taken back.
    #[serde(default)]
    pub suspend: bool,
}

/// Where a Trigger delivers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.ref), has(self.service), has(self.uri)].filter(set, set).size() == 1", "exactly one of ref, service and uri must be set"))]
pub struct Destination {
    /// A Sink, of the Trigger's namespace or of another that allows it.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "ref")]
    pub sink: Option<SinkRef>,

    /// A Service of the Trigger's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTarget>,

    /// An absolute http or https URI outside the cluster. What is inside the cluster is named by service or ref.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_http_uri")]
    pub uri: Option<String>,
}

/// Names a Sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SinkRef {
    /// The Sink's name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,

    /// The Sink's namespace; another one than the Trigger's must be let in by the Sink's allowedNamespaces.
    /// Default: the Trigger's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
}

/// Where a new Trigger begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Latest,
    /// With the oldest event that is retained.
    Earliest,
    /// With the first retained event that was accepted at this time or later.
    At(Timestamp),
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Latest => serializer.serialize_str("Latest"),
            Self::Earliest => serializer.serialize_str("Earliest"),
            Self::At(time) => time.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "Latest" => Ok(Self::Latest),
            "Earliest" => Ok(Self::Earliest),
            time => time.parse().map(Self::At).map_err(|_| {
                de::Error::custom(format!(
                    "start {time:?} is neither Latest nor Earliest nor a time such as 2026-11-24T08:00:00Z"
                ))
            }),
        }
    }
}

/// A day of the calendar. What the API server took and the controller could not read would have no status to say
/// so; CEL's timestamp() would know the calendar too, but fails on a day that is none, without our message.
const DAY: &str = "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|\
                   [12][0-9]{3}-(0[13-9]|1[0-2])-(29|30)|\
                   [12][0-9]{3}-(0[13578]|1[02])-31|\
                   ([12][0-9](0[48]|[2468][048]|[13579][26])|(1[26]|2[048])00)-02-29";

/// A time of the day, to the nanosecond at most.
const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?";

const ZONE: &str = "Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]";

impl JsonSchema for Start {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Start".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 64,
            "x-kubernetes-validations": [{
                "rule": format!("self in ['Latest', 'Earliest'] || self.matches('^({DAY})T{TIME}({ZONE})$')"),
                "message": "must be Latest, Earliest or a time such as 2026-11-24T08:00:00Z",
            }],
        })
    }
}

/// What the controller found, and what the routers have applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: events flow. FiltersValid: the filters could be compiled. SinkResolved: the destination is known.
    /// Applied: every live router routes by this generation. Reason and message say what to do where one is not True.
    /// SinkAnswering: the Sink answers, for better or worse; False while a router finds that it keeps failing or it has
    /// asked for a long pause. Ready does not depend on it. It is set once the Sink has answered and every router has
    /// reported, while events may flow.
    /// Resumed: there where the Trigger went on from the place of a deleted one of its name.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Where its events are posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_uri: Option<String>,

    /// Where producers post events for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_start_that_the_schema_takes_can_be_read(
            text in "[12][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-][01][0-9]:[0-5][0-9])",
        ) {
            let taken = regex::Regex::new(&format!("^({DAY})T{TIME}({ZONE})$")).unwrap().is_match(&text);
            prop_assert_eq!(taken, text.parse::<Timestamp>().is_ok(), "{}", text);
        }
    }

    #[test]
    fn leap_days_are_days() {
        let days = regex::Regex::new(&format!("^({DAY})$")).unwrap();
        for year in 1000..3000 {
            let day = format!("{year}-02-29");
            assert_eq!(
                days.is_match(&day),
                day.parse::<jiff::civil::Date>().is_ok(),
                "{day}"
            );
        }
    }
}
