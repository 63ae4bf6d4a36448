//! Decides who may post to which broker, compiled from a routing configuration.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    refusal::Refusal,
    token::{Account, TokenError},
    verifier::Verifier,
};
use crate::{
    cloudevents::Event,
    filter::CompiledFilter,
    routing::{
        BrokerPolicy, Configuration, Producer, ProducerRules, UnlistedBrokers, bearer_token, broker_key,
    },
};

/// Who may post, in all brokers. Immutable; routers swap it as a whole.
#[derive(Debug, Default)]
pub struct Access {
    /// Rules of the installation; `None` where nobody checks producers.
    installation: Option<Installation>,
    /// Brokers with rules of their own, by `namespace/name`.
    brokers: HashMap<String, BrokerRule>,
}

#[derive(Debug)]
struct Installation {
    others: UnlistedBrokers,
    audit: bool,
    verifier: Option<Arc<Verifier>>,
    /// UIDs by namespace and name.
    accounts: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug)]
enum BrokerRule {
    /// The producers that it lists.
    Listed(Vec<ListedProducer>),
    /// Nobody knows them.
    Unknown,
}

/// A listed producer.
#[derive(Debug)]
struct ListedProducer {
    namespace: String,
    /// `None` for all ServiceAccounts of the namespace.
    name: Option<String>,
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

/// The entries that list an account, by index, and what to say if none of them allows an event.
#[derive(Debug)]
struct Limits {
    entries: Vec<(usize, AllowedEvents)>,
    account: String,
    broker: String,
}

impl Access {
    /// Compiles the rules of a configuration. Keeps the tokens that were verified `before` with the same keys.
    pub fn compile(configuration: &Configuration, before: &Self) -> Self {
        let Some(rules) = &configuration.producers else {
            return Self::default();
        };
        let listed = configuration.policies.iter().filter_map(|policy| {
            let BrokerPolicy {
                namespace,
                name,
                producers,
                ..
            } = policy;
            let entries = producers.as_ref()?.iter().map(ListedProducer::compile).collect();
            Some((broker_key(namespace, name), BrokerRule::Listed(entries)))
        });
        let closed = configuration.closed.iter();
        let closed = closed.map(|broker| (broker.key(), BrokerRule::Unknown));
        Self {
            installation: Some(Installation::compile(rules, before)),
            brokers: listed.chain(closed).collect(),
        }
    }

    /// Whether rejected requests are let pass, and only counted and logged.
    pub fn is_audit(&self) -> bool {
        self.installation.as_ref().is_some_and(|rules| rules.audit)
    }

    /// Decides whether a request with this `Authorization` header may post to a broker, which need not exist.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(
        &self,
        namespace: &str,
        broker: &str,
        authorization: Option<&str>,
        now: impl FnOnce() -> Timestamp,
    ) -> Result<Permit, Refusal> {
        let Some(installation) = &self.installation else {
            return Ok(Permit::everything());
        };
        if self.brokers.is_empty() && installation.others == UnlistedBrokers::Allow {
            return Ok(Permit::everything());
        }
        let broker = broker_key(namespace, broker);
        let entries = match (self.brokers.get(&broker), installation.others) {
            (Some(BrokerRule::Unknown), _) => return Err(Refusal::UnknownProducers),
            (Some(BrokerRule::Listed(entries)), _) => Some(entries),
            (None, UnlistedBrokers::Allow) => return Ok(Permit::everything()),
            (None, UnlistedBrokers::SameNamespace | UnlistedBrokers::Deny) => None,
        };
        let token = authorization.and_then(bearer_token).ok_or(Refusal::NoToken)?;
        let verifier = installation.verifier.as_ref().ok_or(Refusal::NoKeys)?;
        let verified = verifier.verify(token, now()).map_err(Refusal::InvalidToken)?;
        let caller = &verified.account;
        let permit = match entries {
            Some(entries) => installation.permit_listed(entries, namespace, &broker, caller),
            None => installation.permit_unlisted(namespace, &broker, caller),
        }?;
        if !installation.knows(caller) {
            return Err(Refusal::InvalidToken(TokenError::Deleted));
        }
        Ok(permit)
    }
}

impl Installation {
    fn compile(rules: &ProducerRules, before: &Access) -> Self {
        let ProducerRules {
            others,
            audit,
            issuer,
            accounts,
        } = rules;
        let kept = before.installation.as_ref();
        let kept = kept.and_then(|before| before.verifier.clone());
        let verifier = issuer.as_ref().map(|issuer| {
            kept.filter(|kept| kept.issuer() == issuer)
                .unwrap_or_else(|| Arc::new(Verifier::new(issuer.clone())))
        });
        Self {
            others: *others,
            audit: *audit,
            verifier,
            accounts: accounts.clone(),
        }
    }

