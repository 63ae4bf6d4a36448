//! Manifests in files: read, checked as strictly as by the API server, and kept while a file is broken.
//!
//! `document` parses YAML and JSON and records the position of each value. `schema` checks a value against a custom
//! resource definition, and `rules` against its CEL rules. `resource` converts documents to Weir resources. `surroundings` collects Services and
//! namespaces. [`Manifests`] keeps the content of a set of files, and [`Grace`] resources that are missing for a
//! moment. [`resolve`] computes routing from them.

pub mod document;
mod files;
mod grace;
mod resolution;
mod resource;
mod rules;
mod schema;
mod surroundings;

use std::{fmt, path::PathBuf};

pub use document::{Node, Position};
pub use files::{Loaded, Manifests, STDIN};
pub use grace::Grace;
pub use resolution::{Resolution, Unresolved, named_services, resolve};
pub use resource::{Manifest, Resource};
pub use schema::{distance, unknown_field};
pub use surroundings::Surroundings;

/// Identity of a resource: kind, namespace and name.
pub type Key = (&'static str, String, String);

/// A problem in a manifest, with its position. Displayed as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, as given on the command line or found in a directory.
    pub file: PathBuf,
    /// Position in the file.
    pub position: Position,
    /// What is wrong and what to do, on one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            position: Position { line, column },
            message,
        } = self;
        write!(f, "{}:{line}:{column}: {message}", file.display())
    }
}
