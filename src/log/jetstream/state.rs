//! Loads and saves checkpoints, which are messages in the state stream. It keeps only the last message of each subject.
//!
//! A checkpoint is removed by an empty message, which expires. Unlike a purge it is part of the atomic batch, and so it
//! is fenced like the other changes. All other messages have the layout of a record and are not empty.
//!
//! The epoch of a shard's owner is the sequence of its message on `weir.st.own.SHARD`. A save expects this sequence
//! there; the server rejects it once another owner has written to this subject.

use std::{borrow::Cow, collections::BTreeMap, sync::atomic::Ordering::Relaxed, time::Duration};

use async_nats::{HeaderMap, Message, header};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{
    layout, names,
    patience::Patience,
    publish::{MAX_BATCH, NatsMessage},
    session::NatsError,
    streams::JetStream,
};
use crate::log::{CheckpointKey, Epoch, LogError, Ownership, Shard};

const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";
const TTL: &str = "Nats-TTL";
/// Last sequence of a replica that responds.
const UP_TO: &str = "Nats-UpTo-Sequence";
/// Status of a response that is complete.
const COMPLETE: u16 = 204;
/// Status and description of a response without messages.
const NOT_FOUND: u16 = 404;
const NO_RESULTS: &str = "No Results";
/// Time after which the message of a removed checkpoint expires.
const REMOVED_FOR: Duration = Duration::from_secs(60 * 60);
const BARRIER_FOR: Duration = Duration::from_secs(60);
/// Error: the last sequence of the subject is not the expected one.
const WRONG_SEQUENCE: u32 = 10071;
/// Maximum messages of one pull.
const PULL: usize = 500;
/// Nanoseconds after which the server removes an unused consumer.
const UNUSED: u64 = 10_000_000_000;

/// The expected last message of a subject.
#[derive(Clone)]
pub(super) struct Expected {
    pub(super) subject: Cow<'static, str>,
    /// Sequence of the message; 0 if there must be none.
    pub(super) sequence: u64,
}

#[derive(Deserialize)]
struct Consumer {
    name: String,
}

impl JetStream {
    /// Stores the owner of a shard if the message before has this sequence (0 if there must be none). Saves of earlier
    /// owners are fenced from now on.
    pub(super) async fn set_owner(&self, shard: Shard, owner: &[u8], before: u64) -> Result<Epoch, LogError> {
        let subject = names::owner(shard);
        let message = NatsMessage::encoded(&subject, 0, owner);
        let expected = Expected {
            subject: subject.into(),
            sequence: before,
        };
        let sequence = self.store_state(&[message], Some(expected)).await?;
        Ok(Epoch(sequence))
    }

    /// Stores changes, in several batches if there are many. Fenced unless the epoch is 0.
    pub(super) async fn save(
        &self,
        changes: &[(CheckpointKey, Option<Bytes>)],
        Ownership { shard, epoch }: Ownership,
    ) -> Result<(), LogError> {
        for part in changes.chunks(MAX_BATCH) {
            let messages = part.iter().map(|(key, value)| {
                let subject = names::checkpoint(shard, key);
                match value {
                    Some(value) => NatsMessage::encoded(&subject, 0, value),
                    None => expiring(subject, REMOVED_FOR, Bytes::new()),
                }
            });
            let owner = (epoch != Epoch::default()).then(|| Expected {
                subject: names::owner(shard).into(),
                sequence: epoch.0,
            });
            self.store_state(&messages.collect::<Vec<_>>(), owner).await?;
        }
        Ok(())
    }

    /// Stores messages atomically, if the expected message is the last of its subject.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if it is not.
    pub(super) async fn store_state(
        &self,
        messages: &[NatsMessage],
        expected: Option<Expected>,
    ) -> Result<u64, LogError> {
        let mut messages = messages.to_vec();
        if let (Some(first), Some(Expected { subject, sequence })) = (messages.first_mut(), expected) {
            first.headers.insert(EXPECTED_SEQUENCE, sequence.to_string());
            first.headers.insert(EXPECTED_SUBJECT, &*subject);
        }
        let id = Uuid::new_v4().to_string();
        let mut patience = Patience::new(self.options.timeout);
        loop {
            let attempt = self.session.store(&id, &messages, patience.attempt());
            match patience.within("the state stream", attempt).await? {
                Ok(sequence) => {
                    self.state_end.fetch_max(sequence, Relaxed);
                    return Ok(sequence);
                }
                Err(NatsError::Rejected(rejection)) if rejection.err_code == WRONG_SEQUENCE => {
                    return Err(LogError::Fenced(format!(
                        "another router has taken over: {rejection}"
                    )));
                }
                Err(error) => patience.after(error).await?,
            }
        }
    }