    fn permit_unlisted(&self, namespace: &str, broker: &str, caller: &Account) -> Result<Permit, Refusal> {
        let is_own = caller.namespace == namespace;
        match (is_own, self.others) {
            (false, _) => Err(Refusal::Stranger {
                account: caller.key(),
                broker: broker.to_owned(),
            }),
            (true, UnlistedBrokers::Deny) => Err(Refusal::NobodyMay {
                account: caller.key(),
                broker: broker.to_owned(),
            }),
            (true, UnlistedBrokers::Allow | UnlistedBrokers::SameNamespace) => Ok(Permit::everything()),
        }
    }

    fn permit_listed(
        &self,
        entries: &[ListedProducer],
        namespace: &str,
        broker: &str,
        caller: &Account,
    ) -> Result<Permit, Refusal> {
        let own = entries.iter().enumerate();
        let own = own.filter(|(_, entry)| entry.lists(caller));
        let own: Vec<_> = own.map(|(index, entry)| (index, entry.events.clone())).collect();
        if own.iter().any(|(_, events)| matches!(events, AllowedEvents::All)) {
            return Ok(Permit::everything());
        }
        let (account, broker) = (caller.key(), broker.to_owned());
        match own.is_empty() {
            false => Ok(Permit {
                limits: Some(Limits {
                    entries: own,
                    account,
                    broker,
                }),
                is_audit: self.audit,
            }),
            true if caller.namespace == namespace => Err(Refusal::NotListed { account, broker }),
            true => Err(Refusal::Stranger { account, broker }),
        }
    }

    /// Whether the account still exists.
    fn knows(&self, account: &Account) -> bool {
        let accounts = self.accounts.get(&account.namespace);
        accounts.and_then(|accounts| accounts.get(&account.name)) == Some(&account.uid)
    }
}

impl ListedProducer {
    fn compile(producer: &Producer) -> Self {
        let Producer {
            namespace,
            name,
            filters,
        } = producer;
        let events = match CompiledFilter::compile(filters) {
            _ if filters.is_empty() => AllowedEvents::All,
            Ok(filter) => AllowedEvents::Matching(Arc::new(filter)),
            // The controller has compiled them, so it has another version.
            Err(_) => AllowedEvents::None,
        };
        Self {
            namespace: namespace.clone(),
            name: name.clone(),
            events,
        }
    }

    fn lists(&self, account: &Account) -> bool {
        self.namespace == account.namespace && self.name.as_ref().is_none_or(|name| *name == account.name)
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
            account: limits.account.clone(),
            broker: limits.broker.clone(),
            clauses: clauses.join(" and "),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        access::tokens_for_test::{ISSUER, claims, issuer, token},
        cloudevents::EventBuilder,
        routing::{Broker, TokenIssuer},
    };

    fn now() -> Timestamp {
        Timestamp::from_second(1500).unwrap()
    }

    /// Namespace `shop` has a Broker `orders` with producers, a Broker `closed` with none, one that cannot be decoded,
    /// and brokers without a Broker.
    fn configuration(others: UnlistedBrokers) -> Configuration {
        let policy = |name: &str, producers: serde_json::Value| {
            let policy = json!({
                "uid": name, "namespace": "shop", "name": name, "generation": 1, "producers": producers,
            });
            serde_json::from_value::<BrokerPolicy>(policy).unwrap()
        };
        let named = |name: &str| (name.to_owned(), format!("uid-of-{name}"));
        Configuration {
            policies: vec![
                policy(
                    "orders",
                    json!([
                        {"namespace": "shop", "name": "checkout"},
                        {"namespace": "web", "filters": [{"exact": {"type": "visit"}}]},
                        {"namespace": "web", "name": "cart", "filters": [{"exact": {"type": "cart"}}]},
                        {"namespace": "shop", "name": "gone"},
                    ]),
                ),
                policy("closed", json!([])),
                policy("retained", json!(null)),
            ],
            closed: [Broker {
                namespace: "shop".to_owned(),
                name: "newer".to_owned(),
            }]
            .into(),
            producers: Some(ProducerRules {
                others,
                audit: false,
                issuer: Some(issuer()),
                accounts: [
                    ("shop".to_owned(), ["checkout", "other"].map(named).into()),
                    ("web".to_owned(), ["cart", "page"].map(named).into()),
                ]
                .into(),
            }),
            ..Configuration::default()
        }
    }

    fn event(kind: &str) -> Event {
        let event = EventBuilder::new().attribute("id", "1").attribute("source", "/s");
        event.attribute("type", kind).build().unwrap()
    }

