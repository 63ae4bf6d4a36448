//! The routing table: the routing configuration, compiled. Immutable; routers swap it as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Configuration, Revision, Trigger};
use crate::{
    cloudevents::Event,
    filter::{CompileError, Filter},
};

/// The name of the broker that exists in every namespace.
const DEFAULT_BROKER: &str = "default";

/// Which brokers exist, and which of their Triggers want an event.
#[derive(Debug, Default)]
pub struct RoutingTable {
    revision: Revision,
    namespaces: BTreeSet<String>,
    /// By `namespace/name`; only those that a Trigger or a Source names.
    brokers: BTreeMap<String, Arc<BrokerTable>>,
}

/// The Triggers of one broker.
#[derive(Debug, Default)]
pub struct BrokerTable {
    routes: Vec<Route>,
    /// Routes that want one value of one attribute, found by both.
    exact: HashMap<Box<str>, HashMap<Box<str>, Vec<usize>>>,
    /// Routes that have to be evaluated for each event.
    evaluated: Vec<usize>,
}

/// A Trigger with its filters compiled.
#[derive(Debug)]
pub struct Route {
    /// The Trigger as configured.
    pub trigger: Trigger,
    /// Why it matches nothing, if its filters could not be compiled.
    pub filter: Result<Filter, CompileError>,
}

impl Route {
    /// Whether this one Trigger wants the event.
    pub fn matches(&self, event: &Event) -> bool {
        self.filter.as_ref().is_ok_and(|filter| filter.matches(event))
    }
}

impl RoutingTable {
    /// Compiles a configuration. A Trigger whose filters cannot be compiled is in the table and matches nothing.
    pub fn compile(configuration: Configuration) -> Self {
        let Configuration {
            revision,
            namespaces,
            triggers,
            sources,
        } = configuration;
        let mut routes: BTreeMap<String, Vec<Route>> = BTreeMap::new();
        for source in sources {
            routes
                .entry(broker_key(&source.namespace, &source.broker))
                .or_default();
        }
        for trigger in triggers {
            let filter = Filter::compile(&trigger.filters);
            routes
                .entry(broker_key(&trigger.namespace, &trigger.broker))
                .or_default()
                .push(Route { trigger, filter });
        }
        let brokers = routes
            .into_iter()
            .map(|(key, routes)| (key, Arc::new(BrokerTable::new(routes))))
            .collect();
        Self {
            revision,
            namespaces,
            brokers,
        }
    }

    /// The revision of the configuration that this was compiled from.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Whether events may be posted to the broker: `default` of a namespace that exists, or a broker that a
    /// Trigger or a Source names.
    pub fn has_broker(&self, namespace: &str, name: &str) -> bool {
        (name == DEFAULT_BROKER && self.namespaces.contains(namespace))
            || self.brokers.contains_key(&broker_key(namespace, name))
    }

    /// Whether the namespace is known, so that an error can tell which of the two is not.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The brokers that a Trigger or a Source names, by `namespace/name`.
    pub fn brokers(&self) -> &BTreeMap<String, Arc<BrokerTable>> {
        &self.brokers
    }
}

impl BrokerTable {
    fn new(routes: Vec<Route>) -> Self {
        let mut table = Self::default();
        for (index, route) in routes.iter().enumerate() {
            let Ok(filter) = &route.filter else { continue };
            match most_selective(&filter.required_values()) {
                Some((attribute, value)) => {
                    table
                        .exact
                        .entry(attribute.into())
                        .or_default()
                        .entry(value.into())
                        .or_default()
                        .push(index);
                }
                None => table.evaluated.push(index),
            }
        }
        table.routes = routes;
        table
    }

    /// Every Trigger of the broker; [`BrokerTable::matching`] speaks of positions in this list.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Calls `found` with the position of each Trigger that wants the event, in no particular order.
    pub fn matching(&self, event: &Event, mut found: impl FnMut(usize)) {
        let indexed = self.exact.iter().filter_map(|(attribute, by_value)| {
            let value = event.attribute(attribute)?;
            by_value.get(&*value.canonical())
        });
        for &index in indexed.flatten().chain(&self.evaluated) {
            if self.routes[index].matches(event) {
                found(index);
            }
        }
    }
}

/// The key of a broker: `namespace/name`.
pub fn broker_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Events differ most in their type, then in their source; a `specversion` tells nothing.
fn most_selective<'a>(required: &[(&'a str, &'a str)]) -> Option<(&'a str, &'a str)> {
    required
        .iter()
        .copied()
        .min_by_key(|(attribute, _)| match *attribute {
            "id" => 0,
            "type" => 1,
            "subject" => 2,
            "source" => 3,
            "specversion" => 5,
            _ => 4,
        })
}
