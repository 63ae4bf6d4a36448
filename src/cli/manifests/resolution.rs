//! Resolves manifests as a controller would in a cluster: computes the routing configuration and what is
//! unresolved.

use std::collections::{BTreeMap, BTreeSet};

use super::{DEFAULT_NAMESPACE, Manifest, ManifestProblem, Resource, ResourceKey, Surroundings};
use crate::{
    api::{self, DeliverySpec, Destination, Sink},
    resolve::{
        self, AddressableState, CompileOutcome, Diagnoses, Finding, Namespace, Observed, Referrers,
        ResourceId, SecretState, TokenName, TokenState, TriggerDiagnosis, named_addressables,
    },
    routing::{Configuration, InstallationQuotas, Secret, ServiceName},
};

/// Used in Service names only. Outside a cluster, Services are not reached by these names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Result of resolving.
#[derive(Debug)]
pub struct Resolution<'a> {
    /// Routing configuration.
    pub configuration: Configuration,
    /// Unresolved fields.
    pub unresolved: Vec<UnresolvedField<'a>>,
}

/// A finding that the controller would report in a status.
#[derive(Debug)]
pub struct UnresolvedField<'a> {
    /// The manifest it concerns.
    pub manifest: &'a Manifest,
    /// The field, such as `spec.sink`.
    pub path: String,
    /// The finding.
    pub finding: Finding,
    /// The missing Service, if that is the cause. The resource references it directly or through its Sink.
    pub missing_service: Option<ServiceName>,
}

impl<'a> UnresolvedField<'a> {
    /// Returns the Sink that a Trigger's field references, and the Trigger's namespace.
    pub fn named_sink(&self) -> Option<(String, &'a api::DestinationRef)> {
        let Resource::Trigger(trigger) = &self.manifest.resource else {
            return None;
        };
        let destination = match self.path.as_str() {
            "spec.sink" => &trigger.spec.sink,
            _ => trigger.spec.delivery.as_ref()?.dead_letter_sink.as_ref()?,
        };
        let (_, namespace, _) = self.manifest.key();
        Some((namespace, destination.reference.as_ref()?))
    }

    /// Returns the Sink that is missing or does not allow the namespace, if that is the cause.
    fn missing_sink(&self) -> Option<ResourceKey> {
        if !matches!(self.finding.reason, "SinkNotFound" | "SinkNotAllowed") {
            return None;
        }
        let (own, reference) = self.named_sink()?;
        let namespace = reference.namespace.clone().unwrap_or(own);
        Some(("Sink", namespace, reference.name.clone()))
    }

    /// Builds a problem with this message.
    pub fn problem(&self, message: &str) -> ManifestProblem {
        let (kind, namespace, name) = self.manifest.key();
        self.manifest
            .problem(&self.path, format!("{kind} {namespace}/{name}: {message}"))
    }
}

/// Computes routing as a controller would in a cluster with only these resources. The namespaces of the manifests
/// exist, and so does `default`, so that a first event can be posted to /default/default. `unusable` lists
/// resources that exist but have errors.
pub fn resolve<'a>(
    manifests: &'a [Manifest],
    unusable: &BTreeSet<ResourceKey>,
    surroundings: Surroundings,
) -> Resolution<'a> {
    let observed = observe(manifests, surroundings);
    let CompileOutcome {
        configuration,
        diagnoses,
    } = resolve::compile(&observed, CLUSTER_DOMAIN, InstallationQuotas::default());
    let mut unresolved = unresolved(manifests, diagnoses);
    for found in &mut unresolved {
        if let Some(("Sink", namespace, name)) = found.missing_sink().filter(|sink| unusable.contains(sink)) {
            found.finding.reason = "SinkUnusable";
            found.finding.message = format!("Sink {namespace}/{name} has errors; fix them first");
        }
    }
    Resolution {
        configuration,
        unresolved,
    }
}

