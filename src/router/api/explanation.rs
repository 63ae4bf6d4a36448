//! Answer of `/v1/explain`: why an event matches each Trigger of a broker or not, and how far its delivery is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::SinkDown;
use crate::{cloudevents::Event, log::Offset, routing::RouteExplanation};

/// Explanation of an event for the Triggers of a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// Broker, as `namespace/name`.
    pub broker: String,
    /// The event.
    pub event: EventName,
    /// Its offset in the log of the broker, if it was looked up there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<EventPlace>,
    /// Every Trigger of the broker, ordered by name.
    pub triggers: Vec<TriggerExplained>,
    /// Deleted Triggers of the broker whose checkpoints the router retains for others of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<DeletedTrigger>,
    /// Routers that deliver other partitions of the broker and did not answer, each with the problem. What they know is
    /// missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unanswered: Vec<String>,
}

/// A deleted Trigger whose checkpoint is retained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletedTrigger {
    /// Namespace of the Trigger.
    pub namespace: String,
    /// Name of the Trigger.
    pub name: String,
    /// Number of events wanted and not settled.
    pub pending: u64,
    /// Number of events of the broker that it has not looked at.
    pub not_looked_at: u64,
    /// Seconds until its checkpoint expires.
    pub seconds_left: u64,
}

/// Identifies an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventName {
    /// `id` of the event.
    pub id: String,
    /// `source` of the event.
    pub source: String,
    /// `type` of the event.
    pub r#type: String,
}

/// Place of an event in its broker's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventPlace {
    /// Offset of the event.
    pub offset: Offset,
    /// Time of acceptance.
    pub accepted: Timestamp,
    /// Number of records searched to find it, the newest first.
    pub looked_at: u64,
}

/// Explanation of why a Trigger matches an event or not, with the state of its delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerExplained {
    /// Explanation by the routing table.
    #[serde(flatten)]
    pub route: RouteExplanation,
    /// Progress of the Trigger, for an event of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<DeliveryProgress>,
}

/// Progress of a Trigger relative to an event of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryProgress {
    /// State of the event, if the Trigger wants it.
    pub state: EventState,
    /// Next offset that it looks at.
    pub next: Offset,
    /// Low watermark of its last saved checkpoint.
    pub low: Offset,
    /// Number of events wanted and not settled.
    pub pending: u64,
    /// Whether events wait and its Sink has not answered since the router started or the Sink changed.
    #[serde(default)]
    pub sink_unproven: bool,
    /// Outage of its Sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<SinkDown>,
    /// Dead letter that the event became for this Trigger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterOf>,
}

/// State of a wanted event, by the Trigger's checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventState {
    /// The Trigger has not reached it yet.
    Ahead,
    /// It waits for delivery: it was the first unsettled event of the last saved checkpoint.
    Pending,
    /// It waits for delivery, or is settled.
    PendingOrSettled,
    /// It is settled, or the Trigger began behind it.
    Settled,
}

/// A dead letter of the event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterOf {
    /// Identifies it within its broker.
    pub id: Offset,
    /// Reason why delivery ended.
    pub reason: String,
    /// Result of the last attempt.
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
