//! What a request shows of its producer.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{certificate::PresentedCertificate, credential::PresentedCredential, refusal::Refusal};
use crate::routing::{CredentialDigest, ProducerIdentity};

/// What a request shows of its producer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presented<'a> {
    /// Value of the header `Authorization`.
    pub authorization: Option<&'a str>,
    /// Client certificate of the connection, verified.
    pub certificate: Option<PresentedCertificate<'a>>,
    /// Address that the request comes from, if it is known.
    pub address: Option<IpAddr>,
}

/// The same, parsed.
pub(super) struct Evidence<'a> {
    credential: Result<PresentedCredential<'a>, Refusal>,
    certificate: Option<Result<PresentedCertificate<'a>, Refusal>>,
}

impl<'a> Evidence<'a> {
    pub(super) fn parse(presented: Presented<'a>, now: Timestamp) -> Self {
        let Presented {
            authorization,
            certificate,
            address: _,
        } = presented;
        let authorization = authorization.ok_or(Refusal::NoToken);
        Self {
            credential: authorization.and_then(PresentedCredential::parse),
            certificate: certificate.map(|certificate| certificate.unless_expired(now)),
        }
    }

    /// Whether it has the secret or the certificate of a listed producer.
    pub(super) fn is_of(&self, identity: &ProducerIdentity) -> bool {
        match (identity, &self.credential, &self.certificate) {
            (ProducerIdentity::BearerToken(secret), Ok(PresentedCredential::Bearer(_, digest)), _)
            | (ProducerIdentity::Basic(secret), Ok(PresentedCredential::Basic(digest)), _) => {
                secret.digest.matches(digest)
            }
            (ProducerIdentity::Certificate(name), _, Some(Ok(certificate))) => certificate.has(name),
            _ => false,
        }
    }

    /// Returns the bearer token, which may be that of a ServiceAccount, and its digest. Neither the errors nor their
    /// order depend on whether the broker exists. `takes_certificates` is whether a Broker of the installation lists
    /// one.
    pub(super) fn token(
        self,
        broker: &str,
        takes_certificates: bool,
    ) -> Result<(&'a str, CredentialDigest), Refusal> {
        match (self.credential, self.certificate) {
            (Ok(PresentedCredential::Bearer(token, digest)), _) => Ok((token, digest)),
            (Ok(PresentedCredential::Basic(_)), _) => Err(Refusal::UnknownUser),
            (Err(Refusal::NoToken), Some(certificate)) => Err(Refusal::UnlistedCertificate {
                name: certificate?.shown(),
                broker: broker.to_owned(),
            }),
            (Err(Refusal::NoToken), None) if takes_certificates => Err(Refusal::NoTokenOrCertificate),
            (Err(refusal), _) => Err(refusal),
        }
    }
}
