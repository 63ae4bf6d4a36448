//! Where an event stands in a distributed trace: W3C Trace Context, levels 1 and 2. Pure.
//!
//! An event can carry a context in two ways. The HTTP headers `traceparent` and `tracestate` tell of the hop that the
//! event came by; the extension attributes of the same names (Distributed Tracing extension) tell of the trace that it
//! began in, and no hop changes those.

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderValue};

use super::{Event, Value};

/// The name of the header, and of the extension attribute, that says which trace and which span of it.
const TRACEPARENT: &str = "traceparent";

/// The name of the header, and of the extension attribute, with what each tracing system adds.
const TRACESTATE: &str = "tracestate";

/// How many bytes of `tracestate` are kept and passed on: what its limits ask for at least.
pub const MAX_TRACESTATE: usize = 512;

/// How many members a `tracestate` has at most.
const MAX_MEMBERS: usize = 32;

/// Members longer than this are the first that are given up when `tracestate` is too long, by its limits.
const LONG_MEMBER: usize = 128;

/// The flag in [`TraceContext::flags`] that says that the caller may have recorded the trace.
pub const SAMPLED: u8 = 1;

/// The flags that levels 1 and 2 define: sampled, and random trace id.
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
    /// A context without state. `None` if an id is all zeros, which is no id.
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

    /// With what tracing systems have added, as a `tracestate` header has it; without it where that is not valid.
    /// Beyond [`MAX_TRACESTATE`] bytes members are left out.
    #[must_use]
    pub fn with_state(self, state: &str) -> Self {
        Self {
            state: read_state(state).map(Into::into),
            ..self
        }
    }

    /// The context of an HTTP message. `None` if `traceparent` is not there once, or not valid.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?;
        if parents.next().is_some() {
            return None;
        }
        let context: Self = parent.to_str().ok()?.trim_ascii().parse().ok()?;
        // Several headers are one list.
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

    /// The context in an event's extension attributes: that of the trace that the event began in.
    #[must_use]
    pub fn of_extension(event: &Event) -> Option<Self> {
        let text = |name| match event.attribute(name) {
            Some(Value::String(text)) => Some(text.trim_ascii()),
            Some(Value::Boolean(_) | Value::Integer(_)) | None => None,
        };
        let context: Self = text(TRACEPARENT)?.parse().ok()?;
        Some(match text(TRACESTATE) {
            Some(state) => context.with_state(state),
            None => context,
        })
    }

    /// Sets the headers of an HTTP message. Its `traceparent` is of version 00, the highest that this Weir knows.
    pub fn set_headers(&self, headers: &mut HeaderMap) {
        if let Ok(parent) = HeaderValue::from_str(&self.to_string()) {
            headers.insert(TRACEPARENT, parent);
        }
        if let Some(Ok(state)) = self.state().map(HeaderValue::from_str) {
            headers.insert(TRACESTATE, state);
        }
    }

    /// Names the trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// Names the span that the event comes from.
    #[must_use]
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// The trace flags as they are on the wire; see [`SAMPLED`].
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// What tracing systems have added, as a `tracestate` header has it; at most [`MAX_TRACESTATE`] bytes.
    #[must_use]
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace's name in lower-case hexadecimal digits, as logs and tracing systems show it.
    #[must_use]
    pub fn trace_id_text(&self) -> String {
        Hex(&self.trace_id).to_string()
    }
}

impl fmt::Display for TraceContext {
    /// As a `traceparent` of version 00.
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

/// It is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a traceparent: 00, a trace id, a parent id and flags in lower-case hexadecimal digits, with dashes between them"
)]
pub struct TraceparentError;

impl FromStr for TraceContext {
    type Err = TraceparentError;

    /// Reads a `traceparent`. Of a version above 00 the fields of version 00 count, by the rules for versions.
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

/// Lower-case hexadecimal digits; no others are valid.
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

/// A `tracestate` as it came, if it is valid and short enough; else with fewer members. `None` if it is not valid or
/// has no member.
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

/// Gives up members, the last ones first, long ones before others.
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

/// White space as HTTP has it around the members of a list.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// `key=value`; the keys of level 2 include those of level 1.
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
    fn a_traceparent_is_read_by_its_version() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let table = [
            (PARENT.to_owned(), Some(PARENT.to_owned())),
            (format!("00-{ids}-00"), Some(format!("00-{ids}-00"))),
            (format!("00-{ids}-03"), Some(format!("00-{ids}-03"))),
            (format!("00-{ids}-ff"), Some(format!("00-{ids}-ff"))),
            // Of later versions what is known of 00.
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
    fn headers_are_read_as_the_http_binding_of_trace_context_has_them() {
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
            // What is wrong with the state is no fault of the parent.
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
    fn a_tracestate_is_kept_as_it_is_or_not_at_all() {
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
    fn a_tracestate_that_is_too_long_loses_long_members_first() {
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
    fn the_extension_is_a_context_where_it_is_valid() {
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
        let read = TraceContext::of_extension(&event(PARENT.into(), "a=1")).unwrap();
        assert_eq!((read.to_string().as_str(), read.state()), (PARENT, Some("a=1")));
        for (parent, state) in [(Value::from("none"), "a=1"), (Value::from(7), "a=1")] {
            assert_eq!(TraceContext::of_extension(&event(parent, state)), None);
        }
        let read = TraceContext::of_extension(&event(PARENT.into(), "none")).unwrap();
        assert_eq!(read.state(), None);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_was_read(
            trace_id in any::<[u8; 16]>(), parent_id in any::<[u8; 8]>(), flags in any::<u8>(), state in "[a-z0-9=, @;]{0,40}"
        ) {
            let Some(context) = TraceContext::new(trace_id, parent_id, flags) else { return Ok(()) };
            let context = context.with_state(&state);
            let mut headers = HeaderMap::new();
            context.set_headers(&mut headers);
            prop_assert_eq!(TraceContext::from_headers(&headers), Some(context));
        }

        #[test]
        fn no_header_is_a_panic(parent in "\\PC{0,60}", state in "\\PC{0,600}") {
            let _ = parent.parse::<TraceContext>();
            if let Some(state) = read_state(&state) {
                prop_assert!(state.len() <= MAX_TRACESTATE);
            }
        }
    }
}
