//! When memtables are written to tables: decided here, not by the storage library, for three reasons.
//!
//! - The library limits each keyspace's memtable, not their sum, which would grow with the number of brokers.
//! - It asks its background thread for a rotation in every commit while a memtable is too large. The thread's
//!   queue is bounded, and the thread itself puts a message into it for every rotation that it takes out: once
//!   more than its length of commits came while one table was being written, it would wait for itself for good.
//!   So the limits that it knows are set out of reach, and it is given a bounded number of tables to write.
//! - A commit sleeps for as long as a keyspace has four memtables waiting. It never has, here.

use std::sync::Arc;

use fjall::{AbstractTree, Keyspace};

use super::{
    broker::Broker,
    store::{MIB, Store},
};

/// The size at which the memtable of a broker, or of the other keyspaces, is written to a table.
const BROKER_MEMTABLE: u64 = 4 * MIB;
const SMALL_MEMTABLE: u64 = MIB;
/// The sum of all active memtables above which the largest is written to a table.
const ACTIVE_MEMTABLES: u64 = 10 * MIB;
/// Tables that the background thread is asked for at a time, and memtables of one keyspace that wait for it.
const MAX_FLUSHES: usize = 64;
const MAX_SEALED: usize = 3;
/// A journal can go only when all that is in it is in tables. When there are more than this, every memtable is
/// written, a few with each commit, so that a broker with little traffic does not keep journals for good.
const MAX_JOURNALS: usize = 2;
const SWEPT_AT_ONCE: usize = 4;

#[derive(Default)]
pub(super) struct Memory {
    journals: usize,
    sweep: Vec<Keyspace>,
}

impl Memory {
    /// Has written what is too large or holds a journal back. To be called after each commit, with the keyspaces
    /// that it wrote to. Returns the keyspaces that got, or are about to get, another table.
    pub(super) fn tend<'a>(
        &mut self,
        store: &Store,
        touched: impl Iterator<Item = &'a Keyspace>,
        brokers: &[Arc<Broker>],
    ) -> fjall::Result<Vec<Keyspace>> {
        let mut written = Vec::new();
        let limited = touched.map(|events| (events, BROKER_MEMTABLE));
        for (keyspace, limit) in limited.chain(store.others().map(|other| (other, SMALL_MEMTABLE))) {
            if keyspace.tree.active_memtable().size() > limit && rotate(store, keyspace)? {
                written.push(keyspace.clone());
            }
        }

        let all = || {
            let events = brokers.iter().filter_map(|broker| Some(&broker.stored()?.events));
            events.chain(store.others())
        };
        if store.unflushed() > ACTIVE_MEMTABLES {
            let sizes = all().map(|keyspace| (keyspace.tree.active_memtable().size(), keyspace));
            let (sum, largest) = sizes.fold((0, None), |(sum, largest), (size, keyspace)| {
                let larger = largest.is_none_or(|(most, _)| size > most);
                (sum + size, if larger { Some((size, keyspace)) } else { largest })
            });
            if let Some((_, keyspace)) = largest
                && sum > ACTIVE_MEMTABLES
                && rotate(store, keyspace)?
            {
                written.push(keyspace.clone());
            }
        }

        let journals = store.journals();
        if journals > MAX_JOURNALS.max(self.journals) {
            self.sweep = all().cloned().collect();
        }
        self.journals = journals;
        let mut swept = 0;
        while swept < SWEPT_AT_ONCE
            && let Some(keyspace) = self.sweep.last()
        {
            if keyspace.tree.active_memtable().size() > 0 {
                if !rotate(store, keyspace)? {
                    break;
                }
                swept += 1;
            }
            written.extend(self.sweep.pop());
        }
        Ok(written)
    }
}

/// Has the memtable written to a table, unless there is too much to write already.
fn rotate(store: &Store, keyspace: &Keyspace) -> fjall::Result<bool> {
    if store.outstanding_flushes() >= MAX_FLUSHES || keyspace.sealed_memtable_count() >= MAX_SEALED {
        return Ok(false);
    }
    keyspace.rotate_memtable()
}
