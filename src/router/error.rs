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
    #[error(
        "cannot start the threads that deliver: {0}; is the limit of processes (ulimit -u, pids.max) too low?"
    )]
    Threads(#[source] std::io::Error),
    /// Another router delivers now, or this one can no longer tell. It has stopped and may wait for its turn.
    #[error("this router no longer delivers: {0}")]
    LeaseLost(LogError),
    /// The event log of an earlier run is gone.
    #[error(
        "the event log in {log} is gone, though {configuration} tells that there was one: mount or restore the volume \
         that has it. To begin with an empty log, without the events and the Triggers' places that were in it, start \
         once with --accept-empty-log (WEIR_ACCEPT_EMPTY_LOG=true)"
    )]
    LogGone {
        /// Expected path of the log.
        log: PathBuf,
        /// Path of the configuration beside it.
        configuration: PathBuf,
    },
    /// An essential task panicked.
    #[error("the router cannot go on: {0}")]
    Panicked(#[from] Panicked),
    /// The stream of configurations has ended.
    #[error("the router cannot go on: what brings it configurations has ended")]
    NoConfigurations,
}
