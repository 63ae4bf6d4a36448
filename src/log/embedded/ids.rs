//! The ids of events that brokers with deduplication remember. In memory, for lookups by the committer; each is also
//! stored, in the commit of its event, from where [`IdIndex::load`] reads it when the log is opened.
//!
//! The ids of a broker are a log of their own (`{namespace/name}.ids`), with a record for each commit that has new
//! ones. It is a log like any other: it takes a place in the store, counts in its namespace's share, and is trimmed at
//! the front. It is trimmed only when ids are forgotten regularly; until then it may have ids that are forgotten
//! already.
//!
//! Memory is bounded: beyond [`EmbeddedOptions::max_ids`](super::EmbeddedOptions::max_ids), the namespace that remembers
//! most forgets its oldest. The committer does all of this between commits, so nothing here moves or forgets more than
//! some thousand ids at once: what is left is forgotten in the next rounds.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    broker::OpenLog,
    id_map::{IdMap, KEY},
    layout,
    shares::namespace_of,
    store::{ReadError, Store},
};
use crate::log::{EventIdentity, IdWindow, KeepIds, LogRecord, Offset, ReadLimit, RememberedIds, record};

/// Bytes of an id in a record: its key and its digest.
pub(super) const ID: usize = KEY + 8;
/// Part of a broker's ids that is forgotten at once, when there are too many of all brokers.
const PORTION: usize = 16;
/// Ids that are forgotten at once. The last record may exceed it.
const FORGOTTEN_AT_ONCE: usize = 4096;
/// Number of ids that looking at a broker counts as.
const LOOK: usize = 4;
/// Part of a queue by which it grows.
const GROWTH: usize = 8;
/// Records read at once while loading.
const LOADED_AT_ONCE: ReadLimit = ReadLimit {
    records: 4096,
    bytes: 1024 * 1024,
};

/// The ids of all brokers.
pub(super) struct IdIndex {
    brokers: HashMap<Arc<str>, BrokerIds>,
    ids: usize,
    most: usize,
}

/// A remembered id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownId {
    pub(super) digest: u64,
    pub(super) accepted_millis: i64,
}

/// A record of ids to store.
pub(super) struct NewIds {
    pub(super) log: Arc<OpenLog>,
    pub(super) record: Bytes,
    pub(super) accepted_millis: i64,
}

/// Result of forgetting ids.
#[derive(Default)]
pub(super) struct Forgotten {
    /// Brokers that were looked at.
    pub(super) looked_at: Vec<Arc<str>>,
    /// What is left of the brokers that have forgotten stored ids.
    pub(super) remaining: Vec<RemainingIds>,
    /// Brokers that have more to forget.
    pub(super) unfinished: Vec<Arc<str>>,
}

/// What is left of the ids of a broker.
pub(super) struct RemainingIds {
    pub(super) log: Arc<OpenLog>,
    /// First record with ids that are not forgotten, and the payload bytes before it.
    pub(super) first: Offset,
    pub(super) bytes_before: u64,
    /// Whether nothing is remembered any more, and nothing new is to be.
    pub(super) is_gone: bool,
}

/// The ids of one broker.
struct BrokerIds {
    log: Arc<OpenLog>,
    /// Digest, and the offset of the record, by key.
    known: IdMap<(u64, u64)>,
    /// Keys in the order of the records. Those of loaded records may be remembered by a later record.
    keys: VecDeque<[u8; KEY]>,
    records: VecDeque<IdRecord>,
    /// Offset of the first record, and the payload bytes before it.
    first: u64,
    bytes_before: u64,
    /// Whether the last record is not stored yet.
    is_open: bool,
    /// Last known window; `None` after a restart until it is known, and without deduplication.
    window: Option<IdWindow>,
    forgotten_early: u64,
}

#[derive(Clone, Copy)]
struct IdRecord {
    accepted_millis: i64,
    ids: usize,
}

impl IdIndex {
    /// Creates an index that remembers at most so many ids.
    pub(super) fn new(most: usize) -> Self {
        Self {
            brokers: HashMap::new(),
            ids: 0,
            most,
        }
    }

