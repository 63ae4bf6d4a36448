//! Reads request bodies: each within a size, a time and a rate, and all of them within the memory budget.
//!
//! A body reserves memory as it arrives, for its namespace, which may take as much as it leaves free. Within a
//! namespace the same rule divides half of that by peer address, so that no single client can hold all of it. A
//! body without room waits for a moment and is then rejected. Records of batches are much larger than their bodies
//! and have a budget of their own, so that bodies in memory can wait for it without blocking each other.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::problem::Problem;
use crate::{
    cloudevents::{content_coding, transfer_coding},
    memory::{Pool, Reservation},
    server::{self, Peer},
};

/// Timeout for a client to send a request's body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of an incomplete body that have to arrive in a period, and the period: 1 KiB a second on average.
const RATE_BYTES: usize = 5 * 1024;
const RATE_TIME: Duration = Duration::from_secs(5);

/// Limits for draining a rejected body before the answer, in bytes and time.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Time that a body waits for room before it is rejected, and the interval between tries.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
const ROOM_PAUSE: Duration = Duration::from_millis(20);

/// Time that a batch waits for the room that its records need. Each batch takes a few milliseconds.
const BATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of memory per byte of body: for the body and for the event's record.
const BODY_FACTOR: usize = 2;

/// Memory of a batch's event until it is stored, in bytes, beside its text: the record's attributes and
/// allocations, and what the log needs to store it.
const EVENT_BYTES: usize = 320;

/// Fraction of the requests' budget, one in so many, for the records of batches.
const BATCH_SHARE: usize = 4;

/// Reads bodies within their limits.
pub(super) struct Bodies {
    max_body: usize,
    /// Memory by namespace.
    memory: Pool,
    /// Memory by namespace and peer.
    peers: Pool,
    batches: Pool,
    /// Reservation that `batches` divides.
    _batches: Option<Reservation>,
}

/// Owner of a body.
pub(super) struct Sender {
    namespace: Arc<str>,
    within: Arc<str>,
}

impl Sender {
    pub(super) fn new(namespace: &str, peer: Option<Peer>) -> Self {
        let within = match peer {
            Some(peer) => format!("{namespace} {}", peer.0.ip()).into(),
            None => namespace.into(),
        };
        Self {
            namespace: namespace.into(),
            within,
        }
    }
}

/// A body with its reservation, which is released on drop.
pub(super) struct ReservedBody {
    pub(super) bytes: Bytes,
    _room: Option<BodyReservation>,
}

struct BodyReservation {
    peer: Reservation,
    namespace: Reservation,
}

impl BodyReservation {
    fn try_grow(&mut self, bytes: usize) -> bool {
        self.peer.try_grow(bytes) && self.namespace.try_grow(bytes)
    }
}

impl Bodies {
    /// Creates a reader of bodies of at most `max_body` bytes each, with memory from this pool.
    pub(super) fn new(max_body: usize, memory: Pool) -> Self {
        let batches = memory.try_reserve(&"batches".into(), memory.capacity() / BATCH_SHARE);
        Self {
            max_body,
            peers: Pool::new(memory.capacity() / 2),
            batches: Pool::new(batches.as_ref().map_or(0, Reservation::bytes)),
            _batches: batches,
            memory,
        }
    }

