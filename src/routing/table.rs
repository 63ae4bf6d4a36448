//! The routing table: the compiled routing configuration. Immutable; routers swap it as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    AdmittedTrigger, Authorities, Bounds, BrokerPolicy, Configuration, Deduplicated, Quota, Revision,
    Trigger, TriggerRejection, broker_key,
    index::{Index, IndexBuilder},
};
use crate::{
    cloudevents::Event,
    filter::{CompiledFilter, Decision, IndexTerm, Requirement, Subject, Text},
    transform::CompiledTransform,
};

/// Name of the broker that exists in every namespace.
const DEFAULT_BROKER: &str = "default";

/// The existing brokers, and the Triggers of each.
#[derive(Debug, Default)]
pub struct RoutingTable {
    revision: Revision,
    namespaces: BTreeSet<String>,
    /// Brokers of the configuration, by `namespace/name`.
    brokers: BTreeMap<String, Arc<BrokerTable>>,
    policies: Arc<BTreeMap<String, BrokerPolicy>>,
    quota: Quota,
    deduplication: Option<Deduplicated>,
    authorities: Authorities,
    unread: BTreeSet<String>,
}

/// The existing brokers of a routing table.
#[derive(Clone, Debug, Default)]
pub struct ExistingBrokers {
    namespaces: BTreeSet<String>,
    /// By `namespace/name`.
    brokers: BTreeSet<String>,
}

impl ExistingBrokers {
    /// As [`RoutingTable::has_broker`].
    pub fn has(&self, namespace: &str, name: &str) -> bool {
        (name == DEFAULT_BROKER && self.namespaces.contains(namespace))
            || self.brokers.contains(&broker_key(namespace, name))
    }

    /// Adds the brokers of another table.
    pub fn add(&mut self, others: Self) {
        self.namespaces.extend(others.namespaces);
        self.brokers.extend(others.brokers);
    }
}

/// The Triggers of one broker.
#[derive(Debug, Default)]
pub struct BrokerTable {
    routes: Vec<Route>,
    /// Routes that require one of some attribute values, found by these.
    index: Index,
    /// Routes that must be evaluated for each event.
    evaluated: Vec<usize>,
}

/// A Trigger with its compiled filters.
#[derive(Debug)]
pub struct Route {
    /// The Trigger as configured.
    pub trigger: Trigger,
    /// Its filters, or why it matches nothing.
    pub filter: Result<CompiledFilter, TriggerRejection>,
    /// The changes that it makes to events that match, if it has a valid transform.
    pub transform: Option<Arc<CompiledTransform>>,
}

impl Route {
    /// Whether this Trigger matches the event.
    pub fn matches(&self, event: &Event) -> bool {
        matches!(self.decide(&Subject::new(event)), Decision::Pass)
    }

    /// Returns whether this Trigger matches the event, or the error of its filter.
    pub fn decide<'a>(&'a self, subject: &'a Subject<'_>) -> Decision<'a> {
        match &self.filter {
            Ok(filter) => filter.decide(subject),
            Err(_) => Decision::Skip,
        }
    }
}

impl RoutingTable {
    /// Compiles a configuration. A Trigger whose filters or transform do not compile is in the table and matches nothing.
    pub fn compile(configuration: Configuration) -> Self {
        let Configuration {
            revision,
            namespaces,
            brokers,
            policies,
            quota,
            deduplication,
            triggers,
            sources,
            authorities,
            producers: _,
            closed: _,
            unread,
            undecodable: _,
        } = configuration;
        let brokers = brokers.iter().map(|broker| (broker.key(), Vec::new()));
        let mut routes: BTreeMap<String, Vec<Route>> = brokers.collect();
        for source in sources {
            routes
                .entry(broker_key(&source.namespace, &source.broker))
                .or_default();
        }
        let mut bounds = Bounds::default();
        for trigger in triggers {
            let (filter, transform) = match bounds.admit(&trigger) {
                Ok(AdmittedTrigger { filter, transform }) => (Ok(filter), transform.map(Arc::new)),
                Err(rejection) => (Err(rejection), None),
            };
            routes
                .entry(broker_key(&trigger.namespace, &trigger.broker))
                .or_default()
                .push(Route {
                    trigger,
                    filter,
                    transform,
                });
        }
        let policies = policies
            .into_iter()
            .map(|policy| (broker_key(&policy.namespace, &policy.name), policy));
        let brokers = routes
            .into_iter()
            .map(|(key, routes)| (key, Arc::new(BrokerTable::new(routes))))
            .collect();
        Self {
            revision,
            namespaces,
            brokers,
            policies: Arc::new(policies.collect()),
            quota,
            deduplication,
            authorities,
            unread,
        }
    }

