//! From the routing configuration to the routing table, and from an event to the Triggers that want it. Pure.

mod configuration;

pub use configuration::{
    BackoffPolicy, Configuration, ContentMode, Cron, Delivery, Destination, Retry, Revision, ServiceName,
    Source, Start, Trigger,
};
