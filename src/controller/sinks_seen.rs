//! Combines the routers' reports on their Triggers' Sinks into one view of each. Pure.

use std::collections::{HashMap, HashSet};

use crate::routing::{
    Revision,
    protocol::{BrokerUsage, Detail, OverQuota, SinkOutage, SinkReport, SourceReport},
};

/// A router's last report, by UID of the Trigger.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Heard {
    revision: Revision,
    down: HashMap<String, SinkOutage>,
    unproven: HashSet<String>,
    proven: HashSet<String>,
    filter_errors: HashMap<String, Detail>,
    /// By UID, the generation.
    set_aside: HashMap<String, i64>,
    resumed: HashSet<String>,
    undelivered: HashSet<String>,
    problem: Option<Detail>,
    /// By UID of the Broker, the number of partitions that the broker has instead.
    other_partitions: HashMap<String, u16>,
    /// By UID of the Broker.
    over_quota: HashMap<String, OverQuota>,
    /// By UID of the Broker.
    usage: HashMap<String, BrokerUsage>,
    undecodable: HashSet<String>,
    /// By UID; `None` if the router does not report Sources.
    sources: Option<HashMap<String, SourceReport>>,
    sources_router: Option<String>,
}

impl Heard {
    /// Converts a report, keeping only existing Triggers.
    pub(super) fn from_report(report: SinkReport, is_known: impl Fn(&str) -> bool) -> Self {
        let SinkReport {
            revision,
            down,
            unproven,
            proven,
            filter_errors,
            set_aside,
            resumed,
            undelivered,
            problem,
            other_partitions,
            over_quota,
            usage,
            undecodable,
            sources,
            sources_router,
        } = report;
        Self {
            revision,
            down: down
                .into_iter()
                .filter(|outage| is_known(&outage.uid))
                .map(|outage| (outage.uid.clone(), outage))
                .collect(),
            unproven: unproven.into_iter().filter(|uid| is_known(uid)).collect(),
            proven: proven.into_iter().filter(|uid| is_known(uid)).collect(),
            filter_errors: filter_errors
                .into_iter()
                .filter(|error| is_known(&error.uid))
                .map(|error| (error.uid, error.detail))
                .collect(),
            set_aside: set_aside
                .into_iter()
                .filter(|aside| is_known(&aside.uid))
                .map(|aside| (aside.uid, aside.generation))
                .collect(),
            resumed: resumed.into_iter().filter(|uid| is_known(uid)).collect(),
            undelivered: undelivered.into_iter().filter(|uid| is_known(uid)).collect(),
            problem,
            other_partitions: other_partitions
                .into_iter()
                .filter(|other| is_known(&other.uid))
                .map(|other| (other.uid, other.partitions))
                .collect(),
            over_quota: over_quota
                .into_iter()
                .filter(|over| is_known(&over.uid))
                .map(|over| (over.uid.clone(), over))
                .collect(),
            usage: usage
                .into_iter()
                .filter(|usage| is_known(&usage.uid))
                .map(|usage| (usage.uid.clone(), usage))
                .collect(),
            undecodable: undecodable.into_iter().filter(|uid| is_known(uid)).collect(),
            sources: sources.map(|sources| {
                let known = sources.into_iter().filter(|source| is_known(&source.uid));
                known.map(|source| (source.uid.clone(), source)).collect()
            }),
            sources_router,
        }
    }

    /// Revision that the router routed by; none if it had no configuration yet.
    pub(super) fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Whether the Trigger resumed from its own position or that of a deleted Trigger with its name.
    pub(super) fn has_resumed(&self, uid: &str) -> bool {
        self.resumed.contains(uid)
    }

    /// Whether the router cannot decode this Trigger or Source.
    pub(super) fn cannot_decode(&self, uid: &str) -> bool {
        self.undecodable.contains(uid)
    }

    /// Whether the router reports Sources.
    pub(super) fn reports_sources(&self) -> bool {
        self.sources.is_some()
    }

    /// What the router has seen of a Source, if anything.
    pub(super) fn source(&self, uid: &str) -> Option<&SourceReport> {
        self.sources.as_ref()?.get(uid)
    }

