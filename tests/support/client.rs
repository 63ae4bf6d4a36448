//! The HTTP client of the tests: hyper's, which the product has anyway.

use std::{sync::OnceLock, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use super::runtime;

/// How long a request may take: longer than anything that answers, shorter than a test that hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Response {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "{} with a body that is no JSON ({error}): {}",
                self.status,
                self.text()
            )
        })
    }
}

/// Posts, and fails the test when no response comes.
#[track_caller]
pub(crate) fn post(url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Response {
    match try_post(url, headers, body) {
        Ok(response) => response,
        Err(error) => panic!("{error}"),
    }
}

/// Posts; an error says that no complete response came.
pub(crate) fn try_post(
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Response, String> {
    runtime().block_on(send(Method::POST, url, headers, body))
}

/// Gets, and fails the test when no response comes.
#[track_caller]
pub(crate) fn get(url: &str) -> Response {
    match try_get(url) {
        Ok(response) => response,
        Err(error) => panic!("{error}"),
    }
}

/// Gets; an error says that no complete response came.
pub(crate) fn try_get(url: &str) -> Result<Response, String> {
    runtime().block_on(send(Method::GET, url, &[], Bytes::new()))
}

/// Any request, for tests that have many under way at once (on [`runtime`]).
pub(crate) async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Result<Response, String> {
    static CLIENT: OnceLock<Client<HttpConnector, Full<Bytes>>> = OnceLock::new();
    let client = CLIENT.get_or_init(|| Client::builder(TokioExecutor::new()).build_http());
    let failed = |error: &dyn std::fmt::Debug| format!("{method} {url}: {error:?}");

    let mut request = Request::builder().method(&method).uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request
        .body(Full::new(body.into()))
        .map_err(|error| failed(&error))?;
    let exchange = async {
        let response = client.request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| failed(&error))?.to_bytes();
        Ok(Response {
            status: head.status,
            headers: head.headers,
            body,
        })
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| failed(&TIMEOUT))?
}