    /// Loads one checkpoint from the leader.
    pub(super) async fn load(&self, shard: Shard, key: &CheckpointKey) -> Result<Option<Bytes>, LogError> {
        self.load_value(&names::checkpoint(shard, key)).await
    }

    /// Loads the value of one subject from the leader.
    pub(super) async fn load_value(&self, subject: &str) -> Result<Option<Bytes>, LogError> {
        Ok(self.load_with_sequence(subject).await?.1)
    }

    /// Loads the value of one subject from the leader, with the sequence of its last message; 0 if there is none.
    pub(super) async fn load_with_sequence(&self, subject: &str) -> Result<(u64, Option<Bytes>), LogError> {
        let which = json!({ "last_by_subj": subject });
        let mut patience = Patience::new(self.options.timeout);
        let message = |wait| self.session.stored_message(names::STATE, &which, wait);
        Ok(match patience.retry(message).await? {
            Some(found) => (found.sequence, self.value(subject, &found.content)?),
            None => (0, None),
        })
    }

    /// Returns the last values of these subjects, which may have wildcards, from any replica that has what this router
    /// stored before. They may be stale, and a replica that has none of them may be far behind.
    pub(super) async fn glance(&self, subjects: &[&str]) -> Result<Vec<(String, Bytes)>, LogError> {
        let request = json!({ "multi_last": subjects });
        let get = format!("$JS.API.DIRECT.GET.{}", names::STATE);
        // A server that recovers responds from a replica that may be minutes behind.
        let known = self.state_end.load(Relaxed);
        let mut patience = Patience::new(self.options.timeout);
        let found = loop {
            let (mut found, mut end) = (Vec::new(), None);
            let seen =
                self.session
                    .request_many(&get, request.to_string().into(), patience.attempt(), |message| {
                        if message.status.is_some() {
                            end = end_of(&message)?;
                            return Ok(false);
                        }
                        let headers = message.headers.as_ref();
                        let subject = headers.and_then(|headers| headers.get(header::NATS_SUBJECT));
                        let subject = subject
                            .ok_or_else(|| NatsError::Unexpected("a message without a subject".to_owned()))?;
                        found.push((subject.as_str().to_owned(), message.payload));
                        Ok(true)
                    });
            match seen.await {
                Ok(()) if end.is_none_or(|end| end >= known) => break found,
                Ok(()) => {
                    let behind = format!("a replica of {} responds that is behind", names::STATE);
                    patience.after(NatsError::NoAnswer(behind)).await?;
                }
                Err(error) => patience.after(error).await?,
            }
        };
        self.values(found)
    }

    /// Loads every checkpoint of a shard that was saved before the call.
    pub(super) async fn load_all(&self, shard: Shard) -> Result<Vec<(CheckpointKey, Bytes)>, LogError> {
        let checkpoints = self.load_subjects(&names::checkpoints(shard)).await?.into_iter();
        let checkpoints = checkpoints.filter_map(|(subject, value)| {
            let (_, key) = names::checkpoint_key(&subject)?;
            Some((key, value))
        });
        Ok(checkpoints.collect())
    }

    /// Loads the values of these subjects that were saved before the call. `subjects` has a wildcard.
    pub(super) async fn load_subjects(&self, subjects: &str) -> Result<Vec<(String, Bytes)>, LogError> {
        // A consumer may read from a replica that is behind. Once it has delivered the barrier, nothing older is
        // missing.
        let barrier = format!("{}.{}", names::BARRIER, Uuid::new_v4().simple());
        self.store_state(&[expiring(barrier.clone(), BARRIER_FOR, Bytes::new())], None)
            .await?;
        let mut patience = Patience::new(self.options.timeout);
        let contents = loop {
            match self.pull_until(subjects, &barrier, &patience).await {
                Ok(contents) => break contents,
                Err(error) => patience.after(error).await?,
            }
        };
        self.values(contents)
    }

