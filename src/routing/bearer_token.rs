//! Tokens in requests of producers and routers.

/// Returns the token in the value of an `Authorization` header (RFC 6750, section 2.1).
pub fn bearer_token(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