/// Returns every Service that a manifest references.
pub fn named_services(manifests: &[Manifest]) -> BTreeSet<ServiceName> {
    let dead_letters = |delivery: &Option<DeliverySpec>| delivery.as_ref()?.dead_letter_sink.clone();
    let named = manifests.iter().flat_map(|manifest| {
        let (_, namespace, _) = manifest.key();
        let (service, destination) = match &manifest.resource {
            Resource::Broker(_) | Resource::Source(_) => (None, None),
            Resource::Sink(sink) => (sink.spec.service.clone(), dead_letters(&sink.spec.delivery)),
            Resource::Trigger(trigger) => (
                trigger.spec.sink.service.clone(),
                dead_letters(&trigger.spec.delivery),
            ),
        };
        let by_destination = destination.and_then(|destination| destination.service);
        [service, by_destination]
            .into_iter()
            .flatten()
            .map(move |target| ServiceName {
                namespace: namespace.clone(),
                name: target.name,
            })
    });
    named.collect()
}

fn observe(manifests: &[Manifest], surroundings: Surroundings) -> Observed {
    let Surroundings {
        services,
        mut namespaces,
        secrets,
        addressables,
        issues_tokens,
    } = surroundings;
    let named = manifests.iter().map(|manifest| manifest.key().1);
    let named: BTreeSet<_> = named.chain([DEFAULT_NAMESPACE.to_owned()]).collect();
    for name in named {
        if namespaces.iter().all(|namespace| namespace.name != name) {
            namespaces.push(Namespace {
                name,
                labels: Default::default(),
                terminating: false,
            });
        }
    }
    let mut observed = Observed {
        services,
        namespaces,
        secrets,
        ..Observed::default()
    };
    for manifest in manifests {
        match manifest.resource.clone() {
            Resource::Broker(broker) => observed.brokers.push(broker),
            Resource::Source(source) => observed.sources.push(*source),
            Resource::Trigger(trigger) => observed.triggers.push(trigger),
            Resource::Sink(sink) => observed.sinks.push(sink),
        }
    }
    let referrers = Referrers {
        sinks: &observed.sinks,
        brokers: &observed.brokers,
        sources: &observed.sources,
    };
    // No other controller will find a Secret that is not there.
    for name in referrers.secrets().into_keys() {
        observed.secrets.entry(name).or_insert(SecretState::NotFound);
    }
    observed.tokens = tokens(referrers, issues_tokens);
    for name in named_addressables(&observed.triggers, &observed.sinks) {
        let address = addressables.get(&name).cloned();
        let state = address.map_or(AddressableState::Unsupported, AddressableState::Found);
        observed.addressables.insert(name, state);
    }
    // Only the operator of a cluster limits this.
    observed.reach.shared_namespaces.insert("*".to_owned());
    observed
}

/// The tokens that Sinks are sent. Nobody issues them here.
fn tokens(referrers: Referrers<'_>, count_as_issued: bool) -> BTreeMap<TokenName, TokenState> {
    let state = match count_as_issued {
        true => TokenState::Issued {
            token: Secret::from("unknown".to_owned()),
            version: String::new(),
        },
        false => TokenState::Unsupported,
    };
    let named = referrers.tokens().into_keys();
    named.map(|name| (name, state.clone())).collect()
}

