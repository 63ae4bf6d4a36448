//! Sends events to destinations. A [`Target`] is a destination prepared for sending, of one of the kinds of
//! [`crate::routing::Destination`]; [`Client::send`] makes one attempt. Only this module interprets a protocol's
//! answers and errors: the rest of Weir sees an [`Answer`].
//!
//! `http` is the kind for Services and URIs. Another kind is another variant of [`Target`].

mod answer;
mod client_error;
mod http;
mod outgoing;
mod verdict;

pub use answer::Answer;
pub use client_error::ClientError;
pub use http::{ATTEMPT_OVERHEAD, Addresses, Replies, UnusableReply, UriAddresses};
pub use outgoing::{Outgoing, SendPurpose};
pub use verdict::{Blame, Verdict};

use std::time::{Duration, Instant};

use self::http::{HttpSender, HttpTarget, TargetError};
use crate::{
    intake::Descendants,
    memory::Pool,
    routing::{Authorities, Destination},
    telemetry::Tracer,
};

/// Sends events to destinations of every kind. All Triggers share one.
#[derive(Clone)]
pub struct Client {
    http: HttpSender,
}

/// A destination prepared for sending. Targets are equal if they are the same Sink with the same credentials.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// An HTTP endpoint.
    Http(HttpTarget),
}

impl Client {
    /// Creates a client that trusts the machine's authorities; without any it supports only `http`. It connects
    /// only to the permitted `addresses`. A reply may have at most `max_reply` bytes.
    ///
    /// # Errors
    /// Fails when the machine has authorities that cannot be read.
    pub fn new(max_reply: usize, addresses: Addresses) -> Result<Self, ClientError> {
        Ok(Self {
            http: HttpSender::new(max_reply, addresses)?,
        })
    }

    /// Sets the pool of open connections to Sinks; each takes one unit.
    #[must_use]
    pub fn with_sockets(self, sockets: Pool) -> Self {
        Self {
            http: self.http.with_sockets(sockets),
        }
    }

    /// Sets the memory for Sinks' answers.
    #[must_use]
    pub fn with_answers(self, answers: Pool) -> Self {
        Self {
            http: self.http.with_answers(answers),
        }
    }

    /// Counts replies as descendants of events.
    #[must_use]
    pub fn counting(self, descendants: Descendants) -> Self {
        Self {
            http: self.http.counting(descendants),
        }
    }

    /// Enables spans for deliveries.
    #[must_use]
    pub fn traced(self, tracer: Tracer) -> Self {
        Self {
            http: self.http.traced(tracer),
        }
    }

    /// Prepares a destination on behalf of a namespace. `authorities` are those of its configuration.
    ///
    /// # Errors
    /// Fails when the destination is unusable. The controller rejects such destinations.
    pub fn target(
        &self,
        namespace: &str,
        destination: &Destination,
        authorities: &Authorities,
    ) -> Result<Target, TargetError> {
        match destination {
            Destination::Http(endpoint) => {
                let target = self.http.target(namespace, endpoint, authorities)?;
                Ok(Target::Http(target))
            }
        }
    }

    /// Makes one attempt, which ends after `timeout` at the latest.
    pub async fn send(&self, target: &Target, outgoing: &Outgoing<'_>, timeout: Duration) -> Answer {
        match target {
            Target::Http(target) => self.http.send(target, outgoing, timeout).await,
        }
    }

    /// Logs how many lines were suppressed since the last line of their kind, once their interval is over.
    pub fn log_suppressed(&self, now: Instant) {
        self.http.log_suppressed(now);
    }
}

impl Target {
    /// The destination's URI, which identifies it to users.
    pub fn uri(&self) -> String {
        match self {
            Self::Http(target) => target.uri().to_string(),
        }
    }
}

#[cfg(test)]
impl Client {
    /// A client that reaches every address.
    pub fn for_test() -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        // A machine whose authorities cannot be read fails the tests.
        Self::new(1, Addresses::any()).unwrap()
    }
}
