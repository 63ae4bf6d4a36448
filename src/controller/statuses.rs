//! What the status of each resource should say. Pure: the present status and the time come in as arguments.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    diagnosis::{Finding, SinkDiagnosis, SourceDiagnosis, TriggerDiagnosis},
    routers::Applied,
};
use crate::api::{SinkStatus, SourceStatus, TriggerStatus, condition};

/// The condition that people wait for.
pub(super) const READY: &str = "Ready";

/// Whether routers route by the resource as it is.
const APPLIED: &str = "Applied";

/// What a Trigger's status should be.
pub(super) fn trigger(
    diagnosis: &TriggerDiagnosis,
    applied: &Applied,
    present: Option<&TriggerStatus>,
    broker_url: Option<&str>,
    now: &Time,
) -> TriggerStatus {
    let TriggerDiagnosis {
        subject,
        filters,
        sink,
        dead_letter_sink,
        sink_uri,
        suspended,
        broker,
    } = diagnosis;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let applied = applied_finding(applied, condition(before, APPLIED), subject.generation);
    let flows = || {
        let uri = sink_uri.as_deref().unwrap_or_default();
        Finding::good(
            "Ready",
            format!("events of broker {broker} that match go to {uri}"),
        )
    };
    let held =
        suspended.then(|| Finding::bad("Suspended", "spec.suspend is set: events wait, and none is lost"));
    let problems = [
        Some(filters),
        Some(sink),
        dead_letter_sink.as_ref(),
        held.as_ref(),
        Some(&applied),
    ];
    let ready = first_problem(problems).unwrap_or_else(flows);
    let conditions = [
        Some((READY, &ready)),
        Some(("FiltersValid", filters)),
        Some(("SinkResolved", sink)),
        dead_letter_sink
            .as_ref()
            .map(|finding| ("DeadLetterSinkResolved", finding)),
        Some((APPLIED, &applied)),
    ];
    TriggerStatus {
        observed_generation: Some(subject.generation),
        conditions: conditions
            .into_iter()
            .flatten()
            .map(|(r#type, finding)| make(r#type, finding, subject.generation, before, now))
            .collect(),
        sink_uri: sink_uri.clone(),
        broker_url: url(broker_url, broker),
    }
}

/// What a Sink's status should be.
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
        conditions: vec![make(READY, resolved, subject.generation, before, now)],
        uri: uri.clone(),
    }
}

/// What a Source's status should be.
pub(super) fn source(
    diagnosis: &SourceDiagnosis,
    applied: &Applied,
    present: Option<&SourceStatus>,
    broker_url: Option<&str>,
    now: &Time,
) -> SourceStatus {
    let SourceDiagnosis {
        subject,
        valid,
        suspended,
        broker,
    } = diagnosis;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let applied = applied_finding(applied, condition(before, READY), subject.generation);
    let held = suspended.then(|| Finding::bad("Suspended", "spec.suspend is set: no events are made"));
    let ready = first_problem([Some(valid), held.as_ref(), Some(&applied)])
        .unwrap_or_else(|| Finding::good("Ready", &*valid.message));
    SourceStatus {
        observed_generation: Some(subject.generation),
        conditions: vec![make(READY, &ready, subject.generation, before, now)],
        broker_url: url(broker_url, broker),
    }
}

/// How Ready changed, if it did: an Event tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transition {
    pub(super) ready: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

/// Compares Ready before and after.
pub(super) fn transition(before: &[Condition], after: &[Condition]) -> Option<Transition> {
    let after = condition(after, READY)?;
    let before = condition(before, READY).map(|ready| (&ready.status, &ready.reason));
    (before != Some((&after.status, &after.reason))).then(|| Transition {
        ready: after.status == "True",
        reason: after.reason.clone(),
        message: after.message.clone(),
    })
}

fn first_problem<const N: usize>(findings: [Option<&Finding>; N]) -> Option<Finding> {
    findings
        .into_iter()
        .flatten()
        .find(|finding| !finding.holds)
        .cloned()
}

