//! What was seen and told of each object, and what of it is not saved yet.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::Arc,
};

use super::record::{ObjectKey, ObjectPlace, Record, SHARDS, shard_of};
use crate::routing::ChangeKind;

/// A change of an object that is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedChange {
    /// The object.
    pub key: ObjectKey,
    /// Where it is.
    pub place: ObjectPlace,
    /// What happened.
    pub kind: ChangeKind,
    /// Version at which the object was first seen. It distinguishes an object that no longer matched the selectors from
    /// the same object when it matches again.
    pub since: String,
    /// Version of the object; of a deleted one, the last that was seen.
    pub version: String,
}

impl ObservedChange {
    /// Returns what identifies the change among those of a Source. It is the same when the change is seen again, after a crash.
    #[must_use]
    pub fn id(&self) -> String {
        let Self {
            key, since, version, ..
        } = self;
        match self.kind {
            ChangeKind::Added | ChangeKind::Updated => format!("{}.{version}", key.uid),
            ChangeKind::Deleted => format!("{}.{since}.deleted", key.uid),
        }
    }
}

/// What was last seen of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SeenVersion {
    /// Nothing since the record was saved, which was before it was told.
    Nothing,
    At(String),
    Gone,
}

#[derive(Clone, Debug)]
struct TrackedObject {
    record: Record,
    seen: SeenVersion,
    /// Whether a record with this `since` is saved.
    is_saved: bool,
    /// Whether any record of the object is saved.
    has_saved: bool,
    /// Whether it was not seen since the start.
    is_restored: bool,
}

/// The objects of a Source.
#[derive(Debug)]
pub struct Ledger {
    objects: HashMap<ObjectKey, TrackedObject>,
    /// Number of objects that were not seen since the start.
    unseen: usize,
    /// By shard, the records that differ from the saved ones.
    unsaved: [UnsavedShard; SHARDS],
}

/// Records of a shard that are to be saved; `None` removes one.
pub type UnsavedRecords = BTreeMap<ObjectKey, Option<Record>>;

#[derive(Debug, Default)]
struct UnsavedShard {
    records: UnsavedRecords,
    /// Whether an object waits for its record.
    is_awaited: bool,
}

impl Ledger {
    /// Creates the ledger from saved records.
    #[must_use]
    pub fn restore(saved: impl IntoIterator<Item = (ObjectKey, Record)>) -> Self {
        let tracked = |record: Record| TrackedObject {
            seen: match &record.told {
                Some(told) => SeenVersion::At(told.clone()),
                None => SeenVersion::Nothing,
            },
            record,
            is_saved: true,
            has_saved: true,
            is_restored: true,
        };
        let saved = saved.into_iter();
        let objects: HashMap<_, _> = saved.map(|(key, record)| (key, tracked(record))).collect();
        Self {
            unseen: objects.len(),
            objects,
            unsaved: Default::default(),
        }
    }

    /// Number of objects.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Number of objects that were seen since the start.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.objects.len() - self.unseen
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Forgets objects without telling, because they are not watched any more.
    pub fn retain(&mut self, is_watched: impl Fn(&ObjectKey, &ObjectPlace) -> bool) {
        let gone = self.objects.iter();
        let gone = gone.filter(|(key, tracked)| !is_watched(key, &tracked.record.place));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        for key in gone {
            let tracked = self.objects.remove(&key);
            self.unseen -= usize::from(tracked.is_some_and(|tracked| tracked.is_restored));
            self.unsaved[shard_of(&key)].records.insert(key, None);
        }
    }

    /// Takes note of an object that exists in this version. Returns what to tell.
    pub fn exists(&mut self, key: &ObjectKey, place: &ObjectPlace, version: &str) -> Option<ObservedChange> {
        let Self {
            objects,
            unseen,
            unsaved,
        } = self;
        let tracked = objects.entry(key.clone()).or_insert_with(|| TrackedObject {
            record: Record {
                place: place.clone(),
                since: version.to_owned(),
                told: None,
            },
            seen: SeenVersion::Gone,
            is_saved: false,
            has_saved: false,
            is_restored: false,
        });
        let is_restored = mem::take(&mut tracked.is_restored);
        *unseen -= usize::from(is_restored);
        let kind = match &tracked.seen {
            SeenVersion::At(seen) if seen == version => return None,
            SeenVersion::At(_) => ChangeKind::Updated,
            SeenVersion::Nothing | SeenVersion::Gone => ChangeKind::Added,
        };
        // After a restart nobody knows whether the object had been told as deleted just before, and is back.
        let may_be_back =
            tracked.seen == SeenVersion::Gone || (is_restored && tracked.record.since != version);
        tracked.seen = SeenVersion::At(version.to_owned());
        if may_be_back {
            tracked.record.since = version.to_owned();
            if kind == ChangeKind::Added {
                tracked.record.told = None;
            }
            tracked.is_saved = false;
            let unsaved = &mut unsaved[shard_of(key)];
            unsaved.records.insert(key.clone(), Some(tracked.record.clone()));
            unsaved.is_awaited = true;
        }
        Some(ObservedChange {
            key: key.clone(),
            place: place.clone(),
            kind,
            since: tracked.record.since.clone(),
            version: version.to_owned(),
        })
    }

