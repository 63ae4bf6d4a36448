//! A Sink's rate limit: a token bucket. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use crate::{log::Partition, routing::RateLimit};

/// A rate of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptRate {
    per_second: f64,
    /// Attempts at once after an idle period. At least 1.
    burst: f64,
}

impl AttemptRate {
    /// The share of a partition in the rate limit of a Trigger.
    pub(super) fn new(limit: RateLimit, partition: Partition) -> Self {
        let of = f64::from(partition.of.max(1));
        Self {
            per_second: f64::from(limit.per_second.get()) / of,
            burst: (f64::from(limit.burst.get()) / of).max(1.0),
        }
    }
}

/// A token bucket: refills with time, up to the burst; an attempt costs one token.
#[derive(Debug, Default)]
pub(super) struct TokenBucket {
    /// `None` until the first attempt: the bucket begins full.
    state: Option<(Instant, f64)>,
}

impl TokenBucket {
    /// Time at which the next attempt may begin.
    pub(super) fn permits(&self, rate: AttemptRate, now: Instant) -> Instant {
        let missing = 1.0 - self.tokens(rate, now);
        if missing <= 0.0 {
            return now;
        }
        now + Duration::from_secs_f64(missing / rate.per_second)
    }

    /// Takes a token for an attempt.
    pub(super) fn take(&mut self, rate: AttemptRate, now: Instant) {
        self.state = Some((now, self.tokens(rate, now) - 1.0));
    }

    fn tokens(&self, rate: AttemptRate, now: Instant) -> f64 {
        let Some((at, tokens)) = self.state else {
            return rate.burst;
        };
        let earned = now.saturating_duration_since(at).as_secs_f64() * rate.per_second;
        (tokens + earned).min(rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn allows_the_burst_and_then_the_rate() {
        let limit = RateLimit {
            per_second: NonZeroU32::new(10).unwrap(),
            burst: NonZeroU32::new(3).unwrap(),
        };
        let limit = AttemptRate::new(limit, Partition::WHOLE);
        let (mut bucket, start) = (TokenBucket::default(), Instant::now());
        let mut now = start;
        for _ in 0..23 {
            now = bucket.permits(limit, now);
            bucket.take(limit, now);
        }
        let took = (now - start).as_secs_f64();
        assert!(
            (1.99..2.01).contains(&took),
            "3 at once, then 20 at 10 a second: {took}"
        );
        let later = now + Duration::from_secs(60);
        for _ in 0..3 {
            assert_eq!(
                bucket.permits(limit, later),
                later,
                "tokens accumulate up to the burst only"
            );
            bucket.take(limit, later);
        }
        assert!(bucket.permits(limit, later) > later);
    }

    #[test]
    fn partitions_share_the_rate() {
        let limit = RateLimit {
            per_second: NonZeroU32::new(2).unwrap(),
            burst: NonZeroU32::new(8).unwrap(),
        };
        let shares: Vec<_> = Partition::all(16)
            .map(|partition| AttemptRate::new(limit, partition))
            .collect();
        let total: f64 = shares.iter().map(|rate| rate.per_second).sum();
        assert!((1.99..2.01).contains(&total), "{total}");
        assert!(shares.iter().all(|rate| (0.99..1.01).contains(&rate.burst)));
    }
}
