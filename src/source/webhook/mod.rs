//! Sources of kind webhook: verifies a request, and makes an event of it. Pure.
//!
//! The router serves them, for all routers at once: see `router/hooks.rs`. What needs the time or randomness gets it as
//! an argument.

mod message;
mod sender;
mod verification;

pub use verification::Forgery;

use http::HeaderMap;
use jiff::Timestamp;

use crate::{
    cloudevents::{Event, Invalid},
    routing::{self, InvalidSigningKey},
};
use sender::WebhookSender;
use verification::RequestVerifier;

/// A webhook, ready to receive.
#[derive(Debug)]
pub struct WebhookReceiver {
    verifier: RequestVerifier,
    sender: WebhookSender,
    attributes: Vec<(String, String)>,
    source: String,
}

/// What a verified request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// To store an event.
    Event(Box<Event>),
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
}

impl WebhookReceiver {
    /// Prepares a webhook.
    ///
    /// # Errors
    /// If a key of Standard Webhooks is not one.
    pub fn compile(webhook: &routing::Webhook) -> Result<Self, InvalidSigningKey> {
        let routing::Webhook {
            verification,
            attributes,
            source,
        } = webhook;
        Ok(Self {
            verifier: RequestVerifier::new(verification)?,
            sender: WebhookSender::of(verification),
            attributes: attributes.clone(),
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
    /// If it may be forged, or makes no valid event.
    pub fn receive(
        &self,
        headers: &HeaderMap,
        body: &bytes::Bytes,
        now: Timestamp,
        id: impl FnOnce() -> String,
    ) -> Result<Received, WebhookRejection> {
        self.verifier.verify(headers, body, now)?;
        if let Some(challenge) = message::challenge(self.sender, body) {
            return Ok(Received::Challenge(challenge));
        }
        let event = message::event(
            self.sender,
            &self.attributes,
            &self.source,
            headers,
            body,
            now,
            id,
        )?;
        Ok(Received::Event(Box::new(event)))
    }
}
