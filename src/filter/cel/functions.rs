//! The functions available in expressions.

use std::sync::LazyLock;

use cel::Env;

use super::tree::{Conversion, OfText, OfTexts};

impl OfTexts {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "startsWith" => Self::StartsWith,
            "endsWith" => Self::EndsWith,
            "contains" => Self::Contains,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::StartsWith => "startsWith",
            Self::EndsWith => "endsWith",
            Self::Contains => "contains",
        }
    }
}

impl OfText {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "lowerAscii" => Self::LowerAscii,
            "upperAscii" => Self::UpperAscii,
            "trim" => Self::Trim,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LowerAscii => "lowerAscii",
            Self::UpperAscii => "upperAscii",
            Self::Trim => "trim",
        }
    }
}

impl Conversion {
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::String,
            "int" => Self::Int,
            "uint" => Self::Uint,
            "double" => Self::Double,
            "bool" => Self::Bool,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::Bool => "bool",
        }
    }
}

/// The `cel` crate's functions, used for conversions.
pub(super) fn environment() -> &'static Env {
    static ENVIRONMENT: LazyLock<Env> =
        LazyLock::new(|| Env::default().with_optional_support(false).with_stdlib());
    &ENVIRONMENT
}
