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
use http::{StatusCode, request::Parts};
use jiff::Timestamp;

use super::{
    body::{self, Sender},
    ingress::Ingress,
    metrics::HookMetrics,
    problem::Problem,
};
use crate::{
    access::Challenges,
    cloudevents::{Event, Lineage},
    routing::{Source, SourceKind, broker_key},
    server::Peer,
    source::webhook::{Forgery, Received, WebhookReceiver, WebhookRejection},
};

/// The webhooks of a routing configuration.
#[derive(Debug, Default)]
pub(super) struct Hooks(HashMap<String, Hook>);

#[derive(Debug)]
struct Hook {
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
                    Some((key, Hook { broker, webhook }))
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
        .route("/{namespace}/{source}", post(receive))
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
    let accepted = server.accept(&namespace, &key, &parts, body).await;
    let (response, result) = match accepted {
        Ok(HookAnswer::Stored) => (StatusCode::ACCEPTED.into_response(), "accepted"),
        Ok(HookAnswer::Filtered) => (StatusCode::NO_CONTENT.into_response(), "filtered"),
        Ok(HookAnswer::Challenge(challenge)) => (challenge.into_response(), "challenge"),
        Err(problem) => {
            let reason = problem.reason();
            (problem.into_response(), reason)
        }
    };
    match server.hooks.load().has(&key) {
        true => server.metrics.answered(&key, result),
        false => server.ingress.metrics.rejected(result),
    }
    response
}

/// What a request is answered with.
enum HookAnswer {
    /// The event is durable.
    Stored,
    /// The event does not match the Source's filters.
    Filtered,
    /// The text that the sender asks for.
    Challenge(String),
}

impl HookServer {
    /// Stores the event of a request, if it is to be stored.
    async fn accept(
        &self,
        namespace: &str,
        key: &str,
        parts: &Parts,
        body: Body,
    ) -> Result<HookAnswer, Problem> {
        let hooks = self.hooks.load_full();
        let admitted = Self::admit(&hooks, key, parts);
        let Hook { broker, webhook } = match admitted {
            Ok(hook) => hook,
            Err(problem) => {
                body::refuse_body(&parts.headers, body).await;
                return Err(problem);
            }
        };
        let sender = Sender::new(namespace, parts.extensions.get::<Peer>().copied());
        let body = self.ingress.bodies.read(&sender, &parts.headers, body).await?;
        let id = || format!("{:032x}", fastrand::u128(..));
        match webhook.receive(&parts.uri, &parts.headers, &body.bytes, Timestamp::now(), id)? {
            Received::Challenge(challenge) => Ok(HookAnswer::Challenge(challenge)),
            Received::Filtered => Ok(HookAnswer::Filtered),
            Received::Event(event) => {
                self.store(broker, *event).await?;
                Ok(HookAnswer::Stored)
            }
        }
    }

    /// Decides by a request's head.
    fn admit<'a>(hooks: &'a Hooks, key: &str, parts: &Parts) -> Result<&'a Hook, Problem> {
        let hook = hooks.0.get(key).ok_or_else(|| unknown_webhook(key))?;
        hook.webhook.check_head(&parts.headers)?;
        body::check_codings(&parts.headers)?;
        Ok(hook)
    }

    async fn store(&self, broker: &str, event: Event) -> Result<(), Problem> {
        let record = event
            .with_lineage(Lineage::of_origin(fastrand::u64(..)))
            .to_record();
        let stored = self.store_within_quota(broker, record).await;
        if let Err(problem) = &stored {
            // A Source names its broker, so it exists.
            self.ingress.note_over_quota(broker, problem, || true);
        }
        stored
    }

    async fn store_within_quota(&self, broker: &str, record: Bytes) -> Result<(), Problem> {
        self.ingress.check_quota(broker, std::slice::from_ref(&record))?;
        self.ingress.store(broker, &[record]).await?;
        Ok(())
    }
}

impl From<Forgery> for Problem {
    fn from(forgery: Forgery) -> Self {
        let title = "The sender of the request is not proven";
        let detail = forgery.to_string();
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
            WebhookRejection::NotMapped(_) => "The Source cannot make an event of the request",
            WebhookRejection::NotFiltered(_) => "A filter of the Source fails for the event",
        };
        let (status, reason) = (StatusCode::UNPROCESSABLE_ENTITY, rejection.label());
        Self::new(status, reason, title, rejection.to_string())
    }
}

fn unknown_webhook(key: &str) -> Problem {
    let title = "There is no such webhook";
    let detail = format!(
        "no Source {key} of kind webhook is in force: it does not exist, is suspended, or its condition Ready says what is \
         wrong"
    );
    Problem::new(StatusCode::NOT_FOUND, "unknown_webhook", title, detail)
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
