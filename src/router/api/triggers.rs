//! `GET /v1/triggers`: the current delivery of each Trigger.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use arc_swap::ArcSwapOption;
use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    delivery::TriggerStats,
    ownership::{OwnedTrigger, Shards},
    routing::RoutingTable,
};

/// Triggers of a router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerList {
    /// Ordered by namespace and name.
    pub items: Vec<TriggerSnapshot>,
}

/// A Trigger's delivery at one moment. At rest, `matched` is the sum of `delivered`, `deadLettered`, `expired`,
/// `dropped` and `pending`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TriggerSnapshot {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Its broker, as `namespace/name`.
    pub broker: String,
    /// Events that matched since the Trigger was created.
    pub matched: u64,
    /// Events that the Sink accepted.
    pub delivered: u64,
    /// Events that became dead letters.
    pub dead_lettered: u64,
    /// Events that expired before they could be delivered.
    pub expired: u64,
    /// Events that were dropped, because they could not be read or were removed from a full log.
    pub dropped: u64,
    /// Events that matched and are not settled.
    pub pending: u64,
    /// Events of the broker that the Trigger has not looked at yet.
    pub backlog: u64,
    /// Delivery attempts in flight.
    pub in_flight: u64,
    /// The outage of its Sink; null if there is none.
    pub sink_down: Option<SinkDown>,
    /// Whether it is suspended, so that events wait.
    pub suspended: bool,
    /// Whether its filters exceeded their budget too often and are no longer evaluated, so that events wait.
    pub set_aside: bool,
    /// Whether delivery has stopped because the event log cannot be read.
    pub stopped: bool,
}

/// The outage of a Sink that keeps failing or has asked for a long pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkDown {
    /// Start of the outage.
    pub since: Timestamp,
    /// Result of the last attempt.
    pub detail: String,
}

impl TriggerSnapshot {
    fn of(trigger: &OwnedTrigger, suspended: &BTreeSet<&str>) -> Self {
        Self {
            namespace: trigger.namespace().to_owned(),
            name: trigger.name().to_owned(),
            uid: trigger.uid().to_owned(),
            broker: trigger.broker().to_string(),
            matched: trigger.sum(TriggerStats::matched),
            delivered: trigger.sum(TriggerStats::delivered),
            dead_lettered: trigger.sum(TriggerStats::dead_lettered),
            expired: trigger.sum(TriggerStats::expired),
            dropped: trigger.sum(TriggerStats::dropped),
            pending: trigger.sum(TriggerStats::pending),
            backlog: trigger.backlog(),
            in_flight: trigger.sum(TriggerStats::in_flight),
            sink_down: trigger.outage().map(|outage| SinkDown {
                since: outage.since,
                detail: outage.detail.clone(),
            }),
            suspended: suspended.contains(trigger.uid()),
            set_aside: trigger.any(TriggerStats::is_set_aside),
            stopped: trigger.any(TriggerStats::is_stopped),
        }
    }

    /// Adds the delivery of other partitions by another router.
    fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.delivered += other.delivered;
        self.dead_lettered += other.dead_lettered;
        self.expired += other.expired;
        self.dropped += other.dropped;
        self.pending += other.pending;
        self.backlog += other.backlog;
        self.in_flight += other.in_flight;
        let outages = self.sink_down.take().into_iter().chain(other.sink_down);
        self.sink_down = outages.min_by_key(|down| down.since);
        self.suspended |= other.suspended;
        self.set_aside |= other.set_aside;
        self.stopped |= other.stopped;
    }
}

impl TriggerList {
    /// Combines the lists of several routers. Each may deliver some partitions of a Trigger's broker.
    pub(in crate::router) fn combine(lists: impl IntoIterator<Item = Self>) -> Self {
        let mut triggers = BTreeMap::new();
        for trigger in lists.into_iter().flat_map(|list| list.items) {
            let key = (
                trigger.namespace.clone(),
                trigger.name.clone(),
                trigger.uid.clone(),
            );
            match triggers.entry(key) {
                Entry::Vacant(entry) => drop(entry.insert(trigger)),
                Entry::Occupied(mut known) => known.get_mut().add(trigger),
            }
        }
        Self {
            items: triggers.into_values().collect(),
        }
    }
}

/// State behind the route.
#[derive(Clone)]
pub(in crate::router) struct Triggers {
    pub(in crate::router) shards: Arc<Shards>,
    /// `None` until the first routing configuration has been applied.
    pub(in crate::router) table: Arc<ArcSwapOption<RoutingTable>>,
}

/// Creates the route `/v1/triggers`.
pub(in crate::router) fn routes(triggers: Triggers) -> Router {
    Router::new()
        .route("/v1/triggers", get(list))
        .with_state(triggers)
}

async fn list(State(triggers): State<Triggers>) -> Json<TriggerList> {
    Json(triggers.list())
}

