//! A small volume, to be filled.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::Scratch;

/// Unmounts the volume once its standard input ends, whatever still uses it.
const CLEANER: &str = r#"cat; umount -l -- "$0""#;

/// A file system in memory, unmounted on drop; like a [`Scratch`], also when the test process is killed.
#[derive(Debug)]
pub(crate) struct Volume {
    cleaner: Child,
    directory: Scratch,
}

impl Volume {
    /// Mounts one of so many MiB. An error says why that is not possible here: it takes root, as a rule.
    pub(crate) fn mount(mebibytes: u64) -> Result<Self, String> {
        let directory = Scratch::new();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "weir-test"])
            .arg(directory.path())
            .output()
            .map_err(|error| format!("cannot start mount: {error}"))?;
        if !mount.status.success() {
            return Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned());
        }
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // as for a `Scratch`
            .spawn()
            .expect("cannot start sh");
        Ok(Self { cleaner, directory })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Fills it with a file, but for so many bytes. Removing the file gives them back.
    pub(crate) fn fill_but(&self, bytes: u64) -> std::path::PathBuf {
        let path = self.path().join("ballast");
        let volume = statvfs(self.path()).expect("cannot ask for the free space");
        let free = volume.f_bavail * volume.f_frsize;
        let file = File::create(&path).expect("cannot create a file");
        fallocate(
            &file,
            FallocateFlags::empty(),
            0,
            free.saturating_sub(bytes).max(1),
        )
        .expect("cannot take space");
        path
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
