//! Enforces the quotas of brokers at the ingress: events per second, by a token bucket for each broker that holds what may
//! be posted in a second, and the size of an event.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::StatusCode;

use super::{exceeded::ExceededLimit, problem::Problem};
use crate::delivery::{TokenBucket, TokenRate};

/// The rates of brokers that have a limit, by `namespace/name`.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<HashMap<Box<str>, TokenBucket>>);

impl Quotas {
    /// Counts events against the rate of a broker.
    pub(super) fn count(
        &self,
        broker: &str,
        per_second: NonZeroU32,
        events: usize,
        now: Instant,
    ) -> Result<(), Problem> {
        let rate = TokenRate::per_second(per_second);
        let mut buckets = self.buckets();
        let bucket = buckets.entry(broker.into()).or_default();
        let pause = bucket.permits(rate, events, now).saturating_duration_since(now);
        if pause > Duration::ZERO {
            let seconds = pause.as_secs_f64().ceil() as u32;
            return Err(too_fast(broker, per_second).try_again_after(seconds));
        }
        bucket.take(rate, events, now);
        Ok(())
    }

    /// Forgets the rates of brokers that are gone.
    pub(super) fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.buckets().retain(|broker, _| exists(broker));
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Box<str>, TokenBucket>> {
        // Each bucket changes whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the size of each event.
pub(super) fn check_sizes(broker: &str, largest: u64, records: &[Bytes]) -> Result<(), Problem> {
    let too_large = |record: &Bytes| record.len() as u64 > largest;
    let Some(index) = records.iter().position(too_large) else {
        return Ok(());
    };
    let detail = format!(
        "the event has {} bytes of data and attributes, and broker {broker} takes {largest} (spec.quota.eventSize of its Broker, or the \
         installation's limit); nothing was stored",
        records[index].len()
    );
    let title = "The event is larger than the broker's quota";
    Err(
        Problem::over_quota(StatusCode::PAYLOAD_TOO_LARGE, ExceededLimit::Size, title, detail)
            .of_event(index),
    )
}

fn too_fast(broker: &str, per_second: NonZeroU32) -> Problem {
    let detail = format!(
        "broker {broker} takes {per_second} events per second at each router (spec.quota.eventsPerSecond of its Broker, or the \
         installation's limit); nothing was stored, send it again later"
    );
    let title = "More events than the broker's quota";
    Problem::over_quota(StatusCode::TOO_MANY_REQUESTS, ExceededLimit::Rate, title, detail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEN: NonZeroU32 = NonZeroU32::new(10).unwrap();

    #[test]
    fn a_second_of_events_may_come_at_once_and_a_batch_is_made_up_for() {
        let (quotas, begin) = (Quotas::default(), Instant::now());
        let count = |broker: &str, millis, events| {
            let now = begin + Duration::from_millis(millis);
            quotas.count(broker, TEN, events, now).is_ok()
        };
        assert!(count("a/b", 0, 10) && !count("a/b", 0, 1) && count("a/other", 0, 1));
        assert!(!count("a/b", 99, 1) && count("a/b", 200, 2) && !count("a/b", 200, 1));
        // A batch of 25 needs a full bucket, and the next event 16 tokens from there on.
        assert!(!count("a/b", 1100, 25) && count("a/b", 1200, 25));
        assert!(!count("a/b", 2700, 1) && count("a/b", 2800, 1));
        quotas.retain(|broker| broker == "a/other");
        assert!(count("a/b", 2800, 10), "a new broker has a full bucket");
    }

    #[test]
    fn the_first_event_over_the_size_is_named() {
        let records = ["12345", "123456", "1234567"].map(Bytes::from);
        assert!(check_sizes("a/b", 7, &records).is_ok());
        let problem = check_sizes("a/b", 5, &records).unwrap_err();
        assert!(problem.detail().contains("6 bytes"), "{}", problem.detail());
        assert_eq!(problem.exceeded(), Some(ExceededLimit::Size));
    }

    proptest! {
        #[test]
        fn no_more_than_the_rate_and_one_batch_is_accepted(posts in prop::collection::vec((0_u64..500, 1_usize..30), 1..100)) {
            let (quotas, begin) = (Quotas::default(), Instant::now());
            let (mut millis, mut accepted, mut largest) = (0, 0, 0);
            for (pause, events) in posts {
                millis += pause;
                let now = begin + Duration::from_millis(millis);
                if quotas.count("a/b", TEN, events, now).is_ok() {
                    accepted += events;
                    largest = largest.max(events);
                }
                let most = 10.0 + millis as f64 / 100.0 + largest as f64;
                prop_assert!(accepted as f64 <= most + 0.01, "{} of {} in {} ms", accepted, most, millis);
            }
        }
    }
}
