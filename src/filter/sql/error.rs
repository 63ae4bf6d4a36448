//! What is wrong with an expression, and what went wrong in evaluating one.

use std::borrow::Cow;

use super::{MAX_DEPTH, MAX_LENGTH, Scalar, Span, Type};
use crate::filter::fuel::Overrun;

/// Why a text is no expression, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct ParseError {
    /// Where, in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: ParseProblem,
}

/// What is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseProblem {
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What may stand here.
        expected: &'static str,
        /// What does.
        found: String,
    },
    /// A character with which nothing begins.
    #[error("the character {0:?} means nothing outside a string")]
    Character(char),
    /// A string without its end.
    #[error("the string that begins here has no closing {0}")]
    UnclosedString(char),
    /// A number that is too large or too small.
    #[error("{0} does not fit into a signed integer of 32 bits")]
    IntegerRange(String),
    /// No attribute can have this name.
    #[error("{0} is no attribute's name: names are letters and digits, and data is not an attribute")]
    AttributeName(String),
    /// The specification has no such function (its "MissingFunctionError").
    #[error("there is no function {name}: the functions are {}", super::call::NAMES.join(", "))]
    UnknownFunction {
        /// The name in upper case.
        name: String,
    },
    /// The function exists, and takes another number of arguments (a "MissingFunctionError" as well).
    #[error("{function} takes {takes}, not {given}")]
    Arguments {
        /// The function's name in upper case.
        function: String,
        /// How many it takes, in words.
        takes: &'static str,
        /// How many there are.
        given: usize,
    },
    /// Operators that readers order differently.
    #[error(
        "{second} follows {first} without parentheses, and there is no agreed order between them: \
         write (... {first} ...) {second} ... or ... {first} (... {second} ...)"
    )]
    Mixed {
        /// The operator on the left.
        first: &'static str,
        /// The operator at the column.
        second: &'static str,
    },
    /// Nested too deep.
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Too long.
    #[error("the expression is longer than {MAX_LENGTH} characters")]
    TooLong,
}

/// An error in evaluating: which part of the expression failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Failure<'a> {
    /// The part of the text that failed.
    pub span: Span,
    /// Why.
    pub problem: Problem<'a>,
}

/// Why a part of an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem<'a> {
    /// The event has no such attribute ("MissingAttributeError").
    #[error("the event has no attribute {0}")]
    MissingAttribute(&'a str),
    /// The value has no counterpart in the other type ("CastError").
    #[error("{value} is no {to}")]
    Cast {
        /// The value.
        value: Scalar<'a>,
        /// The type that was needed.
        to: Type,
    },
    /// The result does not fit into 32 bits ("MathError").
    #[error("the result does not fit into 32 bits")]
    Overflow,
    /// `ABS` of the smallest number, which gives the largest ("MathError").
    #[error("the absolute value of -2147483648 does not fit into 32 bits")]
    AbsoluteOverflow,
    /// A division by zero, or its remainder ("MathError").
    #[error("division by zero")]
    DivisionByZero,
    /// `LEFT` or `RIGHT` with a negative number, which gives the whole text ("FunctionEvaluationError").
    #[error("cannot take {count} characters")]
    NegativeCount {
        /// The text.
        text: Cow<'a, str>,
        /// How many were asked for.
        count: i32,
    },
    /// `SUBSTRING` with a negative length ("FunctionEvaluationError").
    #[error("a substring cannot be {0} characters long")]
    NegativeLength(i32),
    /// `SUBSTRING` from outside the text ("FunctionEvaluationError").
    #[error("a text of {length} characters has no position {position}")]
    Position {
        /// Where the substring was to begin.
        position: i32,
        /// How long the text is.
        length: usize,
    },
    /// The budget is used up.
    #[error("{Overrun}")]
    TooExpensive,
}

impl<'a> Problem<'a> {
    /// What the function that failed gives nevertheless, where that is not the zero value of its type.
    pub(super) fn result(&self) -> Option<Scalar<'a>> {
        match self {
            Self::AbsoluteOverflow => Some(Scalar::Integer(i32::MAX)),
            Self::NegativeCount { text, .. } => Some(Scalar::String(text.clone())),
            _ => None,
        }
    }
}
