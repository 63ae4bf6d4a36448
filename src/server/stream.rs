//! A connection's stream, which accounts for the memory of every head.
//!
//! HTTP/1: the bytes up to the start of a request are its head, which hyper keeps in one buffer. HTTP/2: the frames
//! show how much of a head has arrived, and heads are decoded as they arrive. Both reserve memory from the pool
//! under the peer's address. A head without room waits, and is then rejected.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    frames::Frames,
    limits::{ExhaustedResource, FIELD_BYTES, HEADER_READ_TIMEOUT, HTTP2_PLACES, MAX_HEAD, Refuse},
    places::ConnectionPlace,
};
use crate::memory::{Pool, Reservation};

/// Maximum size of a read, in bytes. hyper's buffer of a connection grows to twice this size, and stays.
const CHUNK: usize = 16 * 1024;

/// Size up to which an HTTP/1 head is not accounted, in bytes: every connection may use this much.
pub(super) const FREE: usize = 16 * 1024;

/// Maximum total size of heads passed to hyper at once, in bytes on the wire. hyper decodes everything it receives
/// before it delivers the first head.
const HEADS_AT_ONCE: usize = 16 * 1024;

/// Maximum memory of a decoded head. Its size is limited, and each field counts as 32 bytes more than its length
/// (RFC 9113, section 6.5.2), which is at least one.
const MAX_DECODED: usize = MAX_HEAD / 33 * FIELD_BYTES;

/// Time for which a head waits for room, and the interval of its checks.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);
const ROOM_PAUSE: Duration = Duration::from_millis(25);

/// Maximum size and time for discarding input after a rejection. Closing a connection with unread data resets it,
/// and the client may not see the response.
const DRAIN_BYTES: usize = 2 * MAX_HEAD;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Start of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// State shared by a connection's stream and its requests.
pub(super) struct Connection {
    pub(super) place: ConnectionPlace,
    pub(super) memory: Pool,
    pub(super) tenant: Arc<str>,
    pub(super) refuse: Arc<Refuse>,
    /// Number of requests started.
    requests: AtomicU64,
    /// Number of times the connection was polled.
    turns: AtomicU64,
    /// Whether the head of the current request left a large buffer behind.
    had_large_head: AtomicBool,
}

impl Connection {
    pub(super) fn new(place: ConnectionPlace, memory: Pool, tenant: Arc<str>, refuse: Arc<Refuse>) -> Self {
        Self {
            place,
            memory,
            tenant,
            refuse,
            requests: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            had_large_head: AtomicBool::new(false),
        }
    }

    pub(super) fn note_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the connection must be closed after the current request.
    pub(super) fn had_large_head(&self) -> bool {
        self.had_large_head.load(Ordering::Relaxed)
    }
}

enum Protocol {
    /// The number of bytes received so far, all of which match the HTTP/2 preface.
    Unknown(usize),
    Http1,
    Http2 {
        frames: Frames,
        /// The turn in which heads were last read, and how many bytes of them.
        turn: u64,
        read: usize,
    },
}

/// A stream that accounts for heads.
pub(super) struct MeteredStream<S> {
    stream: S,
    connection: Arc<Connection>,
    protocol: Protocol,
    /// Bytes of the head being read, and the number of requests before it.
    head: usize,
    after: u64,
    /// Deadline for completing the head.
    end: Option<Pin<Box<Sleep>>>,
    /// The reservation required before more is read, and the current one.
    needed: usize,
    held: Option<Reservation>,
    /// Input that waits for room, because hyper would decode it.
    unread: Bytes,
    waiting: Option<MemoryWait>,
    refused: Option<RejectedConnection>,
}

struct MemoryWait {
    end: Instant,
    pause: Pin<Box<Sleep>>,
}

