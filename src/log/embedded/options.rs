//! Limits of the embedded log on its volume and memory.

use super::places::MAX_PLACES;

const MIB: u64 = 1024 * 1024;

/// Approximate bytes of memory of a remembered id.
const ID: u64 = 100;

/// Limits of an [`EmbeddedLog`](super::EmbeddedLog) on its volume and memory.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Sum of all brokers' retained payloads at which the log is full. New events are rejected a little earlier,
    /// which leaves room for settling the others.
    pub max_bytes: u64,
    /// Largest share of one namespace, in percent of what the others leave.
    pub share_percent: u8,
    /// Bytes of the volume that stay free. A write that would leave less, once everything in memory is written
    /// out, is rejected with [`LogError::Full`].
    pub reserve_bytes: u64,
    /// Bytes of the most recent records cached for readers that have caught up.
    pub tail_cache_bytes: usize,
    /// Bytes of payload that may wait for a commit; beyond it, appends wait.
    pub queue_bytes: usize,
    /// Number of logs that get a keyspace of their own, at most 900. Later ones share a few; trimming these costs
    /// rewriting what is retained.
    pub own_keyspaces: u32,
    /// Number of logs that can have records, counting one for the dead letters of each broker with events.
    pub places: u32,
    /// Number of ids that brokers with deduplication remember together, at about 100 bytes of memory each. Beyond it,
    /// the namespace that remembers most forgets its oldest.
    pub max_ids: usize,
}

impl EmbeddedOptions {
    /// Number of ids that can be remembered in so many bytes of memory.
    pub fn ids_within(bytes: u64) -> usize {
        usize::try_from(bytes / ID).unwrap_or(usize::MAX)
    }
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            max_bytes: 8 * 1024 * MIB,
            share_percent: 50,
            reserve_bytes: 32 * MIB,
            tail_cache_bytes: 4 * 1024 * 1024,
            queue_bytes: 4 * 1024 * 1024,
            own_keyspaces: 800,
            places: MAX_PLACES,
            max_ids: 300_000,
        }
    }
}
