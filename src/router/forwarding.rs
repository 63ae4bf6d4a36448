//! Lets any router answer for the installation: passes a request about a broker on to the router that owns its shard, and
//! collects lists from all owners.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{self, Body},
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderName, Method, StatusCode, header, request::Parts};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower::ServiceExt as _;

use super::{api::TriggerList, dead_letters::BrokersWithDeadLetters, problem::Problem};
use crate::{
    log::{BrokerName, LogError, jetstream::JetStreamLog},
    ownership::Shards,
};

/// Timeout of a request to another router.
const WAIT: Duration = Duration::from_secs(30);
/// Headers that are passed on.
static HEADERS: [HeaderName; 1] = [header::CONTENT_TYPE];

/// Passes requests on to other routers.
pub(super) struct Forwarding {
    pub(super) log: Arc<JetStreamLog>,
    /// Name of this router.
    pub(super) router: String,
    pub(super) shards: Arc<Shards>,
    /// Maximum body of a request, in bytes.
    pub(super) max_body: usize,
}

/// Head of a request to another router. The body follows after a line feed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ForwardedRequest {
    method: String,
    /// Path and query.
    uri: String,
    headers: Vec<(String, String)>,
}

/// Head of the response of another router. The body follows after a line feed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ForwardedResponse {
    status: u16,
    content_type: Option<String>,
}

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Topic {
    /// Triggers of all brokers.
    Triggers,
    /// All brokers that have dead letters.
    DeadLetters,
    /// One broker.
    Broker(BrokerName),
}

impl Topic {
    fn of(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix("/v1/")?.split('/');
        match (parts.next()?, parts.next(), parts.next()) {
            ("triggers", None, None) => Some(Self::Triggers),
            ("dead-letters", None, None) => Some(Self::DeadLetters),
            ("dead-letters" | "explain", Some(namespace), Some(broker)) => {
                Some(Self::Broker(BrokerName::new(namespace, broker)))
            }
            _ => None,
        }
    }
}

impl Forwarding {
    /// Adds to the routes of this router what other routers know.
    pub(super) fn layer(self: Arc<Self>, routes: Router) -> Router {
        routes.layer(from_fn(move |request: Request, next: Next| {
            let forwarding = self.clone();
            async move {
                match forwarding.answer(request, next).await {
                    Ok(response) => response,
                    Err(problem) => problem.into_response(),
                }
            }
        }))
    }

    /// Answers the requests that other routers pass on, by the routes of this router alone. Never ends.
    pub(super) async fn answer_others(self: Arc<Self>, routes: Router) {
        let answer = |question: Bytes| {
            let routes = routes.clone();
            async move { respond(routes, &question).await }
        };
        self.log.answer(self.router.clone(), answer).await;
    }

    async fn answer(&self, request: Request, next: Next) -> Result<Response, Problem> {
        match Topic::of(request.uri().path()) {
            None => Ok(next.run(request).await),
            Some(Topic::Triggers) => {
                let lists = self.collect::<TriggerList>(request, next).await?;
                Ok(Json(TriggerList::combine(lists)).into_response())
            }
            Some(Topic::DeadLetters) => {
                let lists = self.collect::<BrokersWithDeadLetters>(request, next).await?;
                let mut brokers: Vec<_> = lists.into_iter().flat_map(|list| list.brokers).collect();
                brokers.sort_by(|a, b| a.broker.cmp(&b.broker));
                Ok(Json(BrokersWithDeadLetters { brokers }).into_response())
            }
            Some(Topic::Broker(broker)) => match self.shards.owner_of(&broker) {
                Some(owner) if self.shards.engine_of(&broker).is_none() && owner != self.router => {
                    let (parts, body) = request.into_parts();
                    let body = body::to_bytes(body, self.max_body).await.map_err(too_large)?;
                    self.ask(&owner, &parts, body, WAIT).await
                }
                _ => Ok(next.run(request).await),
            },
        }
    }

    /// Collects a list from this router and all other owners.
    async fn collect<T: DeserializeOwned>(&self, request: Request, next: Next) -> Result<Vec<T>, Problem> {
        let owners = self.shards.owners();
        let path = request.uri().path().to_owned();
        let (own, others) = tokio::join!(next.run(request), self.ask_others(&owners, &path, WAIT));
        let mut lists = vec![read(own).await?];
        for (_, list) in others {
            lists.push(list?);
        }
        Ok(lists)
    }

    /// Asks these routers, except this one, for what they know. Returns the answer or the problem of each, by name.
    pub(super) async fn ask_others<T: DeserializeOwned>(
        &self,
        routers: &BTreeSet<String>,
        path: &str,
        wait: Duration,
    ) -> Vec<(String, Result<T, Problem>)> {
        let others = routers.iter().filter(|router| **router != self.router);
        let asked = others.map(|router| async move {
            let answered = self.ask_for(router, path, wait).await;
            (router.clone(), answered)
        });
        join_all(asked).await
    }

    async fn ask_for<T: DeserializeOwned>(
        &self,
        router: &str,
        path: &str,
        wait: Duration,
    ) -> Result<T, Problem> {
        let request = Request::get(path).body(Body::empty());
        let (parts, _) = request
            .map_err(|error| unanswered(error.to_string()))?
            .into_parts();
        let answered = self.ask(router, &parts, Bytes::new(), wait).await?;
        match answered.status() {
            status if status.is_success() => read(answered).await,
            status => Err(unanswered(format!("router {router} answered {status}"))),
        }
    }

