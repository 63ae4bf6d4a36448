//! What a Source of any kind works with.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{LastRuns, clock::Clock, statistics::Counters};
use crate::{intake::Intake, log::BrokerName};

/// What a Source of any kind works with.
pub(super) struct Context {
    pub(super) broker: BrokerName,
    pub(super) intake: Intake,
    pub(super) clock: Arc<dyn Clock>,
    /// Time after which events are due, unless it is known when the Source last ran.
    pub(super) begins: Timestamp,
    pub(super) last_runs: Arc<LastRuns>,
    /// Whether the Sources are the present ones, and not those of an earlier run of the router.
    pub(super) confirmed: watch::Receiver<bool>,
    pub(super) counters: Arc<Counters>,
    pub(super) stop: CancellationToken,
}
