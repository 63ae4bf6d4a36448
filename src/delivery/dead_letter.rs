//! A dead letter: an event whose delivery ended without success, kept with the reason in a log of its own.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    cloudevents::{Event, RecordError},
    log::Offset,
};

/// Why an event could not be delivered to one Trigger's Sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// The Trigger's UID.
    pub trigger: String,
    /// The Trigger's namespace.
    pub namespace: String,
    /// The Trigger's name.
    pub name: String,
    /// Where the event stood in its broker's log.
    pub offset: Offset,
    /// Why no further attempt is made.
    pub reason: String,
    /// The status of the last answer, if there was one.
    pub status: Option<u16>,
    /// The last answer's status and the beginning of its body, or why there was none.
    pub detail: String,
    /// How many attempts failed.
    pub attempts: u32,
}

/// Why a stored dead letter cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// It breaks off.
    #[error("the dead letter breaks off")]
    Truncated,
    /// What is told of the delivery is not readable.
    #[error("the dead letter's description is not readable: {0}")]
    Description(#[from] serde_json::Error),
    /// The event in it is not readable.
    #[error(transparent)]
    Event(#[from] RecordError),
}

impl DeadLetter {
    /// The name of the log that keeps a broker's dead letters. No broker can have it: names have no dot.
    pub fn log_of(broker: &str) -> String {
        format!("{broker}.dead-letters")
    }

    /// The stored form: the description's length in 4 bytes, big-endian, the description as JSON, the event.
    pub fn encode(&self, event: &Event) -> Bytes {
        // Numbers and strings always serialise.
        let description = serde_json::to_vec(self).unwrap_or_default();
        let record = event.to_record();
        let mut stored = BytesMut::with_capacity(4 + description.len() + record.len());
        // What is told of a delivery is bounded to a few KiB.
        stored.put_u32(u32::try_from(description.len()).unwrap_or(u32::MAX));
        stored.put_slice(&description);
        stored.put_slice(&record);
        stored.freeze()
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is not what [`DeadLetter::encode`] writes.
    pub fn decode(mut stored: Bytes) -> Result<(Self, Event), DeadLetterError> {
        let length = stored.split_to_checked(4).ok_or(DeadLetterError::Truncated)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let description = stored
            .split_to_checked(length)
            .ok_or(DeadLetterError::Truncated)?;
        Ok((serde_json::from_slice(&description)?, Event::from_record(stored)?))
    }
}

trait SplitChecked: Sized {
    fn split_to_checked(&mut self, length: usize) -> Option<Self>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, length: usize) -> Option<Self> {
        (length <= self.len()).then(|| self.split_to(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    #[test]
    fn is_read_as_it_was_written_and_not_when_it_breaks_off() {
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let event = event.data("text/plain", "hello").build().unwrap();
        let letter = DeadLetter {
            trigger: "uid".into(),
            namespace: "shop".into(),
            name: "billing".into(),
            offset: Offset(7),
            reason: "refused".into(),
            status: Some(400),
            detail: "400 Bad Request: no".into(),
            attempts: 1,
        };
        let stored = letter.encode(&event);
        let (read, read_event) = DeadLetter::decode(stored.clone()).unwrap();
        assert_eq!(read, letter);
        assert_eq!(read_event.to_record(), event.to_record());
        // The log's checksums keep the data itself; its length is the record's.
        for length in 0..stored.len() - "hello".len() {
            assert!(DeadLetter::decode(stored.slice(..length)).is_err(), "{length}");
        }
    }
}
