//! Shares the work among routers: joins them, and takes shards and gives them up as routers come and go. A router that
//! cannot renew its lease gives up all shards by itself, before another may take them.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
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

    /// Takes and gives up shards until told to stop, then waits for the changes under way. Each shard changes
    /// independently, so that attempts in flight, which may take long to end, delay only their own shard.
    async fn share(&self, membership: &Membership, closing: &CancellationToken) {
        let (mut failures, mut told) = (Failures::default(), BTreeSet::new());
        let (mut changes, mut changing) = (FuturesUnordered::new(), BTreeSet::new());
        let looks = stream::unfold(tokio::time::interval(LOOK_EVERY), |mut interval| async move {
            tokio::select! {
                () = membership.changed() => {}
                _ = interval.tick() => {}
            }
            Some((membership.seen().await, interval))
        });
        let mut looks = pin!(looks);
        loop {
            let seen = tokio::select! {
                biased;
                () = closing.cancelled() => break,
                Some((shard, result)) = changes.next() => {
                    changing.remove(&shard);
                    failures.note(shard, result);
                    continue;
                }
                Some(seen) = looks.next() => seen,
            };
            let seen = match seen {
                Ok(seen) => seen,
                Err(error) => {
                    tracing::debug!(%error, "cannot read the owners of shards");
                    continue;
                }
            };
            let owned: BTreeSet<_> = self.shards.owned().keys().copied().collect();
            for (shard, change) in self.plan(&owned, &seen, &failures) {
                if changing.insert(shard) {
                    changes.push(self.change(membership, shard, change));
                }
            }
            if changing.is_empty() && owned != told {
                tracing::info!(
                    shards = owned.len(),
                    of = self.shards.count,
                    routers = seen.routers.len(),
                    "this router owns other shards than before"
                );
                told = owned;
            }
            self.shards.note_seen(seen);
        }
        while changes.next().await.is_some() {}
    }

    /// Plans to give up the shards that other routers have or should have, and to take those that this one should have
    /// and that are free.
    fn plan(
        &self,
        owned: &BTreeSet<Shard>,
        Seen { routers, owners }: &Seen,
        failures: &Failures,
    ) -> Vec<(Shard, ShardChange)> {
        let wanted = assign(routers, self.shards.count);
        let change = |shard| {
            let is_wanted = wanted.get(&shard) == Some(&self.router.as_str());
            let owner = owners.get(&shard);
            let is_own = owner == Some(&self.router);
            let change = match owned.contains(&shard) {
                true if !is_own => ShardChange::DropIfLost,
                true if !is_wanted => ShardChange::GiveUp,
                false if is_wanted && (is_own || owner.is_none()) && failures.may_try(shard) => {
                    ShardChange::Take
                }
                _ => return None,
            };
            Some((shard, change))
        };
        Shard::all(self.shards.count).filter_map(change).collect()
    }

    /// Changes a shard. Returns it with the outcome.
    async fn change(
        &self,
        membership: &Membership,
        shard: Shard,
        change: ShardChange,
    ) -> (Shard, Result<(), EngineError>) {
        match change {
            ShardChange::DropIfLost => self.shards.drop_if_lost(membership, shard).await,
            ShardChange::GiveUp => self.shards.give_up(membership, shard).await,
            ShardChange::Take => return (shard, self.shards.take(membership, shard).await),
        }
        (shard, Ok(()))
    }
}

/// A change of which shards this router owns.
enum ShardChange {
    DropIfLost,
    GiveUp,
    Take,
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

#[cfg(test)]
mod tests;
