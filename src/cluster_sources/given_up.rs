//! Why a change or its event was given up.

use jiff::Timestamp;

use crate::routing::protocol::Detail;

/// A change that makes no event, or an event that the broker will never accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// When the change was seen, or the event rejected.
    pub(super) at: Timestamp,
    /// Stable word.
    pub(super) reason: String,
    /// What is wrong, and with which object. Not longer than other details in statuses.
    pub(super) message: String,
}

impl GivenUp {
    pub(super) fn new(at: Timestamp, reason: &str, message: String) -> Self {
        Self {
            at,
            reason: reason.to_owned(),
            message: Detail::from(message).as_str().to_owned(),
        }
    }
}
