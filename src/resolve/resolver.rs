//! Resolves references to the URIs that events are posted to. Pure.
//!
//! A reference never reaches further than its author: a Service or an object is always in the referrer's namespace, a
//! Sink in another namespace must allow the Trigger, and a `uri` cannot name a host inside the cluster.

use std::collections::BTreeMap;

use http::Uri;

use super::{
    finding::Finding,
    hosts::{Host, Hosts, UnreachableHost},
    observed::{
        AddressableName, AddressableState, ClusterReach, Namespace, Observed, SecretName, SecretState,
        Service, TokenName, TokenState,
    },
};
use crate::{
    api::{self, NamespaceSelector, Scheme, ServicePort, ServiceTarget},
    http_url,
    routing::ServiceName,
};

/// A resolved destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    pub(super) uri: String,
    pub(super) service: Option<ServiceName>,
    /// Certificates of the authorities that the destination itself announces, in PEM.
    pub(super) ca_certs: Option<&'a str>,
}

/// Resolves references.
pub(super) struct Resolver<'a> {
    cluster_domain: &'a str,
    services: BTreeMap<(&'a str, &'a str), &'a Service>,
    sinks: BTreeMap<(String, String), &'a api::Sink>,
    namespaces: BTreeMap<&'a str, &'a Namespace>,
    secrets: &'a BTreeMap<SecretName, SecretState>,
    tokens: &'a BTreeMap<TokenName, TokenState>,
    addressables: &'a BTreeMap<AddressableName, AddressableState>,
    reach: &'a ClusterReach,
}

impl<'a> Resolver<'a> {
    pub(super) fn new(observed: &'a Observed, cluster_domain: &'a str) -> Self {
        let services = observed
            .services
            .iter()
            .map(|service| ((&*service.namespace, &*service.name), service))
            .collect();
        let sinks = observed
            .sinks
            .iter()
            .filter_map(|sink| {
                let metadata = &sink.metadata;
                let live = metadata.deletion_timestamp.is_none();
                live.then(|| Some(((metadata.namespace.clone()?, metadata.name.clone()?), sink)))?
            })
            .collect();
        let namespaces = observed
            .namespaces
            .iter()
            .map(|namespace| (&*namespace.name, namespace))
            .collect();
        Self {
            cluster_domain,
            services,
            sinks,
            namespaces,
            secrets: &observed.secrets,
            tokens: &observed.tokens,
            addressables: &observed.addressables,
            reach: &observed.reach,
        }
    }

