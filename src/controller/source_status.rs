//! Computes the status of a Source. Pure: the present status and the time are arguments.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    routers::Applied,
    source_activity::{self, ShownActivity},
    sources_seen::{SourceRuns, SourceSeen},
    statuses::{READY, ROUTER_OUT_OF_DATE, applied_finding, first_problem, url},
};
use crate::{
    api::{CONNECTED, SourceStatus, condition},
    resolve::{Finding, SourceDiagnosis},
    routing::{
        broker_key,
        protocol::{REJECTS_FOR, SourceFailure, SourceFailureCause},
    },
};

const NOT_RUNNING: &str = "NotRunning";

/// What the controller knows of a Source beside its diagnosis.
pub(super) struct SourceFacts<'a> {
    pub(super) applied: &'a Applied,
    pub(super) seen: &'a SourceSeen,
    /// Whether no router has run it for longer than a hand-over takes.
    pub(super) is_idle: bool,
    /// Time between two writes of the time of the last event.
    pub(super) shown_every: SignedDuration,
    /// Why a Source of kind kubernetes does not work, whose condition `Connected` `weir sources` writes.
    pub(super) objects_problem: Option<Finding>,
}

/// Computes a Source's status.
pub(super) fn source(
    diagnosis: &SourceDiagnosis,
    facts: &SourceFacts<'_>,
    present: Option<&SourceStatus>,
    broker_url: Option<&str>,
    webhook_url: Option<&str>,
    now: &Time,
) -> SourceStatus {
    let SourceDiagnosis {
        subject,
        valid,
        suspended,
        broker,
        is_webhook,
        is_kubernetes,
    } = diagnosis;
    let is_schedule = !is_webhook && !is_kubernetes;
    let SourceFacts {
        applied: progress,
        seen,
        is_idle: _,
        shown_every,
        objects_problem,
    } = facts;
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let applied = applied_finding(progress, condition(before, READY), subject.generation);
    let held = suspended.then(|| Finding::bad("Suspended", "spec.suspend is set: no events are produced"));
    let unserved = (*is_webhook && webhook_url.is_none()).then(|| {
        Finding::bad(
            "WebhooksDisabled",
            "this installation serves no webhooks: the operator can set webhooks.enabled in the chart, or --listen-hooks of \
             weir router and --webhook-base-url of weir controller",
        )
    });
    let unrun = match is_schedule {
        true => unrun_finding(facts, condition(before, READY), subject.generation),
        false => objects_problem.clone().filter(|_| *is_kubernetes),
    };
    // Whether it was applied before is not known from a status that says that it does not run.
    let (applied, last) = match (progress, unrun) {
        (Applied::Awaited(_), Some(unrun)) => (unrun, None),
        (_, unrun) => (applied, unrun),
    };
    let problems = [
        Some(valid),
        held.as_ref(),
        unserved.as_ref(),
        Some(&applied),
        last.as_ref(),
    ];
    let ready = first_problem(problems).unwrap_or_else(|| Finding::good("Ready", &*valid.message));
    let may_come = valid.holds && held.is_none() && unserved.is_none();
    let connected = match is_webhook {
        // `weir sources` writes that of the kind kubernetes.
        _ if !may_come || *is_kubernetes => None,
        _ if **progress == Applied::NoRouter => condition(before, CONNECTED).cloned(),
        true => Some(receiving(seen, subject.generation, present, now)),
        false => scheduling(facts, subject.generation, before, now),
    };
    let ShownActivity {
        last_event_time,
        last_rejection,
        waiting_since,
    } = ShownActivity::next(seen, present, now.0, *shown_every);
    SourceStatus {
        observed_generation: Some(subject.generation),
        conditions: [ready.condition(READY, subject.generation, before, now)]
            .into_iter()
            .chain(connected)
            .collect(),
        broker_url: url(broker_url, broker),
        webhook_url: url(
            webhook_url.filter(|_| *is_webhook),
            &broker_key(&subject.namespace, &subject.name),
        ),
        last_event_time,
        last_rejection,
        waiting_since: waiting_since.filter(|_| may_come),
    }
}

