//! What the controller has seen of the cluster, or local mode of its files: plain collections.

use std::collections::BTreeMap;

use crate::api;

/// The resources that routing is computed from. Their order does not matter.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every Source.
    pub sources: Vec<api::Source>,
    /// Every Trigger.
    pub triggers: Vec<api::Trigger>,
    /// Every Sink.
    pub sinks: Vec<api::Sink>,
    /// Every Service.
    pub services: Vec<Service>,
    /// Every namespace.
    pub namespaces: Vec<Namespace>,
}

/// What routing needs to know of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ports; `None` where any port is taken as it is asked for, as in local mode.
    pub ports: Option<Vec<Port>>,
    /// Whether it only stands for a name outside the cluster (`type: ExternalName`).
    pub external_name: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name, empty if it has none.
    pub name: String,
    /// Its number.
    pub number: u16,
}

/// What routing needs to know of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
