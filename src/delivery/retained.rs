//! The retained checkpoints of deleted Triggers. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::TriggerView;
use crate::{
    log::{BrokerName, CheckpointChange, CheckpointKey, Offset},
    routing::{Start, Trigger},
};

/// Maximum number of retained checkpoints. Beyond it, the namespace with the most loses its oldest.
const MAX_CHECKPOINTS: usize = 10_000;

const VERSION: u32 = 1;

/// Identity shared by a Trigger and its replacement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) namespace: String,
    pub(super) name: String,
    /// `namespace/name`: the cursor is an offset in this broker's log.
    pub(super) broker: String,
}

impl Identity {
    pub(super) fn of(trigger: &Trigger, broker: &str) -> Self {
        Self {
            namespace: trigger.namespace.clone(),
            name: trigger.name.clone(),
            broker: broker.to_owned(),
        }
    }
}

/// Owner of the cursor stored under a UID, and the time of its deletion. Stored beside the cursor, which stays
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OwnerRecord {
    version: u32,
    #[serde(flatten)]
    pub(super) identity: Identity,
    /// In seconds of the [`RunningTime`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone_at: Option<u64>,
}

impl OwnerRecord {
    /// Record of a Trigger that exists.
    pub(super) fn present(identity: Identity) -> Self {
        Self {
            version: VERSION,
            identity,
            gone_at: None,
        }
    }

    pub(super) fn gone(identity: Identity, at: Duration) -> Self {
        Self {
            gone_at: Some(at.as_secs()),
            ..Self::present(identity)
        }
    }

    pub(super) fn gone_at(&self) -> Option<Duration> {
        self.gone_at.map(Duration::from_secs)
    }

    pub(super) fn change(&self, uid: &str) -> CheckpointChange {
        // Strings and numbers always serialise.
        let stored = serde_json::to_vec(self).unwrap_or_default();
        (CheckpointKey::Identity(uid.to_owned()), Some(stored.into()))
    }
}

/// Changes that remove everything stored about a Trigger.
pub(super) fn removal(uid: &str) -> [CheckpointChange; 2] {
    [
        (CheckpointKey::Trigger(uid.to_owned()), None),
        (CheckpointKey::Identity(uid.to_owned()), None),
    ]
}

impl OwnerRecord {
    /// Decodes a stored record; `None` if this version cannot.
    pub(super) fn read(stored: &[u8]) -> Option<Self> {
        let record = serde_json::from_slice::<Self>(stored).ok();
        record.filter(|record| record.version == VERSION)
    }
}

/// Total time that routers have run on this data. Jumps of the wall clock do not change it, and downtime does not
/// count.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunningTime {
    before: Duration,
    since: Instant,
}

impl RunningTime {
    pub(super) fn new(before: Duration, since: Instant) -> Self {
        Self { before, since }
    }

    /// Decodes the stored time; zero if it is unreadable.
    pub(super) fn read(stored: &[u8]) -> Duration {
        Duration::from_secs(serde_json::from_slice(stored).unwrap_or_default())
    }

    pub(super) fn at(&self, now: Instant) -> Duration {
        self.before.saturating_add(now.duration_since(self.since))
    }

    pub(super) fn change(&self, now: Instant) -> CheckpointChange {
        let stored = self.at(now).as_secs().to_string();
        (CheckpointKey::RunningTime, Some(stored.into()))
    }
}

/// Retained checkpoint of a deleted Trigger.
#[derive(Clone, Debug)]
pub(super) struct RetainedCheckpoint {
    /// Its hold and stats.
    pub(super) view: TriggerView,
    /// Time of its deletion, by the [`RunningTime`].
    pub(super) gone_at: Duration,
}

impl RetainedCheckpoint {
    pub(super) fn identity(&self) -> Identity {
        Identity {
            namespace: self.view.namespace.clone(),
            name: self.view.name.clone(),
            broker: self.view.broker().to_string(),
        }
    }
}

/// Whether a new Trigger starts at its `start`, ignoring retained checkpoints.
pub(super) fn has_explicit_start(trigger: &Trigger) -> bool {
    // Only the default can be implicit, also in a configuration from before `startIsSet` existed.
    trigger.start_is_set || trigger.start != Start::Latest
}

/// The retained checkpoints. A checkpoint that a Trigger resumes from still holds its events until it is forgotten.
#[derive(Debug, Default)]
pub(super) struct RetainedCheckpoints {
    by_uid: HashMap<String, RetainedCheckpoint>,
    /// UID by identity.
    named: HashMap<Identity, String>,
    /// By namespace, then the oldest first.
    aged: BTreeMap<String, BTreeSet<Age>>,
    taken: Vec<RetainedCheckpoint>,
}

