//! Cursors waiting to be saved. They wait beside the queue of the appends, so that no number of saving Triggers
//! delays an append.
//!
//! Only the newest value of each key waits. One call's changes are saved by one commit: keys that were ever in one
//! call stay together while they wait.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    time::Instant,
};

use bytes::Bytes;

use super::{lock::lock, request::ReplySender};

/// A change, with the key in the storage.
type Change = (String, Option<Bytes>);

#[derive(Default)]
pub(super) struct Saves {
    waiting: Mutex<PendingSaves>,
    /// Whether the committer has been notified.
    announced: AtomicBool,
}

#[derive(Default)]
struct PendingSaves {
    /// The oldest first.
    groups: BTreeMap<u64, Group>,
    group_of: HashMap<String, u64>,
    next: u64,
}

/// Changes saved together, and the callers waiting for them.
pub(super) struct Group {
    pub(super) changes: BTreeMap<String, Option<Bytes>>,
    pub(super) replies: Vec<ReplySender<()>>,
    pub(super) since: Instant,
}

impl Saves {
    /// Adds the changes of one call. Returns whether the committer has to be notified.
    pub(super) fn add(&self, changes: Vec<Change>, reply: ReplySender<()>) -> bool {
        self.lock().add(changes, reply);
        !self.announced.swap(true, AcqRel)
    }

    /// Resets the notification: the committer is about to look.
    pub(super) fn heard(&self) {
        self.announced.store(false, std::sync::atomic::Ordering::Release);
    }

    /// Takes the group that has waited longest.
    pub(super) fn take(&self) -> Option<Group> {
        let mut waiting = self.lock();
        let (_, group) = waiting.groups.pop_first()?;
        for key in group.changes.keys() {
            waiting.group_of.remove(key);
        }
        Some(group)
    }

    /// Time since which the oldest group waits.
    pub(super) fn since(&self) -> Option<Instant> {
        let waiting = self.lock();
        waiting.groups.first_key_value().map(|(_, group)| group.since)
    }

    fn lock(&self) -> MutexGuard<'_, PendingSaves> {
        lock(&self.waiting)
    }
}

impl PendingSaves {
    fn add(&mut self, changes: Vec<Change>, reply: ReplySender<()>) {
        let mut touched: Vec<u64> = changes
            .iter()
            .filter_map(|(key, _)| self.group_of.get(key).copied())
            .collect();
        touched.sort_unstable();
        touched.dedup();
        let id = touched.first().copied().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        let mut group = self.groups.remove(&id).unwrap_or_else(|| Group {
            changes: BTreeMap::new(),
            replies: Vec::new(),
            since: Instant::now(),
        });
        for other in touched.iter().skip(1) {
            if let Some(other) = self.groups.remove(other) {
                self.group_of
                    .extend(other.changes.keys().map(|key| (key.clone(), id)));
                group.changes.extend(other.changes);
                group.replies.extend(other.replies);
            }
        }
        for (key, value) in changes {
            self.group_of.insert(key.clone(), id);
            group.changes.insert(key, value);
        }
        // Callers that have stopped waiting need no answer.
        group.replies.retain(|reply| !reply.is_closed());
        group.replies.push(reply);
        self.groups.insert(id, group);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::*;
    use crate::log::LogError;

    fn save(saves: &Saves, changes: &[(&str, u8)]) -> oneshot::Receiver<Result<(), LogError>> {
        let (reply, answer) = oneshot::channel();
        let change = |&(key, value): &(&str, u8)| (key.to_owned(), Some(Bytes::copy_from_slice(&[value])));
        saves.add(changes.iter().map(change).collect(), reply);
        answer
    }

    fn take(saves: &Saves) -> Option<(Vec<(String, u8)>, usize)> {
        let group = saves.take()?;
        let changes = group.changes.into_iter();
        let changes = changes.map(|(key, value)| (key, value.unwrap()[0])).collect();
        Some((changes, group.replies.len()))
    }

    #[test]
    fn the_newest_value_waits_in_the_place_of_the_first() {
        let saves = Saves::default();
        let _answers = [
            save(&saves, &[("a", 1)]),
            save(&saves, &[("b", 1)]),
            save(&saves, &[("a", 2)]),
        ];
        assert_eq!(take(&saves), Some((vec![("a".to_owned(), 2)], 2)));
        assert_eq!(take(&saves), Some((vec![("b".to_owned(), 1)], 1)));
        assert_eq!(take(&saves), None);
    }

    #[test]
    fn nobody_is_answered_who_has_gone() {
        let saves = Saves::default();
        for value in 0..100 {
            drop(save(&saves, &[("a", value)]));
        }
        assert!(take(&saves).is_some_and(|(_, replies)| replies <= 1));
    }

    #[test]
    fn the_committer_is_told_once() {
        let saves = Saves::default();
        let add = || saves.add(Vec::new(), oneshot::channel().0);
        assert_eq!([add(), add()], [true, false]);
        saves.heard();
        assert!(add());
    }

    proptest! {
        /// However saves and takes interleave: in the end the newest value of each key is taken, and one call's
        /// changes are never split.
        #[test]
        fn what_is_saved_together_is_taken_together(
            calls in prop::collection::vec((prop::collection::btree_set(0_u8..6, 1..4), any::<bool>()), 1..40),
        ) {
            let saves = Saves::default();
            let (mut stored, mut expected) = (BTreeMap::new(), BTreeMap::new());
            let mut answers = Vec::new();
            let check = |stored: &BTreeMap<u8, u8>, calls: &[(std::collections::BTreeSet<u8>, bool)]| {
                // If a key of a call is stored at least as new as the call, all its keys are.
                for (number, (keys, _)) in calls.iter().enumerate() {
                    let newer = |key: &u8| stored.get(key).is_some_and(|value| usize::from(*value) >= number);
                    prop_assert!(keys.iter().all(newer) || !keys.iter().any(newer), "call {}: {:?}", number, stored);
                }
                Ok(())
            };
            let take_one = |stored: &mut BTreeMap<u8, u8>| {
                let Some((changes, _)) = take(&saves) else { return false };
                stored.extend(changes.into_iter().map(|(key, value)| (key.parse().unwrap(), value)));
                true
            };
            for (number, (keys, takes)) in calls.iter().enumerate() {
                let value = u8::try_from(number).unwrap();
                let names: Vec<_> = keys.iter().map(u8::to_string).collect();
                let changes: Vec<_> = names.iter().map(|key| (key.as_str(), value)).collect();
                answers.push(save(&saves, &changes));
                expected.extend(keys.iter().map(|key| (*key, value)));
                if *takes {
                    take_one(&mut stored);
                    check(&stored, &calls[..=number])?;
                }
            }
            while take_one(&mut stored) {
                check(&stored, &calls)?;
            }
            prop_assert_eq!(stored, expected);
        }
    }
}
