//! Order by key: events with the same `partitionkey` are delivered one after another. Pure.
//!
//! While an event of a key is in flight or waits for a retry, later events of that key wait, and no others. A waiting
//! event takes a byte or two, for its offset; it is read again when its turn comes.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::position::EventPosition;
use crate::log::Offset;

/// Approximate bytes of a key beside its text: its entries in two hash maps and its queue.
const LANE_BYTES: usize = 200;

/// Keys with an event in flight, and the events queued behind each.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Box<str>, Lane>,
    /// Key held by each event in flight.
    holders: HashMap<EventPosition, Box<str>>,
    waiting: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    /// Redriven dead letters. They are older than the events waiting in the log, and go first.
    redriven: BTreeSet<Offset>,
    events: AscendingQueue,
}

impl Lanes {
    /// Requests the key for an event; returns whether it may go now. Otherwise it queues behind the holder.
    pub(super) fn enter(&mut self, key: Box<str>, position: EventPosition) -> bool {
        if self.holders.contains_key(&position) {
            return true;
        }
        let Some(lane) = self.lanes.get_mut(&key) else {
            self.bytes += LANE_BYTES + 2 * key.len();
            self.lanes.insert(key.clone(), Lane::default());
            self.holders.insert(position, key);
            return true;
        };
        match position {
            EventPosition::Log(offset) => self.bytes += lane.events.push(offset),
            EventPosition::DeadLetter(offset) => {
                lane.redriven.insert(offset);
                self.bytes += REDRIVEN_BYTES;
            }
        }
        self.waiting += 1;
        false
    }

    /// Releases the key of a settled event; returns the next event of that key, which then holds it.
    pub(super) fn leave(&mut self, position: EventPosition) -> Option<EventPosition> {
        let key = self.holders.remove(&position)?;
        let lane = self.lanes.get_mut(&key)?;
        let next = match lane.redriven.pop_first() {
            Some(offset) => {
                self.bytes = self.bytes.saturating_sub(REDRIVEN_BYTES);
                Some(EventPosition::DeadLetter(offset))
            }
            None => lane.events.pop().map(|(offset, bytes)| {
                self.bytes = self.bytes.saturating_sub(bytes);
                EventPosition::Log(offset)
            }),
        };
        match next {
            Some(next) => {
                self.waiting -= 1;
                self.holders.insert(next, key);
            }
            None => {
                self.bytes = self.bytes.saturating_sub(LANE_BYTES + 2 * key.len());
                self.lanes.remove(&key);
            }
        }
        next
    }

    /// Number of events queued behind others of their key.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Approximate bytes of memory in use.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Approximate bytes of a redriven dead letter in a lane.
const REDRIVEN_BYTES: usize = 24;

/// A queue of ascending offsets, stored as distances in LEB128.
#[derive(Debug, Default)]
struct AscendingQueue {
    distances: VecDeque<u8>,
    /// Offset popped last; the first distance counts from it.
    popped: u64,
    /// Offset pushed last.
    pushed: u64,
}

impl AscendingQueue {
    /// Pushes an offset above all before it; returns the bytes it takes.
    fn push(&mut self, Offset(offset): Offset) -> usize {
        let mut distance = offset.saturating_sub(self.pushed);
        self.pushed = offset;
        let mut length = 1;
        while distance >= 0x80 {
            // The low seven bits.
            self.distances.push_back((distance & 0x7f) as u8 | 0x80);
            distance >>= 7;
            length += 1;
        }
        self.distances.push_back((distance & 0x7f) as u8);
        length
    }

    /// Pops the lowest offset; returns it with the bytes it took.
    fn pop(&mut self) -> Option<(Offset, usize)> {
        let (mut distance, mut length) = (0, 0);
        loop {
            let byte = self.distances.pop_front()?;
            distance |= u64::from(byte & 0x7f) << (7 * length);
            length += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        self.popped += distance;
        if self.distances.capacity() > 1024 && self.distances.len() < self.distances.capacity() / 4 {
            self.distances.shrink_to_fit();
        }
        Some((Offset(self.popped), length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(offset: u64) -> EventPosition {
        EventPosition::Log(Offset(offset))
    }

    #[test]
    fn events_of_a_key_go_one_after_another_and_block_no_other_key() {
        let mut lanes = Lanes::default();
        assert!(lanes.enter("a".into(), log(1)));
        assert!(!lanes.enter("a".into(), log(2)));
        assert!(lanes.enter("b".into(), log(3)));
        assert!(!lanes.enter("a".into(), log(5)));
        assert_eq!(lanes.leave(log(4)), None, "it has no key");
        assert_eq!(lanes.leave(log(1)), Some(log(2)));
        assert!(!lanes.enter("a".into(), log(6)), "2 holds the key now");
        assert_eq!(lanes.waiting(), 2);
        assert_eq!(lanes.leave(log(2)), Some(log(5)));
        assert_eq!(lanes.leave(log(5)), Some(log(6)));
        assert_eq!(lanes.leave(log(6)), None);
        assert!(lanes.enter("a".into(), log(7)), "the key is free again");
        assert!(lanes.enter("a".into(), log(7)), "it holds the key itself");
    }

    #[test]
    fn redriven_events_go_before_new_ones() {
        let mut lanes = Lanes::default();
        let letter = |offset| EventPosition::DeadLetter(Offset(offset));
        assert!(lanes.enter("a".into(), log(1)));
        assert!(!lanes.enter("a".into(), log(2)));
        assert!(!lanes.enter("a".into(), letter(9)));
        assert!(!lanes.enter("a".into(), letter(4)));
        let mut order = vec![log(1)];
        while let Some(next) = lanes.leave(order[order.len() - 1]) {
            order.push(next);
        }
        assert_eq!(order, [log(1), letter(4), letter(9), log(2)]);
        assert_eq!((lanes.bytes(), lanes.waiting()), (0, 0));
    }

    #[test]
    fn a_hundred_thousand_events_of_one_key_take_a_few_hundred_kilobytes() {
        let mut lanes = Lanes::default();
        for number in 0..100_000 {
            lanes.enter("a".into(), log(number * 50));
        }
        assert_eq!(lanes.waiting(), 99_999);
        assert!(lanes.bytes() < 300_000, "{}", lanes.bytes());
        let (_, lane) = lanes.lanes.iter().next().unwrap();
        assert!(lane.events.distances.capacity() < 300_000);
    }

    proptest! {
        #[test]
        fn a_queue_returns_offsets_in_order(distances in prop::collection::vec((1_u64..1 << 40, any::<bool>()), 0..100)) {
            let (mut queue, mut expected, mut last, mut bytes) = (AscendingQueue::default(), VecDeque::new(), 0, 0);
            for (distance, pop) in distances {
                last += distance;
                bytes += queue.push(Offset(last));
                expected.push_back(last);
                if pop {
                    let (popped, took) = queue.pop().unwrap();
                    bytes -= took;
                    prop_assert_eq!(Some(popped.0), expected.pop_front());
                }
            }
            while let Some((popped, took)) = queue.pop() {
                bytes -= took;
                prop_assert_eq!(Some(popped.0), expected.pop_front());
            }
            prop_assert!(expected.is_empty() && bytes == 0);
        }
    }
}
