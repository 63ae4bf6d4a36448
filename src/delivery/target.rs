//! Where events are posted: a destination made ready, with the connections of those that trust the same.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};

use super::{
    Addresses, ClientError,
    addresses::NamedBy,
    connector::{Connector, Permitted},
};
use crate::{
    routing::{Authorities, AuthoritiesDigest, Destination, Header},
    trust::{self, TrustError},
};

/// Idle connections are kept this long, below the usual keep-alive of servers so that few are found closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// How many idle connections are kept to one Sink.
const POOL_SIZE: usize = 64;

/// What stands for a value that must not be told.
const HIDDEN: &str = "[secret]";

/// A shorter value is not hidden, in bytes: it stands in most texts by chance, and can be guessed as fast as it is read.
const SHORTEST_SECRET: usize = 4;

pub(super) type HttpClient = legacy::Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Makes targets of destinations. Those that trust the same authorities share their connections.
#[derive(Clone)]
pub(super) struct Targets {
    addresses: Arc<Addresses>,
    permitted: Permissions,
    public: Arc<Connections>,
    /// By the authorities, for as long as there is a target.
    own: Arc<Mutex<HashMap<AuthoritiesDigest, Weak<Connections>>>>,
}

/// Where events are posted.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uri: Uri,
    named_by: NamedBy,
    connections: Arc<Connections>,
    headers: Arc<[(HeaderName, HeaderValue)]>,
    /// What must not be told of the headers, the longest first.
    secrets: Arc<[String]>,
}

/// Something for each of those that decide where a destination is.
#[derive(Clone)]
struct ByName<T> {
    uri: T,
    service: T,
    operator: T,
}

type Permissions = ByName<Arc<Permitted>>;

/// Connections that trust the same authorities.
type Connections = ByName<HttpClient>;

/// Why a destination cannot be used; the controller lets none of these pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("its URI is none: {0}")]
    Uri(#[from] http::uri::InvalidUri),
    #[error("its authorities cannot be used: {0}")]
    Authorities(#[from] TrustError),
    #[error("its authorities are not in the configuration; it is to be made by a controller of this version")]
    UnknownAuthorities,
    #[error("its header {0:?} cannot be sent")]
    Header(String),
}

impl Targets {
    pub(super) fn new(addresses: Addresses) -> Result<Self, ClientError> {
        let permitted = |named_by| Arc::new(Permitted::new(addresses.of(named_by), named_by));
        let permitted = ByName {
            uri: permitted(NamedBy::Uri),
            service: permitted(NamedBy::Service),
            operator: permitted(NamedBy::Operator),
        };
        Ok(Self {
            public: Arc::new(Connections::new(&public_tls()?, &permitted)),
            own: Arc::default(),
            permitted,
            addresses: Arc::new(addresses),
        })
    }

    /// Says how many lines were held back, where no later line has.
    pub(super) fn tell_overdue(&self, now: Instant) {
        let ByName {
            uri,
            service,
            operator,
        } = &self.permitted;
        for permitted in [uri, service, operator] {
            permitted.tell_overdue(now);
        }
    }

    /// `authorities` are those of the destination's configuration.
    pub(super) fn target(
        &self,
        destination: &Destination,
        authorities: &Authorities,
    ) -> Result<Target, TargetError> {
        let Destination {
            uri,
            service: _,
            content_mode: _,
            ca_certs,
            headers,
        } = destination;
        let connections = match ca_certs {
            Some(digest) => self.trusting(digest, authorities)?,
            None => self.public.clone(),
        };
        Ok(Target {
            uri: uri.parse()?,
            named_by: self.addresses.named_by(destination),
            connections,
            headers: headers.iter().map(parsed).collect::<Result<_, _>>()?,
            secrets: told_in_no_error(headers),
        })
    }

    fn trusting(
        &self,
        digest: &AuthoritiesDigest,
        authorities: &Authorities,
    ) -> Result<Arc<Connections>, TargetError> {
        // No code that holds the lock can leave it half changed.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = own.get(digest).and_then(Weak::upgrade) {
            return Ok(connections);
        }
        let pem = authorities.get(digest).ok_or(TargetError::UnknownAuthorities)?;
        let connections = Arc::new(Connections::new(&tls(trust::authorities(pem)?), &self.permitted));
        own.retain(|_, connections| connections.strong_count() > 0);
        own.insert(digest.clone(), Arc::downgrade(&connections));
        Ok(connections)
    }
}

