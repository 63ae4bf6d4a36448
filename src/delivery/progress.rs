//! A Trigger's progress through its broker's log: the durable part of its checkpoint. Pure: time comes in as an
//! argument.
//!
//! A waiting event is one offset in a compressed set, at most two bytes where many wait. Only a failed event
//! stores more: its attempts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use super::{position::EventPosition, settlement::Settlement};
use crate::log::Offset;

/// Everything below `next` is settled, except the outstanding events.
///
/// Invariant: `matched` is the sum of the settlements and of the outstanding events.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Progress {
    next: Offset,
    /// Outstanding events, by offset in the broker's log.
    events: RoaringTreemap,
    /// Outstanding redriven events, by offset in the dead-letter log.
    redriven: RoaringTreemap,
    /// Size of both sets.
    pending: usize,
    /// Outstanding events that have failed.
    tried: BTreeMap<EventPosition, FailedAttempts>,
    counts: SettlementCounts,
}

/// Failed attempts of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FailedAttempts {
    pub(super) failed: u32,
    /// Time since the first attempt began, up to `as_of`, as the process saw it pass. It is immune to jumps of the
    /// wall clock and excludes the router's downtime.
    elapsed: Duration,
    as_of: Instant,
}

impl FailedAttempts {
    /// No failed attempt yet; the first one begins now.
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            failed: 0,
            elapsed: Duration::ZERO,
            as_of: now,
        }
    }

    /// Time since the first attempt began.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        self.elapsed + now.saturating_duration_since(self.as_of)
    }
}

/// Low watermarks: the first unsettled offsets. Nothing from there on may be trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LowWatermarks {
    /// In the broker's log.
    pub(super) events: Offset,
    /// In its dead-letter log, while dead letters are being redriven.
    pub(super) dead_letters: Option<Offset>,
}

/// Events that the Trigger has wanted since its creation, and how they were settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SettlementCounts {
    pub(super) matched: u64,
    pub(super) delivered: u64,
    pub(super) expired: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
    /// Events of `matched` that were dead letters before.
    #[serde(default)]
    pub(super) redriven: u64,
}

impl SettlementCounts {
    fn count(&mut self, settlement: Settlement) {
        *match settlement {
            Settlement::Delivered => &mut self.delivered,
            Settlement::Expired => &mut self.expired,
            Settlement::DeadLettered => &mut self.dead_lettered,
            Settlement::Dropped => &mut self.dropped,
        } += 1;
    }
}

/// Stored form. `broker` names the log that `next` points into, also after the Trigger is gone.
#[derive(Serialize, Deserialize)]
struct StoredProgress {
    version: u32,
    broker: String,
    next: Offset,
    /// A set in Roaring's portable format, as base64.
    events: String,
    redriven: String,
    tried: Vec<StoredAttempts>,
    tried_redriven: Vec<StoredAttempts>,
    counts: SettlementCounts,
}

/// Offset, failed attempts, and milliseconds since the first one began.
type StoredAttempts = (Offset, u32, u64);

/// Stored form of version 1, which listed every outstanding event with its attempts.
#[derive(Deserialize)]
struct StoredProgressV1 {
    broker: String,
    next: Offset,
    outstanding: Vec<StoredAttemptsV1>,
    #[serde(default)]
    redriven: Vec<StoredAttemptsV1>,
    counts: SettlementCounts,
}

/// Offset, failed attempts, and when the first began, in milliseconds since 1970. The time is ignored: the retry
/// duration of such an event restarts.
type StoredAttemptsV1 = (Offset, u32, Option<i64>);

#[derive(Deserialize)]
struct StoredProgressVersion {
    version: u32,
}

const VERSION: u32 = 2;

/// Why a stored checkpoint cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgressError {
    #[error("malformed checkpoint: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("malformed set of offsets in the checkpoint: {0}")]
    Set(String),
    #[error("unsupported checkpoint version {0}: this Weir reads versions 1 to {VERSION}")]
    Version(u32),
}

impl Progress {
    /// Progress of a Trigger that begins at `next`.
    pub(super) fn starting_at(next: Offset) -> Self {
        Self {
            next,
            events: RoaringTreemap::new(),
            redriven: RoaringTreemap::new(),
            pending: 0,
            tried: BTreeMap::new(),
            counts: SettlementCounts::default(),
        }
    }

    /// Next offset to evaluate.
    pub(super) fn next(&self) -> Offset {
        self.next
    }

    /// Low watermarks.
    pub(super) fn low(&self) -> LowWatermarks {
        let events = self.events.min().map_or(self.next, Offset);
        LowWatermarks {
            events: events.min(self.next),
            dead_letters: self.redriven.min().map(Offset),
        }
    }

    pub(super) fn counts(&self) -> SettlementCounts {
        self.counts
    }

