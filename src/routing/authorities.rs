//! Authorities that Sinks trust instead of the public ones. A configuration contains each once, however many
//! destinations reference it.

use std::{collections::BTreeMap, fmt::Write as _};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// SHA-256 of the PEM of some authorities, in hexadecimal. Since it is a cryptographic hash, the author of a Sink
/// cannot craft other authorities with the same digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthoritiesDigest(String);

impl AuthoritiesDigest {
    /// Computes the digest of a PEM text.
    pub fn of(pem: &str) -> Self {
        let bytes = digest(&SHA256, pem.as_bytes());
        Self(bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

/// Certificates of authorities, in PEM, by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Authorities(BTreeMap<AuthoritiesDigest, String>);

impl Authorities {
    /// Returns the PEM text with this digest.
    pub fn get(&self, digest: &AuthoritiesDigest) -> Option<&str> {
        self.0.get(digest).map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> FromIterator<&'a str> for Authorities {
    fn from_iter<I: IntoIterator<Item = &'a str>>(texts: I) -> Self {
        let texts = texts.into_iter();
        Self(
            texts
                .map(|pem| (AuthoritiesDigest::of(pem), pem.to_owned()))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_each_text_once_by_its_digest() {
        let authorities: Authorities = ["abc", "abd", "abc"].into_iter().collect();
        let json = serde_json::to_value(&authorities).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 2);
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(json[abc], "abc");
        assert_eq!(authorities.get(&AuthoritiesDigest::of("abd")), Some("abd"));
        assert_eq!(authorities.get(&AuthoritiesDigest::of("x")), None);
        assert_eq!(serde_json::from_value::<Authorities>(json).unwrap(), authorities);
    }
}
