//! Turns the watched resources into the routing configuration and a diagnosis of each resource. Pure.
//!
//! ```text
//! observed -> compile -> (configuration, diagnoses)
//! ```
//! One function computes both, so that routers and statuses cannot disagree. The controller calls it with the
//! resources it watches; `weir run`, `weir validate` and `weir explain` with resources from files.

mod addressables;
mod brokers;
mod compile;
mod credentials;
mod diagnosis;
mod event_attributes;
mod filters;
mod finding;
mod hosts;
mod kubernetes;
mod observed;
mod producers;
mod referrers;
mod resolver;
mod revision;
mod selectors;
mod sources;
#[cfg(test)]
mod tests;
mod tokens;
mod transforms;
pub mod trim;
mod webhooks;

pub use addressables::{
    ADDRESS_AWAITED, ADDRESS_MISSING, ADDRESS_NOT_ALLOWED, ADDRESS_UNSUPPORTED, named_addressables,
};
pub use compile::{CompileOutcome, compile};
pub use credentials::{SECRET_AWAITED, grant};
pub use diagnosis::{
    BrokerDiagnosis, Diagnoses, ResourceId, SinkDiagnosis, SourceDiagnosis, TriggerDiagnosis,
};
pub use finding::Finding;
pub use kubernetes::{KubernetesPlan, PlannedKind, plan_kubernetes, source_filters};
pub use observed::{
    AddressableKind, AddressableName, AddressableState, ClusterReach, Namespace, Observed, Port,
    ProducerCheck, SecretName, SecretState, Service, ServiceAccount, StatusAddress, TokenName, TokenState,
};
pub use referrers::{Naming, Referrers};
pub use revision::fingerprint;
pub use tokens::TOKEN_AWAITED;
