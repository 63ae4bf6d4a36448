//! What `/v1/explain` answers with: why an event matches each Trigger of a broker or not, and how far its delivery is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::SinkDown;
use crate::{cloudevents::Event, log::Offset, routing::RouteExplanation};

/// What the Triggers of a broker make of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// As `namespace/name`.
    pub broker: String,
    /// Which event.
    pub event: EventName,
    /// Where it is in the broker's log, if it was looked for there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<EventPlace>,
    /// Every Trigger of the broker, in order of their names.
    pub triggers: Vec<TriggerExplained>,
    /// Triggers of the broker that were deleted, and whose places the router keeps for others of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<DeletedTrigger>,
}

/// A Trigger that was deleted, and whose place is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletedTrigger {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many events it wanted that were not settled.
    pub pending: u64,
    /// How many events of the broker it has not looked at.
    pub not_looked_at: u64,
    /// How much longer its place is kept.
    pub seconds_left: u64,
}

/// What tells an event from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventName {
    /// Its `id`.
    pub id: String,
    /// Its `source`.
    pub source: String,
    /// Its `type`.
    pub r#type: String,
}

/// Where an event is in its broker's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventPlace {
    /// Its place.
    pub offset: Offset,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// How many records were looked at to find it, the newest first.
    pub looked_at: u64,
}

/// Why a Trigger matches an event or not, and what that means for its delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerExplained {
    /// By the routing table.
    #[serde(flatten)]
    pub route: RouteExplanation,
    /// How far it is, for an event of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<DeliveryProgress>,
}

/// How far a Trigger is, seen from an event of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryProgress {
    /// What that means for the event, if the Trigger wants it.
    pub state: EventState,
    /// The offset that it looks at next.
    pub next: Offset,
    /// The first offset that it had not settled when its progress was last saved.
    pub low: Offset,
    /// How many events it wants that are not settled.
    pub pending: u64,
    /// Whether events wait and its Sink has not answered since the router started or the Sink was changed.
    #[serde(default)]
    pub sink_unproven: bool,
    /// Why its Sink is taken to be down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<SinkDown>,
    /// What the event became for this Trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterOf>,
}

/// What a Trigger's cursor says of an event that it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventState {
    /// The Trigger has not come to it yet.
    Ahead,
    /// It waits to be delivered: it was the first that was not settled when progress was last saved.
    Pending,
    /// It is one of those that wait to be delivered, or settled.
    PendingOrSettled,
    /// It is settled, or the Trigger began behind it.
    Settled,
}

/// A dead letter of the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterOf {
    /// Names it within its broker.
    pub id: Offset,
    /// Why delivery ended.
    pub reason: String,
    /// What came of the last attempt.
    pub detail: String,
}

impl From<&Event> for EventName {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id().to_owned(),
            source: event.source().to_owned(),
            r#type: event.r#type().to_owned(),
        }
    }
}

impl From<RouteExplanation> for TriggerExplained {
    fn from(route: RouteExplanation) -> Self {
        Self {
            route,
            progress: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        routing::{Configuration, RoutingTable, explain},
    };

    #[test]
    fn explanation_of_a_trigger_is_one_flat_object() {
        let trigger = serde_json::from_value(json!({
            "uid": "u", "namespace": "shop", "name": "t", "generation": 1, "broker": "default",
            "filters": [{"exact": {"type": "order"}}, {"exact": {"source": "/other"}}], "destination": null,
            "delivery": crate::routing::Delivery::default(), "start": "Latest", "suspend": false,
        }));
        let table = RoutingTable::compile(Configuration {
            triggers: vec![trigger.unwrap()],
            ..Configuration::default()
        });
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/s")
            .attribute("type", "order");
        let explained = explain(&table, "shop/default", &event.build().unwrap());
        let explained = TriggerExplained {
            progress: Some(DeliveryProgress {
                state: EventState::Ahead,
                next: Offset(3),
                low: Offset(3),
                pending: 0,
                sink_unproven: false,
                outage: None,
                dead_letter: None,
            }),
            ..explained.into_iter().next().unwrap().into()
        };
        let filter = |attribute: &str, wanted: &str, has: &str, outcome: &str| {
            json!({
                "clause": format!("exact {attribute} = {wanted:?}"), "outcome": outcome,
                "saw": [{"attribute": attribute, "value": has}],
            })
        };
        let expected = json!({
            "namespace": "shop", "name": "t", "matches": false, "held": "noDestination",
            "filters": [filter("type", "order", "order", "holds"), filter("source", "/other", "/s", "fails")],
            "progress": {"state": "ahead", "next": 3, "low": 3, "pending": 0, "sinkUnproven": false},
        });
        assert_eq!(serde_json::to_value(&explained).unwrap(), expected);
        let text = serde_json::to_string(&explained).unwrap();
        assert_eq!(
            serde_json::from_str::<TriggerExplained>(&text).unwrap(),
            explained
        );
    }
}
