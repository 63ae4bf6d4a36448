//! Decides who may post to which broker, compiled from a routing configuration.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    challenges::Challenges,
    permit::{ListedProducer, Permit},
    presented::{Evidence, Presented},
    refusal::{Refusal, RefusalKind},
    token::{Account, TokenError},
    verifier::{Unverified, Verifier},
};
use crate::routing::{
    BrokerPolicy, Configuration, ProducerIdentity, ProducerRules, UnlistedBrokers, broker_key,
};

/// Who may post, in all brokers. Immutable; routers swap it as a whole.
#[derive(Debug, Default)]
pub struct Access {
    /// Rules of the installation; `None` where nobody checks producers.
    installation: Option<Installation>,
    /// Brokers with rules of their own, by `namespace/name`.
    brokers: HashMap<String, BrokerRule>,
    /// Whether any Broker lists a user with a password.
    takes_basic: bool,
    /// Whether any Broker lists a certificate.
    takes_certificates: bool,
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
                deduplication: _,
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
            takes_basic: lists(configuration, |identity| {
                matches!(identity, ProducerIdentity::Basic(_))
            }),
            takes_certificates: lists(configuration, |identity| {
                matches!(identity, ProducerIdentity::Certificate(_))
            }),
        }
    }

    /// How a producer can authenticate after this refusal. That depends on the installation, not on the broker, which
    /// need not exist.
    pub fn challenges(&self, refusal: &Refusal) -> Challenges {
        match (refusal.kind(), refusal, self.takes_basic) {
            (RefusalKind::Unauthenticated, Refusal::InvalidToken(_), false) => Challenges::InvalidToken,
            (RefusalKind::Unauthenticated, Refusal::InvalidToken(_), true) => Challenges::InvalidTokenOrBasic,
            (RefusalKind::Unauthenticated, _, false) => Challenges::Bearer,
            (RefusalKind::Unauthenticated, _, true) => Challenges::BearerOrBasic,
            (RefusalKind::Forbidden | RefusalKind::TooMany | RefusalKind::Unavailable, ..) => {
                Challenges::None
            }
        }
    }

    /// Whether rejected requests are let pass, and only counted and logged.
    pub fn is_audit(&self) -> bool {
        self.installation.as_ref().is_some_and(|rules| rules.audit)
    }

    /// Decides whether a request may post to a broker, which need not exist. A certificate or a secret that the Broker
    /// lists comes before the token of a ServiceAccount.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admit(
        &self,
        namespace: &str,
        broker: &str,
        presented: Presented<'_>,
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
        let (now, address) = (now(), presented.address);
        let evidence = Evidence::parse(presented, now);
        if let Some(permit) =
            entries.and_then(|entries| installation.permit_known(entries, &broker, &evidence))
        {
            return Ok(permit);
        }
        // From here on, the answer must not depend on whether the broker exists, unless the caller may know.
        let (token, digest) = evidence.token(&broker, self.takes_certificates)?;
        let verifier = installation.verifier.as_ref().ok_or(Refusal::NoKeys)?;
        let may_post = |account: &Account| installation.knows(account);
        let verified = verifier.verify(token, digest, address, now, may_post);
        let verified = verified.map_err(|unverified| match unverified {
            Unverified::Invalid(error) => Refusal::InvalidToken(error),
            Unverified::Unchecked { retry_after } => Refusal::UncheckedToken { retry_after },
        })?;
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

/// Whether any Broker lists a producer of a kind.
fn lists(configuration: &Configuration, is_kind: fn(&ProducerIdentity) -> bool) -> bool {
    let policies = configuration.policies.iter();
    let mut producers = policies.flat_map(|policy| policy.producers.iter().flatten());
    producers.any(|producer| is_kind(&producer.identity))
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
        let verifier = issuer.as_ref().map(|issuer| match kept {
            Some(kept) if kept.issuer() == issuer => kept,
            Some(kept) => Arc::new(kept.renewed(issuer.clone())),
            None => Arc::new(Verifier::new(issuer.clone())),
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
            ProducerIdentity::BearerToken(_)
            | ProducerIdentity::Basic(_)
            | ProducerIdentity::Certificate(_)
            | ProducerIdentity::Nobody => false,
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

    /// Admits a request with a certificate or a secret that a Broker lists.
    fn permit_known(
        &self,
        entries: &[ListedProducer],
        broker: &str,
        evidence: &Evidence<'_>,
    ) -> Option<Permit> {
        let producer = || "the producer".to_owned();
        Permit::of_listed(
            entries,
            |identity| evidence.is_of(identity),
            producer,
            broker,
            self.audit,
        )
    }

    /// Whether the account still exists.
    fn knows(&self, account: &Account) -> bool {
        let accounts = self.accounts.get(&account.namespace);
        accounts.and_then(|accounts| accounts.get(&account.name)) == Some(&account.uid)
    }
}

#[cfg(test)]
mod tests;
