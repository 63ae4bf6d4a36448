//! Compiles who may post to brokers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    credentials,
    filters::expression,
    finding::Finding,
    observed::{ProducerCheck, ServiceAccount},
    resolver::Resolver,
};
use crate::{
    api::{self, SecretKeyRef, SecretValue},
    routing::{
        self, Bounds, BrokerPolicy, CertificateName, CredentialDigest, ProducerIdentity, ProducerRules,
        ProducerSecret, UnlistedBrokers,
    },
};

/// Name that stands for all ServiceAccounts of a namespace.
const ALL: &str = "*";

/// What an unusable Secret leads to. It stands before the problem, whose text may end with commands to run.
const CONSEQUENCE: &str = "this producer may not post";

/// The producers that a Broker lists.
pub(super) struct ListedProducers {
    pub(super) producers: Vec<routing::Producer>,
    /// Why the first entry without a usable credential has none.
    pub(super) unusable: Option<Finding>,
}

impl ListedProducers {
    /// Whether a ServiceAccount is among them.
    pub(super) fn has_account(&self) -> bool {
        self.producers.iter().any(is_account)
    }

    /// Whether all are ServiceAccounts.
    pub(super) fn has_accounts_only(&self) -> bool {
        self.producers.iter().all(is_account)
    }
}

fn is_account(producer: &routing::Producer) -> bool {
    matches!(producer.identity, ProducerIdentity::ServiceAccount { .. })
}

/// Lists the Secrets that a Broker references.
pub(super) fn references(spec: &api::BrokerSpec) -> impl Iterator<Item = &SecretKeyRef> {
    let producers = spec.producers.iter().flatten();
    let values = producers.flat_map(|producer| {
        let password = producer.basic.as_ref().map(|basic| &basic.password);
        producer.bearer_token.iter().chain(password)
    });
    values.map(|SecretValue { secret_key_ref }| secret_key_ref)
}

/// Compiles the producers that a Broker of this namespace lists. An entry without a usable credential lets nobody
/// post.
pub(super) fn listed(
    resolver: &Resolver<'_>,
    namespace: &str,
    producers: &[api::Producer],
    bounds: &mut Bounds,
) -> Result<ListedProducers, Finding> {
    let mut listed = ListedProducers {
        producers: Vec::with_capacity(producers.len()),
        unusable: None,
    };
    let secrets = BrokerSecrets { resolver, namespace };
    for (index, producer) in producers.iter().enumerate() {
        let api::Producer {
            service_account,
            bearer_token,
            basic,
            certificate,
            filters,
        } = producer;
        let path = format!("spec.producers[{index}]");
        let filters: Vec<_> = filters.iter().map(expression).collect();
        bounds
            .admit_filters(namespace, &filters)
            .map_err(|rejection| invalid(&format!("{path}.{rejection}")))?;
        let identity = match (service_account, bearer_token, basic, certificate) {
            (Some(listed), None, None, None) => Ok(account(namespace, listed)),
            (None, Some(token), None, None) => secrets.bearer_token(&path, token),
            (None, None, Some(basic), None) => secrets.basic(&path, basic),
            (None, None, None, Some(name)) => {
                Ok(ProducerIdentity::Certificate(certificate_name(&path, name)?))
            }
            _ => {
                return Err(invalid(&format!(
                    "{path}: exactly one of serviceAccount, bearerToken, basic and certificate must be set"
                )));
            }
        };
        let identity = identity.unwrap_or_else(|finding| {
            listed.unusable.get_or_insert(finding);
            ProducerIdentity::Nobody
        });
        listed.producers.push(routing::Producer { identity, filters });
    }
    Ok(listed)
}

fn invalid(problem: &str) -> Finding {
    let message = format!("{problem}; until then nobody may post to the broker");
    Finding::bad("InvalidProducers", message)
}

fn account(own: &str, api::ProducerAccount { namespace, name }: &api::ProducerAccount) -> ProducerIdentity {
    ProducerIdentity::ServiceAccount {
        namespace: namespace.as_deref().unwrap_or(own).to_owned(),
        name: (name != ALL).then(|| name.clone()),
    }
}

fn certificate_name(path: &str, name: &api::ProducerCertificate) -> Result<CertificateName, Finding> {
    let api::ProducerCertificate { dns_name, uri } = name;
    match (dns_name, uri) {
        (Some(name), None) => Ok(CertificateName::DnsName(name.clone())),
        (None, Some(uri)) => Ok(CertificateName::Uri(uri.clone())),
        _ => Err(invalid(&format!(
            "{path}.certificate: exactly one of dnsName and uri must be set"
        ))),
    }
}

