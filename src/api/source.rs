//! A Source: something that Weir itself turns into events.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that Weir itself turns into events and posts to a broker.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Source",
    plural = "sources",
    shortname = "src",
    category = "weir",
    category = "eventing",
    namespaced,
    status = "SourceStatus",
    derive = "PartialEq",
    doc = "A Source is something that Weir itself turns into events, which it posts to a broker of the Source's namespace: at present a schedule (cron).",
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
    printcolumn(name = "Broker", type_ = "string", json_path = ".spec.broker"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.cron.schedule"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.cron)", "cron must be set: it is the only kind of Source at present"))]
pub struct SourceSpec {
    /// The broker that its events are posted to, in the Source's namespace. Default: default.
    #[serde(default = "super::default_broker")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub broker: String,

    /// Makes an event at each time of a schedule. Times that pass while no router runs are not made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<CronSource>,

    /// Makes no events while this is set.
    #[serde(default)]
    pub suspend: bool,
}

/// A schedule, and the event that each of its times makes. The event's id is made from the Source's UID and the
/// scheduled time, so that a repeat is recognisable by source and id; its time is the scheduled time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.data) || has(self.data.text) != has(self.data.json)", "data has exactly one of text and json"))]
pub struct CronSource {
    /// Five fields: minute, hour, day of month, month, day of week, for example "*/5 * * * *" for every five
    /// minutes or "0 8 * * MON-FRI" for eight o'clock on working days; or six, with seconds first.
    #[schemars(length(min = 1, max = 256))]
    pub schedule: String,

    /// The IANA time zone that the schedule is read in, for example Europe/Berlin. Default: UTC.
    #[serde(default = "utc")]
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    pub time_zone: String,

    /// The events' type attribute, for example com.example.report.due.
    #[schemars(length(min = 1, max = 1024))]
    pub r#type: String,

    /// The events' source attribute, a URI-reference. Default: /apis/weir.dev/v1alpha1/namespaces/NAMESPACE/sources/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub source: Option<String>,

    /// The events' subject attribute. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub subject: Option<String>,

    /// The events' data. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<CronData>,

    /// Extension attributes: names of lower-case letters and digits, and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$'))", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['id', 'source', 'type', 'specversion', 'time', 'subject', 'datacontenttype', 'dataschema', 'data'])", "id, source, type, specversion, time, subject, datacontenttype, dataschema and data are no extensions")
    )]
    pub extensions: BTreeMap<String, String>,
}

/// The data of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CronData {
    /// The data as text, sent as it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub text: Option<String>,

    /// The data as the text of a JSON value; it must parse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub json: Option<String>,

    /// The media type of the data. Default: text/plain for text, application/json for json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub content_type: Option<String>,
}

/// What the controller found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the Source makes events. Its reason and message say what to do where it does not.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// Where its events are posted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_url: Option<String>,
}

fn utc() -> String {
    "UTC".to_owned()
}
