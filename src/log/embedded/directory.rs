//! The directory of the log: its lock, its capacity, and the check that everything acknowledged is in it.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    EmbeddedOptions,
    acknowledged::{self, Acknowledged},
    store,
};
use crate::log::LogError;

/// Time to wait for the lock. A process that was started while the log was open holds it until it runs its own program.
const WAIT_FOR_LOCK: Duration = Duration::from_millis(500);
const TRY_LOCK_EVERY: Duration = Duration::from_millis(10);

/// Locks the directory for this process.
pub(super) fn lock_directory(directory: &Path) -> Result<fs::File, LogError> {
    let opened = fs::create_dir_all(directory).and_then(|()| {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join("lock"))
    });
    let lock = opened.map_err(|e| LogError::Open {
        path: directory.to_owned(),
        detail: e.to_string(),
    })?;
    take_lock(directory, lock)
}

/// Locks a log that is only read, so that no router opens it. Creates no file: without one no router has ever
/// opened the log.
pub(super) fn lock_existing(directory: &Path) -> Result<Option<fs::File>, LogError> {
    match fs::File::open(directory.join("lock")) {
        Ok(lock) => take_lock(directory, lock).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LogError::Open {
            path: directory.to_owned(),
            detail: format!("its lock: {e}"),
        }),
    }
}

fn take_lock(directory: &Path, lock: fs::File) -> Result<fs::File, LogError> {
    let deadline = Instant::now() + WAIT_FOR_LOCK;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(store::in_use(directory));
            }
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(TRY_LOCK_EVERY),
            Err(fs::TryLockError::Error(e)) => {
                return Err(LogError::Open {
                    path: directory.to_owned(),
                    detail: format!("it cannot be locked: {e}"),
                });
            }
        }
    }
}

/// Compares the store's number of records with the number acknowledged.
pub(super) fn check_acknowledged(directory: &Path, records: u64) -> Result<Acknowledged, LogError> {
    let file = directory.join(acknowledged::FILE_NAME);
    let accept = format!(
        "restore the volume from a copy, or remove {} to go on without them",
        file.display()
    );
    let (mut acknowledged, number) = Acknowledged::open(directory).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => store::damaged(directory, format!("{}: {e}; {accept}", file.display())),
        _ => LogError::Open {
            path: directory.to_owned(),
            detail: format!("{}: {e}", file.display()),
        },
    })?;
    match number {
        Some(number) if number > records => {
            return Err(store::damaged(
                directory,
                format!(
                    "{number} records were acknowledged and only {records} are left: the end of the journal is lost \
                     or unreadable; {accept}"
                ),
            ));
        }
        None if records > 0 => {
            let path = file.display();
            tracing::warn!(%path, "the count of acknowledged records is missing, {records} records are taken as all");
        }
        _ => {}
    }
    let noted = acknowledged.write(records).and_then(|()| acknowledged.sync());
    let noted = noted.and_then(|()| fs::File::open(directory)?.sync_all());
    noted.map_err(|e| LogError::Open {
        path: directory.to_owned(),
        detail: format!("{}: {e}", file.display()),
    })?;
    Ok(acknowledged)
}

/// Bytes that may be retained on a volume with `free` bytes left.
pub(super) fn capacity(options: &EmbeddedOptions, retained: u64, free: Option<u64>) -> u64 {
    let of_volume = free.map_or(u64::MAX, |free| {
        retained
            .saturating_add(free)
            .saturating_sub(options.reserve_bytes)
    });
    options.max_bytes.min(of_volume)
}

/// Bytes that an unprivileged process can still write to the volume.
pub(super) fn free_space(directory: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(directory)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}
