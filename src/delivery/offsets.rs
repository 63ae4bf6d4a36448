//! A set of offsets, small when they are adjacent. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::log::Offset;

/// Offsets, stored as ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub(super) struct OffsetSet {
    /// Start of each range to its exclusive end. No two ranges touch.
    ranges: BTreeMap<u64, u64>,
}

impl OffsetSet {
    pub(super) fn insert(&mut self, Offset(offset): Offset) {
        if self.contains(Offset(offset)) {
            return;
        }
        let end = self.ranges.remove(&(offset + 1)).unwrap_or(offset + 1);
        match self.ranges.range_mut(..=offset).next_back() {
            Some((_, before)) if *before == offset => *before = end,
            _ => {
                self.ranges.insert(offset, end);
            }
        }
    }

    pub(super) fn contains(&self, Offset(offset): Offset) -> bool {
        self.range_of(offset).is_some()
    }

    /// First offset from this one on that is not in the set.
    pub(super) fn first_absent(&self, Offset(offset): Offset) -> Offset {
        Offset(self.range_of(offset).unwrap_or(offset))
    }

    /// Removes everything below.
    pub(super) fn forget_below(&mut self, Offset(offset): Offset) {
        let kept = self.ranges.split_off(&offset);
        let last = self.ranges.pop_last().filter(|&(_, end)| end > offset);
        self.ranges = kept;
        self.ranges.extend(last.map(|(_, end)| (offset, end)));
    }

    /// Removes this offset and everything above; returns whether there was any.
    pub(super) fn forget_from(&mut self, Offset(offset): Offset) -> bool {
        let beyond = self.ranges.split_off(&offset);
        let within = self.ranges.last_entry().filter(|last| *last.get() > offset);
        let has_any = !beyond.is_empty() || within.is_some();
        if let Some(mut last) = within {
            last.insert(offset);
        }
        has_any
    }

    /// Number of offsets from this one on.
    pub(super) fn count_from(&self, Offset(offset): Offset) -> u64 {
        let ends = self.ranges.iter();
        ends.map(|(&start, end)| end.saturating_sub(start.max(offset)))
            .sum()
    }

    /// End of the range that contains the offset.
    fn range_of(&self, offset: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=offset).next_back()?;
        (offset < end).then_some(end)
    }
}

impl From<Vec<(u64, u64)>> for OffsetSet {
    fn from(ranges: Vec<(u64, u64)>) -> Self {
        Self {
            ranges: ranges.into_iter().collect(),
        }
    }
}

impl From<OffsetSet> for Vec<(u64, u64)> {
    fn from(set: OffsetSet) -> Self {
        set.ranges.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(offsets in prop::collection::vec(0_u64..40, 0..60), below in 0_u64..40, from in 0_u64..45) {
            let (mut set, mut model) = (OffsetSet::default(), BTreeSet::new());
            for offset in offsets {
                set.insert(Offset(offset));
                model.insert(offset);
            }
            set.forget_below(Offset(below));
            model = model.split_off(&below);
            let beyond = model.split_off(&from);
            prop_assert_eq!(set.forget_from(Offset(from)), !beyond.is_empty());
            for offset in 0..45 {
                prop_assert_eq!(set.count_from(Offset(offset)), model.range(offset..).count() as u64);
                prop_assert_eq!(set.contains(Offset(offset)), model.contains(&offset), "{} in {:?}", offset, set);
                let absent = (offset..).find(|offset| !model.contains(offset)).unwrap();
                prop_assert_eq!(set.first_absent(Offset(offset)), Offset(absent));
            }
            let touching = set.ranges.iter().zip(set.ranges.iter().skip(1)).any(|((_, end), (next, _))| end >= next);
            prop_assert!(!touching, "{:?}", set);
            let stored = serde_json::to_string(&set).unwrap();
            prop_assert_eq!(serde_json::from_str::<OffsetSet>(&stored).unwrap(), set);
        }
    }
}
