//! The number of records ever acknowledged, in a file of its own beside the store.
//!
//! The storage library ends the replay of a journal at the first entry that it cannot parse, and cuts the file
//! there: it takes the rest for the torn end of an unacknowledged write. A flipped bit in the middle looks the
//! same, and everything after it, acknowledged or not, would be lost silently. So the committer writes the number
//! here after each fsync and before it acknowledges, and opening compares: a store with fewer records than were
//! acknowledged is damaged.
//!
//! The write is not fsynced (that would double the cost of a commit). So after a process crash the number is
//! exact, and after a power loss it is at most as old as the kernel's write-back (seconds). It is never too high,
//! because the records are durable before it is written.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

/// Name of the file in the log's directory.
pub(super) const FILE_NAME: &str = "acknowledged";

/// Two copies in different sectors, written in turn: one of them survives a torn write.
const SLOTS: [u64; 2] = [0, 512];

pub(super) struct Acknowledged {
    file: File,
    turn: usize,
}

impl Acknowledged {
    /// Opens the file, or creates it; returns its number, `None` in a new file.
    pub(super) fn open(directory: &Path) -> io::Result<(Self, Option<u64>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(FILE_NAME))?;
        let highest = highest(&file)?;
        Ok((Self { file, turn: 0 }, highest))
    }

    /// Reads the number without creating the file.
    pub(super) fn look(directory: &Path) -> io::Result<Option<u64>> {
        match File::open(directory.join(FILE_NAME)) {
            Ok(file) => highest(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes the number. It survives a crash of the process at once.
    pub(super) fn write(&mut self, records: u64) -> io::Result<()> {
        let mut slot = [0; 16];
        slot[..8].copy_from_slice(&records.to_le_bytes());
        slot[8..].copy_from_slice(&(!records).to_le_bytes());
        self.file.write_all_at(&slot, SLOTS[self.turn])?;
        self.turn = (self.turn + 1) % SLOTS.len();
        Ok(())
    }

    /// Makes the number survive a crash of the machine.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn highest(file: &File) -> io::Result<Option<u64>> {
    let mut highest: Option<u64> = None;
    if file.metadata()?.len() > 0 {
        for slot in SLOTS {
            highest = highest.max(read_slot(file, slot)?);
        }
        if highest.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "neither copy of the number is valid",
            ));
        }
    }
    Ok(highest)
}

fn read_slot(file: &File, at: u64) -> io::Result<Option<u64>> {
    let mut number = [0; 8];
    let mut complement = [0; 8];
    for (part, offset) in [(&mut number, at), (&mut complement, at + 8)] {
        match file.read_exact_at(part, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    let number = u64::from_le_bytes(number);
    Ok((number == !u64::from_le_bytes(complement)).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_holds_no_number_and_a_written_one_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let (mut acknowledged, number) = Acknowledged::open(directory.path()).unwrap();
        assert_eq!(number, None);
        for number in 0..5 {
            acknowledged.write(number).unwrap();
            assert_eq!(Acknowledged::open(directory.path()).unwrap().1, Some(number));
        }
    }

    #[test]
    fn a_torn_copy_leaves_the_other_one() {
        let directory = tempfile::tempdir().unwrap();
        let (mut acknowledged, _) = Acknowledged::open(directory.path()).unwrap();
        acknowledged.write(7).unwrap();
        acknowledged.write(8).unwrap();
        acknowledged.file.write_all_at(b"torn", SLOTS[1]).unwrap();
        assert_eq!(Acknowledged::open(directory.path()).unwrap().1, Some(7));
        acknowledged.file.write_all_at(b"torn", SLOTS[0]).unwrap();
        assert!(Acknowledged::open(directory.path()).is_err());
    }
}
