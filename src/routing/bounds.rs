//! Memory limits for the Triggers and Sources of a namespace and of all namespaces.
//!
//! Controller, routers and command line use the same [`Bounds`], so a rejected Trigger is rejected everywhere, and
//! again after every start. The controller admits the oldest first, so that new Triggers and Sources never displace working
//! ones; where the age is unknown, as in manifests, the order is by namespace and name. Rejected Triggers are sent
//! to routers without their filters. The admitted ones fit in any order, so routers reach the same result.

use std::collections::HashMap;

use super::{Destination, HttpEndpoint, Trigger};
use crate::{
    filter::{CompileError, CompileProblem, CompiledFilter, Expression},
    transform::{CompiledTransform, TemplateOwner, Transform, TransformError},
};

/// Maximum size of the Triggers of a namespace, in bytes: their compiled filters and transforms, and their destinations.
pub const MAX_OF_NAMESPACE: usize = 16 * 1024 * 1024;

/// Maximum size of all Triggers, in bytes.
pub const MAX_OF_ALL: usize = 64 * 1024 * 1024;

/// Memory used by the admitted Triggers.
#[derive(Debug, Default)]
pub struct Bounds {
    namespaces: HashMap<String, usize>,
    all: usize,
}

/// What an admitted Trigger is compiled to.
#[derive(Clone, Debug)]
pub struct AdmittedTrigger {
    /// Its filters.
    pub filter: CompiledFilter,
    /// Its transform.
    pub transform: Option<CompiledTransform>,
}

/// Why a Trigger is not admitted. It matches nothing, and its events wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TriggerRejection {
    /// Its filters do not compile or are too large.
    #[error(transparent)]
    Filters(#[from] CompileError),
    /// Its transform does not compile or is too large.
    #[error(transparent)]
    Transform(#[from] TransformError),
    /// It does not fit into the limit of its namespace.
    #[error(
        "filters: they take {size} bytes, with transform or event and destinations, but {used} of the {MAX_OF_NAMESPACE} bytes of \
         its namespace are used: make filters smaller, or delete Triggers or Sources"
    )]
    Namespace {
        /// Size of the Trigger.
        size: usize,
        /// Size of the other Triggers.
        used: usize,
    },
    /// It does not fit into the limit of all namespaces.
    #[error(
        "filters: they take {size} bytes, with transform or event and destinations, but {used} of the {MAX_OF_ALL} bytes of all \
         namespaces are used: make filters smaller, or delete Triggers or Sources"
    )]
    All {
        /// Size of the Trigger.
        size: usize,
        /// Size of the other Triggers.
        used: usize,
    },
    /// The controller rejected it, for this reason.
    #[error("{0}")]
    ByController(String),
}

impl TriggerRejection {
    /// Stable label, used as the reason in conditions.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Filters(error) => match error.problem {
                CompileProblem::TooMuchText | CompileProblem::TooManyParts | CompileProblem::TooLarge => {
                    "FilterTooLarge"
                }
                _ => "InvalidFilter",
            },
            Self::Transform(error) => error.label(),
            Self::Namespace { .. } => "NamespaceTooLarge",
            Self::All { .. } => "ConfigurationTooLarge",
            Self::ByController(_) => "Refused",
        }
    }
}

impl Bounds {
    /// Compiles a Trigger's filters and transform, and accounts for their size.
    ///
    /// # Errors
    /// Why it is not admitted. A rejected Trigger uses no space.
    pub fn admit(&mut self, trigger: &Trigger) -> Result<AdmittedTrigger, TriggerRejection> {
        if let Some(reason) = &trigger.refused {
            return Err(TriggerRejection::ByController(reason.clone()));
        }
        let filter = CompiledFilter::compile(&trigger.filters)?;
        let transform = trigger.transform.as_ref().map(CompiledTransform::compile);
        let transform = transform.transpose()?;
        let compiled = filter.size() + transform.as_ref().map_or(0, CompiledTransform::size);
        let size = compiled + trigger.destinations().map(size_of_destination).sum::<usize>();
        self.fit(&trigger.namespace, size)?;
        Ok(AdmittedTrigger { filter, transform })
    }

    /// Compiles the filters of a Source and how it makes events, and accounts for their size.
    ///
    /// # Errors
    /// Why they are not admitted.
    pub fn admit_source(
        &mut self,
        namespace: &str,
        filters: &[Expression],
        event: Option<(TemplateOwner, &Transform)>,
    ) -> Result<(), TriggerRejection> {
        let mut size = CompiledFilter::compile(filters)?.size();
        if let Some((owner, event)) = event {
            size += CompiledTransform::compile_of(owner, event)?.size();
        }
        self.fit(namespace, size)
    }

    /// Compiles other filters of a namespace and accounts for their size.
    ///
    /// # Errors
    /// Why they are not admitted.
    pub fn admit_filters(
        &mut self,
        namespace: &str,
        filters: &[Expression],
    ) -> Result<CompiledFilter, TriggerRejection> {
        let filter = CompiledFilter::compile(filters)?;
        self.fit(namespace, filter.size())?;
        Ok(filter)
    }

