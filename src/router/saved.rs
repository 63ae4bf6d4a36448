//! The last routing configuration on the router's disk.

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::owner_file;
use crate::routing::{Configuration, Revision};

/// File in the data directory.
const FILE: &str = "configuration.json";

pub(super) struct SavedConfiguration {
    directory: PathBuf,
}

/// Reasons why the last configuration cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The data directory is unusable.
    #[error("cannot use the data directory {path}: {source}; it must exist or be creatable, and be writable")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file cannot be read or written.
    #[error("cannot read or write {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The file is invalid for this version.
    #[error("{path} is not a routing configuration that this version can read: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
}

impl SavedConfiguration {
    /// Opens the directory; creates it if absent.
    pub(super) fn in_directory(directory: &Path) -> Result<Self, SavedError> {
        fs::create_dir_all(directory).map_err(|source| SavedError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Path of the file.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    pub(super) fn load(&self) -> Result<Option<Configuration>, SavedError> {
        let path = self.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SavedError::File { path, source }),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| SavedError::Malformed { path, source })
    }

    /// Replaces the file atomically: after a crash it is the old or the new one. A configuration with items that
    /// this version cannot decode is stored without its revision, so that a newer version requests all of it
    /// again.
    pub(super) fn store(&self, configuration: &Configuration) -> Result<(), SavedError> {
        let configuration = if configuration.undecodable.is_empty() {
            Cow::Borrowed(configuration)
        } else {
            Cow::Owned(Configuration {
                revision: Revision::default(),
                ..configuration.clone()
            })
        };
        let path = self.path();
        let beside = self.directory.join(format!("{FILE}.new"));
        let write = || {
            let file = owner_file::create(&beside)?;
            let mut buffered = BufWriter::new(&file);
            serde_json::to_writer(&mut buffered, &*configuration)?;
            buffered.flush()?;
            drop(buffered);
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| SavedError::File {
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::{super::owner_file::MODE, *};
    use crate::routing::Revision;

    #[test]
    fn what_was_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let saved = SavedConfiguration::in_directory(&directory.path().join("data")).unwrap();
        assert_eq!(saved.load().unwrap(), None);
        for revision in ["a", "b"] {
            let configuration = Configuration {
                revision: Revision(revision.into()),
                ..Configuration::default()
            };
            saved.store(&configuration).unwrap();
            assert_eq!(saved.load().unwrap(), Some(configuration));
        }
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let saved = SavedConfiguration::in_directory(directory.path()).unwrap();
        let (path, beside) = (
            directory.path().join(FILE),
            directory.path().join(format!("{FILE}.new")),
        );
        for file in [&path, &beside] {
            fs::write(file, "{}").unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o644)).unwrap();
        }
        saved.store(&Configuration::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        assert!(!beside.exists());
    }

    #[test]
    fn what_is_malformed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        let saved = SavedConfiguration::in_directory(directory.path()).unwrap();
        assert!(saved.load().unwrap_err().to_string().contains(FILE));
    }
}
