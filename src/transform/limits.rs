//! Limits of a transform and of its results. The number of its parts, its text and its compiled size have the limits of
//! filters.

/// Maximum nesting depth of the data template.
pub const MAX_DEPTH: usize = 32;

/// Maximum size of new data, in bytes.
pub const MAX_WRITTEN: usize = 1024 * 1024;

/// Maximum length of an attribute that is set, in bytes.
pub const MAX_ATTRIBUTE: usize = 8 * 1024;
