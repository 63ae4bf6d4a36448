//! The storage layout, byte by byte.
//!
//! | keyspace | key | value |
//! | --- | --- | --- |
//! | `events-{id}`, of one log | offset, 8 bytes | version 2, accepted (ms) 8, bytes before it 8, checksum 8, payload |
//! | the same, by earlier versions | offset, 8 bytes | version 1, accepted (ms) 8, bytes before it 8, payload |
//! | `shared-{number}`, of many logs | id 4, offset 8 | version 2, as above |
//! | the same | [`MARK`] | nothing |
//! | `meta` | `format` | 4 bytes, from [`FIRST_FORMAT`] to [`FORMAT`] |
//! | `meta` | `broker/{namespace/name}` | id 4, first retained offset 8, bytes before it 8, last accepted (ms) 8, first offset ever 8 unless it is 0 |
//! | `meta` | `free/{id}` | first offset that the next log in `events-{id}` may have, 8 |
//! | `meta` | `given-back` | [`GivenBack`] |
//! | `cursors` | the cursor's key | its value |
//!
//! Numbers are big-endian. "Bytes before it" is the sum of the payload lengths of all earlier records of the
//! broker, including trimmed ones, so that the size of a range of offsets is one subtraction.
//!
//! The log of a broker's ids (`ids.rs`) is named `{namespace/name}.ids`. The payload of its records is a list of ids: key
//! 16 bytes, digest 8.
//!
//! A store is created with [`FIRST_FORMAT`], which has no shared keyspace, no log of ids, and in which no log gave its
//! place back. The commit that first has ids raises it to [`FORMAT`], and that which first has one of the others to
//! [`SHARED_FORMAT`]. So an earlier version of Weir opens a store for as long as it can read all of it, and rejects it
//! from then on.
//!
//! [`MARK`] is written with every commit to a shared keyspace, and never dropped. So the newest sequence number in
//! the keyspace's tables never decreases, which the storage library relies on (`store.rs`).
//!
//! The checksum of a record is XXH3-64 of its offset, of what precedes the checksum, and of the payload. It also
//! detects a record that comes back at another offset, or changed in memory or in transit. The storage library has
//! checksums of its own, of each commit in the journal and of each block in a table.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::log::{
    LogRecord, Offset,
    record::{checksum, timestamp},
};

/// Versions of this layout; a store with a later one is not opened.
pub(super) const FIRST_FORMAT: u32 = 1;
pub(super) const SHARED_FORMAT: u32 = 2;
pub(super) const FORMAT: u32 = 3;
pub(super) const FORMAT_KEY: &[u8] = b"format";
pub(super) const BROKER_PREFIX: &str = "broker/";
/// Prefixes of the keyspaces of one log and of many.
pub(super) const OWN_PREFIX: &str = "events-";
pub(super) const SHARED_PREFIX: &str = "shared-";
/// Ends the name of the log of a broker's ids. Names of brokers have no dot.
const IDS: &str = ".ids";
pub(super) const FREE_PREFIX: &str = "free/";
pub(super) const GIVEN_BACK_KEY: &[u8] = b"given-back";

/// Ids from this one on are of logs in shared keyspaces.
pub(super) const SHARED_IDS: u32 = 1 << 31;
/// Number of shared keyspaces. More of them make each smaller, and with it the most that is rewritten at a time;
/// fewer make larger tables.
pub(super) const SHARED_KEYSPACES: u32 = 32;
/// Key in a shared keyspace that is not of a record.
pub(super) const MARK: &[u8] = &[0];

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
    /// First offset that the log ever had.
    pub(super) start: u64,
}

/// What is left of the logs that gave their places back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GivenBack {
    /// First offset of new logs of events and of dead letters: at or above the ends of all that were given back. So
    /// an offset of an earlier log of a name is never one of a later log.
    pub(super) events_from: u64,
    pub(super) letters_from: u64,
    /// Number of records that these logs ever had.
    pub(super) records: u64,
    /// Lowest id of a shared keyspace that was never used, when the last log was given back.
    pub(super) next_shared: u32,
}

/// Key of a record in its keyspace.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordKey {
    bytes: [u8; 12],
    from: usize,
}

impl RecordKey {
    pub(super) fn new(id: u32, offset: u64) -> Self {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&id.to_be_bytes());
        bytes[4..].copy_from_slice(&offset.to_be_bytes());
        Self {
            bytes,
            from: if is_shared(id) { 0 } else { 4 },
        }
    }
}

/// Keys of a log's records from an offset on.
pub(super) fn keys_from(id: u32, offset: u64) -> RangeInclusive<RecordKey> {
    RecordKey::new(id, offset)..=RecordKey::new(id, u64::MAX)
}

