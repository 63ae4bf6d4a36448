//! Admin routes that explain why an event matches a Trigger or not, and that find events in the log. `weir
//! explain` uses them; for manifests in files, it and `weir test` call [`crate::routing::explain`] themselves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use axum::{
    Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    api::{
        BrokerDelivery, DeadLetterOf, DeliveryProgress, EventName, EventPlace, EventState, Explained,
        TriggerExplained, TriggerPart,
    },
    dead_letters::engine_of,
    forwarding::Forwarding,
    ingress::Ingress,
    problem::{Problem, of_log},
};
use crate::{
    cloudevents::{Event, ReceivedEvents, read_http},
    delivery::{Selection, StoredLetter, partition_of},
    filter::{CompiledFilter, Expression},
    log::{BrokerName, Log, LogError, LogName, LogProvider, Offset, ReadLimit},
    ownership::Shards,
    routing::{RouteExplanation, RoutingTable, WaitReason, broker_key, explain_while},
};

/// Maximum records searched for an event, the broker's newest first, and the time limit.
const MAX_SCANNED: u64 = 100_000;
const MAX_SCAN_TIME: Duration = Duration::from_secs(10);

/// Time limit for explaining the Triggers' filters.
const MAX_EXPLAIN_TIME: Duration = Duration::from_secs(10);

/// Records of one step backwards, and bytes read at once.
const STEP: u64 = 250;
const READ_BYTES: usize = 1024 * 1024;

/// Maximum time to wait for the owners of other partitions.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Maximum dead letters listed for one event.
const MAX_LETTERS: usize = 100;

/// State behind the routes.
pub(super) struct Explainer {
    pub(super) logs: Arc<dyn LogProvider>,
    pub(super) shards: Arc<Shards>,
    /// Asks the routers that deliver other partitions; `None` if no other router shares the log.
    pub(super) others: Option<Arc<Forwarding>>,
    /// `None` until the first routing configuration is applied.
    pub(super) table: Arc<ArcSwapOption<RoutingTable>>,
    /// Held while filters are explained, which may take a thousand times as long as routing an event. One
    /// explanation runs at a time, on a thread that serves nothing else.
    pub(super) turn: Arc<Semaphore>,
}

/// Event of the log to explain.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    id: String,
    source: Option<String>,
}

/// The routes under `/v1/explain`: an event that is posted, in any mode but batched, and one that is in the log.
pub(super) fn routes(explainer: Explainer, max_body: usize) -> Router {
    Router::new()
        .route("/v1/explain/{namespace}/{broker}", post(posted))
        .route("/v1/explain/{namespace}/{broker}/events", get(in_log))
        .layer(DefaultBodyLimit::max(max_body))
        .with_state(Arc::new(explainer))
}

async fn posted(
    State(explainer): State<Arc<Explainer>>,
    Path((namespace, broker)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Explained>, Problem> {
    let body = body.map_err(|rejection| {
        let title = "The event cannot be read";
        Problem::new(rejection.status(), "bad_event", title, rejection.body_text())
    })?;
    let ReceivedEvents::Single(event) = read_http(&headers, body)? else {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "batch",
            "One event at a time",
            "a batch cannot be explained: send one event",
        ));
    };
    let delivery = explainer.delivery(&BrokerName::new(&namespace, &broker)).await;
    let explained = explainer.explain(&namespace, &broker, event, &delivery).await?;
    Ok(Json(explained))
}

