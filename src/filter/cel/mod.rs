//! CEL, the Common Expression Language (cel-spec, `doc/langdef.md`), on an event and on its data.
//!
//! An expression has one variable, `event`: its fields are the attributes in their own types, and `data`, which is
//! the data of an event whose content type is JSON. [`Expression::parse`] compiles a text once,
//! [`Expression::evaluate`] applies it to an event.
//!
//! The language is the crate `cel`'s, less what could make one event take any time or memory:
//! - `all`, `exists`, `exists_one`, `map` and `filter`, for the crate does not bound what they cost. Whether a list
//!   has a value is asked by `in`.
//! - Maps, and lists of anything but constants; `+` of lists, and of strings beyond [`MAX_TEXT`].
//! - Functions outside the list in `functions.rs`; regular expressions and networks are constants, compiled with the
//!   expression, and no regular expression takes more than linear time.
//!
//! Text, nesting and the number of parts are bounded, and so is the data that is parsed. What remains takes at most
//! one pass over the data for every part of the expression.
//!
//! An expression has no value where a field is missing or types do not fit. As CEL has it, `&&` and `||` do without
//! the operand that failed where the other one decides.

mod check;
mod constant;
mod error;
mod evaluate;
mod explain;
mod functions;
mod json;
mod requirement;
#[cfg(test)]
mod tests;

pub use error::{Failure, ParseError, Problem};
pub(super) use json::{DataError, Json};

use constant::Constant;

/// How many characters an expression may have.
pub const MAX_LENGTH: usize = 4096;

/// How deep an expression may be nested: parentheses, operators, calls and fields. A chain of `&&` or of `||` is as
/// deep as the logarithm of its length.
pub const MAX_DEPTH: usize = 32;

/// How many operators, calls, fields, names and constants an expression may have, but for the constants of a list.
pub const MAX_PARTS: usize = 256;

/// How many bytes of data are parsed; larger data is an error in evaluating.
pub const MAX_DATA: usize = 256 * 1024;

/// How many bytes a string may have that `+` makes.
pub const MAX_TEXT: usize = 64 * 1024;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: Box<str>,
    root: ::cel::IdedExpr,
    /// The regular expressions and networks in it, which `root` names by their positions.
    constants: Vec<Constant>,
}

impl Expression {
    /// The text that was compiled.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The text says everything.
impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}
