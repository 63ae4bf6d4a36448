//! The position of an event that is to be delivered: an offset in one of its broker's logs.

use std::sync::Arc;

use crate::{
    cloudevents::Event,
    log::{BrokerName, Log, LogError, LogName, LogProvider, Offset, ReadLimit},
};

use super::dead_letter::DeadLetter;

/// Limit of one read.
pub(super) const READ: ReadLimit = ReadLimit {
    records: 256,
    bytes: 1024 * 1024,
};

/// Identifies an event of a Trigger. Events of the broker's log sort before redriven ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum EventPosition {
    /// An offset in the broker's log.
    Log(Offset),
    /// An offset in its dead-letter log: the event is redriven.
    DeadLetter(Offset),
}

/// Why an event cannot be read.
pub(super) enum FetchError {
    /// Removed to make room in the log.
    Removed,
    /// The record is damaged.
    Damaged(String),
    /// The log is temporarily unavailable ([`LogError::Unavailable`]): the event exists and waits. Any other error
    /// means that the log failed and the process has to exit.
    Log(LogError),
}

impl EventPosition {
    /// Reads the event from its broker's logs.
    pub(super) async fn fetch(self, logs: &BrokerLogs) -> Result<Event, FetchError> {
        let damaged = |error: &dyn std::fmt::Display| FetchError::Damaged(error.to_string());
        match self {
            Self::Log(offset) => {
                let payload = record(&*logs.events, offset).await?;
                Event::from_record(payload).map_err(|error| damaged(&error))
            }
            Self::DeadLetter(offset) => {
                let payload = record(&*logs.letters, offset).await?;
                let (_, event) = DeadLetter::decode(payload).map_err(|error| damaged(&error))?;
                Ok(event)
            }
        }
    }
}

/// Logs of a broker.
#[derive(Clone)]
pub(super) struct BrokerLogs {
    pub(super) events: Arc<dyn Log>,
    pub(super) letters: Arc<dyn Log>,
}

impl BrokerLogs {
    pub(super) fn open(logs: &dyn LogProvider, broker: &BrokerName) -> Self {
        Self {
            events: logs.open(&LogName::Events(broker.clone())),
            letters: logs.open(&LogName::DeadLetters(broker.clone())),
        }
    }

    pub(super) fn broker(&self) -> &BrokerName {
        self.events.name().broker()
    }
}

async fn record(log: &dyn Log, offset: Offset) -> Result<bytes::Bytes, FetchError> {
    let records = match log.read(offset, ReadLimit { records: 1, ..READ }).await {
        Ok(records) => records,
        Err(error @ LogError::Damaged { .. }) => return Err(FetchError::Damaged(error.to_string())),
        Err(error) => return Err(FetchError::Log(error)),
    };
    match records.into_iter().find(|record| record.offset == offset) {
        Some(record) => Ok(record.payload),
        None => Err(FetchError::Removed),
    }
}

impl std::fmt::Display for EventPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Log(offset) => write!(f, "{offset}"),
            Self::DeadLetter(offset) => write!(f, "dead letter {offset}"),
        }
    }
}
