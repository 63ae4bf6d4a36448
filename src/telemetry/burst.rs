//! Limits the rate of log lines of one kind. Pure.

use std::time::{Duration, Instant};

/// Period in which some lines are written and the rest is counted.
const PERIOD: Duration = Duration::from_secs(60);

/// Number of lines per period.
const LINES: u32 = 5;

/// Admits the first five lines of each minute, and counts those that it suppresses.
///
/// The count is reported with the next line ([`Burst::admit`]) or, if there is none, with a summary that the writer
/// polls for ([`Burst::overdue`]).
#[derive(Debug, Default)]
pub struct Burst {
    /// Time of the first line in this period.
    began: Option<Instant>,
    admitted: u32,
    held_back: u64,
}

/// Permission to write a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Number of lines suppressed before it; `None` if there were none.
    pub held_back: Option<u64>,
}

impl Burst {
    /// Requests a line. Returns `None` if it must be suppressed.
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

    /// Returns the number of suppressed lines, once a report is due and no later line has made it.
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
    fn writes_the_first_lines_and_reports_the_rest_in_the_next_period() {
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
    fn reports_suppressed_lines_when_no_other_line_follows() {
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
        fn every_line_is_written_or_counted(gaps in proptest::collection::vec(0_u64..90_000, 1..200)) {
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
