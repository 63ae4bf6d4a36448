//! Objects with a URL in their status, by the Addressable contract of Knative: which are referenced, and where they
//! lead. Pure.

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

use super::{
    finding::Finding,
    observed::{AddressableKind, AddressableName, AddressableState, StatusAddress},
    resolver::{Address, Resolver},
};
use crate::{
    api::{self, AddressableRef, DestinationRef},
    http_url, trust,
};

/// Reason while an object has not been read yet.
pub const ADDRESS_AWAITED: &str = "AddressAwaited";

/// Reason where there is no API server to read an object from.
pub const ADDRESS_UNSUPPORTED: &str = "AddressUnsupported";

/// Reason while an object has no URL.
pub const ADDRESS_MISSING: &str = "AddressMissing";

/// Reason if a URL leads to where the object's namespace may not reach.
pub const ADDRESS_NOT_ALLOWED: &str = "AddressNotAllowed";

/// Label of the ClusterRoles by which an operator lets the controller read a kind.
const GRANT_LABEL: &str = "weir.dev/aggregate-to-controller-addressables=true";

/// Maximum length of a URL, in bytes: that of a `uri`.
const MAX_URL: usize = 2048;

/// Maximum length of the certificates, in bytes: that of `caCerts`.
const MAX_CA_CERTS: usize = 32 * 1024;

impl StatusAddress {
    /// Reads the address from an object, as JSON: `status.address`, or the first of `status.addresses` that has a URL.
    /// Texts that are too long are kept in part, which suffices to reject them.
    pub fn of(object: &Value) -> Self {
        let several = object.pointer("/status/addresses").and_then(Value::as_array);
        let addresses = object.pointer("/status/address").into_iter();
        let mut addresses = addresses.chain(several.into_iter().flatten());
        let text = |address: &Value, field: &str, most: usize| {
            let text = address.get(field)?.as_str().filter(|text| !text.is_empty())?;
            Some(text.chars().take(most + 1).collect::<String>())
        };
        let found = addresses.find_map(|address| {
            Some(Self {
                url: Some(text(address, "url", MAX_URL)?),
                ca_certs: text(address, "CACerts", MAX_CA_CERTS).map(Arc::from),
            })
        });
        found.unwrap_or_default()
    }
}

/// Collects the objects that these Triggers and Sinks reference in their own namespaces.
pub fn named_addressables(triggers: &[api::Trigger], sinks: &[api::Sink]) -> BTreeSet<AddressableName> {
    let of_triggers = triggers.iter().flat_map(|trigger| {
        let api::TriggerSpec { sink, delivery, .. } = &trigger.spec;
        let dead_letters = dead_letter_sink(delivery.as_ref());
        let destinations = [Some(sink), dead_letters].into_iter().flatten();
        destinations.filter_map(|destination| named(trigger.metadata.namespace.as_deref()?, destination))
    });
    let of_sinks = sinks.iter().flat_map(|sink| {
        let api::SinkSpec {
            reference, delivery, ..
        } = &sink.spec;
        let namespace = sink.metadata.namespace.as_deref();
        let own = namespace.and_then(|namespace| Some(name(namespace, reference.as_ref()?)));
        let dead_letters = dead_letter_sink(delivery.as_ref());
        let dead_letters = dead_letters.and_then(|destination| named(namespace?, destination));
        [own, dead_letters].into_iter().flatten()
    });
    of_triggers.chain(of_sinks).collect()
}

fn dead_letter_sink(delivery: Option<&api::DeliverySpec>) -> Option<&api::Destination> {
    delivery?.dead_letter_sink.as_ref()
}

fn named(namespace: &str, destination: &api::Destination) -> Option<AddressableName> {
    let reference = destination.reference.as_ref()?;
    let is_own = reference.namespace.as_deref().is_none_or(|of| of == namespace);
    let reference = addressable(reference).filter(|_| is_own)?;
    Some(name(namespace, &reference))
}

fn name(namespace: &str, reference: &AddressableRef) -> AddressableName {
    let AddressableRef {
        api_version,
        kind,
        name,
    } = reference;
    AddressableName {
        kind: AddressableKind {
            api_version: api_version.clone(),
            kind: kind.clone(),
        },
        namespace: namespace.to_owned(),
        name: name.clone(),
    }
}

/// Returns the reference to an object with a URL in its status; `None` for a reference to a Sink.
pub(super) fn addressable(reference: &DestinationRef) -> Option<AddressableRef> {
    let DestinationRef {
        api_version,
        kind,
        name,
        namespace: _,
    } = reference;
    let (api_version, kind) = (api_version.as_ref()?, kind.as_ref()?);
    let is_sink = kind == "Sink" && api_version.split('/').next() == Some(api::GROUP);
    (!is_sink).then(|| AddressableRef {
        api_version: api_version.clone(),
        kind: kind.clone(),
        name: name.clone(),
    })
}

