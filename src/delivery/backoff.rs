//! Backoff between retries of an event. Pure.

use std::time::{Duration, Instant};

use super::progress::FailedAttempts;
use crate::routing::{BackoffPolicy, Delivery};

/// Pause before the retry of an attempt postponed because a socket, memory or the log was unavailable.
const BUSY: Duration = Duration::from_millis(500);

/// Upper bound of the next pause; the pause itself is drawn between zero and this (full jitter).
pub(super) fn ceiling(delivery: &Delivery, failed: u32) -> Duration {
    let factor = match delivery.backoff_policy {
        BackoffPolicy::Exponential => 1_u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX),
        BackoffPolicy::Linear => failed.max(1),
    };
    delivery
        .backoff_delay
        .saturating_mul(factor)
        .min(delivery.backoff_max)
}

/// Pause before the next attempt, with `jitter` drawn uniformly from 0 to 1. Honours the Sink's `Retry-After`, up to
/// a limit.
pub(super) fn pause(
    delivery: &Delivery,
    failed: u32,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    let drawn = ceiling(delivery, failed).mul_f64(jitter.clamp(0.0, 1.0));
    match retry_after {
        Some(asked) => asked.min(delivery.retry_after_max).max(drawn),
        None => drawn,
    }
}

/// Pause before the next attempt of an event that has failed; `None` once its retries are exhausted. Applies to Sinks
/// and dead-letter Sinks alike.
pub(super) fn retry(
    delivery: &Delivery,
    attempts: FailedAttempts,
    retry_after: Option<Duration>,
    now: Instant,
    jitter: f64,
) -> Option<Duration> {
    let ends = exhausted(delivery, attempts.failed, attempts.elapsed(now));
    (!ends).then(|| pause(delivery, attempts.failed, retry_after, jitter))
}

/// Pause before the retry of a postponed attempt.
pub(super) fn busy(jitter: f64) -> Duration {
    BUSY.mul_f64(0.5 + jitter / 2.0)
}

/// Whether the retries of an event are exhausted after this many failed attempts and this much time since the first.
fn exhausted(delivery: &Delivery, failed: u32, elapsed: Duration) -> bool {
    let by_number = delivery.retry.attempts.is_some_and(|retries| failed > retries);
    let by_time = delivery.retry.duration.is_some_and(|limit| elapsed >= limit);
    by_number || by_time
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Retry;

    fn delivery(policy: BackoffPolicy) -> Delivery {
        Delivery {
            backoff_policy: policy,
            backoff_delay: Duration::from_secs(1),
            backoff_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(20),
            ..Delivery::default()
        }
    }

    #[test]
    fn pauses_grow_up_to_the_maximum() {
        let seconds = |policy| [1, 2, 3, 4, 5, 40, u32::MAX].map(|n| ceiling(&delivery(policy), n).as_secs());
        assert_eq!(seconds(BackoffPolicy::Exponential), [1, 2, 4, 8, 10, 10, 10]);
        assert_eq!(seconds(BackoffPolicy::Linear), [1, 2, 3, 4, 5, 10, 10]);
    }

    #[test]
    fn a_pause_is_below_its_ceiling_and_honours_retry_after() {
        let delivery = delivery(BackoffPolicy::Exponential);
        assert_eq!(pause(&delivery, 3, None, 0.5), Duration::from_secs(2));
        assert_eq!(
            pause(&delivery, 3, Some(Duration::from_secs(3)), 0.5),
            Duration::from_secs(3)
        );
        assert_eq!(
            pause(&delivery, 3, Some(Duration::from_secs(3600)), 0.5),
            Duration::from_secs(20)
        );
        assert_eq!(
            pause(&delivery, 1, Some(Duration::ZERO), 1.0),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn retries_end_at_the_first_limit_reached() {
        let check = |attempts, duration: Option<u64>, failed, elapsed| {
            let retry = Retry {
                attempts,
                duration: duration.map(Duration::from_secs),
            };
            let delivery = Delivery {
                retry,
                ..Delivery::default()
            };
            exhausted(&delivery, failed, Duration::from_secs(elapsed))
        };
        assert!(check(Some(0), None, 1, 0), "no retry means one attempt");
        assert!(!check(Some(2), None, 2, 0));
        assert!(check(Some(2), None, 3, 0));
        assert!(!check(None, Some(60), 1000, 59));
        assert!(check(None, Some(60), 1, 60));
        assert!(check(Some(5), Some(60), 6, 1));
        assert!(!check(None, None, u32::MAX, 1_000_000));
    }
}
