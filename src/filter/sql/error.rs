//! Compile errors and evaluation errors.

use std::borrow::Cow;

use super::{MAX_DEPTH, MAX_LENGTH, Scalar, Span, Type, tree::Call};
use crate::filter::fuel::Overrun;

/// A compile error with its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct SqlParseError {
    /// Column, in characters, starting at 1.
    pub column: usize,
    /// The error.
    pub problem: ParseProblem,
}

impl Span {
    /// An error in this part of the text.
    pub(super) fn error(self, text: &str, problem: ParseProblem) -> SqlParseError {
        SqlParseError {
            column: self.column(text),
            problem,
        }
    }
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProblem {
    /// Unexpected token.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// Expected tokens.
        expected: &'static str,
        /// Actual token.
        found: String,
    },
    /// A character that starts no token.
    #[error("unexpected character {0:?}")]
    Character(char),
    /// Unterminated string.
    #[error("unterminated string: no closing {0}")]
    UnclosedString(char),
    /// Integer out of range.
    #[error("{0} does not fit into a signed 32-bit integer")]
    IntegerRange(String),
    /// Invalid attribute name.
    #[error("{0} is not a valid attribute name: names are letters and digits, and data is not an attribute")]
    AttributeName(String),
    /// Unknown function (the specification's "MissingFunctionError").
    #[error("there is no function {name}: the functions are {}", Call::NAMES.join(", "))]
    UnknownFunction {
        /// Name in upper case.
        name: String,
    },
    /// Known function with a different number of arguments (also a "MissingFunctionError").
    #[error("{function} takes {takes}, not {given}")]
    Arguments {
        /// Name of the function in upper case.
        function: String,
        /// Number of arguments it takes, in words.
        takes: &'static str,
        /// Number of arguments given.
        given: usize,
    },
    /// Operators whose precedence is ambiguous.
    #[error(
        "{second} follows {first} without parentheses, and their order is ambiguous: use (... {first} ...) \
         {second} ... or ... {first} (... {second} ...)"
    )]
    Mixed {
        /// The operator on the left.
        first: &'static str,
        /// The operator at the column.
        second: &'static str,
    },
    /// Too deeply nested.
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Too long.
    #[error("the expression is longer than {MAX_LENGTH} characters")]
    TooLong,
}

/// An evaluation error: the part of the expression that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct SqlFailure<'a> {
    /// Span of the part that failed.
    pub span: Span,
    /// The cause.
    pub problem: FailureCause<'a>,
}

/// Why a part of an expression failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailureCause<'a> {
    /// The event does not have the attribute ("MissingAttributeError").
    #[error("the event has no attribute {0}")]
    MissingAttribute(&'a str),
    /// The value cannot be cast ("CastError").
    #[error("{value} cannot be cast to {to}")]
    Cast {
        /// The value.
        value: Scalar<'a>,
        /// The target type.
        to: Type,
    },
    /// The result does not fit into 32 bits ("MathError").
    #[error("the result does not fit into 32 bits")]
    Overflow,
    /// `ABS` of the smallest number; results in the largest ("MathError").
    #[error("the absolute value of -2147483648 does not fit into 32 bits")]
    AbsoluteOverflow,
    /// Division by zero, or its remainder ("MathError").
    #[error("division by zero")]
    DivisionByZero,
    /// `LEFT` or `RIGHT` with a negative count; results in the whole text ("FunctionEvaluationError").
    #[error("cannot take {count} characters")]
    NegativeCount {
        /// The text.
        text: Cow<'a, str>,
        /// The count.
        count: i32,
    },
    /// `SUBSTRING` with a negative length ("FunctionEvaluationError").
    #[error("a substring cannot be {0} characters long")]
    NegativeLength(i32),
    /// `SUBSTRING` with a position outside the text ("FunctionEvaluationError").
    #[error("a text of {length} characters has no position {position}")]
    Position {
        /// Start of the substring.
        position: i32,
        /// Length of the text.
        length: usize,
    },
    /// The budget is exhausted.
    #[error("{Overrun}")]
    TooExpensive,
}

impl<'a> FailureCause<'a> {
    /// Describes the cause like `Display`, but never shows values of the event.
    pub(in crate::filter) fn without_data(&self) -> String {
        match self {
            Self::Cast { to, .. } => format!("the value of an attribute cannot be cast to {to}"),
            Self::NegativeCount { .. } => "cannot take a negative number of characters".to_owned(),
            Self::NegativeLength(_) => "a substring cannot have a negative length".to_owned(),
            Self::Position { .. } => "the position is outside of the text".to_owned(),
            Self::MissingAttribute(_)
            | Self::Overflow
            | Self::AbsoluteOverflow
            | Self::DivisionByZero
            | Self::TooExpensive => self.to_string(),
        }
    }

    /// Returns the result of the failed function, if it differs from the zero value of its type.
    pub(super) fn result(&self) -> Option<Scalar<'a>> {
        match self {
            Self::AbsoluteOverflow => Some(Scalar::Integer(i32::MAX)),
            Self::NegativeCount { text, .. } => Some(Scalar::String(text.clone())),
            _ => None,
        }
    }
}