/// Time of a Trigger's deletion, and its UID.
type Age = (Duration, String);

impl RetainedCheckpoints {
    /// Adds a checkpoint. Returns those it displaces: an older one of the same name, and one beyond the limit.
    pub(super) fn retain(&mut self, checkpoint: RetainedCheckpoint) -> Vec<RetainedCheckpoint> {
        let uid = checkpoint.view.uid.clone();
        let mut discarded = Vec::from_iter(self.remove(&uid));
        discarded.extend(self.remove_named(&checkpoint.identity()));
        let aged = self.aged.entry(checkpoint.view.namespace.clone()).or_default();
        aged.insert(age(&checkpoint));
        self.named.insert(checkpoint.identity(), uid.clone());
        self.by_uid.insert(uid, checkpoint);
        if self.by_uid.len() > MAX_CHECKPOINTS {
            let largest = self.aged.values().max_by_key(|aged| aged.len());
            let oldest = largest.and_then(BTreeSet::first).cloned();
            discarded.extend(oldest.and_then(|(_, uid)| self.remove(&uid)));
        }
        discarded
    }

    /// Takes the checkpoint of this UID for a Trigger that resumes; it holds its events until it is forgotten.
    pub(super) fn take(&mut self, uid: &str) -> Option<RetainedCheckpoint> {
        let checkpoint = self.remove(uid)?;
        self.taken.push(checkpoint.clone());
        Some(checkpoint)
    }

    /// Takes the checkpoint of the Trigger with this name and broker.
    pub(super) fn take_named(&mut self, identity: &Identity) -> Option<RetainedCheckpoint> {
        let uid = self.named.get(identity)?.clone();
        self.take(&uid)
    }

    /// Forgets the checkpoints that were taken: their new owners hold the events now.
    pub(super) fn forget_taken(&mut self) {
        self.taken.clear();
    }

    /// Removes the checkpoint of the Trigger with this name and broker.
    pub(super) fn remove_named(&mut self, identity: &Identity) -> Option<RetainedCheckpoint> {
        let uid = self.named.get(identity)?.clone();
        self.remove(&uid)
    }

    /// Expires checkpoints older than `window`.
    pub(super) fn expire(&mut self, now: Duration, window: Duration) -> Vec<RetainedCheckpoint> {
        let is_over = |(gone_at, _): &&Age| now.saturating_sub(*gone_at) >= window;
        let over = self
            .aged
            .values()
            .flat_map(|aged| aged.iter().take_while(is_over));
        let over: Vec<_> = over.map(|(_, uid)| uid.clone()).collect();
        over.iter().filter_map(|uid| self.remove(uid)).collect()
    }

    /// Discards the oldest checkpoint that holds events of its broker that nothing else holds. `others` returns the
    /// first offset of a broker held for an existing Trigger.
    pub(super) fn discard_for_room(
        &mut self,
        others: impl Fn(&BrokerName) -> Offset,
    ) -> Option<RetainedCheckpoint> {
        let holds_more =
            |checkpoint: &&RetainedCheckpoint| checkpoint.view.hold.low() < others(checkpoint.view.broker());
        let (_, uid) = self.by_uid.values().filter(holds_more).map(age).min()?;
        self.remove(&uid)
    }

    /// Places that no Trigger has taken, the oldest first.
    pub(super) fn oldest_first(&self) -> Vec<RetainedCheckpoint> {
        let mut checkpoints: Vec<_> = self.by_uid.values().cloned().collect();
        checkpoints.sort_by_cached_key(age);
        checkpoints
    }

    /// UIDs of the checkpoints that no Trigger has taken.
    pub(super) fn uids(&self) -> impl Iterator<Item = &str> {
        self.by_uid.keys().map(String::as_str)
    }

    /// Views that hold events.
    pub(super) fn views(&self) -> impl Iterator<Item = &TriggerView> {
        self.by_uid
            .values()
            .chain(&self.taken)
            .map(|checkpoint| &checkpoint.view)
    }

    /// Number of checkpoints. A Trigger of a broker with several partitions is counted with the first one.
    pub(super) fn count(&self) -> usize {
        let checkpoints = self.by_uid.values();
        let first = checkpoints.filter(|checkpoint| checkpoint.view.log.partition().number == 0);
        first.count()
    }

