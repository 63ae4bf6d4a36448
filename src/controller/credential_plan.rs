//! Schedules the reads of the Secrets and the requests for tokens that resources reference; here, both are credentials that
//! are read. Pure: time is an argument.
//!
//! Namespaces take turns, so that one that references many credentials delays another by no more than a turn.
//! Credentials that were unusable at the last read wait in a separate queue with a slower pace, so that references to
//! missing ones do not delay others. Those that were never read are not paced: until then, a new leader knows nothing
//! about their resources.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
    time::{Duration, Instant},
};

use crate::resolve::{Naming, SecretName, TokenName};

/// Delay before a credential is read again after a read without a response.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Initial delay before an unusable credential is read again, since somebody may be about to fix it. The delay doubles
/// up to the maximum, which bounds the wait after a late fix.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Minimum time between the starts of two reads: 100 per second.
const PACE: Duration = Duration::from_millis(10);

/// The same for credentials that were unusable at the last read: 20 per second. Each read may be a line in an audit
/// log.
const PACE_OF_MISSING: Duration = Duration::from_millis(50);

/// Outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    /// Every referenced key exists.
    Serves {
        /// Delay before the next read.
        again: Duration,
    },
    /// Something is missing or may not be read.
    Missing {
        /// Whether the outcome differs from the previous one.
        is_news: bool,
    },
    /// No response.
    Failed,
}

/// Name of a credential.
pub(super) trait PlanKey: Clone + Ord {
    /// The namespace whose turn a read takes.
    fn namespace(&self) -> &str;

    /// The name in the namespace.
    fn name(&self) -> &str;
}

impl PlanKey for SecretName {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl PlanKey for TokenName {
    fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self) -> &str {
        &self.account
    }
}

/// The referenced credentials of a kind, and when each is read next.
pub(super) struct Plan<K> {
    entries: BTreeMap<K, PlannedCredential>,
    /// Never read.
    new: CredentialQueue<K>,
    /// Usable.
    regular: CredentialQueue<K>,
    /// Unusable at the last read.
    missing: CredentialQueue<K>,
}

struct PlannedCredential {
    naming: Naming,
    /// Time of the next read; `None` while it is being read.
    due: Option<Instant>,
    /// Whether keys were added during the read.
    again: bool,
    last_read: LastRead,
    /// Delay after the next unusable read.
    pause: Duration,
}

/// Outcome of the last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastRead {
    Never,
    Serves,
    Missing,
}

