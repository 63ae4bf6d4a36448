//! The authorities that Sinks have instead of the public ones. Each is in a configuration once, however many
//! destinations name it.

use std::{collections::BTreeMap, fmt::Write as _};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// Names authorities by their content: the SHA-256 of their PEM, in hexadecimal. Whoever may write a Sink cannot make
/// others with the name of someone else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthoritiesDigest(String);

impl AuthoritiesDigest {
    /// That of a PEM text.
    pub fn of(pem: &str) -> Self {
        let bytes = digest(&SHA256, pem.as_bytes());
        Self(bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
            // Writing to a text does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        }))
    }
}

/// Certificates of authorities, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Authorities(BTreeMap<AuthoritiesDigest, String>);

impl Authorities {
    /// The PEM text with this digest.
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
    fn a_text_is_kept_once_and_found_by_its_digest() {
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