    /// Outstanding events, in order.
    pub(super) fn outstanding(&self) -> impl Iterator<Item = EventPosition> {
        let events = self
            .events
            .iter()
            .map(|offset| EventPosition::Log(Offset(offset)));
        let redriven = self
            .redriven
            .iter()
            .map(|offset| EventPosition::DeadLetter(Offset(offset)));
        events.chain(redriven)
    }

    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Number of outstanding redriven dead letters.
    pub(super) fn pending_redriven(&self) -> usize {
        usize::try_from(self.redriven.len()).unwrap_or(usize::MAX)
    }

    /// Outstanding events that have failed, in order.
    pub(super) fn tried_positions(&self) -> impl Iterator<Item = (EventPosition, FailedAttempts)> {
        self.tried
            .iter()
            .map(|(&position, &attempts)| (position, attempts))
    }

    pub(super) fn is_outstanding(&self, position: EventPosition) -> bool {
        match position {
            EventPosition::Log(Offset(offset)) => self.events.contains(offset),
            EventPosition::DeadLetter(Offset(offset)) => self.redriven.contains(offset),
        }
    }

    /// Number of outstanding events that have failed.
    pub(super) fn tried(&self) -> usize {
        self.tried.len()
    }

    /// Adds a wanted event.
    pub(super) fn matched(&mut self, offset: Offset) {
        if self.events.insert(offset.0) {
            self.pending += 1;
            self.counts.matched += 1;
        }
        self.advance(offset.plus(1));
    }

    /// Adds a redriven dead letter. It counts as matched once more, and is settled like any other event.
    pub(super) fn redriven(&mut self, dead_letter: Offset) {
        if self.redriven.insert(dead_letter.0) {
            self.pending += 1;
            self.counts.matched += 1;
            self.counts.redriven += 1;
        }
    }

    /// Marks everything below `next` as evaluated.
    pub(super) fn advance(&mut self, next: Offset) {
        self.next = self.next.max(next);
    }

    /// Failed attempts of an event, if any.
    pub(super) fn attempts(&self, position: EventPosition) -> Option<FailedAttempts> {
        self.tried.get(&position).copied()
    }

    /// Counts a failed attempt that began at `began`; returns all failed attempts so far.
    pub(super) fn failed(&mut self, position: EventPosition, began: Instant) -> FailedAttempts {
        let mut attempts = self
            .attempts(position)
            .unwrap_or_else(|| FailedAttempts::begin(began));
        attempts.failed = attempts.failed.saturating_add(1);
        // A settled event stays settled.
        if self.is_outstanding(position) {
            self.tried.insert(position, attempts);
        }
        attempts
    }

    /// Settles an event; returns whether it was outstanding.
    pub(super) fn settle(&mut self, position: EventPosition, settlement: Settlement) -> bool {
        let was_outstanding = match position {
            EventPosition::Log(Offset(offset)) => self.events.remove(offset),
            EventPosition::DeadLetter(Offset(offset)) => self.redriven.remove(offset),
        };
        if was_outstanding {
            self.pending -= 1;
            self.tried.remove(&position);
            self.counts.count(settlement);
        }
        was_outstanding
    }

    /// Clamps the progress to the ends of logs that lost their tails: other events will get those offsets.
    /// Outstanding events beyond them are settled as dropped. Returns whether anything was beyond.
    pub(super) fn keep_within(&mut self, events: Offset, dead_letters: Offset) -> bool {
        let lost = |position: &EventPosition| match *position {
            EventPosition::Log(offset) => offset >= events,
            EventPosition::DeadLetter(offset) => offset >= dead_letters,
        };
        let lost: Vec<_> = self.outstanding().filter(lost).collect();
        let is_beyond = self.next > events || !lost.is_empty();
        for position in lost {
            self.settle(position, Settlement::Dropped);
        }
        self.next = self.next.min(events);
        is_beyond
    }

    /// Encodes the stored form, as of `now`.
    pub(super) fn encode(&self, broker: &str, now: Instant) -> Vec<u8> {
        let (mut tried, mut tried_redriven) = (Vec::new(), Vec::new());
        for (&position, attempts) in &self.tried {
            let elapsed = u64::try_from(attempts.elapsed(now).as_millis()).unwrap_or(u64::MAX);
            match position {
                EventPosition::Log(offset) => tried.push((offset, attempts.failed, elapsed)),
                EventPosition::DeadLetter(offset) => tried_redriven.push((offset, attempts.failed, elapsed)),
            }
        }
        let stored = StoredProgress {
            version: VERSION,
            broker: broker.to_owned(),
            next: self.next,
            events: encode_set(&self.events),
            redriven: encode_set(&self.redriven),
            tried,
            tried_redriven,
            counts: self.counts,
        };
        // Numbers, strings and lists always serialise.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8], now: Instant) -> Result<Self, ProgressError> {
        Self::decode_with_broker(bytes, now).map(|(_, progress)| progress)
    }

