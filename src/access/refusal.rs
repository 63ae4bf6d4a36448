//! Why a request is refused, in words for the producer.

use crate::routing::PRODUCER_AUDIENCE;

use super::token::TokenError;

/// Why a producer may not post. The texts tell nothing about brokers that the producer may not see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request has no credential.
    #[error(
        "this broker takes events from known producers only, and the request has no token; send a ServiceAccount token \
         for the audience {PRODUCER_AUDIENCE}, or one from a Secret that the Broker lists, as Authorization: Bearer TOKEN"
    )]
    NoToken,
    /// The request has no credential, and Brokers of the installation list certificates.
    #[error(
        "this broker takes events from known producers only, and the request has neither a token nor a client certificate; \
         send a ServiceAccount token for the audience {PRODUCER_AUDIENCE}, or one from a Secret that the Broker lists, as \
         Authorization: Bearer TOKEN; or, if the routers have --listen-tls-client-ca, present over HTTPS a client \
         certificate that the Broker lists"
    )]
    NoTokenOrCertificate,
    /// The certificate has expired since the connection was opened.
    #[error(
        "the client certificate has expired since the connection was opened; connect again with a new one"
    )]
    ExpiredCertificate,
    /// The Broker does not list a name of the client certificate.
    #[error(
        "the client certificate {name} may not post to {broker}, or there is no such broker; the owner of the namespace \
         can list a name of it in spec.producers of the Broker"
    )]
    UnlistedCertificate {
        /// A name of the certificate.
        name: String,
        /// `namespace/name`.
        broker: String,
    },
    /// The token is neither that of a ServiceAccount nor listed.
    #[error(
        "the token is not accepted: {0}; send a valid ServiceAccount token of this cluster for the audience \
         {PRODUCER_AUDIENCE}, or a token from a Secret that the Broker lists"
    )]
    InvalidToken(TokenError),
    /// The signature of the token was not checked, because of forged ones.
    #[error(
        "too many tokens with a wrong signature were sent from this address, in the name of the token's ServiceAccount or of \
         others that may not post, so this one was not checked; send it again in {retry_after} seconds. Tokens that the router \
         has accepted before are still accepted"
    )]
    UncheckedToken {
        /// Seconds until it may be.
        retry_after: u32,
    },
    /// A credential of the scheme Basic cannot be parsed.
    #[error(
        "the user name and password are malformed; send Authorization: Basic with the base64 of USER:PASSWORD (RFC 7617)"
    )]
    MalformedBasic,
    /// The Broker does not list the user, or with another password.
    #[error(
        "the user name or the password is not accepted; send those that the Broker lists, or a token as Authorization: \
         Bearer TOKEN"
    )]
    UnknownUser,
    /// The router cannot verify tokens yet.
    #[error(
        "the router has no keys of the cluster to verify tokens with; see the controller's log, and try again"
    )]
    NoKeys,
    /// It is unknown who may post.
    #[error(
        "the router cannot read who may post to this broker, since another version of Weir wrote it; upgrade the router, \
         and try again"
    )]
    UnknownProducers,
    /// The ServiceAccount may not post. For callers that may know no more.
    #[error(
        "ServiceAccount {account} may not post to {broker}, or there is no such broker; the owner of the namespace can \
         list it in spec.producers of the Broker"
    )]
    Stranger {
        /// `namespace/name`.
        account: String,
        /// `namespace/name`.
        broker: String,
    },
    /// The Broker does not list a ServiceAccount of its own namespace.
    #[error("spec.producers of Broker {broker} does not list ServiceAccount {account}; add it there")]
    NotListed {
        /// `namespace/name`.
        account: String,
        /// `namespace/name`.
        broker: String,
    },
    /// The installation lets nobody post to a broker that lists no producers.
    #[error(
        "ServiceAccount {account} may not post to {broker}: in this installation, nobody may post to a broker whose \
         Broker has no spec.producers; apply a Broker {broker} that lists the account there"
    )]
    NobodyMay {
        /// `namespace/name`.
        account: String,
        /// `namespace/name`.
        broker: String,
    },
    /// The event is not one that the producer may post.
    #[error(
        "{producer} may not post this event: it matches none of the filters in {clauses} of Broker {broker}"
    )]
    Filtered {
        /// `ServiceAccount namespace/name`, or `the producer`.
        producer: String,
        /// `namespace/name`.
        broker: String,
        /// The entries that list the producer, as `spec.producers[0] and [3]`.
        clauses: String,
    },
}

/// What a refusal asks of the producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// Authenticate: 401.
    Unauthenticated,
    /// Give up: 403.
    Forbidden,
    /// Try again later, since others in its name sent too much: 429.
    TooMany,
    /// Try again later: 503.
    Unavailable,
}

impl Refusal {
    /// Label in metrics and logs, and the reason in answers.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoToken | Self::NoTokenOrCertificate => "no_token",
            Self::ExpiredCertificate => "expired_certificate",
            Self::InvalidToken(_) => "invalid_token",
            Self::UncheckedToken { .. } => "too_many_invalid_tokens",
            Self::MalformedBasic | Self::UnknownUser => "invalid_credentials",
            Self::NoKeys => "no_keys",
            Self::UnknownProducers => "unknown_producers",
            Self::Stranger { .. }
            | Self::UnlistedCertificate { .. }
            | Self::NotListed { .. }
            | Self::NobodyMay { .. } => "not_allowed",
            Self::Filtered { .. } => "event_not_allowed",
        }
    }

    /// Seconds after which the producer may try again, if that can help.
    pub fn retry_after(&self) -> Option<u32> {
        match (self, self.kind()) {
            (Self::UncheckedToken { retry_after }, _) => Some(*retry_after),
            (_, RefusalKind::Unavailable) => Some(1),
            _ => None,
        }
    }

    /// What it asks of the producer.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::NoToken
            | Self::NoTokenOrCertificate
            | Self::ExpiredCertificate
            | Self::InvalidToken(_)
            | Self::MalformedBasic
            | Self::UnknownUser => RefusalKind::Unauthenticated,
            Self::UncheckedToken { .. } => RefusalKind::TooMany,
            Self::NoKeys | Self::UnknownProducers => RefusalKind::Unavailable,
            Self::Stranger { .. }
            | Self::UnlistedCertificate { .. }
            | Self::NotListed { .. }
            | Self::NobodyMay { .. }
            | Self::Filtered { .. } => RefusalKind::Forbidden,
        }
    }
}
