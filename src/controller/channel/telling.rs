//! Rate-limits repeated log messages. Pure: time is an argument.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Interval at which the log repeats one kind of message.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The last time each kind of message was logged.
#[derive(Debug, Default)]
pub(super) struct Telling(HashMap<&'static str, Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    untold: u64,
}

impl Telling {
    /// Records an occurrence. If it should be logged, returns the number of occurrences since the last log,
    /// including this one.
    pub(super) fn happened(&mut self, what: &'static str, now: Instant) -> Option<u64> {
        let Some(told) = self.0.get_mut(what) else {
            self.0.insert(what, Told { at: now, untold: 0 });
            return Some(1);
        };
        told.untold += 1;
        if now.saturating_duration_since(told.at) < TELL_EVERY {
            return None;
        }
        told.at = now;
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_the_first_at_once_and_later_ones_together() {
        let start = Instant::now();
        let mut telling = Telling::default();
        for (what, seconds, told) in [
            ("a", 0, Some(1)),
            ("a", 1, None),
            ("b", 2, Some(1)),
            ("a", 59, None),
            ("a", 60, Some(3)),
            ("a", 61, None),
            ("a", 500, Some(2)),
        ] {
            let found = telling.happened(what, start + Duration::from_secs(seconds));
            assert_eq!(found, told, "{what} after {seconds} s");
        }
    }
}
