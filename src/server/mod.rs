//! The HTTP server of every endpoint: an accept loop that bounds the waiting time of every connection.
//!
//! Unlike `axum::serve`, it has timeouts for headers and idle connections, and limits the number of connections.
//! The router, the controller and `weir display` use it. Connections and the memory of heads are shared among the
//! peers' addresses ([`ServerLimits`]), and among servers with the same limits.

mod admin;
mod certificate;
mod client_names;
#[cfg(test)]
pub(crate) mod documented;
mod drain;
mod frames;
mod gate;
mod heartbeat;
mod limits;
mod listener_tls;
mod page;
mod peer;
mod places;
mod stream;
mod thread;
mod tls;

pub use admin::{admin, admin_limits};
pub use certificate::{CertificateError, CertificateFiles, CertificateStatus, FileCertificate};
pub use client_names::{CertificateNames, ClientNames};
pub use drain::{drain, waits_to_continue};
pub use heartbeat::Heartbeat;
pub use limits::{ExhaustedResource, IDLE_TIMEOUT, OverloadResponse, Refuse, ServerLimits};
pub use listener_tls::ListenerTls;
pub use peer::Peer;
pub use places::{ConnectionCounts, ConnectionPlaces};
pub use thread::{OwnThread, ThreadError, on_main_runtime};

use std::{
    future::poll_fn,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use gate::Gate;
use limits::{MAX_HEAD, TLS_PLACES};
use places::ConnectionPlace;
use stream::{Connection, MeteredStream};
use tls::HandshakeStream;

/// Maximum number of header fields, about as many as fit into the maximum size.
const MAX_HEADERS: usize = 8192;

/// Length of the kernel's accept queue, unless the kernel's limit is lower. Clients beyond it retry after a second.
const BACKLOG: u32 = 4096;

/// Maximum number of concurrent requests on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;

/// HTTP/2 flow-control windows, in bytes: body data that a client may send before it is read, per stream and per
/// connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// Maximum data of responses buffered for an HTTP/2 client, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Maximum number of streams of an HTTP/2 connection that may be reset because of the client's errors.
const MAX_ERROR_RESETS: usize = 128;

/// Time for requests in flight to finish at shutdown.
const GRACE: Duration = Duration::from_secs(10);

/// Time for an idle connection to close when its place is needed.
const GIVE_UP_TIME: Duration = Duration::from_millis(250);

/// Delay before accepting again when the machine has no capacity for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket, ready to serve.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: std::net::TcpListener,
    address: SocketAddr,
    limits: ServerLimits,
}

/// Cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({name}): {source}; is something else using the address?")]
pub struct BindError {
    name: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl Server {
    /// Starts to listen, and logs the address. `name` is the purpose: `ingress`, `ingress-tls`, `admin`,
    /// `configuration` or `display`.
    ///
    /// # Errors
    /// If the address is in use or does not belong to this machine.
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
            limits: ServerLimits::default(),
        })
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(self, limits: ServerLimits) -> Self {
        Self { limits, ..self }
    }

    /// Returns the address that it listens on, including the port chosen for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop. Requests in flight then have ten seconds to finish.
    pub async fn serve(self, service: axum::Router, stop: CancellationToken) {
        self.serve_over(None, service, stop).await;
    }

    /// Serves over TLS until told to stop. Each handshake has the configuration of that moment.
    pub async fn serve_tls(
        self,
        tls: Arc<ArcSwap<ServerConfig>>,
        service: axum::Router,
        stop: CancellationToken,
    ) {
        self.serve_over(Some(tls), service, stop).await;
    }

    async fn serve_over(
        self,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
        service: axum::Router,
        stop: CancellationToken,
    ) {
        let Self {
            name,
            listener,
            address: _,
            limits,
        } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(listener = name, %error, "cannot serve: cannot register the socket with the runtime");
                return;
            }
        };
        let (tasks, was_cut) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(name, &listener) => accepted,
                () = stop.cancelled() => break,
            };
            let admitted = limits.places.admit(peer.0.ip().to_canonical());
            let Some(place) = admitted.filter(|place| tls.is_none() || place.widen(TLS_PLACES)) else {
                let answer = (limits.refuse)(ExhaustedResource::Connections);
                if tls.is_none() {
                    refuse(stream, &answer);
                }
                continue;
            };
            let connection = ConnectionTask {
                peer,
                place,
                service: service.clone(),
                limits: limits.clone(),
                stop: stop.clone(),
            };
            let (tls, was_cut) = (tls.as_ref().map(|tls| tls.load_full()), was_cut.clone());
            tasks.spawn(async move {
                let served = match tls {
                    None => connection.serve(stream, None).await,
                    Some(tls) => connection.serve_tls(stream, tls).await,
                };
                match served {
                    Ok(()) => {}
                    Err(ConnectionError::Cut) => was_cut.store(true, Ordering::Relaxed),
                    Err(ConnectionError::Failed(error)) => {
                        tracing::debug!(listener = name, client = %peer.0, error, "a connection ended early");
                    }
                }
            });
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
        if was_cut.load(Ordering::Relaxed) {
            tracing::warn!(
                listener = name,
                "requests were still in flight at the end of the grace period"
            );
        }
    }
}

