//! Shards: the parts into which the brokers of an installation are divided. Each shard has one owner among the routers.
//! Pure.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{BrokerName, Epoch};

/// A shard, numbered from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shard(pub u16);

impl Shard {
    /// Returns the shard of a broker. Checkpoints are stored by shard, so this must never change.
    pub fn of(broker: &BrokerName, shards: u16) -> Self {
        let shard = xxh3_64(broker.as_str().as_bytes()) % u64::from(shards.max(1));
        // Less than `shards`.
        Self(u16::try_from(shard).unwrap_or_default())
    }

    /// Iterates over this many shards.
    pub fn all(shards: u16) -> impl Iterator<Item = Self> {
        (0..shards).map(Self)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The right to change the checkpoints of a shard. The embedded log has one shard with a single owner, at epoch 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ownership {
    /// The shard.
    pub shard: Shard,
    /// Epoch of the owner.
    pub epoch: Epoch,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shard_of_a_broker_never_changes() {
        for (broker, shards, expected) in [
            ("shop/default", 24, 19),
            ("shop/orders", 24, 18),
            ("billing/default", 24, 3),
            ("shop/orders", 1, 0),
        ] {
            assert_eq!(Shard::of(&broker.into(), shards), Shard(expected), "{broker}");
        }
    }

    #[test]
    fn brokers_are_spread_over_all_shards() {
        let mut brokers = [0; 24];
        for number in 0..2400 {
            let Shard(shard) = Shard::of(&BrokerName::new(&format!("n{number}"), "default"), 24);
            brokers[usize::from(shard)] += 1;
        }
        assert!(
            brokers.iter().all(|count| (60..=140).contains(count)),
            "{brokers:?}"
        );
    }
}