    /// Loads the ids in a log of ids.
    pub(super) fn load(&mut self, store: &Store, log: &Arc<OpenLog>) -> Result<(), ReadError> {
        let (Some(stored), state) = (log.stored(), log.state()) else {
            return Ok(());
        };
        let Some(broker) = layout::broker_of_ids(&log.name) else {
            return Ok(());
        };
        let mut ids = BrokerIds::new(log.clone());
        (ids.first, ids.bytes_before) = (state.first, state.bytes_before_first);
        let mut from = state.first;
        while from < state.next {
            let records = store.read(&stored, from, state.next, LOADED_AT_ONCE)?;
            for LogRecord {
                offset,
                accepted,
                payload,
            } in &records
            {
                let found = parse(payload).ok_or_else(|| {
                    ReadError::Damaged(format!("the ids at offset {offset} cannot be read"))
                })?;
                let record = IdRecord {
                    accepted_millis: record::millis(*accepted),
                    ids: found.len(),
                };
                push(&mut ids.records, record);
                for EventIdentity { key, digest } in found {
                    push(&mut ids.keys, key);
                    ids.known.insert(key, (digest, offset.0));
                }
            }
            from += records.len() as u64;
        }
        self.ids += ids.keys.len();
        self.brokers.insert(broker.into(), ids);
        self.make_room();
        Ok(())
    }

    /// The log of a broker's ids, if it remembers any.
    pub(super) fn log_of(&self, broker: &str) -> Option<&Arc<OpenLog>> {
        self.brokers.get(broker).map(|ids| &ids.log)
    }

    /// A remembered id.
    pub(super) fn find(&self, broker: &str, key: &[u8; KEY]) -> Option<KnownId> {
        let ids = self.brokers.get(broker)?;
        let (digest, offset) = *ids.known.get(key)?;
        let record = ids
            .records
            .get(usize::try_from(offset.checked_sub(ids.first)?).ok()?)?;
        Some(KnownId {
            digest,
            accepted_millis: record.accepted_millis,
        })
    }

    /// Remembers new ids of a broker, which go into the record that [`IdIndex::close`] returns. `log` opens the log of
    /// its ids.
    pub(super) fn remember(
        &mut self,
        broker: &Arc<str>,
        identities: &[EventIdentity],
        accepted_millis: i64,
        window: IdWindow,
        log: impl FnOnce() -> Arc<OpenLog>,
    ) {
        if self.brokers.get(broker).is_some_and(BrokerIds::is_given_back) {
            // The next ones have other offsets.
            self.brokers.remove(broker);
        }
        let ids = self.brokers.entry(broker.clone());
        let ids = ids.or_insert_with(|| BrokerIds::new(log()));
        ids.window = Some(window);
        ids.remember(identities, accepted_millis);
        self.ids += identities.len();
        // More than came, so that a smaller window is reached soon.
        self.ids -= ids.keep(window.events, 2 * identities.len());
        self.make_room();
    }

    /// Returns the record with the new ids of a broker, if there are any. They are part of the current commit.
    pub(super) fn close(&mut self, broker: &str) -> Option<NewIds> {
        self.brokers.get_mut(broker)?.close()
    }

    /// Forgets some of the ids of these brokers that are not kept. A broker without any is left out of the index once its
    /// log is given back.
    pub(super) fn forget(&mut self, kept: &HashMap<Arc<str>, KeepIds>, now_millis: Option<i64>) -> Forgotten {
        let mut forgotten = Forgotten::default();
        let mut left = FORGOTTEN_AT_ONCE;
        for (broker, kept) in kept {
            let Some(ids) = self.brokers.get_mut(broker) else {
                continue;
            };
            left = left.saturating_sub(LOOK);
            if left == 0 {
                forgotten.unfinished.push(broker.clone());
                continue;
            }
            forgotten.looked_at.push(broker.clone());
            ids.window = match kept {
                KeepIds::Within(window) => Some(*window),
                KeepIds::WithinLast => ids.window,
                KeepIds::Nothing => None,
            };
            let count = ids.forget_outside(now_millis, left);
            self.ids -= count;
            left = left.saturating_sub(count);
            if left == 0 {
                forgotten.unfinished.push(broker.clone());
            }
            if ids.is_given_back() {
                self.brokers.remove(broker);
                continue;
            }
            let has_deduplication = matches!(kept, KeepIds::Within(_));
            let is_gone = !has_deduplication && ids.records.is_empty();
            if ids.first > ids.log.state().first || is_gone {
                forgotten.remaining.push(RemainingIds {
                    log: ids.log.clone(),
                    first: Offset(ids.first),
                    bytes_before: ids.bytes_before,
                    is_gone,
                });
            }
        }
        forgotten
    }

