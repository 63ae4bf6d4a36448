//! How the embedded log uses its volume and its memory.

use super::request::Purpose;
use crate::log::LogError;

const MIB: u64 = 1024 * 1024;
/// The part of the room, one in so many, that only [`Purpose::Settling`] may use.
const KEPT_FOR_SETTLING: u64 = 32;

/// How an [`EmbeddedLog`](super::EmbeddedLog) uses its volume and its memory.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The log is full when the retained payloads of all brokers add up to this; for new events a little earlier, so
    /// that there is room for what settling the others needs.
    pub max_bytes: u64,
    /// How much of the volume stays free. What would leave less, once everything in memory is written out, is
    /// refused as [`LogError::Full`].
    pub reserve_bytes: u64,
    /// The most recent records that are kept in memory for the readers that have caught up.
    pub tail_cache_bytes: usize,
    /// How many bytes of payload wait for a commit before those who append have to wait.
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
    /// Whether so many more bytes may be retained.
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