fn unresolved(manifests: &[Manifest], diagnoses: Diagnoses) -> Vec<UnresolvedField<'_>> {
    let Diagnoses {
        triggers,
        sinks,
        sources,
        brokers,
    } = diagnoses;
    let mut found: Vec<(&'static str, ResourceId, String, Finding)> = Vec::new();
    for trigger in triggers {
        let TriggerDiagnosis {
            subject,
            filters,
            transform,
            sink,
            dead_letter_sink,
            ..
        } = trigger;
        let mut add = |path: String, finding| found.push(("Trigger", subject.clone(), path, finding));
        add(field_of(&filters, "spec.filters"), filters);
        if let Some(finding) = transform {
            add(field_of(&finding, "spec.transform"), finding);
        }
        add("spec.sink".to_owned(), sink);
        if let Some(finding) = dead_letter_sink {
            add("spec.delivery.deadLetterSink".to_owned(), finding);
        }
    }
    for sink in sinks {
        let key = ("Sink", sink.subject.namespace.clone(), sink.subject.name.clone());
        let found_in = manifests.iter().find(|manifest| manifest.key() == key);
        let has_ref = found_in.is_some_and(
            |manifest| matches!(&manifest.resource, Resource::Sink(sink) if sink.spec.reference.is_some()),
        );
        let field = match sink.resolved.reason {
            "InvalidUri" => "spec.uri".to_owned(),
            _ if has_ref => field_of(&sink.resolved, "spec.ref"),
            _ => field_of(&sink.resolved, "spec.service"),
        };
        found.push(("Sink", sink.subject, field, sink.resolved));
    }
    for source in sources {
        let otherwise = match (source.is_webhook, source.is_kubernetes) {
            (true, _) => "spec.webhook",
            (_, true) => "spec.kubernetes",
            _ => "spec.cron",
        };
        let path = field_of(&source.valid, otherwise);
        found.push(("Source", source.subject, path, source.valid));
    }
    for broker in brokers {
        let path = field_of(&broker.valid, "metadata.name");
        found.push(("Broker", broker.subject, path, broker.valid));
    }
    let bad = found.into_iter().filter(|(.., finding)| !finding.holds);
    bad.filter_map(|(kind, subject, path, finding)| {
        let key = (kind, subject.namespace, subject.name);
        let manifest = manifests.iter().find(|manifest| manifest.key() == key)?;
        Some(UnresolvedField {
            missing_service: missing_service(manifests, manifest, &path, &finding),
            manifest,
            path,
            finding,
        })
    })
    .collect()
}

/// Returns the path of the faulty field, if the finding's message starts with one.
fn field_of(finding: &Finding, otherwise: &str) -> String {
    finding
        .message
        .split_once(": ")
        .map(|(path, _)| path)
        .filter(|path| path.starts_with("spec."))
        .unwrap_or(otherwise)
        .to_owned()
}

/// Returns the Service that a field references, directly or through its Sink.
fn missing_service(
    manifests: &[Manifest],
    manifest: &Manifest,
    path: &str,
    finding: &Finding,
) -> Option<ServiceName> {
    if finding.reason != "ServiceNotFound" {
        return None;
    }
    let (_, namespace, _) = manifest.key();
    match &manifest.resource {
        Resource::Broker(_) | Resource::Source(_) => None,
        Resource::Sink(sink) => Some(ServiceName {
            namespace,
            name: sink.spec.service.as_ref()?.name.clone(),
        }),
        Resource::Trigger(trigger) if path == "spec.sink" => {
            service_of(manifests, &namespace, &trigger.spec.sink)
        }
        Resource::Trigger(trigger) => {
            let own = trigger.spec.delivery.as_ref();
            if let Some(destination) = own.and_then(|delivery| delivery.dead_letter_sink.as_ref()) {
                return service_of(manifests, &namespace, destination);
            }
            // Refers to the Sink's own dead-letter sink, relative to the Sink's namespace.
            let (home, sink) = sink_of(manifests, &namespace, &trigger.spec.sink)?;
            let destination = sink.spec.delivery.as_ref()?.dead_letter_sink.as_ref()?;
            service_of(manifests, &home, destination)
        }
    }
}

fn service_of(manifests: &[Manifest], namespace: &str, destination: &Destination) -> Option<ServiceName> {
    let (namespace, target) = match &destination.service {
        Some(target) => (namespace.to_owned(), target),
        None => {
            let (namespace, sink) = sink_of(manifests, namespace, destination)?;
            (namespace, sink.spec.service.as_ref()?)
        }
    };
    Some(ServiceName {
        namespace,
        name: target.name.clone(),
    })
}

/// Returns the Sink that a destination references, and its namespace.
fn sink_of<'a>(
    manifests: &'a [Manifest],
    namespace: &str,
    destination: &Destination,
) -> Option<(String, &'a Sink)> {
    let reference = destination.reference.as_ref()?;
    let namespace = reference.namespace.as_deref().unwrap_or(namespace);
    let key = ("Sink", namespace.to_owned(), reference.name.clone());
    let manifest = manifests.iter().find(|manifest| manifest.key() == key)?;
    match &manifest.resource {
        Resource::Sink(sink) => Some((namespace.to_owned(), sink)),
        Resource::Broker(_) | Resource::Source(_) | Resource::Trigger(_) => None,
    }
}
