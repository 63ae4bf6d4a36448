//! The newest records of a log, kept in memory so that this router reads them once for all partitions that it delivers.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::log::{LogRecord, Offset, ReadLimit};

/// Maximum bytes of the payloads kept. A reader that is further behind reads from the servers.
const BYTES: usize = 2 * 1024 * 1024;

/// Consecutive records, up to the newest that was read.
#[derive(Default)]
pub(super) struct RecentRecords {
    /// Held during a read of newer records, so that others wait for its result.
    pub(super) reading: tokio::sync::Mutex<()>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    records: VecDeque<LogRecord>,
    bytes: usize,
    /// Whether they were read or added to since [`RecentRecords::forget_idle`].
    is_used: bool,
}

/// What is known of the records from an offset on.
pub(super) enum Found {
    /// They are kept. At least one.
    Records(Vec<LogRecord>),
    /// They are older than those kept.
    Older,
    /// They are newer.
    Newer,
}

impl RecentRecords {
    /// Returns records from an offset on.
    pub(super) fn get(&self, from: Offset, limit: ReadLimit) -> Found {
        let mut kept = self.kept();
        let (Some(first), Some(last)) = (kept.records.front(), kept.records.back()) else {
            return Found::Newer;
        };
        if from < first.offset {
            return Found::Older;
        }
        if from > last.offset {
            return Found::Newer;
        }
        let begin = usize::try_from(from.0 - first.offset.0).unwrap_or(usize::MAX);
        kept.is_used = true;
        let (mut found, mut bytes) = (Vec::new(), 0_usize);
        for record in kept.records.iter().skip(begin).take(limit.records.max(1)) {
            bytes = bytes.saturating_add(record.payload.len());
            if !found.is_empty() && bytes > limit.bytes {
                break;
            }
            found.push(record.clone());
        }
        Found::Records(found)
    }

    /// Keeps records that were read, in place of others unless they follow these.
    pub(super) fn add(&self, records: &[LogRecord]) {
        let Some(first) = records.first() else { return };
        let mut kept = self.kept();
        if kept
            .records
            .back()
            .is_some_and(|last| last.offset.plus(1) != first.offset)
        {
            *kept = Kept::default();
        }
        kept.is_used = true;
        kept.bytes += records.iter().map(|record| record.payload.len()).sum::<usize>();
        kept.records.extend(records.iter().cloned());
        while kept.bytes > BYTES {
            let Some(oldest) = kept.records.pop_front() else {
                break;
            };
            kept.bytes -= oldest.payload.len();
        }
    }

    /// Forgets all records.
    pub(super) fn forget(&self) {
        *self.kept() = Kept::default();
    }

    /// Forgets the records if nobody has used them since the last call.
    pub(super) fn forget_idle(&self) {
        let mut kept = self.kept();
        if !std::mem::take(&mut kept.is_used) {
            *kept = Kept::default();
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // No panic under the lock leaves the sum of the bytes wrong: the next records replace it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;

    use super::*;

    fn records(offsets: std::ops::Range<u64>, bytes: usize) -> Vec<LogRecord> {
        offsets
            .map(|offset| LogRecord {
                offset: Offset(offset),
                accepted: Timestamp::UNIX_EPOCH,
                payload: Bytes::from(vec![0; bytes]),
            })
            .collect()
    }

    fn found(
        recent: &RecentRecords,
        from: u64,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<u64>, &'static str> {
        match recent.get(Offset(from), ReadLimit { records, bytes }) {
            Found::Records(records) => Ok(records.iter().map(|record| record.offset.0).collect()),
            Found::Older => Err("older"),
            Found::Newer => Err("newer"),
        }
    }

    #[test]
    fn recent_records_are_found_within_the_limit() {
        let recent = RecentRecords::default();
        assert_eq!(found(&recent, 0, 9, 100), Err("newer"));
        recent.add(&records(5..8, 10));
        recent.add(&records(8..9, 10));
        for (from, count, bytes, expected) in [
            (4, 9, 100, Err("older")),
            (5, 9, 100, Ok(vec![5, 6, 7, 8])),
            (7, 1, 100, Ok(vec![7])),
            (6, 9, 25, Ok(vec![6, 7])),
            (6, 0, 0, Ok(vec![6])),
            (9, 9, 100, Err("newer")),
        ] {
            assert_eq!(
                found(&recent, from, count, bytes),
                expected,
                "{from} {count} {bytes}"
            );
        }
        recent.add(&records(20..21, 10));
        assert_eq!(found(&recent, 8, 9, 100), Err("older"), "a gap replaces all");
        assert_eq!(found(&recent, 20, 9, 100), Ok(vec![20]));
    }

    #[test]
    fn the_oldest_and_idle_records_are_forgotten() {
        let recent = RecentRecords::default();
        recent.add(&records(0..3, BYTES / 2));
        assert_eq!(found(&recent, 0, 9, BYTES), Err("older"));
        assert_eq!(found(&recent, 1, 9, BYTES), Ok(vec![1, 2]));
        recent.forget_idle();
        assert_eq!(found(&recent, 2, 9, BYTES), Ok(vec![2]));
        recent.forget_idle();
        recent.forget_idle();
        assert_eq!(found(&recent, 2, 9, BYTES), Err("newer"));
    }
}
