//! Who may post events, as the controller tells it to routers: the rule of the installation, the producers that Brokers
//! list, and what tokens are verified with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CredentialDigest;
use crate::filter::Expression;

/// Audience of the tokens with which producers authenticate.
pub const PRODUCER_AUDIENCE: &str = "weir-broker";

/// The rules of an installation about producers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProducerRules {
    /// Who may post to a broker whose Broker lists no producers.
    pub others: UnlistedBrokers,
    /// Whether rejected requests are only counted and logged, and let pass.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub audit: bool,
    /// What tokens are verified with; `None` until the controller has read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<TokenIssuer>,
    /// UIDs of the ServiceAccounts that any rule lets post, by namespace and name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub accounts: BTreeMap<String, BTreeMap<String, String>>,
}

impl ProducerRules {
    /// The rules where there is no cluster: Brokers decide, and no token of a ServiceAccount is valid, since nobody
    /// issues any.
    pub fn without_cluster() -> Self {
        Self {
            issuer: Some(TokenIssuer {
                issuer: String::new(),
                keys: BTreeMap::new(),
            }),
            ..Self::default()
        }
    }
}

/// Who may post to a broker whose Broker lists no producers, or that has no Broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnlistedBrokers {
    /// Everyone, without a token.
    #[default]
    Allow,
    /// The ServiceAccounts of the broker's namespace.
    SameNamespace,
    /// Nobody.
    Deny,
}

/// Who issues the tokens of ServiceAccounts, and the keys that verify them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenIssuer {
    /// Value of the claim `iss`.
    pub issuer: String,
    /// Keys, by `kid`.
    pub keys: BTreeMap<String, TokenKey>,
}

/// A public key: a JSON Web Key (RFC 7517) of a kind that ServiceAccount tokens are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum TokenKey {
    /// For RS256.
    #[serde(rename = "RSA")]
    Rsa {
        /// Modulus, in base64url.
        n: String,
        /// Exponent, in base64url.
        e: String,
    },
    /// For ES256: a point on the curve P-256.
    #[serde(rename = "EC")]
    P256 {
        /// X coordinate, in base64url.
        x: String,
        /// Y coordinate, in base64url.
        y: String,
    },
}

/// A producer that a Broker lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Producer {
    /// How the producer is known.
    pub identity: ProducerIdentity,
    /// Filters that an event of this producer must all match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Expression>,
}

/// How a producer is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ProducerIdentity {
    /// By the token of a ServiceAccount.
    ServiceAccount {
        /// Namespace.
        namespace: String,
        /// Name; `None` for all of the namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// By a token from a Secret.
    BearerToken(ProducerSecret),
    /// By a user name and a password: the digest is that of `USER:PASSWORD`.
    Basic(ProducerSecret),
    /// By a name in the client certificate of its connection.
    Certificate(CertificateName),
    /// Not at all: the controller has no usable credential for it.
    Nobody,
}

/// A subject alternative name of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateName {
    /// A DNS name.
    DnsName(String),
    /// A URI.
    Uri(String),
}

/// A secret that a producer and its Broker share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProducerSecret {
    /// What the presented credential is compared with.
    pub digest: CredentialDigest,
    /// Opaque version that changes with the value and reveals nothing about it.
    pub version: String,
}

impl ProducerIdentity {
    /// The secret that it is known by, if that is how.
    pub(super) fn secret_mut(&mut self) -> Option<&mut ProducerSecret> {
        match self {
            Self::BearerToken(secret) | Self::Basic(secret) => Some(secret),
            Self::ServiceAccount { .. } | Self::Certificate(_) | Self::Nobody => None,
        }
    }
}
