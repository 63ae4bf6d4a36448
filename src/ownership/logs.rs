//! The logs of one shard, as its owner sees them: of each broker only the partition that is in the shard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::log::{
    Append, Appended, BrokerName, Capacity, CheckpointChange, CheckpointKey, Checkpoints, KeepIds, Log,
    LogBounds, LogError, LogName, LogProvider, LogRecord, Offset, Ownership, Partition, ReadLimit,
    RememberedIds, Shard,
    jetstream::{JetStreamLog, SHARDS},
};

/// The logs of a shard's brokers. [`LogProvider::usage`] has only these; all others can be opened.
pub(super) struct ShardLogs {
    logs: Arc<dyn LogProvider>,
    /// The checkpoints of the shard.
    checkpoints: Arc<dyn Checkpoints>,
    /// `None` if the shard is the only one.
    shared: Option<SharedShard>,
}

/// A shard of a log that routers share.
struct SharedShard {
    log: Arc<JetStreamLog>,
    shard: Shard,
    trim_points: Arc<TrimPoints>,
}

impl ShardLogs {
    /// Opens the logs of a shard for its owner. `shared` is the log, if several routers share it.
    pub(super) fn new(
        logs: Arc<dyn LogProvider>,
        shared: Option<&Arc<JetStreamLog>>,
        ownership: Ownership,
    ) -> Self {
        let checkpoints = logs.checkpoints(ownership);
        let Some(log) = shared else {
            return Self {
                logs,
                checkpoints,
                shared: None,
            };
        };
        let trim_points = Arc::new(TrimPoints {
            log: log.clone(),
            checkpoints,
            points: StdMutex::default(),
        });
        Self {
            logs,
            checkpoints: trim_points.clone(),
            shared: Some(SharedShard {
                log: log.clone(),
                shard: ownership.shard,
                trim_points,
            }),
        }
    }
}

impl SharedShard {
    /// Returns the partition of a broker in this shard; `None` if the number of its partitions is unknown.
    fn partition_of(&self, broker: &BrokerName) -> Option<Partition> {
        Partition::in_shard(broker, self.log.partitions_of(broker)?, self.shard, SHARDS)
    }

    /// Whether the shard has this log: a partition of the events, or the dead letters, which are in the first one.
    fn has(&self, name: &LogName) -> bool {
        let partition = self.partition_of(name.broker());
        match name {
            LogName::Events(_) => partition.is_some(),
            LogName::DeadLetters(_) => partition.is_some_and(|partition| partition.number == 0),
        }
    }
}

impl LogProvider for ShardLogs {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        let log = self.logs.open(name);
        let (LogName::Events(broker), Some(shared)) = (name, &self.shared) else {
            return log;
        };
        match shared.partition_of(broker) {
            Some(partition) if partition != Partition::WHOLE => Arc::new(PartitionLog {
                log,
                partition,
                trim_points: shared.trim_points.clone(),
            }),
            _ => log,
        }
    }

    /// Returns the checkpoints that this was opened with.
    fn checkpoints(&self, _: Ownership) -> Arc<dyn Checkpoints> {
        self.checkpoints.clone()
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let mut usage = self.logs.usage();
        if let Some(shared) = &self.shared {
            usage.retain(|(name, _)| shared.has(name));
            for (name, bytes) in &mut usage {
                *bytes = self.open(name).retained();
            }
        }
        usage
    }

    fn capacity(&self) -> Option<&dyn Capacity> {
        self.logs.capacity()
    }

    fn remembered_ids(&self) -> Vec<(BrokerName, RememberedIds)> {
        self.logs.remembered_ids()
    }

    fn remembers_by_records(&self) -> bool {
        self.logs.remembers_by_records()
    }

    fn forget_ids(
        &self,
        kept: Vec<(BrokerName, KeepIds)>,
        now: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<Vec<BrokerName>, LogError>> {
        self.logs.forget_ids(kept, now)
    }

    fn sync(&self) -> BoxFuture<'_, Result<(), LogError>> {
        self.logs.sync()
    }

    fn read_errors(&self) -> u64 {
        self.logs.read_errors()
    }

    fn failed(&self) -> BoxFuture<'_, LogError> {
        self.logs.failed()
    }
}

/// The events of a broker for the owner of one of several partitions. Events below its trim point count as trimmed. The
/// stream is purged up to the lowest trim point of all partitions.
struct PartitionLog {
    /// The events of all partitions.
    log: Arc<dyn Log>,
    partition: Partition,
    trim_points: Arc<TrimPoints>,
}

impl PartitionLog {
    fn within(&self, LogBounds { first, next }: LogBounds) -> LogBounds {
        LogBounds {
            first: first.max(self.trim_points.get(self.name().broker())).min(next),
            next,
        }
    }
}

impl Log for PartitionLog {
    fn name(&self) -> &LogName {
        self.log.name()
    }

