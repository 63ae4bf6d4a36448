//! The time for which the servers remember the ids of a stream (`duplicate_window`): the window of its broker. The router
//! that owns the broker's first shard sets it, and no other, so that routers with different configurations do not change
//! it back and forth. Appends take it as it is: when it grows, the servers keep the ids that they have. It is never
//! shorter than [`JetStream::id_window`], and an owner notices a changed Broker sooner than that.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};

use super::{api::StreamInfo, names, session::NatsError, streams::JetStream, tracked::Tracked};
use crate::log::{IdWindow, LogError, LogName, Ownership};

/// Maximum streams changed in a poll, all at once. The next polls change others.
const AT_ONCE: usize = 16;
/// Timeout of each request of a change.
const CHANGE: Duration = Duration::from_secs(2);
/// Time after a failed change before the next one of the same stream.
const AGAIN: Duration = Duration::from_secs(60);

impl JetStream {
    /// Returns the nanoseconds for which the server is to remember the ids of a stream: as long as retries last, and for
    /// the window of the broker as far as the servers accept it.
    pub(super) fn window_for(&self, window: Option<IdWindow>) -> u64 {
        let wanted = window.map_or(0, |window| self.windows.accepted(window));
        self.id_window().max(wanted)
    }

    /// Sets the windows of the streams whose brokers this router decides about.
    pub(super) async fn set_windows(&self) {
        let Some(wanted) = self.windows.wanted() else {
            return;
        };
        if self.turn.check().is_err() {
            return;
        }
        let now = Instant::now();
        let changes = self.logs().into_iter().filter_map(|log| {
            let LogName::Events(broker) = &log.name else {
                return None;
            };
            let ownership = self.windows.ownership_of(broker)?;
            let window = wanted(broker);
            let is_other = log
                .id_window()
                .is_some_and(|present| present != self.window_for(window));
            (is_other && log.is_window_due(now)).then_some((log, ownership, window))
        });
        let changing = changes.map(|(log, ownership, window)| async move {
            if let Err(error) = self.set_window(&log, ownership, window).await {
                let stream = &log.location.stream;
                tracing::warn!(%stream, %error, "cannot set the time for which repeats are recognized; retrying in a minute");
                log.set_window_due(now + AGAIN);
            }
        });
        join_all(changing.take(AT_ONCE)).await;
    }

    async fn set_window(
        &self,
        log: &Tracked,
        Ownership { shard, epoch }: Ownership,
        window: Option<IdWindow>,
    ) -> Result<(), LogError> {
        self.turn.check()?;
        let (sequence, _) = self.load_with_sequence(&names::owner(shard)).await?;
        if sequence != epoch.0 {
            // It is for another router to decide.
            return Ok(());
        }
        let changed = match self.change_window(log, self.window_for(window)).await {
            Err(error) if self.windows.note_limit(&error) => {
                self.change_window(log, self.window_for(window)).await
            }
            changed => changed,
        };
        changed.map_err(|error| LogError::Unavailable(error.to_string()))
    }

    async fn change_window(&self, log: &Tracked, window: u64) -> Result<(), NatsError> {
        let stream = &log.location.stream;
        let info = format!("STREAM.INFO.{stream}");
        let mut info: Value = self.session.api(&info, &json!({}), CHANGE).await?;
        let mut config = info["config"].take();
        config["duplicate_window"] = window.into();
        let update = format!("STREAM.UPDATE.{stream}");
        let updated: StreamInfo = self.session.api(&update, &config, CHANGE).await?;
        log.observe(&updated);
        Ok(())
    }

    /// Creates the stream of a log with a window, if it does not exist.
    pub(super) async fn stream_with_window(
        &self,
        log: &Tracked,
        window: Option<IdWindow>,
        wait: Duration,
    ) -> Result<StreamInfo, NatsError> {
        let create = async || {
            // If the stream was deleted, it does not reuse the offsets that Triggers are past.
            let mut config = self.config_of(log, log.bounds().next);
            config["duplicate_window"] = self.window_for(window).into();
            self.session.stream_or_new(&config, wait).await
        };
        match create().await {
            Err(error) if self.windows.note_limit(&error) => create().await,
            created => created,
        }
    }
}