    /// What each broker remembers.
    pub(super) fn remembered(&self) -> BTreeMap<Arc<str>, RememberedIds> {
        let brokers = self.brokers.iter();
        let remembered = brokers.map(|(broker, ids)| (broker.clone(), ids.remembered()));
        remembered.collect()
    }

    /// What one broker remembers.
    pub(super) fn remembered_by(&self, broker: &str) -> Option<RememberedIds> {
        self.brokers.get(broker).map(BrokerIds::remembered)
    }

    /// Forgets the oldest ids of the namespace that has most, until there are not too many. While ids are loaded this may
    /// take many steps.
    fn make_room(&mut self) {
        while self.ids > self.most {
            let mut namespaces = HashMap::<&str, usize>::new();
            for (broker, ids) in &self.brokers {
                *namespaces.entry(namespace_of(broker)).or_default() += ids.stored();
            }
            let most = self.brokers.iter().max_by_key(|(broker, ids)| {
                let of_namespace = namespaces.get(namespace_of(broker));
                (of_namespace.copied(), ids.stored(), Reverse(*broker))
            });
            let most = most.map(|(broker, _)| broker.clone());
            let most = most.and_then(|broker| self.brokers.get_mut(&broker));
            match most.map_or(0, BrokerIds::forget_some) {
                0 => return,
                forgotten => self.ids -= forgotten,
            }
        }
    }
}

impl BrokerIds {
    fn new(log: Arc<OpenLog>) -> Self {
        let state = log.state();
        Self {
            log,
            known: IdMap::new(),
            keys: VecDeque::new(),
            records: VecDeque::new(),
            first: state.next,
            bytes_before: state.bytes_before_next,
            is_open: false,
            window: None,
            forgotten_early: 0,
        }
    }

    fn remembered(&self) -> RememberedIds {
        RememberedIds {
            ids: self.keys.len() as u64,
            forgotten_early: self.forgotten_early,
        }
    }

    /// Whether there are no ids, and their log has no place.
    fn is_given_back(&self) -> bool {
        self.records.is_empty() && !self.log.is_stored()
    }

    /// Number of ids in stored records.
    fn stored(&self) -> usize {
        let open = self.records.back().filter(|_| self.is_open);
        self.keys.len() - open.map_or(0, |open| open.ids)
    }

    fn remember(&mut self, identities: &[EventIdentity], accepted_millis: i64) {
        let last = self.records.back().map_or(i64::MIN, |last| last.accepted_millis);
        let accepted_millis = accepted_millis.max(last);
        if !self.is_open {
            self.is_open = true;
            let record = IdRecord {
                accepted_millis,
                ids: 0,
            };
            push(&mut self.records, record);
        }
        let offset = self.first + self.records.len() as u64 - 1;
        if let Some(record) = self.records.back_mut() {
            record.accepted_millis = accepted_millis;
            record.ids += identities.len();
        }
        for EventIdentity { key, digest } in identities {
            push(&mut self.keys, *key);
            self.known.insert(*key, (*digest, offset));
        }
    }

    fn close(&mut self) -> Option<NewIds> {
        if !std::mem::take(&mut self.is_open) {
            return None;
        }
        let IdRecord { accepted_millis, ids } = *self.records.back()?;
        let mut record = Vec::with_capacity(ids * ID);
        for key in self.keys.range(self.keys.len() - ids..) {
            let digest = self.known.get(key).map_or(0, |(digest, _)| *digest);
            record.extend(key);
            record.extend(digest.to_be_bytes());
        }
        Some(NewIds {
            log: self.log.clone(),
            record: record.into(),
            accepted_millis,
        })
    }

