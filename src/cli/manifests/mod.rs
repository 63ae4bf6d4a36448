//! Manifests in files: read, checked as strictly as the API server does, and kept while a file is broken.
//!
//! `document` reads YAML and JSON with the place of each value, `schema` checks a value against a custom resource
//! definition and `rules` against the CEL rules in it, `resource` makes our resources of documents, `surroundings` takes
//! note of Services and namespaces, and [`Manifests`] keeps what a set of files says, [`Grace`] what is missing in them
//! for a moment. [`resolve`] computes routing from it.

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

/// What tells a resource from every other: kind, namespace and name.
pub type Key = (&'static str, String, String);

/// Something that is wrong with a manifest, and where: shown as `file:line:column: message`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, as it was named on the command line or found in a directory that was.
    pub file: PathBuf,
    /// The place in it.
    pub position: Position,
    /// What is wrong and what to do, in one line.
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
