//! The newest records of a log, kept in memory so that this router reads them once for all partitions that it delivers.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use crate::log::{LogRecord, Offset, ReadLimit};

/// Maximum bytes of the payloads kept of one log. A reader that is further behind reads from the servers.
const BYTES: usize = 2 * 1024 * 1024;

/// Maximum bytes of the payloads kept of all logs. Beyond it, records are not kept.
const ALL_BYTES: usize = 32 * 1024 * 1024;

/// Consecutive records, up to the newest that was read.
pub(super) struct RecentRecords {
    /// Held during a read of newer records, so that others wait for its result.
    pub(super) reading: tokio::sync::Mutex<()>,
    /// Bytes kept of all logs.
    all_bytes: Arc<AtomicUsize>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    records: VecDeque<LogRecord>,
    bytes: usize,
    /// Number of times that the records were forgotten because the log has others now.
    generation: u64,
    /// Whether they were read or added to since [`RecentRecords::forget_idle`].
    is_used: bool,
}

/// What is known of the records from an offset on.
pub(super) enum Found {
    /// They are kept. At least one.
    Records(Vec<LogRecord>),
    /// They are older than those kept.
    Older,
    /// They are newer. Add them with this generation once they are read.
    Newer(u64),
}

impl RecentRecords {
    /// Creates an empty cache. `all_bytes` counts what the caches of all logs have.
    pub(super) fn new(all_bytes: Arc<AtomicUsize>) -> Self {
        Self {
            reading: tokio::sync::Mutex::default(),
            all_bytes,
            kept: Mutex::default(),
        }
    }

    /// Returns records from an offset on.
    pub(super) fn get(&self, from: Offset, limit: ReadLimit) -> Found {
        let mut kept = self.kept();
        let (Some(first), Some(last)) = (kept.records.front(), kept.records.back()) else {
            return Found::Newer(kept.generation);
        };
        if from < first.offset {
            return Found::Older;
        }
        if from > last.offset {
            return Found::Newer(kept.generation);
        }
        let begin = kept.records.partition_point(|record| record.offset < from);
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

    /// Keeps consecutive records that were read, in place of others unless they follow these.
    pub(super) fn add(&self, records: &[LogRecord], generation: u64) {
        let Some(first) = records.first() else { return };
        let mut kept = self.kept();
        if kept.generation != generation {
            return;
        }
        if kept
            .records
            .back()
            .is_some_and(|last| last.offset.plus(1) != first.offset)
        {
            self.clear(&mut kept);
        }
        kept.is_used = true;
        kept.records.extend(records.iter().cloned());
        let bytes = records.iter().map(|record| record.payload.len()).sum();
        kept.bytes += bytes;
        let all = self.all_bytes.fetch_add(bytes, Relaxed) + bytes;
        if all > ALL_BYTES {
            self.clear(&mut kept);
        }
        while kept.bytes > BYTES {
            let Some(oldest) = kept.records.pop_front() else {
                break;
            };
            let bytes = oldest.payload.len();
            kept.bytes -= bytes;
            self.all_bytes.fetch_sub(bytes, Relaxed);
        }
    }

    /// Forgets all records, because the log may have others.
    pub(super) fn forget(&self) {
        let mut kept = self.kept();
        kept.generation += 1;
        self.clear(&mut kept);
    }

    /// Forgets the records if nobody has used them since the last call.
    pub(super) fn forget_idle(&self) {
        let mut kept = self.kept();
        if !std::mem::take(&mut kept.is_used) {
            self.clear(&mut kept);
        }
    }

    fn clear(&self, kept: &mut Kept) {
        self.all_bytes.fetch_sub(std::mem::take(&mut kept.bytes), Relaxed);
        kept.records = VecDeque::new();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // No panic under the lock leaves the sum of the bytes wrong.
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
            Found::Newer(_) => Err("newer"),
        }
    }

    #[test]
    fn recent_records_are_found_within_the_limit() {
        let recent = RecentRecords::new(Arc::default());
        assert_eq!(found(&recent, 0, 9, 100), Err("newer"));
        recent.add(&records(5..8, 10), 0);
        recent.add(&records(8..9, 10), 0);
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
        recent.add(&records(20..21, 10), 0);
        assert_eq!(found(&recent, 8, 9, 100), Err("older"), "a gap replaces all");
        assert_eq!(found(&recent, 20, 9, 100), Ok(vec![20]));
    }

    #[test]
    fn the_oldest_and_idle_records_are_forgotten() {
        let all = Arc::<AtomicUsize>::default();
        let recent = RecentRecords::new(all.clone());
        recent.add(&records(0..3, BYTES / 2), 0);
        assert_eq!(found(&recent, 0, 9, BYTES), Err("older"));
        assert_eq!(found(&recent, 1, 9, BYTES), Ok(vec![1, 2]));
        recent.forget_idle();
        assert_eq!(found(&recent, 2, 9, BYTES), Ok(vec![2]));
        recent.forget_idle();
        recent.forget_idle();
        assert_eq!(found(&recent, 2, 9, BYTES), Err("newer"));
        assert_eq!(all.load(Relaxed), 0);
    }

    #[test]
    fn records_read_before_the_log_changed_are_not_kept() {
        let recent = RecentRecords::new(Arc::default());
        recent.add(&records(0..1, 10), 0);
        recent.forget();
        recent.add(&records(1..2, 10), 0);
        assert_eq!(found(&recent, 1, 9, 100), Err("newer"));
        recent.add(&records(1..2, 10), 1);
        assert_eq!(found(&recent, 1, 9, 100), Ok(vec![1]));
    }

    #[test]
    fn nothing_is_kept_beyond_the_limit_of_all_logs() {
        let all = Arc::new(AtomicUsize::new(ALL_BYTES - 10));
        let recent = RecentRecords::new(all.clone());
        recent.add(&records(0..1, 10), 0);
        assert_eq!(found(&recent, 0, 9, 100), Ok(vec![0]));
        recent.add(&records(1..2, 10), 0);
        assert_eq!(found(&recent, 1, 9, 100), Err("newer"));
        assert_eq!(all.load(Relaxed), ALL_BYTES - 10);
    }
}
