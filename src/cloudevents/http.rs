//! The HTTP protocol binding 1.0.2: binary, structured and batched mode.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

use super::{
    Data, Event, Mode, TraceContext, checks,
    invalid::{Invalid, Reason, excerpt},
    json, media_type,
    name::Name,
    parts::{Attribute, Content},
    syntax,
    value::Value,
};

/// Characters percent-encoded in a header, besides everything outside ASCII (section 3.1.3.2): controls, space,
/// `"`, `%`.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// An event as an HTTP message, without method and target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpMessage {
    /// `Content-Type` and, in binary mode, the `ce-` headers.
    pub headers: HeaderMap,
    /// The data in binary mode, the JSON text in structured mode.
    pub body: Bytes,
}

/// Content of a received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceivedEvents {
    /// A single event, in binary or structured mode.
    Single(Event),
    /// A batch, which may be empty.
    Batch(Vec<Event>),
}

impl ReceivedEvents {
    /// Returns the events in the order of the message.
    #[must_use]
    pub fn into_events(self) -> Vec<Event> {
        match self {
            Self::Single(event) => vec![event],
            Self::Batch(events) => events,
        }
    }

    /// Returns the trace context that the message continues. The context in the headers describes the hop, and
    /// takes precedence over the extension of a single event, which describes where its trace started.
    #[must_use]
    pub fn trace_context(&self, of_headers: Option<TraceContext>) -> Option<TraceContext> {
        of_headers.or_else(|| match self {
            Self::Single(event) => event.extension_trace_context(),
            Self::Batch(_) => None,
        })
    }

    /// Returns the events in the order of the message, with the trace context of their hop. In a batch, an event
    /// with a context in its extension keeps that.
    #[must_use]
    pub fn into_events_in(self, context: Option<TraceContext>) -> Vec<Event> {
        let context = context.as_ref();
        match self {
            Self::Single(event) => vec![in_context(event, context, false)],
            Self::Batch(events) => {
                let events = events.into_iter();
                events.map(|event| in_context(event, context, true)).collect()
            }
        }
    }
}

fn in_context(event: Event, context: Option<&TraceContext>, is_of_batch: bool) -> Event {
    match context {
        Some(_) if is_of_batch && event.extension_trace_context().is_some() => event,
        Some(context) => event.with_trace_context(context.clone()),
        None => event,
    }
}

/// The events of a message, parsed lazily, so that no more of a large batch is in memory than the caller keeps.
#[derive(Debug)]
pub struct Unread {
    message: Message,
    context: Option<TraceContext>,
}

#[derive(Debug)]
enum Message {
    Single(Option<Event>),
    Batch {
        text: Bytes,
        elements: std::iter::Enumerate<std::vec::IntoIter<std::ops::Range<usize>>>,
    },
}

impl Unread {
    /// Whether it is a batch, of any number of events.
    #[must_use]
    pub fn is_batch(&self) -> bool {
        matches!(self.message, Message::Batch { .. })
    }

    /// Returns the event, if it is not a batch.
    #[must_use]
    pub fn single(&self) -> Option<&Event> {
        match &self.message {
            Message::Single(event) => event.as_ref(),
            Message::Batch { .. } => None,
        }
    }

    /// Sets the trace context of the hop; see [`ReceivedEvents::into_events_in`].
    #[must_use]
    pub fn in_context(self, context: Option<TraceContext>) -> Self {
        Self { context, ..self }
    }
}

impl Iterator for Unread {
    type Item = Result<Event, Invalid>;

