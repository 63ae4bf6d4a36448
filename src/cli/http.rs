//! One request and its answer, for the subcommands that are clients.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

use super::Usage;
use crate::{delivery::with_causes, http_url, trust};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How much of an answer is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Reads an `http` or `https` URL; without a scheme it is `http`.
///
/// # Errors
/// [`Usage`] when it is none.
pub fn parse_url(text: &str) -> anyhow::Result<Uri> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    http_url::parse(&text).map_err(|error| Usage(format!("{text:?} {error}")).into())
}

/// Sends a request, and gives the answer if it says success.
///
/// # Errors
/// When there is no answer within 30 seconds; [`Refused`] when it says something else.
pub async fn exchange(mut request: Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)> {
    if request.method() == Method::POST && request.body().is_end_stream() {
        // hyper leaves it out, and some servers answer 411 then (RFC 9110, section 8.6).
        let none = HeaderValue::from_static("0");
        request.headers_mut().insert(header::CONTENT_LENGTH, none);
    }
    let url = request.uri().clone();
    let tls =
        trust::for_uri(&url).context("cannot read the certificate authorities that this machine trusts")?;
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
            .map_err(|error| anyhow::anyhow!("the answer of {url} breaks off: {error}"))?;
        anyhow::Ok((status, answer.to_bytes()))
    })
    .await
    .with_context(|| format!("{url} did not answer within {} s", TIMEOUT.as_secs()))??;
    if !status.is_success() {
        return Err(Refused {
            url,
            status,
            reason: member(&answer, "reason"),
            detail: detail(&answer),
        }
        .into());
    }
    Ok((status, answer))
}

/// An answer that does not say success.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered {status}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
pub struct Refused {
    /// Who answered.
    pub url: Uri,
    /// What it says.
    pub status: StatusCode,
    /// The `reason` of its problem document.
    pub reason: Option<String>,
    /// The `detail` of its problem document, else the answer as it is.
    pub detail: String,
}

fn unreachable(url: &Uri, error: &hyper_util::client::legacy::Error) -> anyhow::Error {
    let what_to_do = if error.is_connect() {
        "; does a router run there (weir run, or one that kubectl port-forward makes reachable)?"
    } else {
        ""
    };
    anyhow::anyhow!("cannot reach {url}: {}{what_to_do}", with_causes(error))
}

/// What a problem document says, else the answer as it is.
fn detail(answer: &Bytes) -> String {
    member(answer, "detail").unwrap_or_else(|| String::from_utf8_lossy(answer).trim().to_owned())
}

/// A text of a problem document.
fn member(answer: &Bytes, name: &str) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(answer).ok()?;
    Some(problem.get(name)?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_lack_the_scheme() {
        assert_eq!(
            parse_url("localhost:8080/a/b").unwrap(),
            "http://localhost:8080/a/b"
        );
        assert!(parse_url("ftp://a/").is_err());
    }

    #[test]
    fn the_detail_of_a_problem_is_told() {
        assert_eq!(
            detail(&Bytes::from_static(br#"{"detail":"no broker"}"#)),
            "no broker"
        );
        assert_eq!(detail(&Bytes::from_static(b" plain ")), "plain");
    }
}
