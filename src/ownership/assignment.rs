//! Divides the shards among the routers: evenly, and so that few shards move when a router comes or goes. Every router
//! computes the same. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::log::Shard;

/// Assigns each shard to a router by rendezvous hashing, with at most one shard between the router with the most and the
/// one with the fewest. Returns nothing if there are no routers.
pub(super) fn assign(routers: &BTreeSet<String>, shards: u16) -> BTreeMap<Shard, &str> {
    let Some(least) = usize::from(shards).checked_div(routers.len()) else {
        return BTreeMap::new();
    };
    // So many routers have one more than the others.
    let mut larger = usize::from(shards) % routers.len();
    let mut counts: BTreeMap<&str, usize> = routers.iter().map(|router| (&**router, 0)).collect();
    let mut assigned = BTreeMap::new();
    // Best matches first: a pair that matches well stays together whatever the other pairs are.
    let mut pairs: Vec<_> = Shard::all(shards)
        .flat_map(|shard| {
            routers
                .iter()
                .map(move |router| (score(router, shard), &**router, shard))
        })
        .collect();
    pairs.sort_unstable_by_key(|pair| Reverse(*pair));
    for (_, router, shard) in pairs {
        if assigned.contains_key(&shard) {
            continue;
        }
        let Some(count) = counts.get_mut(router) else {
            continue;
        };
        if *count > least || (*count == least && larger == 0) {
            continue;
        }
        if *count == least {
            larger -= 1;
        }
        *count += 1;
        assigned.insert(shard, router);
    }
    assigned
}

fn score(router: &str, shard: Shard) -> u64 {
    xxh3_64_with_seed(router.as_bytes(), u64::from(shard.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHARDS: u16 = 24;

    fn routers(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nobody_owns_anything_without_routers() {
        assert_eq!(assign(&routers(&[]), SHARDS), BTreeMap::new());
        let one = routers(&["a"]);
        assert!(assign(&one, SHARDS).values().all(|owner| *owner == "a"));
    }

    proptest! {
        #[test]
        fn shards_are_divided_evenly_and_few_move(
            mut names in prop::collection::btree_set("[a-z]{1,8}", 2..40),
            leaver in any::<prop::sample::Index>(),
        ) {
            let before = names.clone();
            let all = assign(&before, SHARDS);
            prop_assert_eq!(all.len(), usize::from(SHARDS));
            let count = |name: &String| all.values().filter(|owner| *owner == name).count();
            let counts: Vec<_> = before.iter().map(count).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);

            let leaver = leaver.get(&Vec::from_iter(before.iter().cloned())).clone();
            names.remove(&leaver);
            let rest = assign(&names, SHARDS);
            let stay = |(shard, owner): &(&Shard, &&str)| rest.get(*shard) == Some(*owner);
            let moved = all.len() - all.iter().filter(stay).count();
            let needed = all.values().filter(|owner| **owner == leaver).count();
            prop_assert!(moved <= needed + usize::from(SHARDS) / 3, "{} moved, {} had to", moved, needed);
        }
    }
}
