//! The observed state of the cluster, or of the files in local mode, as plain collections. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api,
    routing::{Broker, Secret, TokenIssuer, UnlistedBrokers},
};

/// The resources that routing is computed from. Their order does not matter.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Brokers.
    pub brokers: Vec<api::Broker>,
    /// Brokers whose Broker cannot be decoded because another version of Weir wrote it.
    pub unread_brokers: BTreeSet<Broker>,
    /// Sources.
    pub sources: Vec<api::Source>,
    /// Triggers, except unreadable ones.
    pub triggers: Vec<api::Trigger>,
    /// UIDs of Triggers that cannot be decoded because another version of Weir wrote them.
    pub unread_triggers: BTreeSet<String>,
    /// Sinks.
    pub sinks: Vec<api::Sink>,
    /// Services.
    pub services: Vec<Service>,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// The Secrets that Sinks and Brokers reference. One that is absent has not been read yet.
    pub secrets: BTreeMap<SecretName, SecretState>,
    /// The tokens that Sinks reference. One that is absent has not been requested yet.
    pub tokens: BTreeMap<TokenName, TokenState>,
    /// What ServiceAccounts are checked by; `None` where there are none, as in local mode.
    pub producers: Option<ProducerCheck>,
}

/// What ServiceAccounts are checked by.
#[derive(Clone, Debug)]
pub struct ProducerCheck {
    /// Who may post to a broker whose Broker lists no producers.
    pub others: UnlistedBrokers,
    /// Whether rejected requests are let pass, and only counted and logged.
    pub audit: bool,
    /// Who issues the tokens of ServiceAccounts, or why that is unknown.
    pub issuer: Result<TokenIssuer, String>,
    /// All ServiceAccounts.
    pub accounts: Vec<ServiceAccount>,
}

/// A ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// Identifies a Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Known state of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretState {
    /// It exists.
    Found {
        /// Opaque version; changes with any value, but is not derived from the values.
        version: String,
        /// Values by key, at least of the referenced keys. Bytes that are not UTF-8 are replaced by U+FFFD.
        values: BTreeMap<String, Secret>,
        /// Keys that were looked up; `None` means all.
        looked_for: Option<BTreeSet<String>>,
    },
    /// It does not exist.
    NotFound,
    /// The controller may not read it.
    Forbidden {
        /// The controller's account, as an argument of `kubectl create rolebinding`; `None` if unknown.
        account: Option<String>,
    },
    /// It could not be read yet.
    Unreadable(String),
    /// Not read, because the channel to routers is not encrypted.
    Withheld,
}

/// Identifies a token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenName {
    /// Namespace.
    pub namespace: String,
    /// Name of the ServiceAccount.
    pub account: String,
    /// Audience.
    pub audience: String,
}

/// Known state of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It was issued.
    Issued {
        /// The token.
        token: Secret,
        /// Opaque version; changes with the token, but is not derived from it.
        version: String,
    },
    /// The ServiceAccount does not exist.
    NotFound,
    /// The controller may not request it.
    Forbidden {
        /// The controller's account, as an argument of `kubectl create rolebinding`; `None` if unknown.
        account: Option<String>,
    },
    /// It could not be requested yet, or not renewed before it expired.
    Unavailable(String),
    /// Not requested, because the channel to routers is not encrypted.
    Withheld,
    /// There is no API server, as in local mode.
    Unsupported,
}

/// The parts of a Service that routing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Ports; `None` if any port is accepted as given, as in local mode.
    pub ports: Option<Vec<Port>>,
    /// Whether it is an alias of a name outside the cluster (`type: ExternalName`).
    pub external_name: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, or empty.
    pub name: String,
    /// Number.
    pub number: u16,
}

/// The parts of a namespace that routing needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted, so that nothing can be created in it.
    pub terminating: bool,
}
