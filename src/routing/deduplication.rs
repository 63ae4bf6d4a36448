//! For how long brokers recognize repeats of events. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Window of a broker whose Broker has deduplication, if nothing says another.
const WINDOW: Duration = Duration::from_secs(600);

/// Number of ids that a broker remembers, if nothing says another.
const EVENTS: u64 = 100_000;

/// Longest window and largest number of ids, if the operator sets no other limits.
const LONGEST_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);
const MOST_EVENTS: u64 = 1_000_000;

/// Deduplication of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deduplicated {
    /// Time for which the source and id of each event are remembered.
    pub window: Duration,
    /// Number of the newest events that are remembered.
    pub events: u64,
}

/// Settings of deduplication, each of which may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeduplicationSettings {
    /// Time for which events are remembered; zero for no deduplication.
    pub window: Option<Duration>,
    /// Number of events.
    pub events: Option<u64>,
}

/// Deduplication of an installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallationDeduplication {
    /// Upper limits.
    pub limits: DeduplicationSettings,
    /// What holds where a Broker says nothing. Without a window, brokers have no deduplication unless their Broker says
    /// so.
    pub defaults: DeduplicationSettings,
}

impl InstallationDeduplication {
    /// Deduplication of a broker with these settings; `None` if it has none.
    pub fn of(&self, wanted: Option<DeduplicationSettings>) -> Option<Deduplicated> {
        let Self { limits, defaults } = self;
        let window = match wanted {
            Some(wanted) => wanted.window.or(defaults.window).unwrap_or(WINDOW),
            None => defaults.window?,
        };
        if window.is_zero() {
            return None;
        }
        let events = wanted.and_then(|wanted| wanted.events).or(defaults.events);
        Some(Deduplicated {
            window: window.min(limits.window.unwrap_or(LONGEST_WINDOW)),
            events: events.unwrap_or(EVENTS).min(limits.events.unwrap_or(MOST_EVENTS)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(window: impl Into<Option<u64>>, events: impl Into<Option<u64>>) -> DeduplicationSettings {
        DeduplicationSettings {
            window: window.into().map(Duration::from_secs),
            events: events.into(),
        }
    }

    #[test]
    fn a_broker_decides_within_the_limits() {
        let found = |installation: InstallationDeduplication, wanted| {
            let found = installation.of(wanted);
            found.map(|found| (found.window.as_secs(), found.events))
        };
        let plain = InstallationDeduplication::default();
        assert_eq!(found(plain, None), None);
        assert_eq!(found(plain, Some(settings(None, None))), Some((600, 100_000)));
        assert_eq!(found(plain, Some(settings(0, 5))), None);
        assert_eq!(found(plain, Some(settings(30, 5))), Some((30, 5)));
        let most = (7 * 24 * 3600, 1_000_000);
        assert_eq!(found(plain, Some(settings(u64::MAX, u64::MAX))), Some(most));
        let set = InstallationDeduplication {
            limits: settings(3600, 1000),
            defaults: settings(60, 100),
        };
        assert_eq!(found(set, None), Some((60, 100)));
        assert_eq!(found(set, Some(settings(None, 50))), Some((60, 50)));
        assert_eq!(found(set, Some(settings(7200, None))), Some((3600, 100)));
        assert_eq!(found(set, Some(settings(7200, 5000))), Some((3600, 1000)));
        assert_eq!(found(set, Some(settings(0, None))), None);
    }
}
