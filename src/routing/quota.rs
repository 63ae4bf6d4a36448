//! Limits of what producers may post to a broker. Pure.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// Limits of what producers may post to a broker; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quota {
    /// Events per second that each router accepts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<NonZeroU32>,
    /// Size of an event in bytes: its data and its attributes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_size: Option<u64>,
}

impl Quota {
    /// Whether there is no limit.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// The lower of each limit.
    #[must_use]
    pub fn within(self, upper: Self) -> Self {
        Self {
            events_per_second: lower(self.events_per_second, upper.events_per_second),
            event_size: lower(self.event_size, upper.event_size),
        }
    }
}

fn lower<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_limit_holds() {
        let quota = |events, event_size| Quota {
            events_per_second: NonZeroU32::new(events),
            event_size,
        };
        for (wanted, upper, expected) in [
            (quota(0, None), quota(0, None), quota(0, None)),
            (quota(5, None), quota(0, Some(7)), quota(5, Some(7))),
            (quota(5, Some(9)), quota(3, Some(10)), quota(3, Some(9))),
        ] {
            assert_eq!(wanted.within(upper), expected);
        }
    }
}
