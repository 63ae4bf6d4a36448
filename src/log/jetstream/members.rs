//! The routers that share a log: each is a member by a lease, and owns shards. The owner of a shard is stored with the
//! ID of its membership, so a shard is free once the membership of its owner has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    lease::Lease,
    names::{self, SHARDS},
    streams::JetStream,
};
use crate::log::{BrokerName, LogError, Ownership, Partition, Shard};

/// Timeout of an announcement of changed owners.
const ANNOUNCE: Duration = Duration::from_secs(1);

/// Value of a router's lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct MemberLease {
    /// Distinguishes a router from earlier ones of its name.
    id: String,
    /// Whether the router gives up its shards and takes no others.
    leaving: bool,
}

/// Owner of a shard. A shard that was released has an empty value instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ShardOwner {
    router: String,
    /// ID of the router's membership.
    member: String,
}

/// Routers and owners of shards, as last seen. May be stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Routers that may own shards.
    pub routers: BTreeSet<String>,
    /// Shards that a live router owns, with its name.
    pub owners: BTreeMap<Shard, String>,
}

/// The membership of this router. If dropped, it expires.
pub struct Membership {
    streams: Arc<JetStream>,
    router: String,
    id: String,
    leaving: AtomicBool,
    lease: Lease,
}

impl Membership {
    /// Resolves with the reason once this router has to stop delivering.
    pub async fn lost(&self) -> LogError {
        self.lease.lost().await
    }

    /// Resolves when a router announces that it has taken or released a shard.
    pub async fn changed(&self) {
        self.streams.owners_changed.notified().await;
    }

    /// Returns the routers and the owners of shards.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond.
    pub async fn seen(&self) -> Result<Seen, LogError> {
        let (mut members, mut owners) = (BTreeMap::new(), Vec::new());
        for (subject, value) in self.streams.glance(&[names::MEMBERS, names::OWNERS]).await? {
            if let Some(router) = names::member_of(&subject) {
                members.extend(parse::<MemberLease>(&value).map(|member| (router, member)));
            } else if let Some(shard) = names::owned_shard(&subject) {
                owners.extend(parse::<ShardOwner>(&value).map(|owner| (shard, owner)));
            }
        }
        if members.insert(self.router.clone(), self.value()).is_none() {
            return Err(LogError::Unavailable(
                "a replica responds that lacks the lease of this router".to_owned(),
            ));
        }
        let is_live = |owner: &ShardOwner| {
            let member = members.get(&owner.router);
            member.is_some_and(|member| member.id == owner.member)
        };
        let owners = owners.into_iter().filter(|(_, owner)| is_live(owner));
        let owners = owners.map(|(shard, owner)| (shard, owner.router)).collect();
        let routers = members.into_iter().filter(|(_, member)| !member.leaving);
        Ok(Seen {
            routers: routers.map(|(router, _)| router).collect(),
            owners,
        })
    }

    /// Takes a shard that no live router owns.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if another router owns it, or this membership is over; [`LogError::Unavailable`] if NATS
    /// does not respond.
    pub async fn take(&self, shard: Shard) -> Result<Ownership, LogError> {
        let (sequence, value) = self.streams.load_with_sequence(&names::owner(shard)).await?;
        if let Some(owner) = value.as_deref().and_then(parse::<ShardOwner>)
            && owner.member != self.id
            && self.is_member(&owner).await?
        {
            return Err(LogError::Fenced(format!("{} owns shard {shard}", owner.router)));
        }
        let owner = ShardOwner {
            router: self.router.clone(),
            member: self.id.clone(),
        };
        let epoch = self.streams.set_owner(shard, &encode(&owner), sequence).await?;
        self.streams.turn.check()?;
        let logs = self.streams.logs().into_iter();
        let logs = logs.filter(|log| self.streams.has_part_of(shard, log.name.broker()));
        let logs: Vec<_> = logs.collect();
        join_all(logs.iter().map(|log| self.streams.confirm_end(log))).await;
        self.announce().await;
        let ownership = Ownership { shard, epoch };
        self.streams.windows.taken(ownership);
        Ok(ownership)
    }

    /// Whether a shard is still owned at this epoch, as the leader of the state stream reports.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond.
    pub async fn owns(&self, Ownership { shard, epoch }: Ownership) -> Result<bool, LogError> {
        let (sequence, _) = self.streams.load_with_sequence(&names::owner(shard)).await?;
        Ok(sequence == epoch.0)
    }

    /// Gives a shard up to let another router take it.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] if NATS does not respond; then the shard is free once this membership has ended.
    pub async fn release(&self, Ownership { shard, epoch }: Ownership) -> Result<(), LogError> {
        self.streams.windows.released(shard);
        match self.streams.set_owner(shard, &[], epoch.0).await {
            Ok(_) | Err(LogError::Fenced(_)) => {
                self.announce().await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Tells the other routers that this one leaves, so that they take its shards once it releases them.
    pub fn prepare_to_leave(&self) {
        self.leaving.store(true, Relaxed);
        self.lease.set_value(encode(&self.value()));
    }

    /// Ends the membership.
    pub async fn leave(self) {
        self.lease.give_up().await;
    }

    fn value(&self) -> MemberLease {
        MemberLease {
            id: self.id.clone(),
            leaving: self.leaving.load(Relaxed),
        }
    }

    /// Whether the membership of an owner lasts, as its leader reports.
    async fn is_member(&self, owner: &ShardOwner) -> Result<bool, LogError> {
        let value = self.streams.load_value(&names::member(&owner.router)).await?;
        let member = value.as_deref().and_then(parse::<MemberLease>);
        Ok(member.is_some_and(|member| member.id == owner.member))
    }

    /// Announces changed owners. If the announcement is lost, other routers notice by polling.
    async fn announce(&self) {
        let announced =
            self.streams
                .session
                .publish(names::OWNERS_CHANGED, HeaderMap::new(), Bytes::new(), ANNOUNCE);
        if let Err(error) = announced.await {
            tracing::debug!(%error, "cannot announce changed owners to other routers");
        }
    }
}

impl JetStream {
    /// Whether a shard has a partition of a broker, if the number of its partitions is known.
    fn has_part_of(&self, shard: Shard, broker: &BrokerName) -> bool {
        let partitions = self.partitions.get(broker);
        partitions.is_some_and(|partitions| Partition::in_shard(broker, partitions, shard, SHARDS).is_some())
    }

    /// Makes this router a member. Every earlier membership of this connection must have ended.
    ///
    /// # Errors
    /// [`LogError::Fenced`] if a router of this name is a member; [`LogError::Open`] if an embedded log was copied here
    /// only in part; [`LogError::Unavailable`] if NATS does not respond.
    pub(super) async fn join(self: &Arc<Self>, router: &str) -> Result<Membership, LogError> {
        let id = Uuid::new_v4().to_string();
        let member = MemberLease {
            id: id.clone(),
            leaving: false,
        };
        let lease = self.take_lease(names::member(router), encode(&member)).await?;
        if self.is_copied_in_part().await? {
            lease.give_up().await;
            return Err(LogError::Open {
                path: self.session.place(),
                detail:
                    "an embedded log was copied there only in part; run weir log copy again until it succeeds"
                        .to_owned(),
            });
        }
        self.windows.joined();
        Ok(Membership {
            streams: self.clone(),
            router: router.to_owned(),
            id,
            leaving: AtomicBool::new(false),
            lease,
        })
    }
}

fn parse<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn encode(value: &impl Serialize) -> Bytes {
    // Strings and booleans always serialise.
    serde_json::to_vec(value).unwrap_or_default().into()
}
