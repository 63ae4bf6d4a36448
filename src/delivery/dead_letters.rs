//! Lists, redrives and drops the dead letters stored in the brokers' dead-letter logs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{self, Arc, PoisonError, Weak},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::{
    dead_letter::{DeadLetter, DeadLetterError},
    keys::key_of,
    lines::{excerpt, trace_id},
    position::READ,
    redrive::{Redrive, RedrivenLetter, TakenLetters},
    taking::{BrokerLetters, TakingGuard},
};
use crate::{
    cloudevents::Event,
    filter::CompiledFilter,
    log::{BrokerName, CheckpointKey, Checkpoints, Log, LogError, LogName, LogProvider, Offset},
    telemetry::{Admitted, Burst},
};

/// Maximum records scanned for one page, and maximum bytes of a page.
const MAX_SCANNED: usize = 10_000;
const MAX_PAGE: usize = 4 * 1024 * 1024;

/// Timeout for a Trigger to take over letters, which it does between two deliveries.
const REDRIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stored dead letter.
#[derive(Clone, Debug)]
pub struct StoredLetter {
    /// Its offset in the broker's dead-letter log, which identifies it.
    pub id: Offset,
    /// Time at which it was stored.
    pub at: Timestamp,
    /// Description of the failed delivery.
    pub letter: DeadLetter,
    /// The event.
    pub event: Event,
}

/// Selection of a broker's dead letters; a letter has to match every field.
#[derive(Debug, Default)]
pub struct Selection {
    /// Letters by ID; `None` selects all.
    pub ids: Option<BTreeSet<Offset>>,
    /// Letters of the Trigger with this name.
    pub trigger: Option<String>,
    /// Letters whose events pass the filter.
    pub filter: Option<CompiledFilter>,
}

impl Selection {
    fn wants(&self, stored: &StoredLetter) -> bool {
        let Self { ids, trigger, filter } = self;
        ids.as_ref().is_none_or(|ids| ids.contains(&stored.id))
            && trigger.as_ref().is_none_or(|name| *name == stored.letter.name)
            && filter.as_ref().is_none_or(|filter| filter.matches(&stored.event))
    }
}

/// A page of a broker's dead letters.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterPage {
    /// In the order in which they were stored.
    pub letters: Vec<StoredLetter>,
    /// Offset to continue at; `None` at the end.
    pub next: Option<Offset>,
}

/// Result of redriving dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Letters handed to their Triggers.
    pub redriven: u64,
    /// Letters left because no Trigger has their name any more.
    pub without_trigger: u64,
    /// Letters left because their Trigger has the maximum number of unsettled redriven events.
    pub without_room: u64,
    /// Offset to continue at; `None` at the end.
    pub next: Option<Offset>,
}

/// Result of dropping dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Letters dropped.
    pub dropped: u64,
    /// Offset to continue at; `None` at the end.
    pub next: Option<Offset>,
}

/// The Trigger that a letter can go to.
#[derive(Clone)]
pub(super) struct Recipient {
    pub(super) uid: String,
    pub(super) name: String,
    /// `namespace/name`.
    pub(super) trigger: String,
    pub(super) redrives: mpsc::Sender<Box<Redrive>>,
}

/// Dead letters of all brokers.
pub(super) struct DeadLetters {
    logs: Arc<dyn LogProvider>,
    checkpoints: Arc<dyn Checkpoints>,
    taken: Arc<TakenLetters>,
    /// Brokers whose letters are being taken out or trimmed.
    brokers: sync::Mutex<HashMap<BrokerName, Weak<BrokerLetters>>>,
    /// Limits the log lines about unreadable letters.
    unreadable: sync::Mutex<Burst>,
}

impl DeadLetters {
    pub(super) fn new(
        logs: Arc<dyn LogProvider>,
        checkpoints: Arc<dyn Checkpoints>,
        taken: Arc<TakenLetters>,
    ) -> Self {
        Self {
            logs,
            checkpoints,
            taken,
            brokers: sync::Mutex::default(),
            unreadable: sync::Mutex::default(),
        }
    }

    /// The locks on a broker's letters.
    pub(super) fn of(&self, broker: &BrokerName) -> Arc<BrokerLetters> {
        let mut brokers = self.brokers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(letters) = brokers.get(broker).and_then(Weak::upgrade) {
            return letters;
        }
        brokers.retain(|_, letters| letters.strong_count() > 0);
        let letters = Arc::<BrokerLetters>::default();
        brokers.insert(broker.clone(), Arc::downgrade(&letters));
        letters
    }

    fn log(&self, broker: &BrokerName) -> Arc<dyn Log> {
        self.logs.open(&LogName::DeadLetters(broker.clone()))
    }

