//! Which routers are there, what each has applied, and what it tells of Sinks. Pure: time comes in as an argument.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    compile::fingerprint,
    sinks_seen::{self, FiltersSeen, Heard, SinkSeen},
};
use crate::routing::{
    Configuration, Revision,
    protocol::{POLL_TIMEOUT, SinkReport},
};

/// How long routers are awaited that another controller knew, and the first one if none did. One that asked a
/// controller whose node has died notices after the time of a poll and its own patience (10 s), and then has to find
/// this one.
const AWAITED_AT_START: Duration = POLL_TIMEOUT.saturating_add(Duration::from_secs(20));

/// A router that has not asked for this long is gone; between two requests it takes milliseconds.
const GONE_AFTER: Duration = Duration::from_secs(15);

/// How many published configurations are remembered, to tell what a router that lags behind has applied.
const HISTORY: usize = 16;

/// What the controller knows of its routers.
#[derive(Debug, Default)]
pub(super) struct Routers {
    known: BTreeMap<String, Router>,
    /// Those that the controller before this one knew, and that have not asked yet.
    awaited: BTreeSet<String>,
    /// Whether a router has ever asked.
    heard: bool,
    /// Since when there is something to ask for.
    first_published: Option<Instant>,
    /// Newest last.
    published: VecDeque<Published>,
}

#[derive(Debug)]
struct Router {
    revision: Revision,
    /// Requests that wait for an answer; a restarted router may overlap with itself.
    asking: usize,
    seen: Instant,
    /// What it told of Sinks last; forgotten with it.
    heard: Option<Heard>,
}

#[derive(Debug)]
struct Published {
    revision: Revision,
    /// By UID, what each Trigger and Source was.
    entries: HashMap<String, u64>,
}

/// What became of a router's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It says something new.
    News,
    /// It says what the one before said.
    Known,
    /// The router has not asked for the configuration, or there is none yet.
    TooEarly,
}

/// How far a resource has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// The controller has just begun, and these routers, or whichever there are, have not asked it yet, or not since they
    /// were given what it published: what was known of them before still holds.
    Awaited(Vec<String>),
    /// No router is there to apply it.
    NoRouter,
    /// These routers have not applied it as it is now.
    Not(Vec<String>),
    /// All routers that are there have.
    Everywhere,
}

/// How far one router has come with a resource.
enum Has {
    Newest,
    Older,
    /// It has what this controller did not publish: what another one did, as far as it can be known.
    Unknown,
}

impl Routers {
    /// Begins with the names of those that another controller knew.
    pub(super) fn awaiting(names: BTreeSet<String>) -> Self {
        Self {
            awaited: names,
            ..Self::default()
        }
    }

    /// The names of those that are there, or awaited.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.known.keys().chain(&self.awaited).cloned().collect()
    }

    /// A router asks, and so says which revision it has applied. Tells whether that is news.
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
                let router = Router {
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

    /// A router's request was answered, or its connection broke.
    pub(super) fn asked(&mut self, name: &str, now: Instant) {
        if let Some(router) = self.known.get_mut(name) {
            router.asking = router.asking.saturating_sub(1);
            router.seen = now;
        }
    }

    /// A router tells of its Triggers' Sinks.
    pub(super) fn tells(&mut self, name: &str, report: SinkReport) -> Taken {
        let (Some(router), Some(published)) = (self.known.get_mut(name), self.published.back()) else {
            return Taken::TooEarly;
        };
        let heard = Heard::from_report(report, |uid| published.entries.contains_key(uid));
        if router.heard.as_ref() == Some(&heard) {
            return Taken::Known;
        }
        router.heard = Some(heard);
        Taken::News
    }

    /// How a Trigger's Sink looks from the routers that are there.
    pub(super) fn sink(&self, uid: &str) -> SinkSeen {
        let told = self
            .known
            .iter()
            .map(|(name, router)| (name.as_str(), router.heard.as_ref()));
        sinks_seen::seen(told, uid)
    }

    /// How the filters of a Trigger of this generation look from the routers that are there.
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

    /// Whether some router tells that the Trigger went on where it, or a deleted one of its name, had been.
    pub(super) fn has_resumed(&self, uid: &str) -> bool {
        let mut heard = self.known.values().filter_map(|router| router.heard.as_ref());
        heard.any(|heard| heard.has_resumed(uid))
    }

    /// Forgets routers that are gone, and names them.
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

    /// This is what routers are given from now on.
    pub(super) fn publish(&mut self, configuration: &Configuration, now: Instant) {
        self.first_published.get_or_insert(now);
        let Configuration {
            revision,
            namespaces: _,
            triggers,
            sources,
            authorities: _,
            unread: _,
        } = configuration;
        let triggers = triggers
            .iter()
            .map(|trigger| (trigger.uid.clone(), fingerprint(trigger)));
        let sources = sources
            .iter()
            .map(|source| (source.uid.clone(), fingerprint(source)));
        let entries = triggers.chain(sources).collect();
        self.published.retain(|published| published.revision != *revision);
        self.published.push_back(Published {
            revision: revision.clone(),
            entries,
        });
        if self.published.len() > HISTORY {
            self.published.pop_front();
        }
    }

    /// Whether every router that is there has the resource as it was last published.
    pub(super) fn applied(&self, uid: &str, now: Instant) -> Applied {
        let is_beginning = self.is_beginning(now);
        let mut behind = Vec::new();
        let mut awaited = if is_beginning {
            self.awaited.iter().cloned().collect()
        } else {
            Vec::new()
        };
        for (name, router) in &self.known {
            match self.has(&router.revision, uid) {
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

    /// Whether there was not yet time for all routers to find this controller.
    fn is_beginning(&self, now: Instant) -> bool {
        self.first_published
            .is_none_or(|since| now.duration_since(since) <= AWAITED_AT_START)
    }

    /// How many routers are there.
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
    fn a_trigger_is_applied_when_every_router_has_it_as_it_is() {
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
    fn a_router_is_gone_some_time_after_its_last_request_ended() {
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
    fn routers_are_awaited_for_a_while_after_the_start() {
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
    fn routers_that_another_controller_knew_are_awaited_one_by_one() {
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
    fn no_router_is_awaited_for_ever() {
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
    fn what_a_router_tells_of_sinks_replaces_what_it_told_and_is_forgotten_with_it() {
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
        assert_eq!(routers.tells("r", down(&["a"])), Taken::TooEarly, "who is it");
        routers.asks("r", &revision(""), now);
        assert_eq!(
            routers.tells("r", down(&["a"])),
            Taken::TooEarly,
            "nothing is published"
        );
        routers.publish(&configuration("1", &[("a", 1), ("b", 1)]), now);
        assert_eq!(routers.sink("a"), SinkSeen::Unsure, "it has told nothing");
        assert_eq!(routers.tells("r", down(&["a", "unknown"])), Taken::News);
        assert_eq!(
            routers.tells("r", down(&["a"])),
            Taken::Known,
            "what is unknown is ignored"
        );
        assert!(is_down(&routers, "a") && !is_down(&routers, "b") && !is_down(&routers, "unknown"));
        assert_eq!(routers.tells("r", down(&["b"])), Taken::News);
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
