//! A dead letter: an event whose delivery ended without success, kept with the reason in a log of its own.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::cloudevents::{Event, Invalid, RecordError, clean_text};

/// How much of what is told of a failure goes into an attribute, in bytes of a header, in which it is percent-encoded.
const MAX_ATTRIBUTE: usize = 1024;

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
    /// The URI of the Sink that did not take it.
    pub sink: String,
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
    /// The event as a dead-letter Sink gets it: with extension attributes that tell of the failure. Names and meaning
    /// are those of Knative's `knativeerror...`, under Weir's own prefix.
    ///
    /// | attribute | value |
    /// | --- | --- |
    /// | `weirerrordest` | the URI of the Sink that did not take it |
    /// | `weirerrorcode` | the status of its last answer; not set if there was none |
    /// | `weirerrordata` | the beginning of its last answer, or why there was none; at most 1 KiB, counted as percent-encoded in a header |
    /// | `weirerrorreason` | why no further attempt is made |
    /// | `weirerrorattempts` | how many attempts failed |
    /// | `weirerrortrigger` | the Trigger, as `namespace/name` |
    ///
    /// # Errors
    /// When the event has as many attributes as there may be.
    pub fn mark(&self, event: &Event) -> Result<Event, Invalid> {
        let status = self.status.map(|status| status.to_string());
        let texts = [
            ("weirerrordest", self.sink.clone()),
            ("weirerrordata", shorten(&self.detail)),
            ("weirerrorreason", self.reason.clone()),
            ("weirerrorattempts", self.attempts.to_string()),
            ("weirerrortrigger", format!("{}/{}", self.namespace, self.name)),
        ];
        let texts = texts
            .into_iter()
            .chain(status.map(|status| ("weirerrorcode", status)))
            .filter(|(_, text)| !text.is_empty());
        let texts: Vec<_> = texts
            .map(|(name, text)| (name, clean_text(&text).into_owned()))
            .collect();
        event.with_extensions(texts.iter().map(|(name, text)| (*name, text.as_str())))
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

/// As much of the beginning of a text as fits into an attribute.
fn shorten(text: &str) -> String {
    let mut left = MAX_ATTRIBUTE;
    let fits = |character: &char| {
        let encoded = match character {
            '"' | '%' => 3,
            '!'..='~' => 1,
            other => 3 * other.len_utf8(),
        };
        let rest = left.checked_sub(encoded);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    text.chars().take_while(fits).collect()
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
impl DeadLetter {
    /// One of Trigger `u`, called shop/t.
    pub(super) fn of_a_test() -> Self {
        Self {
            trigger: "u".to_owned(),
            namespace: "shop".to_owned(),
            name: "t".to_owned(),
            sink: "http://sink/".to_owned(),
            reason: "refused".to_owned(),
            status: None,
            detail: "no".to_owned(),
            attempts: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudevents::EventBuilder;

    #[test]
    fn what_is_told_is_short_in_a_header_too() {
        for (text, characters) in [("a", 1024), (" ", 341), ("é", 170), ("€", 113), ("😀", 85)] {
            assert_eq!(shorten(&text.repeat(2000)).chars().count(), characters, "{text}");
        }
        assert_eq!(shorten("short"), "short");
    }

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
            sink: "http://billing/".into(),
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
