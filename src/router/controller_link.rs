//! The link to the controller: a long poll that brings routing configurations and tells what is applied, and beside
//! it reports on which Sinks are down.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    delivery::with_causes,
    routing::{
        Configuration, Revision,
        protocol::{
            CONFIGURATION_PATH, ConfigurationQuery, POLL_TIMEOUT, REPORT_EVERY, SinkReport, sinks_path,
        },
    },
};

/// How much longer than the controller holds a poll the router waits for its end.
const PATIENCE: Duration = Duration::from_secs(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How large a routing configuration may be, in bytes.
const MAX_CONFIGURATION: usize = 256 * 1024 * 1024;

/// A report that failed so often in a row is told of in the log.
const FAILURES_TO_TELL: u32 = 8;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A router's link to its controller.
#[derive(Clone, Debug)]
pub struct ControllerLink {
    controller: String,
    router: String,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Rung when a poll has failed: the controller may have forgotten what it was told.
    lost: Arc<Notify>,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The controller's address is not usable.
    #[error("the controller's address {0:?} is not an http URL such as http://weir-controller:8090")]
    Address(String),
    /// The controller cannot be reached.
    #[error("the controller cannot be reached: {0}")]
    Unreachable(String),
    /// The controller did not answer in time.
    #[error("the controller did not answer in time")]
    Timeout,
    /// The controller has nothing to give.
    #[error("the controller answered {0}")]
    Status(StatusCode),
    /// What the controller sent is no routing configuration.
    #[error(
        "the controller's answer cannot be read as a routing configuration: {0}; do both run the same version?"
    )]
    Malformed(String),
}

impl ControllerLink {
    /// A link from the router of this name to the controller at this base URL.
    ///
    /// # Errors
    /// When the address is no http URL.
    pub fn new(controller: &str, router: &str) -> Result<Self, LinkError> {
        let controller = controller.trim_end_matches('/').to_owned();
        let is_http = controller
            .parse::<Uri>()
            .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some());
        if !is_http {
            return Err(LinkError::Address(controller));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            controller,
            router: router.to_owned(),
            client,
            lost: Arc::default(),
        })
    }

    /// Polls until told to stop, sends each new configuration and waits until it is applied before asking again:
    /// asking is what acknowledges.
    pub async fn follow(
        self,
        configurations: watch::Sender<Option<Configuration>>,
        mut applied: watch::Receiver<Revision>,
        stop: CancellationToken,
    ) {
        let mut pause = FIRST_PAUSE;
        let mut reachable = true;
        loop {
            let revision = applied.borrow_and_update().clone();
            let polled = tokio::select! {
                polled = self.poll(&revision) => polled,
                () = stop.cancelled() => return,
            };
            match polled {
                Ok(configuration) => {
                    if !reachable {
                        tracing::info!(
                            controller = self.controller,
                            "the controller can be reached again"
                        );
                    }
                    (pause, reachable) = (FIRST_PAUSE, true);
                    let Some(configuration) = configuration else {
                        continue;
                    };
                    let expected = configuration.revision.clone();
                    configurations.send_replace(Some(configuration));
                    tokio::select! {
                        waited = applied.wait_for(|revision| *revision == expected) => if waited.is_err() { return },
                        () = stop.cancelled() => return,
                    }
                }
                Err(error) => {
                    if reachable {
                        tracing::warn!(controller = self.controller, %error, "no news from the controller; the router goes on with what it has");
                    }
                    reachable = false;
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
            .map_err(|_| LinkError::Address(uri))?;
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED => return Ok(None),
            status => return Err(LinkError::Status(status)),
        }
        let body = Limited::new(response.into_body(), MAX_CONFIGURATION)
            .collect()
            .await
            .map_err(|error| LinkError::Unreachable(error.to_string()))?;
        serde_json::from_slice(&body.to_bytes())
            .map(Some)
            .map_err(|error| LinkError::Malformed(error.to_string()))
    }

    /// Tells the controller which Sinks are down until told to stop: when that changes, when the controller may have
    /// forgotten, and from time to time.
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
        let uri = format!("{}{}", self.controller, sinks_path(&self.router));
        // Plain data always serialises.
        let json = serde_json::to_vec(report).unwrap_or_default();
        let request = Request::put(uri.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(json))
            .map_err(|_| LinkError::Address(uri))?;
        let response = tokio::time::timeout(PATIENCE, self.send(request))
            .await
            .map_err(|_| LinkError::Timeout)??;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(LinkError::Status(status)),
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, LinkError> {
        self.client
            .request(request)
            .await
            .map_err(|error| LinkError::Unreachable(with_causes(&error)))
    }
}
