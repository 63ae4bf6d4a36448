//! A Source: events produced by Weir itself.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Filter, KubernetesSource, WebhookSource};

/// A producer of events inside Weir, which posts them to a broker.
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
    doc = "A Source is a producer of events inside Weir, which posts them to a broker in its namespace. Its kind is a schedule (cron), the requests of another system (webhook), or changes of objects in the cluster (kubernetes).",
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
        name = "Connected",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Connected\")].status"
    ),
    printcolumn(name = "Broker", type_ = "string", json_path = ".spec.broker"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.cron.schedule"),
    printcolumn(name = "Last Event", type_ = "date", json_path = ".status.lastEventTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.cron), has(self.webhook), has(self.kubernetes)].filter(set, set).size() == 1", "exactly one of cron, webhook and kubernetes must be set"))]
pub struct SourceSpec {
    /// Broker that events are posted to, in the Source's namespace. Default: default.
    #[serde(default = "super::default_broker")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub broker: String,

    /// Produces an event at each time of a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<CronSource>,

    /// Produces an event of each request that another system posts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSource>,

    /// Produces an event of each change of objects in the cluster. Needs weir sources, which sources.enabled of the chart
    /// installs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSource>,

    /// Filters that select events, as those of a Trigger: an event that does not match all of them is not posted. A request
    /// that makes such an event is answered with 204. At most 32. Default: every event is posted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub filters: Vec<Filter>,

    /// Pauses the Source: no events are produced while this is true, and the requests of a webhook are rejected. Objects
    /// that changed meanwhile are told afterwards, in their final state. Default: false.
    #[serde(default)]
    pub suspend: bool,
}

/// A schedule and the event to produce at each of its times. The event's id is derived from the Source's UID and
/// the scheduled time, so that duplicates have the same source and id. Its time attribute is the scheduled time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.data) || has(self.data.text) != has(self.data.json)", "data must have exactly one of text and json"))]
pub struct CronSource {
    /// Cron expression with five fields (minute, hour, day of month, month, day of week) or six (seconds first).
    /// For example "*/5 * * * *" for every five minutes, or "0 8 * * MON-FRI" for 08:00 on weekdays.
    #[schemars(length(min = 1, max = 256))]
    pub schedule: String,

    /// IANA time zone of the schedule, for example Europe/Berlin. Default: UTC.
    #[serde(default = "utc")]
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$")
    )]
    pub time_zone: String,

    /// Which scheduled times are made up for that were missed because nobody ran the Source, or the clock was set
    /// forward: None; Last, the latest one; or All, in order, the latest 100. Their events have the scheduled time. Times
    /// while the Source is suspended, and those before its last change, are not missed. Default: None.
    #[serde(default)]
    pub catch_up: CatchUp,

    /// The type attribute of the events, for example com.example.report.due.
    #[schemars(length(min = 1, max = 1024))]
    pub r#type: String,

    /// The source attribute of the events, a URI-reference. Default:
    /// /apis/weir.dev/v1alpha1/namespaces/NAMESPACE/sources/NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub source: Option<String>,

    /// The subject attribute of the events. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub subject: Option<String>,

    /// The data of the events. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<CronData>,

    /// Extension attributes of the events. Names consist of lower-case letters and digits. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 1024}))]
    #[x_kube(
        validation = ("self.all(name, name.matches('^[a-z0-9]+$'))", "attribute names are lower-case letters and digits"),
        validation = ("!self.exists(name, name in ['id', 'source', 'type', 'specversion', 'time', 'subject', 'datacontenttype', 'dataschema', 'data'])", "id, source, type, specversion, time, subject, datacontenttype, dataschema and data are not extensions")
    )]
    pub extensions: BTreeMap<String, String>,
}

/// Which missed times of a schedule are made up for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CatchUp {
    /// None of them.
    #[default]
    None,
    /// The latest one.
    Last,
    /// The latest 100.
    All,
}

/// The data of an event: exactly one of text and json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CronData {
    /// Data as text, sent verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub text: Option<String>,

    /// Data as JSON text. Must be valid JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub json: Option<String>,

    /// Media type of the data. Default: text/plain for text, application/json for json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub content_type: Option<String>,
}

/// Status reported by the controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the Source is in force, a schedule runs, and objects are watched. Connected: events come. True if requests were
    /// accepted, each scheduled time has its event, or the objects are watched; Unknown before the first request, or while the objects
    /// are listed. If False, reason and message say what to do.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// URL of the broker that events are posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_url: Option<String>,

    /// URL that the requests of a webhook are posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_url: Option<String>,

    /// When the last event was stored. Updated at most every minute while events come, and less often if there are
    /// thousands of Sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_event_time: Option<String>,

    /// The last request of a webhook that was rejected, or the last change of an object that was given up, because no event
    /// can be made of it or the broker will never accept it. Updated as rarely as lastEventTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rejection: Option<SourceRejectionStatus>,

    /// The oldest scheduled time that is due and has no event yet, while the event log does not take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub waiting_since: Option<String>,
}

/// A request that was rejected, or a change that was given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceRejectionStatus {
    /// When it came, or was given up.
    #[schemars(extend("format" = "date-time"))]
    pub time: String,

    /// Why: of a request, the reason in the response and in the metric weir_webhook_requests_total; of a change,
    /// mapping_failed if an expression of spec.kubernetes.event fails, filter_failed, or the reason of the broker.
    pub reason: String,

    /// What is wrong with it.
    pub message: String,
}

fn utc() -> String {
    "UTC".to_owned()
}
