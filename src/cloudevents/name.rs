//! The name of a context attribute.

use std::{cmp::Ordering, hash::Hash};

use http::HeaderName;

use super::invalid::{Invalid, Reason};

/// A well-known name: needs no allocation, takes one byte in a record, and has a prepared header.
#[derive(Debug)]
pub(super) struct KnownName {
    /// Code of the name in records. Never changed, and never reused for another name.
    pub(super) code: u8,
    name: &'static str,
    header: &'static str,
}

macro_rules! known {
    ($($code:literal $name:literal)*) => {
        const KNOWN: &[KnownName] = &[$(KnownName { code: $code, name: $name, header: concat!("ce-", $name) }),*];
    };
}

// Append only: the codes are in the records of every event log. 0 stands for a name that is spelled out.
known! {
    1 "specversion"
    2 "id"
    3 "source"
    4 "type"
    5 "subject"
    6 "time"
    7 "datacontenttype"
    8 "dataschema"
    9 "traceparent"
    10 "tracestate"
    11 "partitionkey"
    12 "expirytime"
    13 "sequence"
    14 "sampledrate"
    15 "dataref"
    16 "correlationid"
    17 "causationid"
    18 "recordedtime"
}

/// Codes up to this one belong to the core attributes.
const LAST_CORE: u8 = 8;

/// A validated name, from [`super::checks::name`] or from a record that repeats its check.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Known(&'static KnownName),
    Other(Box<str>),
}

impl Name {
    /// Creates the name of a text that is known to be valid.
    pub(super) fn from_valid(text: &str) -> Self {
        KNOWN
            .iter()
            .find(|known| known.name == text)
            .map_or_else(|| Self::Other(text.into()), Self::Known)
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        KNOWN.get(usize::from(code).checked_sub(1)?).map(Self::Known)
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.name,
            Self::Other(name) => name,
        }
    }

    /// Whether the core specification defines the attribute. All others are extensions.
    pub(super) fn is_core(&self) -> bool {
        matches!(self, Self::Known(known) if known.code <= LAST_CORE)
    }

    /// Returns the header that carries the attribute (HTTP binding 3.1.3.1). Never `None` for a validated name,
    /// whose characters and length are those of a header name.
    pub(super) fn header(&self) -> Option<HeaderName> {
        match self {
            Self::Known(known) => Some(HeaderName::from_static(known.header)),
            Self::Other(name) => HeaderName::from_bytes(["ce-", name].concat().as_bytes()).ok(),
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

/// Creates the error for a duplicate attribute.
pub(super) fn duplicate(name: &Name) -> Invalid {
    Invalid::new(
        Reason::Duplicate,
        format!(
            "the attribute `{0}` occurs more than once; send it once",
            super::invalid::excerpt(name.as_str())
        ),
    )
    .about(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_match_positions_in_the_table() {
        for (index, known) in KNOWN.iter().enumerate() {
            assert_eq!(usize::from(known.code), index + 1, "{}", known.name);
            assert_eq!(Name::from_code(known.code), Some(Name::from_valid(known.name)));
        }
        assert_eq!(Name::from_code(0), None);
        assert_eq!(Name::from_code(255), None);
    }

    #[test]
    fn distinguishes_core_attributes_from_extensions() {
        for name in [
            "specversion",
            "id",
            "source",
            "type",
            "subject",
            "time",
            "datacontenttype",
            "dataschema",
        ] {
            assert!(Name::from_valid(name).is_core(), "{name}");
        }
        assert!(!Name::from_valid("traceparent").is_core());
        assert!(!Name::from_valid("idx").is_core());
    }

    #[test]
    fn headers_have_the_prefix() {
        for name in [
            "id",
            "tracestate",
            "x1",
            &"n".repeat(crate::cloudevents::MAX_NAME),
        ] {
            assert_eq!(
                Name::from_valid(name).header().unwrap().as_str(),
                format!("ce-{name}")
            );
        }
    }
}
