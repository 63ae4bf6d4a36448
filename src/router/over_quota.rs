//! Brokers whose producers were rejected lately because a quota was used up, for the reports to the controller.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Time of the last rejection, by broker. Only existing brokers are noted, and only the last minute is remembered.
#[derive(Debug, Default)]
pub(super) struct RejectedLately(Mutex<HashMap<Box<str>, Instant>>);

impl RejectedLately {
    /// Notes that a producer of this broker was rejected.
    pub(super) fn note(&self, broker: &str, now: Instant) {
        let mut brokers = self.brokers();
        match brokers.get_mut(broker) {
            Some(last) => *last = now,
            None => drop(brokers.insert(broker.into(), now)),
        }
    }

    /// Forgets rejections longer ago than this. Returns the brokers with later ones.
    pub(super) fn within(&self, window: Duration, now: Instant) -> Vec<Box<str>> {
        let mut brokers = self.brokers();
        brokers.retain(|_, last| now.saturating_duration_since(*last) < window);
        brokers.keys().cloned().collect()
    }

    fn brokers(&self) -> MutexGuard<'_, HashMap<Box<str>, Instant>> {
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
        rejected.note("shop/orders", begin);
        rejected.note("shop/orders", begin + Duration::from_secs(30));
        rejected.note("bank/default", begin);
        for (seconds, expected) in [(59, 2), (60, 1), (89, 1), (90, 0)] {
            let brokers = rejected.within(window, begin + Duration::from_secs(seconds));
            assert_eq!(brokers.len(), expected, "after {seconds} s");
        }
    }
}
