//! Sizes and durations on the command line.

use std::{fmt, str::FromStr, time::Duration};

const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("B", 1),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// A number of bytes, written like a Kubernetes quantity: `1Mi`, `512Ki`, `10G`, with an optional trailing `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a size or a duration cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("not a size: use for example 512KiB, 1MiB, 10GiB or a number of bytes")]
    Size,
    /// Not a duration.
    #[error("not a duration: use for example 500ms, 30s, 15m, 24h or 1h30m")]
    Duration,
    /// Zero is not allowed.
    #[error("must be more than zero")]
    Zero,
    /// The value overflows.
    #[error("too large")]
    TooLarge,
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() {
            return Err(UnitError::Size);
        }
        let unit = unit.trim_start();
        let name = unit
            .strip_suffix(['B', 'b'])
            .filter(|name| !name.is_empty())
            .unwrap_or(unit);
        let factor = UNITS
            .iter()
            .find(|(unit, _)| unit.eq_ignore_ascii_case(name))
            .map(|(_, factor)| factor)
            .ok_or(UnitError::Size)?;
        let number: u64 = digits.parse().map_err(|_| UnitError::TooLarge)?;
        match number.checked_mul(*factor) {
            None => Err(UnitError::TooLarge),
            Some(0) => Err(UnitError::Zero),
            Some(bytes) => Ok(Self(bytes)),
        }
    }
}

impl fmt::Display for Size {
    /// Formats the size in the largest binary unit that represents it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Parses a positive duration: whole or decimal numbers, each with the unit `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// [`UnitError`] if it is invalid or zero.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    match duration_or_none(text)? {
        Duration::ZERO => Err(UnitError::Zero),
        duration => Ok(duration),
    }
}

/// Parses a duration that may be 0s.
///
/// # Errors
/// [`UnitError`] if it is invalid.
pub fn duration_or_none(text: &str) -> Result<Duration, UnitError> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(UnitError::Duration);
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or(UnitError::Duration)?;
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return Err(UnitError::Duration),
        };
        let number: f64 = number.parse().map_err(|_| UnitError::Duration)?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| UnitError::TooLarge)?;
        total = total.checked_add(part).ok_or(UnitError::TooLarge)?;
        rest = after;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_sizes() {
        for (text, bytes) in [
            ("1", 1),
            ("1B", 1),
            ("1k", 1_000),
            ("1kB", 1_000),
            ("1KiB", 1_024),
            ("1Ki", 1_024),
            ("1MiB", 1 << 20),
            ("1mib", 1 << 20),
            ("2 GiB", 2 << 30),
            ("10G", 10_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for (text, error) in [
            ("", UnitError::Size),
            ("MiB", UnitError::Size),
            ("1.5MiB", UnitError::Size),
            ("1MiBB", UnitError::Size),
            ("1 parsec", UnitError::Size),
            ("-1", UnitError::Size),
            ("0", UnitError::Zero),
            ("99999999999999999999", UnitError::TooLarge),
            ("18446744073709551615Ki", UnitError::TooLarge),
        ] {
            assert_eq!(text.parse::<Size>(), Err(error), "{text}");
        }
    }

    #[test]
    fn displayed_sizes_parse_back() {
        for text in ["1B", "1023B", "1KiB", "1536KiB", "1MiB", "3GiB", "2TiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn parses_durations() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("15m", 900_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1h30m", 5_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, error) in [
            ("", UnitError::Duration),
            ("30", UnitError::Duration),
            ("s", UnitError::Duration),
            ("1.2.3s", UnitError::Duration),
            ("1 h", UnitError::Duration),
            ("-1s", UnitError::Duration),
            ("1w", UnitError::Duration),
            ("0s", UnitError::Zero),
            ("99999999999999999999999d", UnitError::TooLarge),
        ] {
            assert_eq!(duration(text), Err(error), "{text}");
        }
    }
}
