//! Reviews of tokens at the API server.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::{Api, api::PostParams};

use crate::routing::protocol::Detail;

/// Timeout of what a caller waits for, including the wait for a turn.
pub(super) const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a review failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReviewError {
    #[error("no response within {REVIEW_TIMEOUT:?}")]
    Timeout,
    #[error("{0}; the controller's ClusterRole must allow create on {1}")]
    Forbidden(String, &'static str),
    #[error("{0}")]
    Failed(String),
    #[error("the response has no status")]
    Empty,
}

impl ReviewError {
    /// Explains the error of a request to create a `resource`.
    pub(super) fn of(error: kube::Error, resource: &'static str) -> Self {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                Self::Forbidden(status.message.clone(), resource)
            }
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Asks the API server whose token it is.
pub(super) async fn review(
    reviews: &Api<TokenReview>,
    token: &str,
    audience: &str,
) -> Result<TokenReviewStatus, ReviewError> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![audience.to_owned()]),
        },
        ..TokenReview::default()
    };
    let reviewed = reviews.create(&PostParams::default(), &review).await;
    let reviewed =
        reviewed.map_err(|error| ReviewError::of(error, "tokenreviews (authentication.k8s.io)"))?;
    reviewed.status.ok_or(ReviewError::Empty)
}

/// Returns the user whose token it is, or why the token is not valid for the audience.
pub(super) fn authenticated(status: TokenReviewStatus, audience: &str) -> Result<UserInfo, Detail> {
    let TokenReviewStatus {
        audiences,
        authenticated,
        error,
        user,
    } = status;
    if authenticated != Some(true) {
        let reason = error.filter(|error| !error.is_empty());
        return Err(reason.unwrap_or_else(|| "it is not valid".into()).into());
    }
    // An API server that ignores audiences returns none, so the token may be meant for another service.
    if !audiences
        .unwrap_or_default()
        .iter()
        .any(|known| known == audience)
    {
        return Err("it is for another audience".into());
    }
    Ok(user.unwrap_or_default())
}
