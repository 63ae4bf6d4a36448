//! Posts events to brokers.

use std::{path::PathBuf, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{ClientConfig, RootCertStore};

use crate::{
    causes::with_causes,
    cloudevents::{Event, HttpMessage, Mode, Reason},
    resolve::Finding,
    routing::protocol::Detail,
    trust,
};

/// Timeout of a request. A router answers once the event is durable.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a response, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Longest pause that a router can ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

type ProducerClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Reasons for which a router rejects an event whoever posts it and whenever. Others are of the request, of the producer, or
/// of something between.
const NEVER_ACCEPTED: [&str; 16] = [
    CONFLICT,
    "event_not_allowed",
    "too_large",
    Reason::NotACloudEvent.label(),
    Reason::UnsupportedFormat.label(),
    Reason::UnsupportedCharset.label(),
    Reason::MalformedJson.label(),
    Reason::UnsupportedVersion.label(),
    Reason::Missing.label(),
    Reason::Empty.label(),
    Reason::Duplicate.label(),
    Reason::Name.label(),
    Reason::Type.label(),
    Reason::Value.label(),
    Reason::Data.label(),
    Reason::TooMany.label(),
];

/// Reason of a router for an event whose source and id another event has, in a broker with deduplication.
pub(super) const CONFLICT: &str = "conflicting_event";

/// Reason of a router for an event that a quota never admits, with the status 413.
const QUOTA: &str = "quota";

/// The brokers of the installation.
pub(super) struct BrokerClient {
    base: Uri,
    authority: Option<PathBuf>,
    client: ArcSwap<ProducerClient>,
}

/// What became of an event.
pub(super) enum Posted {
    /// It is durable.
    Accepted,
    /// It will never be accepted.
    Rejected {
        /// The router's word for why.
        reason: String,
        message: String,
    },
    /// It may be accepted later.
    Refused {
        problem: Finding,
        /// Pause that the router asks for.
        after: Option<Duration>,
        /// Whether the router does not accept the token.
        is_unauthenticated: bool,
    },
}

impl BrokerClient {
    pub(super) fn new(base: Uri, authority: Option<PathBuf>) -> Self {
        let client = client(&base, authority.as_ref()).unwrap_or_else(|problem| {
            tracing::warn!(
                problem,
                "cannot read the authorities that sign the broker's certificate"
            );
            client_trusting(trust::only(RootCertStore::empty()))
        });
        Self {
            base,
            authority,
            client: ArcSwap::from_pointee(client),
        }
    }

    /// Returns the URL of a broker.
    pub(super) fn url(&self, namespace: &str, broker: &str) -> String {
        let base = self.base.to_string();
        format!("{}/{namespace}/{broker}", base.trim_end_matches('/'))
    }

    /// Posts an event once.
    pub(super) async fn post(&self, url: &str, event: &Event, token: Option<HeaderValue>) -> Posted {
        let HttpMessage { headers, body } = event.to_http(Some(Mode::Binary));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        match Uri::try_from(url) {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return unavailable(url, &error.to_string()),
        }
        *request.headers_mut() = headers;
        request
            .headers_mut()
            .extend(token.map(|token| (header::AUTHORIZATION, token)));
        let client = self.client.load_full();
        let exchange = async {
            let response = client
                .request(request)
                .await
                .map_err(|error| with_causes(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
            Ok::<_, String>((head, body))
        };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok((head, body))) => judge(url, head.status, &head.headers, &body),
            Ok(Err(error)) => {
                self.look_again();
                unavailable(url, &error)
            }
            Err(_) => unavailable(url, &format!("no response within {} s", TIMEOUT.as_secs())),
        }
    }

    /// Reads the authorities again, since they may have changed.
    fn look_again(&self) {
        if self.authority.is_some()
            && let Ok(client) = client(&self.base, self.authority.as_ref())
        {
            self.client.store(client.into());
        }
    }
}

fn client(base: &Uri, authority: Option<&PathBuf>) -> Result<ProducerClient, String> {
    let tls = match authority {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            let authorities =
                trust::authorities(&text).map_err(|error| format!("{}: {error}", file.display()))?;
            trust::only(authorities)
        }
        None => trust::for_uri(base).map_err(|error| error.to_string())?,
    };
    Ok(client_trusting(tls))
}

