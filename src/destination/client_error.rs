//! Why a client cannot be created.

/// Reasons why a client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificates of the machine's authorities cannot be read.
    #[error("cannot read the certificate authorities that this machine trusts, needed for https Sinks: {0}")]
    Roots(#[source] std::io::Error),
    /// Names cannot be resolved.
    #[error("cannot resolve names: {0}")]
    Names(String),
}
