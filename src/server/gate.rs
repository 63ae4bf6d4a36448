//! The gate in front of every service: accounts for the head of each request, or rejects the request.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tower::ServiceExt as _;

use super::{
    ClientNames, Peer,
    drain::{drain, waits_to_continue},
    limits::{ExhaustedResource, FIELD_BYTES},
    places::UnderWay,
    stream::Connection,
};
use crate::memory::Reservation;

/// Memory of a request apart from its head, in bytes: tasks, buffers, and a response.
const REQUEST_BYTES: usize = 4 * 1024;

/// Maximum size and time for discarding the body of a rejected request before responding.
const DRAIN_BYTES: usize = 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// A service for the requests of one connection.
pub(super) struct Gate {
    pub(super) service: axum::Router,
    pub(super) peer: Peer,
    /// Of a client that presented a certificate.
    pub(super) client: Option<ClientNames>,
    pub(super) connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for Gate {
    type Response = Response<HeldBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    /// hyper calls this for each head in turn, as soon as it is decoded. A head rejected here is freed before the
    /// next one takes memory.
    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let Connection {
            place,
            memory,
            tenant,
            refuse,
            ..
        } = &*self.connection;
        self.connection.note_request();
        let under_way = place.slot().begin();
        let closes = self.connection.had_large_head();
        let closes = move |response: &mut Response<HeldBody>| {
            if closes {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
        };
        let Some(held) = memory.try_reserve(tenant, memory_of(request.headers())) else {
            let answer = refuse(ExhaustedResource::Heads);
            let drains = request.version() < Version::HTTP_2 && !waits_to_continue(request.headers());
            let body = request.into_body();
            return Box::pin(async move {
                if drains {
                    drain(body, DRAIN_BYTES, DRAIN_TIME).await;
                }
                let mut response = answer.to_response().map(|body| HeldBody {
                    body,
                    held: Some((None, under_way)),
                });
                closes(&mut response);
                Ok(response)
            });
        };
        request.extensions_mut().insert(self.peer);
        if let Some(client) = &self.client {
            request.extensions_mut().insert(client.clone());
        }
        let answered = self.service.clone().oneshot(request.map(Body::new));
        Box::pin(async move {
            let mut response = answered.await?.map(|body| HeldBody {
                body,
                held: Some((Some(held), under_way)),
            });
            closes(&mut response);
            Ok(response)
        })
    }
}

/// Returns the approximate memory of a request with these headers, in bytes.
fn memory_of(headers: &HeaderMap) -> usize {
    let text: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    // Repeated fields are kept in a separate list, which doubles when it is full.
    let repeated = (headers.len() - headers.keys_len()).next_power_of_two();
    REQUEST_BYTES + text + (headers.capacity() + repeated) * FIELD_BYTES
}

/// The body of a response, which holds its request's reservation until the response is sent.
pub(super) struct HeldBody {
    body: Body,
    held: Option<(Option<Reservation>, UnderWay)>,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.held = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn small_fields_count_for_more_than_their_bytes() {
        let few = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("x"))]);
        assert!(memory_of(&few) < 2 * REQUEST_BYTES);
        let mut same = HeaderMap::new();
        let mut different = HeaderMap::new();
        for number in 0..7000 {
            same.append("a", HeaderValue::from_static("b"));
            let name = HeaderName::try_from(format!("a{number}")).unwrap();
            different.append(name, HeaderValue::from_static("b"));
        }
        assert!(memory_of(&same) > 7000 * 72);
        assert!(memory_of(&different) > 7000 * 104);
    }
}
