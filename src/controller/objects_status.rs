//! What the status of a Source of kind kubernetes is Ready by: the condition that `weir sources` writes, and whether such
//! a process runs. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{election::LeaseHealth, resolve::Finding};

/// Reason for a Source that was not taken up yet. Transient.
pub(super) const CONNECTION_AWAITED: &str = "ConnectionAwaited";

/// Returns why such a Source is not Ready. `process` is whether `weir sources` runs; `None` if the installation has none.
/// `connected` is the condition that it wrote.
pub(super) fn objects_problem(
    process: Option<LeaseHealth>,
    connected: Option<&Condition>,
    generation: i64,
) -> Option<Finding> {
    let bad = |reason, message: String| Some(Finding::bad(reason, message));
    match process {
        None => {
            return bad(
                "SourcesDisabled",
                "this installation does not run Sources of kind kubernetes: the operator can set sources.enabled in the \
                 chart, or run weir sources and set --sources-lease of weir controller"
                    .to_owned(),
            );
        }
        Some(LeaseHealth::Abandoned) => {
            return bad(
                "SourcesNotRunning",
                "no process weir sources leads: the operator can look at its Deployment and its log. Changes are told once \
                 one does"
                    .to_owned(),
            );
        }
        Some(LeaseHealth::Held | LeaseHealth::Unknown) => {}
    }
    let connected = connected.filter(|connected| connected.observed_generation == Some(generation));
    match connected {
        Some(connected) if connected.status == "True" => None,
        Some(connected) if connected.status == "Unknown" => {
            bad(CONNECTION_AWAITED, format!("weir sources {}", connected.message))
        }
        Some(Condition { reason, message, .. }) => bad("NotConnected", format!("{reason}: {message}")),
        None => bad(
            CONNECTION_AWAITED,
            "weir sources has not started this Source yet".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn connected(status: &str, generation: i64) -> Condition {
        Condition {
            type_: "Connected".to_owned(),
            status: status.to_owned(),
            reason: "Forbidden".to_owned(),
            message: "grant it".to_owned(),
            observed_generation: Some(generation),
            last_transition_time: Time("2026-01-01T00:00:00Z".parse().unwrap()),
        }
    }

    #[test]
    fn a_source_is_ready_while_a_process_watches_its_objects() {
        let held = Some(LeaseHealth::Held);
        let listing = Condition {
            message: "lists the objects of Pod".to_owned(),
            ..connected("Unknown", 2)
        };
        let good = connected("True", 2);
        let bad = connected("False", 2);
        for (process, connected, reason) in [
            (None, Some(&good), Some("SourcesDisabled")),
            (
                Some(LeaseHealth::Abandoned),
                Some(&good),
                Some("SourcesNotRunning"),
            ),
            (Some(LeaseHealth::Unknown), Some(&good), None),
            (held, Some(&good), None),
            (held, Some(&bad), Some("NotConnected")),
            (held, None, Some(CONNECTION_AWAITED)),
            (held, Some(&listing), Some(CONNECTION_AWAITED)),
        ] {
            let problem = objects_problem(process, connected, 2);
            assert_eq!(problem.map(|problem| problem.reason), reason, "{process:?}");
        }
        let earlier = objects_problem(held, Some(&good), 3);
        assert_eq!(earlier.map(|problem| problem.reason), Some(CONNECTION_AWAITED));
        let message = objects_problem(held, Some(&bad), 2).map(|problem| problem.message);
        assert_eq!(message.as_deref(), Some("Forbidden: grant it"));
    }
}
