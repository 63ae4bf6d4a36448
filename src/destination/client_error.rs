//! Errors of creating a client.

/// Why a client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The machine's certificate authorities cannot be read.
    #[error("cannot read the certificate authorities that this machine trusts, needed for https Sinks: {0}")]
    Roots(#[source] std::io::Error),
    /// The resolver cannot be created.
    #[error("cannot create the DNS resolver: {0}")]
    Names(String),
}
