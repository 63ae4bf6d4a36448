//! Which shards this router owns, and the delivery of each.
//!
//! A router with an embedded log owns its only shard for good. Routers that share a log in NATS JetStream divide its
//! shards: each shard has one owner, which delivers the events of its brokers, runs their Sources, and alone may save
//! their checkpoints. A broker with several partitions has each in another shard; its Sources and dead letters are with
//! the first.
//!
//! Reading order: `shards.rs` has the shards of this router and their engines, `inspection.rs` answers questions about
//! them all, and `trigger.rs` has a Trigger as this router delivers it. `sharing.rs` takes shards and gives them up as
//! routers come and go, and `assignment.rs` decides which. `logs.rs` shows an engine the logs of its shard, and
//! `applied.rs` records which routing configuration it has. `past.rs` has the counts of engines that ended.

mod applied;
mod assignment;
mod inspection;
mod logs;
mod past;
mod shards;
mod sharing;
mod trigger;

pub use shards::{EngineStarter, Shards};
pub use sharing::WorkSharing;
pub use trigger::OwnedTrigger;
