//! The link to the controller. A long poll receives routing configurations and acknowledges the applied one;
//! beside it, reports tell which Sinks are down.

use std::{
    error::Error as _,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, uri::Scheme};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::controller_connector::{ConnectError, ControllerConnector};
use crate::{
    causes::with_causes,
    http_url::{self, HttpUrlError},
    routing::{
        AccessReview, AccessVerdict, Configuration, Revision, access_reviews_path,
        protocol::{
            CONFIGURATION_PATH, ConfigurationQuery, Detail, POLL_TIMEOUT, REPORT_EVERY, SinkReport,
            router_path, sinks_path,
        },
    },
    supervision,
};

/// Time that the router waits beyond the controller's hold time of a poll.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time that an ending router waits for the controller.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a routing configuration, in bytes.
const MAX_CONFIGURATION: usize = 256 * 1024 * 1024;

/// Maximum bytes read of an error response or a verdict.
const MAX_PROBLEM: usize = 4096;

/// Consecutive failures of a report after which they are logged.
const FAILURES_TO_TELL: u32 = 8;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Link from a router to its controller.
#[derive(Clone, Debug)]
pub struct ControllerLink {
    controller: String,
    is_https: bool,
    token: Option<PathBuf>,
    router: String,
    client: Client<ControllerConnector, Full<Bytes>>,
    /// Notified when a poll has failed: the controller may have lost the last report.
    lost: Arc<Notify>,
}

/// Address of a controller, and the files for mutual trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerAddress {
    /// Base URL: `https` with `authorities`, else `http`.
    pub url: String,
    /// PEM file of the authorities that sign the controller's certificate. Read again for each connection.
    pub authorities: Option<PathBuf>,
    /// File of the token that is sent. Read again for each request.
    pub token: Option<PathBuf>,
}

/// Reasons why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The controller's address is invalid.
    #[error(
        "the controller's address {0:?} {1}; use a URL such as https://weir-controller:8090, or an http one if the \
         controller does not serve TLS"
    )]
    Address(String, HttpUrlError),
    /// The address is https, but no authorities are configured.
    #[error("the controller's address {0:?} is https: say with --controller-ca which authorities to trust")]
    NoAuthorities(String),
    /// The configured secrets would travel in plain text.
    #[error(
        "the controller's address {0:?} is plain http, and --controller-ca and --controller-token are for https: a token \
         is not sent where others can read along"
    )]
    Plain(String),
    /// The token cannot be read.
    #[error("the token for the controller cannot be read from {} (--controller-token): {source}", .path.display())]
    Token {
        /// Path of the token.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The controller is unreachable.
    #[error("the controller cannot be reached: {0}")]
    Unreachable(String),
    /// The controller did not answer in time.
    #[error("the controller did not answer in time")]
    Timeout,
    /// The controller answered with an error.
    #[error("the controller answered {status}{}{}", if .problem.as_str().is_empty() { "" } else { ": " }, .problem.as_str())]
    Status {
        /// Status of the answer.
        status: StatusCode,
        /// Its explanation.
        problem: Detail,
    },
    /// The controller's answer is not a valid routing configuration.
    #[error(
        "the controller's answer cannot be read as a routing configuration: {0}; do both run the same version?"
    )]
    Malformed(String),
    /// The controller's answer is not a valid verdict.
    #[error("the controller's verdict cannot be read: {0}; do both run the same version?")]
    MalformedVerdict(String),
}

impl ControllerLink {
    /// Creates the link of the router with this name to a controller.
    ///
    /// # Errors
    /// Fails when the address is not an http or https URL, or its scheme does not fit the files.
    pub fn new(controller: ControllerAddress, router: &str) -> Result<Self, LinkError> {
        let ControllerAddress {
            url,
            authorities,
            token,
        } = controller;
        let url = url.trim_end_matches('/').to_owned();
        let uri = http_url::parse(&url).map_err(|error| LinkError::Address(url.clone(), error))?;
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        match (is_https, &authorities, &token) {
            (false, None, None) | (true, Some(_), _) => {}
            (false, _, _) => return Err(LinkError::Plain(url)),
            (true, None, _) => return Err(LinkError::NoAuthorities(url)),
        }
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(ControllerConnector::new(authorities));
        Ok(Self {
            controller: url,
            is_https,
            token,
            router: router.to_owned(),
            client,
            lost: Arc::default(),
        })
    }

