//! Adapts a Trigger's rate to what its Sink accepts. Pure: time comes in as an argument.
//!
//! A pause that the Sink asks for (`Retry-After`) applies to all events, as the CloudEvents HTTP webhook
//! specification 1.0 requires (section 2.2). After the pause, and after each 429, attempts are paced. The pace
//! follows TCP's congestion avoidance: a 429 lowers it below the rate the Sink took recently, each success raises
//! it a little, and it is lifted after a while without a 429.

use std::time::{Duration, Instant};

/// Factor applied to the recent rate on a 429.
const LEFT: f64 = 0.7;

/// Fraction of that rate which a second of successes adds to the pace, and the minimum, in events per second.
const RAISE: f64 = 0.05;
const LEAST_RAISE: f64 = 0.1;

/// Slowest pace, in events per second.
const SLOWEST: f64 = 0.2;

/// Slowest pace after a pause asked for without a 429, and what a second of successes adds to it.
const SLOWEST_AFTER_PAUSE: f64 = 2.0;

/// Time without a 429 after which the pace is lifted.
const LASTS: Duration = Duration::from_secs(30);

/// Window over which successes are counted.
const WINDOW: Duration = Duration::from_secs(2);

/// Shortest time that yields a rate.
const SHORTEST: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Throttle {
    pace: Option<Pace>,
    taken: RecentlyTaken,
}

#[derive(Debug)]
struct Pace {
    per_second: f64,
    /// Added by a second of successes.
    raise: f64,
    next: Instant,
    lowered: Instant,
    raised: Instant,
}

/// Rate at which the Sink takes events, per second.
#[derive(Debug)]
struct RecentlyTaken {
    since: Instant,
    count: u32,
    before: f64,
}

impl Throttle {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pace: None,
            taken: RecentlyTaken {
                since: now,
                count: 0,
                before: 0.0,
            },
        }
    }

    /// Time at which the next attempt may begin.
    pub(super) fn permits(&self, now: Instant) -> Instant {
        self.pace.as_ref().map_or(now, |pace| pace.next.max(now))
    }

    /// Notes the start of an attempt.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.pace.as_ref().is_some_and(|pace| now >= pace.lowered + LASTS) {
            self.pace = None;
        }
        if let Some(pace) = &mut self.pace {
            pace.next = now.max(pace.next) + Duration::from_secs_f64(1.0 / pace.per_second);
        }
    }

    /// Notes that the Sink took an event.
    pub(super) fn taken(&mut self, now: Instant) {
        self.taken.add(now);
        if let Some(pace) = &mut self.pace {
            let time = now.saturating_duration_since(pace.raised).as_secs_f64();
            pace.per_second += pace.raise * time.min(1.0);
            pace.raised = now;
        }
    }

    /// Handles a 429 to an attempt that began at `began`.
    pub(super) fn too_fast(&mut self, began: Instant, now: Instant) {
        // Attempts begun before the pace was lowered say nothing about it.
        if self.pace.as_ref().is_none_or(|pace| began >= pace.lowered) {
            let rate = self.taken.rate(now) * LEFT;
            self.begin_pace(rate.max(SLOWEST), (rate * RAISE).max(LEAST_RAISE), now);
        }
    }

    /// Pauses all attempts until `until`.
    pub(super) fn hold(&mut self, until: Instant, now: Instant) {
        if self.pace.is_none() {
            let rate = (self.taken.rate(now) * LEFT).max(SLOWEST_AFTER_PAUSE);
            self.begin_pace(rate, rate, until);
        }
        if let Some(pace) = &mut self.pace {
            pace.next = pace.next.max(until);
        }
    }

    fn begin_pace(&mut self, per_second: f64, raise: f64, now: Instant) {
        let next = self.pace.as_ref().map_or(now, |pace| pace.next.max(now));
        self.pace = Some(Pace {
            per_second,
            raise,
            next,
            lowered: now,
            raised: now,
        });
    }
}

impl RecentlyTaken {
    fn add(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.since);
        if time >= WINDOW {
            self.before = f64::from(self.count) / time.as_secs_f64();
            (self.since, self.count) = (now, 0);
        }
        self.count += 1;
    }

    fn rate(&self, now: Instant) -> f64 {
        let time = now.saturating_duration_since(self.since);
        let since = f64::from(self.count) / time.max(SHORTEST).as_secs_f64();
        if time < SHORTEST {
            self.before.max(since)
        } else {
            since
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Posts without pause to a Sink that accepts `limit` events per second, for `seconds`; returns the numbers of
    /// accepted and rejected events by second. Rejections carry `Retry-After: 1` if `with_retry_after`.
    fn simulate(limit: u32, seconds: u64, with_retry_after: bool) -> BTreeMap<u64, (u32, u32)> {
        let start = Instant::now();
        let (mut throttle, mut now) = (Throttle::new(start), start);
        let mut figures = BTreeMap::<u64, (u32, u32)>::new();
        loop {
            now = throttle.permits(now);
            let second = (now - start).as_secs();
            if second >= seconds {
                return figures;
            }
            throttle.begin(now);
            let began = now;
            now += Duration::from_millis(5);
            let (taken, rejected) = figures.entry(second).or_default();
            if *taken < limit {
                *taken += 1;
                throttle.taken(now);
                continue;
            }
            *rejected += 1;
            throttle.too_fast(began, now);
            if with_retry_after {
                throttle.hold(now + Duration::from_secs(1), now);
            }
        }
    }

    #[test]
    fn a_rate_limited_sink_gets_nearly_its_rate_with_few_rejections() {
        for (limit, with_retry_after) in [(2, false), (10, false), (10, true), (100, false), (100, true)] {
            let figures = simulate(limit, 60, with_retry_after);
            let taken: u32 = figures.values().map(|(taken, _)| taken).sum();
            let rejected: u32 = figures.values().map(|(_, rejected)| rejected).sum();
            let share = f64::from(taken) / f64::from(limit * 60);
            assert!(
                share > 0.6,
                "{limit}, {with_retry_after}: {share} of its rate; {figures:?}"
            );
            assert!(
                rejected < 30.max(limit * 60 / 50),
                "{limit}, {with_retry_after}: {rejected} rejections"
            );
        }
    }

    #[test]
    fn a_pause_is_honoured_and_attempts_then_begin_slowly() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        let asked = start + Duration::from_secs(60);
        throttle.hold(asked, start);
        assert_eq!(throttle.permits(start), asked);
        throttle.hold(start + Duration::from_secs(1), start);
        assert_eq!(
            throttle.permits(start),
            asked,
            "a shorter pause does not shorten it"
        );
        throttle.begin(asked);
        assert_eq!(throttle.permits(asked), asked + Duration::from_millis(500));
        let mut now = asked;
        for _ in 0..1000 {
            now = throttle.permits(now);
            throttle.begin(now);
            throttle.taken(now);
        }
        assert!(now - asked < LASTS + Duration::from_secs(1), "{:?}", now - asked);
        assert_eq!(throttle.permits(now), now, "the pace is lifted");
    }

    #[test]
    fn the_pace_is_lifted_when_the_limit_is_gone() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        throttle.too_fast(start, start);
        let mut now = start;
        while throttle.pace.is_some() {
            now = throttle.permits(now);
            throttle.begin(now);
            throttle.taken(now);
            assert!(now - start < 2 * LASTS);
        }
    }
}
