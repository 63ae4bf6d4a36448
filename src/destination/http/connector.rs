//! Opens connections to Sinks. The connector resolves names itself and connects to the address that it checked, so that
//! a name cannot resolve to a forbidden address between check and connection.
//!
//! Open connections are limited by namespace. At the limit an attempt waits within the connect timeout, and is then
//! postponed.

use std::{
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::Uri;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connected, Connection, HttpConnector, dns::Name},
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower::Service;

use super::{
    addresses::NamedBy,
    names::Names,
    stage::{AttemptStage, Busy, Lack},
    uri_addresses::UriAddresses,
};
use crate::{
    memory::{Pool, Reservation},
    telemetry::{Admitted, Burst},
};

/// Connect timeout, within an attempt's own timeout. Includes waiting for a free connection, resolving the name, and
/// TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum addresses in a log line.
const MAX_LOGGED: usize = 3;

/// The client of a target, which pools connections.
pub(super) type HttpClient = legacy::Client<Connector, Full<Bytes>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Permitted addresses of destinations, for one value of [`NamedBy`].
#[derive(Debug)]
pub(super) struct Permitted {
    addresses: UriAddresses,
    named_by: NamedBy,
    /// Limits the log lines about names that resolve to forbidden addresses.
    refusals: Mutex<Burst>,
}

impl Permitted {
    pub(super) fn new(addresses: UriAddresses, named_by: NamedBy) -> Self {
        Self {
            addresses,
            named_by,
            refusals: Mutex::default(),
        }
    }

    /// Logs how many lines were suppressed since the last line, once their interval is over.
    pub(super) fn log_suppressed(&self, now: Instant) {
        if let Some(held_back) = self.refusals().overdue(now) {
            tracing::warn!(
                held_back,
                of = "hosts that resolve to forbidden addresses",
                "log lines suppressed"
            );
        }
    }

    /// Logs the addresses that a name resolves to. They are only logged, since the author of the name must not learn
    /// them.
    fn log_forbidden(&self, host: &str, addresses: &[IpAddr]) {
        let Some(Admitted { held_back }) = self.refusals().admit(Instant::now()) else {
            return;
        };
        let shown: Vec<_> = addresses.iter().take(MAX_LOGGED).map(IpAddr::to_string).collect();
        let (shown, more) = (shown.join(", "), addresses.len().saturating_sub(MAX_LOGGED));
        tracing::warn!(
            host,
            addresses = shown,
            more,
            held_back,
            "connection rejected: a destination's host resolves to an address that it may not reach"
        );
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Burst> {
        // No panic under the lock leaves the counts half changed.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connector needs to open connections for a namespace.
#[derive(Clone)]
pub(super) struct ConnectionContext {
    pub(super) permitted: Arc<Permitted>,
    pub(super) names: Names,
    /// Pool of open connections.
    pub(super) sockets: Pool,
    pub(super) namespace: Arc<str>,
}

/// Connects within the timeout.
#[derive(Clone)]
pub(super) struct Connector(HttpsConnector<PlainConnector>);

impl Connector {
    pub(super) fn new(origin: ConnectionContext, tls: ClientConfig) -> Self {
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(PlainConnector(Arc::new(origin)));
        Self(https)
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<Socket>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let stage = AttemptStage::current();
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.0.call(uri));
        async move {
            match connecting.await {
                Ok(connected) => connected,
                Err(_) => Err(match stage.lacks() {
                    Some(lacking) => Busy(lacking).into(),
                    None => format!("no connection within {CONNECT_TIMEOUT:?}").into(),
                }),
            }
        }
        .boxed()
    }
}

/// Connects to permitted addresses, without TLS.
#[derive(Clone)]
struct PlainConnector(Arc<ConnectionContext>);

impl Service<Uri> for PlainConnector {
    type Response = TokioIo<Socket>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // Read here, since another task than the attempt's may continue connecting.
        let (origin, stage) = (self.0.clone(), AttemptStage::current());
        async move { origin.connect(uri, &stage).await }.boxed()
    }
}

impl ConnectionContext {
    async fn connect(&self, uri: Uri, stage: &AttemptStage) -> Result<TokioIo<Socket>, BoxError> {
        let addresses = match (literal(&uri), uri.host()) {
            // Addresses are not resolved.
            (Some(address), _) => {
                self.check(address)?;
                Vec::new()
            }
            (None, Some(host)) => self.resolve(host, stage).await?,
            (None, None) => return Err("the URI has no host".into()),
        };
        // A hanging Sink leaves connections for others of its namespace.
        let sink = uri.authority().map_or("", |authority| authority.as_str()).into();
        stage.wait_for(Lack::Connection);
        let room = self.sockets.reserve_for(&self.namespace, &sink, 1).await;
        stage.granted();
        let mut http = HttpConnector::new_with_resolver(FixedAddresses(addresses));
        http.enforce_http(false);
        http.set_nodelay(true);
        let stream = http.call(uri).await?.into_inner();
        Ok(TokioIo::new(Socket { stream, _room: room }))
    }

