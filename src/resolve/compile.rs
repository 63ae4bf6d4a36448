//! Computes the routing configuration and the diagnoses from the observed resources. Pure.

use std::{collections::BTreeSet, time::Duration};

use http::{Uri, uri::Scheme};
use kube::Resource;

use super::{
    addressables, brokers,
    credentials::{self, SinkHeaders},
    diagnosis::{Diagnoses, ResourceId, SinkDiagnosis, TriggerDiagnosis},
    filters::expression,
    finding::Finding,
    observed::{AddressableState, Observed},
    producers,
    resolver::{Address, Resolver},
    revision, sources, tokens, transforms,
};
use crate::{
    api::{self, DeliverySpec},
    routing::{
        self, Authorities, AuthoritiesDigest, Bounds, Broker, Configuration, Delivery, HttpEndpoint,
        InstallationQuotas, TriggerRejection, broker_key,
    },
    trust,
};

/// Result of compiling.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompileOutcome {
    /// Configuration for the routers.
    pub configuration: Configuration,
    /// Input for the statuses.
    pub diagnoses: Diagnoses,
}

/// Computes routing. The result does not depend on the order of the resources.
///
/// `cluster_domain` is the suffix after `.svc.` in names of Services, usually `cluster.local`. `quotas` are the
/// installation's.
pub fn compile(observed: &Observed, cluster_domain: &str, quotas: InstallationQuotas) -> CompileOutcome {
    let resolver = Resolver::new(observed, cluster_domain);
    let mut outcome = CompileOutcome::default();
    let CompileOutcome {
        configuration,
        diagnoses,
    } = &mut outcome;
    configuration.namespaces = observed
        .namespaces
        .iter()
        .map(|namespace| namespace.name.clone())
        .collect();
    configuration.quota = quotas.of_others();
    configuration.deduplication = quotas.deduplication.of(None);
    configuration.unread.clone_from(&observed.unread_triggers);
    let mut bounds = Bounds::default();
    for filtering in by_age(observed) {
        match filtering {
            Filtering::Trigger(trigger) => {
                let Some(subject) = subject(trigger) else { continue };
                let (route, diagnosis) = compile_trigger(&resolver, &mut bounds, subject, &trigger.spec);
                configuration.triggers.push(route);
                diagnoses.triggers.push(diagnosis);
            }
            Filtering::Source(source) => {
                let Some(subject) = subject(source) else { continue };
                let (route, diagnosis) = sources::compile(&resolver, &mut bounds, subject, &source.spec);
                configuration.sources.extend(route);
                diagnoses.sources.push(diagnosis);
            }
        }
    }
    for sink in &observed.sinks {
        let Some(subject) = subject(sink) else { continue };
        diagnoses
            .sinks
            .push(diagnose_sink(&resolver, subject, &sink.spec));
    }
    for broker in &observed.brokers {
        let Some(subject) = subject(broker) else { continue };
        let (policy, diagnosis) = brokers::compile(
            &resolver,
            subject,
            &broker.spec,
            quotas,
            observed.producers.as_ref(),
            &mut bounds,
        );
        configuration.policies.extend(policy);
        diagnoses.brokers.push(diagnosis);
    }
    let by = |a: &ResourceId, b: &ResourceId| {
        (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid))
    };
    configuration
        .triggers
        .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    configuration
        .policies
        .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    configuration
        .sources
        .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    diagnoses.triggers.sort_by(|a, b| by(&a.subject, &b.subject));
    diagnoses.sinks.sort_by(|a, b| by(&a.subject, &b.subject));
    diagnoses.sources.sort_by(|a, b| by(&a.subject, &b.subject));
    diagnoses.brokers.sort_by(|a, b| by(&a.subject, &b.subject));
    configuration.brokers = named_brokers(configuration);
    configuration.closed.clone_from(&observed.unread_brokers);
    configuration.producers = producers::rules(
        observed.producers.as_ref(),
        &configuration.namespaces,
        &configuration.policies,
    );
    configuration.authorities = named_authorities(observed, &configuration.triggers);
    configuration.revision = revision::of(configuration);
    outcome
}

