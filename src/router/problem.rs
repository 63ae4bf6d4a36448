//! Errors as producers see them: problem details for HTTP APIs (RFC 9457).

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::exceeded::ExceededLimit;
use crate::{
    access::{Challenges, Refusal, RefusalKind},
    cloudevents::Invalid,
    log::LogError,
};

/// Reason of the problems of a tenant that has used up what it may.
const QUOTA: &str = "quota";

/// An error response that says what is wrong and what to do.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    /// Same word as in the metrics.
    reason: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    attribute: Option<String>,
    /// Index of the event in its batch, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// Seconds after which the request may be retried.
    #[serde(skip)]
    retry_after: Option<u32>,
    /// How to authenticate.
    #[serde(skip)]
    challenges: Challenges,
    /// The limit that the request exceeds, if that is the reason.
    #[serde(skip)]
    exceeded: Option<ExceededLimit>,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        reason: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            title,
            status,
            reason,
            detail: detail.into(),
            attribute: None,
            index: None,
            retry_after: None,
            challenges: Challenges::None,
            exceeded: None,
        }
    }

    /// Rejects a request of a tenant that has used up what it may, with [`QUOTA`] as the reason.
    pub(super) fn over_quota(
        status: StatusCode,
        exceeded: ExceededLimit,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            exceeded: Some(exceeded),
            ..Self::new(status, QUOTA, title, detail)
        }
    }

    /// Says how to authenticate.
    pub(super) fn challenged(self, challenges: Challenges) -> Self {
        Self { challenges, ..self }
    }

    /// Marks the request as retryable.
    pub(super) fn try_again(self) -> Self {
        self.try_again_after(1)
    }

    /// Marks the request as retryable after some seconds.
    pub(super) fn try_again_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Sets the index of the event in the request, from 0.
    pub(super) fn of_event(mut self, index: usize) -> Self {
        self.index = Some(index);
        self
    }

    /// Replaces the index of one of these events by its index in the request.
    pub(super) fn in_request(mut self, indexes: &[usize]) -> Self {
        self.index = self.index.and_then(|index| indexes.get(index).copied());
        self
    }

    /// What is wrong, and what to do.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The limit that the request exceeds, if that is the reason.
    pub(super) fn exceeded(&self) -> Option<ExceededLimit> {
        self.exceeded
    }

    /// Reason for metrics.
    pub(super) fn reason(&self) -> &'static str {
        self.reason
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        let title = if invalid.status() == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            "The event format is not supported"
        } else {
            "The event is not a valid CloudEvent"
        };
        let mut problem = Self::new(invalid.status(), invalid.label(), title, invalid.to_string());
        problem.attribute = invalid.attribute().map(str::to_owned);
        problem.index = invalid.index();
        problem
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let (status, title) = match refusal.kind() {
            RefusalKind::Unauthenticated => (StatusCode::UNAUTHORIZED, "The producer is not authenticated"),
            RefusalKind::Forbidden => (StatusCode::FORBIDDEN, "The producer may not post this"),
            RefusalKind::TooMany => (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many tokens of the producer are forged",
            ),
            RefusalKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "The producer cannot be checked"),
        };
        let problem = Self::new(status, refusal.label(), title, refusal.to_string());
        match refusal.retry_after() {
            Some(seconds) => problem.try_again_after(seconds),
            None => problem,
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full(detail) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "log_full",
                "The event log is full",
                format!("{detail}; the event was not stored, send it again later"),
            )
            .try_again(),
            LogError::Quota(detail) => Self::over_quota(
                StatusCode::INSUFFICIENT_STORAGE,
                ExceededLimit::Share,
                "The namespace's share of the event log is used up",
                format!("{detail}; the event was not stored, send it again later"),
            )
            .try_again(),
            LogError::TooManyBrokers(detail) => Self::over_quota(
                StatusCode::INSUFFICIENT_STORAGE,
                ExceededLimit::Brokers,
                "The namespace has too many brokers in the event log",
                format!("{detail}; the event was not stored, send it again later"),
            )
            .try_again(),
            LogError::BrokerQuota(detail) => Self::over_quota(
                StatusCode::INSUFFICIENT_STORAGE,
                ExceededLimit::Bytes,
                "The broker's quota of the event log is used up",
                format!("{detail}; the event was not stored, send it again later"),
            )
            .try_again(),
            LogError::Limit(detail) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "log_limit",
                "The event log does not take the event",
                format!("{detail}; the event was not stored"),
            ),
            // Not 409, which senders retry, other routers among them.
            LogError::Conflict { index, accepted } => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "conflicting_event",
                "Another event has its source and id",
                format!(
                    "another event with this source and id was stored at {accepted}, and the broker has deduplication; \
                     this one was not stored: give each event an id of its own"
                ),
            )
            .of_event(index),
            LogError::TooLarge(detail) => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                "The request is too large for the event log",
                format!("{detail}; nothing was stored"),
            ),
            LogError::Unavailable(detail) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "log_unavailable",
                "The event log is away",
                format!("{detail}; the event may not have been stored, send it again"),
            )
            .try_again(),
            LogError::Failed(_) | LogError::Fenced(_) | LogError::Damaged { .. } | LogError::Open { .. } => {
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "log_failed",
                    "The event log failed",
                    "the event may not have been stored, send it again",
                )
                .try_again()
            }
        }
    }
}

/// Problem for an operator, who stores nothing, when the log cannot do what was asked.
pub(super) fn of_log(error: LogError) -> Problem {
    match error {
        LogError::Full(detail) => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "log_full",
            "The event log is full",
            format!("{detail}; nothing was changed, ask again when there is room"),
        )
        .try_again(),
        LogError::Unavailable(detail) => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "log_unavailable",
            "The event log cannot be read at the moment",
            format!("{detail}; ask again in a moment"),
        )
        .try_again(),
        error => {
            tracing::error!(%error, "an operator's request failed");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "log_failed",
                "The event log cannot be used",
                error.to_string(),
            )
        }
    }
}

impl Problem {
    /// Content type and body of the response.
    pub(super) fn into_document(self) -> (&'static str, Bytes) {
        // Numbers and strings always serialise.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        ("application/problem+json", body.into())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, challenges, retry_after) = (self.status, self.challenges, self.retry_after);
        let (content_type, body) = self.into_document();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        for challenge in challenges.values() {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
