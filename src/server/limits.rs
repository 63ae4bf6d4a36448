//! Limits of connections and of the heads of requests, and the answer to clients beyond them.

use std::{fmt, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::places::{ConnectionCounts, ConnectionPlaces};
use crate::memory::Pool;

/// Timeout for sending the head of a request, from its first byte on.
pub(super) const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(15);

/// Default timeout of idle connections. It must exceed the idle timeout of load balancers, the longest of which is
/// 10 minutes: if a connection closes while a balancer sends a request on it, the balancer responds with 502.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(650);

/// Maximum size of the head of a request, in bytes. An event of 64 KiB may consist of attributes only, and
/// percent-encoding triples its size.
pub(super) const MAX_HEAD: usize = 256 * 1024;

/// Maximum memory of a header field besides its name and value, in bytes: its entries in a [`http::HeaderMap`].
pub(super) const FIELD_BYTES: usize = 112;

/// Number of further places that an HTTP/2 connection takes. It has more buffers than an HTTP/1 connection, and many
/// requests.
pub(super) const HTTP2_PLACES: usize = 3;

/// Number of further places that a TLS connection takes, for its records that wait to be decrypted or sent.
pub(super) const TLS_PLACES: usize = 1;

/// Default number of connections, and default memory of heads.
const DEFAULT_CONNECTIONS: usize = 1024;
const DEFAULT_MEMORY: usize = 16 * 1024 * 1024;

/// Default timeout of a request, from its head to the end of the response.
const LONGEST_REQUEST: Duration = Duration::from_secs(180);

/// Limits of connections and heads. A peer may use as much as it leaves free. Servers with clones of the limits share
/// them.
#[derive(Clone)]
pub struct ServerLimits {
    /// Places of connections. An HTTP/1 connection takes one; HTTP/2 adds three, TLS adds one.
    pub places: Arc<ConnectionPlaces>,
    /// Memory for the heads of requests.
    pub memory: Pool,
    /// Timeout of a request, from its head to the end of the response.
    pub longest_request: Duration,
    /// Timeout of idle connections.
    pub idle_timeout: Duration,
    /// Builds the response for rejected clients.
    pub refuse: Arc<Refuse>,
}

/// Builds the response for rejected clients.
pub type Refuse = dyn Fn(ExhaustedResource) -> OverloadResponse + Send + Sync;

/// The exhausted resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExhaustedResource {
    /// Connections.
    Connections,
    /// Memory for heads of requests.
    Heads,
}

/// Body of a 503 response.
#[derive(Clone, Debug)]
pub struct OverloadResponse {
    /// Content type.
    pub content_type: &'static str,
    /// Content.
    pub body: Bytes,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            places: ConnectionPlaces::new(DEFAULT_CONNECTIONS, ConnectionCounts::default()),
            memory: Pool::new(DEFAULT_MEMORY),
            longest_request: LONGEST_REQUEST,
            idle_timeout: IDLE_TIMEOUT,
            refuse: Arc::new(|refusal| OverloadResponse {
                content_type: "text/plain",
                body: match refusal {
                    ExhaustedResource::Connections => "there are too many connections; try again\n",
                    ExhaustedResource::Heads => "there are too many requests; try again\n",
                }
                .into(),
            }),
        }
    }
}

impl fmt::Debug for ServerLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLimits")
            .field("connections", &self.places.capacity())
            .finish_non_exhaustive()
    }
}

impl OverloadResponse {
    pub(super) fn to_response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        let content_type = HeaderValue::from_static(self.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    pub(super) fn to_http1(&self) -> Bytes {
        let Self { content_type, body } = self;
        let length = body.len();
        let head = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {content_type}\r\nretry-after: 1\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat().into()
    }
}
