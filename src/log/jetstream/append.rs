//! Appends: size limits, creation of the stream, and retries until the timeout. One record is stored as a message,
//! several as one atomic batch.

use bytes::Bytes;
use tokio::sync::{AcquireError, SemaphorePermit};
use uuid::Uuid;

use super::{
    layout,
    names::{self, SHARDS},
    patience::Patience,
    publish::{HEADERS, MAX_BATCH, NatsMessage},
    session::NatsError,
    streams::{JetStream, PERMIT_BYTES},
    tracked::Tracked,
};
use crate::log::{Append, Appended, LogError, LogName, Offset, Partition, record};

/// What became of the records of an append.
pub(super) struct AppendOutcome {
    pub(super) appended: Appended,
    /// Sequences of the records with ids: those that were stored, and those of which others are repeats.
    pub(super) sequences: Vec<u64>,
    /// Why some were not stored.
    pub(super) failure: Option<LogError>,
}

/// Held by an append until it is done.
pub(super) struct AppendPlaces<'a> {
    _room: Result<SemaphorePermit<'a>, AcquireError>,
    _batch: Option<Result<SemaphorePermit<'a>, AcquireError>>,
}

impl JetStream {
    pub(super) async fn append(&self, log: &Tracked, append: Append) -> Result<Appended, LogError> {
        if append.payloads.is_empty() {
            return Ok(Appended {
                first: self.bounds(log).await?.next,
                repeats: 0,
            });
        }
        let before = log.seen_end();
        let AppendOutcome {
            appended,
            sequences,
            failure,
        } = self
            .store_append(log, &Uuid::new_v4().to_string(), append)
            .await?;
        let first = appended.first;
        if first < before.next {
            log.lost_end(before, first, first.plus(1), true);
        }
        if log.is_shortened() {
            // Triggers may be past this offset and would skip the records. The producer must retry once their positions
            // are corrected, and the retry is no repeat.
            if !sequences.is_empty() {
                self.note_refused(log, &sequences).await?;
            }
            self.fence_owners(log).await?;
            log.accept_shortened();
            return Err(LogError::Unavailable(format!(
                "the stream {} has lost records at its end; retry once the Triggers' positions are corrected",
                log.location.stream
            )));
        }
        failure.map_or(Ok(appended), Err)
    }

    /// Appends unless an append with this id is remembered, and returns the offset of that one then.
    pub(super) async fn append_once(
        &self,
        log: &Tracked,
        id: &str,
        append: Append,
    ) -> Result<Appended, LogError> {
        // A router that was paused would append what others have appended long ago.
        self.turn.check()?;
        let AppendOutcome {
            appended, failure, ..
        } = self.store_append(log, id, append).await?;
        failure.map_or(Ok(appended), Err)
    }

    async fn store_append(
        &self,
        log: &Tracked,
        id: &str,
        mut append: Append,
    ) -> Result<AppendOutcome, LogError> {
        if let Some(unique) = append.unique.take() {
            return self.append_unique(log, append, unique).await;
        }
        let Append {
            payloads,
            accepted,
            unique: _,
        } = append;
        let patience = Patience::new(self.options.timeout);
        let _places = self.enter(log, &payloads, &patience).await?;
        let count = payloads.len() as u64;
        let (sequence, bytes) = self
            .store_records(log, id, record::millis(accepted), payloads, patience)
            .await?;
        let first = Offset(sequence.saturating_sub(1));
        log.appended(first.plus(count), bytes as u64);
        self.grew(&log.name);
        Ok(AppendOutcome {
            appended: Appended { first, repeats: 0 },
            sequences: Vec::new(),
            failure: None,
        })
    }