    fn partition(&self) -> Partition {
        self.partition
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, LogError>> {
        self.log.append(append)
    }

    fn bytes_to_store<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, Result<u64, LogError>> {
        self.log.bytes_to_store(append)
    }

    fn append_once<'a>(&'a self, id: &'a str, append: Append) -> BoxFuture<'a, Result<Appended, LogError>> {
        self.log.append_once(id, append)
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<LogRecord>, LogError>> {
        self.log
            .read(from.max(self.trim_points.get(self.name().broker())), limit)
    }

    fn bounds(&self) -> BoxFuture<'_, Result<LogBounds, LogError>> {
        Box::pin(async {
            let bounds = self.log.bounds().await?;
            self.trim_points
                .keep_within(self.name().broker(), bounds.next)
                .await?;
            Ok(self.within(bounds))
        })
    }

    fn cached_bounds(&self) -> LogBounds {
        self.within(self.log.cached_bounds())
    }

    /// An estimate, which assumes records of equal size.
    fn retained(&self) -> u64 {
        let all = self.log.cached_bounds();
        let own = self.within(all);
        let records = |bounds: LogBounds| u128::from(bounds.next.0.saturating_sub(bounds.first.0));
        let bytes = u128::from(self.log.retained()) * records(own) / records(all).max(1);
        // At most all bytes, which are a u64.
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn offset_at(&self, time: Timestamp) -> BoxFuture<'_, Result<Offset, LogError>> {
        Box::pin(async move {
            let found = self.log.offset_at(time).await?;
            Ok(found.max(self.trim_points.get(self.name().broker())))
        })
    }

    fn follow(&self) -> watch::Receiver<Offset> {
        self.log.follow()
    }

    fn is_trimmed(&self) -> bool {
        self.log.cached_bounds().first >= self.trim_points.get(self.name().broker())
    }

    fn trim(&self, before: Offset) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(async move {
            let broker = self.name().broker();
            self.trim_points.raise(broker, before).await?;
            let lowest = self.trim_points.lowest(broker, self.partition.of).await?;
            self.log.trim(lowest).await
        })
    }
}

/// The offsets below which the shard's partitions need no events any more. They are checkpoints of the shard, so that
/// only its owner can change them, and they are loaded with the others.
struct TrimPoints {
    log: Arc<JetStreamLog>,
    /// The checkpoints of the shard.
    checkpoints: Arc<dyn Checkpoints>,
    points: StdMutex<BTreeMap<BrokerName, Offset>>,
}

impl TrimPoints {
    fn get(&self, broker: &BrokerName) -> Offset {
        self.points().get(broker).copied().unwrap_or_default()
    }

    /// Raises the point of a broker's partition.
    async fn raise(&self, broker: &BrokerName, before: Offset) -> Result<(), LogError> {
        match before > self.get(broker) {
            true => self.set(broker, before).await,
            false => Ok(()),
        }
    }

    /// Lowers the point of a broker's partition to the end of a log that has lost its tail: other events will get the
    /// offsets beyond.
    async fn keep_within(&self, broker: &BrokerName, end: Offset) -> Result<(), LogError> {
        match self.get(broker) > end {
            true => self.set(broker, end).await,
            false => Ok(()),
        }
    }

    /// Sets a point, once it is stored.
    async fn set(&self, broker: &BrokerName, point: Offset) -> Result<(), LogError> {
        let stored = Bytes::from(point.to_string());
        let change = (CheckpointKey::TrimPoint(broker.clone()), Some(stored));
        self.checkpoints.save(vec![change]).await?;
        self.points().insert(broker.clone(), point);
        Ok(())
    }

    /// Returns the lowest point of a broker's partitions. It may be stale, and is then too low.
    async fn lowest(&self, broker: &BrokerName, partitions: u16) -> Result<Offset, LogError> {
        let key = CheckpointKey::TrimPoint(broker.clone());
        let stored = self.log.checkpoint_of_all(&key).await?;
        let points = Partition::all(partitions).map(|partition| {
            let stored = stored.get(&partition.shard(broker, SHARDS));
            stored.and_then(|stored| decode(stored)).unwrap_or_default()
        });
        Ok(points.min().unwrap_or_default())
    }

    fn points(&self) -> MutexGuard<'_, BTreeMap<BrokerName, Offset>> {
        // No panic under the lock leaves the map half changed.
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The checkpoints of the shard without the trim points, which are kept here.
impl Checkpoints for TrimPoints {
    fn load_all(&self) -> BoxFuture<'_, Result<Vec<(CheckpointKey, Bytes)>, LogError>> {
        Box::pin(async {
            let mut others = Vec::new();
            for (key, value) in self.checkpoints.load_all().await? {
                match key {
                    // A trim point that cannot be decoded becomes 0, which trims nothing.
                    CheckpointKey::TrimPoint(broker) => {
                        let point = decode(&value).unwrap_or_default();
                        self.points().insert(broker, point);
                    }
                    key => others.push((key, value)),
                }
            }
            Ok(others)
        })
    }

    fn load<'a>(&'a self, key: &'a CheckpointKey) -> BoxFuture<'a, Result<Option<Bytes>, LogError>> {
        self.checkpoints.load(key)
    }

    fn save(&self, changes: Vec<CheckpointChange>) -> BoxFuture<'_, Result<(), LogError>> {
        self.checkpoints.save(changes)
    }
}

fn decode(stored: &[u8]) -> Option<Offset> {
    str::from_utf8(stored).ok()?.parse().ok().map(Offset)
}
