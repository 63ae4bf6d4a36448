//! Admin routes for dead letters: list, show, redrive and drop. `weir dead-letters` uses them.
//!
//! Each answer is bounded; if there is more, `next` says where the following request continues.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, State, rejection::JsonRejection},
    routing::{get, post},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::{Problem, of_log};
use crate::{
    delivery::{DeadLetter, Engine, Selection, StoredLetter},
    filter::{CompiledFilter, Expression},
    log::{BrokerName, Offset},
    ownership::Shards,
};

/// Maximum letters in a list.
const PAGE: usize = 200;

/// Selection of a broker's dead letters; a letter has to match every field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Selected {
    /// Letters with these IDs; absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<BTreeSet<Offset>>,
    /// Letters of the Trigger with this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Letters whose events pass all of these filters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Expression>,
    /// Offset to continue at.
    pub from: Offset,
}

/// Brokers that have dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokersWithDeadLetters {
    /// Ordered by name.
    pub brokers: Vec<BrokerCount>,
}

/// Number of a broker's dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerCount {
    /// Broker, as `namespace/name`.
    pub broker: String,
    /// At least 1.
    pub count: u64,
}

/// A page of the selected letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterList {
    /// In the order in which they were kept.
    pub items: Vec<DeadLetterSummary>,
    /// Offset to continue at; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

/// A dead letter in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSummary {
    /// Identifies it within its broker.
    pub id: Offset,
    /// Time at which delivery ended.
    pub time: Timestamp,
    /// `id` of the event.
    pub event_id: String,
    /// `source` of the event.
    pub event_source: String,
    /// `type` of the event.
    pub event_type: String,
    /// Trigger that it belongs to.
    pub trigger: TriggerName,
    /// URI of the Sink that did not take it.
    pub sink: String,
    /// Reason why no further attempt was made.
    pub reason: String,
    /// Status of the last answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Beginning of the last answer, or why there was none.
    pub detail: String,
    /// Number of failed attempts.
    pub attempts: u32,
}

/// Identifies a Trigger, as `weir explain` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerName {
    /// Namespace of the Trigger.
    pub namespace: String,
    /// Name of the Trigger.
    pub name: String,
    /// UID of the Trigger: another one may have had the same name.
    pub uid: String,
}

/// A dead letter with its event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FullLetter {
    /// The fields of a list's letter.
    #[serde(flatten)]
    pub letter: DeadLetterSummary,
    /// The event in the JSON format.
    pub event: Box<RawValue>,
}

/// Result of redriving.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveAnswer {
    /// Letters handed to their Triggers.
    pub redriven: u64,
    /// Letters left because no Trigger has their name.
    pub without_trigger: u64,
    /// Letters left for now because their Trigger has too many unsettled events.
    pub without_room: u64,
    /// Offset to continue at; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

/// Result of dropping.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropAnswer {
    /// Letters dropped.
    pub dropped: u64,
    /// Offset to continue at; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

type Body = Result<Json<Selected>, JsonRejection>;
/// The routes under `/v1/dead-letters`.
pub(super) fn routes(shards: Arc<Shards>) -> Router {
    Router::new()
        .route("/v1/dead-letters", get(brokers))
        .route("/v1/dead-letters/{namespace}/{broker}/list", post(list))
        .route("/v1/dead-letters/{namespace}/{broker}/redrive", post(redrive))
        .route("/v1/dead-letters/{namespace}/{broker}/drop", post(remove))
        .route("/v1/dead-letters/{namespace}/{broker}/letters/{id}", get(show))
        .with_state(shards)
}

async fn brokers(State(shards): State<Arc<Shards>>) -> Json<BrokersWithDeadLetters> {
    let brokers = shards.dead_letter_brokers().into_iter();
    let mut brokers: Vec<_> = brokers
        .map(|(broker, count)| BrokerCount {
            broker: broker.to_string(),
            count,
        })
        .collect();
    brokers.sort_by(|a, b| a.broker.cmp(&b.broker));
    Json(BrokersWithDeadLetters { brokers })
}

