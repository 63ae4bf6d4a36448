//! Reads everything in a log that no router has open, and reports what is intact and what is lost. Changes
//! nothing.
//!
//! For each broker it counts the offsets between the first retained record and the last one found: those in no
//! table and no journal are lost. Records missing beyond the last one cannot be attributed to a broker; they show
//! only in the total of acknowledged records.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    acknowledged::{self, Acknowledged},
    directory, journal,
    layout::{self, GivenBack, Registered},
    raw::{self, Journal},
    store,
};
use crate::log::LogError;

/// Keyspace with the names of the others, and the prefix of its entries.
const NAMES: u64 = 0;
const NAME: u8 = b'n';
/// The storage library's mark of a store.
const MARK: &[u8] = b"FJL\x03";
/// Broker for the records of brokers whose names are lost.
const NAMELESS: &str = "weir-salvage";

/// Report about a log.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By name. A broker's dead letters are a log like any other.
    pub brokers: Vec<BrokerReport>,
    /// Number of cursors: of Triggers, and of redriven or dropped dead letters.
    pub cursors: usize,
    /// Number of records missing beyond the last ones found.
    pub missing_at_the_ends: u64,
    /// Brokers whose remembered ids a salvage leaves out, because events of theirs may be lost.
    pub forgetting: BTreeSet<String>,
    /// Damage by file, whether or not it lost anything.
    pub damage: Vec<String>,
}

/// Report about a broker's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerReport {
    /// `namespace/name`.
    pub name: String,
    /// Offsets from the first retained record to the last one found; the end is exclusive.
    pub offsets: Range<u64>,
    /// Lost ranges of them.
    pub lost: Vec<Range<u64>>,
}

impl BrokerReport {
    /// Number of lost records.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.lost.iter().map(|lost| lost.end - lost.start).sum()
    }
}

impl Report {
    /// Whether nothing is lost or damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.lost_records() == 0
    }

    /// Number of lost records.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        let of_brokers = self.brokers.iter().map(BrokerReport::lost_records);
        self.missing_at_the_ends + of_brokers.sum::<u64>()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            brokers,
            cursors,
            missing_at_the_ends,
            forgetting,
            damage,
        } = self;
        for broker in brokers {
            let BrokerReport { name, offsets, lost } = broker;
            let records = offsets.end - offsets.start;
            if lost.is_empty() {
                writeln!(f, "{name}: {records} records at {}, whole", shown(offsets))?;
            } else {
                let list: Vec<_> = lost.iter().map(shown).collect();
                let count = broker.lost_records();
                writeln!(
                    f,
                    "{name}: {records} records at {}, LOST {count} of them: {}",
                    shown(offsets),
                    list.join(", ")
                )?;
            }
        }
        writeln!(f, "{cursors} cursors")?;
        if *missing_at_the_ends > 0 {
            writeln!(
                f,
                "LOST {missing_at_the_ends} records behind the last ones of some brokers: they were acknowledged"
            )?;
        }
        for broker in forgetting {
            writeln!(
                f,
                "{broker}: FORGETS the ids of its events when salvaged: some events may be lost, so repeats are stored again"
            )?;
        }
        for damage in damage {
            writeln!(f, "DAMAGED {damage}")?;
        }
        Ok(())
    }
}

fn shown(offsets: &Range<u64>) -> String {
    match offsets.end.saturating_sub(offsets.start) {
        0 => "no offset".to_owned(),
        1 => format!("offset {}", offsets.start),
        _ => format!("offsets {} to {}", offsets.start, offsets.end - 1),
    }
}

/// Checks the log in `directory`, which no router may have open. Reads all of it and changes nothing. Blocks.
///
/// # Errors
/// [`LogError::Open`] if it cannot be examined: it does not exist, or is in use.
pub fn check(directory: impl AsRef<Path>) -> Result<Report, LogError> {
    Ok(Survey::of(directory.as_ref())?.report)
}