    /// The router to which this one leaves Sources.
    pub(super) fn sources_router(&self) -> Option<&str> {
        self.sources_router.as_deref()
    }

    /// Why the router takes no part in delivery at present, if so.
    pub(super) fn problem(&self) -> Option<&Detail> {
        self.problem.as_ref()
    }

    /// The number of partitions that a Broker's broker has instead of the one that it says.
    pub(super) fn other_partitions(&self, uid: &str) -> Option<u16> {
        self.other_partitions.get(uid).copied()
    }

    /// The quota because of which producers of a Broker's broker are rejected, if they are.
    pub(super) fn over_quota(&self, uid: &str) -> Option<&OverQuota> {
        self.over_quota.get(uid)
    }

    /// What a Broker's broker holds of the router's log.
    pub(super) fn usage(&self, uid: &str) -> Option<&BrokerUsage> {
        self.usage.get(uid)
    }

    /// The last evaluation error of a Trigger's filters.
    pub(super) fn filter_error(&self, uid: &str) -> Option<&Detail> {
        self.filter_errors.get(uid)
    }

    /// Whether this generation of a Trigger is set aside because its filters are too expensive.
    pub(super) fn is_set_aside(&self, uid: &str, generation: i64) -> bool {
        self.set_aside.get(uid) == Some(&generation)
    }
}

/// The routers' combined view of a Trigger's filters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FiltersSeen<'a> {
    /// An evaluation error reported by one of the routers.
    pub(super) error: Option<&'a Detail>,
    /// Routers that no longer evaluate them because they are too expensive.
    pub(super) set_aside_by: Vec<&'a str>,
}

/// The routers' combined view of a Broker's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuotaSeen<'a> {
    /// No router has reported.
    Unknown,
    /// No router rejects events because of it.
    Within,
    /// A router that rejects events, and the quota that is used up there.
    UsedUp { router: &'a str, over: &'a OverQuota },
}

/// The routers' combined view of a Broker's broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BrokerSeen<'a> {
    /// Number of partitions that the broker has, if it is not the one that the Broker says.
    pub(super) other_partitions: Option<u16>,
    pub(super) quota: QuotaSeen<'a>,
    /// What it holds; `None` if no router has told.
    pub(super) usage: Option<UsageSeen>,
}

/// Unsettled events of a broker in the logs of all routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UsageSeen {
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// How full the quota or the share is where it is fullest.
    pub(super) percent: u8,
}

impl UsageSeen {
    /// Adds what a router holds.
    pub(super) fn and(self, usage: &BrokerUsage) -> Self {
        Self {
            events: self.events.saturating_add(usage.events),
            bytes: self.bytes.saturating_add(usage.bytes),
            percent: self.percent.max(usage.percent()),
        }
    }
}

/// The routers' combined view of a Trigger's Sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SinkSeen {
    /// No router sees it down, but not every router can tell.
    Unsure,
    /// No router sees it down.
    Answering,
    /// No router delivers the events at present, with the reason of one that has a problem.
    Undelivered(Option<Detail>),
    /// Number of routers that see it down, and the one that has seen it down longest.
    Down {
        routers: usize,
        of: usize,
        longest: String,
        outage: SinkOutage,
    },
}

/// A router, with its last report.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReportingRouter<'a> {
    pub(super) name: &'a str,
    pub(super) heard: Option<&'a Heard>,
    /// Whether the report is about the Trigger as it is now.
    pub(super) is_current: bool,
}

