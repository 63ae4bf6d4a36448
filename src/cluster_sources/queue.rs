//! The changes of a Source that wait to be told, in order for each object.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{given_up::GivenUp, metrics::SourceCounters, records::SOURCE_UID};
use crate::{
    cloudevents::Event,
    source::kubernetes::{EventMaker, KindNames, Ledger, ObjectKey, ObservedChange, ObservedObject},
};

/// Limits of the changes that wait before watches are read on: their number, and the bytes of their events.
const MAX_WAITING: usize = 256;
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Maximum bytes of the versions that patches and expressions are evaluated on.
const MAX_VERSIONS: usize = 8 * 1024 * 1024;

/// Maximum number of objects of a Source. Their records fit into the ConfigMaps.
pub(super) const MAX_OBJECTS: usize = 20_000;

/// A change whose event is to be posted.
pub(super) struct Pending {
    pub(super) change: ObservedChange,
    pub(super) event: Arc<Event>,
    /// Failed attempts to post it.
    pub(super) failures: u32,
}

/// A change in the queue.
struct WaitingChange {
    change: ObservedChange,
    outcome: Outcome,
    bytes: usize,
}

/// What becomes of a change.
enum Outcome {
    Event(Arc<Event>),
    /// It is not to be told.
    Filtered,
    /// No event can be made of it, or a filter fails.
    Failed(GivenUp),
}

/// The changes of a Source.
pub(super) struct ChangeQueue {
    pub(super) ledger: Ledger,
    maker: EventMaker,
    waiting: VecDeque<WaitingChange>,
    bytes: usize,
    /// Why a change or its event was last given up.
    pub(super) rejection: Option<GivenUp>,
    /// Objects with a change that is being told.
    busy: HashSet<ObjectKey>,
    versions: LastVersions,
    counters: Arc<SourceCounters>,
}

impl ChangeQueue {
    pub(super) fn new(ledger: Ledger, maker: EventMaker, counters: Arc<SourceCounters>) -> Self {
        Self {
            ledger,
            maker,
            waiting: VecDeque::new(),
            bytes: 0,
            rejection: None,
            busy: HashSet::new(),
            versions: LastVersions::default(),
            counters,
        }
    }

    /// Whether more changes may come.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < MAX_WAITING && self.bytes < MAX_BYTES
    }

    /// Number of changes that are not settled.
    pub(super) fn pending(&self) -> usize {
        self.waiting.len() + self.busy.len()
    }

    /// Reads an object of a kind. Returns `None` for those that are not followed: without an identity, or those that this
    /// process changes itself, whose events would make more of them.
    pub(super) fn read(&self, names: &KindNames, object: Value) -> Option<ObservedObject> {
        let object = match ObservedObject::read(&names.api_version, &names.kind, object) {
            Ok(object) => object,
            Err(error) => {
                tracing::debug!(kind = names.kind, %error, "an object is not followed");
                return None;
            }
        };
        let is_record = names.kind == "ConfigMap" && object.has_label(SOURCE_UID);
        (!is_record && object.uid != self.maker.source_uid()).then_some(object)
    }

    /// Takes note of an object that exists.
    pub(super) fn exists(
        &mut self,
        names: &KindNames,
        kind: &Arc<str>,
        object: &ObservedObject,
        now: Timestamp,
    ) {
        let key = key(kind, object);
        if let Some(change) = self.ledger.exists(&key, &object.place, &object.version) {
            self.enqueue(names, change, Some(object), now);
        }
        if self.maker.needs_versions() {
            self.versions.insert(key, &object.value);
        }
    }

    /// Takes note of an object that is gone.
    pub(super) fn is_gone(
        &mut self,
        names: &KindNames,
        kind: &Arc<str>,
        object: &ObservedObject,
        now: Timestamp,
    ) {
        let key = key(kind, object);
        if let Some(change) = self.ledger.is_gone(&key) {
            self.enqueue(names, change, Some(object), now);
        }
        self.versions.remove(&key);
    }

    /// Takes note of a complete list of a kind in a namespace, or in all.
    pub(super) fn are_all(
        &mut self,
        names: &KindNames,
        kind: &str,
        namespace: Option<&str>,
        listed: &HashSet<Arc<str>>,
        now: Timestamp,
    ) {
        for change in self.ledger.are_all(kind, namespace, listed) {
            let key = change.key.clone();
            self.enqueue(names, change, None, now);
            self.versions.remove(&key);
        }
    }

    fn enqueue(
        &mut self,
        names: &KindNames,
        change: ObservedChange,
        object: Option<&ObservedObject>,
        now: Timestamp,
    ) {
        self.counters.changed(change.kind);
        let outcome = self.outcome(names, &change, object, now);
        let bytes = match &outcome {
            Outcome::Event(event) => event.size(),
            Outcome::Filtered | Outcome::Failed(_) => 0,
        };
        self.bytes += bytes;
        self.waiting.push_back(WaitingChange {
            change,
            outcome,
            bytes,
        });
    }

    fn outcome(
        &self,
        names: &KindNames,
        change: &ObservedChange,
        object: Option<&ObservedObject>,
        now: Timestamp,
    ) -> Outcome {
        let before = self.versions.get(&change.key);
        match self.maker.make(names, change, object, before, now) {
            Ok(Some(event)) => Outcome::Event(event.into()),
            Ok(None) => Outcome::Filtered,
            Err(rejection) => {
                let (object, kind) = (&change.place.name, &names.kind);
                let problem = rejection.to_string();
                tracing::warn!(kind, object, problem, "a change of an object cannot be told");
                let message = format!("{kind} {object:?}: {problem}");
                Outcome::Failed(GivenUp::new(now, rejection.label(), message))
            }
        }
    }

    /// Takes the next change that may be told. Settles those that need not be.
    pub(super) fn next(&mut self) -> Option<Pending> {
        let mut blocked = HashSet::new();
        let mut at = 0;
        while let Some(WaitingChange { change, .. }) = self.waiting.get(at) {
            let is_next = !blocked.contains(&change.key)
                && !self.busy.contains(&change.key)
                && self.ledger.may_tell(change);
            if !is_next {
                blocked.insert(change.key.clone());
                at += 1;
                continue;
            }
            let WaitingChange {
                change,
                outcome,
                bytes,
            } = self.waiting.remove(at)?;
            self.bytes -= bytes;
            match outcome {
                Outcome::Event(event) => {
                    self.busy.insert(change.key.clone());
                    return Some(Pending {
                        change,
                        event,
                        failures: 0,
                    });
                }
                Outcome::Filtered => self.counters.filtered(),
                Outcome::Failed(rejection) => {
                    self.counters.failed();
                    self.rejection = Some(rejection);
                }
            }
            self.ledger.told(&change);
        }
        None
    }

    /// Whether the id of an event is that of its change, and not one that the author sets.
    pub(super) fn has_id_of_change(&self, pending: &Pending) -> bool {
        pending.event.id() == self.maker.id_of(&pending.change)
    }

    /// Settles a change that was told, or given up.
    pub(super) fn settled(&mut self, change: &ObservedChange) {
        self.busy.remove(&change.key);
        self.ledger.told(change);
    }
}

