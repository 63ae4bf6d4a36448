//! The `partitionkey` of events, by which they are ordered and divided among partitions. Pure.

use crate::{
    cloudevents::Event,
    log::{Offset, Partition},
};

/// Returns the key of an event, if it has one.
pub(super) fn key_of(event: &Event) -> Option<Box<str>> {
    event.attribute("partitionkey").map(|key| key.canonical().into())
}

/// Returns the partition, of so many, that an event of the log is in.
pub fn partition_of(event: &Event, offset: Offset, partitions: u16) -> Partition {
    let found = Partition::all(partitions).find(|partition| is_in(*partition, event, offset));
    found.unwrap_or(Partition::WHOLE)
}

/// Whether an event of the log is in this partition.
pub(super) fn is_in(partition: Partition, event: &Event, offset: Offset) -> bool {
    if partition == Partition::WHOLE {
        return true;
    }
    let key = event.attribute("partitionkey").map(|key| key.canonical());
    partition.has(key.as_deref(), offset)
}
