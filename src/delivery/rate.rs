//! Rate limits, of a Sink's attempts and of a broker's events: a token bucket. Pure: time comes in as an argument.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::{log::Partition, routing::RateLimit};

/// A rate.
#[derive(Clone, Copy, Debug)]
pub struct TokenRate {
    per_second: f64,
    /// Tokens at once after an idle period. At least 1.
    burst: f64,
}

impl TokenRate {
    /// This many in a second, all of them at once if they come so.
    pub fn per_second(per_second: NonZeroU32) -> Self {
        let per_second = per_second.get().into();
        Self {
            per_second,
            burst: per_second,
        }
    }

    /// The share of a partition in the rate limit of a Trigger.
    pub(super) fn of_partition(limit: RateLimit, partition: Partition) -> Self {
        let of = f64::from(partition.of.max(1));
        Self {
            per_second: f64::from(limit.per_second.get()) / of,
            burst: (f64::from(limit.burst.get()) / of).max(1.0),
        }
    }
}

/// A token bucket: refills with time, up to the burst. More tokens than the burst can be taken once it is full; what
/// follows waits until that is made up for.
#[derive(Debug, Default)]
pub struct TokenBucket {
    /// `None` until the first tokens are taken: the bucket begins full.
    state: Option<(Instant, f64)>,
}

impl TokenBucket {
    /// Time at which this many tokens may be taken.
    pub fn permits(&self, rate: TokenRate, tokens: usize, now: Instant) -> Instant {
        let missing = (tokens as f64).min(rate.burst) - self.tokens(rate, now);
        if missing <= 0.0 {
            return now;
        }
        now + Duration::from_secs_f64(missing / rate.per_second)
    }

    /// Takes this many tokens.
    pub fn take(&mut self, rate: TokenRate, tokens: usize, now: Instant) {
        self.state = Some((now, self.tokens(rate, now) - tokens as f64));
    }

    fn tokens(&self, rate: TokenRate, now: Instant) -> f64 {
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
        let limit = TokenRate::of_partition(limit, Partition::WHOLE);
        let (mut bucket, start) = (TokenBucket::default(), Instant::now());
        let mut now = start;
        for _ in 0..23 {
            now = bucket.permits(limit, 1, now);
            bucket.take(limit, 1, now);
        }
        let took = (now - start).as_secs_f64();
        assert!(
            (1.99..2.01).contains(&took),
            "3 at once, then 20 at 10 a second: {took}"
        );
        let later = now + Duration::from_secs(60);
        for _ in 0..3 {
            assert_eq!(
                bucket.permits(limit, 1, later),
                later,
                "tokens accumulate up to the burst only"
            );
            bucket.take(limit, 1, later);
        }
        assert!(bucket.permits(limit, 1, later) > later);
    }

    #[test]
    fn partitions_share_the_rate() {
        let limit = RateLimit {
            per_second: NonZeroU32::new(2).unwrap(),
            burst: NonZeroU32::new(8).unwrap(),
        };
        let shares: Vec<_> = Partition::all(16)
            .map(|partition| TokenRate::of_partition(limit, partition))
            .collect();
        let total: f64 = shares.iter().map(|rate| rate.per_second).sum();
        assert!((1.99..2.01).contains(&total), "{total}");
        assert!(shares.iter().all(|rate| (0.99..1.01).contains(&rate.burst)));
    }
}