/// The Secrets of a Broker's namespace.
struct BrokerSecrets<'a> {
    resolver: &'a Resolver<'a>,
    namespace: &'a str,
}

impl BrokerSecrets<'_> {
    fn bearer_token(&self, path: &str, token: &SecretValue) -> Result<ProducerIdentity, Finding> {
        let path = format!("{path}.bearerToken.secretKeyRef: {CONSEQUENCE}");
        let (token, version) = self.value(&path, token, check_token)?;
        Ok(ProducerIdentity::BearerToken(ProducerSecret {
            digest: CredentialDigest::of(token.as_bytes()),
            version,
        }))
    }

    fn basic(&self, path: &str, basic: &api::BasicCredentials) -> Result<ProducerIdentity, Finding> {
        let api::BasicCredentials { username, password } = basic;
        let path = format!("{path}.basic.password.secretKeyRef: {CONSEQUENCE}");
        let (password, version) = self.value(&path, password, check_password)?;
        Ok(ProducerIdentity::Basic(ProducerSecret {
            digest: CredentialDigest::of(format!("{username}:{password}").as_bytes()),
            version: format!("{username}:{version}"),
        }))
    }

    /// Returns a checked value, and what changes with it.
    fn value(
        &self,
        path: &str,
        SecretValue { secret_key_ref }: &SecretValue,
        check: fn(&str) -> Result<(), &'static str>,
    ) -> Result<(&str, String), Finding> {
        let Self { resolver, namespace } = self;
        let SecretKeyRef { name, key } = secret_key_ref;
        let (value, version) = credentials::secret_value(resolver, namespace, path, name, key)?;
        let value = credentials::without_line_break(value);
        check(value)
            .map_err(|problem| credentials::invalid_value(namespace, path, secret_key_ref, problem))?;
        Ok((value, format!("{name}/{key}@{version}")))
    }
}

/// Checks that a value can be sent as a bearer token.
fn check_token(value: &str) -> Result<(), &'static str> {
    credentials::check_text(value)?;
    match value.contains([' ', '\t']) {
        true => Err("is not a valid token: it has a space"),
        false => Ok(()),
    }
}

/// Checks that a value can be sent as a password.
fn check_password(value: &str) -> Result<(), &'static str> {
    credentials::check_text(value)?;
    match value.contains('\t') {
        true => Err("is not a valid password: it has a tab"),
        false => Ok(()),
    }
}

/// Compiles the rules of the installation, with the ServiceAccounts that any rule lets post. Without a cluster there are
/// rules only if a Broker lists producers that can be checked.
pub(super) fn rules(
    check: Option<&ProducerCheck>,
    namespaces: &BTreeSet<String>,
    policies: &[BrokerPolicy],
) -> Option<ProducerRules> {
    match check {
        Some(check) => Some(rules_of_cluster(check, namespaces, policies)),
        None => {
            let mut policies = policies.iter();
            let is_listed = policies.any(|policy| policy.producers.is_some());
            is_listed.then(ProducerRules::without_cluster)
        }
    }
}

