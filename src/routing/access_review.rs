//! Reviews of operators' tokens: a router asks the controller, which asks the API server. Pure.
//!
//! The request is `POST /v1/routers/NAME/access-reviews` with an [`AccessReview`]. The response is 200 with an
//! [`AccessVerdict`], or 503 if the API server is unavailable.

use serde::{Deserialize, Serialize};

use super::{
    Secret,
    protocol::{Detail, with_name},
};

/// Audience of the tokens that authenticate operators to routers. A token for it is not valid for anything else.
pub const OPERATOR_AUDIENCE: &str = "weir-router";

/// Path for access reviews.
pub const ACCESS_REVIEWS_PATH: &str = "/v1/routers/{router}/access-reviews";

/// Returns [`ACCESS_REVIEWS_PATH`] with the name of a router filled in.
pub fn access_reviews_path(router: &str) -> String {
    with_name(ACCESS_REVIEWS_PATH, router)
}

/// Maximum size of an [`AccessReview`], in bytes.
pub const MAX_REVIEW: usize = 64 * 1024;

/// Asks whether the owner of a token may perform an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessReview {
    /// Token for the audience [`OPERATOR_AUDIENCE`].
    pub token: Secret,
    /// The operation.
    pub operation: Operation,
}

/// An operation on a router's admin API, in terms of RBAC: a verb on a virtual subresource of the API group `weir.dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Verb, such as `list`.
    pub verb: String,
    /// Resource, such as `brokers`.
    pub resource: String,
    /// Subresource, such as `deadletters`.
    pub subresource: String,
    /// Namespace; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the resource; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Operation {
    /// Whether it changes something.
    pub fn is_change(&self) -> bool {
        matches!(
            (&*self.verb, &*self.subresource),
            ("create", "redrives") | ("delete", _)
        )
    }
}

/// Verdict of the API server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "verdict")]
pub enum AccessVerdict {
    /// The user may perform the operation.
    Allowed {
        /// Name of the user.
        user: Detail,
    },
    /// The user may not perform the operation.
    Forbidden {
        /// Name of the user.
        user: Detail,
    },
    /// The token is not valid.
    Unauthenticated {
        /// Cause.
        reason: Detail,
    },
}