    /// Decodes the progress together with its broker, as `namespace/name`.
    pub(super) fn decode_with_broker(bytes: &[u8], now: Instant) -> Result<(String, Self), ProgressError> {
        match serde_json::from_slice::<StoredProgressVersion>(bytes)?.version {
            1 => Ok(Self::restore_v1(serde_json::from_slice(bytes)?, now)),
            VERSION => Self::restore(serde_json::from_slice(bytes)?, now),
            other => Err(ProgressError::Version(other)),
        }
    }

    fn restore(stored: StoredProgress, now: Instant) -> Result<(String, Self), ProgressError> {
        let StoredProgress {
            version: _,
            broker,
            next,
            events,
            redriven,
            tried,
            tried_redriven,
            counts,
        } = stored;
        let mut progress = Self {
            events: decode_set(&events)?,
            redriven: decode_set(&redriven)?,
            counts,
            ..Self::starting_at(next)
        };
        progress.count_pending();
        let of = |position: fn(Offset) -> EventPosition| {
            move |(offset, failed, elapsed): StoredAttempts| {
                let attempts = FailedAttempts {
                    failed,
                    elapsed: Duration::from_millis(elapsed),
                    as_of: now,
                };
                (position(offset), attempts)
            }
        };
        let tried = tried.into_iter().map(of(EventPosition::Log));
        let redriven = tried_redriven.into_iter().map(of(EventPosition::DeadLetter));
        for (position, attempts) in tried.chain(redriven) {
            if progress.is_outstanding(position) {
                progress.tried.insert(position, attempts);
            }
        }
        Ok((broker, progress))
    }

    fn restore_v1(stored: StoredProgressV1, now: Instant) -> (String, Self) {
        let StoredProgressV1 {
            broker,
            next,
            outstanding,
            redriven,
            counts,
        } = stored;
        let mut progress = Self {
            events: outstanding.iter().map(|(offset, ..)| offset.0).collect(),
            redriven: redriven.iter().map(|(offset, ..)| offset.0).collect(),
            counts,
            ..Self::starting_at(next)
        };
        progress.count_pending();
        let outstanding = outstanding
            .into_iter()
            .map(|(offset, failed, _)| (EventPosition::Log(offset), failed));
        let redriven = redriven
            .into_iter()
            .map(|(offset, failed, _)| (EventPosition::DeadLetter(offset), failed));
        progress.tried = outstanding
            .chain(redriven)
            .filter(|&(_, failed)| failed > 0)
            .map(|(position, failed)| {
                let attempts = FailedAttempts {
                    failed,
                    ..FailedAttempts::begin(now)
                };
                (position, attempts)
            })
            .collect();
        (broker, progress)
    }

    fn count_pending(&mut self) {
        let pending = self.events.len() + self.redriven.len();
        self.pending = usize::try_from(pending).unwrap_or(usize::MAX);
    }
}

fn encode_set(set: &RoaringTreemap) -> String {
    let mut bytes = Vec::with_capacity(set.serialized_size());
    // Writing to a Vec cannot fail.
    let _ = set.serialize_into(&mut bytes);
    BASE64_STANDARD.encode(bytes)
}