    /// Takes note that an object is gone. Returns what to tell.
    pub fn is_gone(&mut self, key: &ObjectKey) -> Option<ObservedChange> {
        let tracked = self.objects.get_mut(key)?;
        self.unseen -= usize::from(mem::take(&mut tracked.is_restored));
        let version = match mem::replace(&mut tracked.seen, SeenVersion::Gone) {
            SeenVersion::Gone => return None,
            SeenVersion::At(version) => version,
            SeenVersion::Nothing => tracked.record.since.clone(),
        };
        Some(ObservedChange {
            key: key.clone(),
            place: tracked.record.place.clone(),
            kind: ChangeKind::Deleted,
            since: tracked.record.since.clone(),
            version,
        })
    }

    /// Takes note of a complete list of a kind, of one namespace or of all: what is not in it is gone. Returns what to tell.
    pub fn are_all(
        &mut self,
        kind: &str,
        namespace: Option<&str>,
        listed: &HashSet<Arc<str>>,
    ) -> Vec<ObservedChange> {
        let is_missing = |key: &ObjectKey, tracked: &TrackedObject| {
            let is_covered = namespace
                .is_none_or(|namespace| tracked.record.place.namespace.as_deref() == Some(namespace));
            *key.kind == *kind && is_covered && !listed.contains(&key.uid)
        };
        let missing = self.objects.iter();
        let missing = missing.filter(|(key, tracked)| is_missing(key, tracked));
        let missing: Vec<_> = missing.map(|(key, _)| key.clone()).collect();
        missing.iter().filter_map(|key| self.is_gone(key)).collect()
    }

    /// Whether a change may be told: that an object exists is not told before it is certain that its deletion will be.
    #[must_use]
    pub fn may_tell(&self, change: &ObservedChange) -> bool {
        let Some(tracked) = self.objects.get(&change.key) else {
            return true;
        };
        change.kind == ChangeKind::Deleted
            || tracked.is_saved
            || (tracked.has_saved && tracked.record.since != change.since)
    }

    /// Takes note that a change was told, or that it need not be.
    pub fn told(&mut self, change: &ObservedChange) {
        let Some(tracked) = self.objects.get_mut(&change.key) else {
            return;
        };
        if tracked.record.since != change.since {
            return; // it is back already
        }
        let record = if change.kind == ChangeKind::Deleted {
            self.objects.remove(&change.key);
            None
        } else {
            tracked.record.told = Some(change.version.clone());
            Some(tracked.record.clone())
        };
        let unsaved = &mut self.unsaved[shard_of(&change.key)];
        unsaved.records.insert(change.key.clone(), record);
    }

    /// Whether a shard has records to save.
    #[must_use]
    pub fn is_unsaved(&self, shard: usize) -> bool {
        !self.unsaved[shard].records.is_empty()
    }

    /// Whether an object waits until a record of this shard is saved.
    #[must_use]
    pub fn is_awaited(&self, shard: usize) -> bool {
        self.unsaved[shard].is_awaited
    }

    /// Takes the records of a shard, to save them.
    pub fn take_unsaved(&mut self, shard: usize) -> UnsavedRecords {
        let unsaved = &mut self.unsaved[shard];
        unsaved.is_awaited = false;
        mem::take(&mut unsaved.records)
    }

    /// Takes note that these records were saved.
    pub fn saved(&mut self, records: &UnsavedRecords) {
        for (key, record) in records {
            if let (Some(tracked), Some(record)) = (self.objects.get_mut(key), record) {
                tracked.has_saved = true;
                tracked.is_saved |= tracked.record.since == record.since;
            }
        }
    }

