//! The stored form of a dead letter: an event whose delivery ended without success, together with the reason.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::cloudevents::{Event, Invalid, RecordError, clean_text};

/// Maximum bytes of a failure's description in an attribute, counted as percent-encoded in a header.
const MAX_ATTRIBUTE: usize = 1024;

/// Description of a failed delivery to one Trigger's Sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// UID of the Trigger.
    pub trigger: String,
    /// Namespace of the Trigger.
    pub namespace: String,
    /// Name of the Trigger.
    pub name: String,
    /// URI of the Sink that did not accept it.
    pub sink: String,
    /// Why no further attempt is made.
    pub reason: String,
    /// Status of the last answer, if there was one.
    pub status: Option<u16>,
    /// Status of the last answer and the beginning of its body, or why there was none.
    pub detail: String,
    /// Number of failed attempts.
    pub attempts: u32,
}

/// Why a stored dead letter cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// It is truncated.
    #[error("the dead letter is truncated")]
    Truncated,
    /// The description of the failure is invalid.
    #[error("the dead letter has an invalid description: {0}")]
    Description(#[from] serde_json::Error),
    /// The event in it is invalid.
    #[error(transparent)]
    Event(#[from] RecordError),
}

impl DeadLetter {
    /// The event for a dead-letter Sink: with extension attributes that describe the failure. Names and meaning
    /// follow Knative's `knativeerror...`, under Weir's own prefix.
    ///
    /// | attribute | value |
    /// | --- | --- |
    /// | `weirerrordest` | the URI of the Sink that did not accept it |
    /// | `weirerrorcode` | the status of its last answer; not set if there was none |
    /// | `weirerrordata` | the beginning of its last answer, or why there was none; at most 1 KiB, counted as percent-encoded in a header |
    /// | `weirerrorreason` | why no further attempt is made |
    /// | `weirerrorattempts` | number of failed attempts |
    /// | `weirerrortrigger` | the Trigger, as `namespace/name` |
    ///
    /// # Errors
    /// Fails when the event already has the maximum number of attributes.
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

    /// Encodes the stored form: the description's length in 4 bytes, big-endian, the description as JSON, the
    /// event.
    pub fn encode(&self, event: &Event) -> Bytes {
        // Numbers and strings always serialise.
        let description = serde_json::to_vec(self).unwrap_or_default();
        let record = event.to_record();
        let mut stored = BytesMut::with_capacity(4 + description.len() + record.len());
        // Descriptions are bounded to a few KiB.
        stored.put_u32(u32::try_from(description.len()).unwrap_or(u32::MAX));
        stored.put_slice(&description);
        stored.put_slice(&record);
        stored.freeze()
    }

    /// Decodes the stored form.
    ///
    /// # Errors
    /// Fails when it is not what [`DeadLetter::encode`] writes.
    pub fn decode(mut stored: Bytes) -> Result<(Self, Event), DeadLetterError> {
        let length = stored.split_to_checked(4).ok_or(DeadLetterError::Truncated)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let description = stored
            .split_to_checked(length)
            .ok_or(DeadLetterError::Truncated)?;
        Ok((serde_json::from_slice(&description)?, Event::from_record(stored)?))
    }
}

/// The longest prefix of a text that fits into an attribute.
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
    /// A dead letter of Trigger `u`, named shop/t.
    pub(super) fn for_test() -> Self {
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
    fn detail_is_truncated_to_fit_a_percent_encoded_header() {
        for (text, characters) in [("a", 1024), (" ", 341), ("é", 170), ("€", 113), ("😀", 85)] {
            assert_eq!(shorten(&text.repeat(2000)).chars().count(), characters, "{text}");
        }
        assert_eq!(shorten("short"), "short");
    }

    #[test]
    fn decodes_what_was_encoded_and_rejects_truncated_records() {
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
        // The log's checksums protect the data itself; its length is the record's.
        for length in 0..stored.len() - "hello".len() {
            assert!(DeadLetter::decode(stored.slice(..length)).is_err(), "{length}");
        }
    }
}
