//! What a Source of any kind works with.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{clock::Clock, statistics::Counters};
use crate::{intake::Intake, log::BrokerName};

/// What a Source of any kind works with.
pub(super) struct Context {
    pub(super) broker: BrokerName,
    pub(super) intake: Intake,
    pub(super) clock: Arc<dyn Clock>,
    /// Time after which events are due.
    pub(super) begins: Timestamp,
    pub(super) counters: Arc<Counters>,
    pub(super) stop: CancellationToken,
}
