//! HTTP endpoints: pooled connections, no redirects, every wait bounded.
//!
//! [`HttpSender`] posts to an [`HttpTarget`] through [`connector`] and [`names`]; [`status`] interprets status codes,
//! [`replies`] reads events from an answer, [`signature`] signs requests, [`token_source`] gets the tokens of Sinks with an
//! authorization server, [`stage`] distinguishes a busy router from a failing Sink.

mod addresses;
mod connector;
mod hidden;
mod names;
mod oauth2;
mod replies;
mod signature;
mod stage;
mod status;
mod target;
mod tls_error;
mod token_source;
mod traced;
mod uri_addresses;

pub use addresses::Addresses;
pub use replies::{Replies, UnusableReply};
pub use target::{HttpTarget, TargetError};
pub use uri_addresses::UriAddresses;

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, header, response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{self, connect::capture_connection};

use self::{
    stage::{AttemptStage, Lack},
    target::Targets,
    token_source::TokenFailure,
    traced::Traced,
};
use super::{
    answer::Answer,
    client_error::ClientError,
    outgoing::{Outgoing, SendPurpose},
    verdict::Verdict,
};
use crate::{
    causes::with_causes,
    cloudevents::{HttpMessage, is_batch, is_event},
    intake::Descendants,
    memory::Pool,
    routing::{Authorities, HttpEndpoint},
    telemetry::{Admitted, Burst, DeliveryAttempt, Tracer},
};

/// Maximum bytes of an answer that are read so that its connection can be reused.
const MAX_ANSWER: usize = 64 * 1024;

/// Maximum bytes of an answer that are kept to explain a failure.
const MAX_EXCERPT: usize = 1024;

/// Memory of an attempt in addition to its event, in bytes: the request, the connection's buffers, and their tasks.
pub const ATTEMPT_OVERHEAD: usize = 24 * 1024;

/// Memory of a reply as a multiple of its size: the body and the records made from it. A batch of small events takes
/// more memory as records, each with its own overhead, than as text.
const REPLY_COST: usize = 3;
const BATCH_COST: usize = 10;

/// Default memory for answers.
const ANSWERS: usize = 256 * 1024 * 1024;

/// Posts events to HTTP endpoints.
#[derive(Clone)]
pub struct HttpSender {
    targets: Targets,
    max_reply: usize,
    /// Memory for replies, by namespace.
    answers: Pool,
    descendants: Descendants,
    tracer: Tracer,
    /// Limits the log lines about postponed attempts.
    postponed: Arc<Mutex<Burst>>,
}

impl HttpSender {
    /// See [`super::Client::new`].
    pub(super) fn new(max_reply: usize, addresses: Addresses) -> Result<Self, ClientError> {
        Ok(Self {
            targets: Targets::new(addresses)?,
            max_reply,
            answers: Pool::new(ANSWERS),
            descendants: Descendants::default(),
            tracer: Tracer::default(),
            postponed: Arc::default(),
        })
    }

    pub(super) fn with_sockets(self, sockets: Pool) -> Self {
        Self {
            targets: self.targets.with_sockets(sockets),
            ..self
        }
    }

    pub(super) fn with_answers(self, answers: Pool) -> Self {
        Self { answers, ..self }
    }

    pub(super) fn counting(self, descendants: Descendants) -> Self {
        Self { descendants, ..self }
    }

