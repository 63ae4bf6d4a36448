//! CESQL 1.0, the CloudEvents SQL expression language (cloudevents/spec, `cesql/spec.md`).
//!
//! [`SqlExpression::parse`] compiles a text once. [`SqlExpression::evaluate`] evaluates it on an event and returns a
//! value and possibly an error. [`SqlExpression::holds`] returns whether the event matches. Every text either compiles
//! or yields an error with its column. Evaluation cannot panic or run away: length and depth are bounded, and
//! arithmetic is checked.
//!
//! Where the specification is open or contradictory:
//! - **Errors end the evaluation** ("fail fast mode", section 4.1, recommended for filters): an operator with a
//!   failed operand fails with the same error, and results in the zero value of its own type.
//! - **`AND`, `OR` and `XOR` do not mix without parentheses.** The text of the specification (section 3.6) gives
//!   them the same precedence and left associativity: `a OR b AND c` is `(a OR b) AND c`. Its ANTLR grammar, from
//!   which other engines are generated, makes them right-associative: `a AND b OR c` is `a AND (b OR c)` there. In
//!   SQL, `AND` binds tighter. A misread filter loses events, so a mix is a parse error that says what to do.
//!   Chains of a single operator are unambiguous.
//! - `IN` checks its elements from left to right, up to the first equal one.
//! - Strings: a backslash before the delimiting quote, or a doubled quote as in SQL, stands for the quote. Every
//!   other backslash stands for itself, also before a backslash, but the two are read as a pair: `'\\'` is a string
//!   of two backslashes. In a `LIKE` pattern a backslash before `%` or `_` escapes it.
//! - A sign is part of an integer literal only where an operand is expected: `4 -1` is 3.
//! - `data` is not an attribute (section 1), so an expression that references it is rejected.

mod call;
mod error;
mod evaluate;
mod explain;
mod lexer;
mod parser;
mod pattern;
mod requirement;
mod scalar;
mod span;
#[cfg(test)]
mod tests;
mod text;
mod tree;

pub use error::{FailureCause, ParseProblem, SqlFailure, SqlParseError};
pub use evaluate::Evaluation;
pub use scalar::{Scalar, Type};
pub use span::Span;

use tree::{SqlNode, SqlNodeKind};

use super::Requirement;

/// Maximum length of an expression, in characters.
pub const MAX_LENGTH: usize = 4096;

/// Maximum nesting depth of parentheses, arguments and operators, so that neither parsing nor evaluation can
/// exhaust the stack. A chain of `AND`, `OR` or `XOR` is one level, however long; each other operator is one level.
pub const MAX_DEPTH: usize = 64;

/// A compiled expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlExpression {
    text: Box<str>,
    root: SqlNode,
}

impl SqlExpression {
    /// Returns a condition that every matching event satisfies.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        self.root.requirement()
    }

    /// Returns the type of the value; `None` if it depends on an attribute.
    #[must_use]
    pub fn r#type(&self) -> Option<Type> {
        self.root.r#type()
    }

    /// Returns the number of operators, calls, attributes and constants.
    pub(super) fn parts(&self) -> usize {
        let mut parts = 0;
        self.root.for_each(&mut |_| parts += 1);
        parts
    }

    /// Returns the size of its patterns, in bytes.
    pub(super) fn patterns(&self) -> usize {
        let mut bytes = 0;
        self.root.for_each(&mut |node| {
            if let SqlNodeKind::Like { pattern, .. } = &node.kind {
                bytes += pattern.size();
            }
        });
        bytes
    }

    /// Returns the source text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}
