//! How producers can authenticate.

/// How a producer can authenticate: the values of `WWW-Authenticate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Challenges {
    /// It would change nothing.
    #[default]
    None,
    /// By a token.
    Bearer,
    /// By a token, after one that is not valid.
    InvalidToken,
    /// By a token, or a user name and a password.
    BearerOrBasic,
    /// The same, after a token that is not valid.
    InvalidTokenOrBasic,
}

/// Challenge after an invalid token (RFC 6750, section 3). One without an error follows a request without a token.
const INVALID_TOKEN: &str = "Bearer error=\"invalid_token\"";

/// Challenge for a user name and a password (RFC 7617, section 2).
const BASIC: &str = "Basic realm=\"weir\"";

impl Challenges {
    /// Returns the values.
    pub fn values(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Bearer => &["Bearer"],
            Self::InvalidToken => &[INVALID_TOKEN],
            Self::BearerOrBasic => &["Bearer", BASIC],
            Self::InvalidTokenOrBasic => &[INVALID_TOKEN, BASIC],
        }
    }
}