    fn check(&self, address: IpAddr) -> Result<(), ForbiddenAddress> {
        let refused = ForbiddenAddress {
            literal: Some(address),
            named_by: self.permitted.named_by,
        };
        let is_permitted = self.permitted.addresses.permit(address);
        is_permitted.then_some(()).ok_or(refused)
    }

    async fn resolve(&self, host: &str, stage: &AttemptStage) -> Result<Vec<SocketAddr>, BoxError> {
        let addresses = self.names.resolve(&self.namespace, host, stage).await?;
        // The connector sets the port.
        let addresses = addresses.iter().map(|&address| SocketAddr::new(address, 0));
        Ok(
            filter_permitted(addresses.collect(), &self.permitted.addresses).map_err(|bad| {
                self.permitted.log_forbidden(host, &bad);
                ForbiddenAddress {
                    literal: None,
                    named_by: self.permitted.named_by,
                }
            })?,
        )
    }
}

/// An open connection, counted until it is closed.
pub(super) struct Socket {
    stream: TcpStream,
    _room: Reservation,
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A resolver that returns these addresses.
#[derive(Clone)]
struct FixedAddresses(Vec<SocketAddr>);

impl Service<Name> for FixedAddresses {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        std::future::ready(Ok(self.0.clone().into_iter()))
    }
}

/// The IP address in a URI, if its host is one.
fn literal(uri: &Uri) -> Option<IpAddr> {
    uri.host()?.trim_matches(['[', ']']).parse().ok()
}

/// Returns the permitted addresses, or, if none is permitted, the forbidden ones.
fn filter_permitted(
    addresses: Vec<SocketAddr>,
    permitted: &UriAddresses,
) -> Result<Vec<SocketAddr>, Vec<IpAddr>> {
    let (good, bad): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| permitted.permit(address.ip()));
    if good.is_empty() && !bad.is_empty() {
        return Err(bad.iter().map(SocketAddr::ip).collect());
    }
    Ok(good)
}

/// Error for an address that may not be reached. Does not contain the address that a name resolves to, since the
/// author of the name sees the error.
#[derive(Debug)]
struct ForbiddenAddress {
    /// The address, if it was written as one.
    literal: Option<IpAddr>,
    named_by: NamedBy,
}

impl fmt::Display for ForbiddenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.literal {
            Some(address) => write!(f, "{address} is an address")?,
            None => f.write_str("the host resolves to an address")?,
        }
        f.write_str(match self.named_by {
            NamedBy::Uri => {
                " that a uri may not reach; name a Service, or have it allowed by --allow-uri-addresses \
                 (router.uri.allow in the chart)"
            }
            NamedBy::Service | NamedBy::Operator => {
                " that no Service may point to: loopback, link-local and metadata addresses are rejected; point the \
                 Service elsewhere"
            }
        })?;
        match self.literal {
            Some(_) => Ok(()),
            None => f.write_str("; the router's log has the address"),
        }
    }
}

