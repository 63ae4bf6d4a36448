//! Tracks the connected routers, what each has applied, and what it reports on Sinks and Sources. Pure: time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    sinks_seen::{self, BrokerSeen, FiltersSeen, Heard, QuotaSeen, ReportingRouter, SinkSeen, UsageSeen},
    sources_seen::{self, SourceSeen},
};
use crate::{
    resolve::fingerprint,
    routing::{
        Configuration, Revision,
        protocol::{POLL_TIMEOUT, SinkReport},
    },
};

/// Time to wait after the start for routers known to the previous controller, or for a first router if there were
/// none. A router connected to a controller whose node died notices after the poll timeout plus its own patience
/// (10 s), and then has to find this controller.
const AWAITED_AT_START: Duration = POLL_TIMEOUT.saturating_add(Duration::from_secs(20));

/// A router that has not polled for this long is gone. Between two polls it takes milliseconds.
const GONE_AFTER: Duration = Duration::from_secs(15);

/// Number of published configurations to remember, to know what a lagging router has applied.
const HISTORY: usize = 16;

/// The controller's view of its routers.
#[derive(Debug, Default)]
pub(super) struct Routers {
    known: BTreeMap<String, PollingRouter>,
    /// Routers known to the previous controller that have not polled yet.
    awaited: BTreeSet<String>,
    /// Whether any router has polled.
    heard: bool,
    /// Time of the first publication.
    first_published: Option<Instant>,
    /// Oldest first.
    published: VecDeque<Published>,
}

#[derive(Debug)]
struct PollingRouter {
    revision: Revision,
    /// Pending polls. A restarted router may overlap with its former self.
    asking: usize,
    seen: Instant,
    /// Its last report on Sinks, dropped with the router.
    heard: Option<Heard>,
}

#[derive(Debug)]
struct Published {
    revision: Revision,
    /// Fingerprint of each Broker, Trigger and Source, by UID.
    entries: HashMap<String, u64>,
}

/// Outcome of a router's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportOutcome {
    /// It differs from the previous one.
    News,
    /// It equals the previous one.
    Known,
    /// The router has not polled yet, or nothing is published.
    TooEarly,
}

/// Progress of applying a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// The controller has just started, and these routers (or any router) have not polled yet, or not since the
    /// publication. The state known before still holds.
    Awaited(Vec<String>),
    /// There is no router.
    NoRouter,
    /// These routers have not applied its current version.
    Not(Vec<String>),
    /// Every router has applied it.
    Everywhere,
}

/// A router's progress with a resource.
enum Has {
    Newest,
    Older,
    /// Applied a revision that this controller did not publish, presumably from the previous controller.
    Unknown,
}

impl Routers {
    /// Starts with the names of the routers known to the previous controller.
    pub(super) fn awaiting(names: BTreeSet<String>) -> Self {
        Self {
            awaited: names,
            ..Self::default()
        }
    }

