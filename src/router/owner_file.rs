//! Files in the data directory that only their owner can read: they hold secrets.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Readable and writable by the owner only.
pub(super) const MODE: u32 = 0o600;

/// Creates an empty file, in place of one of this name.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(path)?;
    // Another version may have left the file with other permissions.
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(file)
}
