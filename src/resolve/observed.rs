//! The observed state of the cluster, or of the files in local mode, as plain collections. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

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
    /// The objects with a URL in their status that Triggers and Sinks reference. One that is absent has not been read yet.
    pub addressables: BTreeMap<AddressableName, AddressableState>,
    /// What the operator lets destinations reach in the cluster.
    pub reach: ClusterReach,
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

/// A kind of object that has a URL in its status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressableKind {
    /// Group and version, such as `serving.knative.dev/v1`.
    pub api_version: String,
    /// Kind, such as `Service`.
    pub kind: String,
}

/// Identifies an object that has a URL in its status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressableName {
    /// Its kind.
    pub kind: AddressableKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Known state of an object that has a URL in its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressableState {
    /// It exists.
    Found(StatusAddress),
    /// It does not exist.
    NotFound,
    /// The API server has no such kind.
    UnknownKind,
    /// Objects of the kind are not in namespaces.
    ClusterScoped,
    /// The controller may not read the kind.
    Forbidden {
        /// Name of the resource, such as `services.serving.knative.dev`.
        resource: String,
    },
    /// Too many kinds are referenced.
    TooManyKinds,
    /// It could not be read yet.
    Unreadable(String),
    /// There is no API server, as in local mode.
    Unsupported,
}

/// Address in the status of an object, by the Addressable contract of Knative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusAddress {
    /// URL; `None` until the object has one.
    pub url: Option<String>,
    /// Certificates of the authorities that signed its certificate, in PEM.
    pub ca_certs: Option<Arc<str>>,
}

/// What the operator lets destinations reach in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterReach {
    /// Whether a destination may be a Service of type ExternalName.
    pub external_name_services: bool,
    /// Namespaces whose Services every namespace may reach by the URL of an object or by a Service of type ExternalName;
    /// `*` is every namespace.
    pub shared_namespaces: BTreeSet<String>,
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
    /// The name that it is an alias of, if it is of type ExternalName.
    pub external_name: Option<String>,
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
