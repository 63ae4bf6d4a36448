//! A Trigger: a broker, filters, a destination and delivery settings.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{DeliverySpec, Destination, Filter, TransformSpec};

/// Delivers the events of a broker that match its filters to a destination.
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
    doc = "A Trigger takes the events of a broker in its namespace that match its filters and delivers each to its sink. It may be applied before its Sink, its Service or any matching event exists, and becomes ready by itself once they do.",
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
    /// Broker to take events from, in the Trigger's namespace. Producers post to /NAMESPACE/BROKER. Immutable.
    /// Default: default.
    #[serde(default = "super::default_broker")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = ("self == oldSelf", "broker cannot be changed: delete the Trigger and create it again"))]
    pub broker: String,

    /// Filters that select events. An event must match all of them; an empty or absent list selects every event. At
    /// most 32.
    /// Each filter is exactly one of:
    ///   exact, prefix, suffix - a map of attributes to values, all of which must match;
    ///   all, any - a list of filters;
    ///   not - one filter;
    ///   sql - a CESQL expression, such as "EXISTS priority AND priority > 5";
    ///   cel - a CEL expression, which can also read the data, such as "event.data.amount > 100".
    /// all, any and not can be nested three deep. For example, high-priority orders that do not come from a test:
    ///   filters:
    ///   - prefix: {type: com.example.order.}
    ///   - exact: {priority: high}
    ///   - not: {suffix: {source: /test}}
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub filters: Vec<Filter>,

    /// Destination of the events: exactly one of ref, service and uri.
    pub sink: Destination,

    /// Changes made to each event just before it is sent: attributes set or removed, and new data from a template. For
    /// example:
    ///   transform:
    ///     attributes:
    ///       set: {type: com.example.order.v2, region: "${event.source}"}
    ///       remove: [secretext]
    ///     data:
    ///       id: ${data.order.id}
    ///       note: order ${data.order.id}
    /// Default: events are sent as they were received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<TransformSpec>,

    /// Delivery settings. They override those of the Sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliverySpec>,

    /// Position at which a new Trigger starts: Latest takes events accepted from now on, Earliest also those that
    /// the broker still retains, and a time such as 2026-11-24T08:00:00Z those accepted since then. Read once, when
    /// a router first sees the Trigger. Default: the position of a recently deleted Trigger with the same name and
    /// broker (see --keep-deleted-triggers of the routers), else Latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,

    /// Pauses delivery. Events wait in the broker's log and are delivered once this is false again. Default: false.
    #[serde(default)]
    pub suspend: bool,
}

/// Position at which a new Trigger starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The next event.
    Latest,
    /// The oldest retained event.
    Earliest,
    /// The first retained event that was accepted at or after this time.
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
                    "start {time:?} is not Latest, Earliest or a time such as 2026-11-24T08:00:00Z"
                ))
            }),
        }
    }
}

/// A valid calendar date. A value that the API server accepts and the controller cannot parse would have no status
/// to report the error. CEL's `timestamp()` also rejects invalid dates, but without our message.
const DAY: &str = "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|\
                   [12][0-9]{3}-(0[13-9]|1[0-2])-(29|30)|\
                   [12][0-9]{3}-(0[13578]|1[02])-31|\
                   ([12][0-9](0[48]|[2468][048]|[13579][26])|(1[26]|2[048])00)-02-29";

/// A time of day, with up to nanosecond precision.
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

/// Status reported by the controller and the routers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TriggerStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: events flow. FiltersValid: the filters compile. TransformValid: the transform, if there is one, compiles.
    /// SinkResolved: the destination is known. Applied:
    /// every live router routes by this generation. If one of them is not True, reason and message say what to do.
    /// SinkAnswering: the Sink responds, with success or failure. False while a router sees it failing repeatedly,
    /// or after it asked for a long pause, or if no router delivers the broker's events. Ready does not depend on it. Set once the Sink has responded and every
    /// router has reported, while events may flow.
    /// Resumed: present if the Trigger resumed from the position of a deleted Trigger with its name.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// URI that events are posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_uri: Option<String>,

    /// URL that producers post events to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn schema_accepts_exactly_the_times_that_parse(
            text in "[12][0-9]{3}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-][01][0-9]:[0-5][0-9])",
        ) {
            let taken = regex::Regex::new(&format!("^({DAY})T{TIME}({ZONE})$")).unwrap().is_match(&text);
            prop_assert_eq!(taken, text.parse::<Timestamp>().is_ok(), "{}", text);
        }
    }

    #[test]
    fn accepts_leap_days_only_in_leap_years() {
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
