//! Decides whether the wall clock is reliable enough to determine ages. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Tolerated deviation of the wall clock from elapsed time, between two observations.
const DEVIATION: SignedDuration = SignedDuration::from_mins(1);

/// Time for which the wall clock is distrusted after a jump; it may be corrected within it.
pub(super) const DISTRUST: Duration = Duration::from_secs(60 * 60);

/// Observations of the wall clock.
#[derive(Debug, Default)]
pub(super) struct WallClock {
    seen: Option<(Instant, Timestamp)>,
    jumped: Option<Instant>,
}

impl WallClock {
    /// Records the time. Returns by how much the wall clock has jumped since the last observation, if it has.
    pub(super) fn observe(&mut self, now: Instant, wall: Timestamp) -> Option<SignedDuration> {
        let (last, last_wall) = self.seen.replace((now, wall))?;
        let passed = SignedDuration::try_from(now.duration_since(last)).unwrap_or(SignedDuration::MAX);
        let jump = wall.duration_since(last_wall).saturating_sub(passed);
        if jump.abs() <= DEVIATION {
            return None;
        }
        self.jumped = Some(now);
        Some(jump)
    }

    /// Whether it has run evenly for long enough.
    pub(super) fn is_trusted(&self, now: Instant) -> bool {
        self.jumped
            .is_none_or(|jumped| now.duration_since(jumped) >= DISTRUST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_is_not_trusted_for_a_while() {
        let start = Instant::now();
        let wall: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut clock = WallClock::default();
        // (elapsed seconds, error of the clock then) -> (the jump in seconds, whether it is trusted)
        for ((passed, wrong), (jump, trusted)) in [
            ((0, 0), (None, true)),
            ((10, 0), (None, true)),
            ((20, 60), (None, true)),
            ((30, 60), (None, true)),
            ((40, 700_000), (Some(699_940), false)),
            ((50, 700_000), (None, false)),
            ((600, 0), (Some(-700_000), false)),
            ((4_199, 0), (None, false)),
            ((4_200, 0), (None, true)),
            ((8_000, -10), (None, true)),
        ] {
            let now = start + Duration::from_secs(passed);
            let shown = wall + Duration::from_secs(passed) + SignedDuration::from_secs(wrong);
            let found = (
                clock.observe(now, shown).map(|jump| jump.as_secs()),
                clock.is_trusted(now),
            );
            assert_eq!(found, (jump, trusted), "after {passed} s, wrong by {wrong} s");
        }
    }
}
