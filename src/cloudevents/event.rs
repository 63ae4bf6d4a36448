//! The event: its decoded attributes, and its original wire form.

use std::{fmt, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use jiff::Timestamp;

use super::{
    Data, Lineage, TraceContext, json_text, media_type,
    parts::{Attribute, Content, Member},
    value::Value,
};

/// Approximate memory of the decoded name and value of an attribute, in bytes.
const ATTRIBUTE_TEXT: usize = 64;

/// Wire form of an event. An event in a batch is structured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attributes in headers, data in the body (HTTP binding, section 3.1).
    Binary,
    /// Everything in one JSON text (HTTP binding, section 3.2; JSON format, section 3).
    Structured,
}

/// A CloudEvent 1.0. Valid by construction, immutable, cheap to clone.
#[derive(Clone)]
pub struct Event(Arc<EventInner>);

#[derive(Clone)]
struct EventInner {
    /// Sorted by name, without duplicates.
    attributes: Box<[Attribute]>,
    content: Content,
    /// Context of the hop that the event arrived by.
    trace_context: Option<TraceContext>,
    lineage: Option<Lineage>,
    /// The record that this was read from, so that it need not be serialized again.
    record: Option<Bytes>,
}

impl Event {
    /// The caller guarantees the order of the attributes, the required ones, and the ranges.
    pub(super) fn from_parts(attributes: Box<[Attribute]>, content: Content, record: Option<Bytes>) -> Self {
        Self(Arc::new(EventInner {
            attributes,
            content,
            trace_context: None,
            lineage: None,
            record,
        }))
    }

    /// Adds the context and the lineage stored in the event's record.
    pub(super) fn read_with(mut self, context: Option<TraceContext>, lineage: Option<Lineage>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.trace_context = context;
        inner.lineage = lineage;
        self
    }

    pub(super) fn attribute_list(&self) -> &[Attribute] {
        &self.0.attributes
    }

    pub(super) fn content(&self) -> &Content {
        &self.0.content
    }

    /// Returns the context that is stored with the event.
    pub(super) fn stored_trace_context(&self) -> Option<&TraceContext> {
        self.0.trace_context.as_ref()
    }

    /// Returns the record that the event was read from, unless the event has changed since.
    pub(super) fn stored_record(&self) -> Option<&Bytes> {
        self.0.record.as_ref()
    }

    /// Returns the `id`, which identifies the event within its source. Never empty.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// Returns the `source`, a URI-reference. Never empty.
    #[must_use]
    pub fn source(&self) -> &str {
        self.text("source")
    }

