//! How far a Trigger has settled its broker's log: its durable cursor. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{backoff::Attempts, place::Place, stats::Settlement};
use crate::log::Offset;

/// Everything below `next` is settled, but for what is outstanding.
///
/// At every moment `matched` is the sum of the settlements and of what is outstanding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    next: Offset,
    outstanding: BTreeMap<Place, Attempts>,
    counts: Counts,
}

/// The first places that are not settled: nothing from there on may be trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Low {
    /// In the broker's log.
    pub(super) events: Offset,
    /// In its dead-letter log, if dead letters are delivered again.
    pub(super) dead_letters: Option<Offset>,
}

/// How many events the Trigger has wanted, and how they ended, since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) matched: u64,
    pub(super) delivered: u64,
    pub(super) expired: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
    /// Of `matched`, those that were dead letters before.
    #[serde(default)]
    pub(super) redriven: u64,
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
    outstanding: Vec<StoredAttempts>,
    /// The same, with offsets in the dead-letter log.
    #[serde(default)]
    redriven: Vec<StoredAttempts>,
    counts: Counts,
}

/// Offset, failed attempts, and when the first began in milliseconds since 1970.
type StoredAttempts = (Offset, u32, Option<i64>);

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

    /// Where what is not settled begins.
    pub(super) fn low(&self) -> Low {
        let first = self.outstanding.first_key_value();
        let redriven = self.outstanding.range(Place::DeadLetter(Offset(0))..).next();
        Low {
            events: match first {
                Some((&Place::Log(offset), _)) => offset.min(self.next),
                _ => self.next,
            },
            dead_letters: match redriven {
                Some((&Place::DeadLetter(offset), _)) => Some(offset),
                _ => None,
            },
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// What was wanted and is not settled yet, in order.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = Place> {
        self.outstanding.keys().copied()
    }

    pub(super) fn pending(&self) -> usize {
        self.outstanding.len()
    }

    /// The event at this offset is wanted.
    pub(super) fn matched(&mut self, offset: Offset) {
        self.counts.matched += 1;
        self.outstanding.insert(Place::Log(offset), Attempts::default());
        self.advance(offset.plus(1));
    }

    /// A dead letter is wanted again; it counts as matched once more, and is settled like any other event.
    pub(super) fn redriven(&mut self, dead_letter: Offset) {
        let before = self
            .outstanding
            .insert(Place::DeadLetter(dead_letter), Attempts::default());
        if before.is_none() {
            self.counts.matched += 1;
            self.counts.redriven += 1;
        }
    }

    /// Everything below `next` has been looked at.
    pub(super) fn advance(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    /// How many attempts have failed.
    pub(super) fn failures(&self, place: Place) -> u32 {
        self.outstanding.get(&place).map_or(0, |attempts| attempts.failed)
    }

    /// An attempt that began at `since` failed; gives what has been tried so far.
    pub(super) fn failed(&mut self, place: Place, since: Timestamp) -> Attempts {
        // What is settled already stays so.
        let mut settled = Attempts::default();
        let attempts = self.outstanding.get_mut(&place).unwrap_or(&mut settled);
        attempts.failed = attempts.failed.saturating_add(1);
        attempts.since.get_or_insert(since);
        *attempts
    }

    pub(super) fn settle(&mut self, place: Place, settlement: Settlement) {
        if self.outstanding.remove(&place).is_some() {
            self.counts.count(settlement);
        }
    }

    /// Goes back to the ends of the logs where it is beyond them, because their ends were lost: other events will have
    /// those offsets. What was outstanding there is settled as dropped. Whether anything was beyond.
    pub(super) fn keep_within(&mut self, events: Offset, dead_letters: Offset) -> bool {
        let lost = |place: &Place| match *place {
            Place::Log(offset) => offset >= events,
            Place::DeadLetter(offset) => offset >= dead_letters,
        };
        let lost: Vec<_> = self.outstanding().filter(lost).collect();
        let is_beyond = self.next > events || !lost.is_empty();
        for place in lost {
            self.settle(place, Settlement::Dropped);
        }
        self.next = self.next.min(events);
        is_beyond
    }

    pub(super) fn encode(&self, broker: &str) -> Vec<u8> {
        let (mut outstanding, mut redriven) = (Vec::new(), Vec::new());
        for (&place, &Attempts { failed, since }) in &self.outstanding {
            let since = since.map(|at| at.as_millisecond());
            match place {
                Place::Log(offset) => outstanding.push((offset, failed, since)),
                Place::DeadLetter(offset) => redriven.push((offset, failed, since)),
            }
        }
        let stored = Stored {
            version: VERSION,
            broker: broker.to_owned(),
            next: self.next,
            outstanding,
            redriven,
            counts: self.counts,
        };
        // Numbers, strings and lists always serialise.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProgressError> {
        Self::decode_with_broker(bytes).map(|(_, progress)| progress)
    }

    /// The same, with the broker, as `namespace/name`.
    pub(super) fn decode_with_broker(bytes: &[u8]) -> Result<(String, Self), ProgressError> {
        let Stored {
            version,
            broker,
            next,
            outstanding,
            redriven,
            counts,
        } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(ProgressError::Version(version));
        }
        let of = |place: fn(Offset) -> Place| {
            move |(offset, failed, since): StoredAttempts| {
                let since = since.and_then(|at| Timestamp::from_millisecond(at).ok());
                (place(offset), Attempts { failed, since })
            }
        };
        let outstanding = outstanding.into_iter().map(of(Place::Log));
        let redriven = redriven.into_iter().map(of(Place::DeadLetter));
        let progress = Self {
            next,
            outstanding: outstanding.chain(redriven).collect(),
            counts,
        };
        Ok((broker, progress))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn low_is_the_first_unsettled_offset() {
        let mut progress = Progress::starting_at(Offset(5));
        assert_eq!(progress.low().events, Offset(5));
        progress.matched(Offset(7));
        progress.matched(Offset(9));
        progress.advance(Offset(20));
        assert_eq!((progress.low().events, progress.next()), (Offset(7), Offset(20)));
        progress.settle(Place::Log(Offset(7)), Settlement::Delivered);
        assert_eq!(progress.low().events, Offset(9));
        progress.settle(Place::Log(Offset(9)), Settlement::Expired);
        assert_eq!(progress.low().events, Offset(20));
        assert_eq!(progress.low().dead_letters, None);
        progress.redriven(Offset(3));
        progress.redriven(Offset(30));
        let low = Low {
            events: Offset(20),
            dead_letters: Some(Offset(3)),
        };
        assert_eq!(progress.low(), low);
        progress.settle(Place::DeadLetter(Offset(3)), Settlement::Delivered);
        assert_eq!(progress.low().dead_letters, Some(Offset(30)));
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut progress = Progress::starting_at(Offset(0));
        progress.matched(Offset(0));
        progress.settle(Place::Log(Offset(0)), Settlement::Delivered);
        progress.settle(Place::Log(Offset(0)), Settlement::DeadLettered);
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
    fn what_is_beyond_the_ends_of_the_logs_is_dropped() {
        let mut progress = Progress::starting_at(Offset(0));
        for offset in [2, 6] {
            progress.matched(Offset(offset));
            progress.redriven(Offset(offset));
        }
        let before = progress.clone();
        assert!(!progress.keep_within(Offset(7), Offset(7)));
        assert_eq!(progress, before);
        assert!(progress.keep_within(Offset(6), Offset(3)));
        assert_eq!(
            progress.outstanding().collect::<Vec<_>>(),
            [Place::Log(Offset(2)), Place::DeadLetter(Offset(2))]
        );
        assert_eq!((progress.next(), progress.counts().dropped), (Offset(6), 2));
        assert!(progress.keep_within(Offset(4), Offset(3)), "the place alone");
        assert_eq!((progress.next(), progress.counts().dropped), (Offset(4), 2));
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
        fn what_matched_is_settled_or_pending_and_survives_storing(steps in prop::collection::vec((0_u64..50, any::<bool>(), 0_u8..7), 0..200)) {
            let mut progress = Progress::starting_at(Offset(0));
            for (offset, redriven, step) in steps {
                let offset = Offset(offset);
                let place = if redriven { Place::DeadLetter(offset) } else { Place::Log(offset) };
                match step {
                    0 if redriven => progress.redriven(offset),
                    0 if offset >= progress.next() => progress.matched(offset),
                    0 | 1 => progress.advance(offset),
                    2 => progress.settle(place, Settlement::Delivered),
                    3 => progress.settle(place, Settlement::Expired),
                    4 => progress.settle(place, Settlement::DeadLettered),
                    5 => {
                        progress.failed(place, Timestamp::UNIX_EPOCH);
                    }
                    _ => progress.settle(place, Settlement::Dropped),
                }
                let counts = progress.counts();
                let ended = counts.delivered + counts.expired + counts.dead_lettered + counts.dropped;
                prop_assert_eq!(counts.matched, ended + progress.pending() as u64);
                prop_assert_eq!(&Progress::decode(&progress.encode("a/b")).unwrap(), &progress);
            }
        }
    }
}
