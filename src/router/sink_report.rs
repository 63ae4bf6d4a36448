//! Observes which Sinks are down, for the reports to the controller.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::over_quota::RejectedLately;
use crate::{
    delivery::TriggerStats,
    filter,
    ownership::{OwnedTrigger, Shards},
    routing::{
        RoutingTable,
        protocol::{
            FilterError, OVER_QUOTA_FOR, OtherPartitions, OverQuota, SetAside, SinkOutage, SinkReport,
        },
    },
};

/// Interval between looks at the Sinks; changes within it are reported together.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps the report up to date until told to stop. Notifies readers when Sinks go down or answer again, but not
/// when only the last error differs: that is sent with the next report.
pub(super) async fn keep(
    shards: Arc<Shards>,
    table: Arc<ArcSwapOption<RoutingTable>>,
    undecodable: Arc<ArcSwap<Vec<String>>>,
    rejected: Arc<RejectedLately>,
    reports: watch::Sender<Option<SinkReport>>,
    stop: CancellationToken,
) {
    let mut told = BTreeSet::new();
    loop {
        // Before the Triggers: the engines may run newer ones, which the report then does not count in.
        let revision = table.load().as_ref().map(|table| table.revision().clone());
        let triggers = shards.triggers();
        told = tell_set_aside(&triggers, &told);
        let report = SinkReport {
            revision: revision.unwrap_or_default(),
            undecodable: undecodable.load().to_vec(),
            undelivered: table
                .load()
                .as_deref()
                .map(|table| undelivered(&shards, table))
                .unwrap_or_default(),
            other_partitions: table
                .load()
                .as_deref()
                .map(|table| other_partitions(&shards, table))
                .unwrap_or_default(),
            over_quota: table
                .load()
                .as_deref()
                .map(|table| over_quota(&shards, table, &rejected))
                .unwrap_or_default(),
            problem: shards.problem().map(|problem| problem.as_str().into()),
            ..report(&triggers)
        };
        reports.send_if_modified(|known| {
            let is_news = known.as_ref().is_none_or(|known| !same_sinks(known, &report));
            *known = Some(report);
            is_news
        });
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Logs each Trigger once when it is set aside. Returns those that are.
fn tell_set_aside(triggers: &[OwnedTrigger], told: &BTreeSet<String>) -> BTreeSet<String> {
    let set_aside = triggers
        .iter()
        .filter(|trigger| trigger.any(TriggerStats::is_set_aside));
    set_aside
        .map(|trigger| {
            if !told.contains(trigger.uid()) {
                tracing::error!(
                    trigger = format!("{}/{}", trigger.namespace(), trigger.name()),
                    budget = filter::BUDGET,
                    "the filters take more steps than their budget for too many events and are not evaluated any more; \
                     events wait until the Trigger's spec changes"
                );
            }
            trigger.uid().to_owned()
        })
        .collect()
}

/// Returns the Triggers whose events no router has delivered for a while.
fn undelivered(shards: &Shards, table: &RoutingTable) -> Vec<String> {
    let brokers = table.brokers().iter();
    let waiting = brokers.filter(|(broker, _)| shards.is_without_owner(&broker.as_str().into()));
    waiting
        .flat_map(|(_, table)| table.routes())
        .map(|route| route.trigger.uid.clone())
        .collect()
}

/// Returns the brokers whose number of partitions differs from their Broker's.
fn other_partitions(shards: &Shards, table: &RoutingTable) -> Vec<OtherPartitions> {
    let policies = table.policies().iter();
    let others = policies.filter_map(|(broker, policy)| {
        let partitions = shards.decided_partitions(&broker.as_str().into())?;
        let is_other = policy.partitions.is_some_and(|wanted| wanted != partitions);
        is_other.then(|| OtherPartitions {
            uid: policy.uid.clone(),
            partitions,
        })
    });
    others.collect()
}

/// Returns the Brokers whose producers were rejected lately because of a quota.
fn over_quota(shards: &Shards, table: &RoutingTable, rejected: &RejectedLately) -> Vec<OverQuota> {
    let mut brokers = rejected.within(OVER_QUOTA_FOR, Instant::now());
    brokers.sort();
    let over = brokers.iter().filter_map(|broker| {
        let policy = table.policies().get(&**broker)?;
        let holds_most = shards.holds_most(Some(&policy.namespace));
        Some(OverQuota {
            uid: policy.uid.clone(),
            held_by: holds_most.map(|trigger| trigger.name),
        })
    });
    over.collect()
}

fn report(triggers: &[OwnedTrigger]) -> SinkReport {
    let mut report = SinkReport::default();
    for trigger in triggers {
        let uid = trigger.uid().to_owned();
        if trigger.any(TriggerStats::is_resumed) {
            report.resumed.push(uid.clone());
        }
        if let Some(error) = trigger.parts().find_map(|part| part.stats.filter_error()) {
            report.filter_errors.push(FilterError {
                uid: uid.clone(),
                detail: error.as_str().into(),
            });
        }
        if let Some(part) = trigger.parts().find(|part| part.stats.is_set_aside()) {
            report.set_aside.push(SetAside {
                uid: uid.clone(),
                generation: part.stats.generation(),
            });
        }
        if let Some(outage) = trigger.outage() {
            report.down.push(SinkOutage {
                uid,
                since: outage.since,
                detail: outage.detail.as_str().into(),
            });
        } else if trigger.is_unproven() {
            report.unproven.push(uid);
        } else if trigger.is_partitioned() {
            report.proven.push(uid);
        }
    }
    report
}

fn same_sinks(one: &SinkReport, other: &SinkReport) -> bool {
    let outages = |report: &SinkReport| -> Vec<_> {
        report
            .down
            .iter()
            .map(|outage| (outage.uid.clone(), outage.since))
            .collect()
    };
    let failing = |report: &SinkReport| -> Vec<_> {
        let errors = report.filter_errors.iter();
        errors.map(|error| error.uid.clone()).collect()
    };
    one.revision == other.revision
        && outages(one) == outages(other)
        && one.unproven == other.unproven
        && one.proven == other.proven
        && one.resumed == other.resumed
        && failing(one) == failing(other)
        && one.set_aside == other.set_aside
        && one.undelivered == other.undelivered
        && one.problem == other.problem
        && one.other_partitions == other.other_partitions
        && one.over_quota == other.over_quota
        && one.undecodable == other.undecodable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_error_alone_is_no_news() {
        let report = |uid: &str, since: &str, detail: &str| SinkReport {
            down: vec![SinkOutage {
                uid: uid.into(),
                since: since.parse().unwrap(),
                detail: detail.into(),
            }],
            ..SinkReport::default()
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let known = report("a", early, "503");
        assert!(same_sinks(&known, &report("a", early, "refused")));
        for news in [
            report("b", early, "503"),
            report("a", late, "503"),
            SinkReport::default(),
            SinkReport {
                resumed: vec!["a".into()],
                ..known.clone()
            },
            SinkReport {
                unproven: vec!["b".into()],
                ..known.clone()
            },
            SinkReport {
                filter_errors: vec![FilterError {
                    uid: "b".into(),
                    detail: "no such attribute".into(),
                }],
                ..known.clone()
            },
            SinkReport {
                over_quota: vec![OverQuota {
                    uid: "b".into(),
                    held_by: None,
                }],
                ..known.clone()
            },
            SinkReport {
                set_aside: vec![SetAside {
                    uid: "b".into(),
                    generation: 1,
                }],
                ..known.clone()
            },
        ] {
            assert!(!same_sinks(&known, &news), "{news:?}");
        }
    }
}