    fn fit(&mut self, namespace: &str, size: usize) -> Result<(), TriggerRejection> {
        let used = self.namespaces.get(namespace).copied().unwrap_or_default();
        if used + size > MAX_OF_NAMESPACE {
            return Err(TriggerRejection::Namespace { size, used });
        }
        if self.all + size > MAX_OF_ALL {
            return Err(TriggerRejection::All { size, used: self.all });
        }
        self.all += size;
        self.namespaces.insert(namespace.to_owned(), used + size);
        Ok(())
    }
}

/// Destinations are counted per Trigger, because each is configured and prepared separately.
fn size_of_destination(destination: &Destination) -> usize {
    let Destination::Http(HttpEndpoint {
        uri,
        service: _,
        content_mode: _,
        ca_certs: _,
        headers,
        plain_headers,
        signing_keys,
        client_certificate,
        service_account_token,
        client_credentials,
    }) = destination;
    let headers = headers
        .iter()
        .map(|header| header.name.len() + header.value.reveal().len() + header.version.len());
    let plain_headers = plain_headers
        .iter()
        .map(|header| header.name.len() + header.value.len());
    let keys = signing_keys
        .iter()
        .map(|key| key.value.reveal().len() + key.version.len());
    let certificate = client_certificate
        .iter()
        .map(|pair| pair.certificate.reveal().len() + pair.key.reveal().len() + pair.version.len());
    let token = service_account_token.iter().map(|token| {
        token.account.len() + token.audience.len() + token.value.reveal().len() + token.version.len()
    });
    let client = client_credentials.iter().map(|client| {
        let scopes = client.scopes.iter().chain(&client.audience);
        let secrets = client.id.reveal().len() + client.secret.reveal().len();
        client.token_url.len() + secrets + client.version.len() + scopes.map(String::len).sum::<usize>()
    });
    let parts = headers
        .chain(plain_headers)
        .chain(keys)
        .chain(certificate)
        .chain(token)
        .chain(client);
    2 * (uri.len() + parts.sum::<usize>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::routing::Header;

    fn trigger(namespace: &str, name: &str, filters: Vec<Expression>) -> Trigger {
        let trigger = json!({
            "uid": name, "namespace": namespace, "name": name, "generation": 1, "broker": "default", "filters": filters,
            "destination": {"uri": "http://sink/", "service": null, "contentMode": "AsReceived"},
            "delivery": crate::routing::Delivery::default(), "start": "Latest", "suspend": false,
        });
        serde_json::from_value(trigger).unwrap()
    }

    /// Filters of about the maximum size of a Trigger.
    fn large() -> Vec<Expression> {
        let map = |n| {
            (0..32)
                .map(|entry| (format!("a{entry}"), format!("{n}")))
                .collect()
        };
        (0..50).map(|n| Expression::Exact(map(n))).collect()
    }

    #[test]
    fn limits_each_namespace_and_the_total() {
        let mut bounds = Bounds::default();
        let size = CompiledFilter::compile(&large()).unwrap().size();
        assert!(size > 400_000, "{size}");
        let mut rejected = Vec::new();
        for namespace in ["a", "b", "c", "d", "e"] {
            for name in 0..50 {
                let admitted = bounds.admit(&trigger(namespace, &name.to_string(), large()));
                rejected.extend(admitted.err().map(|rejection| (namespace, rejection.label())));
            }
            // Small Triggers still fit where large ones do not.
            assert!(bounds.admit(&trigger(namespace, "small", vec![])).is_ok());
        }
        assert!(rejected.contains(&("a", "NamespaceTooLarge")), "{rejected:?}");
        assert!(rejected.contains(&("e", "ConfigurationTooLarge")), "{rejected:?}");
        assert!(bounds.all <= MAX_OF_ALL);
        let message = bounds
            .admit(&trigger("a", "one", large()))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("of the 16777216 bytes of its namespace"),
            "{message}"
        );
    }

    #[test]
    fn headers_count_towards_the_limit() {
        let mut heavy = trigger("a", "t", vec![]);
        let value = "x".repeat(8192);
        if let Some(Destination::Http(endpoint)) = &mut heavy.destination {
            endpoint.headers = (0..16)
                .map(|n| Header {
                    name: format!("x-{n}"),
                    value: value.clone().into(),
                    version: String::new(),
                })
                .collect();
        }
        let mut bounds = Bounds::default();
        let admitted = (0..1000).filter(|_| bounds.admit(&heavy).is_ok()).count();
        assert!((50..=64).contains(&admitted), "{admitted}");
    }

    #[test]
    fn trigger_rejected_by_the_controller_stays_rejected() {
        let mut rejected = trigger("a", "t", vec![]);
        rejected.refused = Some("too large".to_owned());
        let rejection = Bounds::default().admit(&rejected).unwrap_err();
        assert_eq!(
            (rejection.to_string().as_str(), rejection.label()),
            ("too large", "Refused")
        );
    }
}
