//! What a destination is sent. Pure.

use crate::cloudevents::Event;

/// An event on its way to a destination.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The event.
    pub event: &'a Event,
    /// Why it is sent.
    pub purpose: SendPurpose,
    /// The Trigger, as `namespace/name`.
    pub trigger: &'a str,
    /// The Trigger's broker, as `namespace/name`.
    pub broker: &'a str,
    /// Number of the attempt, starting at 1.
    pub number: u32,
}

/// Why an event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendPurpose {
    /// The Trigger wants it. The destination may reply with events.
    Delivery,
    /// It is a dead letter, for the Trigger's dead-letter Sink. Replies are ignored.
    DeadLetter,
}
