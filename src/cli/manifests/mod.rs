//! Manifests in files: read, checked as strictly as by the API server, and kept while a file is broken.
//!
//! `document` parses YAML and JSON and records the position of each value. `schema` checks a value against a custom
//! resource definition, and `rules` against its CEL rules. `resource` converts documents to Weir resources.
//! `surroundings` collects Services and namespaces. [`Manifests`] keeps the content of a set of files, and [`Grace`]
//! resources that are missing for a moment. [`resolve`] computes routing from them.

pub mod document;
mod files;
mod grace;
mod problem;
mod resolution;
mod resource;
mod rules;
mod schema;
mod surroundings;

pub use document::DocumentNode;
pub use files::{Loaded, Manifests, STDIN};
pub use grace::Grace;
pub use problem::{ManifestProblem, Position};
pub use resolution::{Resolution, UnresolvedField, named_services, resolve};
pub use resource::{Manifest, Resource};
pub use schema::{distance, unknown_field};
pub use surroundings::Surroundings;

use problem::Issue;

/// Identity of a resource: kind, namespace and name.
pub type ResourceKey = (&'static str, String, String);

/// Namespace of a manifest without one.
const DEFAULT_NAMESPACE: &str = "default";
