//! Sources of kind webhook: verifies a request, and makes an event of it. Pure.
//!
//! The router serves them, for all routers at once: see `router/hooks.rs`. What needs the time or randomness gets it as
//! an argument.

mod message;
mod sender;
mod verification;

pub use verification::Forgery;

use http::{HeaderMap, Uri, header};
use jiff::Timestamp;

use crate::{
    cloudevents::{Event, Invalid},
    filter::{CompileError, CompiledFilter, Expression, cel::IncomingRequest},
    routing::{self, InvalidSigningKey},
    transform::{CompiledTransform, TemplateOwner, TransformError, TransformFailure},
};
use sender::WebhookSender;
use verification::RequestVerifier;

/// A webhook, ready to receive.
#[derive(Debug)]
pub struct WebhookReceiver {
    verifier: RequestVerifier,
    sender: WebhookSender,
    /// Changes of the event that the sender's conventions make.
    event: Option<CompiledTransform>,
    filter: CompiledFilter,
    source: String,
}

/// Why a webhook cannot be served. The controller checks the same.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidWebhook {
    /// A key of Standard Webhooks is not one.
    #[error("a key is invalid: {0}")]
    Key(#[from] InvalidSigningKey),
    /// How events are made does not compile.
    #[error("spec.{0}")]
    Event(#[from] TransformError),
    /// The filters do not compile.
    #[error("spec.{0}")]
    Filters(#[from] CompileError),
}

/// What a verified request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// To store an event.
    Event(Box<Event>),
    /// Nothing: the event does not match the filters.
    Filtered,
    /// To be answered with this text, which proves to the sender that the path is the webhook's.
    Challenge(String),
}

/// Why a request is rejected.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WebhookRejection {
    /// It may be from somebody else.
    #[error(transparent)]
    Forged(#[from] Forgery),
    /// It makes no valid event.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// An expression of the Source's `event` fails for it.
    #[error(transparent)]
    NotMapped(#[from] TransformFailure),
    /// A filter of the Source fails for the event, so that it is unknown whether the event matches.
    #[error("spec.filters: {0}")]
    NotFiltered(String),
}

impl WebhookRejection {
    /// Reason in metrics and responses.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Forged(forgery) => forgery.label(),
            Self::Invalid(invalid) => invalid.label(),
            Self::NotMapped(_) => "mapping_failed",
            Self::NotFiltered(_) => "filter_failed",
        }
    }
}

impl WebhookReceiver {
    /// Prepares a webhook, whose events have to match the filters.
    ///
    /// # Errors
    /// If a key or an expression is invalid.
    pub fn compile(webhook: &routing::Webhook, filters: &[Expression]) -> Result<Self, InvalidWebhook> {
        let routing::Webhook {
            verification,
            event,
            source,
        } = webhook;
        let compile = |event| CompiledTransform::compile_of(TemplateOwner::Webhook, event);
        Ok(Self {
            verifier: RequestVerifier::new(verification)?,
            sender: WebhookSender::of(verification),
            event: event.as_ref().map(compile).transpose()?,
            filter: CompiledFilter::compile(filters)?,
            source: source.clone(),
        })
    }

    /// Checks what can be checked before the body is read.
    ///
    /// # Errors
    /// If the request may be forged.
    pub fn check_head(&self, headers: &HeaderMap) -> Result<(), Forgery> {
        self.verifier.check_head(headers)
    }

    /// Verifies a request and makes an event of it. `id` is for events whose request has no identity of its own.
    ///
    /// # Errors
    /// If it may be forged, makes no valid event, or a filter fails for the event.
    pub fn receive(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        body: &bytes::Bytes,
        now: Timestamp,
        id: impl FnOnce() -> String,
    ) -> Result<Received, WebhookRejection> {
        self.verifier.verify(headers, body, now)?;
        if let Some(challenge) = message::challenge(self.sender, body) {
            return Ok(Received::Challenge(challenge));
        }
        let event = message::event(self.sender, &self.source, headers, body, now, id)?;
        let event = match &self.event {
            Some(template) => template.apply_to_request(&event, &self.request(uri, headers, now))?,
            None => event,
        };
        match self.filter.try_matches(&event) {
            Ok(true) => Ok(Received::Event(Box::new(event))),
            Ok(false) => Ok(Received::Filtered),
            Err(error) => Err(WebhookRejection::NotFiltered(error)),
        }
    }

