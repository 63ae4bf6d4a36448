//! What Weir tells of single events, beside its metrics: spans for OpenTelemetry, and log lines that cannot flood.
//!
//! The command line calls [`start`] and ends what it gives with [`Export::end`]; the router and delivery ask its
//! [`Tracer`] for spans. Without an endpoint the tracer is off, and asking it costs one branch. The names and
//! attributes of spans are in `spans.rs`, where they go in `export.rs`.

mod burst;
mod export;
mod options;
mod spans;

pub use burst::{Admitted, Burst};
pub use export::{Export, ExportError, start};
pub use options::{Options, OptionsError, Sampling};
pub use spans::{Attempt, DeliverySpan, Receiver, RequestSpan, Tracer};
