//! The cleanup thread: reclaims the space of trimmed records and merges small tables. Nothing waits for it. A
//! failure costs space or memory, but no record, and the next trim asks again.

use std::sync::{Arc, mpsc};

use super::{broker::OpenLog, shared::Shared, store};

/// Maximum brokers waiting for cleanup. More are not remembered: each trim asks again.
const QUEUE: usize = 256;

/// Requests cleanup from the thread.
pub(super) struct CleanupQueue(mpsc::SyncSender<Arc<OpenLog>>);

/// Returns the handle and the thread's body, which runs until every [`CleanupQueue`] is dropped.
pub(super) fn keeper(shared: Arc<Shared>) -> (CleanupQueue, impl FnOnce() + Send + 'static) {
    let (sender, brokers) = mpsc::sync_channel::<Arc<OpenLog>>(QUEUE);
    let run = move || {
        for broker in brokers {
            let Some(stored) = broker.stored() else { continue };
            // Published state is durable, see `Store::reclaim`.
            let state = broker.state();
            let tidied = store::reclaim(&stored.events, state.first)
                .and_then(|_| store::merge_small_tables(&stored.events, state.bytes()));
            if let Err(e) = tidied {
                let path = shared.directory.display();
                tracing::warn!(%path, broker = %broker.name, "cannot drop or merge tables: {e}");
            }
        }
    };
    (CleanupQueue(sender), run)
}

impl CleanupQueue {
    pub(super) fn tidy(&self, broker: &Arc<OpenLog>) {
        let _ = self.0.try_send(broker.clone());
    }
}