    /// Passes a request on to another router.
    async fn ask(
        &self,
        router: &str,
        parts: &Parts,
        body: Bytes,
        wait: Duration,
    ) -> Result<Response, Problem> {
        let headers = HEADERS.iter().filter_map(|name| {
            let value = parts.headers.get(name)?.to_str().ok()?;
            Some((name.to_string(), value.to_owned()))
        });
        let uri = parts.uri.path_and_query();
        let head = ForwardedRequest {
            method: parts.method.to_string(),
            uri: uri.map_or_else(String::new, ToString::to_string),
            headers: headers.collect(),
        };
        let answer = self.log.ask(router, encode(&head, &body), wait).await;
        let answer = answer.map_err(|error| match error {
            LogError::TooLarge(_) => too_large(error),
            error => unanswered(error.to_string()),
        })?;
        let (head, body): (ForwardedResponse, _) =
            decode(&answer).ok_or_else(|| unanswered(format!("router {router} has another version")))?;
        let response = Response::builder().status(head.status);
        let response = match head.content_type {
            Some(content_type) => response.header(header::CONTENT_TYPE, content_type),
            None => response,
        };
        response
            .body(Body::from(body))
            .map_err(|error| unanswered(format!("router {router} answered what is no response: {error}")))
    }
}

/// Answers a request of another router.
async fn respond(routes: Router, question: &Bytes) -> Bytes {
    let response = match request_of(question) {
        Some(request) => routes.oneshot(request).await.into_response(),
        None => unanswered("the request is of another version".to_owned()).into_response(),
    };
    let (parts, body) = response.into_parts();
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let head = ForwardedResponse {
        status: parts.status.as_u16(),
        content_type: content_type.and_then(|value| Some(value.to_str().ok()?.to_owned())),
    };
    // The routes answer from memory, so the body cannot fail.
    let body = body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    encode(&head, &body)
}

fn request_of(question: &Bytes) -> Option<Request> {
    let (head, body): (ForwardedRequest, _) = decode(question)?;
    let method: Method = head.method.parse().ok()?;
    let request = http::Request::builder().method(method).uri(head.uri);
    let headers = head.headers.iter();
    let request = headers.fold(request, |request, (name, value)| request.header(name, value));
    request.body(Body::from(body)).ok()
}

fn encode(head: &impl Serialize, body: &[u8]) -> Bytes {
    // Strings, numbers and lists always serialise, and JSON has no line feed unless it is pretty.
    let mut text = serde_json::to_vec(head).unwrap_or_default();
    text.push(b'\n');
    text.extend_from_slice(body);
    text.into()
}

fn decode<T: DeserializeOwned>(text: &Bytes) -> Option<(T, Bytes)> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let head = serde_json::from_slice(&text[..end]).ok()?;
    Some((head, text.slice(end + 1..)))
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Problem> {
    let body = body::to_bytes(response.into_body(), usize::MAX).await;
    let body = body.map_err(|error| unanswered(error.to_string()))?;
    serde_json::from_slice(&body)
        .map_err(|error| unanswered(format!("a router has another version: {error}")))
}

fn unanswered(detail: String) -> Problem {
    let title = "Another router does not answer";
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "router_unavailable",
        title,
        detail,
    )
}

fn too_large(error: impl ToString) -> Problem {
    let title = "The request is too large";
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        title,
        error.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_found_in_paths() {
        let broker = |name: &str| Some(Topic::Broker(name.into()));
        for (path, topic) in [
            ("/v1/triggers", Some(Topic::Triggers)),
            ("/v1/dead-letters", Some(Topic::DeadLetters)),
            ("/v1/dead-letters/shop/default/list", broker("shop/default")),
            ("/v1/dead-letters/shop/default/letters/7", broker("shop/default")),
            ("/v1/explain/shop/orders", broker("shop/orders")),
            ("/v1/explain/shop/orders/events", broker("shop/orders")),
            ("/v1/explain/shop", None),
            ("/healthz", None),
        ] {
            assert_eq!(Topic::of(path), topic, "{path}");
        }
    }

    #[tokio::test]
    async fn a_request_reaches_the_routes_of_another_router_unchanged() {
        let echo = async |request: Request| {
            let (parts, body) = request.into_parts();
            let body = body::to_bytes(body, 1000).await.unwrap();
            let header = parts.headers.get(header::CONTENT_TYPE).is_some();
            let text = format!("{} {} {header} {}", parts.method, parts.uri, body.escape_ascii());
            (StatusCode::IM_A_TEAPOT, text)
        };
        let routes = Router::new().fallback(echo);
        let head = ForwardedRequest {
            method: "POST".to_owned(),
            uri: "/v1/explain/a/b?x=1%0A".to_owned(),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        };
        let answer = respond(routes.clone(), &encode(&head, b"{\n\"a\": 1}\n")).await;
        let (head, body): (ForwardedResponse, _) = decode(&answer).unwrap();
        assert_eq!(
            (head.status, head.content_type.as_deref()),
            (418, Some("text/plain; charset=utf-8"))
        );
        assert_eq!(body, "POST /v1/explain/a/b?x=1%0A true {\\n\\\"a\\\": 1}\\n");
        let answer = respond(routes, &Bytes::from_static(b"nonsense")).await;
        let (head, _): (ForwardedResponse, _) = decode(&answer).unwrap();
        assert_eq!(head.status, 503);
    }
}