fn decode_set(text: &str) -> Result<RoaringTreemap, ProgressError> {
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|error| ProgressError::Set(error.to_string()))?;
    RoaringTreemap::deserialize_from(&bytes[..]).map_err(|error| ProgressError::Set(error.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(offset: u64) -> EventPosition {
        EventPosition::Log(Offset(offset))
    }

    #[test]
    fn low_is_the_first_unsettled_offset() {
        let mut progress = Progress::starting_at(Offset(5));
        assert_eq!(progress.low().events, Offset(5));
        progress.matched(Offset(7));
        progress.matched(Offset(9));
        progress.advance(Offset(20));
        assert_eq!((progress.low().events, progress.next()), (Offset(7), Offset(20)));
        assert!(progress.settle(log(7), Settlement::Delivered));
        assert_eq!(progress.low().events, Offset(9));
        assert!(progress.settle(log(9), Settlement::Expired));
        assert_eq!(progress.low().events, Offset(20));
        assert_eq!(progress.low().dead_letters, None);
        progress.redriven(Offset(3));
        progress.redriven(Offset(30));
        let low = LowWatermarks {
            events: Offset(20),
            dead_letters: Some(Offset(3)),
        };
        assert_eq!(progress.low(), low);
        progress.settle(EventPosition::DeadLetter(Offset(3)), Settlement::Delivered);
        assert_eq!(progress.low().dead_letters, Some(Offset(30)));
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut progress = Progress::starting_at(Offset(0));
        progress.matched(Offset(0));
        assert!(progress.settle(log(0), Settlement::Delivered));
        assert!(!progress.settle(log(0), Settlement::DeadLettered));
        assert_eq!(
            progress.counts(),
            SettlementCounts {
                matched: 1,
                delivered: 1,
                ..SettlementCounts::default()
            }
        );
    }

    #[test]
    fn events_beyond_the_ends_of_the_logs_are_dropped() {
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
            [log(2), EventPosition::DeadLetter(Offset(2))]
        );
        assert_eq!((progress.next(), progress.counts().dropped), (Offset(6), 2));
        assert!(
            progress.keep_within(Offset(4), Offset(3)),
            "only the position was beyond"
        );
        assert_eq!((progress.next(), progress.counts().dropped), (Offset(4), 2));
    }

    #[test]
    fn a_hundred_thousand_waiting_events_take_a_few_hundred_kilobytes() {
        let now = Instant::now();
        for (spacing, most) in [(1, 40_000), (7, 130_000), (100, 300_000)] {
            let mut progress = Progress::starting_at(Offset(0));
            (0..100_000).for_each(|number| progress.matched(Offset(number * spacing)));
            let stored = progress.encode("shop/default", now).len();
            assert!(stored < most, "every {spacing}th offset: {stored} bytes");
        }
    }

    #[test]
    fn downtime_of_the_router_does_not_count() {
        let now = Instant::now();
        let mut progress = Progress::starting_at(Offset(0));
        progress.matched(Offset(0));
        progress.failed(log(0), now);
        let minute = Duration::from_secs(60);
        let stored = progress.encode("a/b", now + minute);
        // Independent of the wall clock and of how much later it is read.
        let later = now + 100 * minute;
        let attempts = Progress::decode(&stored, later)
            .unwrap()
            .attempts(log(0))
            .unwrap();
        assert_eq!((attempts.failed, attempts.elapsed(later)), (1, minute));
        assert_eq!(attempts.elapsed(later + minute), 2 * minute);
    }

    #[test]
    fn decodes_version_1() {
        let stored = br#"{"version":1,"broker":"a/b","next":9,"outstanding":[[3,0,null],[5,2,1700000000000]],
            "redriven":[[1,1,1700000000000]],"counts":{"matched":7,"delivered":4,"expired":0,"dead_lettered":0,"dropped":0}}"#;
        let now = Instant::now();
        let (broker, progress) = Progress::decode_with_broker(stored, now).unwrap();
        assert_eq!(
            (broker.as_str(), progress.next(), progress.pending()),
            ("a/b", Offset(9), 3)
        );
        assert_eq!(
            progress.outstanding().collect::<Vec<_>>(),
            [log(3), log(5), EventPosition::DeadLetter(Offset(1))]
        );
        assert_eq!(progress.attempts(log(3)), None);
        let attempts = progress.attempts(log(5)).unwrap();
        assert_eq!((attempts.failed, attempts.elapsed(now)), (2, Duration::ZERO));
        assert_eq!(
            Progress::decode(&progress.encode("a/b", now), now).unwrap(),
            progress
        );
    }

    #[test]
    fn rejects_unknown_versions() {
        let now = Instant::now();
        let stored = Progress::starting_at(Offset(1)).encode("a/b", now);
        let mut stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
        stored["version"] = 3.into();
        let error = Progress::decode(stored.to_string().as_bytes(), now).unwrap_err();
        assert!(matches!(error, ProgressError::Version(3)), "{error}");
    }

    proptest! {
        #[test]
        fn matched_events_are_settled_or_pending_and_survive_storing(steps in prop::collection::vec((0_u64..50, any::<bool>(), 0_u8..7), 0..200)) {
            let now = Instant::now();
            let mut progress = Progress::starting_at(Offset(0));
            for (offset, redriven, step) in steps {
                let offset = Offset(offset);
                let position = if redriven { EventPosition::DeadLetter(offset) } else { EventPosition::Log(offset) };
                match step {
                    0 if redriven => progress.redriven(offset),
                    0 if offset >= progress.next() => progress.matched(offset),
                    0 | 1 => progress.advance(offset),
                    2 => drop(progress.settle(position, Settlement::Delivered)),
                    3 => drop(progress.settle(position, Settlement::Expired)),
                    4 => drop(progress.settle(position, Settlement::DeadLettered)),
                    5 => {
                        progress.failed(position, now);
                    }
                    _ => drop(progress.settle(position, Settlement::Dropped)),
                }
                let counts = progress.counts();
                let ended = counts.delivered + counts.expired + counts.dead_lettered + counts.dropped;
                prop_assert_eq!(counts.matched, ended + progress.pending() as u64);
                prop_assert_eq!(progress.outstanding().count(), progress.pending());
                prop_assert_eq!(&Progress::decode(&progress.encode("a/b", now), now).unwrap(), &progress);
            }
        }
    }
}
