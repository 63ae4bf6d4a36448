//! The position of an event in a distributed trace: W3C Trace Context, levels 1 and 2. Pure.
//!
//! An event can carry two contexts. The HTTP headers `traceparent` and `tracestate` describe the hop that the event
//! arrived by. The extension attributes of the same names (Distributed Tracing extension) describe the trace in
//! which it originated, and no hop changes them.

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderValue};

use super::Value;

/// Name of the header, and of the extension attribute, that identifies the trace and the span.
const TRACEPARENT: &str = "traceparent";

/// Name of the header, and of the extension attribute, with vendor-specific data of tracing systems.
const TRACESTATE: &str = "tracestate";

/// Maximum length of `tracestate` that is kept and propagated, in bytes: the minimum that the specification
/// requires.
pub const MAX_TRACESTATE: usize = 512;

/// Maximum number of members of a `tracestate`.
const MAX_MEMBERS: usize = 32;

/// Members longer than this are dropped first when `tracestate` is too long, as the specification recommends.
const LONG_MEMBER: usize = 128;

/// Flag in [`TraceContext::flags`]: the caller may have recorded the trace.
pub const SAMPLED: u8 = 1;

/// Flags defined by levels 1 and 2: sampled, and random trace id.
const KNOWN_FLAGS: u8 = 3;

/// A valid trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
    state: Option<Box<str>>,
}

impl TraceContext {
    /// Creates a context without state. `None` if an id is all zeros, which is invalid.
    #[must_use]
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Option<Self> {
        let is_valid = trace_id != [0; 16] && parent_id != [0; 8];
        is_valid.then_some(Self {
            trace_id,
            parent_id,
            flags,
            state: None,
        })
    }

    /// Adds the value of a `tracestate` header, unless it is invalid. Drops members beyond [`MAX_TRACESTATE`]
    /// bytes.
    #[must_use]
    pub fn with_state(self, state: &str) -> Self {
        Self {
            state: read_state(state).map(Into::into),
            ..self
        }
    }

    /// Reads the context of an HTTP message. `None` if `traceparent` is invalid or does not occur exactly once.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let context: Self = parent.to_str().ok()?.trim_ascii().parse().ok()?;
        // Multiple headers form one list.
        let states: Option<Vec<_>> = headers
            .get_all(TRACESTATE)
            .iter()
            .map(|state| state.to_str().ok())
            .collect();
        Some(match states.as_deref() {
            None | Some([]) => context,
            Some([state]) => context.with_state(state),
            Some(states) => context.with_state(&states.join(",")),
        })
    }

    /// Reads the context in an event's extension attributes, given by name.
    pub(super) fn of_attributes<'a>(attribute: impl Fn(&str) -> Option<&'a Value>) -> Option<Self> {
        let text = |name| match attribute(name) {
            Some(Value::String(text)) => Some(text.trim_ascii()),
            Some(Value::Boolean(_) | Value::Integer(_)) | None => None,
        };
        let context: Self = text(TRACEPARENT)?.parse().ok()?;
        Some(match text(TRACESTATE) {
            Some(state) => context.with_state(state),
            None => context,
        })
    }

    /// Sets the headers of an HTTP message. Writes `traceparent` in version 00, the highest one supported.
    pub fn set_headers(&self, headers: &mut HeaderMap) {
        if let Ok(parent) = HeaderValue::from_str(&self.to_string()) {
            headers.insert(TRACEPARENT, parent);
        }
        if let Some(Ok(state)) = self.state().map(HeaderValue::from_str) {
            headers.insert(TRACESTATE, state);
        }
    }

    /// Returns the trace id.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Returns the id of the parent span.
    #[must_use]
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Returns the trace flags as on the wire; see [`SAMPLED`].
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Returns the value of the `tracestate` header, at most [`MAX_TRACESTATE`] bytes.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// Returns the trace id in lower-case hexadecimal digits, as in logs and tracing systems.
    #[must_use]
    pub fn trace_id_text(&self) -> String {
        Hex(&self.trace_id).to_string()
    }
}

impl fmt::Display for TraceContext {
    /// Formats a `traceparent` of version 00.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trace_id,
            parent_id,
            flags,
            state: _,
        } = self;
        write!(f, "00-{}-{}-{flags:02x}", Hex(trace_id), Hex(parent_id))
    }
}

/// Bytes in lower-case hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Not a valid `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: expected 00, a trace id, a parent id and flags in lower-case hexadecimal digits, separated \
     by dashes"
)]
pub struct TraceparentError;

impl FromStr for TraceContext {
    type Err = TraceparentError;

    /// Parses a `traceparent`. In a later version, reads the fields of version 00, as the specification requires.
    fn from_str(text: &str) -> Result<Self, TraceparentError> {
        read_parent(text.as_bytes()).ok_or(TraceparentError)
    }
}

