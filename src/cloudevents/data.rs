//! The data of an event.

use std::borrow::Cow;

use bytes::Bytes;

/// The data of an event, as its mode holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// The text of a JSON value, just as it was written: the member `data` of an event whose content type is JSON.
    Json(&'a str),
    /// The member `data` of an event whose content type is not JSON (JSON format, section 3.1.2).
    Text(Cow<'a, str>),
    /// Bytes: the body in binary mode, whatever its content type, and what `data_base64` encodes.
    Binary(Bytes),
}

impl Data<'_> {
    /// The bytes that are the body in HTTP binary mode (HTTP binding, section 3.1.2).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}
