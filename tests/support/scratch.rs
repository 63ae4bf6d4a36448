//! Directories that are gone when the test is, or when the test process is.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Removes the directory once its standard input ends; what still runs in there may need another moment to die.
const CLEANER: &str = r#"cat; for _ in 1 2 3 4 5 6 7 8 9; do rm -rf "$0" && exit; sleep 0.2; done"#;

/// An empty directory, removed on drop.
///
/// A static is never dropped and a killed process drops nothing, so the removing is done by a shell that waits
/// for the end of a pipe which the system closes in any case.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    cleaner: Child,
}

impl Scratch {
    /// Makes a directory.
    pub(crate) fn new() -> Self {
        let path = tempfile::Builder::new()
            .prefix("weir-test-")
            .tempdir()
            .expect("cannot make a temporary directory")
            .keep();
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // an interrupt on the terminal is for the tests, not for who cleans up after them
            .spawn()
            .expect("cannot start sh");
        Self { path, cleaner }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file into it, making the folders on the way.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        }
        fs::write(&path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
