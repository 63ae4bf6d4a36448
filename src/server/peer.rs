//! The client of a request.

use std::{net::SocketAddr, sync::Arc};

/// Address of the client, an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Returns the tenant that a peer's requests are accounted to until their namespace is known.
    pub fn tenant(self) -> Arc<str> {
        format!("peer {}", self.0.ip().to_canonical()).into()
    }
}