    /// Returns the Sink that a Trigger in namespace `from` references.
    pub(super) fn sink(&self, from: &str, reference: &api::DestinationRef) -> Result<&'a api::Sink, Finding> {
        let namespace = reference.namespace.as_deref().unwrap_or(from);
        let name = &reference.name;
        let sink = self.sinks.get(&(namespace.to_owned(), name.clone())).copied();
        if namespace == from {
            return sink.ok_or_else(|| {
                Finding::bad("SinkNotFound", format!("there is no Sink {name:?} in namespace {namespace:?}; apply it, or correct the name in ref"))
            });
        }
        // Does not reveal whether a foreign Sink exists to namespaces that it does not allow.
        sink.filter(|sink| self.lets_in(sink.spec.allowed_namespaces.as_ref(), from)).ok_or_else(|| {
            Finding::bad(
                "SinkNotAllowed",
                format!(
                    "no Sink {name:?} in namespace {namespace:?} allows namespace {from:?}; its owner can list \
                     {from:?} in the Sink's spec.allowedNamespaces"
                ),
            )
        })
    }

    fn lets_in(&self, selector: Option<&NamespaceSelector>, from: &str) -> bool {
        let Some(NamespaceSelector { names, match_labels }) = selector else {
            return false;
        };
        let by_name = names.iter().any(|name| name == "*" || name == from);
        let by_label = !match_labels.is_empty()
            && self.namespaces.get(from).is_some_and(|namespace| {
                match_labels
                    .iter()
                    .all(|(key, value)| namespace.labels.get(key) == Some(value))
            });
        by_name || by_label
    }

    /// Returns the known state of a Secret; `None` if it has not been read yet.
    pub(super) fn secret(&self, namespace: &str, name: &str) -> Option<&'a SecretState> {
        self.secrets.get(&SecretName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Returns the known state of a token; `None` if it has not been requested yet.
    pub(super) fn token(&self, name: &TokenName) -> Option<&'a TokenState> {
        self.tokens.get(name)
    }

    /// Returns the known state of an object with a URL in its status; `None` if it has not been read yet.
    pub(super) fn addressable(&self, name: &AddressableName) -> Option<&'a AddressableState> {
        self.addressables.get(name)
    }

    /// Checks that a URL that leads to this host may be a destination of a namespace. Returns the host's Service.
    pub(super) fn reach(&self, namespace: &str, host: &str) -> Result<Option<ServiceName>, UnreachableHost> {
        self.hosts().reach(namespace, host)
    }

    fn hosts(&self) -> Hosts<'_> {
        Hosts::new(self.cluster_domain, &self.services, self.reach)
    }

    /// Resolves a Service of this namespace.
    pub(super) fn service(&self, namespace: &str, target: &ServiceTarget) -> Result<Address<'a>, Finding> {
        let ServiceTarget {
            name,
            port,
            path,
            scheme,
        } = target;
        let service = self.services.get(&(namespace, name.as_str())).ok_or_else(|| {
            Finding::bad(
                "ServiceNotFound",
                format!(
                    "there is no Service {name:?} in namespace {namespace:?}; apply it, or correct its name"
                ),
            )
        })?;
        let domain = self.cluster_domain;
        let (host, reached) = match service.external_name.as_deref() {
            None => {
                let reached = ServiceName {
                    namespace: namespace.to_owned(),
                    name: name.clone(),
                };
                (format!("{name}.{namespace}.svc.{domain}"), Some(reached))
            }
            Some(external) => (
                external.to_owned(),
                self.external_service(namespace, name, external)?,
            ),
        };
        let scheme = scheme.unwrap_or_default();
        let port = port_number(service, port.as_ref(), scheme)?;
        let path = path.as_deref().unwrap_or("/");
        let uri = format!("{}://{host}:{port}{path}", scheme.as_str());
        uri.parse::<Uri>().map_err(|error| {
            Finding::bad(
                "InvalidPath",
                format!("path {path:?} is not a valid URI path: {error}"),
            )
        })?;
        Ok(Address {
            uri,
            service: reached,
            ca_certs: None,
        })
    }

    /// Checks a Service of type ExternalName. Returns the Service that it leads to, if that is in the cluster.
    fn external_service(
        &self,
        namespace: &str,
        name: &str,
        external: &str,
    ) -> Result<Option<ServiceName>, Finding> {
        let bad = |problem: &str| Finding::bad("ServiceExternal", format!("Service {name:?} {problem}"));
        if !self.reach.external_name_services {
            return Err(bad(
                "is of type ExternalName, which this installation does not let destinations use; use its target instead: a host \
                 outside the cluster by uri, a Service in this namespace by service, an object with a URL in its status, \
                 such as a Knative Service, by ref with apiVersion and kind. An operator can allow such Services by \
                 externalNameServices of the chart (--allow-external-name-services)",
            ));
        }
        let reached = self.reach(namespace, external).map_err(|error| {
            bad(&format!(
                "is of type ExternalName, and its target {external:?} {error}"
            ))
        })?;
        http_url::parse(&format!("http://{external}/"))
            .map_err(|_| bad("is of type ExternalName, and its target is not a valid host"))?;
        Ok(reached)
    }

    /// Resolves a destination outside the cluster.
    pub(super) fn uri(&self, text: &str) -> Result<Address<'a>, Finding> {
        let bad = |problem: &str| Finding::bad("InvalidUri", format!("uri {text:?} {problem}"));
        let uri = http_url::parse(text).map_err(|error| bad(&error.to_string()))?;
        if self.hosts().parse(uri.host().unwrap_or_default()) != Host::Outside {
            return Err(bad(
                "is inside the cluster; use service for a Service in this namespace, ref with apiVersion and kind for an object \
                 that has this URL in its status, such as a Knative Service, or ref in a Trigger for a Sink in the \
                 Service's namespace",
            ));
        }
        Ok(Address {
            uri: text.to_owned(),
            service: None,
            ca_certs: None,
        })
    }
}

fn port_number(service: &Service, port: Option<&ServicePort>, scheme: Scheme) -> Result<u16, Finding> {
    let name = &service.name;
    let is_named = matches!(port, Some(ServicePort::Name(_)));
    // A Service of type ExternalName needs no ports.
    let ports = service
        .ports
        .as_ref()
        .filter(|ports| service.external_name.is_none() || !ports.is_empty() || is_named);
    let Some(ports) = ports else {
        return Ok(match (port, scheme) {
            (Some(ServicePort::Number(number)), _) => *number,
            (_, Scheme::Http) => 80,
            (_, Scheme::Https) => 443,
        });
    };
    let found = match port {
        Some(ServicePort::Number(number)) => ports.iter().find(|port| port.number == *number),
        Some(ServicePort::Name(wanted)) => ports.iter().find(|port| port.name == *wanted),
        None => match ports.as_slice() {
            [only] => Some(only),
            _ => {
                return Err(Finding::bad(
                    "PortAmbiguous",
                    format!(
                        "Service {name:?} has {} ports ({}); set port to one of them",
                        ports.len(),
                        listed(service)
                    ),
                ));
            }
        },
    };
    found.map(|port| port.number).ok_or_else(|| {
        let wanted = match port {
            Some(ServicePort::Number(number)) => number.to_string(),
            Some(ServicePort::Name(name)) => format!("{name:?}"),
            None => "it".to_owned(),
        };
        Finding::bad(
            "PortNotFound",
            format!(
                "Service {name:?} has no port {wanted}; it has {}",
                listed(service)
            ),
        )
    })
}

fn listed(service: &Service) -> String {
    let ports = service.ports.iter().flatten();
    let ports: Vec<_> = ports
        .map(|port| {
            if port.name.is_empty() {
                port.number.to_string()
            } else {
                format!("{} ({})", port.number, port.name)
            }
        })
        .collect();
    if ports.is_empty() {
        "none".to_owned()
    } else {
        ports.join(", ")
    }
}
