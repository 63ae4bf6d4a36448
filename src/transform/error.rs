//! Why a transform does not compile, and why an event cannot be transformed.

use std::fmt;

use super::limits::{MAX_ATTRIBUTE, MAX_DEPTH, MAX_WRITTEN};
use crate::filter::{BUDGET, MAX_PARTS, MAX_SIZE, MAX_TEXT, cel::CelFailure};

/// Why a transform does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct TransformError {
    /// The field, for example `transform.data.total`.
    pub path: String,
    /// What is wrong there.
    pub problem: TransformProblem,
}

/// What is wrong with a field of a transform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransformProblem {
    /// It changes nothing.
    #[error("changes nothing: set attributes or data, or leave it out")]
    Nothing,
    /// Invalid attribute name.
    #[error(
        "{0:?} is not a valid attribute name: names are lower-case letters and digits, and data is not an attribute"
    )]
    AttributeName(String),
    /// An attribute that a transform must leave as it is.
    #[error(
        "{0} cannot be changed: specversion, traceparent, tracestate and names that begin with weir are Weir's own"
    )]
    Reserved(String),
    /// A required attribute is removed.
    #[error("{0} cannot be removed: every event has it")]
    Required(String),
    /// An attribute is set and removed.
    #[error("{0} is both set and removed")]
    SetAndRemoved(String),
    /// The content type is removed although there is new data.
    #[error("datacontenttype cannot be removed together with data: new data is JSON")]
    RemovedContentType,
    /// A constant value that the attribute cannot have.
    #[error("{0}")]
    AttributeValue(String),
    /// `${` without `}`.
    #[error("{}${{ is not closed by }}; for the text ${{ write $${{", place(*line, *column))]
    Unclosed {
        /// Line, starting at 1.
        line: usize,
        /// Column, in characters, starting at 1.
        column: usize,
    },
    /// Invalid expression.
    #[error("{}{message}", place(*line, *column))]
    Expression {
        /// Line, starting at 1.
        line: usize,
        /// Column, in characters, starting at 1.
        column: usize,
        /// The error.
        message: String,
    },
    /// Too deeply nested.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Too much text.
    #[error("has more than {MAX_TEXT} bytes of names and values: make it smaller")]
    TooMuchText,
    /// Too many parts.
    #[error(
        "has more than {MAX_PARTS} parts (fields, operators, calls and constants): make it smaller, or take over whole \
         objects of the data"
    )]
    TooManyParts,
    /// Too large when compiled.
    #[error("takes more than {MAX_SIZE} bytes when compiled: make it smaller")]
    TooLarge,
}

impl TransformError {
    /// Stable label, used as the reason in conditions.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self.problem {
            TransformProblem::TooMuchText | TransformProblem::TooManyParts | TransformProblem::TooLarge => {
                "TransformTooLarge"
            }
            _ => "InvalidTransform",
        }
    }
}

fn place(line: usize, column: usize) -> String {
    match line {
        1 => format!("column {column}: "),
        _ => format!("line {line}, column {column}: "),
    }
}

/// Why an event cannot be transformed. Displays the field, types and names, never the data.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("spec.{field}.{path}: {cause}")]
pub struct TransformFailure {
    /// The field of the whole template, for example `transform`.
    pub(super) field: &'static str,
    /// The field, for example `data.total`.
    pub(super) path: String,
    pub(super) cause: Cause,
}

/// What failed.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cause {
    Expression(CelFailure),
    /// The new data is too large.
    TooLarge,
    /// The attribute is too long.
    TooLong,
    /// The attribute cannot have the value.
    Value(&'static str),
}

impl TransformFailure {
    /// Returns the field that failed, for example `data.total`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns what failed, without the field.
    #[must_use]
    pub fn cause(&self) -> String {
        self.cause.to_string()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expression(CelFailure::TooExpensive) => {
                write!(f, "the expressions exceed {BUDGET} steps for this event")
            }
            Self::Expression(failure) => failure.fmt(f),
            Self::TooLarge => write!(f, "the new data has more than {MAX_WRITTEN} bytes"),
            Self::TooLong => write!(f, "the value has more than {MAX_ATTRIBUTE} bytes"),
            Self::Value(problem) => f.write_str(problem),
        }
    }
}
