//! Builds the headers, the signing keys, the client certificate and the client credentials of a Sink, from the Secret
//! keys that it references or from the Sink itself. Pure.
//!
//! Messages never contain a value or a part of one.

use std::collections::HashSet;

use http::{HeaderName, header};

use super::{finding::Finding, observed::SecretState, resolver::Resolver};
use crate::{
    api::{self, SecretKeyRef, SecretValue},
    routing::{ClientCertificate, ClientCredentials, Header, PlainHeader, Secret, SigningKey},
    trust,
};

/// Reason for a Secret that has not been read yet. Transient.
pub const SECRET_AWAITED: &str = "SecretAwaited";

/// Message while the channel to routers is not encrypted.
pub(super) const CHANNEL_NOT_SECURE: &str = "credentials are not sent to routers because the connection from routers to the controller is not both encrypted and \
     authenticated; enable TLS and token checks (--tls-secret and --router-service-account of weir controller, which the \
     chart sets)";

/// Headers of a signature.
const SIGNATURE_HEADERS: &[&str] = &["webhook-id", "webhook-timestamp", "webhook-signature"];

/// Keys of a Secret of type `kubernetes.io/tls`.
const TLS_CERTIFICATE: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";

/// Maximum length of a client certificate and of its key, in bytes.
const MAX_PEM: usize = 64 * 1024;

/// Maximum length of a value, in bytes. Servers accept about 8 KiB of headers in total.
const MAX_VALUE: usize = 8 * 1024;

/// The headers of a Sink, with their values.
#[derive(Debug, Default)]
pub(super) struct SinkHeaders {
    /// Headers with values from Secrets.
    pub(super) secret: Vec<Header>,
    /// Headers with values from the Sink.
    pub(super) plain: Vec<PlainHeader>,
}

/// A header that a Sink sets.
struct Wanted<'a> {
    /// Path of the value's field.
    path: String,
    header: String,
    value: WantedValue<'a>,
}

/// Source of a header's value.
enum WantedValue<'a> {
    Plain(&'a str),
    Secret {
        /// Prefix of the value.
        scheme: &'static str,
        reference: &'a SecretKeyRef,
    },
}

/// Lists every Secret that a Sink references, each with a key.
pub(super) fn references(spec: &api::SinkSpec) -> impl Iterator<Item = (&str, &str)> {
    let token = spec.authorization.iter().flat_map(|authorization| {
        let client = authorization.oauth2.as_deref();
        let id = client.and_then(|client| client.client_id_from.as_ref());
        let secret = client.map(|client| &client.client_secret);
        authorization.bearer_token.iter().chain(id).chain(secret)
    });
    let headers = spec
        .headers
        .iter()
        .filter_map(|header| header.value_from.as_ref());
    let values = token.chain(headers).chain(webhook_keys(spec));
    let values = values.map(|SecretValue { secret_key_ref }| {
        let SecretKeyRef { name, key } = secret_key_ref;
        (name.as_str(), key.as_str())
    });
    let certificate = spec.tls.iter().flat_map(|tls| {
        let name = tls.client_certificate.secret_name.as_str();
        [(name, TLS_CERTIFICATE), (name, TLS_KEY)]
    });
    values.chain(certificate)
}

/// Lists the keys of a Sink's signature.
fn webhook_keys(spec: &api::SinkSpec) -> &[SecretValue] {
    match &spec.signature {
        Some(api::Signature { standard_webhooks }) => &standard_webhooks.keys,
        None => &[],
    }
}

