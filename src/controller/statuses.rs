//! Computes the status of each resource; `source_status.rs` has that of Sources. Pure: the present status and the time
//! are arguments.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    broker_usage::ShownUsage,
    objects_status::CONNECTION_AWAITED,
    routers::Applied,
    sinks_seen::{BrokerSeen, FiltersSeen, QuotaSeen, SinkSeen},
};
use crate::{
    api::{BrokerStatus, CONNECTED, SinkStatus, TriggerStatus, condition},
    filter::BUDGET,
    resolve::{
        ADDRESS_AWAITED, BrokerDiagnosis, Finding, SECRET_AWAITED, SinkDiagnosis, TOKEN_AWAITED,
        TriggerDiagnosis,
    },
    routing::protocol::OverQuota,
};

/// Transient reasons for not being Ready, which every change of a resource passes through.
const PASSING: [&str; 5] = [
    ROUTER_OUT_OF_DATE,
    SECRET_AWAITED,
    TOKEN_AWAITED,
    ADDRESS_AWAITED,
    CONNECTION_AWAITED,
];

pub(super) const ROUTER_OUT_OF_DATE: &str = "RouterOutOfDate";

/// The condition that users wait for.
pub(super) const READY: &str = "Ready";

/// Whether routers route by the current version of the resource.
const APPLIED: &str = "Applied";

/// Whether the Sink responds, with success or failure, as far as routers can tell. Present only while events may
/// flow.
const SINK_ANSWERING: &str = "SinkAnswering";

/// Present, and False, while filters fail with errors for some events.
const FILTERS_EVALUATED: &str = "FiltersEvaluated";

/// Whether routers accept events as far as quotas are concerned. Absent until a router has reported.
const WITHIN_QUOTA: &str = "WithinQuota";

/// Present, and True, if a Trigger resumed from its own position or that of a deleted Trigger with its name.
const RESUMED: &str = "Resumed";

