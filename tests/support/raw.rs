//! Bytes on a connection of their own, for what an HTTP client would not send.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;
use tokio::net::TcpSocket;

use super::{PATIENCE, runtime};

/// An HTTP/1.1 response as it came.
#[derive(Debug)]
pub(crate) struct RawResponse {
    pub(crate) status: u16,
    /// The status line and the headers.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl RawResponse {
    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A connection on which no read or write takes longer than is patient.
#[track_caller]
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("cannot connect");
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(PATIENCE)).expect("cannot set a timeout");
    }
    stream
}

/// As [`connect`], from an address of this machine's own, which the other side takes for another client.
#[track_caller]
pub(crate) fn connect_from(local: [u8; 4], address: SocketAddr) -> TcpStream {
    let stream = runtime().block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((local, 0).into())?;
        socket.connect(address).await?.into_std()
    });
    let stream = stream.expect("cannot connect");
    stream.set_nonblocking(false).expect("cannot block");
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(PATIENCE)).expect("cannot set a timeout");
    }
    stream
}

/// Sends and receives as much as the other side takes and sends until it closes; it may close without having read all.
#[track_caller]
pub(crate) fn exchange_bytes(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    exchange_bytes_on(connect(address), bytes)
}

#[track_caller]
fn exchange_bytes_on(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut received = Vec::new();
    let _ = stream.write_all(bytes);
    if let Err(error) = stream.read_to_end(&mut received) {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "the connection was not closed"
        );
    }
    received
}

/// Sends a request that has `connection: close` or is none, and waits for the response.
#[track_caller]
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> RawResponse {
    exchange_on(connect(address), request)
}

/// As [`exchange`], on this connection.
#[track_caller]
pub(crate) fn exchange_on(stream: TcpStream, request: &[u8]) -> RawResponse {
    let received = exchange_bytes_on(stream, request);
    let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        panic!("no response came, but {received:?}");
    };
    let head = String::from_utf8_lossy(&received[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    RawResponse {
        status: status.unwrap_or_else(|| panic!("no status in {head}")),
        head,
        body: received[end + 4..].to_vec(),
    }
}
