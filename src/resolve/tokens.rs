//! Resolves the tokens of ServiceAccounts that Sinks are sent. Pure.

use super::{
    credentials::{self, CHANNEL_NOT_SECURE},
    finding::Finding,
    observed::{TokenName, TokenState},
    resolver::Resolver,
};
use crate::{api, routing::ServiceAccountToken};

/// Reason for a token that has not been requested yet. Transient.
pub const TOKEN_AWAITED: &str = "TokenAwaited";

/// Returns the token that a Sink of this namespace references, if it does.
pub(super) fn named(namespace: &str, spec: &api::SinkSpec) -> Option<TokenName> {
    let api::ServiceAccountToken {
        service_account_name,
        audience,
    } = spec.authorization.as_ref()?.service_account_token.as_ref()?;
    Some(TokenName {
        namespace: namespace.to_owned(),
        account: service_account_name.clone(),
        audience: audience.clone(),
    })
}

/// Returns the token of a Sink in this namespace.
pub(super) fn service_account_token(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<Option<ServiceAccountToken>, Finding> {
    let Some(name) = named(namespace, spec) else {
        return Ok(None);
    };
    let bad = |reason, problem: String| {
        Err(Finding::bad(
            reason,
            format!("spec.authorization.serviceAccountToken: {problem}"),
        ))
    };
    let account = &name.account;
    let whose = format!("ServiceAccount {account:?} in namespace {namespace:?}");
    match resolver.token(&name) {
        Some(TokenState::Issued { token, version }) => Ok(Some(ServiceAccountToken {
            account: account.clone(),
            audience: name.audience.clone(),
            value: token.clone(),
            version: version.clone(),
        })),
        Some(TokenState::NotFound) => bad(
            "ServiceAccountNotFound",
            format!("there is no {whose}; apply it, or correct the name"),
        ),
        Some(TokenState::Forbidden { account: controller }) => {
            let grant = credentials::grant(
                &format!("weir-token-{account}"),
                "--verb=create --resource=serviceaccounts/token",
                account,
                namespace,
                controller.as_deref(),
            );
            bad(
                "TokenForbidden",
                format!("the controller may not request tokens of {whose}; {grant}"),
            )
        }
        Some(TokenState::Unavailable(problem)) => bad(
            "TokenUnavailable",
            format!("cannot request a token of {whose}: {problem}; retrying"),
        ),
        Some(TokenState::Withheld) => bad("ChannelNotSecure", CHANNEL_NOT_SECURE.to_owned()),
        Some(TokenState::Unsupported) => bad(
            "TokenUnsupported",
            "weir run cannot request tokens, since it has no API server; use bearerToken, with a token in a Secret"
                .to_owned(),
        ),
        None => bad(
            TOKEN_AWAITED,
            format!("a token of {whose} has not been requested yet"),
        ),
    }
}
