//! The HTTP server under every endpoint: an accept loop in which no connection can wait for ever.
//!
//! `axum::serve` has no timeouts for headers or idle connections and no cap on connections; this has. The router,
//! the controller and `weir display` listen with it.

mod admin;
#[cfg(test)]
pub(crate) mod documented;
mod idle;
mod tls;

pub use admin::admin;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use idle::IdleTimeout;

/// How long a client may take to send a request's head.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection may be silent in both directions.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How large the head of a request may be, in bytes: an event of 64 KiB may be all attributes, and percent-encoding
/// makes three bytes of one.
const MAX_HEAD: usize = 256 * 1024;

/// How many header fields a request may have: about as many as there is room for.
const MAX_HEADERS: usize = 8192;

/// How many connections are served at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;

/// How many connections wait in the kernel's queue; the kernel's own limit may be lower. Those beyond it are tried
/// again by the client after a second.
const BACKLOG: u32 = 4096;

/// How many requests one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 256;

/// How long requests under way may take to finish when the server is shut down.
const GRACE: Duration = Duration::from_secs(10);

/// How long to wait when the machine has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address of the client, an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// A socket that listens, ready to serve.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({name}): {source}; is something else using the address?")]
pub struct BindError {
    name: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl Server {
    /// Listens and logs where. `name` says what for: `ingress`, `admin`, `configuration`, `display`.
    ///
    /// # Errors
    /// When the address is in use or not this machine's.
    pub async fn bind(name: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError {
            name,
            address,
            source,
        };
        let listener = listen(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        tracing::info!(listener = name, %address, "listening");
        Ok(Self {
            name,
            listener,
            address,
        })
    }

    /// The address that it listens on, with the port that was chosen if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop; requests that are under way then may finish within ten seconds.
    pub async fn serve(self, service: axum::Router, stop: CancellationToken) {
        self.serve_over(None, service, stop).await;
    }

    /// The same over TLS.
    pub async fn serve_tls(self, tls: Arc<ServerConfig>, service: axum::Router, stop: CancellationToken) {
        self.serve_over(Some(tls), service, stop).await;
    }

    async fn serve_over(
        self,
        tls: Option<Arc<ServerConfig>>,
        service: axum::Router,
        stop: CancellationToken,
    ) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        loop {
            let (stream, peer, permit) = tokio::select! {
                accepted = self.accept(&connections) => accepted,
                () = stop.cancelled() => break,
            };
            let (service, watcher, tls) = (service.clone(), graceful.watcher(), tls.clone());
            let name = self.name;
            tokio::spawn(async move {
                let served = match tls {
                    None => serve_connection(stream, peer, service, watcher).await,
                    Some(tls) => match tls::accept(stream, tls).await {
                        Ok(stream) => serve_connection(stream, peer, service, watcher).await,
                        Err(error) => Err(error.into()),
                    },
                };
                if let Err(error) = served {
                    tracing::debug!(listener = name, client = %peer.0, error, "a connection ended early");
                }
                drop(permit);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
            tracing::warn!(
                listener = self.name,
                "requests were still under way when the time to finish ended"
            );
        }
    }

    async fn accept(&self, connections: &Arc<Semaphore>) -> (TcpStream, Peer, Option<OwnedSemaphorePermit>) {
        // The semaphore is never closed; were it, connections would go uncounted.
        let permit = connections.clone().acquire_owned().await.ok();
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(listener = self.name, %error, "cannot set TCP_NODELAY");
                    }
                    return (stream, Peer(address), permit);
                }
                Err(error) => {
                    // The client is gone, or the machine is out of file descriptors: either way, go on.
                    tracing::debug!(listener = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    service: axum::Router,
    watcher: Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let service = service.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        request
    });
    let io = TokioIo::new(Box::pin(IdleTimeout::new(stream, IDLE_TIMEOUT)));
    let builder = builder();
    let connection = builder.serve_connection(io, TowerToHyperService::new(service));
    watcher.watch(connection.into_owned()).await
}

/// As tokio's own `bind` does, but for the backlog.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}
