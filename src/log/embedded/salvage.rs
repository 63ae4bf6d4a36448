//! Writes everything readable of a damaged log to a new one. The damaged log stays as it is.
//!
//! Records keep their offsets, so that cursors stay valid. Empty records replace the lost ones: a reader reports
//! each as a record that is not an event. Records lost before the first one of a broker count as trimmed, and
//! those lost after the last one are not replaced: a Trigger beyond the end is clamped to it, and reports that.
//!
//! A remembered id does not tell the offset of its event. So the ids of a broker that may have lost events are left out:
//! better an event that is stored twice than one that is lost.

use std::{fs, path::Path};

use fjall::PersistMode;

use super::{
    EmbeddedLog, EmbeddedOptions,
    acknowledged::Acknowledged,
    compaction,
    layout::{
        self, FIRST_FORMAT, FORMAT, FORMAT_KEY, GIVEN_BACK_KEY, GivenBack, RecordHeader, Registered,
        SHARED_FORMAT, SHARED_IDS,
    },
    raw,
    store::{BrokerKeyspace, MIB, Store},
    survey::{BrokerReport, RecordLocation, Report, Survey, SurveyedBroker},
};
use crate::log::LogError;

/// Name of the new log while it is being written, beside its target.
const IN_CREATION: &str = "salvage.incomplete";
/// Bytes written at once, and into one table.
const BATCH_BYTES: u64 = MIB;
const TABLE_BYTES: u64 = 4 * MIB;

/// Writes everything readable of the log in `directory`, which no router may have open, to a new one in `target`,
/// which must not exist. Returns a report of what there was and what is lost. Blocks.
///
/// # Errors
/// [`LogError::Open`] if the old log cannot be read or the new one not be written.
pub fn salvage(directory: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<Report, LogError> {
    let target = target.as_ref();
    let cannot = |detail: String| LogError::Open {
        path: target.to_owned(),
        detail,
    };
    if target.exists() {
        return Err(cannot("it exists; a log is salvaged to a new place".into()));
    }
    let survey = Survey::of(directory.as_ref())?;
    let aside = target.with_file_name(IN_CREATION);
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|e| cannot(e.to_string()))?;
    }
    fs::create_dir_all(&aside).map_err(|e| cannot(e.to_string()))?;
    let store = Store::open(&aside)?;
    let written = write(&survey, &store).map_err(cannot)?;
    drop(store);
    let noted = Acknowledged::open(&aside).and_then(|(mut acknowledged, _)| {
        acknowledged.write(written)?;
        acknowledged.sync()
    });
    noted.map_err(|e| cannot(e.to_string()))?;
    // Detects now what a router would reject.
    drop(EmbeddedLog::open(&aside, EmbeddedOptions::default())?);
    fs::rename(&aside, target).map_err(|e| cannot(e.to_string()))?;
    Ok(survey.report)
}

/// Returns the number of records that the brokers ever had.
fn write(survey: &Survey, store: &Store) -> Result<u64, String> {
    let failed = |e: fjall::Error| e.to_string();
    let mut batch = store.batch();
    let own = EmbeddedOptions::default().own_keyspaces;
    let given_back = GivenBack {
        next_shared: survey.given_back.next_shared.max(SHARED_IDS),
        ..survey.given_back
    };
    let ids = (0..own).chain(given_back.next_shared..);
    let mut ever = given_back.records;
    let mut format = match survey.given_back == GivenBack::default() {
        true => FIRST_FORMAT,
        false => SHARED_FORMAT,
    };
    let is_kept = |(_, log): &(_, &BrokerReport)| {
        let broker = layout::broker_of_ids(&log.name);
        !broker.is_some_and(|broker| survey.report.forgetting.iter().any(|name| name == broker))
    };
    let logs = survey.brokers.iter().zip(&survey.report.brokers).filter(is_kept);
    for (id, (found, report)) in ids.zip(logs) {
        let events = store.keyspace(id).map_err(failed)?;
        let writer = Writer::new(store, BrokerKeyspace { id, events });
        let (registered, end) = writer.write(survey, found, id)?;
        ever += end - registered.start;
        if layout::is_shared(id) || registered.start > 0 {
            format = format.max(SHARED_FORMAT);
        }
        if layout::broker_of_ids(&report.name).is_some() {
            format = FORMAT;
        }
        batch.insert(
            &store.meta,
            layout::broker_key(&report.name),
            registered.to_value(),
        );
    }
    if format > FIRST_FORMAT {
        batch.insert(&store.meta, GIVEN_BACK_KEY, given_back.to_value());
        batch.insert(&store.meta, FORMAT_KEY, format.to_be_bytes());
    }
    for (key, value) in &survey.cursors {
        batch.insert(&store.cursors, key.as_slice(), value.as_slice());
    }
    batch
        .durability(Some(PersistMode::SyncAll))
        .commit()
        .map_err(failed)?;
    store.sync().map_err(failed)?;
    Ok(ever)
}

