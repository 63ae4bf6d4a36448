//! The HTTP client that every Trigger delivers with: pooled connections, no redirects, every wait bounded.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header, response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use jiff::Timestamp;

use super::{
    UriAddresses,
    connector::Connector,
    verdict::{self, Verdict},
};
use crate::cloudevents::{Event, HttpMessage, Received, is_event, read_http};

/// Idle connections are kept this long, below the usual keep-alive of servers so that few are found closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// How many idle connections are kept to one Sink.
const POOL_SIZE: usize = 64;

/// How much of an answer is read: enough to use the connection again after an ordinary one.
const MAX_ANSWER: usize = 64 * 1024;

/// How much of an answer is kept to tell why a delivery failed.
const MAX_EXCERPT: usize = 1024;

type HttpClient = legacy::Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Posts events to Sinks.
#[derive(Clone, Debug)]
pub struct Client {
    to_services: HttpClient,
    to_uris: HttpClient,
    max_reply: usize,
}

/// Where events are posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) uri: Uri,
    /// Whether it is a Service, which may be reached wherever it is.
    pub(super) is_service: bool,
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
    /// What is no Service is reached at the addresses of `uris`. A reply may have `max_reply` bytes.
    ///
    /// # Errors
    /// When the machine's authorities are there and cannot be read.
    pub fn new(max_reply: usize, uris: UriAddresses) -> Result<Self, ClientError> {
        let tls = tls()?;
        let client = |addresses| {
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .wrap_connector(Connector::new(Arc::new(addresses)));
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_SIZE)
                .pool_timer(TokioTimer::new())
                .build(https)
        };
        Ok(Self {
            to_services: client(UriAddresses::any()),
            to_uris: client(uris),
            max_reply,
        })
    }

    /// Makes one attempt, which ends after `timeout` at the latest.
    pub(super) async fn post(&self, target: &Target, message: HttpMessage, timeout: Duration) -> Answer {
        match tokio::time::timeout(timeout, self.exchange(target, message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Answer::none(with_causes(&error)),
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
        let http = if target.is_service {
            &self.to_services
        } else {
            &self.to_uris
        };
        let (head, body) = http.request(request).await?.into_parts();
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) && is_event(&head.headers) {
            return Ok(self.reply(&head, body).await);
        }
        let retry_after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| verdict::retry_after(value.to_str().ok()?, Timestamp::now()));
        let excerpt = excerpt(body).await;
        let detail = if excerpt.is_empty() {
            head.status.to_string()
        } else {
            format!("{}: {excerpt}", head.status)
        };
        Ok(Answer {
            verdict: verdict::verdict(head.status),
            status: Some(head.status),
            retry_after,
            detail,
            reply: None,
        })
    }

    /// Reads an answer that is an event. One that breaks off is tried again: what was to come is not known.
    async fn reply(&self, head: &response::Parts, body: Incoming) -> Answer {
        let reply = match Limited::new(body, self.max_reply).collect().await {
            Ok(body) => read_http(&head.headers, body.to_bytes())
                .map(Received::into_events)
                .map_err(|invalid| invalid.to_string()),
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

/// TLS that trusts what this machine trusts.
fn tls() -> Result<rustls::ClientConfig, ClientError> {
    let config = rustls::ClientConfig::builder();
    match config.clone().with_native_roots() {
        Ok(config) => Ok(config.with_no_client_auth()),
        // An empty image has no authorities: https Sinks then fail, one by one, with the TLS error.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(config
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth()),
        Err(error) => Err(ClientError::Roots(error)),
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

/// Reads the body so that the connection can be used again, and keeps its beginning. A body that breaks off or is
/// too long changes nothing about what the status said; one that is not there within the attempt's time makes it one
/// without an answer.
async fn excerpt(mut body: Incoming) -> String {
    let mut kept = BytesMut::new();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            read += data.len();
            let room = MAX_EXCERPT - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        if read > MAX_ANSWER {
            break;
        }
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
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
