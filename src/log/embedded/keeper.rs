//! The thread that tidies up: it gives back the space of trimmed records and merges small tables. Nothing waits
//! for it, and what it fails to do costs space or memory, no record; it is asked again.

use std::sync::{Arc, mpsc};

use super::{broker::Broker, shared::Shared, store};

/// How many brokers wait to be tidied up. More are not remembered: each trim asks again.
const QUEUE: usize = 256;

/// Asks the keeper.
pub(super) struct Keeper(mpsc::SyncSender<Arc<Broker>>);

/// What runs on the thread, until every [`Keeper`] is gone.
pub(super) fn keeper(shared: Arc<Shared>) -> (Keeper, impl FnOnce() + Send + 'static) {
    let (sender, brokers) = mpsc::sync_channel::<Arc<Broker>>(QUEUE);
    let run = move || {
        for broker in brokers {
            let Some(stored) = broker.stored() else { continue };
            // What is published is durable, see `Store::reclaim`.
            let state = broker.state();
            let tidied = store::reclaim(&stored.events, state.first)
                .and_then(|_| store::merge_small_tables(&stored.events, state.bytes()));
            if let Err(e) = tidied {
                let path = shared.directory.display();
                tracing::warn!(%path, broker = %broker.name, "cannot drop or merge tables: {e}");
            }
        }
    };
    (Keeper(sender), run)
}

impl Keeper {
    pub(super) fn tidy(&self, broker: &Arc<Broker>) {
        let _ = self.0.try_send(broker.clone());
    }
}
