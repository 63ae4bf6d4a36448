//! Partitions: the parts into which the events of a broker are divided, so that several routers can deliver them. A log
//! that one router uses alone has one partition for each broker. Pure.

use xxhash_rust::xxh3::xxh3_64;

use super::{BrokerName, Shard, offset::Offset};

/// One partition of a broker's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Number of the partition, from 0.
    pub number: u16,
    /// Number of partitions of the broker.
    pub of: u16,
}

impl Partition {
    /// The only partition of a broker.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// Returns the partition of a broker in this shard, if any. Partitions are in consecutive shards, starting at the
    /// broker's own, so a shard has at most one.
    pub fn in_shard(broker: &BrokerName, partitions: u16, shard: Shard, shards: u16) -> Option<Self> {
        let Shard(home) = Shard::of(broker, shards);
        let number = (shard.0 + shards).checked_sub(home)? % shards.max(1);
        (number < partitions).then_some(Self {
            number,
            of: partitions,
        })
    }

    /// Returns the shard of this partition of a broker.
    pub fn shard(self, broker: &BrokerName, shards: u16) -> Shard {
        let Shard(home) = Shard::of(broker, shards);
        Shard((home + self.number) % shards.max(1))
    }

    /// Iterates over this many partitions.
    pub fn all(partitions: u16) -> impl Iterator<Item = Self> {
        (0..partitions).map(move |number| Self {
            number,
            of: partitions,
        })
    }

    /// Returns the partition of an event: by its `partitionkey`, or by its offset if it has none. Positions are stored
    /// by partition, so this must never change.
    pub fn of_event(key: Option<&str>, offset: Offset, partitions: u16) -> Self {
        let hash = key.map_or_else(|| xxh3_64(&offset.0.to_be_bytes()), |key| xxh3_64(key.as_bytes()));
        let number = hash % u64::from(partitions.max(1));
        Self {
            // Less than `partitions`, so it fits.
            number: number as u16,
            of: partitions,
        }
    }

    /// Whether the event of this key and offset is in this partition.
    pub fn has(self, key: Option<&str>, offset: Offset) -> bool {
        Self::of_event(key, offset, self.of) == self
    }

    /// Returns the share of this partition in an amount that all partitions divide, but at least 1.
    pub fn share(self, amount: u32) -> u32 {
        let of = u32::from(self.of.max(1));
        let share = amount / of + u32::from(u32::from(self.number) < amount % of);
        share.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_event_is_in_one_partition(key in proptest::option::of("[a-z]{0,6}"), offset: u64, of in 1_u16..=24) {
            let found = Partition::of_event(key.as_deref(), Offset(offset), of);
            prop_assert_eq!(Partition::all(of).filter(|partition| *partition == found).count(), 1);
        }

        #[test]
        fn each_partition_is_in_one_shard(broker in "[a-z]{1,6}/[a-z]{1,6}", of in 1_u16..=24) {
            let broker = BrokerName::from(broker.as_str());
            let found: Vec<_> = Shard::all(24)
                .filter_map(|shard| Some((Partition::in_shard(&broker, of, shard, 24)?, shard)))
                .collect();
            prop_assert_eq!(found.len(), usize::from(of));
            for (partition, shard) in found {
                prop_assert_eq!(partition.shard(&broker, 24), shard);
            }
            prop_assert_eq!(Partition { number: 0, of }.shard(&broker, 24), Shard::of(&broker, 24));
        }

        #[test]
        fn shares_add_up_to_the_amount_if_it_reaches_all(amount in 1_u32..200, of in 1_u16..=24) {
            let shares: u32 = Partition::all(of).map(|partition| partition.share(amount)).sum();
            prop_assert_eq!(shares, amount.max(u32::from(of)));
        }
    }

    #[test]
    fn the_partition_of_an_event_never_changes() {
        let events = [
            (Some("order-1"), 0, 16),
            (Some("order-2"), 0, 16),
            (Some("order-1"), 1, 5),
            (None, 37, 16),
            (None, 37, 1),
        ];
        let found = events.map(|(key, offset, of)| Partition::of_event(key, Offset(offset), of).number);
        assert_eq!(found, [6, 12, 4, 10, 0]);
    }
}
