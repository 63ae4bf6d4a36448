//! The open directory, and the operations of logs and checkpoints on it.

use std::{collections::HashMap, fs, sync::Arc, thread::JoinHandle};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    broker::OpenLog,
    layout,
    lock::lock,
    reads::{ReadRange, Readers},
    request::{Purpose, Request},
    shared::Shared,
    store::{self, BrokerKeyspace, ReadError, Store},
};
use crate::log::{
    Append, Appended, BrokerName, CheckpointChange, KeepIds, LogBounds, LogError, LogRecord, Offset,
    ReadLimit, Unique, record,
};

/// Unit in which the queue's bytes are counted.
pub(super) const PERMIT_BYTES: usize = 1024;

/// The open directory.
pub(super) struct Open {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Option<mpsc::Sender<Request>>,
    pub(super) queue: Arc<Semaphore>,
    /// The committer, then the keeper, which ends after the committer.
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) readers: Readers,
    /// Dropped last, after everything that uses the directory.
    pub(super) _lock: fs::File,
}

impl Open {
    pub(super) async fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        let (reply, answer) = oneshot::channel();
        let answered = async {
            self.requests.as_ref()?.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        // A request enqueued just as the committer ends is neither answered nor dropped; but the committer reports
        // its reason before it ends.
        tokio::select! {
            biased;
            Some(answer) = answered => answer,
            failure = self.shared.failed() => Err(failure),
        }
    }

