//! The custom resources of the API group `weir.dev`, version `v1alpha1`.
//!
//! Types, defaults, printer columns and the rules that the API server checks; no logic and no I/O. The doc
//! comments are what `kubectl explain` shows, so they speak to the author of a manifest.

#![allow(
    clippy::duplicated_attributes,
    reason = "the lint takes the columns of a table for repetitions of one attribute"
)]

mod condition;
mod delivery;
mod filter;
mod schema;
mod sink;
mod source;
mod trigger;

pub use condition::condition;
pub use delivery::{BackoffPolicy, DeliverySpec, DurationText, Ordering, RateLimit};
pub use filter::{Filter, MAX_EXPRESSION, NESTED_FILTERS};
pub use sink::{
    Authorization, ContentMode, Header, NamespaceSelector, Scheme, SecretKeyRef, SecretValue, ServicePort,
    ServiceTarget, Sink, SinkSpec, SinkStatus, is_reserved_header,
};
pub use source::{CronData, CronSource, Source, SourceSpec, SourceStatus};
pub use trigger::{Destination, SinkRef, Start, Trigger, TriggerSpec, TriggerStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every Weir resource.
pub const GROUP: &str = "weir.dev";

/// The broker that exists in every namespace.
pub const DEFAULT_BROKER: &str = "default";

/// The custom resource definitions, in the order in which they are written to `crds/`.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![Source::crd(), Trigger::crd(), Sink::crd()]
}

fn default_broker() -> String {
    DEFAULT_BROKER.to_owned()
}