    fn next(&mut self) -> Option<Self::Item> {
        let (read, is_of_batch) = match &mut self.message {
            Message::Single(event) => (Ok(event.take()?), false),
            Message::Batch { text, elements } => {
                let (index, range) = elements.next()?;
                (json::read_element(text, index, range), true)
            }
        };
        Some(read.map(|event| in_context(event, self.context.as_ref(), is_of_batch)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.message {
            Message::Single(event) => (usize::from(event.is_some()), Some(usize::from(event.is_some()))),
            Message::Batch { elements, .. } => elements.size_hint(),
        }
    }
}

impl ExactSizeIterator for Unread {}

/// Returns the content coding of a message's body, if any. A coding is a property of the hop, not an attribute of
/// the event: forwarding the bytes without it would change their meaning.
#[must_use]
pub fn content_coding(headers: &HeaderMap) -> Option<String> {
    coding_other_than("identity", headers, header::CONTENT_ENCODING)
}

/// Returns the transfer coding of a message's body, other than `chunked`, which is already decoded (RFC 9112, 6.1).
#[must_use]
pub fn transfer_coding(headers: &HeaderMap) -> Option<String> {
    coding_other_than("chunked", headers, header::TRANSFER_ENCODING)
}

fn coding_other_than(plain: &str, headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let is_other = |value: &&HeaderValue| {
        let value = value.as_bytes().trim_ascii();
        !value.eq_ignore_ascii_case(plain.as_bytes())
    };
    let other = headers.get_all(name).iter().find(is_other)?;
    Some(String::from_utf8_lossy(other.as_bytes()).into_owned())
}

/// Whether an HTTP message declares itself an event or a batch, by its `Content-Type` or by `ce-specversion`.
#[must_use]
pub fn is_event(headers: &HeaderMap) -> bool {
    let format = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| text_of(value).ok());
    headers.contains_key("ce-specversion") || format.is_some_and(is_event_format)
}

/// Whether an HTTP message declares itself a batch of events.
#[must_use]
pub fn is_batch(headers: &HeaderMap) -> bool {
    let format = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| text_of(value).ok());
    format.is_some_and(|format| starts_with(format, "application/cloudevents-batch"))
}

/// Whether a content type denotes an event in any format, or a batch (section 3).
fn is_event_format(content_type: &str) -> bool {
    starts_with(content_type, "application/cloudevents")
}

/// Parses an HTTP message. The `Content-Type` determines the mode (section 3): batched, structured, or else binary.
///
/// # Errors
/// [`Invalid`] if it is not a valid event; for a batch, with the index of the first invalid one.
pub fn read_http(headers: &HeaderMap, body: Bytes) -> Result<ReceivedEvents, Invalid> {
    match read_http_each(headers, body)? {
        Unread {
            message: Message::Single(Some(event)),
            ..
        } => Ok(ReceivedEvents::Single(event)),
        events => events.collect::<Result<_, _>>().map(ReceivedEvents::Batch),
    }
}

/// Parses an HTTP message like [`read_http`], but the events of a batch lazily.
///
/// # Errors
/// [`Invalid`] if it is neither a valid event nor a JSON array.
pub fn read_http_each(headers: &HeaderMap, body: Bytes) -> Result<Unread, Invalid> {
    let unread = |message| Unread {
        message,
        context: None,
    };
    let single = |event| unread(Message::Single(Some(event)));
    let content_type = content_type(headers)?;
    let text = content_type
        .map_or(Ok(""), text_of)
        .map_err(|problem| problem.about("datacontenttype"))?;
    if starts_with(text, "application/cloudevents-batch") {
        check_format(text, "application/cloudevents-batch+json")?;
        let elements = json::elements(&body)?.into_iter().enumerate();
        return Ok(unread(Message::Batch { text: body, elements }));
    }
    if is_event_format(text) {
        check_format(text, media_type::STRUCTURED)?;
        let content_type = content_type
            .cloned()
            .unwrap_or(HeaderValue::from_static(media_type::STRUCTURED));
        return json::read(body, content_type).map(single);
    }
    read_binary(headers, text, body).map(single)
}

fn content_type(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Invalid> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(super::name::duplicate(&Name::from_valid("datacontenttype")));
    }
    Ok(first)
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn check_format(content_type: &str, supported: &str) -> Result<(), Invalid> {
    if !media_type::essence(content_type).eq_ignore_ascii_case(supported) {
        return Err(Invalid::new(
            Reason::UnsupportedFormat,
            format!(
                "the event format `{}` is not supported; send `{supported}` or binary mode",
                excerpt(content_type)
            ),
        ));
    }
    if !media_type::is_utf8(content_type) {
        return Err(Invalid::new(
            Reason::UnsupportedCharset,
            format!(
                "the charset of `{}` is not supported; JSON is sent in UTF-8",
                excerpt(content_type)
            ),
        ));
    }
    Ok(())
}

