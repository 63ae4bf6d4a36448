//! Export of traces: the flag and the environment of `weir router` and `weir run`.

use super::Usage;
use crate::telemetry::{self, Export, Options};

/// Flags for traces.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// OpenTelemetry collector to export traces to, by OTLP over HTTP; /v1/traces is appended. Without it, and
    /// without OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, no traces are exported. Other
    /// supported OpenTelemetry variables: OTEL_SDK_DISABLED; OTEL_TRACES_EXPORTER (otlp or none);
    /// OTEL_EXPORTER_OTLP_HEADERS, _PROTOCOL (http/protobuf) and _TIMEOUT, each also as
    /// OTEL_EXPORTER_OTLP_TRACES_...; OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG; OTEL_SERVICE_NAME and
    /// OTEL_RESOURCE_ATTRIBUTES; OTEL_BSP_SCHEDULE_DELAY, OTEL_BSP_MAX_QUEUE_SIZE and
    /// OTEL_BSP_MAX_EXPORT_BATCH_SIZE; OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT and OTEL_SPAN_LINK_COUNT_LIMIT. Without
    /// OTEL_TRACES_SAMPLER, traces that producers sample are recorded, and a tenth of those that start here.
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

impl TraceArgs {
    /// Starts the export, if an endpoint is set.
    ///
    /// # Errors
    /// [`Usage`] if the flag or a variable is invalid.
    pub fn start(&self) -> anyhow::Result<Export> {
        let variable = |name: &str| std::env::var(name).ok();
        let options = Options::read(self.otlp_endpoint.as_deref(), variable);
        let options = options.map_err(|error| Usage(error.to_string()))?;
        Ok(telemetry::start(options)?)
    }
}