/// Content of a log, and its location.
pub(super) struct Survey {
    pub(super) report: Report,
    /// In the order of the report.
    pub(super) brokers: Vec<SurveyedBroker>,
    pub(super) cursors: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) given_back: GivenBack,
    pub(super) journals: Vec<Journal>,
    /// Whether the number of records missing at the ends is known.
    knows_missing: bool,
    _lock: Option<fs::File>,
}

/// A broker's records.
pub(super) struct SurveyedBroker {
    pub(super) registered: Registered,
    /// Consecutive ranges from the first offset on; those without a place are lost.
    pub(super) pieces: Vec<(Range<u64>, Option<RecordLocation>)>,
    /// Places in the journals, by offset.
    pub(super) in_journals: BTreeMap<u64, (usize, Range<usize>)>,
}

/// Location of consecutive records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordLocation {
    /// In these blocks of a table.
    Table(Arc<Path>, Range<usize>),
    /// In the journals.
    Journals,
}

/// Records of one log that were found in a keyspace.
#[derive(Default)]
struct FoundRecords {
    runs: Vec<(Range<u64>, RecordLocation)>,
    in_journals: BTreeMap<u64, (usize, Range<usize>)>,
}

/// Keyspaces by the numbers of their folders.
struct Keyspaces {
    folders: BTreeMap<u64, PathBuf>,
    names: BTreeMap<u64, String>,
}

impl Keyspaces {
    fn number_of(&self, wanted: &str) -> Option<u64> {
        let mut named = self.names.iter().filter(|(_, name)| *name == wanted);
        named.next().map(|(number, _)| *number)
    }
}

/// Newest value of each key.
type Newest = BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)>;

impl Survey {
    pub(super) fn of(directory: &Path) -> Result<Self, LogError> {
        let lock = directory::lock_existing(directory)?;
        let mut survey = Self {
            report: Report::default(),
            brokers: Vec::new(),
            cursors: BTreeMap::new(),
            given_back: GivenBack::default(),
            journals: Vec::new(),
            knows_missing: false,
            _lock: lock,
        };
        survey.look(directory).map_err(|e| LogError::Open {
            path: directory.to_owned(),
            detail: e.to_string(),
        })?;
        Ok(survey)
    }

    fn look(&mut self, directory: &Path) -> io::Result<()> {
        let folder = directory.join(store::FOLDER);
        if fs::read(folder.join("version")).ok().as_deref() != Some(MARK) {
            self.damaged(format!(
                "{} is not what was written",
                folder.join("version").display()
            ));
        }
        for (_, path) in journal::all(&folder)? {
            let journal = raw::journal(path)?;
            let path = journal.path.display();
            if let Some(error) = &journal.error {
                self.report.damage.push(format!("{path} cannot be read: {error}"));
            }
            for bytes in &journal.damaged {
                let (from, to) = (bytes.start, bytes.end);
                self.report
                    .damage
                    .push(format!("{path}: bytes {from} to {to} are no whole commits"));
            }
            self.journals.push(journal);
        }

        let mut folders = BTreeMap::new();
        for entry in fs::read_dir(folder.join("keyspaces"))? {
            let path = entry?.path();
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let Some(number) = number {
                folders.insert(number, path);
            }
        }
        let names = self.names(&folders)?;
        let keyspaces = Keyspaces { folders, names };
        let meta = self.newest(keyspaces.number_of("meta"), &keyspaces.folders)?;
        let cursors = self.newest(keyspaces.number_of("cursors"), &keyspaces.folders)?;
        self.cursors = present(cursors);
        self.report.cursors = self.cursors.len();
        self.logs(&present(meta), &keyspaces)?;
        let mut order: Vec<_> = (0..self.brokers.len()).collect();
        order.sort_by(|a, b| {
            let name = |index: &usize| &self.report.brokers[*index].name;
            name(a).cmp(name(b))
        });
        let mut brokers: Vec<_> = std::mem::take(&mut self.brokers).into_iter().map(Some).collect();
        let mut reports: Vec<_> = std::mem::take(&mut self.report.brokers)
            .into_iter()
            .map(Some)
            .collect();
        for index in order {
            self.brokers.extend(brokers[index].take());
            self.report.brokers.extend(reports[index].take());
        }
        self.count_missing(directory);
        self.find_forgetting();
        Ok(())
    }

