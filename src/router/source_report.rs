//! What the reports to the controller say of Sources. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::metrics::HookRecord;
use crate::{
    routing::protocol::{SinkReport, SourceReport},
    source::{SourceCounts, SourceProgress},
};

/// Returns what is known of the schedules that run here, and of the webhooks that had requests.
pub(super) fn sources(
    schedules: Vec<SourceCounts>,
    hooks: BTreeMap<String, HookRecord>,
    now: Timestamp,
) -> Vec<SourceReport> {
    let schedules = schedules.into_iter().map(|schedule| SourceReport {
        runs: true,
        failure: schedule.progress.failure.clone(),
        ..of(schedule.uid, &schedule.progress)
    });
    let hooks = hooks.into_values().map(|hook| SourceReport {
        failure: hook.progress.lasting_failure(now).cloned(),
        last_rejection: hook.last_rejection,
        ..of(hook.uid, &hook.progress)
    });
    schedules.chain(hooks).collect()
}

fn of(uid: String, progress: &SourceProgress) -> SourceReport {
    let whole = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
    SourceReport {
        uid,
        last_event: progress.last_event.map(whole),
        last_success: progress.last_success.map(whole),
        waiting_since: progress.waiting_since,
        ..SourceReport::default()
    }
}

/// Whether two reports differ only in what may be told later: times, and the details of failures.
pub(super) fn are_alike(one: &SinkReport, other: &SinkReport) -> bool {
    let told = |report: &SinkReport| {
        let sources = report.sources.iter().flatten().map(|source| {
            let SourceReport {
                uid,
                runs,
                last_event,
                last_success,
                failure,
                last_rejection,
                waiting_since,
            } = source;
            let times = [last_event, last_success, waiting_since].map(|time| time.is_some());
            let cause = failure.as_ref().map(|failure| failure.cause);
            (uid.clone(), *runs, times, cause, last_rejection.is_some())
        });
        sources.collect::<Vec<_>>()
    };
    told(one) == told(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::protocol::SourceFailureCause;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_changes_that_matter_are_told_at_once() {
        let report = |progress: &SourceProgress, now| {
            let hook = HookRecord {
                uid: "h".into(),
                progress: progress.clone(),
                ..HookRecord::default()
            };
            let schedule = SourceCounts {
                namespace: "n".into(),
                name: "s".into(),
                produced: 1,
                missed: 0,
                caught_up: 0,
                filtered: 0,
                uid: "s".into(),
                progress: SourceProgress::default(),
            };
            SinkReport {
                sources: Some(sources(vec![schedule], [("n/h".into(), hook)].into(), at(now))),
                ..SinkReport::default()
            }
        };
        let mut progress = SourceProgress::default();
        let none = report(&progress, 0);
        assert!(none.sources.as_ref().unwrap()[0].runs);
        progress.stored(at(1));
        let first = report(&progress, 1);
        assert!(!are_alike(&none, &first));
        progress.stored(at(2));
        assert!(are_alike(&first, &report(&progress, 2)), "only a later event");
        progress.failed(SourceFailureCause::Verification, at(3), "wrong");
        assert!(are_alike(&first, &report(&progress, 62)), "it may be forged");
        progress.failed(SourceFailureCause::Verification, at(63), "wrong");
        assert!(!are_alike(&first, &report(&progress, 63)));
        let wrong = report(&progress, 63);
        progress.failed(SourceFailureCause::Verification, at(70), "malformed");
        assert!(are_alike(&wrong, &report(&progress, 70)), "another detail");
    }
}
