//! Points in time, which compare as such. The crate has them only together with another library for dates.

use std::{any::Any, cmp::Ordering, fmt};

use cel::{
    ExecutionError,
    common::{
        traits::Comparer,
        types::{Kind, Type},
        value::{StaticVal, Val},
    },
};
use jiff::Timestamp;

static TIME: Type = Type::simple_type(Kind::Timestamp, "timestamp");

/// Maximum length of a text that is parsed, in bytes.
const MAX_LENGTH: usize = 64;

/// `timestamp('2026-11-24T08:00:00Z')`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CelTime(Timestamp);

impl CelTime {
    /// Parses a text by RFC 3339. `None` for any other.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        // Other formats that the library takes.
        let is_other = bytes.len() > MAX_LENGTH
            || bytes.get(4) != Some(&b'-')
            || !matches!(bytes.get(10), Some(b'T' | b't'))
            || text.contains('[');
        if is_other {
            return None;
        }
        text.parse().ok().map(Self)
    }

    /// The time so many seconds after 1970 began. `None` beyond the years that have four digits.
    pub(super) fn of_seconds(seconds: i64) -> Option<Self> {
        let time = Timestamp::from_second(seconds).ok()?;
        (time >= Timestamp::constant(-62_135_596_800, 0)).then_some(Self(time))
    }

    /// This time.
    pub(super) fn of(time: Timestamp) -> Self {
        Self(time)
    }

    /// Seconds since 1970 began.
    pub(super) fn seconds(self) -> i64 {
        self.0.as_second()
    }
}

impl fmt::Display for CelTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Val for CelTime {
    fn get_type(&self) -> &Type {
        &TIME
    }

    fn cel_type() -> &'static Type {
        &TIME
    }

    fn as_comparer(&self) -> Option<&dyn Comparer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        other.downcast_ref::<Self>().is_some_and(|other| self == other)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for CelTime {}

impl Comparer for CelTime {
    fn compare(&self, other: &dyn Val) -> Result<Ordering, ExecutionError> {
        match other.downcast_ref::<Self>() {
            Some(other) => Ok(self.cmp(other)),
            None => Err(ExecutionError::no_such_overload("_<_", Vec::new())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_rfc_3339_only() {
        for (text, expected) in [
            ("2026-11-24T08:00:00Z", Some("2026-11-24T08:00:00Z")),
            ("2026-11-24t10:00:00.5+02:00", Some("2026-11-24T08:00:00.5Z")),
            ("2026-11-24", None),
            ("2026-11-24 08:00:00Z", None),
            ("2026-11-24T08:00:00", None),
            ("2026-11-24T08:00:00+01:00[Europe/Berlin]", None),
            ("2026-02-30T08:00:00Z", None),
            ("", None),
        ] {
            let time = CelTime::parse(text).map(|time| time.to_string());
            assert_eq!(time.as_deref(), expected, "{text}");
        }
        let of = |seconds| CelTime::of_seconds(seconds).map(|time| time.to_string());
        assert_eq!(of(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!((of(i64::MAX), of(-62_135_596_801)), (None, None));
    }
}