    /// Forgets about `most` ids that are outside of the window; without one, of all. Returns the number of forgotten ids.
    fn forget_outside(&mut self, now_millis: Option<i64>, most: usize) -> usize {
        let mut forgotten = self.keep(self.window.map_or(0, |window| window.events), most);
        if let (Some(window), Some(now)) = (self.window, now_millis) {
            forgotten += self.forget_older(window.age, now, most.saturating_sub(forgotten));
        }
        if self.keys.capacity() > 4 * self.keys.len() + 64 {
            self.keys.shrink_to_fit();
            self.records.shrink_to_fit();
        }
        forgotten
    }

    /// Keeps at least the newest ids, so many; forgets about `most` ids of the stored records before those. Returns the
    /// number of forgotten ids.
    fn keep(&mut self, newest: u64, most: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < most
            && let Some(first) = self.first_stored()
            && (self.keys.len() - first.ids) as u64 >= newest
        {
            forgotten += self.forget_early(first);
        }
        forgotten
    }

    /// Forgets some of the oldest ids. Returns their number.
    fn forget_some(&mut self) -> usize {
        let some = self.stored().div_ceil(PORTION);
        self.keep(0, some.min(FORGOTTEN_AT_ONCE))
    }

    /// Forgets about `most` ids by age. Returns their number.
    fn forget_older(&mut self, age: Duration, now_millis: i64, most: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < most
            && let Some(first) = self
                .first_stored()
                .filter(|first| is_older(*first, age, now_millis))
        {
            forgotten += self.forget_first(first);
        }
        forgotten
    }

    /// The first record, if it is stored.
    fn first_stored(&self) -> Option<IdRecord> {
        let is_stored = self.records.len() > usize::from(self.is_open);
        self.records.front().copied().filter(|_| is_stored)
    }

    /// Forgets the first record for another reason than its age.
    fn forget_early(&mut self, first: IdRecord) -> usize {
        let newest = self.records.back().map_or(i64::MIN, |last| last.accepted_millis);
        if self
            .window
            .is_some_and(|window| !is_older(first, window.age, newest))
        {
            self.forgotten_early += first.ids as u64;
        }
        self.forget_first(first)
    }

    fn forget_first(&mut self, IdRecord { ids, .. }: IdRecord) -> usize {
        self.records.pop_front();
        for key in self.keys.drain(..ids) {
            self.known.remove_if(&key, |(_, offset)| *offset == self.first);
        }
        self.first += 1;
        self.bytes_before += (ids * ID) as u64;
        ids
    }
}

/// Appends to a queue, which grows by a small part of its size rather than to twice of it.
fn push<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == queue.capacity() {
        queue.reserve_exact(queue.len() / GROWTH + 4);
    }
    queue.push_back(value);
}

fn is_older(record: IdRecord, age: Duration, now_millis: i64) -> bool {
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    record.accepted_millis.saturating_add(age) <= now_millis
}

#[cfg(test)]
impl IdIndex {
    /// Bytes of memory of all ids.
    pub(super) fn bytes(&self) -> usize {
        let of_broker = |ids: &BrokerIds| {
            let queues = ids.keys.capacity() * KEY + ids.records.capacity() * size_of::<IdRecord>();
            queues + ids.known.bytes()
        };
        self.brokers.values().map(of_broker).sum()
    }
}

/// Parses a record of ids. One that was lost is empty.
fn parse(payload: &[u8]) -> Option<Vec<EventIdentity>> {
    let (ids, rest) = payload.as_chunks::<ID>();
    let identity = |id: &[u8; ID]| {
        let (key, digest) = id.split_first_chunk::<KEY>()?;
        Some(EventIdentity {
            key: *key,
            digest: u64::from_be_bytes(digest.try_into().ok()?),
        })
    };
    ids.iter()
        .map(identity)
        .collect::<Option<_>>()
        .filter(|_| rest.is_empty())
}