fn read_binary(headers: &HeaderMap, content_type: &str, body: Bytes) -> Result<Event, Invalid> {
    let mut attributes = Vec::with_capacity(8);
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix("ce-") else {
            continue;
        };
        if name == "datacontenttype" {
            return Err(Invalid::new(
                Reason::Name,
                "`ce-datacontenttype` is not allowed in binary mode; use the Content-Type header instead",
            )
            .about(name));
        }
        attributes.push(read_attribute(checks::name(name)?, value)?);
    }
    if attributes.is_empty() {
        return Err(Invalid::new(
            Reason::NotACloudEvent,
            "not a CloudEvent: neither a Content-Type of application/cloudevents+json nor a ce-specversion header",
        ));
    }
    if headers.contains_key(header::CONTENT_TYPE) {
        attributes.push(Attribute::new(
            Name::from_valid("datacontenttype"),
            content_type.into(),
        ));
    }
    Ok(Event::from_parts(
        checks::attributes(attributes)?,
        Content::Binary { body },
        None,
    ))
}

fn read_attribute(name: Name, header: &HeaderValue) -> Result<Attribute, Invalid> {
    let problem = |problem: Invalid| problem.about(name.as_str());
    let mut decoded = decode(header).map_err(problem)?;
    if checks::is_uri(&name) && !syntax::is_uri_reference(&decoded) {
        // Most producers send URIs unencoded, and a URI has percent-encoding of its own.
        let as_sent = text_of(header).map_err(problem)?;
        if syntax::is_uri_reference(as_sent) {
            decoded = Cow::Borrowed(as_sent);
        }
    }
    let plain = decoded.as_bytes() == header.as_bytes() && !needs_encoding(&decoded);
    let raw = (!plain && encode(&decoded).is_none_or(|encoded| encoded != *header)).then(|| header.clone());
    let value = Value::String(decoded.into());
    Ok(Attribute { name, value, raw })
}

/// Decodes a header value per section 3.1.3.2: removes double quotes, then percent-decodes once. Raw UTF-8 is
/// accepted too.
fn decode(header: &HeaderValue) -> Result<Cow<'_, str>, Invalid> {
    let text = text_of(header)?;
    let unquoted = match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(quoted) if quoted.contains('\\') => Cow::Owned(unescape(quoted)),
        Some(quoted) => Cow::Borrowed(quoted),
        None => Cow::Borrowed(text),
    };
    if !unquoted.contains('%') {
        return Ok(unquoted);
    }
    let decoded = percent_decode(unquoted.as_bytes()).decode_utf8();
    decoded
        .map(|text| Cow::Owned(text.into_owned()))
        .map_err(|_| not_utf8())
}

fn unescape(quoted: &str) -> String {
    let mut unescaped = String::with_capacity(quoted.len());
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => unescaped.extend(characters.next()),
            other => unescaped.push(other),
        }
    }
    unescaped
}

fn text_of(header: &HeaderValue) -> Result<&str, Invalid> {
    std::str::from_utf8(header.as_bytes())
        .map(str::trim_ascii)
        .map_err(|_| not_utf8())
}

fn not_utf8() -> Invalid {
    Invalid::new(
        Reason::Value,
        "the header's value is not UTF-8; percent-encode it as UTF-8",
    )
}

fn needs_encoding(text: &str) -> bool {
    text.bytes()
        .any(|byte| !(0x21..0x7f).contains(&byte) || byte == b'"' || byte == b'%')
}

fn encode(text: &str) -> Option<HeaderValue> {
    if needs_encoding(text) {
        HeaderValue::try_from(utf8_percent_encode(text, ENCODED).to_string()).ok()
    } else {
        HeaderValue::from_str(text).ok()
    }
}

