//! Reads the files of a store without the storage library and without changing them: everything with the right
//! checksum, also beyond damaged parts.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use lsm_tree::{
    CompressionType, ValueType,
    coding::Decode as _,
    table::{
        Block, DataBlock,
        block::{BlockType, Header},
    },
};
use xxhash_rust::xxh3::xxh3_128;

use super::{journal, versions};

/// First bytes of every block of a table.
const MAGIC: &[u8] = b"LSM\x03";
/// Read size for a file that the disk cannot read as a whole.
const PAGE: usize = 4096;

/// A key with its value; `None` if it is removed.
pub(super) struct Entry<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    pub(super) sequence: u64,
}

/// Content of a file, and what was wrong with reading it.
pub(super) struct FileContent {
    pub(super) bytes: Vec<u8>,
    pub(super) error: Option<io::Error>,
}

/// Reads a file. What the disk cannot read becomes zeros.
pub(super) fn read(path: &Path) -> io::Result<FileContent> {
    let error = match fs::read(path) {
        Ok(bytes) => return Ok(FileContent { bytes, error: None }),
        Err(error) => error,
    };
    let file = File::open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    for (page, at) in bytes.chunks_mut(PAGE).zip((0..).step_by(PAGE)) {
        if file.read_exact_at(page, at).is_err() {
            page.fill(0);
        }
    }
    Ok(FileContent {
        bytes,
        error: Some(error),
    })
}

/// Reads a part of a file. What the disk cannot read becomes zeros.
pub(super) fn read_part(path: &Path, part: &Range<usize>) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut bytes = vec![0; part.end.saturating_sub(part.start)];
    if file.read_exact_at(&mut bytes, part.start as u64).is_err() {
        for (page, at) in bytes.chunks_mut(PAGE).zip((part.start as u64..).step_by(PAGE)) {
            if file.read_exact_at(page, at).is_err() {
                page.fill(0);
            }
        }
    }
    Ok(bytes)
}

/// Tables of a keyspace, and what is wrong with its list.
pub(super) struct Tables {
    pub(super) paths: Vec<(PathBuf, Option<u128>)>,
    pub(super) damage: Option<String>,
}

/// Returns the tables in the keyspace's list; if that is damaged, all tables there are.
pub(super) fn tables(keyspace: &Path) -> io::Result<Tables> {
    let folder = keyspace.join("tables");
    if let Some(listed) = versions::tables(keyspace)? {
        let listed = listed.into_iter();
        return Ok(Tables {
            paths: listed
                .map(|(number, checksum)| (folder.join(number.to_string()), Some(checksum)))
                .collect(),
            damage: None,
        });
    }
    let mut paths = Vec::new();
    match fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                paths.push((entry?.path(), None));
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    paths.sort();
    Ok(Tables {
        paths,
        damage: Some(format!("the list of tables of {} is damaged", keyspace.display())),
    })
}

/// Describes the damage of a table's file, if any.
pub(super) fn damage(path: &Path, content: &FileContent, checksum: Option<u128>) -> Option<String> {
    let path = path.display();
    if let Some(error) = &content.error {
        return Some(format!("{path} cannot be read: {error}"));
    }
    let is_wrong = checksum.is_some_and(|checksum| xxh3_128(&content.bytes) != checksum);
    is_wrong.then(|| format!("{path} is not what was written"))
}

/// Calls `found` with every intact entry of a table, and the place of its block, until it returns false.
pub(super) fn entries(
    table: &[u8],
    is_compressed: bool,
    mut found: impl FnMut(&Entry<'_>, &Range<usize>) -> bool,
) {
    let mut at = 0;
    while at < table.len() {
        let Some((block, end)) = block_at(table, at, is_compressed) else {
            // Skip to the next possible block.
            let rest = &table[at + 1..];
            match rest.windows(MAGIC.len()).position(|window| window == MAGIC) {
                Some(next) => at += 1 + next,
                None => return,
            }
            continue;
        };
        if let Some(block) = block {
            // The checksum is right; the library may still panic on unexpected content.
            let place = at..end;
            let go_on = catch_unwind(AssertUnwindSafe(|| each(&block, |entry| found(entry, &place))));
            if matches!(go_on, Ok(false)) {
                return;
            }
        }
        at = end;
    }
}

/// Returns the block here, if it is a data block, and its end; `None` if it is damaged.
fn block_at(table: &[u8], at: usize, is_compressed: bool) -> Option<(Option<DataBlock>, usize)> {
    let bytes = &table[at..];
    let header = Header::decode_from(&mut &*bytes).ok()?;
    let end = Header::serialized_len().checked_add(header.data_length as usize)?;
    let bytes = bytes.get(..end)?;
    if header.block_type != BlockType::Data {
        return Some((None, at + end));
    }
    let compression = if is_compressed || header.data_length != header.uncompressed_length {
        CompressionType::Lz4
    } else {
        CompressionType::None
    };
    let block = catch_unwind(|| Block::from_reader(&mut &*bytes, compression))
        .ok()?
        .ok()?;
    Some((Some(DataBlock::new(block)), at + end))
}

/// Returns whether to go on.
fn each(block: &DataBlock, mut found: impl FnMut(&Entry<'_>) -> bool) -> bool {
    let bytes = block.as_slice();
    let mut key = Vec::new();
    for item in block.iter() {
        key.clear();
        if let Some(prefix) = &item.prefix {
            key.extend_from_slice(&bytes[prefix.0..prefix.1]);
        }
        key.extend_from_slice(&bytes[item.key.0..item.key.1]);
        let value = match (&item.value, item.value_type) {
            (Some(value), ValueType::Value) => Some(&bytes[value.0..value.1]),
            (None, ValueType::Value) => Some(&[][..]),
            _ => None,
        };
        let entry = Entry {
            key: &key,
            value,
            sequence: item.seqno,
        };
        if !found(&entry) {
            return false;
        }
    }
    true
}

/// Content of a journal, and what is wrong with it.
pub(super) struct Journal {
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
    pub(super) items: Vec<journal::JournalItem>,
    pub(super) damaged: Vec<Range<usize>>,
    pub(super) error: Option<io::Error>,
}

/// Reads a journal.
pub(super) fn journal(path: PathBuf) -> io::Result<Journal> {
    let FileContent { bytes, error } = read(&path)?;
    let journal::JournalContents { items, damaged } = journal::read(&bytes);
    Ok(Journal {
        path,
        bytes,
        items,
        damaged,
        error,
    })
}
