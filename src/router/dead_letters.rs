//! The admin endpoint's part for dead letters: list, show, redrive and drop. `weir dead-letters` speaks to it.
//!
//! Each answer is bounded; where there is more, `next` says where the following request goes on.

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

use super::{
    operator::changing,
    problem::{Problem, of_log},
};
use crate::{
    delivery::{DeadLetter, Engine, KeptLetter, Selection},
    filter::{Expression, Filter},
    log::{BrokerName, Offset},
};

/// How many letters are listed at once.
const PAGE: usize = 200;

/// Which dead letters of a broker are meant: those that hold for all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Selected {
    /// These ids; absent for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ids: Option<BTreeSet<Offset>>,
    /// Those of the Trigger with this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Those with events for which all of these hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Expression>,
    /// Where to go on.
    pub from: Offset,
}

/// The brokers that have dead letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brokers {
    /// In order of their names.
    pub brokers: Vec<BrokerCount>,
}

/// How many dead letters a broker has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerCount {
    /// As `namespace/name`.
    pub broker: String,
    /// At least 1.
    pub count: u64,
}

/// Some of the letters that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterList {
    /// In the order in which they were kept.
    pub items: Vec<DeadLetterSummary>,
    /// Where to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

/// What is told of a dead letter in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetterSummary {
    /// Names it within its broker.
    pub id: Offset,
    /// When delivery ended.
    pub time: Timestamp,
    /// The event's `id`.
    pub event_id: String,
    /// The event's `source`.
    pub event_source: String,
    /// The event's `type`.
    pub event_type: String,
    /// Whose it is.
    pub trigger: TriggerName,
    /// The URI of the Sink that did not take it.
    pub sink: String,
    /// Why no further attempt was made.
    pub reason: String,
    /// The status of the last answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The beginning of the last answer, or why there was none.
    pub detail: String,
    /// How many attempts failed.
    pub attempts: u32,
}

/// Names a Trigger, as `weir explain` does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another Trigger may have had the name.
    pub uid: String,
}

/// A dead letter with its event.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FullLetter {
    /// What a list tells.
    #[serde(flatten)]
    pub letter: DeadLetterSummary,
    /// The event in the JSON format.
    pub event: Box<RawValue>,
}

/// What became of those to be redriven.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedriveAnswer {
    /// So many are with their Triggers again.
    pub redriven: u64,
    /// So many stay, because there is no Trigger of their name.
    pub without_trigger: u64,
    /// So many stay for now, because their Trigger has too many unsettled events.
    pub without_room: u64,
    /// Where to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

/// What became of those to be dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropAnswer {
    /// So many are gone.
    pub dropped: u64,
    /// Where to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Offset>,
}

type Body = Result<Json<Selected>, JsonRejection>;
/// The routes under `/v1/dead-letters`.
pub(super) fn routes(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/v1/dead-letters", get(brokers))
        .route("/v1/dead-letters/{namespace}/{broker}/list", post(list))
        .route(
            "/v1/dead-letters/{namespace}/{broker}/redrive",
            changing(post(redrive)),
        )
        .route(
            "/v1/dead-letters/{namespace}/{broker}/drop",
            changing(post(remove)),
        )
        .route("/v1/dead-letters/{namespace}/{broker}/letters/{id}", get(show))
        .with_state(engine)
}

async fn brokers(State(engine): State<Arc<Engine>>) -> Json<Brokers> {
    let brokers = engine.dead_letter_brokers().into_iter();
    let mut brokers: Vec<_> = brokers
        .map(|(broker, count)| BrokerCount {
            broker: broker.to_string(),
            count,
        })
        .collect();
    brokers.sort_by(|a, b| a.broker.cmp(&b.broker));
    Json(Brokers { brokers })
}

async fn list(
    State(engine): State<Arc<Engine>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<DeadLetterList>, Problem> {
    let (selection, from) = selection(body)?;
    let page = engine
        .dead_letters(&BrokerName::new(&namespace, &broker), &selection, from, PAGE)
        .await
        .map_err(of_log)?;
    Ok(Json(DeadLetterList {
        items: page.letters.into_iter().map(DeadLetterSummary::from).collect(),
        next: page.next,
    }))
}

async fn show(
    State(engine): State<Arc<Engine>>,
    Path((namespace, broker, id)): Path<(String, String, u64)>,
) -> Result<Json<FullLetter>, Problem> {
    let key = BrokerName::new(&namespace, &broker);
    let kept = engine.dead_letter(&key, Offset(id)).await.map_err(of_log)?.ok_or_else(|| {
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
    State(engine): State<Arc<Engine>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<RedriveAnswer>, Problem> {
    let (selection, from) = selection(body)?;
    let redriven = engine
        .redrive(&BrokerName::new(&namespace, &broker), &selection, from)
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
    State(engine): State<Arc<Engine>>,
    Path((namespace, broker)): Path<(String, String)>,
    body: Body,
) -> Result<Json<DropAnswer>, Problem> {
    let (selection, from) = selection(body)?;
    let key = BrokerName::new(&namespace, &broker);
    let dropped = engine
        .drop_dead_letters(&key, &selection, from)
        .await
        .map_err(of_log)?;
    Ok(Json(DropAnswer {
        dropped: dropped.dropped,
        next: dropped.next,
    }))
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
        filters => Some(Filter::compile(filters).map_err(|error| bad(error.to_string()))?),
    };
    Ok((Selection { ids, trigger, filter }, from))
}

impl From<KeptLetter> for DeadLetterSummary {
    fn from(kept: KeptLetter) -> Self {
        let KeptLetter {
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
