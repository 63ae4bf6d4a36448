//! The shared reader of a broker's log. It offers each event to the inboxes of the Triggers that want it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    buffered::{BufferedEvent, MemoryShare},
    inbox::Inbox,
    keys::is_in,
    position::READ,
};
use crate::{
    cloudevents::Event,
    filter::{self, Decision, Subject},
    log::{BrokerName, Log, LogError, LogRecord, Offset},
    memory::{Pool, Reservation},
    routing::BrokerTable,
    telemetry::{Admitted, Burst},
};

/// Interval between reports of suppressed log lines.
const LOG_SUPPRESSED_EVERY: Duration = Duration::from_secs(10);

/// Yields to other tasks on the thread after as many filter steps as one event may cost, about 2 ms.
#[derive(Debug, Default)]
pub(super) struct FilterYield {
    /// Steps since the last yield, without those of the present event.
    before: u64,
    /// Steps of the present event already counted.
    seen: u64,
}

impl FilterYield {
    /// Yields if the filters evaluated so far are over the limit. `subject` counts all steps of its event.
    pub(super) async fn yield_if_due(&mut self, subject: &Subject<'_>) {
        let steps = subject.steps();
        self.before += steps.saturating_sub(self.seen);
        self.seen = steps;
        if self.before > filter::BUDGET {
            self.before = 0;
            tokio::task::yield_now().await;
        }
    }

    /// Starts counting for the next event.
    pub(super) fn next_event(&mut self) {
        self.seen = 0;
    }
}

/// Backoff after a failed read: initial, then maximum.
const READ_AGAIN: Duration = Duration::from_millis(100);
const MAX_READ_AGAIN: Duration = Duration::from_secs(10);

/// Approximate memory of a decoded event beside its record, in bytes.
const DECODED: usize = 768;

/// Bytes to reserve for a record and its event.
fn cost(record: &LogRecord) -> usize {
    record.payload.len() + DECODED
}

/// Triggers for which the current event was already evaluated, so that each is evaluated once even if inboxes attach
/// meanwhile.
#[derive(Default)]
struct EvaluatedTriggers {
    inboxes: Arc<Vec<Arc<Inbox>>>,
    done: Vec<bool>,
    wanted: Vec<usize>,
}

impl EvaluatedTriggers {
    /// Resets when the table's Triggers change.
    fn reset_for(&mut self, inboxes: &Arc<Vec<Arc<Inbox>>>) {
        if !Arc::ptr_eq(&self.inboxes, inboxes) {
            self.inboxes = inboxes.clone();
            self.done = vec![false; inboxes.len()];
            self.wanted.clear();
        }
    }

    fn first_time(&mut self, index: usize) -> bool {
        self.done
            .get_mut(index)
            .is_some_and(|done| !std::mem::replace(done, true))
    }
}

/// A Trigger that a reader feeds.
pub(super) struct Listener {
    pub(super) inbox: Arc<Inbox>,
    /// Whether its events are delivered now; otherwise they stay in the log.
    pub(super) is_deliverable: bool,
}

/// Follows one broker's log and offers each event to the Triggers that want it.
pub(super) struct Reader {
    log: Arc<dyn Log>,
    memory: MemoryShare,
    state: Mutex<ReaderState>,
}

struct ReaderState {
    /// Everything below was offered to every attached inbox that wanted it.
    position: Offset,
    /// Number of times an inbox was attached.
    attached: u64,
    table: Arc<BrokerTable>,
    /// One inbox for each route; rebuilt with each table.
    inboxes: Arc<Vec<Arc<Inbox>>>,
    /// Limits the log lines about unreadable records.
    unreadable: Burst,
}

impl ReaderState {
    /// Detaches every inbox at `from`: each Trigger reads the log independently from there until it has caught up.
    fn detach_all(&mut self, from: Offset) {
        self.inboxes.iter().for_each(|inbox| inbox.overflow(from));
    }
}

impl Reader {
    /// Creates a reader that starts at `position`. Triggers read earlier events independently.
    pub(super) fn new(log: Arc<dyn Log>, position: Offset, memory: &Pool) -> Self {
        let broker = log.name().broker();
        let memory = MemoryShare::new(memory, broker.namespace(), broker.as_str());
        let state = ReaderState {
            position,
            attached: 0,
            table: Arc::default(),
            inboxes: Arc::default(),
            unreadable: Burst::default(),
        };
        Self {
            log,
            memory,
            state: Mutex::new(state),
        }
    }