impl Event {
    /// Converts the event to an HTTP message, in the given mode or else the original one. In the original mode, the
    /// bytes are unchanged. An event whose data is itself an event is always sent structured.
    #[must_use]
    pub fn to_http(&self, mode: Option<Mode>) -> HttpMessage {
        write(self, mode.unwrap_or_else(|| self.mode()))
    }
}

/// Serializes an event in a mode. In its original mode, the bytes are unchanged. Some events cannot be sent in
/// binary mode.
fn write(event: &Event, mode: Mode) -> HttpMessage {
    let mode = match mode {
        Mode::Binary if !has_binary_mode(event) => Mode::Structured,
        mode => mode,
    };
    match (mode, event.content()) {
        (
            Mode::Structured,
            Content::Structured {
                content_type, text, ..
            },
        ) => structured(content_type.clone(), text.clone()),
        (Mode::Structured, Content::Binary { .. }) => structured(
            HeaderValue::from_static(media_type::STRUCTURED),
            json::write(event).0.into(),
        ),
        (Mode::Binary, Content::Binary { body }) => HttpMessage {
            headers: binary_headers(event),
            body: body.clone(),
        },
        (Mode::Binary, Content::Structured { .. }) => {
            let body = event
                .data()
                .map(|data| Bytes::copy_from_slice(data.as_bytes()))
                .unwrap_or_default();
            HttpMessage {
                headers: binary_headers(event),
                body,
            }
        }
    }
}

/// Whether the event can be sent in binary mode. Data that is itself an event cannot, because its content type
/// would make the message look like that event. Neither can text from a JSON document, which is UTF-8, if its
/// content type names another charset.
fn has_binary_mode(event: &Event) -> bool {
    let Some(content_type) = event.implied_content_type() else {
        return true;
    };
    if is_event_format(content_type) {
        return false;
    }
    let is_as_sent = matches!(event.content(), Content::Binary { .. });
    is_as_sent
        || media_type::is_utf8(content_type)
        || match event.data() {
            None | Some(Data::Binary(_)) => true,
            Some(data) => media_type::is_in_charset(data.as_bytes(), content_type),
        }
}

fn structured(content_type: HeaderValue, body: Bytes) -> HttpMessage {
    HttpMessage {
        headers: HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]),
        body,
    }
}

