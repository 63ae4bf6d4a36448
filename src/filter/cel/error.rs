//! Compile errors and evaluation errors.

use cel::{ExecutionError, Value};

use super::{
    DataError,
    limits::{MAX_CONDITIONS, MAX_DEPTH, MAX_LENGTH, MAX_PARTS, MAX_SIMULATED, MAX_TEXT},
    signatures::SIGNATURES,
};
use crate::filter::fuel::Overrun;

/// Why a text does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CelParseError {
    /// It is not valid CEL.
    #[error("{}{message}", place(*line, *column))]
    Syntax {
        /// Line, starting at 1.
        line: usize,
        /// Column, in characters, starting at 1.
        column: usize,
        /// The error.
        message: String,
    },
    /// It is valid CEL, but not allowed here.
    #[error(transparent)]
    Refused(#[from] Disallowed),
}

fn place(line: usize, column: usize) -> String {
    match line {
        0 => String::new(),
        1 => format!("column {column}: "),
        _ => format!("line {line}, column {column}: "),
    }
}

/// A construct that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disallowed {
    /// Too long.
    #[error("the expression is longer than {MAX_LENGTH} characters")]
    TooLong,
    /// Too deeply nested.
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More conditionals than the parser can nest.
    #[error("the expression has more than {MAX_CONDITIONS} question marks")]
    TooManyConditions,
    /// Too many parts.
    #[error("the expression has more than {MAX_PARTS} operators, fields, calls and constants")]
    TooLarge,
    /// Unknown variable.
    #[error(
        "there is no {0}: the variables are event, as in event.type, and data, which is short for event.data, as in data.amount"
    )]
    Unknown(String),
    /// Unknown variable of an expression on a request.
    #[error(
        "there is no {0}: the variables are body, as in body.amount, request, as in request.headers['x-event'], and event, as \
         in event.type"
    )]
    UnknownInRequest(String),
    /// Unknown variable of an expression on the change of an object.
    #[error(
        "there is no {0}: the variables are object, as in object.metadata.name, oldObject, which is the version before or null, \
         change, which is 'added', 'updated' or 'deleted', and event, as in event.type"
    )]
    UnknownInChange(String),
    /// `event` by itself.
    #[error("event is not a value by itself: use event.type, event.data or another of its fields")]
    WholeEvent,
    /// Invalid attribute name.
    #[error(
        "{0:?} is not a valid attribute name: the fields of event are lower-case letters and digits, and data"
    )]
    AttributeName(String),
    /// A loop whose variable would hide the event or its data.
    #[error("{0} cannot be the variable of a loop, because it is the event or its data: choose another name")]
    LoopVariable(String),
    /// A message.
    #[error("messages, which have a name before the brace, are not allowed")]
    Message,
    /// A map with a key other than a constant text.
    #[error("the keys of a map in braces must be strings in quotes, each once")]
    Key,
    /// An optional element or entry.
    #[error("optional elements are not allowed")]
    Optional,
    /// An unknown function, or one with other arguments.
    #[error("there is no {call}: the functions are {}", SIGNATURES.join(", "))]
    Function {
        /// The call.
        call: String,
    },
    /// A call whose argument must be constant, because it is compiled with the expression.
    #[error("{0} takes one string in quotes")]
    NotConstant(&'static str),
    /// Invalid regular expression.
    #[error("invalid regular expression: {0}")]
    Pattern(String),
    /// A regular expression that would be too large.
    #[error(
        "the regular expression takes more than {MAX_SIMULATED} bytes when compiled: use smaller repetition counts \
         and classes, such as [a-z0-9] for \\w"
    )]
    PatternTooLarge,
    /// Invalid network.
    #[error("{0:?} is not a network such as 10.0.0.0/8 or 2001:db8::/32")]
    Network(String),
    /// Invalid point in time.
    #[error("{0:?} is not a time such as 2026-11-24T08:00:00Z")]
    Time(String),
    /// The value can never be a Boolean.
    #[error("does not evaluate to true or false, so it never matches: compare it with a value")]
    NotBoolean,
}

/// Why an evaluation failed. Displays types and names, never the data.
#[derive(Clone, Debug, PartialEq)]
pub enum CelFailure {
    /// An operator or a function failed.
    Execution(ExecutionError),
    /// The value has this type instead of Boolean.
    NotBoolean(String),
    /// `+` would create a string that is too long.
    TextTooLong,
    /// `containsIP` of a text that is not an address.
    NoAddress,
    /// `timestamp` of a text that is not a time, or of seconds that are too many.
    NoTime,
    /// The value has this type, which is none of JSON.
    NotJson(String),
    /// The value has this type, which cannot be part of a text.
    NotText(String),
    /// The number is infinite or not a number.
    NotFinite,
    /// The budget is exhausted.
    TooExpensive,
}

impl From<Overrun> for CelFailure {
    fn from(Overrun: Overrun) -> Self {
        Self::TooExpensive
    }
}

impl std::error::Error for CelFailure {}

impl std::fmt::Display for CelFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = match self {
            Self::NotBoolean(r#type) => return write!(f, "expected bool, got {type}"),
            Self::TextTooLong => return write!(f, "+ cannot create strings of more than {MAX_TEXT} bytes"),
            Self::NoAddress => return f.write_str("the text is not an IP address"),
            Self::NoTime => return f.write_str("the value is not a time such as 2026-11-24T08:00:00Z"),
            Self::NotJson(r#type) => return write!(f, "a value of type {type} cannot be written as JSON"),
            Self::NotText(r#type) => {
                return write!(f, "expected string, number, bool or timestamp, got {type}");
            }
            Self::NotFinite => return f.write_str("the number is not finite"),
            Self::TooExpensive => return Overrun.fmt(f),
            Self::Execution(error) => error,
        };
        match error {
            ExecutionError::NoSuchKey(name) => write!(f, "there is no {name}"),
            ExecutionError::NoSuchOverload(error) => write!(
                f,
                "{} does not take {}",
                operator(error.function()),
                error.argument_types().join(" and ")
            ),
            ExecutionError::ValuesNotComparable(left, right) => {
                write!(f, "{} does not compare with {}", type_of(left), type_of(right))
            }
            ExecutionError::UnsupportedBinaryOperator(name, left, right) => {
                write!(f, "{name} does not take {} and {}", type_of(left), type_of(right))
            }
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                f.write_str("division by zero")
            }
            ExecutionError::Overflow(..) => f.write_str("the result does not fit into 64 bits"),
            ExecutionError::IndexOutOfBounds(_) => f.write_str("index out of bounds"),
            ExecutionError::UnexpectedType { got, want } => write!(f, "expected {want}, got {got}"),
            ExecutionError::FunctionError { function, .. } => {
                write!(f, "{function} cannot take this value")
            }
            ExecutionError::InternalError(message) => f.write_str(message),
            _ => f.write_str("type mismatch"),
        }
    }
}

/// Strips the decoration of operator names: `_>_` is `>`.
fn operator(name: &str) -> &str {
    name.trim_matches(['_', '@'])
}

fn type_of(value: &Value) -> String {
    value.type_of().to_string()
}

impl From<DataError> for ExecutionError {
    fn from(error: DataError) -> Self {
        Self::InternalError(error.to_string())
    }
}
