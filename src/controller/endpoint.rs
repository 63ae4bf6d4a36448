//! Serves the routing configuration to routers by long poll. A poll also acknowledges the revision that the router
//! has applied. Also receives the routers' reports on failing Sinks. See [`crate::routing::protocol`].

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, put},
};
use bytes::Bytes;
use http::{StatusCode, header};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::routers::{ReportOutcome, Routers};
use crate::routing::{
    Configuration, Revision,
    protocol::{
        CONFIGURATION_PATH, ConfigurationQuery, MAX_REPORT, POLL_TIMEOUT, ROUTER_PATH, SINKS_PATH, SinkReport,
    },
};

/// The configuration sent to routers, serialized once. Not `Debug`, since it contains the credentials of Sinks.
#[derive(Clone)]
struct Current {
    revision: Revision,
    json: Bytes,
}

/// State shared between the endpoint and the controller's loop.
pub(super) struct Publication {
    current: watch::Sender<Option<Current>>,
    routers: Mutex<Routers>,
    /// Names of the routers, for the controller that leads next.
    names: watch::Sender<BTreeSet<String>>,
    /// Notified when a router has reported something new.
    acknowledged: Notify,
}

impl Publication {
    /// `names` starts with the routers known to the previous leader, and is then kept up to date.
    pub(super) fn new(names: watch::Sender<BTreeSet<String>>) -> Arc<Self> {
        let awaited = names.borrow().clone();
        Arc::new(Self {
            current: watch::Sender::new(None),
            routers: Mutex::new(Routers::awaiting(awaited)),
            names,
            acknowledged: Notify::new(),
        })
    }

    /// Publishes a configuration. Returns `false` if it is the current one.
    pub(super) fn publish(&self, configuration: &Configuration) -> bool {
        let is_current = |current: &Option<Current>| {
            current
                .as_ref()
                .is_some_and(|current| current.revision == configuration.revision)
        };
        if is_current(&self.current.borrow()) {
            return false;
        }
        self.routers().publish(configuration, Instant::now());
        // Serializing plain data cannot fail.
        let json = serde_json::to_vec(configuration).unwrap_or_default().into();
        self.current.send_replace(Some(Current {
            revision: configuration.revision.clone(),
            json,
        }));
        true
    }

    pub(super) fn routers(&self) -> MutexGuard<'_, Routers> {
        // No holder of the lock can panic halfway through a change.
        self.routers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a router's poll and the revision it has applied. Returns whether that is news.
    fn asks(&self, router: &str, revision: &Revision) -> bool {
        let mut routers = self.routers();
        let is_news = routers.asks(router, revision, Instant::now());
        if is_news {
            self.tell_names(&routers);
        }
        is_news
    }

    /// Removes a router that ends.
    fn leaves(&self, router: &str) {
        let mut routers = self.routers();
        if routers.leaves(router) {
            tracing::info!(router, "a router has left");
            self.tell_names(&routers);
            self.acknowledged.notify_one();
        }
    }

    /// Removes routers that are gone, and returns their names.
    pub(super) fn forget_gone(&self) -> Vec<String> {
        let mut routers = self.routers();
        let gone = routers.forget_gone(Instant::now());
        self.tell_names(&routers);
        gone
    }

    fn tell_names(&self, routers: &Routers) {
        self.names.send_replace(routers.names());
    }

    pub(super) async fn acknowledged(&self) {
        self.acknowledged.notified().await;
    }
}

/// Builds the service for routers. When told to stop, it answers pending polls with 503.
pub(super) fn service(publication: Arc<Publication>, stop: &CancellationToken) -> Router {
    let stop = stop.clone();
    let end_waiting = middleware::from_fn(move |request: Request, next: Next| {
        let stop = stop.clone();
        async move {
            let answer = stop.run_until_cancelled(next.run(request)).await;
            answer.unwrap_or_else(|| StatusCode::SERVICE_UNAVAILABLE.into_response())
        }
    });
    Router::new()
        .route(CONFIGURATION_PATH, get(poll))
        .route(ROUTER_PATH, delete(leave))
        .route(
            SINKS_PATH,
            put(take_report).layer(DefaultBodyLimit::max(MAX_REPORT)),
        )
        .layer(end_waiting)
        .with_state(publication)
}