async fn accept(name: &'static str, listener: &TcpListener) -> (TcpStream, Peer) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(listener = name, %error, "cannot set TCP_NODELAY");
                }
                return (stream, Peer(address));
            }
            Err(error) => {
                // The client is gone, or the machine is out of file descriptors. Continue in either case.
                tracing::debug!(listener = name, %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells a client that there is no capacity, if the response can be sent without waiting.
fn refuse(stream: TcpStream, answer: &OverloadResponse) {
    if let Ok(mut stream) = stream.into_std() {
        // The connection is closed in any case.
        let _ = stream.write(&answer.to_http1());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// A connection to be served.
struct ConnectionTask {
    peer: Peer,
    place: ConnectionPlace,
    service: axum::Router,
    limits: ServerLimits,
    stop: CancellationToken,
}

/// Why a connection ended early.
enum ConnectionError {
    /// It exceeded the grace period.
    Cut,
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl ConnectionTask {
    async fn serve_tls(self, stream: TcpStream, config: Arc<ServerConfig>) -> Result<(), ConnectionError> {
        let accepted = tokio::select! {
            accepted = accept_tls(stream, config) => accepted,
            () = self.place.slot().wanted() => Err("its place was needed during the handshake".into()),
            () = self.stop.cancelled() => return Ok(()),
        };
        match accepted {
            Ok((stream, client)) => self.serve(stream, client).await,
            Err(error) => {
                self.limits.places.counts().note_failed_handshake();
                Err(ConnectionError::Failed(error))
            }
        }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        client: Option<ClientNames>,
    ) -> Result<(), ConnectionError> {
        let Self {
            peer,
            place,
            service,
            limits,
            stop,
        } = self;
        let slot = place.slot().clone();
        let ServerLimits {
            memory,
            longest_request,
            idle_timeout,
            refuse,
            ..
        } = limits;
        let connection = Arc::new(Connection::new(place, memory, peer.tenant(), refuse));
        let stream = MeteredStream::new(stream, connection.clone());
        let gate = Gate {
            service,
            peer,
            client,
            connection: connection.clone(),
        };
        let builder = builder();
        let serving = builder.serve_connection(TokioIo::new(stream), gate);
        tokio::pin!(serving);
        let grace = tokio::select! {
            served = poll_fn(|context| {
                connection.note_turn();
                serving.as_mut().poll(context)
            }) => return served.map_err(ConnectionError::Failed),
            () = slot.wanted() => GIVE_UP_TIME,
            () = lasts(idle_timeout, || slot.without_request_since()) => GIVE_UP_TIME,
            () = stop.cancelled() => GRACE,
            () = lasts(longest_request, || slot.oldest()) => {
                return Err(ConnectionError::Failed("a request took too long".into()));
            }
        };
        serving.as_mut().graceful_shutdown();
        let finishing = poll_fn(|context| {
            connection.note_turn();
            serving.as_mut().poll(context)
        });
        match timeout(grace, finishing).await {
            Ok(served) => served.map_err(ConnectionError::Failed),
            Err(_) if slot.oldest().is_some() => Err(ConnectionError::Cut),
            Err(_) => Ok(()),
        }
    }
}

/// Performs the handshake, and reads the names of a client that presents a certificate.
async fn accept_tls(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<(TlsStream<HandshakeStream>, Option<ClientNames>), Box<dyn std::error::Error + Send + Sync>> {
    let stream = tls::accept(stream, config).await?;
    let (_, connection) = stream.get_ref();
    let client = ClientNames::of(connection.peer_certificates().unwrap_or_default())?;
    Ok((stream, client))
}

/// Resolves once `limit` has passed since a time that changes, and may be absent.
async fn lasts(limit: Duration, since: impl Fn() -> Option<Instant>) {
    loop {
        let since = since();
        if since.is_some_and(|since| since.elapsed() >= limit) {
            return;
        }
        sleep_until(since.unwrap_or_else(Instant::now) + limit).await;
    }
}

/// Like tokio's own `bind`, except for the backlog.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper's timeout also runs between requests; the one of `MeteredStream` does not.
        .header_read_timeout(None)
        // A client may have finished sending and still wait for the response.
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use axum::routing::post;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        task::JoinHandle,
        time::sleep,
    };

    use super::{limits::HEADER_READ_TIMEOUT, *};

    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n";

    /// A connection to a server that responds to each request after a second.
    fn connected() -> (DuplexStream, JoinHandle<bool>) {
        let (client, stream) = duplex(1024);
        let limits = ServerLimits::default();
        let answer = async || sleep(Duration::from_secs(1)).await;
        let serving = ConnectionTask {
            peer: Peer((Ipv4Addr::LOCALHOST, 1).into()),
            place: limits.places.admit(Ipv4Addr::LOCALHOST.into()).unwrap(),
            service: axum::Router::new().route("/", post(answer)),
            limits,
            stop: CancellationToken::new(),
        };
        (
            client,
            tokio::spawn(async move { serving.serve(stream, None).await.is_ok() }),
        )
    }

    async fn answered(client: &mut DuplexStream) -> bool {
        let mut answer = [0; 1024];
        let read = client.read(&mut answer).await.unwrap();
        answer[..read].starts_with(b"HTTP/1.1 200 ")
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connection_stays_open_for_a_limited_time() {
        let (mut client, serving) = connected();
        for _ in 0..3 {
            client.write_all(REQUEST).await.unwrap();
            assert!(answered(&mut client).await);
            sleep(IDLE_TIMEOUT - Duration::from_secs(5)).await;
        }
        let began = Instant::now();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");
        assert!(began.elapsed() < Duration::from_secs(10));
        assert!(serving.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn closes_connection_if_a_head_is_incomplete_for_too_long() {
        for requests_before in [0, 1] {
            let (mut client, serving) = connected();
            for _ in 0..requests_before {
                client.write_all(REQUEST).await.unwrap();
                assert!(answered(&mut client).await);
                sleep(2 * HEADER_READ_TIMEOUT).await;
            }
            let began = Instant::now();
            client.write_all(&REQUEST[..20]).await.unwrap();
            assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "it is closed");
            assert_eq!(began.elapsed().as_secs(), HEADER_READ_TIMEOUT.as_secs());
            assert!(!serving.await.unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn responds_to_half_closed_client() {
        let (mut client, _serving) = connected();
        client.write_all(REQUEST).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(answered(&mut client).await);
    }
}