    /// Prepares an append: checks its size, and waits until it may begin.
    pub(super) async fn enter<'a>(
        &'a self,
        log: &'a Tracked,
        payloads: &[Bytes],
        patience: &Patience,
    ) -> Result<AppendPlaces<'a>, LogError> {
        self.check_size(log, payloads)?;
        if !log.is_ready()
            && let LogName::Events(broker) = &log.name
        {
            // Before the stream is created.
            let deciding = self.decide_partitions(vec![broker.clone()]);
            patience.within("the number of partitions", deciding).await??;
        }
        let bytes: usize = payloads.iter().map(Bytes::len).sum();
        let room = patience
            .within("other appends", self.room.acquire_many(self.permits(bytes)))
            .await?;
        let batch = match payloads.len() {
            1 => None,
            _ => Some(patience.within("other batches", log.batches.acquire()).await?),
        };
        Ok(AppendPlaces {
            _room: room,
            _batch: batch,
        })
    }

    /// Fences the owners of a log's shards. The next owners read the end of the stream again, and correct the positions.
    async fn fence_owners(&self, log: &Tracked) -> Result<(), LogError> {
        let broker = log.name.broker();
        for partition in Partition::all(self.partitions.get(broker).unwrap_or(1)) {
            let shard = partition.shard(broker, SHARDS);
            let (before, _) = self.load_with_sequence(&names::owner(shard)).await?;
            match self.set_owner(shard, &[], before).await {
                // Fenced: there is a new owner already.
                Ok(_) | Err(LogError::Fenced(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Stores records, with retries. Returns the sequence of the first one, and their size in bytes.
    async fn store_records(
        &self,
        log: &Tracked,
        id: &str,
        accepted_millis: i64,
        payloads: Vec<Bytes>,
        mut patience: Patience,
    ) -> Result<(u64, usize), LogError> {
        let mut payloads = Some(payloads);
        let mut messages = Vec::new();
        loop {
            let wait = patience.attempt();
            let attempt = async {
                if !log.is_ready() {
                    self.create(log, None, wait).await?;
                }
                if let Some(payloads) = payloads.take() {
                    let millis = log.accept(accepted_millis);
                    messages = outgoing(&log.location.subject, millis, &payloads);
                }
                self.session.store(id, &messages, wait).await
            };
            // The messages of a batch may together take longer than an attempt.
            match patience.within("the stream", attempt).await? {
                Ok(sequence) => {
                    let bytes = messages.iter().map(|message| message.content.len()).sum();
                    return Ok((sequence, bytes));
                }
                Err(error) => {
                    if matches!(error, NatsError::NoResponders(_)) {
                        log.set_unready();
                    }
                    patience.after(error).await?;
                }
            }
        }
    }

    /// Checks the limits of NATS and of the stream, so that an append beyond them fails without a retry.
    pub(super) fn check_size(&self, log: &Tracked, payloads: &[Bytes]) -> Result<(), LogError> {
        if payloads.len() > MAX_BATCH {
            return Err(LogError::TooLarge(format!(
                "{} records at once, and NATS accepts at most {MAX_BATCH}; send smaller batches",
                payloads.len()
            )));
        }
        let overhead = HEADERS + layout::OVERHEAD;
        let largest = payloads.iter().map(Bytes::len).max().unwrap_or(0) + overhead;
        let max_payload = self.session.client().max_payload();
        if largest > max_payload {
            return Err(LogError::TooLarge(format!(
                "a record of {largest} bytes with its headers, and the NATS server accepts at most {max_payload}; raise its max_payload"
            )));
        }
        let total: usize = payloads.iter().map(|payload| payload.len() + overhead).sum();
        let max_bytes = match log.name {
            LogName::Events(_) => self.options.max_bytes,
            LogName::DeadLetters(_) => self.options.dead_letters_max_bytes,
        };
        if total as u64 > max_bytes {
            return Err(LogError::TooLarge(format!(
                "{total} bytes at once, and the maximum size of the stream is {max_bytes}; send less at once"
            )));
        }
        Ok(())
    }

    /// Returns the permits for an append: at most all of them, so that a large one can proceed.
    fn permits(&self, bytes: usize) -> u32 {
        let all = self.options.in_flight_bytes.div_ceil(PERMIT_BYTES);
        let wanted = bytes.div_ceil(PERMIT_BYTES).clamp(1, all.max(1));
        u32::try_from(wanted).unwrap_or(u32::MAX)
    }
}

pub(super) fn outgoing(subject: &str, accepted_millis: i64, payloads: &[Bytes]) -> Vec<NatsMessage> {
    let messages = payloads.iter();
    let messages = messages.map(|payload| NatsMessage::encoded(subject, accepted_millis, payload));
    messages.collect()
}
