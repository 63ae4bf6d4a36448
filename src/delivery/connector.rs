//! Opens connections to Sinks. Where a destination may not reach every address, the address that is connected to is
//! the one that was looked at: names are resolved here, so that none can mean another address a moment later.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use http::Uri;
use hyper_util::{
    client::legacy::connect::{
        HttpConnector,
        dns::{GaiResolver, Name},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

use super::{UriAddresses, addresses::NamedBy};
use crate::telemetry::{Admitted, Burst};

/// How long connecting may take, within an attempt's own timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many addresses are logged.
const TOLD: usize = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What may be reached by those that are named alike.
#[derive(Debug)]
pub(super) struct Permitted {
    addresses: UriAddresses,
    named_by: NamedBy,
    /// Bounds what is said of names that lead elsewhere.
    refusals: Mutex<Burst>,
}

impl Permitted {
    pub(super) fn new(addresses: UriAddresses, named_by: NamedBy) -> Self {
        Self {
            addresses,
            named_by,
            refusals: Mutex::default(),
        }
    }

    /// Says how many lines were held back, where no later line has.
    pub(super) fn tell_overdue(&self, now: Instant) {
        if let Some(held_back) = self.refusals().overdue(now) {
            tracing::warn!(
                held_back,
                of = "hosts at addresses that they may not reach",
                "log lines were held back"
            );
        }
    }

    /// Logs where a name leads: whoever wrote it must not learn that by writing it.
    fn tell_refused(&self, host: &str, addresses: &[IpAddr]) {
        let Some(Admitted { held_back }) = self.refusals().admit(Instant::now()) else {
            return;
        };
        let told: Vec<_> = addresses.iter().take(TOLD).map(IpAddr::to_string).collect();
        let (told, more) = (told.join(", "), addresses.len().saturating_sub(TOLD));
        tracing::warn!(
            host,
            addresses = told,
            more,
            held_back,
            "a destination's host resolves to an address that it may not reach, and is not connected to"
        );
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Burst> {
        // No code that holds the lock can leave the counts half changed.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to addresses that are permitted.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpConnector<Resolver>,
    permitted: Arc<Permitted>,
}

impl Connector {
    pub(super) fn new(permitted: Arc<Permitted>) -> Self {
        let mut http = HttpConnector::new_with_resolver(Resolver {
            system: GaiResolver::new(),
            permitted: permitted.clone(),
        });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Self { http, permitted }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.http.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        // The resolver is not asked about what is an address already.
        if let Some(address) = literal(&uri)
            && !self.permitted.addresses.permit(address)
        {
            let refused = Refused {
                literal: Some(address),
                named_by: self.permitted.named_by,
            };
            return std::future::ready(Err(refused.into())).boxed();
        }
        let connecting = self.http.call(uri);
        async move { Ok(connecting.await?) }.boxed()
    }
}

/// The address that stands in a URI instead of a name.
fn literal(uri: &Uri) -> Option<IpAddr> {
    uri.host()?.trim_matches(['[', ']']).parse().ok()
}

/// Resolves names as the system does, and leaves out what is not permitted.
#[derive(Clone)]
struct Resolver {
    system: GaiResolver,
    permitted: Arc<Permitted>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.system.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, permitted) = (self.system.call(name.clone()), self.permitted.clone());
        async move {
            let good = sift(resolving.await?.collect(), &permitted.addresses).map_err(|bad| {
                permitted.tell_refused(name.as_str(), &bad);
                Refused {
                    literal: None,
                    named_by: permitted.named_by,
                }
            })?;
            Ok(good.into_iter())
        }
        .boxed()
    }
}

/// Those of the addresses that are permitted, or those that are not, if there is none that is.
fn sift(addresses: Vec<SocketAddr>, permitted: &UriAddresses) -> Result<Vec<SocketAddr>, Vec<IpAddr>> {
    let (good, bad): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| permitted.permit(address.ip()));
    if good.is_empty() && !bad.is_empty() {
        return Err(bad.iter().map(SocketAddr::ip).collect());
    }
    Ok(good)
}

/// An address may not be reached. Which one a name leads to is not told here: it goes to whoever wrote the name.
#[derive(Debug)]
struct Refused {
    /// The address, where it was written as one.
    literal: Option<IpAddr>,
    named_by: NamedBy,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.literal {
            Some(address) => write!(f, "{address} is an address")?,
            None => f.write_str("the host resolves to an address")?,
        }
        f.write_str(match self.named_by {
            NamedBy::Uri => {
                " that a uri may not reach; name a Service, or have it allowed by --allow-uri-addresses \
                 (router.uri.allow in the chart)"
            }
            NamedBy::Service | NamedBy::Operator => {
                " that no Service may lead to: loopback, link-local and metadata addresses are refused; change where \
                 the Service leads"
            }
        })?;
        match self.literal {
            Some(_) => Ok(()),
            None => f.write_str("; the router's log tells the address"),
        }
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_is_found() {
        let table = [
            ("http://10.0.0.1/a", Some("10.0.0.1")),
            ("http://10.0.0.1:80/a", Some("10.0.0.1")),
            ("https://[::1]:80/a", Some("::1")),
            ("https://[::ffff:10.0.0.1]/", Some("::ffff:10.0.0.1")),
            // The system's resolver makes addresses of these.
            ("http://127.1/", None),
            ("http://2130706433/", None),
            ("http://0x7f000001/", None),
            ("http://example.com/", None),
        ];
        for (uri, address) in table {
            let found = literal(&uri.parse().unwrap());
            assert_eq!(found, address.map(|address| address.parse().unwrap()), "{uri}");
        }
    }

    #[test]
    fn only_what_is_permitted_is_tried() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            let addresses = texts.iter().map(|text| text.parse::<IpAddr>().unwrap());
            addresses.map(|address| (address, 0).into()).collect()
        };
        let sift = |texts| sift(addresses(texts), &UriAddresses::default());
        assert_eq!(sift(&[]), Ok(vec![]));
        assert_eq!(
            sift(&["10.0.0.1", "1.1.1.1", "::1", "2a00::1"]),
            Ok(addresses(&["1.1.1.1", "2a00::1"]))
        );
        let refused = addresses(&["10.0.0.1", "::1"])
            .iter()
            .map(SocketAddr::ip)
            .collect();
        assert_eq!(sift(&["10.0.0.1", "::1"]), Err(refused));
    }

    #[test]
    fn a_refusal_tells_an_address_only_to_who_wrote_it() {
        let refused = |literal, named_by| Refused { literal, named_by }.to_string();
        let address = "10.0.0.1".parse().ok();
        let table = [
            (
                refused(None, NamedBy::Uri),
                "the host resolves to an address that a uri may not reach; name a Service",
            ),
            (
                refused(address, NamedBy::Uri),
                "10.0.0.1 is an address that a uri may not reach; name a Service",
            ),
            (
                refused(None, NamedBy::Service),
                "the host resolves to an address that no Service may lead to: loopback",
            ),
        ];
        for (told, beginning) in table {
            assert!(told.starts_with(beginning), "{told}");
        }
    }

    #[tokio::test]
    async fn what_the_resolver_makes_loopback_is_not_reached() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = async |permitted: UriAddresses, named_by, host: &str| {
            let uri = format!("http://{host}:{port}/").parse().unwrap();
            let permitted = Arc::new(Permitted::new(permitted, named_by));
            let connected = Connector::new(permitted).call(uri).await;
            connected
                .map(drop)
                .map_err(|error| super::super::with_causes(&*error))
        };
        let hosts = [
            ("127.0.0.1", true),
            ("127.1", false),
            ("2130706433", false),
            ("0x7f.1", false),
            ("localhost", false),
            ("[::ffff:127.0.0.1]", true),
        ];
        for (host, is_literal) in hosts {
            let refused = connect(UriAddresses::default(), NamedBy::Uri, host).await;
            let refused = refused.unwrap_err();
            assert!(refused.contains("that a uri may not reach"), "{host}: {refused}");
            assert_eq!(refused.contains("127.0.0.1"), is_literal, "{host}: {refused}");
        }
        let refused = connect(UriAddresses::of_services(), NamedBy::Service, "localhost").await;
        let refused = refused.unwrap_err();
        assert!(refused.contains("that no Service may lead to"), "{refused}");
        for host in ["127.0.0.1", "localhost"] {
            let connected = connect(UriAddresses::any(), NamedBy::Operator, host).await;
            assert_eq!(connected, Ok(()), "{host}");
        }
    }
}