struct Writer<'a> {
    store: &'a Store,
    stored: BrokerKeyspace,
    batch: fjall::OwnedWriteBatch,
    batched: u64,
    in_memory: u64,
    /// Value for the next record.
    bytes_before: Option<u64>,
    accepted_millis: i64,
    /// First record, and the payload bytes below it.
    first: Option<(u64, u64)>,
    next: u64,
}

impl<'a> Writer<'a> {
    fn new(store: &'a Store, stored: BrokerKeyspace) -> Self {
        if layout::is_shared(stored.id) {
            // Otherwise merging drops its records.
            store.retained_from.set(stored.id, 0);
        }
        Self {
            store,
            stored,
            batch: store.batch(),
            batched: 0,
            in_memory: 0,
            bytes_before: None,
            accepted_millis: i64::MIN,
            first: None,
            next: 0,
        }
    }

    /// Writes a broker's records; returns its entry and its end.
    fn write(
        mut self,
        survey: &Survey,
        found: &SurveyedBroker,
        id: u32,
    ) -> Result<(Registered, u64), String> {
        let was = found.registered;
        self.next = was.first;
        self.accepted_millis = was.last_accepted_millis;
        for (offsets, place) in &found.pieces {
            match place {
                // Before the first record there is no place to keep.
                None if self.first.is_none() => {}
                None => {
                    for offset in offsets.clone() {
                        self.record(offset, None, &[])?;
                    }
                }
                Some(RecordLocation::Table(path, blocks)) => {
                    let part =
                        raw::read_part(path, blocks).map_err(|e| format!("{}: {e}", path.display()))?;
                    let mut written = Ok(());
                    raw::entries(&part, true, |entry, _| {
                        let (Ok(offset), Some(value)) = (layout::parse_key(was.id, entry.key), entry.value)
                        else {
                            return true;
                        };
                        if offsets.contains(&offset)
                            && let Ok((header, payload)) = layout::parse_value(offset, value)
                        {
                            written = self.record(offset, Some(header), payload);
                        }
                        written.is_ok() && offset + 1 < offsets.end
                    });
                    written?;
                }
                Some(RecordLocation::Journals) => {
                    for (offset, (journal, value)) in found.in_journals.range(offsets.clone()) {
                        let value = &survey.journals[*journal].bytes[value.clone()];
                        let (header, payload) = layout::parse_value(*offset, value)?;
                        self.record(*offset, Some(header), payload)?;
                    }
                }
            }
        }
        self.commit()?;
        self.flush()?;
        let registered = match self.first {
            Some((first, bytes_before)) => Registered {
                id,
                first,
                bytes_before_first: bytes_before,
                last_accepted_millis: self.accepted_millis,
                start: was.start,
            },
            None => Registered { id, ..was },
        };
        Ok((registered, self.next.max(registered.first)))
    }

    /// Writes a record, or an empty one in place of a lost one.
    fn record(&mut self, offset: u64, header: Option<RecordHeader>, payload: &[u8]) -> Result<(), String> {
        let before = match (self.bytes_before, header) {
            (Some(before), _) => before,
            (None, header) => header.map_or(0, |header| header.bytes_before),
        };
        // Never decreasing, so that it can be searched by time.
        let accepted = header.map_or(self.accepted_millis, |header| header.accepted_millis);
        self.accepted_millis = accepted.max(self.accepted_millis);
        self.first.get_or_insert((offset, before));
        let header = RecordHeader {
            accepted_millis: self.accepted_millis,
            bytes_before: before,
        };
        self.batch.insert(
            &self.stored.events,
            self.stored.key(offset).as_ref(),
            layout::record_value(offset, header, payload),
        );
        self.bytes_before = Some(before + payload.len() as u64);
        self.next = offset + 1;
        self.batched += payload.len() as u64 + 64;
        if self.batched >= BATCH_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), String> {
        let mut batch = std::mem::replace(&mut self.batch, self.store.batch());
        if layout::is_shared(self.stored.id) {
            batch.insert(&self.stored.events, layout::MARK, []);
        }
        batch.commit().map_err(|e| e.to_string())?;
        self.in_memory += std::mem::take(&mut self.batched);
        if self.in_memory >= TABLE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.in_memory = 0;
        let events = &self.stored.events;
        let flushed = events.rotate_memtable_and_wait();
        // The storage library blocks writes to a keyspace with many tables that are not merged.
        let merged = flushed.and_then(|()| match layout::is_shared(self.stored.id) {
            true => compaction::merge(events, self.store.past(), |_| true),
            false => Ok(false),
        });
        merged.map(drop).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_shared_keyspaces_are_merged_on_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let header = RecordHeader {
            accepted_millis: 0,
            bytes_before: 0,
        };
        let ids = [SHARED_IDS, SHARED_IDS + layout::SHARED_KEYSPACES];
        let events = store.keyspace(SHARED_IDS).unwrap();
        for id in ids {
            let events = events.clone();
            let mut writer = Writer::new(&store, BrokerKeyspace { id, events });
            for offset in 0..40 {
                writer.record(offset, Some(header), b"a").unwrap();
                writer.commit().unwrap();
                writer.flush().unwrap();
            }
        }
        for id in ids {
            assert_eq!(events.range(layout::keys_from(id, 0)).count(), 40);
        }
    }
}
