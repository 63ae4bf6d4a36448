//! A model of a cluster, a watcher that crashes, and a consumer: whatever happens, each final state is told.

use std::collections::{BTreeMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::{
    ledger::{Ledger, ObservedChange},
    record::{ObjectKey, ObjectPlace, Record, SHARDS},
};
use crate::routing::ChangeKind;

const OBJECTS: u8 = 4;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An object is created, or changed.
    Change(u8),
    /// An object is deleted.
    Delete(u8),
    /// An object leaves or enters the selection.
    Select(u8),
    /// The watch delivers one change.
    Watch,
    /// The watch has fallen behind, and lists.
    List,
    /// The oldest change that may be told is told.
    Tell,
    /// A shard is saved, or its save fails.
    Save(usize, bool),
    /// The watcher is killed, and starts again.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let object = 0..OBJECTS;
    let step = prop_oneof![
        4 => object.clone().prop_map(Step::Change),
        2 => object.clone().prop_map(Step::Delete),
        1 => object.prop_map(Step::Select),
        6 => Just(Step::Watch),
        1 => Just(Step::List),
        6 => Just(Step::Tell),
        8 => (0..SHARDS, prop::bool::weighted(0.8)).prop_map(|(shard, works)| Step::Save(shard, works)),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..200)
}

/// An object of the cluster.
#[derive(Clone, Debug)]
struct Stored {
    uid: String,
    version: u64,
    is_selected: bool,
}

/// A change as the watch delivers it.
#[derive(Clone, Debug)]
enum Delivered {
    Exists(String, u64),
    Gone(String),
}

#[derive(Debug)]
struct World {
    objects: BTreeMap<u8, Stored>,
    clock: u64,
    /// Not delivered yet.
    watch: VecDeque<Delivered>,
    ledger: Ledger,
    /// Not told yet.
    queue: VecDeque<ObservedChange>,
    saved: BTreeMap<ObjectKey, Record>,
    /// What the consumer knows: the version of each object that it was not told to be deleted.
    known: BTreeMap<String, String>,
    /// The same of a consumer that ignores every id that it has seen.
    known_once: BTreeMap<String, String>,
    /// Ids that were told since the last crash.
    ids: HashSet<String>,
    /// Ids that were ever told.
    all_ids: HashSet<String>,
}

fn key(uid: &str) -> ObjectKey {
    ObjectKey {
        kind: "Pod.core".into(),
        uid: uid.into(),
    }
}

fn place() -> ObjectPlace {
    ObjectPlace {
        namespace: Some("shop".to_owned()),
        name: "web".to_owned(),
    }
}

