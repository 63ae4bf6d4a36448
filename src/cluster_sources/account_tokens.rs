//! Tokens of the ServiceAccount that a Source names. This process may create only those that a namespace's owner grants it.
//!
//! Tokens are short-lived and renewed often, so that a revoked grant ends a Source within minutes.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    resolve::{Finding, grant},
    routing::PRODUCER_AUDIENCE,
};

/// Requested lifetime, in seconds. The API server may grant less.
const LIFETIME: u64 = 60 * 60;

/// Part of the lifetime after which a token is renewed.
const RENEWED_AFTER: u64 = 4;

/// Pauses before another request after a failure; each is twice the last.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Pause before tokens are renewed that are not accepted.
const RENEWED_EARLY: Duration = Duration::from_secs(5);

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The tokens of a ServiceAccount, as values of the header Authorization.
pub(super) struct AccountTokens {
    /// For the API server.
    pub(super) api: HeaderValue,
    /// For brokers.
    pub(super) broker: HeaderValue,
    expires: Instant,
}

/// What is known of the tokens: nothing yet, valid ones, or why there are none.
pub(super) type KnownTokens = Option<Result<Arc<AccountTokens>, Finding>>;

/// Requests and renews tokens.
pub(super) struct TokenKeeper {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) known: watch::Sender<KnownTokens>,
    /// Asks for new tokens, because the present ones are not accepted.
    pub(super) renew: Arc<Notify>,
}

/// Why there is no token.
enum AccountTokenFailure {
    /// It is not granted, or there is no such ServiceAccount.
    Refused(Finding),
    /// The API server could not be asked. Tokens that are valid stay in use.
    Unavailable(String),
}

impl TokenKeeper {
    /// Keeps the tokens valid forever.
    pub(super) async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = match self.request_both().await {
                Ok((tokens, again)) => {
                    self.known.send_replace(Some(Ok(Arc::new(tokens))));
                    pause = FIRST_PAUSE;
                    again
                }
                Err(failure) => {
                    self.failed(failure);
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.renew.notified() => tokio::time::sleep(RENEWED_EARLY).await,
            }
        }
    }

    fn failed(&self, failure: AccountTokenFailure) {
        let finding = match failure {
            AccountTokenFailure::Refused(finding) => finding,
            AccountTokenFailure::Unavailable(problem) => {
                let is_valid = |tokens: &AccountTokens| tokens.expires > Instant::now();
                if matches!(&*self.known.borrow(), Some(Ok(tokens)) if is_valid(tokens)) {
                    return;
                }
                let whose = self.whose();
                Finding::bad(
                    "TokenUnavailable",
                    format!("cannot request a token of {whose}: {problem}; retrying"),
                )
            }
        };
        self.known.send_if_modified(|known| {
            let is_same = matches!(&*known, Some(Err(before)) if *before == finding);
            *known = Some(Err(finding));
            !is_same
        });
    }

    /// Returns tokens, and the time after which to renew them.
    async fn request_both(&self) -> Result<(AccountTokens, Duration), AccountTokenFailure> {
        let requested = Instant::now();
        let (api, lifetime) = self.request(Vec::new()).await?;
        let (broker, other) = self.request(vec![PRODUCER_AUDIENCE.to_owned()]).await?;
        let lifetime = lifetime.min(other);
        let tokens = AccountTokens {
            api,
            broker,
            expires: requested + Duration::from_secs(lifetime),
        };
        Ok((tokens, Duration::from_secs(lifetime / RENEWED_AFTER)))
    }

    /// Returns a token, and its lifetime in seconds.
    async fn request(&self, audiences: Vec<String>) -> Result<(HeaderValue, u64), AccountTokenFailure> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences,
                expiration_seconds: i64::try_from(LIFETIME).ok(),
                bound_object_ref: None,
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.namespace);
        let parameters = PostParams::default();
        let issued = accounts.create_token_request(&self.account, &parameters, &request);
        let unavailable = |problem: String| AccountTokenFailure::Unavailable(problem);
        let whose = self.whose();
        let issued = match tokio::time::timeout(TIMEOUT, issued).await {
            Ok(Ok(issued)) => issued,
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(AccountTokenFailure::Refused(Finding::bad(
                    "ServiceAccountNotFound",
                    format!(
                        "spec.kubernetes.serviceAccountName: there is no {whose}; apply it, or correct the name"
                    ),
                )));
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                return Err(AccountTokenFailure::Refused(self.not_granted().await));
            }
            // The error could quote the token.
            Ok(Err(kube::Error::SerdeError(_))) => {
                return Err(unavailable("the API server's response is not a token".to_owned()));
            }
            Ok(Err(error)) => return Err(unavailable(error.to_string())),
            Err(_) => return Err(unavailable(format!("no response within {TIMEOUT:?}"))),
        };
        let granted = issued
            .spec
            .expiration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let token = issued.status.map(|status| status.token).unwrap_or_default();
        let value = HeaderValue::try_from(format!("Bearer {token}"));
        match value {
            Ok(mut value) if !token.is_empty() => {
                value.set_sensitive(true);
                Ok((value, granted.unwrap_or(LIFETIME).clamp(60, LIFETIME)))
            }
            _ => Err(unavailable("the API server's response is not a token".to_owned())),
        }
    }

    fn whose(&self) -> String {
        let Self {
            namespace, account, ..
        } = self;
        format!("ServiceAccount {account:?} in namespace {namespace:?}")
    }

    async fn not_granted(&self) -> Finding {
        let Self {
            namespace, account, ..
        } = self;
        let grant = grant(
            &format!("weir-source-token-{account}"),
            "--verb=create --resource=serviceaccounts/token",
            account,
            namespace,
            self.own_account().await.as_deref(),
        );
        let whose = self.whose();
        Finding::bad(
            "TokenForbidden",
            format!(
                "spec.kubernetes.serviceAccountName: weir sources may not request tokens of {whose}; {grant}"
            ),
        )
    }

    /// Returns this process's own account, as an argument of `kubectl create rolebinding`.
    async fn own_account(&self) -> Option<String> {
        let reviews = Api::<SelfSubjectReview>::all(self.client.clone());
        let parameters = PostParams::default();
        let review = SelfSubjectReview::default();
        let review = tokio::time::timeout(TIMEOUT, reviews.create(&parameters, &review));
        let user = review.await.ok()?.ok()?.status?.user_info?.username?;
        Some(match user.strip_prefix("system:serviceaccount:") {
            Some(account) => format!("--serviceaccount={account}"),
            None => format!("--user={user}"),
        })
    }
}
