//! Appends without repeats. Each message has its key as the id by which the server recognizes duplicates, and its digest
//! in a header. The server remembers the ids for the `duplicate_window` of the stream, which is the window of the broker
//! (`windows.rs`); after a restart it knows those of the messages in the stream, so records must be retained as long.
//!
//! The server rejects a whole batch because of one duplicate, and does not say which one it is. The messages of such a
//! batch are then stored one by one.

use std::time::Duration;

use async_nats::header;
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::OnceCell;

use super::{
    append::{AppendOutcome, outgoing},
    layout,
    patience::Patience,
    publish::{DUPLICATE_IN_BATCH, NatsMessage, StoredMessage},
    refused::RefusedEvents,
    session::{NatsError, Rejection},
    streams::JetStream,
    tracked::Tracked,
};
use crate::log::{Append, Appended, EventIdentity, IdWindow, LogError, Offset, Unique, record};

/// Header with the digest of a message, in hexadecimal.
const DIGEST: &str = "Weir-Digest";
/// Messages of a batch with duplicates that are stored at a time.
const AT_A_TIME: usize = 16;

/// Outcome of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageOutcome {
    /// Stored at this sequence.
    Stored(u64),
    /// Another one with its id and digest was stored before, at this sequence.
    Repeat(u64),
}

impl MessageOutcome {
    fn sequence(self) -> u64 {
        match self {
            Self::Stored(sequence) | Self::Repeat(sequence) => sequence,
        }
    }
}

/// Result of comparing a message with the stored one that has its id.
enum Compared {
    Outcome(MessageOutcome),
    /// Another event was accepted with the same id, at this time in milliseconds.
    Conflict(i64),
}

