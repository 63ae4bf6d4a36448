//! Problems in manifests.

use std::{fmt, path::PathBuf};

use super::Position;

/// A message with a position in a file that is being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub position: Position,
    pub message: String,
}

/// A problem in a manifest, with its position. Displayed as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestProblem {
    /// The file, as given on the command line or found in a directory.
    pub file: PathBuf,
    /// Position in the file.
    pub position: Position,
    /// What is wrong and what to do, on one line.
    pub message: String,
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            position: Position { line, column },
            message,
        } = self;
        write!(f, "{}:{line}:{column}: {message}", file.display())
    }
}
