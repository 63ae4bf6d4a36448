//! Reads the bodies of requests: each within a size and a time, and all of them together within a size.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;
use crate::cloudevents::{content_coding, transfer_coding};

/// How long a client may take to send a request's body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a body that is refused is read and thrown away before the answer, and for how long.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// How many bytes of bodies are in memory at once, of all requests together; never less than four of the largest.
const MAX_TOGETHER: usize = 64 * 1024 * 1024;

/// What the bytes are counted in.
const UNIT: usize = 1024;

/// Reads bodies.
pub(super) struct Bodies {
    max_body: usize,
    room: Arc<Semaphore>,
}

/// A body, and its part of the room for all bodies, which it gives back when it is dropped.
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Bodies may have `max_body` bytes each.
    pub(super) fn new(max_body: usize) -> Self {
        let together = MAX_TOGETHER.max(max_body.saturating_mul(4));
        Self {
            max_body,
            room: Arc::new(Semaphore::new((together / UNIT).min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Reads one.
    pub(super) async fn read(&self, headers: &HeaderMap, mut body: Body) -> Result<Held, Problem> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.max_body as u64) {
            drain(body).await;
            return Err(self.too_large());
        }
        match tokio::time::timeout(READ_TIMEOUT, self.collect(&mut body)).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(problem)) => {
                drain(body).await;
                Err(problem)
            }
            Err(_) => Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "The request took too long",
                format!("the body was not complete within {} s", READ_TIMEOUT.as_secs()),
            )),
        }
    }

    async fn collect(&self, body: &mut Body) -> Result<Held, Problem> {
        let (mut first, mut rest, mut room) = (Bytes::new(), BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| incomplete(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = first.len() + rest.len() + data.len();
            if length > self.max_body {
                return Err(self.too_large());
            }
            self.hold(&mut room, length)?;
            if first.is_empty() {
                first = data;
            } else {
                rest.extend_from_slice(&data);
            }
        }
        let bytes = if rest.is_empty() {
            first
        } else {
            [&first[..], &rest[..]].concat().into()
        };
        Ok(Held { bytes, _room: room })
    }

    /// Holds room for so many bytes.
    fn hold(&self, room: &mut Option<OwnedSemaphorePermit>, length: usize) -> Result<(), Problem> {
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = length.div_ceil(UNIT).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let permit = self.room.clone().try_acquire_many_owned(more).map_err(|_| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_bodies",
                "The router is busy",
                "the requests that are being sent hold as much memory as they may together; send the event again",
            )
            .try_again()
        })?;
        match room {
            Some(room) => room.merge(permit),
            None => *room = Some(permit),
        }
        Ok(())
    }

    fn too_large(&self) -> Problem {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "The request is too large",
            format!("the body may have {} bytes at most", self.max_body),
        )
    }
}

fn incomplete(error: &axum::Error) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "incomplete_body",
        "The request is incomplete",
        format!("the body could not be read: {error}"),
    )
}

/// Reads on for a while before the answer: a client that is still sending when the connection is closed sees a broken
/// connection instead.
pub(super) async fn drain(mut body: Body) {
    let reading = async {
        let mut read = 0;
        while read < DRAIN_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whether all of it came makes no difference to the answer.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// Refuses a body that is coded: see [`content_coding`].
pub(super) fn check_codings(headers: &HeaderMap) -> Result<(), Problem> {
    if let Some(coding) = content_coding(headers) {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content_encoding",
            "The content coding is not supported",
            format!("Content-Encoding {coding:?} is not supported: send the body as it is"),
        ));
    }
    if let Some(coding) = transfer_coding(headers) {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "transfer_encoding",
            "The transfer coding is not supported",
            format!("Transfer-Encoding {coding:?} is not supported: send the body as it is, or chunked"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn body(bytes: usize) -> Body {
        Body::from(vec![b'x'; bytes])
    }

    #[tokio::test]
    async fn all_bodies_together_have_a_bound_and_give_their_room_back() {
        let bodies = Bodies {
            max_body: 4 * UNIT,
            room: Arc::new(Semaphore::new(6)),
        };
        let none = HeaderMap::new();
        let first = bodies.read(&none, body(4 * UNIT)).await.ok().unwrap();
        assert_eq!(first.bytes.len(), 4 * UNIT);
        let second = bodies.read(&none, body(UNIT + 1)).await.ok().unwrap();
        let refused = bodies.read(&none, body(1)).await.err().unwrap();
        assert_eq!(refused.reason(), "too_many_bodies");
        drop(second);
        assert!(bodies.read(&none, body(1)).await.is_ok());
        drop(first);
        assert!(bodies.read(&none, body(4 * UNIT)).await.is_ok());
        let large = bodies.read(&none, body(4 * UNIT + 1)).await.err().unwrap();
        assert_eq!(large.reason(), "too_large");
        assert_eq!(bodies.room.available_permits(), 6);
    }

    #[tokio::test]
    async fn a_body_in_many_pieces_is_put_together_and_counted_once() {
        let bodies = Bodies::new(1024);
        let pieces = (0..300_u32).map(|n| Ok::<_, std::io::Error>(Bytes::from(n.to_string())));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let read = bodies.read(&HeaderMap::new(), body).await.ok().unwrap();
        let expected: String = (0..300).map(|n: u32| n.to_string()).collect();
        assert_eq!(read.bytes, expected);
        assert_eq!(bodies.room.available_permits(), MAX_TOGETHER / UNIT - 1);
    }

    #[test]
    fn codings_that_change_the_bytes_are_refused() {
        let gzip = Some("content_encoding");
        let chunked = Some("transfer_encoding");
        let table = [
            (vec![], None),
            (vec![("content-encoding", "Identity")], None),
            (vec![("transfer-encoding", "chunked")], None),
            (vec![("content-encoding", "gzip")], gzip),
            (
                vec![("content-encoding", "identity"), ("content-encoding", "gzip")],
                gzip,
            ),
            (vec![("transfer-encoding", "gzip, chunked")], chunked),
            (
                vec![("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
                chunked,
            ),
        ];
        for (headers, expected) in table {
            let mut map = HeaderMap::new();
            for &(name, value) in &headers {
                map.append(name, HeaderValue::from_static(value));
            }
            assert_eq!(
                check_codings(&map).err().map(|problem| problem.reason()),
                expected,
                "{headers:?}"
            );
        }
    }
}
