//! Cursors waiting to be saved. They wait beside the queue of the appends, so that no number of saving Triggers
//! delays an append.
//!
//! Only the newest value of each key waits. One call's changes are saved by one commit: keys that were ever in one
//! call stay together while they wait.
//!
//! Namespaces take turns, so that however many and large cursors one of them saves, another waits for one of its
//! groups at most. Within a namespace the oldest is first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound::{Excluded, Unbounded},
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
    /// Groups of each namespace that has any.
    namespaces: BTreeMap<Box<str>, BTreeSet<u64>>,
    /// Namespace whose turn was last.
    last: Box<str>,
    next: u64,
}

/// Changes saved together, and the callers waiting for them.
pub(super) struct Group {
    /// The namespace that they count for: that of the first call.
    namespace: Box<str>,
    pub(super) changes: BTreeMap<String, Option<Bytes>>,
    pub(super) replies: Vec<ReplySender<()>>,
    pub(super) since: Instant,
}

impl Saves {
    /// Adds the changes of one call for a namespace. Returns whether the committer has to be notified.
    pub(super) fn add(&self, namespace: &str, changes: Vec<Change>, reply: ReplySender<()>) -> bool {
        self.lock().add(namespace, changes, reply);
        !self.announced.swap(true, AcqRel)
    }

    /// Resets the notification: the committer is about to look.
    pub(super) fn heard(&self) {
        self.announced.store(false, std::sync::atomic::Ordering::Release);
    }

    /// Takes the group that has waited longest of the namespace whose turn it is.
    pub(super) fn take(&self) -> Option<Group> {
        let mut waiting = self.lock();
        let group = waiting.take_next()?;
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
    fn take_next(&mut self) -> Option<Group> {
        let after = (Excluded(&*self.last), Unbounded);
        let next = self.namespaces.range::<str, _>(after).next();
        let (namespace, groups) = next.or_else(|| self.namespaces.first_key_value())?;
        let (namespace, oldest) = (namespace.clone(), *groups.first()?);
        self.last = namespace;
        self.remove(oldest)
    }

    fn remove(&mut self, id: u64) -> Option<Group> {
        let group = self.groups.remove(&id)?;
        if let Some(groups) = self.namespaces.get_mut(&group.namespace) {
            groups.remove(&id);
            if groups.is_empty() {
                self.namespaces.remove(&group.namespace);
            }
        }
        Some(group)
    }

    fn add(&mut self, namespace: &str, changes: Vec<Change>, reply: ReplySender<()>) {
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
        let mut group = self.remove(id).unwrap_or_else(|| Group {
            namespace: namespace.into(),
            changes: BTreeMap::new(),
            replies: Vec::new(),
            since: Instant::now(),
        });
        for other in touched.iter().skip(1) {
            if let Some(other) = self.remove(*other) {
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
        let of_namespace = self.namespaces.entry(group.namespace.clone()).or_default();
        of_namespace.insert(id);
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
        save_for(saves, "", changes)
    }

    fn save_for(
        saves: &Saves,
        namespace: &str,
        changes: &[(&str, u8)],
    ) -> oneshot::Receiver<Result<(), LogError>> {
        let (reply, answer) = oneshot::channel();
        let change = |&(key, value): &(&str, u8)| (key.to_owned(), Some(Bytes::copy_from_slice(&[value])));
        saves.add(namespace, changes.iter().map(change).collect(), reply);
        answer
    }

    #[test]
    fn namespaces_take_turns() {
        let saves = Saves::default();
        let mut answers = Vec::new();
        for key in ["greedy-1", "greedy-2", "greedy-3"] {
            answers.push(save_for(&saves, "greedy", &[(key, 0)]));
        }
        answers.push(save_for(&saves, "modest", &[("modest-1", 0)]));
        answers.push(save_for(&saves, "another", &[("another-1", 0)]));
        // Its second value waits in the place of the first.
        answers.push(save_for(&saves, "modest", &[("modest-1", 1), ("modest-2", 1)]));
        let mut order = Vec::new();
        while let Some((changes, _)) = take(&saves) {
            order.push(changes[0].0.clone());
        }
        assert_eq!(
            order,
            ["another-1", "greedy-1", "modest-1", "greedy-2", "greedy-3"]
        );
        // Whose turn was last is known while nothing waits.
        answers.push(save_for(&saves, "greedy", &[("greedy-4", 0)]));
        answers.push(save_for(&saves, "modest", &[("modest-3", 0)]));
        assert_eq!(take(&saves).unwrap().0[0].0, "modest-3");
        assert!(saves.since().is_some());
        assert_eq!(take(&saves).unwrap().0[0].0, "greedy-4");
        assert!(saves.lock().namespaces.is_empty() && saves.lock().group_of.is_empty());
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
        let add = || saves.add("", Vec::new(), oneshot::channel().0);
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
            namespaces in 1_usize..4,
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
                answers.push(save_for(&saves, ["a", "b", "c"][number % namespaces], &changes));
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
