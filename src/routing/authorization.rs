//! Credentials in the `Authorization` headers of producers, routers and senders of webhooks. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::CredentialDigest;

/// Returns the token in the value of an `Authorization` header (RFC 6750, section 2.1).
pub fn bearer_token(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// What the value of an `Authorization` header says by HTTP Basic authentication (RFC 7617, section 2).
#[derive(Debug)]
pub enum BasicAuthorization {
    /// It has another scheme.
    OtherScheme,
    /// It is not `USER:PASSWORD` in base64, or has control characters.
    Malformed,
    /// Digest of the user name, a colon and the password.
    Pair(CredentialDigest),
}

impl BasicAuthorization {
    /// Parses the value of an `Authorization` header.
    pub fn parse(authorization: &str) -> Self {
        let (scheme, pair) = authorization.split_once(' ').unwrap_or((authorization, ""));
        if !scheme.eq_ignore_ascii_case("basic") {
            return Self::OtherScheme;
        }
        let pair = STANDARD.decode(pair.trim_start_matches(' ')).ok();
        let is_valid = |pair: &Vec<u8>| pair.contains(&b':') && !pair.iter().any(u8::is_ascii_control);
        match pair.filter(is_valid) {
            Some(pair) => Self::Pair(CredentialDigest::of(&pair)),
            None => Self::Malformed,
        }
    }
}