impl<K: PlanKey> Plan<K> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            entries: BTreeMap::new(),
            new: CredentialQueue::new(Duration::ZERO, now),
            regular: CredentialQueue::new(PACE, now),
            missing: CredentialQueue::new(PACE_OF_MISSING, now),
        }
    }

    /// Returns the referenced keys of a credential; `None` if it is not referenced.
    pub(super) fn keys(&self, name: &K) -> Option<&BTreeSet<String>> {
        Some(&self.entries.get(name)?.naming.keys)
    }

    /// Updates the set of referenced credentials.
    pub(super) fn take_over(&mut self, named: &BTreeMap<K, Naming>, now: Instant) {
        let gone = self.entries.keys().filter(|name| !named.contains_key(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
        for (name, naming) in named {
            if self.entries.contains_key(name) {
                self.name(name, naming, now);
            } else {
                self.add(name, naming, now);
            }
        }
    }

    fn add(&mut self, name: &K, naming: &Naming, now: Instant) {
        let entry = PlannedCredential {
            naming: naming.clone(),
            due: Some(now),
            again: false,
            last_read: LastRead::Never,
            pause: FIRST_PAUSE,
        };
        self.entries.insert(name.clone(), entry);
        self.new.insert(now, name.clone());
    }

    fn forget(&mut self, name: &K) {
        let Some(entry) = self.entries.remove(name) else {
            return;
        };
        if let Some(due) = entry.due {
            self.queue(entry.last_read).remove(due, name);
        }
    }

    /// Reads at once what was not looked up yet. Also reads an unusable credential at once if a resource that references
    /// it is new or was edited.
    fn name(&mut self, name: &K, naming: &Naming, now: Instant) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let has_more = !entry.naming.keys.is_superset(&naming.keys);
        let is_missing = entry.last_read == LastRead::Missing;
        let is_edited = is_missing && !entry.naming.referrers.is_superset(&naming.referrers);
        entry.naming.clone_from(naming);
        if is_edited {
            entry.pause = FIRST_PAUSE;
        }
        if !has_more && !is_edited {
            return;
        }
        let last_read = entry.last_read;
        match entry.due {
            None => entry.again |= has_more,
            Some(due) if due > now => {
                entry.due = Some(now);
                let queue = self.queue(last_read);
                queue.remove(due, name);
                queue.insert(now, name.clone());
            }
            Some(_) => {}
        }
    }

    /// Returns the time at which the next read may start; `None` if there is none.
    pub(super) fn next(&self) -> Option<Instant> {
        let next = [self.new.next(), self.regular.next(), self.missing.next()];
        next.into_iter().flatten().min()
    }

    /// Takes a credential to read now, with its keys.
    pub(super) fn begin(&mut self, now: Instant) -> Option<(K, BTreeSet<String>)> {
        let next = self.next().filter(|next| *next <= now);
        // Prefers the queue that has been open longest, so that queues take turns if reads are slower than the
        // paces.
        let queues = [&mut self.new, &mut self.regular, &mut self.missing];
        let mut first = queues
            .into_iter()
            .filter(|queue| next.is_some() && queue.next() == next);
        let name = first.next()?.take(now)?;
        let entry = self.entries.get_mut(&name)?;
        (entry.due, entry.again) = (None, false);
        Some((name, entry.naming.keys.clone()))
    }

    /// Records the outcome of a read.
    pub(super) fn ended(&mut self, name: &K, ended: ReadOutcome, now: Instant) {
        // A credential that was dropped and referenced again in the meantime must be read again.
        let Some(entry) = self.entries.get_mut(name).filter(|entry| entry.due.is_none()) else {
            return;
        };
        let pause = match ended {
            ReadOutcome::Serves { again } => {
                (entry.last_read, entry.pause) = (LastRead::Serves, FIRST_PAUSE);
                again
            }
            ReadOutcome::Missing { is_news } => {
                let pause = if is_news { FIRST_PAUSE } else { entry.pause };
                (entry.last_read, entry.pause) = (LastRead::Missing, (pause * 2).min(LONGEST_PAUSE));
                pause
            }
            ReadOutcome::Failed => AFTER_FAILURE,
        };
        let due = if entry.again { now } else { now + pause };
        entry.due = Some(due);
        let last_read = entry.last_read;
        self.queue(last_read).insert(due, name.clone());
    }

    fn queue(&mut self, last_read: LastRead) -> &mut CredentialQueue<K> {
        match last_read {
            LastRead::Never => &mut self.new,
            LastRead::Serves => &mut self.regular,
            LastRead::Missing => &mut self.missing,
        }
    }
}

/// Credentials ordered by time, and, once due, taken namespace by namespace.
struct CredentialQueue<K> {
    pace: Duration,
    /// Time from which the next may be taken.
    open: Instant,
    waiting: BTreeSet<(Instant, K)>,
    /// By namespace; no set is empty.
    due: BTreeMap<String, BTreeSet<(Instant, K)>>,
    /// Namespace that had the last turn.
    last: String,
}

impl<K: PlanKey> CredentialQueue<K> {
    fn new(pace: Duration, now: Instant) -> Self {
        Self {
            pace,
            open: now,
            waiting: BTreeSet::new(),
            due: BTreeMap::new(),
            last: String::new(),
        }
    }

    fn insert(&mut self, at: Instant, name: K) {
        self.waiting.insert((at, name));
    }

