//! The connection to NATS: requests with a timeout, with one response or several. The client reconnects by itself, but
//! would buffer messages until then; requests here wait for the connection instead.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, Event, HeaderMap, Message, Request, RequestErrorKind, Subscriber,
    connection::State,
};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::log::LogError;

/// Interval at which a request checks whether the client has reconnected.
const POLL: Duration = Duration::from_millis(20);

/// Why a request to NATS failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NatsError {
    /// The stream does not exist or has no leader, or JetStream is disabled.
    #[error(
        "no server responds to {0}: the stream does not exist or has no leader, or JetStream is disabled"
    )]
    NoResponders(String),
    #[error("{0}")]
    NoAnswer(String),
    #[error(transparent)]
    Rejected(Rejection),
    #[error("unexpected response from NATS: {0}")]
    Unexpected(String),
    /// The message is larger than `max_payload`.
    #[error("the NATS server accepts messages of at most {0} bytes (max_payload)")]
    TooLarge(usize),
}

/// An error response of JetStream.
#[derive(Clone, Debug, Deserialize, thiserror::Error)]
#[error("{description} (JetStream error {err_code})")]
pub(super) struct Rejection {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

/// A connection to NATS.
pub(super) struct Session {
    client: Client,
    /// Number of times that the connection was lost.
    losses: watch::Receiver<u64>,
    /// Last error of the connection, reported apart from responses.
    reported: Arc<Mutex<Option<String>>>,
    place: PathBuf,
}

impl Session {
    /// Connects. `place` names the servers in errors.
    pub(super) async fn connect(
        options: ConnectOptions,
        urls: &[async_nats::ServerAddr],
        place: PathBuf,
    ) -> Result<Self, async_nats::ConnectError> {
        let (lost, losses) = watch::channel(0);
        let reported = Arc::new(Mutex::new(None));
        let report = reported.clone();
        let options = options.event_callback(move |event| {
            note(&event, &lost, &report);
            std::future::ready(())
        });
        Ok(Self {
            client: options.connect(urls).await?,
            losses,
            reported,
            place,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Returns the servers, for errors.
    pub(super) fn place(&self) -> PathBuf {
        self.place.clone()
    }

    /// Sends a request and waits for its response.
    pub(super) async fn request(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        wait: Duration,
    ) -> Result<Message, NatsError> {
        let request = Request::new().headers(headers).payload(payload).timeout(None);
        let answer = async {
            let answer = self.client.send_request(subject.to_owned(), request).await;
            answer.map_err(|e| self.failed(subject, e.kind(), &e.to_string()))
        };
        self.while_connected(subject, wait, answer).await
    }

    /// Publishes a message without waiting for a response.
    pub(super) async fn publish(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
        wait: Duration,
    ) -> Result<(), NatsError> {
        let published = async {
            let published = self
                .client
                .publish_with_headers(subject.to_owned(), headers, payload)
                .await;
            published.map_err(|e| NatsError::NoAnswer(e.to_string()))
        };
        self.while_connected(subject, wait, published).await
    }

    /// Sends a request, and calls `found` with each response until it returns false.
    pub(super) async fn request_many(
        &self,
        subject: &str,
        payload: Bytes,
        wait: Duration,
        mut found: impl FnMut(Message) -> Result<bool, NatsError> + Send,
    ) -> Result<(), NatsError> {
        let unanswered = |e: String| NatsError::NoAnswer(e);
        let all = async {
            let inbox = self.client.new_inbox();
            let mut answers: Subscriber = self
                .client
                .subscribe(inbox.clone())
                .await
                .map_err(|e| unanswered(e.to_string()))?;
            self.client
                .publish_with_reply(subject.to_owned(), inbox, payload)
                .await
                .map_err(|e| unanswered(e.to_string()))?;
            while let Some(answer) = answers.next().await {
                if answer.status.is_some_and(|status| status.as_u16() == 503) {
                    return Err(NatsError::NoResponders(subject.to_owned()));
                }
                if !found(answer)? {
                    return Ok(());
                }
            }
            Err(unanswered("the connection is closed".to_owned()))
        };
        self.while_connected(subject, wait, all).await
    }

    /// Waits for the connection, then for the action. Fails if the connection is lost, or after the timeout.
    pub(super) async fn while_connected<T>(
        &self,
        subject: &str,
        wait: Duration,
        action: impl Future<Output = Result<T, NatsError>>,
    ) -> Result<T, NatsError> {
        if wait.is_zero() {
            // A timeout polls its future once: the message would still be sent. After a pause of this process, the
            // server may no longer know its id.
            return Err(self.unanswered(subject, wait));
        }
        let connected = async {
            while !self.is_connected() {
                sleep(POLL).await;
            }
            let mut losses = self.losses.clone();
            losses.mark_unchanged();
            tokio::select! {
                done = action => done,
                _ = losses.changed() => Err(NatsError::NoAnswer("the connection was lost".to_owned())),
            }
        };
        timeout(wait, connected)
            .await
            .unwrap_or_else(|_| Err(self.unanswered(subject, wait)))
    }

    fn failed(&self, subject: &str, kind: RequestErrorKind, detail: &str) -> NatsError {
        match kind {
            RequestErrorKind::NoResponders => NatsError::NoResponders(subject.to_owned()),
            RequestErrorKind::MaxPayloadExceeded => NatsError::TooLarge(self.client.max_payload()),
            RequestErrorKind::InvalidSubject => NatsError::Unexpected(format!("{detail}: {subject}")),
            RequestErrorKind::TimedOut | RequestErrorKind::Other => NatsError::NoAnswer(detail.to_owned()),
        }
    }

    /// Returns the error of a request without a response. Includes the last reported error: the server does not respond
    /// to a request without permission, and reports the violation separately.
    fn unanswered(&self, subject: &str, wait: Duration) -> NatsError {
        let reported = self
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let reported = reported.map_or_else(String::new, |error| {
            format!("; last error of the connection: {error}")
        });
        let away = match self.client.connection_state() {
            State::Connected => format!("NATS did not respond to {subject} within {wait:?}"),
            _ => "not connected to NATS".to_owned(),
        };
        NatsError::NoAnswer(format!("{away}{reported}"))
    }
}

fn note(event: &Event, lost: &watch::Sender<u64>, reported: &Mutex<Option<String>>) {
    let report = |text| *reported.lock().unwrap_or_else(PoisonError::into_inner) = text;
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            report(None);
        }
        Event::Disconnected => {
            tracing::warn!("the connection to NATS was lost");
            lost.send_modify(|count| *count += 1);
        }
        Event::ServerError(error) => {
            tracing::warn!(%error, "NATS reports an error");
            report(Some(error.to_string()));
        }
        Event::ClientError(error) => {
            tracing::debug!(%error, "cannot reach NATS");
            report(Some(error.to_string()));
        }
        Event::SlowConsumer(_) => {
            tracing::warn!("messages from NATS were dropped because they were not read fast enough")
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => {}
    }
}

/// JetStream error codes.
mod codes {
    pub(super) const ACCOUNT_RESOURCES_EXCEEDED: u32 = 10002;
    pub(super) const INSUFFICIENT_RESOURCES: u32 = 10023;
    pub(super) const MEMORY_EXCEEDED: u32 = 10028;
    pub(super) const STORAGE_EXCEEDED: u32 = 10047;
    pub(super) const MESSAGE_TOO_LARGE: u32 = 10054;
    pub(super) const STORE_FAILED: u32 = 10077;
    pub(super) const HEADERS_TOO_LARGE: u32 = 10097;
    pub(super) const BATCH_TOO_LARGE: u32 = 10199;
}

impl NatsError {
    /// Returns the error if it is permanent; `None` if a retry may succeed.
    pub(super) fn lasting(&self) -> Option<LogError> {
        match self {
            Self::Rejected(rejection) => rejection.lasting(),
            Self::TooLarge(_) => Some(LogError::TooLarge(self.to_string())),
            Self::NoResponders(_) | Self::NoAnswer(_) | Self::Unexpected(_) => None,
        }
    }
}

impl Rejection {
    fn lasting(&self) -> Option<LogError> {
        let text = self.to_string();
        match self.err_code {
            codes::ACCOUNT_RESOURCES_EXCEEDED
            | codes::INSUFFICIENT_RESOURCES
            | codes::MEMORY_EXCEEDED
            | codes::STORAGE_EXCEEDED => Some(LogError::Full(format!(
                "{text}; free storage on the NATS servers, or raise the limits of the servers or the account"
            ))),
            // Disk failures have the same code.
            codes::STORE_FAILED if text.contains("maximum") => Some(LogError::Full(format!(
                "{text}: the stream is full of unsettled and retained events; let the backlog be delivered, or enlarge the stream \
                 with: nats stream edit --max-bytes"
            ))),
            codes::MESSAGE_TOO_LARGE | codes::HEADERS_TOO_LARGE | codes::BATCH_TOO_LARGE => {
                Some(LogError::TooLarge(text))
            }
            _ => None,
        }
    }
}