/// Resolves a Trigger's reference to an object with a URL in its status, which must be in the Trigger's namespace.
pub(super) fn resolve_own<'a>(
    resolver: &Resolver<'a>,
    namespace: &str,
    reference: &AddressableRef,
    named_namespace: Option<&str>,
) -> Result<Address<'a>, Finding> {
    match named_namespace {
        Some(other) if other != namespace => Err(Finding::bad(
            "AddressableNotAllowed",
            format!(
                "{} is in namespace {other:?}; reference a Sink there, with this object in its spec.ref and {namespace:?} in its \
                 spec.allowedNamespaces",
                shown(&name(other, reference))
            ),
        )),
        _ => resolve(resolver, namespace, reference),
    }
}

/// Resolves a reference to an object of this namespace with a URL in its status.
pub(super) fn resolve<'a>(
    resolver: &Resolver<'a>,
    namespace: &str,
    reference: &AddressableRef,
) -> Result<Address<'a>, Finding> {
    let name = name(namespace, reference);
    let StatusAddress { url, ca_certs } = found(&name, resolver.addressable(&name))?;
    let object = shown(&name);
    let Some(url) = url else {
        return Err(Finding::bad(
            ADDRESS_MISSING,
            format!("{object} has no URL yet: status.address.url is not set"),
        ));
    };
    let bad = |reason, problem: &str| Finding::bad(reason, format!("{object}: {problem}"));
    if url.len() > MAX_URL {
        let problem = format!("the URL in its status is longer than {MAX_URL} bytes");
        return Err(bad("AddressInvalid", &problem));
    }
    let uri = http_url::parse(url).map_err(|error| {
        bad(
            "AddressInvalid",
            &format!("the URL {url:?} in its status {error}"),
        )
    })?;
    let service = resolver
        .reach(namespace, uri.host().unwrap_or_default())
        .map_err(|error| {
            let problem = format!("the host of the URL {url:?} in its status {error}");
            bad(ADDRESS_NOT_ALLOWED, &problem)
        })?;
    let ca_certs = ca_certs.as_deref().filter(|_| uri.scheme_str() == Some("https"));
    if let Some(pem) = ca_certs {
        let problem = match trust::authorities(pem) {
            _ if pem.len() > MAX_CA_CERTS => Some(format!("it is longer than {MAX_CA_CERTS} bytes")),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            return Err(bad(
                "InvalidCaCerts",
                &format!("CACerts in its status: {problem}"),
            ));
        }
    }
    Ok(Address {
        uri: url.clone(),
        service,
        ca_certs,
    })
}

fn found<'a>(
    name: &AddressableName,
    state: Option<&'a AddressableState>,
) -> Result<&'a StatusAddress, Finding> {
    let AddressableName {
        kind: AddressableKind { api_version, kind },
        ..
    } = name;
    let object = shown(name);
    let (reason, message) = match state {
        Some(AddressableState::Found(address)) => return Ok(address),
        Some(AddressableState::NotFound) => (
            "AddressableNotFound",
            format!("there is no {object}; apply it, or correct its name"),
        ),
        Some(AddressableState::UnknownKind) => (
            "AddressableKindUnknown",
            format!(
                "the API server has no kind {kind} in {api_version}; install it, or correct apiVersion and kind"
            ),
        ),
        Some(AddressableState::ClusterScoped) => (
            "AddressableNotNamespaced",
            format!("a {kind} of {api_version} belongs to no namespace, so it cannot be a destination"),
        ),
        Some(AddressableState::Forbidden { resource }) => (
            "AddressableForbidden",
            format!(
                "the controller may not list and watch {resource}; an operator can let it, by a ClusterRole with the label \
                 {GRANT_LABEL}: run: kubectl create clusterrole weir-addressable-{resource} --verb=get,list,watch \
                 --resource={resource} && kubectl label clusterrole weir-addressable-{resource} {GRANT_LABEL}"
            ),
        ),
        Some(AddressableState::TooManyKinds) => (
            "TooManyAddressableKinds",
            "too many kinds are referenced, in this namespace or in the cluster; reference fewer kinds"
                .to_owned(),
        ),
        Some(AddressableState::Unreadable(problem)) => (
            "AddressableUnreadable",
            format!("cannot read {object}: {problem}; retrying"),
        ),
        Some(AddressableState::Unsupported) => (
            ADDRESS_UNSUPPORTED,
            format!(
                "{object} is resolved in a cluster only; without one, add the object to the files, with its URL in \
                 status.address.url"
            ),
        ),
        None => (ADDRESS_AWAITED, format!("{object} has not been read yet")),
    };
    Err(Finding::bad(reason, message))
}

/// Describes an object.
fn shown(name: &AddressableName) -> String {
    let AddressableName {
        kind: AddressableKind { api_version, kind },
        namespace,
        name,
    } = name;
    format!("{kind} ({api_version}) {name:?} in namespace {namespace:?}")
}