    /// The label of the refusal of an event of type `visit`; empty if it may be posted.
    fn outcome(access: &Access, broker: &str, account: Option<&str>) -> &'static str {
        let header = account.map(|account| {
            let (namespace, name) = account.split_once('/').unwrap();
            format!("Bearer {}", token(&claims(namespace, name)))
        });
        let admitted = access.admit("shop", broker, header.as_deref(), now);
        let checked = admitted.and_then(|permit| permit.check(&event("visit")));
        checked.err().map_or("", |refusal| refusal.label())
    }

    #[test]
    fn decides_by_the_list_of_the_broker_or_the_rule_of_the_installation() {
        use UnlistedBrokers::{Allow, Deny, SameNamespace};
        for (others, broker, account, expected) in [
            (Allow, "orders", None, "no_token"),
            (Allow, "orders", Some("shop/checkout"), ""),
            (Allow, "orders", Some("shop/other"), "not_allowed"),
            (Allow, "orders", Some("web/page"), ""),
            (Allow, "orders", Some("web/cart"), ""),
            (Allow, "orders", Some("web/gone"), "invalid_token"),
            (Allow, "orders", Some("shop/gone"), "invalid_token"),
            (Allow, "orders", Some("bank/teller"), "not_allowed"),
            (Allow, "closed", None, "no_token"),
            (Allow, "closed", Some("shop/checkout"), "not_allowed"),
            (Allow, "newer", Some("shop/checkout"), "unknown_producers"),
            (Allow, "retained", None, ""),
            (Allow, "default", None, ""),
            (Allow, "default", Some("bank/teller"), ""),
            (SameNamespace, "default", None, "no_token"),
            (SameNamespace, "default", Some("shop/other"), ""),
            (SameNamespace, "default", Some("shop/gone"), "invalid_token"),
            (SameNamespace, "default", Some("web/page"), "not_allowed"),
            (SameNamespace, "orders", Some("shop/other"), "not_allowed"),
            (SameNamespace, "retained", Some("web/page"), "not_allowed"),
            (Deny, "default", None, "no_token"),
            (Deny, "default", Some("shop/other"), "not_allowed"),
            (Deny, "orders", Some("shop/checkout"), ""),
        ] {
            let access = Access::compile(&configuration(others), &Access::default());
            assert_eq!(
                outcome(&access, broker, account),
                expected,
                "{others:?} {broker} {account:?}"
            );
        }
        let local = Configuration {
            producers: None,
            ..configuration(Deny)
        };
        let access = Access::compile(&local, &Access::default());
        assert_eq!(outcome(&access, "orders", None), "", "nobody checks producers");
    }

    #[test]
    fn an_event_has_to_match_an_entry_that_lists_its_producer() {
        let access = Access::compile(&configuration(UnlistedBrokers::Deny), &Access::default());
        let admit = |name: &str| {
            let header = format!("bearer  {}", token(&claims("web", name)));
            access.admit("shop", "orders", Some(&header), now).unwrap()
        };
        let (page, cart) = (admit("page"), admit("cart"));
        for (permit, kind, allowed) in [
            (&page, "visit", true),
            (&page, "cart", false),
            (&cart, "visit", true),
            (&cart, "cart", true),
            (&cart, "order", false),
        ] {
            assert_eq!(permit.check(&event(kind)).is_ok(), allowed, "{kind}");
        }
        let refusal = cart.check(&event("order")).unwrap_err().to_string();
        assert!(
            refusal.contains("spec.producers[1] and spec.producers[2] of Broker shop/orders"),
            "{refusal}"
        );
    }

    #[test]
    fn a_stranger_cannot_tell_whether_a_broker_exists() {
        for others in [UnlistedBrokers::SameNamespace, UnlistedBrokers::Deny] {
            let access = Access::compile(&configuration(others), &Access::default());
            let answer = |broker: &str, account: Option<&str>| {
                let header = account.map(|name| format!("Bearer {}", token(&claims("bank", name))));
                let refusal = access.admit("shop", broker, header.as_deref(), now).unwrap_err();
                refusal.to_string().replace(broker, "BROKER")
            };
            for account in [None, Some("teller")] {
                let missing = answer("missing", account);
                for broker in ["orders", "closed", "default"] {
                    assert_eq!(answer(broker, account), missing, "{others:?} {account:?}");
                }
            }
        }
    }

    #[test]
    fn verified_tokens_are_remembered_for_as_long_as_the_keys_stay() {
        let first = Access::compile(&configuration(UnlistedBrokers::Deny), &Access::default());
        assert_eq!(outcome(&first, "orders", Some("shop/checkout")), "");
        let verifier = |access: &Access| {
            let installation = access.installation.as_ref().unwrap();
            installation.verifier.clone().unwrap()
        };
        let same = Access::compile(&configuration(UnlistedBrokers::Allow), &first);
        assert!(Arc::ptr_eq(&verifier(&first), &verifier(&same)));
        let mut rotated = configuration(UnlistedBrokers::Deny);
        let rules = rotated.producers.as_mut().unwrap();
        rules.issuer = Some(TokenIssuer {
            issuer: ISSUER.to_owned(),
            keys: BTreeMap::new(),
        });
        let rotated = Access::compile(&rotated, &first);
        assert_eq!(
            outcome(&rotated, "orders", Some("shop/checkout")),
            "invalid_token"
        );
        let mut unread = configuration(UnlistedBrokers::Deny);
        unread.producers.as_mut().unwrap().issuer = None;
        let unread = Access::compile(&unread, &first);
        assert_eq!(outcome(&unread, "orders", Some("shop/checkout")), "no_keys");
    }
}
