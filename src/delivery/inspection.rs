//! What metrics, the admin API and its users ask of delivery.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{
    Dropped, Engine, KeptLetter, KeptTrigger, Page, Redriven, Selection, TriggerView, dead_letters::Recipient,
};
use crate::log::{BrokerName, LogError, LogName, Offset};

impl Engine {
    /// Every Trigger's figures, by namespace and name.
    pub fn triggers(&self) -> Arc<Vec<TriggerView>> {
        self.views.load_full()
    }

    /// The Trigger that holds most of the log: of the broker with the most bytes, the one that has settled least.
    pub fn holds_most(&self) -> Option<TriggerView> {
        let usage = self.logs().usage().into_iter().collect::<BTreeMap<_, _>>();
        let triggers = self.triggers();
        let bytes = |view: &TriggerView| usage.get(view.log.name()).copied().unwrap_or_default();
        let most = triggers
            .iter()
            .max_by_key(|view| (bytes(view), Reverse(view.hold.low())))?;
        Some(most.clone())
    }

    /// The Triggers that are gone and whose places are kept, those that have been gone for longest first.
    pub fn kept_triggers(&self) -> Vec<KeptTrigger> {
        self.keeper.triggers()
    }

    /// How many those are.
    pub fn kept_count(&self) -> usize {
        self.keeper.count()
    }

    /// How many events had matched and were not settled when the place of their Trigger, which was gone, was given up,
    /// since the start. Of what it had not looked at yet nobody knows what it would have wanted.
    pub fn dropped_with_trigger(&self) -> u64 {
        self.keeper.dropped()
    }

    /// How many dead letters were removed because of their age, or because there were too many, since the start.
    pub fn dead_letters_expired(&self) -> u64 {
        self.trimmer.figures.letters_expired()
    }

    /// How many events of each broker were dropped because the log was full, since the start: removed before every
    /// Trigger had settled them.
    pub fn dropped_when_full(&self) -> BTreeMap<BrokerName, u64> {
        self.trimmer.figures.dropped()
    }

    /// The brokers that have dead letters, and how many.
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

    /// At most `limit` of a broker's dead letters, from `from` on.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn dead_letters(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
        limit: usize,
    ) -> Result<Page, LogError> {
        self.dead_letters.page(broker, selection, from, limit).await
    }

    /// One dead letter.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn dead_letter(&self, broker: &BrokerName, id: Offset) -> Result<Option<KeptLetter>, LogError> {
        let page = self
            .dead_letters
            .page(broker, &Selection::default(), id, 1)
            .await?;
        Ok(page.letters.into_iter().find(|kept| kept.id == id))
    }

    /// Has some of the selected dead letters delivered again, from `from` on; whoever calls goes on at
    /// [`Redriven::next`]. Each goes to the Trigger that it is from, or that has its name now, and is settled like
    /// any other event.
    ///
    /// # Errors
    /// When the log has no room to note it, or failed.
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

    /// Removes some of the selected dead letters for good, from `from` on; whoever calls goes on at
    /// [`Dropped::next`].
    ///
    /// # Errors
    /// When the log has no room to note it, or failed.
    pub async fn drop_dead_letters(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
    ) -> Result<Dropped, LogError> {
        self.dead_letters.remove(broker, selection, from).await
    }
}
