//! Tests of who may post to which broker.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::*;
use crate::{
    access::{
        PresentedCertificate,
        tokens_for_test::{ISSUER, claims, issuer, token},
    },
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
                    {"identity": {"certificate": {"dnsName": "all.example"}}},
                    {"identity": {"certificate": {"uri": "spiffe://carts"}}, "filters": [{"exact": {"type": "cart"}}]},
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

fn admit(access: &Access, broker: &str, authorization: Option<&str>) -> Result<Permit, Refusal> {
    let presented = Presented {
        authorization,
        ..Presented::default()
    };
    access.admit("shop", broker, presented, now)
}

/// The label of the refusal of an event of type `visit`; empty if it may be posted.
fn outcome(access: &Access, broker: &str, account: Option<&str>) -> &'static str {
    let header = account.map(|account| {
        let (namespace, name) = account.split_once('/').unwrap();
        format!("Bearer {}", token(&claims(namespace, name)))
    });
    let admitted = admit(access, broker, header.as_deref());
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
        admit(&access, "orders", Some(&header)).unwrap()
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
            let refusal = admit(&access, broker, header).unwrap_err();
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
    let admitted = admit(access, broker, Some(authorization));
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
fn certificates_admit_to_the_broker_that_lists_them() {
    let page = format!("Bearer {}", token(&claims("web", "page")));
    let teller = format!("Bearer {}", token(&claims("bank", "teller")));
    for (broker, name, expires, authorization, expected) in [
        ("partners", "all.example", 1501, None, ""),
        ("partners", "all.example", 1501, Some("Bearer wrong"), ""),
        ("partners", "all.example", 1501, Some("Digest x"), ""),
        ("partners", "all.example", 1500, None, "expired_certificate"),
        (
            "partners",
            "all.example",
            1500,
            Some("Bearer wrong"),
            "invalid_token",
        ),
        ("partners", "all.example", 1500, Some(&*page), ""),
        ("partners", "other.example", 1501, None, "not_allowed"),
        ("partners", "other.example", 1501, Some("Bearer old"), ""),
        ("partners", "other.example", 1501, Some(&*page), ""),
        ("partners", "other.example", 1501, Some(&*teller), "not_allowed"),
        ("partners", "spiffe://carts", 1501, None, "event_not_allowed"),
        // An event may be posted if any of the entries allows it.
        ("partners", "spiffe://carts", 1501, Some("Bearer visits"), ""),
        ("orders", "all.example", 1501, None, "not_allowed"),
        ("closed", "all.example", 1501, None, "not_allowed"),
        ("default", "all.example", 1501, None, "not_allowed"),
        ("missing", "all.example", 1501, None, "not_allowed"),
    ] {
        let access = Access::compile(&configuration(UnlistedBrokers::SameNamespace), &Access::default());
        let name = [name.to_owned()];
        let presented = Presented {
            authorization,
            certificate: Some(PresentedCertificate {
                dns_names: &name,
                uris: &name,
                expiry: Timestamp::from_second(expires).unwrap(),
            }),
            ..Presented::default()
        };
        let admitted = access.admit("shop", broker, presented, now);
        let checked = admitted.and_then(|permit| permit.check(&event("visit")));
        let outcome = checked.err().map_or("", |refusal| refusal.label());
        assert_eq!(outcome, expected, "{broker} {name:?} {expires} {authorization:?}");
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
            for (configuration, expected) in [
                (&without, vec![bearer]),
                (&with_users, vec![bearer, "Basic realm=\"weir\""]),
            ] {
                let access = Access::compile(configuration, &Access::default());
                let refusal = admit(&access, broker, authorization).unwrap_err();
                assert_eq!(
                    access.challenges(&refusal).values(),
                    expected,
                    "{broker} {authorization:?}"
                );
            }
        }
    }
    let access = Access::compile(&with_users, &Access::default());
    let header = format!("Bearer {}", token(&claims("shop", "other")));
    let forbidden = admit(&access, "orders", Some(&header)).unwrap_err();
    assert_eq!(access.challenges(&forbidden), Challenges::None);
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
