//! In-memory logs for tests. They can be full, fail as a test says, and survive being dropped.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    Append, Appended, Capacity, CheckpointChange, CheckpointKey, Checkpoints, Epoch, EventIdentity, Log,
    LogBounds, LogError, LogHealth, LogName, LogProvider, LogRecord, NamespaceShare, Offset, Ownership,
    Partition, ReadLimit, Unique,
};

/// An operation that a [`Fault`] may prevent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Append,
    Read,
    FindTime,
    Trim,
    Save,
}

/// Decides whether an operation on a log fails, or panics; `None` lets it pass. Saves concern no log.
pub(crate) type Fault = dyn Fn(Operation, Option<&LogName>) -> Option<LogError> + Send + Sync;

/// All logs, in memory. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct MemoryLogs(Arc<MemoryLogShared>);

#[derive(Default)]
struct MemoryLogShared {
    state: Mutex<MemoryLogState>,
    fault: Mutex<Option<Arc<Fault>>>,
    health: Mutex<Option<LogHealth>>,
}

#[derive(Default)]
struct MemoryLogState {
    logs: BTreeMap<LogName, Records>,
    checkpoints: BTreeMap<CheckpointKey, Bytes>,
    epoch: Epoch,
}

#[derive(Default)]
struct Records {
    first: u64,
    retained: Vec<LogRecord>,
    last_accepted: Option<Timestamp>,
    /// Digest and time by key. It forgets none.
    ids: BTreeMap<[u8; 16], (u64, Timestamp)>,
    end: watch::Sender<Offset>,
}

impl Records {
    fn bounds(&self) -> LogBounds {
        LogBounds {
            first: Offset(self.first),
            next: Offset(self.first).plus(self.retained.len() as u64),
        }
    }

    fn without_repeats(
        &mut self,
        payloads: Vec<Bytes>,
        unique: Unique,
        accepted: Timestamp,
    ) -> Result<Vec<Bytes>, LogError> {
        let mut new = Vec::new();
        for (index, EventIdentity { key, digest }) in unique.identities.iter().enumerate() {
            match self.ids.get(key) {
                None => new.push((*key, (*digest, accepted), payloads[index].clone())),
                Some((known, _)) if known == digest => {}
                Some((_, accepted)) => {
                    let accepted = *accepted;
                    return Err(LogError::Conflict { index, accepted });
                }
            }
        }
        let remembered = new.iter().map(|(key, known, _)| (*key, *known));
        self.ids.extend(remembered);
        Ok(new.into_iter().map(|(_, _, payload)| payload).collect())
    }

    fn bytes(&self) -> u64 {
        self.retained
            .iter()
            .map(|record| record.payload.len() as u64)
            .sum()
    }
}

impl MemoryLogs {
    /// Makes operations fail by this fault from now on.
    pub(crate) fn set_fault(
        &self,
        fault: impl Fn(Operation, Option<&LogName>) -> Option<LogError> + Send + Sync + 'static,
    ) {
        *self.0.fault.lock().unwrap() = Some(Arc::new(fault));
    }

    /// Pretends that servers keep the logs.
    pub(crate) fn set_health(&self, health: LogHealth) {
        *self.0.health.lock().unwrap() = Some(health);
    }
}

impl MemoryLogShared {
    fn state(&self) -> MutexGuard<'_, MemoryLogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, operation: Operation, name: Option<&LogName>) -> Result<(), LogError> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        fault.and_then(|fault| fault(operation, name)).map_or(Ok(()), Err)
    }
}

