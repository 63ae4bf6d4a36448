//! A Sink that keeps failing is probed gently instead of being hammered. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

/// After this many failures in a row the Sink is taken to be down.
const THRESHOLD: u32 = 10;

/// Whether attempts may be made: closed, any number; open, one at a time with pauses between them.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    probe_at: Option<Instant>,
}

impl Breaker {
    /// Whether the Sink is taken to be down.
    pub(super) fn is_open(&self) -> bool {
        self.failures >= THRESHOLD
    }

    /// The Sink answered, for better or worse: it is up.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// An attempt failed in a way that another attempt may mend; `pause` is how long to hold off.
    pub(super) fn failed(&mut self, now: Instant, pause: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.probe_at = now.checked_add(pause);
    }

    /// The failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When the next attempt may begin with `in_flight` attempts under way: now, later, or (`None`) not before one
    /// of those has ended.
    pub(super) fn permits(&self, now: Instant, in_flight: usize) -> Option<Instant> {
        if !self.is_open() {
            return Some(now);
        }
        (in_flight == 0).then(|| self.probe_at.map_or(now, |at| at.max(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_closes_with_an_answer() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let mut breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            breaker.failed(now, Duration::from_secs(5));
            assert_eq!(breaker.permits(now, 31), Some(now));
        }
        breaker.failed(now, Duration::from_secs(5));
        assert!(breaker.is_open());
        assert_eq!(breaker.permits(now, 0), Some(later));
        assert_eq!(breaker.permits(later, 0), Some(later));
        assert_eq!(breaker.permits(later, 1), None, "one probe at a time");
        breaker.answered();
        assert_eq!(breaker.permits(now, 31), Some(now));
    }
}