    /// Returns the `type`. Never empty.
    #[must_use]
    pub fn r#type(&self) -> &str {
        self.text("type")
    }

    /// Returns an attribute by name: any extension, or a core attribute such as `specversion`, `datacontenttype`
    /// (in binary mode the `Content-Type`) or `time` (its original text). `None` if it is not set.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        let attributes = &self.0.attributes;
        let at = attributes
            .binary_search_by(|attribute| attribute.name.as_str().cmp(name))
            .ok()?;
        attributes.get(at).map(|attribute| &attribute.value)
    }

    /// Returns every attribute, sorted by name.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0
            .attributes
            .iter()
            .map(|attribute| (attribute.name.as_str(), &attribute.value))
    }

    /// Returns the mode in which the event arrived or was built.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match &self.0.content {
            Content::Binary { .. } => Mode::Binary,
            Content::Structured { .. } => Mode::Structured,
        }
    }

    /// Returns the data. In binary mode, an empty body is `None`, since HTTP cannot distinguish empty data from
    /// absent data.
    #[must_use]
    pub fn data(&self) -> Option<Data<'_>> {
        match &self.0.content {
            Content::Binary { body } if body.is_empty() => None,
            Content::Binary { body } => Some(Data::Binary(body.clone())),
            Content::Structured { text, data, .. } => {
                let slice = |range: &Range<usize>| std::str::from_utf8(text.get(range.clone())?).ok();
                match data {
                    Member::Absent => None,
                    Member::Json(range) => slice(range).map(Data::Json),
                    Member::Text(range) => json_text::string(slice(range)?).ok().map(Data::Text),
                    Member::Base64(range) => {
                        let bytes = BASE64
                            .decode(json_text::string(slice(range)?).ok()?.as_bytes())
                            .ok()?;
                        Some(Data::Binary(bytes.into()))
                    }
                }
            }
        }
    }

    /// Returns the data if its content type is JSON in UTF-8. Its validity is guaranteed only in structured mode.
    #[must_use]
    pub fn json_data(&self) -> Option<Data<'_>> {
        let is_json = self.implied_content_type().is_some_and(|content_type| {
            media_type::is_json(content_type) && media_type::is_utf8(content_type)
        });
        self.data()
            .filter(|data| is_json && !matches!(data, Data::Text(_)))
    }

    /// Returns the content type of the data after a change of mode: the attribute, or the one implied by a `data`
    /// member without one (JSON format, section 3.1.2).
    pub(super) fn implied_content_type(&self) -> Option<&str> {
        match (self.attribute("datacontenttype"), &self.0.content) {
            (Some(Value::String(content_type)), _) => Some(content_type),
            (
                _,
                Content::Structured {
                    data: Member::Json(_),
                    ..
                },
            ) => Some("application/json"),
            _ => None,
        }
    }

    /// Returns the approximate memory usage of the event in bytes, for bounding queues.
    #[must_use]
    pub fn size(&self) -> usize {
        let text = match (&self.0.record, &self.0.content) {
            (Some(record), _) => record.len(),
            (None, Content::Binary { body: bytes } | Content::Structured { text: bytes, .. }) => {
                bytes.len()
                    + self
                        .attributes()
                        .map(|(name, value)| name.len() + value.canonical().len())
                        .sum::<usize>()
            }
        };
        text + size_of::<EventInner>() + self.0.attributes.len() * (size_of::<Attribute>() + ATTRIBUTE_TEXT)
    }

    /// Returns the time at which the event expires (extension `expirytime`). `None` if absent or invalid.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        match self.attribute("expirytime")? {
            Value::String(text) => text.parse().ok(),
            Value::Boolean(_) | Value::Integer(_) => None,
        }
    }

    /// Returns the trace context: that of [`Event::with_trace_context`], or else that of the event's extension.
    #[must_use]
    pub fn trace_context(&self) -> Option<TraceContext> {
        let stored = self.stored_trace_context().cloned();
        stored.or_else(|| self.extension_trace_context())
    }

    /// Returns the trace context in the event's extension attributes: that of the trace in which the event
    /// originated.
    #[must_use]
    pub fn extension_trace_context(&self) -> Option<TraceContext> {
        TraceContext::of_attributes(|name| self.attribute(name))
    }

    /// Adds the trace context of the hop that the event arrived by. It is stored with the event, but is not part of
    /// it: no attribute changes, and equality ignores it.
    #[must_use]
    pub fn with_trace_context(mut self, context: TraceContext) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.trace_context = Some(context);
        inner.record = None;
        self
    }

    /// Returns the lineage set by [`Event::with_lineage`].
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.0.lineage
    }

    /// Adds the lineage. Like the trace context, it is stored with the event, but is not part of it.
    #[must_use]
    pub fn with_lineage(mut self, lineage: Lineage) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.lineage = Some(lineage);
        inner.record = None;
        self
    }

    fn text(&self, name: &str) -> &str {
        match self.attribute(name) {
            Some(Value::String(text)) => text,
            Some(Value::Boolean(_) | Value::Integer(_)) | None => "",
        }
    }
}

impl PartialEq for Event {
    /// Equal if attributes, bytes and mode are the same.
    fn eq(&self, other: &Self) -> bool {
        self.0.attributes == other.0.attributes && self.0.content == other.0.content
    }
}

impl Eq for Event {}

impl fmt::Debug for Event {
    /// Omits the data, which may be confidential and long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("mode", &self.mode())
            .field("attributes", &self.attributes().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
