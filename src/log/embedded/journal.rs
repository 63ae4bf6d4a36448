//! Cuts off the end of a journal that a machine wrote only in part before it lost its power.
//!
//! A journal has its length before it is written, so a page that did not reach the disk reads as zeros. Where such a
//! hole begins at an entry, the storage library takes it for the end of the journal. Where it lies within a value and
//! what follows was written, the library finds a commit whose checksum is wrong, and does not open. Nobody was told of
//! that commit, as its fsync had not returned.
//!
//! So it is cut off here, if it has such a hole and no whole commit follows it. Whether something acknowledged is
//! missing then is for [`super::acknowledged`] to say, as with every other end of a journal that is lost. Damage of any
//! other kind is left for the library to refuse.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

/// What a machine writes to the disk as a whole or not at all: no page is smaller.
const PAGE: usize = 4096;

// The entries of a journal, in little-endian order. A commit is a start, its items, and an end.
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// The tag, the number of items, the sequence number.
const START_LENGTH: usize = 1 + 4 + 8;
/// The tag, the kind of value, the compression (none), the keyspace, and the lengths of the key, of the value, and of
/// the value as it is stored. Then come the key and the value.
const ITEM_HEAD: usize = 1 + 1 + 1 + 8 + 2 + 4 + 4;
/// The tag and the keyspace.
const CLEAR_LENGTH: usize = 1 + 8;
/// The tag, the checksum of all bytes of the items, and [`TRAILER`].
const END_LENGTH: usize = 1 + 8 + TRAILER.len();
const TRAILER: &[u8] = b"FJL\x03";

/// A commit in a journal.
struct Commit {
    bytes: Range<usize>,
    /// Whether the checksum is that of its items.
    whole: bool,
}

/// Cuts the newest journal in the folder off where its last commit begins, if that is torn. Tells what was cut.
pub(super) fn cut_torn_end(folder: &Path) -> io::Result<Option<PathBuf>> {
    let Some(path) = newest(folder)? else {
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

fn newest(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(OsStr::to_str).map(str::parse::<u64>);
        if let Some(Ok(number)) = number
            && path.extension().is_some_and(|extension| extension == "jnl")
        {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where a commit begins that is torn, if no whole one follows.
fn torn_from(journal: &[u8]) -> Option<usize> {
    let mut commits = commits(journal).skip_while(|commit| commit.whole);
    let torn = commits.next()?.bytes;
    let is_last = !commits.any(|commit| commit.whole);
    (is_last && has_hole(journal, &torn)).then_some(torn.start)
}

fn has_hole(journal: &[u8], within: &Range<usize>) -> bool {
    let first = within.start.next_multiple_of(PAGE);
    let mut pages = (first..within.end.saturating_sub(PAGE - 1)).step_by(PAGE);
    pages.any(|page| journal[page..page + PAGE].iter().all(|byte| *byte == 0))
}

/// The commits up to the first entry that is none.
fn commits(journal: &[u8]) -> impl Iterator<Item = Commit> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let commit = commit_at(journal, at)?;
        at = commit.bytes.end;
        Some(commit)
    })
}

fn commit_at(journal: &[u8], start: usize) -> Option<Commit> {
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
    Some(Commit {
        bytes: start..at + END_LENGTH,
        whole: xxh3_64(journal.get(items..at)?) == checksum,
    })
}
