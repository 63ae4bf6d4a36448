//! A circuit breaker that distinguishes a Sink that is down from events that fail. While the Sink seems down, it is
//! only probed. Pure: time comes in as an argument.
//!
//! Only consecutive failures of *different* events count against the Sink; an event that keeps failing while others
//! succeed does not. No answer, 429 and 502 to 504 weigh ten times as much as another retryable answer such as 500,
//! which shows that the Sink is up and may concern this event only.
//!
//! While open, the breaker permits rounds of probes, each probe with a different event: one probe first, then twice as
//! many each round, with growing pauses between rounds; both have a limit. A Sink that answers at all is probed more
//! often than a silent one: it may be failing on bad events only. One success closes the breaker. If it opens and
//! closes repeatedly, the Sink is up and the events are bad: the threshold doubles each time.

use std::time::{Duration, Instant};

use crate::destination::Blame;

/// Weight of failures that opens the breaker.
const THRESHOLD: u32 = 100;

/// Maximum number of times the threshold doubles.
const MAX_DOUBT: u32 = 6;

/// Time without opening after which a breaker resets its threshold.
const DOUBT_LASTS: Duration = Duration::from_secs(120);

/// Limits of probing: the longest pause between two rounds, and the most probes of a round.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeLimits {
    pub(super) pause: Duration,
    pub(super) width: u32,
}

/// Limits for a Sink that does not answer.
pub(super) const SILENT: ProbeLimits = ProbeLimits {
    pause: Duration::from_secs(10),
    width: 4,
};

/// Limits for a Sink that answers.
const ANSWERING: ProbeLimits = ProbeLimits {
    pause: Duration::from_secs(5),
    width: 16,
};

/// Decides whether attempts may begin: any number while closed, in rounds while open.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Weight of the failures since the last success.
    weight: u32,
    /// Whether one of them was an answer.
    has_answered: bool,
    open: Option<Round>,
    /// Number of recent times that a success closed the breaker, and when it last did.
    doubt: u32,
    closed: Option<Instant>,
}

/// A round of probes.
#[derive(Debug)]
struct Round {
    number: u32,
    starts: Instant,
    /// Probes that may still begin in this round.
    left: u32,
}

impl Breaker {
    /// Whether the breaker is open.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Closes the breaker: the Sink accepted or rejected an event, so it is up. Returns whether it was open.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.weight = 0;
        self.has_answered = false;
        let was_open = self.open.take().is_some();
        if was_open {
            self.doubt = (self.doubt(now) + 1).min(MAX_DOUBT);
            self.closed = Some(now);
        }
        was_open
    }

    /// Counts an event that failed for the first time, or for the first time since the last success. `pause` is
    /// the pause after that many rounds.
    pub(super) fn failed(&mut self, blame: Blame, now: Instant, pause: impl Fn(u32) -> Duration) {
        self.weight = self.weight.saturating_add(match blame {
            Blame::Silent | Blame::Unavailable | Blame::TooFast => 10,
            Blame::Event => 1,
        });
        self.has_answered |= blame != Blame::Silent;
        if self.open.is_none() && self.weight >= THRESHOLD << self.doubt(now) {
            self.open = Some(Round::begin(0, self.limits(), now, pause));
        }
    }

    /// Time at which the next attempt may begin with `in_flight` attempts: now, later, or `None` for after those
    /// have ended. `pause` is the pause after that many rounds.
    pub(super) fn permits(
        &mut self,
        now: Instant,
        in_flight: usize,
        pause: impl Fn(u32) -> Duration,
    ) -> Option<Instant> {
        let limits = self.limits();
        let Some(round) = &mut self.open else {
            return Some(now);
        };
        if round.left == 0 {
            if in_flight > 0 {
                return None;
            }
            *round = Round::begin(round.number.saturating_add(1), limits, now, pause);
        }
        Some(round.starts.max(now))
    }

    /// Notes the start of an attempt.
    pub(super) fn begin(&mut self) {
        if let Some(round) = &mut self.open {
            round.left = round.left.saturating_sub(1);
        }
    }

    fn limits(&self) -> ProbeLimits {
        if self.has_answered { ANSWERING } else { SILENT }
    }

    fn doubt(&self, now: Instant) -> u32 {
        let is_recent = |closed: Instant| now.saturating_duration_since(closed) < DOUBT_LASTS;
        if self.closed.is_some_and(is_recent) {
            self.doubt
        } else {
            0
        }
    }
}

impl Round {
    fn begin(number: u32, limits: ProbeLimits, now: Instant, pause: impl Fn(u32) -> Duration) -> Self {
        let width = 1_u32.checked_shl(number).unwrap_or(limits.width);
        Self {
            number,
            starts: now + pause(number.saturating_add(1)).min(limits.pause),
            left: width.min(limits.width),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(rounds: u32) -> Duration {
        Duration::from_secs(u64::from(rounds) * 4)
    }

    fn open(breaker: &mut Breaker, blame: Blame, now: Instant) -> u32 {
        let mut failures = 0;
        while !breaker.is_open() {
            assert_eq!(breaker.permits(now, 31, seconds), Some(now));
            breaker.failed(blame, now, seconds);
            failures += 1;
        }
        failures
    }

    #[test]
    fn opens_after_different_failures_and_closes_with_an_answer() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..50 {
            breaker.failed(Blame::Event, now, seconds);
        }
        assert!(!breaker.answered(now));
        assert_eq!(open(&mut breaker, Blame::Silent, now), 10);
        assert!(breaker.answered(now));
        assert_eq!(breaker.permits(now, 31, seconds), Some(now));
    }

    #[test]
    fn many_failures_of_low_weight_open_it_too() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..99 {
            breaker.failed(Blame::Event, now, seconds);
        }
        assert!(!breaker.is_open());
        breaker.failed(Blame::Event, now, seconds);
        assert!(breaker.is_open());
    }

    #[test]
    fn probe_rounds_and_their_pauses_grow() {
        let silent = [(1, 4), (2, 8), (4, 10), (4, 10)];
        let answering = [(1, 4), (2, 5), (4, 5), (8, 5), (16, 5), (16, 5)];
        for (blame, rounds) in [(Blame::Silent, &silent[..]), (Blame::Unavailable, &answering[..])] {
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            open(&mut breaker, blame, now);
            for &(width, pause) in rounds {
                let start = now + Duration::from_secs(pause);
                for probe in 0..width {
                    assert_eq!(breaker.permits(now, probe, seconds), Some(start), "{width}");
                    breaker.begin();
                }
                assert_eq!(
                    breaker.permits(start, 1, seconds),
                    None,
                    "wait for the probes of this round"
                );
                breaker.failed(blame, start, seconds);
                now = start;
            }
            assert_eq!(
                breaker.permits(now, 0, seconds),
                Some(now + breaker.limits().pause)
            );
        }
    }

    #[test]
    fn the_threshold_doubles_each_time_a_success_closes_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let failures = [(); 8].map(|()| {
            let failures = open(&mut breaker, Blame::Silent, now);
            breaker.answered(now);
            failures
        });
        assert_eq!(failures, [10, 20, 40, 80, 160, 320, 640, 640]);
        assert_eq!(open(&mut breaker, Blame::Silent, now + DOUBT_LASTS), 10);
    }
}