    /// Reads the last message of each of these subjects up to the barrier, with a temporary consumer.
    async fn pull_until(
        &self,
        subjects: &str,
        barrier: &str,
        patience: &Patience,
    ) -> Result<BTreeMap<String, Bytes>, NatsError> {
        let create = format!("CONSUMER.CREATE.{}", names::STATE);
        let config = json!({
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subjects": [subjects, barrier],
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": UNUSED,
        });
        let body = json!({ "stream_name": names::STATE, "config": config });
        let Consumer { name } = self.session.api(&create, &body, patience.attempt()).await?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{name}", names::STATE);
        let (mut contents, mut is_complete) = (BTreeMap::new(), false);
        while !is_complete {
            let wait = patience.attempt();
            if wait.is_zero() {
                return Err(NatsError::NoAnswer(
                    "timed out reading the checkpoints".to_owned(),
                ));
            }
            let (mut left, before) = (PULL, contents.len());
            let pull = json!({ "batch": PULL, "expires": expiry(wait) });
            self.session
                .request_many(&next, pull.to_string().into(), wait, |message| {
                    if message.status.is_some() {
                        return Ok(false);
                    }
                    is_complete = *message.subject == *barrier;
                    contents.insert(message.subject.to_string(), message.payload);
                    left -= 1;
                    Ok(left > 0 && !is_complete)
                })
                .await?;
            if !is_complete && contents.len() == before {
                // The consumer is on a server that recovers. The next attempt may get another one.
                return Err(NatsError::NoAnswer(
                    "a replica responds that lacks the newest checkpoints".to_owned(),
                ));
            }
        }
        Ok(contents)
    }

    /// Returns the values that were not removed, by subject.
    fn values(
        &self,
        contents: impl IntoIterator<Item = (String, Bytes)>,
    ) -> Result<Vec<(String, Bytes)>, LogError> {
        let mut values = Vec::new();
        for (subject, content) in contents {
            if let Some(value) = self.value(&subject, &content)? {
                values.push((subject, value));
            }
        }
        Ok(values)
    }

    /// Returns the value of a checkpoint; `None` if it was removed.
    fn value(&self, subject: &str, content: &Bytes) -> Result<Option<Bytes>, LogError> {
        if content.is_empty() {
            return Ok(None);
        }
        let (_, value) = layout::decode(subject, content)
            .map_err(|e| self.damaged(names::STATE, &format!("{subject}: {e}")))?;
        Ok(Some(value))
    }
}

/// Returns the last sequence that a replica had when it read the messages of a response, from the status that ends it;
/// `None` if there are no messages.
fn end_of(status: &Message) -> Result<Option<u64>, NatsError> {
    let unexpected = || {
        let description = status.description.as_deref().unwrap_or_default();
        NatsError::Unexpected(format!("status {:?}: {description}", status.status))
    };
    match status.status.map(|status| status.as_u16()) {
        Some(COMPLETE) => {
            let headers = status.headers.as_ref();
            let end = headers.and_then(|headers| headers.get(UP_TO));
            let end = end.and_then(|end| end.as_str().parse().ok());
            end.map(Some).ok_or_else(unexpected)
        }
        Some(NOT_FOUND) if status.description.as_deref() == Some(NO_RESULTS) => Ok(None),
        _ => Err(unexpected()),
    }
}

/// Returns the nanoseconds after which the server ends a pull: less than the client's timeout.
fn expiry(wait: Duration) -> u64 {
    u64::try_from((wait / 2).as_nanos()).unwrap_or(u64::MAX)
}

/// Returns a message that the server removes after this time, in whole seconds.
pub(super) fn expiring(subject: String, ttl: Duration, content: Bytes) -> NatsMessage {
    let mut headers = HeaderMap::new();
    headers.insert(TTL, format!("{}s", ttl.as_secs()));
    NatsMessage {
        subject,
        headers,
        content,
    }
}
