//! Saves the checkpoints of one Trigger: one at a time, and larger ones less often.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};

use super::{
    Hold, SAVE_EVERY,
    progress::{LowWatermarks, Progress},
};
use crate::log::{BrokerName, CheckpointChange, CheckpointKey, Checkpoints, LogError};

/// Pause before a checkpoint is retried on a full disk.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// Pause before a checkpoint is retried while the log is unavailable.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// Checkpoint size saved every [`SAVE_EVERY`]; a larger one is saved less often in proportion.
const SAVE_BYTES: usize = 8 * 1024;

/// Longest time between two checkpoints of any size.
const MAX_SAVE_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Saver {
    checkpoints: Arc<dyn Checkpoints>,
    key: CheckpointKey,
    broker: BrokerName,
    hold: Arc<Hold>,
    in_flight: Option<BoxFuture<'static, Result<(), LogError>>>,
    /// Watermark of the save in flight.
    low: LowWatermarks,
    at: Option<Instant>,
    every: Duration,
}

impl Saver {
    /// Creates a saver for this key. `hold` follows the saved checkpoints.
    pub(super) fn new(
        checkpoints: Arc<dyn Checkpoints>,
        key: CheckpointKey,
        broker: BrokerName,
        hold: Arc<Hold>,
        low: LowWatermarks,
    ) -> Self {
        Self {
            checkpoints,
            key,
            broker,
            hold,
            in_flight: None,
            low,
            at: None,
            every: SAVE_EVERY,
        }
    }

    /// Marks the progress as unsaved.
    pub(super) fn changed(&mut self) {
        self.at.get_or_insert_with(|| Instant::now() + self.every);
    }

    /// Whether unsaved progress waits and no save is in flight.
    #[cfg(test)]
    pub(super) fn is_due(&self) -> bool {
        self.at.is_some()
    }

    /// Time of the next save, unless one is in flight.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at.filter(|_| self.in_flight.is_none())
    }

    /// Begins a save.
    pub(super) fn begin(&mut self, progress: &Progress) {
        self.at = None;
        self.low = progress.low();
        let (checkpoints, change) = (self.checkpoints.clone(), self.change(progress));
        let broker = self.broker.clone();
        let save = async move { checkpoints.save_for(broker.namespace(), vec![change]).await };
        self.in_flight = Some(save.boxed());
    }

    /// Waits for the save in flight; forever if there is none. Pass its result to [`Saver::ended`].
    pub(super) async fn finished(&mut self) -> Result<(), LogError> {
        finished(&mut self.in_flight).await
    }

    /// Handles the end of a save. A full disk does not stop delivery: events settled meanwhile are delivered again
    /// after a crash, or count as dropped if they were trimmed to make room. Neither does a log that is unavailable.
    /// Returns why the checkpoint is not saved.
    pub(super) fn ended(&mut self, saved: Result<(), LogError>) -> Result<Option<String>, LogError> {
        match saved {
            Ok(()) => {
                self.hold.saved(self.low);
                Ok(None)
            }
            Err(LogError::Full(detail)) => {
                self.hold.saved(self.low);
                self.at = Some(Instant::now() + NO_ROOM_PAUSE);
                Ok(Some(detail))
            }
            // It may have been stored or not; what is not settled durably stays held.
            Err(LogError::Unavailable(detail)) => {
                self.at = Some(Instant::now() + AWAY_PAUSE);
                Ok(Some(detail))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the save in flight, if there is one.
    pub(super) async fn end(&mut self) -> Result<Option<String>, LogError> {
        if self.in_flight.is_none() {
            return Ok(None);
        }
        let saved = self.finished().await;
        self.ended(saved)
    }

    /// Saves now, after the save in flight. If the disk was full for either, returns why.
    pub(super) async fn save(&mut self, progress: &Progress) -> Result<Option<String>, LogError> {
        let before = self.end().await?;
        self.begin(progress);
        Ok(self.end().await?.or(before))
    }

    /// Saves this progress together with another change. Call [`Saver::end`] first: a save in flight could store
    /// older progress over it.
    pub(super) async fn save_with(
        &mut self,
        progress: &Progress,
        other: CheckpointChange,
    ) -> Result<(), LogError> {
        let own = progress.encode(self.broker.as_str(), Instant::now()).into();
        let saved = self
            .checkpoints
            .save_for(
                self.broker.namespace(),
                vec![(self.key.clone(), Some(own)), other],
            )
            .await;
        if saved.is_ok() {
            self.hold.saved(progress.low());
        }
        saved
    }

    /// Change that stores the checkpoint. Also sets how soon the next one is saved.
    fn change(&mut self, progress: &Progress) -> CheckpointChange {
        let stored = progress.encode(self.broker.as_str(), Instant::now());
        let factor = u32::try_from(stored.len() / SAVE_BYTES).unwrap_or(u32::MAX);
        self.every = SAVE_EVERY.saturating_mul(factor.max(1)).min(MAX_SAVE_EVERY);
        (self.key.clone(), Some(stored.into()))
    }
}

/// Waits for the running future; forever if there is none.
pub(super) async fn finished<T>(running: &mut Option<BoxFuture<'static, T>>) -> T {
    match running {
        Some(future) => {
            let ended = future.await;
            *running = None;
            ended
        }
        None => std::future::pending().await,
    }
}
