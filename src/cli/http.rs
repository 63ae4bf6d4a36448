//! HTTP client for the subcommands: one request and its response.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use rustls::ClientConfig;

use super::Usage;
use crate::{causes::with_causes, http_url, trust};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a response body, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Parses an `http` or `https` URL. The scheme defaults to `http`.
///
/// # Errors
/// [`Usage`] if it is invalid.
pub fn parse_url(text: &str) -> anyhow::Result<Uri> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    http_url::parse(&text).map_err(|error| Usage(format!("{text:?} {error}")).into())
}

/// Sends a request and returns the response if its status is a success.
///
/// # Errors
/// If there is no response within 30 seconds; [`ErrorResponse`] for any other status.
pub async fn exchange(request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
    let tls = trust::for_uri(request.uri())
        .context("cannot read the certificate authorities that this machine trusts")?;
    exchange_with(request, tls).await
}

/// The same, with this configuration for `https`.
///
/// # Errors
/// As [`exchange`].
pub async fn exchange_with(
    mut request: Request<Full<Bytes>>,
    tls: ClientConfig,
) -> anyhow::Result<(StatusCode, Bytes)> {
    if request.method() == Method::POST && request.body().is_end_stream() {
        // hyper omits it, and some servers then respond with 411 (RFC 9110, section 8.6).
        let none = HeaderValue::from_static("0");
        request.headers_mut().insert(header::CONTENT_LENGTH, none);
    }
    let url = request.uri().clone();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
    let (status, answer) = tokio::time::timeout(TIMEOUT, async {
        let response = client
            .request(request)
            .await
            .map_err(|error| unreachable(&url, &error))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("the response of {url} was cut off: {error}"))?;
        anyhow::Ok((status, answer.to_bytes()))
    })
    .await
    .with_context(|| format!("{url} did not respond within {} s", TIMEOUT.as_secs()))??;
    if !status.is_success() {
        return Err(ErrorResponse {
            url,
            status,
            reason: member(&answer, "reason"),
            detail: detail(&answer),
        }
        .into());
    }
    Ok((status, answer))
}

/// A response with a status other than success.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
pub struct ErrorResponse {
    /// URL of the request.
    pub url: Uri,
    /// Status of the response.
    pub status: StatusCode,
    /// `reason` of the problem document.
    pub reason: Option<String>,
    /// `detail` of the problem document, or else the body.
    pub detail: String,
}

fn unreachable(url: &Uri, error: &hyper_util::client::legacy::Error) -> anyhow::Error {
    let what_to_do = if error.is_connect() {
        "; is a router running there (weir run, or a pod through kubectl port-forward)?"
    } else {
        ""
    };
    anyhow::anyhow!("cannot reach {url}: {}{what_to_do}", with_causes(error))
}

/// Returns the `detail` of a problem document, or else the body.
fn detail(answer: &Bytes) -> String {
    member(answer, "detail").unwrap_or_else(|| String::from_utf8_lossy(answer).trim().to_owned())
}

/// Returns a string member of a problem document.
fn member(answer: &Bytes, name: &str) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(answer).ok()?;
    Some(problem.get(name)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheme_is_optional() {
        assert_eq!(
            parse_url("localhost:8080/a/b").unwrap(),
            "http://localhost:8080/a/b"
        );
        assert!(parse_url("ftp://a/").is_err());
    }

    #[test]
    fn reports_detail_of_problem_document() {
        assert_eq!(
            detail(&Bytes::from_static(br#"{"detail":"no broker"}"#)),
            "no broker"
        );
        assert_eq!(detail(&Bytes::from_static(b" plain ")), "plain");
    }
}
