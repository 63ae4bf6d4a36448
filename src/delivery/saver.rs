//! Saves the checkpoints of one Trigger: one at a time, and the larger they are, the less often.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};

use super::{
    Hold, SAVE_EVERY,
    progress::{Low, Progress},
};
use crate::log::{BrokerName, CheckpointChange, CheckpointKey, Checkpoints, LogError};

/// How long a checkpoint that found no room on the disk waits before it is retried.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// A checkpoint of this many bytes is saved every [`SAVE_EVERY`]; a larger one is saved less often in proportion.
const SAVE_BYTES: usize = 8 * 1024;

/// The longest time between two checkpoints, however large they are.
const MAX_SAVE_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Saver {
    checkpoints: Arc<dyn Checkpoints>,
    key: CheckpointKey,
    broker: BrokerName,
    hold: Arc<Hold>,
    under_way: Option<BoxFuture<'static, Result<(), LogError>>>,
    /// The watermark of the checkpoint under way.
    low: Low,
    at: Option<Instant>,
    every: Duration,
}

impl Saver {
    /// Saves under this key. What `hold` holds follows the saved checkpoints.
    pub(super) fn new(
        checkpoints: Arc<dyn Checkpoints>,
        key: CheckpointKey,
        broker: BrokerName,
        hold: Arc<Hold>,
        low: Low,
    ) -> Self {
        Self {
            checkpoints,
            key,
            broker,
            hold,
            under_way: None,
            low,
            at: None,
            every: SAVE_EVERY,
        }
    }

    /// The progress is no longer as it was last saved.
    pub(super) fn changed(&mut self) {
        self.at.get_or_insert_with(|| Instant::now() + self.every);
    }

    /// Whether there is progress that is not saved, and no save of it under way.
    #[cfg(test)]
    pub(super) fn is_due(&self) -> bool {
        self.at.is_some()
    }

    /// When the next save is to begin, unless one is under way.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at.filter(|_| self.under_way.is_none())
    }

    /// Begins to save.
    pub(super) fn begin(&mut self, progress: &Progress) {
        self.at = None;
        self.low = progress.low();
        let (checkpoints, change) = (self.checkpoints.clone(), self.change(progress));
        self.under_way = Some(async move { checkpoints.save(vec![change]).await }.boxed());
    }

    /// Waits for the save under way; for ever if there is none. Its result is to be passed to [`Saver::ended`].
    pub(super) async fn finished(&mut self) -> Result<(), LogError> {
        let Some(under_way) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let saved = under_way.await;
        self.under_way = None;
        saved
    }

    /// A save has ended. Without room, delivery goes on, and what is settled meanwhile repeats after a crash. It may be
    /// trimmed nevertheless, as that makes room; then it does not repeat, but is counted as dropped. Returns why there
    /// was no room.
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
            Err(error) => Err(error),
        }
    }

    /// Waits for the save under way, if there is one.
    pub(super) async fn end(&mut self) -> Result<Option<String>, LogError> {
        if self.under_way.is_none() {
            return Ok(None);
        }
        let saved = self.finished().await;
        self.ended(saved)
    }

    /// Saves now, after the save under way.
    pub(super) async fn save(&mut self, progress: &Progress) -> Result<Option<String>, LogError> {
        self.end().await?;
        self.low = progress.low();
        let change = self.change(progress);
        let saved = self.checkpoints.save(vec![change]).await;
        self.ended(saved)
    }

    /// Saves this progress together with other changes, once no save is under way, which could store older progress
    /// after it.
    pub(super) async fn save_with(
        &mut self,
        progress: &Progress,
        other: CheckpointChange,
    ) -> Result<(), LogError> {
        let own = progress.encode(self.broker.as_str(), Instant::now()).into();
        let saved = self
            .checkpoints
            .save(vec![(self.key.clone(), Some(own)), other])
            .await;
        if saved.is_ok() {
            self.hold.saved(progress.low());
        }
        saved
    }

    /// The checkpoint.
    fn change(&mut self, progress: &Progress) -> CheckpointChange {
        let stored = progress.encode(self.broker.as_str(), Instant::now());
        let factor = u32::try_from(stored.len() / SAVE_BYTES).unwrap_or(u32::MAX);
        self.every = SAVE_EVERY.saturating_mul(factor.max(1)).min(MAX_SAVE_EVERY);
        (self.key.clone(), Some(stored.into()))
    }
}
