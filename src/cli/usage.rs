//! The error of an invalid command line.

/// An invalid command line that only the subcommand can detect. Exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);