async fn in_log(
    State(explainer): State<Arc<Explainer>>,
    Path((namespace, broker)): Path<(String, String)>,
    wanted: Result<Query<EventQuery>, QueryRejection>,
) -> Result<Json<Explained>, Problem> {
    let Query(wanted) = wanted.map_err(|rejection| {
        let title = "The event is not named";
        let detail = rejection.body_text();
        Problem::new(StatusCode::BAD_REQUEST, "bad_query", title, detail)
    })?;
    Ingress::table_with_broker(explainer.table.load().as_deref(), &namespace, &broker)?;
    let (key, name) = (
        broker_key(&namespace, &broker),
        BrokerName::new(&namespace, &broker),
    );
    let log = explainer.logs.open(&LogName::Events(name.clone()));
    let (event, found) = match search(&*log, &wanted).await.map_err(of_log)? {
        Search::Found(event, found) => (event, found),
        Search::NotFound(looked) => return Err(not_found(&key, &wanted, &looked)),
    };
    let letters = explainer.letters(&name, &event).await?;
    let delivery = explainer.delivery(&name).await;
    let partition = partition_of(&event, found.offset, explainer.shards.partitions_of(&name));
    let mut explained = explainer.explain(&namespace, &broker, event, &delivery).await?;
    for trigger in &mut explained.triggers {
        let of = |part: &&TriggerPart| part.name == trigger.route.name && part.partition == partition.number;
        let part = delivery.parts.iter().find(of);
        trigger.progress = part.map(|part| progress(found.offset, part, &letters));
    }
    explained.found = Some(found);
    Ok(Json(explained))
}

impl Explainer {
    /// Returns the delivery progress of a broker, of all partitions whose owners answer.
    async fn delivery(&self, broker: &BrokerName) -> BrokerDelivery {
        let own = BrokerDelivery::of_router(&self.shards, broker);
        let Some(others) = &self.others else { return own };
        let (path, owners) = (format!("/v1/delivery/{broker}"), self.shards.owners_of(broker));
        let asked = others.ask_others(&owners, &path, MAX_WAIT).await.into_iter();
        asked.fold(own, |delivery, (router, answered)| match answered {
            Ok(other) => delivery.with(other),
            Err(problem) => delivery.without(format!("{router}: {}", problem.detail())),
        })
    }

    async fn explain(
        &self,
        namespace: &str,
        broker: &str,
        event: Event,
        delivery: &BrokerDelivery,
    ) -> Result<Explained, Problem> {
        let table = self.table.load_full();
        Ingress::table_with_broker(table.as_deref(), namespace, broker)?;
        let broker = broker_key(namespace, broker);
        let (turn, key, name) = (self.turn.clone(), broker.clone(), EventName::from(&event));
        // The client is gone, or the time limit is reached.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let explaining = async move {
            // Held to the end, even if nobody waits for it.
            let turn = turn.acquire_owned().await.ok()?;
            let explaining = tokio::task::spawn_blocking(move || {
                let explained =
                    table.map(|table| explain_while(&table, &key, &event, || !stop.is_cancelled()));
                drop(turn);
                explained.unwrap_or_default()
            });
            explaining.await.ok()
        };
        let Ok(Some(mut triggers)) = tokio::time::timeout(MAX_EXPLAIN_TIME, explaining).await else {
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "The event is not explained",
                "others are being explained, or the Triggers' filters take long; explain it by manifests in files, or \
                 ask again",
            )
            .try_again());
        };
        tell_set_aside(delivery, &mut triggers);
        Ok(Explained {
            triggers: triggers.into_iter().map(TriggerExplained::from).collect(),
            deleted: delivery.deleted.clone(),
            unanswered: delivery.unanswered.clone(),
            broker,
            event: name,
            found: None,
        })
    }

    /// Finds the dead letters that the event became.
    async fn letters(&self, broker: &BrokerName, event: &Event) -> Result<Vec<StoredLetter>, Problem> {
        let name = [("id", event.id()), ("source", event.source())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let selection = Selection {
            // Every event has both attributes; should one be missing, no letter is listed.
            filter: CompiledFilter::compile(&[Expression::Exact(name.into())]).ok(),
            ..Selection::default()
        };
        if selection.filter.is_none() {
            return Ok(Vec::new());
        }
        let page = engine_of(&self.shards, broker)?
            .dead_letters(broker, &selection, Offset(0), MAX_LETTERS)
            .await
            .map_err(of_log)?;
        Ok(page.letters)
    }
}

fn tell_set_aside(delivery: &BrokerDelivery, triggers: &mut [RouteExplanation]) {
    for part in delivery.parts.iter().filter(|part| part.set_aside) {
        let trigger = triggers.iter_mut().find(|trigger| trigger.name == part.name);
        if let Some(trigger) = trigger {
            trigger.held = trigger.held.or(Some(WaitReason::FilterTooExpensive));
        }
    }
}

