//! Where events are posted: a destination made ready, with the connections of those that trust the same.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
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

use super::{ClientError, UriAddresses, connector::Connector};
use crate::{
    routing::{Destination, Header},
    trust::{self, TrustError},
};

/// Idle connections are kept this long, below the usual keep-alive of servers so that few are found closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// How many idle connections are kept to one Sink.
const POOL_SIZE: usize = 64;

/// What stands for a value that must not be told.
const HIDDEN: &str = "[secret]";

pub(super) type HttpClient = legacy::Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Makes targets of destinations. Those that trust the same authorities share their connections.
#[derive(Clone)]
pub(super) struct Targets {
    uris: Arc<UriAddresses>,
    public: Arc<Connections>,
    /// By the authorities' PEM, for as long as there is a target.
    own: Arc<Mutex<HashMap<String, Weak<Connections>>>>,
}

/// Where events are posted.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) uri: Uri,
    /// Whether it is a Service, which may be reached wherever it is.
    is_service: bool,
    connections: Arc<Connections>,
    headers: Arc<[(HeaderName, HeaderValue)]>,
    /// What must not be told of the headers.
    secrets: Arc<[String]>,
}

/// Connections that trust the same authorities.
struct Connections {
    to_services: HttpClient,
    to_uris: HttpClient,
}

/// Why a destination cannot be used; the controller lets none of these pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("its URI is none: {0}")]
    Uri(#[from] http::uri::InvalidUri),
    #[error("its authorities cannot be used: {0}")]
    Authorities(#[from] TrustError),
    #[error("its header {0:?} cannot be sent")]
    Header(String),
}

impl Targets {
    pub(super) fn new(uris: UriAddresses) -> Result<Self, ClientError> {
        let uris = Arc::new(uris);
        Ok(Self {
            public: Arc::new(Connections::new(&public_tls()?, &uris)),
            own: Arc::default(),
            uris,
        })
    }

    pub(super) fn target(&self, destination: &Destination) -> Result<Target, TargetError> {
        let Destination {
            uri,
            service,
            content_mode: _,
            ca_certs,
            headers,
        } = destination;
        let connections = match ca_certs {
            Some(pem) => self.trusting(pem)?,
            None => self.public.clone(),
        };
        Ok(Target {
            uri: uri.parse()?,
            is_service: service.is_some(),
            connections,
            headers: headers.iter().map(parsed).collect::<Result<_, _>>()?,
            secrets: headers.iter().map(told_in_no_error).collect(),
        })
    }

    fn trusting(&self, pem: &str) -> Result<Arc<Connections>, TrustError> {
        // No code that holds the lock can leave it half changed.
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = own.get(pem).and_then(Weak::upgrade) {
            return Ok(connections);
        }
        let connections = Arc::new(Connections::new(&tls(trust::authorities(pem)?), &self.uris));
        own.retain(|_, connections| connections.strong_count() > 0);
        own.insert(pem.to_owned(), Arc::downgrade(&connections));
        Ok(connections)
    }
}

impl Connections {
    fn new(tls: &ClientConfig, uris: &Arc<UriAddresses>) -> Self {
        let client = |addresses| {
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls.clone())
                .https_or_http()
                .enable_http1()
                .wrap_connector(Connector::new(addresses));
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(POOL_IDLE)
                .pool_max_idle_per_host(POOL_SIZE)
                .pool_timer(TokioTimer::new())
                .build(https)
        };
        Self {
            to_services: client(Arc::new(UriAddresses::any())),
            to_uris: client(uris.clone()),
        }
    }
}

impl Target {
    /// Whether the Sink is sent something secret.
    pub(super) fn shows_credentials(&self) -> bool {
        !self.secrets.is_empty()
    }

    pub(super) fn http(&self) -> &HttpClient {
        if self.is_service {
            &self.connections.to_services
        } else {
            &self.connections.to_uris
        }
    }

    /// Sets what the Sink asks for beside the event's headers.
    pub(super) fn set_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &*self.headers {
            headers.insert(name, value.clone());
        }
    }

    /// How long the longest secret value is, in bytes; a text that ends within one has a part of it.
    pub(super) fn longest_secret(&self) -> usize {
        self.secrets.iter().map(String::len).max().unwrap_or_default()
    }

    /// The text of an answer without the secret values in it: a Sink may send back what it was sent.
    pub(super) fn hide_secrets(&self, text: String) -> String {
        let secrets = self.secrets.iter();
        secrets.fold(text, |text, secret| text.replace(secret, HIDDEN))
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            uri,
            is_service,
            connections,
            headers,
            // Made of the headers.
            secrets: _,
        } = self;
        *uri == other.uri
            && *is_service == other.is_service
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

/// A header's value; of a token without the word before it.
fn told_in_no_error(header: &Header) -> String {
    let value = header.value.reveal();
    let token = (header.name == header::AUTHORIZATION.as_str())
        .then(|| value.strip_prefix("Bearer "))
        .flatten();
    token.unwrap_or(value).to_owned()
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
