//! Client of a router's admin address, for the subcommands that operate it.

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde::de::DeserializeOwned;

use super::{
    Usage,
    http::{ErrorResponse, exchange, parse_url},
};
use crate::router::REQUEST_HEADER;

/// A router's admin endpoint.
pub struct AdminClient {
    base: String,
}

impl AdminClient {
    /// Creates a client of the endpoint at this URL. The scheme may be omitted.
    ///
    /// # Errors
    /// [`Usage`] if it is not a valid URL.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let base = parse_url(url)?.to_string().trim_end_matches('/').to_owned();
        Ok(Self { base })
    }

    /// Sends a request and decodes the response.
    ///
    /// # Errors
    /// If the router cannot be reached or rejects the request, or the server is not a router.
    pub async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = parse_url(&format!("{}{path}", self.base))?;
        *request.headers_mut() = headers;
        let meant = HeaderValue::from_static("1");
        request.headers_mut().insert(REQUEST_HEADER, meant);
        let (_, answer) = exchange(request).await.map_err(|error| self.explained(error))?;
        serde_json::from_slice(&answer).with_context(|| self.is_another())
    }

    /// Explains a response from a server that does not know the path; its own message would mislead.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        let misses = |refused: &&ErrorResponse| {
            matches!(
                refused.status,
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
            ) && matches!(
                refused.reason.as_deref(),
                None | Some("unknown_path" | "wrong_method")
            )
        };
        match error.downcast_ref::<ErrorResponse>().filter(misses) {
            Some(refused) => anyhow::anyhow!("{} (it answered {})", self.is_another(), refused.status),
            None => error,
        }
    }

    fn is_another(&self) -> String {
        format!(
            "{} is not the admin address of a router of this version: use the address that serves /metrics \
             (default port 9090), not the one that events are posted to",
            self.base
        )
    }
}

/// Checks a broker name, `NAMESPACE/NAME`, for use in a path.
///
/// # Errors
/// [`Usage`] if it is malformed.
pub fn checked_broker(broker: &str) -> anyhow::Result<&str> {
    let name = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match broker.split_once('/') {
        Some((namespace, broker_name)) if name(namespace) && name(broker_name) => Ok(broker),
        _ => Err(Usage(format!(
            "invalid broker {broker:?}: use NAMESPACE/NAME, such as shop/default"
        ))
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_broker_as_namespace_and_name() {
        assert!(checked_broker("shop/default").is_ok());
        for wrong in ["shop", "shop/", "/default", "shop/a/b", "shop/../x", "shop/a b"] {
            assert!(checked_broker(wrong).is_err(), "{wrong}");
        }
    }
}