    /// Removes which letters were redriven or dropped of logs that have no letters any more.
    pub(super) async fn forget(&self, logs: &[LogName]) -> Result<(), LogError> {
        let letters = logs.iter().filter_map(|log| match log {
            LogName::DeadLetters(broker) => Some(broker),
            LogName::Events(_) => None,
        });
        let forgotten: Vec<_> = letters.filter(|broker| self.taken.has_any(broker)).collect();
        if forgotten.is_empty() {
            return Ok(());
        }
        let removal = |broker: &&BrokerName| (CheckpointKey::DeadLetters((*broker).clone()), None);
        self.checkpoints
            .save(forgotten.iter().map(removal).collect())
            .await?;
        forgotten.into_iter().for_each(|broker| self.taken.forget(broker));
        Ok(())
    }

    /// Number of dead letters of a broker.
    pub(super) fn count(&self, broker: &BrokerName) -> u64 {
        let log = self.log(broker);
        let mut bounds = log.cached_bounds();
        loop {
            let taken = self.taken.count_from(broker, bounds.first);
            let now = log.cached_bounds();
            // A trim removes records first and then forgets which of them were taken, so the two numbers belong
            // together only if no trim came in between.
            if now.first == bounds.first {
                return bounds.next.0.saturating_sub(bounds.first.0).saturating_sub(taken);
            }
            bounds = now;
        }
    }

    /// Lists at most `limit` letters, from `from` on.
    pub(super) async fn page(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
        limit: usize,
    ) -> Result<DeadLetterPage, LogError> {
        let log = self.log(broker);
        let (mut page, mut next, mut scanned, mut bytes) = (DeadLetterPage::default(), from, 0, 0);
        loop {
            let records = log.read(next, READ).await?;
            if records.is_empty() {
                page.next = None;
                return Ok(page);
            }
            for record in records {
                if page.letters.len() == limit || scanned == MAX_SCANNED || bytes > MAX_PAGE {
                    page.next = Some(record.offset);
                    return Ok(page);
                }
                scanned += 1;
                next = record.offset.plus(1);
                if self.taken.contains(broker, record.offset) {
                    continue;
                }
                let size = record.payload.len();
                match DeadLetter::decode(record.payload) {
                    Ok((letter, event)) => {
                        let stored = StoredLetter {
                            id: record.offset,
                            at: record.accepted,
                            letter,
                            event,
                        };
                        if selection.wants(&stored) {
                            bytes += size;
                            page.letters.push(stored);
                        }
                    }
                    Err(error) => self.log_unreadable(broker, record.offset, &error),
                }
            }
        }
    }

    fn log_unreadable(&self, broker: &BrokerName, letter: Offset, error: &DeadLetterError) {
        if let Some(Admitted { held_back }) = self.unreadable().admit(Instant::now()) {
            tracing::error!(%broker, %letter, %error, held_back, "cannot read a dead letter");
        }
    }

    /// Logs how many lines were suppressed since the last line, once their interval is over.
    pub(super) fn log_suppressed(&self, now: Instant) {
        if let Some(held_back) = self.unreadable().overdue(now) {
            tracing::warn!(held_back, of = "unreadable dead letters", "log lines suppressed");
        }
    }

