//! Serves the Sources of kind webhook at `/{namespace}/{source}`: verifies a request, and answers 202 once its event is
//! durable. Every router serves all of them.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header, request::Parts};
use jiff::Timestamp;

use super::{
    body::{self, ReservedBody, Sender},
    ingress::Ingress,
    metrics::{HookMetrics, HookOutcome},
    problem::Problem,
};
use crate::{
    access::Challenges,
    cloudevents::{Lineage, Unread},
    intake,
    log::LogError,
    routing::{Source, SourceKind, broker_key, protocol::SourceFailureCause},
    server::Peer,
    source::webhook::{Forgery, Received, Validation, WebhookReceiver, WebhookRejection},
};

/// The webhooks of a routing configuration.
#[derive(Debug, Default)]
pub(super) struct Hooks(HashMap<String, Hook>);

#[derive(Debug)]
struct Hook {
    /// UID of the Source.
    uid: String,
    generation: i64,
    /// `namespace/name` of the broker.
    broker: String,
    webhook: WebhookReceiver,
}

impl Hooks {
    /// Prepares the webhooks among these Sources.
    pub(super) fn compile(sources: &[Source]) -> Self {
        let hooks = sources.iter().filter_map(|source| {
            let SourceKind::Webhook(webhook) = &source.kind else {
                return None;
            };
            let key = broker_key(&source.namespace, &source.name);
            match WebhookReceiver::compile(webhook, &source.filters) {
                Ok(webhook) => {
                    let broker = broker_key(&source.namespace, &source.broker);
                    let (uid, generation) = (source.uid.clone(), source.generation);
                    let hook = Hook {
                        uid,
                        generation,
                        broker,
                        webhook,
                    };
                    Some((key, hook))
                }
                // The controller has checked it, so it has another version.
                Err(error) => {
                    tracing::error!(source = key, %error, "a webhook is not served");
                    None
                }
            }
        });
        Self(hooks.collect())
    }