    /// Returns the part of the table with these brokers, by `namespace/name`.
    #[must_use]
    pub fn of_brokers(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let brokers = self.brokers.iter().filter(|(broker, _)| is_wanted(broker));
        Self {
            revision: self.revision.clone(),
            namespaces: self.namespaces.clone(),
            brokers: brokers
                .map(|(broker, table)| (broker.clone(), table.clone()))
                .collect(),
            policies: self.policies.clone(),
            quota: self.quota,
            deduplication: self.deduplication,
            authorities: self.authorities.clone(),
            unread: self.unread.clone(),
        }
    }

    /// Returns the settings of the brokers that have any, by `namespace/name`.
    pub fn policies(&self) -> &Arc<BTreeMap<String, BrokerPolicy>> {
        &self.policies
    }

    /// Returns the quota of brokers without settings.
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Returns the quota of a broker, by `namespace/name`.
    pub fn quota_of(&self, broker: &str) -> Quota {
        self.policies
            .get(broker)
            .map_or(self.quota, |policy| policy.quota)
    }

    /// Returns the deduplication of brokers without settings.
    pub fn deduplication(&self) -> Option<Deduplicated> {
        self.deduplication
    }

    /// Returns the revision of the configuration.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Whether the broker exists: `default` in an existing namespace, or a broker of the configuration.
    pub fn has_broker(&self, namespace: &str, name: &str) -> bool {
        (name == DEFAULT_BROKER && self.namespaces.contains(namespace))
            || self.brokers.contains_key(&broker_key(namespace, name))
    }

    /// Returns which brokers exist, without what is routed.
    pub fn existing_brokers(&self) -> ExistingBrokers {
        ExistingBrokers {
            namespaces: self.namespaces.clone(),
            brokers: self.brokers.keys().cloned().collect(),
        }
    }

    /// Whether the namespace exists, so that errors can distinguish an unknown namespace from an unknown broker.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// Iterates over all Triggers, broker by broker.
    pub fn triggers(&self) -> impl Iterator<Item = &Trigger> {
        let routes = self.brokers.values().flat_map(|table| table.routes());
        routes.map(|route| &route.trigger)
    }

    /// Whether there is an undecodable Trigger with this UID, whose checkpoint must be kept.
    pub fn is_unread(&self, uid: &str) -> bool {
        self.unread.contains(uid)
    }

    /// Returns the authorities that destinations reference.
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Returns the brokers of the configuration, by `namespace/name`.
    pub fn brokers(&self) -> &BTreeMap<String, Arc<BrokerTable>> {
        &self.brokers
    }
}

impl BrokerTable {
    fn new(routes: Vec<Route>) -> Self {
        let (index, evaluated) = build_index(&routes);
        Self {
            routes,
            index,
            evaluated,
        }
    }

    /// Returns all Triggers of the broker. [`BrokerTable::matching`] reports indices into this list.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Calls `found` with the index of each matching Trigger, in no particular order.
    pub fn matching(&self, event: &Event, mut found: impl FnMut(usize)) {
        self.deciding(
            event,
            |_| true,
            |index, decision| {
                if matches!(decision, Decision::Pass) {
                    found(index);
                }
            },
        );
    }

