//! What a Broker's status shows of its broker's log. Pure: the present status and the time are arguments.
//!
//! The figures change all the time, and each change of a status is a write to the API server. So they are written when
//! they have changed considerably, at most every [`SOON`]; any other change is written after [`LATER`]. A cluster at
//! rest writes nothing.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::sinks_seen::UsageSeen;
use crate::api::BrokerStatus;

/// Shortest time between two updates.
const SOON: SignedDuration = SignedDuration::from_secs(30);

/// Time after which small changes are written.
const LATER: SignedDuration = SignedDuration::from_mins(5);

/// Changes that count as considerable: percentage points of the fill, or events and a part of the backlog.
const POINTS: u8 = 5;
const EVENTS: u64 = 100;
const PART: u64 = 5;

/// The figures in a Broker's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShownUsage {
    pub(super) backlog: Option<u64>,
    pub(super) used_bytes: Option<u64>,
    pub(super) fill_percent: Option<u8>,
    pub(super) usage_time: Option<String>,
}

impl ShownUsage {
    /// Returns what to show next. `is_unknown`: no router has reported anything yet.
    pub(super) fn next(
        seen: Option<UsageSeen>,
        is_unknown: bool,
        present: Option<&BrokerStatus>,
        now: &Time,
    ) -> Self {
        let present = present.map(Self::of).unwrap_or_default();
        let Some(seen) = seen else {
            return if is_unknown { present } else { Self::default() };
        };
        match present.age(now) {
            Some(age) if !present.is_outdated(seen, age) => present,
            _ => Self {
                backlog: Some(seen.events),
                used_bytes: Some(seen.bytes),
                fill_percent: Some(seen.percent),
                usage_time: Some(now.0.to_string()),
            },
        }
    }

    fn of(status: &BrokerStatus) -> Self {
        Self {
            backlog: status.backlog,
            used_bytes: status.used_bytes,
            fill_percent: status.fill_percent,
            usage_time: status.usage_time.clone(),
        }
    }

    /// Time since the last update; `None` if there was none.
    fn age(&self, now: &Time) -> Option<SignedDuration> {
        let updated: Timestamp = self.usage_time.as_deref()?.parse().ok()?;
        Some(now.0.duration_since(updated))
    }

    fn is_outdated(&self, seen: UsageSeen, age: SignedDuration) -> bool {
        let (events, bytes, percent) = (
            self.backlog.unwrap_or_default(),
            self.used_bytes.unwrap_or_default(),
            self.fill_percent.unwrap_or_default(),
        );
        if (events, bytes, percent) == (seen.events, seen.bytes, seen.percent) {
            return false;
        }
        let change = events.abs_diff(seen.events);
        let is_considerable =
            percent.abs_diff(seen.percent) >= POINTS || change >= EVENTS.max(events.max(seen.events) / PART);
        // A clock that was set back does not stop updates.
        let wait = if is_considerable { SOON } else { LATER };
        age >= wait || age < SignedDuration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time(Timestamp::from_second(1_800_000_000 + seconds).unwrap())
    }

    fn seen(events: u64, percent: u8) -> Option<UsageSeen> {
        Some(UsageSeen {
            events,
            bytes: events * 10,
            percent,
        })
    }

    fn status(usage: ShownUsage) -> BrokerStatus {
        let ShownUsage {
            backlog,
            used_bytes,
            fill_percent,
            usage_time,
        } = usage;
        BrokerStatus {
            backlog,
            used_bytes,
            fill_percent,
            usage_time,
            ..BrokerStatus::default()
        }
    }

    #[test]
    fn figures_are_updated_when_they_change_considerably_or_after_a_while() {
        let before = ShownUsage::next(seen(1000, 40), false, None, &at(0));
        assert_eq!((before.backlog, before.used_bytes), (Some(1000), Some(10_000)));
        let table = [
            // (events, percent, seconds) -> updated
            (1000, 40, 1_000_000, false),
            (1200, 40, 29, false),
            (1250, 40, 30, true),
            (1240, 40, 30, false),
            (1001, 40, 299, false),
            (1001, 40, 300, true),
            (1000, 45, 30, true),
            (1000, 44, 30, false),
            (0, 0, 30, true),
            (5000, 90, 10, false),
            (5000, 90, -10, true),
        ];
        for (events, percent, seconds, updated) in table {
            let present = status(before.clone());
            let after = ShownUsage::next(seen(events, percent), false, Some(&present), &at(seconds));
            assert_eq!(after != before, updated, "{events} {percent} % after {seconds} s");
        }
        let few = status(ShownUsage::next(seen(0, 0), false, None, &at(0)));
        let next = |events, seconds| {
            let after = ShownUsage::next(seen(events, 0), false, Some(&few), &at(seconds));
            after.backlog
        };
        assert_eq!(
            (next(99, 30), next(100, 30), next(1, 300)),
            (Some(0), Some(100), Some(1))
        );
    }

    #[test]
    fn figures_stay_until_routers_report_and_go_if_they_have_none() {
        let before = ShownUsage::next(seen(7, 1), false, None, &at(0));
        let present = status(before.clone());
        let next = |is_unknown| ShownUsage::next(None, is_unknown, Some(&present), &at(60));
        assert_eq!(next(true), before);
        assert_eq!(next(false), ShownUsage::default());
    }
}
