//! `GET /v1/triggers`: the current delivery of each Trigger.

use std::{collections::BTreeSet, sync::Arc};

use arc_swap::ArcSwapOption;
use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{delivery::TriggerView, ownership::Shards, routing::RoutingTable};

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
    fn of(view: &TriggerView, suspended: &BTreeSet<&str>) -> Self {
        let TriggerView {
            uid,
            namespace,
            name,
            log: _,
            stats,
            hold: _,
            sink,
        } = view;
        Self {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.clone(),
            broker: view.broker().to_string(),
            matched: stats.matched(),
            delivered: stats.delivered(),
            dead_lettered: stats.dead_lettered(),
            expired: stats.expired(),
            dropped: stats.dropped(),
            pending: stats.pending(),
            backlog: view.backlog(),
            in_flight: stats.in_flight(),
            sink_down: sink.outage().map(|outage| SinkDown {
                since: outage.since,
                detail: outage.detail.clone(),
            }),
            suspended: suspended.contains(uid.as_str()),
            set_aside: stats.is_set_aside(),
            stopped: stats.is_stopped(),
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
        let views = self.shards.triggers();
        TriggerList {
            items: views
                .iter()
                .map(|view| TriggerSnapshot::of(view, &suspended))
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
        let shards = Shards::alone(EngineStarter {
            logs: log.clone(),
            client: Client::for_test(),
            options: DeliveryOptions::default(),
            supervisor: Supervisor::default(),
            runtime,
        });
        let shards = shards.await.unwrap();
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
