//! Gives back the places in the logs of brokers that are gone: those that are not in the routing table, have no
//! retained events or dead letters, and no Trigger, not even a deleted one whose checkpoint is retained.

use super::trimmer::Trimmer;
use crate::log::{LogError, LogName};

/// Maximum number of logs given back at once. The rest is left to the next trim.
const AT_ONCE: usize = 4096;

impl Trimmer {
    /// Gives back the places of brokers that are gone.
    ///
    /// # Errors
    /// Fails when the log fails.
    pub(super) async fn give_back_places(&self) -> Result<(), LogError> {
        let Some(capacity) = self.logs.capacity() else {
            return Ok(());
        };
        let empty = capacity.empty_logs();
        if empty.is_empty() {
            return Ok(());
        }
        // While a table is being applied, its new Triggers begin to hold logs. Held until the logs are given back.
        let Ok(existing) = self.existing.try_lock() else {
            return Ok(());
        };
        let holds = self.holds();
        let is_gone = |log: &LogName| {
            let broker = log.broker();
            !existing.has(broker.namespace(), broker.name()) && !holds.has_any(broker)
        };
        let gone: Vec<_> = empty.into_iter().filter(is_gone).take(AT_ONCE).collect();
        if gone.is_empty() {
            return Ok(());
        }
        match self.dead_letters.forget(&gone).await {
            // Nothing is given back before the marks of its dead letters are gone.
            Err(LogError::Full(_)) => return Ok(()),
            forgotten => forgotten?,
        }
        let logs = capacity.give_back(&gone).await?;
        if logs > 0 {
            tracing::info!(logs, "gave back the places of brokers that are gone");
        }
        Ok(())
    }

    /// Whether the settled events of a broker are removed at any age, because it is gone and places are needed.
    pub(super) fn needs_place_of(&self, log: &LogName) -> bool {
        let broker = log.broker();
        let is_short = self
            .logs
            .capacity()
            .is_some_and(|capacity| capacity.is_short_of_places(broker.namespace()));
        is_short
            && self
                .existing
                .try_lock()
                .is_ok_and(|existing| !existing.has(broker.namespace(), broker.name()))
    }
}
