//! Decides who may post to which broker, compiled from a routing configuration.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    credential::PresentedCredential,
    permit::{ListedProducer, Permit},
    refusal::{Refusal, RefusalKind},
    token::{Account, TokenError},
    verifier::Verifier,
};
use crate::routing::{
    BrokerPolicy, Configuration, ProducerIdentity, ProducerRules, UnlistedBrokers, broker_key,
};

/// Challenge after an invalid token (RFC 6750, section 3). One without an error follows a request without a token.
const INVALID_TOKEN: &str = "Bearer error=\"invalid_token\"";

/// Challenge for a user name and a password (RFC 7617, section 2).
const BASIC: &str = "Basic realm=\"weir\"";

/// Who may post, in all brokers. Immutable; routers swap it as a whole.
#[derive(Debug, Default)]
pub struct Access {
    /// Rules of the installation; `None` where nobody checks producers.
    installation: Option<Installation>,
    /// Brokers with rules of their own, by `namespace/name`.
    brokers: HashMap<String, BrokerRule>,
    /// Whether any Broker lists a user with a password.
    takes_basic: bool,
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
            takes_basic: configuration.policies.iter().any(lists_user),
        }
    }

    /// How a producer can authenticate after this refusal: values of `WWW-Authenticate`. They depend on the
    /// installation, not on the broker, which need not exist.
    pub fn challenges(&self, refusal: &Refusal) -> &'static [&'static str] {
        match (refusal.kind(), refusal, self.takes_basic) {
            (RefusalKind::Unauthenticated, Refusal::InvalidToken(_), false) => &[INVALID_TOKEN],
            (RefusalKind::Unauthenticated, Refusal::InvalidToken(_), true) => &[INVALID_TOKEN, BASIC],
            (RefusalKind::Unauthenticated, _, false) => &["Bearer"],
            (RefusalKind::Unauthenticated, _, true) => &["Bearer", BASIC],
            (RefusalKind::Forbidden | RefusalKind::Unavailable, ..) => &[],
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
        let credential = PresentedCredential::parse(authorization.ok_or(Refusal::NoToken)?)?;
        let by_secret =
            entries.and_then(|entries| installation.permit_by_secret(entries, &broker, &credential));
        if let Some(permit) = by_secret {
            return Ok(permit);
        }
        // From here on, the answer must not depend on whether the broker exists, unless the caller may know.
        let PresentedCredential::Bearer(token, _) = credential else {
            return Err(Refusal::UnknownUser);
        };
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

fn lists_user(policy: &BrokerPolicy) -> bool {
    let mut producers = policy.producers.iter().flatten();
    producers.any(|producer| matches!(producer.identity, ProducerIdentity::Basic(_)))
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
        let lists = |identity: &ProducerIdentity| match identity {
            ProducerIdentity::ServiceAccount { namespace, name } => {
                *namespace == caller.namespace && name.as_ref().is_none_or(|name| *name == caller.name)
            }
            ProducerIdentity::BearerToken(_) | ProducerIdentity::Basic(_) | ProducerIdentity::Nobody => false,
        };
        let producer = || format!("ServiceAccount {}", caller.key());
        let permit = Permit::of_listed(entries, lists, producer, broker, self.audit);
        permit.ok_or_else(|| {
            let (account, broker) = (caller.key(), broker.to_owned());
            match caller.namespace == namespace {
                true => Refusal::NotListed { account, broker },
                false => Refusal::Stranger { account, broker },
            }
        })
    }

    /// Admits a request that presents a secret that a Broker lists.
    fn permit_by_secret(
        &self,
        entries: &[ListedProducer],
        broker: &str,
        credential: &PresentedCredential<'_>,
    ) -> Option<Permit> {
        let lists = |identity: &ProducerIdentity| match (identity, credential) {
            (ProducerIdentity::BearerToken(secret), PresentedCredential::Bearer(_, digest))
            | (ProducerIdentity::Basic(secret), PresentedCredential::Basic(digest)) => {
                secret.digest.matches(digest)
            }
            _ => false,
        };
        let producer = || "the producer".to_owned();
        Permit::of_listed(entries, lists, producer, broker, self.audit)
    }

    /// Whether the account still exists.
    fn knows(&self, account: &Account) -> bool {
        let accounts = self.accounts.get(&account.namespace);
        accounts.and_then(|accounts| accounts.get(&account.name)) == Some(&account.uid)
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;
    use crate::{
        access::tokens_for_test::{ISSUER, claims, issuer, token},
        cloudevents::{Event, EventBuilder},
        routing::{Broker, CredentialDigest, TokenIssuer},
    };

    fn now() -> Timestamp {
        Timestamp::from_second(1500).unwrap()
    }

    /// Namespace `shop` has a Broker `orders` with ServiceAccounts, a Broker `partners` with other producers too, a Broker
    /// `closed` with none, one that cannot be decoded, and brokers without a Broker.
    fn configuration(others: UnlistedBrokers) -> Configuration {
        let policy = |name: &str, producers: serde_json::Value| {
            let policy = json!({
                "uid": name, "namespace": "shop", "name": name, "generation": 1, "producers": producers,
            });
            serde_json::from_value::<BrokerPolicy>(policy).unwrap()
        };
        let named = |name: &str| (name.to_owned(), format!("uid-of-{name}"));
        let account = |namespace: &str, name: Option<&str>| json!({"serviceAccount": {"namespace": namespace, "name": name}});
        let secret =
            |credential: &str| json!({"digest": CredentialDigest::of(credential.as_bytes()), "version": "v"});
        Configuration {
            policies: vec![
                policy(
                    "orders",
                    json!([
                        {"identity": account("shop", Some("checkout"))},
                        {"identity": account("web", None), "filters": [{"exact": {"type": "visit"}}]},
                        {"identity": account("web", Some("cart")), "filters": [{"exact": {"type": "cart"}}]},
                        {"identity": account("shop", Some("gone"))},
                    ]),
                ),
                policy(
                    "partners",
                    json!([
                        {"identity": {"bearerToken": secret("old")}},
                        {"identity": {"bearerToken": secret("new")}},
                        {"identity": "nobody"},
                        {"identity": {"bearerToken": secret("visits")}, "filters": [{"exact": {"type": "visit"}}]},
                        {"identity": {"basic": secret("acme:carts")}, "filters": [{"exact": {"type": "cart"}}]},
                        {"identity": {"basic": secret("acme:all")}},
                        {"identity": account("web", Some("page"))},
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
            let answer = |broker: &str, header: Option<&str>| {
                let refusal = access.admit("shop", broker, header, now).unwrap_err();
                (
                    refusal.to_string().replace(broker, "BROKER"),
                    access.challenges(&refusal),
                )
            };
            let teller = format!("Bearer {}", token(&claims("bank", "teller")));
            let wrong = basic("acme:wrong");
            for header in [
                None,
                Some(&*teller),
                Some("Bearer wrong"),
                Some(&wrong),
                Some("Basic wrong"),
            ] {
                let missing = answer("missing", header);
                for broker in ["orders", "partners", "closed", "default"] {
                    assert_eq!(answer(broker, header), missing, "{others:?} {header:?}");
                }
            }
        }
    }

    /// The label of the refusal of an event of type `visit` with this header; empty if it may be posted.
    fn outcome_of(access: &Access, broker: &str, authorization: &str) -> &'static str {
        let admitted = access.admit("shop", broker, Some(authorization), now);
        let checked = admitted.and_then(|permit| permit.check(&event("visit")));
        checked.err().map_or("", |refusal| refusal.label())
    }

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    #[test]
    fn secrets_admit_to_the_broker_that_lists_them() {
        use UnlistedBrokers::{Allow, Deny};
        let page = format!("Bearer {}", token(&claims("web", "page")));
        for (broker, authorization, expected) in [
            ("partners", "Bearer old", ""),
            ("partners", "Bearer new", ""),
            ("partners", "Bearer visits", ""),
            ("partners", &page, ""),
            ("partners", "Bearer ol", "invalid_token"),
            ("partners", "Bearer acme:all", "invalid_token"),
            ("partners", &basic("acme:all"), ""),
            ("partners", &basic("acme:carts"), "event_not_allowed"),
            ("partners", &basic("acme:al"), "invalid_credentials"),
            ("partners", &basic("acm:eall"), "invalid_credentials"),
            ("partners", &basic("old:"), "invalid_credentials"),
            ("partners", "Basic old", "invalid_credentials"),
            ("partners", "Digest old", "no_token"),
            ("orders", "Bearer old", "invalid_token"),
            ("orders", &basic("acme:all"), "invalid_credentials"),
            ("closed", "Bearer old", "invalid_token"),
            ("newer", "Bearer old", "unknown_producers"),
        ] {
            for others in [Allow, Deny] {
                let access = Access::compile(&configuration(others), &Access::default());
                let outcome = outcome_of(&access, broker, authorization);
                assert_eq!(outcome, expected, "{others:?} {broker} {authorization}");
            }
        }
        // Neither the keys of the cluster nor an issuer is needed.
        for rules in [ProducerRules::default(), ProducerRules::without_cluster()] {
            let configuration = Configuration {
                producers: Some(rules.clone()),
                ..configuration(Allow)
            };
            let access = Access::compile(&configuration, &Access::default());
            assert_eq!(outcome_of(&access, "partners", "Bearer old"), "", "{rules:?}");
            let expected = if rules.issuer.is_some() {
                "invalid_token"
            } else {
                "no_keys"
            };
            assert_eq!(outcome_of(&access, "partners", &page), expected, "{rules:?}");
        }
    }

    #[test]
    fn challenges_name_the_schemes_of_the_installation() {
        let with_users = configuration(UnlistedBrokers::Deny);
        let mut without = with_users.clone();
        without.policies.retain(|policy| policy.name != "partners");
        let invalid = "Bearer error=\"invalid_token\"";
        for (authorization, bearer) in [
            (None, "Bearer"),
            (Some("Bearer x"), invalid),
            (Some("Basic x"), "Bearer"),
        ] {
            for broker in ["partners", "orders", "missing"] {
                for (configuration, expected) in
                    [(&without, vec![bearer]), (&with_users, vec![bearer, BASIC])]
                {
                    let access = Access::compile(configuration, &Access::default());
                    let refusal = access.admit("shop", broker, authorization, now).unwrap_err();
                    assert_eq!(
                        access.challenges(&refusal),
                        expected,
                        "{broker} {authorization:?}"
                    );
                }
            }
        }
        let access = Access::compile(&with_users, &Access::default());
        let header = format!("Bearer {}", token(&claims("shop", "other")));
        let forbidden = access.admit("shop", "orders", Some(&header), now).unwrap_err();
        assert_eq!(access.challenges(&forbidden), [""; 0]);
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