    /// Reads a body.
    pub(super) async fn read(
        &self,
        sender: &Sender,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<ReservedBody, Problem> {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > self.max_body) {
            refuse_body(headers, body).await;
            return Err(self.too_large());
        }
        let announced = announced.unwrap_or_default();
        match timeout(READ_TIMEOUT, self.collect(sender, announced, &mut body)).await {
            Ok(Ok(held)) => Ok(held),
            // It would not arrive sooner now.
            Ok(Err(problem)) if problem.reason() == TOO_SLOW => Err(problem),
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

    async fn collect(
        &self,
        sender: &Sender,
        announced: usize,
        body: &mut Body,
    ) -> Result<ReservedBody, Problem> {
        let (mut first, mut rest, mut room) = (Bytes::new(), BytesMut::new(), None);
        let mut rate = Rate::new();
        while let Some(frame) = rate.watch(body.frame()).await? {
            let frame = frame.map_err(|error| incomplete(&error))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = first.len() + rest.len() + data.len();
            if length > self.max_body {
                return Err(self.too_large());
            }
            rate.note(data.len())?;
            if self.hold(&mut room, sender, length).await? {
                rate = Rate::new();
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve(announced.max(length));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
        let bytes = if rest.is_empty() { first } else { rest.freeze() };
        Ok(ReservedBody { bytes, _room: room })
    }

    /// Reserves room for `length` bytes; returns whether it had to wait.
    async fn hold(
        &self,
        room: &mut Option<BodyReservation>,
        sender: &Sender,
        length: usize,
    ) -> Result<bool, Problem> {
        let room = match room {
            Some(room) => room,
            None => {
                let none = |pool: &Pool, tenant| pool.try_reserve(tenant, 0).ok_or_else(too_many_bodies);
                room.insert(BodyReservation {
                    peer: none(&self.peers, &sender.within)?,
                    namespace: none(&self.memory, &sender.namespace)?,
                })
            }
        };
        let bytes = length.saturating_mul(BODY_FACTOR);
        if room.try_grow(bytes) {
            return Ok(false);
        }
        let end = Instant::now() + ROOM_TIMEOUT;
        while Instant::now() < end {
            sleep(ROOM_PAUSE).await;
            if room.try_grow(bytes) {
                return Ok(true);
            }
        }
        Err(too_many_bodies())
    }

    /// Waits for the estimated room of a batch's records, which [`BatchRoom::add`] enforces.
    pub(super) async fn room_for(
        &self,
        sender: &Sender,
        bytes: usize,
        events: usize,
    ) -> Result<BatchRoom, Problem> {
        let bytes = bytes.saturating_add(events.saturating_mul(EVENT_BYTES));
        let reserved = timeout(BATCH_TIMEOUT, self.batches.reserve(&sender.namespace, bytes)).await;
        Ok(BatchRoom {
            reservation: reserved.map_err(|_| too_many_events())?,
            used: 0,
        })
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

/// Room for the records of a batch.
pub(super) struct BatchRoom {
    reservation: Reservation,
    used: usize,
}

impl BatchRoom {
    /// Accounts for another record.
    pub(super) fn add(&mut self, record: &Bytes) -> Result<(), Problem> {
        self.used += record.len() + EVENT_BYTES / 2;
        if self.reservation.try_grow(self.used) {
            Ok(())
        } else {
            Err(too_many_events())
        }
    }
}

/// Reason of a rejection by [`Rate`].
const TOO_SLOW: &str = "body_too_slow";

/// Enforces a minimum rate on a body.
struct Rate {
    end: Instant,
    bytes: usize,
}

impl Rate {
    fn new() -> Self {
        Self {
            end: Instant::now() + RATE_TIME,
            bytes: 0,
        }
    }

    /// Waits for `next`, unless the body becomes too slow first.
    async fn watch<T>(&mut self, next: impl Future<Output = T>) -> Result<T, Problem> {
        tokio::pin!(next);
        loop {
            if let Ok(next) = timeout_at(self.end, &mut next).await {
                return Ok(next);
            }
            self.note(0)?;
        }
    }

    /// Notes the arrival of this many bytes.
    fn note(&mut self, bytes: usize) -> Result<(), Problem> {
        self.bytes += bytes;
        if Instant::now() < self.end {
            return Ok(());
        }
        if self.bytes < RATE_BYTES {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                TOO_SLOW,
                "The request is too slow",
                format!(
                    "{} bytes of the body came in {} s, and {RATE_BYTES} are the least",
                    self.bytes,
                    RATE_TIME.as_secs()
                ),
            ));
        }
        *self = Self::new();
        Ok(())
    }
}

fn too_many_bodies() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_bodies",
        "The router is busy",
        "the requests of this namespace or client that are being sent hold as much memory as they may; send the event \
         again",
    )
    .try_again()
}

fn too_many_events() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_events",
        "The router is busy",
        "the batches of this namespace that are being stored hold as much memory as they may; send the batch again, \
         or in parts",
    )
    .try_again()
}

fn incomplete(error: &axum::Error) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "incomplete_body",
        "The request is incomplete",
        format!("the body could not be read: {error}"),
    )
}

/// Drains an unread body before a rejection, unless its client has not begun to send it.
pub(super) async fn refuse_body(headers: &HeaderMap, body: Body) {
    if !server::waits_to_continue(headers) {
        drain(body).await;
    }
}

async fn drain(body: Body) {
    server::drain(body, DRAIN_BYTES, DRAIN_TIME).await;
}

