//! All rules that reject events, for all modes and for Weir's own events.
//!
//! Requirements of the specification (core specification unless stated otherwise):
//! - Names are `[a-z0-9]+`, except `data`. Each occurs at most once. ("Naming Conventions", "Context Attributes")
//! - `specversion` is `1.0`; `id`, `source` and `type` are present and not empty; `subject`, `dataschema` and
//!   `datacontenttype` are not empty if present. ("REQUIRED Attributes", "OPTIONAL Attributes")
//! - A string has no control characters, noncharacters or lone surrogates; an integer has 32 bits. ("Type System")
//! - `source` is a URI-reference (RFC 3986), `time` a timestamp (RFC 3339), `datacontenttype` a media type (RFC
//!   2045).
//!
//! The only leniency: `dataschema` must be an absolute URI, but some producers send `#`, so any URI-reference is
//! accepted.
//!
//! Lengths and counts are not limited as such: [`MAX_NAME`] and [`MAX_ATTRIBUTES`] exclude only what no HTTP
//! message can carry, and no event of 64 KiB reaches them.
//!
//! Extensions are strings, booleans or integers, and follow the rules of their type. Rules of an extension's own
//! specification are left to its users.

use std::borrow::Cow;

use super::{
    invalid::{Invalid, Reason, excerpt},
    name::{self, Name},
    parts::Attribute,
    syntax,
    value::Value,
};

/// Maximum number of attributes of an event. An HTTP header map holds 24,576 fields; an event of 64 KiB, which
/// every intermediary must forward ("Size Limits"), has fewer than 11,000.
pub const MAX_ATTRIBUTES: usize = 16_384;

/// Maximum length of an attribute's name, in bytes: that of a header name without the prefix. No event of 64 KiB
/// can exceed it.
pub const MAX_NAME: usize = 65_532;

/// Checks the name of an attribute: that of a JSON member other than `data` and `data_base64`, or the part of a
/// header name after `ce-`.
pub(super) fn name(text: &str) -> Result<Name, Invalid> {
    let refuse = |detail: String| Err(Invalid::new(Reason::Name, detail).about(text));
    if text.is_empty() {
        return refuse("the name of an attribute is empty; use lower-case letters and digits".into());
    }
    if text == "data" {
        return refuse("`data` is the event's data, not an attribute; choose another name".into());
    }
    if !is_name(text.as_bytes()) {
        return refuse(format!(
            "`{}` is not a valid attribute name; use only lower-case letters a-z and digits",
            excerpt(text)
        ));
    }
    if text.len() > MAX_NAME {
        return refuse(format!(
            "the attribute name `{}` is longer than {MAX_NAME} bytes; shorten it",
            excerpt(text)
        ));
    }
    Ok(Name::from_valid(text))
}

/// Whether the attribute's value is a URI or URI-reference.
pub(super) fn is_uri(name: &Name) -> bool {
    matches!(name.as_str(), "source" | "dataschema")
}

/// Whether a text consists of the characters of a name.
pub(super) fn is_name(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Checks the attributes of an event as a whole, and sorts them by name.
pub(super) fn attributes(mut attributes: Vec<Attribute>) -> Result<Box<[Attribute]>, Invalid> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(Invalid::new(
            Reason::TooMany,
            format!(
                "the event has {} attributes, more than the maximum of {MAX_ATTRIBUTES}; move some into the data",
                attributes.len()
            ),
        ));
    }
    // A stable sort by name only: of two duplicates, the one that came first stays first.
    attributes.sort_by(|a, b| a.name.cmp(&b.name));
    let find = |name: &str| {
        attributes
            .binary_search_by(|attribute| attribute.name.as_str().cmp(name))
            .ok()
            .and_then(|at| attributes.get(at))
    };
    // Checked first, because the other rules belong to this version.
    match find("specversion").map(|attribute| &attribute.value) {
        None => return Err(missing("specversion")),
        Some(Value::String(version)) if &**version == "1.0" => {}
        Some(version) => {
            return Err(Invalid::new(
                Reason::UnsupportedVersion,
                format!(
                    "the specversion `{}` is not supported; send \"1.0\"",
                    excerpt(&version.canonical())
                ),
            )
            .about("specversion"));
        }
    }
    if let Some([_, second]) = attributes.windows(2).find_map(|pair| match pair {
        [first, second] if first.name == second.name => Some([first, second]),
        _ => None,
    }) {
        return Err(name::duplicate(&second.name));
    }
    for required in ["id", "source", "type"] {
        if find(required).is_none() {
            return Err(missing(required));
        }
    }
    for attribute in &attributes {
        value(&attribute.name, &attribute.value)?;
    }
    Ok(attributes.into())
}