fn progress(offset: Offset, part: &TriggerPart, letters: &[StoredLetter]) -> DeliveryProgress {
    let TriggerPart {
        uid,
        name,
        partition: _,
        next,
        low,
        pending,
        sink_unproven,
        set_aside: _,
        outage,
    } = part;
    let of_trigger = |kept: &&StoredLetter| kept.letter.trigger == *uid || kept.letter.name == *name;
    let letter = letters.iter().rev().find(of_trigger);
    DeliveryProgress {
        state: state(offset, *next, *low, *pending),
        next: *next,
        low: *low,
        pending: *pending,
        sink_unproven: *pending > 0 && *sink_unproven,
        outage: outage.clone(),
        dead_letter: letter.map(|kept| DeadLetterOf {
            id: kept.id,
            reason: kept.letter.reason.clone(),
            detail: kept.letter.detail.clone(),
        }),
    }
}

fn state(offset: Offset, next: Offset, low: Offset, pending: u64) -> EventState {
    if offset >= next {
        EventState::Ahead
    } else if offset < low || pending == 0 {
        EventState::Settled
    } else if offset == low {
        EventState::Pending
    } else {
        EventState::PendingOrSettled
    }
}

/// Result of a search for an event.
enum Search {
    Found(Event, EventPlace),
    NotFound(Looked),
}

/// Extent of a search.
struct Looked {
    /// Number of records.
    records: u64,
    /// Oldest of them.
    oldest: Option<Timestamp>,
    /// Whether the whole log was searched.
    all: bool,
}

/// Searches for an event, the newest first. Of several, the newest is returned.
async fn search(log: &dyn Log, wanted: &EventQuery) -> Result<Search, LogError> {
    let began = Instant::now();
    let bounds = log.bounds().await?;
    let (mut end, mut records, mut oldest) = (bounds.next, 0, None);
    while end > bounds.first && records < MAX_SCANNED && began.elapsed() < MAX_SCAN_TIME {
        let start = Offset(end.0.saturating_sub(STEP)).max(bounds.first);
        let mut newest = None;
        let mut next = start;
        while next < end {
            let limit = ReadLimit {
                records: usize::try_from(end.0 - next.0).unwrap_or(usize::MAX),
                bytes: READ_BYTES,
            };
            let read = log.read(next, limit).await?;
            // Records trimmed meanwhile are skipped.
            let read: Vec<_> = read.into_iter().filter(|record| record.offset < end).collect();
            let Some(last) = read.last() else { break };
            next = last.offset.plus(1);
            if oldest.is_none_or(|oldest| read[0].accepted < oldest) {
                oldest = Some(read[0].accepted);
            }
            for record in read {
                records += 1;
                let Ok(event) = Event::from_record(record.payload) else {
                    continue;
                };
                if wanted.is(&event) {
                    newest = Some((event, record.offset, record.accepted));
                }
            }
        }
        if let Some((event, offset, accepted)) = newest {
            let looked_at = bounds.next.0 - offset.0;
            return Ok(Search::Found(
                event,
                EventPlace {
                    offset,
                    accepted,
                    looked_at,
                },
            ));
        }
        end = start;
    }
    Ok(Search::NotFound(Looked {
        records,
        oldest,
        all: end <= bounds.first,
    }))
}

impl EventQuery {
    fn is(&self, event: &Event) -> bool {
        event.id() == self.id
            && self
                .source
                .as_deref()
                .is_none_or(|source| event.source() == source)
    }
}

fn not_found(broker: &str, wanted: &EventQuery, looked: &Looked) -> Problem {
    let EventQuery { id, source } = wanted;
    let from = source
        .as_ref()
        .map_or_else(String::new, |source| format!(" from source {source:?}"));
    let detail = match looked {
        Looked { records: 0, .. } => format!(
            "broker {broker} retains no events: it has had none, or all were settled and removed by age"
        ),
        Looked {
            records,
            oldest,
            all: true,
        } => format!(
            "none of the {records} events that broker {broker} retains{} has id {id:?}{from}: it was not accepted here, \
             or was settled and removed by age",
            since(oldest)
        ),
        Looked { records, oldest, .. } => format!(
            "none of the newest {records} events of broker {broker}{} has id {id:?}{from}; older ones were not looked \
             at: explain it from a file",
            since(oldest)
        ),
    };
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_event",
        "There is no such event",
        detail,
    )
}

