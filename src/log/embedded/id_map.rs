//! A hash map of ids that grows and shrinks in small steps (linear hashing), so that no insertion and no removal moves more
//! than some thousand ids. Pure, except that the hash is keyed at random: nobody can choose ids that collide.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
};

/// Bytes of a key.
pub(super) const KEY: usize = 16;

/// Average number of ids in a part beyond which there is another part. A part has up to twice as many; the tables of
/// [`HashMap`] are full at 1,792.
const PART: usize = 800;

/// A map from keys to values.
pub(super) struct IdMap<V> {
    parts: Vec<HashMap<[u8; KEY], V>>,
    hasher: RandomState,
    len: usize,
}

impl<V> IdMap<V> {
    pub(super) fn new() -> Self {
        Self {
            parts: vec![HashMap::new()],
            hasher: RandomState::new(),
            len: 0,
        }
    }

    pub(super) fn get(&self, key: &[u8; KEY]) -> Option<&V> {
        self.parts[self.part_of(key)].get(key)
    }

    pub(super) fn insert(&mut self, key: [u8; KEY], value: V) {
        let part = self.part_of(&key);
        if self.parts[part].insert(key, value).is_none() {
            self.len += 1;
            if self.len > self.parts.len() * PART {
                self.grow();
            }
        }
    }

    /// Removes a key if `is_removed` holds for its value.
    pub(super) fn remove_if(&mut self, key: &[u8; KEY], is_removed: impl FnOnce(&V) -> bool) {
        let part = self.part_of(key);
        if self.parts[part].get(key).is_some_and(is_removed) {
            let ids = &mut self.parts[part];
            ids.remove(key);
            if ids.capacity() > 4 * ids.len() + 64 {
                ids.shrink_to_fit();
            }
            self.len -= 1;
            // With some slack, so that adding and removing one id in turn moves nothing.
            if self.len + 2 * PART < self.parts.len() * PART {
                self.shrink();
            }
        }
    }

    /// Index of the part of a key. Of the last power of two, the parts from the front on are split already.
    fn part_of(&self, key: &[u8; KEY]) -> usize {
        let level = self.parts.len().next_power_of_two();
        let index = usize::try_from(self.hasher.hash_one(key) % level as u64).unwrap_or(0);
        if index < self.parts.len() {
            index
        } else {
            index - level / 2
        }
    }

    /// Splits the next part.
    fn grow(&mut self) {
        let new = self.parts.len();
        self.parts.push(HashMap::new());
        let split = std::mem::take(&mut self.parts[new - previous_power_of_two(new)]);
        self.put(split);
        for part in [new - previous_power_of_two(new), new] {
            self.parts[part].shrink_to_fit();
        }
    }

    /// Joins the last part with the one that it was split from.
    fn shrink(&mut self) {
        let last = self.parts.pop();
        self.put(last.unwrap_or_default());
    }

    fn put(&mut self, entries: HashMap<[u8; KEY], V>) {
        for (key, value) in entries {
            let part = self.part_of(&key);
            self.parts[part].insert(key, value);
        }
    }
}

#[cfg(test)]
impl<V> IdMap<V> {
    /// Bytes of memory of the tables: a table that takes so many entries has 8/7 places, each with a byte of its own.
    pub(super) fn bytes(&self) -> usize {
        let places = self.parts.iter().map(|part| part.capacity() * 8 / 7);
        places.sum::<usize>() * (1 + size_of::<([u8; KEY], V)>())
            + self.parts.capacity() * size_of::<HashMap<[u8; KEY], V>>()
    }

    /// Number of ids in the largest part.
    fn largest(&self) -> usize {
        self.parts.iter().map(HashMap::len).max().unwrap_or(0)
    }
}

fn previous_power_of_two(number: usize) -> usize {
    1 << number.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: u32 = 10_000;

    fn key(number: u32) -> [u8; KEY] {
        let mut key = [0; KEY];
        key[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    #[test]
    fn every_key_is_found_while_the_map_grows_and_shrinks() {
        let mut map = IdMap::new();
        for number in 0..IDS {
            map.insert(key(number), number);
            map.insert(key(number / 2), number / 2);
            if number % 997 == 0 {
                assert!(map.largest() < 3 * PART, "{number}");
                assert!((0..=number).all(|number| map.get(&key(number)) == Some(&number)));
                assert_eq!(map.get(&key(number + 1)), None);
            }
        }
        assert_eq!((map.len, map.parts.len()), (IDS as usize, 13));
        map.remove_if(&key(7), |value| *value != 7);
        assert_eq!(map.get(&key(7)), Some(&7));
        for number in 0..IDS {
            map.remove_if(&key(number), |value| *value == number);
            assert_eq!(map.get(&key(number)), None);
            if number % 997 == 0 {
                assert!(map.largest() < 3 * PART, "{number}");
                assert!((number + 1..IDS).all(|number| map.get(&key(number)) == Some(&number)));
            }
        }
        assert_eq!(map.len, 0);
        assert!(map.parts.len() <= 2, "{}", map.parts.len());
    }
}
