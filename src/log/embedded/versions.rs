//! Checks what the storage library does not: that the list of a keyspace's tables is what was written.
//!
//! The list is the file `v{number}` in the keyspace's folder. The file `current` beside it contains the number and
//! a checksum of the list, which the library writes but never verifies. So a flipped bit in the list could make
//! the library use other tables, or request more memory than there is, which ends the process.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_128;

/// The known kind of checksum, as written in `current`.
const XXH3: u8 = 0;

/// Finds the first list that is not what was written. Missing or unknown ones are left to the library to judge.
pub(super) fn find_damaged(store: &Path) -> io::Result<Option<PathBuf>> {
    for keyspace in existing(fs::read_dir(store.join("keyspaces")))?
        .into_iter()
        .flatten()
    {
        let folder = keyspace?.path();
        let Some((number, checksum)) =
            existing(fs::read(folder.join("current")))?.and_then(|current| parse(&current))
        else {
            continue;
        };
        let list = folder.join(format!("v{number}"));
        if let Some(content) = existing(fs::read(&list))?
            && xxh3_128(&content) != checksum
        {
            return Ok(Some(list));
        }
    }
    Ok(None)
}

/// Tables of a keyspace, with the checksums of their files.
pub(super) type ListedTables = Vec<(u64, u128)>;

/// The tables in a keyspace's list; `None` if the list is missing or not what was written.
pub(super) fn tables(keyspace: &Path) -> io::Result<Option<ListedTables>> {
    let Some((number, checksum)) =
        existing(fs::read(keyspace.join("current")))?.and_then(|current| parse(&current))
    else {
        return Ok(None);
    };
    let list = keyspace.join(format!("v{number}"));
    let Some(content) = existing(fs::read(&list))?.filter(|content| xxh3_128(content) == checksum) else {
        return Ok(None);
    };
    let Ok(reader) = sfa::Reader::from_reader(&mut io::Cursor::new(&content)) else {
        return Ok(None);
    };
    let section = reader.toc().section(b"tables").and_then(|section| {
        let (from, length) = (
            usize::try_from(section.pos()).ok()?,
            usize::try_from(section.len()).ok()?,
        );
        content.get(from..from.checked_add(length)?)
    });
    Ok(section.and_then(parse_tables))
}

/// Parses levels and the runs in them: number, kind of checksum, checksum, sequence number.
fn parse_tables(mut section: &[u8]) -> Option<ListedTables> {
    fn take<const N: usize>(section: &mut &[u8]) -> Option<[u8; N]> {
        let (taken, rest) = section.split_first_chunk()?;
        *section = rest;
        Some(*taken)
    }
    let mut tables = Vec::new();
    let [levels] = take(&mut section)?;
    for _ in 0..levels {
        let [runs] = take(&mut section)?;
        for _ in 0..runs {
            for _ in 0..u32::from_le_bytes(take(&mut section)?) {
                let number = u64::from_le_bytes(take(&mut section)?);
                let [kind] = take(&mut section)?;
                let checksum = u128::from_le_bytes(take(&mut section)?);
                let _sequence: [u8; 8] = take(&mut section)?;
                if kind != XXH3 {
                    return None;
                }
                tables.push((number, checksum));
            }
        }
    }
    Some(tables)
}

/// Parses number, checksum and kind of checksum of the list; little-endian.
fn parse(current: &[u8]) -> Option<(u64, u128)> {
    let (number, rest) = current.split_first_chunk()?;
    let (checksum, kind) = rest.split_first_chunk()?;
    (kind == [XXH3]).then(|| (u64::from_le_bytes(*number), u128::from_le_bytes(*checksum)))
}

fn existing<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}
