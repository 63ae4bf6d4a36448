//! Limits of the embedded log on its volume and memory.

use super::request::Purpose;
use crate::log::LogError;

const MIB: u64 = 1024 * 1024;
/// Fraction of the room, one in so many, that only [`Purpose::Settling`] may use.
const KEPT_FOR_SETTLING: u64 = 32;

/// Limits of an [`EmbeddedLog`](super::EmbeddedLog) on its volume and memory.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Sum of all brokers' retained payloads at which the log is full. New events are rejected a little earlier,
    /// which leaves room for settling the others.
    pub max_bytes: u64,
    /// Bytes of the volume that stay free. A write that would leave less, once everything in memory is written
    /// out, is rejected with [`LogError::Full`].
    pub reserve_bytes: u64,
    /// Bytes of the most recent records cached for readers that have caught up.
    pub tail_cache_bytes: usize,
    /// Bytes of payload that may wait for a commit; beyond it, appends wait.
    pub queue_bytes: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            max_bytes: 8 * 1024 * MIB,
            reserve_bytes: 32 * MIB,
            tail_cache_bytes: 4 * 1024 * 1024,
            queue_bytes: 4 * 1024 * 1024,
        }
    }
}

impl EmbeddedOptions {
    /// Checks whether `length` more bytes may be retained.
    pub(super) fn check_room(&self, purpose: Purpose, retained: u64, length: u64) -> Result<(), LogError> {
        let max = match purpose {
            Purpose::NewEvents => self.max_bytes - self.max_bytes / KEPT_FOR_SETTLING,
            Purpose::Settling => self.max_bytes,
        };
        if length > 0 && retained.saturating_add(length) > max {
            return Err(LogError::Full(format!(
                "{retained} of {max} bytes are held by events that Triggers have not settled; let them be delivered, delete a Trigger, or \
                 raise --log-size"
            )));
        }
        Ok(())
    }
}
