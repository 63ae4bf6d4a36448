//! What an event consists of: its attributes, and the wire form of the rest.

use std::ops::Range;

use bytes::Bytes;
use http::HeaderValue;

use super::{name::Name, value::Value};

/// A context attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) name: Name,
    pub(super) value: Value,
    /// The original header value, if encoding the value would give a different one.
    pub(super) raw: Option<HeaderValue>,
}

impl Attribute {
    pub(super) fn new(name: Name, value: Value) -> Self {
        Self {
            name,
            value,
            raw: None,
        }
    }
}

/// The wire form, except for the attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Binary {
        body: Bytes,
    },
    Structured {
        content_type: HeaderValue,
        /// UTF-8, a JSON object.
        text: Bytes,
        data: Member,
    },
}

/// Position of the data in the JSON text: the range of a member's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Absent,
    /// `data`, with a JSON content type.
    Json(Range<usize>),
    /// `data`, a JSON string, with another content type.
    Text(Range<usize>),
    /// `data_base64`, a JSON string.
    Base64(Range<usize>),
}
