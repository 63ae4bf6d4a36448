//! Reviews for routers whether an operator may do something: asks the API server whose token it is, and whether that
//! user may do it. See [`crate::routing::AccessReview`].

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::{StatusCode, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, UserInfo},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use tokio::{sync::Semaphore, time::timeout};

use super::token_review::{self, REVIEW_TIMEOUT, ReviewError};
use crate::routing::{
    ACCESS_REVIEWS_PATH, AccessReview, AccessVerdict, MAX_REVIEW, OPERATOR_AUDIENCE, Operation,
};

/// API group of the resources.
const GROUP: &str = "weir.dev";

/// Maximum number of concurrent reviews.
const REVIEWS: usize = 8;

/// Asks the API server.
struct AccessReviews {
    tokens: Api<TokenReview>,
    accesses: Api<SubjectAccessReview>,
    turns: Semaphore,
}

/// Builds the service for routers.
pub(super) fn service(client: &Client) -> Router {
    let reviews = AccessReviews {
        tokens: Api::all(client.clone()),
        accesses: Api::all(client.clone()),
        turns: Semaphore::new(REVIEWS),
    };
    Router::new()
        .route(
            ACCESS_REVIEWS_PATH,
            post(answer).layer(DefaultBodyLimit::max(MAX_REVIEW)),
        )
        .with_state(Arc::new(reviews))
}

async fn answer(State(reviews): State<Arc<AccessReviews>>, Json(review): Json<AccessReview>) -> Response {
    let reviewed = timeout(REVIEW_TIMEOUT, reviews.review(review)).await;
    match reviewed.unwrap_or(Err(ReviewError::Timeout)) {
        Ok(verdict) => Json(verdict).into_response(),
        Err(error) => {
            tracing::warn!(%error, "cannot review at the API server whether an operator may use a router's admin API");
            let text = format!("the API server did not review the token: {error}\n");
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, "5")],
                text,
            )
                .into_response()
        }
    }
}

impl AccessReviews {
    async fn review(&self, review: AccessReview) -> Result<AccessVerdict, ReviewError> {
        let AccessReview { token, operation } = review;
        // The semaphore is never closed. If it were, reviews would go unlimited.
        let _turn = self.turns.acquire().await.ok();
        let status = token_review::review(&self.tokens, token.reveal(), OPERATOR_AUDIENCE).await?;
        let user = match token_review::authenticated(status, OPERATOR_AUDIENCE) {
            Ok(user) => user,
            Err(reason) => return Ok(AccessVerdict::Unauthenticated { reason }),
        };
        let name = user.username.clone().unwrap_or_default().into();
        let may = self.may(user, operation).await?;
        Ok(match may {
            true => AccessVerdict::Allowed { user: name },
            false => AccessVerdict::Forbidden { user: name },
        })
    }

    async fn may(&self, user: UserInfo, operation: Operation) -> Result<bool, ReviewError> {
        let review = SubjectAccessReview {
            spec: spec_of(user, operation),
            ..SubjectAccessReview::default()
        };
        let reviewed = self.accesses.create(&PostParams::default(), &review).await;
        let reviewed = reviewed
            .map_err(|error| ReviewError::of(error, "subjectaccessreviews (authorization.k8s.io)"))?;
        Ok(reviewed.status.ok_or(ReviewError::Empty)?.allowed)
    }
}

fn spec_of(user: UserInfo, operation: Operation) -> SubjectAccessReviewSpec {
    let UserInfo {
        extra,
        groups,
        uid,
        username,
    } = user;
    let Operation {
        verb,
        resource,
        subresource,
        namespace,
        name,
    } = operation;
    SubjectAccessReviewSpec {
        user: username,
        uid,
        groups,
        extra,
        resource_attributes: Some(ResourceAttributes {
            group: Some(GROUP.to_owned()),
            verb: Some(verb),
            resource: Some(resource),
            subresource: Some(subresource),
            namespace,
            name,
            ..ResourceAttributes::default()
        }),
        ..SubjectAccessReviewSpec::default()
    }
}
