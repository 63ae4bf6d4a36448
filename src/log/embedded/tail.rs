//! The most recent records of all brokers, in memory, so that a reader that has caught up never touches the
//! storage. A ring bounded by bytes: first in, first out, across brokers.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use crate::log::{LogRecord, Offset, ReadLimit};

/// Approximate overhead of a record: the entries in the two queues.
const OVERHEAD: usize = 96;

pub(super) struct Tail {
    capacity: usize,
    held: usize,
    /// Brokers of the cached records in the order of eviction, oldest first.
    order: VecDeque<Arc<str>>,
    /// Each broker's records. They have no gaps, because they are evicted in the order of insertion.
    brokers: HashMap<Arc<str>, VecDeque<LogRecord>>,
}

impl Tail {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            held: 0,
            order: VecDeque::new(),
            brokers: HashMap::new(),
        }
    }

    /// Adds a broker's next record. The payload is copied: it may be a view of a far larger buffer.
    pub(super) fn push(&mut self, broker: &Arc<str>, record: &LogRecord) {
        if cost(record) > self.capacity {
            // Caching it would evict everything else. The broker's cached records must go with it, so that they
            // stay without gaps; its entries in `order` then find nothing and are skipped.
            self.forget(broker);
            return;
        }
        let record = LogRecord {
            payload: Bytes::copy_from_slice(&record.payload),
            ..record.clone()
        };
        self.held += cost(&record);
        self.order.push_back(broker.clone());
        self.brokers.entry(broker.clone()).or_default().push_back(record);
        while self.held > self.capacity {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            self.pop(&oldest);
        }
    }

    /// Returns the records from `from` up to `next`, within the limit; `None` if `from` is no longer cached.
    pub(super) fn read(
        &self,
        broker: &str,
        from: Offset,
        next: Offset,
        limit: ReadLimit,
    ) -> Option<Vec<LogRecord>> {
        let records = self.brokers.get(broker)?;
        let first = records.front()?.offset;
        let skip = usize::try_from(from.0.checked_sub(first.0)?).ok()?;
        if skip >= records.len() {
            return None;
        }
        let mut taken = TailRead::new(limit);
        for record in records
            .iter()
            .skip(skip)
            .take_while(|record| record.offset < next)
        {
            if !taken.has_room(record.payload.len()) {
                break;
            }
            taken.push(record.clone());
        }
        Some(taken.records)
    }

    fn pop(&mut self, broker: &Arc<str>) {
        if let Some(records) = self.brokers.get_mut(broker) {
            if let Some(record) = records.pop_front() {
                self.held -= cost(&record);
            }
            if records.is_empty() {
                self.brokers.remove(broker);
            }
        }
    }

    /// Drops the records of brokers.
    pub(super) fn forget_all<'a>(&mut self, brokers: impl Iterator<Item = &'a Arc<str>>) {
        let mut forgotten = HashSet::new();
        for broker in brokers {
            if let Some(records) = self.brokers.remove(broker) {
                self.held -= records.iter().map(cost).sum::<usize>();
                forgotten.insert(broker);
            }
        }
        if !forgotten.is_empty() {
            self.order.retain(|broker| !forgotten.contains(broker));
        }
    }

    fn forget(&mut self, broker: &Arc<str>) {
        self.forget_all(std::iter::once(broker));
    }
}

fn cost(record: &LogRecord) -> usize {
    record.payload.len() + OVERHEAD
}

/// Records taken by one read, up to its limit.
pub(super) struct TailRead {
    pub(super) records: Vec<LogRecord>,
    bytes: usize,
    limit: ReadLimit,
}

impl TailRead {
    pub(super) fn new(limit: ReadLimit) -> Self {
        Self {
            records: Vec::new(),
            bytes: 0,
            limit,
        }
    }

    /// Whether a record with a payload of this length still fits. The first one always does.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.records.is_empty()
            || (self.records.len() < self.limit.records
                && self.bytes.saturating_add(length) <= self.limit.bytes)
    }

    pub(super) fn push(&mut self, record: LogRecord) {
        self.bytes = self.bytes.saturating_add(record.payload.len());
        self.records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: ReadLimit = ReadLimit {
        records: usize::MAX,
        bytes: usize::MAX,
    };

    fn record(offset: u64, length: usize) -> LogRecord {
        LogRecord {
            offset: Offset(offset),
            accepted: jiff::Timestamp::UNIX_EPOCH,
            payload: vec![1; length].into(),
        }
    }

    fn offsets(records: Option<Vec<LogRecord>>) -> Option<Vec<u64>> {
        records.map(|records| records.iter().map(|record| record.offset.0).collect())
    }

    #[test]
    fn the_oldest_leave_first_whichever_broker_they_belong_to() {
        let (a, b): (Arc<str>, Arc<str>) = ("n/a".into(), "n/b".into());
        let mut tail = Tail::new(3 * (100 + OVERHEAD));
        tail.push(&a, &record(5, 100));
        tail.push(&b, &record(0, 100));
        tail.push(&a, &record(6, 100));
        assert_eq!(
            offsets(tail.read("n/a", Offset(5), Offset(7), ALL)),
            Some(vec![5, 6])
        );
        tail.push(&b, &record(1, 100));
        assert_eq!(offsets(tail.read("n/a", Offset(5), Offset(7), ALL)), None);
        assert_eq!(
            offsets(tail.read("n/a", Offset(6), Offset(7), ALL)),
            Some(vec![6])
        );
        assert_eq!(
            offsets(tail.read("n/b", Offset(0), Offset(1), ALL)),
            Some(vec![0])
        );
        assert_eq!(tail.held, 3 * (100 + OVERHEAD));
    }

    #[test]
    fn a_record_larger_than_the_ring_is_not_held_and_leaves_no_gap() {
        let a: Arc<str> = "n/a".into();
        let mut tail = Tail::new(1000);
        tail.push(&a, &record(0, 10));
        tail.push(&a, &record(1, 1000));
        assert_eq!(offsets(tail.read("n/a", Offset(0), Offset(2), ALL)), None);
        tail.push(&a, &record(2, 10));
        assert_eq!(
            offsets(tail.read("n/a", Offset(2), Offset(3), ALL)),
            Some(vec![2])
        );
        assert_eq!(tail.held, 10 + OVERHEAD);
        assert_eq!(tail.order.len(), 1);
    }

    #[test]
    fn a_limit_is_kept_but_one_record_is_always_given() {
        let a: Arc<str> = "n/a".into();
        let mut tail = Tail::new(10_000);
        for offset in 0..4 {
            tail.push(&a, &record(offset, 100));
        }
        let read =
            |records, bytes| offsets(tail.read("n/a", Offset(1), Offset(4), ReadLimit { records, bytes }));
        assert_eq!(read(2, usize::MAX), Some(vec![1, 2]));
        assert_eq!(read(usize::MAX, 250), Some(vec![1, 2]));
        assert_eq!(read(0, 0), Some(vec![1]));
    }
}
