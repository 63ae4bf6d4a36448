//! Queries about delivery, for metrics and the admin API.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{
    DeadLetterPage, Dropped, Engine, Redriven, RetainedTrigger, Selection, StoredLetter, TriggerView,
    UnsettledEvents, dead_letters::Recipient,
};
use crate::log::{BrokerName, LogError, LogName, Offset};

impl Engine {
    /// Views of all Triggers, by namespace and name.
    pub fn triggers(&self) -> Arc<Vec<TriggerView>> {
        self.views.load_full()
    }

    /// Of some Triggers, the one that holds most of the log: of the broker with the most bytes held by Triggers, the one
    /// with the lowest watermark.
    pub fn holds_most(&self, is_asked_for: impl Fn(&TriggerView) -> bool) -> Option<TriggerView> {
        let usage = self.logs().usage().into_iter().collect::<BTreeMap<_, _>>();
        let triggers = self.triggers();
        let bytes = |view: &TriggerView| match view.held() {
            0 => 0,
            _ => usage.get(view.log.name()).copied().unwrap_or_default(),
        };
        let most = triggers
            .iter()
            .filter(|view| is_asked_for(view))
            .filter(|view| bytes(view) > 0)
            .max_by_key(|view| (bytes(view), Reverse(view.hold.low())))?;
        Some(most.clone())
    }

    /// Returns the unsettled events of a broker; `None` if the log has no capacity of its own.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub async fn unsettled_events(&self, broker: &BrokerName) -> Result<Option<UnsettledEvents>, LogError> {
        self.trimmer.unsettled_events(broker).await
    }

    /// Deleted Triggers whose checkpoints are retained, the oldest first.
    pub fn retained_triggers(&self) -> Vec<RetainedTrigger> {
        self.deleted_triggers.triggers()
    }

    /// Number of deleted Triggers whose checkpoints are retained. A Trigger of a broker with several partitions is
    /// counted by the owner of the first one.
    pub fn retained_count(&self) -> usize {
        self.deleted_triggers.count()
    }

    /// Matched but unsettled events dropped since startup because the checkpoint of their deleted Trigger expired.
    /// Events that it had not evaluated are not counted: it is unknown which of them it would have matched.
    pub fn dropped_with_trigger(&self) -> u64 {
        self.deleted_triggers.dropped()
    }

    /// Dead letters removed since startup by age or size.
    pub fn dead_letters_expired(&self) -> u64 {
        self.trimmer.figures.letters_expired()
    }

    /// Events dropped since startup because the log was full, by broker: removed before every Trigger had settled
    /// them.
    pub fn dropped_when_full(&self) -> BTreeMap<BrokerName, u64> {
        self.trimmer.figures.dropped()
    }

    /// Brokers that have dead letters, with their number.
    pub fn dead_letter_brokers(&self) -> Vec<(BrokerName, u64)> {
        let brokers = self
            .logs()
            .usage()
            .into_iter()
            .filter_map(|(name, _)| match name {
                LogName::DeadLetters(broker) => Some(broker),
                LogName::Events(_) => None,
            });
        brokers
            .map(|broker| {
                let count = self.dead_letters.count(&broker);
                (broker, count)
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Lists at most `limit` of a broker's dead letters, from `from` on.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub async fn dead_letters(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
        limit: usize,
    ) -> Result<DeadLetterPage, LogError> {
        self.dead_letters.page(broker, selection, from, limit).await
    }

    /// Returns one dead letter.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub async fn dead_letter(
        &self,
        broker: &BrokerName,
        id: Offset,
    ) -> Result<Option<StoredLetter>, LogError> {
        let page = self
            .dead_letters
            .page(broker, &Selection::default(), id, 1)
            .await?;
        Ok(page.letters.into_iter().find(|kept| kept.id == id))
    }

    /// Redrives some of the selected dead letters, from `from` on; continue at [`Redriven::next`]. Each goes to
    /// the Trigger it came from, or to the one that has its name now, and is settled like any other event.
    ///
    /// # Errors
    /// Fails when the log is full or failed.
    pub async fn redrive(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
    ) -> Result<Redriven, LogError> {
        let running = self.running.lock().await;
        let of_broker = running
            .triggers
            .values()
            .filter(|handle| handle.view.broker() == broker);
        let recipients: Vec<_> = of_broker
            .map(|handle| Recipient {
                uid: handle.view.uid.clone(),
                name: handle.view.name.clone(),
                trigger: format!("{}/{}", handle.view.namespace, handle.view.name),
                redrives: handle.redrives.clone(),
            })
            .collect();
        drop(running);
        self.dead_letters
            .redrive(broker, selection, from, &recipients)
            .await
    }

    /// Permanently deletes some of the selected dead letters, from `from` on; continue at [`Dropped::next`].
    ///
    /// # Errors
    /// Fails when the log is full or failed.
    pub async fn drop_dead_letters(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
    ) -> Result<Dropped, LogError> {
        self.dead_letters.remove(broker, selection, from).await
    }
}