/// `before` is the condition that says what is known of this generation from before the controller started.
fn applied_finding(applied: &Applied, before: Option<&Condition>, generation: i64) -> Finding {
    match applied {
        Applied::NotHeard => {
            // Routers go on by what they have while there is no controller, so its start alone changes nothing.
            match before
                .filter(|before| before.status == "True" && before.observed_generation == Some(generation))
            {
                Some(before) => Finding::good("Applied", &*before.message),
                None => applied_finding(&Applied::NoRouter, None, generation),
            }
        }
        Applied::Everywhere(count) => Finding::good("Applied", format!("applied by every router ({count})")),
        Applied::NoRouter => Finding::bad(
            "NoRouter",
            "no router is connected: check that one runs and can reach the controller (weir router --controller)",
        ),
        Applied::Not(routers) => Finding::bad(
            "RouterOutOfDate",
            format!(
                "not applied yet by {}: this takes a moment; if it stays, see the router's log",
                routers.join(", ")
            ),
        ),
    }
}

fn url(base: Option<&str>, broker: &str) -> Option<String> {
    base.map(|base| format!("{}/{broker}", base.trim_end_matches('/')))
}

/// `lastTransitionTime` moves only when the status flips.
fn make(r#type: &str, finding: &Finding, generation: i64, before: &[Condition], now: &Time) -> Condition {
    let status = if finding.holds { "True" } else { "False" };
    let since = condition(before, r#type).filter(|before| before.status == status);
    Condition {
        type_: r#type.to_owned(),
        status: status.to_owned(),
        reason: finding.reason.to_owned(),
        message: finding.message.clone(),
        observed_generation: Some(generation),
        last_transition_time: since.map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::diagnosis::Subject;

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
            subject: Subject {
                uid: "u".into(),
                namespace: "n".into(),
                name: "t".into(),
                generation: 3,
            },
            filters: finding(filters, "InvalidFilter"),
            sink: finding(sink, "SinkNotFound"),
            dead_letter_sink: None,
            sink_uri: sink.then(|| "http://sink/".to_owned()),
            suspended,
            broker: "n/default".into(),
        }
    }

    #[test]
    fn ready_tells_the_first_thing_that_is_not_right() {
        let everywhere = Applied::Everywhere(2);
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
    fn a_start_of_the_controller_changes_nothing_before_routers_are_heard() {
        let now = at("2026-01-01T00:00:00Z");
        let make = |diagnosis: &TriggerDiagnosis, applied: &Applied, present: Option<&TriggerStatus>| {
            trigger(diagnosis, applied, present, None, &now)
        };
        let reason = |status: &TriggerStatus| condition(&status.conditions, READY).unwrap().reason.clone();
        let good = diagnosis(true, true, false);
        let ready = make(&good, &Applied::Everywhere(1), None);
        assert_eq!(make(&good, &Applied::NotHeard, Some(&ready)), ready);
        assert_eq!(reason(&make(&good, &Applied::NoRouter, Some(&ready))), "NoRouter");
        // What was not applied before, or not as it is now, is not claimed to be.
        assert_eq!(reason(&make(&good, &Applied::NotHeard, None)), "NoRouter");
        let mut edited = good.clone();
        edited.subject.generation += 1;
        assert_eq!(
            reason(&make(&edited, &Applied::NotHeard, Some(&ready))),
            "NoRouter"
        );
        // What is wrong in itself is told at once.
        let broken = make(&diagnosis(true, false, false), &Applied::NotHeard, Some(&ready));
        assert_eq!(reason(&broken), "SinkNotFound");

        let finding = Finding::good("Valid", "an event a minute");
        let clock = SourceDiagnosis {
            subject: good.subject.clone(),
            valid: finding,
            suspended: false,
            broker: "n/default".into(),
        };
        let running = source(&clock, &Applied::Everywhere(1), None, None, &now);
        assert_eq!(
            source(&clock, &Applied::NotHeard, Some(&running), None, &now),
            running
        );
        let fresh = source(&clock, &Applied::NotHeard, None, None, &now);
        assert_eq!(condition(&fresh.conditions, READY).unwrap().reason, "NoRouter");
    }

    #[test]
    fn the_time_of_a_condition_moves_only_when_its_status_flips() {
        let (early, late) = (at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"));
        let first = trigger(
            &diagnosis(true, false, false),
            &Applied::NoRouter,
            None,
            None,
            &early,
        );
        let same = trigger(
            &diagnosis(true, false, false),
            &Applied::NoRouter,
            Some(&first),
            None,
            &late,
        );
        assert_eq!(same, first);
        assert_eq!(transition(&first.conditions, &same.conditions), None);
        let resolved = trigger(
            &diagnosis(true, true, false),
            &Applied::NoRouter,
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
        let told = transition(&first.conditions, &resolved.conditions).unwrap();
        assert_eq!((told.ready, &*told.reason), (false, "NoRouter"));
    }
}
