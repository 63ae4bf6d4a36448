//! The admin endpoint: health, readiness and metrics, on a port of their own.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header};
use prometheus_client::{encoding::text, registry::Registry};

use crate::routing::RoutingTable;

pub(super) struct Admin {
    pub(super) registry: Registry,
    pub(super) table: Arc<ArcSwapOption<RoutingTable>>,
}

pub(super) fn service(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(admin))
}

/// A router is ready once it knows what to do with events.
async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    match admin.table.load().as_ref() {
        Some(table) => format!("ok: revision {}\n", table.revision().0).into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: no routing configuration yet\n",
        )
            .into_response(),
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
