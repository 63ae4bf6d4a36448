//! The data of an event.

use std::borrow::Cow;

use bytes::Bytes;

/// The data of an event, in the representation of its mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// The verbatim text of a JSON value: the member `data` of an event whose content type is JSON.
    Json(&'a str),
    /// The member `data` of an event whose content type is not JSON (JSON format, section 3.1.2).
    Text(Cow<'a, str>),
    /// Bytes: the body in binary mode, whatever its content type, or the decoded `data_base64`.
    Binary(Bytes),
}

impl Data<'_> {
    /// Returns the body in HTTP binary mode (HTTP binding, section 3.1.2).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) => text.as_bytes(),
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}
