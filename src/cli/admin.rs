//! Client of a router's admin address, for the subcommands that operate it.

use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use serde::de::DeserializeOwned;

use super::{
    Usage,
    http::{ErrorResponse, exchange, parse_url},
    operator_token,
};

/// The router that a subcommand asks.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// Admin address of the router.
    #[arg(
        long,
        env = "WEIR_ROUTER",
        default_value = "http://127.0.0.1:9090",
        value_name = "URL",
        global = true
    )]
    pub router: String,

    /// File with the token that authenticates you to the router: its own one, or a ServiceAccount token for the audience
    /// weir-router. Default, for a router on this machine: the token that weir port-forward keeps, or else the file
    /// operator-token in the data directory, WEIR_DATA or .weir.
    #[arg(long, env = "WEIR_ROUTER_TOKEN", value_name = "FILE", global = true)]
    pub router_token: Option<PathBuf>,
}

impl AdminArgs {
    /// Creates a client of the router.
    ///
    /// # Errors
    /// [`Usage`] if the URL is not valid; if the token cannot be read.
    pub fn client(&self) -> anyhow::Result<AdminClient> {
        self.client_at(&self.router)
    }

    /// Creates a client of the router at another URL.
    ///
    /// # Errors
    /// [`Usage`] if the URL is not valid; if the token cannot be read.
    pub fn client_at(&self, url: &str) -> anyhow::Result<AdminClient> {
        let url = parse_url(url)?;
        let authorization = match operator_token::find(self.router_token.as_deref(), &url)? {
            Some(token) => Some(bearer(&token)?),
            None => None,
        };
        Ok(AdminClient {
            base: url.to_string().trim_end_matches('/').to_owned(),
            authorization,
        })
    }
}

fn bearer(token: &str) -> anyhow::Result<HeaderValue> {
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.context("the token for the router has characters that no token has")?;
    value.set_sensitive(true);
    Ok(value)
}

/// A router's admin endpoint.
pub struct AdminClient {
    base: String,
    authorization: Option<HeaderValue>,
}

impl AdminClient {
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
        if let Some(authorization) = &self.authorization {
            let authorization = authorization.clone();
            request.headers_mut().insert(header::AUTHORIZATION, authorization);
        }
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
