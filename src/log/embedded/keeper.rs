//! The cleanup thread: reclaims the space of trimmed records, merges small tables, and compacts the shared
//! keyspaces. Nothing waits for it. A failure costs space or memory, but no record, and the next trim asks again.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
    mpsc,
};

use super::{
    broker::OpenLog,
    compaction,
    layout::{self, SHARED_KEYSPACES},
    shared::Shared,
    store::{self, MIB, Store},
};

/// Maximum requests waiting for cleanup. More are not remembered: each trim asks again.
const QUEUE: usize = 256;

/// Trimmed bytes for which a shared keyspace is not rewritten yet.
const TRIMMED_LITTLE: u64 = MIB;

/// Approximate size of a record in a table, beside its payload.
const RECORD_OVERHEAD: u64 = 64;

/// What to clean up.
enum Cleanup {
    /// A log with a keyspace of its own.
    Log(Arc<OpenLog>),
    /// A shared keyspace, by its number.
    Keyspace(u32),
}

/// Whether cleanup of each shared keyspace is requested, so that none waits twice.
type Requested = Arc<[AtomicU8; SHARED_KEYSPACES as usize]>;

const NOT: u8 = 0;
const REGULARLY: u8 = 1;
/// Its space is needed at once.
const NEEDED: u8 = 2;

/// Requests cleanup from the thread.
pub(super) struct CleanupQueue {
    requests: mpsc::SyncSender<Cleanup>,
    requested: Requested,
}

/// Returns the handle and the thread's body, which runs until every [`CleanupQueue`] is dropped.
pub(super) fn keeper(shared: Arc<Shared>) -> (CleanupQueue, impl FnOnce() + Send + 'static) {
    let (sender, requests) = mpsc::sync_channel::<Cleanup>(QUEUE);
    let requested = Requested::default();
    let queue = CleanupQueue {
        requests: sender,
        requested: requested.clone(),
    };
    let run = move || {
        for request in requests {
            let (log, tidied) = match request {
                Cleanup::Log(broker) => (broker.name.to_string(), tidy_log(&broker)),
                Cleanup::Keyspace(number) => {
                    let is_needed = requested[number as usize].swap(NOT, Relaxed) == NEEDED;
                    let tidied = tidy_keyspace(&shared, number, is_needed);
                    (layout::shared_keyspace(number), tidied)
                }
            };
            if let Err(e) = tidied {
                let path = shared.directory.display();
                tracing::warn!(%path, log, "cannot drop or merge tables: {e}");
            }
        }
    };
    (queue, run)
}

fn tidy_log(broker: &OpenLog) -> fjall::Result<()> {
    // Published state is durable, see `store::reclaim`. Read first: should the log take another place meanwhile, its
    // records there are above.
    let state = broker.state();
    let Some(stored) = broker.stored() else {
        return Ok(());
    };
    if layout::is_shared(stored.id) {
        return Ok(());
    }
    store::reclaim(&stored.events, state.first)?;
    store::merge_small_tables(&stored.events, state.bytes())
}

fn tidy_keyspace(shared: &Shared, number: u32, is_needed: bool) -> fjall::Result<()> {
    let Some(keyspace) = shared.store.shared_keyspace(number) else {
        return Ok(());
    };
    // Both are repeatable, and what they need at a time is small beside the reserve or kept free. What is in memory is
    // written to tables meanwhile.
    let has_room = |bytes: u64| {
        let reserve = shared.options.reserve_bytes / 4 + shared.store.unflushed();
        (shared.free_space)(&shared.directory).is_ok_and(|free| free >= reserve + bytes)
    };
    if compaction::merge(&keyspace, shared.store.past(), has_room)? {
        shared.measure_keyspaces();
    }
    let trimmed = &shared.trimmed[number as usize];
    let bytes = trimmed.load(Relaxed);
    let few = if is_needed { 0 } else { TRIMMED_LITTLE };
    if bytes <= few {
        return Ok(());
    }
    let (retained, records) = retained(shared, number);
    if bytes < if is_needed { retained / 8 } else { retained } {
        return Ok(());
    }
    // What is trimmed from now on counts for the next time.
    let stored = retained + records * RECORD_OVERHEAD;
    if compaction::rewrite(&keyspace, shared.store.past(), stored, has_room)? {
        trimmed.fetch_sub(bytes, Relaxed);
    }
    shared.measure_keyspaces();
    Ok(())
}

/// Retained payload bytes and records of the logs in a shared keyspace.
fn retained(shared: &Shared, number: u32) -> (u64, u64) {
    let is_in = |broker: &Arc<OpenLog>| broker.shared_keyspace() == Some(number);
    let brokers = shared.brokers.all().into_iter().filter(is_in);
    brokers.fold((0, 0), |(bytes, records), broker| {
        let state = broker.state();
        (bytes + state.bytes(), records + (state.next - state.first))
    })
}

impl CleanupQueue {
    pub(super) fn tidy(&self, broker: &Arc<OpenLog>) {
        let Some(stored) = broker.stored() else { return };
        match layout::shared_keyspace_of(stored.id) {
            Some(number) => self.tidy_shared(number, false),
            None => {
                self.ask(Cleanup::Log(broker.clone()));
            }
        }
    }

    /// Cleans up a shared keyspace.
    pub(super) fn tidy_shared(&self, number: u32, is_needed: bool) {
        let requested = &self.requested[number as usize];
        let wanted = if is_needed { NEEDED } else { REGULARLY };
        if requested.fetch_max(wanted, Relaxed) == NOT && !self.ask(Cleanup::Keyspace(number)) {
            requested.store(NOT, Relaxed);
        }
    }

    /// Cleans up all shared keyspaces that exist.
    pub(super) fn tidy_all_shared(&self, store: &Store) {
        for number in store.shared_keyspaces().into_keys() {
            self.tidy_shared(number, false);
        }
    }

    /// Gives back the space of trimmed records in all shared keyspaces, because it is needed.
    pub(super) fn reclaim_shared(&self) {
        for number in 0..SHARED_KEYSPACES {
            self.tidy_shared(number, true);
        }
    }

    fn ask(&self, cleanup: Cleanup) -> bool {
        self.requests.try_send(cleanup).is_ok()
    }
}
