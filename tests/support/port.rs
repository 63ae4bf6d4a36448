//! Ports that nobody else gets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A loopback port that stays ours, whether somebody listens on it or not.
///
/// A socket is bound to it and never listens. As long as it lives the system gives the port to no one who asks
/// for any port, connecting to it is refused, and a program that sets `SO_REUSEADDR` (as Rust's, tokio's and Go's
/// listeners do) can listen on it, end, and listen again.
#[derive(Debug)]
pub(crate) struct ReservedPort {
    _socket: TcpSocket,
    address: SocketAddr,
}

impl ReservedPort {
    /// Reserves a free port.
    pub(crate) fn new() -> Self {
        let socket = TcpSocket::new_v4().expect("cannot make a socket");
        socket.set_reuseaddr(true).expect("cannot set SO_REUSEADDR");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("cannot bind to a free loopback port");
        let address = socket.local_addr().expect("a bound socket has an address");
        Self {
            _socket: socket,
            address,
        }
    }

    /// The loopback address with the port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
