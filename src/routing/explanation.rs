//! Explains whether an event matches each Trigger, and why, with the routing table that routes it. Pure.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Route, RoutingTable};
use crate::{
    cloudevents::Event,
    filter::{Decision, Explanation},
    transform::TransformExplanation,
};

/// Why a Trigger matches an event or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteExplanation {
    /// The Trigger's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it matches the event.
    pub matches: bool,
    /// Result of each of its filters, which must all match.
    pub filters: Vec<Explanation>,
    /// What its transform makes of the event, if it matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<TransformExplanation>,
    /// Why its filters or its transform do not compile, so that it matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// Why it delivers nothing at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<WaitReason>,
}

/// Why a Trigger delivers nothing, and events wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WaitReason {
    /// It is suspended.
    Suspended,
    /// Its Sink is not resolved.
    NoDestination,
    /// Its filters exceeded their budget for too many events and are no longer evaluated.
    FilterTooExpensive,
}

/// Explains for each Trigger of a broker whether it matches an event. The decisions are those of routing.
pub fn explain(table: &RoutingTable, broker: &str, event: &Event) -> Vec<RouteExplanation> {
    explain_while(table, broker, event, || true)
}

/// Explains like [`explain`], and stops with the Triggers explained so far once `should_continue` is false.
pub fn explain_while(
    table: &RoutingTable,
    broker: &str,
    event: &Event,
    should_continue: impl Fn() -> bool,
) -> Vec<RouteExplanation> {
    let Some(broker) = table.brokers().get(broker) else {
        return Vec::new();
    };
    let mut matching = BTreeSet::new();
    broker.deciding(
        event,
        |_| should_continue(),
        |index, decision| {
            if matches!(decision, Decision::Pass) {
                matching.insert(index);
            }
        },
    );
    let routes = broker.routes().iter().enumerate();
    let mut explained: Vec<_> = routes
        .take_while(|_| should_continue())
        .map(|(index, route)| explain_route(route, matching.contains(&index), event))
        .collect();
    explained.sort_by(|a, b| a.name.cmp(&b.name));
    explained
}

fn explain_route(route: &Route, matches: bool, event: &Event) -> RouteExplanation {
    let Route {
        trigger,
        filter,
        transform,
    } = route;
    RouteExplanation {
        namespace: trigger.namespace.clone(),
        name: trigger.name.clone(),
        matches,
        filters: filter
            .as_ref()
            .map(|filter| filter.explain(event))
            .unwrap_or_default(),
        transform: transform
            .as_ref()
            .filter(|_| matches)
            .map(|transform| transform.explain(event)),
        invalid: filter.as_ref().err().map(ToString::to_string),
        held: match (trigger.suspend, &trigger.destination) {
            (true, _) => Some(WaitReason::Suspended),
            (false, None) => Some(WaitReason::NoDestination),
            (false, Some(_)) => None,
        },
    }
}
