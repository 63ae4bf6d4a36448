//! Decides when memtables are written to tables. This is not left to the storage library, for three reasons:
//!
//! - The library limits each keyspace's memtable, but not their sum, which would grow with the number of brokers.
//! - It requests a rotation from its background thread in every commit while a memtable is too large. That
//!   thread's queue is bounded, and the thread itself enqueues a message for every rotation that it dequeues: with
//!   more commits than the queue is long while one table is being written, it would wait for itself forever. So
//!   the library's own limits are set out of reach, and it gets a bounded number of tables to write.
//! - A commit sleeps while a keyspace has four memtables waiting. Here that never happens.

use fjall::{AbstractTree, Keyspace};

use super::store::{MIB, Store};

/// Size at which the memtable of a keyspace with records, or of the others, is written to a table.
const BROKER_MEMTABLE: u64 = 4 * MIB;
const SMALL_MEMTABLE: u64 = MIB;
/// Sum of all active memtables above which the largest is written to a table.
const ACTIVE_MEMTABLES: u64 = 10 * MIB;
/// Maximum tables requested from the background thread at a time; and memtables of one keyspace that may wait for
/// it.
const MAX_FLUSHES: usize = 64;
const MAX_SEALED: usize = 3;
/// Number of journals beyond which every memtable is written, a few with each commit. A journal can be deleted
/// only when all of its content is in tables, so a broker with little traffic would otherwise pin journals.
const MAX_JOURNALS: usize = 2;
const SWEPT_AT_ONCE: usize = 4;

#[derive(Default)]
pub(super) struct Memory {
    journals: usize,
    sweep: Vec<Keyspace>,
}

impl Memory {
    /// Writes out memtables that are too large or pin a journal. Call it after each commit, with the keyspaces
    /// that it wrote to. Returns the keyspaces that got, or are about to get, another table.
    pub(super) fn tend<'a>(
        &mut self,
        store: &Store,
        touched: impl Iterator<Item = &'a Keyspace>,
    ) -> fjall::Result<Vec<Keyspace>> {
        let mut written = Vec::new();
        let limited = touched.map(|events| (events, BROKER_MEMTABLE));
        for (keyspace, limit) in limited.chain(store.others().map(|other| (other, SMALL_MEMTABLE))) {
            if keyspace.tree.active_memtable().size() > limit && rotate(store, keyspace)? {
                written.push(keyspace.clone());
            }
        }

        // Also those that no log has at present: their journals are pinned as well.
        let all = || store.events().into_iter().chain(store.others().cloned());
        if store.unflushed() > ACTIVE_MEMTABLES {
            let sizes = all().map(|keyspace| (keyspace.tree.active_memtable().size(), keyspace));
            let (sum, largest) = sizes.fold((0, None), |(sum, largest), (size, keyspace)| {
                let larger = largest.as_ref().is_none_or(|(most, _)| size > *most);
                (sum + size, if larger { Some((size, keyspace)) } else { largest })
            });
            if let Some((_, keyspace)) = largest
                && sum > ACTIVE_MEMTABLES
                && rotate(store, &keyspace)?
            {
                written.push(keyspace);
            }
        }

        let journals = store.journals();
        if journals > MAX_JOURNALS.max(self.journals) {
            self.sweep = all().collect();
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

/// Requests that the memtable be written to a table, unless too many are waiting already.
fn rotate(store: &Store, keyspace: &Keyspace) -> fjall::Result<bool> {
    if store.outstanding_flushes() >= MAX_FLUSHES || keyspace.sealed_memtable_count() >= MAX_SEALED {
        return Ok(false);
    }
    keyspace.rotate_memtable()
}
