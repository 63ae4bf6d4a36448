//! Cuts off the end of a journal that was only partly written before a power loss.
//!
//! A journal gets its length before its content, so a page that did not reach the disk reads as zeros. If such a
//! hole begins at an entry, the storage library takes it for the end of the journal. If it lies within a value and
//! what follows was written, the library finds a commit with a wrong checksum and refuses to open. That commit was
//! never acknowledged, as its fsync had not returned.
//!
//! So it is cut off here, if it has such a hole and no intact commit follows it. Whether acknowledged records are
//! missing then is for [`super::acknowledged`] to decide, as with every other lost end of a journal. Any other
//! damage is left for the library to reject.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

/// Unit that a machine writes to the disk atomically: no page is smaller.
const PAGE: usize = 4096;

// Entries of a journal, little-endian. A commit is a start, its items, and an end.
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Tag, number of items, sequence number.
const START_LENGTH: usize = 1 + 4 + 8;
/// Tag, kind of value, compression (none), keyspace, and the lengths of the key, of the value, and of the stored
/// value. Key and value follow.
const ITEM_HEAD: usize = 1 + 1 + 1 + 8 + 2 + 4 + 4;
/// Kind of a present value, and "no compression".
const VALUE: u8 = 0;
const UNCOMPRESSED: u8 = 0;
/// Tag and keyspace.
const CLEAR_LENGTH: usize = 1 + 8;
/// Tag, checksum of all bytes of the items, and [`TRAILER`].
const END_LENGTH: usize = 1 + 8 + TRAILER.len();
const TRAILER: &[u8] = b"FJL\x03";

/// A commit in a journal.
struct JournalCommit {
    bytes: Range<usize>,
    /// Whether the checksum matches its items.
    whole: bool,
}

/// One change in an intact commit of a journal.
pub(super) struct JournalItem {
    pub(super) keyspace: u64,
    pub(super) sequence: u64,
    pub(super) key: Range<usize>,
    /// `None` for a removed key.
    pub(super) value: Option<Range<usize>>,
}

/// The readable parts of a journal that may be damaged anywhere.
pub(super) struct JournalContents {
    /// In the order in which they were written.
    pub(super) items: Vec<JournalItem>,
    /// Ranges of bytes that are not intact commits.
    pub(super) damaged: Vec<Range<usize>>,
}

/// Reads every intact commit, also beyond damaged parts.
pub(super) fn read(journal: &[u8]) -> JournalContents {
    let end = journal
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let mut read = JournalContents {
        items: Vec::new(),
        damaged: Vec::new(),
    };
    let (mut at, mut damaged_from) = (0, None);
    while at < end {
        match whole_items(journal, at) {
            Some((items, next)) => {
                read.damaged.extend(damaged_from.take().map(|from| from..at));
                read.items.extend(items);
                at = next;
            }
            None => {
                damaged_from.get_or_insert(at);
                at += 1;
            }
        }
    }
    read.damaged.extend(damaged_from.map(|from| from..end));
    read
}

/// Returns the items and the end of the commit that begins here, if it is intact.
fn whole_items(journal: &[u8], start: usize) -> Option<(Vec<JournalItem>, usize)> {
    let commit = commit_at(journal, start).filter(|commit| commit.whole)?;
    let count = u32::from_le_bytes(*journal.get(start + 1..)?.first_chunk()?);
    let sequence = u64::from_le_bytes(*journal.get(start + 5..)?.first_chunk()?);
    let (mut items, mut at, mut entries) = (Vec::new(), start + START_LENGTH, 0);
    while at + END_LENGTH < commit.bytes.end {
        entries += 1;
        if journal[at] == CLEAR {
            at += CLEAR_LENGTH;
            continue;
        }
        let head = journal.get(at..at + ITEM_HEAD)?;
        let (is_value, is_plain) = (head[1] == VALUE, head[2] == UNCOMPRESSED);
        let key =
            at + ITEM_HEAD..at + ITEM_HEAD + usize::from(u16::from_le_bytes(*head[11..].first_chunk()?));
        let value = key.end..key.end + u32::from_le_bytes(*head[17..].first_chunk()?) as usize;
        if is_value && !is_plain {
            return None;
        }
        at = value.end;
        items.push(JournalItem {
            keyspace: u64::from_le_bytes(*head[3..].first_chunk()?),
            sequence,
            key,
            value: is_value.then_some(value),
        });
    }
    (entries == count).then_some((items, commit.bytes.end))
}

/// Numbers and paths of the journals in the folder, the oldest first.
pub(super) fn all(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(OsStr::to_str).map(str::parse::<u64>);
        if let Some(Ok(number)) = number
            && path.extension().is_some_and(|extension| extension == "jnl")
        {
            all.push((number, path));
        }
    }
    all.sort();
    Ok(all)
}

/// Cuts the newest journal in the folder off where its last commit begins, if that is torn. Returns the journal
/// that was cut.
pub(super) fn cut_torn_end(folder: &Path) -> io::Result<Option<PathBuf>> {
    let Some((_, path)) = all(folder)?.pop() else {
        return Ok(None);
    };
    let Some(length) = torn_from(&fs::read(&path)?) else {
        return Ok(None);
    };
    let file = File::options().write(true).open(&path)?;
    file.set_len(length as u64)?;
    file.sync_all()?;
    Ok(Some(path))
}

/// Start of a torn commit, if no intact one follows.
fn torn_from(journal: &[u8]) -> Option<usize> {
    let mut commits = commits(journal).skip_while(|commit| commit.whole);
    let torn = commits.next()?.bytes;
    let is_last = !commits.any(|commit| commit.whole);
    (is_last && has_hole(journal, &torn)).then_some(torn.start)
}

/// Whether a journal whose intact commits end here is as a crash leaves it: the storage library, or
/// [`cut_torn_end`], cuts off what follows.
pub(super) fn is_torn(journal: &[u8], at: usize) -> bool {
    commit_at(journal, at).is_none_or(|commit| !commit.whole && has_hole(journal, &commit.bytes))
}

fn has_hole(journal: &[u8], within: &Range<usize>) -> bool {
    let first = within.start.next_multiple_of(PAGE);
    let mut pages = (first..within.end.saturating_sub(PAGE - 1)).step_by(PAGE);
    pages.any(|page| journal[page..page + PAGE].iter().all(|byte| *byte == 0))
}

/// Commits up to the first invalid entry.
fn commits(journal: &[u8]) -> impl Iterator<Item = JournalCommit> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let commit = commit_at(journal, at)?;
        at = commit.bytes.end;
        Some(commit)
    })
}

fn commit_at(journal: &[u8], start: usize) -> Option<JournalCommit> {
    if *journal.get(start)? != START {
        return None;
    }
    let items = start + START_LENGTH;
    let mut at = items;
    loop {
        at += match *journal.get(at)? {
            ITEM => {
                let head = journal.get(at..at + ITEM_HEAD)?;
                let key = u16::from_le_bytes(*head[11..].first_chunk()?);
                let stored = u32::from_le_bytes(*head[17..].first_chunk()?);
                ITEM_HEAD + usize::from(key) + stored as usize
            }
            CLEAR => CLEAR_LENGTH,
            END => break,
            _ => return None,
        };
    }
    let end = journal.get(at..at + END_LENGTH)?;
    if !end.ends_with(TRAILER) {
        return None;
    }
    let checksum = u64::from_le_bytes(*end[1..].first_chunk()?);
    Some(JournalCommit {
        bytes: start..at + END_LENGTH,
        whole: xxh3_64(journal.get(items..at)?) == checksum,
    })
}
