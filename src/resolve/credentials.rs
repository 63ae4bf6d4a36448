//! Builds the credential headers of a Sink from the Secret keys that it references. Pure.
//!
//! Messages never contain a value or a part of one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use http::{HeaderName, header};

use super::{
    finding::Finding,
    observed::{SecretName, SecretState},
    resolver::Resolver,
};
use crate::{
    api::{self, SecretKeyRef},
    routing::{Header, Secret},
};

/// Reason for a Secret that has not been read yet. Transient.
pub const SECRET_AWAITED: &str = "SecretAwaited";

/// Maximum length of a value, in bytes. Servers accept about 8 KiB of headers in total.
const MAX_VALUE: usize = 8 * 1024;

/// A header that a Sink requires, and the source of its value.
struct Wanted<'a> {
    /// Path of the field.
    path: String,
    header: String,
    /// Prefix of the value.
    scheme: &'static str,
    reference: &'a SecretKeyRef,
}

/// References of Sinks to a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Referenced keys.
    pub keys: BTreeSet<String>,
    /// Sinks that reference it, by UID and generation.
    pub sinks: BTreeSet<(String, i64)>,
}

/// Collects every Secret that Sinks reference.
pub fn named<'a>(sinks: impl IntoIterator<Item = &'a api::Sink>) -> BTreeMap<SecretName, Naming> {
    let mut named = BTreeMap::<_, Naming>::new();
    for sink in sinks {
        let namespace = sink.metadata.namespace.clone().unwrap_or_default();
        let uid = sink.metadata.uid.clone().unwrap_or_default();
        let generation = sink.metadata.generation.unwrap_or_default();
        for SecretKeyRef { name, key } in references(&sink.spec) {
            let name = SecretName {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            let naming = named.entry(name).or_default();
            naming.keys.insert(key.clone());
            naming.sinks.insert((uid.clone(), generation));
        }
    }
    named
}

/// Lists every Secret key that a Sink references.
fn references(spec: &api::SinkSpec) -> impl Iterator<Item = &SecretKeyRef> {
    let token = spec
        .authorization
        .iter()
        .map(|authorization| &authorization.bearer_token);
    let headers = spec.headers.iter().map(|header| &header.value_from);
    token.chain(headers).map(|value| &value.secret_key_ref)
}

/// Builds the headers of a Sink in this namespace, with their values.
pub(super) fn headers(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<Vec<Header>, Finding> {
    let wanted = wanted(spec)?;
    wanted
        .iter()
        .map(|wanted| header(resolver, namespace, wanted))
        .collect()
}

fn wanted(spec: &api::SinkSpec) -> Result<Vec<Wanted<'_>>, Finding> {
    let token = spec.authorization.as_ref().map(|authorization| Wanted {
        path: "spec.authorization.bearerToken.secretKeyRef".to_owned(),
        header: header::AUTHORIZATION.as_str().to_owned(),
        scheme: "Bearer ",
        reference: &authorization.bearer_token.secret_key_ref,
    });
    let mut all = Vec::from_iter(token);
    for (index, api::Header { name, value_from }) in spec.headers.iter().enumerate() {
        let bad = |problem: &str| {
            Finding::bad(
                "InvalidHeader",
                format!("spec.headers[{index}].name: {name:?} {problem}"),
            )
        };
        let header =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("is not a valid header name"))?;
        if api::is_reserved_header(name) {
            return Err(bad("is a reserved header, set by Weir or by HTTP itself"));
        }
        all.push(Wanted {
            path: format!("spec.headers[{index}].valueFrom.secretKeyRef"),
            header: header.as_str().to_owned(),
            scheme: "",
            reference: &value_from.secret_key_ref,
        });
    }
    let mut seen = HashSet::new();
    for Wanted { path, header, .. } in &all {
        if !seen.insert(header) {
            return Err(Finding::bad(
                "InvalidHeader",
                format!("{path}: duplicate header {header:?}; names are case-insensitive"),
            ));
        }
    }
    Ok(all)
}

fn header(resolver: &Resolver<'_>, namespace: &str, wanted: &Wanted<'_>) -> Result<Header, Finding> {
    let Wanted {
        path,
        header,
        scheme,
        reference: SecretKeyRef { name, key },
    } = wanted;
    let bad = |reason, problem: String| Finding::bad(reason, format!("{path}: {problem}"));
    let secret = format!("Secret {name:?} in namespace {namespace:?}");
    let (version, values) = match resolver.secret(namespace, name) {
        Some(SecretState::Found {
            looked_for: Some(keys),
            ..
        }) if !keys.contains(key) => {
            return Err(bad(
                SECRET_AWAITED,
                format!("key {key:?} of {secret} has not been read yet"),
            ));
        }
        Some(SecretState::Found { version, values, .. }) => (version, values),
        Some(SecretState::NotFound) => {
            return Err(bad(
                "SecretNotFound",
                format!("there is no {secret}; apply it, or correct the name"),
            ));
        }
        Some(SecretState::Forbidden { account }) => {
            let grant = grant(namespace, name, account.as_deref());
            return Err(bad(
                "SecretForbidden",
                format!("the controller may not read {secret}; {grant}"),
            ));
        }
        Some(SecretState::Unreadable(problem)) => {
            return Err(bad(
                "SecretUnreadable",
                format!("cannot read {secret}: {problem}; retrying"),
            ));
        }
        Some(SecretState::Withheld) => {
            return Err(bad(
                "ChannelNotSecure",
                "credentials are not sent to routers because the connection from routers to the controller is not \
                 both encrypted and authenticated; enable TLS and token checks (--tls-secret and \
                 --router-service-account of weir controller, which the chart sets)"
                    .to_owned(),
            ));
        }
        None => return Err(bad(SECRET_AWAITED, format!("{secret} has not been read yet"))),
    };
    let value = values.get(key).ok_or_else(|| {
        bad(
            "SecretKeyNotFound",
            format!("{secret} has no key {key:?}; add it, or correct the key"),
        )
    })?;
    let value = checked(value.reveal(), scheme)
        .map_err(|problem| bad("InvalidSecretValue", format!("key {key:?} of {secret} {problem}")))?;
    Ok(Header {
        name: header.clone(),
        value,
        version: format!("{scheme}{name}/{key}@{version}"),
    })
}

/// Validates a value and adds the prefix.
fn checked(value: &str, scheme: &str) -> Result<Secret, &'static str> {
    let value = value.trim_end_matches(['\r', '\n']);
    if value.is_empty() {
        return Err("is empty");
    }
    if value.len() > MAX_VALUE {
        return Err("is longer than 8192 bytes");
    }
    if !value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return Err("is not a valid header value: only printable ASCII characters are allowed");
    }
    if !scheme.is_empty() && value.contains([' ', '\t']) {
        return Err("is not a valid token: it has a space (Bearer is added automatically)");
    }
    Ok(format!("{scheme}{value}").into())
}

/// The commands that grant the controller access to a Secret.
fn grant(namespace: &str, name: &str, account: Option<&str>) -> String {
    let role = format!("weir-{name}");
    let account = account.unwrap_or("--serviceaccount=NAMESPACE:NAME (of the controller's ServiceAccount)");
    format!(
        "to grant access, run: kubectl create role {role} --verb=get --resource=secrets --resource-name={name} -n \
         {namespace} && kubectl create rolebinding {role} --role={role} -n {namespace} {account}"
    )
}
