//! The deadline of an operation and the backoff between its attempts. Temporary failures, such as a stream without a
//! leader, are retried until the deadline; permanent ones fail at once.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::session::NatsError;
use crate::log::LogError;

/// Timeout of one attempt. Short, so that a request that went to a lost leader is soon repeated.
const ATTEMPT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Deadline and backoff of one operation.
pub(super) struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(total: Duration) -> Self {
        Self {
            deadline: Instant::now() + total,
            pause: FIRST_PAUSE,
        }
    }

    /// The same deadline for a part of the operation, which has pauses of its own.
    pub(super) fn again(&self) -> Self {
        Self {
            deadline: self.deadline,
            pause: FIRST_PAUSE,
        }
    }

    /// Timeout of the next attempt.
    pub(super) fn attempt(&self) -> Duration {
        ATTEMPT.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits after a failed attempt.
    ///
    /// # Errors
    /// If the failure is permanent, or the deadline would pass.
    pub(super) async fn after(&mut self, error: NatsError) -> Result<(), LogError> {
        if let Some(error) = error.lasting() {
            return Err(error);
        }
        if Instant::now() + self.pause >= self.deadline {
            return Err(LogError::Unavailable(error.to_string()));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// Retries an attempt, which gets its timeout, until it succeeds.
    ///
    /// # Errors
    /// If a failure is permanent, or the deadline would pass.
    pub(super) async fn retry<T, F>(&mut self, mut attempt: impl FnMut(Duration) -> F) -> Result<T, LogError>
    where
        F: Future<Output = Result<T, NatsError>>,
    {
        loop {
            match attempt(self.attempt()).await {
                Ok(done) => return Ok(done),
                Err(error) => self.after(error).await?,
            }
        }
    }

    /// Waits for a future until the deadline.
    ///
    /// # Errors
    /// [`LogError::Unavailable`], which names `what`, at the deadline.
    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, LogError> {
        let waited = timeout_at(self.deadline, future).await;
        waited.map_err(|_| LogError::Unavailable(format!("timed out waiting for {what}")))
    }
}
