//! What the controller has seen of the cluster, or local mode of its files: plain collections.

use std::collections::{BTreeMap, BTreeSet};

use crate::{api, routing::Secret};

/// The resources that routing is computed from. Their order does not matter.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every Source.
    pub sources: Vec<api::Source>,
    /// Every Trigger, but for those that are unread.
    pub triggers: Vec<api::Trigger>,
    /// The UIDs of Triggers that cannot be read, as another version of Weir wrote them.
    pub unread_triggers: BTreeSet<String>,
    /// Every Sink.
    pub sinks: Vec<api::Sink>,
    /// Every Service.
    pub services: Vec<Service>,
    /// Every namespace.
    pub namespaces: Vec<Namespace>,
    /// The Secrets that Sinks name; one that is not here has not been looked for yet.
    pub secrets: BTreeMap<SecretName, SecretState>,
}

/// Names a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is known of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// It is there.
    Found {
        /// Another one whenever a value is, and made without any.
        version: String,
        /// The values of its keys, at least of those that Sinks name. Bytes that are no text have become U+FFFD.
        values: BTreeMap<String, Secret>,
        /// The keys that were looked for; `None` means all.
        looked_for: Option<BTreeSet<String>>,
    },
    /// There is none of this name.
    NotFound,
    /// The controller may not read it.
    Forbidden {
        /// Who the controller is, as `kubectl create rolebinding` takes it; `None` if that is not known.
        account: Option<String>,
    },
    /// It could not be read so far.
    Unreadable(String),
    /// It is not read, since what routers get is not encrypted on its way.
    Withheld,
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
    /// Whether it is being deleted: nothing can be made in it any more.
    pub terminating: bool,
}
