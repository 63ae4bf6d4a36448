//! The value of a context attribute.

use std::{borrow::Cow, fmt};

/// The value of a context attribute, with the types of the core specification's type system.
///
/// In HTTP binary mode every value is a string, because headers carry no type information. Types that JSON
/// represents as strings (URI, URI-reference, Timestamp, Binary) keep their text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// `true` or `false`.
    Boolean(bool),
    /// A signed 32-bit integer.
    Integer(i32),
    /// Any other value.
    String(Box<str>),
}

impl Value {
    /// Returns the canonical string encoding (core specification, "Type System"), which is independent of the mode.
    /// Filters compare by it.
    #[must_use]
    pub fn canonical(&self) -> Cow<'_, str> {
        match self {
            Self::Boolean(true) => Cow::Borrowed("true"),
            Self::Boolean(false) => Cow::Borrowed("false"),
            Self::Integer(integer) => Cow::Owned(integer.to_string()),
            Self::String(text) => Cow::Borrowed(text),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Integer(integer) => integer.fmt(f),
            Self::String(text) => text.fmt(f),
        }
    }
}

impl From<bool> for Value {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

impl From<i32> for Value {
    fn from(integer: i32) -> Self {
        Self::Integer(integer)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_canonical_strings() {
        for (value, canonical) in [
            (Value::from(true), "true"),
            (Value::from(false), "false"),
            (Value::from(0), "0"),
            (Value::from(i32::MIN), "-2147483648"),
            (Value::from("Zürich"), "Zürich"),
        ] {
            assert_eq!(value.canonical(), canonical);
            assert_eq!(value.to_string(), canonical);
        }
    }
}
