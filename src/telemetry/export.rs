//! Exports spans to a collector by OTLP over HTTP, in batches and without blocking events. The queue is bounded,
//! and spans that do not fit are dropped. An unreachable collector is logged once, and once more when it is back.

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

/// Timeout for exporting the remaining spans at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a collector's response, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Default service name.
const SERVICE: &str = "weir-router";

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The machine's certificate authorities cannot be read.
    #[error(
        "cannot read the certificate authorities that this machine trusts, needed for {endpoint}: {source}"
    )]
    Roots {
        /// Destination of spans.
        endpoint: Uri,
        /// Cause.
        source: std::io::Error,
    },
    /// The exporter rejects its configuration.
    #[error("cannot export traces: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// The export of spans. Off by default.
#[derive(Debug, Default)]
pub struct Export(Option<SdkTracerProvider>);

/// Starts to export spans, if `options` are given. Must be called within a tokio runtime. The headers, the service
/// name and other resource attributes, and the limits of the queue are read from OpenTelemetry's environment
/// variables.
///
/// # Errors
/// [`ExportError`] if TLS for an `https` endpoint cannot be set up, or a variable is invalid.
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
    tracing::info!(endpoint = shown, sampled = %sampling, "exporting traces");
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
    /// Returns the tracer that creates the exported spans.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        match &self.0 {
            Some(provider) => Tracer::on(provider.tracer("weir")),
            None => Tracer::default(),
        }
    }

    /// Exports the remaining spans, for at most five seconds.
    pub async fn end(self) {
        let Some(provider) = self.0 else { return };
        // The call blocks. The exporter reports failures itself.
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

/// Returns the resource from the environment, with a default service name.
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

/// Formats an endpoint without user and query, which may be secret.
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

/// Posts to the collector. The SDK exports from its own thread, but the connection belongs to the runtime.
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
            let late = |_| HttpError::from(format!("no complete response within {timeout:?}"));
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

/// Returns the root cause, which is the most specific message of HTTP clients.
fn cause(mut error: &(dyn Error + 'static)) -> String {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// Exports spans, and logs when exports start to fail and when they work again.
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

/// State of exports.
#[derive(Debug, Default)]
struct ExportState(Mutex<ExportOutage>);

#[derive(Debug, Default)]
struct ExportOutage {
    /// Number of spans in failed exports since exports started to fail; `None` while they succeed. Excludes spans
    /// dropped by the full queue, which the SDK does not report.
    lost: Option<u64>,
    /// Why the last request had no response, if so.
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
                "cannot export traces; spans are dropped until the collector is reachable, events are not affected"
            );
        }
    }

    fn succeeded(&self, endpoint: &str) {
        let ExportOutage { lost, cause: _ } = std::mem::take(&mut *self.lock());
        if let Some(lost) = lost {
            tracing::info!(
                endpoint,
                lost,
                "exporting traces again; at least this many spans were lost"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ExportOutage> {
        // No holder of the lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