fn missing(name: &str) -> Invalid {
    Invalid::new(
        Reason::Missing,
        format!("the required attribute `{name}` is missing; set it"),
    )
    .about(name)
}

/// Checks the value of an attribute.
pub(super) fn value(name: &Name, value: &Value) -> Result<(), Invalid> {
    let text = match value {
        Value::String(text) => text,
        Value::Boolean(_) | Value::Integer(_) if name.is_core() => {
            return Err(Invalid::new(
                Reason::Type,
                format!(
                    "the attribute `{}` must be a string, not `{value}`; put it in quotes",
                    name.as_str()
                ),
            )
            .about(name.as_str()));
        }
        Value::Boolean(_) | Value::Integer(_) => return Ok(()),
    };
    if let Some(forbidden) = text.chars().find(|&character| !is_allowed(character)) {
        return Err(Invalid::new(
            Reason::Value,
            format!(
                "the attribute `{}` has the character U+{:04X}, which is not allowed in attributes; remove it or \
                 move the value into the data",
                excerpt(name.as_str()),
                u32::from(forbidden)
            ),
        )
        .about(name.as_str()));
    }
    if !name.is_core() {
        return Ok(());
    }
    if text.is_empty() {
        return Err(Invalid::new(
            Reason::Empty,
            format!(
                "the attribute `{}` is empty; give it a value or leave it out",
                name.as_str()
            ),
        )
        .about(name.as_str()));
    }
    let (well_formed, wanted) = match name.as_str() {
        _ if is_uri(name) => (
            syntax::is_uri_reference(text),
            "a URI-reference (RFC 3986); percent-encode invalid characters, such as spaces",
        ),
        "time" => (
            syntax::is_timestamp(text),
            "a timestamp (RFC 3339), such as 2018-04-05T17:31:00Z",
        ),
        "datacontenttype" => (
            syntax::is_media_type(text),
            "a media type, such as application/json",
        ),
        _ => return Ok(()),
    };
    if well_formed {
        return Ok(());
    }
    Err(Invalid::new(
        Reason::Value,
        format!(
            "the attribute `{}` is `{}`, which is not {wanted}",
            name.as_str(),
            excerpt(text)
        ),
    )
    .about(name.as_str()))
}

/// Whether a character is allowed in a string ("Type System"). A `char` is never a lone surrogate.
fn is_allowed(character: char) -> bool {
    let code = u32::from(character);
    let control = code < 0x20 || (0x7f..0xa0).contains(&code);
    let noncharacter = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
    !control && !noncharacter
}

