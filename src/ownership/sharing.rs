//! Shares the work among routers: joins them, and takes shards and gives them up as routers come and go. A router that
//! cannot renew its lease gives up all shards by itself, before another may take them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::{Shards, assignment::assign};
use crate::{
    delivery::EngineError,
    log::{
        LogError, Shard,
        jetstream::{JetStreamLog, Membership, Seen},
    },
};

/// Pause between attempts to join.
const JOIN_AGAIN: Duration = Duration::from_secs(1);
/// Interval at which routers and owners are looked at, unless a change is announced.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before another attempt to take a shard whose engine did not start.
const TAKE_AGAIN: Duration = Duration::from_secs(10);

/// The part of this router in the shared work.
pub struct WorkSharing {
    /// The shared log.
    pub log: Arc<JetStreamLog>,
    /// Name of this router, unique among those that share the log.
    pub router: String,
    /// The shards of this router.
    pub shards: Arc<Shards>,
}

impl WorkSharing {
    /// Shares the work until told to leave; then finishes what is under way and releases all shards. If the lease is
    /// lost, gives up all shards and joins again.
    ///
    /// # Errors
    /// If this router may not join.
    pub async fn run(self, leave: CancellationToken) -> Result<(), LogError> {
        while let Some(membership) = leave.run_until_cancelled(self.join()).await.transpose()? {
            self.shards.accept_shards();
            self.shards.note_problem(None);
            let closing = CancellationToken::new();
            let end = async {
                let lost = leave.run_until_cancelled(membership.lost()).await;
                closing.cancel();
                match &lost {
                    Some(reason) => {
                        tracing::warn!(%reason, "this router gives up its shards");
                        self.shards.note_problem(Some(reason.to_string()));
                        // Another router may take the shards, and deliver already.
                        self.shards.give_up_all(None).await;
                    }
                    None => {
                        membership.prepare_to_leave();
                        self.shards.give_up_all(Some(&membership)).await;
                    }
                }
            };
            tokio::join!(self.share(&membership, &closing), end);
            membership.leave().await;
        }
        Ok(())
    }

    /// Joins the routers. Retries while NATS is unavailable, and until the lease of an earlier router of this name has
    /// expired.
    async fn join(&self) -> Result<Membership, LogError> {
        loop {
            let problem = match self.log.join(&self.router).await {
                Ok(membership) => return Ok(membership),
                Err(LogError::Fenced(_)) => format!(
                    "waiting for the lease of an earlier router named {} to expire",
                    self.router
                ),
                Err(LogError::Unavailable(error)) => format!("NATS does not answer: {error}"),
                Err(error) => return Err(error),
            };
            self.shards.note_problem(Some(problem));
            tokio::time::sleep(JOIN_AGAIN).await;
        }
    }

    /// Takes and gives up shards until told to stop.
    async fn share(&self, membership: &Membership, closing: &CancellationToken) {
        let mut failures = Failures::default();
        loop {
            match membership.seen().await {
                Ok(seen) if !closing.is_cancelled() => self.adjust(membership, &seen, &mut failures).await,
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "cannot read the owners of shards"),
            }
            tokio::select! {
                () = membership.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = closing.cancelled() => return,
            }
        }
    }

    /// Gives up the shards that other routers should have, and takes those that this one should have and that are free.
    async fn adjust(&self, membership: &Membership, seen: &Seen, failures: &mut Failures) {
        let Seen { routers, owners } = seen;
        self.shards.note_seen(seen.clone());
        let wanted = assign(routers, self.shards.count);
        let wanted: BTreeSet<_> = wanted
            .into_iter()
            .filter(|(_, router)| *router == self.router)
            .map(|(shard, _)| shard)
            .collect();
        let before = self.shards.owned();
        let lost = before
            .keys()
            .filter(|shard| owners.get(shard) != Some(&self.router));
        join_all(lost.map(|shard| self.shards.drop_if_lost(membership, *shard))).await;
        let owned: BTreeSet<_> = self.shards.owned().keys().copied().collect();
        let given_up = owned
            .difference(&wanted)
            .map(|shard| self.shards.give_up(membership, *shard));
        let is_free = |shard: &&Shard| owners.get(shard).is_none_or(|owner| *owner == self.router);
        let taken: Vec<_> = wanted
            .difference(&owned)
            .filter(is_free)
            .filter(|shard| failures.may_try(**shard))
            .copied()
            .collect();
        let taking = taken.iter().map(|shard| self.shards.take(membership, *shard));
        let (_, results) = tokio::join!(join_all(given_up), join_all(taking));
        for (shard, result) in taken.into_iter().zip(results) {
            failures.note(shard, result);
        }
        let after: BTreeSet<_> = self.shards.owned().keys().copied().collect();
        if after != owned {
            tracing::info!(
                shards = after.len(),
                of = self.shards.count,
                routers = routers.len(),
                "this router owns other shards than before"
            );
        }
    }
}

/// Shards whose engines did not start, which are tried again after a pause.
#[derive(Default)]
struct Failures(BTreeMap<Shard, tokio::time::Instant>);

impl Failures {
    fn may_try(&self, shard: Shard) -> bool {
        self.0
            .get(&shard)
            .is_none_or(|failed| failed.elapsed() >= TAKE_AGAIN)
    }

    /// Notes the outcome of an attempt. Another owner, or NATS being unavailable, is no failure of the shard.
    fn note(&mut self, shard: Shard, result: Result<(), EngineError>) {
        match result {
            Ok(()) => drop(self.0.remove(&shard)),
            Err(EngineError::Log(error @ (LogError::Fenced(_) | LogError::Unavailable(_)))) => {
                tracing::debug!(shard = shard.0, %error, "cannot take a shard");
            }
            Err(error) => {
                tracing::error!(shard = shard.0, %error, "cannot deliver the events of a shard; trying again");
                self.0.insert(shard, tokio::time::Instant::now());
            }
        }
    }
}
