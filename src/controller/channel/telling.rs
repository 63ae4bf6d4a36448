//! Keeps what happens again and again from flooding the log. Pure: time comes in.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How often the log tells of one kind of thing.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// When each kind of thing was last told.
#[derive(Debug, Default)]
pub(super) struct Telling(HashMap<&'static str, Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    untold: u64,
}

impl Telling {
    /// It has happened: if it is to be told, how often it has happened since it last was, this time included.
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
    fn the_first_is_told_at_once_and_the_others_together() {
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