    pub(super) async fn save(&self, namespace: &str, changes: Vec<CheckpointChange>) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        let changes = changes.into_iter().map(|(key, value)| (key.to_string(), value));
        let changes = changes.collect();
        if self.shared.saves.add(namespace, changes, reply)
            && let Some(requests) = &self.requests
        {
            // If the queue is full, the committer is about to take from it, and looks for cursors after that. If
            // it is closed, the log has failed.
            if requests.try_send(Request::Saves).is_err() {
                self.shared.saves.heard();
            }
        }
        tokio::select! {
            biased;
            Ok(answer) = answer => answer,
            failure = self.shared.failed() => Err(failure),
        }
    }

    /// The logs of events and dead letters.
    pub(super) fn logs(&self) -> impl Iterator<Item = Arc<OpenLog>> {
        let logs = self.shared.brokers.all().into_iter();
        logs.filter(|log| layout::broker_of_ids(&log.name).is_none())
    }

    pub(super) async fn append_for(
        &self,
        purpose: Purpose,
        broker: Arc<OpenLog>,
        Append {
            payloads,
            accepted,
            unique,
        }: Append,
    ) -> Result<Appended, LogError> {
        if payloads.is_empty() {
            // An empty append does not create a broker.
            return Ok(Appended {
                first: broker.bounds().next,
                repeats: 0,
            });
        }
        let length: usize = payloads.iter().map(Bytes::len).sum();
        // Reject at once when there is no room, without involving the committer. Repeats need none.
        if unique.is_none() {
            self.shared.check_room(purpose, &broker.name, length as u64)?;
        }
        let all = self.shared.options.queue_bytes.div_ceil(PERMIT_BYTES);
        // A request larger than the queue takes all of it.
        let permits = u32::try_from((length / PERMIT_BYTES + 1).min(all)).unwrap_or(u32::MAX);
        let permit = self.queue.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| LogError::Failed("it is closed".into()))?;
        let accepted_millis = record::millis(accepted);
        self.request(|reply| Request::Append {
            purpose,
            broker,
            payloads,
            accepted_millis,
            unique,
            reply,
            permit,
        })
        .await
    }

    /// Bytes of an append's payloads whose ids the broker does not remember.
    pub(super) async fn bytes_to_store(
        &self,
        broker: Arc<OpenLog>,
        append: &Append,
    ) -> Result<u64, LogError> {
        let Some(Unique { identities, .. }) = &append.unique else {
            return Ok(append.bytes());
        };
        let identities = identities.clone();
        let known = self.request(|reply| Request::FindIds {
            broker,
            identities,
            reply,
        });
        let lengths = append.payloads.iter().map(|payload| payload.len() as u64);
        let new = lengths.zip(known.await?).filter(|(_, is_known)| !is_known);
        Ok(new.map(|(length, _)| length).sum())
    }

    pub(super) async fn forget_ids(
        &self,
        kept: Vec<(BrokerName, KeepIds)>,
        now: Option<Timestamp>,
    ) -> Result<Vec<BrokerName>, LogError> {
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let kept = kept.into_iter();
        let kept = kept.map(|(broker, kept)| (broker.as_str().into(), kept));
        let kept = kept.collect::<HashMap<Arc<str>, _>>();
        let unfinished = self.request(|reply| Request::ForgetIds {
            kept,
            now_millis: now.map(record::millis),
            reply,
        });
        let unfinished = unfinished.await?.into_iter();
        Ok(unfinished.map(|broker| (&*broker).into()).collect())
    }

    fn cursors_error(&self, error: ReadError) -> LogError {
        match error {
            ReadError::Missing(_) => store::damaged(&self.shared.directory, "a cursor is missing"),
            ReadError::Damaged(detail) => {
                store::damaged(&self.shared.directory, format!("cursors: {detail}"))
            }
            ReadError::Unavailable(detail) => LogError::Unavailable(format!("cursors: {detail}")),
        }
    }

    /// Reads a broker's records between these offsets from the storage.
    async fn read_storage<T: Send + 'static>(
        &self,
        broker: &OpenLog,
        stored: &BrokerKeyspace,
        (from, to): (Offset, Offset),
        read: impl FnOnce(&Store) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, ReadError> {
        let origin = ReadRange {
            keyspace: stored.events.clone(),
            keys: Some((stored.key(from.0), stored.key(to.0))),
        };
        let is_trimmed = |offset| offset < broker.bounds().first.0;
        let shared = self.shared.clone();
        let read = move || read(&shared.store);
        self.readers
            .read(Some(&broker.turns), origin, is_trimmed, read)
            .await
    }

    pub(super) async fn read_records(
        &self,
        broker: &OpenLog,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<LogRecord>, LogError> {
        let name = &*broker.name;
        loop {
            let LogBounds { first, next } = broker.bounds();
            let from = from.max(first);
            let Some(stored) = broker.stored().filter(|_| from < next) else {
                return Ok(Vec::new());
            };
            if let Some(records) = lock(&self.shared.tail).read(name, from, next, limit) {
                return Ok(records);
            }
            let events = stored.clone();
            let read = move |store: &Store| store.read(&events, from.0, next.0, limit);
            match self.read_storage(broker, &stored, (from, next), read).await {
                Ok(records) => return Ok(records),
                // Trimmed during the read: restart where the log begins now.
                Err(ReadError::Missing(offset)) if offset < broker.bounds().first.0 => {}
                Err(e) => return Err(self.shared.read_error(name, e)),
            }
        }
    }

    pub(super) async fn find_time(&self, broker: &Arc<OpenLog>, time: Timestamp) -> Result<Offset, LogError> {
        // Bounds first: should the log take another place meanwhile, its records there are above.
        let (bounds, millis) = (broker.bounds(), record::millis(time));
        let Some(stored) = broker.stored() else {
            return Ok(bounds.next);
        };
        // Retention asks for every log again and again, and mostly its first record is young enough.
        if broker
            .accepted_at(bounds.first)
            .is_some_and(|accepted| accepted >= millis)
        {
            return Ok(bounds.first);
        }
        let (events, searched) = (stored.clone(), broker.clone());
        let search = move |store: &Store| {
            let (mut low, mut high) = (bounds.first.0, bounds.next.0);
            if low < high {
                match store.header(&events, low) {
                    Ok(header) => {
                        searched.note_accepted(bounds.first, header.accepted_millis);
                        if header.accepted_millis >= millis {
                            return Ok(bounds.first);
                        }
                        low += 1;
                    }
                    Err(ReadError::Missing(_)) if low < searched.bounds().first.0 => {}
                    Err(e) => return Err(e),
                }
            }
            while low < high {
                let middle = low + (high - low) / 2;
                match store.header(&events, middle) {
                    Ok(header) if header.accepted_millis >= millis => high = middle,
                    Ok(_) => low = middle + 1,
                    // Trimmed during the search.
                    Err(ReadError::Missing(_)) if middle < searched.bounds().first.0 => low = middle + 1,
                    Err(e) => return Err(e),
                }
            }
            Ok(Offset(low))
        };
        let range = (bounds.first, bounds.next);
        let found = self.read_storage(broker, &stored, range, search).await;
        let found = found.map_err(|e| self.shared.read_error(&broker.name, e))?;
        Ok(found.max(broker.bounds().first))
    }

    pub(super) async fn trim_records(&self, broker: &Arc<OpenLog>, before: Offset) -> Result<(), LogError> {
        if !broker.is_stored() {
            return Ok(());
        }
        // Trim only durable records: nobody can have settled more.
        let before = before.min(broker.bounds().next);
        // Read here, so that the disk delays no commit.
        let Some(bytes_before) = self.bytes_below(broker, before).await? else {
            return Ok(());
        };
        self.request(|reply| Request::Trim {
            broker: broker.clone(),
            before,
            bytes_before,
            reply,
        })
        .await
    }

    /// Bytes of all payloads ever appended below an offset; `None` if it was trimmed meanwhile.
    pub(super) async fn bytes_below(
        &self,
        broker: &OpenLog,
        offset: Offset,
    ) -> Result<Option<u64>, LogError> {
        let state = broker.state();
        if offset.0 >= state.next {
            return Ok(Some(state.bytes_before_next));
        }
        let Some(stored) = broker.stored().filter(|_| offset.0 > state.first) else {
            return Ok(Some(state.bytes_before_first));
        };
        let events = stored.clone();
        let read = move |store: &Store| store.header(&events, offset.0);
        let range = (offset, offset.plus(1));
        match self.read_storage(broker, &stored, range, read).await {
            Ok(header) => Ok(Some(header.bytes_before)),
            Err(ReadError::Missing(_)) if offset < broker.bounds().first => Ok(None),
            Err(e) => Err(self.shared.read_error(&broker.name, e)),
        }
    }

    /// Reads cursors from the storage.
    pub(super) async fn read_cursors<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<T, ReadError> + Clone + Send + 'static,
    ) -> Result<T, LogError> {
        let origin = ReadRange {
            keyspace: self.shared.store.cursors.clone(),
            keys: None,
        };
        let shared = self.shared.clone();
        let read = move || read(&shared.store);
        let cursors = self.readers.read(None, origin, |_| false, read).await;
        cursors.map_err(|error| self.cursors_error(error))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // The committer ends when its queue has no senders.
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A panic has been reported already, and nobody is left to be told.
            let _ = thread.join();
        }
    }
}