/// Whether a Source that has to run does not, as far as routers tell. `before` is the condition `Ready`.
fn unrun_finding(facts: &SourceFacts<'_>, before: Option<&Condition>, generation: i64) -> Option<Finding> {
    let before = before.filter(|before| before.observed_generation == Some(generation));
    let was_ready = before.is_some_and(|before| before.status == "True");
    let was_unrun = before.filter(|before| before.reason == NOT_RUNNING);
    let kept = was_unrun.map(|before| Finding::bad(NOT_RUNNING, &*before.message));
    match &facts.seen.runs {
        SourceRuns::Untold | SourceRuns::Somewhere => None,
        SourceRuns::Awaited => kept,
        SourceRuns::Outdated if was_ready => None,
        SourceRuns::Outdated => Some(kept.unwrap_or_else(|| {
            Finding::bad(
                ROUTER_OUT_OF_DATE,
                "no router has started it yet: this takes a moment",
            )
        })),
        // Another router takes it over within seconds.
        SourceRuns::Nowhere { .. } if was_ready && !facts.is_idle => None,
        SourceRuns::Nowhere { left_to, problem } => {
            let why = match (left_to, problem) {
                (Some(router), _) => format!(
                    "the routers leave schedules to the router {router} (--sources-router), which is not connected: start it, \
                     or name another one"
                ),
                (None, Some(problem)) => problem.as_str().to_owned(),
                (None, None) => {
                    "no router owns the shard of its broker; the routers' logs say why".to_owned()
                }
            };
            Some(Finding::bad(NOT_RUNNING, format!("no router runs it: {why}")))
        }
    }
}

/// The condition `Connected` of a Source that receives requests.
fn receiving(seen: &SourceSeen, generation: i64, present: Option<&SourceStatus>, now: &Time) -> Condition {
    let before = present
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    let shown = present.and_then(source_activity::last_event);
    if let Some(failure) = seen.failure_of_requests(shown, now.0) {
        return failed(failure, "requests are").condition(CONNECTED, generation, before, now);
    }
    let failed_at = condition(before, CONNECTED)
        .filter(|before| before.status == "False")
        .map(|before| before.last_transition_time.0);
    // Before a failure is told, no request is accepted for a while. So an earlier one is that of another router than the
    // one that failed and has restarted since.
    let is_news =
        |success: Timestamp| failed_at.is_none_or(|failed| failed.duration_since(success) < REJECTS_FOR);
    let accepted = Finding::good("RequestsAccepted", "requests come in and are verified");
    if seen.last_success.is_some_and(is_news) {
        return accepted.condition(CONNECTED, generation, before, now);
    }
    match (condition(before, CONNECTED), shown) {
        (Some(before), _) if before.status == "True" || before.observed_generation == Some(generation) => {
            Condition {
                observed_generation: Some(generation),
                ..before.clone()
            }
        }
        (Some(_), _) => {
            let finding = Finding::good(
                "NoRequestYet",
                "no request has come in since the Source was changed",
            );
            finding.condition_with_status("Unknown", CONNECTED, generation, before, now)
        }
        (None, Some(_)) => accepted.condition(CONNECTED, generation, before, now),
        (None, None) => {
            let message = "no request has come in yet: has the sender the URL in status.webhookUrl, and does it reach the port \
                           for webhooks?";
            let finding = Finding::good("NoRequestYet", message);
            finding.condition_with_status("Unknown", CONNECTED, generation, before, now)
        }
    }
}

/// The condition `Connected` of a Source that runs.
fn scheduling(
    facts: &SourceFacts<'_>,
    generation: i64,
    before: &[Condition],
    now: &Time,
) -> Option<Condition> {
    let kept = condition(before, CONNECTED);
    let finding = match (&facts.seen.runs, &facts.seen.failure) {
        (SourceRuns::Somewhere, Some(failure)) => failed(failure, "scheduled times are"),
        (SourceRuns::Somewhere, None) => {
            Finding::good("Scheduled", "the event of each scheduled time is stored")
        }
        (SourceRuns::Nowhere { .. }, _) if facts.is_idle || kept.is_none() => {
            Finding::bad(NOT_RUNNING, "no router runs it")
        }
        (SourceRuns::Nowhere { .. } | SourceRuns::Untold | SourceRuns::Awaited | SourceRuns::Outdated, _) => {
            return kept.cloned();
        }
    };
    Some(finding.condition(CONNECTED, generation, before, now))
}

