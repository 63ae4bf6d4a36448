//! Compiles who may post to brokers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    filters::expression,
    finding::Finding,
    observed::{ProducerCheck, ServiceAccount},
};
use crate::{
    api,
    routing::{self, Bounds, BrokerPolicy, ProducerRules, UnlistedBrokers},
};

/// Name that stands for all ServiceAccounts of a namespace.
const ALL: &str = "*";

/// Compiles the producers that a Broker of this namespace lists.
pub(super) fn listed(
    namespace: &str,
    producers: &[api::Producer],
    bounds: &mut Bounds,
) -> Result<Vec<routing::Producer>, Finding> {
    let producers = producers.iter().enumerate();
    let compiled = producers.map(
        |(
            index,
            api::Producer {
                service_account,
                filters,
            },
        )| {
            let api::ProducerAccount {
                namespace: other,
                name,
            } = service_account;
            let filters: Vec<_> = filters.iter().map(expression).collect();
            if let Err(rejection) = bounds.admit_filters(namespace, &filters) {
                return Err(Finding::bad(
                    "InvalidProducers",
                    format!("spec.producers[{index}].{rejection}; until then nobody may post to the broker"),
                ));
            }
            Ok(routing::Producer {
                namespace: other.as_deref().unwrap_or(namespace).to_owned(),
                name: (name != ALL).then(|| name.clone()),
                filters,
            })
        },
    );
    compiled.collect()
}

/// Compiles the rules of the installation, with the ServiceAccounts that any rule lets post.
pub(super) fn rules(
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
        .map(|producer| (&*producer.namespace, producer.name.as_deref()))
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