impl World {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            clock: 0,
            watch: VecDeque::new(),
            ledger: Ledger::restore([]),
            queue: VecDeque::new(),
            saved: BTreeMap::new(),
            known: BTreeMap::new(),
            known_once: BTreeMap::new(),
            ids: HashSet::new(),
            all_ids: HashSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        self.clock += 1;
        let now = self.clock;
        match step {
            Step::Change(object) => {
                let stored = self.objects.entry(object).or_insert_with(|| Stored {
                    uid: format!("{object}-{now}"),
                    version: now,
                    is_selected: true,
                });
                stored.version = now;
                if stored.is_selected {
                    self.watch.push_back(Delivered::Exists(stored.uid.clone(), now));
                }
            }
            Step::Delete(object) => {
                if let Some(stored) = self.objects.remove(&object)
                    && stored.is_selected
                {
                    self.watch.push_back(Delivered::Gone(stored.uid));
                }
            }
            Step::Select(object) => {
                if let Some(stored) = self.objects.get_mut(&object) {
                    stored.version = now;
                    stored.is_selected = !stored.is_selected;
                    let uid = stored.uid.clone();
                    self.watch.push_back(match stored.is_selected {
                        true => Delivered::Exists(uid, now),
                        false => Delivered::Gone(uid),
                    });
                }
            }
            Step::Watch => match self.watch.pop_front() {
                Some(Delivered::Exists(uid, version)) => self.exists(&uid, version),
                Some(Delivered::Gone(uid)) => self.queue.extend(self.ledger.is_gone(&key(&uid))),
                None => {}
            },
            Step::List => self.list(),
            Step::Tell => {
                let may = self.queue.iter().position(|change| self.ledger.may_tell(change));
                // The order of an object's changes is kept.
                let first = may.filter(|&at| {
                    let uid = &self.queue[at].key;
                    self.queue.iter().take(at).all(|earlier| earlier.key != *uid)
                });
                if let Some(change) = first.and_then(|at| self.queue.remove(at)) {
                    self.tell(&change);
                }
            }
            Step::Save(shard, works) => {
                let records = self.ledger.take_unsaved(shard);
                if works {
                    self.save(records);
                } else {
                    self.ledger.not_saved(shard, records);
                }
            }
            Step::Crash => {
                self.ids.clear();
                self.queue.clear();
                self.ledger = Ledger::restore(self.saved.clone());
                self.list();
            }
        }
    }

    fn save(&mut self, records: super::ledger::UnsavedRecords) {
        self.ledger.saved(&records);
        for (key, record) in records {
            match record {
                // As it is written and read.
                Some(record) => drop(self.saved.insert(key, record.to_string().parse().unwrap())),
                None => drop(self.saved.remove(&key)),
            }
        }
    }

    fn exists(&mut self, uid: &str, version: u64) {
        let change = self.ledger.exists(&key(uid), &place(), &version.to_string());
        self.queue.extend(change);
    }

    fn list(&mut self) {
        self.watch.clear();
        let selected: Vec<_> = self
            .objects
            .values()
            .filter(|stored| stored.is_selected)
            .cloned()
            .collect();
        for stored in &selected {
            self.exists(&stored.uid, stored.version);
        }
        let listed = selected.iter().map(|stored| stored.uid.as_str().into()).collect();
        let gone = self.ledger.are_all("Pod.core", Some("shop"), &listed);
        self.queue.extend(gone);
    }

    fn tell(&mut self, change: &ObservedChange) {
        // Nothing is told twice unless the watcher was killed.
        assert!(self.ids.insert(change.id()), "{change:?} was told before");
        let is_new = self.all_ids.insert(change.id());
        let consumers = [(&mut self.known, true), (&mut self.known_once, is_new)];
        for (known, _) in consumers.into_iter().filter(|(_, takes)| *takes) {
            let uid = change.key.uid.to_string();
            match change.kind {
                ChangeKind::Deleted => drop(known.remove(&uid)),
                ChangeKind::Added | ChangeKind::Updated => drop(known.insert(uid, change.version.clone())),
            }
        }
        self.ledger.told(change);
    }

    /// Everything that is under way arrives.
    fn rest(&mut self) {
        while !self.watch.is_empty() {
            self.step(Step::Watch);
        }
        loop {
            for shard in 0..SHARDS {
                self.step(Step::Save(shard, true));
            }
            if self.queue.is_empty() {
                break;
            }
            self.step(Step::Tell);
        }
    }

    fn selected(&self) -> BTreeMap<String, String> {
        let selected = self.objects.values().filter(|stored| stored.is_selected);
        selected
            .map(|stored| (stored.uid.clone(), stored.version.to_string()))
            .collect()
    }
}

proptest! {
    #[test]
    fn each_final_state_is_told(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.rest();
        prop_assert_eq!(&world.known, &world.selected());
        prop_assert_eq!(&world.known_once, &world.known);
        let saved: BTreeMap<_, _> = world.saved.iter()
            .map(|(key, record)| (key.uid.to_string(), record.told.clone().unwrap()))
            .collect();
        prop_assert_eq!(&saved, &world.known);
        // Another start tells nothing.
        world.step(Step::Crash);
        prop_assert!(world.queue.is_empty(), "{:?}", world.queue);
    }
}
