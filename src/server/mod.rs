//! The HTTP server under every endpoint: an accept loop in which no connection can wait for ever.
//!
//! `axum::serve` has no timeouts for headers or idle connections and no cap on connections; this has. The router,
//! the controller and `weir display` listen with it. Connections and the memory of requests' heads are shared by the
//! peers' addresses ([`Limits`]).

mod admin;
#[cfg(test)]
pub(crate) mod documented;
mod drain;
mod frames;
mod gate;
mod heartbeat;
mod page;
mod places;
mod stream;
mod thread;
mod tls;

pub use admin::{admin, admin_limits};
pub use drain::{drain, waits_to_continue};
pub use heartbeat::Heartbeat;
pub use places::ConnectionCounts;
pub use thread::{OwnThread, ThreadError, on_main_runtime};

use std::{
    fmt,
    future::poll_fn,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::memory::Pool;
use gate::Gate;
use places::{Place, Places};
use stream::{Connection, Watched};

/// How long a client may take to send a request's head, from its first byte on.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a connection without a request stays open by default. It has to be longer than what load balancers keep
/// theirs, the longest of which is 10 minutes: one that is closed while a balancer sends a request on it makes the
/// balancer answer 502.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(650);

/// How large the head of a request may be, in bytes: an event of 64 KiB may be all attributes, and percent-encoding
/// makes three bytes of one.
const MAX_HEAD: usize = 256 * 1024;

/// How many header fields a request may have: about as many as there is room for.
const MAX_HEADERS: usize = 8192;

/// What a header field takes in memory at most, in bytes, besides its name and its value: its entries in a
/// [`http::HeaderMap`].
const FIELD_BYTES: usize = 112;

/// How many places a connection of HTTP/2 takes, which has more buffers than one of HTTP/1, and many requests.
const HTTP2_PLACES: usize = 4;

/// How many connections wait in the kernel's queue; the kernel's own limit may be lower. Those beyond it are tried
/// again by the client after a second.
const BACKLOG: u32 = 4096;

/// How many requests one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 128;

/// How much of a body a client of HTTP/2 may send before it is read, in bytes: of one, and of all of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;

/// How much of an answer waits for a client of HTTP/2, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// How many streams of a connection of HTTP/2 may be reset because of the client's errors.
const MAX_ERROR_RESETS: usize = 128;

/// How long requests under way may take to finish when the server is shut down.
const GRACE: Duration = Duration::from_secs(10);

/// How long an idle connection has to close when its place is wanted.
const GIVE_UP_TIME: Duration = Duration::from_millis(250);

/// How long to wait when the machine has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections a server has by default, and what the heads of its requests may hold.
const DEFAULT_CONNECTIONS: usize = 1024;
const DEFAULT_MEMORY: usize = 16 * 1024 * 1024;

/// How long a request may take by default, from its head to the end of the answer.
const LONGEST_REQUEST: Duration = Duration::from_secs(180);

/// The address of the client, an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// The tenant that a peer's requests count for, until it is known what they are for.
    pub fn tenant(self) -> Arc<str> {
        format!("peer {}", self.0.ip().to_canonical()).into()
    }
}

/// What connections and the heads of requests may take. A peer gets as much as is left free.
#[derive(Clone)]
pub struct Limits {
    /// How many connections there may be at once; those of HTTP/2 count as four.
    pub connections: usize,
    /// What the heads of requests draw from.
    pub memory: Pool,
    /// How long a request may take, from its head to the end of the answer.
    pub longest_request: Duration,
    /// How long a connection without a request stays open.
    pub idle_timeout: Duration,
    /// What is counted.
    pub counts: ConnectionCounts,
    /// What whoever finds no room is told.
    pub refuse: Arc<Refuse>,
}

/// Makes the answer to whoever finds no room.
pub type Refuse = dyn Fn(Refusal) -> Refused + Send + Sync;

/// What there was no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Another connection.
    Connections,
    /// Another request's head.
    Heads,
}

