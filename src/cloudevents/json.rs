//! The JSON event format 1.0.2.
//!
//! Only attributes are decoded. Everything else stays as text, because numbers and the order of members would not
//! survive re-serialization.

use std::{borrow::Cow, fmt, ops::Range};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::HeaderValue;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{
    Data, Event, checks,
    invalid::{Invalid, Reason, excerpt},
    json_text::{is_json, string},
    media_type,
    name::{self, Name},
    parts::{Attribute, Content, Member},
    value::Value,
};

/// Added by some editors. Not allowed in JSON that is transmitted (RFC 8259, section 8.1).
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The members of an object in order, with their values as text.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(12);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Parses an event.
pub(super) fn read(text: Bytes, content_type: HeaderValue) -> Result<Event, Invalid> {
    let (attributes, data) = parse(utf8(&text)?)?;
    Ok(Event::from_parts(
        attributes,
        Content::Structured {
            content_type,
            text,
            data,
        },
        None,
    ))
}

/// Returns the ranges of a batch's elements in its text.
pub(super) fn elements(text: &Bytes) -> Result<Vec<Range<usize>>, Invalid> {
    let text = utf8(text)?;
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    Ok(elements.iter().map(|element| range_in(text, element)).collect())
}

/// Parses an element of a batch, which keeps its slice of the text.
pub(super) fn read_element(text: &Bytes, index: usize, range: Range<usize>) -> Result<Event, Invalid> {
    let content_type = HeaderValue::from_static(media_type::STRUCTURED);
    read(text.slice(range), content_type).map_err(|invalid| invalid.at(index))
}

fn utf8(text: &[u8]) -> Result<&str, Invalid> {
    let text = std::str::from_utf8(text).map_err(|error| {
        Invalid::new(
            Reason::MalformedJson,
            format!("the body is not valid UTF-8 at byte {}", error.valid_up_to()),
        )
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        return Err(Invalid::new(
            Reason::MalformedJson,
            "the body starts with a byte order mark (U+FEFF), which is not allowed in JSON sent over HTTP; remove it",
        ));
    }
    Ok(text)
}

fn malformed(error: &serde_json::Error) -> Invalid {
    Invalid::new(
        Reason::MalformedJson,
        format!("the body is not valid JSON, as its Content-Type declares: {error}"),
    )
}

fn parse(text: &str) -> Result<(Box<[Attribute]>, Member), Invalid> {
    let Members(members) = serde_json::from_str(text).map_err(|error| malformed(&error))?;
    check_duplicates(&members)?;
    let mut attributes = Vec::with_capacity(members.len());
    let (mut data, mut base64) = (None, None);
    for (member, value) in &members {
        match member.as_str() {
            "data" => data = Some(*value),
            "data_base64" if value.get() == "null" => {}
            "data_base64" => base64 = Some(*value),
            name => {
                let name = checks::name(name)?;
                if let Some(value) = attribute_value(&name, value.get())? {
                    attributes.push(Attribute::new(name, value));
                }
            }
        }
    }
    let attributes = checks::attributes(attributes)?;
    let data = match (data, base64) {
        (None, None) => Member::Absent,
        (Some(data), None) => json_or_text(&attributes, data, text)?,
        (None, Some(base64)) => base64_member(base64, text)?,
        (Some(_), Some(_)) => {
            return Err(data_problem(
                "data",
                "`data` and `data_base64` are mutually exclusive; send one",
            ));
        }
    };
    Ok((attributes, data))
}

fn check_duplicates(members: &[(String, &RawValue)]) -> Result<(), Invalid> {
    let mut names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(name::duplicate(&Name::from_valid(pair[0]))),
        None => Ok(()),
    }
}

/// `None` for `null`, which unsets the attribute (section 2.2).
fn attribute_value(name: &Name, text: &str) -> Result<Option<Value>, Invalid> {
    let refuse = |reason, detail: String| Err(Invalid::new(reason, detail).about(name.as_str()));
    let shown = excerpt(name.as_str());
    match text.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b't') => Ok(Some(Value::Boolean(true))),
        Some(b'f') => Ok(Some(Value::Boolean(false))),
        Some(b'"') => match string(text) {
            Ok(text) => Ok(Some(Value::String(text.into()))),
            Err(error) => refuse(
                Reason::Value,
                format!("the attribute `{shown}` is not a valid string: {error}"),
            ),
        },
        Some(b'{' | b'[') => refuse(
            Reason::Type,
            format!(
                "the attribute `{shown}` is an object or array; attributes must be strings, booleans or integers"
            ),
        ),
        _ => match text.parse() {
            Ok(integer) => Ok(Some(Value::Integer(integer))),
            Err(_) => refuse(
                Reason::Type,
                format!(
                    "the attribute `{shown}` is {}, which is not a 32-bit integer; send it as a string",
                    excerpt(text)
                ),
            ),
        },
    }
}

