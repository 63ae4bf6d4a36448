//! The resources that reference credentials. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    credentials,
    observed::{SecretName, TokenName},
    producers, tokens, webhooks,
};
use crate::api::{self, SecretKeyRef};

/// The resources that reference credentials.
#[derive(Clone, Copy, Debug, Default)]
pub struct Referrers<'a> {
    /// Sinks, which reference what they are sent.
    pub sinks: &'a [api::Sink],
    /// Brokers, which reference what their producers send.
    pub brokers: &'a [api::Broker],
    /// Sources, which reference what webhooks are verified by.
    pub sources: &'a [api::Source],
}

/// References to a Secret or a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Referenced keys; a token has none.
    pub keys: BTreeSet<String>,
    /// Resources that reference it, by UID and generation.
    pub referrers: BTreeSet<(String, i64)>,
}

impl Naming {
    fn add(&mut self, referrer: &ObjectMeta) {
        let uid = referrer.uid.clone().unwrap_or_default();
        let generation = referrer.generation.unwrap_or_default();
        self.referrers.insert((uid, generation));
    }
}

impl Referrers<'_> {
    /// Collects every referenced Secret.
    pub fn secrets(&self) -> BTreeMap<SecretName, Naming> {
        let mut named = BTreeMap::new();
        for sink in self.sinks {
            name_secrets(&mut named, &sink.metadata, credentials::references(&sink.spec));
        }
        for broker in self.brokers {
            let references = producers::references(&broker.spec);
            let references = references.map(|SecretKeyRef { name, key }| (name.as_str(), key.as_str()));
            name_secrets(&mut named, &broker.metadata, references);
        }
        for source in self.sources {
            let references = source.spec.webhook.iter().flat_map(webhooks::references);
            let references = references.map(|SecretKeyRef { name, key }| (name.as_str(), key.as_str()));
            name_secrets(&mut named, &source.metadata, references);
        }
        named
    }

    /// Collects every referenced token.
    pub fn tokens(&self) -> BTreeMap<TokenName, Naming> {
        let mut named = BTreeMap::<_, Naming>::new();
        for sink in self.sinks {
            let metadata = &sink.metadata;
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            if let Some(name) = tokens::named(namespace, &sink.spec) {
                named.entry(name).or_default().add(metadata);
            }
        }
        named
    }
}

/// Adds the Secrets that a resource references, each with a key.
fn name_secrets<'a>(
    named: &mut BTreeMap<SecretName, Naming>,
    referrer: &ObjectMeta,
    references: impl Iterator<Item = (&'a str, &'a str)>,
) {
    for (name, key) in references {
        let name = SecretName {
            namespace: referrer.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
        };
        let naming = named.entry(name).or_default();
        naming.keys.insert(key.to_owned());
        naming.add(referrer);
    }
}