impl<T> ByName<T> {
    fn of(&self, named_by: NamedBy) -> &T {
        match named_by {
            NamedBy::Uri => &self.uri,
            NamedBy::Service => &self.service,
            NamedBy::Operator => &self.operator,
        }
    }
}

impl Connections {
    fn new(tls: &ClientConfig, permitted: &Permissions) -> Self {
        let client = |permitted: &Arc<Permitted>| {
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .wrap_connector(Connector::new(permitted.clone()));
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_SIZE)
                .pool_timer(TokioTimer::new())
                .build(https)
        };
        Self {
            uri: client(&permitted.uri),
            service: client(&permitted.service),
            operator: client(&permitted.operator),
        }
    }
}

impl Target {
    /// Whether the Sink is sent something secret.
    pub(super) fn shows_credentials(&self) -> bool {
        !self.headers.is_empty()
    }

    pub(super) fn http(&self) -> &HttpClient {
        self.connections.of(self.named_by)
    }

    /// Sets what the Sink asks for beside the event's headers.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &*self.headers {
            headers.insert(name, value.clone());
        }
    }

    /// How long the longest secret value is, in bytes; a text that ends within one has a part of it.
    pub(super) fn longest_secret(&self) -> usize {
        self.secrets.first().map(String::len).unwrap_or_default()
    }

    /// The text of an answer without the secret values in it: a Sink may send back what it was sent. Values of fewer
    /// than four bytes stay.
    pub(super) fn hide_secrets(&self, text: String) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text, |text, secret| text.replace(secret, HIDDEN))
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            uri,
            named_by,
            connections,
            headers,
            // Made of the headers.
            secrets: _,
        } = self;
        *uri == other.uri
            && *named_by == other.named_by
            && Arc::ptr_eq(connections, &other.connections)
            && *headers == other.headers
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

fn parsed(header: &Header) -> Result<(HeaderName, HeaderValue), TargetError> {
    let name = HeaderName::from_bytes(header.name.as_bytes());
    let value = HeaderValue::from_str(header.value.reveal());
    let (Ok(name), Ok(mut value)) = (name, value) else {
        return Err(TargetError::Header(header.name.clone()));
    };
    value.set_sensitive(true);
    Ok((name, value))
}

/// The headers' values, and of `authorization` also what follows the scheme, the longest first: what is within another
/// must not be hidden before it.
fn told_in_no_error(headers: &[Header]) -> Arc<[String]> {
    let parts = headers.iter().flat_map(|header| {
        let value = header.value.reveal().trim();
        let credentials = (header.name == header::AUTHORIZATION.as_str())
            .then(|| value.split_once(' '))
            .flatten()
            .map(|(_scheme, credentials)| credentials.trim_start());
        std::iter::once(value).chain(credentials)
    });
    let mut secrets: Vec<_> = parts
        .filter(|secret| secret.len() >= SHORTEST_SECRET)
        .map(str::to_owned)
        .collect();
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into()
}

/// TLS that trusts what this machine trusts.
fn public_tls() -> Result<ClientConfig, ClientError> {
    match ClientConfig::builder().with_native_roots() {
        Ok(config) => Ok(config.with_no_client_auth()),
        // An empty image has no authorities: https Sinks then fail, one by one, with the TLS error.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(tls(RootCertStore::empty())),
        Err(error) => Err(ClientError::Roots(error)),
    }
}

