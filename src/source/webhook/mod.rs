//! Sources of kind webhook: verifies a request, and makes an event of it. Pure.
//!
//! The router serves them, for all routers at once: see `router/hooks.rs`. What needs the time or randomness gets it as
//! an argument.

mod handshake;
mod message;
mod sender;
mod verification;

pub use handshake::Validation;
pub use verification::Forgery;

use http::{HeaderMap, Uri, header};
use jiff::Timestamp;

use crate::{
    cloudevents::{Event, Invalid, Reason, TraceContext, Unread, read_http_each},
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
#[derive(Debug)]
pub enum Received {
    /// To store an event.
    Event(Box<Event>),
    /// To store the events in it, as far as [`WebhookReceiver::select`] returns them.
    Events(Unread),
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
    /// It contains no CloudEvents.
    #[error(transparent)]
    NotUnderstood(Invalid),
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
            Self::Invalid(invalid) | Self::NotUnderstood(invalid) => invalid.label(),
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
    pub fn check_head(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Forgery> {
        self.verifier.check_head(uri, headers)
    }

    /// Answers a request with the method `OPTIONS`; `None` if the sender is not one that asks for permission.
    pub fn validate(&self, headers: &HeaderMap) -> Option<Validation> {
        let origins = self.verifier.allowed_origins()?;
        Some(origins.validate(headers))
    }

    /// Whether the URL of a request has a token, so that caches must not share the answer.
    pub fn has_token_in_url(&self, uri: &Uri) -> bool {
        self.verifier.allowed_origins().is_some() && handshake::access_tokens(uri).next().is_some()
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
        self.verifier.verify(uri, headers, body, now)?;
        if self.sender == WebhookSender::CloudEvents {
            let read = read_http_each(headers, body.clone()).map_err(|invalid| match invalid.reason() {
                Reason::NotACloudEvent => WebhookRejection::NotUnderstood(invalid),
                _ => WebhookRejection::Invalid(invalid),
            })?;
            let context = TraceContext::from_headers(headers);
            return Ok(Received::Events(read.in_context(context)));
        }
        if let Some(challenge) = message::challenge(self.sender, body) {
            return Ok(Received::Challenge(challenge));
        }
        let event = message::event(self.sender, &self.source, headers, body, now, id)?;
        match self.select(&self.request(uri, headers, now), event)? {
            Some(event) => Ok(Received::Event(Box::new(event))),
            None => Ok(Received::Filtered),
        }
    }

    /// Changes an event of a request as the Source says. Returns `None` if it does not match the filters.
    ///
    /// # Errors
    /// If an expression or a filter fails for the event.
    pub fn select(
        &self,
        request: &IncomingRequest<'_>,
        event: Event,
    ) -> Result<Option<Event>, WebhookRejection> {
        let event = match &self.event {
            Some(template) => template.apply_to_request(&event, request)?,
            None => event,
        };
        match self.filter.try_matches(&event) {
            Ok(true) => Ok(Some(event)),
            Ok(false) => Ok(None),
            Err(error) => Err(WebhookRejection::NotFiltered(error)),
        }
    }

    /// The request without credentials, which an event has no use for.
    pub fn request<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap, now: Timestamp) -> IncomingRequest<'a> {
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
        let query = uri.query().unwrap_or_default();
        let query = match self.sender {
            WebhookSender::CloudEvents => handshake::without_access_tokens(query),
            _ => query.into(),
        };
        IncomingRequest::new(uri.path(), query, shown, now)
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
            received => panic!("{received:?}"),
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

    /// The events of a delivery to a webhook of CloudEvents, in the JSON format, or the label of the rejection.
    fn delivered(
        event: Option<Value>,
        filters: &[Expression],
        query: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Vec<Value>, &'static str> {
        let webhook = routing::Webhook {
            verification: Verification::CloudEvents {
                allowed_origins: vec!["eventgrid.azure.net".to_owned()],
                secrets: ["s3cret", "n3w"].map(|secret| secret.to_owned().into()).into(),
            },
            event: event.map(|event| serde_json::from_value(event).unwrap()),
            source: "/default".to_owned(),
        };
        let receiver = WebhookReceiver::compile(&webhook, filters).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let uri: Uri = format!("/shop/hook{query}").parse().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let body = bytes::Bytes::copy_from_slice(body.as_bytes());
        receiver
            .check_head(&uri, &map)
            .map_err(|forgery| forgery.label())?;
        let received = receiver.receive(&uri, &map, &body, now, || "random".to_owned());
        let Received::Events(events) = received.map_err(|rejection| rejection.label())? else {
            panic!("no events");
        };
        let request = receiver.request(&uri, &map, now);
        let made = events.filter_map(|event| {
            let selected = event
                .map_err(WebhookRejection::from)
                .and_then(|event| receiver.select(&request, event));
            selected.transpose()
        });
        made.map(|event| match event {
            Ok(event) => Ok(serde_json::from_slice(&event.to_json()).unwrap()),
            Err(rejection) => Err(rejection.label()),
        })
        .collect()
    }

    const BEARER: (&str, &str) = ("authorization", "Bearer s3cret");
    const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");
    const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

    #[test]
    fn deliveries_of_cloud_events_keep_what_they_have() {
        let binary = [
            BEARER,
            ("webhook-request-origin", "eventgrid.azure.net"),
            ("ce-specversion", "1.0"),
            ("ce-id", "a-1"),
            ("ce-source", "/mine"),
            ("ce-type", "t"),
            ("ce-team", "blue"),
            ("content-type", "application/json"),
        ];
        let event = json!({"specversion": "1.0", "id": "a-1", "source": "/mine", "type": "t", "team": "blue",
                           "datacontenttype": "application/json", "data": {"n": 1}});
        let other = json!({"specversion": "1.0", "id": "a-2", "source": "/mine", "type": "noise"});
        let found = delivered(None, &[], "", &binary, r#"{"n": 1}"#);
        assert_eq!(found, Ok(vec![event.clone()]));
        let found = delivered(None, &[], "?access_token=n3w", &[STRUCTURED], &event.to_string());
        assert_eq!(found, Ok(vec![event.clone()]));
        let batch = json!([event, other]).to_string();
        let found = delivered(None, &[], "", &[BEARER, BATCH], &batch);
        assert_eq!(found, Ok(vec![event.clone(), other]));
        let filter = Expression::Not(Box::new(Expression::Exact(
            [("type".to_owned(), "noise".to_owned())].into(),
        )));
        let found = delivered(None, std::slice::from_ref(&filter), "", &[BEARER, BATCH], &batch);
        assert_eq!(found, Ok(vec![event.clone()]));
        let template = json!({"set": {"type": "x.${event.type}", "subject": "${body.n}",
                                      "query": "${'access_token' in request.query ? 'told' : request.query.p}"}});
        let found = delivered(
            Some(template),
            &[filter],
            "?access_token=s3cret&p=q",
            &[STRUCTURED],
            &event.to_string(),
        );
        let found = &found.unwrap()[0];
        assert_eq!(
            (&found["type"], &found["subject"], &found["query"], &found["id"]),
            (&json!("x.t"), &json!("1"), &json!("q"), &json!("a-1"))
        );
    }

    #[test]
    fn deliveries_of_cloud_events_without_their_token_are_refused() {
        let event = r#"{"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}"#;
        let origin = ("webhook-request-origin", "eventgrid.azure.net");
        let other_origin = ("webhook-request-origin", "example.com");
        let wrong = ("authorization", "Bearer guess");
        let basic = ("authorization", "Basic czNjcmV0");
        let json = ("content-type", "application/json");
        let xml = ("content-type", "application/cloudevents+xml");
        for (query, headers, body, expected) in [
            ("", &[BEARER, STRUCTURED][..], event, ""),
            (
                "",
                &[("authorization", "bearer  n3w"), STRUCTURED, origin],
                event,
                "",
            ),
            ("?p=q&access_token=s3cret", &[STRUCTURED], event, ""),
            ("?access_token=s3%63ret", &[STRUCTURED], event, ""),
            ("", &[STRUCTURED], event, "no_signature"),
            ("", &[STRUCTURED, origin], event, "no_signature"),
            ("?access_token=", &[STRUCTURED], event, "invalid_signature"),
            ("?access_token=guess", &[STRUCTURED], event, "invalid_signature"),
            ("?access_token=S3cret", &[STRUCTURED], event, "invalid_signature"),
            ("?Access_Token=s3cret", &[STRUCTURED], event, "no_signature"),
            (
                "?access_token=s3cret&access_token=s3cret",
                &[STRUCTURED],
                event,
                "no_signature",
            ),
            (
                "?access_token=s3cret",
                &[STRUCTURED, BEARER],
                event,
                "no_signature",
            ),
            (
                "?access_token=s3cret",
                &[STRUCTURED, wrong],
                event,
                "no_signature",
            ),
            ("", &[wrong, STRUCTURED], event, "invalid_signature"),
            ("", &[basic, STRUCTURED], event, "invalid_signature"),
            (
                "",
                &[("authorization", "s3cret"), STRUCTURED],
                event,
                "invalid_signature",
            ),
            ("", &[BEARER, BEARER, STRUCTURED], event, "no_signature"),
            (
                "",
                &[BEARER, STRUCTURED, other_origin],
                event,
                "origin_not_allowed",
            ),
            ("", &[BEARER, json], r#"{"a": 1}"#, "not_a_cloudevent"),
            ("", &[BEARER, xml], "<event/>", "unsupported_format"),
            ("", &[BEARER, STRUCTURED], "{", "malformed_json"),
            (
                "",
                &[BEARER, STRUCTURED],
                r#"{"specversion": "1.0", "id": "1"}"#,
                "missing_attribute",
            ),
            ("", &[BEARER, BATCH], event, "malformed_json"),
        ] {
            let found = delivered(None, &[], query, headers, body);
            assert_eq!(
                found.map_or_else(|label| label, |_| ""),
                expected,
                "{query} {headers:?}"
            );
        }
    }
}
