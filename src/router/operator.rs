//! Who may use what changes things or shows events on the admin endpoint: whoever is on this machine, or in this
//! pod, which a port-forward is too. Health and metrics are for everyone.

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use http::StatusCode;

use super::problem::Problem;
use crate::server::Peer;

/// Lets only requests from a loopback address through.
pub(super) fn local_only(routes: Router) -> Router {
    routes.layer(from_fn(check))
}

async fn check(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    if peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback()) {
        return next.run(request).await;
    }
    Problem::new(
        StatusCode::FORBIDDEN,
        "not_local",
        "This is for operators",
        "it answers on the router's own machine only; in a cluster, use kubectl port-forward to the router's pod",
    )
    .into_response()
}
