//! The turn of a router that delivers: how long it lasts, and why it is over. A turn ends when the lease is lost, when a
//! save is fenced, or when a stream has lost records, so that the positions of Triggers have to be checked again.

use std::sync::{Mutex, PoisonError};

use tokio::{sync::watch, time::Instant};

use crate::log::LogError;

/// A turn. Without a lease there is none, and nothing here refuses anything.
pub(super) struct Turn {
    /// Time up to which no other router can hold the lease.
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
    /// Begins or prolongs the turn.
    pub(super) fn last_until(&self, end: Instant) {
        *self.lasts_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    /// Ends the turn. The first reason counts.
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

    /// Checks whether this router may still change what only the router that delivers may.
    ///
    /// # Errors
    /// The reason why its turn is over.
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
    async fn a_turn_is_over_when_it_is_not_prolonged_or_ended() {
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
    }
}
