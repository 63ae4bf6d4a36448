//! Bounds how many log lines of one kind are written. Pure.

use std::time::{Duration, Instant};

/// In each such time some lines are written and the rest is counted.
const PERIOD: Duration = Duration::from_secs(60);

/// How many.
const LINES: u32 = 5;

/// Lets the first five lines a minute through, and counts those that it holds back.
///
/// The count goes with the next line ([`Burst::admit`]), or, where none comes, with a summary for which whoever writes
/// the lines asks from time to time ([`Burst::overdue`]).
#[derive(Debug, Default)]
pub struct Burst {
    /// When the first line of this period was admitted.
    began: Option<Instant>,
    admitted: u32,
    held_back: u64,
}

/// A line may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// How many lines before it were not written; `None` if all were.
    pub held_back: Option<u64>,
}

impl Burst {
    /// Asks for a line; `None` holds it back.
    pub fn admit(&mut self, now: Instant) -> Option<Admitted> {
        if self.is_over(now) {
            (self.began, self.admitted) = (Some(now), 0);
        }
        if self.admitted == LINES {
            self.held_back += 1;
            return None;
        }
        self.admitted += 1;
        Some(Admitted {
            held_back: self.take(),
        })
    }

    /// How many lines were held back, once it is time to say so and no later line has.
    pub fn overdue(&mut self, now: Instant) -> Option<u64> {
        self.is_over(now).then(|| self.take()).flatten()
    }

    fn is_over(&self, now: Instant) -> bool {
        self.began
            .is_none_or(|began| now.saturating_duration_since(began) >= PERIOD)
    }

    fn take(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.held_back)).filter(|&held_back| held_back > 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn admitted(held_back: Option<u64>) -> Option<Admitted> {
        Some(Admitted { held_back })
    }

    #[test]
    fn the_first_lines_are_written_and_the_next_period_tells_of_the_rest() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(burst.admit(start), admitted(None));
        }
        for _ in 0..7 {
            assert_eq!(burst.admit(start + PERIOD / 2), None);
        }
        assert_eq!(burst.overdue(start + PERIOD / 2), None);
        assert_eq!(burst.admit(start + PERIOD), admitted(Some(7)));
        assert_eq!(burst.admit(start + PERIOD), admitted(None));
    }

    #[test]
    fn what_was_held_back_is_told_when_no_other_line_comes() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        assert_eq!(burst.overdue(start), None);
        for _ in 0..LINES + 3 {
            burst.admit(start);
        }
        assert_eq!(burst.overdue(start + PERIOD), Some(3));
        assert_eq!(burst.overdue(start + PERIOD), None);
        assert_eq!(burst.admit(start + PERIOD), admitted(None));
    }

    proptest! {
        #[test]
        fn every_line_is_written_or_counted_and_few_are_written(gaps in proptest::collection::vec(0_u64..90_000, 1..200)) {
            let (mut burst, mut now) = (Burst::default(), Instant::now());
            let (mut written, mut told, began) = (0, 0, now);
            for gap in &gaps {
                now += Duration::from_millis(*gap);
                told += burst.overdue(now).unwrap_or(0);
                if let Some(Admitted { held_back }) = burst.admit(now) {
                    written += 1;
                    told += held_back.unwrap_or(0);
                }
            }
            told += burst.overdue(now + PERIOD).unwrap_or(0);
            prop_assert_eq!(written + told, gaps.len() as u64);
            let periods = now.duration_since(began).as_secs() / PERIOD.as_secs() + 1;
            prop_assert!(written <= periods * u64::from(LINES));
        }
    }
}
