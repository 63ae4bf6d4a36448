//! Problems in manifests, and their positions.

use std::{fmt, path::PathBuf};

/// A position in a text. Line and column start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

impl Position {
    /// The start of a text.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl From<serde_saphyr::Location> for Position {
    fn from(location: serde_saphyr::Location) -> Self {
        // An unknown position is reported as the start.
        Self {
            line: location.line().max(1),
            column: location.column().max(1),
        }
    }
}

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