fn json_or_text(attributes: &[Attribute], value: &RawValue, text: &str) -> Result<Member, Invalid> {
    let range = range_in(text, value);
    let content_type = attributes
        .iter()
        .find(|attribute| attribute.name.as_str() == "datacontenttype");
    let is_json = content_type.is_none_or(|attribute| media_type::is_json(&attribute.value.canonical()));
    if is_json {
        return Ok(Member::Json(range));
    }
    match string(value.get()) {
        Ok(_) => Ok(Member::Text(range)),
        Err(_) => Err(data_problem(
            "data",
            "`data` is not a string, and datacontenttype is not JSON; send a string, `data_base64`, or a JSON type",
        )),
    }
}

fn base64_member(value: &RawValue, text: &str) -> Result<Member, Invalid> {
    let decodes = string(value.get()).is_ok_and(|text| BASE64.decode(text.as_bytes()).is_ok());
    if decodes {
        Ok(Member::Base64(range_in(text, value)))
    } else {
        Err(data_problem(
            "data_base64",
            "`data_base64` is not a string in Base64 (RFC 4648, section 4, with padding)",
        ))
    }
}

fn data_problem(member: &str, detail: &str) -> Invalid {
    Invalid::new(Reason::Data, detail).about(member)
}

/// Returns the range in the text of a value borrowed from it.
fn range_in(text: &str, value: &RawValue) -> Range<usize> {
    let start = value.get().as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start + value.get().len()
}

impl Event {
    /// Returns the event in the JSON format: the original text, or for an event in binary mode a generated one.
    ///
    /// The data becomes a JSON value if the content type and the body are JSON, a string if they are text in UTF-8,
    /// and Base64 otherwise (JSON format, section 3.1.1).
    #[must_use]
    pub fn to_json(&self) -> Bytes {
        match self.content() {
            Content::Structured { text, .. } => text.clone(),
            Content::Binary { .. } => write(self).0.into(),
        }
    }
}

/// Serializes an event, and returns the position of its data.
pub(super) fn write(event: &Event) -> (Vec<u8>, Member) {
    let mut text = vec![b'{'];
    for (name, value) in event.attributes() {
        if text.len() > 1 {
            text.push(b',');
        }
        push_string(&mut text, name);
        text.push(b':');
        match value {
            Value::Boolean(_) | Value::Integer(_) => text.extend_from_slice(value.canonical().as_bytes()),
            Value::String(value) => push_string(&mut text, value),
        }
    }
    let data = match event.data() {
        Some(Data::Binary(body)) => push_data(&mut text, &classify(&body, event.implied_content_type())),
        Some(data) => push_data(&mut text, &data),
        None => Member::Absent,
    };
    text.push(b'}');
    (text, data)
}

fn push_data(text: &mut Vec<u8>, data: &Data<'_>) -> Member {
    text.extend_from_slice(if matches!(data, Data::Binary(_)) {
        b",\"data_base64\":"
    } else {
        b",\"data\":"
    });
    let start = text.len();
    match data {
        Data::Json(json) => text.extend_from_slice(json.as_bytes()),
        Data::Text(string) => push_string(text, string),
        Data::Binary(bytes) => push_string(text, &BASE64.encode(bytes)),
    }
    let range = start..text.len();
    match data {
        Data::Json(_) => Member::Json(range),
        Data::Text(_) => Member::Text(range),
        Data::Binary(_) => Member::Base64(range),
    }
}

fn push_string(text: &mut Vec<u8>, string: &str) {
    // Serializing a string to a vector cannot fail.
    let written = serde_json::to_writer(&mut *text, string);
    debug_assert!(written.is_ok());
}