    fn unreadable(&self) -> sync::MutexGuard<'_, Burst> {
        // No panic under the lock leaves the counts half changed.
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands letters to the Triggers they came from, or to their successors of the same name.
    pub(super) async fn redrive(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
        recipients: &[Recipient],
    ) -> Result<Redriven, LogError> {
        let taking = Arc::new(self.of(broker).take(from).await);
        let page = self.page(broker, selection, from, READ.records).await?;
        taking.hold_from(page.letters.first().map(|stored| stored.id));
        let mut result = Redriven {
            next: page.next,
            ..Redriven::default()
        };
        let mut without_trigger = Vec::new();
        let mut by_recipient = BTreeMap::<usize, Vec<RedrivenLetter>>::new();
        for StoredLetter {
            id, letter, event, ..
        } in page.letters
        {
            let found = recipients
                .iter()
                .position(|recipient| recipient.uid == letter.trigger)
                .or_else(|| {
                    recipients
                        .iter()
                        .position(|recipient| recipient.name == letter.name)
                });
            match found {
                Some(recipient) => {
                    tracing::debug!(
                        trigger = format!("{}/{}", letter.namespace, letter.name),
                        %broker,
                        letter = %id,
                        event_id = excerpt(event.id()),
                        event_source = excerpt(event.source()),
                        event_type = excerpt(event.r#type()),
                        trace_id = trace_id(&event),
                        "dead letter handed to its Trigger for redelivery"
                    );
                    by_recipient.entry(recipient).or_default().push(RedrivenLetter {
                        offset: id,
                        key: key_of(&event),
                    });
                }
                None => without_trigger.push(id),
            }
        }
        for (recipient, letters) in by_recipient {
            let offsets: Vec<_> = letters.iter().map(|letter| letter.offset).collect();
            let accepted = self
                .hand_over(&recipients[recipient], letters, taking.clone())
                .await?;
            if accepted > 0 {
                let trigger = &*recipients[recipient].trigger;
                tracing::info!(
                    trigger,
                    %broker,
                    redriven = accepted,
                    "redriving dead letters on request"
                );
            }
            result.redriven += accepted as u64;
            if let Some(&first) = offsets.get(accepted) {
                result.without_room += (offsets.len() - accepted) as u64;
                result.next = Some(result.next.map_or(first, |next| next.min(first)));
            }
        }
        // Letters from `next` on are scanned again.
        let done = without_trigger
            .iter()
            .filter(|id| result.next.is_none_or(|next| **id < next));
        result.without_trigger = done.count() as u64;
        Ok(result)
    }

    /// Returns how many letters the Trigger took over; 0 if it is stopping or does not answer in time. It may take them
    /// over even after the timeout, so `taking` is held until it has.
    async fn hand_over(
        &self,
        recipient: &Recipient,
        letters: Vec<RedrivenLetter>,
        taking: Arc<TakingGuard>,
    ) -> Result<usize, LogError> {
        let (answer, answered) = oneshot::channel();
        let redrive = Redrive {
            letters,
            taken: self.taken.clone(),
            taking,
            answer,
        };
        let taken_over = async {
            recipient.redrives.send(Box::new(redrive)).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(REDRIVE_TIMEOUT, taken_over).await {
            Ok(Some(accepted)) => accepted,
            Ok(None) | Err(_) => Ok(0),
        }
    }

    /// Deletes letters permanently.
    pub(super) async fn remove(
        &self,
        broker: &BrokerName,
        selection: &Selection,
        from: Offset,
    ) -> Result<Dropped, LogError> {
        let _taking = self.of(broker).take(from).await;
        let DeadLetterPage { letters, next } = self.page(broker, selection, from, READ.records).await?;
        let dropped = letters.len() as u64;
        if dropped > 0 {
            let ids = || letters.iter().map(|stored| stored.id);
            self.checkpoints
                .save(vec![self.taken.change(broker, ids())])
                .await?;
            self.taken.take(broker, ids());
            tracing::info!(%broker, dropped, "dropped dead letters on request");
        }
        Ok(Dropped { dropped, next })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        log::{Ownership, conformance::ByKey as _, memory::MemoryLogs},
    };

    const BROKER: &str = "shop/default";

    async fn logs_of_one_letter() -> Arc<dyn LogProvider> {
        let logs = MemoryLogs::default();
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t");
        let letter = DeadLetter::for_test();
        let payload = letter.encode(&event.build().unwrap());
        let key = format!("{BROKER}.dead-letters");
        logs.append(&key, vec![payload], Timestamp::now()).await.unwrap();
        Arc::new(logs)
    }

    #[tokio::test]
    async fn a_trim_that_has_not_forgotten_its_letters_yet_changes_no_count() {
        let logs = logs_of_one_letter().await;
        let key = format!("{BROKER}.dead-letters");
        logs.append(&key, vec![Bytes::from_static(b"letter")], Timestamp::now())
            .await
            .unwrap();
        let taken = Arc::<TakenLetters>::default();
        taken.take(&BROKER.into(), [Offset(0)].into_iter());
        let checkpoints = logs.checkpoints(Ownership::default());
        let letters = DeadLetters::new(logs.clone(), checkpoints, taken);
        assert_eq!(letters.count(&BROKER.into()), 1);
        logs.open(&LogName::DeadLetters(BROKER.into()))
            .trim(Offset(1))
            .await
            .unwrap();
        assert_eq!(letters.count(&BROKER.into()), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn letters_that_a_slow_trigger_is_still_taking_are_not_offered_twice() {
        let logs = logs_of_one_letter().await;
        let checkpoints = logs.checkpoints(Ownership::default());
        let letters = Arc::new(DeadLetters::new(logs, checkpoints, Arc::default()));
        let (redrives, mut asked) = mpsc::channel(1);
        let recipient = Recipient {
            uid: "u".to_owned(),
            name: "t".to_owned(),
            trigger: "shop/t".to_owned(),
            redrives,
        };
        let redrive = || {
            let (letters, recipient) = (letters.clone(), recipient.clone());
            async move {
                letters
                    .redrive(&BROKER.into(), &Selection::default(), Offset(0), &[recipient])
                    .await
                    .unwrap()
            }
        };
        let first = redrive().await;
        assert_eq!(
            (first.redriven, first.without_room),
            (0, 1),
            "it did not answer in time"
        );
        let being_taken = asked.recv().await.unwrap();
        let second = tokio::spawn(redrive());
        tokio::time::sleep(REDRIVE_TIMEOUT / 2).await;
        assert!(asked.try_recv().is_err(), "the letters were offered twice");
        being_taken.taken.take(&BROKER.into(), [Offset(0)].into_iter());
        drop(being_taken);
        assert_eq!(second.await.unwrap(), Redriven::default());
    }
}
