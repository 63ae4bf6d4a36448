//! The only way into the logs. Stores new events for the ingress and for Sources, and replies and dead letters for
//! delivery. It decides how much of the log's capacity each of them may use, recognizes repeats (`deduplication.rs`), ends
//! loops (`descendants.rs`), and encodes batches without blocking other tasks.

mod deduplication;
mod descendants;

pub use deduplication::{Deduplication, DeduplicationCounts, IdWindows, NOT_COMPARED};
pub use descendants::{Admission, Beyond, Counted, Descendants, HOPS, MAX_DESCENDANTS, MAX_HOPS, next};

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use jiff::Timestamp;

use self::deduplication::DistinctRecords;
use crate::log::{Append, Appended, BrokerName, Log, LogError, LogName, LogProvider, Offset};

/// Number of events of a batch after which encoding yields to other tasks.
const EVENTS_AT_ONCE: usize = 256;

/// Number of times that room is made for an append: other appends may take it first.
const ROOM_ATTEMPTS: usize = 5;

/// What has no room for new events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The logs as a whole, or their volume.
    Log,
    /// The namespace's share of the logs.
    Share,
}

impl Shortage {
    /// The shortage that an error reports, if it is one.
    pub fn of(error: &LogError) -> Option<Self> {
        match error {
            LogError::Full(_) => Some(Self::Log),
            LogError::Quota(_) => Some(Self::Share),
            _ => None,
        }
    }
}

/// What may be done for room within a broker's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomBy {
    /// Only a look at what Triggers have settled.
    Looking,
    /// Dropping the oldest events as well, if the broker does.
    Dropping,
}

/// Room for new events, held while they are stored.
pub type HeldRoom = Box<dyn Send>;

/// Makes room in full logs.
pub trait MakeRoom: Send + Sync {
    /// Holds room for `bytes` of new events of `broker` within its own quota, if it has one. Without quotas there is
    /// nothing to hold.
    ///
    /// # Errors
    /// [`LogError::BrokerQuota`] if there is no room; [`LogError::Unavailable`] if that is unknown for now.
    fn hold_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        bytes: u64,
        by: RoomBy,
    ) -> BoxFuture<'a, Result<Option<HeldRoom>, LogError>> {
        let _without_quotas = (broker, bytes, by);
        Box::pin(async { Ok(None) })
    }

    /// Removes records, so that events of `broker` can be stored. Returns whether there may be room now.
    ///
    /// # Errors
    /// Fails when the log fails.
    fn make_room<'a>(
        &'a self,
        broker: &'a BrokerName,
        shortage: Shortage,
    ) -> BoxFuture<'a, Result<bool, LogError>>;
}

/// Stores events. Clones share everything.
#[derive(Clone)]
pub struct Intake {
    logs: Arc<dyn LogProvider>,
    room: Arc<dyn MakeRoom>,
    deduplication: Arc<Deduplication>,
}

/// Part of the log's capacity that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsableRoom {
    /// Room for new events.
    Common,
    /// The reserve as well. It is for the first unsettled event only: if others used it up, that event could wait
    /// forever, and no later event could be removed.
    Reserve,
}

impl Intake {
    /// Creates an intake for these logs; `room` makes room when they are full.
    pub fn new(
        logs: Arc<dyn LogProvider>,
        room: Arc<dyn MakeRoom>,
        deduplication: Arc<Deduplication>,
    ) -> Self {
        Self {
            logs,
            room,
            deduplication,
        }
    }

    /// Stores new events of a broker as one commit, within the broker's quota. Leaves out repeats, if the broker has
    /// deduplication. If the log is full, makes room and retries once.
    ///
    /// # Errors
    /// As [`Log::append`](crate::log::Log::append), and [`LogError::BrokerQuota`].
    pub async fn accept(
        &self,
        broker: &BrokerName,
        records: &[Bytes],
        accepted: Timestamp,
    ) -> Result<Appended, LogError> {
        let log = self.logs.open(&LogName::Events(broker.clone()));
        let append = |append| log.append(append);
        self.append(broker, records, accepted, async |appending| {
            let _held = self.hold_room(broker, &*log, &appending).await?;
            self.with_room(broker, || append(appending.clone())).await
        })
        .await
    }

