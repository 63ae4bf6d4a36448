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

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn only_this_machine_is_let_in() {
        let routes = local_only(Router::new().route("/", get(|| async { "in" })));
        for (peer, status) in [
            (Some("127.0.0.1:1"), StatusCode::OK),
            (Some("[::1]:1"), StatusCode::OK),
            (Some("[::ffff:127.0.0.1]:1"), StatusCode::OK),
            (Some("10.0.0.1:1"), StatusCode::FORBIDDEN),
            (Some("[::ffff:10.0.0.1]:1"), StatusCode::FORBIDDEN),
            (None, StatusCode::FORBIDDEN),
        ] {
            let mut request = Request::new(Body::empty());
            if let Some(peer) = peer {
                request.extensions_mut().insert(Peer(peer.parse().unwrap()));
            }
            let response = routes.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), status, "{peer:?}");
        }
    }
}
