//! CESQL 1.0, the CloudEvents SQL expression language (cloudevents/spec, `cesql/spec.md`).
//!
//! [`Expression::parse`] compiles a text once, [`Expression::evaluate`] applies it to an event and gives a value and
//! perhaps an error, [`Expression::holds`] says whether the event passes. Every text either compiles or gets an error
//! with its column; evaluating cannot fail, panic or run away: length and depth are bounded, numbers are checked.
//!
//! Where the specification leaves room, or contradicts itself:
//! - **Errors end the evaluation** ("fail fast mode", section 4.1, which filters should use): an operator with an
//!   operand that fails fails with the same error, and gives the zero value of its own type.
//! - **`AND`, `OR` and `XOR` do not mix without parentheses.** The text of the specification (section 3.6) gives
//!   them one precedence and reads from left to right: `a OR b AND c` is `(a OR b) AND c`. Its ANTLR grammar, from
//!   which other engines are generated, reads from right to left: `a AND b OR c` is `a AND (b OR c)` there. In SQL
//!   `AND` goes first. A filter that means something else than its author thinks loses events, so a mix is a parse
//!   error that says what to do. Chains of one operator mean the same in every reading.
//! - `IN` looks at its elements from left to right up to the first that is equal.
//! - Strings: a backslash before the delimiting quote, or the quote twice as in SQL, stands for the quote. Every
//!   other backslash stands for itself, also before a backslash, but the two are read as a pair: `'\\'` is a string
//!   of two backslashes. In a `LIKE` pattern a backslash before `%` or `_` escapes it.
//! - An integer literal with its sign is a literal only where an operand is expected: `4 -1` is 3.
//! - `data` is no attribute (section 1), so an expression that names it is refused.

mod call;
mod error;
mod evaluate;
mod explain;
mod lexer;
mod parser;
mod pattern;
mod requirement;
mod scalar;
#[cfg(test)]
mod tests;
mod tree;

pub use error::{Failure, ParseError, ParseProblem, Problem};
pub use evaluate::Evaluation;
pub use scalar::{Scalar, Type};
pub use tree::Span;

use tree::{Kind, Node};

use super::Requirement;

/// How many characters an expression may have.
pub const MAX_LENGTH: usize = 4096;

/// How deep parentheses, arguments and operators may nest, so that neither parsing nor evaluating can exhaust the
/// stack. A chain of `AND`, of `OR` or of `XOR` is one level however long; of other operators each is one.
pub const MAX_DEPTH: usize = 64;

/// A compiled expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    text: Box<str>,
    root: Node,
}

impl Expression {
    /// What every event has that passes.
    #[must_use]
    pub fn requirement(&self) -> Requirement<'_> {
        self.root.requirement()
    }

    /// The type of the value, whatever the event; `None` where an attribute's type decides.
    #[must_use]
    pub fn r#type(&self) -> Option<Type> {
        self.root.r#type()
    }

    /// How many operators, calls, attributes and constants it has.
    pub(super) fn parts(&self) -> usize {
        let mut parts = 0;
        self.root.for_each(&mut |_| parts += 1);
        parts
    }

    /// How many bytes its patterns take.
    pub(super) fn patterns(&self) -> usize {
        let mut bytes = 0;
        self.root.for_each(&mut |node| {
            if let Kind::Like { pattern, .. } = &node.kind {
                bytes += pattern.size();
            }
        });
        bytes
    }

    /// The text that was compiled.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}
