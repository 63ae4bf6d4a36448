//! Webhooks in the routing configuration. Pure.

use serde::{Deserialize, Serialize};

use super::{Secret, SigningKey};
use crate::transform::Transform;

/// A Source that receives requests of another system, each of which becomes an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// How a request proves who sent it.
    pub verification: Verification,
    /// Changes of the event that the request makes by the conventions of its sender, with expressions on the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Transform>,
    /// `source` of events whose request names none.
    pub source: String,
}

/// How a request proves who sent it. Several secrets are valid at the same time, so that one can be replaced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Verification {
    /// Signatures of GitHub, in `X-Hub-Signature-256`.
    #[serde(rename = "github")]
    GitHub {
        /// Secrets of the webhook.
        secrets: Vec<Secret>,
    },
    /// The secret token of GitLab, in `X-Gitlab-Token`.
    #[serde(rename = "gitlab")]
    GitLab {
        /// Secret tokens.
        secrets: Vec<Secret>,
    },
    /// Signatures of Stripe, in `Stripe-Signature`.
    Stripe {
        /// Signing secrets of the endpoint.
        secrets: Vec<Secret>,
    },
    /// Signatures of Slack, in `X-Slack-Signature`.
    Slack {
        /// Signing secrets of the app.
        secrets: Vec<Secret>,
    },
    /// Signatures of the Standard Webhooks specification, in `webhook-signature`.
    StandardWebhooks {
        /// Keys.
        keys: Vec<SigningKey>,
    },
    /// Any HMAC of the body in a header.
    Hmac(HmacVerification),
    /// A token in a header.
    Token {
        /// Name of the header. In `Authorization`, the token follows `Bearer`.
        header: String,
        /// Tokens.
        secrets: Vec<Secret>,
    },
    /// HTTP Basic authentication (RFC 7617).
    Basic {
        /// User name.
        username: String,
        /// Passwords.
        secrets: Vec<Secret>,
    },
    /// A bearer token of the CloudEvents webhook specification, whose requests contain CloudEvents.
    CloudEvents {
        /// Origins that may send, or `*`.
        allowed_origins: Vec<String>,
        /// Tokens.
        secrets: Vec<Secret>,
    },
    /// Nothing: whoever reaches the path can post.
    Nothing {},
}

/// An HMAC of the body in a header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HmacVerification {
    /// Name of the header.
    pub header: String,
    /// Text before the HMAC in the header.
    #[serde(default)]
    pub prefix: String,
    /// Hash function.
    pub algorithm: HmacAlgorithm,
    /// Encoding of the HMAC in the header.
    pub encoding: HmacEncoding,
    /// Secrets.
    pub secrets: Vec<Secret>,
}

/// Hash function of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HmacAlgorithm {
    /// SHA-1, for senders that know nothing else. As an HMAC it is not known to be broken.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// Encoding of an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HmacEncoding {
    /// Hexadecimal digits.
    Hex,
    /// Base64, with or without padding.
    Base64,
}