impl LogProvider for MemoryLogs {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        Arc::new(MemoryLog {
            shared: self.0.clone(),
            name: name.clone(),
        })
    }

    fn checkpoints(&self, Ownership { epoch, .. }: Ownership) -> Arc<dyn Checkpoints> {
        let mut state = self.0.state();
        state.epoch = state.epoch.max(epoch);
        Arc::new(MemoryCheckpoints {
            shared: self.0.clone(),
            epoch,
        })
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let state = self.0.state();
        let logs = state
            .logs
            .iter()
            .filter(|(_, records)| !records.retained.is_empty());
        logs.map(|(name, records)| (name.clone(), records.bytes()))
            .collect()
    }

    fn capacity(&self) -> Option<&dyn Capacity> {
        Some(self)
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async { Ok(()) })
    }

    fn health(&self) -> Option<LogHealth> {
        self.0
            .health
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn failed(&self) -> BoxFuture<'_, LogError> {
        Box::pin(std::future::pending())
    }
}

impl Capacity for MemoryLogs {
    fn capacity(&self) -> u64 {
        u64::MAX
    }

    fn retained(&self) -> u64 {
        self.usage().iter().map(|(_, bytes)| bytes).sum()
    }

    fn shares(&self) -> Vec<NamespaceShare> {
        let mut held = BTreeMap::<_, u64>::new();
        for (log, bytes) in self.usage() {
            *held.entry(log.broker().namespace().to_owned()).or_default() += bytes;
        }
        let share = |(namespace, held)| NamespaceShare {
            namespace,
            held,
            limit: u64::MAX,
            guaranteed: u64::MAX,
        };
        held.into_iter().map(share).collect()
    }

    fn bytes_ever(&self, log: &LogName) -> u64 {
        self.open(log).retained()
    }

    fn bytes_below<'a>(&'a self, log: &'a LogName, offset: Offset) -> BoxFuture<'a, Result<u64, LogError>> {
        let log = self.open(log);
        Box::pin(async move {
            let all = ReadLimit {
                records: usize::MAX,
                bytes: usize::MAX,
            };
            let records = log.read(Offset(0), all).await?;
            let below = records.iter().filter(|record| record.offset < offset);
            Ok(below.map(|record| record.payload.len() as u64).sum())
        })
    }

    fn append_to_settle<'a>(
        &'a self,
        log: &'a LogName,
        append: Append,
    ) -> BoxFuture<'a, Result<Appended, LogError>> {
        let log = self.open(log);
        Box::pin(async move { log.append(append).await })
    }
}

struct MemoryLog {
    shared: Arc<MemoryLogShared>,
    name: LogName,
}

impl MemoryLog {
    /// Runs an action on the records, unless a fault prevents it.
    fn with<T>(&self, operation: Operation, action: impl FnOnce(&mut Records) -> T) -> Result<T, LogError> {
        self.shared.check(operation, Some(&self.name))?;
        let mut state = self.shared.state();
        Ok(action(state.logs.entry(self.name.clone()).or_default()))
    }
}

impl Log for MemoryLog {
    fn name(&self) -> &LogName {
        &self.name
    }