/// A resource whose filters count towards the [`Bounds`].
enum Filtering<'a> {
    Trigger(&'a api::Trigger),
    Source(&'a api::Source),
}

/// Returns Triggers and Sources, the oldest first, so that new ones do not displace working ones.
fn by_age(observed: &Observed) -> Vec<Filtering<'_>> {
    let triggers = observed.triggers.iter().map(Filtering::Trigger);
    let sources = observed.sources.iter().map(Filtering::Source);
    let mut all: Vec<_> = triggers.chain(sources).collect();
    all.sort_by_cached_key(|filtering| {
        let metadata = match filtering {
            Filtering::Trigger(trigger) => &trigger.metadata,
            Filtering::Source(source) => &source.metadata,
        };
        let created = metadata.creation_timestamp.clone().map(|time| time.0);
        (created, metadata.namespace.clone(), metadata.name.clone())
    });
    all
}

/// Collects the brokers that Brokers, Triggers and Sources name.
fn named_brokers(configuration: &Configuration) -> BTreeSet<Broker> {
    let Configuration {
        policies,
        triggers,
        sources,
        ..
    } = configuration;
    let by_policies = policies.iter().map(|item| (&item.namespace, &item.name));
    let by_triggers = triggers.iter().map(|item| (&item.namespace, &item.broker));
    let by_sources = sources.iter().map(|item| (&item.namespace, &item.broker));
    let named = by_policies.chain(by_triggers).chain(by_sources);
    named
        .map(|(namespace, name)| Broker {
            namespace: namespace.clone(),
            name: name.clone(),
        })
        .collect()
}

/// Collects the authorities that destinations reference.
fn named_authorities(observed: &Observed, triggers: &[routing::Trigger]) -> Authorities {
    let destinations = triggers.iter().flat_map(routing::Trigger::destinations);
    let named: BTreeSet<_> = destinations
        .filter_map(|routing::Destination::Http(endpoint)| endpoint.ca_certs.as_ref())
        .collect();
    let of_sinks = observed
        .sinks
        .iter()
        .filter_map(|sink| sink.spec.ca_certs.as_deref());
    let of_addressables = observed.addressables.values().filter_map(|state| match state {
        AddressableState::Found(address) => address.ca_certs.as_deref(),
        _ => None,
    });
    of_sinks
        .chain(of_addressables)
        .filter(|pem| named.contains(&AuthoritiesDigest::of(pem)))
        .collect()
}

/// Returns `None` for resources that are being deleted or were never stored.
fn subject<K: Resource>(resource: &K) -> Option<ResourceId> {
    let metadata = resource.meta();
    if metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(ResourceId {
        uid: metadata.uid.clone()?,
        namespace: metadata.namespace.clone()?,
        name: metadata.name.clone()?,
        generation: metadata.generation.unwrap_or_default(),
    })
}

fn compile_trigger(
    resolver: &Resolver<'_>,
    bounds: &mut Bounds,
    subject: ResourceId,
    spec: &api::TriggerSpec,
) -> (routing::Trigger, TriggerDiagnosis) {
    let api::TriggerSpec {
        broker,
        filters,
        transform,
        sink,
        delivery,
        start,
        suspend,
    } = spec;
    let expressions: Vec<_> = filters.iter().map(expression).collect();
    let (resolved, sink) = destination(resolver, &subject.namespace, sink);
    let (finding, destination) = match resolved {
        Ok(destination) => (
            Finding::good("Resolved", format!("events go to {}", destination.uri())),
            Some(destination),
        ),
        Err(finding) => (finding, None),
    };
    let mut merged = merge(
        delivery.as_ref(),
        sink.and_then(|sink| sink.spec.delivery.as_ref()),
    );
    let dead_letter_sink = match dead_letter_sink(resolver, &subject.namespace, delivery.as_ref(), sink) {
        None => None,
        Some(Ok(destination)) => {
            let finding = Finding::good("Resolved", format!("dead letters go to {}", destination.uri()));
            merged.dead_letter_sink = Some(destination);
            Some(finding)
        }
        Some(Err(finding)) => Some(Finding {
            message: format!(
                "deadLetterSink: {}; until then the router keeps dead letters",
                finding.message
            ),
            ..finding
        }),
    };
    let mut route = routing::Trigger {
        uid: subject.uid.clone(),
        namespace: subject.namespace.clone(),
        name: subject.name.clone(),
        generation: subject.generation,
        broker: broker.clone(),
        filters: expressions,
        transform: transform.as_ref().map(transforms::transform),
        destination: destination.clone(),
        delivery: merged,
        start: match start {
            None | Some(api::Start::Latest) => routing::Start::Latest,
            Some(api::Start::Earliest) => routing::Start::Earliest,
            Some(api::Start::At(time)) => routing::Start::At(*time),
        },
        start_is_set: start.is_some(),
        suspend: *suspend,
        refused: None,
    };
    let admitted = bounds.admit(&route).map(|_| ());
    let transform = transforms::finding(&route, &admitted);
    let filters = match &admitted {
        Ok(()) | Err(TriggerRejection::Transform(_)) if route.filters.is_empty() => {
            Finding::good("NoFilters", "every event of the broker matches")
        }
        Ok(()) | Err(TriggerRejection::Transform(_)) => Finding::good("Compiled", "the filters are valid"),
        Err(rejection) => Finding::bad(rejection.label(), format!("spec.{rejection}")),
    };
    if let Err(rejection) = admitted {
        route.reject(rejection.to_string());
    }
    let diagnosis = TriggerDiagnosis {
        broker: broker_key(&subject.namespace, broker),
        subject,
        filters,
        transform,
        sink: finding,
        dead_letter_sink,
        sink_uri: destination.map(|destination| destination.uri().to_owned()),
        suspended: *suspend,
    };
    (route, diagnosis)
}

