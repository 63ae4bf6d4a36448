//! Reads an event from a file, in the JSON format or as an HTTP message in binary mode with headers first.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::cloudevents::{Event, Invalid, read_http};

/// Why a file is not an event.
#[derive(Debug, thiserror::Error)]
pub enum NoEvent {
    /// The event is invalid.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A batch with no events or several.
    #[error("it contains {0} events; explain one at a time")]
    Count(usize),
    /// Neither JSON nor headers.
    #[error(
        "line {0} is not a header: write the event in the JSON format, or as headers such as \"ce-type: \
         com.example.order\", an empty line, and the data"
    )]
    Line(usize),
}

/// Reads one event.
///
/// # Errors
/// [`NoEvent`] if the input is not a valid event.
pub fn read(bytes: &[u8]) -> Result<Event, NoEvent> {
    let bytes = without_mark(bytes);
    let (headers, body) = match bytes.trim_ascii_start().first() {
        Some(b'{') => (
            content_type("application/cloudevents+json"),
            Bytes::copy_from_slice(bytes),
        ),
        Some(b'[') => (
            content_type("application/cloudevents-batch+json"),
            Bytes::copy_from_slice(bytes),
        ),
        _ => message(bytes)?,
    };
    let mut events = read_http(&headers, body)?.into_events();
    match (events.pop(), events.len()) {
        (Some(event), 0) => Ok(event),
        (None, _) => Err(NoEvent::Count(0)),
        (Some(_), others) => Err(NoEvent::Count(others + 1)),
    }
}

/// Whether a file that could also contain manifests is an event: JSON without an `apiVersion`, or headers.
pub fn is_event(bytes: &[u8]) -> bool {
    let bytes = without_mark(bytes);
    match bytes.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice::<serde_json::Value>(bytes)
            .is_ok_and(|json| json.get("apiVersion").is_none()),
        Some(b'[') => true,
        _ => message(bytes).is_ok_and(|(headers, _)| headers.contains_key("ce-specversion")),
    }
}

/// Strips the byte order mark that some editors add.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes)
}

fn content_type(value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))])
}

/// Parses headers, an empty line, and the body. The first line may be an HTTP request line or status line.
fn message(bytes: &[u8]) -> Result<(HeaderMap, Bytes), NoEvent> {
    let mut headers = HeaderMap::new();
    let mut rest = bytes;
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let (line, after) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &[][..]),
        };
        rest = after;
        let line = line.trim_ascii();
        let is_first_of_http = line.starts_with(b"HTTP/") || line.starts_with(b"POST ");
        if line.is_empty() {
            break;
        }
        if number == 1 && is_first_of_http {
            continue;
        }
        let (name, value) = header_of(line).ok_or(NoEvent::Line(number))?;
        headers.append(name, value);
    }
    Ok((headers, Bytes::copy_from_slice(rest)))
}

fn header_of(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::{Data, Mode};

    #[test]
    fn reads_json_and_headers() {
        let json = br#" {"specversion":"1.0","id":"1","source":"/s","type":"t","n":5}"#;
        let event = read(json).unwrap();
        assert_eq!((event.r#type(), event.mode()), ("t", Mode::Structured));
        assert_eq!(
            read(&[b"[", &json[..], b"]"].concat()).unwrap().attribute("n"),
            Some(&5.into())
        );
        let headers = "ce-specversion: 1.0\r\nCe-Id: 1\r\nce-source: /s\r\nce-type: t\r\ncontent-type: text/plain\r\n\r\na\n\nb\n";
        for first in ["", "POST /shop/default HTTP/1.1\r\n", "HTTP/1.1 200 OK\r\n"] {
            let event = read(format!("{first}{headers}").as_bytes()).unwrap();
            assert_eq!((event.r#type(), event.mode()), ("t", Mode::Binary));
            assert_eq!(event.data(), Some(Data::Binary("a\n\nb\n".into())));
        }
    }

    #[test]
    fn rejects_invalid_events_with_the_cause() {
        for (text, part) in [
            ("", "not a CloudEvent"),
            ("[]", "0 events"),
            ("type: t\nhello\n", "line 2 is not a header"),
            ("{\"id\": \"1\"}", "specversion"),
            ("{", "JSON"),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn distinguishes_events_from_manifests() {
        for (text, expected) in [
            ("{\"id\": \"1\"}", true),
            ("[]", true),
            ("ce-specversion: 1.0\nce-id: 1\n", true),
            ("{\"apiVersion\": \"weir.dev/v1alpha1\"}", false),
            ("apiVersion: weir.dev/v1alpha1\nkind: Trigger\n", false),
            ("---\n# a comment\n", false),
            ("", false),
        ] {
            assert_eq!(is_event(text.as_bytes()), expected, "{text:?}");
        }
    }
}
