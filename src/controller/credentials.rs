//! What a Sink is shown of us: from the keys of Secrets that it names to headers. Pure.
//!
//! No message has a value in it, nor a part of one.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use http::{HeaderName, header};

use super::{
    diagnosis::Finding,
    observed::{SecretName, SecretState},
    resolve::Resolver,
};
use crate::{
    api::{self, SecretKeyRef},
    routing::{Header, Secret},
};

/// The reason that passes by itself: a Secret has not been read yet.
pub(super) const SECRET_AWAITED: &str = "SecretAwaited";

/// How long a value may be, in bytes; servers take some 8 KiB of headers in all.
const MAX_VALUE: usize = 8 * 1024;

/// A header that a Sink asks for, and where its value stands.
struct Wanted<'a> {
    /// The field that asks for it.
    path: String,
    header: String,
    /// What stands before the value.
    scheme: &'static str,
    reference: &'a SecretKeyRef,
}

/// How a Secret is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The keys that are named.
    pub keys: BTreeSet<String>,
    /// The Sinks that name it, by UID and generation.
    pub sinks: BTreeSet<(String, i64)>,
}

/// Every Secret that Sinks name.
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

/// Every key of a Secret that a Sink names.
fn references(spec: &api::SinkSpec) -> impl Iterator<Item = &SecretKeyRef> {
    let token = spec
        .authorization
        .iter()
        .map(|authorization| &authorization.bearer_token);
    let headers = spec.headers.iter().map(|header| &header.value_from);
    token.chain(headers).map(|value| &value.secret_key_ref)
}

/// The headers of a Sink of this namespace, with their values.
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
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("is no name of a header"))?;
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
                format!("{path}: the header {header:?} is named twice; upper and lower case are the same"),
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
                format!("key {key:?} of {secret} is about to be read"),
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
                format!("{secret} cannot be read: {problem}; it is tried again"),
            ));
        }
        Some(SecretState::Withheld) => {
            return Err(bad(
                "ChannelNotSecure",
                "what routers get from the controller is not both encrypted and for routers only, so no credentials are \
                 sent to them; set up TLS and the check of their tokens (--tls-secret and --router-service-account of \
                 weir controller; the chart does)"
                    .to_owned(),
            ));
        }
        None => return Err(bad(SECRET_AWAITED, format!("{secret} is about to be read"))),
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

/// The value as it is sent.
fn checked(value: &str, scheme: &str) -> Result<Secret, &'static str> {
    let value = value.trim_end_matches(['\r', '\n']);
    if value.is_empty() {
        return Err("is empty");
    }
    if value.len() > MAX_VALUE {
        return Err("has more than 8192 bytes");
    }
    if !value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return Err("cannot be a header: it has other characters than those of ASCII that can be seen");
    }
    if !scheme.is_empty() && value.contains([' ', '\t']) {
        return Err("cannot be a token: it has a space (the word Bearer is put before it)");
    }
    Ok(format!("{scheme}{value}").into())
}

/// What lets the controller read a Secret.
fn grant(namespace: &str, name: &str, account: Option<&str>) -> String {
    let role = format!("weir-{name}");
    let account =
        account.unwrap_or("--serviceaccount=NAMESPACE:NAME (those of the controller's ServiceAccount)");
    format!(
        "to let it, run: kubectl create role {role} --verb=get --resource=secrets --resource-name={name} -n \
         {namespace} && kubectl create rolebinding {role} --role={role} -n {namespace} {account}"
    )
}
