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

/// Whether this revision is the last one, also if its owner ended while applying it.
pub(super) async fn is_last_begun(
    checkpoints: &dyn Checkpoints,
    revision: &Revision,
) -> Result<bool, LogError> {
    let last = checkpoints.load(&CheckpointKey::Revision).await?;
    Ok(last.is_some_and(|last| {
        let begun = last.strip_prefix(APPLYING.as_bytes());
        is_applied(begun.unwrap_or(&last), revision)
    }))
}

/// Whether a stored value says that this revision is applied.
pub(super) fn is_applied(stored: &[u8], revision: &Revision) -> bool {
    stored == revision.0.as_bytes()
}

async fn save(checkpoints: &dyn Checkpoints, value: String) -> Result<(), LogError> {
    let change = (CheckpointKey::Revision, Some(Bytes::from(value)));
    checkpoints.save(vec![change]).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogProvider as _, Ownership, memory::MemoryLogs};

    #[tokio::test]
    async fn a_revision_is_begun_before_it_is_applied() {
        let checkpoints = MemoryLogs::default().checkpoints(Ownership::default());
        let [old, new] = ["old", "new"].map(|revision| Revision(revision.into()));
        let state = async |revision| {
            let (begun, applied) = (
                is_last_begun(&*checkpoints, revision).await,
                is_last(&*checkpoints, revision).await,
            );
            (begun.unwrap(), applied.unwrap())
        };
        assert_eq!(state(&old).await, (false, false));
        begin(&*checkpoints, &old).await.unwrap();
        assert_eq!(state(&old).await, (true, false));
        end(&*checkpoints, &old).await.unwrap();
        assert_eq!(state(&old).await, (true, true));
        begin(&*checkpoints, &new).await.unwrap();
        assert_eq!(
            (state(&old).await, state(&new).await),
            ((false, false), (true, false))
        );
    }
}