    fn broker(&self) -> &BrokerName {
        self.log.name().broker()
    }

    /// Switches to this table, with one listener for each of its routes.
    pub(super) fn follow(&self, table: Arc<BrokerTable>, listeners: Vec<Listener>) {
        let mut state = self.lock();
        for listener in &listeners {
            listener.inbox.set_shut(!listener.is_deliverable);
        }
        let inboxes = listeners.into_iter().map(|listener| listener.inbox);
        state.table = table;
        state.inboxes = Arc::new(inboxes.collect());
    }

    /// Everything below this offset was offered.
    pub(super) fn position(&self) -> Offset {
        self.lock().position
    }

    /// Attaches an inbox and returns the current position. The inbox is offered everything from there on, but
    /// nothing below `next`.
    pub(super) fn attach(&self, inbox: &Inbox, next: Offset) -> Offset {
        let mut state = self.lock();
        state.attached += 1;
        inbox.attach(next);
        state.position
    }

    /// Follows the log until `stop` is cancelled.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub(super) async fn run(&self, stop: CancellationToken) -> Result<(), LogError> {
        let mut end = self.log.follow();
        let mut overdue = tokio::time::interval(LOG_SUPPRESSED_EVERY);
        overdue.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pause = READ_AGAIN;
        loop {
            let next = *end.borrow_and_update();
            if self.position() < next {
                let offered = tokio::select! {
                    offered = self.offer(next) => offered,
                    () = stop.cancelled() => return Ok(()),
                };
                match offered {
                    Ok(()) => pause = READ_AGAIN,
                    Err(error @ LogError::Failed(_)) => return Err(error),
                    Err(error) => {
                        tracing::error!(
                            broker = %self.broker(), %error,
                            "cannot read the broker's log; each of its Triggers reads it independently, retrying"
                        );
                        self.detach_all();
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = stop.cancelled() => return Ok(()),
                        }
                        pause = (pause * 2).min(MAX_READ_AGAIN);
                    }
                }
                continue;
            }
            tokio::select! {
                changed = end.changed() => if changed.is_err() { return Ok(()) },
                _ = overdue.tick() => self.log_suppressed(Instant::now()),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Logs how many lines were suppressed since the last line, once their interval is over.
    fn log_suppressed(&self, now: Instant) {
        if let Some(held_back) = self.lock().unreadable.overdue(now) {
            tracing::warn!(
                broker = %self.broker(),
                held_back,
                of = "unreadable records",
                "log lines suppressed"
            );
        }
    }

    /// Offers the next records of the log, below `end`.
    pub(super) async fn offer(&self, end: Offset) -> Result<(), LogError> {
        let Some(position) = self.position_if_needed(end) else {
            return Ok(());
        };
        let records = self.log.read(position, READ).await?;
        let first = match records.first() {
            Some(record) => record.offset,
            None => self.log.bounds().await?.first,
        };
        if first > position {
            // These were removed from a full log before they were offered: each Trigger reads on independently and
            // reports the gap.
            let mut state = self.lock();
            state.detach_all(position);
            state.position = first;
        }
        let size = records.iter().map(cost).sum();
        let Some(mut memory) = self.memory.try_reserve(size) else {
            // No memory for shared reading: each Trigger reads on independently, at its own pace.
            self.detach_all();
            return Ok(());
        };
        let mut filter_yield = FilterYield::default();
        for record in records {
            let part = memory.split(cost(&record));
            self.offer_record(record, part, &mut filter_yield).await;
        }
        Ok(())
    }

    /// Offers one record. Filters are evaluated without holding the lock.
    async fn offer_record(&self, record: LogRecord, memory: Reservation, filter_yield: &mut FilterYield) {
        let (offset, partition) = (record.offset, self.log.partition());
        let event = match Event::from_record(record.payload) {
            Ok(event) if is_in(partition, &event, offset) => BufferedEvent::new(event, memory),
            Err(error) if partition.has(None, offset) => return self.unreadable(offset, &error),
            _ => return self.pass(offset),
        };
        let mut evaluated = EvaluatedTriggers::default();
        loop {
            let (table, inboxes, attached) = {
                let state = self.lock();
                (state.table.clone(), state.inboxes.clone(), state.attached)
            };
            evaluated.reset_for(&inboxes);
            let subject = Subject::new(event.event());
            filter_yield.next_event();
            for index in table.candidates(event.event()) {
                // Detached Triggers and those set aside are not evaluated here.
                let Some(inbox) = inboxes.get(index).filter(|inbox| inbox.awaits(offset)) else {
                    continue;
                };
                if !evaluated.first_time(index) {
                    continue;
                }
                match table.routes()[index].decide(&subject) {
                    Decision::Pass => {
                        inbox.filter_within_budget();
                        evaluated.wanted.push(index);
                    }
                    Decision::Skip => inbox.filter_within_budget(),
                    Decision::Failed(error) => inbox.filter_failed(offset, &error),
                }
                filter_yield.yield_if_due(&subject).await;
            }
            let mut state = self.lock();
            if !Arc::ptr_eq(&state.inboxes, &inboxes) || state.attached != attached {
                // The table or an inbox changed during the evaluation.
                continue;
            }
            for inbox in evaluated.wanted.iter().filter_map(|&index| inboxes.get(index)) {
                inbox.push(offset, &event);
            }
            state.position = offset.plus(1);
            return;
        }
    }

    /// Skips a record of another partition.
    fn pass(&self, offset: Offset) {
        self.lock().position = offset.plus(1);
    }

    fn unreadable(&self, offset: Offset, error: &dyn std::error::Error) {
        let mut state = self.lock();
        for inbox in &*state.inboxes {
            inbox.push_unreadable(offset);
        }
        if let Some(Admitted { held_back }) = state.unreadable.admit(Instant::now()) {
            tracing::error!(
                broker = %self.broker(), position = %offset, %error, held_back,
                "a record of the event log is not a readable event and is skipped"
            );
        }
        state.position = offset.plus(1);
    }

    /// Detaches every inbox at the current position.
    fn detach_all(&self) {
        let mut state = self.lock();
        let position = state.position;
        state.detach_all(position);
    }

    /// Next position to read, or `None` when no inbox is attached: then the reader skips to the end.
    fn position_if_needed(&self, end: Offset) -> Option<Offset> {
        let mut state = self.lock();
        if state.inboxes.iter().any(|inbox| inbox.is_attached()) {
            return Some(state.position);
        }
        state.position = state.position.max(end);
        None
    }

    fn lock(&self) -> MutexGuard<'_, ReaderState> {
        // No panic under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        log::{
            LogName, LogProvider as _,
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
        routing::{Configuration, Delivery, RoutingTable},
    };

