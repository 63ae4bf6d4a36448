//! The meaning of an answer for an event. Pure.

/// Meaning of an answer for the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The destination accepted it.
    Delivered,
    /// It failed; a retry may succeed.
    Failed(Blame),
    /// The destination rejected it: no retry will succeed.
    Rejected,
    /// The router lacked a connection or memory. This says nothing about the destination and does not count as an
    /// attempt; another follows shortly.
    RouterBusy,
}

/// What a failed attempt says about its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The destination is unreachable or does not answer in time.
    Silent,
    /// The destination, or a gateway in front of it, is temporarily unavailable.
    Unavailable,
    /// The destination reports too many requests.
    TooFast,
    /// The destination failed on this event.
    Event,
}