    /// Whether there is a webhook `namespace/name`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

/// State of the endpoint.
pub(super) struct HookServer {
    pub(super) ingress: Arc<Ingress>,
    pub(super) hooks: Arc<ArcSwap<Hooks>>,
    pub(super) metrics: Arc<HookMetrics>,
}

/// Creates the endpoint that webhooks are posted to.
pub(super) fn service(server: HookServer) -> Router {
    Router::new()
        .route(
            "/",
            get(async || "webhooks are posted to /NAMESPACE/SOURCE\n").fallback(unknown_path),
        )
        .route("/{namespace}/{source}", post(receive).options(validate))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(Arc::new(server))
}

async fn receive(
    State(server): State<Arc<HookServer>>,
    Path((namespace, source)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let key = broker_key(&namespace, &source);
    let hooks = server.hooks.load_full();
    let Some(hook) = hooks.0.get(&key) else {
        body::refuse_body(&parts.headers, body).await;
        return server.unknown_webhook(&key);
    };
    match server.accept(&namespace, hook, &parts, body).await {
        Ok(answer) => {
            let (response, result, outcome) = match answer {
                HookAnswer::Stored(events) => (
                    StatusCode::ACCEPTED.into_response(),
                    "accepted",
                    HookOutcome::Stored(events),
                ),
                HookAnswer::Filtered => (
                    StatusCode::NO_CONTENT.into_response(),
                    "filtered",
                    HookOutcome::Answered,
                ),
                HookAnswer::Challenge(challenge) => {
                    (challenge.into_response(), "challenge", HookOutcome::Answered)
                }
            };
            server.note(&key, hook, result, outcome);
            match hook.webhook.has_token_in_url(&parts.uri) {
                true => ([(header::CACHE_CONTROL, "private")], response).into_response(),
                false => response,
            }
        }
        Err(HookRejection { problem, cause }) => {
            let (detail, result) = (problem.detail(), problem.reason());
            server.note(&key, hook, result, HookOutcome::Rejected { detail, cause });
            problem.into_response()
        }
    }
}

/// Answers a request with the method `OPTIONS`: the validation handshake of the CloudEvents webhook specification, section 4,
/// for Sources of that kind.
async fn validate(
    State(server): State<Arc<HookServer>>,
    Path((namespace, source)): Path<(String, String)>,
    request: Request,
) -> Response {
    let key = broker_key(&namespace, &source);
    let hooks = server.hooks.load_full();
    let Some(hook) = hooks.0.get(&key) else {
        return server.unknown_webhook(&key);
    };
    let Some(validation) = hook.webhook.validate(request.headers()) else {
        let problem = wrong_method(State(server)).await;
        return ([(header::ALLOW, HeaderValue::from_static("POST"))], problem).into_response();
    };
    if validation == Validation::Refused {
        let problem = Problem::from(Forgery::Origin);
        let (detail, result) = (problem.detail(), problem.reason());
        let outcome = HookOutcome::Rejected { detail, cause: None };
        server.note(&key, hook, result, outcome);
        return problem.into_response();
    }
    server.note(&key, hook, "validated", HookOutcome::Validated);
    let mut response = StatusCode::OK.into_response();
    let answer = response.headers_mut();
    answer.insert(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    if let Validation::Allowed(origin) = validation {
        answer.insert("webhook-allowed-origin", origin);
        answer.insert("webhook-allowed-rate", server.allowed_rate(&hook.broker));
    }
    response
}

/// What a request is answered with.
enum HookAnswer {
    /// So many events are durable.
    Stored(u64),
    /// No event matches the Source's filters.
    Filtered,
    /// The text that the sender asks for.
    Challenge(String),
}

/// Why a request is rejected.
struct HookRejection {
    problem: Problem,
    /// What it tells about the Source. Bodies that are not read tell nothing: they may be anybody's.
    cause: Option<SourceFailureCause>,
}

impl HookRejection {
    /// Sets the index of the event in the request, from 0.
    fn of_event(self, index: usize) -> Self {
        let Self { problem, cause } = self;
        Self {
            problem: problem.of_event(index),
            cause,
        }
    }

    /// Replaces the index of a selected event by its index in the request.
    fn in_request(self, indexes: &[usize]) -> Self {
        let Self { problem, cause } = self;
        Self {
            problem: problem.in_request(indexes),
            cause,
        }
    }
}

impl From<Problem> for HookRejection {
    fn from(problem: Problem) -> Self {
        Self { problem, cause: None }
    }
}

impl From<Forgery> for HookRejection {
    fn from(forgery: Forgery) -> Self {
        let cause = match forgery {
            Forgery::Missing(_) | Forgery::NoToken => SourceFailureCause::Unsigned,
            Forgery::Malformed(_) | Forgery::Wrong(_) | Forgery::Stale(_) | Forgery::Origin => {
                SourceFailureCause::Verification
            }
        };
        Self {
            problem: forgery.into(),
            cause: Some(cause),
        }
    }
}

impl From<WebhookRejection> for HookRejection {
    fn from(rejection: WebhookRejection) -> Self {
        match rejection {
            WebhookRejection::Forged(forgery) => forgery.into(),
            rejection => Self {
                problem: rejection.into(),
                cause: Some(SourceFailureCause::Event),
            },
        }
    }
}

impl HookServer {
    /// Answers a request for a webhook that there is not.
    fn unknown_webhook(&self, key: &str) -> Response {
        let title = "There is no such webhook";
        let detail = format!(
            "no Source {key} of kind webhook is in force: it does not exist, is suspended, or its condition Ready says what is \
             wrong"
        );
        let problem = Problem::new(StatusCode::NOT_FOUND, "unknown_webhook", title, detail);
        self.ingress.metrics.rejected(problem.reason());
        problem.into_response()
    }

    /// Counts a request that was answered.
    fn note(&self, key: &str, hook: &Hook, result: &'static str, outcome: HookOutcome<'_>) {
        // The Source may have been removed while the request was answered.
        if self.hooks.load().has(key) {
            let source = (hook.uid.as_str(), hook.generation);
            self.metrics
                .answered(key, source, result, outcome, Timestamp::now());
        }
    }

    /// Stores the event of a request, if it is to be stored.
    async fn accept(
        &self,
        namespace: &str,
        hook: &Hook,
        parts: &Parts,
        body: Body,
    ) -> Result<HookAnswer, HookRejection> {
        let Hook { broker, webhook, .. } = hook;
        if let Err(rejection) = Self::admit(webhook, parts) {
            body::refuse_body(&parts.headers, body).await;
            return Err(rejection);
        }
        let sender = Sender::new(namespace, parts.extensions.get::<Peer>().copied());
        let body = self.ingress.bodies.read(&sender, &parts.headers, body).await?;
        let id = || format!("{:032x}", fastrand::u128(..));
        match webhook.receive(&parts.uri, &parts.headers, &body.bytes, Timestamp::now(), id)? {
            Received::Challenge(challenge) => Ok(HookAnswer::Challenge(challenge)),
            Received::Filtered => Ok(HookAnswer::Filtered),
            Received::Event(event) => {
                let lineage = Lineage::of_origin(fastrand::u64(..));
                let record = event.with_lineage(lineage).to_record();
                let repeats = self.store(broker, &[record]).await?;
                Ok(HookAnswer::Stored(1 - repeats as u64))
            }
            Received::Events(events) => self.accept_events(hook, parts, &sender, &body, events).await,
        }
    }

    /// Stores CloudEvents as the ingress does, all of a batch or none. Only one event of a batch is in memory at a time,
    /// beside all records.
    async fn accept_events(
        &self,
        hook: &Hook,
        parts: &Parts,
        sender: &Sender,
        body: &ReservedBody,
        events: Unread,
    ) -> Result<HookAnswer, HookRejection> {
        let Hook { broker, webhook, .. } = hook;
        let (is_batch, count) = (events.is_batch(), events.len());
        let mut room = match is_batch {
            true => Some(
                self.ingress
                    .bodies
                    .room_for(sender, body.bytes.len(), count)
                    .await?,
            ),
            false => None,
        };
        let admission = self.ingress.admit_descendants(&parts.headers, broker, count)?;
        let request = webhook.request(&parts.uri, &parts.headers, Timestamp::now());
        let mut indexes = Vec::new();
        let made = intake::records(events, |index, event| {
            let selected = event.map_err(WebhookRejection::from);
            let selected = selected.and_then(|event| webhook.select(&request, event));
            let selected = selected.map_err(|rejection| match is_batch {
                true => HookRejection::from(rejection).of_event(index),
                false => rejection.into(),
            })?;
            let Some(event) = selected else { return Ok(None) };
            let event = admission
                .with_lineage(event)
                .map_err(|beyond| self.ingress.loops(broker, index, beyond))?;
            let record = event.to_record();
            if let Some(room) = &mut room {
                room.add(&record)?;
            }
            indexes.push(index);
            Ok::<_, HookRejection>(Some(record))
        });
        let made = made.await?;
        if made.is_empty() && count > 0 {
            return Ok(HookAnswer::Filtered);
        }
        let mut repeats = 0;
        if !made.is_empty() {
            let stored = self.store(broker, &made).await;
            repeats = stored.map_err(|rejection| rejection.in_request(&indexes))?;
            admission.keep();
        }
        Ok(HookAnswer::Stored((made.len() - repeats) as u64))
    }

    /// Decides by a request's head.
    fn admit(webhook: &WebhookReceiver, parts: &Parts) -> Result<(), HookRejection> {
        webhook.check_head(&parts.uri, &parts.headers)?;
        Ok(body::check_codings(&parts.headers)?)
    }

    /// Stores records. Returns how many of them are repeats.
    async fn store(&self, broker: &str, records: &[Bytes]) -> Result<usize, HookRejection> {
        let stored = match self.ingress.check_quota(broker, records) {
            Ok(()) => self.ingress.store(broker, records).await.map_err(|error| {
                let cause = match error {
                    LogError::Conflict { .. } => SourceFailureCause::Event,
                    _ => SourceFailureCause::Storage,
                };
                (Problem::from(error), cause)
            }),
            Err(problem) => Err((problem, SourceFailureCause::Storage)),
        };
        stored.map_err(|(problem, cause)| {
            // A Source names its broker, so it exists.
            self.ingress.note_over_quota(broker, &problem, || true);
            HookRejection {
                problem,
                cause: Some(cause),
            }
        })
    }

    /// Requests in a minute that are permitted.
    fn allowed_rate(&self, broker: &str) -> HeaderValue {
        let per_second = self.ingress.quota_of(broker).events_per_second;
        per_second.map_or(HeaderValue::from_static("*"), |per_second| {
            HeaderValue::from(u64::from(per_second.get()) * 60)
        })
    }
}

impl From<Forgery> for Problem {
    fn from(forgery: Forgery) -> Self {
        let title = "The sender of the request is not proven";
        let detail = forgery.to_string();
        if forgery == Forgery::Origin {
            let title = "The Source does not allow the origin of the sender";
            return Self::new(StatusCode::FORBIDDEN, forgery.label(), title, detail);
        }
        // Signatures have no scheme of their own.
        Self::new(StatusCode::UNAUTHORIZED, forgery.label(), title, detail)
            .challenged(Challenges::BearerOrBasic)
    }
}

impl From<WebhookRejection> for Problem {
    fn from(rejection: WebhookRejection) -> Self {
        let title = match rejection {
            WebhookRejection::Forged(forgery) => return forgery.into(),
            WebhookRejection::Invalid(invalid) => return invalid.into(),
            // As the webhook specification says, section 2.2. At the ingress it is the request of a producer that is wrong.
            WebhookRejection::NotUnderstood(invalid) => {
                let title = "The request contains no CloudEvents";
                let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
                return Self::new(status, invalid.label(), title, invalid.to_string());
            }
            WebhookRejection::NotMapped(_) => "The Source cannot make an event of the request",
            WebhookRejection::NotFiltered(_) => "A filter of the Source fails for the event",
        };
        let (status, reason) = (StatusCode::UNPROCESSABLE_ENTITY, rejection.label());
        Self::new(status, reason, title, rejection.to_string())
    }
}

async fn unknown_path(State(server): State<Arc<HookServer>>) -> Problem {
    server.ingress.metrics.rejected("unknown_path");
    let title = "There is nothing here";
    let detail = "webhooks are posted to /NAMESPACE/SOURCE, for example /shop/github";
    Problem::new(StatusCode::NOT_FOUND, "unknown_path", title, detail)
}

async fn wrong_method(State(server): State<Arc<HookServer>>) -> Problem {
    server.ingress.metrics.rejected("wrong_method");
    let title = "Webhooks are posted";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", title, "use POST")
}
