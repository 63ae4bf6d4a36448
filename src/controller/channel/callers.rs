//! Authorizes callers of the controller by the API server's review of their token. Pure.

use std::{fmt, str::FromStr};

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use crate::{
    controller::token_review,
    routing::protocol::{Detail, TOKEN_AUDIENCE},
};

/// Key in a user's `extra` under which the API server reports the pod that a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// ServiceAccount of the routers, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAccount {
    namespace: String,
    name: String,
}

/// The text does not name a ServiceAccount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use NAMESPACE/NAME, for example weir-system/weir-router")]
pub struct RouterAccountError;

impl FromStr for RouterAccount {
    type Err = RouterAccountError;

    fn from_str(text: &str) -> Result<Self, RouterAccountError> {
        let is_name = |text: &str| {
            let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
            !text.is_empty() && text.bytes().all(allowed)
        };
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(RouterAccountError),
        }
    }
}

impl fmt::Display for RouterAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl RouterAccount {
    /// Returns the user name of the account at the API server.
    fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

/// An authenticated router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// The pod that its token is bound to, if any.
    pod: Option<String>,
}

/// Why a request is rejected. The text is the body of the response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallerRejection {
    #[error(
        "the request has no token: start the router with --controller-token FILE, a ServiceAccount token for the \
         audience {TOKEN_AUDIENCE}"
    )]
    NoToken,
    #[error(
        "the API server rejects the token ({}); use a valid token for the audience {TOKEN_AUDIENCE}",
        .0.as_str()
    )]
    Invalid(Detail),
    #[error(
        "the token belongs to {}, but routers must use {account} (weir controller --router-service-account)",
        .user.as_str()
    )]
    OtherAccount { user: Detail, account: RouterAccount },
    #[error("the token belongs to the pod {pod}, which must be the router's --name")]
    OtherPod { pod: String },
    #[error("the API server is unavailable to review the token; see the controller's log")]
    Unavailable,
}

impl CallerRejection {
    /// Label in metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Invalid(_) => "invalid_token",
            Self::OtherAccount { .. } => "other_account",
            Self::OtherPod { .. } => "other_pod",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Identifies the caller from the API server's review of its token.
pub(super) fn judge(status: TokenReviewStatus, account: &RouterAccount) -> Result<Caller, CallerRejection> {
    let user = token_review::authenticated(status, TOKEN_AUDIENCE).map_err(CallerRejection::Invalid)?;
    let UserInfo { username, extra, .. } = user;
    let username = username.unwrap_or_default();
    if username != account.user() {
        return Err(CallerRejection::OtherAccount {
            user: username.into(),
            account: account.clone(),
        });
    }
    let pod = extra.and_then(|mut extra| extra.remove(POD_NAME)?.into_iter().next());
    Ok(Caller { pod })
}

impl Caller {
    /// Checks that the caller may act as the router of this name. A token bound to a pod permits only that pod's
    /// name; any other token permits every name.
    pub(super) fn may_be(&self, router: Option<&str>) -> Result<(), CallerRejection> {
        match &self.pod {
            Some(pod) if router != Some(pod) => Err(CallerRejection::OtherPod { pod: pod.clone() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> RouterAccount {
        "weir-system/weir-router".parse().unwrap()
    }

    fn review(user: &str, pod: Option<&str>) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["other".into(), TOKEN_AUDIENCE.into()]),
            error: None,
            user: Some(UserInfo {
                username: Some(user.into()),
                extra: pod.map(|pod| [(POD_NAME.to_owned(), vec![pod.to_owned()])].into()),
                ..UserInfo::default()
            }),
        }
    }

    #[test]
    fn parses_account_as_namespace_and_name() {
        assert_eq!(account().to_string(), "weir-system/weir-router");
        assert!("a/b.c".parse::<RouterAccount>().is_ok());
        for text in ["", "weir-router", "/x", "x/", "a/b/c", "A/b", "a:b/c"] {
            assert_eq!(text.parse::<RouterAccount>(), Err(RouterAccountError), "{text:?}");
        }
    }

    #[test]
    fn accepts_only_the_account_and_audience_of_routers() {
        const USER: &str = "system:serviceaccount:weir-system:weir-router";
        let good = review(USER, None);
        let table = [
            ("good", good.clone(), Ok(None)),
            (
                "bound",
                review(USER, Some("weir-router-0")),
                Ok(Some("weir-router-0")),
            ),
            ("empty", TokenReviewStatus::default(), Err("invalid_token")),
            (
                "not authenticated",
                TokenReviewStatus {
                    authenticated: Some(false),
                    ..good.clone()
                },
                Err("invalid_token"),
            ),
            (
                "without audiences",
                TokenReviewStatus {
                    audiences: None,
                    ..good.clone()
                },
                Err("invalid_token"),
            ),
            (
                "for others",
                TokenReviewStatus {
                    audiences: Some(vec!["https://kubernetes.default.svc".into()]),
                    ..good.clone()
                },
                Err("invalid_token"),
            ),
            (
                "nobody",
                TokenReviewStatus { user: None, ..good },
                Err("other_account"),
            ),
            (
                "elsewhere",
                review("system:serviceaccount:default:weir-router", None),
                Err("other_account"),
            ),
            (
                "other",
                review("system:serviceaccount:weir-system:default", None),
                Err("other_account"),
            ),
            ("a person", review("weir-router", None), Err("other_account")),
        ];
        for (what, status, expected) in table {
            let judged = judge(status, &account());
            let found = match &judged {
                Ok(caller) => Ok(caller.pod.as_deref()),
                Err(refusal) => Err(refusal.label()),
            };
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn caller_acts_only_for_its_own_pod() {
        let bound = Caller {
            pod: Some("weir-router-0".into()),
        };
        let unbound = Caller { pod: None };
        for (caller, router, allowed) in [
            (&bound, Some("weir-router-0"), true),
            (&bound, Some("weir-router-1"), false),
            (&bound, None, false),
            (&unbound, Some("weir-router-1"), true),
            (&unbound, None, true),
        ] {
            assert_eq!(caller.may_be(router).is_ok(), allowed, "{caller:?} {router:?}");
        }
    }

    #[test]
    fn rejection_is_a_single_line_without_control_characters() {
        let status = TokenReviewStatus {
            error: Some("[invalid\n\u{1b}[31m bearer token]".into()),
            ..TokenReviewStatus::default()
        };
        let text = judge(status, &account()).unwrap_err().to_string();
        assert!(
            text.contains("[invalid [31m bearer token]") && !text.contains('\n'),
            "{text}"
        );
    }
}
