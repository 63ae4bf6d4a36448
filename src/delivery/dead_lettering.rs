//! What becomes of an event whose delivery ended without success: it goes to the Trigger's dead-letter Sink, and
//! where there is none, or that fails as well, into the dead-letter log. It is never lost in between.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};

use super::{
    backoff::{self, Attempts},
    client::Client,
    dead_letter::DeadLetter,
    place::{FetchError, Place},
    settings::Settings,
    verdict::Verdict,
};
use crate::log::{EventLog, LogError};

/// How many dead letters of a Trigger are under way to its dead-letter Sink at once.
const CONCURRENCY: usize = 8;

/// How long what found no room on the disk waits before it is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// Takes the dead letters of one Trigger.
#[derive(Clone)]
pub(super) struct DeadLettering {
    log: Arc<dyn EventLog>,
    client: Client,
    broker: String,
    settings: watch::Receiver<Settings>,
    permits: Arc<Semaphore>,
}

impl DeadLettering {
    pub(super) fn new(
        log: Arc<dyn EventLog>,
        client: Client,
        broker: String,
        settings: watch::Receiver<Settings>,
    ) -> Self {
        Self {
            log,
            client,
            broker,
            settings,
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
        }
    }

    /// Returns once the dead-letter Sink has taken the event, or it is durable in the dead-letter log.
    ///
    /// The event is read again for each step, so that however many wait, they are not held in memory.
    ///
    /// # Errors
    /// When the event cannot be had any more, or the log failed.
    pub(super) async fn settle(self, mut letter: DeadLetter, place: Place) -> Result<(), FetchError> {
        match self.send(&letter, place).await? {
            Sent::Taken => return Ok(()),
            Sent::NoSink => {}
            Sent::Failed(detail) => {
                letter.detail = format!("{}; then the dead-letter Sink: {detail}", letter.detail);
            }
        }
        self.keep(&letter, place).await
    }

    /// Tries the dead-letter Sink as the Trigger's delivery options say, and by what they say at each attempt.
    async fn send(&self, letter: &DeadLetter, place: Place) -> Result<Sent, FetchError> {
        let mut attempts = Attempts::default();
        loop {
            let (target, delivery) = {
                let settings = self.settings.borrow();
                (settings.dead_letter_target(), settings.delivery().clone())
            };
            let Some((uri, mode)) = target else {
                return Ok(Sent::NoSink);
            };
            let began = Timestamp::now();
            let answer = {
                // Never closed; without a permit there would be one more under way.
                let _permit = self.permits.acquire().await;
                let event = place.fetch(&*self.log, &self.broker).await?;
                let event = letter.mark(&event).unwrap_or(event);
                self.client
                    .post(&uri, event.to_http(mode), delivery.timeout)
                    .await
            };
            attempts.failed = attempts.failed.saturating_add(1);
            attempts.since.get_or_insert(began);
            match answer.verdict {
                Verdict::Delivered => return Ok(Sent::Taken),
                Verdict::Refused => return Ok(Sent::Failed(answer.detail)),
                Verdict::Retry if backoff::exhausted(&delivery, attempts, Timestamp::now()) => {
                    return Ok(Sent::Failed(answer.detail));
                }
                Verdict::Retry => {}
            }
            let pause = backoff::pause(&delivery, attempts.failed, answer.retry_after, fastrand::f64());
            tokio::time::sleep(pause).await;
        }
    }

    async fn keep(&self, letter: &DeadLetter, place: Place) -> Result<(), FetchError> {
        let key = DeadLetter::log_of(&self.broker);
        loop {
            let event = place.fetch(&*self.log, &self.broker).await?;
            let stored = self
                .log
                .append(&key, vec![letter.encode(&event)], Timestamp::now())
                .await;
            match stored {
                Ok(_) => return Ok(()),
                Err(LogError::Full(detail)) => {
                    tracing::warn!(broker = self.broker, %place, detail, "no room for a dead letter; it waits for some");
                }
                Err(error) => return Err(FetchError::Log(error)),
            }
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
    }
}

/// What came of sending to the dead-letter Sink.
enum Sent {
    Taken,
    NoSink,
    Failed(String),
}