fn read_parent(text: &[u8]) -> Option<TraceContext> {
    let (fields, rest) = text.split_at_checked(55)?;
    let [version] = hex(fields.get(..2)?)?;
    let is_complete = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest.starts_with(b"-"),
    };
    let has_dashes = [2, 35, 52].iter().all(|&at| fields.get(at) == Some(&b'-'));
    if !is_complete || !has_dashes {
        return None;
    }
    let [flags] = hex(fields.get(53..)?)?;
    let flags = if version == 0 { flags } else { flags & KNOWN_FLAGS };
    TraceContext::new(hex(fields.get(3..35)?)?, hex(fields.get(36..52)?)?, flags)
}

/// Parses lower-case hexadecimal digits. No others are valid.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Parses a `tracestate`: returns it unchanged if it is valid and short enough, else with fewer members. `None` if
/// it is invalid or has no members.
fn read_state(text: &str) -> Option<String> {
    let text = trim(text);
    let mut members: Vec<_> = text.split(',').map(trim).collect();
    members.retain(|member| !member.is_empty());
    let is_valid =
        !members.is_empty() && members.len() <= MAX_MEMBERS && members.iter().all(|member| is_member(member));
    if !is_valid {
        return None;
    }
    if text.len() <= MAX_TRACESTATE {
        return Some(text.to_owned());
    }
    shorten(&mut members);
    (!members.is_empty()).then(|| members.join(","))
}

/// Drops members, starting from the end, long ones first.
fn shorten(members: &mut Vec<&str>) {
    while length(members) > MAX_TRACESTATE {
        match members.iter().rposition(|member| member.len() > LONG_MEMBER) {
            Some(long) => drop(members.remove(long)),
            None => drop(members.pop()),
        }
    }
}

fn length(members: &[&str]) -> usize {
    let commas = members.len().saturating_sub(1);
    members.iter().map(|member| member.len()).sum::<usize>() + commas
}

/// Trims whitespace as allowed around list members in HTTP.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Whether it is a `key=value` member. The keys of level 2 include those of level 1.
fn is_member(member: &str) -> bool {
    member
        .split_once('=')
        .is_some_and(|(key, value)| is_key(key.as_bytes()) && is_value(value.as_bytes()))
}

fn is_key(key: &[u8]) -> bool {
    let is_first = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    key.first().is_some_and(is_first)
        && key.len() <= 256
        && key
            .iter()
            .all(|c| is_first(c) || matches!(c, b'_' | b'-' | b'*' | b'/' | b'@'))
}

