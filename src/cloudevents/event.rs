//! The event: its attributes, decoded, and its wire form, as it was.

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

/// How an event is on the wire. An event of a batch is structured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attributes in headers, data in the body (HTTP binding, section 3.1).
    Binary,
    /// Everything in one JSON text (HTTP binding, section 3.2; JSON format, section 3).
    Structured,
}

/// One CloudEvent, 1.0. Valid by construction, immutable, cheap to clone.
#[derive(Clone)]
pub struct Event(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    /// In order of their names, each once.
    attributes: Box<[Attribute]>,
    content: Content,
    /// That of the hop that the event came by.
    trace_context: Option<TraceContext>,
    lineage: Option<Lineage>,
    /// What this was read from, so that writing it again costs nothing.
    record: Option<Bytes>,
}

/// A context attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) name: Name,
    pub(super) value: Value,
    /// The header value as it came in, where encoding the value would give another.
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

/// The wire form, without what the attributes know.
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

/// Where the data is in the JSON text: the range of a member's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Member {
    Absent,
    /// `data`, and the content type is JSON.
    Json(Range<usize>),
    /// `data`, a JSON string, and the content type is not JSON.
    Text(Range<usize>),
    /// `data_base64`, a JSON string.
    Base64(Range<usize>),
}

impl Event {
    /// The caller answers for the order of the attributes, the required ones, and the ranges.
    pub(super) fn from_parts(attributes: Box<[Attribute]>, content: Content, record: Option<Bytes>) -> Self {
        Self(Arc::new(Inner {
            attributes,
            content,
            trace_context: None,
            lineage: None,
            record,
        }))
    }

    /// The event as it was read from a record with this beside it.
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

    /// The context that is stored with the event.
    pub(super) fn stored_trace_context(&self) -> Option<&TraceContext> {
        self.0.trace_context.as_ref()
    }

    /// Identifies the event within its source. Never empty.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text("id")
    }

    /// Where the event comes from, a URI-reference. Never empty.
    #[must_use]
    pub fn source(&self) -> &str {
        self.text("source")
    }

    /// What kind of event it is. Never empty.
    #[must_use]
    pub fn r#type(&self) -> &str {
        self.text("type")
    }

    /// An attribute by its name: also `specversion`, `datacontenttype` (in binary mode the `Content-Type`), `time`
    /// as the text that it was, and every extension. `None` if it is not set.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        let attributes = &self.0.attributes;
        let at = attributes
            .binary_search_by(|attribute| attribute.name.as_str().cmp(name))
            .ok()?;
        attributes.get(at).map(|attribute| &attribute.value)
    }

    /// Every attribute, in order of the names.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0
            .attributes
            .iter()
            .map(|attribute| (attribute.name.as_str(), &attribute.value))
    }

    /// How the event came in, or was built.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match &self.0.content {
            Content::Binary { .. } => Mode::Binary,
            Content::Structured { .. } => Mode::Structured,
        }
    }

    /// The data; `None` if there is none. In binary mode that is an empty body, since HTTP cannot tell empty data
    /// from absent data.
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

    /// The data, if its content type says that it is JSON in UTF-8. Only in structured mode it surely is.
    #[must_use]
    pub fn json_data(&self) -> Option<Data<'_>> {
        let is_json = self.implied_content_type().is_some_and(|content_type| {
            media_type::is_json(content_type) && media_type::is_utf8(content_type)
        });
        self.data()
            .filter(|data| is_json && !matches!(data, Data::Text(_)))
    }

    /// The content type that the data has when it leaves in another mode: the attribute, or what a `data` member
    /// without one implies (JSON format, section 3.1.2).
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

    /// About how many bytes of memory the event holds, for bounding queues.
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

    /// When the event loses its worth (extension `expirytime`). `None` if it says nothing or nothing readable.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        match self.attribute("expirytime")? {
            Value::String(text) => text.parse().ok(),
            Value::Boolean(_) | Value::Integer(_) => None,
        }
    }

    /// Where the event stands in a trace: what [`Event::with_trace_context`] set, else what its extension says.
    #[must_use]
    pub fn trace_context(&self) -> Option<TraceContext> {
        let stored = self.stored_trace_context().cloned();
        stored.or_else(|| TraceContext::of_extension(self))
    }

    /// The event with the trace context of the hop that it came by. It is stored with the event and is no part of it:
    /// no attribute changes, and equality does not look at it.
    #[must_use]
    pub fn with_trace_context(mut self, context: TraceContext) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.trace_context = Some(context);
        inner.record = None;
        self
    }

    /// Where the event stands among those that followed from one event, as [`Event::with_lineage`] set it.
    #[must_use]
    pub fn lineage(&self) -> Option<Lineage> {
        self.0.lineage
    }

    /// The event with its lineage. Like the trace context it is stored with the event and is no part of it.
    #[must_use]
    pub fn with_lineage(mut self, lineage: Lineage) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.lineage = Some(lineage);
        inner.record = None;
        self
    }

    /// The form in which the event log keeps the event; see `record.rs`.
    #[must_use]
    pub fn to_record(&self) -> Bytes {
        self.0.record.clone().unwrap_or_else(|| record::write(self))
    }

    /// Reads what [`Event::to_record`] wrote, in this or an earlier version of Weir. Body and text stay slices of
    /// the record.
    ///
    /// # Errors
    /// [`RecordError`] when a newer version wrote the record, or it is damaged.
    pub fn from_record(record: Bytes) -> Result<Self, RecordError> {
        record::read(record)
    }

    /// The event as an HTTP message, in the given mode or else as it came in. In the mode that it came in, its
    /// bytes are the ones that came in. An event whose data is itself an event always goes structured.
    #[must_use]
    pub fn to_http(&self, mode: Option<Mode>) -> HttpMessage {
        binding::write(self, mode.unwrap_or_else(|| self.mode()))
    }

    /// The event in the JSON format: the text that came in, or for an event in binary mode one that is made.
    ///
    /// Data is a JSON value where the content type is JSON and the body is; a string where the content type is
    /// text in UTF-8 and the body is; Base64 in every other case (JSON format, section 3.1.1).
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        match &self.0.content {
            Content::Structured { text, .. } => text.clone(),
            Content::Binary { .. } => json::write(self).0.into(),
        }
    }

    /// A copy of the event with extension attributes set or replaced by these strings. Every other byte stays as
    /// it was; in structured mode the values are put into the JSON text.
    ///
    /// Use [`super::clean_text`] on a value that may have characters which attributes may not.
    ///
    /// # Errors
    /// [`Invalid`] when a name or a value is none, a name is given twice or belongs to the core specification, or
    /// there are too many.
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
                        "`{}` is no extension and stays as the producer set it",
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
                    // Only a damaged record has a text that cannot be read again.
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
    /// The same attributes and the same bytes in the same mode.
    fn eq(&self, other: &Self) -> bool {
        self.0.attributes == other.0.attributes && self.0.content == other.0.content
    }
}

impl Eq for Event {}

impl fmt::Debug for Event {
    /// Without the data, which may be confidential and long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("mode", &self.mode())
            .field("attributes", &self.attributes().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// How data in bytes is written in JSON.
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
