//! Sends spans to a collector by OTLP over HTTP, in batches and beside the flow of events: the queue is bounded, what
//! does not fit is dropped, and that a collector cannot be reached is said once, and once more when it can.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData},
};
use tokio::runtime::Handle;

use super::{Options, Sampling, Tracer};
use crate::trust;

/// How long what is not exported yet may take when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a collector's answer is read.
const MAX_ANSWER: usize = 64 * 1024;

/// What the service is called unless the environment says otherwise.
const SERVICE: &str = "weir-router";

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The certificates of the authorities that this machine trusts cannot be read.
    #[error(
        "cannot read the certificate authorities that this machine trusts, needed for {endpoint}: {source}"
    )]
    Roots {
        /// Where spans are to go.
        endpoint: Uri,
        /// What happened.
        source: std::io::Error,
    },
    /// The exporter does not take what it is given.
    #[error("cannot export traces: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// The export of spans; off by default.
#[derive(Debug, Default)]
pub struct Export(Option<SdkTracerProvider>);

/// Starts to export spans, if there are options for it. Has to be called on the runtime. The headers, the service's
/// name and other attributes of the resource, and the queue's bounds are read from OpenTelemetry's environment
/// variables.
///
/// # Errors
/// [`ExportError`] when an `https` endpoint cannot be trusted, or a variable cannot be used.
pub fn start(options: Option<Options>) -> Result<Export, ExportError> {
    let Some(options) = options else {
        return Ok(Export::default());
    };
    let Options {
        endpoint,
        sampling,
        timeout,
    } = options;
    let state = Arc::<ExportState>::default();
    let client = Collector {
        http: client(&endpoint)?,
        runtime: Handle::current(),
        timeout,
        state: state.clone(),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(endpoint.to_string())
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(timeout)
        .build()?;
    let shown = shown(&endpoint);
    tracing::info!(endpoint = shown, sampled = %sampling, "traces are exported");
    let exporter = Exporter {
        exporter,
        endpoint: shown,
        state,
    };
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler(sampling))
        .with_resource(resource())
        .build();
    Ok(Export(Some(provider)))
}

impl Export {
    /// What makes the spans that are exported.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        match &self.0 {
            Some(provider) => Tracer::on(provider.tracer("weir")),
            None => Tracer::default(),
        }
    }

    /// Exports what is there, for five seconds at most.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        // It blocks, and what fails is told by the exporter.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        drop(tokio::time::timeout(FLUSH_TIMEOUT * 2, ended).await);
    }
}

fn sampler(sampling: Sampling) -> Sampler {
    match sampling {
        Sampling::AlwaysOn => Sampler::AlwaysOn,
        Sampling::AlwaysOff => Sampler::AlwaysOff,
        Sampling::Share(share) => Sampler::TraceIdRatioBased(share),
        Sampling::ParentBased(share) => Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))),
    }
}

/// What the environment says of this process, with a name where it says none.
fn resource() -> Resource {
    let found = Resource::builder().build();
    let name = found.get(&"service.name".into()).map(|name| name.to_string());
    let builder =
        Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    match name {
        Some(name) if !name.starts_with("unknown_service") => builder.build(),
        _ => builder.with_service_name(SERVICE).build(),
    }
}

/// An endpoint for people: without user and query, which may be secret.
fn shown(endpoint: &Uri) -> String {
    let (scheme, host) = (
        endpoint.scheme_str().unwrap_or_default(),
        endpoint.host().unwrap_or_default(),
    );
    let port = endpoint
        .port_u16()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{scheme}://{host}{port}{}", endpoint.path())
}

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client(endpoint: &Uri) -> Result<Http, ExportError> {
    let tls = trust::for_uri(endpoint).map_err(|source| ExportError::Roots {
        endpoint: endpoint.clone(),
        source,
    })?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new()).build(connector))
}

/// Posts to the collector. The SDK exports from a thread of its own; the connection lives on the runtime.
#[derive(Debug)]
struct Collector {
    http: Http,
    runtime: Handle,
    timeout: Duration,
    state: Arc<ExportState>,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (http, timeout) = (self.http.clone(), self.timeout);
        let sending = async move { tokio::time::timeout(timeout, exchange(http, request)).await };
        let sent = self.runtime.spawn(sending).await;
        let result = sent.map_err(HttpError::from).and_then(|answered| {
            let late = |_| HttpError::from(format!("no complete answer within {timeout:?}"));
            answered.map_err(late).flatten()
        });
        result.inspect_err(|error| self.state.note(cause(&**error)))
    }
}

async fn exchange(http: Http, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = http.request(request.map(Full::new)).await?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

/// The error at the bottom: HTTP clients put the telling part last.
fn cause(mut error: &(dyn Error + 'static)) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// Exports, and says when that begins to fail and when it works again.
#[derive(Debug)]
struct Exporter {
    exporter: SpanExporter,
    endpoint: String,
    state: Arc<ExportState>,
}

impl opentelemetry_sdk::trace::SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => self.state.succeeded(&self.endpoint),
            Err(error) => self.state.failed(&self.endpoint, spans, &error.to_string()),
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Whether exports fail.
#[derive(Debug, Default)]
struct ExportState(Mutex<Outage>);

#[derive(Debug, Default)]
struct Outage {
    /// How many spans were in the exports that failed since they do; `None` while they do not. What found the queue
    /// full is not among them: the SDK keeps that count to itself.
    lost: Option<u64>,
    /// Why there was no answer to the last request, where there was none.
    cause: Option<String>,
}

impl ExportState {
    fn note(&self, cause: String) {
        self.lock().cause = Some(cause);
    }

    fn failed(&self, endpoint: &str, spans: u64, error: &str) {
        let mut outage = self.lock();
        let cause = outage.cause.take();
        let is_new = outage.lost.is_none();
        *outage.lost.get_or_insert(0) += spans;
        drop(outage);
        if is_new {
            let error = cause.as_deref().unwrap_or(error);
            tracing::warn!(
                endpoint,
                error,
                "traces cannot be exported; events flow on, and spans are dropped until it works again"
            );
        }
    }

    fn succeeded(&self, endpoint: &str) {
        let Outage { lost, cause: _ } = std::mem::take(&mut *self.lock());
        if let Some(lost) = lost {
            tracing::info!(
                endpoint,
                lost,
                "traces are exported again; at least so many spans are lost"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outage> {
        // No code that holds the lock can leave the state half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