    pub(super) fn traced(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Logs how many lines were suppressed since the last line of their kind, once their interval is over.
    pub(super) fn log_suppressed(&self, now: Instant) {
        self.targets.log_suppressed(now);
        if let Some(suppressed) = self.postponed().overdue(now) {
            tracing::warn!(
                held_back = suppressed,
                of = "postponed attempts",
                "log lines suppressed"
            );
        }
    }

    pub(super) fn target(
        &self,
        namespace: &str,
        endpoint: &HttpEndpoint,
        authorities: &Authorities,
    ) -> Result<HttpTarget, TargetError> {
        self.targets.target(namespace, endpoint, authorities)
    }

    /// Makes one attempt, in a span of its own.
    pub(super) async fn send(
        &self,
        target: &HttpTarget,
        outgoing: &Outgoing<'_>,
        timeout: Duration,
    ) -> Answer {
        let &Outgoing {
            event,
            purpose,
            trigger,
            broker,
            number,
        } = outgoing;
        let mut message = event.to_http(target.mode());
        if purpose == SendPurpose::Delivery {
            let reply = HeaderValue::from_static("reply");
            message.headers.insert("prefer", reply);
        }
        let attempt = DeliveryAttempt {
            event,
            trigger,
            broker,
            target: target.uri(),
            number,
            is_dead_letter: purpose == SendPurpose::DeadLetter,
        };
        let traced = Traced::begin(&self.tracer, &attempt);
        traced.set_headers(&mut message.headers);
        let signer = target.signer();
        signer.set_headers(&mut message.headers, event, &message.body, SystemTime::now());
        let answer = self.post(target, message, timeout).await;
        traced.end(answer)
    }

    /// Makes one attempt, which ends after `timeout` at the latest.
    async fn post(&self, target: &HttpTarget, message: HttpMessage, timeout: Duration) -> Answer {
        let deadline = tokio::time::Instant::now() + timeout;
        let answer = match authorized(target, deadline, timeout).await {
            Ok(target) => self.post_by(&target, message, deadline, timeout).await,
            Err(answer) => answer,
        };
        if answer.verdict == Verdict::RouterBusy {
            self.log_postponed(target, &answer.detail);
        }
        answer
    }

    /// Posts with the target's credentials before `deadline`. `timeout` is the attempt's.
    async fn post_by(
        &self,
        target: &HttpTarget,
        message: HttpMessage,
        deadline: tokio::time::Instant,
        timeout: Duration,
    ) -> Answer {
        let mut request = Request::new(Full::new(message.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.uri().clone();
        *request.headers_mut() = message.headers;
        let is_empty = request.body().is_end_stream();
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("weir/", env!("CARGO_PKG_VERSION"))),
        );
        // Replies are not decompressed.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if is_empty {
            // hyper omits it, and some servers then answer 411 (RFC 9110, section 8.6).
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        target.set_headers(headers);
        let stage = Arc::new(AttemptStage::new(capture_connection(&mut request)));
        let exchange = stage.clone().of(self.exchange(target, request, &stage));
        match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => match stage::busy(&error) {
                Some(detail) => Answer::router_busy(detail),
                None => Answer::none(tls_error::explain(&error).unwrap_or_else(|| with_causes(&error))),
            },
            Err(_) => match stage.lacks() {
                Some(lacking) => {
                    Answer::router_busy(format!("the router is busy: {lacking} within {timeout:?}"))
                }
                None => Answer::none(format!("no complete answer within {timeout:?}")),
            },
        }
    }

    fn log_postponed(&self, target: &HttpTarget, error: &str) {
        if let Some(Admitted { held_back }) = self.postponed().admit(Instant::now()) {
            let (namespace, uri) = (&*target.namespace, target.uri());
            tracing::warn!(namespace, %uri, error, held_back, "postponed a delivery attempt");
        }
    }

    fn postponed(&self) -> MutexGuard<'_, Burst> {
        // No panic under the lock leaves the counts half changed.
        self.postponed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn exchange(
        &self,
        target: &HttpTarget,
        request: Request<Full<Bytes>>,
        stage: &AttemptStage,
    ) -> Result<Answer, legacy::Error> {
        let (head, body) = target.http().request(request).await?.into_parts();
        if matches!(head.status, StatusCode::OK | StatusCode::CREATED) && is_event(&head.headers) {
            return Ok(self.reply(target, head, body, stage).await);
        }
        let retry_after = head
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| status::retry_after(value.to_str().ok()?, SystemTime::now()));
        if head.status == StatusCode::UNAUTHORIZED {
            target.token_rejected();
        }
        let excerpt = excerpt(target, body).await;
        let detail = if excerpt.is_empty() {
            head.status.to_string()
        } else {
            format!("{}: {excerpt}", head.status)
        };
        Ok(Answer {
            verdict: status::verdict(head.status, target.sends_credentials()),
            code: Some(head.status.as_u16()),
            retry_after,
            ..Answer::none(detail)
        })
    }

    /// Reads an answer that is an event. A truncated answer is retried, since the rest is unknown. Memory for an answer
    /// with a length is reserved before it is read; one without a length reserves memory as it is read, and is dropped
    /// if none is left.
    async fn reply(
        &self,
        target: &HttpTarget,
        head: response::Parts,
        mut body: Incoming,
        stage: &AttemptStage,
    ) -> Answer {
        let cost = if is_batch(&head.headers) {
            BATCH_COST
        } else {
            REPLY_COST
        };
        let length = match body.size_hint().exact() {
            Some(length) => usize::try_from(length).unwrap_or(usize::MAX),
            None => 0,
        };
        if length > self.max_reply {
            return self.too_large(&head);
        }
        stage.wait_for(Lack::Memory);
        let room = self
            .answers
            .reserve(&target.namespace, length.saturating_mul(cost));
        let mut memory = room.await;
        stage.granted();
        // Frames share buffers larger than themselves, so they are copied.
        let mut read = BytesMut::with_capacity(length);
        while let Some(frame) = body.frame().await {
            let data = match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => data,
                Ok(Err(_trailers)) => continue,
                Err(error) => {
                    return Answer::none(format!("{}: the reply is truncated: {error}", head.status));
                }
            };
            let length = read.len() + data.len();
            if length > self.max_reply {
                return self.too_large(&head);
            }
            if !memory.try_grow(length.saturating_mul(cost)) {
                return Answer::router_busy("the router is busy: no memory for the Sink's reply".to_owned());
            }
            read.extend_from_slice(&data);
        }
        let replies = Replies {
            headers: head.headers,
            body: read.freeze(),
            target: target.clone(),
            descendants: self.descendants.clone(),
            _memory: memory,
        };
        with_reply(head.status, Ok(replies))
    }

    fn too_large(&self, head: &response::Parts) -> Answer {
        let problem = format!("it is larger than {} bytes", self.max_reply);
        with_reply(head.status, Err(problem))
    }
}

