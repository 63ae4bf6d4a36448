//! The final state of an event for a Trigger. Pure.

/// Final state of an event for a Trigger that wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The Sink accepted it.
    Delivered,
    /// Its `expirytime` had passed.
    Expired,
    /// Delivery ended without success; the event is kept as a dead letter.
    DeadLettered,
    /// Its record could not be read, or was removed from the full log.
    Dropped,
}