fn rules_of_cluster(
    check: &ProducerCheck,
    namespaces: &BTreeSet<String>,
    policies: &[BrokerPolicy],
) -> ProducerRules {
    let ProducerCheck {
        others,
        audit,
        issuer,
        accounts,
    } = check;
    let listed: BTreeSet<(&str, Option<&str>)> = policies
        .iter()
        .flat_map(|policy| policy.producers.iter().flatten())
        .filter_map(|producer| match &producer.identity {
            ProducerIdentity::ServiceAccount { namespace, name } => Some((&**namespace, name.as_deref())),
            ProducerIdentity::BearerToken(_)
            | ProducerIdentity::Basic(_)
            | ProducerIdentity::Certificate(_)
            | ProducerIdentity::Nobody => None,
        })
        .collect();
    let may_post = |account: &ServiceAccount| {
        let (namespace, name) = (&*account.namespace, &*account.name);
        let in_own = *others == UnlistedBrokers::SameNamespace && namespaces.contains(namespace);
        in_own || listed.contains(&(namespace, None)) || listed.contains(&(namespace, Some(name)))
    };
    let mut known = BTreeMap::<String, BTreeMap<String, String>>::new();
    for account in accounts.iter().filter(|account| may_post(account)) {
        let ServiceAccount { namespace, name, uid } = account;
        let of_namespace = known.entry(namespace.clone()).or_default();
        of_namespace.insert(name.clone(), uid.clone());
    }
    ProducerRules {
        others: *others,
        audit: *audit,
        issuer: issuer.as_ref().ok().cloned(),
        accounts: known,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::*, *};
    use crate::routing::{Configuration, InstallationQuotas, Secret, TokenIssuer};

    /// Compiles a Broker `shop/orders` with these producers; Secret `partners` has this state.
    fn compiled(
        producers: &Value,
        state: Option<SecretState>,
        check: Option<ProducerCheck>,
    ) -> CompileOutcome {
        let broker = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "Broker",
            "metadata": {"namespace": "shop", "name": "orders", "uid": "u", "generation": 2},
            "spec": {"producers": producers},
        });
        let name = SecretName {
            namespace: "shop".into(),
            name: "partners".into(),
        };
        let observed = Observed {
            brokers: vec![serde_json::from_value(broker).unwrap()],
            secrets: state.map(|state| (name.clone(), state)).into_iter().collect(),
            producers: check,
            ..Observed::default()
        };
        let referrers = Referrers {
            sinks: &[],
            brokers: &observed.brokers,
            sources: &[],
        };
        assert!(referrers.secrets().into_keys().all(|named| named == name));
        compile(&observed, "cluster.local", InstallationQuotas::default())
    }

    fn check(issuer: Result<TokenIssuer, String>) -> Option<ProducerCheck> {
        Some(ProducerCheck {
            others: UnlistedBrokers::Allow,
            audit: false,
            issuer,
            accounts: Vec::new(),
        })
    }

    fn with_keys() -> Option<ProducerCheck> {
        check(Ok(TokenIssuer {
            issuer: "https://cluster".into(),
            keys: BTreeMap::new(),
        }))
    }

    fn found(version: &str, values: &[(&str, &str)]) -> SecretState {
        let values = values.iter();
        SecretState::Found {
            version: version.into(),
            values: values
                .map(|&(key, value)| (key.into(), Secret::from(value.to_owned())))
                .collect(),
            looked_for: None,
        }
    }

    fn reference(key: &str) -> Value {
        json!({"secretKeyRef": {"name": "partners", "key": key}})
    }

    fn identities(configuration: &Configuration) -> Option<Vec<&ProducerIdentity>> {
        let producers = configuration.policies[0].producers.as_ref()?;
        Some(producers.iter().map(|producer| &producer.identity).collect())
    }

    #[test]
    fn secrets_become_digests() {
        let producers = json!([
            {"bearerToken": reference("token")},
            {"basic": {"username": "acme", "password": reference("password")}},
            {"serviceAccount": {"name": "*"}},
        ]);
        let secret = |version, token| {
            found(
                version,
                &[("token", token), ("password", "s3cret: x"), ("other", "\u{fffd}")],
            )
        };
        let outcome = compiled(&producers, Some(secret("v1", "t0ken\r\n")), with_keys());
        let shared = |credential: &[u8], version: &str| ProducerSecret {
            digest: CredentialDigest::of(credential),
            version: version.into(),
        };
        assert_eq!(
            identities(&outcome.configuration).unwrap(),
            [
                &ProducerIdentity::BearerToken(shared(b"t0ken", "partners/token@v1")),
                &ProducerIdentity::Basic(shared(b"acme:s3cret: x", "acme:partners/password@v1")),
                &ProducerIdentity::ServiceAccount {
                    namespace: "shop".into(),
                    name: None,
                },
            ]
        );
        let valid = &outcome.diagnoses.brokers[0].valid;
        assert!(
            valid.holds && valid.message.contains("3 listed producers"),
            "{valid:?}"
        );
        let json = serde_json::to_string(&outcome.configuration).unwrap();
        for text in [json, format!("{outcome:?}")] {
            assert!(!text.contains("t0ken") && !text.contains("s3cret"), "{text}");
        }
        // A revision depends on the version, not on the value.
        let revision = |version, token| {
            compiled(&producers, Some(secret(version, token)), with_keys())
                .configuration
                .revision
        };
        assert_eq!(revision("v1", "another"), outcome.configuration.revision);
        assert_ne!(revision("v2", "t0ken"), outcome.configuration.revision);
    }

    #[test]
    fn an_unusable_secret_lets_nobody_post_and_is_reported() {
        let long = "x".repeat(8193);
        let token = json!({"bearerToken": reference("key")});
        let basic = json!({"basic": {"username": "acme", "password": reference("key")}});
        let (of_token, of_basic) = ("bearerToken.secretKeyRef: ", "basic.password.secretKeyRef: ");
        let of = |value| Some(found("v1", &[("key", value)]));
        for (producer, state, reason, field, part) in [
            (&token, None, SECRET_AWAITED, of_token, "has not been read yet"),
            (
                &token,
                Some(SecretState::NotFound),
                "SecretNotFound",
                of_token,
                "there is no Secret \"partners\" in namespace \"shop\"",
            ),
            (
                &token,
                Some(SecretState::Forbidden { account: None }),
                "SecretForbidden",
                of_token,
                "to grant access, run: kubectl create role",
            ),
            (
                &token,
                Some(SecretState::Withheld),
                "ChannelNotSecure",
                of_token,
                "enable TLS",
            ),
            (
                &basic,
                Some(found("v1", &[])),
                "SecretKeyNotFound",
                of_basic,
                "has no key \"key\"",
            ),
            (&token, of(""), "InvalidSecretValue", of_token, "is empty"),
            (&token, of("\n"), "InvalidSecretValue", of_token, "is empty"),
            (
                &token,
                of("s3cret x"),
                "InvalidSecretValue",
                of_token,
                "has a space",
            ),
            (
                &token,
                of("s3crét"),
                "InvalidSecretValue",
                of_token,
                "only printable ASCII",
            ),
            (
                &token,
                of(&long),
                "InvalidSecretValue",
                of_token,
                "is longer than 8192 bytes",
            ),
            (&basic, of(""), "InvalidSecretValue", of_basic, "is empty"),
            (
                &basic,
                of("s3cret\tx"),
                "InvalidSecretValue",
                of_basic,
                "has a tab",
            ),
        ] {
            let producers = json!([{"serviceAccount": {"name": "checkout"}}, producer]);
            let outcome = compiled(&producers, state, with_keys());
            let valid = &outcome.diagnoses.brokers[0].valid;
            assert_eq!((valid.holds, valid.reason), (false, reason), "{}", valid.message);
            let path = format!("spec.producers[1].{field}this producer may not post: ");
            assert!(valid.message.starts_with(&path), "{}", valid.message);
            assert!(valid.message.contains(part), "{}", valid.message);
            assert!(!valid.message.contains("s3cr"), "{}", valid.message);
            // The other entry holds.
            let identities = identities(&outcome.configuration).unwrap();
            assert!(matches!(
                identities[..],
                [ProducerIdentity::ServiceAccount { .. }, ProducerIdentity::Nobody]
            ));
        }
        let both = json!([{"serviceAccount": {"name": "checkout"}, "bearerToken": reference("key")}]);
        let names = json!([{"certificate": {"dnsName": "a", "uri": "b:c"}}]);
        for producers in [both, json!([{}]), names, json!([{"certificate": {}}])] {
            let outcome = compiled(&producers, of("x"), with_keys());
            assert_eq!(outcome.diagnoses.brokers[0].valid.reason, "InvalidProducers");
            assert_eq!(identities(&outcome.configuration), Some(vec![]));
        }
    }

    #[test]
    fn names_of_certificates_are_taken_over() {
        let producers = json!([
            {"certificate": {"dnsName": "orders.shop.example"}},
            {"certificate": {"uri": "spiffe://example/shop"}},
        ]);
        let outcome = compiled(&producers, None, None);
        let names = [
            CertificateName::DnsName("orders.shop.example".into()),
            CertificateName::Uri("spiffe://example/shop".into()),
        ];
        let expected = names.map(ProducerIdentity::Certificate);
        assert!(
            identities(&outcome.configuration)
                .unwrap()
                .into_iter()
                .eq(&expected)
        );
    }

    #[test]
    fn missing_keys_of_the_cluster_concern_service_accounts_only() {
        let no_keys = || check(Err("forbidden".into()));
        let account = json!({"serviceAccount": {"name": "checkout"}});
        let token = json!({"bearerToken": reference("key")});
        for (producers, reason) in [
            (json!([account, token]), "NoSigningKeys"),
            (json!([account]), "NoSigningKeys"),
            (json!([token]), "Ready"),
            (json!([]), "Ready"),
        ] {
            let outcome = compiled(&producers, Some(found("v1", &[("key", "x")])), no_keys());
            assert_eq!(outcome.diagnoses.brokers[0].valid.reason, reason, "{producers}");
        }
    }

    #[test]
    fn without_a_cluster_only_lists_with_other_producers_are_checked() {
        let account = json!({"serviceAccount": {"name": "checkout"}});
        let token = json!({"bearerToken": reference("key")});
        for (producers, expected) in [
            (json!(null), None),
            (json!([]), None),
            (json!([account]), None),
            (json!([account, token]), Some(2)),
            (json!([token]), Some(1)),
        ] {
            let outcome = compiled(&producers, Some(found("v1", &[("key", "x")])), None);
            let listed = identities(&outcome.configuration).map(|identities| identities.len());
            assert_eq!(listed, expected, "{producers}");
            let rules = expected.map(|_| ProducerRules::without_cluster());
            assert_eq!(outcome.configuration.producers, rules, "{producers}");
        }
    }
}
