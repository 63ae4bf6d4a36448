//! CEL, the Common Expression Language (cel-spec, `doc/langdef.md`), on an event and its data.
//!
//! An expression has the variable `event`: its fields are the attributes in their own types, and `data`, which is the
//! data of an event whose content type is JSON. The variable `data` is short for `event.data`. [`CelExpression::parse`]
//! compiles a condition once, [`CelExpression::evaluate`] evaluates it on an event. [`CelExpression::parse_value`] and
//! [`CelEvaluation`] do the same for expressions of any type, which templates contain.
//!
//! An expression of a webhook also has the variables `request`, the request that the event is made of, and `body`, its
//! data as JSON, as the fields of a form, or as text: [`CelExpression::parse_request_value`]. One on the change of an object has
//! `change`, `object` and `oldObject`: [`CelExpression::parse_change_value`].
//!
//! The crate `cel` provides the parser and the values. This module restricts the language, evaluates it, and
//! charges every part. Loops (`all`, `exists`, `exists_one`, `map`, `filter`) are charged for each element, and a new
//! list or map for every byte that is copied into it, so that the budget bounds their time and memory however they are
//! nested (`iterate.rs`). It omits what could take unbounded time or memory for one event:
//! - `+` of lists, and of strings beyond [`MAX_TEXT`].
//! - Functions outside the list in `signatures.rs`. Regular expressions and networks are constants, compiled with
//!   the expression.
//!
//! Text, nesting, the number of parts and the parsed data are bounded.
//!
//! An evaluation fails if a field is missing or types do not match. Per the CEL specification, `&&` and `||` ignore
//! a failed operand if the other one decides.

mod change;
mod check;
mod error;
mod evaluate;
mod explain;
mod functions;
mod iterate;
mod json;
mod limits;
mod macros;
mod network;
mod output;
mod pattern;
mod request;
mod requirement;
mod scalar;
mod signatures;
#[cfg(test)]
mod tests;
mod time;
mod tree;

pub use change::ChangedObject;
pub use error::{CelFailure, CelParseError, Disallowed};
pub(super) use json::{DataError, Json};
pub use limits::{MAX_DATA, MAX_DEPTH, MAX_LENGTH, MAX_PARTS, MAX_TEXT, MAX_VALUES};
pub use output::CelEvaluation;
pub use request::IncomingRequest;

use tree::CelNode;

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct CelExpression {
    text: Box<str>,
    root: CelNode,
}

impl CelExpression {
    /// Returns the source text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the number of parts, including the constants in lists.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.root.count()
    }

    /// Whether it has the variable `oldObject`.
    #[must_use]
    pub fn reads_old_object(&self) -> bool {
        self.root.reads_old_object()
    }

    /// Returns the size of its regular expressions, in bytes.
    #[must_use]
    pub fn patterns(&self) -> usize {
        self.root.patterns()
    }
}

/// The source text determines everything.
impl PartialEq for CelExpression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CelExpression {}