    /// Returns the names of connected and awaited routers.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.known.keys().chain(&self.awaited).cloned().collect()
    }

    /// Records a router's poll and the revision it has applied. Returns whether that is news.
    pub(super) fn asks(&mut self, name: &str, revision: &Revision, now: Instant) -> bool {
        self.heard = true;
        self.awaited.remove(name);
        match self.known.get_mut(name) {
            Some(router) => {
                let news = router.revision != *revision;
                router.revision = revision.clone();
                router.asking += 1;
                router.seen = now;
                news
            }
            None => {
                let router = PollingRouter {
                    revision: revision.clone(),
                    asking: 1,
                    seen: now,
                    heard: None,
                };
                self.known.insert(name.to_owned(), router);
                true
            }
        }
    }

    /// Records that a router's poll was answered, or its connection broke.
    pub(super) fn asked(&mut self, name: &str, now: Instant) {
        if let Some(router) = self.known.get_mut(name) {
            router.asking = router.asking.saturating_sub(1);
            router.seen = now;
        }
    }

    /// Records a router's report on its Triggers' Sinks.
    pub(super) fn tells(&mut self, name: &str, report: SinkReport) -> ReportOutcome {
        let (Some(router), Some(published)) = (self.known.get_mut(name), self.published.back()) else {
            return ReportOutcome::TooEarly;
        };
        let heard = Heard::from_report(report, |uid| published.entries.contains_key(uid));
        if router.heard.as_ref() == Some(&heard) {
            return ReportOutcome::Known;
        }
        router.heard = Some(heard);
        ReportOutcome::News
    }

    /// Returns the routers' combined view of a Trigger's Sink.
    pub(super) fn sink(&self, uid: &str) -> SinkSeen {
        sinks_seen::seen(self.reporting(uid), uid)
    }

    /// Returns the routers' combined view of a Source.
    pub(super) fn source(&self, uid: &str) -> SourceSeen {
        sources_seen::seen(self.reporting(uid), uid)
    }

    /// Returns the routers with their last reports, on one resource.
    fn reporting<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = ReportingRouter<'a>> + Clone {
        self.known.iter().map(move |(name, router)| {
            let heard = router.heard.as_ref();
            // Not by what the router has acknowledged: its last report may be from before that.
            let is_current =
                heard.is_some_and(|heard| matches!(self.has(heard.revision(), uid), Has::Newest));
            ReportingRouter {
                name,
                heard,
                is_current,
            }
        })
    }

    /// Returns the routers' combined view of the filters of this generation of a Trigger.
    pub(super) fn filters(&self, uid: &str, generation: i64) -> FiltersSeen<'_> {
        let told = || {
            let known = self.known.iter();
            known.filter_map(|(name, router)| Some((name.as_str(), router.heard.as_ref()?)))
        };
        FiltersSeen {
            error: told().find_map(|(_, heard)| heard.filter_error(uid)),
            set_aside_by: told()
                .filter(|(_, heard)| heard.is_set_aside(uid, generation))
                .map(|(name, _)| name)
                .collect(),
        }
    }

    /// Whether a router reports that the Trigger resumed from its own position or that of a deleted Trigger with
    /// its name.
    pub(super) fn has_resumed(&self, uid: &str) -> bool {
        let mut heard = self.known.values().filter_map(|router| router.heard.as_ref());
        heard.any(|heard| heard.has_resumed(uid))
    }

    /// Returns the routers' combined view of a Broker's broker.
    pub(super) fn broker(&self, uid: &str) -> BrokerSeen<'_> {
        BrokerSeen {
            other_partitions: self.other_partitions(uid),
            quota: self.quota(uid),
            usage: self.usage(uid),
        }
    }

    /// Returns what a Broker's broker holds in the logs of all routers.
    fn usage(&self, uid: &str) -> Option<UsageSeen> {
        let heard = self.known.values().filter_map(|router| router.heard.as_ref());
        let mut told = heard.filter_map(|heard| heard.usage(uid));
        let first = UsageSeen::default().and(told.next()?);
        Some(told.fold(first, UsageSeen::and))
    }

    /// Returns the number of partitions that a Broker's broker has, if it is not the one that the Broker says.
    fn other_partitions(&self, uid: &str) -> Option<u16> {
        let heard = self.known.values().filter_map(|router| router.heard.as_ref());
        let mut current = heard.filter(|heard| matches!(self.has(heard.revision(), uid), Has::Newest));
        current.find_map(|heard| heard.other_partitions(uid))
    }

    /// Returns whether a router rejects events for a Broker's broker because of a quota.
    fn quota(&self, uid: &str) -> QuotaSeen<'_> {
        let mut seen = QuotaSeen::Unknown;
        for (router, known) in &self.known {
            let Some(heard) = &known.heard else { continue };
            if let Some(over) = heard.over_quota(uid) {
                return QuotaSeen::UsedUp { router, over };
            }
            seen = QuotaSeen::Within;
        }
        seen
    }

    /// Removes a router that ends, so that nobody waits for it. Returns whether it was removed: the last router stays
    /// until it is gone, since its successor may be about to start.
    pub(super) fn leaves(&mut self, name: &str) -> bool {
        let is_last = self.known.keys().all(|known| known == name);
        if is_last {
            return false;
        }
        let was_awaited = self.awaited.remove(name);
        self.known.remove(name).is_some() || was_awaited
    }

    /// Removes routers that are gone, and returns their names.
    pub(super) fn forget_gone(&mut self, now: Instant) -> Vec<String> {
        let gone: Vec<String> = self
            .known
            .iter()
            .filter(|(_, router)| router.asking == 0 && now.duration_since(router.seen) > GONE_AFTER)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.known.remove(name);
        }
        if !self.is_beginning(now) {
            self.awaited.clear();
        }
        gone
    }

    /// Records a newly published configuration.
    pub(super) fn publish(&mut self, configuration: &Configuration, now: Instant) {
        self.first_published.get_or_insert(now);
        let Configuration {
            revision,
            namespaces: _,
            brokers: _,
            policies,
            quota: _,
            deduplication: _,
            triggers,
            sources,
            authorities: _,
            unread: _,
            producers: _,
            closed: _,
            undecodable: _,
        } = configuration;
        let triggers = triggers
            .iter()
            .map(|trigger| (trigger.uid.clone(), fingerprint(trigger)));
        let sources = sources
            .iter()
            .map(|source| (source.uid.clone(), fingerprint(source)));
        let policies = policies
            .iter()
            .map(|policy| (policy.uid.clone(), fingerprint(policy)));
        let entries = triggers.chain(sources).chain(policies).collect();
        self.published.retain(|published| published.revision != *revision);
        self.published.push_back(Published {
            revision: revision.clone(),
            entries,
        });
        if self.published.len() > HISTORY {
            self.published.pop_front();
        }
    }

    /// Returns whether every router has applied the resource as last published.
    pub(super) fn applied(&self, uid: &str, now: Instant) -> Applied {
        let is_beginning = self.is_beginning(now);
        let mut behind = Vec::new();
        let mut awaited = if is_beginning {
            self.awaited.iter().cloned().collect()
        } else {
            Vec::new()
        };
        for (name, router) in &self.known {
            let cannot_decode = router
                .heard
                .as_ref()
                .is_some_and(|heard| heard.cannot_decode(uid));
            match self.has(&router.revision, uid) {
                // It acknowledged the revision, but left the resource out.
                _ if cannot_decode => behind.push(name.clone()),
                Has::Newest => {}
                Has::Unknown if is_beginning => awaited.push(name.clone()),
                Has::Older | Has::Unknown => behind.push(name.clone()),
            }
        }
        if !behind.is_empty() {
            behind.append(&mut awaited);
            Applied::Not(behind)
        } else if !awaited.is_empty() || (is_beginning && !self.heard) {
            Applied::Awaited(awaited)
        } else if self.known.is_empty() {
            Applied::NoRouter
        } else {
            Applied::Everywhere
        }
    }

    fn has(&self, revision: &Revision, uid: &str) -> Has {
        let of = |published: &Published| published.entries.get(uid).copied();
        let wanted = self.published.back().and_then(of);
        let published = self
            .published
            .iter()
            .find(|published| published.revision == *revision);
        match published {
            Some(published) if wanted.is_some() && of(published) == wanted => Has::Newest,
            None if *revision != Revision::default() => Has::Unknown,
            _ => Has::Older,
        }
    }

    /// Whether routers have not yet had time to find this controller.
    fn is_beginning(&self, now: Instant) -> bool {
        self.first_published
            .is_none_or(|since| now.duration_since(since) <= AWAITED_AT_START)
    }

    /// Returns the number of routers.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{Delivery, Start, Trigger, protocol::SinkOutage};

    fn configuration(revision: &str, triggers: &[(&str, i64)]) -> Configuration {
        let trigger = |(uid, generation): &(&str, i64)| Trigger {
            uid: (*uid).to_owned(),
            namespace: "n".into(),
            name: (*uid).to_owned(),
            generation: *generation,
            broker: "default".into(),
            filters: vec![],
            destination: None,
            delivery: Delivery::default(),
            start: Start::Latest,
            transform: None,
            start_is_set: false,
            suspend: false,
            refused: None,
        };
        Configuration {
            revision: Revision(revision.into()),
            triggers: triggers.iter().map(trigger).collect(),
            ..Configuration::default()
        }
    }

    fn revision(text: &str) -> Revision {
        Revision(text.to_owned())
    }

    #[test]
    fn trigger_is_applied_when_every_router_has_its_current_version() {
        let now = Instant::now();
        let mut routers = Routers::default();
        routers.publish(&configuration("1", &[("a", 1)]), now);
        assert_eq!(routers.applied("a", now), Applied::Awaited(vec![]));
        assert!(routers.asks("r1", &revision(""), now));
        assert_eq!(routers.applied("a", now), Applied::Not(vec!["r1".into()]));
        assert!(routers.asks("r1", &revision("1"), now));
        assert!(!routers.asks("r1", &revision("1"), now), "nothing new");
        assert_eq!(routers.applied("a", now), Applied::Everywhere);

        routers.asks("r2", &revision(""), now);
        assert_eq!(routers.applied("a", now), Applied::Not(vec!["r2".into()]));
        routers.publish(&configuration("2", &[("a", 1), ("b", 1)]), now);
        routers.asks("r2", &revision("2"), now);
        assert_eq!(
            routers.applied("a", now),
            Applied::Everywhere,
            "r1 lags behind, but a is the same there"
        );
        assert_eq!(routers.applied("b", now), Applied::Not(vec!["r1".into()]));
        routers.publish(&configuration("3", &[("a", 2)]), now);
        assert_eq!(
            routers.applied("a", now),
            Applied::Not(vec!["r1".into(), "r2".into()])
        );
    }

    #[test]
    fn router_is_gone_some_time_after_its_last_poll_ended() {
        let now = Instant::now();
        let mut routers = Routers::default();
        routers.asks("r", &revision("1"), now);
        assert!(
            routers.forget_gone(now + GONE_AFTER * 10).is_empty(),
            "it waits for an answer"
        );
        routers.asked("r", now);
        assert!(routers.forget_gone(now + GONE_AFTER).is_empty());
        assert_eq!(
            routers.forget_gone(now + GONE_AFTER + Duration::from_secs(1)),
            ["r"]
        );
        assert_eq!(routers.count(), 0);
        assert_eq!(
            routers.applied("a", now),
            Applied::NoRouter,
            "not awaited any more"
        );
    }

    #[test]
    fn router_that_leaves_is_not_waited_for_unless_it_is_the_last() {
        let now = Instant::now();
        let mut routers = Routers::awaiting(["r1".to_owned(), "r2".to_owned(), "r3".to_owned()].into());
        routers.publish(&configuration("1", &[("a", 1)]), now);
        assert!(!routers.leaves("r1"), "no other has polled");
        routers.asks("r1", &revision("1"), now);
        routers.asks("r2", &revision(""), now);
        assert_eq!(
            routers.applied("a", now),
            Applied::Not(vec!["r2".into(), "r3".into()])
        );
        assert!(routers.leaves("r2") && routers.leaves("r3"));
        assert!(!routers.leaves("r2"), "unknown");
        routers.asked("r2", now);
        assert_eq!(routers.applied("a", now), Applied::Everywhere);
        assert!(!routers.leaves("r1"));
        assert_eq!(routers.names(), ["r1".to_owned()].into());
    }

    #[test]
    fn waits_for_routers_after_the_start() {
        let now = Instant::now();
        let mut routers = Routers::default();
        let published = now + Duration::from_secs(3600);
        assert_eq!(
            routers.applied("a", published),
            Applied::Awaited(vec![]),
            "there is nothing to ask for"
        );
        routers.publish(&configuration("1", &[("a", 1)]), published);
        let last = published + AWAITED_AT_START;
        routers.publish(&configuration("2", &[("a", 1)]), last);
        assert_eq!(routers.applied("a", last), Applied::Awaited(vec![]));
        let later = last + Duration::from_secs(1);
        assert_eq!(routers.applied("a", later), Applied::NoRouter);
    }

    #[test]
    fn waits_for_each_router_known_to_the_previous_controller() {
        let now = Instant::now();
        let mut routers = Routers::awaiting(["r1".to_owned(), "r2".to_owned()].into());
        let awaited = |names: &[&str]| Applied::Awaited(names.iter().map(|&name| name.into()).collect());
        routers.publish(&configuration("1", &[("a", 1)]), now);
        assert_eq!(routers.applied("a", now), awaited(&["r1", "r2"]));
        routers.asks("r1", &revision("1"), now);
        assert_eq!(routers.applied("a", now), awaited(&["r2"]));
        routers.publish(&configuration("2", &[("a", 2)]), now);
        assert_eq!(
            routers.applied("a", now),
            Applied::Not(vec!["r1".into(), "r2".into()]),
            "nobody has what is new"
        );
        routers.asks("r1", &revision("2"), now);
        routers.asks("r2", &revision("of the controller before"), now);
        assert_eq!(routers.applied("a", now), awaited(&["r2"]));
        routers.asks("r2", &revision("2"), now);
        assert_eq!(routers.applied("a", now), Applied::Everywhere);
        assert_eq!(routers.names(), ["r1".to_owned(), "r2".to_owned()].into());
    }

    #[test]
    fn stops_waiting_for_missing_routers() {
        let now = Instant::now();
        let mut routers = Routers::awaiting(["gone".to_owned()].into());
        routers.publish(&configuration("1", &[("a", 1)]), now);
        routers.asks("r", &revision("1"), now);
        routers.asks("stuck", &revision("of the controller before"), now);
        assert_eq!(
            routers.applied("a", now),
            Applied::Awaited(vec!["gone".into(), "stuck".into()])
        );
        let later = now + AWAITED_AT_START + Duration::from_secs(1);
        assert_eq!(routers.applied("a", later), Applied::Not(vec!["stuck".into()]));
        routers.forget_gone(later);
        assert_eq!(routers.names(), ["r".to_owned(), "stuck".to_owned()].into());
    }

    #[test]
    fn what_a_router_cannot_decode_is_not_applied() {
        let now = Instant::now();
        let mut routers = Routers::default();
        routers.publish(&configuration("1", &[("a", 1), ("b", 1)]), now);
        routers.asks("r1", &revision("1"), now);
        let report = |uids: &[&str]| SinkReport {
            undecodable: uids.iter().map(|&uid| uid.to_owned()).collect(),
            ..SinkReport::default()
        };
        assert!(matches!(routers.tells("r1", report(&["a"])), ReportOutcome::News));
        assert_eq!(routers.applied("a", now), Applied::Not(vec!["r1".into()]));
        assert_eq!(routers.applied("b", now), Applied::Everywhere);
        routers.tells("r1", report(&[]));
        assert_eq!(routers.applied("a", now), Applied::Everywhere);
    }

    #[test]
    fn a_sink_answers_only_by_a_report_about_the_present_trigger() {
        let now = Instant::now();
        let mut routers = Routers::default();
        let report = |text: &str| SinkReport {
            revision: revision(text),
            ..SinkReport::default()
        };
        routers.publish(&configuration("1", &[("a", 1)]), now);
        routers.asks("r", &revision(""), now);
        routers.tells("r", report(""));
        assert_eq!(routers.sink("a"), SinkSeen::Unsure, "it has no configuration");
        routers.asks("r", &revision("1"), now);
        assert_eq!(routers.applied("a", now), Applied::Everywhere);
        assert_eq!(routers.sink("a"), SinkSeen::Unsure, "the report is from before");
        routers.tells("r", report("1"));
        assert_eq!(routers.sink("a"), SinkSeen::Answering);
        routers.publish(&configuration("2", &[("a", 2), ("b", 1)]), now);
        routers.asks("r", &revision("2"), now);
        for uid in ["a", "b"] {
            assert_eq!(routers.sink(uid), SinkSeen::Unsure, "the report is older");
        }
        routers.tells("r", report("2"));
        for uid in ["a", "b"] {
            assert_eq!(routers.sink(uid), SinkSeen::Answering);
        }
    }

    #[test]
    fn report_replaces_the_previous_one_and_is_dropped_with_the_router() {
        let down = |uids: &[&str]| SinkReport {
            down: uids
                .iter()
                .map(|uid| SinkOutage {
                    uid: (*uid).to_owned(),
                    since: "2026-01-01T00:00:00Z".parse().unwrap(),
                    detail: "503".into(),
                })
                .collect(),
            ..SinkReport::default()
        };
        let is_down = |routers: &Routers, uid: &str| matches!(routers.sink(uid), SinkSeen::Down { .. });
        let now = Instant::now();
        let mut routers = Routers::default();
        assert_eq!(
            routers.tells("r", down(&["a"])),
            ReportOutcome::TooEarly,
            "who is it"
        );
        routers.asks("r", &revision(""), now);
        assert_eq!(
            routers.tells("r", down(&["a"])),
            ReportOutcome::TooEarly,
            "nothing is published"
        );
        routers.publish(&configuration("1", &[("a", 1), ("b", 1)]), now);
        assert_eq!(routers.sink("a"), SinkSeen::Unsure, "it has told nothing");
        assert_eq!(routers.tells("r", down(&["a", "unknown"])), ReportOutcome::News);
        assert_eq!(
            routers.tells("r", down(&["a"])),
            ReportOutcome::Known,
            "what is unknown is ignored"
        );
        assert!(is_down(&routers, "a") && !is_down(&routers, "b") && !is_down(&routers, "unknown"));
        assert_eq!(routers.tells("r", down(&["b"])), ReportOutcome::News);
        assert!(!is_down(&routers, "a") && is_down(&routers, "b"));

        routers.asks("r2", &revision("1"), now);
        routers.asked("r", now);
        routers.forget_gone(now + GONE_AFTER * 2);
        assert_eq!(
            routers.sink("b"),
            SinkSeen::Unsure,
            "r is gone, and r2 has told nothing"
        );
        routers.asks("r", &revision("1"), now);
        assert!(!is_down(&routers, "b"), "it has to tell anew");
    }
}
