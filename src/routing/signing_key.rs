//! Keys of Standard Webhooks signatures. The controller validates with it what routers then use. Pure.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Serialize};

use super::Secret;

/// Beginning of every key.
const PREFIX: &str = "whsec_";

/// Permitted size of a key, in bytes.
const SIZES: std::ops::RangeInclusive<usize> = 24..=64;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A key of signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SigningKey {
    /// The key as text: `whsec_`, followed by the base64 of its bytes.
    pub value: Secret,
    /// Opaque version that changes with the value and reveals nothing about it.
    pub version: String,
}

/// A text that is not a key. It does not quote the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a signing key: whsec_, followed by the base64 of 24 to 64 bytes")]
pub struct InvalidSigningKey;

impl SigningKey {
    /// Decodes the key.
    ///
    /// # Errors
    /// If the text is not a key.
    pub fn bytes(&self) -> Result<Vec<u8>, InvalidSigningKey> {
        let encoded = self.value.reveal().strip_prefix(PREFIX);
        let decoded = encoded.and_then(|encoded| BASE64.decode(encoded).ok());
        decoded
            .filter(|bytes| SIZES.contains(&bytes.len()))
            .ok_or(InvalidSigningKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<usize, InvalidSigningKey> {
        let key = SigningKey {
            value: text.to_owned().into(),
            version: String::new(),
        };
        key.bytes().map(|bytes| bytes.len())
    }

    #[test]
    fn decodes_keys_of_24_to_64_bytes() {
        let encoded = |length| BASE64.encode(vec![0xfb; length]);
        let unpadded = encoded(25).trim_end_matches('=').to_owned();
        let table = [
            (format!("whsec_{}", encoded(24)), Ok(24)),
            (format!("whsec_{}", encoded(64)), Ok(64)),
            (format!("whsec_{unpadded}"), Ok(25)),
            (format!("whsec_{}", encoded(23)), Err(InvalidSigningKey)),
            (format!("whsec_{}", encoded(65)), Err(InvalidSigningKey)),
            (encoded(32), Err(InvalidSigningKey)),
            (format!("whsk_{}", encoded(32)), Err(InvalidSigningKey)),
            (format!("whsec_{} ", encoded(32)), Err(InvalidSigningKey)),
            (format!("whsec_{}", "-".repeat(32)), Err(InvalidSigningKey)),
            ("whsec_".to_owned(), Err(InvalidSigningKey)),
            (String::new(), Err(InvalidSigningKey)),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(&text), expected, "{text}");
        }
    }
}
