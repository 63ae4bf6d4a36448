//! A real HTTP server that events are delivered to.

use std::{
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, runtime::Handle, sync::Notify};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, ReservedPort, runtime};

/// Records every request and answers as it is told; 204 until then.
#[derive(Debug)]
pub(crate) struct Consumer {
    port: ReservedPort,
    shared: Arc<Shared>,
    server: Option<Server>,
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: Method,
    /// The path and the query.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// When the last byte of it was there.
    pub(crate) at: Instant,
}

impl Received {
    /// A header's value as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// How a request is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With a response, after a while.
    Response {
        status: StatusCode,
        headers: Vec<(String, String)>,
        body: Bytes,
        delay: Duration,
    },
    /// 200, and a body that comes a byte at a time and never ends.
    Drip { every: Duration },
    /// 200, and the beginning of a body; then the connection is closed.
    BreakOff,
    /// Not at all; the connection stays open.
    Hang,
    /// The connection is reset.
    Reset,
}

impl Answer {
    /// A response with a status and nothing else.
    pub(crate) fn status(code: u16) -> Self {
        let status = StatusCode::from_u16(code).expect("no HTTP status");
        Self::Response {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            delay: Duration::ZERO,
        }
    }

    /// With a header more.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        if let Self::Response { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// With a body.
    pub(crate) fn body(mut self, content: impl Into<Bytes>) -> Self {
        if let Self::Response { body, .. } = &mut self {
            *body = content.into();
        }
        self
    }

    /// Not before this time has gone by.
    pub(crate) fn after(mut self, time: Duration) -> Self {
        if let Self::Response { delay, .. } = &mut self {
            *delay = time;
        }
        self
    }
}

impl Consumer {
    /// Listens on a loopback port of its own, on the runtime that it is called on, else on [`runtime`].
    pub(crate) fn start() -> Self {
        let shared = Shared {
            received: Mutex::default(),
            arrived: Condvar::new(),
            policy: Mutex::new(Box::new(|_| Answer::status(204))),
            in_flight: Mutex::default(),
        };
        let mut consumer = Self {
            port: ReservedPort::new(),
            shared: Arc::new(shared),
            server: None,
        };
        consumer.restart();
        consumer
    }

    /// Where it listens, or does not.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Its URL, with `/` for a path.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address())
    }

    /// Answers everything from now on like this.
    pub(crate) fn answer(&self, answer: Answer) {
        self.answer_by(move |_| answer.clone());
    }

    /// Decides on each request from now on.
    pub(crate) fn answer_by(&self, policy: impl FnMut(&Received) -> Answer + Send + 'static) {
        *lock(&self.shared.policy) = Box::new(policy);
    }

    /// What has arrived so far, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Looks at what has arrived so far, in order, without a copy of it. Nothing arrives meanwhile.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&[Received]) -> T) -> T {
        look(&lock(&self.shared.received))
    }

    /// Waits until at least so many requests have arrived, and returns all that have.
    #[track_caller]
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Received> {
        self.wait_until(PATIENCE, |received| received.len() >= count)
    }

    /// Waits until what has arrived satisfies the condition, and returns it.
    #[track_caller]
    pub(crate) fn wait_until(&self, timeout: Duration, holds: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        let end = Instant::now() + timeout;
        let mut received = lock(&self.shared.received);
        while !holds(&received) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let summary: Vec<_> = received
                    .iter()
                    .map(|one| format!("{} {} {:?}", one.method, one.target, one.headers))
                    .collect();
                drop(received);
                panic!(
                    "after {timeout:?} {} requests had arrived:\n{}",
                    summary.len(),
                    summary.join("\n")
                );
            }
            received = self
                .shared
                .arrived
                .wait_timeout(received, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        received.clone()
    }

    /// The most requests that were under way at once.
    pub(crate) fn most_in_flight(&self) -> usize {
        lock(&self.shared.in_flight).most
    }

    /// Closes the port and every connection: connecting is refused from here on. The port stays reserved.
    pub(crate) fn stop(&mut self) {
        if let Some(Server { stop, ended }) = self.server.take() {
            stop.cancel();
            let _ = ended.recv(); // an error, once everything that holds the other end is gone
        }
    }

    /// Listens again, on the same port.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.stop();
        let listener = TcpListener::bind(self.address()).expect("cannot listen on a port that is reserved");
        listener
            .set_nonblocking(true)
            .expect("cannot make a listener non-blocking");
        let _context = Handle::try_current().is_err().then(|| runtime().enter());
        let listener = tokio::net::TcpListener::from_std(listener).expect("cannot hand a listener to tokio");

        let stop = CancellationToken::new();
        let (alive, ended) = mpsc::channel::<Infallible>();
        let (shared, stopped) = (Arc::clone(&self.shared), stop.clone());
        let accept = async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                let connection = serve(stream, Arc::clone(&shared));
                let (stopped, alive) = (stopped.clone(), alive.clone());
                tokio::spawn(async move {
                    stopped.run_until_cancelled_owned(connection).await;
                    drop(alive);
                });
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
        self.server = Some(Server { stop, ended });
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[derive(Debug)]
struct Server {
    stop: CancellationToken,
    ended: mpsc::Receiver<Infallible>,
}