impl JetStream {
    /// Appends records, except those whose keys are remembered.
    pub(super) async fn append_unique(
        &self,
        log: &Tracked,
        append: Append,
        Unique { identities, window }: Unique,
    ) -> Result<AppendOutcome, LogError> {
        let Append {
            payloads, accepted, ..
        } = append;
        let patience = Patience::new(self.options.timeout);
        let _places = self.enter(log, &payloads, &patience).await?;
        let messages = self
            .unique_messages(log, record::millis(accepted), &payloads, &identities, window)
            .await?;
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut failure = None;
        for outcome in self.store_unique(log, messages, patience).await? {
            match outcome {
                Ok(outcome) => outcomes.push(outcome),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let stored = || {
            outcomes.iter().filter_map(|outcome| match outcome {
                MessageOutcome::Stored(sequence) => Some(*sequence),
                MessageOutcome::Repeat(_) => None,
            })
        };
        if let Some(last) = stored().max() {
            let bytes: usize = payloads.iter().map(Bytes::len).sum();
            log.appended(Offset(last), bytes as u64);
            self.grew(&log.name);
        }
        let first = stored().min().map(|first| Offset(first.saturating_sub(1)));
        let appended = Appended {
            first: first.unwrap_or(log.bounds().next),
            repeats: outcomes.len() - stored().count(),
        };
        let sequences = outcomes.into_iter().map(MessageOutcome::sequence);
        Ok(AppendOutcome {
            appended,
            sequences: sequences.collect(),
            failure,
        })
    }

    /// Creates the messages of records, once the stream exists.
    async fn unique_messages(
        &self,
        log: &Tracked,
        accepted_millis: i64,
        payloads: &[Bytes],
        identities: &[EventIdentity],
        window: IdWindow,
    ) -> Result<Vec<NatsMessage>, LogError> {
        let mut patience = Patience::new(self.options.timeout);
        while let Err(error) = self.prepare(log, window, patience.attempt()).await {
            patience.after(error).await?;
        }
        let millis = log.accept(accepted_millis);
        let mut messages = outgoing(&log.location.subject, millis, payloads);
        for (message, EventIdentity { key, digest }) in messages.iter_mut().zip(identities) {
            let id = u128::from_be_bytes(*key);
            message
                .headers
                .insert(header::NATS_MESSAGE_ID, format!("{id:032x}"));
            message.headers.insert(DIGEST, format!("{digest:016x}"));
        }
        Ok(messages)
    }

    async fn prepare(&self, log: &Tracked, window: IdWindow, wait: Duration) -> Result<(), NatsError> {
        if log.is_ready() {
            return Ok(());
        }
        self.create(log, Some(window), wait).await
    }

    /// Stores messages, unless others have their ids. Returns the outcome of each.
    async fn store_unique(
        &self,
        log: &Tracked,
        messages: Vec<NatsMessage>,
        mut patience: Patience,
    ) -> Result<Vec<Result<MessageOutcome, LogError>>, LogError> {
        while messages.len() > 1 {
            let wait = patience.attempt();
            let storing = self.session.store_all(&messages, wait);
            match patience.within("the stream", storing).await? {
                Ok(first) => {
                    let sequences = first..first + messages.len() as u64;
                    let stored = sequences.map(|sequence| Ok(MessageOutcome::Stored(sequence)));
                    return Ok(stored.collect());
                }
                Err(NatsError::Rejected(Rejection {
                    err_code: DUPLICATE_IN_BATCH,
                    ..
                })) => break,
                Err(error) => self.after_failure(log, &mut patience, error).await?,
            }
        }
        let refused = OnceCell::new();
        let (refused, patience) = (&refused, &patience);
        let storing = messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| async move {
                let storing = self.store_message(log, index, message, refused, patience.again());
                patience.within("the stream", storing).await?
            });
        let outcomes = futures::stream::iter(storing).buffered(AT_A_TIME);
        Ok(outcomes.collect().await)
    }

    /// Stores a message, unless another one has its id. `refused`: the refused events of the log, once they are needed.
    async fn store_message(
        &self,
        log: &Tracked,
        index: usize,
        mut message: NatsMessage,
        refused: &OnceCell<RefusedEvents>,
        mut patience: Patience,
    ) -> Result<MessageOutcome, LogError> {
        loop {
            let wait = patience.attempt();
            let attempt = async {
                let StoredMessage {
                    sequence,
                    is_duplicate,
                } = self.session.store_message(message.clone(), wait).await?;
                let compared = match is_duplicate {
                    true => self.compare(log, &message, sequence, wait).await?,
                    false => Compared::Outcome(MessageOutcome::Stored(sequence)),
                };
                Ok((sequence, compared))
            };
            let (sequence, compared) = match attempt.await {
                Ok(compared) => compared,
                Err(error) => {
                    self.after_failure(log, &mut patience, error).await?;
                    continue;
                }
            };
            if let Compared::Outcome(outcome @ MessageOutcome::Stored(_)) = compared {
                return Ok(outcome);
            }
            let refused = refused.get_or_try_init(|| self.refused(log)).await?;
            if refused.has(sequence) {
                // Nobody got that one, so this one is stored, under another id.
                let id = message.headers.get(header::NATS_MESSAGE_ID);
                let id = id.map(|id| id.as_str()).unwrap_or_default();
                let id = format!("{id}-{sequence}");
                message.headers.insert(header::NATS_MESSAGE_ID, id);
                continue;
            }
            return match compared {
                Compared::Outcome(outcome) => Ok(outcome),
                Compared::Conflict(millis) => Err(LogError::Conflict {
                    index,
                    accepted: record::timestamp(millis),
                }),
            };
        }
    }

    async fn after_failure(
        &self,
        log: &Tracked,
        patience: &mut Patience,
        error: NatsError,
    ) -> Result<(), LogError> {
        if matches!(error, NatsError::NoResponders(_)) {
            log.set_unready();
        }
        patience.after(error).await
    }

    /// Compares a message with the stored one that has its id.
    async fn compare(
        &self,
        log: &Tracked,
        message: &NatsMessage,
        sequence: u64,
        wait: Duration,
    ) -> Result<Compared, NatsError> {
        let stream = &log.location.stream;
        let which = json!({ "seq": sequence });
        let Some(stored) = self.session.stored_message(stream, &which, wait).await? else {
            // Removed, so nobody can tell.
            return Ok(Compared::Outcome(MessageOutcome::Repeat(sequence)));
        };
        if stored.content == message.content {
            // By an earlier attempt: no two events have the same lineage.
            return Ok(Compared::Outcome(MessageOutcome::Stored(sequence)));
        }
        let digest = message.headers.get(DIGEST).map(|digest| digest.as_str());
        if stored.header(DIGEST) == digest {
            return Ok(Compared::Outcome(MessageOutcome::Repeat(sequence)));
        }
        let accepted = layout::decode(&log.location.subject, &stored.content);
        Ok(Compared::Conflict(accepted.map_or(0, |(millis, _)| millis)))
    }
}