/// Combines the reports of every router that has sent one, for one Trigger's Sink.
pub(super) fn seen<'a>(routers: impl Iterator<Item = ReportingRouter<'a>> + Clone, uid: &str) -> SinkSeen {
    let of = routers.clone().count();
    let down = routers
        .clone()
        .filter_map(|router| Some((router.name, router.heard?.down.get(uid)?)));
    if let Some((longest, outage)) = down.clone().min_by_key(|(_, outage)| outage.since) {
        return SinkSeen::Down {
            routers: down.count(),
            of,
            longest: longest.to_owned(),
            outage: outage.clone(),
        };
    }
    let undelivered =
        |router: &ReportingRouter<'_>| router.heard.is_some_and(|heard| heard.undelivered.contains(uid));
    if of > 0 && routers.clone().all(|router| undelivered(&router)) {
        let problem = routers.clone().find_map(|router| router.heard?.problem.clone());
        return SinkSeen::Undelivered(problem);
    }
    let current = || {
        routers
            .clone()
            .map(|router| router.heard.filter(|_| router.is_current))
    };
    let is_proven = current().flatten().any(|heard| heard.proven.contains(uid));
    let is_sure =
        |heard: Option<&Heard>| heard.is_some_and(|heard| is_proven || !heard.unproven.contains(uid));
    if of > 0 && current().all(is_sure) {
        SinkSeen::Answering
    } else {
        SinkSeen::Unsure
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::protocol::{FilterError, OtherPartitions, SetAside};

    /// A report with Sinks down since a minute of the hour, and unproven ones.
    fn heard(down: &[(&str, u8)], unproven: &[&str]) -> Heard {
        let outage = |(uid, minute): &(&str, u8)| SinkOutage {
            uid: (*uid).to_owned(),
            since: format!("2026-01-01T00:{minute:02}:00Z").parse().unwrap(),
            detail: "503".into(),
        };
        let report = SinkReport {
            down: down.iter().map(outage).collect(),
            unproven: unproven.iter().map(|uid| (*uid).to_owned()).collect(),
            ..SinkReport::default()
        };
        Heard::from_report(report, |_| true)
    }

    #[test]
    fn sink_is_down_if_one_router_says_so_and_up_only_if_all_do() {
        let fine = Some(heard(&[], &[]));
        let other = Some(heard(&[("other", 1)], &["another"]));
        let unproven = Some(heard(&[], &["u"]));
        let early = Some(heard(&[("u", 1)], &[]));
        let late = Some(heard(&[("u", 2)], &[]));
        let down = |routers, of, longest: &str, by: &Option<Heard>| SinkSeen::Down {
            routers,
            of,
            longest: longest.to_owned(),
            outage: by.as_ref().unwrap().down["u"].clone(),
        };
        // The routers deliver partitions of a broker.
        let proven = Some(Heard {
            proven: ["u".to_owned()].into(),
            ..heard(&[], &[])
        });
        let table: [(&[&Option<Heard>], SinkSeen); 14] = [
            (&[], SinkSeen::Unsure),
            (&[&None], SinkSeen::Unsure),
            (&[&fine], SinkSeen::Answering),
            (&[&other, &fine], SinkSeen::Answering),
            (&[&fine, &None], SinkSeen::Unsure),
            (&[&fine, &unproven], SinkSeen::Unsure),
            (&[&proven, &unproven], SinkSeen::Answering),
            (&[&proven, &None], SinkSeen::Unsure),
            (&[&proven, &late], down(1, 2, "r1", &late)),
            (&[&early], down(1, 1, "r0", &early)),
            (&[&fine, &early], down(1, 2, "r1", &early)),
            (&[&None, &late], down(1, 2, "r1", &late)),
            (&[&unproven, &late], down(1, 2, "r1", &late)),
            (&[&late, &early, &fine], down(2, 3, "r1", &early)),
        ];
        let names = ["r0", "r1", "r2"];
        for (routers, expected) in table {
            let told = |is_current| {
                names
                    .into_iter()
                    .zip(routers)
                    .map(move |(name, heard)| ReportingRouter {
                        name,
                        heard: heard.as_ref(),
                        is_current,
                    })
            };
            assert_eq!(seen(told(true), "u"), expected, "{routers:?}");
            let of_an_earlier_version = match expected {
                SinkSeen::Answering => SinkSeen::Unsure,
                expected => expected,
            };
            assert_eq!(seen(told(false), "u"), of_an_earlier_version, "{routers:?}");
        }
    }

    #[test]
    fn events_are_undelivered_if_all_routers_say_so() {
        let report = |undelivered: &[&str], problem: Option<&str>| {
            let report = SinkReport {
                undelivered: undelivered.iter().map(|uid| (*uid).to_owned()).collect(),
                problem: problem.map(Detail::from),
                ..SinkReport::default()
            };
            Some(Heard::from_report(report, |_| true))
        };
        let (owner, stale) = (report(&["other"], None), report(&["u"], None));
        let away = report(&["u"], Some("NATS does not answer"));
        let table: [(&[&Option<Heard>], SinkSeen); 5] = [
            (&[&stale], SinkSeen::Undelivered(None)),
            (
                &[&stale, &away],
                SinkSeen::Undelivered(Some("NATS does not answer".into())),
            ),
            (&[&stale, &owner], SinkSeen::Answering),
            (&[&away, &owner], SinkSeen::Answering),
            (&[&away, &None], SinkSeen::Unsure),
        ];
        for (routers, expected) in table {
            let told = routers.iter().map(|heard| ReportingRouter {
                name: "r",
                heard: heard.as_ref(),
                is_current: true,
            });
            assert_eq!(seen(told, "u"), expected, "{routers:?}");
        }
    }

    #[test]
    fn ignores_reports_about_unknown_triggers() {
        let over_quota = |uid: &str| OverQuota {
            uid: uid.into(),
            held_by: Some("t".into()),
            of_broker: true,
            too_many_brokers: false,
        };
        let usage = |uid: &str| BrokerUsage {
            uid: uid.into(),
            events: 1,
            bytes: 2,
            limit: 3,
        };
        let source = |uid: &str| SourceReport {
            uid: uid.into(),
            ..SourceReport::default()
        };
        let report = SinkReport {
            revision: Revision::default(),
            down: heard(&[("u", 1), ("x", 1)], &[]).down.into_values().collect(),
            unproven: vec!["v".into(), "y".into()],
            proven: vec!["v".into(), "y".into()],
            filter_errors: ["u", "x"]
                .map(|uid| FilterError {
                    uid: uid.into(),
                    detail: "no such attribute".into(),
                })
                .into(),
            undelivered: vec!["u".into(), "y".into()],
            problem: Some("NATS does not answer".into()),
            set_aside: ["v", "y"]
                .map(|uid| SetAside {
                    uid: uid.into(),
                    generation: 2,
                })
                .into(),
            resumed: vec!["u".into(), "x".into()],
            other_partitions: [("u", 1), ("y", 2)]
                .map(|(uid, partitions)| OtherPartitions {
                    uid: uid.into(),
                    partitions,
                })
                .into(),
            over_quota: ["u", "y"].map(over_quota).into(),
            usage: ["u", "y"].map(usage).into(),
            undecodable: vec!["v".into(), "y".into()],
            sources: Some(["u", "y"].map(source).into()),
            sources_router: Some("r-0".into()),
        };
        let kept = Heard::from_report(report, |uid| matches!(uid, "u" | "v"));
        assert_eq!(
            kept.filter_error("u").map(Detail::as_str),
            Some("no such attribute")
        );
        assert_eq!(kept.filter_error("x"), None);
        assert!(kept.is_set_aside("v", 2) && !kept.is_set_aside("v", 3) && !kept.is_set_aside("y", 2));
        assert_eq!((kept.has_resumed("u"), kept.has_resumed("x")), (true, false));
        assert_eq!((kept.cannot_decode("v"), kept.cannot_decode("y")), (true, false));
        let (filter_errors, set_aside) = (kept.filter_errors.clone(), kept.set_aside.clone());
        let expected = Heard {
            undelivered: ["u".to_owned()].into(),
            problem: Some("NATS does not answer".into()),
            filter_errors,
            set_aside,
            resumed: ["u".to_owned()].into(),
            undecodable: ["v".to_owned()].into(),
            other_partitions: [("u".to_owned(), 1)].into(),
            over_quota: [("u".to_owned(), over_quota("u"))].into(),
            usage: [("u".to_owned(), usage("u"))].into(),
            sources: Some([("u".to_owned(), source("u"))].into()),
            sources_router: Some("r-0".into()),
            proven: ["v".to_owned()].into(),
            ..heard(&[("u", 1)], &["v"])
        };
        assert_eq!(kept, expected);
    }
}
