//! The storage layout, byte by byte.
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `events-{id}`, one per log | offset, 8 bytes | version 2, accepted (ms) 8, bytes before it 8, checksum 8, payload |
//! | the same, by earlier versions | offset, 8 bytes | version 1, accepted (ms) 8, bytes before it 8, payload |
//! | `meta` | `format` | 4 bytes, [`FORMAT`] |
//! | `meta` | `broker/{namespace/name}` | id 4, first retained offset 8, bytes before it 8, last accepted (ms) 8 |
//! | `cursors` | the cursor's key | its value |
//!
//! Numbers are big-endian. "Bytes before it" is the sum of the payload lengths of all earlier records of the
//! broker, including trimmed ones, so that the size of a range of offsets is one subtraction.
//!
//! The checksum of a record is XXH3-64 of its offset, of what precedes the checksum, and of the payload. It also
//! detects a record that comes back at another offset, or changed in memory or in transit. The storage library has
//! checksums of its own, of each commit in the journal and of each block in a table.

use bytes::Bytes;

use crate::log::{
    LogRecord, Offset,
    record::{checksum, timestamp},
};

/// Version of this layout; a store with another one is not opened.
pub(super) const FORMAT: u32 = 1;
pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const BROKER_PREFIX: &str = "broker/";

/// Versions of a record: with a checksum and, by earlier versions of Weir, without.
const RECORD_VERSION: u8 = 2;
const WITHOUT_CHECKSUM: u8 = 1;
const HEADER: usize = 1 + 8 + 8;
const CHECKSUM: usize = 8;

/// The part of a record before the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) accepted_millis: i64,
    pub(super) bytes_before: u64,
}

/// A broker's entry in `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registered {
    pub(super) id: u32,
    pub(super) first: u64,
    pub(super) bytes_before_first: u64,
    /// As of the last trim; used when no record is left.
    pub(super) last_accepted_millis: i64,
}

pub(super) fn events_keyspace(id: u32) -> String {
    format!("events-{id}")
}

pub(super) fn broker_key(broker: &str) -> Vec<u8> {
    [BROKER_PREFIX.as_bytes(), broker.as_bytes()].concat()
}

pub(super) fn record_value(offset: u64, header: RecordHeader, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER + CHECKSUM + payload.len());
    value.push(RECORD_VERSION);
    value.extend(header.accepted_millis.to_be_bytes());
    value.extend(header.bytes_before.to_be_bytes());
    value.extend(checksum(&offset.to_be_bytes(), &value, payload).to_be_bytes());
    value.extend(payload);
    value
}

/// Parses the header and the payload of the record at an offset; the error says what is invalid.
pub(super) fn parse_value(offset: u64, value: &[u8]) -> Result<(RecordHeader, &[u8]), String> {
    let (version, rest) = value.split_first().ok_or("the value is empty")?;
    if !matches!(*version, WITHOUT_CHECKSUM | RECORD_VERSION) {
        return Err(format!(
            "the value has version {version}, and this Weir reads versions up to {RECORD_VERSION}"
        ));
    }
    let (accepted, rest) = rest.split_first_chunk::<8>().ok_or("the value is too short")?;
    let (before, payload) = rest.split_first_chunk::<8>().ok_or("the value is too short")?;
    let header = RecordHeader {
        accepted_millis: i64::from_be_bytes(*accepted),
        bytes_before: u64::from_be_bytes(*before),
    };
    if *version == WITHOUT_CHECKSUM {
        return Ok((header, payload));
    }
    let (stored, payload) = payload
        .split_first_chunk::<CHECKSUM>()
        .ok_or("the value is too short")?;
    if u64::from_be_bytes(*stored) != checksum(&offset.to_be_bytes(), &value[..HEADER], payload) {
        return Err("the value does not match its checksum".to_owned());
    }
    Ok((header, payload))
}

pub(super) fn parse_record(offset: u64, value: &[u8]) -> Result<LogRecord, String> {
    let (header, payload) = parse_value(offset, value)?;
    Ok(LogRecord {
        offset: Offset(offset),
        accepted: timestamp(header.accepted_millis),
        payload: Bytes::copy_from_slice(payload),
    })
}

pub(super) fn parse_offset(key: &[u8]) -> Result<u64, String> {
    let key: [u8; 8] = key
        .try_into()
        .map_err(|_| format!("a key of {} bytes is no offset", key.len()))?;
    Ok(u64::from_be_bytes(key))
}

impl Registered {
    pub(super) fn to_value(self) -> Vec<u8> {
        let Self {
            id,
            first,
            bytes_before_first,
            last_accepted_millis,
        } = self;
        let mut value = id.to_be_bytes().to_vec();
        value.extend(first.to_be_bytes());
        value.extend(bytes_before_first.to_be_bytes());
        value.extend(last_accepted_millis.to_be_bytes());
        value
    }

    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (bytes_before_first, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            id: u32::from_be_bytes(*id),
            first: u64::from_be_bytes(*first),
            bytes_before_first: u64::from_be_bytes(*bytes_before_first),
            last_accepted_millis: i64::from_be_bytes(rest.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back() {
        let header = RecordHeader {
            accepted_millis: -5,
            bytes_before: 77,
        };
        let value = record_value(7, header, b"abc");
        assert_eq!(parse_value(7, &value), Ok((header, b"abc".as_slice())));
        let earlier = [&[WITHOUT_CHECKSUM], &value[1..HEADER], b"abc"].concat();
        assert_eq!(parse_value(7, &earlier), Ok((header, b"abc".as_slice())));
        let registered = Registered {
            id: 3,
            first: 9,
            bytes_before_first: 1 << 40,
            last_accepted_millis: -1,
        };
        assert_eq!(Registered::parse(&registered.to_value()), Some(registered));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for wrong in [
            &b""[..],
            b"\x03aaaaaaaabbbbbbbb",
            b"\x01aaaaaaaabbbbbbb",
            b"\x02aaaaaaaabbbbbbbbccccccc",
        ] {
            assert!(parse_value(0, wrong).is_err(), "{wrong:?}");
        }
        let header = RecordHeader {
            accepted_millis: 1,
            bytes_before: 2,
        };
        let value = record_value(7, header, b"abc");
        assert!(parse_value(8, &value).is_err(), "it belongs to another offset");
        for byte in 0..value.len() {
            let mut flipped = value.clone();
            flipped[byte] ^= 4;
            assert!(parse_value(7, &flipped).is_err(), "byte {byte}");
        }
        assert_eq!(Registered::parse(&[0; 27]), None);
        assert_eq!(Registered::parse(&[0; 29]), None);
        assert!(parse_offset(b"1234567").is_err());
    }
}