    /// Takes back records that could not be saved. Newer ones replace them.
    pub fn not_saved(&mut self, shard: usize, records: UnsavedRecords) {
        let Self { objects, unsaved, .. } = self;
        let unsaved = &mut unsaved[shard];
        for (key, record) in records {
            unsaved.is_awaited |= objects.get(&key).is_some_and(|tracked| !tracked.is_saved);
            unsaved.records.entry(key).or_insert(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(uid: &str) -> ObjectKey {
        ObjectKey {
            kind: "Pod.core".into(),
            uid: uid.into(),
        }
    }

    fn place(namespace: &str) -> ObjectPlace {
        ObjectPlace {
            namespace: Some(namespace.to_owned()),
            name: "web".to_owned(),
        }
    }

    fn save_all(ledger: &mut Ledger) -> UnsavedRecords {
        let mut all = UnsavedRecords::new();
        for shard in 0..SHARDS {
            let records = ledger.take_unsaved(shard);
            ledger.saved(&records);
            all.extend(records);
        }
        all
    }

    #[test]
    fn an_object_is_told_as_added_once_its_record_is_saved() {
        let mut ledger = Ledger::restore([]);
        let added = ledger.exists(&key("a"), &place("shop"), "5").unwrap();
        assert_eq!((added.kind, added.id()), (ChangeKind::Added, "a.5".to_owned()));
        assert!(!ledger.may_tell(&added));
        let shard = shard_of(&key("a"));
        assert!(ledger.is_awaited(shard));
        let records = ledger.take_unsaved(shard);
        ledger.not_saved(shard, records);
        assert!(ledger.is_awaited(shard) && !ledger.may_tell(&added));
        save_all(&mut ledger);
        assert!(ledger.may_tell(&added));
        assert_eq!(ledger.exists(&key("a"), &place("shop"), "5"), None);
        let updated = ledger.exists(&key("a"), &place("shop"), "6").unwrap();
        assert_eq!(
            (updated.kind, updated.id()),
            (ChangeKind::Updated, "a.6".to_owned())
        );
        assert!(ledger.may_tell(&updated));
    }

    #[test]
    fn an_object_that_is_back_is_another_one() {
        let mut ledger = Ledger::restore([]);
        let first = ledger.exists(&key("a"), &place("shop"), "5").unwrap();
        save_all(&mut ledger);
        ledger.told(&first);
        let gone = ledger.is_gone(&key("a")).unwrap();
        assert_eq!(gone.id(), "a.5.deleted");
        assert_eq!(ledger.is_gone(&key("a")), None);
        let back = ledger.exists(&key("a"), &place("shop"), "9").unwrap();
        assert_eq!(back.kind, ChangeKind::Added);
        // The deletion is told while the object is there again.
        ledger.told(&gone);
        assert_eq!(ledger.len(), 1);
        save_all(&mut ledger);
        ledger.told(&back);
        assert_eq!(ledger.is_gone(&key("a")).unwrap().id(), "a.9.deleted");
    }

    #[test]
    fn a_list_tells_what_is_gone_where_it_looked() {
        let mut ledger = Ledger::restore([]);
        for (uid, namespace) in [("a", "shop"), ("b", "shop"), ("c", "web")] {
            ledger.exists(&key(uid), &place(namespace), "1");
        }
        let listed = HashSet::from([Arc::from("a")]);
        let uids = |changes: Vec<ObservedChange>| -> Vec<String> {
            changes.iter().map(|change| change.key.uid.to_string()).collect()
        };
        assert_eq!(uids(ledger.are_all("Pod.core", Some("shop"), &listed)), ["b"]);
        assert!(ledger.are_all("Job.batch", None, &listed).is_empty());
        assert_eq!(uids(ledger.are_all("Pod.core", None, &listed)), ["c"]);
        ledger.retain(|key, _| *key.uid != *"a");
        assert_eq!(ledger.len(), 2);
        assert_eq!(save_all(&mut ledger)[&key("a")], None);
    }

    #[test]
    fn what_is_restored_is_not_told_again() {
        let record: Record = "5 7 shop web".parse().unwrap();
        let untold: Record = "6 - shop web".parse().unwrap();
        let saved = [("a", &record), ("b", &untold), ("c", &record)];
        let mut ledger = Ledger::restore(saved.map(|(uid, record)| (key(uid), record.clone())));
        assert_eq!((ledger.len(), ledger.seen()), (3, 0));
        assert_eq!(ledger.exists(&key("a"), &place("shop"), "7"), None);
        let changed = ledger.exists(&key("a"), &place("shop"), "8").unwrap();
        assert_eq!(changed.kind, ChangeKind::Updated);
        assert!(ledger.may_tell(&changed));
        assert_eq!(ledger.is_gone(&key("a")).unwrap().id(), "a.5.deleted");
        let untold = ledger.exists(&key("b"), &place("shop"), "6").unwrap();
        assert_eq!(untold.kind, ChangeKind::Added);
        assert!(ledger.may_tell(&untold));
        // It may have been told as deleted before, and be back.
        let changed = ledger.exists(&key("c"), &place("shop"), "8").unwrap();
        assert_eq!(changed.kind, ChangeKind::Updated);
        assert!(!ledger.may_tell(&changed));
        assert_eq!(ledger.is_gone(&key("c")).unwrap().id(), "c.8.deleted");
        assert_eq!(ledger.seen(), 3);
    }
}