/// `what` is affected, as the beginning of a sentence.
fn failed(failure: &SourceFailure, what: &str) -> Finding {
    let detail = failure.detail.as_str();
    let (reason, message) = match failure.cause {
        SourceFailureCause::Unsigned | SourceFailureCause::Verification => (
            "VerificationFails",
            format!("{what} rejected, since their sender is not proven: {detail}"),
        ),
        SourceFailureCause::Event => (
            "EventRejected",
            format!("{what} given up, since no event can be made of them: {detail}"),
        ),
        SourceFailureCause::Storage => (
            "NotStored",
            format!("{what} not stored, since the event log does not take them: {detail}"),
        ),
        SourceFailureCause::Ended => ("Ended", format!("it has ended: {detail}")),
        SourceFailureCause::Other => ("Failing", detail.to_owned()),
    };
    Finding::bad(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resolve::ResourceId, routing::protocol::SourceRejection};

    const EVERY: SignedDuration = SignedDuration::from_secs(60);

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(1_800_000_000 + second).unwrap())
    }

    fn diagnosis(is_webhook: bool) -> SourceDiagnosis {
        SourceDiagnosis {
            subject: ResourceId {
                uid: "u".into(),
                namespace: "n".into(),
                name: "s".into(),
                generation: 3,
            },
            valid: Finding::good("Valid", "produces events"),
            suspended: false,
            broker: "n/default".into(),
            is_webhook,
            is_kubernetes: false,
        }
    }

    fn seen(runs: SourceRuns) -> SourceSeen {
        SourceSeen {
            runs,
            is_known: true,
            last_event: None,
            last_success: None,
            failure: None,
            last_rejection: None,
            waiting_since: None,
        }
    }

    fn nowhere() -> SourceRuns {
        SourceRuns::Nowhere {
            left_to: Some("r-0".into()),
            problem: None,
        }
    }

    fn failure(cause: SourceFailureCause, second: i64) -> Option<SourceFailure> {
        Some(SourceFailure {
            cause,
            at: at(second).0,
            detail: "the log is full".into(),
        })
    }

    fn made(
        diagnosis: &SourceDiagnosis,
        applied: &Applied,
        (seen, is_idle): (&SourceSeen, bool),
        present: Option<&SourceStatus>,
        second: i64,
    ) -> SourceStatus {
        let facts = SourceFacts {
            applied,
            seen,
            is_idle,
            shown_every: EVERY,
            objects_problem: None,
        };
        let hooks = Some("https://hooks.example.com/");
        source(diagnosis, &facts, present, None, hooks, &at(second))
    }

    /// Status and reason of a condition.
    fn told(status: &SourceStatus, r#type: &str) -> String {
        let condition = condition(&status.conditions, r#type);
        condition.map_or_else(String::new, |found| format!("{} {}", found.status, found.reason))
    }

    #[test]
    fn schedule_is_ready_once_a_router_runs_it() {
        let (cron, everywhere) = (diagnosis(false), Applied::Everywhere);
        let running = made(&cron, &everywhere, (&seen(SourceRuns::Somewhere), false), None, 0);
        assert_eq!(
            (told(&running, READY), told(&running, CONNECTED)),
            ("True Ready".into(), "True Scheduled".into())
        );
        let unrun = made(&cron, &everywhere, (&seen(nowhere()), false), None, 0);
        let changed = SourceDiagnosis {
            subject: ResourceId {
                generation: 4,
                ..cron.subject.clone()
            },
            ..cron.clone()
        };
        for (diagnosis, runs, is_idle, present, ready, connected) in [
            (
                &cron,
                nowhere(),
                false,
                None,
                "False NotRunning",
                "False NotRunning",
            ),
            (
                &cron,
                nowhere(),
                false,
                Some(&running),
                "True Ready",
                "True Scheduled",
            ),
            (
                &cron,
                nowhere(),
                true,
                Some(&running),
                "False NotRunning",
                "False NotRunning",
            ),
            (
                &cron,
                SourceRuns::Outdated,
                false,
                None,
                "False RouterOutOfDate",
                "",
            ),
            (
                &cron,
                SourceRuns::Outdated,
                false,
                Some(&running),
                "True Ready",
                "True Scheduled",
            ),
            (
                &changed,
                SourceRuns::Outdated,
                false,
                Some(&running),
                "False RouterOutOfDate",
                "True Scheduled",
            ),
            (
                &cron,
                SourceRuns::Outdated,
                false,
                Some(&unrun),
                "False NotRunning",
                "False NotRunning",
            ),
            (
                &cron,
                SourceRuns::Awaited,
                false,
                Some(&unrun),
                "False NotRunning",
                "False NotRunning",
            ),
            (&cron, SourceRuns::Awaited, false, None, "True Ready", ""),
            (
                &cron,
                SourceRuns::Untold,
                false,
                Some(&unrun),
                "True Ready",
                "False NotRunning",
            ),
            (
                &cron,
                SourceRuns::Somewhere,
                false,
                Some(&unrun),
                "True Ready",
                "True Scheduled",
            ),
        ] {
            let status = made(diagnosis, &everywhere, (&seen(runs.clone()), is_idle), present, 1);
            assert_eq!(told(&status, READY), ready, "{runs:?} {present:?}");
            assert_eq!(told(&status, CONNECTED), connected, "{runs:?} {present:?}");
        }
        let message = &condition(&unrun.conditions, READY).unwrap().message;
        assert!(message.contains("the router r-0 (--sources-router)"), "{message}");
        // A controller that starts knows no routers yet.
        let awaited = Applied::Awaited(vec![]);
        for before in [&running, &unrun] {
            let status = made(
                &cron,
                &awaited,
                (&seen(SourceRuns::Awaited), false),
                Some(before),
                1,
            );
            assert_eq!(status, *before);
        }
        let fresh = made(&cron, &awaited, (&seen(SourceRuns::Awaited), false), None, 1);
        assert_eq!(told(&fresh, READY), "False NoRouter");
    }

    #[test]
    fn schedule_tells_why_events_are_not_stored() {
        let waiting = SourceSeen {
            failure: failure(SourceFailureCause::Storage, 0),
            waiting_since: Some(at(0).0),
            ..seen(SourceRuns::Somewhere)
        };
        let cron = diagnosis(false);
        let status = made(&cron, &Applied::Everywhere, (&waiting, false), None, 1);
        assert_eq!(
            (told(&status, READY), told(&status, CONNECTED)),
            ("True Ready".into(), "False NotStored".into())
        );
        assert_eq!(status.waiting_since, Some(at(0).0.to_string()));
        let suspended = SourceDiagnosis {
            suspended: true,
            ..cron
        };
        let status = made(
            &suspended,
            &Applied::Everywhere,
            (&waiting, false),
            Some(&status),
            2,
        );
        assert_eq!(
            (told(&status, CONNECTED), status.waiting_since),
            (String::new(), None)
        );
    }

    #[test]
    fn webhook_is_connected_while_requests_are_accepted() {
        let (hook, everywhere) = (diagnosis(true), Applied::Everywhere);
        let none = || {
            seen(SourceRuns::Nowhere {
                left_to: None,
                problem: None,
            })
        };
        let status =
            |seen: &SourceSeen, present, second| made(&hook, &everywhere, (seen, true), present, second);
        let fresh = status(&none(), None, 0);
        assert_eq!(
            (told(&fresh, READY), told(&fresh, CONNECTED)),
            ("True Ready".into(), "Unknown NoRequestYet".into())
        );
        assert_eq!(
            fresh.webhook_url.as_deref(),
            Some("https://hooks.example.com/n/s")
        );
        let accepting = SourceSeen {
            last_success: Some(at(10).0),
            last_event: Some(at(10).0),
            ..none()
        };
        let accepted = status(&accepting, Some(&fresh), 10);
        assert_eq!(told(&accepted, CONNECTED), "True RequestsAccepted");
        let forgetful = status(&none(), Some(&accepted), 500);
        assert_eq!(forgetful, accepted, "routers that restarted know nothing");
        let rejecting = SourceSeen {
            failure: failure(SourceFailureCause::Verification, 20),
            last_rejection: Some(SourceRejection {
                at: at(20).0,
                reason: "invalid_signature".into(),
                detail: "wrong".into(),
            }),
            ..none()
        };
        let lasting = 10 + REJECTS_FOR.as_secs();
        assert_eq!(
            told(&status(&rejecting, Some(&accepted), lasting - 1), CONNECTED),
            "True RequestsAccepted"
        );
        let rejected = status(&rejecting, Some(&accepted), lasting);
        assert_eq!(told(&rejected, CONNECTED), "False VerificationFails");
        assert_eq!(
            rejected.last_rejection.as_ref().unwrap().reason,
            "invalid_signature"
        );
        let by_another = status(&accepting, Some(&rejected), lasting + 1);
        assert_eq!(told(&by_another, CONNECTED), "False VerificationFails");
        // It was accepted just before the failure was told.
        let raced = SourceSeen {
            last_success: Some(at(lasting - 2).0),
            ..none()
        };
        assert_eq!(
            told(&status(&raced, Some(&rejected), lasting + 1), CONNECTED),
            "True RequestsAccepted"
        );
        // After it was suspended, only the time of the last event is known.
        let resumed = SourceStatus {
            conditions: vec![],
            ..accepted.clone()
        };
        assert_eq!(
            told(&status(&none(), Some(&resumed), 500), CONNECTED),
            "True RequestsAccepted"
        );
        let again = SourceSeen {
            last_success: Some(at(lasting + 1).0),
            ..rejecting
        };
        assert_eq!(
            told(&status(&again, Some(&rejected), lasting + 2), CONNECTED),
            "True RequestsAccepted"
        );
        let unserved = source(
            &hook,
            &SourceFacts {
                applied: &everywhere,
                seen: &none(),
                is_idle: false,
                shown_every: EVERY,
                objects_problem: None,
            },
            None,
            None,
            None,
            &at(0),
        );
        assert_eq!(told(&unserved, READY), "False WebhooksDisabled");
        assert_eq!(
            (told(&unserved, CONNECTED), unserved.webhook_url),
            (String::new(), None)
        );
    }
}
