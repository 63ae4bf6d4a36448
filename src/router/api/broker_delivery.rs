//! `GET /v1/delivery/NAMESPACE/BROKER`: this router's delivery progress for a broker, by partition. Routers that share a
//! broker ask each other for it.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use serde::{Deserialize, Serialize};

use super::{DeletedTrigger, SinkDown};
use crate::{
    delivery::{RetainedTrigger, TriggerView},
    log::{BrokerName, Offset},
    ownership::Shards,
};

/// Delivery of a broker by one router, or by several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::router) struct BrokerDelivery {
    pub(in crate::router) parts: Vec<TriggerPart>,
    /// Ordered by namespace and name.
    pub(in crate::router) deleted: Vec<DeletedTrigger>,
    /// Routers that did not answer, each with the problem.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::router) unanswered: Vec<String>,
}

/// Delivery of one Trigger for one partition of its broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::router) struct TriggerPart {
    pub(in crate::router) uid: String,
    pub(in crate::router) name: String,
    pub(in crate::router) partition: u16,
    /// Next offset that it looks at.
    pub(in crate::router) next: Offset,
    /// Low watermark of its last saved checkpoint.
    pub(in crate::router) low: Offset,
    pub(in crate::router) pending: u64,
    pub(in crate::router) sink_unproven: bool,
    pub(in crate::router) set_aside: bool,
    pub(in crate::router) outage: Option<SinkDown>,
}

impl TriggerPart {
    fn of(view: &TriggerView) -> Self {
        let TriggerView {
            uid,
            namespace: _,
            name,
            log,
            stats,
            hold,
            sink,
        } = view;
        Self {
            uid: uid.clone(),
            name: name.clone(),
            partition: log.partition().number,
            next: stats.next(),
            low: hold.low(),
            pending: stats.pending(),
            sink_unproven: sink.is_unproven(),
            set_aside: stats.is_set_aside(),
            outage: sink.outage().map(|outage| SinkDown {
                since: outage.since,
                detail: outage.detail.clone(),
            }),
        }
    }
}

impl BrokerDelivery {
    /// The delivery of the partitions that this router owns.
    pub(in crate::router) fn of_router(shards: &Shards, broker: &BrokerName) -> Self {
        let parts = shards.parts();
        let parts = parts.iter().filter(|view| view.broker() == broker);
        let retained = shards.retained_triggers().into_iter();
        let deleted = retained.filter(|RetainedTrigger { view, .. }| view.broker() == broker);
        let deleted = deleted.map(|RetainedTrigger { view, left }| DeletedTrigger {
            pending: view.stats.pending(),
            not_looked_at: view.backlog(),
            seconds_left: left.as_secs(),
            namespace: view.namespace,
            name: view.name,
        });
        Self::default().with(Self {
            parts: parts.map(TriggerPart::of).collect(),
            deleted: deleted.collect(),
            unanswered: Vec::new(),
        })
    }

    /// Adds the delivery of other partitions.
    pub(in crate::router) fn with(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        let mut deleted = BTreeMap::new();
        for trigger in self.deleted.into_iter().chain(other.deleted) {
            let key = (trigger.namespace.clone(), trigger.name.clone());
            deleted
                .entry(key)
                .and_modify(|known: &mut DeletedTrigger| {
                    known.pending += trigger.pending;
                    known.not_looked_at += trigger.not_looked_at;
                    known.seconds_left = known.seconds_left.max(trigger.seconds_left);
                })
                .or_insert(trigger);
        }
        self.deleted = deleted.into_values().collect();
        self
    }

    /// Notes a router that did not answer.
    pub(in crate::router) fn without(mut self, router: String) -> Self {
        self.unanswered.push(router);
        self
    }
}

/// Creates the route.
pub(in crate::router) fn delivery_route(shards: Arc<Shards>) -> Router {
    Router::new()
        .route("/v1/delivery/{namespace}/{broker}", get(show))
        .with_state(shards)
}

async fn show(
    State(shards): State<Arc<Shards>>,
    Path((namespace, broker)): Path<(String, String)>,
) -> Json<BrokerDelivery> {
    Json(BrokerDelivery::of_router(
        &shards,
        &BrokerName::new(&namespace, &broker),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_deleted_trigger_add_up() {
        let deleted = |name: &str, pending, seconds_left| DeletedTrigger {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            pending,
            not_looked_at: 1,
            seconds_left,
        };
        let of = |deleted| BrokerDelivery {
            deleted,
            ..BrokerDelivery::default()
        };
        let one = of(vec![deleted("b", 1, 5), deleted("a", 2, 5)]);
        let both = one.with(of(vec![deleted("b", 3, 9)]));
        let expected = DeletedTrigger {
            not_looked_at: 2,
            ..deleted("b", 4, 9)
        };
        assert_eq!(both.deleted, [deleted("a", 2, 5), expected]);
    }
}
