//! What has to hold for every event, however it came in. The fuzz targets call this; what does not hold panics.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use weir::cloudevents::{Data, Event, HttpMessage, Invalid, Mode, ReceivedEvents, Value, read_http};

/// The media type of one event in the JSON format.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// The media type of a batch.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Reads a body that came with a content type and without other headers.
pub fn read_as(content_type: &'static str, body: &[u8]) -> Result<ReceivedEvents, Invalid> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    checked(read_http(&headers, Bytes::copy_from_slice(body)))
}

/// What was read; a rejection is one that a producer can be answered with.
pub fn checked(read: Result<ReceivedEvents, Invalid>) -> Result<ReceivedEvents, Invalid> {
    if let Err(invalid) = &read {
        assert!(invalid.status().is_client_error(), "{invalid:?}");
        assert!(!invalid.to_string().is_empty(), "{invalid:?}");
    }
    read
}

/// Takes a message apart: lines `name: value`, an empty line, the body. As an HTTP server does, it takes the white
/// space around values away. What is no header line is left out.
pub fn message(input: &[u8]) -> HttpMessage {
    let (head, body) = match input.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&input[..at], &input[at + 2..]),
        None => (input, &[][..]),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|&byte| byte == b'\n') {
        if let Some((name, value)) = header(line) {
            headers.append(name, value);
        }
    }
    HttpMessage {
        headers,
        body: Bytes::copy_from_slice(body),
    }
}

fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
    Some((name, value))
}

/// Checks an event that was read from a message: it is written, stored, marked and sent in another mode without loss.
pub fn check_event(event: &Event) {
    check_attributes(event);
    check_stored(event);
    assert_eq!(
        &again(event, event.mode()),
        event,
        "in its own mode it is the same event"
    );
    check_other_mode(event);
    check_extension(event);
}

fn check_attributes(event: &Event) {
    let names: Vec<&str> = event.attributes().map(|(name, _)| name).collect();
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    for (name, value) in event.attributes() {
        assert_eq!(event.attribute(name), Some(value));
    }
    assert!(!event.id().is_empty() && !event.source().is_empty() && !event.r#type().is_empty());
    assert_eq!(event.attribute("specversion"), Some(&Value::from("1.0")));
    let _ = (event.size(), event.expires());
}

fn check_stored(event: &Event) {
    let record = event.to_record();
    let stored = Event::from_record(record.clone()).expect("what was written can be read");
    assert_eq!(&stored, event);
    assert_eq!(stored.trace_context(), event.trace_context());
    assert_eq!(stored.to_record(), record);
    assert_eq!(stored.to_http(None), event.to_http(None));
}

/// Through the other mode and back, the attributes have the same canonical strings and the data the same bytes.
fn check_other_mode(event: &Event) {
    let other = match event.mode() {
        Mode::Binary => Mode::Structured,
        Mode::Structured => Mode::Binary,
    };
    if is_data_an_event(event) {
        return assert_eq!(event.to_http(Some(other)), event.to_http(None), "it has one mode");
    }
    let there = again(event, other);
    let back = again(&there, event.mode());
    for changed in [&there, &back] {
        assert_eq!(strings(changed), strings_implied(event, changed));
        assert_eq!(data(changed), data(event));
    }
}

/// With its content type, a message in binary mode would be taken for the event that is its data.
fn is_data_an_event(event: &Event) -> bool {
    let content_type = event.attribute("datacontenttype").map(|value| value.to_string());
    content_type.is_some_and(|text| text.to_ascii_lowercase().starts_with("application/cloudevents"))
}

/// An extension that is set leaves everything else as it was.
fn check_extension(event: &Event) {
    let set = [("weirhops", "7")];
    let Ok(marked) = event.with_extensions(set) else {
        return;
    };
    assert_eq!(marked.attribute("weirhops"), Some(&Value::from("7")));
    assert_eq!(marked.data(), event.data());
    assert_eq!(marked.trace_context(), event.trace_context());
    let others = |event: &Event| {
        let mut strings = strings(event);
        strings.retain(|(name, _)| name != "weirhops");
        strings
    };
    assert_eq!(others(&marked), others(event));
    assert_eq!(again(&marked, marked.mode()), marked);
    check_stored(&marked);
}

/// The event after it was sent in a mode and read again.
fn again(event: &Event, mode: Mode) -> Event {
    let HttpMessage { headers, body } = event.to_http(Some(mode));
    match read_http(&headers, body.clone()) {
        Ok(ReceivedEvents::Single(again)) => {
            assert_eq!(again.mode(), mode);
            again
        }
        other => panic!("{event:?} was sent as {headers:?} {body:?} and read as {other:?}"),
    }
}

/// The canonical strings of the attributes. White space after a content type means nothing, and gets lost in a header.
fn strings(event: &Event) -> Vec<(String, String)> {
    let canonical = |name: &str, value: &Value| match name {
        "datacontenttype" => value.canonical().trim_ascii_end().to_owned(),
        _ => value.canonical().into_owned(),
    };
    let attributes = event.attributes();
    attributes
        .map(|(name, value)| (name.to_owned(), canonical(name, value)))
        .collect()
}

/// The attributes of the event, with the content type that changing to binary mode gives to a JSON `data` member
/// without one (JSON format, section 3.1.2).
fn strings_implied(event: &Event, changed: &Event) -> Vec<(String, String)> {
    let mut expected = strings(event);
    let name = "datacontenttype";
    if event.attribute(name).is_none() && matches!(event.data(), Some(Data::Json(_))) {
        assert_eq!(changed.attribute(name), Some(&Value::from("application/json")));
        expected.push((name.to_owned(), "application/json".to_owned()));
        expected.sort();
    }
    expected
}

/// The bytes of the data, without the white space around a JSON value.
fn data(event: &Event) -> Vec<u8> {
    let bytes = event
        .data()
        .map(|data| data.as_bytes().to_vec())
        .unwrap_or_default();
    bytes.trim_ascii().to_vec()
}