    /// Calls `report` with the index of each Trigger that could match, and its decision. Skips the evaluation of
    /// Triggers for which `is_asked` returns false.
    pub fn deciding(
        &self,
        event: &Event,
        is_asked: impl Fn(usize) -> bool,
        mut report: impl FnMut(usize, Decision<'_>),
    ) {
        let subject = Subject::new(event);
        for index in self.candidates(event) {
            if is_asked(index) {
                report(index, self.routes[index].decide(&subject));
            }
        }
    }

    /// Returns the routes that may match the event. All others do not.
    pub fn candidates(&self, event: &Event) -> impl Iterator<Item = usize> + use<'_> {
        let candidates = self.index.candidates(event).into_iter();
        candidates.chain(self.evaluated.iter().copied())
    }
}

/// Files each route under the term that the fewest other routes share. Returns the index, and the routes that
/// cannot be filed.
fn build_index(routes: &[Route]) -> (Index, Vec<usize>) {
    let requirements: Vec<Option<Requirement>> = routes
        .iter()
        .map(|route| route.filter.as_ref().ok().map(CompiledFilter::requirement))
        .collect();
    let mut named: HashMap<&IndexTerm, usize> = HashMap::new();
    for requirement in requirements.iter().flatten() {
        requirement.for_each_term(&mut |term| *named.entry(term).or_default() += 1);
    }
    // The number of routes with the term. At a tie, an exact value matches fewer events than a prefix.
    let cost = |term: &IndexTerm| {
        let count = named.get(term).copied().unwrap_or_default();
        2 * count + usize::from(matches!(term.text, Text::Prefix(_)))
    };
    let (mut index, mut evaluated) = (IndexBuilder::default(), Vec::new());
    for (route, requirement) in requirements.iter().enumerate() {
        let Some(requirement) = requirement else { continue };
        match requirement.cheapest_cover(&cost) {
            Some(cover) => cover.terms.iter().for_each(|term| index.add(term, route)),
            None => evaluated.push(route),
        }
    }
    (index.build(), evaluated)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*, sample::select};
    use serde_json::json;

    use super::*;
    use crate::{
        cloudevents::{EventBuilder, Value},
        filter::{Explanation, Expression},
        routing::Source,
    };

    fn trigger(name: &str, broker: &str, filters: Vec<Expression>) -> Trigger {
        let mut trigger: Trigger = serde_json::from_value(json!({
            "uid": name, "namespace": "shop", "name": name, "generation": 1, "broker": broker, "filters": [],
            "destination": null, "delivery": crate::routing::Delivery::default(), "start": "Latest", "suspend": false,
        }))
        .unwrap();
        trigger.filters = filters;
        trigger
    }

    fn configuration(triggers: Vec<Trigger>) -> Configuration {
        Configuration {
            namespaces: ["shop".to_owned()].into(),
            triggers,
            ..Configuration::default()
        }
    }

    #[test]
    fn a_broker_exists_even_if_what_names_it_is_undecodable() {
        let configuration = json!({
            "revision": "1", "namespaces": ["shop"], "brokers": [{"namespace": "shop", "name": "newer"}],
            "triggers": [{"uid": "u", "kind": "of a newer version"}], "sources": [],
        });
        let table = RoutingTable::compile(serde_json::from_str(&configuration.to_string()).unwrap());
        assert!(table.has_broker("shop", "newer"));
    }

    #[test]
    fn brokers_exist_by_namespace_or_by_reference() {
        let mut configuration = configuration(vec![trigger("t", "named", vec![])]);
        configuration.sources.push(Source {
            uid: "s".into(),
            namespace: "shop".into(),
            name: "s".into(),
            generation: 1,
            broker: "clock".into(),
            filters: Vec::new(),
            kind: crate::routing::SourceKind::Cron(
                serde_json::from_value(
                    json!({"schedule": "", "timeZone": "", "attributes": [], "data": null}),
                )
                .unwrap(),
            ),
        });
        let table = RoutingTable::compile(configuration);
        for (namespace, broker, exists) in [
            ("shop", "default", true),
            ("shop", "named", true),
            ("shop", "clock", true),
            ("shop", "other", false),
            ("elsewhere", "default", false),
        ] {
            assert_eq!(
                table.has_broker(namespace, broker),
                exists,
                "{namespace}/{broker}"
            );
        }
    }

    #[test]
    fn invalid_filter_matches_nothing_and_affects_no_other_trigger() {
        let table = RoutingTable::compile(configuration(vec![
            trigger("no entry", "default", vec![Expression::Exact([].into())]),
            trigger("all", "default", vec![]),
            trigger(
                "no end",
                "default",
                vec![Expression::Sql("type = 't' AND".to_owned())],
            ),
        ]));
        let event = EventBuilder::new()
            .attribute("id", "1")
            .attribute("source", "/")
            .attribute("type", "t");
        let mut found = Vec::new();
        table.brokers()["shop/default"].matching(&event.build().unwrap(), |index| found.push(index));
        assert_eq!(found, [1]);
    }

    /// Few names and few values, so that filters often match, or nearly match.
    fn expression() -> impl Strategy<Value = Expression> {
        let map = || {
            collection::btree_map(
                select(vec!["type", "type", "source", "x", "n", "specversion"]),
                select(vec!["a", "b", "ab", "7", "1.0"]),
                1..3,
            )
            .prop_map(|map| {
                map.into_iter()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect()
            })
        };
        let sql = {
            let operand = || select(vec!["type", "x", "n", "'a'", "'7'", "'07'", "7", "(x = 'a')"]);
            let pattern = select(vec!["'a'", "'a%'", "'a_'", "'%b'", "'7%'", "'_'", "''", "'%'"]);
            let set = select(vec![
                "('a', 'b')",
                "('07', 'a')",
                "('a', 'TRUE')",
                "('ab')",
                "(7)",
            ]);
            let not = || select(vec!["", "", "NOT "]);
            let term = prop_oneof![
                2 => (operand(), select(vec!["=", "=", "!=", ">"]), operand())
                    .prop_map(|(left, operator, right)| format!("{left} {operator} {right}")),
                1 => (operand(), not(), pattern).prop_map(|(left, not, right)| format!("{left} {not}LIKE {right}")),
                1 => (operand(), not(), set).prop_map(|(left, not, right)| format!("{left} {not}IN {right}")),
            ];
            (
                collection::vec(term, 1..4),
                select(vec![" AND ", " AND ", " OR ", " OR ", " XOR "]),
            )
                .prop_map(|(terms, operator)| Expression::Sql(terms.join(operator)))
        };
        let cel = {
            let operand = || {
                select(vec![
                    "event.type",
                    "event.x",
                    "event.n",
                    "event.data",
                    "'a'",
                    "'7'",
                    "7",
                ])
            };
            let set = select(vec!["['a', 'b']", "['7', 'ab']", "[7, 'a']", "[]"]);
            let not = || select(vec!["", "", "!"]);
            let term = prop_oneof![
                2 => (operand(), select(vec!["==", "==", "!=", "<"]), operand())
                    .prop_map(|(left, operator, right)| format!("{left} {operator} {right}")),
                1 => (not(), operand(), set).prop_map(|(not, value, set)| format!("{not}({value} in {set})")),
                1 => (not(), operand(), select(vec!["'a'", "''", "'7'"]))
                    .prop_map(|(not, value, prefix)| format!("{not}{value}.startsWith({prefix})")),
            ];
            (collection::vec(term, 1..4), select(vec![" && ", " || "]))
                .prop_map(|(terms, operator)| Expression::Cel(terms.join(operator)))
        };
        let leaf = prop_oneof![
            3 => sql,
            2 => cel,
            2 => map().prop_map(Expression::Exact),
            2 => map().prop_map(Expression::Prefix),
            1 => map().prop_map(Expression::Suffix),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                1 => collection::vec(inner.clone(), 1..3).prop_map(Expression::All),
                2 => collection::vec(inner.clone(), 1..4).prop_map(Expression::Any),
                1 => inner.prop_map(|child| Expression::Not(Box::new(child))),
            ]
        })
    }

    #[test]
    fn evaluates_only_triggers_that_could_match() {
        let trigger = |name: &str, filters: serde_json::Value| {
            trigger(name, "default", serde_json::from_value(filters).unwrap())
        };
        let triggers = vec![
            trigger("type", json!([{"exact": {"type": "a"}}])),
            // Every Trigger requires this source, so it is useless as an index term.
            trigger("type of all", json!([{"exact": {"source": "/", "type": "b"}}])),
            trigger(
                "prefix of all",
                json!([{"exact": {"source": "/"}}, {"prefix": {"type": "b."}}]),
            ),
            trigger(
                "subject of all",
                json!([{"sql": "source = '/' AND subject LIKE 'c%'"}]),
            ),
            trigger(
                "any",
                json!([{"any": [{"prefix": {"type": "b"}}, {"exact": {"subject": "c"}}]}]),
            ),
            trigger("suffix", json!([{"suffix": {"type": "z"}}])),
            trigger("broken", json!([{"exact": {}}])),
        ];
        let table = RoutingTable::compile(configuration(triggers));
        let table = &table.brokers()["shop/default"];
        for (r#type, subject, expected) in [
            ("a", "x", &["type"][..]),
            ("b", "c", &["type of all", "subject of all", "any"]),
            ("b.c", "x", &["prefix of all", "any"]),
            ("z", "xc", &[]),
        ] {
            let event = EventBuilder::new()
                .attribute("id", "1")
                .attribute("source", "/")
                .attribute("type", r#type)
                .attribute("subject", subject)
                .build()
                .unwrap();
            let names: Vec<_> = table
                .index
                .candidates(&event)
                .into_iter()
                .map(|at| &*table.routes[at].trigger.name)
                .collect();
            assert_eq!(names, expected, "{type} {subject}");
        }
        assert_eq!(table.evaluated, [5]);
    }

    proptest! {
        #[test]
        fn index_agrees_with_plain_evaluation(
            filters in collection::vec(collection::vec(expression(), 0..3), 0..12),
            values in collection::vec(select(vec!["a", "b", "ab", "a_", "7", "07", "TRUE"]), 3),
            extension in any::<bool>(),
            number in select(vec![None, Some(Value::from(7)), Some("7".into()), Some("07".into()), Some(true.into())]),
        ) {
            let triggers = filters.into_iter().enumerate().map(|(n, filters)| trigger(&n.to_string(), "default", filters));
            let table = RoutingTable::compile(configuration(triggers.collect()));
            let mut event = EventBuilder::new().attribute("id", "1").attribute("type", values[0]).attribute("source", values[1]);
            if extension {
                event = event.attribute("x", values[2]);
            }
            if let Some(number) = number {
                event = event.attribute("n", number);
            }
            let event = event.build().unwrap();
            let Some(broker) = table.brokers().get("shop/default") else { return Ok(()) };
            let mut found = Vec::new();
            broker.matching(&event, |index| found.push(index));
            let distinct: BTreeSet<_> = found.iter().copied().collect();
            prop_assert_eq!(distinct.len(), found.len(), "each once");
            let plain: BTreeSet<_> =
                (0..broker.routes().len()).filter(|&index| broker.routes()[index].matches(&event)).collect();
            prop_assert_eq!(distinct, plain);
            for route in broker.routes() {
                let filter = route.filter.as_ref().map_err(|error| TestCaseError::fail(error.to_string()))?;
                let explained = filter.explain(&event);
                prop_assert_eq!(explained.iter().all(Explanation::holds), filter.matches(&event), "{:?}", explained);
            }
        }
    }
}
