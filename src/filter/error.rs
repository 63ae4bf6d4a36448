//! Why filters do not compile.

use super::{
    cel,
    limits::{MAX_DEPTH, MAX_PARTS, MAX_SIZE, MAX_TEXT},
    sql::{SqlParseError, Type},
};

/// Why filters do not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct CompileError {
    /// Path in the list, for example `filters[1].all[0].exact`.
    pub path: String,
    /// What is wrong there.
    pub problem: CompileProblem,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileProblem {
    /// `exact`, `prefix` or `suffix` without an entry.
    #[error("has no attribute: at least one is required")]
    NoAttribute,
    /// `all` or `any` without a child.
    #[error("contains no filter: at least one is required")]
    NoChild,
    /// Invalid attribute name.
    #[error(
        "{0:?} is not a valid attribute name: names are lower-case letters and digits, and data is not an attribute"
    )]
    AttributeName(String),
    /// Empty value.
    #[error("the value for attribute {0} is empty: leave the attribute out instead")]
    EmptyValue(String),
    /// Too deeply nested.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Invalid CESQL expression.
    #[error(transparent)]
    Sql(#[from] SqlParseError),
    /// Invalid CEL expression, or one that is not allowed in a filter.
    #[error(transparent)]
    Cel(#[from] cel::CelParseError),
    /// A CESQL expression that can match no event, because its value is not a Boolean.
    #[error("expected Boolean, got {0}, which never matches: compare it with a value")]
    NotBoolean(Type),
    /// Too much text.
    #[error("have more than {MAX_TEXT} bytes of names, values and expressions: split the Trigger")]
    TooMuchText,
    /// Too many parts.
    #[error(
        "have more than {MAX_PARTS} parts (compared attributes, operators, calls and constants) including this \
         one: split the Trigger"
    )]
    TooManyParts,
    /// Too large when compiled.
    #[error(
        "take more than {MAX_SIZE} bytes when compiled, including this one: use fewer or smaller regular \
         expressions, or split the Trigger"
    )]
    TooLarge,
}