const NO_NAME: &str = "router must be a name of at most 253 letters, digits, '.', '-' and '_'\n";

async fn poll(
    State(publication): State<Arc<Publication>>,
    Query(query): Query<ConfigurationQuery>,
) -> Response {
    let ConfigurationQuery { router, revision } = query;
    if !is_name(&router) {
        return (StatusCode::BAD_REQUEST, NO_NAME).into_response();
    }
    let mut current = publication.current.subscribe();
    let _asking = Asking::begin(&publication, router, &revision);
    let is_news = |current: &Option<Current>| {
        current
            .as_ref()
            .is_some_and(|current| current.revision != revision)
    };
    match tokio::time::timeout(POLL_TIMEOUT, current.wait_for(is_news)).await {
        Ok(Ok(news)) => match &*news {
            Some(Current { json, .. }) => {
                ([(header::CONTENT_TYPE, "application/json")], json.clone()).into_response()
            }
            None => StatusCode::NO_CONTENT.into_response(),
        },
        Ok(Err(_)) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Err(_) if publication.current.borrow().is_none() => {
            let problem = "the controller has not seen the cluster's resources yet\n";
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, "1")],
                problem,
            )
                .into_response()
        }
        Err(_) => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn leave(State(publication): State<Arc<Publication>>, Path(router): Path<String>) -> StatusCode {
    publication.leaves(&router);
    StatusCode::NO_CONTENT
}

async fn take_report(
    State(publication): State<Arc<Publication>>,
    Path(router): Path<String>,
    Json(report): Json<SinkReport>,
) -> Response {
    if !is_name(&router) {
        return (StatusCode::BAD_REQUEST, NO_NAME).into_response();
    }
    let taken = publication.routers().tells(&router, report);
    match taken {
        ReportOutcome::News => publication.acknowledged.notify_one(),
        ReportOutcome::Known => {}
        ReportOutcome::TooEarly => {
            let problem = "the router must request the configuration first\n";
            return (StatusCode::CONFLICT, problem).into_response();
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed)
}

/// A pending poll. Dropped with the request, even when the connection breaks.
struct Asking<'a> {
    publication: &'a Publication,
    router: String,
}