fn is_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len())
        && value
            .iter()
            .all(|c| (0x20..0x7f).contains(c) && !matches!(c, b',' | b'='))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cloudevents::EventBuilder;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn parses_traceparent_by_version() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let table = [
            (PARENT.to_owned(), Some(PARENT.to_owned())),
            (format!("00-{ids}-00"), Some(format!("00-{ids}-00"))),
            (format!("00-{ids}-03"), Some(format!("00-{ids}-03"))),
            (format!("00-{ids}-ff"), Some(format!("00-{ids}-ff"))),
            // Of later versions, the fields of version 00.
            (format!("cc-{ids}-01"), Some(format!("00-{ids}-01"))),
            (format!("cc-{ids}-ff-what-is-new"), Some(format!("00-{ids}-03"))),
            (format!("cc-{ids}-01."), None),
            (format!("ff-{ids}-01"), None),
            (format!("00-{ids}-01-more"), None),
            (format!("00-{ids}-1"), None),
            (format!("00-{ids}"), None),
            (format!("00-{ids}-0g"), None),
            (format!("00-{}-01", ids.to_uppercase()), None),
            (format!("0-{ids}-001"), None),
            (
                "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
                None,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
                None,
            ),
            (PARENT.replace('-', "_"), None),
            (format!(" {PARENT}"), None),
            ("ü".repeat(30), None),
            (String::new(), None),
        ];
        for (text, expected) in table {
            let read = text.parse::<TraceContext>().ok();
            assert_eq!(read.map(|context| context.to_string()), expected, "{text}");
        }
    }

    #[test]
    fn reads_headers_like_the_trace_context_http_binding() {
        type Pairs = &'static [(&'static str, &'static str)];
        let table: &[(Pairs, Option<Option<&str>>)] = &[
            (&[], None),
            (&[("tracestate", "a=1")], None),
            (&[("traceparent", "no")], None),
            (&[("traceparent", PARENT), ("traceparent", PARENT)], None),
            (&[("traceparent", "é")], None),
            (&[("traceparent", PARENT)], Some(None)),
            (
                &[(
                    "traceparent",
                    " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
                )],
                Some(None),
            ),
            (
                &[("traceparent", PARENT), ("tracestate", "a=1, b=2")],
                Some(Some("a=1, b=2")),
            ),
            (
                &[
                    ("traceparent", PARENT),
                    ("tracestate", "a=1"),
                    ("tracestate", "b=2"),
                ],
                Some(Some("a=1,b=2")),
            ),
            // An invalid state does not invalidate the parent.
            (&[("traceparent", PARENT), ("tracestate", "a")], Some(None)),
            (
                &[
                    ("traceparent", PARENT),
                    ("tracestate", "a=1"),
                    ("tracestate", "é=1"),
                ],
                Some(None),
            ),
            (&[("traceparent", PARENT), ("tracestate", "")], Some(None)),
        ];
        for (pairs, expected) in table {
            let read = TraceContext::from_headers(&headers(pairs));
            let state = read.as_ref().map(TraceContext::state);
            assert_eq!(state, *expected, "{pairs:?}");
            if let Some(context) = read {
                assert_eq!(context.to_string(), PARENT);
            }
        }
    }

    #[test]
    fn keeps_tracestate_verbatim_or_drops_it() {
        let many = |count: usize| {
            (0..count)
                .map(|n| format!("k{n}=v"))
                .collect::<Vec<_>>()
                .join(",")
        };
        for valid in [
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            "fw529a3039@dt=FfQ",
            "0a=b",
            "a@b@c=d",
            "a=with spaces;and:more",
            "a=1,,b=2",
            &many(32),
        ] {
            assert_eq!(read_state(valid).as_deref(), Some(valid));
        }
        let (long, longer) = ("k".repeat(257), "v".repeat(257));
        for invalid in [
            "",
            " , ",
            "a",
            "a=",
            "=1",
            "A=1",
            "a b=1",
            "_a=1",
            "a=1=2",
            "a=é",
            &many(33),
            &format!("{long}=1"),
            &format!("a={longer}"),
        ] {
            assert_eq!(read_state(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn drops_long_members_of_an_overlong_tracestate_first() {
        let member = |key: &str, length: usize| format!("{key}={}", "v".repeat(length - key.len() - 1));
        let (long, short) = (member("l", 200), |key| member(key, 100));
        let table = [
            (
                vec![long.clone(), short("a"), short("b"), short("c"), short("d")],
                "abcd",
            ),
            (
                vec![
                    short("a"),
                    short("b"),
                    short("c"),
                    short("d"),
                    short("e"),
                    short("f"),
                ],
                "abcde",
            ),
            (
                vec![
                    member("l", 129),
                    member("m", 129),
                    short("a"),
                    short("b"),
                    short("c"),
                ],
                "labc",
            ),
        ];
        for (members, expected) in table {
            let kept = read_state(&members.join(",")).unwrap();
            assert!(kept.len() <= MAX_TRACESTATE, "{kept}");
            let keys: String = kept.split(',').map(|member| &member[..1]).collect();
            assert_eq!(keys, expected);
        }
        let two = [member("l", 258), member("m", 258)].join(",");
        assert_eq!(read_state(&two).unwrap().len(), 258);
    }

    #[test]
    fn reads_valid_extension_as_a_context() {
        let event = |parent: Value, state: &str| {
            EventBuilder::new()
                .attribute("id", "1")
                .attribute("source", "/s")
                .attribute("type", "t")
                .attribute("traceparent", parent)
                .attribute("tracestate", state)
                .build()
                .unwrap()
        };
        let read = event(PARENT.into(), "a=1").extension_trace_context().unwrap();
        assert_eq!((read.to_string().as_str(), read.state()), (PARENT, Some("a=1")));
        for (parent, state) in [(Value::from("none"), "a=1"), (Value::from(7), "a=1")] {
            assert_eq!(event(parent, state).extension_trace_context(), None);
        }
        let read = event(PARENT.into(), "none").extension_trace_context().unwrap();
        assert_eq!(read.state(), None);
    }

    proptest! {
        #[test]
        fn sends_the_context_that_was_read(
            trace_id in any::<[u8; 16]>(), parent_id in any::<[u8; 8]>(), flags in any::<u8>(), state in "[a-z0-9=, @;]{0,40}"
        ) {
            let Some(context) = TraceContext::new(trace_id, parent_id, flags) else { return Ok(()) };
            let context = context.with_state(&state);
            let mut headers = HeaderMap::new();
            context.set_headers(&mut headers);
            prop_assert_eq!(TraceContext::from_headers(&headers), Some(context));
        }

        #[test]
        fn no_header_panics(parent in "\\PC{0,60}", state in "\\PC{0,600}") {
            let _ = parent.parse::<TraceContext>();
            if let Some(state) = read_state(&state) {
                prop_assert!(state.len() <= MAX_TRACESTATE);
            }
        }
    }
}
