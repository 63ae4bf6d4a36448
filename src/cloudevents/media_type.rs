//! Properties of media types. All comparisons are case-insensitive (RFC 2045, section 5.1; core specification,
//! `datacontenttype`).

/// Media type of an event in JSON (JSON format, section 3).
pub(super) const STRUCTURED: &str = "application/cloudevents+json";

/// Returns the `type/subtype`, without parameters.
pub(super) fn essence(media_type: &str) -> &str {
    parts(media_type)
        .next()
        .unwrap_or_default()
        .trim_matches([' ', '\t'])
}

/// Splits at semicolons outside quoted strings: the `type/subtype`, then the parameters.
pub(super) fn parts(media_type: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(media_type);
    std::iter::from_fn(move || {
        let (part, next) = split_parameter(rest?);
        rest = next;
        Some(part)
    })
}

/// Whether data of this type is JSON (JSON format, section 3.1.1): `*/json` or `*/*+json`.
pub(super) fn is_json(media_type: &str) -> bool {
    subtype_is(media_type, "json")
}

/// Whether data of this type is text that JSON may hold as a string. Other data is stored as Base64, which is valid
/// for every type, so this covers only the types that people want to read.
pub(super) fn is_text(media_type: &str) -> bool {
    let essence = essence(media_type);
    let (kind, _) = essence.split_once('/').unwrap_or_default();
    kind.eq_ignore_ascii_case("text") || subtype_is(media_type, "xml") || subtype_is(media_type, "yaml")
}

/// Whether the type permits UTF-8 data: its charset is UTF-8 or unspecified.
pub(super) fn is_utf8(media_type: &str) -> bool {
    parameter(media_type, "charset").is_none_or(|charset| charset.eq_ignore_ascii_case("utf-8"))
}

/// Whether a text in UTF-8 is also valid data of this type: its charset is UTF-8, or is a superset of ASCII and the
/// text is ASCII.
pub(super) fn is_in_charset(text: &[u8], media_type: &str) -> bool {
    let has_ascii = |charset: &str| {
        let charset = charset.to_ascii_lowercase();
        charset == "us-ascii"
            || ["iso-8859-", "windows-125"]
                .iter()
                .any(|kind| charset.starts_with(kind))
    };
    is_utf8(media_type) || text.is_ascii() && parameter(media_type, "charset").is_some_and(has_ascii)
}

/// Returns the first parameter with this name, without quotes. Does not unescape quoted values: no charset needs
/// it.
pub(super) fn parameter<'a>(media_type: &'a str, name: &str) -> Option<&'a str> {
    let value = parts(media_type).skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then_some(value.trim())
    })?;
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(quoted.unwrap_or(value))
}

/// Splits at the first semicolon outside a quoted string.
fn split_parameter(text: &str) -> (&str, Option<&str>) {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return (&text[..at], Some(&text[at + 1..])),
            _ => {}
        }
    }
    (text, None)
}

fn subtype_is(media_type: &str, format: &str) -> bool {
    let Some((_, subtype)) = essence(media_type).split_once('/') else {
        return false;
    };
    let suffix = subtype.rsplit_once('+').map_or(subtype, |(_, suffix)| suffix);
    suffix.eq_ignore_ascii_case(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_json_by_subtype_or_suffix() {
        for media_type in [
            "application/json",
            "TEXT/JSON",
            "application/vnd.x+JSON; charset=utf-8",
            "a/b+c+json",
            "a/json ;x=y",
        ] {
            assert!(is_json(media_type), "{media_type}");
        }
        for media_type in [
            "",
            "json",
            "application/jsonx",
            "application/json+xml",
            "text/plain; x=application/json",
        ] {
            assert!(!is_json(media_type), "{media_type}");
        }
    }

    #[test]
    fn recognizes_readable_text() {
        for media_type in [
            "text/plain",
            "Text/CSV;header=present",
            "application/xml",
            "a/b+yaml",
        ] {
            assert!(is_text(media_type), "{media_type}");
        }
        for media_type in ["application/octet-stream", "application/json", "image/png", ""] {
            assert!(!is_text(media_type), "{media_type}");
        }
    }

    #[test]
    fn finds_parameters() {
        for (media_type, charset) in [
            ("a/b", None),
            ("a/b; charset=UTF-8", Some("UTF-8")),
            ("a/b;x=1;CHARSET = \"utf-8\" ", Some("utf-8")),
            ("a/b; x=\"; charset=latin1\"; charset=utf-8", Some("utf-8")),
            ("a/b; x=\"\\\"; charset=latin1\"", None),
            ("a/b; charset", None),
            ("a/b;;charset=x", Some("x")),
        ] {
            assert_eq!(parameter(media_type, "charset"), charset, "{media_type}");
        }
        assert!(is_utf8("a/b"));
        assert!(is_utf8("a/b; charset=\"Utf-8\""));
        assert!(!is_utf8("a/b; charset=utf-16"));
        for (text, charset, expected) in [
            ("é", "UTF-8", true),
            ("e", "ISO-8859-1", true),
            ("e", "windows-1252", true),
            ("e", "us-ascii", true),
            ("é", "iso-8859-1", false),
            ("e", "utf-16", false),
            ("e", "unheard-of", false),
        ] {
            let media_type = format!("a/b; charset={charset}");
            assert_eq!(
                is_in_charset(text.as_bytes(), &media_type),
                expected,
                "{text} {charset}"
            );
        }
    }
}
