//! Grammars of attribute values: RFC 3986, RFC 3339, RFC 9110. Each function only tests membership;
//! [`super::checks`] draws the conclusions.

use super::media_type;

/// Whether a text is a URI-reference (RFC 3986, section 4.1): a URI or a relative reference.
pub(super) fn is_uri_reference(text: &str) -> bool {
    let (rest, fragment) = split_at(text, '#');
    let (rest, query) = split_at(rest, '?');
    let tail = |part: Option<&str>| {
        part.is_none_or(|part| chars(part, |byte| is_pchar(byte) || b"/?".contains(&byte)))
    };
    if !tail(fragment) || !tail(query) {
        return false;
    }
    // A colon in the first segment ends a scheme. A relative reference cannot have one there (section 4.2).
    let first_segment = rest.split('/').next().unwrap_or_default();
    let hierarchy = match first_segment.split_once(':') {
        Some((scheme, _)) if !is_scheme(scheme) => return false,
        Some((scheme, _)) => &rest[scheme.len() + 1..],
        None => rest,
    };
    let path = match hierarchy.strip_prefix("//") {
        Some(after) => {
            let end = after.find('/').unwrap_or(after.len());
            if !is_authority(&after[..end]) {
                return false;
            }
            &after[end..]
        }
        None => hierarchy,
    };
    chars(path, |byte| is_pchar(byte) || byte == b'/')
}

fn split_at(text: &str, separator: char) -> (&str, Option<&str>) {
    text.split_once(separator)
        .map_or((text, None), |(before, after)| (before, Some(after)))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn is_authority(text: &str) -> bool {
    let (user, host_and_port) = text
        .rsplit_once('@')
        .map_or((None, text), |(user, rest)| (Some(user), rest));
    if !user.is_none_or(|user| chars(user, |byte| is_name(byte) || byte == b':')) {
        return false;
    }
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(literal) = host_and_port.strip_prefix('[') {
        let Some((address, after)) = literal.split_once(']') else {
            return false;
        };
        return !address.is_empty()
            && address.bytes().all(|byte| is_name(byte) || byte == b':')
            && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = host_and_port.split_once(':').unwrap_or((host_and_port, ""));
    chars(host, is_name) && is_port(port)
}

/// Whether every character is allowed or part of a percent-encoded byte.
fn chars(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let well = if byte == b'%' {
            let mut hex = || bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit());
            hex() && hex()
        } else {
            allowed(byte)
        };
        if !well {
            return false;
        }
    }
    true
}

/// `unreserved` and `sub-delims`.
fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

fn is_pchar(byte: u8) -> bool {
    is_name(byte) || byte == b':' || byte == b'@'
}

/// Whether a text is a timestamp (RFC 3339, section 5.6), with the day in its month. Second 60 is a leap second.
pub(super) fn is_timestamp(text: &str) -> bool {
    let Some((date_and_time, rest)) = text.as_bytes().split_at_checked(19) else {
        return false;
    };
    let number = |range: std::ops::Range<usize>| -> Option<u32> { digits(date_and_time.get(range)?) };
    let separated = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')]
        .iter()
        .all(|&(at, separator)| date_and_time.get(at) == Some(&separator))
        && matches!(date_and_time.get(10), Some(b'T' | b't'));
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else {
        return false;
    };
    let (Some(hour), Some(minute), Some(second)) = (number(11..13), number(14..16), number(17..19)) else {
        return false;
    };
    let offset = match rest.split_first() {
        Some((b'.', fraction)) => {
            let end = fraction
                .iter()
                .position(|byte| !byte.is_ascii_digit())
                .unwrap_or(fraction.len());
            if end == 0 {
                return false;
            }
            &fraction[end..]
        }
        _ => rest,
    };
    separated
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60
        && is_offset(offset)
}

fn is_offset(text: &[u8]) -> bool {
    match text {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => {
            digits(&[*h1, *h2]).is_some_and(|hours| hours <= 23)
                && digits(&[*m1, *m2]).is_some_and(|minutes| minutes <= 59)
        }
        _ => false,
    }
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |number: u32, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u32::from(byte - b'0'))
    })
}

const fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Whether a text is a media type: `type/subtype` and parameters, each a name with a token or a quoted string, or
/// empty (RFC 9110, sections 8.3.1 and 5.6.6).
pub(super) fn is_media_type(text: &str) -> bool {
    let mut parts = media_type::parts(text);
    let essence = parts.next().unwrap_or_default().trim_end_matches([' ', '\t']);
    let is_essence = essence
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
    is_essence && parts.all(|part| is_parameter(part.trim_matches([' ', '\t'])))
}

