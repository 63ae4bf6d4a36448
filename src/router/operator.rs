//! Access to admin routes that change things or show events: only from this machine or pod; with a port-forward
//! you reach them as if locally. Health and metrics are for everyone.
//!
//! Being local proves little. A page in a local browser sends requests from here as well, by a name that its
//! author resolves to this machine, and so does a proxy beside the router, for anybody. So a request has to name
//! this machine, come from no other site and through no proxy; one that changes something also needs a header that
//! no browser form can send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header, uri::Authority};

use super::problem::Problem;
use crate::server::Peer;

/// Header of requests that change something; its value does not matter.
pub const REQUEST_HEADER: HeaderName = HeaderName::from_static("x-weir-request");

/// Headers, and prefixes of headers, by which proxies name their clients.
const FORWARDED: [&str; 6] = [
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "true-client-ip",
];
const FORWARDED_PREFIXES: [&str; 3] = ["x-forwarded", "x-envoy-", "x-original-"];

/// Admits only requests from this machine.
pub(super) fn local_only(routes: Router) -> Router {
    routes.layer(from_fn(async |request: Request, next: Next| {
        let peer = request.extensions().get::<Peer>().copied();
        match check(peer, request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        }
    }))
}

/// Admits only requests with [`REQUEST_HEADER`].
pub(super) fn changing<S: Clone + Send + Sync + 'static>(route: MethodRouter<S>) -> MethodRouter<S> {
    route.layer(from_fn(check_meant))
}

async fn check_meant(request: Request, next: Next) -> Response {
    if request.headers().contains_key(REQUEST_HEADER) {
        return next.run(request).await;
    }
    refused(
        "header_missing",
        format!(
            "this changes something, and needs the header {REQUEST_HEADER}: 1, which weir dead-letters sends"
        ),
    )
    .into_response()
}

fn check(peer: Option<Peer>, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let is_this_machine = |Peer(address): Peer| {
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            .contains(&address.ip().to_canonical())
    };
    if !peer.is_some_and(is_this_machine) {
        return Err(not_local(""));
    }
    if let Some(header) = headers.keys().find(|name| is_forwarding(name)) {
        return Err(not_local(&format!(
            "the header {header} says that a proxy asks for somebody else; "
        )));
    }
    let host = check_host(uri, headers)?;
    check_site(&host, headers)
}

fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str();
    FORWARDED.contains(&name) || FORWARDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns the request's host, which has to be an address or `localhost`: no other name reliably leads here.
fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named: Option<Option<Authority>> = hosts.next().map(|host| Authority::try_from(host.as_bytes()).ok());
    let of_uri = uri.authority().cloned();
    let host = match (named, of_uri) {
        (Some(Some(host)), None) | (None, Some(host)) => Some(host),
        (Some(Some(host)), Some(of_uri)) if host == of_uri => Some(host),
        _ => None,
    };
    match host {
        Some(host) if hosts.next().is_none() && is_plain(&host) => Ok(host),
        _ => Err(refused(
            "wrong_host",
            "the request has to name this machine in Host, as localhost or by an address: use http://127.0.0.1:PORT",
        )),
    }
}

fn is_plain(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok())
}

/// Rejects requests that a page of another site makes a browser send.
fn check_site(host: &Authority, headers: &HeaderMap) -> Result<(), Problem> {
    let own = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).unwrap_or_default();
        ["http://", "https://"]
            .iter()
            .filter_map(|scheme| origin.strip_prefix(scheme))
            .any(|origin| origin.eq_ignore_ascii_case(host.as_str()))
    };
    let foreign_origin = headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| !own(origin.as_bytes()));
    let foreign_fetch = headers
        .get_all("sec-fetch-site")
        .iter()
        .any(|site| site != "same-origin" && site != "none");
    if foreign_origin || foreign_fetch {
        return Err(refused(
            "foreign_origin",
            "a page of another site has a browser ask, by Origin or Sec-Fetch-Site; ask with weir or curl",
        ));
    }
    Ok(())
}

