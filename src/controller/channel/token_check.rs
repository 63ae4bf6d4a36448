//! Admits requests with a router's token, verified by TokenReview at the API server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::{
    RequestPartsExt as _,
    extract::{Path, Query, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewStatus};
use kube::{Api, Client};
use ring::digest::{SHA256, digest};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    callers::{Caller, CallerRejection, RouterAccount, judge},
    telling::Telling,
    verdicts::{Digest, Remembered, Verdicts},
};
use crate::{
    controller::{
        metrics::ControllerMetrics,
        token_review::{self, REVIEW_TIMEOUT, ReviewError},
    },
    routing::{
        bearer_token,
        protocol::{ConfigurationQuery, Detail, TOKEN_AUDIENCE},
    },
    server::Peer,
};

/// Maximum number of concurrent reviews.
const REVIEWS: usize = 8;

/// Maximum length of a token, in bytes. The API server's own tokens have about 1,300.
const MAX_TOKEN: usize = 16 * 1024;

/// Checks tokens.
pub(super) struct TokenCheck {
    reviews: Api<TokenReview>,
    turns: Semaphore,
    account: RouterAccount,
    verdicts: Mutex<Verdicts>,
    telling: Mutex<Telling>,
    metrics: Arc<ControllerMetrics>,
}

/// Middleware that rejects requests that do not come from a router.
pub(super) async fn admit(State(check): State<Arc<TokenCheck>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let router = router_of(&mut parts).await;
    let admitted = match check.caller(&parts.headers).await {
        Ok(caller) => caller.may_be(router.as_deref()),
        Err(refusal) => Err(refusal),
    };
    match admitted {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => {
            check.tell(&refusal, router, parts.extensions.get());
            refusal.into_response()
        }
    }
}

/// Returns the router named in the request's path or query.
async fn router_of(parts: &mut Parts) -> Option<String> {
    if let Ok(Path(router)) = parts.extract::<Path<String>>().await {
        return Some(router);
    }
    let query = Query::<ConfigurationQuery>::try_from_uri(&parts.uri);
    query.ok().map(|Query(query)| query.router)
}

impl IntoResponse for CallerRejection {
    fn into_response(self) -> Response {
        let text = format!("{self}\n");
        match self {
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, "5")],
                text,
            )
                .into_response(),
            _ => (
                StatusCode::UNAUTHORIZED,
                [(header::WWW_AUTHENTICATE, "Bearer")],
                text,
            )
                .into_response(),
        }
    }
}