    /// Polls until `stop` is cancelled. Publishes each new configuration and waits until it is applied before
    /// polling on: the next poll is the acknowledgement. While a configuration takes long to apply, it polls with
    /// the previous revision, so that the controller still sees the router, and no newer configuration is missed.
    pub async fn follow(
        self,
        configurations: watch::Sender<Option<Configuration>>,
        mut applied: watch::Receiver<Revision>,
        stop: CancellationToken,
    ) {
        let mut pause = FIRST_PAUSE;
        let mut problem = None;
        loop {
            let revision = applied.borrow_and_update().clone();
            let polled = tokio::select! {
                polled = self.poll(&revision) => polled,
                () = stop.cancelled() => return,
            };
            match polled {
                Ok(configuration) => {
                    if problem.take().is_some() {
                        tracing::info!(controller = self.controller, "the controller answers again");
                    }
                    pause = FIRST_PAUSE;
                    let Some(configuration) = configuration else {
                        continue;
                    };
                    let expected = configuration.revision.clone();
                    configurations.send_replace(Some(configuration));
                    tokio::select! {
                        waited = applied.wait_for(|revision| *revision == expected) => if waited.is_err() { return },
                        () = tokio::time::sleep(LONGEST_PAUSE) => {}
                        () = stop.cancelled() => return,
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if problem.as_ref() != Some(&error) {
                        tracing::warn!(
                            controller = self.controller,
                            error,
                            "no answer from the controller; the router keeps its configuration"
                        );
                    }
                    problem = Some(error);
                    self.lost.notify_one();
                    tokio::select! {
                        () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                        () = stop.cancelled() => return,
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn poll(&self, revision: &Revision) -> Result<Option<Configuration>, LinkError> {
        let query = ConfigurationQuery {
            router: self.router.clone(),
            revision: revision.clone(),
        };
        let uri = format!("{}{CONFIGURATION_PATH}?{}", self.controller, query.encode());
        tokio::time::timeout(POLL_TIMEOUT + PATIENCE, self.get(uri))
            .await
            .map_err(|_| LinkError::Timeout)?
    }

    async fn get(&self, uri: String) -> Result<Option<Configuration>, LinkError> {
        let request = Request::get(uri.as_str())
            .header(header::ACCEPT, "application/json")
            .body(Full::default())
            .map_err(|error| LinkError::Address(uri, HttpUrlError::Syntax(error.to_string())))?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => return Ok(None),
            _ => return Err(problem(response).await),
        }
        let body = Limited::new(response.into_body(), MAX_CONFIGURATION)
            .collect()
            .await
            .map_err(|error| LinkError::Unreachable(error.to_string()))?;
        let body = body.to_bytes();
        let reading = supervision::apart("reading the routing configuration", move || {
            serde_json::from_slice::<Configuration>(&body)
        });
        let read = reading
            .await
            .map_err(|error| LinkError::Malformed(error.to_string()))?;
        read.map(Some)
            .map_err(|error| LinkError::Malformed(error.to_string()))
    }

    /// Reports to the controller which Sinks are down, until `stop` is cancelled: on changes, when the controller
    /// may have lost the last report, and periodically.
    pub async fn report(self, reports: watch::Receiver<Option<SinkReport>>, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_telling(reports)).await;
    }

    async fn keep_telling(&self, mut reports: watch::Receiver<Option<SinkReport>>) {
        let (mut pause, mut failures) = (FIRST_PAUSE, 0);
        while reports.wait_for(Option::is_some).await.is_ok() {
            let report = reports.borrow_and_update().clone().unwrap_or_default();
            let told = self.tell(&report).await;
            let wait = match &told {
                Ok(()) => {
                    (pause, failures) = (FIRST_PAUSE, 0);
                    REPORT_EVERY
                }
                Err(error) => {
                    failures += 1;
                    if failures == FAILURES_TO_TELL {
                        tracing::warn!(controller = self.controller, %error, "the controller does not take which Sinks are down; statuses do not tell until it does");
                    }
                    let wait = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return },
                () = self.lost.notified(), if told.is_ok() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn tell(&self, report: &SinkReport) -> Result<(), LinkError> {
        let request = self.json(Method::PUT, &sinks_path(&self.router), report)?;
        let response = tokio::time::timeout(PATIENCE, self.send(request))
            .await
            .map_err(|_| LinkError::Timeout)??;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(problem(response).await),
        }
    }

    /// Tells the controller that this router has ended and that others do its work, so that no Trigger waits for it.
    /// If it fails, the controller finds out after a while.
    pub async fn leave(&self) {
        let left = tokio::time::timeout(LEAVE_TIMEOUT, self.delete()).await;
        if let Err(error) = left.unwrap_or(Err(LinkError::Timeout)) {
            tracing::info!(controller = self.controller, %error, "the controller was not told that the router ends");
        }
    }

    async fn delete(&self) -> Result<(), LinkError> {
        let uri = format!("{}{}", self.controller, router_path(&self.router));
        let request = Request::delete(uri.as_str())
            .body(Full::default())
            .map_err(|error| LinkError::Address(uri, HttpUrlError::Syntax(error.to_string())))?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(problem(response).await),
        }
    }

    /// Whether what is sent is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.is_https
    }

    /// Has the controller review whether an operator may do something.
    ///
    /// # Errors
    /// If there is no verdict.
    pub async fn review_access(&self, review: &AccessReview) -> Result<AccessVerdict, LinkError> {
        let request = self.json(Method::POST, &access_reviews_path(&self.router), review)?;
        let reviewed = tokio::time::timeout(PATIENCE, self.verdict(request)).await;
        reviewed.map_err(|_| LinkError::Timeout)?
    }

    /// Makes a request with plain data as its body.
    fn json(
        &self,
        method: Method,
        path: &str,
        data: &impl Serialize,
    ) -> Result<Request<Full<Bytes>>, LinkError> {
        let uri = format!("{}{path}", self.controller);
        // Plain data always serialises.
        let json = serde_json::to_vec(data).unwrap_or_default();
        Request::builder()
            .method(method)
            .uri(uri.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json))
            .map_err(|error| LinkError::Address(uri, HttpUrlError::Syntax(error.to_string())))
    }

    async fn verdict(&self, request: Request<Full<Bytes>>) -> Result<AccessVerdict, LinkError> {
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(problem(response).await);
        }
        let body = Limited::new(response.into_body(), MAX_PROBLEM).collect().await;
        let body = body.map_err(|error| LinkError::Unreachable(error.to_string()))?;
        serde_json::from_slice(&body.to_bytes())
            .map_err(|error| LinkError::MalformedVerdict(error.to_string()))
    }

    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, LinkError> {
        if let Some(path) = &self.token {
            let bearer = bearer(path).await?;
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        let answered = self.client.request(request).await;
        answered.map_err(|error| {
            let connect: Option<&ConnectError> = error.source().and_then(|cause| cause.downcast_ref());
            LinkError::Unreachable(connect.map_or_else(|| with_causes(&error), ConnectError::to_string))
        })
    }
}

/// Reads the token, which the kubelet renews.
async fn bearer(path: &Path) -> Result<HeaderValue, LinkError> {
    let failed = |source| LinkError::Token {
        path: path.to_owned(),
        source,
    };
    let token = tokio::fs::read_to_string(path).await.map_err(failed)?;
    let wrong = |reason| failed(io::Error::new(io::ErrorKind::InvalidData, reason));
    let token = token.trim();
    if token.is_empty() {
        return Err(wrong("the file is empty"));
    }
    let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| wrong("it has characters that no token has"))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

async fn problem(response: Response<Incoming>) -> LinkError {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_PROBLEM).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    LinkError::Status {
        status,
        problem: String::from_utf8_lossy(&body).into_owned().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::{
        Json, Router,
        extract::{Path, Query},
        routing::{delete, get},
    };

    use super::*;
    use crate::routing::protocol::ROUTER_PATH;

    #[test]
    fn an_address_is_of_the_scheme_that_its_files_are_for() {
        for (url, ca, token, problem) in [
            ("http://127.0.0.1:8090/", false, false, None),
            ("https://weir-controller:8090", true, false, None),
            ("https://weir-controller:8090", true, true, None),
            (
                "https://weir-controller:8090",
                false,
                true,
                Some("--controller-ca"),
            ),
            ("http://weir-controller:8090", true, false, Some("plain http")),
            (
                "http://weir-controller:80900",
                false,
                false,
                Some("a port is a number"),
            ),
            ("http://weir-controller:8090", false, true, Some("plain http")),
            (
                "weir-controller:8090",
                false,
                false,
                Some("must start with http://"),
            ),
            (
                "ftp://weir-controller",
                true,
                true,
                Some("must start with http://"),
            ),
            ("http://", false, false, Some("must start with http://")),
        ] {
            let address = ControllerAddress {
                url: url.to_owned(),
                authorities: ca.then(|| "/ca.crt".into()),
                token: token.then(|| "/token".into()),
            };
            let found = ControllerLink::new(address, "r")
                .err()
                .map(|error| error.to_string());
            match (&found, problem) {
                (None, None) => {}
                (Some(found), Some(problem)) if found.contains(problem) => {}
                _ => panic!("{url}, {ca}, {token}: {found:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_configuration_that_is_not_applied_does_not_keep_it_from_asking() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let answer = move |Query(query): Query<ConfigurationQuery>| async move {
            let mut heard = heard.lock().unwrap();
            heard.push(query.revision.0);
            let revision = Revision(format!("r{}", heard.len()));
            Json(Configuration {
                revision,
                ..Configuration::default()
            })
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ControllerAddress {
            url: format!("http://{}", listener.local_addr().unwrap()),
            authorities: None,
            token: None,
        };
        let service = Router::new().route(CONFIGURATION_PATH, get(answer));
        let serving = tokio::spawn(async { axum::serve(listener, service).await });
        let (configurations, mut received) = watch::channel(None);
        let (_applied, acknowledged) = watch::channel(Revision::default());
        let stop = CancellationToken::new();
        let link = ControllerLink::new(address, "r").unwrap();
        let following = tokio::spawn(link.follow(configurations, acknowledged, stop.clone()));
        let is_second = |configuration: &Option<Configuration>| {
            configuration
                .as_ref()
                .is_some_and(|configuration| configuration.revision.0 == "r2")
        };
        let second = tokio::time::timeout(Duration::from_secs(30), received.wait_for(is_second)).await;
        assert!(second.unwrap().is_ok());
        assert_eq!(asked.lock().unwrap()[..2], ["", ""], "nothing is acknowledged");
        stop.cancel();
        following.await.unwrap();
        serving.abort();
    }

    #[tokio::test]
    async fn a_router_that_leaves_tells_the_controller_its_name() {
        let left = Arc::new(Mutex::new(Vec::new()));
        let heard = left.clone();
        let answer = move |Path(router): Path<String>| async move {
            heard.lock().unwrap().push(router);
            StatusCode::NO_CONTENT
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ControllerAddress {
            url: format!("http://{}", listener.local_addr().unwrap()),
            authorities: None,
            token: None,
        };
        let link = ControllerLink::new(address, "r-0").unwrap();
        let service = Router::new().route(ROUTER_PATH, delete(answer));
        let serving = tokio::spawn(async { axum::serve(listener, service).await });
        link.leave().await;
        assert_eq!(*left.lock().unwrap(), ["r-0"]);
        serving.abort();
    }

    #[tokio::test]
    async fn a_token_is_read_again_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        for (text, expected) in [
            (None, Err("No such file")),
            (Some(" \n"), Err("empty")),
            (Some("a\nb"), Err("characters")),
            (Some("abc\n"), Ok("Bearer abc")),
            (Some("def"), Ok("Bearer def")),
        ] {
            if let Some(text) = text {
                std::fs::write(&path, text).unwrap();
            }
            match (bearer(&path).await, expected) {
                (Ok(header), Ok(expected)) => {
                    assert_eq!(header, expected);
                    assert!(!format!("{header:?}").contains("Bearer"));
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
    }
}
