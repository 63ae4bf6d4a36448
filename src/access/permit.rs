//! What an admitted request may post.

use std::sync::Arc;

use super::refusal::Refusal;
use crate::{
    cloudevents::Event,
    filter::CompiledFilter,
    routing::{Producer, ProducerIdentity},
};

/// A listed producer.
#[derive(Debug)]
pub(super) struct ListedProducer {
    pub(super) identity: ProducerIdentity,
    events: AllowedEvents,
}

/// Events that a listed producer may post.
#[derive(Clone, Debug)]
enum AllowedEvents {
    All,
    Matching(Arc<CompiledFilter>),
    /// This version cannot compile the filters.
    None,
}

/// What an admitted request may post.
#[derive(Debug)]
pub struct Permit {
    /// `None` for everything.
    limits: Option<Limits>,
    is_audit: bool,
}

/// The entries that list a producer, by index, and what to say if none of them allows an event.
#[derive(Debug)]
struct Limits {
    entries: Vec<(usize, AllowedEvents)>,
    producer: String,
    broker: String,
}

impl ListedProducer {
    pub(super) fn compile(producer: &Producer) -> Self {
        let Producer { identity, filters } = producer;
        let events = match CompiledFilter::compile(filters) {
            _ if filters.is_empty() => AllowedEvents::All,
            Ok(filter) => AllowedEvents::Matching(Arc::new(filter)),
            // The controller has compiled them, so it has another version.
            Err(_) => AllowedEvents::None,
        };
        Self {
            identity: identity.clone(),
            events,
        }
    }
}

impl Permit {
    /// Permits every event.
    pub fn everything() -> Self {
        Self {
            limits: None,
            is_audit: false,
        }
    }

    /// Permits what any of the entries that list a producer allows; `None` if none lists it. `producer` and `broker` are
    /// for messages.
    pub(super) fn of_listed(
        entries: &[ListedProducer],
        lists: impl Fn(&ProducerIdentity) -> bool,
        producer: impl FnOnce() -> String,
        broker: &str,
        is_audit: bool,
    ) -> Option<Self> {
        let own = entries.iter().enumerate();
        let own = own.filter(|(_, entry)| lists(&entry.identity));
        let entries: Vec<_> = own.map(|(index, entry)| (index, entry.events.clone())).collect();
        if entries.is_empty() {
            return None;
        }
        if entries
            .iter()
            .any(|(_, events)| matches!(events, AllowedEvents::All))
        {
            return Some(Self::everything());
        }
        let limits = Limits {
            entries,
            producer: producer(),
            broker: broker.to_owned(),
        };
        Some(Self {
            limits: Some(limits),
            is_audit,
        })
    }

    /// Whether an event that is not permitted is let pass, and only counted and logged.
    pub fn is_audit(&self) -> bool {
        self.is_audit
    }

    /// Checks an event of the request.
    ///
    /// # Errors
    /// Why it may not be posted.
    pub fn check(&self, event: &Event) -> Result<(), Refusal> {
        let Some(limits) = &self.limits else {
            return Ok(());
        };
        let allows = |events: &AllowedEvents| match events {
            AllowedEvents::All => true,
            AllowedEvents::Matching(filter) => filter.matches(event),
            AllowedEvents::None => false,
        };
        if limits.entries.iter().any(|(_, events)| allows(events)) {
            return Ok(());
        }
        let clauses: Vec<_> = limits
            .entries
            .iter()
            .map(|(index, _)| format!("spec.producers[{index}]"))
            .collect();
        Err(Refusal::Filtered {
            producer: limits.producer.clone(),
            broker: limits.broker.clone(),
            clauses: clauses.join(" and "),
        })
    }
}