/// Returns the target with the token of its authorization server, if it has one.
async fn authorized(
    target: &HttpTarget,
    deadline: tokio::time::Instant,
    timeout: Duration,
) -> Result<Cow<'_, HttpTarget>, Answer> {
    match target.token_source() {
        None => Ok(Cow::Borrowed(target)),
        Some(source) => {
            let token = source.token(deadline, timeout).await.map_err(no_token)?;
            Ok(Cow::Owned(target.with_token(token)))
        }
    }
}

fn no_token(failure: TokenFailure) -> Answer {
    let TokenFailure {
        detail,
        verdict,
        retry_after,
    } = failure;
    Answer {
        verdict,
        retry_after,
        ..Answer::none(detail)
    }
}

fn with_reply(status: StatusCode, reply: Result<Replies, String>) -> Answer {
    Answer {
        verdict: Verdict::Delivered,
        code: Some(status.as_u16()),
        reply: Some(reply),
        ..Answer::none(status.to_string())
    }
}

/// Drains the body so that the connection can be reused, and returns its beginning. A truncated or long body does not
/// change the meaning of the status; one that is incomplete when the attempt times out counts as no answer.
async fn excerpt(target: &HttpTarget, mut body: Incoming) -> String {
    let most = MAX_EXCERPT + target.longest_secret();
    let mut kept = BytesMut::new();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            read += data.len();
            let room = most - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        if read > MAX_ANSWER {
            break;
        }
    }
    let mut text = target.hide_secrets(String::from_utf8_lossy(&kept).into_owned());
    if kept.len() == most {
        // It may end within a secret.
        let whole = text.len() - target.longest_secret().min(text.len());
        text.truncate(text.floor_char_boundary(whole));
    }
    text.truncate(text.floor_char_boundary(MAX_EXCERPT));
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures::future::join_all;
    use http::HeaderMap;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        destination::Blame,
        routing::{ClientCredentials, ServiceName},
    };

    const PATIENCE: Duration = Duration::from_secs(30);
    /// Long enough to connect on a busy machine.
    const SHORT: Duration = Duration::from_secs(2);

    fn client() -> HttpSender {
        drop(rustls::crypto::ring::default_provider().install_default());
        HttpSender::new(1024 * 1024, Addresses::any()).unwrap()
    }

    fn target(client: &HttpSender, namespace: &str, address: SocketAddr) -> HttpTarget {
        let endpoint = HttpEndpoint::new(format!("http://{address}/"), None);
        let target = client.target(namespace, &endpoint, &Authorities::default());
        target.unwrap()
    }

    async fn post(client: &HttpSender, target: &HttpTarget, timeout: Duration) -> Answer {
        let message = HttpMessage {
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"data"),
        };
        client.post(target, message, timeout).await
    }

    fn is_busy(answer: &Answer) -> bool {
        answer.verdict == Verdict::RouterBusy
    }

    /// A Sink that sends this to each connection, and then nothing more.
    async fn sink(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.read(&mut request).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn a_token_endpoint_is_reached_like_a_uri() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let addresses = Addresses {
            uris: UriAddresses::default(),
            ..Addresses::any()
        };
        let client = HttpSender::new(1024, addresses).unwrap();
        let service = ServiceName {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
        };
        let address = sink("HTTP/1.1 204 No Content\r\n\r\n").await;
        let endpoint = HttpEndpoint {
            client_credentials: Some(ClientCredentials {
                token_url: "https://127.0.0.1:1/token?a".to_owned(),
                id: "weir".to_owned().into(),
                secret: "s3cret".to_owned().into(),
                version: String::new(),
                scopes: Vec::new(),
                audience: None,
            }),
            ..HttpEndpoint::new(format!("http://{address}/"), Some(service))
        };
        let target = client.target("shop", &endpoint, &Authorities::default()).unwrap();
        let answer = post(&client, &target, PATIENCE).await;
        assert_eq!(answer.verdict, Verdict::Failed(Blame::Silent));
        let begin = "no token from https://127.0.0.1:1/token: ";
        assert!(answer.detail.starts_with(begin), "{}", answer.detail);
        assert!(
            answer
                .detail
                .contains("127.0.0.1 is an address that a uri may not reach"),
            "{}",
            answer.detail
        );
    }

    #[tokio::test]
    async fn a_namespace_without_free_sockets_is_busy_and_others_are_not() {
        let sockets = Pool::new(16);
        let client = client().with_sockets(sockets.clone());
        let hanging = sink("").await;
        let targets = [
            target(&client, "greedy", hanging),
            target(&client, "modest", hanging),
        ];
        // A namespace may hold a quarter of 16 sockets.
        let holding = join_all((0..4).map(|_| post(&client, &targets[0], PATIENCE)));
        let others = async {
            while sockets.free() > 12 {
                tokio::task::yield_now().await;
            }
            let greedy = join_all((0..4).map(|_| post(&client, &targets[0], SHORT))).await;
            (greedy, post(&client, &targets[1], SHORT).await)
        };
        let (greedy, modest) = tokio::select! {
            answers = others => answers,
            answers = holding => panic!("{answers:?} from a Sink that hangs"),
        };
        for answer in greedy {
            assert!(is_busy(&answer), "{}", answer.detail);
            assert!(
                answer.detail.contains("no connection was free"),
                "{}",
                answer.detail
            );
        }
        assert!(!is_busy(&modest), "{}", modest.detail);
        assert!(modest.detail.contains("no complete answer"), "{}", modest.detail);
        // Connections close with their attempts.
        tokio::time::timeout(PATIENCE, async {
            while sockets.free() < 16 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn idle_connections_close_before_a_waiting_attempt_times_out() {
        let sockets = Pool::new(2);
        let client = client().with_sockets(sockets.clone());
        let [first, second] = [
            sink("HTTP/1.1 204 No Content\r\n\r\n").await,
            sink("HTTP/1.1 204 No Content\r\n\r\n").await,
        ];
        for address in [first, second, first] {
            // One namespace may not take a second socket while none is left for another.
            let target = target(&client, "shop", address);
            let answer = post(&client, &target, PATIENCE).await;
            assert_eq!(answer.verdict, Verdict::Delivered, "{}", answer.detail);
        }
    }

    #[tokio::test]
    async fn a_reply_without_memory_is_postponed_and_a_large_one_is_reported() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/cloudevents+json\r\n";
        let table = [
            // Its body never ends, and it holds the memory for its announced length.
            (
                format!("{HEAD}content-length: 1000\r\n\r\n"),
                16 * 1024,
                "no complete answer",
                false,
            ),
            // A namespace may hold half of a pool, and that is taken.
            (
                format!("{HEAD}content-length: 1000\r\n\r\n"),
                0,
                "no complete answer",
                false,
            ),
            (
                format!("{HEAD}content-length: 2000000\r\n\r\n"),
                16 * 1024,
                "200 OK",
                false,
            ),
            (
                format!("{HEAD}transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n"),
                16 * 1024,
                "no complete",
                false,
            ),
        ];
        for (answer, memory, detail, busy) in table {
            let client = client().with_answers(Pool::new(memory));
            let address = sink(Box::leak(answer.into_boxed_str())).await;
            let answer = post(&client, &target(&client, "shop", address), SHORT).await;
            assert!(answer.detail.contains(detail), "{}", answer.detail);
            assert_eq!(is_busy(&answer), busy, "{}", answer.detail);
        }
        // All memory is held by another namespace.
        let answers = Pool::new(6000);
        let held = ["a", "b"].map(|name| answers.try_reserve(&name.into(), 3000).unwrap());
        let client = client().with_answers(answers);
        for body in [
            "content-length: 1000\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n",
        ] {
            let address = sink(Box::leak(format!("{HEAD}{body}").into_boxed_str())).await;
            let answer = post(&client, &target(&client, "shop", address), SHORT).await;
            assert!(is_busy(&answer), "{body}: {}", answer.detail);
            assert!(
                answer.detail.contains("memory for the Sink's"),
                "{}",
                answer.detail
            );
        }
        drop(held);
    }
}