impl Drop for ChangeQueue {
    /// What was not told is seen again by the next run.
    fn drop(&mut self) {
        self.counters.left(self.pending());
    }
}

fn key(kind: &Arc<str>, object: &ObservedObject) -> ObjectKey {
    ObjectKey {
        kind: kind.clone(),
        uid: object.uid.as_str().into(),
    }
}

/// The last versions of objects, as far as there is memory for them.
#[derive(Default)]
struct LastVersions {
    objects: HashMap<ObjectKey, (Value, usize)>,
    bytes: usize,
}

impl LastVersions {
    fn get(&self, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(key).map(|(object, _)| object)
    }

    fn insert(&mut self, key: ObjectKey, object: &Value) {
        self.remove(&key);
        let bytes = object.to_string().len();
        if self.bytes + bytes <= MAX_VERSIONS {
            self.bytes += bytes;
            self.objects.insert(key, (object.clone(), bytes));
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        if let Some((_, bytes)) = self.objects.remove(key) {
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        filter::Expression,
        routing::{ChangeKind, DataForm, ObjectEvents},
        source::kubernetes::SHARDS,
    };

    fn work(data: DataForm, changes: &[ChangeKind], filters: &[Expression]) -> ChangeQueue {
        let events = ObjectEvents {
            changes: changes.iter().copied().collect(),
            data,
            event: None,
        };
        let maker = EventMaker::compile(&events, filters, "own").unwrap();
        ChangeQueue::new(Ledger::restore([]), maker, Arc::default())
    }

    fn names() -> KindNames {
        KindNames {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            plural: "configmaps".to_owned(),
        }
    }

    fn object(uid: &str, version: &str, labels: Value) -> Value {
        json!({"metadata": {"name": uid, "namespace": "shop", "uid": uid, "resourceVersion": version, "labels": labels},
               "data": {"n": version}})
    }

    fn show(work: &mut ChangeQueue, uid: &str, version: &str) {
        let object = work.read(&names(), object(uid, version, json!({}))).unwrap();
        work.exists(&names(), &"ConfigMap.core".into(), &object, Timestamp::UNIX_EPOCH);
    }

    fn save(work: &mut ChangeQueue) {
        for shard in 0..SHARDS {
            let records = work.ledger.take_unsaved(shard);
            work.ledger.saved(&records);
        }
    }

    fn taken(work: &mut ChangeQueue) -> Vec<String> {
        std::iter::from_fn(|| work.next())
            .map(|pending| pending.change.id())
            .collect()
    }

    #[test]
    fn changes_of_an_object_are_told_one_after_the_other() {
        let mut work = work(DataForm::Object, &ChangeKind::ALL, &[]);
        show(&mut work, "a", "1");
        show(&mut work, "a", "2");
        show(&mut work, "b", "3");
        assert!(taken(&mut work).is_empty(), "nothing is saved");
        save(&mut work);
        let first = work.next().unwrap();
        assert_eq!(first.change.id(), "a.1");
        assert_eq!(taken(&mut work), ["b.3"]);
        work.settled(&first.change);
        assert_eq!(taken(&mut work), ["a.2"]);
        assert_eq!(work.pending(), 2);
    }

    #[test]
    fn what_is_not_wanted_is_settled_in_its_turn() {
        let only = [Expression::Exact([("name".to_owned(), "a".to_owned())].into())];
        let mut work = work(DataForm::Object, &[ChangeKind::Added], &only);
        show(&mut work, "a", "1");
        show(&mut work, "b", "1");
        show(&mut work, "a", "2");
        save(&mut work);
        let first = work.next().unwrap();
        assert!(work.next().is_none());
        work.settled(&first.change);
        assert!(work.next().is_none());
        assert_eq!(work.pending(), 0);
        assert_eq!(work.ledger.len(), 2);
    }

    #[test]
    fn each_change_is_counted_once() {
        let failing = [Expression::Cel("event.absent == 'a'".to_owned())];
        let counters = Arc::<SourceCounters>::default();
        let mut work = work(DataForm::Object, &[ChangeKind::Added], &failing);
        work.counters = counters.clone();
        show(&mut work, "a", "1");
        show(&mut work, "a", "2");
        save(&mut work);
        assert!(work.next().is_none());
        assert!(work.rejection.is_some());
        show(&mut work, "b", "1");
        drop(work);
        assert_eq!(counters.settled(), [0, 1, 0, 1, 1]);
    }

    #[test]
    fn an_object_whose_event_cannot_be_made_blocks_no_other() {
        let events = ObjectEvents {
            changes: ChangeKind::ALL.into(),
            data: DataForm::Object,
            event: Some(serde_json::from_value(json!({"data": "${object.data.n + 'x'}"})).unwrap()),
        };
        let mut work = work(DataForm::Object, &ChangeKind::ALL, &[]);
        work.maker = EventMaker::compile(&events, &[], "own").unwrap();
        let mut broken = object("a", "1", json!({}));
        broken["data"]["n"] = 5.into();
        let broken = work.read(&names(), broken).unwrap();
        work.exists(&names(), &"ConfigMap.core".into(), &broken, Timestamp::UNIX_EPOCH);
        show(&mut work, "b", "1");
        save(&mut work);
        assert_eq!(taken(&mut work), ["b.1"]);
        let rejection = work.rejection.as_ref().unwrap();
        assert_eq!(rejection.reason, "mapping_failed");
        assert_eq!(
            rejection.message,
            "ConfigMap \"a\": spec.kubernetes.event.data: + does not take int and string"
        );
        assert_eq!(work.pending(), 1, "the other one is in flight");
        show(&mut work, "a", "2");
        assert_eq!(taken(&mut work), ["a.2"]);
    }

    #[test]
    fn own_objects_are_not_told() {
        let work = work(DataForm::Object, &ChangeKind::ALL, &[]);
        let labels = json!({SOURCE_UID: "x"});
        assert_eq!(work.read(&names(), object("a", "1", labels)), None);
        assert_eq!(work.read(&names(), object("own", "1", json!({}))), None);
        assert_eq!(work.read(&names(), json!({"metadata": {"name": "a"}})), None);
    }

    #[test]
    fn a_patch_is_from_the_version_before() {
        let mut work = work(DataForm::Patch, &ChangeKind::ALL, &[]);
        show(&mut work, "a", "1");
        show(&mut work, "a", "2");
        save(&mut work);
        let first = work.next().unwrap();
        work.settled(&first.change);
        let second = work.next().unwrap().event;
        assert_eq!(
            second.attribute("datacontenttype"),
            Some(&"application/merge-patch+json".into())
        );
    }

    #[test]
    fn watches_wait_while_much_is_to_be_told() {
        let mut work = work(DataForm::Object, &ChangeKind::ALL, &[]);
        for number in 0..MAX_WAITING {
            assert!(work.has_room());
            show(&mut work, &number.to_string(), "1");
        }
        assert!(!work.has_room());
    }
}
