//! How far a Trigger has settled its broker's log: its durable cursor. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{backoff::Attempts, stats::Settlement};
use crate::log::Offset;

/// Everything below `next` is settled, but for what is outstanding.
///
/// At every moment `matched` is the sum of the settlements and of what is outstanding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    next: Offset,
    outstanding: BTreeMap<Offset, Attempts>,
    counts: Counts,
}

/// How many events the Trigger has wanted, and how they ended, since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) matched: u64,
    pub(super) delivered: u64,
    pub(super) expired: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
}

impl Counts {
    fn count(&mut self, settlement: Settlement) {
        *match settlement {
            Settlement::Delivered => &mut self.delivered,
            Settlement::Expired => &mut self.expired,
            Settlement::DeadLettered => &mut self.dead_lettered,
            Settlement::Dropped => &mut self.dropped,
        } += 1;
    }
}

/// The stored form. `broker` tells which log `next` points into, also when the Trigger is gone.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    broker: String,
    next: Offset,
    /// Offset, failed attempts, and when the first began in milliseconds since 1970.
    outstanding: Vec<(Offset, u32, Option<i64>)>,
    counts: Counts,
}

const VERSION: u32 = 1;

/// Why a stored cursor cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgressError {
    #[error("it is not what Weir writes: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("it has version {0}, and this Weir reads version {VERSION}")]
    Version(u32),
}

impl Progress {
    /// A Trigger that begins at `next`.
    pub(super) fn starting_at(next: Offset) -> Self {
        Self {
            next,
            outstanding: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// What the Trigger looks at next.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// The first offset that is not settled: nothing at or above it may be trimmed.
    pub(super) fn low(&self) -> Offset {
        self.outstanding
            .first_key_value()
            .map_or(self.next, |(&offset, _)| offset.min(self.next))
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What was wanted and is not settled yet, in order of offsets.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = Offset> {
        self.outstanding.keys().copied()
    }

    pub(super) fn pending(&self) -> usize {
        self.outstanding.len()
    }

    /// The event at this offset is wanted.
    pub(super) fn matched(&mut self, offset: Offset) {
        self.counts.matched += 1;
        self.outstanding.insert(offset, Attempts::default());
        self.advance(offset.plus(1));
    }

    /// Everything below `next` has been looked at.
    pub(super) fn advance(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    /// An attempt that began at `since` failed; gives what has been tried so far.
    pub(super) fn failed(&mut self, offset: Offset, since: Timestamp) -> Attempts {
        let attempts = self.outstanding.entry(offset).or_default();
        attempts.failed = attempts.failed.saturating_add(1);
        attempts.since.get_or_insert(since);
        *attempts
    }

    pub(super) fn settle(&mut self, offset: Offset, settlement: Settlement) {
        if self.outstanding.remove(&offset).is_some() {
            self.counts.count(settlement);
        }
    }

    pub(super) fn encode(&self, broker: &str) -> Vec<u8> {
        let stored = Stored {
            version: VERSION,
            broker: broker.to_owned(),
            next: self.next,
            outstanding: self
                .outstanding
                .iter()
                .map(|(&offset, attempts)| {
                    (
                        offset,
                        attempts.failed,
                        attempts.since.map(|at| at.as_millisecond()),
                    )
                })
                .collect(),
            counts: self.counts,
        };
        // Numbers, strings and lists always serialise.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProgressError> {
        let stored: Stored = serde_json::from_slice(bytes)?;
        if stored.version != VERSION {
            return Err(ProgressError::Version(stored.version));
        }
        let outstanding = stored.outstanding.into_iter().map(|(offset, failed, since)| {
            let since = since.and_then(|at| Timestamp::from_millisecond(at).ok());
            (offset, Attempts { failed, since })
        });
        Ok(Self {
            next: stored.next,
            outstanding: outstanding.collect(),
            counts: stored.counts,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn low_is_the_first_unsettled_offset() {
        let mut progress = Progress::starting_at(Offset(5));
        assert_eq!(progress.low(), Offset(5));
        progress.matched(Offset(7));
        progress.matched(Offset(9));
        progress.advance(Offset(20));
        assert_eq!((progress.low(), progress.next()), (Offset(7), Offset(20)));
        progress.settle(Offset(7), Settlement::Delivered);
        assert_eq!(progress.low(), Offset(9));
        progress.settle(Offset(9), Settlement::Expired);
        assert_eq!(progress.low(), Offset(20));
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut progress = Progress::starting_at(Offset(0));
        progress.matched(Offset(0));
        progress.settle(Offset(0), Settlement::Delivered);
        progress.settle(Offset(0), Settlement::DeadLettered);
        assert_eq!(
            progress.counts(),
            Counts {
                matched: 1,
                delivered: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_cursor_of_another_version_is_not_read() {
        let mut stored: serde_json::Value =
            serde_json::from_slice(&Progress::starting_at(Offset(1)).encode("a/b")).unwrap();
        stored["version"] = 2.into();
        let error = Progress::decode(stored.to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, ProgressError::Version(2)), "{error}");
    }

    proptest! {
        #[test]
        fn what_matched_is_settled_or_pending_and_survives_storing(steps in prop::collection::vec((0_u64..50, 0_u8..6), 0..200)) {
            let mut progress = Progress::starting_at(Offset(0));
            for (offset, step) in steps {
                let offset = Offset(offset);
                match step {
                    0 if offset >= progress.next() => progress.matched(offset),
                    0 | 1 => progress.advance(offset),
                    2 => progress.settle(offset, Settlement::Delivered),
                    3 => progress.settle(offset, Settlement::Expired),
                    4 => progress.settle(offset, Settlement::DeadLettered),
                    _ => progress.settle(offset, Settlement::Dropped),
                }
                let counts = progress.counts();
                let ended = counts.delivered + counts.expired + counts.dead_lettered + counts.dropped;
                prop_assert_eq!(counts.matched, ended + progress.pending() as u64);
                prop_assert_eq!(&Progress::decode(&progress.encode("a/b")).unwrap(), &progress);
            }
        }
    }
}
