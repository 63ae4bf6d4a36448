//! A Sink's rate limit: a token bucket. Pure: time comes in as an argument.

use std::time::{Duration, Instant};

use crate::routing::RateLimit;

/// A token bucket: refills with time, up to the burst; an attempt costs one token.
#[derive(Debug, Default)]
pub(super) struct TokenBucket {
    /// `None` until the first attempt: the bucket begins full.
    state: Option<(Instant, f64)>,
}

impl TokenBucket {
    /// Time at which the next attempt may begin.
    pub(super) fn permits(&self, limit: RateLimit, now: Instant) -> Instant {
        let missing = 1.0 - self.tokens(limit, now);
        if missing <= 0.0 {
            return now;
        }
        now + Duration::from_secs_f64(missing / f64::from(limit.per_second.get()))
    }

    /// Takes a token for an attempt.
    pub(super) fn take(&mut self, limit: RateLimit, now: Instant) {
        self.state = Some((now, self.tokens(limit, now) - 1.0));
    }

    fn tokens(&self, limit: RateLimit, now: Instant) -> f64 {
        let burst = f64::from(limit.burst.get());
        let Some((at, tokens)) = self.state else {
            return burst;
        };
        let earned = now.saturating_duration_since(at).as_secs_f64() * f64::from(limit.per_second.get());
        (tokens + earned).min(burst)
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
}
