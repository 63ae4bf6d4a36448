//! What a router shows to people and tools: plain data with a stable JSON form, and the admin endpoint's routes that
//! answer with it. To this machine only; see `operator.rs`.

mod explanation;
mod triggers;

pub use explanation::{
    DeadLetterOf, DeletedTrigger, DeliveryProgress, EventName, EventPlace, EventState, Explained,
    TriggerExplained,
};
pub use triggers::{SinkDown, TriggerList, TriggerSnapshot};
pub(super) use triggers::{Triggers, routes};