impl Triggers {
    fn list(&self) -> TriggerList {
        let table = self.table.load();
        let configured = table.iter().flat_map(|table| table.triggers());
        let suspended = configured
            .filter(|trigger| trigger.suspend)
            .map(|trigger| trigger.uid.as_str())
            .collect();
        let triggers = self.shards.triggers();
        TriggerList {
            items: triggers
                .iter()
                .map(|trigger| TriggerSnapshot::of(trigger, &suspended))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, StatusCode};
    use serde_json::{Value, json};
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        delivery::DeliveryOptions,
        destination::Client,
        log::{
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
        ownership::EngineStarter,
        routing::{Configuration, Delivery, Start, Trigger},
        supervision::Supervisor,
    };

    fn trigger(name: &str, suspend: bool) -> Trigger {
        Trigger {
            uid: format!("uid-{name}"),
            namespace: "shop".into(),
            name: name.into(),
            generation: 1,
            broker: "default".into(),
            filters: vec![],
            destination: None,
            delivery: Delivery::default(),
            start: Start::Latest,
            transform: None,
            start_is_set: false,
            suspend,
            refused: None,
        }
    }

    async fn get(routes: &Router) -> Value {
        let request = Request::get("/v1/triggers").body(Body::empty()).unwrap();
        let response = routes.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[tokio::test]
    async fn lists_each_trigger_with_its_figures() {
        let directory = tempfile::tempdir().unwrap();
        let log = Arc::new(EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap());
        let runtime = tokio::runtime::Handle::current();
        let starter = EngineStarter {
            logs: log.clone(),
            client: Client::for_test(),
            options: DeliveryOptions::default(),
            supervisor: Supervisor::default(),
            runtime,
        };
        let shards = Shards::alone(starter, true).await.unwrap();
        let table = Arc::new(ArcSwapOption::empty());
        let routes = routes(Triggers {
            shards: shards.clone(),
            table: table.clone(),
        });
        assert_eq!(get(&routes).await, json!({"items": []}));

        let applied = Arc::new(RoutingTable::compile(Configuration {
            triggers: vec![trigger("billing", false), trigger("audit", true)],
            ..Configuration::default()
        }));
        shards.apply(applied.clone(), vec![], false).await.unwrap();
        table.store(Some(applied));
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/shop")
            .attribute("type", "t")
            .build()
            .unwrap();
        log.append("shop/default", vec![event.to_record()], Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
        // Neither has a destination, so both wait and have looked at nothing yet.
        let item = |name: &str, suspended: bool| {
            json!({
                "namespace": "shop", "name": name, "uid": format!("uid-{name}"), "broker": "shop/default",
                "matched": 0, "delivered": 0, "deadLettered": 0, "expired": 0, "dropped": 0, "pending": 0,
                "backlog": 1, "inFlight": 0, "sinkDown": null, "suspended": suspended, "setAside": false,
                "stopped": false,
            })
        };
        let expected = json!({"items": [item("audit", true), item("billing", false)]});
        assert_eq!(get(&routes).await, expected);
        let read: TriggerList = serde_json::from_value(expected).unwrap();
        assert_eq!(read.items.len(), 2);
        shards.shutdown().await;
    }

    #[test]
    fn lists_of_routers_are_combined() {
        let snapshot = |name: &str, matched, since: Option<&str>| TriggerSnapshot {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            broker: "shop/default".to_owned(),
            matched,
            delivered: matched,
            dead_lettered: 0,
            expired: 0,
            dropped: 0,
            pending: 0,
            backlog: 1,
            in_flight: 0,
            sink_down: since.map(|since| SinkDown {
                since: since.parse().unwrap(),
                detail: since.to_owned(),
            }),
            suspended: false,
            set_aside: since.is_some(),
            stopped: false,
        };
        let (early, late) = (Some("2026-11-24T08:00:00Z"), Some("2026-11-24T09:00:00Z"));
        let lists = [
            vec![snapshot("b", 2, late), snapshot("c", 7, None)],
            vec![snapshot("a", 1, None), snapshot("b", 3, early)],
            vec![snapshot("b", 4, None)],
        ];
        let combined = TriggerList::combine(lists.map(|items| TriggerList { items }));
        let b = TriggerSnapshot {
            backlog: 3,
            ..snapshot("b", 9, early)
        };
        assert_eq!(
            combined.items,
            [snapshot("a", 1, None), b, snapshot("c", 7, None)]
        );
    }

    #[test]
    fn outage_is_an_object() {
        let down = SinkDown {
            since: "2026-11-24T08:00:00Z".parse().unwrap(),
            detail: "503 Service Unavailable".into(),
        };
        assert_eq!(
            serde_json::to_value(down).unwrap(),
            json!({"since": "2026-11-24T08:00:00Z", "detail": "503 Service Unavailable"})
        );
    }
}
