//! The deadline of an operation and the pauses between its attempts. NATS being away, or a stream without a leader,
//! is waited for; what a retry cannot change fails at once.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::session::NatsError;
use crate::log::LogError;

/// Timeout of one attempt: a request that went to a lost leader is repeated.
const ATTEMPT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Deadline and pauses of one operation.
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

    /// Timeout of the next attempt.
    pub(super) fn attempt(&self) -> Duration {
        ATTEMPT.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// Pauses after a failed attempt.
    ///
    /// # Errors
    /// If the failure is final, or the time is up.
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

    /// Waits until the deadline.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] with what was waited for.
    pub(super) async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, LogError> {
        let waited = timeout_at(self.deadline, future).await;
        waited.map_err(|_| LogError::Unavailable(format!("timed out waiting for {what}")))
    }
}
