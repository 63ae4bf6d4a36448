//! The credential in an `Authorization` header.

use super::refusal::Refusal;
use crate::routing::{BasicAuthorization, CredentialDigest, bearer_token};

/// A credential that a request presents.
#[derive(Debug)]
pub(super) enum PresentedCredential<'a> {
    /// A bearer token, and its digest.
    Bearer(&'a str, CredentialDigest),
    /// Digest of a user name and a password.
    Basic(CredentialDigest),
}

impl<'a> PresentedCredential<'a> {
    /// Parses the value of an `Authorization` header.
    pub(super) fn parse(authorization: &'a str) -> Result<Self, Refusal> {
        if let Some(token) = bearer_token(authorization) {
            return Ok(Self::Bearer(token, CredentialDigest::of(token.as_bytes())));
        }
        match BasicAuthorization::parse(authorization) {
            BasicAuthorization::Pair(digest) => Ok(Self::Basic(digest)),
            BasicAuthorization::Malformed => Err(Refusal::MalformedBasic),
            BasicAuthorization::OtherScheme => Err(Refusal::NoToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scheme and what it carries, or the label of the refusal.
    fn parsed(authorization: &str) -> String {
        let [open_sesame, colons] =
            ["Aladdin:open sesame", "a:b:c"].map(|pair| CredentialDigest::of(pair.as_bytes()));
        match PresentedCredential::parse(authorization) {
            Ok(PresentedCredential::Bearer(token, digest)) => {
                assert!(digest.matches(&CredentialDigest::of(token.as_bytes())));
                format!("bearer {token}")
            }
            Ok(PresentedCredential::Basic(digest)) if digest.matches(&open_sesame) => {
                "basic Aladdin".to_owned()
            }
            Ok(PresentedCredential::Basic(digest)) if digest.matches(&colons) => "basic a".to_owned(),
            Ok(PresentedCredential::Basic(_)) => "basic of another".to_owned(),
            Err(refusal) => refusal.label().to_owned(),
        }
    }

    #[test]
    fn parses_bearer_and_basic_strictly() {
        for (authorization, expected) in [
            ("Bearer abc", "bearer abc"),
            ("bearer  abc ", "bearer abc"),
            // The example of RFC 7617, section 2.
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "basic Aladdin"),
            ("BASIC  QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "basic Aladdin"),
            // The password begins after the first colon.
            ("Basic YTpiOmM=", "basic a"),
            ("Basic Og==", "basic of another"),
            // Without padding, with trailing bits, in base64url, with another field.
            ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ", "invalid_credentials"),
            ("Basic YTpiOmN=", "invalid_credentials"),
            ("Basic YTo_", "invalid_credentials"),
            ("Basic YTpiOmM= x", "invalid_credentials"),
            ("Basic YTpiOmM= ", "invalid_credentials"),
            // "abc", which has no colon, and "a:b\n".
            ("Basic YWJj", "invalid_credentials"),
            ("Basic YTpiCg==", "invalid_credentials"),
            ("Basic a:b", "invalid_credentials"),
            ("Basic", "invalid_credentials"),
            ("Basic ", "invalid_credentials"),
            ("Bearer", "no_token"),
            ("Bearer ", "no_token"),
            ("Digest username=x", "no_token"),
            ("", "no_token"),
        ] {
            assert_eq!(parsed(authorization), expected, "{authorization:?}");
        }
    }
}
