//! Changes of objects in the cluster, and the events that tell them. Pure: `src/cluster_sources` watches the objects, posts
//! the events, and keeps what is to be remembered.
//!
//! A [`Ledger`] knows of each object which version was told last. What it is shown, by a watch or by a list after a restart,
//! it compares with that, so that each final state is told, and deletions too. Its [records](Ledger::take_unsaved) are
//! durable before an object is told as added: otherwise nobody would know after a crash that the object had existed, and
//! its deletion would not be told. Everything else is recorded after it was told, so a crash repeats some events, with the
//! same ids.

mod event;
mod ledger;
mod maker;
mod merge_patch;
mod names;
mod object;
#[cfg(test)]
mod properties;
mod record;

pub use ledger::{Ledger, ObservedChange, UnsavedRecords};
pub use maker::{ChangeRejection, EventMaker, InvalidObjectEvents};
pub use names::KindNames;
pub use object::{InvalidObject, ObservedObject};
pub use record::{InvalidRecord, ObjectKey, ObjectPlace, Record, SHARDS, shard_of};
