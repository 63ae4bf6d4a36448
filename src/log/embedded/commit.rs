//! A commit under construction: its writes, the brokers it changes, and the callers to answer once it is durable.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use fjall::{Keyspace, OwnedWriteBatch};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    broker::{LogState, OpenLog},
    fail_points::Contents,
    layout::{self, FIRST_FORMAT, FORMAT, Registered, SHARED_FORMAT},
    request::ReplySender,
    store::{BrokerKeyspace, Store},
};
use crate::log::{Appended, LogRecord};

/// A commit under construction.
pub(super) struct Commit {
    pub(super) batch: OwnedWriteBatch,
    pub(super) bytes: u64,
    pub(super) brokers: HashMap<Arc<str>, Staged>,
    pub(super) fsync: bool,
    /// Brokers with new ids.
    pub(super) with_ids: BTreeSet<Arc<str>>,
    pub(super) contents: Contents,
    pub(super) answers: Vec<Acknowledgement>,
    pub(super) trimmed: Vec<Arc<OpenLog>>,
    /// Keyspaces that were free until now.
    pub(super) reused: Vec<u32>,
    /// Logs to give back after the commit.
    pub(super) given_back: Vec<(Vec<Arc<OpenLog>>, ReplySender<usize>)>,
    /// Free space when the commit began; measured on first use.
    pub(super) free: Option<u64>,
}

/// A broker as it will be after the commit.
pub(super) struct Staged {
    pub(super) broker: Arc<OpenLog>,
    pub(super) stored: BrokerKeyspace,
    pub(super) state: LogState,
    pub(super) records: Vec<LogRecord>,
    pub(super) register: bool,
}

pub(super) enum Acknowledgement {
    Appended(ReplySender<Appended>, Appended, OwnedSemaphorePermit),
    Done(ReplySender<()>),
    /// With the brokers that have more ids to forget.
    Forgotten(ReplySender<Vec<Arc<str>>>, Vec<Arc<str>>),
    Saved(Vec<ReplySender<()>>),
}

impl Commit {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            batch: store.batch(),
            bytes: 0,
            brokers: HashMap::new(),
            fsync: false,
            with_ids: BTreeSet::new(),
            contents: Contents::default(),
            answers: Vec::new(),
            trimmed: Vec::new(),
            reused: Vec::new(),
            given_back: Vec::new(),
            free: None,
        }
    }

    /// Adds the entries of brokers that need a new one, and the marks of shared keyspaces. Returns the format that has
    /// all of it.
    pub(super) fn register(&mut self, meta: &Keyspace) -> u32 {
        for id in self.reused.drain(..) {
            self.batch.remove(meta, layout::free_key(id));
        }
        let mut marked = BTreeMap::new();
        let mut format = FIRST_FORMAT;
        for Staged { stored, records, .. } in self.brokers.values() {
            if let Some(number) = layout::shared_keyspace_of(stored.id)
                && !records.is_empty()
            {
                marked.insert(number, &stored.events);
            }
        }
        for keyspace in marked.into_values() {
            self.batch.insert(keyspace, layout::MARK, []);
        }
        for staged in self.brokers.values().filter(|staged| staged.register) {
            let LogState {
                first,
                bytes_before_first,
                last_accepted_millis,
                start,
                ..
            } = staged.state;
            let entry = Registered {
                id: staged.stored.id,
                first,
                bytes_before_first,
                last_accepted_millis,
                start,
            };
            format = format.max(match (layout::broker_of_ids(&staged.broker.name), start) {
                (Some(_), _) => FORMAT,
                (None, 1..) => SHARED_FORMAT,
                (None, 0) if layout::is_shared(entry.id) => SHARED_FORMAT,
                (None, 0) => FIRST_FORMAT,
            });
            self.batch
                .insert(meta, layout::broker_key(&staged.broker.name), entry.to_value());
        }
        format
    }
}

/// Returns the broker as it will be after a commit with these staged brokers.
pub(super) fn stage<'a>(
    brokers: &'a mut HashMap<Arc<str>, Staged>,
    broker: &Arc<OpenLog>,
    stored: BrokerKeyspace,
) -> &'a mut Staged {
    brokers.entry(broker.name.clone()).or_insert_with(|| Staged {
        broker: broker.clone(),
        stored,
        state: broker.state(),
        records: Vec::new(),
        register: false,
    })
}

impl Acknowledgement {
    /// Answers the callers. A caller may be gone; its request is done nevertheless.
    pub(super) fn done(self) {
        match self {
            Self::Appended(reply, appended, permit) => {
                drop(permit);
                let _ = reply.send(Ok(appended));
            }
            Self::Done(reply) => {
                let _ = reply.send(Ok(()));
            }
            Self::Forgotten(reply, unfinished) => {
                let _ = reply.send(Ok(unfinished));
            }
            Self::Saved(replies) => {
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }
}
