//! Locks that keep a broker's dead letters from being taken twice, or trimmed while they are taken.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard};

use crate::log::Offset;

/// Locks on the letters of a broker.
#[derive(Debug)]
pub(super) struct BrokerLetters {
    /// Held while letters are taken out, so that none is taken twice.
    taking: Arc<Mutex<()>>,
    /// Held while letters are trimmed, and briefly by whoever begins to take some.
    trimming: Mutex<()>,
    /// First letter being taken; nothing from there on is trimmed.
    from: AtomicU64,
}

/// Sentinel for "no letter": no log gets that far.
const NONE: u64 = u64::MAX;

impl Default for BrokerLetters {
    fn default() -> Self {
        Self {
            taking: Arc::default(),
            trimming: Mutex::default(),
            from: AtomicU64::new(NONE),
        }
    }
}

impl BrokerLetters {
    /// Keeps others from beginning to take letters.
    pub(super) async fn trimming(&self) -> MutexGuard<'_, ()> {
        self.trimming.lock().await
    }

    /// First letter that is being taken.
    pub(super) fn being_taken(&self) -> Option<Offset> {
        let from = self.from.load(Relaxed);
        (from != NONE).then_some(Offset(from))
    }

    /// Takes letters from this one on, once nobody else does. They are not trimmed meanwhile.
    pub(super) async fn take(self: Arc<Self>, from: Offset) -> TakingGuard {
        let taking = self.taking.clone().lock_owned().await;
        let _trimming = self.trimming.lock().await;
        self.from.store(from.0, Relaxed);
        TakingGuard {
            letters: self.clone(),
            _taking: taking,
        }
    }
}

/// Guard for taking out a broker's letters, one holder at a time.
#[derive(Debug)]
pub(super) struct TakingGuard {
    letters: Arc<BrokerLetters>,
    _taking: OwnedMutexGuard<()>,
}

impl TakingGuard {
    /// Releases the letters below.
    pub(super) fn hold_from(&self, first: Option<Offset>) {
        self.letters
            .from
            .store(first.map_or(NONE, |first| first.0), Relaxed);
    }
}

impl Drop for TakingGuard {
    fn drop(&mut self) {
        // Before the lock is released, and the next holder begins.
        self.hold_from(None);
    }
}
