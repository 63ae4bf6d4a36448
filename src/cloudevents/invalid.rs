//! Why an input is not a valid event: for the producer, the metrics, and the status of the response.

use std::fmt;

use http::StatusCode;

/// The kind of rule that was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Neither structured content nor a `ce-specversion` header.
    NotACloudEvent,
    /// Unsupported event format, such as `application/cloudevents+xml`.
    UnsupportedFormat,
    /// Structured content in a character encoding other than UTF-8.
    UnsupportedCharset,
    /// The body is not the JSON that its content type declares.
    MalformedJson,
    /// A `specversion` other than `1.0`.
    UnsupportedVersion,
    /// A required attribute is missing.
    Missing,
    /// An attribute that must not be empty is empty.
    Empty,
    /// An attribute occurs twice.
    Duplicate,
    /// An invalid name of an attribute, or one that is not allowed here.
    Name,
    /// A value whose type is not allowed for the attribute.
    Type,
    /// A value that violates the rules of its type: characters, URI, timestamp, media type, header encoding.
    Value,
    /// Data that contradicts itself or its content type.
    Data,
    /// More attributes than any transport can carry.
    TooMany,
}

impl Reason {
    /// Stable label for metrics and for the `type` of a problem document.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotACloudEvent => "not_a_cloudevent",
            Self::UnsupportedFormat => "unsupported_format",
            Self::UnsupportedCharset => "unsupported_charset",
            Self::MalformedJson => "malformed_json",
            Self::UnsupportedVersion => "unsupported_specversion",
            Self::Missing => "missing_attribute",
            Self::Empty => "empty_attribute",
            Self::Duplicate => "duplicate_attribute",
            Self::Name => "invalid_attribute_name",
            Self::Type => "invalid_attribute_type",
            Self::Value => "invalid_attribute_value",
            Self::Data => "invalid_data",
            Self::TooMany => "too_many_attributes",
        }
    }

    /// Status of the response: 415 for an unsupported format or encoding, else 400.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::UnsupportedFormat | Self::UnsupportedCharset => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotACloudEvent
            | Self::MalformedJson
            | Self::UnsupportedVersion
            | Self::Missing
            | Self::Empty
            | Self::Duplicate
            | Self::Name
            | Self::Type
            | Self::Value
            | Self::Data
            | Self::TooMany => StatusCode::BAD_REQUEST,
        }
    }
}

/// Why an input is not a valid event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    reason: Reason,
    attribute: Option<Box<str>>,
    index: Option<usize>,
    detail: Box<str>,
}

impl Invalid {
    pub(super) fn new(reason: Reason, detail: impl Into<Box<str>>) -> Self {
        Self {
            reason,
            attribute: None,
            index: None,
            detail: detail.into(),
        }
    }

    pub(super) fn about(mut self, attribute: &str) -> Self {
        self.attribute = Some(excerpt(attribute).into());
        self
    }

    pub(super) fn at(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// Returns the kind of rule that was violated.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Returns the status of the response: 400 or 415.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.reason.status()
    }

    /// Returns a stable label for metrics; see [`Reason::label`].
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.reason.label()
    }

    /// Returns the attribute (or JSON member) concerned, truncated and escaped, since it comes from the producer.
    #[must_use]
    pub fn attribute(&self) -> Option<&str> {
        self.attribute.as_deref()
    }

    /// Returns the event's index in its batch, from 0; `None` if the message as a whole is concerned.
    #[must_use]
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// Returns a sentence for humans: what is wrong and what to do.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "event {index} of the batch: ")?;
        }
        f.write_str(&self.detail)
    }
}

/// Truncates and escapes a producer's text for messages and log lines.
pub(super) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_event_in_the_batch() {
        let invalid = Invalid::new(Reason::Missing, "the attribute `id` is missing").about("id");
        assert_eq!(invalid.to_string(), "the attribute `id` is missing");
        assert_eq!(
            invalid.at(3).to_string(),
            "event 3 of the batch: the attribute `id` is missing"
        );
    }

    #[test]
    fn truncates_and_escapes_producer_text() {
        assert_eq!(excerpt("a\r\nb"), "a\\r\\nb");
        assert_eq!(excerpt(&"ä".repeat(64)), "ä".repeat(64));
        assert_eq!(excerpt(&"ä".repeat(65)), format!("{}…", "ä".repeat(64)));
    }
}