    fn partition(&self) -> Partition {
        Partition::WHOLE
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, LogError>> {
        let Append {
            mut payloads,
            accepted,
            unique,
        } = append;
        Box::pin(async move {
            self.with(Operation::Append, |records| {
                let before = payloads.len();
                if let Some(unique) = unique {
                    payloads = records.without_repeats(payloads, unique, accepted)?;
                }
                let first = records.bounds().next;
                let millis = accepted.as_nanosecond().div_euclid(1_000_000);
                let accepted = Timestamp::from_millisecond(i64::try_from(millis).unwrap()).unwrap();
                let last = records.last_accepted;
                let accepted = last.map_or(accepted, |last| last.max(accepted));
                if !payloads.is_empty() {
                    records.last_accepted = Some(accepted);
                }
                for payload in payloads {
                    let offset = records.bounds().next;
                    records.retained.push(LogRecord {
                        offset,
                        accepted,
                        payload,
                    });
                }
                let next = records.bounds().next;
                records
                    .end
                    .send_if_modified(|end| std::mem::replace(end, next) != next);
                Ok(Appended {
                    first,
                    repeats: before - (next.0 - first.0) as usize,
                })
            })?
        })
    }

    fn bytes_to_store<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, Result<u64, LogError>> {
        Box::pin(async move {
            let state = self.shared.state();
            let records = state.logs.get(&self.name);
            let is_new = |index: usize| {
                let identity = append.unique.as_ref().map(|unique| unique.identities[index].key);
                let known = identity
                    .zip(records)
                    .map(|(key, records)| records.ids.contains_key(&key));
                known != Some(true)
            };
            let payloads = append.payloads.iter().enumerate();
            let new = payloads.filter(|(index, _)| is_new(*index));
            Ok(new.map(|(_, payload)| payload.len() as u64).sum())
        })
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<LogRecord>, LogError>> {
        Box::pin(async move {
            self.with(Operation::Read, |records| {
                let mut bytes = 0;
                let from = records.retained.iter().skip_while(|record| record.offset < from);
                let within = from.enumerate().take_while(|(number, record)| {
                    bytes += record.payload.len();
                    *number == 0 || (*number < limit.records && bytes <= limit.bytes)
                });
                within.map(|(_, record)| record.clone()).collect()
            })
        })
    }

    fn bounds(&self) -> BoxFuture<'_, Result<LogBounds, LogError>> {
        Box::pin(async { Ok(self.cached_bounds()) })
    }

    fn cached_bounds(&self) -> LogBounds {
        let state = self.shared.state();
        state
            .logs
            .get(&self.name)
            .map(Records::bounds)
            .unwrap_or_default()
    }

    fn retained(&self) -> u64 {
        self.shared.state().logs.get(&self.name).map_or(0, Records::bytes)
    }

    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>> {
        Box::pin(async move {
            self.with(Operation::FindTime, |records| {
                let found = records.retained.iter().find(|record| record.accepted >= time);
                found.map_or(records.bounds().next, |record| record.offset)
            })
        })
    }

    fn follow(&self) -> watch::Receiver<Offset> {
        let mut state = self.shared.state();
        state.logs.entry(self.name.clone()).or_default().end.subscribe()
    }

    fn trim(&self, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            self.with(Operation::Trim, |records| {
                let LogBounds { first, next } = records.bounds();
                let before = before.clamp(first, next);
                records.retained.retain(|record| record.offset >= before);
                records.first = before.0;
            })
        })
    }
}

struct MemoryCheckpoints {
    shared: Arc<MemoryLogShared>,
    epoch: Epoch,
}

impl Checkpoints for MemoryCheckpoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        Box::pin(async {
            let state = self.shared.state();
            let stored = state.checkpoints.iter();
            Ok(stored.map(|(key, value)| (key.clone(), value.clone())).collect())
        })
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        Box::pin(async move { Ok(self.shared.state().checkpoints.get(key).cloned()) })
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            self.shared.check(Operation::Save, None)?;
            let mut state = self.shared.state();
            if self.epoch < state.epoch {
                return Err(LogError::Fenced(format!("the epoch is {}", state.epoch.0)));
            }
            for (key, value) in changes {
                match value {
                    Some(value) => state.checkpoints.insert(key, value),
                    None => state.checkpoints.remove(&key),
                };
            }
            Ok(())
        })
    }
}

mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::conformance::{self, Tested};

    impl Tested for MemoryLogs {
        type Logs = Self;

        async fn open(&self) -> Self {
            self.clone()
        }
    }

    crate::log::conformance::conformance!(super::MemoryLogs::default());

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn behaves_like_the_model(steps in conformance::steps(60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(conformance::behaves_like_the_model(MemoryLogs::default(), steps));
        }
    }

    #[tokio::test]
    async fn an_owner_at_an_earlier_epoch_is_fenced() {
        let logs = MemoryLogs::default();
        let change = || vec![(CheckpointKey::RunningTime, Some(Bytes::from_static(b"1")))];
        let of = |epoch| Ownership {
            epoch: Epoch(epoch),
            ..Ownership::default()
        };
        let before = logs.checkpoints(of(1));
        before.save(change()).await.unwrap();
        let after = logs.checkpoints(of(2));
        assert!(matches!(before.save(change()).await, Err(LogError::Fenced(_))));
        after.save(change()).await.unwrap();
    }
}