/// Builds the signing keys of a Sink in this namespace.
pub(super) fn signing_keys(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<Vec<SigningKey>, Finding> {
    let keys = webhook_keys(spec).iter().enumerate();
    let keys = keys.map(|(index, SecretValue { secret_key_ref })| {
        let path = format!("spec.signature.standardWebhooks.keys[{index}].secretKeyRef");
        let SecretKeyRef { name, key } = secret_key_ref;
        let (value, version) = secret_value(resolver, namespace, &path, name, key)?;
        let key = SigningKey {
            value: without_line_break(value).to_owned().into(),
            version: format!("{name}/{key}@{version}"),
        };
        key.bytes()
            .map_err(|problem| invalid_value(namespace, &path, secret_key_ref, &problem.to_string()))?;
        Ok(key)
    });
    keys.collect()
}

/// Builds the client certificate of a Sink in this namespace.
pub(super) fn client_certificate(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<Option<ClientCertificate>, Finding> {
    let Some(api::SinkTls { client_certificate }) = &spec.tls else {
        return Ok(None);
    };
    let name = &client_certificate.secret_name;
    let path = "spec.tls.clientCertificate.secretName";
    let part = |key| secret_value(resolver, namespace, path, name, key);
    let ((certificate, version), (key, _)) = (part(TLS_CERTIFICATE)?, part(TLS_KEY)?);
    let bad = |problem: &str| {
        Finding::bad(
            "InvalidClientCertificate",
            format!("{path}: Secret {name:?} in namespace {namespace:?}: {problem}"),
        )
    };
    if certificate.len().max(key.len()) > MAX_PEM {
        return Err(bad("tls.crt or tls.key is longer than 65536 bytes"));
    }
    trust::client_certificate(certificate, key).map_err(|error| bad(&error.to_string()))?;
    Ok(Some(ClientCertificate {
        certificate: certificate.to_owned().into(),
        key: key.to_owned().into(),
        version: format!("{name}@{version}"),
    }))
}

/// Builds the client credentials of a Sink in this namespace.
pub(super) fn client_credentials(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<Option<ClientCredentials>, Finding> {
    let Some(client) = spec.authorization.as_ref().and_then(|of| of.oauth2.as_deref()) else {
        return Ok(None);
    };
    let api::ClientCredentials {
        token_url,
        client_id,
        client_id_from,
        client_secret,
        scopes,
        audience,
    } = client;
    check_token_url(resolver, token_url)?;
    let path = |field: &str| format!("spec.authorization.oauth2.{field}");
    let from_secret = |field: &str, SecretValue { secret_key_ref }: &SecretValue| {
        let path = path(&format!("{field}.secretKeyRef"));
        let SecretKeyRef { name, key } = secret_key_ref;
        let (value, version) = secret_value(resolver, namespace, &path, name, key)?;
        let value =
            checked(value, "").map_err(|problem| invalid_value(namespace, &path, secret_key_ref, problem))?;
        Ok((value, format!("{name}/{key}@{version}")))
    };
    let (id, version_of_id) = match (client_id, client_id_from) {
        (Some(id), None) => {
            check_text(id)
                .map_err(|problem| invalid_authorization(&format!("{} {problem}", path("clientId"))))?;
            (Secret::from(id.clone()), id.clone())
        }
        (None, Some(reference)) => from_secret("clientIdFrom", reference)?,
        _ => {
            return Err(invalid_authorization(
                "spec.authorization.oauth2: exactly one of clientId and clientIdFrom must be set",
            ));
        }
    };
    let (secret, version_of_secret) = from_secret("clientSecret", client_secret)?;
    Ok(Some(ClientCredentials {
        token_url: token_url.clone(),
        id,
        secret,
        version: format!("{version_of_id} {version_of_secret}"),
        scopes: scopes.clone(),
        audience: audience.clone(),
    }))
}

/// Validates the URI of a token endpoint, which is reached like a Sink's `uri`.
fn check_token_url(resolver: &Resolver<'_>, token_url: &str) -> Result<(), Finding> {
    let path = "spec.authorization.oauth2.tokenUrl";
    resolver.uri(token_url).map_err(|finding| Finding {
        message: format!("{path}: {}", finding.message),
        ..finding
    })?;
    if !token_url.starts_with("https:") {
        return Err(Finding::bad(
            "InsecureUri",
            format!("{path}: the client's secret is sent over https only; use an https:// URI"),
        ));
    }
    Ok(())
}

fn invalid_authorization(problem: &str) -> Finding {
    Finding::bad("InvalidAuthorization", problem)
}

/// Builds the headers of a Sink in this namespace.
pub(super) fn headers(
    resolver: &Resolver<'_>,
    namespace: &str,
    spec: &api::SinkSpec,
) -> Result<SinkHeaders, Finding> {
    let mut headers = SinkHeaders::default();
    for wanted in wanted(spec)? {
        let Wanted { path, header, value } = wanted;
        match value {
            WantedValue::Plain(value) => {
                let problem = |problem| Finding::bad("InvalidHeader", format!("{path}: {problem}"));
                check_text(value).map_err(problem)?;
                headers.plain.push(PlainHeader {
                    name: header,
                    value: value.to_owned(),
                });
            }
            WantedValue::Secret { scheme, reference } => {
                let SecretKeyRef { name, key } = reference;
                let (value, version) = secret_value(resolver, namespace, &path, name, key)?;
                let value = checked(value, scheme)
                    .map_err(|problem| invalid_value(namespace, &path, reference, problem))?;
                headers.secret.push(Header {
                    name: header,
                    value,
                    version: format!("{scheme}{name}/{key}@{version}"),
                });
            }
        }
    }
    Ok(headers)
}

fn wanted(spec: &api::SinkSpec) -> Result<Vec<Wanted<'_>>, Finding> {
    let mut all = Vec::new();
    let mut seen = HashSet::new();
    if let Some(authorization) = &spec.authorization {
        all.extend(bearer_token(authorization)?);
        seen.insert(header::AUTHORIZATION.as_str().to_owned());
    }
    let of_headers = all.len();
    for (index, header) in spec.headers.iter().enumerate() {
        let path = format!("spec.headers[{index}]");
        if spec.signature.is_some() && SIGNATURE_HEADERS.contains(&&*header.name.to_ascii_lowercase()) {
            let name = &header.name;
            let problem = format!("{path}.name: {name:?} is already set by signature");
            return Err(Finding::bad("InvalidHeader", problem));
        }
        all.push(wanted_header(&path, header)?);
    }
    for Wanted { path, header, .. } in &all[of_headers..] {
        if !seen.insert(header.clone()) {
            return Err(Finding::bad(
                "InvalidHeader",
                format!("{path}: duplicate header {header:?}; names are case-insensitive"),
            ));
        }
    }
    Ok(all)
}

/// Returns the bearer token from a Secret, if that is what is sent.
fn bearer_token(authorization: &api::Authorization) -> Result<Option<Wanted<'_>>, Finding> {
    let api::Authorization {
        bearer_token,
        service_account_token,
        oauth2,
    } = authorization;
    match (bearer_token, service_account_token, oauth2) {
        (Some(SecretValue { secret_key_ref }), None, None) => Ok(Some(Wanted {
            path: "spec.authorization.bearerToken.secretKeyRef".to_owned(),
            header: header::AUTHORIZATION.as_str().to_owned(),
            value: WantedValue::Secret {
                scheme: "Bearer ",
                reference: secret_key_ref,
            },
        })),
        // Resolved separately, since they are renewed.
        (None, Some(_), None) | (None, None, Some(_)) => Ok(None),
        _ => Err(invalid_authorization(
            "spec.authorization: exactly one of bearerToken, serviceAccountToken and oauth2 must be set",
        )),
    }
}

fn wanted_header<'a>(path: &str, header: &'a api::Header) -> Result<Wanted<'a>, Finding> {
    let api::Header {
        name,
        value,
        value_from,
    } = header;
    let bad = |problem: String| Finding::bad("InvalidHeader", format!("{path}{problem}"));
    let header = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| bad(format!(".name: {name:?} is not a valid header name")))?;
    if api::is_reserved_header(name) {
        return Err(bad(format!(
            ".name: {name:?} is a reserved header, set by Weir or by HTTP itself"
        )));
    }
    let (field, value) = match (value, value_from) {
        (Some(_), None) if header == header::AUTHORIZATION => {
            return Err(bad(
                ".value: everyone who can read the Sink can read it; set Authorization by valueFrom"
                    .to_owned(),
            ));
        }
        (Some(value), None) => ("value", WantedValue::Plain(value)),
        (None, Some(SecretValue { secret_key_ref })) => (
            "valueFrom.secretKeyRef",
            WantedValue::Secret {
                scheme: "",
                reference: secret_key_ref,
            },
        ),
        _ => return Err(bad(": exactly one of value and valueFrom must be set".to_owned())),
    };
    Ok(Wanted {
        path: format!("{path}.{field}"),
        header: header.as_str().to_owned(),
        value,
    })
}

