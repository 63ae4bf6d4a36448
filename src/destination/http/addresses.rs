//! Addresses that destinations may reach, depending on who named them.

use std::collections::BTreeSet;

use super::uri_addresses::UriAddresses;
use crate::routing::{HttpEndpoint, ServiceName};

/// Addresses that destinations may reach.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Addresses for a `uri`.
    pub uris: UriAddresses,
    /// Addresses for a Service.
    pub services: UriAddresses,
    /// Services that may be reached at any address, since the router's operator configured their addresses.
    pub mapped: BTreeSet<ServiceName>,
}

/// Who determined a destination's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NamedBy {
    /// The author of a `uri`.
    Uri,
    /// A Service of the cluster.
    Service,
    /// The operator of the router.
    Operator,
}

impl Addresses {
    /// Permits every address, for a router whose user can reach them anyway.
    pub fn any() -> Self {
        Self {
            uris: UriAddresses::any(),
            services: UriAddresses::any(),
            mapped: BTreeSet::new(),
        }
    }

    pub(super) fn of(&self, named_by: NamedBy) -> UriAddresses {
        match named_by {
            NamedBy::Uri => self.uris.clone(),
            NamedBy::Service => self.services.clone(),
            NamedBy::Operator => UriAddresses::any(),
        }
    }

    pub(super) fn named_by(&self, endpoint: &HttpEndpoint) -> NamedBy {
        match &endpoint.service {
            None => NamedBy::Uri,
            Some(service) if self.mapped.contains(service) => NamedBy::Operator,
            Some(_) => NamedBy::Service,
        }
    }
}
