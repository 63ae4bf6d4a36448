//! Where an event that is to be delivered is kept.

use crate::{
    cloudevents::Event,
    log::{EventLog, LogError, Offset, ReadLimit},
};

use super::{dead_letter::DeadLetter, reader::READ};

/// Names one event of a Trigger. What comes from the broker's log goes before what is redriven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// In the broker's log.
    Log(Offset),
    /// In its dead-letter log: the event is redriven.
    DeadLetter(Offset),
}

/// Why an event cannot be had.
pub(super) enum FetchError {
    /// It was removed to make room in the log.
    Removed,
    /// Its record is not what was written.
    Damaged(String),
    /// The log could not be read for now ([`LogError::Unavailable`]): the event is there, and waits. Any other error
    /// means that the log failed, and the process has to end.
    Log(LogError),
}

impl Place {
    /// Reads the event.
    pub(super) async fn fetch(self, log: &dyn EventLog, broker: &str) -> Result<Event, FetchError> {
        let damaged = |error: &dyn std::fmt::Display| FetchError::Damaged(error.to_string());
        match self {
            Self::Log(offset) => {
                let payload = record(log, broker, offset).await?;
                Event::from_record(payload).map_err(|error| damaged(&error))
            }
            Self::DeadLetter(offset) => {
                let payload = record(log, &DeadLetter::log_of(broker), offset).await?;
                let (_, event) = DeadLetter::decode(payload).map_err(|error| damaged(&error))?;
                Ok(event)
            }
        }
    }
}

async fn record(log: &dyn EventLog, key: &str, offset: Offset) -> Result<bytes::Bytes, FetchError> {
    let records = match log.read(key, offset, ReadLimit { records: 1, ..READ }).await {
        Ok(records) => records,
        Err(error @ LogError::Damaged { .. }) => return Err(FetchError::Damaged(error.to_string())),
        Err(error) => return Err(FetchError::Log(error)),
    };
    match records.into_iter().find(|record| record.offset == offset) {
        Some(record) => Ok(record.payload),
        None => Err(FetchError::Removed),
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Log(offset) => write!(f, "{offset}"),
            Self::DeadLetter(offset) => write!(f, "dead letter {offset}"),
        }
    }
}
