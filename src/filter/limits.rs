//! Limits on a Trigger's filters, all together.

/// Maximum number of parts: compared attributes, operators, calls and constants.
pub const MAX_PARTS: usize = 4096;

/// Maximum length of text, in bytes: names, values and expressions.
pub const MAX_TEXT: usize = 64 * 1024;

/// Maximum compiled size, in bytes.
pub const MAX_SIZE: usize = 512 * 1024;

/// Maximum nesting depth of expressions, so that neither compiling nor evaluating can exhaust the stack.
pub(super) const MAX_DEPTH: usize = 16;
