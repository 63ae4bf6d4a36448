//! What the records of every log have in common: the checksum and the time. The layouts of the embedded and of the
//! JetStream log use it. Pure.

use jiff::Timestamp;
use xxhash_rust::xxh3::Xxh3Default;

/// Returns the XXH3-64 of where a record belongs, of its header and of its payload. The first detects a record that
/// comes back somewhere else.
pub(super) fn checksum(place: &[u8], header: &[u8], payload: &[u8]) -> u64 {
    let mut checksum = Xxh3Default::new();
    checksum.update(place);
    checksum.update(header);
    checksum.update(payload);
    checksum.digest()
}

/// Whole milliseconds since 1970, rounded down.
pub(super) fn millis(time: Timestamp) -> i64 {
    // The range of `Timestamp` fits: years -9999 to 9999.
    i64::try_from(time.as_nanosecond().div_euclid(1_000_000)).unwrap_or(i64::MAX)
}

/// The time of so many milliseconds since 1970, or the nearest that there is.
pub(super) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_to_the_millisecond_downwards() {
        let time: Timestamp = "1969-12-31T23:59:59.9995Z".parse().unwrap();
        assert_eq!(millis(time), -1);
        assert_eq!(
            timestamp(millis("2030-01-01T00:00:00.1239Z".parse().unwrap())).to_string(),
            "2030-01-01T00:00:00.123Z"
        );
    }
}
