//! Findings about each resource, which its status is written from. Pure.

use super::finding::Finding;

/// Identifies a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResourceId {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Generation that was examined.
    pub generation: i64,
}

/// Findings about a Trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerDiagnosis {
    /// The Trigger.
    pub subject: ResourceId,
    /// Whether its filters compile.
    pub filters: Finding,
    /// Whether its transform compiles, if it has one.
    pub transform: Option<Finding>,
    /// Whether its destination is resolved.
    pub sink: Finding,
    /// Whether the destination of its dead letters is resolved, if it has one.
    pub dead_letter_sink: Option<Finding>,
    /// URI of its destination.
    pub sink_uri: Option<String>,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Its broker, as `namespace/name`.
    pub broker: String,
}

/// Findings about a Sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkDiagnosis {
    /// The Sink.
    pub subject: ResourceId,
    /// Whether the destination is resolved.
    pub resolved: Finding,
    /// URI of the destination.
    pub uri: Option<String>,
}

/// Findings about a Broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerDiagnosis {
    /// The Broker.
    pub subject: ResourceId,
    /// Whether its settings are valid.
    pub valid: Finding,
    /// Its broker, as `namespace/name`.
    pub broker: String,
}

/// Findings about a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDiagnosis {
    /// The Source.
    pub subject: ResourceId,
    /// Whether it can produce events.
    pub valid: Finding,
    /// Whether it is suspended.
    pub suspended: bool,
    /// Its broker, as `namespace/name`.
    pub broker: String,
    /// Whether it receives requests.
    pub is_webhook: bool,
    /// Whether `weir sources` runs it.
    pub is_kubernetes: bool,
}

/// Findings about every resource, ordered by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnoses {
    /// Triggers.
    pub triggers: Vec<TriggerDiagnosis>,
    /// Sinks.
    pub sinks: Vec<SinkDiagnosis>,
    /// Sources.
    pub sources: Vec<SourceDiagnosis>,
    /// Brokers.
    pub brokers: Vec<BrokerDiagnosis>,
}
