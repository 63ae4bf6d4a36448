//! Observes which Sinks are down and what Sources do, for the reports to the controller.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{exceeded::ExceededLimit, metrics::HookMetrics, over_quota::RejectedLately, source_report};
use crate::{
    delivery::TriggerStats,
    filter,
    log::BrokerName,
    ownership::{OwnedTrigger, Shards},
    routing::{
        RoutingTable,
        protocol::{
            BrokerUsage, FilterError, OVER_QUOTA_FOR, OtherPartitions, OverQuota, SetAside, SinkOutage,
            SinkReport,
        },
    },
};

/// Interval between looks at the Sinks; changes within it are reported together.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Interval between looks at what brokers hold, and their timeout: they may read the log.
const LOOK_AT_USAGE_EVERY: Duration = Duration::from_secs(10);
const USAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a report is made from.
pub(super) struct ReportedParts {
    pub(super) shards: Arc<Shards>,
    pub(super) table: Arc<ArcSwapOption<RoutingTable>>,
    pub(super) undecodable: Arc<ArcSwap<Vec<String>>>,
    pub(super) rejected: Arc<RejectedLately>,
    pub(super) hooks: Arc<HookMetrics>,
    /// The only router that runs Sources, if it is another one.
    pub(super) sources_router: Option<String>,
}

/// Keeps the report up to date until told to stop. Notifies readers when Sinks go down or answer again, but not
/// when only the last error differs: that is sent with the next report.
pub(super) async fn keep(
    observed: ReportedParts,
    reports: watch::Sender<Option<SinkReport>>,
    stop: CancellationToken,
) {
    let ReportedParts {
        shards,
        table,
        undecodable,
        rejected,
        hooks,
        sources_router,
    } = observed;
    let mut told = BTreeSet::new();
    let mut usage = UsageLook::default();
    loop {
        if let Some(table) = table.load_full() {
            tokio::select! {
                () = usage.refresh(&shards, &table) => {}
                () = stop.cancelled() => return,
            }
        }
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
            usage: usage.found.clone(),
            sources: Some(source_report::sources(
                shards.statistics().snapshot(),
                hooks.records(),
                Timestamp::now(),
            )),
            sources_router: sources_router.clone(),
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

/// What brokers held at the last look.
#[derive(Default)]
struct UsageLook {
    at: Option<Instant>,
    found: Vec<BrokerUsage>,
}

impl UsageLook {
    /// Looks again if it is time. A look that takes too long leaves the last one.
    async fn refresh(&mut self, shards: &Shards, table: &RoutingTable) {
        let is_recent = |at: Instant| at.elapsed() < LOOK_AT_USAGE_EVERY;
        if self.at.is_some_and(is_recent) {
            return;
        }
        if let Ok(found) = tokio::time::timeout(USAGE_TIMEOUT, usage(shards, table)).await {
            self.found = found;
        }
        self.at = Some(Instant::now());
    }
}

/// Returns what the brokers that have a Broker hold.
async fn usage(shards: &Shards, table: &RoutingTable) -> Vec<BrokerUsage> {
    let mut found = Vec::new();
    for (broker, policy) in table.policies().iter() {
        match shards.unsettled_events(&BrokerName::from(broker.as_str())).await {
            Ok(Some(unsettled)) => found.push(BrokerUsage {
                uid: policy.uid.clone(),
                events: unsettled.events,
                bytes: unsettled.bytes,
                limit: unsettled.limit,
            }),
            Ok(None) => {}
            Err(error) => tracing::debug!(broker, %error, "cannot find out what a broker holds"),
        }
    }
    found
}

/// Returns the Brokers whose producers were rejected lately because of a quota.
fn over_quota(shards: &Shards, table: &RoutingTable, rejected: &RejectedLately) -> Vec<OverQuota> {
    let mut brokers = rejected.within(OVER_QUOTA_FOR, Instant::now());
    brokers.sort_by(|one, other| one.0.cmp(&other.0));
    let over = brokers.iter().filter_map(|(broker, limit)| {
        let policy = table.policies().get(&**broker)?;
        let holds_most = match limit {
            ExceededLimit::Bytes => shards.holds_most(|trigger| trigger.broker().as_str() == &**broker),
            ExceededLimit::Brokers => None,
            _ => shards.holds_most(|trigger| trigger.namespace == policy.namespace),
        };
        Some(OverQuota {
            uid: policy.uid.clone(),
            held_by: holds_most.map(|trigger| trigger.name),
            of_broker: *limit == ExceededLimit::Bytes,
            too_many_brokers: *limit == ExceededLimit::Brokers,
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
    // Smaller changes are sent with the next report.
    let fills = |report: &SinkReport| -> Vec<_> {
        let usage = report.usage.iter();
        usage
            .map(|usage| (usage.uid.clone(), usage.percent() / 10))
            .collect()
    };
    one.revision == other.revision
        && fills(one) == fills(other)
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
        && one.sources_router == other.sources_router
        && source_report::are_alike(one, other)
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
        let usage = |bytes| BrokerUsage {
            uid: "b".into(),
            events: bytes,
            bytes,
            limit: 100,
        };
        let known = SinkReport {
            usage: vec![usage(11)],
            ..report("a", early, "503")
        };
        let other_error = SinkReport {
            usage: vec![usage(19)],
            ..report("a", early, "refused")
        };
        assert!(same_sinks(&known, &other_error));
        for news in [
            SinkReport {
                down: report("b", early, "503").down,
                ..known.clone()
            },
            SinkReport {
                down: report("a", late, "503").down,
                ..known.clone()
            },
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
                    of_broker: false,
                    too_many_brokers: false,
                }],
                ..known.clone()
            },
            SinkReport {
                usage: vec![usage(20)],
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