fn tls(trusted: RootCertStore) -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(trusted)
        .with_no_client_auth()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::{ContentMode, ServiceName};

    fn header(name: &str, value: &str) -> Header {
        Header {
            name: name.to_owned(),
            value: value.to_owned().into(),
            version: String::new(),
        }
    }

    fn destination(service: Option<ServiceName>, headers: &[(&str, &str)]) -> Destination {
        Destination {
            uri: "https://example.com/".to_owned(),
            service,
            content_mode: ContentMode::default(),
            ca_certs: None,
            headers: headers.iter().map(|(name, value)| header(name, value)).collect(),
        }
    }

    fn hide(headers: &[(&str, &str)], text: &str) -> String {
        drop(rustls::crypto::ring::default_provider().install_default());
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = targets.target(&destination(None, headers), &Authorities::default());
        target.unwrap().hide_secrets(text.to_owned())
    }

    #[test]
    fn only_a_service_that_is_mapped_is_reached_anywhere() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let name = |name: &str| ServiceName {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let addresses = Addresses {
            mapped: [name("mapped")].into(),
            ..Addresses::any()
        };
        let targets = Targets::new(addresses).unwrap();
        let table = [
            (None, NamedBy::Uri),
            (Some("mapped"), NamedBy::Operator),
            (Some("other"), NamedBy::Service),
        ];
        for (service, named_by) in table {
            let target = targets.target(&destination(service.map(name), &[]), &Authorities::default());
            let target = target.unwrap();
            assert_eq!(target.named_by, named_by, "{service:?}");
        }
    }

    #[test]
    fn those_that_trust_the_same_share_connections() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let [ours, theirs] = ["ours", "theirs"].map(|name| {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]);
            made.unwrap().cert.pem()
        });
        let authorities: Authorities = [&*ours, &*theirs].into_iter().collect();
        let targets = Targets::new(Addresses::any()).unwrap();
        let target = |pem: &str, authorities: &Authorities| {
            let ca_certs = Some(AuthoritiesDigest::of(pem));
            let destination = Destination {
                ca_certs,
                ..destination(None, &[])
            };
            targets.target(&destination, authorities)
        };
        let first = target(&ours, &authorities).unwrap();
        assert_eq!(target(&ours, &authorities).unwrap(), first);
        assert_ne!(target(&theirs, &authorities).unwrap(), first);
        let unknown = target("-----BEGIN CERTIFICATE-----", &authorities);
        assert!(matches!(unknown, Err(TargetError::UnknownAuthorities)));
    }

    #[test]
    fn what_a_sink_is_sent_is_hidden_in_what_it_answers() {
        type Headers = &'static [(&'static str, &'static str)];
        let table: &[(Headers, &str, &str)] = &[
            (&[], "Bearer abcd", "Bearer abcd"),
            (
                &[("authorization", "Bearer t0ken")],
                "no: Bearer t0ken",
                "no: [secret]",
            ),
            (
                &[("authorization", "Bearer t0ken")],
                "no: \"t0ken\"",
                "no: \"[secret]\"",
            ),
            (&[("authorization", "bearer t0ken")], "t0ken", "[secret]"),
            (&[("authorization", "Basic dTpw")], "dTpw", "[secret]"),
            (&[("authorization", "ApiKey  k3y1 k3y2")], "k3y1 k3y2", "[secret]"),
            (&[("authorization", "t0ken")], "t0ken", "[secret]"),
            (&[("x-api-key", "Basic k3y")], "Basic k3y, k3y", "[secret], k3y"),
            // The one is the beginning of the other.
            (
                &[("a", "k3y1"), ("b", "k3y1-and-more")],
                "k3y1-and-more, k3y1",
                "[secret], [secret]",
            ),
            // Too short to be told from other text.
            (&[("a", "abc"), ("b", "a"), ("c", "")], "an abc", "an abc"),
            (&[("authorization", "Key abc")], "abc, Key abc", "abc, [secret]"),
        ];
        for (headers, text, hidden) in table {
            assert_eq!(hide(headers, text), *hidden, "{headers:?}");
        }
    }
}
