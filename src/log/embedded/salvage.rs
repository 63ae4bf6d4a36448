//! Writes a new log with everything that can be read of a damaged one, which stays as it is.
//!
//! Records keep their offsets, so that cursors point at what they pointed at. Where records are lost, empty ones take
//! their places: a reader tells each of them as a record that is no event. What is lost before the first record of a
//! broker is trimmed, and what is lost behind the last one is not replaced: a Trigger that was beyond goes back to the
//! end, and says so.

use std::{fs, path::Path};

use fjall::{Keyspace, PersistMode};

use super::{
    EmbeddedLog, EmbeddedOptions,
    acknowledged::Acknowledged,
    layout::{self, Header, Registered},
    raw,
    store::{MIB, Store},
    survey::{Place, Report, Survey, SurveyedBroker},
};
use crate::log::LogError;

/// Where the new log is made, beside where it goes.
const IN_CREATION: &str = "salvage.incomplete";
/// How much is written at once, and into one table.
const BATCH_BYTES: u64 = MIB;
const TABLE_BYTES: u64 = 4 * MIB;

/// Writes what can be read of the log in `directory`, which no router may have open, to a new one in `target`, which
/// must not exist. Returns what there was and what is lost. Blocks.
///
/// # Errors
/// [`LogError::Open`] when the one cannot be read or the other not be written.
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
    // What a router would refuse is found now.
    drop(EmbeddedLog::open(&aside, EmbeddedOptions::default())?);
    fs::rename(&aside, target).map_err(|e| cannot(e.to_string()))?;
    Ok(survey.report)
}

/// Returns the sum of the brokers' ends.
fn write(survey: &Survey, store: &Store) -> Result<u64, String> {
    let failed = |e: fjall::Error| e.to_string();
    let mut batch = store.batch();
    let mut ends = 0;
    for ((id, found), report) in (0..).zip(&survey.brokers).zip(&survey.report.brokers) {
        let events = store.create_events(id).map_err(failed)?;
        let writer = Writer::new(store, events);
        let (registered, end) = writer.write(survey, found, id)?;
        ends += end;
        batch.insert(
            &store.meta,
            layout::broker_key(&report.name),
            registered.to_value(),
        );
    }
    for (key, value) in &survey.cursors {
        batch.insert(&store.cursors, key.as_slice(), value.as_slice());
    }
    batch
        .durability(Some(PersistMode::SyncAll))
        .commit()
        .map_err(failed)?;
    store.sync().map_err(failed)?;
    Ok(ends)
}

struct Writer<'a> {
    store: &'a Store,
    events: Keyspace,
    batch: fjall::OwnedWriteBatch,
    batched: u64,
    in_memory: u64,
    /// Of the next record.
    bytes_before: Option<u64>,
    accepted_millis: i64,
    /// The first record, and the payloads' bytes below it.
    first: Option<(u64, u64)>,
    next: u64,
}

impl<'a> Writer<'a> {
    fn new(store: &'a Store, events: Keyspace) -> Self {
        Self {
            store,
            events,
            batch: store.batch(),
            batched: 0,
            in_memory: 0,
            bytes_before: None,
            accepted_millis: i64::MIN,
            first: None,
            next: 0,
        }
    }

    /// Writes a broker's records; gives its entry, and where it ends.
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
                // Before the first record there is nothing to keep a place for.
                None if self.first.is_none() => {}
                None => {
                    for offset in offsets.clone() {
                        self.record(offset, None, &[])?;
                    }
                }
                Some(Place::Table(path, at)) => {
                    let table = raw::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
                    let mut written = Ok(());
                    raw::entries(&table.bytes, *at, true, |entry, _| {
                        let (Ok(offset), Some(value)) = (layout::parse_offset(entry.key), entry.value) else {
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
                Some(Place::Journals) => {
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
            },
            None => Registered { id, ..was },
        };
        Ok((registered, self.next.max(registered.first)))
    }

    /// A record, or an empty one in the place of one that is lost.
    fn record(&mut self, offset: u64, header: Option<Header>, payload: &[u8]) -> Result<(), String> {
        let before = match (self.bytes_before, header) {
            (Some(before), _) => before,
            (None, header) => header.map_or(0, |header| header.bytes_before),
        };
        // Never decreasing, so that a time can be searched for.
        let accepted = header.map_or(self.accepted_millis, |header| header.accepted_millis);
        self.accepted_millis = accepted.max(self.accepted_millis);
        self.first.get_or_insert((offset, before));
        let header = Header {
            accepted_millis: self.accepted_millis,
            bytes_before: before,
        };
        self.batch.insert(
            &self.events,
            offset.to_be_bytes(),
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
        let batch = std::mem::replace(&mut self.batch, self.store.batch());
        batch.commit().map_err(|e| e.to_string())?;
        self.in_memory += std::mem::take(&mut self.batched);
        if self.in_memory >= TABLE_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.in_memory = 0;
        self.events.rotate_memtable_and_wait().map_err(|e| e.to_string())
    }
}
