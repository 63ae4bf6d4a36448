//! Admits operators to the admin routes that change things or show events. Health and metrics are for everyone.
//!
//! An operator authenticates with a token: the router's own one, which whoever may read its data directory knows, or one
//! that the API server reviews. The request also has to come from this machine or pod, where a port-forward ends:
//! the port is plain HTTP, and a token would be in the clear on the way from elsewhere. And it has to name this machine,
//! and come from no web site and through no proxy, which would ask for somebody else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header, request::Parts, uri::Authority};

use super::{controller_link::ControllerLink, operator_token::OperatorToken, problem::Problem};
use crate::{
    access::{Challenges, operation_of},
    routing::{AccessReview, AccessVerdict, OPERATOR_AUDIENCE, Operation, bearer_token},
    server::Peer,
};

/// Maximum length of a token, in bytes. The API server's own tokens have about 1,300.
const MAX_TOKEN: usize = 16 * 1024;

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

/// Decides who is an operator.
pub(super) struct Operators {
    /// Name of the router, which is that of its pod.
    pub(super) router: String,
    pub(super) token: OperatorToken,
    /// Reviews other tokens; `None` if no controller does, or not by an encrypted connection.
    pub(super) reviewer: Option<ControllerLink>,
}

impl Operators {
    /// Admits only operators to these routes.
    pub(super) fn guard(self, routes: Router) -> Router {
        let operators = Arc::new(self);
        routes.layer(from_fn(move |request: Request, next: Next| {
            let operators = operators.clone();
            async move {
                let (parts, body) = request.into_parts();
                match operators.admit(&parts).await {
                    Ok(()) => next.run(Request::from_parts(parts, body)).await,
                    Err(problem) => problem.into_response(),
                }
            }
        }))
    }

    async fn admit(&self, request: &Parts) -> Result<(), Problem> {
        let Parts {
            method,
            uri,
            headers,
            extensions,
            ..
        } = request;
        check_origin(extensions.get().copied(), uri, headers, &self.router)?;
        let operation = operation_of(method, uri.path()).ok_or_else(no_operation)?;
        let token = headers.get(header::AUTHORIZATION);
        let token = token.and_then(|value| bearer_token(value.to_str().ok()?));
        let token = token.ok_or_else(|| self.unauthenticated("no_token", "the request has no token"))?;
        if self.token.is(token) {
            return Ok(());
        }
        match &self.reviewer {
            Some(reviewer) if token.len() <= MAX_TOKEN => review(reviewer, token, operation).await,
            _ => Err(self.unauthenticated("invalid_token", "the token is not that of the router")),
        }
    }

    fn unauthenticated(&self, reason: &'static str, what: &str) -> Problem {
        let or_other = match self.reviewer {
            Some(_) => format!(", or a ServiceAccount token for the audience {OPERATOR_AUDIENCE}"),
            None => String::new(),
        };
        let detail = format!(
            "{what}; send as Authorization: Bearer TOKEN the one in {}, which the router replaces when it starts{or_other}; \
             weir reads it from --router-token FILE, and from where weir port-forward puts it",
            self.token.path().display()
        );
        unauthenticated(reason, detail)
    }
}

/// Has the controller review the token.
async fn review(reviewer: &ControllerLink, token: &str, operation: Operation) -> Result<(), Problem> {
    let Operation {
        verb,
        resource,
        subresource,
        namespace,
        name: _,
    } = &operation;
    let what = format!("{verb} {resource}/{subresource} (weir.dev)");
    let place = namespace.as_ref().map_or_else(
        || "in all namespaces".to_owned(),
        |namespace| format!("in namespace {namespace}"),
    );
    let review = AccessReview {
        token: token.to_owned().into(),
        operation,
    };
    match reviewer.review_access(&review).await {
        Ok(AccessVerdict::Allowed { user }) => {
            if review.operation.is_change() {
                tracing::info!(user = user.as_str(), "an operator asks to {what} {place}");
            }
            Ok(())
        }
        Ok(AccessVerdict::Forbidden { user }) => Err(forbidden(
            "not_allowed",
            format!(
                "{} may not {what} {place}; a Role or ClusterRole has to allow it",
                user.as_str()
            ),
        )),
        Ok(AccessVerdict::Unauthenticated { reason }) => Err(unauthenticated(
            "invalid_token",
            format!(
                "the API server rejects the token ({}); send a valid one for the audience {OPERATOR_AUDIENCE}",
                reason.as_str()
            ),
        )),
        Err(error) => {
            let title = "The token cannot be reviewed";
            let detail = format!("{error}; the router's own token needs no review");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Err(Problem::new(status, "no_review", title, detail).try_again_after(5))
        }
    }
}

/// Checks that the request comes from this machine, and from no one who asks for somebody else.
fn check_origin(peer: Option<Peer>, uri: &Uri, headers: &HeaderMap, router: &str) -> Result<(), Problem> {
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
    let host = check_host(uri, headers, router)?;
    check_site(&host, headers)
}

fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str();
    FORWARDED.contains(&name) || FORWARDED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Returns the request's host, which has to be an address, `localhost` or the router's name: no other name reliably
/// leads here.
fn check_host(uri: &Uri, headers: &HeaderMap, router: &str) -> Result<Authority, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named: Option<Option<Authority>> = hosts.next().map(|host| Authority::try_from(host.as_bytes()).ok());
    let of_uri = uri.authority().cloned();
    let host = match (named, of_uri) {
        (Some(Some(host)), None) | (None, Some(host)) => Some(host),
        (Some(Some(host)), Some(of_uri)) if host == of_uri => Some(host),
        _ => None,
    };
    match host {
        Some(host) if hosts.next().is_none() && is_plain(&host, router) => Ok(host),
        _ => Err(forbidden(
            "wrong_host",
            "the request has to name this machine in Host, as localhost, by an address or by the router's name: use \
             http://127.0.0.1:PORT",
        )),
    }
}

fn is_plain(authority: &Authority, router: &str) -> bool {
    let host = authority.host();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || host == router || address.parse::<IpAddr>().is_ok())
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
        return Err(forbidden(
            "foreign_origin",
            "a page of another site has a browser ask, by Origin or Sec-Fetch-Site; ask with weir or curl",
        ));
    }
    Ok(())
}

fn not_local(why: &str) -> Problem {
    forbidden(
        "not_local",
        format!(
            "{why}it answers on the router's own machine only; in a cluster, use weir port-forward, or kubectl exec in the \
             router's pod"
        ),
    )
}

const TITLE: &str = "This is for operators";

fn forbidden(reason: &'static str, detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, reason, TITLE, detail)
}

fn unauthenticated(reason: &'static str, detail: impl Into<String>) -> Problem {
    let challenges = match reason {
        "no_token" => Challenges::Bearer,
        _ => Challenges::InvalidToken,
    };
    Problem::new(StatusCode::UNAUTHORIZED, reason, TITLE, detail).challenged(challenges)
}

fn no_operation() -> Problem {
    let detail = "the admin API has no such request";
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        "There is no such path",
        detail,
    )
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
        let checked = check_origin(peer, &uri.parse().unwrap(), &headers, "router-0");
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
            ("router-0:9090", ""),
            ("router-1:9090", "wrong_host"),
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