fn is_parameter(text: &str) -> bool {
    let is_value = |value: &str| is_token(value) || is_quoted_string(value);
    text.is_empty()
        || text
            .split_once('=')
            .is_some_and(|(name, value)| is_token(name) && is_value(value))
}

/// Printable ASCII in double quotes, with backslash escapes (RFC 9110, section 5.6.4).
fn is_quoted_string(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return false;
    };
    let mut escaped = false;
    let well_formed = inner.bytes().all(|byte| {
        let is_plain = !escaped && byte != b'"';
        let is_allowed = matches!(byte, b'\t' | 0x20..=0x7e) && (escaped || is_plain);
        escaped = !escaped && byte == b'\\';
        is_allowed
    });
    well_formed && !escaped
}

fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_uri_references() {
        for text in [
            "#x",
            "#",
            "",
            "/",
            "/mycontext/subcontext",
            "https://github.com/cloudevents",
            "https://user:pw@example.com:8080/a;b=c/d?e=f&g=/?#h/?",
            "http://[2001:db8::1]:80/",
            "http://[v7.a:b]",
            "mailto:cncf-wg-serverless@lists.cncf.io",
            "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
            "1-555-123-4567",
            "//host",
            "//",
            "?q",
            "./10.0.0.1:8080",
            "/a%20b",
            "a/b:c",
            "file:///etc",
            "tag:x,2020:y(z)*!$&'",
        ] {
            assert!(is_uri_reference(text), "{text}");
        }
        for text in [
            "a b",
            "/ä",
            "/a%2",
            "/a%zz",
            "##",
            "a#b#c",
            "10.0.0.1:8080",
            ":a",
            "1a:b",
            "http://[::1",
            "http://[]/",
            "http://[::1]x",
            "http://host:80a/",
            "http://a:b:c/",
            "http://ho[st/",
            "/a[0]",
            "/a|b",
            "/{a}",
            "<a>",
            "a\\b",
            "\"a\"",
            "a^b",
            "a`b",
        ] {
            assert!(!is_uri_reference(text), "{text}");
        }
    }

    #[test]
    fn recognizes_timestamps() {
        for text in [
            "2018-04-05T17:31:00Z",
            "2018-04-05t17:31:00z",
            "2018-04-05T17:31:00.123456789012Z",
            "2018-04-05T17:31:00+02:00",
            "2018-04-05T17:31:00.5-23:59",
            "2020-02-29T00:00:00Z",
            "2000-02-29T00:00:00Z",
            "2016-12-31T23:59:60Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-00:00",
        ] {
            assert!(is_timestamp(text), "{text}");
        }
        for text in [
            "",
            "now",
            "2018-04-05",
            "2018-04-05T17:31Z",
            "2018-04-05T17:31:00",
            "2018-04-05 17:31:00Z",
            "2018-04-05T17:31:00.Z",
            "2018-04-05T17:31:00,5Z",
            "2018-04-05T17:31:00+0200",
            "2018-04-05T17:31:00+02",
            "2018-04-05T17:31:00+24:00",
            "2018-04-05T17:31:00+00:60",
            "2018-04-05T17:31:00Z ",
            "2018-04-05T17:31:00Z[UTC]",
            "2018-13-05T17:31:00Z",
            "2018-00-05T17:31:00Z",
            "2018-04-31T17:31:00Z",
            "2018-04-00T17:31:00Z",
            "2019-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T17:60:00Z",
            "2018-04-05T17:31:61Z",
            "2018-4-05T17:31:000Z",
            "+018-04-05T17:31:00Z",
            "2018-04-05T17:31:0äZ",
            "1522949460",
        ] {
            assert!(!is_timestamp(text), "{text}");
        }
    }

    #[test]
    fn recognizes_media_types() {
        for text in [
            "text/plain",
            "TEXT/Plain; CharSet=utf-8",
            "application/vnd.apache.thrift.binary",
            "application/json;",
            "application/json ; charset=utf-8",
            "multipart/form-data; boundary=\"a b;c\"",
            "a/b;x=\"a\\\"b\\\\\";;y=z",
        ] {
            assert!(is_media_type(text), "{text}");
        }
        for text in [
            "",
            "json",
            "/json",
            "text/",
            "a/b/c",
            "text plain/x",
            "text/ä",
            ";charset=utf-8",
            " text/plain",
            "text/plain; charset",
            "text/plain; charset=",
            "text/plain; charset = utf-8",
            "text/plain; x=ä",
            "text/plain; x=\"ä\"",
            "text/plain; x=\"a",
            "text/plain; x=\"a\\\"",
            "text/plain; x=\"a\"b\"",
            "text/plain, text/html",
        ] {
            assert!(!is_media_type(text), "{text}");
        }
    }
}
