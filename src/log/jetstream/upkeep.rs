//! Bounds, the search by time, and trimming.

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    api::StreamInfo, names, patience::Patience, publish::NatsMessage, streams::JetStream, tracked::Tracked,
};
use crate::log::{LogBounds, LogError, Offset, ReadLimit, record};

impl JetStream {
    /// Returns the bounds, as reported by the leader.
    pub(super) async fn bounds(&self, log: &Tracked) -> Result<LogBounds, LogError> {
        self.info(log).await?;
        Ok(log.bounds())
    }

    /// Checks for the owner of a shard that a log still ends where it did, as far as this router knows. If the leader does
    /// not respond, the owner cannot place Triggers in this log either.
    pub(super) async fn confirm_end(&self, log: &Tracked) {
        let before = log.seen_end();
        let wait = Patience::new(self.options.timeout).attempt();
        let stream = self.session.stream(&log.location.stream, wait).await;
        let Ok(Some(info)) = stream else { return };
        let next = info.bounds().next;
        if next < before.next {
            // The owner corrects the positions in its own partition only.
            let partitions = self.partitions.get(log.name.broker()).unwrap_or(1);
            log.lost_end(before, next, next, partitions > 1);
        }
        log.observe(&info);
    }

    async fn info(&self, log: &Tracked) -> Result<Option<StreamInfo>, LogError> {
        let mut patience = Patience::new(self.options.timeout);
        patience.retry(|wait| self.refresh(log, wait)).await
    }

    /// Finds an offset by binary search. Times hardly ever decrease (see `layout.rs`).
    pub(super) async fn offset_at(&self, log: &Tracked, time: Timestamp) -> Result<Offset, LogError> {
        let LogBounds { mut first, mut next } = self.bounds(log).await?;
        let limit = ReadLimit {
            records: 1,
            bytes: usize::MAX,
        };
        let time = record::millis(time);
        while first < next {
            let middle = Offset(first.0 + (next.0 - first.0) / 2);
            let found = self.read(log, middle, limit).await?;
            let Some(found) = found.first() else {
                next = middle;
                continue;
            };
            if record::millis(found.accepted) < time {
                first = found.offset.plus(1);
            } else {
                next = middle;
            }
        }
        Ok(first)
    }

    /// Removes the records below an offset, at most up to the current end.
    pub(super) async fn trim(&self, log: &Tracked, before: Offset) -> Result<(), LogError> {
        let Some(info) = self.info(log).await? else {
            return Ok(());
        };
        let bounds = info.bounds();
        let before = before.min(bounds.next);
        if before <= bounds.first {
            return Ok(());
        }
        let mut patience = Patience::new(self.options.timeout);
        if before == bounds.next {
            self.keep_newest(log, &info, &mut patience).await?;
        }
        let stream = &log.location.stream;
        loop {
            // Only the router that delivers knows which records Triggers still need.
            self.turn.check()?;
            let wait = patience.attempt();
            match self.session.purge(stream, before.plus(1).0, wait).await {
                Ok(()) => break,
                Err(error) => patience.after(error).await?,
            }
        }
        self.info(log).await?;
        Ok(())
    }

    /// Stores the newest time of a log before it is trimmed to empty, so that later times do not decrease.
    async fn keep_newest(
        &self,
        log: &Tracked,
        info: &StreamInfo,
        patience: &mut Patience,
    ) -> Result<(), LogError> {
        let subject = names::newest(&log.location.stream);
        let id = Uuid::new_v4().to_string();
        loop {
            let wait = patience.attempt();
            let attempt = async {
                let Some(millis) = self.newest(log, info, wait).await? else {
                    return Ok(0);
                };
                let message = NatsMessage::encoded(&subject, millis, &[]);
                self.session.store(&id, &[message], wait).await
            };
            match attempt.await {
                Ok(_) => return Ok(()),
                Err(error) => patience.after(error).await?,
            }
        }
    }
}