struct RejectedConnection {
    answer: Bytes,
    end: Pin<Box<Sleep>>,
    drained: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> MeteredStream<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            connection,
            protocol: Protocol::Unknown(0),
            head: 0,
            after: 0,
            end: None,
            needed: 0,
            held: None,
            unread: Bytes::new(),
            waiting: None,
            refused: None,
        }
    }

    /// Ready once there is room for the current input. Returns an error if there is none for too long.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ()>> {
        loop {
            if self.hold() {
                self.waiting = None;
                return Poll::Ready(Ok(()));
            }
            let waiting = self.waiting.get_or_insert_with(|| MemoryWait {
                end: Instant::now() + ROOM_TIMEOUT,
                pause: Box::pin(sleep(ROOM_PAUSE)),
            });
            ready!(waiting.pause.as_mut().poll(context));
            if Instant::now() >= waiting.end {
                return Poll::Ready(Err(()));
            }
            waiting.pause.as_mut().reset(Instant::now() + ROOM_PAUSE);
        }
    }

    fn hold(&mut self) -> bool {
        match &mut self.held {
            _ if self.needed == 0 => {
                self.held = None;
                true
            }
            Some(held) => held.try_grow(self.needed),
            None => {
                let Connection { memory, tenant, .. } = &*self.connection;
                self.held = memory.try_reserve(tenant, self.needed);
                self.held.is_some()
            }
        }
    }

    /// Whether hyper must process what it has before it gets more.
    fn is_enough(&self) -> bool {
        let now = self.connection.turns.load(Ordering::Relaxed);
        matches!(self.protocol, Protocol::Http2 { turn, read, .. } if turn == now && read >= HEADS_AT_ONCE)
    }

    /// Returns an error once a head is incomplete for too long.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let is_http2 = matches!(self.protocol, Protocol::Http2 { .. });
        if !is_http2 && self.after != self.connection.requests.load(Ordering::Relaxed) {
            // The last input completed the head.
            self.end = None;
        }
        let Some(end) = &mut self.end else {
            return Poll::Pending;
        };
        ready!(end.as_mut().poll(context));
        Poll::Ready(io::Error::new(
            io::ErrorKind::TimedOut,
            "a request's head was not complete in time",
        ))
    }

    /// Processes the bytes read.
    fn note(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Protocol::Unknown(matched) = self.protocol {
            let expected = &PREFACE[matched..];
            let common = expected.len().min(bytes.len());
            if bytes.is_empty() || expected[..common] != bytes[..common] {
                self.protocol = Protocol::Http1;
            } else if common < expected.len() {
                self.protocol = Protocol::Unknown(matched + common);
                self.begin_head();
                return Ok(());
            } else {
                if !self.connection.place.widen(HTTP2_PLACES) {
                    drop((self.connection.refuse)(ExhaustedResource::Connections));
                    return Err(no_room());
                }
                self.protocol = Protocol::Http2 {
                    frames: Frames::default(),
                    turn: 0,
                    read: 0,
                };
                return self.note(&bytes[common..]);
            }
        }
        let Protocol::Http2 { frames, turn, read } = &mut self.protocol else {
            self.note_http1(bytes.len());
            return Ok(());
        };
        let of_heads = frames.read(bytes);
        let now = self.connection.turns.load(Ordering::Relaxed);
        if *turn != now {
            (*turn, *read) = (now, 0);
        }
        *read += of_heads;
        let incomplete = frames.incomplete();
        self.needed = incomplete.saturating_mul(FIELD_BYTES).min(MAX_DECODED);
        if incomplete == 0 {
            (self.end, self.held) = (None, None);
        } else {
            self.begin_head();
        }
        Ok(())
    }

    fn note_http1(&mut self, length: usize) {
        let begun = self.connection.requests.load(Ordering::Relaxed);
        if self.after != begun {
            (self.after, self.head, self.end) = (begun, 0, None);
        }
        if self.connection.place.slot().oldest().is_some() {
            return;
        }
        self.head += length;
        self.begin_head();
        if self.head > FREE {
            // hyper's buffer grows by doubling. It lives as long as the connection, so the connection is closed
            // after the request.
            self.needed = self.needed.max(2 * self.head);
            self.connection.had_large_head.store(true, Ordering::Relaxed);
        }
    }

    fn begin_head(&mut self) {
        self.end
            .get_or_insert_with(|| Box::pin(sleep(HEADER_READ_TIMEOUT)));
    }

    /// Responds that there is no room, discards further input, and ends.
    fn poll_refused(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let Some(refused) = &mut self.refused else {
            return Poll::Pending;
        };
        while !refused.answer.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(context, &refused.answer)) {
                Ok(written) if written > 0 => drop(refused.answer.split_to(written)),
                Ok(_) | Err(_) => return Poll::Ready(no_room()),
            }
        }
        let mut space = [0; 4096];
        while refused.drained < DRAIN_BYTES && refused.end.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            refused.drained += buffer.filled().len();
        }
        Poll::Ready(no_room())
    }

    fn poll_read_chunk(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if buffer.remaining() <= CHUNK {
            ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        } else {
            let mut part = ReadBuf::new(buffer.initialize_unfilled_to(CHUNK));
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut part))?;
            let read = part.filled().len();
            buffer.advance(read);
        }
        self.note(&buffer.filled()[before..])?;
        if matches!(self.protocol, Protocol::Http2 { .. }) && !self.hold() {
            self.unread = Bytes::copy_from_slice(&buffer.filled()[before..]);
            buffer.set_filled(before);
        }
        Poll::Ready(Ok(()))
    }
}

fn no_room() -> io::Error {
    io::Error::other("there is no room for the connection's requests")
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused.is_some() {
            return this.poll_refused(context).map(Err);
        }
        if let Poll::Ready(error) = this.poll_end(context) {
            return Poll::Ready(Err(error));
        }
        loop {
            if ready!(this.poll_room(context)).is_err() {
                let answer = (this.connection.refuse)(ExhaustedResource::Heads);
                // HTTP/2 has no response to an incomplete request.
                if !matches!(this.protocol, Protocol::Http1) {
                    return Poll::Ready(Err(no_room()));
                }
                this.refused = Some(RejectedConnection {
                    answer: answer.to_http1(),
                    end: Box::pin(sleep(DRAIN_TIME)),
                    drained: 0,
                });
                return this.poll_refused(context).map(Err);
            }
            if !this.unread.is_empty() {
                let length = this.unread.len().min(buffer.remaining());
                buffer.put_slice(&this.unread.split_to(length));
                return Poll::Ready(Ok(()));
            }
            if this.is_enough() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(this.poll_read_chunk(context, buffer))?;
            if this.unread.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
