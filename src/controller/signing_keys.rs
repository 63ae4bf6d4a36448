//! Reads who issues the cluster's ServiceAccount tokens, and the keys that verify them, from the API server. Routers
//! verify producers' tokens with them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::Request;
use kube::Client;
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::routing::{TokenIssuer, TokenKey};

/// Paths of OpenID Connect Discovery 1.0 at the API server.
const ISSUER_PATH: &str = "/.well-known/openid-configuration";
const KEYS_PATH: &str = "/openid/v1/jwks";

/// Interval between reads. New keys are published before tokens are signed with them.
const READ_EVERY: Duration = Duration::from_secs(30);

/// Pause after a read that failed.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Timeout of a read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of keys. A cluster has one, and two during a rotation.
const MAX_KEYS: usize = 64;

/// The issuer and its keys, as last read.
pub(super) struct SigningKeys(watch::Receiver<Result<TokenIssuer, String>>);

impl SigningKeys {
    /// Reads them regularly until told to stop, and notifies of changes.
    pub(super) fn start(client: &Client, changed: &Arc<Notify>, stop: &CancellationToken) -> Self {
        let (told, read) = watch::channel(Err("they have not been read yet".to_owned()));
        let (client, changed, stop) = (client.clone(), changed.clone(), stop.clone());
        tokio::spawn(async move {
            stop.run_until_cancelled(follow(&client, &told, &changed)).await;
        });
        Self(read)
    }

    /// Waits until they have been read, or could not be.
    pub(super) async fn tried(&self) {
        let mut read = self.0.clone();
        // Fails only when the reader has stopped, so that nothing will change any more.
        let _ = timeout(PATIENCE * 3, read.changed()).await;
    }

    /// The issuer, or why it is unknown.
    pub(super) fn latest(&self) -> Result<TokenIssuer, String> {
        self.0.borrow().clone()
    }
}

async fn follow(client: &Client, told: &watch::Sender<Result<TokenIssuer, String>>, changed: &Notify) {
    loop {
        let read = timeout(PATIENCE, read(client)).await;
        let read = read.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned()));
        let pause = if read.is_ok() { READ_EVERY } else { READ_AGAIN };
        let is_news = told.send_if_modified(|known| match (&read, &*known) {
            (read, known) if read == known => false,
            // Keys do not become invalid because they cannot be read again.
            (Err(problem), Ok(_)) => {
                tracing::warn!(
                    problem,
                    "cannot read the keys of ServiceAccount tokens; keeping the last ones"
                );
                false
            }
            _ => {
                known.clone_from(&read);
                true
            }
        });
        if is_news {
            match &read {
                Ok(TokenIssuer { issuer, keys }) => {
                    tracing::info!(
                        issuer,
                        keys = keys.len(),
                        "read the keys of ServiceAccount tokens"
                    );
                }
                Err(problem) => {
                    tracing::warn!(problem, "cannot read the keys of ServiceAccount tokens; retrying")
                }
            }
            changed.notify_one();
        }
        tokio::time::sleep(pause).await;
    }
}

async fn read(client: &Client) -> Result<TokenIssuer, String> {
    let issuer = get(client, ISSUER_PATH).await?;
    let keys = get(client, KEYS_PATH).await?;
    parse(&issuer, &keys)
}

async fn get(client: &Client, path: &str) -> Result<String, String> {
    let request = Request::get(path)
        .body(Vec::new())
        .map_err(|error| error.to_string())?;
    client.request_text(request).await.map_err(|error| {
        let needs = match &error {
            kube::Error::Api(status) if status.is_forbidden() => {
                "; the controller's ClusterRole must allow get on this path (nonResourceURLs)"
            }
            _ => "",
        };
        format!("GET {path} at the API server: {error}{needs}")
    })
}

#[derive(Deserialize)]
struct IssuerDocument {
    issuer: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<PublishedKey>,
}

/// A key of any kind.
#[derive(Deserialize)]
struct PublishedKey {
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(flatten)]
    key: serde_json::Value,
}

/// Parses both documents. Keys of other kinds than RS256 and ES256 are left out.
fn parse(issuer: &str, keys: &str) -> Result<TokenIssuer, String> {
    let in_path = |path: &'static str| move |error| format!("{path} at the API server: {error}");
    let IssuerDocument { issuer } = serde_json::from_str(issuer).map_err(in_path(ISSUER_PATH))?;
    let KeySet { keys } = serde_json::from_str(keys).map_err(in_path(KEYS_PATH))?;
    let usable = keys.into_iter().filter_map(|PublishedKey { kid, alg, key }| {
        let is_p256 = key.get("kty")? == "EC" && key.get("crv")? == "P-256";
        let is_supported = match alg.as_deref() {
            Some(alg) => matches!(alg, "RS256" | "ES256"),
            None => true,
        };
        let key: TokenKey = serde_json::from_value(key.clone()).ok()?;
        let is_usable = is_supported && (is_p256 || matches!(key, TokenKey::Rsa { .. }));
        is_usable.then_some((kid?, key))
    });
    let keys: BTreeMap<_, _> = usable.take(MAX_KEYS).collect();
    if keys.is_empty() {
        return Err(format!(
            "{KEYS_PATH} at the API server has no key for RS256 or ES256, the algorithms that routers verify"
        ));
    }
    Ok(TokenIssuer { issuer, keys })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_of_supported_kinds_are_taken() {
        let issuer = json!({"issuer": "https://kubernetes.default.svc", "jwks_uri": "x"}).to_string();
        let rsa = json!({"kty": "RSA", "kid": "a", "alg": "RS256", "use": "sig", "n": "AQ", "e": "AQAB"});
        let p256 = json!({"kty": "EC", "kid": "b", "alg": "ES256", "crv": "P-256", "x": "AQ", "y": "AQ"});
        let p384 = json!({"kty": "EC", "kid": "c", "alg": "ES384", "crv": "P-384", "x": "AQ", "y": "AQ"});
        let unnamed_p384 = json!({"kty": "EC", "kid": "d", "crv": "P-384", "x": "AQ", "y": "AQ"});
        let rs512 = json!({"kty": "RSA", "kid": "e", "alg": "RS512", "n": "AQ", "e": "AQAB"});
        let octets = json!({"kty": "oct", "kid": "f", "k": "AQ"});
        let without_id = json!({"kty": "RSA", "n": "AQ", "e": "AQAB"});
        let all = json!({"keys": [rsa, p256, p384, unnamed_p384, rs512, octets, without_id]}).to_string();
        let read = parse(&issuer, &all).unwrap();
        assert_eq!(read.issuer, "https://kubernetes.default.svc");
        assert_eq!(read.keys.keys().collect::<Vec<_>>(), ["a", "b"]);
        for (issuer, keys, problem) in [
            (&*issuer, r#"{"keys": []}"#, "no key"),
            (&issuer, "{", KEYS_PATH),
            ("{}", r#"{"keys": []}"#, ISSUER_PATH),
        ] {
            let error = parse(issuer, keys).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
