//! The connection to NATS: requests with a timeout, and answers in several messages. The client reconnects by itself
//! and would send what it holds then; a request here waits for the connection and holds nothing.

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

/// How often a request looks whether the connection is back.
const LOOK: Duration = Duration::from_millis(20);

/// Why a request to NATS failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NatsError {
    /// The stream does not exist, has no leader, or JetStream is off.
    #[error("nobody answers requests to {0}")]
    NoResponders(String),
    #[error("{0}")]
    NoAnswer(String),
    #[error(transparent)]
    Rejected(Rejection),
    #[error("unexpected answer: {0}")]
    Unexpected(String),
    /// The message is larger than `max_payload`.
    #[error("the server takes messages of at most {0} bytes (max_payload)")]
    TooLarge(usize),
}

/// An error that JetStream answers with.
#[derive(Clone, Debug, Deserialize, thiserror::Error)]
#[error("{description} (error {err_code} of JetStream)")]
pub(super) struct Rejection {
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

/// A connection, and what was last seen of it.
pub(super) struct Session {
    client: Client,
    /// Number of times that the connection was lost.
    losses: watch::Receiver<u64>,
    told: Arc<Mutex<Option<String>>>,
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
        let told = Arc::new(Mutex::new(None));
        let tell = told.clone();
        let options = options.event_callback(move |event| {
            note(&event, &lost, &tell);
            std::future::ready(())
        });
        Ok(Self {
            client: options.connect(urls).await?,
            losses,
            told,
            place,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The servers, for errors.
    pub(super) fn place(&self) -> PathBuf {
        self.place.clone()
    }

    /// Sends a request and waits for its answer.
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

    /// Publishes a message that nobody answers.
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

    /// Sends a request, and calls `found` with each answer until it returns false.
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

    /// Waits for the connection, then for the action; fails once the connection is lost or the time is up.
    pub(super) async fn while_connected<T>(
        &self,
        subject: &str,
        wait: Duration,
        action: impl Future<Output = Result<T, NatsError>>,
    ) -> Result<T, NatsError> {
        let connected = async {
            while self.client.connection_state() != State::Connected {
                sleep(LOOK).await;
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

    /// A missing right is told apart from the request, and the request stays unanswered.
    fn unanswered(&self, subject: &str, wait: Duration) -> NatsError {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = told.map_or_else(String::new, |told| format!("; the server last reported: {told}"));
        let away = match self.client.connection_state() {
            State::Connected => format!("no answer to {subject} within {wait:?}"),
            _ => "not connected".to_owned(),
        };
        NatsError::NoAnswer(format!("{away}{told}"))
    }
}

fn note(event: &Event, lost: &watch::Sender<u64>, told: &Mutex<Option<String>>) {
    let tell = |text| *told.lock().unwrap_or_else(PoisonError::into_inner) = text;
    match event {
        Event::Connected => {
            tracing::info!("connected to NATS");
            tell(None);
        }
        Event::Disconnected => {
            tracing::warn!("the connection to NATS was lost");
            lost.send_modify(|count| *count += 1);
        }
        Event::ServerError(error) => {
            tracing::warn!(%error, "NATS reports an error");
            tell(Some(error.to_string()));
        }
        Event::ClientError(error) => {
            tracing::debug!(%error, "NATS cannot be reached");
            tell(Some(error.to_string()));
        }
        Event::SlowConsumer(_) => {
            tracing::warn!("messages of NATS were dropped, since they are read too slowly")
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => {}
    }
}

/// Codes of JetStream's errors.
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
    /// Returns the error that a retry cannot change; `None` if one may succeed.
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
                "{text}; free storage of the NATS servers, or give them or the account more"
            ))),
            // Failures of the disk have this code, too.
            codes::STORE_FAILED if text.contains("maximum") => Some(LogError::Full(format!(
                "{text}: the stream holds events that Triggers have not settled; let them be delivered, delete a Trigger, or raise the \
                 limit of the stream"
            ))),
            codes::MESSAGE_TOO_LARGE | codes::HEADERS_TOO_LARGE | codes::BATCH_TOO_LARGE => {
                Some(LogError::TooLarge(text))
            }
            _ => None,
        }
    }
}
