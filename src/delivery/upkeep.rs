//! Periodic work of delivery: trims the logs, expires the checkpoints of Triggers deleted long ago, and reports
//! suppressed log lines.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{dead_letters::DeadLetters, deleted_triggers::DeletedTriggers, trimmer::Trimmer};
use crate::destination::Client;

/// Interval between trims.
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// Delay before a trim requested by settling, so that it covers events settled meanwhile.
const TRIM_AT_ONCE: Duration = Duration::from_millis(100);

pub(super) struct Upkeep {
    pub(super) client: Client,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) deleted_triggers: Arc<DeletedTriggers>,
    pub(super) trimmer: Arc<Trimmer>,
    /// Whether a routing table was ever applied. Before that it is unknown which events are wanted.
    pub(super) applied: Arc<AtomicBool>,
    pub(super) stop: CancellationToken,
}

impl Upkeep {
    /// Runs until `stop` is cancelled.
    pub(super) async fn run(self) {
        let mut regularly = tokio::time::interval(TRIM_EVERY);
        regularly.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wanting = tokio::select! {
                _ = regularly.tick() => Vec::new(),
                () = self.trimmer.room.is_wanted() => {
                    tokio::time::sleep(TRIM_AT_ONCE).await;
                    self.trimmer.room.take_wanted()
                }
                () = self.stop.cancelled() => return,
            };
            self.log_suppressed(Instant::now());
            if self.applied.load(Relaxed) {
                self.trim(&wanting).await;
            }
        }
    }

    async fn trim(&self, wanting: &[String]) {
        if let Err(error) = self.deleted_triggers.tick().await {
            tracing::error!(%error, "cannot update the checkpoints of deleted Triggers; retrying");
        }
        if let Err(error) = self.trimmer.trim(wanting).await {
            tracing::error!(%error, "cannot trim the event log; retrying");
        }
    }

    /// Logs how many lines were suppressed.
    fn log_suppressed(&self, now: Instant) {
        self.client.log_suppressed(now);
        self.dead_letters.log_suppressed(now);
    }
}