impl<'a> Asking<'a> {
    fn begin(publication: &'a Publication, router: String, revision: &Revision) -> Self {
        if publication.asks(&router, revision) {
            tracing::info!(router, revision = revision.0, "a router acknowledged a revision");
            publication.acknowledged.notify_one();
        }
        Self { publication, router }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.publication.routers().asked(&self.router, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        controller::{routers::Applied, sinks_seen::SinkSeen},
        routing::protocol::{router_path, sinks_path},
    };

    fn configuration(revision: &str) -> Configuration {
        Configuration {
            revision: Revision(revision.into()),
            ..Configuration::default()
        }
    }

    async fn ask(publication: &Arc<Publication>, query: &str) -> (StatusCode, String) {
        let request = Request::get(format!("{CONFIGURATION_PATH}?{query}"))
            .body(Body::empty())
            .unwrap();
        let response = service(publication.clone(), &CancellationToken::new())
            .oneshot(request)
            .await
            .unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn answers_with_a_newer_revision_at_once_and_else_waits_for_one() {
        let publication = Publication::new(watch::Sender::default());
        assert_eq!(
            ask(&publication, "router=r").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert!(publication.publish(&configuration("1")));
        assert!(!publication.publish(&configuration("1")));
        let (status, body) = ask(&publication, "router=r&revision=").await;
        assert_eq!(
            (status, serde_json::from_str::<Configuration>(&body).unwrap()),
            (StatusCode::OK, configuration("1"))
        );
        assert_eq!(
            ask(&publication, "router=r&revision=1").await.0,
            StatusCode::NO_CONTENT
        );
        let (answer, ()) = tokio::join!(ask(&publication, "router=r&revision=1"), async {
            tokio::task::yield_now().await;
            publication.publish(&configuration("2"));
        });
        assert!(answer.1.contains("\"2\""), "{}", answer.1);
    }

    #[tokio::test(start_paused = true)]
    async fn poll_acknowledges_the_applied_revision() {
        let publication = Publication::new(watch::Sender::default());
        publication.publish(&configuration("1"));
        assert_eq!(
            publication.routers().applied("u", Instant::now()),
            Applied::Awaited(vec![])
        );
        ask(&publication, "router=r&revision=1").await;
        publication.acknowledged().await;
        assert_eq!(publication.routers().count(), 1);
    }

    #[tokio::test]
    async fn rejects_invalid_router_names() {
        let publication = Publication::new(watch::Sender::default());
        for router in ["", "a%20b", "a/b", &"r".repeat(254)] {
            assert_eq!(
                ask(&publication, &format!("router={router}")).await.0,
                StatusCode::BAD_REQUEST,
                "{router}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn router_that_leaves_is_forgotten_and_told_to_the_next_leader() {
        let (names, stored) = watch::channel(["r-0".to_owned(), "r-1".to_owned()].into());
        let publication = Publication::new(names);
        publication.publish(&configuration("1"));
        ask(&publication, "router=r-0&revision=1").await;
        publication.acknowledged().await;
        let request = Request::delete(router_path("r-1")).body(Body::empty()).unwrap();
        let response = service(publication.clone(), &CancellationToken::new())
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        publication.acknowledged().await;
        assert_eq!(*stored.borrow(), ["r-0".to_owned()].into());
    }

    async fn tell(publication: &Arc<Publication>, path: &str, body: impl Into<Body>) -> StatusCode {
        let request = Request::put(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.into())
            .unwrap();
        let response = service(publication.clone(), &CancellationToken::new())
            .oneshot(request)
            .await
            .unwrap();
        response.status()
    }

    #[tokio::test(start_paused = true)]
    async fn accepts_reports_only_from_routers_that_have_polled() {
        let publication = Publication::new(watch::Sender::default());
        let trigger = serde_json::json!({
            "uid": "u", "namespace": "n", "name": "u", "generation": 1, "broker": "b", "filters": [], "destination": null,
            "delivery": crate::routing::Delivery::default(), "start": "Latest", "suspend": false,
        });
        publication.publish(&Configuration {
            triggers: vec![serde_json::from_value(trigger).unwrap()],
            ..configuration("1")
        });
        let path = sinks_path("r-0.x_y");
        let empty = r#"{"revision": "1", "down": []}"#;
        assert_eq!(tell(&publication, &path, empty).await, StatusCode::CONFLICT);
        ask(&publication, "router=r-0.x_y&revision=1").await;
        publication.acknowledged().await;
        assert_eq!(publication.routers().sink("u"), SinkSeen::Unsure);
        assert_eq!(tell(&publication, &path, empty).await, StatusCode::NO_CONTENT);
        publication.acknowledged().await;
        assert_eq!(publication.routers().sink("u"), SinkSeen::Answering);
        assert_eq!(tell(&publication, &path, empty).await, StatusCode::NO_CONTENT);
        let again = publication.acknowledged();
        let again = tokio::time::timeout(POLL_TIMEOUT, again).await;
        assert!(again.is_err(), "what is known rings nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn rejects_malformed_reports() {
        let publication = Publication::new(watch::Sender::default());
        publication.publish(&configuration("1"));
        ask(&publication, "router=r&revision=1").await;
        let (path, spaced) = (sinks_path("r"), sinks_path("a b"));
        let empty = r#"{"down": []}"#;
        let dateless = r#"{"down": [{"uid": "u", "since": "noon", "detail": ""}]}"#;
        let large = format!(r#"{{"down": [], "unproven": ["{}"]}}"#, "x".repeat(MAX_REPORT));
        for (path, body, status) in [
            (&spaced, empty, StatusCode::BAD_REQUEST),
            (&path, "{", StatusCode::BAD_REQUEST),
            (&path, dateless, StatusCode::UNPROCESSABLE_ENTITY),
            (&path, &*large, StatusCode::PAYLOAD_TOO_LARGE),
        ] {
            assert_eq!(tell(&publication, path, body.to_owned()).await, status, "{path}");
        }
        assert_eq!(publication.routers().sink("u"), SinkSeen::Unsure);
    }
}