fn not_local(why: &str) -> Problem {
    refused(
        "not_local",
        format!(
            "{why}it answers on the router's own machine only; in a cluster, use kubectl exec in the router's pod, or kubectl port-forward to it"
        ),
    )
}

fn refused(reason: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, reason, "This is for operators", detail)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn reason(peer: &str, uri: &str, pairs: &[(&'static str, &'static str)]) -> &'static str {
        let mut headers = HeaderMap::new();
        for &(name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        let peer = peer.parse().ok().map(Peer);
        let checked = check(peer, &uri.parse().unwrap(), &headers);
        checked.err().map_or("", |problem| problem.reason())
    }

    #[test]
    fn only_this_machine_is_let_in() {
        for (peer, expected) in [
            ("127.0.0.1:1", ""),
            ("[::1]:1", ""),
            ("[::ffff:127.0.0.1]:1", ""),
            ("127.0.0.6:1", "not_local"),
            ("[::ffff:127.0.0.6]:1", "not_local"),
            ("10.0.0.1:1", "not_local"),
            ("[::ffff:10.0.0.1]:1", "not_local"),
            ("", "not_local"),
        ] {
            assert_eq!(reason(peer, "/", &[("host", "localhost")]), expected, "{peer}");
        }
        for header in [
            "forwarded",
            "via",
            "x-forwarded-for",
            "x-forwarded-client-cert",
            "x-real-ip",
            "x-envoy-external-address",
            "x-original-forwarded-for",
        ] {
            let headers = [("host", "localhost"), (header, "x")];
            assert_eq!(reason("127.0.0.1:1", "/", &headers), "not_local", "{header}");
        }
    }

    #[test]
    fn the_host_is_an_address_or_localhost() {
        for (host, expected) in [
            ("localhost", ""),
            ("LOCALHOST:9090", ""),
            ("127.0.0.1:9090", ""),
            ("10.1.2.3", ""),
            ("[::1]:9090", ""),
            ("evil.example", "wrong_host"),
            ("evil.example:9090", "wrong_host"),
            ("localhost.evil.example", "wrong_host"),
            ("127.0.0.1.evil.example", "wrong_host"),
            ("127.0.0.1@evil.example", "wrong_host"),
            ("evil@127.0.0.1", "wrong_host"),
            ("localhost.", "wrong_host"),
            ("", "wrong_host"),
        ] {
            assert_eq!(reason("127.0.0.1:1", "/", &[("host", host)]), expected, "{host}");
        }
        let of = |uri, headers: &[_]| reason("127.0.0.1:1", uri, headers);
        assert_eq!(of("/", &[]), "wrong_host");
        assert_eq!(
            of("/", &[("host", "localhost"), ("host", "localhost")]),
            "wrong_host"
        );
        // HTTP/2 has the host in the URI.
        assert_eq!(of("http://localhost:9090/", &[]), "");
        assert_eq!(of("http://evil.example/", &[]), "wrong_host");
        assert_eq!(of("http://evil.example/", &[("host", "localhost")]), "wrong_host");
    }

    #[test]
    fn pages_of_other_sites_are_kept_out() {
        for (header, value, expected) in [
            ("origin", "http://localhost:9090", ""),
            ("origin", "http://localhost:8080", "foreign_origin"),
            ("origin", "https://evil.example", "foreign_origin"),
            ("origin", "null", "foreign_origin"),
            ("sec-fetch-site", "same-origin", ""),
            ("sec-fetch-site", "none", ""),
            ("sec-fetch-site", "same-site", "foreign_origin"),
            ("sec-fetch-site", "cross-site", "foreign_origin"),
        ] {
            let headers = [("host", "localhost:9090"), (header, value)];
            assert_eq!(
                reason("127.0.0.1:1", "/", &headers),
                expected,
                "{header}: {value}"
            );
        }
    }
}
