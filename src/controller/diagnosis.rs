//! What compiling found out about each resource; its status is written from this.

/// Whether one thing is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether it is.
    pub holds: bool,
    /// One word in CamelCase, stable, for machines and columns.
    pub reason: &'static str,
    /// What is wrong and what to do, or how it is.
    pub message: String,
}

impl Finding {
    /// It is as it should be.
    pub fn good(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: true,
            reason,
            message: message.into(),
        }
    }

    /// It is not.
    pub fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: false,
            reason,
            message: message.into(),
        }
    }
}

/// Names a resource of some kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The generation that was looked at.
    pub generation: i64,
}

/// What was found out about a Trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerDiagnosis {
    /// Which one.
    pub subject: Subject,
    /// Whether its filters could be compiled.
    pub filters: Finding,
    /// Whether its destination is known.
    pub sink: Finding,
    /// Whether the destination of its dead letters is known, if it has one.
    pub dead_letter_sink: Option<Finding>,
    /// Where its events go.
    pub sink_uri: Option<String>,
    /// Whether it is held on purpose.
    pub suspended: bool,
    /// Its broker as `namespace/name`.
    pub broker: String,
}

/// What was found out about a Sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkDiagnosis {
    /// Which one.
    pub subject: Subject,
    /// Whether the destination is known.
    pub resolved: Finding,
    /// Where events go.
    pub uri: Option<String>,
}

/// What was found out about a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceDiagnosis {
    /// Which one.
    pub subject: Subject,
    /// Whether it can make events.
    pub valid: Finding,
    /// Whether it is held on purpose.
    pub suspended: bool,
    /// Its broker as `namespace/name`.
    pub broker: String,
}

/// What was found out about every resource, in order of namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnoses {
    /// The Triggers.
    pub triggers: Vec<TriggerDiagnosis>,
    /// The Sinks.
    pub sinks: Vec<SinkDiagnosis>,
    /// The Sources.
    pub sources: Vec<SourceDiagnosis>,
}
