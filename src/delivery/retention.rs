//! Retention of settled events, for Triggers that start in the past. Pure.

use std::time::Duration;

use crate::log::{LogBounds, Offset};

/// Retention of a broker's settled events by age and size. Unsettled events stay regardless of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Maximum age of settled events.
    pub age: Duration,
    /// Maximum bytes of a broker's log; beyond it the oldest settled events are removed.
    pub bytes: u64,
}

impl Default for Retention {
    /// A day, and 1 GiB.
    fn default() -> Self {
        Self {
            age: Duration::from_secs(24 * 60 * 60),
            bytes: 1024 * 1024 * 1024,
        }
    }
}

/// Offset below which a broker's log is trimmed: events over the age or the size, but nothing unsettled.
///
/// `too_old` is the first record within the age. The size is assumed to be spread evenly over the records.
pub(super) fn trim_before(
    bounds: LogBounds,
    bytes: u64,
    limit: u64,
    too_old: Offset,
    unsettled: Offset,
) -> Offset {
    let records = bounds.next.0.saturating_sub(bounds.first.0);
    let excess = u128::from(bytes.saturating_sub(limit));
    let over_size = u128::from(records) * excess / u128::from(bytes.max(1));
    // At most `records`, which is a u64.
    let over_size = bounds.first.plus(u64::try_from(over_size).unwrap_or(records));
    over_size.max(too_old).min(unsettled).max(bounds.first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trims_by_age_and_size_but_nothing_unsettled() {
        let bounds = LogBounds {
            first: Offset(100),
            next: Offset(200),
        };
        let table = [
            // (bytes, limit, first within the age, first unsettled) -> trimmed below
            ((1000, 1000, 100, 200), 100),
            ((1000, 500, 100, 200), 150),
            ((1000, 500, 180, 200), 180),
            ((1000, 500, 180, 120), 120),
            ((1000, 0, 100, 200), 200),
            ((1000, 0, 200, 50), 100),
            ((0, 0, 100, 200), 100),
            ((u64::MAX, 1, 100, 200), 199),
        ];
        for ((bytes, limit, too_old, unsettled), expected) in table {
            let before = trim_before(bounds, bytes, limit, Offset(too_old), Offset(unsettled));
            assert_eq!(before, Offset(expected), "{bytes} {limit} {too_old} {unsettled}");
        }
    }
}
