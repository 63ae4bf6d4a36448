//! Options of delivery, and its fatal errors.

use std::time::Duration;

use super::Retention;
use crate::{log::LogError, memory::Pool, routing::WhenFull};

/// Options of all delivery in a router.
#[derive(Clone, Debug)]
pub struct DeliveryOptions {
    /// Retention of settled events.
    pub retention: Retention,
    /// Maximum bytes of a broker's settled events, whatever a Broker says.
    pub max_retention: u64,
    /// Retention of dead letters.
    pub dead_letters: Retention,
    /// Policy for a log that is full of unsettled events.
    pub when_full: WhenFull,
    /// Retention of a deleted Trigger's checkpoint; a Trigger of the same name resumes from it.
    pub keep_deleted: Duration,
    /// Grace period for attempts in flight at shutdown.
    pub grace: Duration,
    /// Memory shared by buffered events and attempts.
    pub memory: Pool,
}

impl Default for DeliveryOptions {
    /// Retains settled events for a day, dead letters for a week, 1 GiB of each, and the checkpoints of deleted
    /// Triggers for an hour. Grace is ten seconds, memory 64 MiB.
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            max_retention: u64::MAX,
            dead_letters: Retention {
                age: Duration::from_secs(7 * 24 * 60 * 60),
                ..Retention::default()
            },
            when_full: WhenFull::default(),
            keep_deleted: Duration::from_secs(60 * 60),
            grace: Duration::from_secs(10),
            memory: Pool::new(64 * 1024 * 1024),
        }
    }
}

/// Fatal errors of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The stored list of redriven and dropped dead letters is unreadable. Guessing would redrive letters again.
    #[error("cannot decode the stored list {key} of redriven and dropped dead letters: {detail}")]
    DeadLetters {
        /// Key of the list.
        key: String,
        /// Cause.
        detail: String,
    },
    /// A stored cursor is unreadable. Guessing would lose or repeat events.
    #[error("cannot decode the stored checkpoint of Trigger {uid}: {detail}")]
    Cursor {
        /// UID of the Trigger.
        uid: String,
        /// Cause.
        detail: String,
    },
}
