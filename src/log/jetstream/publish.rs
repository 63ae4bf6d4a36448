//! Stores messages: one by a plain request, several as an atomic batch (ADR-50 of NATS). The id makes a retry safe:
//! the server refuses a second message with it for a while, and says where the first one is.

use std::time::Duration;

use async_nats::{HeaderMap, header};
use bytes::Bytes;
use serde::Deserialize;
use uuid::Uuid;

use super::session::{NatsError, Rejection, Session};

/// Largest number of messages in a batch that servers take by default.
pub(super) const MAX_BATCH: usize = 1000;
/// Bytes that headers and protocol may add to a message.
pub(super) const HEADERS: usize = 512;

const BATCH_ID: &str = "Nats-Batch-Id";
const BATCH_SEQUENCE: &str = "Nats-Batch-Sequence";
const BATCH_COMMIT: &str = "Nats-Batch-Commit";
/// The batch has an id that was stored already.
const DUPLICATE_IN_BATCH: u32 = 10201;

/// A message to store.
#[derive(Clone, Debug)]
pub(super) struct NatsMessage {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) content: Bytes,
}

/// What the server answers to a message that it stored, or refused.
#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<Rejection>,
}

impl Ack {
    fn parse(answer: &[u8]) -> Result<u64, NatsError> {
        let ack: Self = serde_json::from_slice(answer).map_err(|e| NatsError::Unexpected(e.to_string()))?;
        match ack.error {
            Some(rejection) => Err(NatsError::Rejected(rejection)),
            None if ack.seq == 0 => Err(NatsError::Unexpected(
                "an acknowledgement without sequence".to_owned(),
            )),
            None => Ok(ack.seq),
        }
    }
}

impl Session {
    /// Makes one attempt to store messages of one stream, all or none, and returns the sequence of the first. Further
    /// attempts with the same id store nothing if this one did.
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

    async fn store_one(&self, message: NatsMessage, wait: Duration) -> Result<u64, NatsError> {
        let NatsMessage {
            subject,
            headers,
            content,
        } = message;
        let answer = self.request(&subject, headers, content, wait).await?;
        Ack::parse(&answer.payload)
    }

    /// The first message is answered before the others are sent, so that a refusal costs one message.
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
                "the stream does not take batches".to_owned(),
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

    /// Asks for the sequence of the message that has an id, by a message with it that cannot be stored: no message has
    /// the id that it expects before it, and the server looks for the duplicate first.
    async fn stored_before(&self, subject: &str, id: &str, wait: Duration) -> Result<u64, NatsError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, id);
        headers.insert(header::NATS_EXPECTED_LAST_MESSAGE_ID, "none");
        let answer = self.request(subject, headers, Bytes::new(), wait).await?;
        Ack::parse(&answer.payload)
    }
}
