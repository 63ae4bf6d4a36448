//! Requests tokens of the ServiceAccounts that Sinks reference. The controller may create only those that a namespace's
//! owner grants it, by the name of the ServiceAccount.
//!
//! A token is renewed after a quarter of its lifetime, so that routers have a valid one even while there is no
//! controller for some time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use uuid::Uuid;

use super::credential_reader::{Credential, CredentialApi, Credentials, Obtained};
use crate::resolve::{Naming, Referrers, TokenName, TokenState};

/// Requested lifetime, in seconds. The API server may grant less.
const LIFETIME: i64 = 4 * 60 * 60;

/// Part of the lifetime after which a token is renewed.
const RENEWED_AFTER: u32 = 4;

/// Known states of the referenced tokens.
pub(super) type Tokens = Credentials<NamedToken>;

/// A token that Sinks reference.
#[derive(Debug)]
pub(super) struct NamedToken;

impl Credential for NamedToken {
    type Name = TokenName;
    type State = TokenState;

    const KIND: &'static str = "ServiceAccount";

    fn named(referrers: Referrers<'_>) -> BTreeMap<TokenName, Naming> {
        referrers.tokens()
    }

    fn withheld() -> TokenState {
        TokenState::Withheld
    }

    fn unavailable(error: String) -> TokenState {
        TokenState::Unavailable(error)
    }

    fn serves(state: &TokenState, _: &BTreeSet<String>) -> bool {
        matches!(state, TokenState::Issued { .. })
    }

    async fn obtain(
        api: &CredentialApi,
        TokenName {
            namespace,
            account,
            audience,
        }: &TokenName,
        _: &BTreeSet<String>,
    ) -> Result<Obtained<TokenState>, String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.clone()],
                expiration_seconds: Some(LIFETIME),
                bound_object_ref: None,
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(api.client.clone(), namespace);
        let parameters = PostParams::default();
        let issued = accounts.create_token_request(account, &parameters, &request);
        let state = match issued.await {
            Ok(issued) => return obtained(issued, Timestamp::now(), Instant::now()),
            Err(kube::Error::Api(status)) if status.code == 404 => TokenState::NotFound,
            Err(kube::Error::Api(status)) if status.code == 403 => TokenState::Forbidden {
                account: api.account().await,
            },
            // The error could quote the token.
            Err(kube::Error::SerdeError(_)) => return Err(INVALID_RESPONSE.to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Obtained {
            state,
            again: Duration::ZERO,
            expires: None,
        })
    }
}

const INVALID_RESPONSE: &str = "the API server's response is not a valid token";

/// Returns an issued token, which is new and therefore has a version of its own.
fn obtained(issued: TokenRequest, now: Timestamp, instant: Instant) -> Result<Obtained<TokenState>, String> {
    let TokenRequest { spec, status, .. } = issued;
    let status = status.filter(|status| !status.token.is_empty());
    let status = status.ok_or_else(|| INVALID_RESPONSE.to_owned())?;
    let granted = spec.expiration_seconds.unwrap_or(LIFETIME);
    let left = status.expiration_timestamp.0.as_second() - now.as_second();
    let lifetime = lifetime(granted, left);
    Ok(Obtained {
        state: TokenState::Issued {
            token: status.token.into(),
            version: Uuid::new_v4().to_string(),
        },
        again: lifetime / RENEWED_AFTER,
        expires: Some(instant + lifetime),
    })
}

/// The lifetime of a token that was granted so many seconds, of which so many are left by this machine's clock. The
/// clock only counts if it is plausible.
fn lifetime(granted: i64, left: i64) -> Duration {
    let seconds = if left > 0 { left.min(granted) } else { granted };
    Duration::from_secs(seconds.clamp(60, LIFETIME).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{api::authentication::v1::TokenRequestStatus, apimachinery::pkg::apis::meta::v1::Time};

    use super::*;

    #[test]
    fn clock_that_is_wrong_renews_no_token_at_once() {
        for (granted, left, seconds) in [
            (14_400, 14_400, 14_400),
            (14_400, 14_395, 14_395),
            // The API server grants less.
            (3_600, 3_599, 3_599),
            // Some other issuer ignores the field.
            (14_400, 600, 600),
            (600, 14_400, 600),
            // The clock is ahead, or behind.
            (3_600, -90, 3_600),
            (3_600, 90_000, 3_600),
            (1, 1, 60),
            (i64::MAX, i64::MAX, 14_400),
        ] {
            assert_eq!(lifetime(granted, left).as_secs(), seconds, "{granted} {left}");
        }
    }

    #[test]
    fn issued_token_is_renewed_long_before_it_expires() {
        let (now, instant) = (Timestamp::now(), Instant::now());
        let issued = |token: &str| TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3_600),
                ..TokenRequestSpec::default()
            },
            status: Some(TokenRequestStatus {
                expiration_timestamp: Time(now + jiff::SignedDuration::from_secs(3_600)),
                token: token.to_owned(),
            }),
            ..TokenRequest::default()
        };
        let one = obtained(issued("t0ken"), now, instant).unwrap();
        assert_eq!(one.again, Duration::from_secs(900));
        assert_eq!(one.expires, Some(instant + Duration::from_secs(3_600)));
        assert!(!format!("{one:?}").contains("t0ken"));
        assert!(NamedToken::serves(&one.state, &BTreeSet::new()));
        let again = obtained(issued("t0ken"), now, instant).unwrap();
        assert_ne!(again.state, one.state);
        assert!(obtained(issued(""), now, instant).is_err());
        assert!(obtained(TokenRequest::default(), now, instant).is_err());
    }
}
