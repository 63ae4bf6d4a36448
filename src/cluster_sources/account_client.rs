//! A client of the API server that is the ServiceAccount of a Source.

use http::{Request, header};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::AuthInfo,
};
use tokio::sync::watch;
use tower::util::MapRequestLayer;

use super::account_tokens::KnownTokens;

/// Creates a client that sends the latest of these tokens with each request, and none of this process's credentials.
///
/// # Errors
/// If the configuration is unusable.
pub(super) fn account_client(
    config: &Config,
    tokens: watch::Receiver<KnownTokens>,
) -> Result<Client, kube::Error> {
    let mut config = config.clone();
    config.auth_info = AuthInfo::default();
    let layer = MapRequestLayer::new(move |mut request: Request<Body>| {
        if let Some(Ok(tokens)) = &*tokens.borrow() {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, tokens.api.clone());
        }
        request
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}