    fn remove(&mut self, uid: &str) -> Option<RetainedCheckpoint> {
        let checkpoint = self.by_uid.remove(uid)?;
        self.named.remove(&checkpoint.identity());
        if let Some(aged) = self.aged.get_mut(&checkpoint.view.namespace) {
            aged.remove(&age(&checkpoint));
            if aged.is_empty() {
                self.aged.remove(&checkpoint.view.namespace);
            }
        }
        Some(checkpoint)
    }
}

fn age(checkpoint: &RetainedCheckpoint) -> Age {
    (checkpoint.gone_at, checkpoint.view.uid.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        delivery::{Hold, progress::Progress},
        log::{LogName, LogProvider as _, memory::MemoryLogs},
    };

    fn identity(namespace: &str, name: &str) -> Identity {
        Identity {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            broker: format!("{namespace}/default"),
        }
    }

    /// A checkpoint that holds its broker's log from `low` on.
    fn checkpoint(uid: &str, identity: &Identity, gone_at: u64, low: u64) -> RetainedCheckpoint {
        RetainedCheckpoint {
            view: TriggerView {
                uid: uid.to_owned(),
                namespace: identity.namespace.clone(),
                name: identity.name.clone(),
                log: MemoryLogs::default().open(&LogName::Events(identity.broker.as_str().into())),
                stats: Arc::default(),
                hold: Arc::new(Hold::new(
                    Progress::starting_at(Offset(low)).low(),
                    Arc::default(),
                )),
                sink: Arc::default(),
            },
            gone_at: Duration::from_secs(gone_at),
        }
    }

    fn uids<'a>(checkpoints: impl IntoIterator<Item = &'a RetainedCheckpoint>) -> Vec<&'a str> {
        checkpoints
            .into_iter()
            .map(|checkpoint| checkpoint.view.uid.as_str())
            .collect()
    }

    #[test]
    fn a_checkpoint_is_taken_once_by_uid_or_by_name() {
        let (a, b) = (identity("shop", "a"), identity("shop", "b"));
        let mut kept = RetainedCheckpoints::default();
        assert!(kept.retain(checkpoint("1", &a, 0, 7)).is_empty());
        assert!(kept.retain(checkpoint("2", &b, 0, 7)).is_empty());
        assert!(kept.take_named(&identity("other", "a")).is_none());
        let elsewhere = Identity {
            broker: "shop/other".to_owned(),
            ..a.clone()
        };
        assert!(kept.take_named(&elsewhere).is_none(), "another log");
        assert_eq!(kept.take_named(&a).unwrap().view.uid, "1");
        assert!(kept.take_named(&a).is_none() && kept.take("1").is_none());
        assert_eq!(kept.take("2").unwrap().view.uid, "2");
        assert_eq!(kept.count(), 0);
        assert_eq!(kept.views().count(), 2, "still held until they are forgotten");
        kept.forget_taken();
        assert_eq!(kept.views().count(), 0);
    }

    #[test]
    fn only_the_newest_checkpoint_of_a_name_is_retained() {
        let a = identity("shop", "a");
        let mut kept = RetainedCheckpoints::default();
        kept.retain(checkpoint("1", &a, 0, 7));
        assert_eq!(uids(&kept.retain(checkpoint("2", &a, 1, 9))), ["1"]);
        assert_eq!(uids(&kept.remove_named(&a)), ["2"]);
        assert_eq!(kept.count(), 0);
    }

    #[test]
    fn checkpoints_expire() {
        let mut kept = RetainedCheckpoints::default();
        for (uid, gone_at) in [("1", 10), ("2", 20), ("3", 30)] {
            kept.retain(checkpoint(uid, &identity("shop", uid), gone_at, 0));
        }
        let window = Duration::from_secs(60);
        let mut expired = |now| {
            let checkpoints = kept.expire(Duration::from_secs(now), window);
            uids(&checkpoints).join(" ")
        };
        assert_eq!(expired(69), "");
        assert_eq!(expired(80), "1 2");
        assert_eq!(expired(5), "", "the time never goes back");
        assert_eq!(expired(90), "3");
    }

    #[test]
    fn discards_the_oldest_checkpoint_that_alone_holds_events() {
        let mut kept = RetainedCheckpoints::default();
        for (uid, gone_at, low) in [("needless", 1, 100), ("old", 2, 50), ("new", 3, 10)] {
            kept.retain(checkpoint(uid, &identity("shop", uid), gone_at, low));
        }
        kept.retain(checkpoint("elsewhere", &identity("bank", "x"), 4, 50));
        kept.retain(checkpoint("taken", &identity("shop", "taken"), 0, 0));
        kept.take("taken");
        let others = |broker: &BrokerName| Offset(if broker.as_str() == "shop/default" { 100 } else { 0 });
        let mut discarded = Vec::new();
        while let Some(checkpoint) = kept.discard_for_room(others) {
            discarded.push(checkpoint.view.uid);
        }
        assert_eq!(discarded, ["old", "new"]);
    }

    #[test]
    fn the_namespace_with_the_most_checkpoints_loses_its_oldest() {
        let mut kept = RetainedCheckpoints::default();
        kept.retain(checkpoint("neighbour", &identity("bank", "x"), 0, 0));
        let mut discarded = Vec::new();
        for number in 0..MAX_CHECKPOINTS as u64 + 1 {
            let uid = number.to_string();
            discarded.extend(kept.retain(checkpoint(&uid, &identity("shop", &uid), number, 0)));
        }
        assert_eq!(uids(&discarded), ["0", "1"]);
        assert_eq!(kept.count(), MAX_CHECKPOINTS);
        assert!(kept.take("neighbour").is_some());
    }

    #[test]
    fn stored_records_are_decoded() {
        let record = OwnerRecord::gone(identity("shop", "a"), Duration::from_millis(61_900));
        let (key, value) = record.change("u");
        assert_eq!(key, CheckpointKey::Identity("u".to_owned()));
        assert_eq!(OwnerRecord::read(&value.unwrap()), Some(record));
        let now = Instant::now();
        let time = RunningTime::new(Duration::from_secs(5), now);
        let (key, value) = time.change(now + Duration::from_millis(2_500));
        assert_eq!(key, CheckpointKey::RunningTime);
        assert_eq!(RunningTime::read(&value.unwrap()), Duration::from_secs(7));
        let keys = [
            CheckpointKey::Trigger("u".into()),
            CheckpointKey::Identity("u".into()),
        ];
        assert_eq!(removal("u"), keys.map(|key| (key, None)));
        for other in [
            r#"{"version":2,"namespace":"n","name":"a","broker":"n/b"}"#,
            "nothing",
        ] {
            assert_eq!(OwnerRecord::read(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn an_explicit_start_overrides_a_retained_checkpoint() {
        for (start, is_set, anew) in [
            (json!("Latest"), None, false),
            (json!("Latest"), Some(false), false),
            (json!("Latest"), Some(true), true),
            (json!("Earliest"), None, true),
            (json!({"At": "2026-01-01T00:00:00Z"}), None, true),
        ] {
            let mut trigger = json!({
                "uid": "u", "namespace": "shop", "name": "t", "generation": 1, "broker": "default", "filters": [],
                "destination": null, "delivery": {}, "start": start, "suspend": false,
            });
            if let Some(is_set) = is_set {
                trigger["startIsSet"] = is_set.into();
            }
            let trigger: Trigger = serde_json::from_value(trigger).unwrap();
            assert_eq!(has_explicit_start(&trigger), anew, "{start} {is_set:?}");
        }
    }

    proptest! {
        /// Each checkpoint is still retained, taken or discarded: never lost and never duplicated.
        #[test]
        fn each_checkpoint_ends_once(steps in prop::collection::vec((0_u8..6, 0_u64..8, 0_u64..4), 0..100)) {
            let (mut kept, mut next, mut ends) = (RetainedCheckpoints::default(), 0_usize, Vec::new());
            for (now, (step, which, name)) in steps.into_iter().enumerate() {
                let identity = identity(if name < 2 { "shop" } else { "bank" }, &name.to_string());
                let gone_at = now as u64;
                match step {
                    0 | 1 => {
                        ends.extend(kept.retain(checkpoint(&next.to_string(), &identity, gone_at, which)));
                        next += 1;
                    }
                    2 => ends.extend(kept.take_named(&identity)),
                    3 => ends.extend(kept.take(&which.to_string())),
                    4 => ends.extend(kept.expire(Duration::from_secs(gone_at), Duration::from_secs(which))),
                    _ => ends.extend(kept.discard_for_room(|_| Offset(4))),
                }
                let mut all: Vec<usize> = uids(&ends).into_iter().chain(kept.uids()).map(|uid| uid.parse().unwrap()).collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..next).collect::<Vec<_>>());
                prop_assert_eq!(kept.named.len(), kept.count());
                prop_assert_eq!(kept.aged.values().map(BTreeSet::len).sum::<usize>(), kept.count());
            }
        }
    }
}
