//! The one reader of a broker's log that feeds all its Triggers.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::inbox::Inbox;
use crate::{
    cloudevents::Event,
    filter::Decision,
    log::{EventLog, LogError, Offset, ReadLimit},
    routing::BrokerTable,
    telemetry::{Admitted, Burst},
};

/// How much is read at once.
pub(super) const READ: ReadLimit = ReadLimit {
    records: 256,
    bytes: 1024 * 1024,
};

/// How often it is looked whether log lines were held back that nothing has told of.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Follows one broker's log and offers each event to the Triggers that want it.
pub(super) struct Reader {
    broker: String,
    log: Arc<dyn EventLog>,
    state: Mutex<State>,
}

struct State {
    /// Everything below was offered to every attached inbox that wanted it.
    position: Offset,
    table: Arc<BrokerTable>,
    /// One for each route of the table.
    inboxes: Vec<Arc<Inbox>>,
    /// Bounds what is said of records that cannot be read.
    unreadable: Burst,
}

impl State {
    /// Each Trigger reads by itself from here on, until it joins again.
    fn leave_alone(&mut self, from: Offset) {
        self.inboxes.iter().for_each(|inbox| inbox.overflow(from));
    }
}

impl Reader {
    /// A reader that begins at the end of the log: what is before it the Triggers read by themselves.
    pub(super) fn new(broker: String, log: Arc<dyn EventLog>) -> Self {
        let position = log.bounds(&broker).next;
        let state = State {
            position,
            table: Arc::default(),
            inboxes: Vec::new(),
            unreadable: Burst::default(),
        };
        Self {
            broker,
            log,
            state: Mutex::new(state),
        }
    }

    /// Offers events by this table from now on.
    pub(super) fn follow(&self, table: Arc<BrokerTable>, inboxes: Vec<Arc<Inbox>>) {
        let mut state = self.lock();
        state.table = table;
        state.inboxes = inboxes;
    }

    /// Everything below this was offered.
    pub(super) fn position(&self) -> Offset {
        self.lock().position
    }

    /// Attaches an inbox; it is offered everything from the returned position on.
    pub(super) fn attach(&self, inbox: &Inbox) -> Offset {
        let state = self.lock();
        inbox.attach();
        state.position
    }

    /// Follows the log until told to stop.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) async fn run(&self, stop: CancellationToken) -> Result<(), LogError> {
        let mut end = self.log.watch(&self.broker);
        let mut overdue = tokio::time::interval(TELL_EVERY);
        overdue.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next = *end.borrow_and_update();
            if self.position() < next {
                let offered = tokio::select! {
                    offered = self.offer(next) => offered,
                    () = stop.cancelled() => return Ok(()),
                };
                match offered {
                    Ok(()) => {}
                    Err(error @ LogError::Failed(_)) => return Err(error),
                    Err(error) => {
                        tracing::error!(
                            broker = self.broker, %error,
                            "the broker's log cannot be read on; its Triggers read by themselves"
                        );
                        let mut state = self.lock();
                        let position = state.position;
                        state.leave_alone(position);
                    }
                }
                continue;
            }
            tokio::select! {
                changed = end.changed() => if changed.is_err() { return Ok(()) },
                _ = overdue.tick() => self.tell_overdue(Instant::now()),
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Says how many lines were held back, where no later line has.
    fn tell_overdue(&self, now: Instant) {
        if let Some(held_back) = self.lock().unreadable.overdue(now) {
            tracing::warn!(
                broker = self.broker,
                held_back,
                of = "records that cannot be read",
                "log lines were held back"
            );
        }
    }

    async fn offer(&self, end: Offset) -> Result<(), LogError> {
        let Some(position) = self.position_if_needed(end) else {
            return Ok(());
        };
        let records = self.log.read(&self.broker, position, READ).await?;
        let events: Vec<_> = records
            .into_iter()
            .map(|record| (record.offset, Event::from_record(record.payload)))
            .collect();
        let first = match events.first() {
            Some(&(offset, _)) => offset,
            None => self.log.bounds(&self.broker).first,
        };
        let mut state = self.lock();
        if first > position {
            // Removed from the full log before they were offered: each Trigger goes on alone, and tells.
            state.leave_alone(position);
            state.position = first;
        }
        for (offset, event) in events {
            match event {
                Ok(event) => {
                    let inbox = |index: usize| {
                        state
                            .inboxes
                            .get(index)
                            .filter(|inbox: &&Arc<Inbox>| inbox.is_attached())
                    };
                    state.table.deciding(
                        &event,
                        // What is read by itself, or set aside, is not evaluated here.
                        |index| inbox(index).is_some(),
                        |index, decision| {
                            let Some(inbox) = inbox(index) else { return };
                            match decision {
                                Decision::Failed(error) => inbox.filter_failed(offset, &error),
                                Decision::Pass => {
                                    inbox.filter_held();
                                    inbox.push(offset, &event);
                                }
                                Decision::Skip => inbox.filter_held(),
                            }
                        },
                    );
                }
                Err(error) => {
                    state
                        .inboxes
                        .iter()
                        .for_each(|inbox| inbox.push_unreadable(offset));
                    if let Some(Admitted { held_back }) = state.unreadable.admit(Instant::now()) {
                        tracing::error!(
                            broker = self.broker, place = %offset, %error, held_back,
                            "a record of the event log cannot be read as an event and is passed over"
                        );
                    }
                }
            }
            state.position = offset.plus(1);
        }
        Ok(())
    }

    /// Where to read, unless nobody is attached: then the reader goes to the end without reading.
    fn position_if_needed(&self, end: Offset) -> Option<Offset> {
        let mut state = self.lock();
        if state.inboxes.iter().any(|inbox| inbox.is_attached()) {
            return Some(state.position);
        }
        state.position = state.position.max(end);
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can leave the state half changed.
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
        log::embedded::{EmbeddedLog, EmbeddedOptions},
        routing::{Configuration, Delivery, RoutingTable},
    };

    const BROKER: &str = "shop/default";

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_offered_to_all_as_such() {
        let directory = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let log: Arc<dyn EventLog> = Arc::new(log);
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
        let reader = Reader::new(BROKER.to_owned(), log.clone());
        reader.follow(table.brokers()[BROKER].clone(), inboxes.to_vec());
        for inbox in &inboxes {
            assert_eq!(reader.attach(inbox), Offset(0));
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
