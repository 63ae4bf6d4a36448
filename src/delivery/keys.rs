//! The `partitionkey` of events, by which they are ordered and divided among partitions. Pure.

use std::borrow::Cow;

use crate::{
    cloudevents::Event,
    log::{Offset, Partition},
};

/// Returns the key of an event, if it has one.
pub(super) fn key_of(event: &Event) -> Option<Box<str>> {
    key(event).map(Into::into)
}

/// Returns the partition, of so many, that an event of the log is in.
pub fn partition_of(event: &Event, offset: Offset, partitions: u16) -> Partition {
    Partition::of_event(key(event).as_deref(), offset, partitions)
}

/// Whether an event of the log is in this partition.
pub(super) fn is_in(partition: Partition, event: &Event, offset: Offset) -> bool {
    partition == Partition::WHOLE || partition.has(key(event).as_deref(), offset)
}

fn key(event: &Event) -> Option<Cow<'_, str>> {
    event.attribute("partitionkey").map(|key| key.canonical())
}
