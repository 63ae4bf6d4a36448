//! Combines the routers' reports on a Source into one view. Pure.

use jiff::Timestamp;

use super::sinks_seen::ReportingRouter;
use crate::routing::protocol::{Detail, REJECTS_FOR, SourceFailure, SourceFailureCause, SourceRejection};

/// Whether a router runs a Source that has to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceRuns {
    /// A router of an earlier version does not tell.
    Untold,
    /// A router has not reported yet.
    Awaited,
    /// A router's last report is from before the Source was as it is now.
    Outdated,
    /// A router runs it.
    Somewhere,
    /// No router runs it.
    Nowhere {
        /// The router to which the others leave it.
        left_to: Option<String>,
        /// Why a router takes no part.
        problem: Option<Detail>,
    },
}

/// The routers' combined view of a Source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SourceSeen {
    pub(super) runs: SourceRuns,
    /// Whether a router has reported.
    pub(super) is_known: bool,
    pub(super) last_event: Option<Timestamp>,
    pub(super) last_success: Option<Timestamp>,
    /// The last failure.
    pub(super) failure: Option<SourceFailure>,
    pub(super) last_rejection: Option<SourceRejection>,
    pub(super) waiting_since: Option<Timestamp>,
}

impl SourceSeen {
    /// The failure of a Source that receives requests. Another router may have accepted some; `accepted` is when one was
    /// accepted as far as the status tells.
    pub(super) fn failure_of_requests(
        &self,
        accepted: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<&SourceFailure> {
        let accepted = accepted.max(self.last_success);
        let failure = self.failure.as_ref()?;
        let counts = match accepted {
            None => true,
            Some(_) if failure.cause == SourceFailureCause::Unsigned => false,
            Some(accepted) => failure.at > accepted && now.duration_since(accepted) >= REJECTS_FOR,
        };
        counts.then_some(failure)
    }
}

/// Combines the reports of every connected router, for one Source.
pub(super) fn seen<'a>(routers: impl Iterator<Item = ReportingRouter<'a>> + Clone, uid: &str) -> SourceSeen {
    let heard = || routers.clone().filter_map(|router| router.heard);
    let told = || heard().filter_map(|heard| heard.source(uid));
    SourceSeen {
        runs: runs(routers.clone(), uid),
        is_known: heard().next().is_some(),
        last_event: told().filter_map(|source| source.last_event).max(),
        last_success: told().filter_map(|source| source.last_success).max(),
        failure: told()
            .filter_map(|source| source.failure.as_ref())
            .max_by_key(|failure| failure.at)
            .cloned(),
        last_rejection: told()
            .filter_map(|source| source.last_rejection.as_ref())
            .max_by_key(|rejection| rejection.at)
            .cloned(),
        waiting_since: told().filter_map(|source| source.waiting_since).min(),
    }
}

fn runs<'a>(routers: impl Iterator<Item = ReportingRouter<'a>> + Clone, uid: &str) -> SourceRuns {
    let runs_at = |router: &ReportingRouter<'_>| {
        let source = router.heard.and_then(|heard| heard.source(uid));
        router.is_current && source.is_some_and(|source| source.runs)
    };
    let reports = |router: &ReportingRouter<'_>| router.heard.map(|heard| heard.reports_sources());
    if routers.clone().any(|router| runs_at(&router)) {
        SourceRuns::Somewhere
    } else if routers.clone().any(|router| reports(&router) == Some(false)) {
        SourceRuns::Untold
    } else if routers.clone().next().is_none() || routers.clone().any(|router| reports(&router).is_none()) {
        SourceRuns::Awaited
    } else if routers.clone().any(|router| !router.is_current) {
        SourceRuns::Outdated
    } else {
        let mut heard = routers.clone().filter_map(|router| router.heard);
        SourceRuns::Nowhere {
            left_to: heard.find_map(|heard| heard.sources_router().map(str::to_owned)),
            problem: routers
                .filter_map(|router| router.heard?.problem().cloned())
                .next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        controller::sinks_seen::Heard,
        routing::protocol::{SinkReport, SourceReport},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn heard(source: Option<SourceReport>) -> Heard {
        let report = SinkReport {
            sources: Some(source.into_iter().collect()),
            sources_router: Some("r-0".into()),
            ..SinkReport::default()
        };
        Heard::from_report(report, |_| true)
    }

    fn running(runs: bool) -> Option<SourceReport> {
        Some(SourceReport {
            uid: "u".into(),
            runs,
            ..SourceReport::default()
        })
    }

    fn seen_by(routers: &[(Option<&Heard>, bool)]) -> SourceSeen {
        let routers = routers.iter().map(|&(heard, is_current)| ReportingRouter {
            name: "r",
            heard,
            is_current,
        });
        seen(routers, "u")
    }

    #[test]
    fn a_source_runs_nowhere_if_all_routers_say_so() {
        let older = Heard::from_report(SinkReport::default(), |_| true);
        let (here, idle, served) = (heard(running(true)), heard(None), heard(running(false)));
        let nowhere = SourceRuns::Nowhere {
            left_to: Some("r-0".into()),
            problem: None,
        };
        for (routers, expected) in [
            (&[][..], SourceRuns::Awaited),
            (&[(None, true)], SourceRuns::Awaited),
            (&[(Some(&idle), true), (None, true)], SourceRuns::Awaited),
            (&[(Some(&idle), true), (Some(&older), true)], SourceRuns::Untold),
            (
                &[(Some(&here), true), (Some(&older), true)],
                SourceRuns::Somewhere,
            ),
            (&[(Some(&here), false)], SourceRuns::Outdated),
            (&[(Some(&here), false), (Some(&idle), true)], SourceRuns::Outdated),
            (&[(Some(&idle), true), (Some(&here), true)], SourceRuns::Somewhere),
            (&[(Some(&idle), true), (Some(&served), true)], nowhere),
        ] {
            assert_eq!(seen_by(routers).runs, expected, "{routers:?}");
        }
    }

    #[test]
    fn requests_fail_if_no_router_has_accepted_one_for_a_while() {
        let report = |success: Option<i64>, failed: Option<(SourceFailureCause, i64)>| {
            heard(Some(SourceReport {
                last_success: success.map(at),
                last_event: success.map(at),
                failure: failed.map(|(cause, second)| SourceFailure {
                    cause,
                    at: at(second),
                    detail: "x".into(),
                }),
                ..running(false).unwrap()
            }))
        };
        let (wrong, none) = (SourceFailureCause::Verification, SourceFailureCause::Unsigned);
        let at_ten = report(Some(10), None);
        for (other, accepted, now, fails) in [
            (report(None, Some((wrong, 20))), None, 69, false),
            (report(None, Some((wrong, 20))), None, 70, true),
            (report(None, Some((wrong, 20))), Some(15), 70, false),
            (report(None, Some((wrong, 9))), None, 100, false),
            (report(None, Some((none, 20))), None, 100, false),
        ] {
            let seen = seen_by(&[(Some(&at_ten), true), (Some(&other), true)]);
            let failure = seen.failure_of_requests(accepted.map(at), at(now));
            assert_eq!(failure.is_some(), fails, "{other:?} {accepted:?} {now}");
            assert_eq!(seen.last_event, Some(at(10)));
        }
        let unsigned = seen_by(&[(Some(&report(None, Some((none, 20)))), true)]);
        assert!(unsigned.failure_of_requests(None, at(20)).is_some());
        assert!(unsigned.failure_of_requests(Some(at(1)), at(200)).is_none());
    }
}
