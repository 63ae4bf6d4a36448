//! One task saves the checkpoints of an owner, one batch at a time: the server rejects a fenced batch while another is
//! in flight. Saves that are queued meanwhile are merged; of each key only the newest value is stored.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::{publish::MAX_BATCH, streams::JetStream};
use crate::log::{CheckpointChange, CheckpointKey, LogError, Ownership};

/// Minimum time between two batches of an owner. Each is stored by all replicas, and many Triggers save often.
const PACE: Duration = Duration::from_millis(100);

/// Maximum queued saves.
pub(super) const QUEUE: usize = 1024;

/// Changes to save together.
pub(super) struct SaveRequest {
    pub(super) changes: Vec<CheckpointChange>,
    pub(super) reply: oneshot::Sender<Result<(), LogError>>,
}

/// Saves to store as one batch.
struct Merged {
    changes: BTreeMap<CheckpointKey, Option<Bytes>>,
    replies: Vec<oneshot::Sender<Result<(), LogError>>>,
}

impl Merged {
    fn new(request: SaveRequest) -> Self {
        let SaveRequest { changes, reply } = request;
        Self {
            changes: changes.into_iter().collect(),
            replies: vec![reply],
        }
    }

    /// Adds a save, or returns it if it does not fit.
    fn add(&mut self, request: SaveRequest) -> Result<(), SaveRequest> {
        if self.changes.len() + request.changes.len() > MAX_BATCH {
            return Err(request);
        }
        self.changes.extend(request.changes);
        self.replies.push(request.reply);
        Ok(())
    }
}

/// Saves for this owner until all senders are dropped.
pub(super) async fn run(
    streams: Arc<JetStream>,
    ownership: Ownership,
    mut requests: mpsc::Receiver<SaveRequest>,
) {
    let (mut left_over, mut next) = (None, Instant::now());
    loop {
        let first = match left_over.take() {
            Some(request) => request,
            None => match requests.recv().await {
                Some(request) => request,
                None => return,
            },
        };
        sleep_until(next).await;
        next = Instant::now() + PACE;
        let mut merged = Merged::new(first);
        while let Ok(request) = requests.try_recv() {
            if let Err(request) = merged.add(request) {
                left_over = Some(request);
                break;
            }
        }
        let changes: Vec<_> = merged.changes.into_iter().collect();
        let saved = streams.save(&changes, ownership).await;
        if let Err(error @ LogError::Fenced(_)) = &saved {
            // A router that cannot save must not deliver.
            streams.turn.end(error.clone());
        }
        for reply in merged.replies {
            // The caller may have been cancelled.
            let _ = reply.send(saved.clone());
        }
    }
}