/// Classifies binary data for JSON.
fn classify<'a>(body: &'a Bytes, content_type: Option<&str>) -> Data<'a> {
    let text = content_type
        .filter(|content_type| media_type::is_utf8(content_type))
        .and_then(|content_type| Some((content_type, std::str::from_utf8(body).ok()?)));
    match text {
        Some((content_type, text)) if media_type::is_json(content_type) && is_json(text) => {
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

/// Sets attributes in a text that otherwise stays the same. `None` if the text is not that of an event.
pub(super) fn splice(text: &[u8], set: &[Attribute]) -> Option<(Vec<u8>, Member)> {
    let text = std::str::from_utf8(text).ok()?;
    let Members(members) = serde_json::from_str(text).ok()?;
    let mut spliced = Vec::with_capacity(text.len() + 64 * set.len());
    let open = text.find('{')? + 1;
    spliced.extend_from_slice(text.get(..open)?.as_bytes());
    for attribute in set
        .iter()
        .filter(|attribute| members.iter().all(|(name, _)| name != attribute.name.as_str()))
    {
        push_string(&mut spliced, attribute.name.as_str());
        spliced.push(b':');
        push_string(&mut spliced, &attribute.value.canonical());
        spliced.push(b',');
    }
    let mut at = open;
    for (name, value) in &members {
        let Some(attribute) = set.iter().find(|attribute| attribute.name.as_str() == name) else {
            continue;
        };
        let range = range_in(text, value);
        spliced.extend_from_slice(text.get(at..range.start)?.as_bytes());
        push_string(&mut spliced, &attribute.value.canonical());
        at = range.end;
    }
    spliced.extend_from_slice(text.get(at..)?.as_bytes());
    let (_, data) = parse(std::str::from_utf8(&spliced).ok()?).ok()?;
    Some((spliced, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(more: &str) -> Result<Event, Invalid> {
        let text = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{more}}}"#);
        read(text.into(), HeaderValue::from_static(media_type::STRUCTURED))
    }

    #[test]
    fn maps_json_types_to_attribute_types() {
        let event = event(r#","n":-2147483648,"b":false,"s":"\u20ac","u":null,"zero":-0"#).unwrap();
        assert_eq!(event.attribute("n"), Some(&Value::Integer(i32::MIN)));
        assert_eq!(event.attribute("b"), Some(&Value::Boolean(false)));
        assert_eq!(event.attribute("s"), Some(&"€".into()));
        assert_eq!(event.attribute("zero"), Some(&Value::Integer(0)));
        assert_eq!(event.attribute("u"), None);
    }

    #[test]
    fn errors_name_the_attribute() {
        for (more, reason, attribute) in [
            (r#","x":1.0"#, Reason::Type, "x"),
            (r#","x":2147483648"#, Reason::Type, "x"),
            (r#","x":1e3"#, Reason::Type, "x"),
            (r#","x":{}"#, Reason::Type, "x"),
            (r#","x":["#, Reason::MalformedJson, ""),
            (r#","fooBar":"x""#, Reason::Name, "fooBar"),
            (r#","id":"2""#, Reason::Duplicate, "id"),
            (r#","x":null,"x":"y""#, Reason::Duplicate, "x"),
            (r#","data":1,"data":2"#, Reason::Duplicate, "data"),
            (r#","x":"\ud800""#, Reason::Value, "x"),
            (r#","x":"\u0007""#, Reason::Value, "x"),
            (r#","data":1,"data_base64":"""#, Reason::Data, "data"),
            (r#","data_base64":"a""#, Reason::Data, "data_base64"),
            (r#","data_base64":5"#, Reason::Data, "data_base64"),
            (
                r#","datacontenttype":"text/plain","data":{}"#,
                Reason::Data,
                "data",
            ),
        ] {
            let invalid = event(more).unwrap_err();
            assert_eq!(
                (invalid.reason(), invalid.attribute().unwrap_or_default()),
                (reason, attribute),
                "{more}"
            );
        }
        for text in ["", "[]", "5", "null", "{", r#"{"specversion":"1.0"}{}"#] {
            assert!(
                read(text.into(), HeaderValue::from_static("a/b")).is_err(),
                "{text}"
            );
        }
        assert!(read(Bytes::from_static(b"\xff"), HeaderValue::from_static("a/b")).is_err());
    }

    #[test]
    fn reads_data_of_every_kind() {
        for (more, data) in [
            ("", None),
            (r#","data":null"#, Some(Data::Json("null"))),
            (r#","data": "a string" "#, Some(Data::Json("\"a string\""))),
            (
                r#","data":12345678901234567890.10"#,
                Some(Data::Json("12345678901234567890.10")),
            ),
            (
                r#","datacontenttype":"text/plain","data":"a\nb""#,
                Some(Data::Text("a\nb".into())),
            ),
            (
                r#","datacontenttype":"text/plain","data_base64":"aGk=""#,
                Some(Data::Binary("hi".into())),
            ),
            (r#","data_base64":null,"data":1"#, Some(Data::Json("1"))),
        ] {
            assert_eq!(event(more).unwrap().data(), data, "{more}");
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let depth = 100_000;
        let more = format!(r#","data":{}{}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(event(&more).unwrap().data().is_some());
        assert!(event(&format!(r#","data":{}"#, "[".repeat(depth))).is_err());
    }

    #[test]
    fn inserts_extensions_into_the_text() {
        let before = event(r#","old": "x" , "data": {"a": 1.10}"#).unwrap();
        let after = before.with_extensions([("new", "€\""), ("old", "y")]).unwrap();
        assert_eq!(
            std::str::from_utf8(&after.to_json()).unwrap(),
            r#"{"new":"€\"","specversion":"1.0","id":"1","source":"/s","type":"t","old": "y" , "data": {"a": 1.10}}"#
        );
        assert_eq!(after.data(), before.data());
        assert_eq!(
            (after.attribute("new"), after.attribute("old")),
            (Some(&"€\"".into()), Some(&"y".into()))
        );
        assert!(before.with_extensions([("id", "2")]).is_err());
        assert!(before.with_extensions([("x", "1"), ("x", "2")]).is_err());
    }
}