    fn damaged(&mut self, damage: String) {
        self.report.damage.push(damage);
    }

    /// Finds the records of all logs.
    fn logs(&mut self, meta: &BTreeMap<Vec<u8>, Vec<u8>>, keyspaces: &Keyspaces) -> io::Result<()> {
        let mut registered = self.registered(meta);
        let mut found = BTreeMap::new();
        // Logs that were given back may have left trimmed records, unless an entry of a log may be lost. A commit that
        // a crash tore has lost both the entry of a log and its first record.
        let torn = self.torn_end();
        let may_lack_entries = self
            .report
            .damage
            .iter()
            .any(|damage| Some(damage) != torn.as_ref());
        let free: BTreeSet<_> = meta
            .iter()
            .filter_map(|(key, value)| layout::parse_free(key, value))
            .map(|(id, _)| id)
            .collect();
        for (number, name) in &keyspaces.names {
            if layout::holds_records(name) {
                self.records(name, *number, &keyspaces.folders, &mut found)?;
            }
        }
        let known: BTreeSet<_> = registered.iter().map(|(_, broker)| broker.id).collect();
        for id in found.keys().copied().filter(|id| !known.contains(id)) {
            let was_given_back = if layout::is_shared(id) {
                id < self.given_back.next_shared && !may_lack_entries
            } else {
                free.contains(&id)
            };
            if !was_given_back {
                registered.push((String::new(), unregistered(id)));
            }
        }
        for (name, broker) in registered {
            if keyspaces.number_of(&layout::keyspace_of(broker.id)).is_none() {
                self.damaged(format!("the records of broker {name} are missing"));
            }
            let found = found.remove(&broker.id).unwrap_or_default();
            self.broker(name, broker, found);
        }
        Ok(())
    }

    /// Names of the keyspaces by the numbers of their folders. A lost name is inferred from the order of creation:
    /// first `meta`, then `cursors`, then the brokers'; a shared one is told by its keys.
    fn names(&mut self, folders: &BTreeMap<u64, PathBuf>) -> io::Result<BTreeMap<u64, String>> {
        let mut names = BTreeMap::new();
        self.each_of(NAMES, folders, false, |key, value, _| {
            if let ([NAME, number @ ..], Some(name)) = (key, value)
                && let (Ok(number), Ok(name)) = (number.try_into(), std::str::from_utf8(name))
            {
                names.insert(u64::from_be_bytes(number), name.to_owned());
            }
        })?;
        for number in folders.keys().copied().filter(|number| *number != NAMES) {
            if !names.contains_key(&number) {
                let name = match number {
                    1 => "meta".to_owned(),
                    2 => "cursors".to_owned(),
                    number if self.is_shared(number, folders)? => {
                        format!("{}lost-{number}", layout::SHARED_PREFIX)
                    }
                    number => format!("{}{}", layout::OWN_PREFIX, number - 3),
                };
                if !names.values().any(|other| *other == name) {
                    self.damaged(format!(
                        "the name of keyspace {number} is lost, it is taken for {name}"
                    ));
                    names.insert(number, name);
                }
            }
        }
        Ok(names)
    }

    /// Whether the keys in a keyspace are those of a shared one.
    fn is_shared(&self, number: u64, folders: &BTreeMap<u64, PathBuf>) -> io::Result<bool> {
        let is_shared = |key: &[u8]| key == layout::MARK || layout::parse_shared_key(key).is_some();
        for journal in &self.journals {
            let mut items = journal.items.iter();
            if let Some(item) = items.find(|item| item.keyspace == number) {
                return Ok(is_shared(&journal.bytes[item.key.clone()]));
            }
        }
        let mut found = None;
        if let Some(folder) = folders.get(&number) {
            for (path, _) in raw::tables(folder)?.paths {
                let Ok(content) = raw::read(&path) else { continue };
                raw::entries(&content.bytes, true, |entry, _| {
                    found.get_or_insert(is_shared(entry.key));
                    false
                });
                if found.is_some() {
                    break;
                }
            }
        }
        Ok(found.unwrap_or(false))
    }