fn binary_headers(event: &Event) -> HeaderMap {
    let attributes = event.attribute_list();
    let mut headers = HeaderMap::with_capacity(attributes.len() + 1);
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.name.as_str() != "datacontenttype")
    {
        let value = attribute
            .raw
            .clone()
            .or_else(|| encode(&attribute.value.canonical()));
        // A validated name and an encoded value always form a valid header.
        if let (Some(name), Some(value)) = (attribute.name.header(), value) {
            headers.append(name, value);
        }
    }
    if let Some(Ok(content_type)) = event
        .implied_content_type()
        .map(|text| HeaderValue::from_bytes(text.as_bytes()))
    {
        headers.append(header::CONTENT_TYPE, content_type);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::{Data, EventBuilder};

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        headers
    }

    const MINIMAL: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/s"),
        ("ce-type", "t"),
    ];

    fn binary(more: &[(&str, &str)], body: &'static str) -> Result<Event, Invalid> {
        let all: Vec<_> = MINIMAL.into_iter().chain(more.iter().copied()).collect();
        read(&all, body).map(|mut events| events.remove(0))
    }

    fn read(pairs: &[(&str, &str)], body: &'static str) -> Result<Vec<Event>, Invalid> {
        read_http(&headers(pairs), Bytes::from_static(body.as_bytes())).map(ReceivedEvents::into_events)
    }

    fn structured(content_type: &str, body: &'static str) -> Result<Vec<Event>, Invalid> {
        read(&[("content-type", content_type)], body)
    }

    const EVENT: &str = r#"{ "specversion":"1.0", "id":"1", "source":"/s", "type":"t", "n":7, "b":true, "gone":null, "data": {"x": 1.10} }"#;

    #[test]
    fn content_type_determines_the_mode() {
        for content_type in [
            "application/cloudevents+json",
            "Application/CloudEvents+JSON; charset=UTF-8",
        ] {
            assert_eq!(
                structured(content_type, EVENT).unwrap()[0].mode(),
                Mode::Structured,
                "{content_type}"
            );
        }
        assert_eq!(
            structured("application/cloudevents-batch+json", "[]").unwrap(),
            []
        );
        for content_type in [
            "application/cloudevents+xml",
            "application/cloudevents",
            "application/cloudevents-batch+avro",
        ] {
            let invalid = structured(content_type, EVENT).unwrap_err();
            assert_eq!(
                (invalid.reason(), invalid.status().as_u16()),
                (Reason::UnsupportedFormat, 415)
            );
        }
        let invalid = structured("application/cloudevents+json; charset=utf-16", EVENT).unwrap_err();
        assert_eq!(invalid.status().as_u16(), 415);
        for body in ["", EVENT] {
            assert_eq!(
                structured("application/json", body).unwrap_err().reason(),
                Reason::NotACloudEvent
            );
        }
        assert_eq!(read(&[], "").unwrap_err().reason(), Reason::NotACloudEvent);
    }

    #[test]
    fn readable_messages_are_recognized_as_events() {
        for content_type in [
            "application/cloudevents+json",
            " application/cloudevents+json",
            "application/cloudevents+json; note=\"é\"",
        ] {
            let headers = headers(&[("content-type", content_type)]);
            assert!(read_http(&headers, EVENT.into()).is_ok(), "{content_type}");
            assert!(is_event(&headers), "{content_type}");
        }
        assert!(is_event(&headers(&MINIMAL)));
        for content_type in ["application/json", "application/cloud", "é"] {
            assert!(
                !is_event(&headers(&[("content-type", content_type)])),
                "{content_type}"
            );
        }
    }

    #[test]
    fn event_as_data_is_always_sent_structured() {
        let text = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/CloudEvents+json","data":{"id":"inner"}}"#;
        let received = &structured("application/cloudevents+json", text).unwrap()[0];
        let built = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t")
            .data("application/CloudEvents+json", r#"{"id":"inner"}"#)
            .build()
            .unwrap();
        for event in [received, &built] {
            for mode in [None, Some(Mode::Binary), Some(Mode::Structured)] {
                let message = event.to_http(mode);
                let again = read_http(&message.headers, message.body).unwrap().into_events();
                assert_eq!((again[0].id(), again[0].mode()), ("1", Mode::Structured));
                assert_eq!(again[0].data(), Some(Data::Json(r#"{"id":"inner"}"#)));
            }
        }
    }

    #[test]
    fn decodes_binary_headers_once() {
        for (sent, decoded) in [
            ("plain", "plain"),
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("\"quoted%20value\"", "quoted value"),
            ("\"a\\\"b\"", "a\"b"),
            ("%2525", "%25"),
            ("Zürich with spaces", "Zürich with spaces"),
            ("50%", "50%"),
            ("\"", "\""),
        ] {
            let event = binary(&[("ce-x", sent)], "").unwrap();
            assert_eq!(event.attribute("x").unwrap().canonical(), decoded, "{sent}");
            let sent_on = event.to_http(None);
            assert_eq!(
                sent_on.headers["ce-x"].as_bytes(),
                sent.as_bytes(),
                "raw values go on as they came"
            );
        }
        assert_eq!(
            binary(&[("ce-x", "%ff%fe")], "").unwrap_err().attribute(),
            Some("x")
        );
    }

    #[test]
    fn accepts_encoded_and_unencoded_sources() {
        for (sent, source) in [
            ("/a%20b", "/a%20b"),
            ("/m%C3%BCnchen", "/m%C3%BCnchen"),
            ("/a%2520b", "/a%20b"),
            ("/plain", "/plain"),
        ] {
            let all = [
                ("ce-specversion", "1.0"),
                ("ce-id", "1"),
                ("ce-type", "t"),
                ("ce-source", sent),
            ];
            let event = read(&all, "").unwrap().remove(0);
            assert_eq!(event.source(), source, "{sent}");
            assert_eq!(event.to_http(None).headers["ce-source"], sent);
        }
    }

    #[test]
    fn data_that_contradicts_its_type_survives_both_conversions() {
        let event = binary(&[("content-type", "text/json")], "hi").unwrap();
        let message = event.to_http(Some(Mode::Structured));
        let back = read_http(&message.headers, message.body)
            .unwrap()
            .into_events()
            .remove(0);
        assert_eq!(back.to_http(Some(Mode::Binary)).body, "hi");
    }

    #[test]
    fn header_context_precedes_the_extension_except_in_a_batch() {
        const HOP: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        const ORIGIN: &str = "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01";
        let plain = || binary(&[], "").unwrap();
        let own = || binary(&[("ce-traceparent", ORIGIN)], "").unwrap();
        let invalid = || binary(&[("ce-traceparent", "none")], "").unwrap();
        let single = |event: fn() -> Event| ReceivedEvents::Single(event());
        let batch = || ReceivedEvents::Batch(vec![plain(), own(), invalid()]);
        let table = [
            (single(plain), None, None, vec![None]),
            (single(plain), Some(HOP), Some(HOP), vec![Some(HOP)]),
            (single(own), None, Some(ORIGIN), vec![Some(ORIGIN)]),
            (single(own), Some(HOP), Some(HOP), vec![Some(HOP)]),
            (single(invalid), None, None, vec![None]),
            (batch(), None, None, vec![None, Some(ORIGIN), None]),
            (
                batch(),
                Some(HOP),
                Some(HOP),
                vec![Some(HOP), Some(ORIGIN), Some(HOP)],
            ),
        ];
        for (received, of_headers, continued, of_events) in table {
            let text = |context: TraceContext| context.to_string();
            let of_headers: Option<TraceContext> = of_headers.map(|text| text.parse().unwrap());
            let found = received.trace_context(of_headers.clone()).map(text);
            assert_eq!(found.as_deref(), continued, "{received:?}");
            let before = received.clone().into_events();
            let events = received.into_events_in(of_headers);
            assert_eq!(events, before, "the events are as they were");
            let contexts: Vec<_> = events
                .iter()
                .map(|event| event.trace_context().map(text))
                .collect();
            assert_eq!(
                contexts.iter().map(Option::as_deref).collect::<Vec<_>>(),
                of_events
            );
        }
    }

    #[test]
    fn binary_mode_rejects_invalid_messages() {
        for (more, attribute) in [
            (("ce-id", "2"), Some("id")),
            (("ce-datacontenttype", "a/b"), Some("datacontenttype")),
            (("ce-foo-bar", "x"), Some("foo-bar")),
            (("ce-data", "x"), Some("data")),
            (("ce-time", "yesterday"), Some("time")),
            (("ce-subject", ""), Some("subject")),
            (("content-type", "json"), Some("datacontenttype")),
        ] {
            let invalid = binary(&[more], "").unwrap_err();
            assert_eq!(
                (invalid.attribute(), invalid.status().as_u16()),
                (attribute, 400),
                "{more:?}"
            );
        }
        let missing = read(&[("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")], "").unwrap_err();
        assert_eq!(
            (missing.reason(), missing.attribute()),
            (Reason::Missing, Some("specversion"))
        );
    }

    #[test]
    fn binary_mode_keeps_the_body_and_no_other_header() {
        let event = binary(
            &[
                ("content-type", "text/plain; charset=latin1"),
                ("x-other", "1"),
                ("ce-a1", "é"),
            ],
            "hi",
        )
        .unwrap();
        let message = event.to_http(None);
        assert_eq!(message.body, "hi");
        assert_eq!(message.headers["content-type"], "text/plain; charset=latin1");
        assert!(!message.headers.contains_key("x-other"));
        assert_eq!(message.headers.len(), 6);
    }

    #[test]
    fn structured_to_binary_follows_the_json_format() {
        let event = &structured("application/cloudevents+json", EVENT).unwrap()[0];
        let message = event.to_http(Some(Mode::Binary));
        assert_eq!(message.headers["content-type"], "application/json");
        assert_eq!(message.body, r#"{"x": 1.10}"#);
        assert_eq!(
            (&message.headers["ce-n"], &message.headers["ce-b"]),
            (&"7".parse().unwrap(), &"true".parse().unwrap())
        );
        assert!(!message.headers.contains_key("ce-gone"));
        let same = event.to_http(None);
        assert_eq!(
            (&same.body[..], &same.headers["content-type"]),
            (EVENT.as_bytes(), &"application/cloudevents+json".parse().unwrap())
        );

        let base64 = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"aGk="}"#;
        let message =
            structured("application/cloudevents+json", base64).unwrap()[0].to_http(Some(Mode::Binary));
        assert_eq!(
            (&message.body[..], message.headers.get("content-type")),
            (&b"hi"[..], None)
        );
    }

    #[test]
    fn text_in_another_charset_than_utf_8_has_no_binary_mode() {
        for (data, charset, expected) in [
            (r#""data":"\u00e9""#, "iso-8859-1", "application/cloudevents+json"),
            (r#""data":"e""#, "iso-8859-1", "text/plain; charset=iso-8859-1"),
            (r#""data":"e""#, "utf-16", "application/cloudevents+json"),
            (r#""data":"\u00e9""#, "utf-8", "text/plain; charset=utf-8"),
            (
                r#""data_base64":"6Q==""#,
                "iso-8859-1",
                "text/plain; charset=iso-8859-1",
            ),
        ] {
            let text = format!(
                r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain; charset={charset}",{data}}}"#
            );
            let content_type = [("content-type", "application/cloudevents+json")];
            let events = read_http(&headers(&content_type), text.into())
                .unwrap()
                .into_events();
            let message = events[0].to_http(Some(Mode::Binary));
            assert_eq!(message.headers["content-type"], expected, "{data} {charset}");
        }
    }

    #[test]
    fn binary_to_structured_follows_the_json_format() {
        let data = |content_type: &[(&str, &str)], body| {
            let message = binary(content_type, body)
                .unwrap()
                .to_http(Some(Mode::Structured));
            assert_eq!(message.headers["content-type"], "application/cloudevents+json");
            let text = String::from_utf8(message.body.to_vec()).unwrap();
            text.split_once("\"t\"").unwrap().1.to_owned()
        };
        assert_eq!(
            data(&[("content-type", "application/json")], r#"{"x": 1.10}"#),
            r#","data":{"x": 1.10}}"#
        );
        assert_eq!(
            data(&[("content-type", "text/plain")], "a\"b"),
            r#","data":"a\"b"}"#
        );
        assert_eq!(
            data(&[("content-type", "application/json")], "not json"),
            r#","data_base64":"bm90IGpzb24="}"#
        );
        assert_eq!(data(&[], "hi"), r#","data_base64":"aGk="}"#);
        assert_eq!(data(&[], ""), "}");
    }

    #[test]
    fn batch_keeps_each_event_verbatim() {
        let first = r#"{"specversion":"1.0", "id":"1","source":"/s","type":"t"}"#;
        let body = Box::leak(format!("[ {first} ,\n{EVENT}]").into_boxed_str());
        let events = structured("application/cloudevents-batch+json", body).unwrap();
        assert_eq!(events[0].to_http(None).body, first);
        assert_eq!(events[1].to_http(None).body, EVENT);
        assert_eq!(
            events[1].to_http(None).headers["content-type"],
            "application/cloudevents+json"
        );
        assert_eq!(events[1].data(), Some(Data::Json(r#"{"x": 1.10}"#)));

        let body = Box::leak(format!("[{first},{{\"specversion\":\"1.0\"}}]").into_boxed_str());
        let invalid = structured("application/cloudevents-batch+json", body).unwrap_err();
        assert_eq!((invalid.index(), invalid.reason()), (Some(1), Reason::Missing));
        assert_eq!(
            structured("application/cloudevents-batch+json", "{}")
                .unwrap_err()
                .reason(),
            Reason::MalformedJson
        );
    }
}