    /// Holds room for an append within the broker's quota. Repeats need none, and nothing is dropped for them.
    async fn hold_room(
        &self,
        broker: &BrokerName,
        log: &dyn Log,
        append: &Append,
    ) -> Result<Option<HeldRoom>, LogError> {
        let bytes = append.bytes();
        if append.unique.is_none() {
            return self.room.hold_room(broker, bytes, RoomBy::Dropping).await;
        }
        match self.room.hold_room(broker, bytes, RoomBy::Looking).await {
            Err(LogError::BrokerQuota(_)) => {}
            held => return held,
        }
        match log.bytes_to_store(append).await? {
            0 => Ok(None),
            new => self.room.hold_room(broker, new, RoomBy::Dropping).await,
        }
    }

    /// Appends the records that are no repeats, if the broker has deduplication. Counts the others.
    async fn append(
        &self,
        broker: &BrokerName,
        records: &[Bytes],
        accepted: Timestamp,
        store: impl AsyncFnOnce(Append) -> Result<Appended, LogError>,
    ) -> Result<Appended, LogError> {
        let Some(window) = self.deduplication.window_of(broker) else {
            let append = Append {
                payloads: records.to_vec(),
                accepted,
                unique: None,
            };
            return store(append).await;
        };
        let stored = async {
            let distinct = DistinctRecords::of(records, window, accepted)?;
            let append = Append {
                payloads: distinct.records.clone(),
                accepted,
                unique: Some(distinct.unique.clone()),
            };
            let appended = store(append).await;
            let Appended { first, repeats } = appended.map_err(|error| distinct.in_request(error))?;
            let repeats = repeats + records.len() - distinct.records.len();
            Ok(Appended { first, repeats })
        };
        let stored = stored.await;
        match &stored {
            Ok(appended) => self.deduplication.count_repeats(broker, appended.repeats),
            Err(LogError::Conflict { .. }) => self.deduplication.count_conflict(broker),
            Err(_) => {}
        }
        stored
    }

    /// Stores a new event that another router may store as well: see
    /// [`Log::append_once`](crate::log::Log::append_once). If the log is full, makes room and retries once.
    ///
    /// # Errors
    /// As [`Log::append_once`](crate::log::Log::append_once).
    pub async fn accept_once(
        &self,
        broker: &BrokerName,
        id: &str,
        record: &Bytes,
        accepted: Timestamp,
    ) -> Result<Offset, LogError> {
        let log = self.logs.open(&LogName::Events(broker.clone()));
        let append = |append| log.append_once(id, append);
        let records = std::slice::from_ref(record);
        let appended = self.append(broker, records, accepted, async |appending| {
            self.with_room(broker, || append(appending.clone())).await
        });
        Ok(appended.await?.first)
    }

    async fn with_room<'a>(
        &self,
        broker: &BrokerName,
        append: impl Fn() -> BoxFuture<'a, Result<Appended, LogError>>,
    ) -> Result<Appended, LogError> {
        let mut appended = append().await;
        for _ in 0..ROOM_ATTEMPTS {
            let Some(shortage) = appended.as_ref().err().and_then(Shortage::of) else {
                break;
            };
            match self.room.make_room(broker, shortage).await {
                Ok(true) => appended = append().await,
                Ok(false) => break,
                Err(error @ LogError::Failed(_)) => return Err(error),
                // Already logged where it happened; the events are rejected for want of room.
                Err(_) => break,
            }
        }
        appended
    }

    /// Stores replies, which settle an event of the broker, as one commit. Leaves out repeats, if the broker has
    /// deduplication. Does not make room: if the log is full, the delivery is retried.
    ///
    /// # Errors
    /// As [`Log::append`](crate::log::Log::append).
    pub async fn settle(
        &self,
        broker: &BrokerName,
        records: &[Bytes],
        room: UsableRoom,
    ) -> Result<Offset, LogError> {
        let log = LogName::Events(broker.clone());
        let appended = self.append(broker, records, Timestamp::now(), async |append| {
            match self.logs.capacity().filter(|_| room == UsableRoom::Reserve) {
                Some(capacity) => capacity.append_to_settle(&log, append).await,
                None => self.logs.open(&log).append(append).await,
            }
        });
        Ok(appended.await?.first)
    }

    /// Stores a dead letter, which settles an event. The next owner of its shard may store it as well: see
    /// [`Log::append_once`](crate::log::Log::append_once). Does not make room, as [`Intake::settle`].
    ///
    /// # Errors
    /// As [`Log::append_once`](crate::log::Log::append_once).
    pub async fn settle_once(
        &self,
        log: &LogName,
        id: &str,
        letter: Bytes,
        room: UsableRoom,
    ) -> Result<Offset, LogError> {
        let append = Append {
            payloads: vec![letter],
            accepted: Timestamp::now(),
            unique: None,
        };
        let appended = match self.logs.capacity().filter(|_| room == UsableRoom::Reserve) {
            Some(capacity) => capacity.append_to_settle(log, append).await,
            None => self.logs.open(log).append_once(id, append).await,
        };
        Ok(appended?.first)
    }
}

