//! What the Triggers of a namespace, and all of them, may take together.
//!
//! Controller, routers and command line ask the same [`Bounds`], so a Trigger that is refused is refused everywhere,
//! and again after every start. The controller admits the oldest first, so what is new never pushes out what works;
//! where the age is not known, as in manifests, the order is that of namespaces and names. What is refused goes to
//! routers without its filters. What is admitted is admitted in any order, so routers come to the same end.

use std::collections::HashMap;

use super::{Destination, Trigger};
use crate::filter::{CompileError, CompileProblem, Filter};

/// How many bytes the Triggers of a namespace may take: what their filters take compiled, and their destinations.
pub const MAX_OF_NAMESPACE: usize = 16 * 1024 * 1024;

/// How many bytes all Triggers may take.
pub const MAX_OF_ALL: usize = 64 * 1024 * 1024;

/// What the Triggers that were admitted take.
#[derive(Debug, Default)]
pub struct Bounds {
    namespaces: HashMap<String, usize>,
    all: usize,
}

/// Why a Trigger is not admitted: it matches nothing, and its events wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its filters cannot be compiled, or are too large by themselves.
    #[error(transparent)]
    Filters(#[from] CompileError),
    /// It would be too much for its namespace.
    #[error(
        "filters: the Trigger takes {size} bytes with its destinations, and of the {MAX_OF_NAMESPACE} of its namespace \
         {used} are taken by others: make its filters smaller, or delete Triggers"
    )]
    Namespace {
        /// What it takes.
        size: usize,
        /// What others take.
        used: usize,
    },
    /// It would be too much for the routers.
    #[error(
        "filters: the Trigger takes {size} bytes with its destinations, and of the {MAX_OF_ALL} of all namespaces {used} \
         are taken by others: make its filters smaller, or delete Triggers"
    )]
    All {
        /// What it takes.
        size: usize,
        /// What others take.
        used: usize,
    },
    /// The controller did not admit it, for this reason.
    #[error("{0}")]
    Before(String),
}

impl Refusal {
    /// A short name for it, for conditions.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Filters(error) => match error.problem {
                CompileProblem::TooMuchText | CompileProblem::TooManyParts | CompileProblem::TooLarge => {
                    "FilterTooLarge"
                }
                _ => "InvalidFilter",
            },
            Self::Namespace { .. } => "NamespaceTooLarge",
            Self::All { .. } => "ConfigurationTooLarge",
            Self::Before(_) => "Refused",
        }
    }
}

impl Bounds {
    /// Compiles a Trigger's filters, if there is room for it.
    ///
    /// # Errors
    /// Why it is not admitted; it takes no room then.
    pub fn admit(&mut self, trigger: &Trigger) -> Result<Filter, Refusal> {
        if let Some(reason) = &trigger.refused {
            return Err(Refusal::Before(reason.clone()));
        }
        let filter = Filter::compile(&trigger.filters)?;
        let size = filter.size() + trigger.destinations().map(size_of_destination).sum::<usize>();
        let used = self
            .namespaces
            .get(&trigger.namespace)
            .copied()
            .unwrap_or_default();
        if used + size > MAX_OF_NAMESPACE {
            return Err(Refusal::Namespace { size, used });
        }
        if self.all + size > MAX_OF_ALL {
            return Err(Refusal::All { size, used: self.all });
        }
        self.all += size;
        self.namespaces.insert(trigger.namespace.clone(), used + size);
        Ok(filter)
    }
}

/// Each Trigger has its own, as it is configured and made ready.
fn size_of_destination(destination: &Destination) -> usize {
    let Destination {
        uri,
        service: _,
        content_mode: _,
        ca_certs: _,
        headers,
    } = destination;
    let headers = headers
        .iter()
        .map(|header| header.name.len() + header.value.reveal().len() + header.version.len());
    2 * (uri.len() + headers.sum::<usize>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{filter::Expression, routing::Header};

    fn trigger(namespace: &str, name: &str, filters: Vec<Expression>) -> Trigger {
        let trigger = json!({
            "uid": name, "namespace": namespace, "name": name, "generation": 1, "broker": "default", "filters": filters,
            "destination": {"uri": "http://sink/", "service": null, "contentMode": "AsReceived"},
            "delivery": crate::routing::Delivery::default(), "start": "Latest", "suspend": false,
        });
        serde_json::from_value(trigger).unwrap()
    }

    /// About as large as a Trigger's filters may be.
    fn large() -> Vec<Expression> {
        let map = |n| {
            (0..32)
                .map(|entry| (format!("a{entry}"), format!("{n}")))
                .collect()
        };
        (0..50).map(|n| Expression::Exact(map(n))).collect()
    }

    #[test]
    fn each_namespace_and_all_together_have_room_for_so_much() {
        let mut bounds = Bounds::default();
        let size = Filter::compile(&large()).unwrap().size();
        assert!(size > 400_000, "{size}");
        let mut refused = Vec::new();
        for namespace in ["a", "b", "c", "d", "e"] {
            for name in 0..50 {
                let admitted = bounds.admit(&trigger(namespace, &name.to_string(), large()));
                refused.extend(admitted.err().map(|refusal| (namespace, refusal.label())));
            }
            // What is small has room where the large have none.
            assert!(bounds.admit(&trigger(namespace, "small", vec![])).is_ok());
        }
        assert!(refused.contains(&("a", "NamespaceTooLarge")), "{refused:?}");
        assert!(refused.contains(&("e", "ConfigurationTooLarge")), "{refused:?}");
        assert!(bounds.all <= MAX_OF_ALL);
        let message = bounds
            .admit(&trigger("a", "one", large()))
            .unwrap_err()
            .to_string();
        assert!(message.contains("of the 16777216 of its namespace"), "{message}");
    }

    #[test]
    fn headers_count() {
        let mut heavy = trigger("a", "t", vec![]);
        let value = "x".repeat(8192);
        if let Some(destination) = &mut heavy.destination {
            destination.headers = (0..16)
                .map(|n| Header {
                    name: format!("x-{n}"),
                    value: value.clone().into(),
                    version: String::new(),
                })
                .collect();
        }
        let mut bounds = Bounds::default();
        let admitted = (0..1000).filter(|_| bounds.admit(&heavy).is_ok()).count();
        assert!((50..=64).contains(&admitted), "{admitted}");
    }

    #[test]
    fn what_was_refused_before_stays_so() {
        let mut refused = trigger("a", "t", vec![]);
        refused.refused = Some("too large".to_owned());
        let refusal = Bounds::default().admit(&refused).unwrap_err();
        assert_eq!(
            (refusal.to_string().as_str(), refusal.label()),
            ("too large", "Refused")
        );
    }
}