/// Replaces every character that is not allowed in an attribute by U+FFFD, so that any text (a Sink's response, an
/// error) can become the value of an extension.
#[must_use]
pub fn clean_text(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_allowed) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars()
            .map(|character| {
                if is_allowed(character) {
                    character
                } else {
                    '\u{fffd}'
                }
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: &[(&str, Option<Value>)]) -> Result<Box<[Attribute]>, Invalid> {
        let mut all: Vec<(&str, Value)> = vec![
            ("specversion", "1.0".into()),
            ("type", "com.example.someevent".into()),
            ("source", "/mycontext".into()),
            ("id", "1".into()),
        ];
        for (name, value) in changes {
            all.retain(|(known, _)| known != name);
            all.extend(value.clone().map(|value| (*name, value)));
        }
        attributes(
            all.into_iter()
                .map(|(name, value)| Attribute::new(Name::from_valid(name), value))
                .collect(),
        )
    }

    fn refused(changes: &[(&str, Option<Value>)]) -> (Reason, String) {
        let invalid = with(changes).expect_err(&format!("{changes:?}"));
        (
            invalid.reason(),
            invalid.attribute().unwrap_or_default().to_owned(),
        )
    }

    #[test]
    fn accepts_and_rejects_names() {
        for text in [
            "a",
            "0",
            "id",
            "data2",
            "database64",
            "a1b2",
            &"n".repeat(100),
            &"n".repeat(MAX_NAME),
        ] {
            assert_eq!(name(text).unwrap().as_str(), text);
        }
        for text in [
            "",
            "data",
            "A",
            "fooBar",
            "foo-bar",
            "foo_bar",
            "ä",
            " a",
            "a\n",
            &"n".repeat(MAX_NAME + 1),
        ] {
            assert_eq!(name(text).unwrap_err().reason(), Reason::Name, "{text}");
        }
    }

    #[test]
    fn required_attributes_are_present_and_not_empty() {
        assert!(with(&[]).is_ok());
        for name in ["specversion", "id", "source", "type"] {
            assert_eq!(refused(&[(name, None)]), (Reason::Missing, name.to_owned()));
        }
        for name in [
            "id",
            "source",
            "type",
            "subject",
            "dataschema",
            "datacontenttype",
            "time",
        ] {
            assert_eq!(
                refused(&[(name, Some("".into()))]),
                (Reason::Empty, name.to_owned())
            );
        }
    }

    #[test]
    fn rejects_other_versions_before_anything_else() {
        for version in ["0.3", "1.0.2", "1", "2.0", ""] {
            assert_eq!(
                refused(&[("specversion", Some(version.into())), ("id", None)]),
                (Reason::UnsupportedVersion, "specversion".to_owned())
            );
        }
        assert_eq!(
            refused(&[("specversion", Some(1.into()))]).0,
            Reason::UnsupportedVersion
        );
    }

    #[test]
    fn each_attribute_at_most_once() {
        for name in ["id", "myextension"] {
            let twice = ["specversion", "type", "source", "id", name, name].map(|name| {
                Attribute::new(
                    Name::from_valid(name),
                    if name == "specversion" { "1.0" } else { "x" }.into(),
                )
            });
            let invalid = attributes(twice.into()).unwrap_err();
            assert_eq!(
                (invalid.reason(), invalid.attribute()),
                (Reason::Duplicate, Some(name))
            );
        }
    }

    #[test]
    fn core_attributes_must_be_strings_unlike_extensions() {
        for name in [
            "id",
            "source",
            "type",
            "subject",
            "time",
            "datacontenttype",
            "dataschema",
        ] {
            for value in [Value::from(5), Value::from(true)] {
                assert_eq!(refused(&[(name, Some(value))]), (Reason::Type, name.to_owned()));
            }
        }
        for value in [Value::from(i32::MIN), Value::from(false), Value::from("")] {
            assert!(with(&[("myextension", Some(value))]).is_ok());
        }
    }

    #[test]
    fn rejects_forbidden_characters() {
        for text in [
            "Zürich €😀",
            "\u{a0}",
            "\u{fffd}",
            "\u{e000}",
            "\u{fdcf}\u{fdf0}",
            "\u{10fffd}",
            " ~",
            "\"%",
        ] {
            assert!(
                with(&[("id", Some(text.into())), ("x", Some(text.into()))]).is_ok(),
                "{text:?}"
            );
            assert_eq!(clean_text(text), text);
        }
        for text in [
            "\0",
            "\t",
            "a\nb",
            "\u{1f}",
            "\u{7f}",
            "\u{9f}",
            "\u{fdd0}",
            "\u{fdef}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{10ffff}",
        ] {
            for name in ["id", "subject", "datacontenttype", "x"] {
                assert_eq!(
                    refused(&[(name, Some(text.into()))]),
                    (Reason::Value, name.to_owned()),
                    "{text:?}"
                );
            }
            assert!(clean_text(text).contains('\u{fffd}'));
        }
    }

    #[test]
    fn validates_uris_timestamps_and_media_types() {
        for (name, text) in [
            ("source", "#x"),
            ("source", "urn:a:b"),
            ("dataschema", "#"),
            ("dataschema", "https://example.com/schema"),
            ("time", "2018-04-05T17:31:00.123+02:00"),
            ("datacontenttype", "text/xml; charset=utf-16"),
            ("expirytime", "extensions have their own rules"),
        ] {
            assert!(with(&[(name, Some(text.into()))]).is_ok(), "{name} {text}");
        }
        for (name, text) in [
            ("source", "/a b"),
            ("source", "10.0.0.1:8080"),
            ("dataschema", "a b"),
            ("time", "yesterday"),
            ("datacontenttype", "json"),
        ] {
            assert_eq!(
                refused(&[(name, Some(text.into()))]),
                (Reason::Value, name.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn limits_the_number_of_attributes() {
        let extensions: Vec<String> = (0..MAX_ATTRIBUTES - 4)
            .map(|number| format!("x{number}"))
            .collect();
        let mut changes: Vec<(&str, Option<Value>)> = extensions
            .iter()
            .map(|name| (name.as_str(), Some(1.into())))
            .collect();
        let make = |changes: &[(&str, Option<Value>)]| {
            let core = [
                ("specversion", "1.0"),
                ("id", "1"),
                ("type", "t"),
                ("source", "s"),
            ]
            .map(|(name, value)| Attribute::new(Name::from_valid(name), value.into()));
            let more = changes
                .iter()
                .filter_map(|(name, value)| Some(Attribute::new(Name::from_valid(name), value.clone()?)));
            attributes(core.into_iter().chain(more).collect())
        };
        assert!(make(&changes).is_ok());
        changes.push(("onemore", Some(1.into())));
        assert_eq!(make(&changes).unwrap_err().reason(), Reason::TooMany);
    }
}