    /// Calls `found` with every readable entry of a small keyspace's tables; reports damage.
    fn each_of(
        &mut self,
        number: u64,
        folders: &BTreeMap<u64, PathBuf>,
        is_compressed: bool,
        mut found: impl FnMut(&[u8], Option<&[u8]>, u64),
    ) -> io::Result<()> {
        let Some(folder) = folders.get(&number) else {
            self.damaged(format!("keyspace {number} is missing"));
            return Ok(());
        };
        let tables = raw::tables(folder)?;
        self.report.damage.extend(tables.damage);
        for (path, checksum) in tables.paths {
            let Some(content) = self.content(&path, checksum)? else {
                continue;
            };
            raw::entries(&content.bytes, is_compressed, |entry, _| {
                found(entry.key, entry.value, entry.sequence);
                true
            });
        }
        Ok(())
    }

    fn content(&mut self, path: &Path, checksum: Option<u128>) -> io::Result<Option<raw::FileContent>> {
        match raw::read(path) {
            Ok(content) => {
                self.report.damage.extend(raw::damage(path, &content, checksum));
                Ok(Some(content))
            }
            Err(e) => {
                self.damaged(format!("{} cannot be read: {e}", path.display()));
                Ok(None)
            }
        }
    }

    /// Newest value of each key of a small keyspace.
    fn newest(&mut self, number: Option<u64>, folders: &BTreeMap<u64, PathBuf>) -> io::Result<Newest> {
        let mut newest = Newest::new();
        let Some(number) = number else { return Ok(newest) };
        let mut put = |key: &[u8], value: Option<&[u8]>, sequence: u64| {
            let is_older = newest.get(key).is_some_and(|(other, _)| *other > sequence);
            if !is_older {
                newest.insert(key.to_vec(), (sequence, value.map(<[u8]>::to_vec)));
            }
        };
        self.each_of(number, folders, false, &mut put)?;
        for journal in &self.journals {
            for item in journal.items.iter().filter(|item| item.keyspace == number) {
                let value = item.value.clone().map(|value| &journal.bytes[value]);
                put(&journal.bytes[item.key.clone()], value, item.sequence);
            }
        }
        Ok(newest)
    }