    fn remove(&mut self, at: Instant, name: &K) {
        let item = (at, name.clone());
        if self.waiting.remove(&item) {
            return;
        }
        if let Some(due) = self.due.get_mut(name.namespace()) {
            due.remove(&item);
            if due.is_empty() {
                self.due.remove(name.namespace());
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        if !self.due.is_empty() {
            return Some(self.open);
        }
        self.waiting.first().map(|(at, _)| self.open.max(*at))
    }

    fn take(&mut self, now: Instant) -> Option<K> {
        self.wake(now);
        let after = self
            .due
            .range::<str, _>((Excluded(self.last.as_str()), Unbounded));
        let namespace = after.chain(&self.due).next()?.0.clone();
        let due = self.due.get_mut(&namespace)?;
        let (_, name) = due.pop_first()?;
        if due.is_empty() {
            self.due.remove(&namespace);
        }
        self.open = now + self.pace;
        self.last.clone_from(&namespace);
        Some(name)
    }

    fn wake(&mut self, now: Instant) {
        while self.waiting.first().is_some_and(|(at, _)| *at <= now)
            && let Some((at, name)) = self.waiting.pop_first()
        {
            let due = self.due.entry(name.namespace().to_owned()).or_default();
            due.insert((at, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ_EVERY: Duration = Duration::from_secs(30);
    const SERVES: ReadOutcome = ReadOutcome::Serves { again: READ_EVERY };
    const SAME: ReadOutcome = ReadOutcome::Missing { is_news: false };
    const NEWS: ReadOutcome = ReadOutcome::Missing { is_news: true };

    fn name(namespace: &str, name: &str) -> SecretName {
        SecretName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn naming(keys: &[&str], referrers: &[(&str, i64)]) -> Naming {
        Naming {
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            referrers: referrers
                .iter()
                .map(|&(uid, generation)| (uid.to_owned(), generation))
                .collect(),
        }
    }

    /// Creates a plan with one Secret that was read once, with this outcome.
    fn read_once(ended: ReadOutcome) -> (Plan<SecretName>, SecretName, Instant) {
        let (now, one) = (Instant::now(), name("shop", "one"));
        let mut plan = Plan::new(now);
        plan.take_over(&[(one.clone(), naming(&["a"], &[("u", 1)]))].into(), now);
        assert_eq!(plan.begin(now), Some((one.clone(), naming(&["a"], &[]).keys)));
        plan.ended(&one, ended, now);
        (plan, one, now)
    }

    /// Returns the seconds from `now` until the only Secret is due.
    fn pause(plan: &Plan<SecretName>, now: Instant) -> u64 {
        plan.next().unwrap().duration_since(now).as_secs()
    }

    #[test]
    fn delay_depends_on_the_outcome() {
        for (ends, pauses) in [
            (&[SERVES, SERVES][..], &[30, 30][..]),
            (&[NEWS, SAME, SAME, SAME, SAME], &[10, 20, 40, 60, 60]),
            // News indicates that somebody is working on it.
            (&[NEWS, SAME, SAME, NEWS, SAME], &[10, 20, 40, 10, 20]),
            (&[NEWS, SAME, SAME, SERVES, SAME, SAME], &[10, 20, 40, 30, 10, 20]),
            // Without a response it is not known to have changed.
            (&[NEWS, SAME, ReadOutcome::Failed, SAME], &[10, 20, 30, 40]),
            (&[ReadOutcome::Failed, NEWS], &[30, 10]),
        ] {
            let (mut plan, one, mut now) = read_once(ends[0]);
            let mut found = vec![pause(&plan, now)];
            for end in &ends[1..] {
                now = plan.next().unwrap();
                assert!(plan.begin(now).is_some());
                assert_eq!((plan.begin(now), plan.next()), (None, None));
                plan.ended(&one, *end, now);
                found.push(pause(&plan, now));
            }
            assert_eq!(found, pauses, "{ends:?}");
        }
    }

    #[test]
    fn new_references_are_read_at_once_if_that_can_bring_news() {
        for (ended, after, seconds) in [
            (SERVES, naming(&["a"], &[("u", 1)]), 30),
            (SERVES, naming(&["a"], &[("u", 2), ("v", 1)]), 30),
            (SERVES, naming(&["a", "b"], &[("u", 2)]), 0),
            (SERVES, naming(&[], &[("u", 1)]), 30),
            (NEWS, naming(&["a"], &[("u", 1)]), 10),
            (NEWS, naming(&["a"], &[("u", 2)]), 0),
            (NEWS, naming(&["a"], &[("u", 1), ("v", 1)]), 0),
            (NEWS, naming(&["a"], &[]), 10),
        ] {
            let (mut plan, one, now) = read_once(ended);
            let now = now + Duration::from_secs(1);
            plan.take_over(&[(one.clone(), after.clone())].into(), now);
            assert_eq!(
                pause(&plan, now),
                u64::saturating_sub(seconds, 1),
                "{ended:?} {after:?}"
            );
            assert_eq!(plan.keys(&one), Some(&after.keys));
        }
    }

    #[test]
    fn edited_sink_resets_the_delay() {
        let (mut plan, one, _) = read_once(NEWS);
        let now = plan.next().unwrap();
        plan.begin(now).unwrap();
        plan.ended(&one, SAME, now);
        plan.take_over(&[(one.clone(), naming(&["a"], &[("u", 2)]))].into(), now);
        let now = plan.next().unwrap();
        plan.begin(now).unwrap();
        plan.ended(&one, SAME, now);
        assert_eq!(pause(&plan, now), 10);
    }

    #[test]
    fn handles_changes_during_a_read() {
        let (mut plan, one, now) = read_once(SERVES);
        let later = now + READ_EVERY;
        plan.begin(later).unwrap();
        // A read in flight does not include the new key.
        plan.take_over(&[(one.clone(), naming(&["a", "b"], &[("u", 2)]))].into(), later);
        assert_eq!(plan.next(), None);
        plan.ended(&one, SAME, later);
        assert_eq!(pause(&plan, later), 0);
        // A Secret that was dropped and referenced again is read again, whatever the earlier outcome.
        let later = plan.next().unwrap();
        plan.begin(later).unwrap();
        plan.take_over(&BTreeMap::new(), later);
        assert_eq!((plan.keys(&one), plan.next()), (None, None));
        plan.take_over(&[(one.clone(), naming(&["c"], &[("v", 1)]))].into(), later);
        plan.ended(&one, SERVES, later);
        assert_eq!(pause(&plan, later), 0);
    }

    #[test]
    fn namespaces_take_turns() {
        let now = Instant::now();
        let mut plan = Plan::new(now);
        let names = ["a/1", "a/2", "a/3", "b/1", "c/1", "c/2"].map(|both| {
            let (namespace, secret) = both.split_once('/').unwrap();
            (name(namespace, secret), naming(&[], &[]))
        });
        plan.take_over(&names.into(), now);
        let taken = |plan: &mut Plan<SecretName>| {
            let now = plan.next()?;
            let (SecretName { namespace, name }, _) = plan.begin(now)?;
            Some(format!("{namespace}/{name}"))
        };
        let order: Vec<_> = std::iter::from_fn(|| taken(&mut plan)).collect();
        assert_eq!(order, ["a/1", "b/1", "c/1", "a/2", "c/2", "a/3"]);
    }

    /// Runs for this long with instant reads, where Secrets in namespace `loud` and those named `missing` are
    /// unusable. Returns the reads and their times.
    fn run(plan: &mut Plan<SecretName>, start: Instant, length: Duration) -> Vec<(Duration, SecretName)> {
        let mut read = Vec::<(Duration, SecretName)>::new();
        let mut seen = BTreeSet::new();
        while let Some(now) = plan.next().filter(|now| *now < start + length) {
            let (name, _) = plan.begin(now).unwrap();
            let is_news = seen.insert(name.clone());
            let end = match is_missing(&name) {
                true => ReadOutcome::Missing { is_news },
                false => SERVES,
            };
            plan.ended(&name, end, now);
            read.push((now - start, name));
        }
        read
    }

    fn is_missing(name: &SecretName) -> bool {
        name.namespace == "loud" || name.name == "missing"
    }

    #[test]
    fn thousands_of_missing_secrets_delay_no_other() {
        let start = Instant::now();
        let mut plan = Plan::new(start);
        let loud = (0..5_100).map(|number| name("loud", &number.to_string()));
        let quiet = ["one", "two", "missing"].map(|secret| name("quiet", secret));
        let named = loud.chain(quiet.clone()).map(|name| (name, naming(&["a"], &[])));
        plan.take_over(&named.collect(), start);
        let read = run(&mut plan, start, Duration::from_secs(600));

        let times = |wanted: &SecretName| -> Vec<Duration> {
            let of = read.iter().filter(|(_, name)| name == wanted);
            of.map(|(at, _)| *at).collect()
        };
        let slack = Duration::from_millis(200);
        for (secret, longest) in quiet.iter().zip([READ_EVERY, READ_EVERY, LONGEST_PAUSE]) {
            let times = times(secret);
            assert!(times[0] < slack, "{secret:?}: {times:?}");
            let on_time = times.windows(2).all(|two| two[1] - two[0] < longest + slack);
            assert!(
                on_time && times.last().unwrap().as_secs() >= 540 - 1,
                "{secret:?}: {times:?}"
            );
        }
        // After the first time, unusable ones are read at their own pace.
        let mut seen = BTreeSet::new();
        let again = read
            .iter()
            .filter(|(_, name)| !seen.insert(name) && is_missing(name));
        let again: Vec<_> = again.map(|(at, _)| *at).collect();
        assert!(again.windows(2).all(|two| two[1] - two[0] >= PACE_OF_MISSING));
        assert!(read.windows(2).all(|two| two[1].0 >= two[0].0));
        // Each one gets its turn.
        assert_eq!(seen.len(), 5_103);
        let last = times(&name("loud", "5099"));
        assert!(last.len() >= 2, "{last:?}");
    }

    #[test]
    fn both_queues_take_turns_if_reads_are_slow() {
        let start = Instant::now();
        let mut plan = Plan::new(start);
        let names =
            (0..100).flat_map(|number| ["loud", "shop"].map(|space| name(space, &number.to_string())));
        let named: BTreeMap<_, _> = names.map(|name| (name, naming(&["a"], &[]))).collect();
        plan.take_over(&named, start);
        run(&mut plan, start, Duration::from_secs(2));
        let late = start + Duration::from_secs(100);
        let taken = (0..20).map(|count| plan.begin(late + count * Duration::from_millis(100)));
        let namespaces: Vec<_> = taken.map(|taken| taken.unwrap().0.namespace).collect();
        let loud = namespaces.iter().filter(|namespace| *namespace == "loud").count();
        assert_eq!(loud, 10, "{namespaces:?}");
    }

    proptest! {
        /// At all times each Secret is in exactly one queue at its time, or is being read.
        #[test]
        fn loses_no_secret(steps in prop::collection::vec((0..6_u8, 0..4_usize, 0..40_u64), 1..60)) {
            let all = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")].map(|(space, secret)| name(space, secret));
            let mut now = Instant::now();
            let mut plan = Plan::new(now);
            let mut named = BTreeMap::new();
            let mut generation = 0;
            for (step, which, seconds) in steps {
                now += Duration::from_secs(seconds);
                let name = &all[which];
                match step {
                    0 => drop(named.remove(name)),
                    1 => {
                        generation += 1;
                        let key = generation.to_string();
                        named.insert(name.clone(), naming(&[&key], &[("u", generation)]));
                    }
                    2 => drop(plan.begin(now)),
                    3 => plan.ended(name, SERVES, now),
                    4 => plan.ended(name, SAME, now),
                    _ => plan.ended(name, ReadOutcome::Failed, now),
                }
                plan.take_over(&named, now);
                let queued = |queue: &CredentialQueue<SecretName>| -> BTreeSet<(Instant, SecretName)> {
                    let due = queue.due.values().flatten();
                    due.chain(&queue.waiting).cloned().collect()
                };
                let expected = |last_read| {
                    let of = plan.entries.iter().filter(|(_, entry)| entry.last_read == last_read);
                    of.filter_map(|(name, entry)| Some((entry.due?, name.clone()))).collect::<BTreeSet<_>>()
                };
                prop_assert_eq!(queued(&plan.new), expected(LastRead::Never));
                prop_assert_eq!(queued(&plan.regular), expected(LastRead::Serves));
                prop_assert_eq!(queued(&plan.missing), expected(LastRead::Missing));
                prop_assert!(plan.entries.keys().eq(named.keys()));
            }
        }
    }
}
