//! What the credentials of producers are compared with. Pure.

use std::{fmt, hint::black_box};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// Length of a SHA-256 digest, in bytes.
const LENGTH: usize = 32;

/// SHA-256 of a bearer token or of `USER:PASSWORD`; in JSON, in base64. `Debug` does not show it: a weak password could
/// be guessed from it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CredentialDigest([u8; LENGTH]);

/// A text that is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the base64 of a SHA-256 digest")]
pub struct InvalidDigest;

impl CredentialDigest {
    /// Computes the digest of a credential.
    pub fn of(credential: &[u8]) -> Self {
        let mut bytes = [0; LENGTH];
        bytes.copy_from_slice(digest(&SHA256, credential).as_ref());
        Self(bytes)
    }

    /// Compares in constant time.
    pub fn matches(&self, presented: &Self) -> bool {
        let pairs = self.0.iter().zip(&presented.0);
        let difference = pairs.fold(0, |difference, (own, presented)| difference | (own ^ presented));
        black_box(difference) == 0
    }
}

impl From<CredentialDigest> for String {
    fn from(digest: CredentialDigest) -> Self {
        STANDARD.encode(digest.0)
    }
}

impl TryFrom<String> for CredentialDigest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        let bytes = STANDARD.decode(text).map_err(|_| InvalidDigest)?;
        bytes.try_into().map(Self).map_err(|_| InvalidDigest)
    }
}

impl fmt::Debug for CredentialDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[digest]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";

    #[test]
    fn is_serialized_but_not_displayed() {
        let digest = CredentialDigest::of(b"abc");
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{ABC}\""));
        assert_eq!(serde_json::from_str::<CredentialDigest>(&json).unwrap(), digest);
        assert_eq!(format!("{digest:?}"), "[digest]");
        for text in ["", "abc", "AAAA", &ABC[..ABC.len() - 1]] {
            assert_eq!(
                CredentialDigest::try_from(text.to_owned()),
                Err(InvalidDigest),
                "{text}"
            );
        }
    }

    #[test]
    fn matches_the_same_credential_only() {
        for (own, presented, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("", "", true),
            ("", "a", false),
        ] {
            let [own, presented] = [own, presented].map(|text| CredentialDigest::of(text.as_bytes()));
            assert_eq!(own.matches(&presented), expected);
        }
        assert!(!CredentialDigest::default().matches(&CredentialDigest::of(b"")));
    }
}
