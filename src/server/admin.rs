//! The admin endpoint of the router and the controller: health, readiness and metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use prometheus_client::registry::Registry;

use super::{
    ConnectionCounts, ConnectionPlaces, Heartbeat, ServerLimits,
    page::{PageBody, Pages},
};
use crate::memory::Pool;

/// Time without progress of the main runtime after which the process is unhealthy.
const MAX_SILENCE: Duration = Duration::from_secs(30);

/// Memory limit of the heads of requests, in bytes.
const MEMORY: usize = 4 * 1024 * 1024;

/// Timeout of a request.
const LONGEST_REQUEST: Duration = Duration::from_secs(60);

type Readiness = dyn Fn() -> Result<String, String> + Send + Sync;

struct AdminState {
    pages: Pages,
    heartbeat: Heartbeat,
    ready: Box<Readiness>,
}

/// Serves `/healthz` (liveness), `/readyz` (the result of `ready`: the state, or what is missing) and `/metrics`
/// (the registry in the OpenMetrics format). Must be served by a separate thread; see [`super::OwnThread`].
pub fn admin(
    registry: Registry,
    heartbeat: Heartbeat,
    ready: impl Fn() -> Result<String, String> + Send + Sync + 'static,
) -> Router {
    let admin = AdminState {
        pages: Pages::new(registry),
        heartbeat,
        ready: Box::new(ready),
    };
    Router::new()
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(admin))
}

/// Returns the limits of an admin endpoint with this many connections.
pub fn admin_limits(connections: usize) -> ServerLimits {
    ServerLimits {
        places: ConnectionPlaces::new(connections, ConnectionCounts::default()),
        memory: Pool::new(MEMORY),
        longest_request: LONGEST_REQUEST,
        ..ServerLimits::default()
    }
}

async fn health(State(admin): State<Arc<AdminState>>) -> Response {
    let silence = admin.heartbeat.silent_for();
    if silence <= MAX_SILENCE {
        return "ok\n".into_response();
    }
    let seconds = silence.as_secs();
    let message = format!("stuck: the main threads have run no task for {seconds} s\n");
    (StatusCode::SERVICE_UNAVAILABLE, message).into_response()
}

async fn readiness(State(admin): State<Arc<AdminState>>) -> Response {
    match (admin.ready)() {
        Ok(how) => format!("ok: {how}\n").into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<AdminState>>) -> Response {
    match admin.pages.page().await {
        Ok(page) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], Body::new(PageBody::new(page))).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
