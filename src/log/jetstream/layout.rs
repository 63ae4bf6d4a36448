//! Layout of a message: version (1 byte), time of acceptance in milliseconds (8), checksum (8), payload; numbers are
//! big-endian. The checksum is XXH3-64 of the subject, the bytes before the checksum, and the payload. JetStream does
//! not detect every bit flipped on disk; the checksum does. It does not cover the sequence, which the server assigns.
//! Pure.
//!
//! The time is that of the request, as [`Record::accepted`](crate::log::Record::accepted) promises, and not the
//! server's: retries and copies of a log keep it. A router never writes an earlier time than one that it has seen, so
//! times decrease at most by the difference between the clocks of two routers.

use bytes::Bytes;

use crate::log::record::checksum;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 8;
const CHECKSUM: usize = 8;
/// Bytes before the payload.
pub(super) const OVERHEAD: usize = HEADER + CHECKSUM;

pub(super) fn encode(subject: &str, accepted_millis: i64, payload: &[u8]) -> Bytes {
    let mut content = Vec::with_capacity(OVERHEAD + payload.len());
    content.push(VERSION);
    content.extend(accepted_millis.to_be_bytes());
    content.extend(checksum(subject.as_bytes(), &content, payload).to_be_bytes());
    content.extend(payload);
    content.into()
}

/// Returns the time and the payload, or why the message is invalid.
pub(super) fn decode(subject: &str, content: &Bytes) -> Result<(i64, Bytes), String> {
    let (header, rest) = content
        .split_first_chunk::<HEADER>()
        .ok_or("the message is too short")?;
    let [version, accepted @ ..] = header;
    if *version != VERSION {
        return Err(format!(
            "the message has version {version}, and this Weir reads version {VERSION}"
        ));
    }
    let (stored, payload) = rest
        .split_first_chunk::<CHECKSUM>()
        .ok_or("the message is too short")?;
    if u64::from_be_bytes(*stored) != checksum(subject.as_bytes(), header, payload) {
        return Err("the message does not match its checksum".to_owned());
    }
    Ok((i64::from_be_bytes(*accepted), content.slice(OVERHEAD..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_back() {
        let content = encode("weir.ev.n.b.0", -5, b"abc");
        let expected = (-5, Bytes::from_static(b"abc"));
        assert_eq!(decode("weir.ev.n.b.0", &content), Ok(expected));
        assert!(decode("weir.ev.n.c.0", &content).is_err(), "the subject differs");
    }

    #[test]
    fn damage_is_noticed() {
        let content = encode("s", 1, b"abc");
        for byte in 0..content.len() {
            let mut flipped = content.to_vec();
            flipped[byte] ^= 4;
            assert!(decode("s", &flipped.into()).is_err(), "byte {byte}");
        }
        for length in 0..content.len() {
            assert!(decode("s", &content.slice(..length)).is_err(), "{length} bytes");
        }
    }
}