/// Computes a Trigger's status.
pub(super) fn trigger(
    diagnosis: &TriggerDiagnosis,
    applied: &Applied,
    sink_seen: &SinkSeen,
    filters_seen: &FiltersSeen,
    present: Option<&TriggerStatus>,
    broker_url: Option<&str>,
    now: &Time,
) -> TriggerStatus {
    let TriggerDiagnosis {
        subject,
        filters,
        transform,
        sink,
        dead_letter_sink,
        sink_uri,
        suspended,
        broker,
    } = diagnosis;
    let is_compiled = filters.holds && transform.as_ref().is_none_or(|transform| transform.holds);
    let FiltersSeen { error, set_aside_by } = filters_seen;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let may_flow =
        is_compiled && sink.holds && !suspended && *applied != Applied::NoRouter && set_aside_by.is_empty();
    let answering = answering_finding(applied, sink_seen);
    let failing = error.filter(|_| filters.holds).map(|error| {
        let message = "a filter failed with an error for some events, which then do not match; weir explain shows \
                       why. Last error";
        Finding::bad("FilterError", format!("{message}: {}", error.as_str()))
    });
    let set_aside = (filters.holds && !set_aside_by.is_empty()).then(|| too_expensive(set_aside_by));
    let failing = set_aside.clone().or(failing);
    // The state of a different Sink does not apply to this one.
    let same_sink = present.is_some_and(|present| present.sink_uri == *sink_uri);
    let applied_before = condition(before, APPLIED).filter(|_| same_sink);
    let applied = applied_finding(applied, applied_before, subject.generation);
    let flows = || {
        let uri = sink_uri.as_deref().unwrap_or_default();
        Finding::good("Ready", format!("matching events of broker {broker} go to {uri}"))
    };
    let held =
        suspended.then(|| Finding::bad("Suspended", "spec.suspend is set: events wait and are not lost"));
    let problems = [
        Some(filters),
        transform.as_ref(),
        Some(sink),
        dead_letter_sink.as_ref(),
        held.as_ref(),
        Some(&applied),
        set_aside.as_ref(),
    ];
    let ready = first_problem(problems).unwrap_or_else(flows);
    let conditions = [
        Some((READY, &ready)),
        Some(("FiltersValid", filters)),
        transform.as_ref().map(|finding| ("TransformValid", finding)),
        Some(("SinkResolved", sink)),
        dead_letter_sink
            .as_ref()
            .map(|finding| ("DeadLetterSinkResolved", finding)),
        Some((APPLIED, &applied)),
        failing.as_ref().map(|finding| (FILTERS_EVALUATED, finding)),
    ]
    .into_iter()
    .flatten()
    .map(|(r#type, finding)| finding.condition(r#type, subject.generation, before, now));
    let answering = match answering {
        _ if !may_flow => None,
        Some(finding) => Some(finding.condition(SINK_ANSWERING, subject.generation, before, now)),
        None => condition(before, SINK_ANSWERING).cloned(),
    };
    TriggerStatus {
        observed_generation: Some(subject.generation),
        conditions: conditions.chain(answering).collect(),
        sink_uri: sink_uri.clone(),
        broker_url: url(broker_url, broker),
    }
}

/// Adds the condition `Resumed` if a router reports it. The condition stays, since routers forget it when they
/// restart.
pub(super) fn resumed(
    mut status: TriggerStatus,
    resumed: bool,
    present: Option<&TriggerStatus>,
    now: &Time,
) -> TriggerStatus {
    let before = present.and_then(|present| condition(&present.conditions, RESUMED));
    let told = || {
        let message = "resumed from the position of a deleted Trigger with this name, or from its own position \
                       after it was missing for a while; the routers' logs show the backlog";
        let finding = Finding::good("PlaceTakenUp", message);
        let generation = status.observed_generation.unwrap_or_default();
        finding.condition(RESUMED, generation, &[], now)
    };
    let condition = before.cloned().or_else(|| resumed.then(told));
    status.conditions.extend(condition);
    status
}

/// Computes a Sink's status.
pub(super) fn sink(diagnosis: &SinkDiagnosis, present: Option<&SinkStatus>, now: &Time) -> SinkStatus {
    let SinkDiagnosis {
        subject,
        resolved,
        uri,
    } = diagnosis;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    SinkStatus {
        observed_generation: Some(subject.generation),
        conditions: vec![resolved.condition(READY, subject.generation, before, now)],
        uri: uri.clone(),
    }
}

/// Computes a Broker's status.
pub(super) fn broker(
    diagnosis: &BrokerDiagnosis,
    applied: &Applied,
    seen: BrokerSeen<'_>,
    present: Option<&BrokerStatus>,
    broker_url: Option<&str>,
    now: &Time,
) -> BrokerStatus {
    let BrokerDiagnosis {
        subject,
        valid,
        broker,
    } = diagnosis;
    let BrokerSeen {
        other_partitions,
        quota,
        usage,
    } = seen;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let applied = applied_finding(applied, condition(before, READY), subject.generation);
    let partitions = other_partitions.map(|partitions| {
        let message = format!(
            "spec.partitions: the broker is already in use with {partitions} partitions, which cannot be changed; remove the field, \
             or use another broker"
        );
        Finding::bad("PartitionsFixed", message)
    });
    let ready = first_problem([Some(valid), Some(&applied), partitions.as_ref()])
        .unwrap_or_else(|| Finding::good("Ready", &*valid.message));
    let quota = match quota {
        QuotaSeen::Unknown => None,
        QuotaSeen::Within => Some(Finding::good(
            WITHIN_QUOTA,
            "no router rejects events because of a quota",
        )),
        QuotaSeen::UsedUp { router, over } => Some(quota_used_up(router, over, diagnosis)),
    };
    let within = match &quota {
        Some(finding) => Some(finding.condition(WITHIN_QUOTA, subject.generation, before, now)),
        None => condition(before, WITHIN_QUOTA).cloned(),
    };
    let ready = ready.condition(READY, subject.generation, before, now);
    // No router has reported, as after a start of the controller: what was told before stays.
    let is_unknown = quota.is_none();
    let ShownUsage {
        backlog,
        used_bytes,
        fill_percent,
        usage_time,
    } = ShownUsage::next(usage, is_unknown, present, now);
    BrokerStatus {
        observed_generation: Some(subject.generation),
        conditions: [ready].into_iter().chain(within).collect(),
        url: url(broker_url, broker),
        backlog,
        used_bytes,
        fill_percent,
        usage_time,
    }
}

fn quota_used_up(router: &str, over: &OverQuota, diagnosis: &BrokerDiagnosis) -> Finding {
    let OverQuota {
        uid: _,
        held_by,
        of_broker,
        too_many_brokers,
    } = over;
    let (namespace, broker) = (&diagnosis.subject.namespace, &diagnosis.broker);
    if *too_many_brokers {
        let message = format!(
            "router {router} rejects events with 507, because namespace {namespace} has too many brokers in the event log; \
             post to fewer brokers. A broker leaves the log once no Trigger, Source or Broker names it and its events and dead \
             letters are gone"
        );
        return Finding::bad("TooManyBrokers", message);
    }
    let what = match held_by {
        Some(trigger) => format!(
            "Trigger {namespace}/{trigger} holds most of it: fix its Sink, or delete the Trigger if its events are not needed"
        ),
        None if *of_broker => "no Trigger holds events any more".to_owned(),
        None => format!("no Trigger holds events: redrive or drop the dead letters of namespace {namespace}"),
    };
    let who = match of_broker {
        true => format!("broker {broker} has used up its quota.bytes"),
        false => format!("namespace {namespace} has used up its share of the event log"),
    };
    let message = format!("router {router} rejects events with 507, because {who}; {what}");
    Finding::bad("QuotaUsedUp", message)
}

/// A change of a condition, to be recorded as an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    /// The action, in one word.
    pub(super) action: &'static str,
    /// Whether somebody may have to act.
    pub(super) warns: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Compares the conditions before and after: Ready by status and reason, whether the Sink is down or events of the Source
/// do not come, and whether the Trigger resumed.
pub(super) fn transitions(before: &[Condition], after: &[Condition]) -> Vec<Transition> {
    let is_down = |condition: &Condition| condition.status == "False";
    let ready = condition(after, READY).filter(|after| {
        let before = condition(before, READY).map(|before| (&before.status, &before.reason));
        before != Some((&after.status, &after.reason))
    });
    let turned = |r#type| {
        condition(after, r#type)
            .filter(|after| condition(before, r#type).is_some_and(is_down) != is_down(after))
    };
    let told = |action, condition: &Condition| Transition {
        action,
        warns: condition.status != "True" && !PASSING.contains(&&*condition.reason),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    };
    let ready = ready.map(|ready| told("Resolve", ready));
    let answering = turned(SINK_ANSWERING).map(|answering| told("Deliver", answering));
    let connected = turned(CONNECTED).map(|connected| told("Connect", connected));
    let resumed = condition(after, RESUMED).filter(|_| condition(before, RESUMED).is_none());
    let resumed = resumed.map(|resumed| told("Resume", resumed));
    let all = [ready, answering, connected, resumed];
    all.into_iter().flatten().collect()
}

pub(super) fn first_problem<const N: usize>(findings: [Option<&Finding>; N]) -> Option<Finding> {
    findings
        .into_iter()
        .flatten()
        .find(|finding| !finding.holds)
        .cloned()
}

/// `before` is the condition of this generation from before the controller started.
pub(super) fn applied_finding(applied: &Applied, before: Option<&Condition>, generation: i64) -> Finding {
    match applied {
        Applied::Awaited(routers) => {
            // Routers keep routing without a controller, so its start alone changes nothing.
            match before
                .filter(|before| before.status == "True" && before.observed_generation == Some(generation))
            {
                Some(before) => Finding::good("Applied", &*before.message),
                None if routers.is_empty() => applied_finding(&Applied::NoRouter, None, generation),
                None => applied_finding(&Applied::Not(routers.clone()), None, generation),
            }
        }
        // Without a count, which would be rewritten in every status whenever a router comes or goes.
        Applied::Everywhere => Finding::good("Applied", "applied by every router"),
        Applied::NoRouter => Finding::bad(
            "NoRouter",
            "no router is connected: check that one is running, and see its log for why it cannot reach the \
             controller or is rejected",
        ),
        Applied::Not(routers) => Finding::bad(
            ROUTER_OUT_OF_DATE,
            format!(
                "not applied yet by {}: this takes a moment; if it persists, see the router's log",
                routers.join(", ")
            ),
        ),
    }
}

fn too_expensive(routers: &[&str]) -> Finding {
    Finding::bad(
        "FilterTooExpensive",
        format!(
            "the filters exceeded {BUDGET} steps for too many events and are no longer evaluated by {}; events \
             wait and are not lost. Change the spec: put an exact or prefix filter first, match shorter texts, or \
             use simpler regular expressions",
            routers.join(", ")
        ),
    )
}

/// Keeps the old finding until every router has applied the Trigger, since their reports may concern another Sink.
fn answering_finding(applied: &Applied, seen: &SinkSeen) -> Option<Finding> {
    match (applied, seen) {
        (Applied::Everywhere, SinkSeen::Answering) => {
            Some(Finding::good("Answering", "no router sees the Sink down"))
        }
        (
            Applied::Everywhere,
            SinkSeen::Down {
                routers,
                of,
                longest,
                outage,
            },
        ) => Some(Finding::bad(
            "SinkDown",
            format!(
                "down since {:.0}, seen by {routers} of {of} routers; events wait and are retried according to \
                 spec.delivery; last error ({longest}): {}",
                outage.since,
                outage.detail.as_str(),
            ),
        )),
        (Applied::Everywhere, SinkSeen::Undelivered(problem)) => Some(Finding::bad(
            "NotDelivering",
            match problem {
                Some(problem) => format!(
                    "no router delivers the events of the broker, and they wait: {}",
                    problem.as_str()
                ),
                None => {
                    "no router delivers the events of the broker, and they wait; the routers' logs say why"
                        .to_owned()
                }
            },
        )),
        _ => None,
    }
}

pub(super) fn url(base: Option<&str>, broker: &str) -> Option<String> {
    base.map(|base| format!("{}/{broker}", base.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resolve::ResourceId,
        routing::protocol::{Detail, SinkOutage},
    };

    fn at(text: &str) -> Time {
        Time(text.parse().unwrap())
    }

    fn diagnosis(filters: bool, sink: bool, suspended: bool) -> TriggerDiagnosis {
        let finding = |holds, reason| Finding {
            holds,
            reason,
            message: format!("about {reason}"),
        };
        TriggerDiagnosis {
            subject: ResourceId {
                uid: "u".into(),
                namespace: "n".into(),
                name: "t".into(),
                generation: 3,
            },
            filters: finding(filters, "InvalidFilter"),
            transform: None,
            sink: finding(sink, "SinkNotFound"),
            dead_letter_sink: None,
            sink_uri: sink.then(|| "http://sink/".to_owned()),
            suspended,
            broker: "n/default".into(),
        }
    }

    #[test]
    fn ready_shows_the_first_failing_condition() {
        let everywhere = Applied::Everywhere;
        let behind = Applied::Not(vec!["r1".into()]);
        for (filters, sink, suspended, applied, status, reason) in [
            (true, true, false, &everywhere, "True", "Ready"),
            (false, false, true, &Applied::NoRouter, "False", "InvalidFilter"),
            (true, false, true, &Applied::NoRouter, "False", "SinkNotFound"),
            (true, true, true, &behind, "False", "Suspended"),
            (true, true, false, &behind, "False", "RouterOutOfDate"),
            (true, true, false, &Applied::NoRouter, "False", "NoRouter"),
        ] {
            let made = trigger(
                &diagnosis(filters, sink, suspended),
                applied,
                &SinkSeen::Unsure,
                &FiltersSeen::default(),
                None,
                Some("http://weir/"),
                &at("2026-01-01T00:00:00Z"),
            );
            let ready = condition(&made.conditions, READY).unwrap();
            assert_eq!((&*ready.status, &*ready.reason), (status, reason));
            assert_eq!(made.conditions.len(), 4);
            assert!(
                made.conditions
                    .iter()
                    .all(|condition| condition.observed_generation == Some(3))
            );
            assert_eq!(made.broker_url.as_deref(), Some("http://weir/n/default"));
        }
    }

    #[test]
    fn a_broker_is_ready_with_its_settings_everywhere() {
        let diagnosis = |holds, reason| BrokerDiagnosis {
            subject: ResourceId {
                uid: "u".into(),
                namespace: "n".into(),
                name: "b".into(),
                generation: 3,
            },
            valid: Finding {
                holds,
                reason,
                message: "about it".into(),
            },
            broker: "n/b".into(),
        };
        let (good, bad) = (diagnosis(true, "Ready"), diagnosis(false, "InvalidSize"));
        let behind = Applied::Not(vec!["r1".into()]);
        for (diagnosis, applied, other_partitions, status, reason) in [
            (&good, &Applied::Everywhere, None, "True", "Ready"),
            (&good, &Applied::Everywhere, Some(1), "False", "PartitionsFixed"),
            (&good, &behind, Some(1), "False", "RouterOutOfDate"),
            (&bad, &behind, None, "False", "InvalidSize"),
        ] {
            let now = at("2026-01-01T00:00:00Z");
            let made = broker(
                diagnosis,
                applied,
                BrokerSeen {
                    other_partitions,
                    quota: QuotaSeen::Within,
                    usage: None,
                },
                None,
                Some("http://weir/"),
                &now,
            );
            let ready = condition(&made.conditions, READY).unwrap();
            assert_eq!((&*ready.status, &*ready.reason), (status, reason));
            assert_eq!(made.url.as_deref(), Some("http://weir/n/b"));
        }
    }

    #[test]
    fn broker_status_names_the_trigger_that_uses_up_the_quota() {
        let diagnosis = BrokerDiagnosis {
            subject: ResourceId {
                uid: "u".into(),
                namespace: "shop".into(),
                name: "orders".into(),
                generation: 1,
            },
            valid: Finding::good("Ready", "about it"),
            broker: "shop/orders".into(),
        };
        let now = at("2026-01-01T00:00:00Z");
        let made = |quota, present: Option<&BrokerStatus>| {
            let seen = BrokerSeen {
                other_partitions: None,
                quota,
                usage: None,
            };
            broker(&diagnosis, &Applied::Everywhere, seen, present, None, &now)
        };
        let over = |held_by: Option<&str>, of_broker| OverQuota {
            uid: "u".into(),
            held_by: held_by.map(str::to_owned),
            of_broker,
            too_many_brokers: false,
        };
        let too_many = OverQuota {
            too_many_brokers: true,
            ..over(None, false)
        };
        let (by_trigger, by_letters, of_broker) = (
            over(Some("billing"), false),
            over(None, false),
            over(Some("billing"), true),
        );
        let used_up = |over| QuotaSeen::UsedUp {
            router: "weir-router-0",
            over,
        };
        for (quota, status, words) in [
            (QuotaSeen::Within, "True", "no router rejects events"),
            (
                used_up(&by_trigger),
                "False",
                "its share of the event log; Trigger shop/billing holds most",
            ),
            (
                used_up(&by_letters),
                "False",
                "drop the dead letters of namespace shop",
            ),
            (
                used_up(&of_broker),
                "False",
                "broker shop/orders has used up its quota.bytes; Trigger shop/billing holds most",
            ),
            (
                used_up(&too_many),
                "False",
                "namespace shop has too many brokers in the event log; post to fewer",
            ),
        ] {
            let made = made(quota, None);
            let within = condition(&made.conditions, WITHIN_QUOTA).unwrap();
            assert_eq!(within.status, status, "{quota:?}");
            assert!(within.message.contains(words), "{}", within.message);
        }
        assert_eq!(
            condition(&made(QuotaSeen::Unknown, None).conditions, WITHIN_QUOTA),
            None
        );
        let before = made(used_up(&by_letters), None);
        assert_eq!(made(QuotaSeen::Unknown, Some(&before)), before);
    }

    #[test]
    fn controller_start_keeps_status_until_routers_report() {
        let now = at("2026-01-01T00:00:00Z");
        let make = |diagnosis: &TriggerDiagnosis, applied: &Applied, present: Option<&TriggerStatus>| {
            trigger(
                diagnosis,
                applied,
                &SinkSeen::Unsure,
                &FiltersSeen::default(),
                present,
                None,
                &now,
            )
        };
        let reason = |status: &TriggerStatus| condition(&status.conditions, READY).unwrap().reason.clone();
        let good = diagnosis(true, true, false);
        let ready = make(&good, &Applied::Everywhere, None);
        assert_eq!(make(&good, &Applied::Awaited(vec![]), Some(&ready)), ready);
        assert_eq!(reason(&make(&good, &Applied::NoRouter, Some(&ready))), "NoRouter");
        // A version that was not applied before is not reported as applied.
        assert_eq!(reason(&make(&good, &Applied::Awaited(vec![]), None)), "NoRouter");
        let mut edited = good.clone();
        edited.subject.generation += 1;
        assert_eq!(
            reason(&make(&edited, &Applied::Awaited(vec![]), Some(&ready))),
            "NoRouter"
        );
        // A problem of the resource itself is reported at once.
        let broken = make(
            &diagnosis(true, false, false),
            &Applied::Awaited(vec![]),
            Some(&ready),
        );
        assert_eq!(reason(&broken), "SinkNotFound");
    }

    #[test]
    fn resumed_is_reported_once_and_stays() {
        let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
        let made = trigger(
            &diagnosis(true, true, false),
            &Applied::Everywhere,
            &SinkSeen::Unsure,
            &FiltersSeen::default(),
            None,
            None,
            &early,
        );
        assert_eq!(resumed(made.clone(), false, None, &early), made);
        let first = resumed(made.clone(), true, Some(&made), &early);
        let told = transitions(&made.conditions, &first.conditions);
        let told: Vec<_> = told.iter().map(|told| (told.warns, &*told.reason)).collect();
        assert_eq!(told, [(false, "PlaceTakenUp")]);
        for still in [true, false] {
            let again = resumed(made.clone(), still, Some(&first), &late);
            assert_eq!(again, first);
            assert_eq!(transitions(&first.conditions, &again.conditions), []);
        }
    }

    #[test]
    fn transition_time_moves_only_when_status_flips() {
        let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
        let first = trigger(
            &diagnosis(true, false, false),
            &Applied::NoRouter,
            &SinkSeen::Unsure,
            &FiltersSeen::default(),
            None,
            None,
            &early,
        );
        let same = trigger(
            &diagnosis(true, false, false),
            &Applied::NoRouter,
            &SinkSeen::Unsure,
            &FiltersSeen::default(),
            Some(&first),
            None,
            &late,
        );
        assert_eq!(same, first);
        assert_eq!(transitions(&first.conditions, &same.conditions), []);
        let resolved = trigger(
            &diagnosis(true, true, false),
            &Applied::NoRouter,
            &SinkSeen::Unsure,
            &FiltersSeen::default(),
            Some(&first),
            None,
            &late,
        );
        let time = |status: &TriggerStatus, r#type| {
            condition(&status.conditions, r#type)
                .unwrap()
                .last_transition_time
                .clone()
        };
        assert_eq!(time(&resolved, "SinkResolved"), late);
        assert_eq!(time(&resolved, "Ready"), early, "still False, for another reason");
        let told = transitions(&first.conditions, &resolved.conditions);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].warns, &*told[0].reason), (true, "NoRouter"));
        let behind = trigger(
            &diagnosis(true, true, false),
            &Applied::Not(vec!["r1".into()]),
            &SinkSeen::Unsure,
            &FiltersSeen::default(),
            None,
            None,
            &early,
        );
        let told = transitions(&[], &behind.conditions);
        assert_eq!((told[0].warns, &*told[0].reason), (false, "RouterOutOfDate"));
    }

    fn down(detail: &str) -> SinkSeen {
        SinkSeen::Down {
            routers: 1,
            of: 3,
            longest: "r1".into(),
            outage: SinkOutage {
                uid: "u".into(),
                since: "2026-01-01T00:00:00.123Z".parse().unwrap(),
                detail: detail.into(),
            },
        }
    }

    fn seen(
        diagnosis: &TriggerDiagnosis,
        applied: &Applied,
        seen: &SinkSeen,
        present: Option<&TriggerStatus>,
    ) -> TriggerStatus {
        trigger(
            diagnosis,
            applied,
            seen,
            &FiltersSeen::default(),
            present,
            None,
            &at("2026-01-01T00:00:00Z"),
        )
    }

    #[test]
    fn filter_error_is_shown_and_changes_nothing_else() {
        let status = |error, set_aside_by: &[&'static str]| {
            trigger(
                &diagnosis(true, true, false),
                &Applied::Everywhere,
                &SinkSeen::Answering,
                &FiltersSeen {
                    error,
                    set_aside_by: set_aside_by.to_vec(),
                },
                None,
                None,
                &at("2026-01-01T00:00:00Z"),
            )
        };
        let told = Detail::from("no such attribute");
        let fine = status(None, &[]);
        assert_eq!(condition(&fine.conditions, FILTERS_EVALUATED), None);
        let mut failing = status(Some(&told), &[]);
        let shown = condition(&failing.conditions, FILTERS_EVALUATED).unwrap();
        assert_eq!((&*shown.status, &*shown.reason), ("False", "FilterError"));
        assert!(
            shown.message.ends_with("Last error: no such attribute"),
            "{}",
            shown.message
        );
        failing
            .conditions
            .retain(|condition| condition.type_ != FILTERS_EVALUATED);
        assert_eq!(failing, fine);
        let aside = status(Some(&told), &["router-0"]);
        for r#type in [FILTERS_EVALUATED, READY] {
            let shown = condition(&aside.conditions, r#type).unwrap();
            assert_eq!((&*shown.status, &*shown.reason), ("False", "FilterTooExpensive"));
            assert!(
                shown
                    .message
                    .contains("no longer evaluated by router-0; events wait"),
                "{}",
                shown.message
            );
        }
        assert_eq!(condition(&aside.conditions, SINK_ANSWERING), None);
    }

    fn answering(status: &TriggerStatus) -> Option<(&str, &str)> {
        let condition = condition(&status.conditions, SINK_ANSWERING)?;
        Some((&*condition.status, &*condition.reason))
    }

    #[test]
    fn sink_answering_updates_only_once_every_router_has_applied_the_trigger() {
        let everywhere = Applied::Everywhere;
        let behind = Applied::Not(vec!["r1".into()]);
        let (no_router, not_heard) = (Applied::NoRouter, Applied::Awaited(vec![]));
        let (good, held) = (diagnosis(true, true, false), diagnosis(true, true, true));
        let (no_sink, no_filter) = (diagnosis(true, false, false), diagnosis(false, true, false));
        let (up, unsure, down) = (SinkSeen::Answering, SinkSeen::Unsure, down("503"));
        let was_up = seen(&good, &everywhere, &up, None);
        let was_down = seen(&good, &everywhere, &down, None);
        let (is_up, is_down) = (Some(("True", "Answering")), Some(("False", "SinkDown")));
        let (never, was_up, was_down) = (None, Some(&was_up), Some(&was_down));
        for (diagnosis, applied, sink, present, expected) in [
            (&good, &everywhere, &up, never, is_up),
            (&good, &everywhere, &down, never, is_down),
            (&good, &everywhere, &unsure, never, None),
            (&good, &everywhere, &up, was_down, is_up),
            (&good, &everywhere, &down, was_up, is_down),
            (&good, &everywhere, &unsure, was_down, is_down),
            (&good, &everywhere, &unsure, was_up, is_up),
            (&good, &behind, &up, never, None),
            (&good, &behind, &up, was_down, is_down),
            (&good, &behind, &down, was_up, is_up),
            (&good, &not_heard, &unsure, was_down, is_down),
            (&good, &no_router, &unsure, was_down, None),
            (&held, &everywhere, &up, was_down, None),
            (&no_sink, &everywhere, &up, was_up, None),
            (&no_filter, &everywhere, &down, was_up, None),
        ] {
            let status = seen(diagnosis, applied, sink, present);
            assert_eq!(
                answering(&status),
                expected,
                "{diagnosis:?} {applied:?} {sink:?} {present:?}"
            );
        }
    }

    #[test]
    fn down_sink_keeps_ready_and_is_reported_once() {
        let (good, everywhere) = (diagnosis(true, true, false), Applied::Everywhere);
        let up = seen(&good, &everywhere, &SinkSeen::Answering, None);
        let first = seen(&good, &everywhere, &down("503 Service Unavailable"), Some(&up));
        assert_eq!(
            condition(&first.conditions, READY),
            condition(&up.conditions, READY)
        );
        let message = &condition(&first.conditions, SINK_ANSWERING).unwrap().message;
        for part in [
            "since 2026-01-01T00:00:00Z,",
            "1 of 3 routers",
            "(r1): 503 Service",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let other = seen(&good, &everywhere, &down("refused"), Some(&first));
        assert_ne!(other, first, "the last error is told");

        let reasons = |before: &TriggerStatus, after: &TriggerStatus| -> Vec<(bool, String)> {
            transitions(&before.conditions, &after.conditions)
                .into_iter()
                .map(|told| (told.warns, told.reason))
                .collect()
        };
        assert_eq!(reasons(&up, &first), [(true, "SinkDown".to_owned())]);
        assert_eq!(reasons(&first, &other), [], "but not by an Event");
        assert_eq!(reasons(&other, &up), [(false, "Answering".to_owned())]);
        let unknown = seen(&good, &everywhere, &SinkSeen::Unsure, None);
        assert_eq!(reasons(&unknown, &up), [], "that all is well is no news");
        assert_eq!(reasons(&unknown, &first), [(true, "SinkDown".to_owned())]);
    }
}