impl AsRef<[u8]> for RecordKey {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

pub(super) fn is_shared(id: u32) -> bool {
    id >= SHARED_IDS
}

/// Number of the shared keyspace of a log; `None` if it has one of its own.
pub(super) fn shared_keyspace_of(id: u32) -> Option<u32> {
    is_shared(id).then_some(id % SHARED_KEYSPACES)
}

pub(super) fn shared_keyspace(number: u32) -> String {
    format!("{SHARED_PREFIX}{number}")
}

/// Name of the keyspace of a log's records.
pub(super) fn keyspace_of(id: u32) -> String {
    match shared_keyspace_of(id) {
        Some(number) => shared_keyspace(number),
        None => format!("{OWN_PREFIX}{id}"),
    }
}

/// Whether the keyspace of this name holds records.
pub(super) fn holds_records(keyspace: &str) -> bool {
    keyspace.starts_with(OWN_PREFIX) || keyspace.starts_with(SHARED_PREFIX)
}

/// Name of the log of a broker's ids.
pub(super) fn ids_of(broker: &str) -> String {
    format!("{broker}{IDS}")
}

/// The broker whose ids a log of this name has, if it is a log of ids.
pub(super) fn broker_of_ids(log: &str) -> Option<&str> {
    log.strip_suffix(IDS)
}

pub(super) fn free_key(id: u32) -> Vec<u8> {
    format!("{FREE_PREFIX}{id}").into_bytes()
}

/// Parses the entry of a free keyspace: its id, and the first offset that the next log in it may have.
pub(super) fn parse_free(key: &[u8], value: &[u8]) -> Option<(u32, u64)> {
    let id = std::str::from_utf8(key.strip_prefix(FREE_PREFIX.as_bytes())?).ok()?;
    Some((id.parse().ok()?, u64::from_be_bytes(value.try_into().ok()?)))
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

/// Parses the key of a record in a keyspace of one log.
pub(super) fn parse_offset(key: &[u8]) -> Result<u64, String> {
    let key: [u8; 8] = key
        .try_into()
        .map_err(|_| format!("a key of {} bytes is no offset", key.len()))?;
    Ok(u64::from_be_bytes(key))
}

/// Parses the key of a record in a shared keyspace: the log's id and the offset.
pub(super) fn parse_shared_key(key: &[u8]) -> Option<(u32, u64)> {
    let (id, offset) = key.split_first_chunk::<4>()?;
    let id = u32::from_be_bytes(*id);
    is_shared(id).then_some((id, u64::from_be_bytes(offset.try_into().ok()?)))
}

/// Parses the key of one of a log's records.
pub(super) fn parse_key(id: u32, key: &[u8]) -> Result<u64, String> {
    if !is_shared(id) {
        return parse_offset(key);
    }
    let parsed = parse_shared_key(key).filter(|(of, _)| *of == id);
    parsed
        .map(|(_, offset)| offset)
        .ok_or_else(|| format!("a key of {} bytes is no record of log {id}", key.len()))
}

impl Registered {
    pub(super) fn to_value(self) -> Vec<u8> {
        let Self {
            id,
            first,
            bytes_before_first,
            last_accepted_millis,
            start,
        } = self;
        let mut value = id.to_be_bytes().to_vec();
        value.extend(first.to_be_bytes());
        value.extend(bytes_before_first.to_be_bytes());
        value.extend(last_accepted_millis.to_be_bytes());
        if start > 0 {
            value.extend(start.to_be_bytes());
        }
        value
    }

    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk::<4>()?;
        let (first, rest) = rest.split_first_chunk::<8>()?;
        let (bytes_before_first, rest) = rest.split_first_chunk::<8>()?;
        let (last_accepted_millis, start) = rest.split_first_chunk::<8>()?;
        let start = match start {
            [] => 0,
            start => u64::from_be_bytes(start.try_into().ok()?),
        };
        Some(Self {
            id: u32::from_be_bytes(*id),
            first: u64::from_be_bytes(*first),
            bytes_before_first: u64::from_be_bytes(*bytes_before_first),
            last_accepted_millis: i64::from_be_bytes(*last_accepted_millis),
            start,
        })
    }
}

impl GivenBack {
    pub(super) fn to_value(self) -> Vec<u8> {
        let Self {
            events_from,
            letters_from,
            records,
            next_shared,
        } = self;
        let numbers = [events_from, letters_from, records].map(u64::to_be_bytes);
        [numbers.as_flattened(), &next_shared.to_be_bytes()].concat()
    }

    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (events_from, rest) = value.split_first_chunk::<8>()?;
        let (letters_from, rest) = rest.split_first_chunk::<8>()?;
        let (records, rest) = rest.split_first_chunk::<8>()?;
        Some(Self {
            events_from: u64::from_be_bytes(*events_from),
            letters_from: u64::from_be_bytes(*letters_from),
            records: u64::from_be_bytes(*records),
            next_shared: u32::from_be_bytes(rest.try_into().ok()?),
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
        for start in [0, 8] {
            let registered = Registered {
                id: 3,
                first: 9,
                bytes_before_first: 1 << 40,
                last_accepted_millis: -1,
                start,
            };
            assert_eq!(Registered::parse(&registered.to_value()), Some(registered));
        }
        let given_back = GivenBack {
            events_from: 7,
            letters_from: 8,
            records: 9,
            next_shared: 10,
        };
        assert_eq!(GivenBack::parse(&given_back.to_value()), Some(given_back));
        assert_eq!(parse_free(&free_key(12), &5_u64.to_be_bytes()), Some((12, 5)));
    }

    #[test]
    fn keys_of_records_are_of_one_log() {
        for id in [0, 899, SHARED_IDS, SHARED_IDS + 77] {
            let key = RecordKey::new(id, 5);
            assert_eq!(parse_key(id, key.as_ref()), Ok(5));
            assert!(RecordKey::new(id, 6).as_ref() > key.as_ref());
        }
        let key = RecordKey::new(SHARED_IDS, u64::MAX);
        assert!(parse_key(SHARED_IDS + 1, key.as_ref()).is_err());
        assert!(key.as_ref() < RecordKey::new(SHARED_IDS + 1, 0).as_ref());
        assert_eq!(parse_shared_key(MARK), None);
        assert_eq!(parse_shared_key(RecordKey::new(3, 5).as_ref()), None);
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
        assert_eq!(GivenBack::parse(&[0; 27]), None);
        assert_eq!(parse_free(b"free/x", &[0; 8]), None);
        assert_eq!(parse_free(b"free/1", &[0; 7]), None);
        assert!(parse_offset(b"1234567").is_err());
    }
}
