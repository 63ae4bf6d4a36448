//! The only writer thread. It takes whatever is waiting, writes it as one commit, makes it durable by one fsync,
//! publishes the new ends and answers. While it waits for the disk, the next commit gathers in the queue: the
//! slower the disk, the more appends share an fsync.
//!
//! Guarantees:
//! - Appends come first: cursors wait elsewhere (`saves.rs`), and a few of them are written between two commits.
//! - An append is answered only after its records are durable, and readers see them only then.
//! - After a failed write or fsync nothing more is written: [`Shared::fail`], and the thread ends.
//! - The storage library never sees a full disk, which it could not survive: a write that would leave less free
//!   space than the reserve is rejected beforehand. Appends stop first, cursors at half the reserve, trims at a
//!   quarter, so that a full log can still be emptied; dropped tables return their space and the log recovers by
//!   itself.
//! - The storage library never blocks a commit because the tables of a shared keyspace have to be merged: records for
//!   that keyspace are rejected beforehand.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use fjall::{Keyspace, OwnedWriteBatch};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot,
};

use super::{
    acknowledged::Acknowledged,
    broker::OpenLog,
    commit::{self, Acknowledgement, Commit},
    compaction,
    fail_points::{self, Contents},
    ids::{self, Forgotten, IdIndex, KnownId, NewIds, RemainingIds},
    keeper::CleanupQueue,
    layout::{self, FORMAT_KEY, GIVEN_BACK_KEY, RecordHeader, SHARED_FORMAT, SHARED_KEYSPACES},
    lock::lock,
    memory::Memory,
    places::{Place, Places},
    request::{Purpose, Request},
    saves::Group,
    shared::Shared,
    shares::Shortfall,
    store::{self, BrokerKeyspace},
};
use crate::log::{
    Appended, EventIdentity, IdWindow, KeepIds, LogError, LogName, LogRecord, Offset, Unique, record,
};

/// Maximum bytes of one commit, unless a single request is larger.
const COMMIT_BYTES: usize = 2 * 1024 * 1024;
const COMMIT_REQUESTS: usize = 4096;
/// Maximum bytes of cursors written between two other commits, unless a larger group has to be written together.
const CURSOR_BYTES: u64 = 256 * 1024;
/// Bytes of unwritten memtables beyond which cursors wait, so that appends do not have to, and the time that they
/// wait.
const CURSORS_WAIT_BEYOND: u64 = 12 * 1024 * 1024;
const CURSORS_WAIT: Duration = Duration::from_millis(500);
/// Interval between looks for trimmed space while the disk is full.
const RECLAIM_AGAIN: Duration = Duration::from_secs(1);
/// Approximate overhead of a record, a cursor or a broker's entry in a commit, beside its payload.
const ENTRY: u64 = 64;
/// Maximum size of a record; the storage library's own limit is 4 GiB.
const MAX_RECORD: usize = 256 * 1024 * 1024;
/// Bytes of unwritten memtables beyond which the committer waits for the background thread, and how long it waits.
const MAX_UNFLUSHED: u64 = 18 * 1024 * 1024;
const FLUSH_POLL: Duration = Duration::from_millis(2);
const FLUSH_POLLS: u32 = 60_000;

pub(super) struct Committer {
    shared: Arc<Shared>,
    acknowledged: Acknowledged,
    keeper: CleanupQueue,
    memory: Memory,
    /// Number of all records ever appended, over all brokers.
    records: u64,
    places: Places,
    ids: IdIndex,
    /// Format of the store.
    format: u32,
    /// Last time that trimmed space was looked for because the disk was full.
    reclaimed: Option<Instant>,
}

/// The ids of new records.
struct NewRecordIds {
    identities: Vec<EventIdentity>,
    window: IdWindow,
    /// Number of records that were repeats.
    repeats: usize,
}

impl NewRecordIds {
    /// Bytes of payload that they take.
    fn bytes(&self) -> u64 {
        (self.identities.len() * ids::ID) as u64
    }

