//! What is wrong with an expression, and what went wrong in evaluating one.

use cel::{ExecutionError, Value};

use super::{
    DataError, MAX_DEPTH, MAX_LENGTH, MAX_PARTS, MAX_TEXT, check::MAX_CONDITIONS, functions,
    pattern::MAX_SIMULATED,
};
use crate::filter::fuel::Overrun;

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is not CEL.
    #[error("{}{message}", place(*line, *column))]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// The column in that line, in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// It is CEL, and more than a filter may be.
    #[error(transparent)]
    Refused(#[from] Problem),
}

fn place(line: usize, column: usize) -> String {
    match line {
        0 => String::new(),
        1 => format!("column {column}: "),
        _ => format!("line {line}, column {column}: "),
    }
}

/// What a filter may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Too long.
    #[error("the expression is longer than {MAX_LENGTH} characters")]
    TooLong,
    /// Nested too deep.
    #[error("the expression is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More conditions than the parser can nest.
    #[error("the expression has more than {MAX_CONDITIONS} question marks")]
    TooManyConditions,
    /// Too many parts.
    #[error("the expression has more than {MAX_PARTS} operators, fields, calls and constants")]
    TooLarge,
    /// A variable that does not exist.
    #[error("there is no {0}: the one variable is event, as in event.type or event.data.amount")]
    Unknown(String),
    /// `event` by itself.
    #[error("event is no value by itself: write event.type, event.data or another of its fields")]
    WholeEvent,
    /// No attribute can have this name.
    #[error("{0:?} is no attribute's name: event has lower-case letters and digits, and data")]
    AttributeName(String),
    /// A macro that goes through a list.
    #[error(
        "all, exists, exists_one, map and filter are not for filters, for they could take any time; to ask whether a \
         list has a value, write value in list"
    )]
    Loop,
    /// A map or a message.
    #[error("maps and messages in braces are not for filters")]
    Braces,
    /// A list of something else than constants.
    #[error("a list in brackets holds constants only")]
    ListElement,
    /// A function that does not exist, or with other arguments.
    #[error("there is no {call}: the functions are {}", functions::SIGNATURES.join(", "))]
    Function {
        /// As it is called.
        call: String,
    },
    /// A call whose argument is compiled with the expression.
    #[error("{0} takes one string in quotes")]
    NotConstant(&'static str),
    /// No regular expression.
    #[error("no regular expression: {0}")]
    Pattern(String),
    /// A regular expression that would be too large.
    #[error(
        "the regular expression takes more than {MAX_SIMULATED} bytes compiled: use smaller repetition counts and \
         classes, such as [a-z0-9] for \\w"
    )]
    PatternTooLarge,
    /// No network.
    #[error("{0:?} is no network such as 10.0.0.0/8 or 2001:db8::/32")]
    Network(String),
    /// The value is surely no Boolean.
    #[error("gives no true or false, which lets no event pass: compare it with something")]
    NotBoolean,
}

/// Why an expression has no value for an event. Displayed it tells types and names, never the data.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// An operator or a function failed.
    Execution(ExecutionError),
    /// The value is of this type, and no Boolean.
    NotBoolean(String),
    /// `+` would make a string that is too long.
    TextTooLong,
    /// `containsIP` of a text that is no address.
    NoAddress,
    /// The budget is used up.
    TooExpensive,
}

impl From<Overrun> for Failure {
    fn from(Overrun: Overrun) -> Self {
        Self::TooExpensive
    }
}

impl std::error::Error for Failure {}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = match self {
            Self::NotBoolean(r#type) => return write!(f, "the value is of type {type}, and no bool"),
            Self::TextTooLong => return write!(f, "+ makes no strings of more than {MAX_TEXT} bytes"),
            Self::NoAddress => return f.write_str("the text is no IP address"),
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
            ExecutionError::IndexOutOfBounds(_) => f.write_str("the list has no such position"),
            ExecutionError::UnexpectedType { got, want } => write!(f, "{got} where {want} is needed"),
            ExecutionError::FunctionError { function, .. } => {
                write!(f, "{function} cannot take this value")
            }
            ExecutionError::InternalError(message) => f.write_str(message),
            _ => f.write_str("types do not fit"),
        }
    }
}

/// `_>_` is `>` to whoever wrote it.
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
