//! A Broker: the settings of a broker.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DurationText, Filter, SecretValue};

/// Settings of the broker with the same name.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Broker",
    plural = "brokers",
    shortname = "wbr",
    category = "weir",
    category = "eventing",
    namespaced,
    status = "BrokerStatus",
    derive = "PartialEq",
    doc = "A Broker configures the broker with the same name in its namespace. It is optional: without one, a broker exists once a Trigger or a Source names it, with the settings of the installation. A Broker also creates its broker, before any Trigger names it.",
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
        name = "Within Quota",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"WithinQuota\")].status"
    ),
    printcolumn(name = "Backlog", type_ = "integer", json_path = ".status.backlog"),
    printcolumn(name = "Fill %", type_ = "integer", json_path = ".status.fillPercent"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct BrokerSpec {
    /// How long settled events are kept, for Triggers that start in the past. Events that are not settled stay
    /// regardless. Default: the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<BrokerRetention>,

    /// Number of partitions, by event key. Up to that many routers deliver the broker's events in parallel. Fixed when the
    /// broker is first used, so apply the Broker before its first Trigger and event. Ignored by routers with an embedded
    /// log. Default: the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 24))]
    #[x_kube(validation = ("self == oldSelf", "partitions cannot be changed: use another broker"))]
    pub partitions: Option<u16>,

    /// Producers that may post events to this broker; everyone else gets 401 or 403. An empty list lets nobody post.
    /// Events from Sources and replies are not affected: a webhook has a verification of its own. Default: the installation's rule, which lets everyone post
    /// unless the operator has set another. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub producers: Option<Vec<Producer>>,

    /// Limits of what producers may post. Each is capped by the installation's limit; the condition Ready says when.
    /// Default: the installation's defaults, or else its limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<BrokerQuota>,

    /// Recognizes events that are sent again: one with the source and id of another that the broker remembers is not
    /// stored a second time. Producers get 202 for a repeat, and 422 if the type, the data or another attribute differs.
    /// Default: the installation's, which is off unless the operator has set another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<BrokerDeduplication>,

    /// What happens to new events when quota.bytes or the namespace's share of an embedded log is used up. Reject:
    /// producers get 507. DropOldest: the oldest events are removed instead, whether Triggers have settled them or not;
    /// in a namespace that has used up its share, those of all its brokers with DropOldest. Ignored by routers with a
    /// log in JetStream. Default: the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_full: Option<WhenFull>,
}

/// For how long a broker remembers the source and id of its events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerDeduplication {
    /// Time for which an event is remembered, at least. 0s turns deduplication off. Capped by the installation's limit;
    /// the condition Ready says when. Default: the installation's, or else 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub window: Option<DurationText>,

    /// Number of the newest events that are remembered, at each router; older ones are forgotten even within the window.
    /// Each takes about 100 bytes of a router's memory and 60 of the log. Capped like the window. Ignored by routers with a
    /// log in JetStream. Default: the installation's, or else 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub events: Option<u32>,
}

/// What happens to new events when there is no room for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WhenFull {
    /// Producers get 507.
    Reject,
    /// The oldest events are removed.
    DropOldest,
}

/// A producer, and the events that it may post.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("[has(self.serviceAccount), has(self.bearerToken), has(self.basic), has(self.certificate)].filter(set, set).size() == 1", "exactly one of serviceAccount, bearerToken, basic and certificate must be set"))]
pub struct Producer {
    /// ServiceAccount whose token authenticates the producer. The token is sent as "Authorization: Bearer TOKEN" and
    /// must be issued for the audience weir-broker. Exactly one of serviceAccount, bearerToken, basic and certificate must
    /// be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ProducerAccount>,

    /// Token from a Secret, for producers without a ServiceAccount, such as those outside the cluster. It is sent as
    /// "Authorization: Bearer TOKEN". The controller must be granted access to the Secret (the Broker's status shows
    /// how). A changed Secret takes effect within a minute; to rotate a token without a gap, list the old and the new
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer_token: Option<SecretValue>,

    /// User name and password, for producers that can send nothing else, by the Basic scheme of HTTP. The Secret is read
    /// as for bearerToken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicCredentials>,

    /// Name in a client certificate (mutual TLS). It works for connections over HTTPS to a router itself, if the operator
    /// has set the authorities of client certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<ProducerCertificate>,

    /// Events that this producer may post: those that match all filters. Default: every event. A producer that is
    /// listed several times may post what any of its entries allows. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<Filter>,
}

/// A user name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BasicCredentials {
    /// User name: printable ASCII characters without a colon.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[ -9;-~]+$"))]
    pub username: String,

    /// Password: printable ASCII characters.
    pub password: SecretValue,
}

/// A subject alternative name of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.dnsName) != has(self.uri)", "exactly one of dnsName and uri must be set"))]
pub struct ProducerCertificate {
    /// DNS name, such as orders.shop.example, which the certificate must have in full: a wildcard matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub dns_name: Option<String>,

    /// URI, such as the SPIFFE ID spiffe://example.org/shop/orders, which the certificate must have character by
    /// character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 2048),
        regex(pattern = r"^[a-zA-Z][-+.a-zA-Z0-9]*:[!-~]+$")
    )]
    pub uri: Option<String>,
}

/// One ServiceAccount, or all of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProducerAccount {
    /// Namespace of the ServiceAccount. Default: the Broker's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,

    /// Name of the ServiceAccount; "*" for all in the namespace.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^(\*|[a-z0-9]([-.a-z0-9]*[a-z0-9])?)$")
    )]
    pub name: String,
}

/// Limits of what producers may post to the broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerQuota {
    /// Maximum events per second at each router; as many may come at once. Each event of a batch counts. Beyond it,
    /// producers get 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub events_per_second: Option<u32>,

    /// Maximum size of an event, its data and attributes, such as 64Ki. Larger ones are rejected with 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_size")]
    pub event_size: Option<String>,

    /// Maximum size of the events from the oldest unsettled one on, in the embedded log of each router, such as 512Mi. Beyond it,
    /// producers get 507, or the oldest events are removed: see whenFull. Ignored by routers with a log in JetStream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_size")]
    pub bytes: Option<String>,
}

/// Retention of settled events. Whichever limit is reached first removes the oldest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerRetention {
    /// Maximum age of settled events. 0s keeps none. Default: the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_duration")]
    pub age: Option<DurationText>,

    /// Size of the broker's log beyond which settled events are removed, such as 512Mi or 10Gi. Default: the
    /// installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::optional_size")]
    pub size: Option<String>,
}

/// Status reported by the controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: routers accept events for the broker with these settings. WithinQuota: no router rejects events because
    /// the broker has used up quota.bytes, or the namespace its share of the log. If not, reason and message say what
    /// to do.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,

    /// URL that events are posted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// Number of events from the oldest unsettled one on, over all routers.
    /// Only with an embedded log. Like usedBytes and fillPercent, as of usageTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<u64>,

    /// Bytes of these events, over all routers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,

    /// Percentage of quota.bytes that these events take, or without it of the namespace's share of the log, at the
    /// router where it is highest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_percent: Option<u8>,

    /// When backlog, usedBytes and fillPercent were last updated. They are updated when they have changed considerably,
    /// at most every 30 seconds, and otherwise after 5 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub usage_time: Option<String>,
}
