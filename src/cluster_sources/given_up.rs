//! Why a change or its event was given up.

use jiff::Timestamp;

/// A change that makes no event, or an event that the broker will never accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// When the change was seen, or the event rejected.
    pub(super) at: Timestamp,
    /// Stable word.
    pub(super) reason: String,
    /// What is wrong, and with which object.
    pub(super) message: String,
}
