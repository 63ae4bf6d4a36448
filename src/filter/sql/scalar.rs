//! Values and casts between them (sections 3.1 and 3.7).

use std::{borrow::Cow, fmt};

use crate::cloudevents::Value;

/// Maximum number of characters of a text shown in an error.
const MAX_SHOWN: usize = 200;

/// A primitive type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `true` or `false`.
    Boolean,
    /// A signed 32-bit integer.
    Integer,
    /// Unicode text; also every URI, time and binary value of an event.
    String,
}

/// A value, borrowed from the expression or the event where possible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// A Boolean.
    Boolean(bool),
    /// An Integer.
    Integer(i32),
    /// A String.
    String(Cow<'a, str>),
}

impl Type {
    /// Returns the zero value of the type, used after errors.
    pub(super) fn zero(self) -> Scalar<'static> {
        match self {
            Self::Boolean => Scalar::Boolean(false),
            Self::Integer => Scalar::Integer(0),
            Self::String => Scalar::String(Cow::Borrowed("")),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "Boolean",
            Self::Integer => "Integer",
            Self::String => "String",
        })
    }
}

/// Result of a cast; the error is the value that cannot be cast.
pub(super) type Cast<'a, T> = Result<T, Scalar<'a>>;

impl<'a> Scalar<'a> {
    /// Casts to Boolean: the words in any case, and any number, where only 0 is false.
    pub(super) fn boolean(self) -> Cast<'a, bool> {
        match self {
            Self::Boolean(boolean) => Ok(boolean),
            Self::Integer(integer) => Ok(integer != 0),
            Self::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Self::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Self::String(_) => Err(self),
        }
    }

    /// Casts to Integer: digits with an optional sign, within 32 bits.
    pub(super) fn integer(self) -> Cast<'a, i32> {
        match &self {
            Self::Boolean(boolean) => Ok(i32::from(*boolean)),
            Self::Integer(integer) => Ok(*integer),
            Self::String(text) => text.parse().map_err(|_| self),
        }
    }

    /// Casts to String, the canonical string of an attribute.
    pub(super) fn string(self) -> Cow<'a, str> {
        match self {
            Self::Boolean(true) => Cow::Borrowed("true"),
            Self::Boolean(false) => Cow::Borrowed("false"),
            Self::Integer(integer) => Cow::Owned(integer.to_string()),
            Self::String(text) => text,
        }
    }

    /// Whether another value, cast to this one's type, is equal. The error is the value that cannot be cast.
    pub(super) fn equals<'b>(&self, other: Scalar<'b>) -> Cast<'b, bool> {
        match self {
            Self::Boolean(boolean) => Ok(other.boolean()? == *boolean),
            Self::Integer(integer) => Ok(other.integer()? == *integer),
            Self::String(text) => Ok(other.string() == *text),
        }
    }

    /// Returns the same value without copying its text.
    pub(super) fn borrowed(&self) -> Scalar<'_> {
        match self {
            Self::Boolean(boolean) => Scalar::Boolean(*boolean),
            Self::Integer(integer) => Scalar::Integer(*integer),
            Self::String(text) => Scalar::String(Cow::Borrowed(text)),
        }
    }

    /// Returns the type.
    #[must_use]
    pub fn r#type(&self) -> Type {
        match self {
            Self::Boolean(_) => Type::Boolean,
            Self::Integer(_) => Type::Integer,
            Self::String(_) => Type::String,
        }
    }
}

impl<'a> From<&'a Value> for Scalar<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Boolean(boolean) => Self::Boolean(*boolean),
            Value::Integer(integer) => Self::Integer(*integer),
            Value::String(text) => Self::String(Cow::Borrowed(text)),
        }
    }
}

/// Formats the value as an expression literal, truncating a long text.
impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Integer(integer) => integer.fmt(f),
            Self::String(text) => {
                let end = text.char_indices().nth(MAX_SHOWN).map(|(at, _)| at);
                let shown = end.map_or(&**text, |end| text.split_at(end).0);
                let more = if end.is_some() { "..." } else { "" };
                write!(f, "'{}{more}'", shown.replace('\'', "\\'"))
            }
        }
    }
}
