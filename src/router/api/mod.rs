//! The router's API for people and tools: plain data with a stable JSON form, and the admin routes that answer
//! with it. Local access only; see `operator.rs`.

mod broker_delivery;
mod explanation;
mod triggers;

pub(super) use broker_delivery::{BrokerDelivery, TriggerPart, delivery_route};
pub use explanation::{
    DeadLetterOf, DeletedTrigger, DeliveryProgress, EventName, EventPlace, EventState, Explained,
    TriggerExplained,
};
pub use triggers::{SinkDown, TriggerList, TriggerSnapshot};
pub(super) use triggers::{Triggers, routes};
