//! The turn of a router: the period for which it holds its lease and may deliver. It ends when the lease is lost, or when
//! a save is fenced.

use std::sync::{Mutex, PoisonError};

use tokio::{sync::watch, time::Instant};

use crate::log::LogError;

/// A turn. Until a lease is taken, every check passes.
pub(super) struct Turn {
    /// Time until which the lease lasts.
    lasts_until: Mutex<Option<Instant>>,
    over: watch::Sender<Option<LogError>>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            lasts_until: Mutex::default(),
            over: watch::Sender::new(None),
        }
    }
}

impl Turn {
    /// Begins a turn after an earlier one has ended.
    pub(super) fn begin(&self, end: Instant) {
        self.over.send_replace(None);
        self.last_until(end);
    }

    /// Extends the turn.
    pub(super) fn last_until(&self, end: Instant) {
        *self.lasts_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    /// Ends the turn. The first reason is kept.
    pub(super) fn end(&self, reason: LogError) {
        self.over.send_if_modified(|over| {
            let is_first = over.is_none();
            over.get_or_insert(reason);
            is_first
        });
    }

    /// Resolves with the reason once the turn is over.
    pub(super) async fn over(&self) -> LogError {
        let mut over = self.over.subscribe();
        let reason = over.wait_for(Option::is_some).await.ok();
        let reason = reason.and_then(|reason| reason.clone());
        reason.unwrap_or_else(|| LogError::Fenced("the lease is no longer renewed".to_owned()))
    }

    /// Checks that the turn is not over, before a change that only the router that delivers may make.
    ///
    /// # Errors
    /// The reason why the turn is over.
    pub(super) fn check(&self) -> Result<(), LogError> {
        if let Some(reason) = self.over.borrow().as_ref() {
            return Err(reason.clone());
        }
        let end = *self.lasts_until.lock().unwrap_or_else(PoisonError::into_inner);
        match end {
            Some(end) if Instant::now() >= end => {
                Err(LogError::Fenced("the lease was not renewed in time".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_when_it_expires_or_is_ended() {
        let turn = Turn::default();
        assert!(turn.check().is_ok(), "no lease was taken");
        turn.last_until(Instant::now() + Duration::from_secs(8));
        assert!(turn.check().is_ok());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(matches!(turn.check(), Err(LogError::Fenced(_))));
        turn.last_until(Instant::now() + Duration::from_secs(8));
        assert!(turn.check().is_ok());
        turn.end(LogError::Fenced("first".to_owned()));
        turn.end(LogError::Fenced("second".to_owned()));
        assert!(turn.over().await.to_string().ends_with("first"));
        assert!(turn.check().is_err());
        turn.begin(Instant::now() + Duration::from_secs(8));
        assert!(turn.check().is_ok());
    }
}
