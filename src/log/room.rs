//! Room for new events in a full log.

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{EventLog, LogError, Offset};

/// Knows what may be removed from a full log.
pub trait MakeRoom: Send + Sync {
    /// Removes something. Returns whether there may be room now.
    ///
    /// # Errors
    /// When the log fails.
    fn make_room(&self) -> BoxFuture<'_, Result<bool, LogError>>;
}

/// Appends new events as one commit; when the log is full, once more after room was made.
///
/// # Errors
/// As [`EventLog::append`].
pub async fn append_new(
    log: &dyn EventLog,
    room: &dyn MakeRoom,
    broker: &str,
    records: &[Bytes],
    accepted: Timestamp,
) -> Result<Offset, LogError> {
    let append = || log.append(broker, records.to_vec(), accepted);
    let appended = append().await;
    if !matches!(appended, Err(LogError::Full(_))) {
        return appended;
    }
    match room.make_room().await {
        Ok(true) => append().await,
        Ok(false) => appended,
        Err(error @ LogError::Failed(_)) => Err(error),
        // It was told where it happened. The events are refused because the log is full.
        Err(_) => appended,
    }
}
