//! A Sink that keeps failing is probed gently instead of being hammered. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

/// After this many failures in a row the Sink is taken to be down.
const THRESHOLD: u32 = 10;

/// Whether attempts may be made: closed, any number; open, one at a time with pauses between them.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// In a row, while it is closed.
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    /// Probes that failed.
    probes: u32,
    probe_at: Option<Instant>,
}

impl Breaker {
    /// Whether the Sink is taken to be down.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The Sink answered, for better or worse: it is up.
    pub(super) fn answered(&mut self) {
        *self = Self::default();
    }

    /// An attempt that began at `began` failed in a way that another attempt may mend. `pause` tells how long to hold
    /// off after so many failures; those that were under way when it opened do not make it longer.
    pub(super) fn failed(&mut self, began: Instant, now: Instant, pause: impl Fn(u32) -> Duration) {
        match &mut self.open {
            Some(open) if began < open.since => {}
            Some(open) => {
                open.probes = open.probes.saturating_add(1);
                open.probe_at = now.checked_add(pause(open.probes.saturating_add(1)));
            }
            None => {
                self.failures += 1;
                self.open = (self.failures >= THRESHOLD).then(|| Open {
                    since: now,
                    probes: 0,
                    probe_at: now.checked_add(pause(1)),
                });
            }
        }
    }

    /// When the next attempt may begin with `in_flight` attempts under way: now, later, or (`None`) not before one
    /// of those has ended.
    pub(super) fn permits(&self, now: Instant, in_flight: usize) -> Option<Instant> {
        let Some(open) = &self.open else { return Some(now) };
        (in_flight == 0).then(|| open.probe_at.map_or(now, |at| at.max(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(failures: u32) -> Duration {
        Duration::from_secs(u64::from(failures) * 5)
    }

    #[test]
    fn opens_after_failures_in_a_row_and_closes_with_an_answer() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 1..THRESHOLD {
            breaker.failed(now, now, seconds);
            assert_eq!(breaker.permits(now, 31), Some(now));
        }
        breaker.failed(now, now, seconds);
        assert!(breaker.is_open());
        let later = now + Duration::from_secs(5);
        assert_eq!(breaker.permits(now, 0), Some(later));
        assert_eq!(breaker.permits(later, 0), Some(later));
        assert_eq!(breaker.permits(later, 1), None, "one probe at a time");
        breaker.answered();
        assert_eq!(breaker.permits(now, 31), Some(now));
    }

    #[test]
    fn only_probes_make_the_pause_longer() {
        let (began, opened) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let mut breaker = Breaker::default();
        for _ in 0..THRESHOLD + 22 {
            breaker.failed(began, opened, seconds);
        }
        assert_eq!(breaker.permits(opened, 0), Some(opened + Duration::from_secs(5)));
        let probed = opened + Duration::from_secs(5);
        breaker.failed(probed, probed, seconds);
        assert_eq!(breaker.permits(probed, 0), Some(probed + Duration::from_secs(10)));
    }
}
