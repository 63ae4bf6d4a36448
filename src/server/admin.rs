//! The admin endpoint that the router and the controller have alike: health, readiness and metrics.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use prometheus_client::{encoding::text, registry::Registry};

type Readiness = dyn Fn() -> Result<String, String> + Send + Sync;

struct Admin {
    registry: Registry,
    ready: Box<Readiness>,
}

/// `/healthz` (the process serves), `/readyz` (`ready` says how it is, or what is missing) and `/metrics` (the
/// registry in the OpenMetrics format).
pub fn admin(
    registry: Registry,
    ready: impl Fn() -> Result<String, String> + Send + Sync + 'static,
) -> Router {
    let admin = Admin {
        registry,
        ready: Box::new(ready),
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(admin))
}

async fn readiness(State(admin): State<Arc<Admin>>) -> Response {
    match (admin.ready)() {
        Ok(how) => format!("ok: {how}\n").into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics cannot be written: {error}\n"),
        )
            .into_response(),
    }
}