    const BROKER: &str = "shop/default";

    #[tokio::test]
    async fn unreadable_records_are_offered_to_all_triggers() {
        let directory = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let trigger = |name: &str, filters| {
            serde_json::from_value(json!({
                "uid": name, "namespace": "shop", "name": name, "generation": 1, "broker": "default", "filters": filters,
                "destination": null, "delivery": Delivery::default(), "start": "Latest", "suspend": false,
            }))
            .unwrap()
        };
        let table = RoutingTable::compile(Configuration {
            triggers: vec![
                trigger("all", json!([])),
                trigger("none", json!([{"exact": {"type": "other"}}])),
            ],
            ..Configuration::default()
        });
        let inboxes = [(); 2].map(|()| Arc::new(Inbox::default()));
        let events = log.open(&LogName::Events(BROKER.into()));
        let reader = Reader::new(events, Offset(0), &Pool::new(1 << 20));
        let listeners = inboxes.clone().map(|inbox| Listener {
            inbox,
            is_deliverable: true,
        });
        reader.follow(table.brokers()[BROKER].clone(), listeners.into());
        for inbox in &inboxes {
            assert_eq!(reader.attach(inbox, Offset(0)), Offset(0));
        }

        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "t")
            .build()
            .unwrap();
        let other_version = Bytes::from_static(&[9, 0]);
        let payloads = vec![other_version.clone(), event.to_record(), other_version];
        log.append(BROKER, payloads, Timestamp::now()).await.unwrap();
        reader.offer(log.bounds(BROKER).next).await.unwrap();

        let taken = inboxes.map(|inbox| {
            let events = inbox.take(10).events.into_iter();
            events
                .map(|(offset, event)| (offset.0, event.is_some()))
                .collect::<Vec<_>>()
        });
        assert_eq!(
            taken,
            [
                vec![(0, false), (1, true), (2, false)],
                vec![(0, false), (2, false)]
            ]
        );
    }
}
