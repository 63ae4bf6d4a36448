//! The custom resources of the API group `weir.dev`, version `v1alpha1`: types, defaults, printer columns and
//! validation rules. No logic and no I/O.
//!
//! `kubectl explain` shows these doc comments, so they address the author of a manifest.

#![allow(
    clippy::duplicated_attributes,
    reason = "false positive: repeated `printcolumn` attributes define different columns"
)]

mod broker;
mod condition;
mod delivery;
mod destination;
mod filter;
mod headers;
mod kubernetes;
mod schema;
mod sink;
mod source;
mod transform;
mod trigger;
mod webhook;

pub use broker::{
    BasicCredentials, Broker, BrokerDeduplication, BrokerQuota, BrokerRetention, BrokerSpec, BrokerStatus,
    Producer, ProducerAccount, ProducerCertificate, WhenFull,
};
pub use condition::{CONNECTED, condition, whole_seconds};
pub use delivery::{BackoffPolicy, DeliverySpec, DurationText, Ordering, RateLimit};
pub use destination::{AddressableRef, Destination, DestinationRef, Scheme, ServicePort, ServiceTarget};
pub use filter::{Filter, MAX_EXPRESSION, NESTED_FILTERS};
pub use headers::is_reserved_header;
pub use kubernetes::{KubernetesSource, ObjectChange, ObjectData, ObjectEvent, ObjectSelection};
pub use sink::{
    Authorization, ClientCertificate, ClientCredentials, ContentMode, Header, NamespaceSelector,
    SecretKeyRef, SecretValue, ServiceAccountToken, Signature, Sink, SinkSpec, SinkStatus, SinkTls,
    StandardWebhooks,
};
pub use source::{CatchUp, CronData, CronSource, Source, SourceRejectionStatus, SourceSpec, SourceStatus};
pub use transform::{TransformAttributes, TransformSpec};
pub use trigger::{Start, Trigger, TriggerSpec, TriggerStatus};
pub use webhook::{
    HmacAlgorithm, HmacEncoding, NoVerification, WebhookBasic, WebhookCloudEvents, WebhookEvent, WebhookHmac,
    WebhookKeys, WebhookSecrets, WebhookSource, WebhookToken, WebhookVerification,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every Weir resource.
pub const GROUP: &str = "weir.dev";

/// The broker that exists in every namespace.
pub const DEFAULT_BROKER: &str = "default";

/// The custom resource definitions.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![Source::crd(), Broker::crd(), Trigger::crd(), Sink::crd()]
}

fn default_broker() -> String {
    DEFAULT_BROKER.to_owned()
}