    /// The request without credentials, which an event has no use for.
    fn request<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap, now: Timestamp) -> IncomingRequest<'a> {
        let credentials = [
            header::AUTHORIZATION.as_str(),
            header::PROXY_AUTHORIZATION.as_str(),
            header::COOKIE.as_str(),
        ];
        let is_credential = |name: &str| {
            credentials.contains(&name)
                || self
                    .verifier
                    .token_header()
                    .is_some_and(|header| header.eq_ignore_ascii_case(name))
        };
        let shown = headers
            .iter()
            .filter(|(name, _)| !is_credential(name.as_str()))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        IncomingRequest::new(uri.path(), uri.query().unwrap_or_default(), shown, now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::routing::Verification;

    /// Makes an event of a request to `/shop/hook?env=test&env=other` with this body and content type.
    fn made(event: Value, content_type: &str, body: &str) -> Result<Option<Event>, WebhookRejection> {
        let filter = Expression::Not(Box::new(Expression::Exact(
            [("type".to_owned(), "noise".to_owned())].into(),
        )));
        made_of_filtered(event, &[filter], content_type, body)
    }

    fn made_of_filtered(
        event: Value,
        filters: &[Expression],
        content_type: &str,
        body: &str,
    ) -> Result<Option<Event>, WebhookRejection> {
        let webhook = routing::Webhook {
            verification: Verification::Token {
                header: "X-Token".to_owned(),
                secrets: vec!["s3cret".to_owned().into()],
            },
            event: Some(serde_json::from_value(event).unwrap()),
            source: "/default".to_owned(),
        };
        let headers = [
            ("content-type", content_type),
            ("x-token", "s3cret"),
            ("cookie", "a=b"),
            ("x-kind", "push"),
            ("x-tag", "a"),
            ("x-tag", "b"),
        ];
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let receiver = WebhookReceiver::compile(&webhook, filters).unwrap();
        let uri = Uri::from_static("/shop/hook?env=te%2Bst+1&env=other");
        let body = bytes::Bytes::copy_from_slice(body.as_bytes());
        let received = receiver.receive(&uri, &headers, &body, Timestamp::UNIX_EPOCH, || {
            "random".to_owned()
        });
        match received? {
            Received::Event(event) => Ok(Some(*event)),
            Received::Filtered => Ok(None),
            Received::Challenge(challenge) => panic!("a challenge: {challenge}"),
        }
    }

    #[test]
    fn filters_apply_to_the_event_that_is_made() {
        let event = json!({"set": {"type": "${body.kind}"}});
        for (kind, passes) in [("noise", false), ("signal", true)] {
            let body = json!({ "kind": kind }).to_string();
            let made = made(event.clone(), "application/json", &body).unwrap();
            assert_eq!(made.is_some(), passes, "{kind}");
        }
    }

    #[test]
    fn failing_filter_rejects_the_request_without_its_data() {
        let cel = |text: &str| Expression::Cel(text.to_owned());
        let sql = |text: &str| Expression::Sql(text.to_owned());
        for (filter, expected) in [
            (cel("data.status == 'x'"), "spec.filters: cel: there is no status"),
            (
                sql("INT(kind) = 1"),
                "spec.filters: sql: the value of an attribute cannot be cast to Integer",
            ),
            (
                sql("LEFT(kind, 1 - count) = 'p'"),
                "spec.filters: sql: cannot take a negative number of characters",
            ),
        ] {
            let event = json!({"set": {"kind": "${body.kind}", "count": "${body.count}"}});
            let body = r#"{"kind": "private", "count": 4711}"#;
            let rejection =
                made_of_filtered(event, std::slice::from_ref(&filter), "application/json", body).unwrap_err();
            assert_eq!(
                (rejection.label(), &*rejection.to_string()),
                ("filter_failed", expected),
                "{filter:?}"
            );
        }
    }

    #[test]
    fn event_is_made_of_the_request() {
        let json = r#"{"status": "firing", "n": 3, "alerts": [{"pod": "a"}, {"pod": "b"}]}"#;
        for (event, content_type, body, name, expected) in [
            (
                json!({"set": {"type": "alert.${body.status}"}}),
                "application/json",
                json,
                "type",
                "alert.firing",
            ),
            (
                json!({"set": {"type": "t.${request.headers['x-kind']}"}}),
                "text/plain",
                "x",
                "type",
                "t.push",
            ),
            (
                json!({"set": {"tags": "${request.headers['x-tag']}"}}),
                "text/plain",
                "x",
                "tags",
                "a, b",
            ),
            (
                json!({"set": {"subject": "${request.query.env}"}}),
                "text/plain",
                "x",
                "subject",
                "te+st 1",
            ),
            (
                json!({"set": {"subject": "${request.path}"}}),
                "text/plain",
                "x",
                "subject",
                "/shop/hook",
            ),
            (
                json!({"set": {"at": "${request.received}"}}),
                "text/plain",
                "x",
                "at",
                "1970-01-01T00:00:00Z",
            ),
            (
                json!({"set": {"type": "${event.type}.v2"}}),
                "text/plain",
                "x",
                "type",
                "dev.weir.webhook.v2",
            ),
            (
                json!({"set": {"id": "${event.id}-${body}"}}),
                "text/plain",
                "x",
                "id",
                "random-x",
            ),
            (
                json!({"set": {"source": "/x", "level": "${body.n}"}}),
                "application/json",
                json,
                "level",
                "3",
            ),
            (
                json!({"set": {"subject": "${body.pod}"}}),
                "application/x-www-form-urlencoded",
                "pod=a%20b&c",
                "subject",
                "a b",
            ),
            // Some senders call JSON text.
            (
                json!({"set": {"subject": "${body.status}"}}),
                "text/plain; charset=UTF-8",
                json,
                "subject",
                "firing",
            ),
            (
                json!({"set": {"subject": "${body}"}}),
                "text/plain",
                "{x",
                "subject",
                "{x",
            ),
            (
                json!({"set": {"subject": "${has(body.x) ? body.x : 'none'}"}}),
                "application/json",
                json,
                "subject",
                "none",
            ),
            (
                json!({"set": {"subject": "${'x-token' in request.headers || 'cookie' in request.headers}"}}),
                "text/plain",
                "x",
                "subject",
                "false",
            ),
        ] {
            let made = made(event.clone(), content_type, body).unwrap().unwrap();
            let value = made.attribute(name).map(ToString::to_string);
            assert_eq!(value.as_deref(), Some(expected), "{event}");
            assert_eq!(made.data().unwrap().as_bytes(), body.as_bytes());
            assert_eq!(made.attribute("datacontenttype"), Some(&content_type.into()));
        }
        let event = json!({"data": {"pods": "${body.alerts.map(a, a.pod)}", "count": "${body.n}"}});
        let made = made(event, "text/plain", json).unwrap().unwrap();
        assert_eq!(
            made.data().unwrap().as_bytes(),
            br#"{"count":3,"pods":["a","b"]}"#
        );
        assert_eq!(
            made.attribute("datacontenttype"),
            Some(&"application/json".into())
        );
    }

    #[test]
    fn failure_names_the_field_and_not_the_data() {
        for (event, content_type, body, expected) in [
            (
                json!({"set": {"type": "${body.status}"}}),
                "application/json",
                r#"{"secret": 1}"#,
                "spec.webhook.event.attributes.type: there is no status",
            ),
            (
                json!({"data": {"a": ["${request.headers['x-none']}"]}}),
                "application/json",
                "{}",
                "spec.webhook.event.data.a[0]: there is no x-none",
            ),
            (
                json!({"set": {"time": "${body.at}"}}),
                "application/json",
                r#"{"at": "secret"}"#,
                "spec.webhook.event.attributes.time: the value is not a timestamp",
            ),
            (
                json!({"set": {"type": "${body.x}"}}),
                "application/json",
                "{secret",
                "spec.webhook.event.attributes.type: the data is not valid JSON",
            ),
            (
                json!({"set": {"type": "${body.x}"}}),
                "text/plain",
                "secret",
                "spec.webhook.event.attributes.type: . does not take string",
            ),
        ] {
            let failure = made(event.clone(), content_type, body).unwrap_err();
            let text = failure.to_string();
            assert!(
                matches!(failure, WebhookRejection::NotMapped(_)),
                "{event}: {text}"
            );
            assert!(
                text.starts_with(expected) && !text.contains("secret"),
                "{event}: {text}"
            );
        }
    }
}