/// Resolves a Trigger's destination, and its Sink. The Sink's delivery settings apply even while its address is
/// unknown.
fn destination<'a>(
    resolver: &Resolver<'a>,
    namespace: &str,
    destination: &api::Destination,
) -> (Result<routing::Destination, Finding>, Option<&'a api::Sink>) {
    let api::Destination {
        reference,
        service,
        uri,
    } = destination;
    let address = match (reference, service, uri) {
        (Some(reference), None, None) => match addressables::addressable(reference) {
            Some(object) => {
                addressables::resolve_own(resolver, namespace, &object, reference.namespace.as_deref())
            }
            None => match resolver.sink(namespace, reference) {
                Ok(sink) => return (through(resolver, namespace, reference, sink), Some(sink)),
                Err(finding) => Err(finding),
            },
        },
        (None, Some(target), None) => resolver.service(namespace, target),
        (None, None, Some(uri)) => resolver.uri(uri),
        _ => Err(Finding::bad(
            "InvalidSink",
            "exactly one of ref, service and uri must be set",
        )),
    };
    let plain = |address: Address<'_>| {
        let Address {
            uri,
            service,
            ca_certs,
        } = address;
        routing::Destination::Http(HttpEndpoint {
            ca_certs: ca_certs.map(AuthoritiesDigest::of),
            ..HttpEndpoint::new(uri, service)
        })
    };
    (address.map(plain), None)
}

/// Resolves a Sink's destination, relative to the namespace of the referrer.
fn through(
    resolver: &Resolver<'_>,
    namespace: &str,
    reference: &api::DestinationRef,
    sink: &api::Sink,
) -> Result<routing::Destination, Finding> {
    let home = sink.metadata.namespace.as_deref().unwrap_or(namespace);
    sink_destination(resolver, home, &sink.spec).map_err(|finding| Finding {
        message: format!("Sink {:?}: {}", reference.name, finding.message),
        ..finding
    })
}

/// Resolves the Trigger's dead-letter sink, or else its Sink's, relative to the Sink's namespace.
fn dead_letter_sink(
    resolver: &Resolver<'_>,
    namespace: &str,
    delivery: Option<&DeliverySpec>,
    sink: Option<&api::Sink>,
) -> Option<Result<routing::Destination, Finding>> {
    let own = delivery.and_then(|delivery| delivery.dead_letter_sink.as_ref());
    let (namespace, wanted) = match (own, sink) {
        (Some(own), _) => (namespace, own),
        (None, Some(sink)) => (
            sink.metadata.namespace.as_deref().unwrap_or(namespace),
            sink.spec.delivery.as_ref()?.dead_letter_sink.as_ref()?,
        ),
        (None, None) => return None,
    };
    Some(destination(resolver, namespace, wanted).0)
}

