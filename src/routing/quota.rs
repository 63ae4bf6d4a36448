//! Limits of what producers may post to a broker, and what happens when there is no room. Pure.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::InstallationDeduplication;

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
    /// Bytes of unsettled events in the embedded log of each router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Quotas of an installation, and its deduplication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallationQuotas {
    /// Upper limits, which no Broker's quota exceeds.
    pub limits: Quota,
    /// What holds where a Broker says nothing, and for brokers without a Broker.
    pub defaults: Quota,
    /// Deduplication of its brokers.
    pub deduplication: InstallationDeduplication,
}

/// Policy for new events when there is no room for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenFull {
    /// Reject them, with 507.
    #[default]
    Reject,
    /// Drop the oldest events, with a warning and a metric.
    DropOldest,
}

impl InstallationQuotas {
    /// Quota of a broker for which nothing else is said.
    pub fn of_others(&self) -> Quota {
        self.defaults.within(self.limits)
    }
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
            bytes: lower(self.bytes, upper.bytes),
        }
    }

    /// These limits, and the defaults where there is none.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            events_per_second: self.events_per_second.or(defaults.events_per_second),
            event_size: self.event_size.or(defaults.event_size),
            bytes: self.bytes.or(defaults.bytes),
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
            bytes: event_size,
        };
        for (wanted, upper, expected) in [
            (quota(0, None), quota(0, None), quota(0, None)),
            (quota(5, None), quota(0, Some(7)), quota(5, Some(7))),
            (quota(5, Some(9)), quota(3, Some(10)), quota(3, Some(9))),
        ] {
            assert_eq!(wanted.within(upper), expected);
        }
        let quotas = InstallationQuotas {
            deduplication: InstallationDeduplication::default(),
            limits: quota(10, None),
            defaults: quota(20, Some(5)),
        };
        assert_eq!(quotas.of_others(), quota(10, Some(5)));
        assert_eq!(quota(7, None).or(quotas.defaults), quota(7, Some(5)));
    }
}