impl std::error::Error for ForbiddenAddress {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_literal_addresses() {
        let table = [
            ("http://10.0.0.1/a", Some("10.0.0.1")),
            ("http://10.0.0.1:80/a", Some("10.0.0.1")),
            ("https://[::1]:80/a", Some("::1")),
            ("https://[::ffff:10.0.0.1]/", Some("::ffff:10.0.0.1")),
            // The C library parses these as addresses.
            ("http://127.1/", None),
            ("http://2130706433/", None),
            ("http://0x7f000001/", None),
            ("http://example.com/", None),
        ];
        for (uri, address) in table {
            let found = literal(&uri.parse().unwrap());
            assert_eq!(found, address.map(|address| address.parse().unwrap()), "{uri}");
        }
    }

    #[test]
    fn connects_only_to_permitted_addresses() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            let addresses = texts.iter().map(|text| text.parse::<IpAddr>().unwrap());
            addresses.map(|address| (address, 0).into()).collect()
        };
        let filter_permitted = |texts| filter_permitted(addresses(texts), &UriAddresses::default());
        assert_eq!(filter_permitted(&[]), Ok(vec![]));
        assert_eq!(
            filter_permitted(&["10.0.0.1", "1.1.1.1", "::1", "2a00::1"]),
            Ok(addresses(&["1.1.1.1", "2a00::1"]))
        );
        let refused = addresses(&["10.0.0.1", "::1"])
            .iter()
            .map(SocketAddr::ip)
            .collect();
        assert_eq!(filter_permitted(&["10.0.0.1", "::1"]), Err(refused));
    }

    #[test]
    fn errors_contain_only_literal_addresses() {
        let refused = |literal, named_by| ForbiddenAddress { literal, named_by }.to_string();
        let address = "10.0.0.1".parse().ok();
        let table = [
            (
                refused(None, NamedBy::Uri),
                "the host resolves to an address that a uri may not reach; name a Service",
            ),
            (
                refused(address, NamedBy::Uri),
                "10.0.0.1 is an address that a uri may not reach; name a Service",
            ),
            (
                refused(None, NamedBy::Service),
                "the host resolves to an address that no Service may point to: loopback",
            ),
        ];
        for (message, beginning) in table {
            assert!(message.starts_with(beginning), "{message}");
        }
    }

    #[tokio::test]
    async fn rejects_hosts_that_resolve_to_loopback() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let names = Names::of_system().unwrap();
        let connect = async |permitted: UriAddresses, named_by, host: &str| {
            let uri = format!("http://{host}:{port}/").parse().unwrap();
            let origin = ConnectionContext {
                permitted: Arc::new(Permitted::new(permitted, named_by)),
                names: names.clone(),
                sockets: Pool::new(2),
                namespace: "shop".into(),
            };
            let tls = ClientConfig::builder()
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            let connected = Connector::new(origin, tls).call(uri).await;
            connected
                .map(drop)
                .map_err(|error| crate::causes::with_causes(&*error))
        };
        let forbidden = "that a uri may not reach";
        let hosts = [
            ("127.0.0.1", forbidden, true),
            ("127.1", "is not a valid name", false),
            ("2130706433", "is not a valid name", false),
            ("0x7f.1", "is not a valid name", false),
            ("0x7f000001", "is not a valid name", false),
            ("localhost", forbidden, false),
            ("LocalHost", forbidden, false),
            ("[::ffff:127.0.0.1]", forbidden, true),
        ];
        for (host, part, is_literal) in hosts {
            let error = connect(UriAddresses::default(), NamedBy::Uri, host).await;
            let error = error.unwrap_err();
            assert!(error.contains(part), "{host}: {error}");
            assert_eq!(error.contains("127.0.0.1"), is_literal, "{host}: {error}");
        }
        let error = connect(UriAddresses::of_services(), NamedBy::Service, "localhost").await;
        let error = error.unwrap_err();
        assert!(error.contains("that no Service may point to"), "{error}");
        for host in ["127.0.0.1", "localhost"] {
            let connected = connect(UriAddresses::any(), NamedBy::Operator, host).await;
            assert_eq!(connected, Ok(()), "{host}");
        }
    }
}