impl TokenCheck {
    pub(super) fn new(client: Client, account: RouterAccount, metrics: Arc<ControllerMetrics>) -> Self {
        Self {
            reviews: Api::all(client),
            turns: Semaphore::new(REVIEWS),
            account,
            verdicts: Mutex::default(),
            telling: Mutex::default(),
            metrics,
        }
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, CallerRejection> {
        let token = bearer(headers).ok_or(CallerRejection::NoToken)?;
        if token.len() > MAX_TOKEN {
            return Err(CallerRejection::Invalid("it is too long".into()));
        }
        let mut key = Digest::default();
        key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let remembered = self.verdicts().recall(&key, Instant::now().into_std());
        let before = match remembered {
            Remembered::Fresh(verdict) => return verdict,
            Remembered::Good(caller) => Some(caller),
            Remembered::Nothing => None,
        };
        match timeout(REVIEW_TIMEOUT, self.review(token))
            .await
            .unwrap_or(Err(ReviewError::Timeout))
        {
            Ok(status) => {
                let verdict = judge(status, &self.account);
                self.verdicts()
                    .remember(key, verdict.clone(), Instant::now().into_std());
                verdict
            }
            Err(error) => {
                if let Some(times) = self.telling().happened("no_review", Instant::now().into_std()) {
                    tracing::warn!(
                        %error,
                        times,
                        "cannot review routers' tokens at the API server; tokens that were valid within the last ten \
                         minutes are still accepted"
                    );
                }
                before.ok_or(CallerRejection::Unavailable)
            }
        }
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, ReviewError> {
        // The semaphore is never closed. If it were, reviews would go unlimited.
        let _turn = self.turns.acquire().await.ok();
        token_review::review(&self.reviews, token, TOKEN_AUDIENCE).await
    }

    fn tell(&self, refusal: &CallerRejection, router: Option<String>, peer: Option<&Peer>) {
        let reason = refusal.label();
        self.metrics.refused(reason);
        if matches!(refusal, CallerRejection::Unavailable) {
            return; // already logged by the review
        }
        if let Some(times) = self.telling().happened(reason, Instant::now().into_std()) {
            let router = Detail::from(router.unwrap_or_default());
            tracing::warn!(
                client = peer.map(|Peer(address)| tracing::field::display(address)),
                router = router.as_str(),
                reason,
                times,
                "rejected a request for the routing configuration: {refusal}"
            );
        }
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        // No holder of the lock can panic halfway through a change.
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn telling(&self) -> MutexGuard<'_, Telling> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    bearer_token(headers.get(header::AUTHORIZATION)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use axum::{Router, body::Body, middleware::from_fn_with_state, routing::get};
    use http_body_util::BodyExt as _;
    use serde_json::json;
    use tower::ServiceExt as _;

    use super::*;

    /// An API server that knows one token, and may be unavailable.
    #[derive(Default)]
    struct ApiServer {
        asked: AtomicUsize,
        status: AtomicUsize,
    }

    impl ApiServer {
        async fn answer(self: Arc<Self>, request: http::Request<kube::client::Body>) -> http::Response<Body> {
            self.asked.fetch_add(1, Relaxed);
            let status = u16::try_from(self.status.load(Relaxed)).unwrap();
            if status == 0 {
                std::future::pending::<()>().await;
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: serde_json::Value = serde_json::from_slice(&body).unwrap();
            review["status"] = match review["spec"]["token"].as_str() {
                Some("good") => json!({
                    "authenticated": true, "audiences": review["spec"]["audiences"],
                    "user": {
                        "username": "system:serviceaccount:weir-system:weir-router",
                        "extra": {"authentication.kubernetes.io/pod-name": ["r-0"]},
                    },
                }),
                _ => json!({"error": "invalid bearer token"}),
            };
            let mut response = http::Response::new(Body::from(review.to_string()));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        }
    }

    fn start() -> (Arc<ApiServer>, Router) {
        let server = Arc::new(ApiServer::default());
        server.status.store(201, Relaxed);
        let answering = server.clone();
        let client = tower::service_fn(move |request| {
            let server = answering.clone();
            async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
        });
        let account = "weir-system/weir-router".parse().unwrap();
        let check = TokenCheck::new(Client::new(client, "default"), account, Arc::default());
        let service = Router::new()
            .route("/v1/configuration", get(|| async {}))
            .route("/v1/routers/{router}", get(|| async {}))
            .route("/v1/routers/{router}/sinks", get(|| async {}))
            .route_layer(from_fn_with_state(Arc::new(check), admit));
        (server, service)
    }

    async fn ask(service: &Router, path: &str, token: Option<&str>) -> u16 {
        let mut request = http::Request::get(path);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Body::empty()).unwrap();
        service.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    const POLL: &str = "/v1/configuration?router=r-0&revision=1";

    #[tokio::test(start_paused = true)]
    async fn admits_a_router_only_under_its_own_name() {
        let (server, service) = start();
        let long = "x".repeat(MAX_TOKEN + 1);
        for (path, token, status) in [
            (POLL, Some("good"), 200),
            ("/v1/routers/r%2D0/sinks", Some("good"), 200),
            ("/v1/routers/r-0", Some("good"), 200),
            ("/v1/configuration?router=r-1", Some("good"), 401),
            ("/v1/configuration", Some("good"), 401),
            ("/v1/routers/r-1", Some("good"), 401),
            ("/v1/routers/r-1/sinks?router=r-0", Some("good"), 401),
            (POLL, Some("bad"), 401),
            (POLL, Some("bad"), 401),
            (POLL, Some(""), 401),
            (POLL, None, 401),
            (POLL, Some(&*long), 401),
        ] {
            assert_eq!(ask(&service, path, token).await, status, "{path} {token:?}");
        }
        assert_eq!(server.asked.load(Relaxed), 2, "once for each token");
    }

    #[tokio::test(start_paused = true)]
    async fn valid_tokens_are_accepted_for_ten_minutes_without_the_api_server() {
        let (server, service) = start();
        assert_eq!(ask(&service, POLL, Some("good")).await, 200);
        for status in [500, 403, 0] {
            server.status.store(status, Relaxed);
            tokio::time::advance(Duration::from_secs(120)).await;
            assert_eq!(ask(&service, POLL, Some("good")).await, 200, "{status}");
            assert_eq!(ask(&service, POLL, Some("new")).await, 503, "{status}");
        }
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(ask(&service, POLL, Some("good")).await, 503);
        server.status.store(201, Relaxed);
        assert_eq!(ask(&service, POLL, Some("good")).await, 200);
    }
}