/// The body of an answer 503.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: Bytes,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: DEFAULT_CONNECTIONS,
            memory: Pool::new(DEFAULT_MEMORY),
            longest_request: LONGEST_REQUEST,
            idle_timeout: IDLE_TIMEOUT,
            counts: ConnectionCounts::default(),
            refuse: Arc::new(|refusal| Refused {
                content_type: "text/plain",
                body: match refusal {
                    Refusal::Connections => "there are too many connections; try again\n",
                    Refusal::Heads => "there are too many requests; try again\n",
                }
                .into(),
            }),
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl Refused {
    fn to_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        let content_type = HeaderValue::from_static(self.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    fn to_http1(&self) -> Bytes {
        let Self { content_type, body } = self;
        let length = body.len();
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {content_type}\r\nretry-after: 1\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat().into()
    }
}

/// A socket that listens, ready to serve.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: std::net::TcpListener,
    address: SocketAddr,
    limits: Limits,
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
            limits: Limits::default(),
        })
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
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
        let Self {
            name,
            listener,
            address: _,
            limits,
        } = self;
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(listener = name, %error, "cannot serve: the runtime does not take the socket");
                return;
            }
        };
        let places = Places::new(limits.connections, limits.counts.clone());
        let (tasks, was_cut) = (TaskTracker::new(), Arc::new(AtomicBool::new(false)));
        loop {
            let (stream, peer) = tokio::select! {
                accepted = accept(name, &listener) => accepted,
                () = stop.cancelled() => break,
            };
            let Some(place) = places.admit(peer.0.ip().to_canonical()) else {
                let answer = (limits.refuse)(Refusal::Connections);
                if tls.is_none() {
                    refuse(stream, &answer);
                }
                continue;
            };
            let connection = Serving {
                peer,
                place,
                service: service.clone(),
                limits: limits.clone(),
                stop: stop.clone(),
            };
            let (tls, was_cut) = (tls.clone(), was_cut.clone());
            tasks.spawn(async move {
                let served = match tls {
                    None => connection.serve(stream).await,
                    Some(tls) => match tls::accept(stream, tls).await {
                        Ok(stream) => connection.serve(stream).await,
                        Err(error) => Err(Ended::Failed(error.into())),
                    },
                };
                match served {
                    Ok(()) => {}
                    Err(Ended::Cut) => was_cut.store(true, Ordering::Relaxed),
                    Err(Ended::Failed(error)) => {
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
                "requests were still under way when the time to finish ended"
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
                // The client is gone, or the machine is out of file descriptors: either way, go on.
                tracing::debug!(listener = name, %error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells a client that there is no place for it, if it takes that at once.
fn refuse(stream: TcpStream, answer: &Refused) {
    if let Ok(mut stream) = stream.into_std() {
        // It is closed either way.
        let _ = stream.write(&answer.to_http1());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// A connection that is to be served.
struct Serving {
    peer: Peer,
    place: Place,
    service: axum::Router,
    limits: Limits,
    stop: CancellationToken,
}

/// Why a connection ended early.
enum Ended {
    /// The time to finish was over.
    Cut,
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl Serving {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<(), Ended> {
        let Self {
            peer,
            place,
            service,
            limits,
            stop,
        } = self;
        let slot = place.slot().clone();
        let Limits {
            memory,
            longest_request,
            idle_timeout,
            refuse,
            ..
        } = limits;
        let connection = Arc::new(Connection::new(place, memory, peer.tenant(), refuse));
        let stream = Watched::new(stream, connection.clone());
        let gate = Gate {
            service,
            peer,
            connection: connection.clone(),
        };
        let builder = builder();
        let serving = builder.serve_connection(TokioIo::new(stream), gate);
        tokio::pin!(serving);
        let grace = tokio::select! {
            served = poll_fn(|context| {
                connection.note_turn();
                serving.as_mut().poll(context)
            }) => return served.map_err(Ended::Failed),
            () = slot.wanted() => GIVE_UP_TIME,
            () = lasts(idle_timeout, || slot.without_request_since()) => GIVE_UP_TIME,
            () = stop.cancelled() => GRACE,
            () = lasts(longest_request, || slot.oldest()) => {
                return Err(Ended::Failed("a request took too long".into()));
            }
        };
        serving.as_mut().graceful_shutdown();
        let finishing = poll_fn(|context| {
            connection.note_turn();
            serving.as_mut().poll(context)
        });
        match timeout(grace, finishing).await {
            Ok(served) => served.map_err(Ended::Failed),
            Err(_) if slot.oldest().is_some() => Err(Ended::Cut),
            Err(_) => Ok(()),
        }
    }
}

/// Resolves once it has been so long since a time that changes, and may be absent.
async fn lasts(limit: Duration, since: impl Fn() -> Option<Instant>) {
    loop {
        let since = since();
        if since.is_some_and(|since| since.elapsed() >= limit) {
            return;
        }
        sleep_until(since.unwrap_or_else(Instant::now) + limit).await;
    }
}

/// As tokio's own `bind` does, but for the backlog.
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
        // hyper's timeout runs between requests as well; `Watched` has one that does not.
        .header_read_timeout(None)
        // A client may have no more to send, and wait for the answer.
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

    use super::*;

    const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n";

    /// A connection to a server that answers each request after a second.
    fn connected() -> (DuplexStream, JoinHandle<bool>) {
        let (client, stream) = duplex(1024);
        let limits = Limits::default();
        let places = Places::new(limits.connections, limits.counts.clone());
        let answer = async || sleep(Duration::from_secs(1)).await;
        let serving = Serving {
            peer: Peer((Ipv4Addr::LOCALHOST, 1).into()),
            place: places.admit(Ipv4Addr::LOCALHOST.into()).unwrap(),
            service: axum::Router::new().route("/", post(answer)),
            limits,
            stop: CancellationToken::new(),
        };
        (
            client,
            tokio::spawn(async move { serving.serve(stream).await.is_ok() }),
        )
    }

    async fn answered(client: &mut DuplexStream) -> bool {
        let mut answer = [0; 1024];
        let read = client.read(&mut answer).await.unwrap();
        answer[..read].starts_with(b"HTTP/1.1 200 ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_open_between_requests_and_not_for_ever() {
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
    async fn the_head_of_each_request_has_to_be_complete_in_time() {
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
    async fn a_client_that_has_no_more_to_send_is_answered() {
        let (mut client, _serving) = connected();
        client.write_all(REQUEST).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(answered(&mut client).await);
    }
}
