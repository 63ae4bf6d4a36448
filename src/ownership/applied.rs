//! The revision of the routing configuration that the owner of a shard has applied, stored with the shard's checkpoints.
//! A router that took the shard with an older configuration would treat newer Triggers as deleted.

use bytes::Bytes;

use crate::{
    log::{CheckpointKey, Checkpoints, LogError},
    routing::Revision,
};

/// Precedes a revision while it is being applied. No revision begins with it.
const APPLYING: &str = "applying ";

/// Records that a revision is about to be applied.
pub(super) async fn begin(checkpoints: &dyn Checkpoints, revision: &Revision) -> Result<(), LogError> {
    save(checkpoints, format!("{APPLYING}{}", revision.0)).await
}

/// Records that a revision is applied: its new Triggers have their positions.
pub(super) async fn end(checkpoints: &dyn Checkpoints, revision: &Revision) -> Result<(), LogError> {
    save(checkpoints, revision.0.clone()).await
}

/// Whether this revision is the last one, and is applied.
pub(super) async fn is_last(checkpoints: &dyn Checkpoints, revision: &Revision) -> Result<bool, LogError> {
    let last = checkpoints.load(&CheckpointKey::Revision).await?;
    Ok(last.is_some_and(|last| is_applied(&last, revision)))
}

/// Whether a stored value says that this revision is applied.
pub(super) fn is_applied(stored: &[u8], revision: &Revision) -> bool {
    stored == revision.0.as_bytes()
}

async fn save(checkpoints: &dyn Checkpoints, value: String) -> Result<(), LogError> {
    let change = (CheckpointKey::Revision, Some(Bytes::from(value)));
    checkpoints.save(vec![change]).await
}
