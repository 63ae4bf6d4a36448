//! Host names in the cluster, and whether a namespace's destinations may lead to them. Pure.
//!
//! The host comes from the status of an object or from a Service of type ExternalName, which people may write who cannot
//! write Triggers. So it may lead to Services of the same namespace, and to those of the namespaces that the operator
//! shares; a host outside the cluster is checked by the router like that of a `uri`.

use std::collections::BTreeMap;

use super::observed::{ClusterReach, Service};
use crate::routing::ServiceName;

/// Maximum number of Services of type ExternalName in a row.
const MAX_ALIASES: usize = 8;

/// A host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// Not in the cluster.
    Outside,
    /// A Service's, or that of one of its pods.
    Service(ServiceName),
    /// Below the cluster's domain, but not a Service's.
    Malformed,
}

/// Why a namespace's destinations may not lead to a host. Each message continues the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum UnreachableHost {
    /// The Service does not exist.
    #[error("is that of Service {name:?} in namespace {namespace:?}, which does not exist", name = .0.name, namespace = .0.namespace)]
    NoService(ServiceName),
    /// The Service is in a namespace that is not shared.
    #[error(
        "leads to Service {name:?} in namespace {namespace:?}, whose Services only destinations of that namespace may reach; an \
         operator can share it: list {namespace:?} in sharedNamespaces of the chart (--shared-namespaces)",
        name = .0.name, namespace = .0.namespace
    )]
    NotShared(ServiceName),
    /// Not the name of a Service.
    #[error("is inside the cluster, but not the name of a Service")]
    Malformed,
    /// Services of type ExternalName refer to each other.
    #[error(
        "is that of a Service of type ExternalName, which leads to another more than {MAX_ALIASES} times"
    )]
    TooManyAliases,
}

/// The host names in the cluster.
pub(super) struct Hosts<'a> {
    domain: String,
    services: &'a BTreeMap<(&'a str, &'a str), &'a Service>,
    reach: &'a ClusterReach,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(
        cluster_domain: &str,
        services: &'a BTreeMap<(&'a str, &'a str), &'a Service>,
        reach: &'a ClusterReach,
    ) -> Self {
        Self {
            domain: format!(".svc.{}", cluster_domain.to_ascii_lowercase()),
            services,
            reach,
        }
    }

    /// Parses a host name.
    pub(super) fn parse(&self, host: &str) -> Host {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let Some(name) = [&*self.domain, ".svc"]
            .iter()
            .find_map(|suffix| host.strip_suffix(*suffix))
        else {
            return Host::Outside;
        };
        // A pod of a headless Service has the name POD.SERVICE.NAMESPACE.
        let mut labels = name.rsplit('.');
        match (labels.next(), labels.next()) {
            (Some(namespace), Some(service)) if !namespace.is_empty() && !service.is_empty() => {
                Host::Service(ServiceName {
                    namespace: namespace.to_owned(),
                    name: service.to_owned(),
                })
            }
            _ => Host::Malformed,
        }
    }

    /// Checks that destinations of namespace `home` may lead to a host. Returns its Service; `None` for a host that is or
    /// leads outside the cluster.
    pub(super) fn reach(&self, home: &str, host: &str) -> Result<Option<ServiceName>, UnreachableHost> {
        let mut first = None;
        let mut host = host;
        for _ in 0..=MAX_ALIASES {
            let service = match self.parse(host) {
                Host::Outside => return Ok(None),
                Host::Malformed => return Err(UnreachableHost::Malformed),
                Host::Service(service) => service,
            };
            if service.namespace != home {
                let shared = &self.reach.shared_namespaces;
                return match shared.contains("*") || shared.contains(&service.namespace) {
                    true => Ok(Some(first.unwrap_or(service))),
                    false => Err(UnreachableHost::NotShared(service)),
                };
            }
            let found = self.services.get(&(home, service.name.as_str())).copied();
            let Some(found) = found else {
                return Err(UnreachableHost::NoService(service));
            };
            match &found.external_name {
                None => return Ok(Some(first.unwrap_or(service))),
                Some(target) => host = target,
            }
            first.get_or_insert(service);
        }
        Err(UnreachableHost::TooManyAliases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(namespace: &str, name: &str) -> ServiceName {
        ServiceName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn service(name: &str, external_name: Option<&str>) -> Service {
        Service {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ports: Some(Vec::new()),
            external_name: external_name.map(str::to_owned),
        }
    }

    #[test]
    fn parses_names_of_services() {
        let (services, reach) = (BTreeMap::new(), ClusterReach::default());
        let hosts = Hosts::new("Cluster.Local", &services, &reach);
        let a = || Host::Service(name("shop", "a"));
        for (host, expected) in [
            ("a.shop.svc", a()),
            ("a.shop.svc.", a()),
            ("A.Shop.SVC.cluster.LOCAL", a()),
            ("a.shop.svc.cluster.local.", a()),
            ("a-0.a.shop.svc.cluster.local", a()),
            ("shop.svc", Host::Malformed),
            (".shop.svc", Host::Malformed),
            ("a..svc", Host::Malformed),
            ("svc", Host::Outside),
            ("a.shop", Host::Outside),
            ("a.shop.svc.example.com", Host::Outside),
            ("example.com", Host::Outside),
            ("10.0.0.1", Host::Outside),
        ] {
            assert_eq!(hosts.parse(host), expected, "{host}");
        }
    }

    #[test]
    fn reaches_own_and_shared_namespaces_and_follows_external_names() {
        let all = [
            service("a", None),
            service("own", Some("a.shop.svc.cluster.local")),
            service("gateway", Some("gateway.kourier.svc.cluster.local")),
            service("bank", Some("a.bank.svc")),
            service("outside", Some("example.com")),
            service("address", Some("10.0.0.1")),
            service("circle", Some("circle.shop.svc")),
            service("nothing", Some("none.shop.svc")),
        ];
        let services = all
            .iter()
            .map(|service| ((&*service.namespace, &*service.name), service));
        let services: BTreeMap<_, _> = services.collect();
        let reach = ClusterReach {
            shared_namespaces: ["kourier".to_owned()].into(),
            ..ClusterReach::default()
        };
        let hosts = Hosts::new("cluster.local", &services, &reach);
        let reached = |namespace, service| Ok(Some(name(namespace, service)));
        let not_shared = || Err(UnreachableHost::NotShared(name("bank", "a")));
        let no_service = || Err(UnreachableHost::NoService(name("shop", "none")));
        for (host, expected) in [
            ("a.shop.svc", reached("shop", "a")),
            ("own.shop.svc", reached("shop", "own")),
            ("gateway.shop.svc", reached("shop", "gateway")),
            ("any.kourier.svc", reached("kourier", "any")),
            ("a.bank.svc", not_shared()),
            ("bank.shop.svc", not_shared()),
            ("outside.shop.svc", Ok(None)),
            ("address.shop.svc", Ok(None)),
            ("example.com", Ok(None)),
            ("none.shop.svc", no_service()),
            ("nothing.shop.svc", no_service()),
            ("circle.shop.svc", Err(UnreachableHost::TooManyAliases)),
            ("shop.svc", Err(UnreachableHost::Malformed)),
        ] {
            assert_eq!(hosts.reach("shop", host), expected, "{host}");
        }
        let all = ClusterReach {
            shared_namespaces: ["*".to_owned()].into(),
            ..ClusterReach::default()
        };
        let hosts = Hosts::new("cluster.local", &services, &all);
        assert_eq!(hosts.reach("shop", "a.bank.svc"), reached("bank", "a"));
    }
}
