//! Compiles the routing configuration to the routing table, which maps an event to the Triggers that match it.
//! Pure.

mod access_review;
mod authorities;
mod authorization;
mod bounds;
mod configuration;
mod credential_digest;
mod deduplication;
mod destination;
mod explanation;
mod index;
mod objects;
mod producers;
pub mod protocol;
mod quota;
mod schedule;
mod secret;
mod signing_key;
mod source;
mod table;
mod webhook;

pub use access_review::{
    ACCESS_REVIEWS_PATH, AccessReview, AccessVerdict, MAX_REVIEW, OPERATOR_AUDIENCE, Operation,
    access_reviews_path,
};
pub use authorities::{Authorities, AuthoritiesDigest};
pub use authorization::{BasicAuthorization, bearer_token};
pub use bounds::{AdmittedTrigger, Bounds, MAX_OF_ALL, MAX_OF_NAMESPACE, TriggerRejection};
pub use configuration::{
    BackoffPolicy, Broker, BrokerPolicy, Configuration, Delivery, Ordering, RateLimit, Retry, Revision,
    Start, Trigger, Undecodable, broker_key,
};
pub use credential_digest::{CredentialDigest, InvalidDigest};
pub use deduplication::{Deduplicated, DeduplicationSettings, InstallationDeduplication};
pub use destination::{
    ClientCertificate, ClientCredentials, ContentMode, Destination, Header, HttpEndpoint, PlainHeader,
    ServiceAccountToken, ServiceName,
};
pub use explanation::{RouteExplanation, WaitReason, explain, explain_while};
pub use objects::{ChangeKind, DataForm, ObjectEvents};
pub use producers::{
    CertificateName, PRODUCER_AUDIENCE, Producer, ProducerIdentity, ProducerRules, ProducerSecret,
    TokenIssuer, TokenKey, UnlistedBrokers,
};
pub use quota::{InstallationQuotas, Quota, WhenFull};
pub use schedule::{Schedule, ScheduleError};
pub use secret::Secret;
pub use signing_key::{InvalidSigningKey, SigningKey};
pub use source::{CatchUp, Cron, KubernetesObjects, Source, SourceKind};
pub use table::{BrokerTable, ExistingBrokers, Route, RoutingTable};
pub use webhook::{HmacAlgorithm, HmacEncoding, HmacVerification, Verification, Webhook};