/// Returns the value of a Secret's key, and the version of the Secret.
pub(super) fn secret_value<'a>(
    resolver: &Resolver<'a>,
    namespace: &str,
    path: &str,
    name: &str,
    key: &str,
) -> Result<(&'a str, &'a str), Finding> {
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
            let grant = grant(
                &format!("weir-{name}"),
                "--verb=get --resource=secrets",
                name,
                namespace,
                account.as_deref(),
            );
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
            return Err(bad("ChannelNotSecure", CHANNEL_NOT_SECURE.to_owned()));
        }
        None => return Err(bad(SECRET_AWAITED, format!("{secret} has not been read yet"))),
    };
    let value = values.get(key).ok_or_else(|| {
        bad(
            "SecretKeyNotFound",
            format!("{secret} has no key {key:?}; add it, or correct the key"),
        )
    })?;
    Ok((value.reveal(), version))
}

pub(super) fn invalid_value(namespace: &str, path: &str, reference: &SecretKeyRef, problem: &str) -> Finding {
    let SecretKeyRef { name, key } = reference;
    Finding::bad(
        "InvalidSecretValue",
        format!("{path}: key {key:?} of Secret {name:?} in namespace {namespace:?} {problem}"),
    )
}

/// Validates a value and adds the prefix.
fn checked(value: &str, scheme: &str) -> Result<Secret, &'static str> {
    let value = without_line_break(value);
    check_text(value)?;
    if !scheme.is_empty() && value.contains([' ', '\t']) {
        return Err("is not a valid token: it has a space (Bearer is added automatically)");
    }
    Ok(format!("{scheme}{value}").into())
}

pub(super) fn without_line_break(value: &str) -> &str {
    value.trim_end_matches(['\r', '\n'])
}

/// Validates a header's value.
pub(super) fn check_text(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    if value.len() > MAX_VALUE {
        return Err("is longer than 8192 bytes");
    }
    if !value.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) {
        return Err("is not a valid header value: only printable ASCII characters are allowed");
    }
    Ok(())
}

/// The commands that grant the controller, or another account, a permission on a resource of this name.
#[must_use]
pub fn grant(role: &str, permission: &str, name: &str, namespace: &str, account: Option<&str>) -> String {
    let account = account.unwrap_or("--serviceaccount=NAMESPACE:NAME (of the controller's ServiceAccount)");
    format!(
        "to grant access, run: kubectl create role {role} {permission} --resource-name={name} -n {namespace} && kubectl \
         create rolebinding {role} --role={role} -n {namespace} {account}"
    )
}