async fn list(
    State(shards): State<Arc<Shards>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<DeadLetterList>, Problem> {
    let (selection, from) = selection(body)?;
    let broker = BrokerName::new(&namespace, &broker);
    let page = engine_of(&shards, &broker)?
        .dead_letters(&broker, &selection, from, PAGE)
        .await
        .map_err(of_log)?;
    Ok(Json(DeadLetterList {
        items: page.letters.into_iter().map(DeadLetterSummary::from).collect(),
        next: page.next,
    }))
}

async fn show(
    State(shards): State<Arc<Shards>>,
    Path((namespace, broker, id)): Path<(String, String, u64)>,
) -> Result<Json<FullLetter>, Problem> {
    let key = BrokerName::new(&namespace, &broker);
    let kept = engine_of(&shards, &key)?.dead_letter(&key, Offset(id)).await.map_err(of_log)?.ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_dead_letter",
            "There is no such dead letter",
            format!(
                "broker {key} has no dead letter {id}: it may have been redriven, dropped, or removed by age"
            ),
        )
    })?;
    let text = String::from_utf8_lossy(&kept.event.to_json()).into_owned();
    let event = RawValue::from_string(text).map_err(|error| {
        let title = "The event cannot be shown";
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "unreadable",
            title,
            error.to_string(),
        )
    })?;
    Ok(Json(FullLetter {
        letter: kept.into(),
        event,
    }))
}

async fn redrive(
    State(shards): State<Arc<Shards>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<RedriveAnswer>, Problem> {
    let (selection, from) = selection(body)?;
    let broker = BrokerName::new(&namespace, &broker);
    let redriven = engine_of(&shards, &broker)?
        .redrive(&broker, &selection, from)
        .await
        .map_err(of_log)?;
    Ok(Json(RedriveAnswer {
        redriven: redriven.redriven,
        without_trigger: redriven.without_trigger,
        without_room: redriven.without_room,
        next: redriven.next,
    }))
}

async fn remove(
    State(shards): State<Arc<Shards>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<DropAnswer>, Problem> {
    let (selection, from) = selection(body)?;
    let key = BrokerName::new(&namespace, &broker);
    let dropped = engine_of(&shards, &key)?
        .drop_dead_letters(&key, &selection, from)
        .await
        .map_err(of_log)?;
    Ok(Json(DropAnswer {
        dropped: dropped.dropped,
        next: dropped.next,
    }))
}

/// Returns the engine of a broker.
///
/// # Errors
/// If this router does not own the broker's shard.
pub(super) fn engine_of(shards: &Shards, broker: &BrokerName) -> Result<Arc<Engine>, Problem> {
    shards.engine_of(broker).ok_or_else(|| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_owner",
            "No router delivers the broker's events at present",
            format!("the shard of broker {broker} changes its owner; try again in a few seconds"),
        )
    })
}

fn selection(body: Body) -> Result<(Selection, Offset), Problem> {
    let bad = |detail: String| {
        let title = "The selection cannot be read";
        Problem::new(StatusCode::BAD_REQUEST, "bad_selection", title, detail)
    };
    let Json(Selected {
        ids,
        trigger,
        filters,
        from,
    }) = body.map_err(|rejection| bad(rejection.body_text()))?;
    let filter = match filters.as_slice() {
        [] => None,
        filters => Some(CompiledFilter::compile(filters).map_err(|error| bad(error.to_string()))?),
    };
    Ok((Selection { ids, trigger, filter }, from))
}

impl From<StoredLetter> for DeadLetterSummary {
    fn from(kept: StoredLetter) -> Self {
        let StoredLetter {
            id,
            at,
            letter:
                DeadLetter {
                    trigger,
                    namespace,
                    name,
                    sink,
                    reason,
                    status,
                    detail,
                    attempts,
                },
            event,
        } = kept;
        Self {
            id,
            time: at,
            event_id: event.id().to_owned(),
            event_source: event.source().to_owned(),
            event_type: event.r#type().to_owned(),
            trigger: TriggerName {
                namespace,
                name,
                uid: trigger,
            },
            sink,
            reason,
            status,
            detail,
            attempts,
        }
    }
}
