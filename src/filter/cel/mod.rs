//! CEL, the Common Expression Language (cel-spec, `doc/langdef.md`), on an event and on its data.
//!
//! An expression has one variable, `event`: its fields are the attributes in their own types, and `data`, which is
//! the data of an event whose content type is JSON. [`Expression::parse`] compiles a text once,
//! [`Expression::evaluate`] applies it to an event.
//!
//! The crate `cel` parses and gives the values; what an expression may have and what its parts give is decided here,
//! and every part is paid for. Left out is what could make one event take any time or memory:
//! - `all`, `exists`, `exists_one`, `map` and `filter`, for the crate does not bound what they cost. Whether a list
//!   has a value is asked by `in`.
//! - Maps, and lists of anything but constants; `+` of lists, and of strings beyond [`MAX_TEXT`].
//! - Functions outside the list in `functions.rs`; regular expressions and networks are constants, compiled with the
//!   expression.
//!
//! Text, nesting and the number of parts are bounded, and so is the data that is parsed.
//!
//! An expression has no value where a field is missing or types do not fit. As CEL has it, `&&` and `||` do without
//! the operand that failed where the other one decides.

mod check;
mod error;
mod evaluate;
mod explain;
mod functions;
mod json;
mod network;
mod pattern;
mod requirement;
#[cfg(test)]
mod tests;
mod tree;

pub use error::{Failure, ParseError, Problem};
pub(super) use json::{DataError, Json};

use tree::Node;

/// How many characters an expression may have.
pub const MAX_LENGTH: usize = 4096;

/// How deep an expression may be nested: parentheses, operators, calls and fields. A chain of `&&` or of `||` is as
/// deep as the logarithm of its length.
pub const MAX_DEPTH: usize = 32;

/// How many operators, calls, fields, names and constants an expression may have, but for the constants of a list.
pub const MAX_PARTS: usize = 256;

/// How many bytes of data are parsed; larger data is an error in evaluating.
pub const MAX_DATA: usize = 256 * 1024;

/// How many values the data may have that is parsed, with the lists and objects that others are in.
pub const MAX_VALUES: usize = 32 * 1024;

/// How many bytes a string may have that `+` makes.
pub const MAX_TEXT: usize = 64 * 1024;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: Box<str>,
    root: Node,
}

impl Expression {
    /// The text that was compiled.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many parts it has, with the constants of lists.
    pub(super) fn parts(&self) -> usize {
        self.root.count()
    }

    /// How many bytes its regular expressions take.
    pub(super) fn patterns(&self) -> usize {
        self.root.patterns()
    }
}

/// The text says everything.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}
