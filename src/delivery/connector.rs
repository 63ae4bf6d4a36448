//! Opens connections to Sinks. Where a destination may not reach every address, the address that is connected to is
//! the one that was looked at: names are resolved here, so that none can mean another address a moment later.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
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

use super::UriAddresses;

/// How long connecting may take, within an attempt's own timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many addresses are told.
const TOLD: usize = 3;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connects to addresses that are permitted.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpConnector<Resolver>,
    permitted: Arc<UriAddresses>,
}

impl Connector {
    pub(super) fn new(permitted: Arc<UriAddresses>) -> Self {
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
            && !self.permitted.permit(address)
        {
            return std::future::ready(Err(Refused::Literal(address).into())).boxed();
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
    permitted: Arc<UriAddresses>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Self::Response, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.system.poll_ready(context).map_err(Failure::from)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (resolving, permitted) = (self.system.call(name), self.permitted.clone());
        async move { Ok(sift(resolving.await?.collect(), &permitted)?.into_iter()) }.boxed()
    }
}

/// Those of the addresses that are permitted; none is as good as no such name.
fn sift(addresses: Vec<SocketAddr>, permitted: &UriAddresses) -> Result<Vec<SocketAddr>, Refused> {
    let (good, bad): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| permitted.permit(address.ip()));
    if good.is_empty() && !bad.is_empty() {
        return Err(Refused::Resolved(bad.iter().map(SocketAddr::ip).collect()));
    }
    Ok(good)
}

/// An address may not be reached.
#[derive(Debug)]
enum Refused {
    Literal(IpAddr),
    Resolved(Vec<IpAddr>),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(address) => write!(f, "{address} is an address")?,
            Self::Resolved(addresses) => {
                let told: Vec<_> = addresses.iter().take(TOLD).map(IpAddr::to_string).collect();
                write!(f, "the host resolves to {}", told.join(", "))?;
                match addresses.len().saturating_sub(TOLD) {
                    0 => f.write_str(",")?,
                    more => write!(f, " and {more} more,")?,
                }
            }
        }
        f.write_str(
            " which a uri may not reach; name a Service, or allow it by --allow-uri-addresses (router.uri.allow in \
             the chart)",
        )
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
        let sift =
            |texts| sift(addresses(texts), &UriAddresses::default()).map_err(|error| error.to_string());
        assert_eq!(sift(&[]), Ok(vec![]));
        assert_eq!(
            sift(&["10.0.0.1", "1.1.1.1", "::1", "2a00::1"]),
            Ok(addresses(&["1.1.1.1", "2a00::1"]))
        );
        assert_eq!(
            sift(&["10.0.0.1"]).unwrap_err(),
            "the host resolves to 10.0.0.1, which a uri may not reach; name a Service, or allow it by \
             --allow-uri-addresses (router.uri.allow in the chart)"
        );
        let many = sift(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "::1"]).unwrap_err();
        assert!(
            many.starts_with(
                "the host resolves to 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 more, which a uri may not reach;"
            ),
            "{many}"
        );
    }

    #[tokio::test]
    async fn what_the_resolver_makes_loopback_is_not_reached() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = async |permitted: UriAddresses, host: &str| {
            let uri = format!("http://{host}:{port}/").parse().unwrap();
            let connected = Connector::new(Arc::new(permitted)).call(uri).await;
            connected
                .map(drop)
                .map_err(|error| super::super::with_causes(&*error))
        };
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "localhost",
            "[::ffff:127.0.0.1]",
        ] {
            let refused = connect(UriAddresses::default(), host).await.unwrap_err();
            assert!(refused.contains("which a uri may not reach"), "{host}: {refused}");
        }
        for host in ["127.0.0.1", "localhost"] {
            assert_eq!(connect(UriAddresses::any(), host).await, Ok(()), "{host}");
        }
    }
}