    fn registered(&mut self, meta: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<(String, Registered)> {
        let format = meta.get(layout::FORMAT_KEY).map(Vec::as_slice);
        let mut formats = (layout::FIRST_FORMAT..=layout::FORMAT).map(u32::to_be_bytes);
        if !formats.any(|known| format == Some(&known)) {
            self.damaged("the format version of the log is lost, or another one".into());
        }
        if let Some(value) = meta.get(layout::GIVEN_BACK_KEY) {
            match GivenBack::parse(value) {
                Some(given_back) => self.given_back = given_back,
                None => self.damaged("the entry of the logs that were given back".into()),
            }
        }
        let mut registered = Vec::new();
        for (key, value) in meta {
            let Some(name) = key.strip_prefix(layout::BROKER_PREFIX.as_bytes()) else {
                continue;
            };
            match (std::str::from_utf8(name), Registered::parse(value)) {
                (Ok(name), Some(broker)) => registered.push((name.to_owned(), broker)),
                _ => self.damaged(format!("an entry of a broker: {}", String::from_utf8_lossy(name))),
            }
        }
        registered
    }

    /// Finds the records in a keyspace, by the ids of their logs.
    fn records(
        &mut self,
        name: &str,
        number: u64,
        folders: &BTreeMap<u64, PathBuf>,
        found: &mut BTreeMap<u32, FoundRecords>,
    ) -> io::Result<()> {
        let own = name.strip_prefix(layout::OWN_PREFIX).map(str::parse::<u32>);
        let parse = |key: &[u8]| match own {
            Some(Ok(id)) => Some((id, layout::parse_offset(key).ok()?)),
            Some(Err(_)) => None,
            None => layout::parse_shared_key(key),
        };
        if let Some(folder) = folders.get(&number) {
            let tables = raw::tables(folder)?;
            self.report.damage.extend(tables.damage);
            for (path, checksum) in tables.paths {
                let Some(content) = self.content(&path, checksum)? else {
                    continue;
                };
                let path = Arc::<Path>::from(path);
                for (id, run, blocks) in runs_of(&content.bytes, parse) {
                    let place = RecordLocation::Table(path.clone(), blocks);
                    found.entry(id).or_default().runs.push((run, place));
                }
            }
        }
        for (index, journal) in self.journals.iter().enumerate() {
            for item in journal.items.iter().filter(|item| item.keyspace == number) {
                if let (Some((id, offset)), Some(value)) =
                    (parse(&journal.bytes[item.key.clone()]), item.value.clone())
                    && layout::parse_value(offset, &journal.bytes[value.clone()]).is_ok()
                {
                    let of_log = found.entry(id).or_default();
                    of_log.in_journals.insert(offset, (index, value));
                }
            }
        }
        Ok(())
    }

    fn broker(&mut self, name: String, registered: Registered, found: FoundRecords) {
        let FoundRecords {
            mut runs,
            in_journals,
        } = found;
        for offset in in_journals.keys().copied() {
            match runs.last_mut() {
                Some((run, RecordLocation::Journals)) if run.end == offset => run.end += 1,
                _ => runs.push((offset..offset + 1, RecordLocation::Journals)),
            }
        }
        if name.is_empty() && runs.is_empty() {
            // Created just before a crash, and never used.
            return;
        }
        let is_nameless = name.is_empty();
        let name = if is_nameless {
            let name = format!("{NAMELESS}/{}", nameless(registered.id));
            self.damaged(format!(
                "the name of a broker is lost; its records are those of {name}"
            ));
            name
        } else {
            name
        };
        let first = if is_nameless {
            runs.iter().map(|(run, _)| run.start).min().unwrap_or(0)
        } else {
            registered.first
        };
        let pieces = pieces(first, runs);
        let lost = pieces.iter().filter(|(_, place)| place.is_none());
        self.report.brokers.push(BrokerReport {
            name,
            offsets: first..pieces.last().map_or(first, |(offsets, _)| offsets.end),
            lost: lost.map(|(offsets, _)| offsets.clone()).collect(),
        });
        let start = if is_nameless && layout::is_shared(registered.id) {
            first
        } else {
            registered.start
        };
        self.brokers.push(SurveyedBroker {
            registered: Registered {
                first,
                start,
                ..registered
            },
            pieces,
            in_journals,
        });
    }

    /// Compares what was found with what was acknowledged. A commit that was never acknowledged is not damage.
    fn count_missing(&mut self, directory: &Path) {
        let ever = self.report.brokers.iter().zip(&self.brokers);
        let ever = ever.map(|(report, broker)| report.offsets.end.saturating_sub(broker.registered.start));
        let found = ever.sum::<u64>() + self.given_back.records;
        match Acknowledged::look(directory) {
            Ok(Some(count)) => {
                self.knows_missing = true;
                self.report.missing_at_the_ends = count.saturating_sub(found);
                if self.report.lost_records() == 0 {
                    // As a crash leaves it.
                    let torn = self.torn_end();
                    self.report.damage.retain(|damage| Some(damage) != torn.as_ref());
                }
            }
            Ok(None) => {}
            Err(e) => self.damaged(format!(
                "{}: {e}; what is missing at the ends of the brokers' logs cannot be told",
                directory.join(acknowledged::FILE_NAME).display()
            )),
        }
    }

    /// Finds the brokers that may have lost an event whose id is left: a producer that sends it again would be told that
    /// it is stored.
    fn find_forgetting(&mut self) {
        let Report {
            brokers: logs,
            missing_at_the_ends,
            ..
        } = &self.report;
        if self.report.is_whole() {
            return;
        }
        let is_nameless = |log: &BrokerReport| log.name.starts_with(NAMELESS);
        // A loss that cannot be attributed to a broker.
        let may_be_any = !self.knows_missing || *missing_at_the_ends > 0 || logs.iter().any(is_nameless);
        let has_all_events = |broker: &str| {
            let found = logs.binary_search_by(|log| log.name.as_str().cmp(broker));
            found.is_ok_and(|index| logs[index].lost.is_empty())
        };
        let brokers = logs.iter().filter_map(|log| layout::broker_of_ids(&log.name));
        let forgetting = brokers.filter(|broker| may_be_any || !has_all_events(broker));
        self.report.forgetting = forgetting.map(str::to_owned).collect();
    }

    /// Message about the end of the newest journal, if only that is damaged.
    fn torn_end(&self) -> Option<String> {
        let journal = self.journals.last()?;
        let bytes = journal.damaged.last()?;
        let is_end = journal.items.iter().all(|item| item.key.end <= bytes.start)
            && journal::is_torn(&journal.bytes, bytes.start);
        let (path, from, to) = (journal.path.display(), bytes.start, bytes.end);
        is_end.then(|| format!("{path}: bytes {from} to {to} are no whole commits"))
    }
}

fn present(newest: Newest) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let values = newest.into_iter();
    values
        .filter_map(|(key, (_, value))| Some((key, value?)))
        .collect()
}

