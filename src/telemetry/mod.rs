//! Telemetry on single events, in addition to metrics: spans for OpenTelemetry, and rate-limited log lines.
//!
//! The command line calls [`start`], and [`Export::end`] at shutdown. The router and delivery create spans through
//! [`Tracer`]. Without an endpoint the tracer is off and costs one branch. `spans.rs` defines the names and
//! attributes of spans, `export.rs` sends them.

mod burst;
mod export;
mod options;
mod spans;

pub use burst::{Admitted, Burst};
pub use export::{Export, ExportError, start};
pub use options::{Options, OptionsError, Sampling};
pub use spans::{DeliveryAttempt, DeliverySpan, Receiver, RequestSpan, Tracer};
