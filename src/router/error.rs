//! Reasons why a router ended.

use std::path::PathBuf;

use super::saved::SavedError;
use crate::{
    delivery::EngineError,
    destination::ClientError,
    log::LogError,
    server::{BindError, ThreadError},
    supervision::Panicked,
};

/// Reasons why a router ended.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The admin endpoint's thread cannot be started.
    #[error(transparent)]
    Thread(#[from] ThreadError),
    /// The event log cannot be opened, or failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The HTTP client cannot be created.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Delivery failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The data directory, or the last configuration in it, is unusable.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The threads of delivery cannot be started.
    #[error("cannot start the delivery threads: {0}; check the limit of processes (ulimit -u, pids.max)")]
    Threads(#[source] std::io::Error),
    /// The event log of an earlier run is missing.
    #[error(
        "the event log in {log} is missing, but {configuration} shows that there was one: mount or restore the volume \
         that has it. To start with an empty log, and lose the events and the Triggers' positions in the old one, start \
         once with --accept-empty-log (WEIR_ACCEPT_EMPTY_LOG=true)"
    )]
    LogGone {
        /// Expected path of the log.
        log: PathBuf,
        /// Path of the configuration beside it.
        configuration: PathBuf,
    },
    /// An essential task panicked.
    #[error("the router must stop: {0}")]
    Panicked(#[from] Panicked),
    /// The task that receives configurations has ended.
    #[error("the router must stop: the task that receives its configuration has ended")]
    NoConfigurations,
}
