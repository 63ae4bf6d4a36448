//! The logs of one shard: what its owner may trim and count.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::log::{Capacity, Checkpoints, Log, LogError, LogName, LogProvider, Ownership, Shard};

/// The logs of a shard's brokers. [`LogProvider::usage`] has only these; all others can be opened.
pub(super) struct ShardLogs {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) shard: Shard,
    /// Number of shards.
    pub(super) shards: u16,
}

impl LogProvider for ShardLogs {
    fn open(&self, name: &LogName) -> Arc<dyn Log> {
        self.logs.open(name)
    }

    fn checkpoints(&self, ownership: Ownership) -> Arc<dyn Checkpoints> {
        self.logs.checkpoints(ownership)
    }

    fn usage(&self) -> Vec<(LogName, u64)> {
        let mut usage = self.logs.usage();
        usage.retain(|(name, _)| Shard::of(name.broker(), self.shards) == self.shard);
        usage
    }

    fn capacity(&self) -> Option<&dyn Capacity> {
        self.logs.capacity()
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