/// Rejects an encoded body: see [`content_coding`].
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

    const KIB: usize = 1024;

    fn body(bytes: usize) -> Body {
        Body::from(vec![b'x'; bytes])
    }

    /// Bodies of at most 4 KiB, which may take 80 KiB less the part for batches.
    fn bodies() -> Bodies {
        Bodies::new(4 * KIB, Pool::new(80 * KIB))
    }

    fn sender(namespace: &str, peer: u8) -> Sender {
        Sender::new(namespace, Some(Peer(([10, 0, 0, peer], 1).into())))
    }

    async fn read(bodies: &Bodies, sender: &Sender, bytes: usize) -> Result<ReservedBody, Problem> {
        bodies.read(sender, &HeaderMap::new(), body(bytes)).await
    }

    /// Reads bodies until one is rejected.
    async fn fill(bodies: &Bodies, sender: &Sender) -> Vec<ReservedBody> {
        let mut held = Vec::new();
        loop {
            match read(bodies, sender, 4 * KIB).await {
                Ok(body) => held.push(body),
                Err(problem) => {
                    assert_eq!(problem.reason(), "too_many_bodies");
                    return held;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn peers_and_namespaces_leave_room_for_each_other() {
        let bodies = bodies();
        let one = fill(&bodies, &sender("a", 1)).await;
        assert_eq!(one.len(), 2, "a peer gets half of what a namespace gets");
        let other = fill(&bodies, &sender("a", 2)).await;
        assert!(!other.is_empty());
        let others = fill(&bodies, &sender("b", 1)).await;
        assert!(!others.is_empty());
        assert!(read(&bodies, &sender("c", 3), KIB).await.is_ok());
        drop((one, other, others));
        assert_eq!(bodies.memory.free(), 60 * KIB);
        let large = read(&bodies, &sender("a", 1), 4 * KIB + 1).await.err().unwrap();
        assert_eq!(large.reason(), "too_large");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_waits_for_room_before_it_is_refused() {
        let bodies = Arc::new(bodies());
        let held = fill(&bodies, &sender("a", 1)).await;
        let waiting = tokio::spawn({
            let bodies = bodies.clone();
            async move { read(&bodies, &sender("a", 1), 4 * KIB).await.is_ok() }
        });
        tokio::time::sleep(ROOM_TIMEOUT / 2).await;
        assert!(!waiting.is_finished());
        drop(held);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_ended_and_one_that_comes_is_not() {
        async fn read_paced(pieces: usize, size: usize) -> Option<&'static str> {
            let piece = move |_| async move {
                sleep(RATE_TIME / 5).await;
                Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; size]))
            };
            let stream = futures::StreamExt::then(futures::stream::iter(0..pieces), piece);
            let bodies = Bodies::new(KIB * KIB, Pool::new(16 * KIB * KIB));
            let body = Body::from_stream(stream);
            let read = bodies.read(&sender("a", 1), &HeaderMap::new(), body).await;
            read.err().map(|problem| problem.reason())
        }
        for (pieces, size, expected) in [
            (20, 2 * KIB, None),
            (4, 1, None),
            (20, 500, Some(TOO_SLOW)),
            (1000, 4 * KIB, Some("body_timeout")),
        ] {
            assert_eq!(read_paced(pieces, size).await, expected, "{pieces} of {size}");
        }
        let bodies = bodies();
        let begun = Bytes::from(vec![b'x'; 4 * KIB - 1]);
        let begun = futures::stream::iter([Ok::<_, std::io::Error>(begun)]);
        let stalled = Body::from_stream(futures::StreamExt::chain(begun, futures::stream::pending()));
        let began = Instant::now();
        let read = bodies.read(&sender("a", 1), &HeaderMap::new(), stalled).await;
        assert_eq!(read.err().map(|problem| problem.reason()), Some(TOO_SLOW));
        assert!(began.elapsed() <= 2 * RATE_TIME);
    }

    #[tokio::test]
    async fn a_body_in_many_pieces_is_put_together_and_counted_once() {
        let bodies = Bodies::new(KIB, Pool::new(80 * KIB));
        let pieces = (0..300_u32).map(|n| Ok::<_, std::io::Error>(Bytes::from(n.to_string())));
        let body = Body::from_stream(futures::stream::iter(pieces));
        let read = bodies
            .read(&sender("a", 1), &HeaderMap::new(), body)
            .await
            .ok()
            .unwrap();
        let expected: String = (0..300).map(|n: u32| n.to_string()).collect();
        assert_eq!(read.bytes, expected);
        assert_eq!(bodies.memory.free(), 60 * KIB - BODY_FACTOR * expected.len());
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
