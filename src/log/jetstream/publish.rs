//! Stores messages: a single one by a plain request, several as an atomic batch (NATS ADR-50). An id makes retries
//! safe: for a while the server rejects a duplicate, and returns the sequence of the first message with this id.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    layout,
    session::{NatsError, Rejection, Session},
};

/// Maximum messages of a batch, by default of the servers.
pub(super) const MAX_BATCH: usize = 1000;
/// Maximum bytes that headers and protocol add to a message.
pub(super) const HEADERS: usize = 512;

const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
/// Error: the batch has an id that is already stored.
pub(super) const DUPLICATE_IN_BATCH: u32 = 10201;

/// A message to store.
#[derive(Clone, Debug)]
pub(super) struct NatsMessage {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) content: Bytes,
}

impl NatsMessage {
    /// Creates a message in the layout of a record.
    pub(super) fn encoded(subject: &str, accepted_millis: i64, payload: &[u8]) -> Self {
        Self {
            subject: subject.to_owned(),
            headers: HeaderMap::new(),
            content: layout::encode(subject, accepted_millis, payload),
        }
    }
}

/// Response of the server: the sequence of a stored message, or an error.
#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Rejection>,
}

/// A message that the server has stored, now or before.
pub(super) struct StoredMessage {
    pub(super) sequence: u64,
    /// Whether an earlier message with its id was stored, and not this one.
    pub(super) is_duplicate: bool,
}

impl Ack {
    fn parse(answer: &[u8]) -> Result<u64, NatsError> {
        Ok(Self::read(answer)?.sequence)
    }

    fn read(answer: &[u8]) -> Result<StoredMessage, NatsError> {
        let ack: Self = serde_json::from_slice(answer).map_err(|e| NatsError::Unexpected(e.to_string()))?;
        match ack.error {
            Some(rejection) => Err(NatsError::Rejected(rejection)),
            None if ack.seq == 0 => Err(NatsError::Unexpected(
                "an acknowledgement without a sequence".to_owned(),
            )),
            None => Ok(StoredMessage {
                sequence: ack.seq,
                is_duplicate: ack.duplicate,
            }),
        }
    }
}

impl Session {
    /// Tries once to store messages in one stream, all or none, and returns the sequence of the first. If an earlier
    /// attempt with this id has stored them, nothing is stored again.
    pub(super) async fn store(
        &self,
        id: &str,
        messages: &[NatsMessage],
        wait: Duration,
    ) -> Result<u64, NatsError> {
        let Some((first, others)) = messages.split_first() else {
            return Err(NatsError::Unexpected("nothing to store".to_owned()));
        };
        let mut first = first.clone();
        first.headers.insert(header::NATS_MESSAGE_ID, id);
        match others.split_last() {
            None => self.store_one(first, wait).await,
            Some((last, between)) => match self.store_batch(&first, between, last, wait).await {
                Err(NatsError::Rejected(rejection)) if rejection.err_code == DUPLICATE_IN_BATCH => {
                    self.stored_before(&first.subject, id, wait).await
                }
                stored => stored,
            },
        }
    }

    /// Tries once to store messages with ids of their own in one stream, all or none, and returns the sequence of the first.
    pub(super) async fn store_all(&self, messages: &[NatsMessage], wait: Duration) -> Result<u64, NatsError> {
        match messages {
            [] => Err(NatsError::Unexpected("nothing to store".to_owned())),
            [one] => self.store_one(one.clone(), wait).await,
            [first, between @ .., last] => self.store_batch(first, between, last, wait).await,
        }
    }

    async fn store_one(&self, message: NatsMessage, wait: Duration) -> Result<u64, NatsError> {
        Ok(self.store_message(message, wait).await?.sequence)
    }

    /// Tries once to store a message.
    pub(super) async fn store_message(
        &self,
        message: NatsMessage,
        wait: Duration,
    ) -> Result<StoredMessage, NatsError> {
        let NatsMessage {
            subject,
            headers,
            content,
        } = message;
        let answer = self.request(&subject, headers, content, wait).await?;
        Ack::read(&answer.payload)
    }

    /// Waits for the response to the first message before it sends the others: a rejection then costs only one message.
    async fn store_batch(
        &self,
        first: &NatsMessage,
        between: &[NatsMessage],
        last: &NatsMessage,
        wait: Duration,
    ) -> Result<u64, NatsError> {
        let batch = Uuid::new_v4().to_string();
        let headers = |message: &NatsMessage, sequence: usize| {
            let mut headers = message.headers.clone();
            headers.insert(BATCH_ID, batch.as_str());
            headers.insert(BATCH_SEQUENCE, sequence.to_string());
            headers
        };
        let answer = self
            .request(&first.subject, headers(first, 1), first.content.clone(), wait)
            .await?;
        if !answer.payload.is_empty() {
            Ack::parse(&answer.payload)?;
            return Err(NatsError::Unexpected(
                "the stream does not support batches (allow_atomic)".to_owned(),
            ));
        }
        for (message, sequence) in between.iter().zip(2..) {
            let headers = headers(message, sequence);
            self.publish(&message.subject, headers, message.content.clone(), wait)
                .await?;
        }
        let count = between.len() + 2;
        let mut headers = headers(last, count);
        headers.insert(BATCH_COMMIT, "1");
        let answer = self
            .request(&last.subject, headers, last.content.clone(), wait)
            .await?;
        let sequence = Ack::parse(&answer.payload)?;
        Ok((sequence + 1).saturating_sub(count as u64))
    }

    /// Returns the sequence of the message with an id. Sends a duplicate that the server answers with that sequence. If
    /// the id is unknown, an expected last id that no message has prevents the duplicate from being stored.
    async fn stored_before(&self, subject: &str, id: &str, wait: Duration) -> Result<u64, NatsError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, id);
        headers.insert(header::NATS_EXPECTED_LAST_MESSAGE_ID, "none");
        let answer = self.request(subject, headers, Bytes::new(), wait).await?;
        Ack::parse(&answer.payload)
    }
}