type Policy = Box<dyn FnMut(&Received) -> Answer + Send>;

struct Shared {
    received: Mutex<Vec<Received>>,
    arrived: Condvar,
    policy: Mutex<Policy>,
    in_flight: Mutex<InFlight>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct InFlight {
    now: usize,
    most: usize,
}

/// Counts a request as under way until it is dropped.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn new(shared: &Arc<Shared>) -> Self {
        let mut in_flight = lock(&shared.in_flight);
        in_flight.now += 1;
        in_flight.most = in_flight.most.max(in_flight.now);
        drop(in_flight);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        lock(&self.0.in_flight).now -= 1;
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let reset = Arc::new(Notify::new());
    let service = {
        let reset = Arc::clone(&reset);
        service_fn(move |request| respond(request, Arc::clone(&shared), Arc::clone(&reset)))
    };
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = &mut connection => {} // an error is the client's to see, and the test's to expect
        () = reset.notified() => {
            let stream = connection.into_parts().io.into_inner();
            let _ = stream.set_zero_linger(); // so that dropping it sends RST, not FIN
        }
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn respond(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    reset: Arc<Notify>,
) -> Result<Response<Body>, hyper::Error> {
    let _under_way = UnderWay::new(&shared);
    let (head, body) = request.into_parts();
    let received = Received {
        method: head.method,
        target: head
            .uri
            .path_and_query()
            .map_or_else(String::new, ToString::to_string),
        headers: head.headers,
        body: body.collect().await?.to_bytes(),
        at: Instant::now(),
    };
    let answer = (lock(&shared.policy))(&received);
    lock(&shared.received).push(received);
    shared.arrived.notify_all();

    match answer {
        Answer::Response {
            status,
            headers,
            body,
            delay,
        } => {
            tokio::time::sleep(delay).await;
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response
                .body(Full::new(body).map_err(|never| match never {}).boxed_unsync())
                .expect("the test asks for a valid response"))
        }
        Answer::Drip { every } => Ok(Response::new(drip(every))),
        Answer::BreakOff => Ok(Response::new(break_off())),
        Answer::Hang => std::future::pending().await,
        Answer::Reset => {
            reset.notify_one();
            std::future::pending().await
        }
    }
}

/// A byte at a time, for ever.
fn drip(every: Duration) -> Body {
    let bytes = stream::repeat(()).then(move |()| async move {
        tokio::time::sleep(every).await;
        Ok(Frame::data(Bytes::from_static(b".")))
    });
    BodyExt::boxed_unsync(StreamBody::new(bytes))
}

/// A beginning, and an error, at which the server closes the connection.
fn break_off() -> Body {
    let beginning = stream::iter([Ok(Frame::data(Bytes::from_static(b"a beginning")))]);
    let error = stream::once(async {
        // The server sends what it has when there is nothing more yet.
        tokio::task::yield_now().await;
        Err(io::Error::other("the test closes the connection"))
    });
    BodyExt::boxed_unsync(StreamBody::new(beginning.chain(error)))
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