fn client_trusting(tls: ClientConfig) -> ProducerClient {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Client::builder(TokioExecutor::new()).build(connector)
}

fn unavailable(url: &str, problem: &str) -> Posted {
    Posted::Refused {
        problem: Finding::bad(
            "BrokerUnavailable",
            format!("cannot post to {url}: {problem}; retrying"),
        ),
        after: None,
        is_unauthenticated: false,
    }
}

/// Decides by a response. An event is given up only if the same event would never be accepted.
fn judge(url: &str, status: StatusCode, headers: &http::HeaderMap, body: &[u8]) -> Posted {
    if status.is_success() {
        return Posted::Accepted;
    }
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = Detail::from(problem["detail"].as_str().unwrap_or_default());
    let said = match detail.as_str() {
        "" => format!("{url} answered {status}"),
        detail => format!("{url} answered {status}: {detail}"),
    };
    let after = headers.get(header::RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
    let after = after.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE));
    let refused = |reason, is_unauthenticated| Posted::Refused {
        problem: Finding::bad(reason, format!("{said}; retrying")),
        after,
        is_unauthenticated,
    };
    let reason = problem["reason"].as_str().unwrap_or_default();
    let is_verdict =
        NEVER_ACCEPTED.contains(&reason) || (status == StatusCode::PAYLOAD_TOO_LARGE && reason == QUOTA);
    match status.as_u16() {
        401 => refused("BrokerRefuses", true),
        429 => refused("BrokerBusy", false),
        400..=499 if is_verdict => Posted::Rejected {
            reason: reason.to_owned(),
            message: said,
        },
        // Somebody can change who may post, apply the broker, or correct the URL.
        400..=499 => refused("BrokerRefuses", false),
        _ => refused("BrokerUnavailable", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_never_is_accepted_is_given_up() {
        let judged = |status: u16, reason: &str| {
            let body = format!(r#"{{"reason": "{reason}", "detail": "because"}}"#);
            let headers = [(header::RETRY_AFTER, HeaderValue::from_static("7"))]
                .into_iter()
                .collect();
            let status = StatusCode::from_u16(status).unwrap();
            match judge("http://b/", status, &headers, body.as_bytes()) {
                Posted::Accepted => "accepted".to_owned(),
                Posted::Rejected { reason: why, message } => {
                    assert_eq!(why, reason);
                    assert!(message.ends_with(": because"), "{message}");
                    "rejected".to_owned()
                }
                Posted::Refused { problem, after, .. } => {
                    assert_eq!(after, Some(Duration::from_secs(7)));
                    problem.reason.to_owned()
                }
            }
        };
        for (status, reason, expected) in [
            (202, "", "accepted"),
            (400, "invalid_attribute_value", "rejected"),
            (400, "incomplete_body", "BrokerRefuses"),
            (400, "", "BrokerRefuses"),
            (405, "", "BrokerRefuses"),
            (413, "", "BrokerRefuses"),
            (413, "too_large", "rejected"),
            (413, "quota", "rejected"),
            (401, "no_token", "BrokerRefuses"),
            (403, "not_allowed", "BrokerRefuses"),
            (403, "event_not_allowed", "rejected"),
            (404, "unknown_broker", "BrokerRefuses"),
            (429, "quota", "BrokerBusy"),
            (503, "", "BrokerUnavailable"),
            (507, "full", "BrokerUnavailable"),
        ] {
            assert_eq!(judged(status, reason), expected, "{status} {reason}");
        }
    }
}