fn sink_destination(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<routing::Destination, Finding> {
    let api::SinkSpec {
        reference,
        service,
        uri,
        ca_certs,
        tls,
        authorization,
        headers,
        // Resolved with the other credentials below.
        signature: _,
        content_mode,
        delivery: _,
        allowed_namespaces: _,
    } = spec;
    let Address {
        uri,
        service,
        ca_certs: announced,
    } = match (reference, service, uri) {
        (Some(object), None, None) => addressables::resolve(resolver, namespace, object),
        (None, Some(target), None) => resolver.service(namespace, target),
        (None, None, Some(uri)) => resolver.uri(uri),
        _ => Err(Finding::bad(
            "InvalidSink",
            "exactly one of ref, service and uri must be set in spec",
        )),
    }?;
    if let Some(pem) = ca_certs {
        trust::authorities(pem)
            .map_err(|error| Finding::bad("InvalidCaCerts", format!("spec.caCerts: {error}")))?;
    }
    let is_secure = uri
        .parse::<Uri>()
        .is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTPS));
    let has_credentials = authorization.is_some() || headers.iter().any(|header| header.value_from.is_some());
    if has_credentials && service.is_none() && !is_secure {
        let field = match reference {
            Some(_) => "spec.ref",
            None => "spec.uri",
        };
        return Err(Finding::bad(
            "InsecureUri",
            format!(
                "{field}: credentials are sent outside the cluster over https only; use a destination with an https:// URL, or a Service"
            ),
        ));
    }
    if tls.is_some() && !is_secure {
        return Err(Finding::bad(
            "InsecureUri",
            "spec.tls: a client certificate requires https, but the destination's URL is an http:// URL",
        ));
    }
    let SinkHeaders { secret, plain } = credentials::headers(resolver, namespace, spec)?;
    Ok(routing::Destination::Http(HttpEndpoint {
        uri,
        service,
        content_mode: match content_mode {
            api::ContentMode::AsReceived => routing::ContentMode::AsReceived,
            api::ContentMode::Binary => routing::ContentMode::Binary,
            api::ContentMode::Structured => routing::ContentMode::Structured,
        },
        ca_certs: ca_certs.as_deref().or(announced).map(AuthoritiesDigest::of),
        headers: secret,
        plain_headers: plain,
        signing_keys: credentials::signing_keys(resolver, namespace, spec)?,
        client_certificate: credentials::client_certificate(resolver, namespace, spec)?,
        service_account_token: tokens::service_account_token(resolver, namespace, spec)?,
        client_credentials: credentials::client_credentials(resolver, namespace, spec)?,
    }))
}

fn diagnose_sink(resolver: &Resolver<'_>, subject: ResourceId, spec: &api::SinkSpec) -> SinkDiagnosis {
    match sink_destination(resolver, &subject.namespace, spec) {
        Ok(destination) => SinkDiagnosis {
            subject,
            resolved: Finding::good("Resolved", format!("events go to {}", destination.uri())),
            uri: Some(destination.uri().to_owned()),
        },
        Err(resolved) => SinkDiagnosis {
            subject,
            resolved,
            uri: None,
        },
    }
}

/// Merges the settings: the Trigger's override the Sink's, which override the defaults.
fn merge(trigger: Option<&DeliverySpec>, sink: Option<&DeliverySpec>) -> Delivery {
    let mut delivery = Delivery::default();
    for spec in [sink, trigger].into_iter().flatten() {
        let DeliverySpec {
            retry,
            retry_duration,
            backoff_policy,
            backoff_delay,
            backoff_max,
            timeout,
            concurrency,
            retry_after_max,
            rate_limit,
            ordering,
            // Resolved separately, since it depends on whether the Trigger or the Sink defines it.
            dead_letter_sink: _,
        } = spec;
        let duration = |text: &Option<api::DurationText>| text.map(Duration::from);
        // The schema rejects zero. A zero stored before that rule existed counts as unset.
        let positive =
            |text: &Option<api::DurationText>| duration(text).filter(|duration| !duration.is_zero());
        if retry.is_some() || retry_duration.is_some() {
            delivery.retry = routing::Retry {
                attempts: *retry,
                duration: duration(retry_duration),
            };
        }
        if let Some(policy) = backoff_policy {
            delivery.backoff_policy = match policy {
                api::BackoffPolicy::Exponential => routing::BackoffPolicy::Exponential,
                api::BackoffPolicy::Linear => routing::BackoffPolicy::Linear,
            };
        }
        delivery.backoff_delay = positive(backoff_delay).unwrap_or(delivery.backoff_delay);
        delivery.backoff_max = positive(backoff_max).unwrap_or(delivery.backoff_max);
        delivery.timeout = positive(timeout).unwrap_or(delivery.timeout);
        delivery.concurrency = concurrency.unwrap_or(delivery.concurrency);
        delivery.retry_after_max = duration(retry_after_max).unwrap_or(delivery.retry_after_max);
        if let Some(api::RateLimit { per_second, burst }) = *rate_limit {
            delivery.rate_limit = Some(routing::RateLimit {
                per_second,
                burst: burst.unwrap_or(per_second),
            });
        }
        if let Some(ordering) = ordering {
            delivery.ordering = match ordering {
                api::Ordering::None => routing::Ordering::None,
                api::Ordering::ByKey => routing::Ordering::ByKey,
            };
        }
    }
    delivery
}
