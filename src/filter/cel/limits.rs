//! Limits of an expression and of what it is evaluated on.

/// Maximum length of an expression, in characters.
pub const MAX_LENGTH: usize = 4096;

/// Maximum nesting depth of an expression: parentheses, operators, calls and fields. A chain of `&&` or `||` has a
/// depth logarithmic in its length.
pub const MAX_DEPTH: usize = 32;

/// Maximum number of operators, calls, fields, names and constants in an expression, not counting the constants in
/// lists.
pub const MAX_PARTS: usize = 256;

/// Maximum size of data, in bytes. Evaluation of larger data fails.
pub const MAX_DATA: usize = 256 * 1024;

/// Maximum number of values in the data, including lists and objects.
pub const MAX_VALUES: usize = 32 * 1024;

/// Maximum size of a string created by `+`, in bytes.
pub const MAX_TEXT: usize = 64 * 1024;

/// Maximum number of question marks in a text, anywhere.
pub(super) const MAX_CONDITIONS: usize = 64;

/// Maximum size of a simulated automaton, in bytes.
pub(super) const MAX_SIMULATED: usize = 64 * 1024;
