//! What decides about the windows of streams: the configuration, the shards of this router, and the limit of the servers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use jiff::SignedDuration;

use super::{
    names::SHARDS,
    session::{NatsError, Rejection},
};
use crate::log::{BrokerName, Epoch, IdWindow, Ownership, Shard};

/// What a server says before its limit when it rejects a window.
const LIMIT: &str = "server limit of ";

/// Windows of brokers, by the present configuration.
pub(super) type WindowOf = Arc<dyn Fn(&BrokerName) -> Option<IdWindow> + Send + Sync>;

/// What decides about the windows of streams.
pub(super) struct StreamWindows {
    /// `None` until a configuration is known.
    wanted: Mutex<Option<WindowOf>>,
    /// Shards of this router's last membership.
    owned: Mutex<BTreeMap<Shard, Epoch>>,
    /// Nanoseconds that the servers accept, as far as known.
    limit: AtomicU64,
}

impl Default for StreamWindows {
    fn default() -> Self {
        Self {
            wanted: Mutex::default(),
            owned: Mutex::default(),
            limit: AtomicU64::new(u64::MAX),
        }
    }
}

impl StreamWindows {
    pub(super) fn want(&self, wanted: WindowOf) {
        *locked(&self.wanted) = Some(wanted);
    }

    /// The windows of brokers; `None` until a configuration is known.
    pub(super) fn wanted(&self) -> Option<WindowOf> {
        locked(&self.wanted).clone()
    }

    /// Nanoseconds of a window, as far as the servers accept it.
    pub(super) fn accepted(&self, IdWindow { age, .. }: IdWindow) -> u64 {
        nanos(age).min(self.limit.load(Relaxed))
    }

    /// Notes that this router has taken a shard.
    pub(super) fn taken(&self, Ownership { shard, epoch }: Ownership) {
        locked(&self.owned).insert(shard, epoch);
    }

    /// Notes that this router has released a shard.
    pub(super) fn released(&self, shard: Shard) {
        locked(&self.owned).remove(&shard);
    }

    /// Notes that a membership begins.
    pub(super) fn joined(&self) {
        locked(&self.owned).clear();
    }

    /// The right to decide about a broker, if this router has it.
    pub(super) fn ownership_of(&self, broker: &BrokerName) -> Option<Ownership> {
        let shard = Shard::of(broker, SHARDS);
        let epoch = *locked(&self.owned).get(&shard)?;
        Some(Ownership { shard, epoch })
    }

    /// Notes the limit of the servers, if that is why they rejected a window. Returns whether it is news.
    pub(super) fn note_limit(&self, error: &NatsError) -> bool {
        let NatsError::Rejected(Rejection { description, .. }) = error else {
            return false;
        };
        let limit = description.split_once(LIMIT).map(|(_, limit)| limit.trim());
        let limit = limit.and_then(|limit| limit.parse::<SignedDuration>().ok());
        let Some(limit) = limit.and_then(|limit| Duration::try_from(limit).ok()) else {
            return false;
        };
        let is_new = self.limit.swap(nanos(limit), Relaxed) != nanos(limit);
        if is_new {
            tracing::warn!(
                seconds = limit.as_secs(),
                "the NATS servers limit duplicate_window: brokers with a longer window of deduplication recognize repeats for \
                 this time only; raise duplicate_window in the limits of the servers' jetstream, and restart the routers"
            );
        }
        is_new
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No panic under a lock leaves a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
