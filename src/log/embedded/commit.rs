//! A commit under construction: its writes, the brokers it changes, and the callers to answer once it is durable.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use fjall::{Keyspace, OwnedWriteBatch};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    broker::{LogState, OpenLog},
    fail_points::Contents,
    layout::{self, Registered},
    request::ReplySender,
    store::{BrokerKeyspace, Store},
};
use crate::log::{LogRecord, Offset};

/// A commit under construction.
pub(super) struct Commit {
    pub(super) batch: OwnedWriteBatch,
    pub(super) bytes: u64,
    pub(super) brokers: HashMap<Arc<str>, Staged>,
    pub(super) fsync: bool,
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
    Offset(ReplySender<Offset>, Offset, OwnedSemaphorePermit),
    Done(ReplySender<()>),
    Saved(Vec<ReplySender<()>>),
}

impl Commit {
    pub(super) fn new(store: &Store) -> Self {
        Self {
            batch: store.batch(),
            bytes: 0,
            brokers: HashMap::new(),
            fsync: false,
            contents: Contents::default(),
            answers: Vec::new(),
            trimmed: Vec::new(),
            reused: Vec::new(),
            given_back: Vec::new(),
            free: None,
        }
    }

    /// Adds the entries of brokers that need a new one, and the marks of shared keyspaces. Returns whether a broker
    /// has something that only the newest format has.
    pub(super) fn register(&mut self, meta: &Keyspace) -> bool {
        for id in self.reused.drain(..) {
            self.batch.remove(meta, layout::free_key(id));
        }
        let mut marked = BTreeMap::new();
        let mut is_new = false;
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
            is_new |= layout::is_shared(entry.id) || start > 0;
            self.batch
                .insert(meta, layout::broker_key(&staged.broker.name), entry.to_value());
        }
        is_new
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
            Self::Offset(reply, offset, permit) => {
                drop(permit);
                let _ = reply.send(Ok(offset));
            }
            Self::Done(reply) => {
                let _ = reply.send(Ok(()));
            }
            Self::Saved(replies) => {
                for reply in replies {
                    let _ = reply.send(Ok(()));
                }
            }
        }
    }
}
