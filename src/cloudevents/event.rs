//! The event: its decoded attributes, and its original wire form.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::HeaderValue;
use jiff::Timestamp;

use super::{
    Data, HttpMessage, Invalid, Lineage, RecordError, TraceContext, checks, http as binding,
    invalid::{Reason, excerpt},
    json, media_type,
    name::{self, Name},
    record,
    value::Value,
};

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
pub struct Event(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    /// Sorted by name, without duplicates.
    attributes: Box<[Attribute]>,
    content: Content,
    /// Context of the hop that the event arrived by.
    trace_context: Option<TraceContext>,
    lineage: Option<Lineage>,
    /// The record that this was read from, so that it need not be serialized again.
    record: Option<Bytes>,
}

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

impl Event {
    /// The caller guarantees the order of the attributes, the required ones, and the ranges.
    pub(super) fn from_parts(attributes: Box<[Attribute]>, content: Content, record: Option<Bytes>) -> Self {
        Self(Arc::new(Inner {
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
                    Member::Text(range) => json::string(slice(range)?).ok().map(Data::Text),
                    Member::Base64(range) => {
                        let bytes = BASE64.decode(json::string(slice(range)?).ok()?.as_bytes()).ok()?;
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
        match (&self.0.record, &self.0.content) {
            (Some(record), _) => record.len(),
            (None, Content::Binary { body: bytes } | Content::Structured { text: bytes, .. }) => {
                bytes.len()
                    + self
                        .attributes()
                        .map(|(name, value)| name.len() + value.canonical().len())
                        .sum::<usize>()
            }
        }
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
        stored.or_else(|| TraceContext::of_extension(self))
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

    /// Serializes the event for the event log; see `record.rs`.
    #[must_use]
    pub fn to_record(&self) -> Bytes {
        self.0.record.clone().unwrap_or_else(|| record::write(self))
    }

    /// Reads a record that [`Event::to_record`] wrote, in this or an earlier version of Weir. Body and text remain
    /// slices of the record.
    ///
    /// # Errors
    /// [`RecordError`] if a newer version wrote the record, or it is damaged.
    pub fn from_record(record: Bytes) -> Result<Self, RecordError> {
        record::read(record)
    }

    /// Converts the event to an HTTP message, in the given mode or else the original one. In the original mode, the
    /// bytes are unchanged. An event whose data is itself an event is always sent structured.
    #[must_use]
    pub fn to_http(&self, mode: Option<Mode>) -> HttpMessage {
        binding::write(self, mode.unwrap_or_else(|| self.mode()))
    }

    /// Returns the event in the JSON format: the original text, or for an event in binary mode a generated one.
    ///
    /// The data becomes a JSON value if the content type and the body are JSON, a string if they are text in UTF-8,
    /// and Base64 otherwise (JSON format, section 3.1.1).
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        match &self.0.content {
            Content::Structured { text, .. } => text.clone(),
            Content::Binary { .. } => json::write(self).0.into(),
        }
    }

    /// Returns a copy of the event with these string extensions set or replaced. All other bytes stay the same; in
    /// structured mode the values are inserted into the JSON text.
    ///
    /// Use [`super::clean_text`] on a value that may contain forbidden characters.
    ///
    /// # Errors
    /// [`Invalid`] if a name or a value is invalid, a name is given twice or belongs to the core specification, or
    /// there are too many attributes.
    pub fn with_extensions<'a>(
        &self,
        extensions: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Invalid> {
        let mut set = Vec::new();
        for (name, value) in extensions {
            let attribute = Attribute::new(checks::name(name)?, Value::from(value));
            if attribute.name.is_core() {
                return Err(Invalid::new(
                    Reason::Name,
                    format!(
                        "`{}` is a core attribute, which must stay as the producer set it",
                        excerpt(name)
                    ),
                )
                .about(name));
            }
            checks::value(&attribute.name, &attribute.value)?;
            set.push(attribute);
        }
        set.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(second) = set.windows(2).find_map(|pair| match pair {
            [first, second] if first.name == second.name => Some(second),
            _ => None,
        }) {
            return Err(name::duplicate(&second.name));
        }

        let is_set = |name: &Name| set.binary_search_by(|attribute| attribute.name.cmp(name)).is_ok();
        let kept = self
            .0
            .attributes
            .iter()
            .filter(|attribute| !is_set(&attribute.name));
        let attributes = checks::attributes(kept.chain(&set).cloned().collect())?;
        let content = match &self.0.content {
            binary @ Content::Binary { .. } => binary.clone(),
            Content::Structured {
                content_type, text, ..
            } => {
                let (text, data) = json::splice(text, &set).unwrap_or_else(|| {
                    // The text can be re-read, unless the record is damaged.
                    let content = self.0.content.clone();
                    json::write(&Self::from_parts(attributes.clone(), content, None))
                });
                Content::Structured {
                    content_type: content_type.clone(),
                    text: text.into(),
                    data,
                }
            }
        };
        let event = Self::from_parts(attributes, content, None);
        Ok(event.read_with(self.0.trace_context.clone(), self.0.lineage))
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

/// Classifies binary data for JSON.
pub(super) fn classify<'a>(body: &'a Bytes, content_type: Option<&str>) -> Data<'a> {
    let text = content_type
        .filter(|content_type| media_type::is_utf8(content_type))
        .and_then(|content_type| Some((content_type, std::str::from_utf8(body).ok()?)));
    match text {
        Some((content_type, text)) if media_type::is_json(content_type) && json::is_json(text) => {
            Data::Json(text.trim_ascii())
        }
        Some((content_type, text))
            if media_type::is_text(content_type) && !media_type::is_json(content_type) =>
        {
            Data::Text(Cow::Borrowed(text))
        }
        _ => Data::Binary(body.clone()),
    }
}
