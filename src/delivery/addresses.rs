//! Which addresses destinations may reach, by what names them.

use std::collections::BTreeSet;

use super::UriAddresses;
use crate::routing::{Destination, ServiceName};

/// Which addresses destinations may reach.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Those of a `uri`.
    pub uris: UriAddresses,
    /// Those of a Service.
    pub services: UriAddresses,
    /// Services that are reached wherever they are: whoever runs the router says where that is.
    pub mapped: BTreeSet<ServiceName>,
}

/// What decides which addresses a destination may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum NamedBy {
    /// Whoever wrote a `uri`.
    Uri,
    /// A Service of the cluster.
    Service,
    /// Whoever runs the router.
    Operator,
}

impl Addresses {
    /// Every address, for a router whose user may reach the same by any other means.
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

    pub(super) fn named_by(&self, destination: &Destination) -> NamedBy {
        match &destination.service {
            None => NamedBy::Uri,
            Some(service) if self.mapped.contains(service) => NamedBy::Operator,
            Some(_) => NamedBy::Service,
        }
    }
}
