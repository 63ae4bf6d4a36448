//! Brokers whose producers were rejected lately because a quota was used up, for the reports to the controller.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::exceeded::ExceededLimit;

/// Time of the last rejection and the limit that was exceeded, by broker. Only existing brokers are noted, and only the
/// last minute is remembered.
#[derive(Debug, Default)]
pub(super) struct RejectedLately(Mutex<HashMap<Box<str>, (Instant, ExceededLimit)>>);

impl RejectedLately {
    /// Notes that a producer of this broker was rejected.
    pub(super) fn note(&self, broker: &str, limit: ExceededLimit, now: Instant) {
        let mut brokers = self.brokers();
        match brokers.get_mut(broker) {
            Some(last) => *last = (now, limit),
            None => drop(brokers.insert(broker.into(), (now, limit))),
        }
    }

    /// Forgets rejections longer ago than this. Returns the brokers with later ones, each with the limit exceeded last.
    pub(super) fn within(&self, window: Duration, now: Instant) -> Vec<(Box<str>, ExceededLimit)> {
        let mut brokers = self.brokers();
        brokers.retain(|_, (last, _)| now.saturating_duration_since(*last) < window);
        let brokers = brokers.iter();
        brokers
            .map(|(broker, (_, limit))| (broker.clone(), *limit))
            .collect()
    }

    fn brokers(&self) -> MutexGuard<'_, HashMap<Box<str>, (Instant, ExceededLimit)>> {
        // Entries are inserted and removed whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_are_remembered_for_a_while() {
        let (rejected, begin) = (RejectedLately::default(), Instant::now());
        let window = Duration::from_secs(60);
        let (share, bytes) = (ExceededLimit::Share, ExceededLimit::Bytes);
        rejected.note("shop/orders", share, begin);
        rejected.note("shop/orders", bytes, begin + Duration::from_secs(30));
        rejected.note("bank/default", share, begin);
        let within = |seconds| rejected.within(window, begin + Duration::from_secs(seconds));
        assert_eq!(within(59).len(), 2);
        for (seconds, expected) in [(60, 1), (89, 1), (90, 0)] {
            let brokers = within(seconds);
            assert_eq!(brokers.len(), expected, "after {seconds} s");
            assert!(brokers.iter().all(|(_, limit)| *limit == bytes));
        }
    }
}