    /// Bytes of a commit that they take.
    fn cost(&self) -> u64 {
        self.bytes() + ENTRY
    }
}

/// Error: the storage failed; the log is closed with this reason.
struct Fatal(String);

impl Committer {
    pub(super) fn new(
        shared: Arc<Shared>,
        acknowledged: Acknowledged,
        keeper: CleanupQueue,
        places: Places,
        ids: IdIndex,
        records: u64,
    ) -> Self {
        Self {
            format: shared.store.format,
            shared,
            acknowledged,
            keeper,
            memory: Memory::default(),
            records,
            places,
            ids,
            reclaimed: None,
        }
    }

    /// Runs until the log is dropped or has failed.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let _failing_on_panic = FailOnPanic(self.shared.clone());
        if let Err(Fatal(reason)) = self.work(&mut requests) {
            // The replies are dropped with the requests; the waiting callers then ask for the reason.
            self.shared.fail(reason);
            return;
        }
        let synced = self.shared.store.sync();
        let acknowledged = self.acknowledged.sync();
        if let Err(e) = synced {
            tracing::error!(path = %self.shared.directory.display(), "cannot sync the event log while closing it: {e}");
        } else if let Err(e) = acknowledged {
            tracing::warn!(path = %self.shared.directory.display(), "cannot sync the count of records: {e}");
        }
    }

    fn work(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), Fatal> {
        let mut stalled = 0;
        loop {
            let request = if self.shared.saves.since().is_some() {
                match requests.try_recv() {
                    Ok(request) => Some(request),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => break,
                }
            } else {
                match requests.blocking_recv() {
                    Some(request) => Some(request),
                    None => break,
                }
            };
            let is_idle = request.is_none();
            if let Some(request) = request {
                self.round(request, requests)?;
            }
            if self.save_some()? {
                stalled = 0;
            } else if is_idle {
                stalled += 1;
                self.let_flush(stalled)?;
            }
        }
        while let Some(group) = self.shared.saves.take() {
            self.save(group)?;
        }
        Ok(())
    }

    fn round(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> Result<(), Fatal> {
        let mut commit = Commit::new(&self.shared.store);
        self.add(&mut commit, first)?;
        let mut taken = 1;
        while commit.bytes < COMMIT_BYTES as u64 && taken < COMMIT_REQUESTS {
            let Ok(request) = requests.try_recv() else { break };
            self.add(&mut commit, request)?;
            taken += 1;
        }
        let given_back = std::mem::take(&mut commit.given_back);
        self.commit(commit)?;
        for (logs, reply) in given_back {
            let count = self.give_back(&logs)?;
            let _ = reply.send(Ok(count));
        }
        Ok(())
    }

    /// Saves some of the waiting cursors. Returns false if none could be saved now.
    fn save_some(&mut self) -> Result<bool, Fatal> {
        let Some(since) = self.shared.saves.since() else {
            return Ok(true);
        };
        if self.shared.store.unflushed() > CURSORS_WAIT_BEYOND && since.elapsed() < CURSORS_WAIT {
            return Ok(false);
        }
        let mut commit = Commit::new(&self.shared.store);
        while commit.bytes < CURSOR_BYTES
            && let Some(group) = self.shared.saves.take()
        {
            self.add_cursors(&mut commit, group);
        }
        self.commit(commit)?;
        Ok(true)
    }

    fn save(&mut self, group: Group) -> Result<(), Fatal> {
        let mut commit = Commit::new(&self.shared.store);
        self.add_cursors(&mut commit, group);
        self.commit(commit)
    }

    fn add_cursors(&mut self, commit: &mut Commit, group: Group) {
        let Group { changes, replies, .. } = group;
        let bytes = |(key, value): (&String, &Option<Bytes>)| {
            (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64 + ENTRY
        };
        let cost = changes.iter().map(bytes).sum();
        if let Err(full) = self.room_on_disk(commit, self.shared.options.reserve_bytes / 2, cost) {
            for reply in replies {
                let _ = reply.send(Err(full.clone()));
            }
            return;
        }
        let cursors = &self.shared.store.cursors;
        for (key, value) in changes {
            match value {
                Some(value) => commit.batch.insert(cursors, key.as_bytes(), &*value),
                None => commit.batch.remove(cursors, key.as_bytes()),
            }
        }
        commit.bytes += cost;
        commit.contents.cursors = true;
        commit.answers.push(Acknowledgement::Saved(replies));
    }

    fn add(&mut self, commit: &mut Commit, request: Request) -> Result<(), Fatal> {
        match request {
            Request::Append {
                purpose,
                broker,
                payloads,
                accepted_millis,
                unique,
                reply,
                permit,
            } => {
                let new = match unique {
                    None => Ok((payloads, None)),
                    Some(unique) => self.new_records(&broker, payloads, unique),
                };
                match new.and_then(|(payloads, unique)| {
                    self.room_for_append(commit, purpose, &broker, &payloads, unique.as_ref())?;
                    Ok((payloads, unique))
                }) {
                    Ok((payloads, unique)) => {
                        let repeats = unique.as_ref().map_or(0, |unique| unique.repeats);
                        let first = self.stage(commit, &broker, payloads, unique, accepted_millis)?;
                        let appended = Appended { first, repeats };
                        // Repeats as well are answered after the commit, which may have the first of them.
                        commit
                            .answers
                            .push(Acknowledgement::Appended(reply, appended, permit));
                    }
                    Err(refused) => {
                        let _ = reply.send(Err(refused));
                    }
                }
            }
            Request::FindIds {
                broker,
                identities,
                reply,
            } => {
                let is_known = |id: &EventIdentity| self.ids.find(&broker.name, &id.key).is_some();
                let _ = reply.send(Ok(identities.iter().map(is_known).collect()));
            }
            Request::Saves => self.shared.saves.heard(),
            Request::Trim {
                broker,
                before,
                bytes_before,
                reply,
            } => match self.stage_trim(commit, &broker, before, bytes_before) {
                Ok(()) => commit.answers.push(Acknowledgement::Done(reply)),
                Err(refused) => {
                    let _ = reply.send(Err(refused));
                }
            },
            // In a commit of its own, so that none has two changes of one entry.
            Request::GiveBack { logs, reply } => commit.given_back.push((logs, reply)),
            Request::ForgetIds {
                kept,
                now_millis,
                reply,
            } => {
                let unfinished = self.forget_ids(commit, &kept, now_millis);
                commit.answers.push(Acknowledgement::Forgotten(reply, unfinished));
            }
            Request::Sync { reply } => {
                commit.fsync = true;
                commit.answers.push(Acknowledgement::Done(reply));
            }
        }
        Ok(())
    }

    /// Returns the records that are no repeats, with their ids.
    fn new_records(
        &self,
        broker: &OpenLog,
        payloads: Vec<Bytes>,
        Unique { identities, window }: Unique,
    ) -> Result<(Vec<Bytes>, Option<NewRecordIds>), LogError> {
        let mut new = NewRecordIds {
            identities: Vec::new(),
            window,
            repeats: 0,
        };
        let mut kept = Vec::with_capacity(payloads.len());
        for (index, (payload, identity)) in payloads.into_iter().zip(identities).enumerate() {
            match self.ids.find(&broker.name, &identity.key) {
                None => {
                    kept.push(payload);
                    new.identities.push(identity);
                }
                Some(KnownId { digest, .. }) if digest == identity.digest => new.repeats += 1,
                Some(KnownId { accepted_millis, .. }) => {
                    return Err(LogError::Conflict {
                        index,
                        accepted: record::timestamp(accepted_millis),
                    });
                }
            }
        }
        Ok((kept, Some(new)))
    }

    /// Adds records with their ids to the commit.
    fn stage(
        &mut self,
        commit: &mut Commit,
        broker: &Arc<OpenLog>,
        payloads: Vec<Bytes>,
        unique: Option<NewRecordIds>,
        accepted_millis: i64,
    ) -> Result<Offset, Fatal> {
        if payloads.is_empty() {
            let staged = commit.brokers.get(&broker.name);
            let next = staged.map_or(broker.state().next, |staged| staged.state.next);
            return Ok(Offset(next));
        }
        commit.bytes += cost_of(&payloads) + unique.as_ref().map_or(0, NewRecordIds::cost);
        commit.fsync = true;
        commit.contents.records = true;
        let first = self.stage_append(commit, broker, payloads, accepted_millis)?;
        if let Some(NewRecordIds {
            identities, window, ..
        }) = unique
        {
            let brokers = &self.shared.brokers;
            let log = || brokers.get_or_new(&layout::ids_of(&broker.name));
            self.ids
                .remember(&broker.name, &identities, accepted_millis, window, log);
            commit.with_ids.insert(broker.name.clone());
        }
        Ok(first)
    }

    /// Adds the new ids of brokers to the commit.
    fn stage_ids(&mut self, commit: &mut Commit) -> Result<(), Fatal> {
        let mut remembered = Vec::new();
        for broker in std::mem::take(&mut commit.with_ids) {
            if let Some(NewIds {
                log,
                record,
                accepted_millis,
            }) = self.ids.close(&broker)
            {
                self.stage_append(commit, &log, vec![record], accepted_millis)?;
                remembered.extend(self.ids.remembered_by(&broker).map(|ids| (broker, ids)));
            }
        }
        if !remembered.is_empty() {
            lock(&self.shared.remembered).extend(remembered);
        }
        Ok(())
    }

    /// Forgets some ids, and removes them from the store as far as the disk has room for the trims. Returns the brokers
    /// that have more to forget.
    fn forget_ids(
        &mut self,
        commit: &mut Commit,
        kept: &HashMap<Arc<str>, KeepIds>,
        now_millis: Option<i64>,
    ) -> Vec<Arc<str>> {
        let Forgotten {
            looked_at,
            remaining,
            unfinished,
        } = self.ids.forget(kept, now_millis);
        let mut gone = Vec::new();
        for RemainingIds {
            log,
            first,
            bytes_before,
            is_gone,
        } in remaining
        {
            if let Err(error) = self.stage_trim(commit, &log, first, bytes_before) {
                tracing::debug!(log = %log.name, %error, "forgotten ids stay in the log for now");
            }
            if is_gone {
                gone.push(log);
            }
        }
        if !gone.is_empty() {
            // Nobody waits for it.
            commit.given_back.push((gone, oneshot::channel().0));
        }
        let mut remembered = lock(&self.shared.remembered);
        for broker in looked_at {
            match self.ids.remembered_by(&broker) {
                Some(ids) => remembered.insert(broker, ids),
                None => remembered.remove(&broker),
            };
        }
        unfinished
    }

    fn room_for_append(
        &mut self,
        commit: &mut Commit,
        purpose: Purpose,
        broker: &OpenLog,
        payloads: &[Bytes],
        unique: Option<&NewRecordIds>,
    ) -> Result<(), LogError> {
        if payloads.is_empty() {
            return Ok(());
        }
        if let Some(large) = payloads.iter().find(|payload| payload.len() > MAX_RECORD) {
            return Err(LogError::TooLarge(format!(
                "a record of {} bytes is more than the log takes at once ({MAX_RECORD})",
                large.len()
            )));
        }
        if !broker.is_stored() {
            self.check_places(&broker.name)?;
        }
        self.check_merged(broker)?;
        if let Some(log) = unique.and_then(|_| self.ids.log_of(&broker.name)) {
            self.check_merged(log)?;
        }
        let length: u64 = payloads.iter().map(|payload| payload.len() as u64).sum();
        let length = length + unique.map_or(0, NewRecordIds::bytes);
        let cost = cost_of(payloads) + unique.map_or(0, NewRecordIds::cost);
        self.shared.check_room(purpose, &broker.name, length)?;
        let reserve = match purpose {
            // With room to rewrite any shared keyspace.
            Purpose::NewEvents => {
                self.shared.options.reserve_bytes + self.shared.largest_keyspace.load(Relaxed)
            }
            Purpose::Replies | Purpose::DeadLetter => self.shared.options.reserve_bytes / 2,
        };
        self.room_on_disk(commit, reserve, cost)?;
        self.shared.take_room(purpose, &broker.name, length)
    }

    fn check_places(&self, name: &str) -> Result<(), LogError> {
        let (log, places) = self.shared.brokers.place_of(name);
        let broker = log.broker();
        self.places.check(&log, places).map_err(|shortfall| match shortfall {
            Shortfall::Share { held, limit } => LogError::TooManyBrokers(format!(
                "namespace {} has {} brokers in the event log, its share is {} at present, and broker {broker} would be \
                 one too many; a broker leaves once no Trigger, Source or Broker names it and its events and dead letters \
                 are no longer retained: post to fewer brokers, and delete those that are not needed",
                broker.namespace(),
                held / 2,
                limit / 2
            )),
            Shortfall::Log => LogError::Limit(format!(
                "it has {} brokers, broker {broker} would be one too many; those that are gone leave once their events \
                 and dead letters are no longer retained",
                self.places.most_brokers()
            )),
        })
    }

    /// Rejects records for a shared keyspace whose tables have to be merged first, and asks for it.
    fn check_merged(&self, broker: &OpenLog) -> Result<(), LogError> {
        let numbers = match broker.stored() {
            Some(stored) => match layout::shared_keyspace_of(stored.id) {
                Some(number) => number..number + 1,
                None => return Ok(()),
            },
            // It takes a place in any of them.
            None => 0..SHARED_KEYSPACES,
        };
        let is_overdue = |number| {
            let keyspace = self.shared.store.shared_keyspace(number);
            keyspace.is_some_and(|keyspace| compaction::is_overdue(&keyspace))
        };
        if !numbers.clone().all(is_overdue) {
            return Ok(());
        }
        for number in numbers {
            self.keeper.tidy_shared(number, false);
        }
        Err(LogError::Unavailable(format!(
            "broker {}: the tables of its keyspace have to be merged first; if this does not end, the router's log says \
             why they cannot be",
            broker.name
        )))
    }

    /// Checks whether `cost` more bytes leave the reserve free: once in the journal and again later in a table,
    /// like everything that is in memory.
    fn room_on_disk(&mut self, commit: &mut Commit, reserve: u64, cost: u64) -> Result<(), LogError> {
        let needed = reserve + self.shared.store.unflushed() + 2 * (commit.bytes + cost);
        if self.free(commit)? >= needed {
            return Ok(());
        }
        if self.reclaimed.is_none_or(|at| at.elapsed() >= RECLAIM_AGAIN) {
            self.reclaimed = Some(Instant::now());
            for broker in self.shared.brokers.all() {
                self.reclaim(&broker);
            }
            self.keeper.reclaim_shared();
            commit.free = None;
        }
        let free = self.free(commit)?;
        if free >= needed {
            return Ok(());
        }
        Err(LogError::Full(format!(
            "the volume of {} has {free} bytes left, {needed} are needed to go on safely; free or add space",
            self.shared.directory.display()
        )))
    }

    fn free(&self, commit: &mut Commit) -> Result<u64, LogError> {
        if let Some(free) = commit.free {
            return Ok(free);
        }
        let free = (self.shared.free_space)(&self.shared.directory).map_err(|e| {
            let path = self.shared.directory.display();
            LogError::Full(format!(
                "the free space of the volume of {path} cannot be found out: {e}"
            ))
        })?;
        commit.free = Some(free);
        self.shared.adapt_capacity(free);
        Ok(free)
    }

    fn stage_append(
        &mut self,
        commit: &mut Commit,
        broker: &Arc<OpenLog>,
        payloads: Vec<Bytes>,
        accepted_millis: i64,
    ) -> Result<Offset, Fatal> {
        let (stored, is_new) = match broker.stored() {
            Some(stored) => (stored, false),
            None => (self.create(commit, broker)?, true),
        };
        let staged = commit::stage(&mut commit.brokers, broker, stored.clone());
        let first = staged.state.next;
        staged.register |= is_new;
        // Never decreasing, so that it can be searched by time.
        let accepted_millis = accepted_millis.max(staged.state.last_accepted_millis);
        for payload in payloads {
            let state = &mut staged.state;
            let header = RecordHeader {
                accepted_millis,
                bytes_before: state.bytes_before_next,
            };
            commit.batch.insert(
                &stored.events,
                stored.key(state.next).as_ref(),
                layout::record_value(state.next, header, &payload),
            );
            let offset = Offset(state.next);
            state.next += 1;
            state.bytes_before_next += payload.len() as u64;
            state.last_accepted_millis = accepted_millis;
            self.records += 1;
            staged.records.push(LogRecord {
                offset,
                accepted: record::timestamp(accepted_millis),
                payload,
            });
        }
        Ok(Offset(first))
    }

    /// Takes a place for a broker's records. Its entry in `meta` is part of the commit with its first record; if the
    /// process dies before that, an empty keyspace is found under the same number next time.
    fn create(&mut self, commit: &mut Commit, broker: &OpenLog) -> Result<BrokerKeyspace, Fatal> {
        let fatal = |e| Fatal(format!("cannot make room for broker {}: {e}", broker.name));
        let start = broker.state().next;
        let (log, places) = self.shared.brokers.place_of(&broker.name);
        let mut place = self.places.take(&log, places, start);
        let mut skipped = 0;
        let stored = loop {
            let (Place::Reused(id) | Place::Own(id) | Place::Shared(id)) = place;
            let events = self.shared.store.keyspace(id).map_err(fatal)?;
            // Never the place of other records: the entry of a log in `meta` may have been lost with a damaged journal.
            let from = match place {
                Place::Reused(_) => start,
                Place::Own(_) | Place::Shared(_) => 0,
            };
            if events.range(layout::keys_from(id, from)).next().is_some() {
                place = self.places.take_new();
                continue;
            }
            match place {
                // Not all of them are, see `check_merged`, but the last one could be since.
                Place::Shared(_) if skipped < SHARED_KEYSPACES && compaction::is_overdue(&events) => {
                    skipped += 1;
                    place = self.places.take_new();
                    continue;
                }
                Place::Shared(_) => self.shared.store.retained_from.set(id, start),
                Place::Reused(_) => commit.reused.push(id),
                Place::Own(_) => {}
            }
            break BrokerKeyspace { id, events };
        };
        broker.set_stored(stored.clone());
        self.note_places();
        Ok(stored)
    }

    fn note_places(&self) {
        let mut short = lock(&self.shared.short_of_places);
        self.places.short().clone_into(&mut short);
    }

    /// Gives back the places of logs that have no records; returns how many did. A log that gets records later takes
    /// another place.
    fn give_back(&mut self, logs: &[Arc<OpenLog>]) -> Result<usize, Fatal> {
        let mut commit = Commit::new(&self.shared.store);
        let mut gone = Vec::new();
        for broker in logs {
            let state = broker.state();
            let Some(stored) = broker.stored().filter(|_| state.first == state.next) else {
                continue;
            };
            if self
                .room_on_disk(&mut commit, self.shared.options.reserve_bytes / 4, 2 * ENTRY)
                .is_err()
            {
                break;
            }
            let (log, mut others) = self.shared.brokers.place_of(&broker.name);
            if layout::broker_of_ids(&broker.name).is_none() {
                // Without this one, which is still stored.
                match log {
                    LogName::Events(_) => others.events = false,
                    LogName::DeadLetters(_) => others.letters = false,
                }
            }
            self.places
                .give_back(&log, others, stored.id, state.start, state.next);
            commit
                .batch
                .remove(&self.shared.store.meta, layout::broker_key(&broker.name));
            if !layout::is_shared(stored.id) {
                let (key, from) = (layout::free_key(stored.id), state.next.to_be_bytes());
                commit.batch.insert(&self.shared.store.meta, key, from);
            }
            commit.bytes += 2 * ENTRY;
            broker.give_back();
            gone.push((broker, stored.id));
        }
        if gone.is_empty() {
            return Ok(0);
        }
        let given_back = self.places.given_back();
        // Before any of the logs, which the caller holds, can be opened anew.
        self.shared.brokers.begin_beyond(given_back);
        commit
            .batch
            .insert(&self.shared.store.meta, GIVEN_BACK_KEY, given_back.to_value());
        commit.contents.given_back = true;
        self.raise_format(&mut commit, SHARED_FORMAT);
        self.commit(commit)?;
        lock(&self.shared.tail).forget_all(gone.iter().map(|(broker, _)| &broker.name));
        for (_, id) in &gone {
            self.shared.store.retained_from.remove(*id);
        }
        self.note_places();
        Ok(gone.len())
    }

    /// Makes earlier versions of Weir reject the store from this commit on.
    fn raise_format(&mut self, commit: &mut Commit, format: u32) {
        if self.format < format {
            self.format = format;
            commit
                .batch
                .insert(&self.shared.store.meta, FORMAT_KEY, format.to_be_bytes());
        }
    }

    fn stage_trim(
        &mut self,
        commit: &mut Commit,
        broker: &Arc<OpenLog>,
        Offset(before): Offset,
        bytes_before: u64,
    ) -> Result<(), LogError> {
        let Some(stored) = broker.stored() else {
            return Ok(());
        };
        // Even with nothing to trim: a table of earlier trimmed records may have been written since.
        commit.trimmed.push(broker.clone());
        let staged = commit.brokers.get(&broker.name);
        if before <= staged.map_or(broker.state().first, |staged| staged.state.first) {
            return Ok(());
        }
        self.room_on_disk(commit, self.shared.options.reserve_bytes / 4, ENTRY)?;
        let staged = commit::stage(&mut commit.brokers, broker, stored);
        let number = layout::shared_keyspace_of(staged.stored.id);
        let removed = bytes_before.saturating_sub(staged.state.bytes_before_first);
        if let Some(number) = number {
            self.shared.trimmed[number as usize].fetch_add(removed + ENTRY, Relaxed);
        }
        self.shared.give_back_room(&broker.name, removed);
        staged.state.first = before;
        staged.state.bytes_before_first = bytes_before;
        staged.register = true;
        commit.bytes += ENTRY;
        commit.fsync = true;
        commit.contents.trims = true;
        Ok(())
    }

    /// Writes, fsyncs, publishes, acknowledges and cleans up, in this order.
    fn commit(&mut self, mut commit: Commit) -> Result<(), Fatal> {
        self.stage_ids(&mut commit)?;
        let format = commit.register(&self.shared.store.meta);
        self.raise_format(&mut commit, format);
        self.wait_for_flush()?;
        let contents = commit.contents;
        if !commit.batch.is_empty() {
            write(commit.batch, contents).map_err(|e| Fatal(format!("a write failed: {e}")))?;
        }
        if commit.fsync {
            self.sync(contents)
                .map_err(|e| Fatal(format!("an fsync failed: {e}")))?;
            self.shared.count_fsync();
            if let Err(e) = self.acknowledged.write(self.records) {
                // This only weakens what the next opening can detect.
                tracing::warn!(path = %self.shared.directory.display(), "cannot note the count of records: {e}");
            }
        }

        {
            let mut tail = lock(&self.shared.tail);
            // Nobody reads ids.
            let read = |staged: &&commit::Staged| layout::broker_of_ids(&staged.broker.name).is_none();
            for staged in commit.brokers.values().filter(read) {
                for record in &staged.records {
                    tail.push(&staged.broker.name, record);
                }
            }
        }
        for staged in commit.brokers.values() {
            staged.broker.publish(staged.state);
            if layout::is_shared(staged.stored.id) {
                let retained_from = &self.shared.store.retained_from;
                retained_from.set(staged.stored.id, staged.state.first);
            }
        }

        contents
            .before_acknowledgement()
            .map_err(|e| Fatal(e.to_string()))?;
        for answer in commit.answers {
            answer.done();
        }

        for broker in &commit.trimmed {
            self.keeper.tidy(broker);
        }
        self.tend_memory(commit.brokers.values().map(|staged| &staged.stored.events))
    }

    fn sync(&self, contents: Contents) -> fjall::Result<()> {
        fail_points::pass("log-before-fsync")?;
        self.shared.store.sync()?;
        Ok(contents.after_fsync()?)
    }

    fn tend_memory<'a>(&mut self, touched: impl Iterator<Item = &'a Keyspace>) -> Result<(), Fatal> {
        let written = self.memory.tend(&self.shared.store, touched);
        let written = written.map_err(|e| Fatal(format!("writing tables failed: {e}")))?;
        if written.is_empty() {
            return Ok(());
        }
        for (number, keyspace) in self.shared.store.shared_keyspaces() {
            if written.contains(&keyspace) {
                self.keeper.tidy_shared(number, false);
            }
        }
        let has_more = |broker: &&Arc<OpenLog>| {
            let stored = broker.stored();
            stored.is_some_and(|s| !layout::is_shared(s.id) && written.contains(&s.events))
        };
        for broker in self.shared.brokers.all().iter().filter(has_more) {
            self.keeper.tidy(broker);
        }
        Ok(())
    }

    /// Delays the next commit while the background thread has too much to write. Without this a dead thread would
    /// show only as growing memory, or as a commit that never returns.
    fn wait_for_flush(&mut self) -> Result<(), Fatal> {
        let mut polls = 0;
        while self.shared.store.unflushed() > MAX_UNFLUSHED {
            polls += 1;
            self.let_flush(polls)?;
        }
        Ok(())
    }

    /// Gives the background thread a moment to write; `polls` counts the consecutive calls.
    fn let_flush(&mut self, polls: u32) -> Result<(), Fatal> {
        if polls > FLUSH_POLLS {
            return Err(Fatal(format!(
                "{} bytes still wait to be written to tables after {} seconds",
                self.shared.store.unflushed(),
                (FLUSH_POLL * FLUSH_POLLS).as_secs()
            )));
        }
        self.shared
            .store
            .is_alive()
            .map_err(|e| Fatal(format!("writing tables failed: {e}")))?;
        self.tend_memory(std::iter::empty())?;
        std::thread::sleep(FLUSH_POLL);
        Ok(())
    }

    /// Reclaims trimmed space at once, because it is needed.
    fn reclaim(&self, broker: &OpenLog) {
        let stored = broker.stored().filter(|stored| !layout::is_shared(stored.id));
        let Some(stored) = stored else { return };
        if let Err(e) = store::reclaim(&stored.events, broker.state().first) {
            tracing::warn!(broker = %broker.name, "cannot give back the space of trimmed records: {e}");
        }
    }
}

/// Bytes of a commit that records take.
fn cost_of(payloads: &[Bytes]) -> u64 {
    let length: usize = payloads.iter().map(Bytes::len).sum();
    length as u64 + payloads.len() as u64 * ENTRY
}

fn write(batch: OwnedWriteBatch, contents: Contents) -> fjall::Result<()> {
    contents.before_write()?;
    batch.commit()?;
    Ok(contents.after_write()?)
}

/// Closes the log when the thread panics, so that nobody waits for it.
struct FailOnPanic(Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("the thread that writes it panicked".into());
        }
    }
}
