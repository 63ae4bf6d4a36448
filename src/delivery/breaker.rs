//! Tells a Sink that is down from events that fail: a Sink that seems down is probed instead of being hammered. Pure:
//! time comes in as an argument.
//!
//! Only *different* events that fail speak against the Sink, one after another and without a success in between; an event
//! that fails again, while others pass, is by itself. No answer, 429 and 502 to 504 weigh ten times as much as another
//! answer that is to be tried again, such as 500: the Sink is there then, and may mean this one event.
//!
//! While it is open, rounds of probes go out, each to other events: the first with one, the next ones with twice as many
//! up to a limit, with pauses between them that grow up to a limit. A Sink that answers at all is probed more than one that
//! does not: it may be refusing bad events. One success closes it. If it is closed that way again and again, the Sink is
//! up and events are bad: the threshold doubles each time.

use std::time::{Duration, Instant};

use http::StatusCode;

/// The weight of failures at which the Sink is taken to be down.
const THRESHOLD: u32 = 100;

/// How often the threshold doubles, at most.
const MAX_DOUBT: u32 = 6;

/// A breaker that was not open for this long forgets its doubt.
const DOUBT_LASTS: Duration = Duration::from_secs(120);

/// The longest pause between two rounds of probes, and the most probes of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) pause: Duration,
    pub(super) width: u32,
}

/// For a Sink that does not answer.
pub(super) const SILENT: Limits = Limits {
    pause: Duration::from_secs(10),
    width: 4,
};

/// For a Sink that answers.
const ANSWERING: Limits = Limits {
    pause: Duration::from_secs(5),
    width: 16,
};

/// What a failed attempt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The Sink cannot be reached, or does not answer in time.
    Silent,
    /// The Sink, or a gateway before it, says that it takes nothing now.
    Unavailable,
    /// The Sink says that too many requests come to it.
    TooFast,
    /// The Sink answered for this event.
    Event,
}

/// Whether attempts may be made: closed, any number; open, in rounds.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The weight of the failures since the last success.
    weight: u32,
    /// Whether one of them was an answer.
    has_answered: bool,
    open: Option<Round>,
    /// How often a success closed it of late, and when it last did.
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

impl Blame {
    /// What an answer that is to be tried again says, or no answer.
    pub(super) fn of(status: Option<StatusCode>) -> Self {
        match status.map(|status| status.as_u16()) {
            None => Self::Silent,
            Some(429) => Self::TooFast,
            Some(502..=504) => Self::Unavailable,
            Some(_) => Self::Event,
        }
    }
}

impl Breaker {
    /// Whether the Sink is taken to be down.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The Sink took or refused an event: it is up. Whether it was taken to be down.
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

    /// An event failed that had not failed before, or not since the last success. `pause` tells how long to hold off
    /// after so many rounds.
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

    /// When the next attempt may begin with `in_flight` under way: now, later, or (`None`) not before those have ended.
    /// `pause` tells how long to hold off after so many rounds.
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

    /// An attempt begins.
    pub(super) fn begin(&mut self) {
        if let Some(round) = &mut self.open {
            round.left = round.left.saturating_sub(1);
        }
    }

    fn limits(&self) -> Limits {
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
    fn begin(number: u32, limits: Limits, now: Instant, pause: impl Fn(u32) -> Duration) -> Self {
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
    fn many_events_that_fail_in_another_way_open_it_too() {
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
    fn rounds_of_probes_grow_and_so_do_their_pauses() {
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
                assert_eq!(breaker.permits(start, 1, seconds), None, "the round has to end");
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
    fn a_sink_that_turns_out_to_be_up_is_doubted_less_easily() {
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