fn since(oldest: &Option<Timestamp>) -> String {
    oldest.map_or_else(String::new, |oldest| format!(" (since {oldest:.0})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cloudevents::EventBuilder,
        log::{
            conformance::ByKey as _,
            embedded::{EmbeddedLog, EmbeddedOptions},
        },
    };

    fn event(id: &str, source: &str) -> Event {
        EventBuilder::new()
            .attribute("id", id)
            .attribute("source", source)
            .attribute("type", "t")
            .build()
            .unwrap()
    }

    fn wanted(id: &str, source: Option<&str>) -> EventQuery {
        EventQuery {
            id: id.to_owned(),
            source: source.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn an_event_is_found_from_the_newest_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(directory.path(), EmbeddedOptions::default()).unwrap();
        let at: Timestamp = "2026-11-24T08:00:00Z".parse().unwrap();
        let ids = (0..STEP * 2 + 10).map(|n| (n % 400).to_string());
        let records = ids.map(|id| event(&id, "/p").to_record()).collect();
        log.append("shop/default", records, at).await.unwrap();
        let other = event("5", "/q").to_record();
        log.append("shop/default", vec![other, Bytes::from_static(b"no event")], at)
            .await
            .unwrap();
        let open = |broker: &str| log.open(&LogName::Events(broker.into()));
        let (events, other) = (open("shop/default"), open("shop/other"));
        let next = events.cached_bounds().next.0;
        for (id, source, offset) in [
            ("5", None, Some(next - 2)),
            ("5", Some("/p"), Some(405)),
            ("399", None, Some(399)),
            ("0", Some("/p"), Some(400)),
            ("300", Some("/p"), Some(300)),
            ("300", Some("/q"), None),
            ("none", None, None),
        ] {
            match search(&*events, &wanted(id, source)).await.unwrap() {
                Search::Found(event, found) => {
                    assert_eq!(
                        (event.id(), Some(found.offset.0)),
                        (id, offset),
                        "{id} {source:?}"
                    );
                    assert_eq!(found.looked_at, next - found.offset.0);
                }
                Search::NotFound(looked) => {
                    assert_eq!(
                        (offset, looked.records, looked.all),
                        (None, next, true),
                        "{id} {source:?}"
                    );
                    assert_eq!(looked.oldest, Some(at));
                }
            }
        }
        let nothing = search(&*other, &wanted("5", None)).await.unwrap();
        assert!(matches!(
            nothing,
            Search::NotFound(Looked {
                records: 0,
                all: true,
                ..
            })
        ));
    }

    #[test]
    fn what_a_cursor_says_of_an_event() {
        for (next, low, pending, expected) in [
            (7, 7, 0, EventState::Ahead),
            (8, 8, 0, EventState::Settled),
            (8, 3, 0, EventState::Settled),
            (9, 8, 1, EventState::Settled),
            (8, 7, 1, EventState::Pending),
            (9, 3, 2, EventState::PendingOrSettled),
        ] {
            let found = state(Offset(7), Offset(next), Offset(low), pending);
            assert_eq!(found, expected, "{next} {low} {pending}");
        }
    }

    #[test]
    fn what_was_not_found_says_how_far_it_looked() {
        let oldest = Some("2026-11-24T08:00:00.123Z".parse().unwrap());
        for (looked, part) in [
            (
                Looked {
                    records: 0,
                    oldest: None,
                    all: true,
                },
                "retains no events",
            ),
            (
                Looked {
                    records: 7,
                    oldest,
                    all: true,
                },
                "none of the 7 events that broker shop/default retains (since 2026-11-24T08:00:00Z) has id \"5\" from source \"/p\"",
            ),
            (
                Looked {
                    records: MAX_SCANNED,
                    oldest,
                    all: false,
                },
                "none of the newest 100000 events",
            ),
        ] {
            let problem = serde_json::to_value(not_found("shop/default", &wanted("5", Some("/p")), &looked));
            let detail = problem.unwrap()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains(part), "{detail}");
        }
    }
}
