//! The HTTP client that every Trigger delivers with: pooled connections, no redirects, every wait bounded.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use jiff::Timestamp;

use super::{
    Addresses,
    target::{Target, TargetError, Targets},
    tls_error,
    verdict::{self, Verdict},
};
use crate::{
    cloudevents::{Event, HttpMessage, TraceContext, content_coding, is_event, read_http, transfer_coding},
    routing::{Authorities, Destination},
    telemetry::Tracer,
};

/// How much of an answer is read: enough to use the connection again after an ordinary one.
const MAX_ANSWER: usize = 64 * 1024;

/// How much of an answer is kept to tell why a delivery failed.
const MAX_EXCERPT: usize = 1024;

/// Posts events to Sinks.
#[derive(Clone)]
pub struct Client {
    targets: Targets,
    max_reply: usize,
    tracer: Tracer,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificates of the authorities that this machine trusts cannot be read.
    #[error("cannot read the certificate authorities that this machine trusts, needed for https Sinks: {0}")]
    Roots(#[source] std::io::Error),
}

/// What came of one attempt.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) verdict: Verdict,
    pub(super) status: Option<StatusCode>,
    pub(super) retry_after: Option<Duration>,
    /// What happened, for a person: the status with the beginning of the body, or why there was no answer.
    pub(super) detail: String,
    /// The events that it is a reply with, or why what is called an event is none.
    pub(super) reply: Option<Result<Vec<Event>, String>>,
}

impl Client {
    /// A client that trusts the authorities that the machine trusts, or, where it has none, speaks `http` only.
    /// Sinks are reached at these addresses only. A reply may have `max_reply` bytes.
    ///
    /// # Errors
    /// When the machine's authorities are there and cannot be read.
    pub fn new(max_reply: usize, addresses: Addresses) -> Result<Self, ClientError> {
        Ok(Self {
            targets: Targets::new(addresses)?,
            max_reply,
            tracer: Tracer::default(),
        })
    }

    /// With spans for what it delivers.
    #[must_use]
    pub fn traced(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// What makes the spans of what it delivers.
    pub(super) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Says how many log lines were held back, where no later line has.
    pub(super) fn tell_overdue(&self, now: Instant) {
        self.targets.tell_overdue(now);
    }

    /// Makes a destination ready to post to. `authorities` are those of its configuration.
    pub(super) fn target(
        &self,
        destination: &Destination,
        authorities: &Authorities,
    ) -> Result<Target, TargetError> {
        self.targets.target(destination, authorities)
    }

    /// Makes one attempt, which ends after `timeout` at the latest.
    pub(super) async fn post(&self, target: &Target, message: HttpMessage, timeout: Duration) -> Answer {
        match tokio::time::timeout(timeout, self.exchange(target, message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::none(tls_error::told(&error).unwrap_or_else(|| with_causes(&error))),
            Err(_) => Answer::none(format!("no complete answer within {timeout:?}")),
        }
    }

    async fn exchange(&self, target: &Target, message: HttpMessage) -> Result<Answer, legacy::Error> {
        let mut request = Request::new(Full::new(message.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.uri.clone();
        *request.headers_mut() = message.headers;
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("weir/", env!("CARGO_PKG_VERSION"))),
        );
        target.set_headers(headers);
        let (head, body) = target.http().request(request).await?.into_parts();
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) && is_event(&head.headers) {
            return Ok(self.reply(target, &head, body).await);
        }
        let retry_after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| verdict::retry_after(value.to_str().ok()?, Timestamp::now()));
        let excerpt = excerpt(target, body).await;
        let detail = if excerpt.is_empty() {
            head.status.to_string()
        } else {
            format!("{}: {excerpt}", head.status)
        };
        Ok(Answer {
            verdict: verdict::verdict(head.status, target.shows_credentials()),
            status: Some(head.status),
            retry_after,
            detail,
            reply: None,
        })
    }

    /// Reads an answer that is an event. One that breaks off is tried again: what was to come is not known.
    async fn reply(&self, target: &Target, head: &response::Parts, body: Incoming) -> Answer {
        let reply = match Limited::new(body, self.max_reply).collect().await {
            Ok(body) => {
                events(&head.headers, body.to_bytes()).map_err(|problem| target.hide_secrets(problem))
            }
            Err(error) if error.is::<LengthLimitError>() => {
                Err(format!("it has more than {} bytes", self.max_reply))
            }
            Err(error) => return Answer::none(format!("{}: the reply breaks off: {error}", head.status)),
        };
        Answer {
            verdict: Verdict::Delivered,
            status: Some(head.status),
            retry_after: None,
            detail: head.status.to_string(),
            reply: Some(reply),
        }
    }
}

impl Answer {
    pub(super) fn none(detail: String) -> Self {
        Self {
            verdict: Verdict::Retry,
            status: None,
            retry_after: None,
            detail,
            reply: None,
        }
    }
}

/// The events that an answer is, or why it is none.
fn events(headers: &HeaderMap, body: Bytes) -> Result<Vec<Event>, String> {
    if let Some(coding) = content_coding(headers).or_else(|| transfer_coding(headers)) {
        return Err(format!(
            "its coding {coding:?} is not supported: send the body as it is"
        ));
    }
    read_http(headers, body)
        .map(|received| received.into_events_in(TraceContext::from_headers(headers)))
        .map_err(|invalid| invalid.to_string())
}

/// Reads the body so that the connection can be used again, and keeps its beginning. A body that breaks off or is
/// too long changes nothing about what the status said; one that is not there within the attempt's time makes it one
/// without an answer.
async fn excerpt(target: &Target, mut body: Incoming) -> String {
    let most = MAX_EXCERPT + target.longest_secret();
    let mut kept = BytesMut::new();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            read += data.len();
            let room = most - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        if read > MAX_ANSWER {
            break;
        }
    }
    let mut text = target.hide_secrets(String::from_utf8_lossy(&kept).into_owned());
    if kept.len() == most {
        // It may end within a secret.
        let whole = text.len() - target.longest_secret().min(text.len());
        text.truncate(text.floor_char_boundary(whole));
    }
    text.truncate(text.floor_char_boundary(MAX_EXCERPT));
    text.trim().to_owned()
}

/// An error and its causes in one line; HTTP clients put the telling part last.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}