#[cfg(test)]
impl Intake {
    /// Creates an intake that never makes room.
    pub(crate) fn without_room(logs: Arc<dyn LogProvider>) -> Self {
        struct NoRoom;
        impl MakeRoom for NoRoom {
            fn make_room<'a>(
                &'a self,
                _: &'a BrokerName,
                _: Shortage,
            ) -> BoxFuture<'a, Result<bool, LogError>> {
                Box::pin(async { Ok(false) })
            }
        }
        Self::new(logs, Arc::new(NoRoom), Arc::default())
    }
}

/// Creates a record of each event, except those for which `encode` returns none. Events are parsed and encoded one by
/// one, since a batch takes more memory as events than as text, and other tasks can run in between.
///
/// # Errors
/// Returns the first error of `encode`, which gets the event's index in the batch.
pub async fn records<T, R: Into<Option<Bytes>>, E>(
    events: impl ExactSizeIterator<Item = T>,
    mut encode: impl FnMut(usize, T) -> Result<R, E>,
) -> Result<Vec<Bytes>, E> {
    let mut records = Vec::with_capacity(events.len());
    for (index, event) in events.enumerate() {
        if index % EVENTS_AT_ONCE == EVENTS_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        records.extend(encode(index, event)?.into());
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        log::{
            IdWindow,
            memory::{MemoryLogs, Operation},
        },
    };

    /// Counts calls, and has some room or none. Others take what it makes so many times.
    #[derive(Default)]
    struct TestRoom {
        asked: AtomicUsize,
        made: AtomicBool,
        has_some: bool,
        taken: AtomicUsize,
    }

    impl MakeRoom for TestRoom {
        fn make_room<'a>(&'a self, _: &'a BrokerName, _: Shortage) -> BoxFuture<'a, Result<bool, LogError>> {
            self.asked.fetch_add(1, Relaxed);
            self.made.store(self.has_some, Relaxed);
            Box::pin(async { Ok(self.has_some) })
        }
    }

    fn full(has_some: bool) -> (Intake, Arc<TestRoom>, MemoryLogs) {
        let room = Arc::new(TestRoom {
            has_some,
            ..TestRoom::default()
        });
        let (logs, made) = (MemoryLogs::default(), room.clone());
        logs.set_fault(move |operation, _| {
            let has_room = made.made.load(Relaxed) && made.asked.load(Relaxed) > made.taken.load(Relaxed);
            let is_full = operation == Operation::Append && !has_room;
            is_full.then(|| LogError::Full("no room".to_owned()))
        });
        let intake = Intake::new(Arc::new(logs.clone()), room.clone(), Arc::default());
        (intake, room, logs)
    }

    #[tokio::test]
    async fn new_events_request_room_in_a_full_log_once() {
        let (broker, record) = (BrokerName::from("shop/orders"), [Bytes::from_static(b"event")]);
        for (has_some, stored) in [(true, 1), (false, 0)] {
            let (intake, room, logs) = full(has_some);
            let accepted = intake.accept(&broker, &record, Timestamp::UNIX_EPOCH).await;
            assert_eq!(accepted.is_ok(), has_some, "{accepted:?}");
            assert_eq!(room.asked.load(Relaxed), 1);
            let log = logs.open(&LogName::Events(broker.clone()));
            assert_eq!(log.cached_bounds().next, Offset(stored));
        }
    }

    /// A broker's quota that is used up. Notes the bytes for which its oldest events would be dropped.
    #[derive(Default)]
    struct UsedUpQuota {
        dropping: Mutex<Vec<u64>>,
    }

    impl MakeRoom for UsedUpQuota {
        fn hold_room<'a>(
            &'a self,
            _: &'a BrokerName,
            bytes: u64,
            by: RoomBy,
        ) -> BoxFuture<'a, Result<Option<HeldRoom>, LogError>> {
            if by == RoomBy::Dropping {
                self.dropping.lock().unwrap().push(bytes);
            }
            Box::pin(async { Err(LogError::BrokerQuota("used up".to_owned())) })
        }

        fn make_room<'a>(&'a self, _: &'a BrokerName, _: Shortage) -> BoxFuture<'a, Result<bool, LogError>> {
            Box::pin(async { Ok(false) })
        }
    }

    #[tokio::test]
    async fn room_that_others_take_is_made_again_a_few_times() {
        let (broker, record) = (BrokerName::from("shop/orders"), [Bytes::from_static(b"event")]);
        for (taken, asked, is_stored) in [(0, 1, true), (2, 3, true), (ROOM_ATTEMPTS, ROOM_ATTEMPTS, false)] {
            let (intake, room, _) = full(true);
            room.taken.store(taken, Relaxed);
            let accepted = intake.accept(&broker, &record, Timestamp::UNIX_EPOCH).await;
            assert_eq!(accepted.is_ok(), is_stored, "{accepted:?}");
            assert_eq!(room.asked.load(Relaxed), asked);
        }
    }

    #[tokio::test]
    async fn repeats_need_no_room_within_the_quota() {
        let (broker, logs) = (BrokerName::from("shop/orders"), MemoryLogs::default());
        let (deduplication, quota) = (Arc::<Deduplication>::default(), Arc::<UsedUpQuota>::default());
        deduplication.set(IdWindows {
            others: Some(IdWindow {
                age: Duration::from_secs(60),
                events: 10,
            }),
            ..IdWindows::default()
        });
        let record = |id: &str| {
            let event = EventBuilder::new()
                .attribute("id", id)
                .attribute("source", "/s")
                .attribute("type", "t");
            event.build().unwrap().to_record()
        };
        let accept = async |room: Arc<dyn MakeRoom>, ids: &[&str]| {
            let records: Vec<_> = ids.iter().map(|id| record(id)).collect();
            let intake = Intake::new(Arc::new(logs.clone()), room, deduplication.clone());
            let accepted = intake.accept(&broker, &records, Timestamp::UNIX_EPOCH).await;
            accepted.map(|appended| appended.repeats)
        };
        let (roomy, _, _) = full(true);
        assert_eq!(accept(roomy.room, &["1", "2"]).await.unwrap(), 0);
        assert_eq!(accept(quota.clone(), &["2", "1", "2"]).await.unwrap(), 3);
        assert_eq!(
            *quota.dropping.lock().unwrap(),
            [0; 0],
            "nothing is dropped for repeats"
        );
        let refused = accept(quota.clone(), &["1", "3"]).await;
        assert!(matches!(refused, Err(LogError::BrokerQuota(_))), "{refused:?}");
        assert_eq!(*quota.dropping.lock().unwrap(), [record("3").len() as u64]);
    }

    #[tokio::test]
    async fn settling_does_not_request_room() {
        let (intake, room, _) = full(true);
        let broker = "shop/orders".into();
        let settled = intake.settle(&broker, &[Bytes::new()], UsableRoom::Common).await;
        assert!(matches!(settled, Err(LogError::Full(_))), "{settled:?}");
        assert_eq!(room.asked.load(Relaxed), 0);
    }
}