fn unregistered(id: u32) -> Registered {
    Registered {
        id,
        first: 0,
        bytes_before_first: 0,
        last_accepted_millis: i64::MIN,
        start: 0,
    }
}

/// Name of a broker whose name is lost.
fn nameless(id: u32) -> String {
    if layout::is_shared(id) {
        format!("log-{id}")
    } else {
        layout::keyspace_of(id)
    }
}

/// Runs of consecutive records of each log in a table, each with its blocks.
fn runs_of(
    table: &[u8],
    parse: impl Fn(&[u8]) -> Option<(u32, u64)>,
) -> Vec<(u32, Range<u64>, Range<usize>)> {
    let mut runs = Vec::<(u32, Range<u64>, Range<usize>)>::new();
    raw::entries(table, true, |entry, place| {
        if let (Some((id, offset)), Some(value)) = (parse(entry.key), entry.value)
            && layout::parse_value(offset, value).is_ok()
        {
            match runs.last_mut() {
                Some((of, run, blocks)) if *of == id && run.end == offset => {
                    run.end += 1;
                    blocks.end = place.end;
                }
                _ => runs.push((id, offset..offset + 1, place.clone())),
            }
        }
        true
    });
    runs
}

/// Splits the offsets from the first one on into consecutive pieces, found or lost.
fn pieces(
    first: u64,
    mut runs: Vec<(Range<u64>, RecordLocation)>,
) -> Vec<(Range<u64>, Option<RecordLocation>)> {
    runs.sort_by_key(|(run, _)| (run.start, std::cmp::Reverse(run.end)));
    let (mut pieces, mut next) = (Vec::new(), first);
    for (run, place) in runs {
        if run.end <= next {
            continue;
        }
        if run.start > next {
            pieces.push((next..run.start, None));
        }
        pieces.push((run.start.max(next)..run.end, Some(place)));
        next = run.end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_what_is_nowhere_is_lost() {
        let table = |name: &str| RecordLocation::Table(Path::new(name).into(), 0..1);
        let runs = vec![
            (12..15, RecordLocation::Journals),
            (0..4, table("trimmed")),
            (3..9, table("a")),
            (5..7, table("old")),
            (8..10, table("b")),
        ];
        assert_eq!(
            pieces(4, runs),
            [
                (4..9, Some(table("a"))),
                (9..10, Some(table("b"))),
                (10..12, None),
                (12..15, Some(RecordLocation::Journals)),
            ]
        );
        assert_eq!(pieces(4, vec![(0..4, table("trimmed"))]), []);
        assert_eq!(
            pieces(0, vec![(2..3, table("a"))]),
            [(0..2, None), (2..3, Some(table("a")))]
        );
    }
}
